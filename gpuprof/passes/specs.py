"""What rules see of a tensor that is more than a shape and a dtype: sparse, or with values that decide a cost."""

from __future__ import annotations

import functools
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.theory import TensorSpec

_ROWS_FIRST = (torch.sparse_csr, torch.sparse_bsr)
_COMPRESSED = (*_ROWS_FIRST, torch.sparse_csc, torch.sparse_bsc)
_OFFSETS = (torch.int32, torch.int64)


def tensor_spec(tensor: torch.Tensor, values: bool) -> TensorSpec:
    """A tensor as rules see it, its dtype still torch's.

    Args:
        tensor: of any layout.
        values: whether the rule asks for what decides its cost: the elements of a list of integers (offsets of packed
            sequences), the places of what a sparse matrix stores. On a GPU that waits for the device.

    Raises:
        GpuprofError: a sparse tensor has lost what it stores.
    """
    spec = TensorSpec(tuple(tensor.shape), tensor.dtype)  # type: ignore[arg-type]
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
    """What the packed parameters of a quantized operator hold: weight and bias, or those of each product of a cell."""
    if hasattr(value, "unpack"):
        return value.unpack()
    if value._type().name() == "CellParamsBase":  # type: ignore[attr-defined]
        return value.__getstate__()[0][-1]  # type: ignore[index]
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
