"""What rules see of the arguments of a call: of tensors their shapes and dtypes, and more of nested and sparse ones."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.theory import TensorSpec
from gpuprof.theory.nested import Nested
from gpuprof.workload.nested import part_shapes
from gpuprof.workload.options import dtype_name

_ROWS_FIRST = (torch.sparse_csr, torch.sparse_bsr)
_COMPRESSED = (*_ROWS_FIRST, torch.sparse_csc, torch.sparse_bsc)
_OFFSETS = (torch.int32, torch.int64)
_Tensor, _Parameter, _strided = torch.Tensor, torch.nn.Parameter, torch.strided  # found at once, and so often
_PLAIN = {type(None), bool, int, float, str, torch.dtype, torch.layout, torch.device, torch.memory_format}


def tensor_spec(tensor: torch.Tensor, values: bool) -> TensorSpec:
    """A tensor as rules see it.

    Args:
        tensor: of any layout.
        values: whether the rule asks for what decides its cost: the elements of a list of integers (offsets of packed
            sequences), the places of what a sparse matrix stores. On a GPU that waits for the device.

    Raises:
        GpuprofError: a sparse tensor has lost what it stores.
    """
    spec = TensorSpec(tuple(tensor.shape), dtype_name(tensor.dtype))
    if tensor.is_meta and tensor.layout in (torch.sparse_coo, *_COMPRESSED):
        raise GpuprofError(
            "a sparse tensor was moved to the meta device, where it does not know how much it stores: "
            "count a real step with 'gpuprof profile MODEL --passes count'"
        )
    indices: tuple[torch.Tensor, ...]
    if tensor.layout is torch.sparse_coo:
        held, indices = tensor._values(), (tensor._indices(),)
    elif tensor.layout in _COMPRESSED:
        by_rows = tensor.layout in _ROWS_FIRST
        offsets = tensor.crow_indices() if by_rows else tensor.ccol_indices()
        held, indices = tensor.values(), (offsets, tensor.col_indices() if by_rows else tensor.row_indices())
    elif values and tensor.dim() == 1 and tensor.dtype in _OFFSETS and not tensor.is_meta:
        return spec._replace(values=tuple(tensor.tolist()))
    else:
        return spec
    spec = spec._replace(stored=held.numel(), index_bytes=sum(index.nbytes for index in indices))
    if values and tensor.dim() == 2:
        coordinates = tensor if tensor.layout is torch.sparse_coo else tensor.to_sparse_coo()
        spec = spec._replace(values=tuple(tuple(row) for row in coordinates._indices().tolist()))
    return spec


def decide(args: tuple[Any, ...]) -> bool:
    """Whether values decide the cost of a call by a rule that reads them: not of one sparse factor, however large."""
    sparse = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.layout in (torch.sparse_coo, *_COMPRESSED)]
    return len(sparse) != 1


def unpacked(value: torch.ScriptObject) -> Any:
    """What the packed parameters of a quantized operator hold: weight and bias, or those of each product of a cell.

    Of a process group the name, which functional collectives are given in its place.
    """
    if hasattr(value, "unpack"):
        return value.unpack()
    if value._type().name() == "CellParamsBase":  # type: ignore[attr-defined]
        return value.__getstate__()[0][-1]  # type: ignore[index]
    if value._type().name() == "ProcessGroup":  # type: ignore[attr-defined]
        return torch.distributed.ProcessGroup.unbox(value).group_name
    return str(value)


@functools.cache
def is_wrapper(kind: type[Any]) -> bool:
    """Whether tensors of this class carry out operators by others, on the tensors they hold.

    Those others are what runs, in their own dtypes and on the part that this rank holds: float8 products of torchao,
    shards of a DTensor. Fake tensors compute nothing, and jagged ones are counted by their sequences.
    """
    from torch._subclasses import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor
    from torch.nested._internal.nested_tensor import NestedTensor

    own = kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return own and not issubclass(kind, (FakeTensor, FunctionalTensor, NestedTensor))


def nested_device(values: Any) -> str | None:
    """Type of the device of the first nested tensor among these; None without any."""
    for value in values:
        if isinstance(value, (tuple, list)) and (found := nested_device(value)):
            return found
        if isinstance(value, torch.Tensor) and value.is_nested:
            return value.device.type
    return None


def spec_of(value: Any, values: bool = False) -> Any:
    """A hashable stand-in: tensors by shape and dtype, containers as tuples, numbers as they are."""
    if isinstance(value, torch.Tensor):
        if value.is_nested:
            parts = part_shapes(value)
            return Nested(TensorSpec((1, *shape), dtype_name(value.dtype)) for shape in parts)
        if values or value.layout is not torch.strided:
            return tensor_spec(value, values)
        return TensorSpec(tuple(value.shape), dtype_name(value.dtype))
    if value is None or isinstance(value, (int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple([spec_of(item, values) for item in value])
    if isinstance(value, dict):
        return tuple([(key, spec_of(item, values)) for key, item in value.items()])
    if isinstance(value, torch.ScriptObject):
        return spec_of(unpacked(value), values)
    return str(value)


def add_key(key: list[Any], given: Iterable[Any], values: bool, exact: bool) -> bool:
    """Extend a key by what tells these arguments from others, far quicker than `spec_of`, which gives no more away.

    Args:
        key: to extend.
        given: arguments: plain tensors, numbers, texts, choices of torch's, and sequences of such.
        values: see `tensor_spec`.
        exact: whether to tell apart all metadata of tensors, their strides among them; else those that rules see.

    Returns:
        False where one of them is something else (wrapped, nested, sparse, symbolic), or its values may decide: then
        there is no key.
    """
    for value in given:
        kind = type(value)
        if kind is _Tensor or kind is _Parameter:
            if value.layout is not _strided or value.is_nested:
                return False
            key += (kind, value.shape, value.dtype, value.is_meta)
            if values and value.dtype in _OFFSETS and value.dim() == 1:
                return False
            if exact:
                key += (value.stride(), value.is_neg(), value.is_conj())
        elif kind in _PLAIN:
            key += (kind, value)
        elif kind is list or kind is tuple:
            key += (kind, len(value))
            if not add_key(key, value, values, exact):
                return False
        else:
            return False
    return True


def is_plain(value: Any) -> bool:
    """Whether it is one tensor, of which `spec_of` says shape and dtype and no more."""
    return type(value) in (_Tensor, _Parameter) and value.layout is _strided and not value.is_nested
