"""Running a step without storage: floating tensors live on ``meta``, small integer ones are real.

A model decides by its integers (ids, masks, positions, image sizes) and computes with its floats. Keeping the first
real and the second empty lets the model's own code run as it is, at no memory and hardly any time; plain meta tensors
fail as soon as the code looks at a mask, and fake tensors make libraries take their tracing paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gpuprof.errors import GpuprofError
from gpuprof.workload.steps import tensors

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

_SCATTERS = {_aten.masked_scatter.default, _aten.masked_scatter_.default}
_BY_VALUES = _READS_VALUES | _PACKS | _INDEXES | _SCATTERS
_RANGES = {_aten.arange.default, _aten.arange.start, _aten.arange.start_step}
_LIKE: dict[Any, Any] = {
    _aten.zeros_like.default: 0, _aten.ones_like.default: 1, _aten.full_like.default: None,
    _aten.new_zeros.default: 0, _aten.new_ones.default: 1, _aten.new_full.default: None,
}  # fmt: skip
_CONSTANTS = {_aten.zeros.default, _aten.ones.default, _aten.full.default, _aten.eye.default}
# draws that torch's Python makes on `meta`, where nothing is kept of them, and what that asks of their arguments
_DRAWS: dict[Any, Callable[..., bool]] = {
    _aten.normal_.default: lambda mean=0.0, std=1.0: std >= 0,
    _aten.uniform_.default: lambda low=0.0, high=1.0: low <= high,
}
_SMALL = 1 << 22  # elements: masks yes, caches no

_WRITTEN = {torch.tensor, torch.as_tensor}
_TELLS = {torch.Tensor.tolist, torch.Tensor.numpy}
_FILLED = {torch.Tensor.__setitem__, torch.Tensor.index_copy_, torch.Tensor.copy_}
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
_SANE = {
    torch.isfinite: True, torch.Tensor.isfinite: True, torch.isnan: False, torch.Tensor.isnan: False,
    torch.isinf: False, torch.Tensor.isinf: False, torch._is_all_true: True,
}  # fmt: skip

_MEND = "which counting without weights does not have: count a real step with 'gpuprof profile MODEL --passes count'"
# what torch says where it is asked for such a value before any operator is
_NO_VALUE = ("unallocated storage", "meta tensor", "meta device", "it's on meta")

# storages of real tensors that something computed was written to, and of what was made of them: their values are not
# the step's
_overwritten: WeakSet[torch.UntypedStorage] = WeakSet()


def reads_values(error: Exception) -> str:
    """What an error of torch says if a model asked for a value that does not exist without weights; else nothing."""
    text = str(error).strip().partition("\n")[0]
    if not any(words in text.lower() for words in _NO_VALUE):
        return ""
    return f"the model reads the value of a computed tensor ({text.rstrip('.')}), {_MEND}"


def execute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out one operator: on ``meta`` if it touches a computed value, else for real.

    Raises:
        GpuprofError: the model asks for the value of something computed, which does not exist here.
    """
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "meta" and _is_known(func, args, kwargs):
        kwargs = {**kwargs, "device": torch.device("cpu")}  # stays readable
    if func in _LIKE and (constant := _constant(func, args, kwargs)) is not None:
        return constant
    values = (*args, *kwargs.values()) if kwargs else args
    overwritten = bool(_overwritten) and _touches_overwritten(values)
    if not _touches_meta(values) and not (overwritten and func in _READS_VALUES):
        try:
            out = func(*args, **kwargs)
        except NotImplementedError:  # by the CPU, which is not the device that the model takes it to be on
            return func(*_to_meta(args), **_to_meta(kwargs))
        if overwritten:
            _overwritten.update(tensor.untyped_storage() for tensor in tensors(out) if _is_plain(tensor))
        return out
    if func in _DRAWS and args[0].device.type == "meta" and _DRAWS[func](*args[1:]):
        return args[0]
    if func in _READS_VALUES:
        raise GpuprofError(f"the model reads the value of a computed tensor ({func}), {_MEND}")
    if func in _PACKS:
        raise GpuprofError(
            f"the model leaves out the padding of its batch ({func}), which counting without weights does not do: "
            "count a real step with 'gpuprof profile MODEL --passes count'"
        )
    if func in _SCATTERS:
        _check_scatter(*args)
    if func is _aten._grouped_mm.default:
        return _grouped_product(*args, **kwargs)
    if func in _INDEXES:
        args = (args[0], [position for index in args[1] for position in _positions(index)], *args[2:])
    out = func(*_to_meta(args), **_to_meta(kwargs))
    if func._schema.is_mutable and isinstance(args[0], torch.Tensor) and args[0].device.type != "meta":
        _overwritten.add(args[0].untyped_storage())
        return args[0]  # the tensor that the model holds stays what it is, but nobody may read it
    return out


