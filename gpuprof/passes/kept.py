"""Bytes of tensors that are still there, and of those that autograd keeps for the backward, by module."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.parameter import is_lazy

from gpuprof.attribution import Ownership, in_backward
from gpuprof.record import UNATTRIBUTED


def _parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if is_lazy(tensor):  # not made yet
        return ()
    return (tensor._indices(), tensor._values()) if tensor.layout == torch.sparse_coo else (tensor,)


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    storages = [part.untyped_storage() for tensor in tensors for part in _parts(tensor)]
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
        self._known.update(tensor.untyped_storage()._cdata for tensor in tensors if not is_lazy(tensor))

    def add(self, tensor: torch.Tensor) -> int:
        """Count a tensor; returns how many bytes of it are new."""
        new = 0
        for part in _parts(tensor):
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
    """Count what autograd keeps for the backward; parameters and buffers are not activations."""
    kept.leave_out((*model.parameters(), *model.buffers()))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        new = kept.add(tensor)
        if new and not in_backward():  # what a recomputation keeps is gone again before the next one
            scope = ownership.running()
            module = UNATTRIBUTED if scope is None else scope.module
            kept.by_module[module] = kept.by_module.get(module, 0) + new
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
