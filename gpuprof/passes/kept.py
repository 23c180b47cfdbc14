"""Bytes of tensors that are still there, and of those that autograd keeps for the backward, by module."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gpuprof.attribution import Ownership, in_backward
from gpuprof.passes.specs import is_wrapper
from gpuprof.schema import UNATTRIBUTED


def elements(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors that hold the elements: of a class that has none itself, those in it; a DTensor has its shard."""
    if is_lazy(tensor):  # not made yet
        return ()
    if is_wrapper(type(tensor)) and is_traceable_wrapper_subclass(tensor):
        inside = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        return tuple(part for one in inside if isinstance(one, torch.Tensor) for part in elements(one))
    return (tensor._indices(), tensor._values()) if tensor.layout == torch.sparse_coo else (tensor,)


def elements_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the elements of tensors that this process holds: of a DTensor those of its shard, without padding."""
    return sum(part.numel() * part.element_size() for tensor in tensors for part in elements(tensor))


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors, each storage once: those that this process holds, with the padding of an uneven shard."""
    storages = [part.untyped_storage() for tensor in tensors for part in elements(tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


class Held:
    """Bytes of tensors that are still there, each storage once.

    Attributes:
        bytes: of those that were added and are not freed yet.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._known: set[int] = set()

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Never count the storages of these, which live as long."""
        self._known.update(part.untyped_storage()._cdata for tensor in tensors for part in elements(tensor))

    def add(self, tensor: torch.Tensor) -> int:
        """Count a tensor; returns how many bytes of it are new."""
        new = 0
        for part in elements(tensor):
            storage = part.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.bytes += size
                new += size
                weakref.finalize(storage, self._freed, key, size).atexit = False
        return new

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)  # another storage may get this address
        self.bytes -= size


class Kept(Held):
    """Tensors kept for the backward.

    Attributes:
        by_module: bytes kept in the forward, by the module that keeps them first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_module: dict[str, int] = {}


@contextmanager
def kept_for_backward(model: torch.nn.Module, ownership: Ownership, kept: Kept) -> Iterator[None]:
    """Count what autograd keeps for the backward; parameters and buffers are not activations.

    Nor are parameters that FSDP has gathered for a module and that are none of the model's while it is at rest.
    """
    kept.leave_out((*model.parameters(), *model.buffers()))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor if tensor._base is None else tensor._base
        new = 0 if isinstance(whole, torch.nn.Parameter) else kept.add(tensor)
        if new and not in_backward():  # what a recomputation keeps is gone again before the next one
            scope = ownership.running()
            module = UNATTRIBUTED if scope is None else scope.module
            kept.by_module[module] = kept.by_module.get(module, 0) + new
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