def repeated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Callable[..., Any] | None:
    """What does at once what `execute` does for each further call of an operator with arguments of the same metadata.

    Most kernels of ``meta`` are Python, and find out each time what is known from the first: what such a call makes is
    as empty, and is made right away. An operator on computed tensors alone that looks at one, or changes it, just runs.

    Args:
        func: the operator.
        args: its positional arguments.
        kwargs: its keyword arguments.
        out: what it returned.

    Returns:
        What takes the arguments and returns such a result; None where metadata alone do not tell what that is.
    """
    if torch._C._len_torch_dispatch_stack():  # a mode of somebody else's around it is to see each call
        return None
    given = list(tensors([args, kwargs]))
    if func in _BY_VALUES or getattr(func, "namespace", "") != "aten" or not any(tensor.is_meta for tensor in given):
        return None
    schema = func._schema
    if schema.is_mutable or any(result.alias_info is not None for result in schema.returns):
        moved = any(isinstance(value, torch.device) for value in (*args, *kwargs.values()))
        return None if moved or not all(tensor.is_meta for tensor in given) else func
    results = [out] if isinstance(out, torch.Tensor) else out
    if not isinstance(results, (tuple, list)) or not all(map(_is_empty, results)):
        return None
    made = [result for result in results if result is not None]
    storages = {tensor.untyped_storage()._cdata for tensor in made}
    if len(storages) < len(made) or any(tensor.untyped_storage()._cdata in storages for tensor in given):
        return None  # it hands back what it was given, or parts of one piece of memory
    if any(map(_has_fractions, made)) and not any(map(_has_fractions, given)):
        return None  # in the dtype that torch makes of numbers, which may be set to another
    parts = [None if result is None else (result.shape, result.stride(), result.dtype) for result in results]
    if isinstance(out, torch.Tensor):
        return partial(_empty_again, parts[0])
    kind: Any = type(out)
    return lambda *_, **__: kind(None if part is None else _empty_again(part) for part in parts)


def _is_empty(result: Any) -> bool:
    """Whether `_empty_again` can make such a result of an operator; no number, whose dtype may be a weak one."""
    if result is None:
        return True
    if type(result) is not torch.Tensor or not result.is_meta or not _is_plain(result) or not result.dim():
        return False
    if result.is_conj() or result.is_neg() or result._is_view() or result.storage_offset():
        return False
    again = _empty_again((result.shape, result.stride(), result.dtype))
    return again.untyped_storage().nbytes() == result.untyped_storage().nbytes()


def _empty_again(part: Any, /, *_: Any, **__: Any) -> torch.Tensor:
    shape, stride, dtype = part
    return torch.empty_strided(shape, stride, dtype=dtype, device=_META)


