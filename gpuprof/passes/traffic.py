"""Bytes that must move in each part of a generation: weights, cache and activations, by the module that moves them.

A lower bound, seen in the operators of the counting pass: what an ideal machine with caches of its own, that fuses all
elementwise work, would still have to read and write (docs/generate.md has the definition).

Weights are told by the storages of parameters and buffers, whatever reads them. The cache is looked at before and after
each call of the model: what it held and an operator reads is read, what has come to it is written. A cache that a model
keeps in its own buffers is told by what is written to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from gpuprof.attribution import Scope
from gpuprof.passes.caches import (
    COUNTERS,
    DEEPEST,
    Held,
    bytes_of,
    cache_after,
    held_in,
    offset_of,
    pieces_of,
    state_of,
)
from gpuprof.passes.generation import Part
from gpuprof.passes.objects import named_tensors
from gpuprof.schema import ALL, UNATTRIBUTED
from gpuprof.theory.rules import PRODUCTS
from gpuprof.workload.options import dtype_name
from gpuprof.workload.steps import CACHE_NAMES

_TOLD = {*vars(torch.nn.Module()), "config"} - {"_parameters", "_buffers"}
"""Attributes of a module with what it was told or is made of, hooks among them, and not what it keeps."""
_NEGLIGIBLE = 1e-3  # share of a part's bytes that may be of unknown origin

_LOOKUPS = {"embedding", "index", "index_select", "gather", "take"}
_PLACED = {"index_put_", "_index_put_impl_", "index_copy_", "index_add_", "scatter_", "scatter_add_", "masked_scatter_"}
"""Operators in place that write as much as they are given, and not all of what they write to."""
_EMPTIED = {"zero_", "fill_"}


class _Operator(NamedTuple):
    """What the schema of an operator says."""

    name: str
    view: bool
    reads: bool  # values, and not only shapes
    written: tuple[int, ...]  # places of the arguments that it changes
    written_names: tuple[str, ...]


@cache
def _operator(func: Any) -> _Operator:
    name = getattr(func, "_opname", getattr(func, "dtype_name", str(func)))
    if not isinstance(func, torch._ops.OpOverload):
        return _Operator(name, False, True, (), ())
    schema = func._schema
    view = any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
    view = view or name == "_unsafe_view"
    changed = [
        (place, argument)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    # what FSDP copies of its shards is sent, and read by the model where it has arrived
    reads = not (name.endswith("_like") or name.startswith("new_") or func.namespace == "fsdp")
    return _Operator(
        name, view, reads,
        tuple(place for place, argument in changed if not argument.kwarg_only),
        tuple(argument.name for _, argument in changed),
    )  # fmt: skip


@dataclass
class _Reads:
    """What is read of one storage in one part."""

    bytes: int = 0
    by_module: dict[str, int] = field(default_factory=dict)
    seen: set[Any] = field(default_factory=set)


@dataclass
class _Part:
    """What was seen of one part."""

    reads: dict[int, _Reads] = field(default_factory=dict)
    activations: dict[tuple[str, str], int] = field(default_factory=dict)
    # modules of the operators that first read, write or make a storage
    readers: dict[int, str] = field(default_factory=dict)
    writers: dict[int, str] = field(default_factory=dict)
    makers: dict[int, str] = field(default_factory=dict)
    places: dict[int, dict[Any, int]] = field(default_factory=dict)  # bytes that are written, by where
    carried: dict[int, int] = field(default_factory=dict)  # bytes read of what another part made
    given: set[int] = field(default_factory=set)
    before: dict[Any, Held] = field(default_factory=dict)
    after: dict[Any, Held] = field(default_factory=dict)
    replaced: dict[Any, tuple[Held | None, Held]] = field(default_factory=dict)  # what modules hold in new tensors
    cache: str = ""


class Traffic:
    """What the operators of one generation read and write.

    Args:
        model: that generates.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._parts = [_Part()]  # what is before the first call is of the first part
        self._begun = False
        self._weights: dict[int, tuple[int, str]] = {}  # bytes and dtype of each storage
        self._alive: list[torch.UntypedStorage] = []  # so that no other storage gets the address of one of these
        self._derived: dict[int, int] = {}  # storages made of weights alone, by the part that made them
        self._made: dict[int, int] = {}  # storages by the part in which an operator made them last
        self._handed_back: set[int] = set()  # storages that calls of the model returned
        self._products: dict[str, int] = {}  # of attentions that are spelled out
        self._at_most: set[str] = set()
        self._reread: set[str] = set()  # what modules keep for a later part, and not only for who looks at it
        self._unknown: dict[str, None] = {}
        self._gathered: set[int] = set()  # storages of parameters that FSDP gathers, and writes to for that
        for module in model.modules():
            for _, tensor in named_tensors(_held_by(module), DEEPEST):
                self._add_weight(tensor)

    def _add_weight(self, tensor: torch.Tensor) -> None:
        for storage, piece in pieces_of(tensor):
            if storage not in self._weights:
                whole = piece.untyped_storage()
                self._weights[storage] = whole.nbytes(), dtype_name(piece.dtype)
                self._alive.append(whole)

    def call(
        self, module: torch.nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a call that begins a part, and look at its cache before and after."""
        if self._begun:
            self._parts.append(_Part())
        self._begun, part = True, self._parts[-1]
        given = _arguments(module, args, kwargs)
        cache = next((given[name] for name in CACHE_NAMES if given.get(name) is not None), None)
        with _looking():
            part.before = dict(held_in(cache))
            part.given = _storages(given) - self._handed_back
            kept = dict(self._kept())
        output = call(*args, **kwargs)
        cache = cache_after(output, cache)
        with _looking():
            if module is self._model:  # what an encoder hands over is an input
                self._handed_back |= _storages({"output": output})
            part.after = dict(held_in(cache))
            part.replaced = {
                name: (kept.get(name), now)
                for name, now in self._kept()
                if name not in kept or kept[name].storages != now.storages
            }
        part.cache = "" if cache is None else type(cache).__name__
        return output

    def _kept(self) -> Iterator[tuple[str, Held]]:
        """What modules keep themselves, beside their parameters."""
        for path, module in self._model.named_modules():
            own = _held_by(module)
            del own["_parameters"]
            for name, tensor in named_tensors(own, DEEPEST):
                if (held := state_of(tensor)) is not None:
                    yield f"{path}.{name}", held

    def operator(
        self, func: Any, kind: str, scope: Scope, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        """An operator has run.

        Args:
            func: the operator.
            kind: of work, as its FLOP rule has it.
            scope: whose it is.
            args: its positional arguments.
            kwargs: its keyword arguments.
            out: what it returned.
        """
        known = _operator(func)
        part, module, number = self._parts[-1], scope.module, len(self._parts) - 1
        given = [tensor for value in (*args, *kwargs.values()) for tensor in _tensors(value)]
        for tensor in given:
            if isinstance(tensor, torch.nn.Parameter):
                self._learn(tensor, module)
        if known.view:
            return
        reads = known.reads and kind != "view"  # which moves nothing: `new_empty`
        written = [args[place] for place in known.written if place < len(args)]
        written += [kwargs[name] for name in known.written_names if name in kwargs]
        changed = {id(tensor) for value in written for tensor in _tensors(value)}
        inputs: list[torch.Tensor] = []
        weighs, storages, results = False, set(), set()
        for tensor in given if reads else ():
            for storage, piece in pieces_of(tensor):
                storages.add(storage)
                if id(tensor) in changed:
                    self._write(part, known.name, module, storage, piece, given)
                    results.add(storage)
                    continue
                part.readers.setdefault(storage, module)
                if storage in self._weights:
                    weighs = True
                    self._read(part, known.name, module, storage, piece, args, kwargs, out)
                elif storage in self._derived:
                    weighs = True
                    if self._derived[storage] < number:  # kept since then, and read in the place of what it is of
                        self._read_all(part, module, storage, piece)
                else:
                    inputs.append(piece)
                    if self._made.get(storage, number) < number and piece.dtype not in COUNTERS:
                        part.carried[storage] = max(part.carried.get(storage, 0), bytes_of(piece))
        made = [(storage, piece) for tensor in _tensors(out) for storage, piece in pieces_of(tensor)]
        for storage, _ in made:
            if storage not in storages:
                results.add(storage)
                self._made[storage] = number
                self._handed_back.discard(storage)
                part.makers[storage] = module
                if storage not in part.places:
                    part.writers.pop(storage, None)  # of another one, which is gone and had this address
        chosen = weighs and known.name in _LOOKUPS and given[0].dim() > 2  # whole matrices, to multiply with
        for storage in results - self._weights.keys():
            if chosen or (weighs and not inputs):
                self._derived[storage] = number
            elif inputs or storage not in storages:  # to scale in place by a number changes nothing of that
                self._derived.pop(storage, None)
        if kind in PRODUCTS:
            self._product(part, kind, scope, inputs, weighs, [piece for _, piece in made])

    def _learn(self, parameter: torch.nn.Parameter, module: str) -> None:
        """A parameter that the model did not have before: gathered for one of its modules, or of another model."""
        if any(storage not in self._weights for storage, _ in pieces_of(parameter)):
            if module == UNATTRIBUTED:
                name = type(self._model).__name__
                self._unknown[f"the step runs another model beside {name}, whose cache is not seen"] = None
            self._add_weight(parameter)
            self._gathered |= {storage for storage, _ in pieces_of(parameter)}

    def _read_all(self, part: _Part, module: str, storage: int, piece: torch.Tensor) -> None:
        """A piece of what is stored, once."""
        self._book(part, module, storage, (offset_of(piece), bytes_of(piece)), bytes_of(piece), piece)

    def _book(self, part: _Part, module: str, storage: int, key: Any, size: int, piece: torch.Tensor) -> None:
        """Bytes of a storage, unless they were read before; in all never more than it has."""
        reads = part.reads.setdefault(storage, _Reads())
        if key in reads.seen:
            return
        reads.seen.add(key)
        self._add_weight(piece)
        size = min(size, self._weights[storage][0] - reads.bytes)
        reads.bytes += size
        reads.by_module[module] = reads.by_module.get(module, 0) + size

    def _read(
        self, part: _Part, name: str, module: str, storage: int, piece: torch.Tensor, args: tuple[Any, ...],
        kwargs: Mapping[str, Any], out: Any,
    ) -> None:  # fmt: skip
        """An operator reads a weight: all of it, the rows that it looks up, or the experts that have tokens."""
        if name in _LOOKUPS and piece is next(_tensors(args), None):
            rows = next(_tensors(out)).numel() * piece.element_size()
            chosen = _chosen(args[1]) if piece.dim() > 2 and name == "index" else None
            if piece.dim() > 2 and chosen is None:
                self._at_most.add(module)
            if chosen is None:  # each lookup for itself
                reads = part.reads.setdefault(storage, _Reads())
                self._book(part, module, storage, len(reads.seen), min(rows, bytes_of(piece)), piece)
            for expert in chosen or ():
                self._read_all(part, module, storage, piece[expert])
            return
        offsets = _offsets(name, args, kwargs)
        if offsets is not None and piece.dim() == 3 and piece.shape[0] == offsets.shape[0]:
            chosen = _with_tokens(offsets)
            if chosen is None:
                rows = next(_tensors(args)).shape[0]
                self._at_most.add(module)
                chosen = list(range(min(rows, piece.shape[0])))
            for expert in chosen:
                self._read_all(part, module, storage, piece[expert])
            return
        self._read_all(part, module, storage, piece)

    def _write(
        self, part: _Part, name: str, module: str, storage: int, piece: torch.Tensor, given: list[torch.Tensor]
    ) -> None:
        """An operator changes a tensor."""
        part.writers.setdefault(storage, module)
        if storage not in self._weights or storage in self._gathered or piece.dtype in COUNTERS:
            return
        places = part.places.setdefault(storage, {})
        if name in _EMPTIED:
            places.clear()
        elif name in _PLACED:
            *_, source = given
            size = min(source.numel() * piece.element_size(), bytes_of(piece))
            positions = [index for index in given[1:-1] if index.dtype in COUNTERS]
            places[offset_of(piece), size, *(_values(index) for index in positions)] = size
        else:
            places[offset_of(piece), bytes_of(piece)] = bytes_of(piece)

    def _product(
        self, part: _Part, kind: str, scope: Scope, inputs: list[torch.Tensor], weighs: bool, made: list[torch.Tensor]
    ) -> None:
        """What goes in and out of a product with a weight; of an attention its queries and its result."""
        if kind == "attention":
            moved = [*inputs[:1], *made[:1]]
        elif weighs:
            moved = [*inputs, *made]
        elif scope.facts is not None:  # spelled out: the scores of the queries first, the result next
            turn = self._products[scope.module] = self._products.get(scope.module, 0) + 1
            moved = inputs[:1] if turn % 2 else made[:1]
        else:
            return
        for tensor in moved:
            if tensor.dtype not in COUNTERS:
                key = scope.module, dtype_name(tensor.dtype)
                part.activations[key] = part.activations.get(key, 0) + bytes_of(tensor)

    def rows(self, parts: list[Part]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of the ``traffic`` table, and the facts of the pass.

        Args:
            parts: what the parts are.
        """
        if not parts:
            return [], {"traffic_unknown": ["the step never calls the model itself, so its parts are not known"]}
        states = {storage for part in self._parts for storage in part.places}
        self._reread = {
            name
            for part in self._parts
            for name, (was, _) in part.replaced.items()
            if was is not None and any(_read_of(part, was))
        }
        whole: list[dict[str, Any]] = []
        of_modules: dict[tuple[str, str, str, str], int] = {}
        filled: dict[int, dict[Any, int]] = {}
        last = ""
        for number, (part, (phase, *_)) in enumerate(zip(self._parts, parts, strict=True)):
            if phase == "prefill" and last == "decode":  # another generation
                filled.clear()
            last = phase
            found: dict[tuple[str, str], int] = {}
            for module, what, dtype, size in self._moved(part, states, filled):
                if not size:
                    continue
                found[what, dtype] = found.get((what, dtype), 0) + size
                key = module, phase, what, dtype
                of_modules[key] = of_modules.get(key, 0) + size
            whole += [
                {"module": ALL, "phase": phase, "part": number, "what": what, "dtype": dtype, "bytes": size}
                for (what, dtype), size in found.items()
            ]
            self._doubt(part, phase, sum(found.values()))
        rows = [
            {"module": module, "phase": phase, "what": what, "dtype": dtype, "bytes": size}
            for (module, phase, what, dtype), size in of_modules.items()
        ]
        return whole + rows, self._facts()

    def _moved(
        self, part: _Part, states: set[int], filled: dict[int, dict[Any, int]]
    ) -> Iterator[tuple[str, str, str, int]]:
        """Module, what, dtype and bytes of all that one part moves."""
        held = [*part.before.values(), *part.after.values()]
        held += [one for both in part.replaced.values() for one in both if one is not None]
        seen = {storage for one in held for storage in one.storages}  # those are told by their tensors
        for storage, reads in part.reads.items():
            left = None
            if storage in states:
                left = min(sum(filled.get(storage, {}).values()), self._weights[storage][0])
            for module, size in reads.by_module.items():
                if left is not None:
                    size = min(size, left)
                    left -= size
                if storage not in seen:
                    yield module, "weights" if left is None else "cache read", self._weights[storage][1], size
        for storage, places in part.places.items():
            filled.setdefault(storage, {}).update(places)
            if storage not in seen:
                size = min(sum(places.values()), self._weights[storage][0])
                yield part.writers[storage], "cache written", self._weights[storage][1], size
        for name, now in part.after.items():
            yield from _added(part, part.before.get(name), now)
        for before in part.before.values():
            yield from _read_of(part, before)
        for name, (was, now) in part.replaced.items():
            if name in self._reread:
                yield from _added(part, was, now)
            if was is not None:
                yield from _read_of(part, was)
        for (module, dtype), size in part.activations.items():
            yield module, "activations", dtype, size

    def _doubt(self, part: _Part, phase: str, moved: int) -> None:
        """Note what was read of another part's that is in no cache."""
        held = [*part.before.values(), *(was for was, _ in part.replaced.values() if was is not None)]
        known = {storage for one in held for storage in one.storages} | part.given
        carried = sum(size for storage, size in part.carried.items() if storage not in known)
        if carried > _NEGLIGIBLE * moved:
            self._unknown[
                f"the {phase} reads {carried:,} bytes that an earlier call has left in no cache that gpuprof knows"
            ] = None

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if self._unknown:
            facts["traffic_unknown"] = list(self._unknown)
        if self._at_most:
            facts["weights_at_most"] = sorted(self._at_most)
        caches = [part.cache for part in self._parts if part.cache]
        if caches:
            held = [part.after for part in self._parts]
            facts["cache"] = {
                "class": caches[-1],
                "appends": all(one.appends for after in held for one in after.values()),
                "bytes": [sum(one.bytes for one in after.values()) for after in held],
            }
        return facts


def _read_of(part: _Part, held: Held) -> Iterator[tuple[str, str, str, int]]:
    """Module, what, dtype and bytes of what a part reads of a tensor in a cache."""
    readers = [part.readers[storage] for storage in held.storages if storage in part.readers]
    if readers:
        yield readers[0], "cache read", held.dtype, held.read


def _added(part: _Part, before: Held | None, held: Held) -> Iterator[tuple[str, str, str, int]]:
    """The same of what it adds to it: positions, or a state that is another one now."""
    writers = [found[storage] for storage in held.storages for found in (part.writers, part.makers) if storage in found]
    if not writers:
        return
    if held.position is not None and held.length is not None:
        new = held.length - ((before and before.length) or 0)
        size = min(new * held.position, held.bytes)
    elif before is None or held.bytes == before.bytes or not any(one in part.readers for one in before.storages):
        size = held.bytes
    else:
        size = held.bytes - before.bytes
    if size > 0:
        yield writers[0], "cache written", held.dtype, size


@contextmanager
def _looking() -> Iterator[None]:
    """What is done meanwhile is none of the step's work."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def _storages(value: Any) -> set[int]:
    """Storages of all tensors in a mapping."""
    return {storage for _, tensor in named_tensors(value, DEEPEST) for storage, _ in pieces_of(tensor)}


def _arguments(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name."""
    if isinstance(module, torch._dynamo.eval_frame.OptimizedModule):
        module = module._orig_mod
    try:
        return dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments) | kwargs
    except (TypeError, ValueError):
        return {**{str(place): value for place, value in enumerate(args)}, **kwargs}


