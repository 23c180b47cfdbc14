"""What the cache of a generation holds: keys and values as far as they are filled, states of recurrent layers whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from gpuprof.passes.kept import elements
from gpuprof.passes.objects import attributes, named_tensors
from gpuprof.workload.options import dtype_name
from gpuprof.workload.steps import CACHE_NAMES

DEEPEST = 6
"""Objects in one another in which a cache has its tensors, at most."""

COUNTERS = (torch.int16, torch.int32, torch.int64, torch.bool)
"""Dtypes of what says how much a cache holds, and is none of it."""

_INNER = ("self_attention_cache", "cross_attention_cache")


class Held(NamedTuple):
    """One tensor of a cache.

    Attributes:
        storages: those of its elements.
        bytes: of what it holds, without the empty places of one that is made for more.
        dtype: of what is stored.
        read: bytes that a call reads of it, which are not all where a window ends.
        position: bytes of one position; None of a state that has no positions.
        length: positions that it has had so far, of which a window keeps the last; likewise.
    """

    storages: tuple[int, ...]
    bytes: int
    dtype: str
    read: int
    position: int | None = None
    length: int | None = None

    @property
    def appends(self) -> bool:
        """Whether it keeps all that was ever added."""
        return self.position is not None and self.bytes == self.position * (self.length or 0)


def held_in(cache: Any) -> Iterator[tuple[str, Held]]:
    """What a cache holds, by the path of each tensor: a cache of transformers', or any object with tensors."""
    been: set[Any] = set()
    for name, layer, tensor in _cached(cache):
        place = [(storage, offset_of(piece), bytes_of(piece)) for storage, piece in pieces_of(tensor)]
        held = None if tuple(place) in been else _positions(layer, name, tensor) or state_of(tensor)
        been.add(tuple(place))
        if held is not None:
            yield name, held


def _cached(cache: Any, path: str = "") -> Iterator[tuple[str, Any, torch.Tensor]]:
    """Tensors of a cache by their path, with the layer that each is of."""
    inner = {name: value for name in _INNER if (value := getattr(cache, name, None)) is not None}
    for name, value in inner.items():
        yield from _cached(value, f"{path}{name}.")
    layers = getattr(cache, "layers", None)
    layers = layers if isinstance(layers, list) else []
    for number, layer in enumerate(layers):
        for name, tensor in named_tensors(layer, DEEPEST):
            yield f"{path}{number}.{name}", layer, tensor
    rest = cache
    if inner or layers:
        rest = {name: value for name, value in attributes(cache) if name not in ("layers", *_INNER)}
    for name, tensor in named_tensors(rest, DEEPEST):
        yield f"{path}{name}", cache, tensor


def state_of(tensor: torch.Tensor) -> Held | None:
    """A tensor of a cache that says nothing of positions; None of what only counts."""
    pieces = list(pieces_of(tensor))
    if tensor.dtype in COUNTERS or not pieces or not tensor.numel():
        return None
    size = sum(bytes_of(piece) for _, piece in pieces)
    return Held(tuple(storage for storage, _ in pieces), size, dtype_name(pieces[0][1].dtype), size)


def _positions(layer: Any, name: str, tensor: torch.Tensor) -> Held | None:
    """Keys or values of a layer that knows how many positions it has; None of any other tensor."""
    held = state_of(tensor)
    if held is None or name.rpartition(".")[2] not in ("keys", "values") or tensor.dim() < 3:
        return None
    length = _length(layer)
    if length is None:
        return None
    places, window = tensor.shape[-2], _window(layer)
    position, filled = held.bytes // places, min(length, places)
    read = filled if window is None else min(filled, window - 1)
    return held._replace(bytes=filled * position, read=read * position, position=position, length=length)


def _length(layer: Any) -> int | None:
    """Positions that a layer of a cache has been given; None where it does not say."""
    asked = getattr(layer, "get_seq_length", None)
    length = asked() if callable(asked) else None
    if isinstance(length, torch.Tensor):
        return None if length.is_meta else int(length)
    return length if isinstance(length, int) else None


def _window(layer: Any) -> int | None:
    """How many positions a query sees at most, its own included, in a layer that keeps no more; None without limit."""
    if not getattr(layer, "is_sliding", False):
        return None
    return next((size for name in ("sliding_window", "max_cache_len") if (size := getattr(layer, name, None))), None)


def cache_after(output: Any, given: Any) -> Any:
    """The cache after a call: in its output, or the one that it was given."""
    for name in CACHE_NAMES:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if found is not None:
            return found
    return given


def pieces_of(tensor: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Tensors that hold the elements, with their storages."""
    if tensor.is_nested:
        return
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    for piece in (tensor,) if plain else elements(tensor):
        yield piece.untyped_storage()._cdata, piece


def bytes_of(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements, each once however often it is repeated."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * tensor.element_size()


def offset_of(tensor: torch.Tensor) -> int:
    """Bytes of its storage before a tensor's first element."""
    return int(tensor.storage_offset()) * tensor.element_size()
