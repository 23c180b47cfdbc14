"""Shapes of what a step of a user's own gives its model: a step that draws batches of other lengths is not one step."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch

from gpuprof.attribution import in_backward, inside_compiled
from gpuprof.calls import calls_through
from gpuprof.passes.generation import taken
from gpuprof.passes.objects import named_tensors
from gpuprof.workload import Workload
from gpuprof.workload.steps import CACHE_NAMES
from gpuprof.workload.workload import describe_inputs

_LONGEST = 200  # characters of a step's shapes that are kept as they are
_UNITS = ("tokens_per_step", "samples_per_step")
_CHOICES = (bool, int, str)  # arguments that may decide how much there is to do; metadata of a batch is deeper down


_Noted = dict[torch.nn.Module, Counter[tuple[str, bool]]]
"""Calls of each module by what they were given, as `_what` has it."""


class _Amounts(NamedTuple):
    """What one call of the model was given, by unit, and whether autograd followed it."""

    with_gradient: bool
    units: dict[str, int | None]


class Given(NamedTuple):
    """What the calls of a step were given.

    Attributes:
        shapes: in words, ``4x128 (2 calls), 4x1`` at the model, ``encoder: 4x128, head: 4x1`` at modules in it.
            The order of the calls is left out. Empty where no call was seen.
        seen: whether there was a call, and a tensor in each.
        amounts: `tokens_per_step` and `samples_per_step` as a workload has them, of all calls of the model itself.
            Where some are with gradients the others add nothing: they see the same samples again. None where it was
            not called, one of the calls does not tell, or goes on from a cache. Empty where not searched.
    """

    shapes: str
    seen: bool
    amounts: dict[str, int | None]


@contextmanager
def observed_inputs(workload: Workload, search: bool = True) -> Iterator[Callable[[], Given]]:
    """Note the inputs of the modules that a step calls itself: of the model, or of parts of it that are called alone.

    One Python call for each of these, on the host, with nothing read from the device. What such a module calls in turn
    tells nothing new. gpuprof's own steps give the same tensors every time, so there is
    nothing to note of them.

    Args:
        workload: whose step is run. The modules that it calls are kept as its ``called``.
        search: find these modules. Otherwise they are known, and what is below them is left alone from the start;
            nothing is noted if they are not known.

    Yields:
        What gives the inputs since it was last asked.
    """
    noted: _Noted = {}
    amounts: list[_Amounts] = []
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
        learnt = [amount for amount in amounts if amount.with_gradient] or amounts
        told = {unit: _sum([amount.units[unit] for amount in learnt]) for unit in _UNITS if search}
        amounts.clear()
        return Given(line, bool(calls) and all(seen for _, _, seen, _ in calls), told)

    if workload.description.get("step") != "given" or not (search or workload.called is not None):
        yield lambda: Given("", False, {})
        return
    called = workload.called = set() if workload.called is None else workload.called
    paths |= {module: path for path, module in _callable(workload.model, called)}
    whole = calls_through(partial(_measure, amounts), [workload.model]) if search else nullcontext()
    with _noting(list(paths), called, noted), whole:
        yield given


def _measure(amounts: list[_Amounts], module: torch.nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Note how much the model is given in a call, except for those that a backward makes once more."""
    if not in_backward():
        with torch._C.DisableTorchFunction():
            names = taken(module)
            named = {names[at] if at < len(names) else str(at): value for at, value in enumerate(args)} | kwargs
            goes_on = any(named.get(name) is not None for name in CACHE_NAMES)
            units = dict.fromkeys(_UNITS) if goes_on else describe_inputs((), named)
            amounts.append(_Amounts(torch.is_grad_enabled(), units))
    return call(*args, **kwargs)


def _sum(amounts: list[int | None]) -> int | None:
    return None if not amounts or None in amounts else sum(amounts)  # type: ignore[arg-type]


def _callable(model: torch.nn.Module, called: set[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Modules whose calls can be noted, each once: none inside a compiled region, none below those known as called."""
    hidden = inside_compiled(model)
    below = {inner for module in called for inner in module.modules() if inner is not module}
    return ((path, module) for path, module in model.named_modules() if module not in hidden | below)


@contextmanager
def _noting(modules: list[torch.nn.Module], called: set[torch.nn.Module], noted: _Noted) -> Iterator[None]:
    """Count the calls of modules by what they are given, except for those of modules inside one that is called."""
    below: set[torch.nn.Module] = set()

    def note(module: torch.nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if module not in below:
            if module not in called:
                called.add(module)
                inside = [inner for inner in module.modules() if inner is not module]
                below.update(inside)
                for inner in inside:
                    noted.pop(inner, None)
                    called.discard(inner)
            with torch._C.DisableTorchFunction():  # a mode of the user's own sees the step, and not who looks at it
                noted.setdefault(module, Counter())[_what(args, kwargs)] += 1
        return call(*args, **kwargs)

    with calls_through(note, modules):
        yield


def _what(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, bool]:
    """Shapes of all tensors in the arguments and the arguments that are a choice, ``8x64 args[1]=3``; if any tensor."""
    named = {**{f"args[{place}]": value for place, value in enumerate(args)}, **kwargs}
    been: set[int] = set()
    shapes = [_shape(tensor) for value in named.values() for _, tensor in named_tensors(value, been=been)]
    choices = [f"{name}={value}" for name, value in named.items() if isinstance(value, _CHOICES)]
    return " ".join([*(shapes or ["no tensor"]), *choices]), bool(shapes)


def _shape(tensor: torch.Tensor) -> str:
    if tensor.is_nested:  # its lengths are a name of their own each time
        return f"{tensor.numel()} nested"
    return "x".join(map(str, tensor.shape)) or "scalar"
