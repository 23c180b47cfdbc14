"""Shapes of what a step of a user's own gives its model: a step that draws batches of other lengths is not one step."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch

from gpuprof.attribution import inside_compiled
from gpuprof.passes.objects import attributes
from gpuprof.workload import Workload

_LONGEST = 200  # characters of a step's shapes that are kept as they are
_DEEPEST, _MOST = 4, 1000  # containers and objects in which tensors are looked for: one in the other, and in all
_CHOICES = (bool, int, str)  # arguments that may decide how much there is to do; metadata of a batch is deeper down
_NOTHING_IN = (*_CHOICES, float, complex, bytes, type(None), type, ModuleType, torch.nn.Module, torch.dtype)


_Noted = dict[torch.nn.Module, Counter[tuple[str, bool]]]
"""Calls of each module by what they were given, as `_what` has it."""


class Given(NamedTuple):
    """What the calls of a step were given.

    Attributes:
        shapes: in words, ``4x128 (2 calls), 4x1`` at the model, ``encoder: 4x128, head: 4x1`` at modules in it.
            The order of the calls is left out. Empty where no call was seen.
        seen: whether there was a call, and a tensor in each.
    """

    shapes: str
    seen: bool


@contextmanager
def observed_inputs(workload: Workload, search: bool = True) -> Iterator[Callable[[], Given]]:
    """Note the inputs of the modules that a step calls itself: of the model, or of parts of it that are called alone.

    One Python call for each of these, on the host, with nothing read from the device. What such a module calls in turn
    tells nothing new and has no hook when it runs. gpuprof's own steps give the same tensors every time, so there is
    nothing to note of them.

    Args:
        workload: whose step is run. The modules that it calls are kept as its ``called``.
        search: find these modules. Otherwise they are known, and what is below them is left alone from the start;
            nothing is noted if they are not known.

    Yields:
        What gives the inputs since it was last asked.
    """
    noted: _Noted = {}
    paths: dict[torch.nn.Module, str] = {}

    def given() -> Given:
        calls = sorted(
            (paths[module], *what, count) for module, whats in noted.items() for what, count in whats.items()
        )
        noted.clear()
        words = [f"{path}: " * bool(path) + text + f" ({count} calls)" * (count > 1) for path, text, _, count in calls]
        line = ", ".join(words)
        if len(line) > _LONGEST:
            line = f"{line[:_LONGEST]}... [{hashlib.sha256(line.encode()).hexdigest()[:8]}]"
        return Given(line, bool(calls) and all(seen for _, _, seen, _ in calls))

    if workload.description.get("step") != "given" or not (search or workload.called is not None):
        yield given
        return
    called = workload.called = set() if workload.called is None else workload.called
    paths |= {module: path for path, module in _callable(workload.model, called)}
    with _hooked(list(paths), called, noted):
        yield given


def _callable(model: torch.nn.Module, called: set[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Modules whose calls can be noted, each once: none inside a compiled region, none below those known as called."""
    hidden = inside_compiled(model)
    done = {inner for module in called for inner in module.modules() if inner is not module}

    def walk(path: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
        compiled = module._compiled_call_impl is not None
        if module in done or (module in hidden and not compiled):
            return
        done.add(module)
        yield path, module
        if not compiled:
            for name, child in module.named_children():
                yield from walk(f"{path}.{name}".removeprefix("."), child)

    return walk("", model)


@contextmanager
def _hooked(modules: list[torch.nn.Module], called: set[torch.nn.Module], noted: _Noted) -> Iterator[None]:
    """Count the calls of modules by what they are given, until one around them is called."""
    undo: dict[torch.nn.Module, Callable[[], None]] = {}

    def note(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():  # the step is compiled as a whole: not a part of it
            return
        if module not in called:
            called.add(module)
            for inner in module.modules():
                if inner is not module:
                    undo.pop(inner, bool)()
                    noted.pop(inner, None)
                    called.discard(inner)
        noted.setdefault(module, Counter())[_what(args, kwargs)] += 1

    def instead(module: torch.nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            note(module, args, kwargs)
            return compiled(*args, **kwargs)

        return call

    def hook(module: torch.nn.Module) -> Callable[..., None]:  # what is called may be a replica of it
        return lambda _, args, kwargs: note(module, args, kwargs)

    try:
        for module in modules:
            compiled = module._compiled_call_impl
            if compiled is not None:  # a hook would be compiled too: around it
                module._compiled_call_impl = instead(module, compiled)
                undo[module] = lambda module=module, compiled=compiled: setattr(  # type: ignore[misc]
                    module, "_compiled_call_impl", compiled
                )
            else:
                undo[module] = module.register_forward_pre_hook(hook(module), with_kwargs=True).remove
        yield
    finally:
        for put_back in undo.values():
            put_back()


def _what(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, bool]:
    """Shapes of all tensors in the arguments and the arguments that are a choice, ``8x64 args[1]=3``; if any tensor."""
    named = {**{f"args[{place}]": value for place, value in enumerate(args)}, **kwargs}
    been: set[int] = set()
    shapes = [_shape(tensor) for value in named.values() for tensor in _tensors(value, been, _DEEPEST)]
    choices = [f"{name}={value}" for name, value in named.items() if isinstance(value, _CHOICES)]
    return " ".join([*(shapes or ["no tensor"]), *choices]), bool(shapes)


def _tensors(value: Any, been: set[int], depth: int) -> Iterator[torch.Tensor]:
    """Every tensor in containers and plain objects, each of these once."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    if isinstance(value, _NOTHING_IN) or depth == 0 or id(value) in been or len(been) == _MOST:
        return
    been.add(id(value))
    if isinstance(value, Mapping):
        items: Iterable[Any] = list(value.values())
    elif isinstance(value, (list, tuple, deque)):
        items = list(value)
    else:
        items = [item for _, item in attributes(value)]
    for item in items:
        yield from _tensors(item, been, depth - 1)


def _shape(tensor: torch.Tensor) -> str:
    if tensor.is_nested:  # its lengths are a name of their own each time
        return f"{tensor.numel()} nested"
    return "x".join(map(str, tensor.shape)) or "scalar"
