"""Running a step without storage: floating tensors live on ``meta``, small integer ones are real.

A model decides by its integers (ids, masks, positions, image sizes) and computes with its floats. Keeping the first
real and the second empty lets the model's own code run as it is, at no memory and hardly any time; plain meta tensors
fail as soon as the code looks at a mask, and fake tensors make libraries take their tracing paths.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpuprof.errors import GpuprofError

_aten = torch.ops.aten
_META = torch.device("meta")

# what these return depends on values, and a computed value does not exist here
_READS_VALUES = {
    _aten._local_scalar_dense.default, _aten.nonzero.default, _aten.is_nonzero.default, _aten.equal.default,
    _aten.unique_consecutive.default, _aten._unique2.default, _aten.masked_select.default,
}  # fmt: skip

# what torch's encoder asks for where it leaves out the padding, which it never does on meta
_PACKS = {_aten._nested_tensor_from_mask_left_aligned.default, _aten._nested_tensor_from_mask.default}

_INDEXES = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}

_RANGES = {_aten.arange.default, _aten.arange.start, _aten.arange.start_step}
_CONSTANTS = {_aten.zeros.default, _aten.ones.default, _aten.full.default, _aten.eye.default}
_SMALL = 1 << 22  # elements: masks yes, caches no


def execute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out one operator: on ``meta`` if it touches a computed value, else for real.

    Raises:
        GpuprofError: the model asks for the value of something computed, which does not exist here.
    """
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "meta" and _is_known(func, args, kwargs):
        kwargs = {**kwargs, "device": torch.device("cpu")}  # stays readable
    if not _touches_meta(args) and not (kwargs and _touches_meta(kwargs.values())):
        return func(*args, **kwargs)
    if func in _READS_VALUES:
        raise GpuprofError(
            f"the model reads the value of a computed tensor ({func}), which counting without weights does not have: "
            "count a real step with 'gpuprof profile MODEL --passes count'"
        )
    if func in _PACKS:
        raise GpuprofError(
            f"the model leaves out the padding of its batch ({func}), which counting without weights does not do: "
            "count a real step with 'gpuprof profile MODEL --passes count'"
        )
    if func is _aten._grouped_mm.default:
        return _grouped_product(*args, **kwargs)
    if func in _INDEXES:
        args = (args[0], [position for index in args[1] for position in _positions(index)], *args[2:])
    out = func(*_to_meta(args), **_to_meta(kwargs))
    if func._schema.is_mutable and isinstance(args[0], torch.Tensor) and args[0].device.type != "meta":
        return args[0]  # what is written has no value; the tensor that the model holds stays as it is
    return out


def nowhere(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator only tells shapes, on ``meta`` or for fake tensors, and does no work."""
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "meta":
        return True
    return _touches_meta(args, fake=True) or _touches_meta(kwargs.values(), fake=True)


class Weightless(TorchDispatchMode):
    """Carries out every operator so, and does nothing else."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return execute(func, args, kwargs or {})


def _grouped_product(
    a: torch.Tensor, b: torch.Tensor, offs: Any = None, bias: Any = None, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Torch's own on ``meta`` takes bfloat16 alone."""
    groups = (offs.shape[0],) if a.dim() == b.dim() == 2 else (a.shape[0],) if a.dim() == b.dim() else ()
    return torch.empty((*groups, a.shape[-2], b.shape[-1]), dtype=out_dtype or a.dtype, device=_META)


def _is_known(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a result asked for on ``meta`` has values that the model may read: small constants, and integers."""
    if _touches_meta(args):
        return False
    source = next((arg for arg in args if isinstance(arg, torch.Tensor)), None)
    dtype = kwargs.get("dtype") or (None if source is None else source.dtype)
    if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
        return True
    if func in _RANGES:
        return not any(isinstance(arg, float) for arg in args) or dtype is None
    return func in _CONSTANTS and math.prod(args[0]) <= _SMALL


def _touches_meta(values: Any, fake: bool = False) -> bool:
    """Whether a tensor among these is on ``meta``, or is a fake one if that counts as well."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.device.type == "meta" or (fake and isinstance(value, FakeTensor)):
                return True
        elif isinstance(value, (list, tuple)) and _touches_meta(value, fake):
            return True
    return False


def _to_meta(values: Any) -> Any:
    """The same values without storage. Written out: `tree_map` would take a fifth of a whole count."""
    if isinstance(values, torch.Tensor):
        if values.layout is not torch.strided:  # a sparse factor: only the shape of what it makes is asked for
            return torch.empty(values.shape, dtype=values.dtype, device=_META)
        if values.device.type == "meta":
            return values
        return torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device=_META)
    if isinstance(values, tuple):
        return tuple([_to_meta(value) for value in values])
    if isinstance(values, list):
        return [_to_meta(value) for value in values]
    if isinstance(values, dict):
        return {key: _to_meta(value) for key, value in values.items()}
    return _META if isinstance(values, torch.device) else values


def _positions(index: Any) -> list[Any]:
    """A real boolean index as integer ones: as many as it has true elements, all that shapes depend on."""
    if not isinstance(index, torch.Tensor) or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    if index.device.type == "meta":
        raise GpuprofError(
            "the model selects by a mask that it computes, which counting without weights does not have: "
            "count a real step with 'gpuprof profile MODEL --passes count'"
        )
    times = 1
    once = index
    for dim, stride in enumerate(index.stride()):
        if stride == 0:  # expanded: what is repeated need not be looked at again
            times *= index.shape[dim]
            once = once.narrow(dim, 0, 1)
    chosen = times * int(once.count_nonzero())
    return [torch.empty(chosen, dtype=torch.int64, device=_META)] * index.dim()