def _held_by(module: torch.nn.Module) -> dict[str, Any]:
    """What a module has itself, without what it was told and with what its quantised parameters keep beside."""
    own = {name: value for name, value in vars(module).items() if name not in _TOLD}
    weights = own.get("_parameters", {})
    beside = {name: vars(weight) for name, weight in weights.items() if weight is not None}
    return own | {"_parameters": weights, "_beside": beside}


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors among the arguments of an operator, or its results."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _values(indices: torch.Tensor) -> tuple[int, ...] | None:
    """The values of indices; None where they have none."""
    return None if indices.is_meta else tuple(indices.flatten().tolist())


def _chosen(indices: Any) -> list[int] | None:
    """Which of the first dimension are looked up; None where that is not known."""
    first, *rest = indices
    if first is None or any(index is not None for index in rest) or first.dtype == torch.bool:
        return None
    values = _values(first)
    return None if values is None else sorted(set(values))


def _offsets(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Where the groups of a grouped product end; None of any other."""
    if "grouped_mm" not in name:
        return None
    given = [*args[2:], *kwargs.values()]
    return next((one for one in given if isinstance(one, torch.Tensor) and one.dtype in COUNTERS), None)


def _with_tokens(offsets: torch.Tensor) -> list[int] | None:
    """Groups that are not empty; None where that is not known."""
    values = _values(offsets)
    if values is None:
        return None
    return [group for group, (start, end) in enumerate(zip((0, *values), values, strict=False)) if end > start]