def _has_fractions(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


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


class Answers(TorchFunctionMode):
    """Answers what a model asks of Python and no operator is asked: numbers it writes down itself, and sane ones.

    A tensor made of Python's numbers has values, and no value of a step is infinite, none at all or what a check of
    torch's own refuses; a computed tensor has no values to give.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _WRITTEN and "meta" in str(kwargs.get("device")) and next(tensors(list(args)), None) is None:
            return func(*args, **{**kwargs, "device": "cpu"})
        if func in _TELLS and (args[0].device.type == "meta" or _touches_overwritten(args)):
            raise GpuprofError(f"the model reads the value of a computed tensor ({func.__name__}), {_MEND}")
        if func in _FILLED and _takes_over(args[0], args[-1]):
            torch.utils.swap_tensors(args[0], _to_meta(args[0]))
        if func in _RECURRENT:  # which compare devices before any operator
            return func(*_to_meta(tuple(args)), **kwargs) if _touches_meta(args) else func(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in _SANE and out.device.type == "meta":
            return torch.full(tuple(out.shape), _SANE[func], device="cpu")
        return out


def drop_values(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put a model's floating tensors on `meta`, where `model.to("meta")` would untie weights and lose the optimizer's.

    Args:
        model: whose parameters and buffers; its whole numbers keep their values.
        optimizer: that updates its parameters.
    """
    empty = {id(weight): _empty(weight) for weight in model.parameters()}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = empty[id(weight)]
        for name, buffer in module._buffers.items():
            # what is sparse is small, and on `meta` it would not know how much it stores
            if buffer is not None and buffer.is_floating_point() and buffer.layout is torch.strided:
                module._buffers[name] = _empty(buffer) if is_lazy(buffer) else buffer.to("meta")
    for group in optimizer.param_groups if optimizer is not None else ():
        group["params"] = [empty.get(id(weight), weight) for weight in group["params"]]


def _empty(weight: Any) -> Any:
    """A parameter without its values; of a lazy module one that is still to be made, and will be there."""
    if is_lazy(weight):
        kind: Any = type(weight)
        return kind(requires_grad=weight.requires_grad, device=torch.device("meta"), dtype=weight.dtype)
    return torch.nn.Parameter(weight.detach().to("meta"), weight.requires_grad)


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
    sizes = args[0] if isinstance(args[0], (list, tuple)) else [args[0], args[-1]]  # `eye` has one number, or two
    return func in _CONSTANTS and math.prod(sizes) <= _SMALL


def _constant(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """A tensor of one whole number, as large as another one or made by it: its values do not depend on that one's."""
    model, *rest = args
    dtype = kwargs.get("dtype") or model.dtype
    shape = model.shape if not func.__name__.startswith("new_") else rest.pop(0)
    if model.device.type != "meta" or dtype.is_floating_point or dtype.is_complex or math.prod(shape) > _SMALL:
        return None
    value = _LIKE[func] if _LIKE[func] is not None else rest[0]
    return torch.full(tuple(shape), value, dtype=dtype, device="cpu")


def _takes_over(tensor: torch.Tensor, value: Any) -> bool:
    """Whether a constant is made to hold computed values: it is computed itself from then on, as is its gradient."""
    written = isinstance(value, torch.Tensor) and value.device.type == "meta"
    return written and tensor.device.type != "meta" and tensor.is_floating_point() and not tensor._is_view()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it has one storage."""
    return tensor.layout is torch.strided and not tensor.is_nested


def _touches_meta(values: Any, fake: bool = False) -> bool:
    """Whether a tensor among these is on ``meta``, or is a fake one if that counts as well."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.device.type == "meta" or (fake and isinstance(value, FakeTensor)):
                return True
        elif isinstance(value, (list, tuple)) and _touches_meta(value, fake):
            return True
    return False


def _touches_overwritten(values: Any) -> bool:
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.device.type != "meta" and _is_plain(value) and value.untyped_storage() in _overwritten:
                return True
        elif isinstance(value, (list, tuple)) and _touches_overwritten(value):
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
    if index.device.type == "meta" or _touches_overwritten((index,)):
        raise GpuprofError(f"the model selects by a mask that it computes, {_MEND}")
    return [torch.empty(_true(index), dtype=torch.int64, device=_META)] * index.dim()


def _true(mask: torch.Tensor) -> int:
    """How many elements of a real mask are true."""
    times = 1
    once = mask
    for dim, stride in enumerate(mask.stride()):
        if stride == 0:  # expanded: what is repeated need not be looked at again
            times *= mask.shape[dim]
            once = once.narrow(dim, 0, 1)
    return times * int(once.count_nonzero())


def _check_scatter(target: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> None:
    """Torch's own check of a masked scatter, left out on `meta`: that an image has as many features as places."""
    if mask.device.type == "meta" or _touches_overwritten((mask,)):
        return
    places = _true(mask.expand(target.shape))
    if places > source.numel():
        raise RuntimeError(f"masked_scatter: {places} places for {source.numel()} elements of the source")
