"""Counting a step that is not the first, which does work of its own: fills caches, folds weights, makes parameters.

Without weights a step costs as much to count as to run, so a second is run only where the first changed what the
model's modules hold. That is looked up, not hooked: every attribute of every module, the containers and plain objects
in it, and the versions of the integer tensors that a model may decide by.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from gpuprof.parallel.layout import first_steps
from gpuprof.passes import counting
from gpuprof.passes.failure import let_go
from gpuprof.passes.objects import attributes
from gpuprof.workload import Workload
from gpuprof.workload.weightless import Answers, Weightless, execute

if TYPE_CHECKING:
    import pandas as pd

_VALUES = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_OPAQUE = (type, FunctionType, MethodType, ModuleType)

_TOLD = re.compile(r"config$|.*_hooks($|_)").match
"""Attributes with what a model was told and not what it keeps: configurations, hooks and whether they are set up."""


def count_steady(workload: Workload, before_step: Callable[[], None]) -> tuple[counting.Counted, list[str]]:
    """Count a step that is not the first.

    The first is only run, as `first_steps` has it. Without weights running is as dear as counting, and there are steps
    that only counting can run (flex_attention has no backward on a CPU): there the first is counted, and another one
    if it left something in the model.

    Args:
        workload: what to run.
        before_step: run before each step (seeding).

    Returns:
        What was counted, and a line if the two steps multiplied differently.
    """
    weightless = workload.device.type == "meta"
    if not weightless:
        inputs = _warmed_up(workload, before_step)
        if inputs is not None:
            before_step()
            counted = counting.count(workload)
            counted.outcome.facts |= {"inputs_before": inputs} if inputs else {}
            return counted, []
    elif any(map(is_lazy, workload.model.parameters())):  # there is nothing to count until they are made
        before_step()
        with Answers(), Weightless():
            workload.step()

    def count() -> counting.Counted:
        before_step()
        with Answers() if weightless else nullcontext():
            return counting.count(workload, execute if weightless else None)

    before = held(workload.model)
    first = count()
    if weightless and not changed(before, held(workload.model)):
        return first, []
    second = count()
    once, again = (_flops(counted.ops) for counted in (first, second))
    if once == again:
        return second, []
    phases = [
        f"{once.get(phase, 0):,} FLOPs in its {phase} and each further one {again.get(phase, 0):,}"
        for phase in dict.fromkeys([*once, *again])
        if once.get(phase, 0) != again.get(phase, 0)
    ]
    return second, [f"the first step does {', '.join(phases)} (full square): a further one is counted"]


def _warmed_up(workload: Workload, before_step: Callable[[], None]) -> str | None:
    """What `counting.warm_up` returns; None where the step cannot be run so."""
    inputs = ""
    try:
        for _ in range(first_steps(workload.model)):
            before_step()
            inputs = counting.warm_up(workload)
        return inputs
    except NotImplementedError as error:  # if counting has nothing in its place, that raises it again
        let_go(error)
        return None


def _flops(ops: pd.DataFrame) -> dict[str, int]:
    sums = ops.groupby("phase", sort=False)["flops_full"].sum()
    return {phase: int(flops) for phase, flops in sums.items() if flops}


def held(model: torch.nn.Module) -> list[Any]:
    """What the modules hold, object by object, to be compared by `changed`. The objects are kept alive by it."""
    found: list[Any] = []
    seen: set[int] = set()
    for module in model.modules():
        seen.add(id(module))
        found.append(type(module))
        for name, value in vars(module).items():
            batches = name == "_buffers" and isinstance(module, _NormBase)  # it counts them, and no more
            if not (_TOLD(name) or batches):
                found.append(name)
                found += _objects(value, seen)
    return found


def changed(before: list[Any], after: list[Any]) -> bool:
    """Whether the model holds something else than before."""
    return len(before) != len(after) or not all(map(_same, before, after))


def _objects(value: Any, seen: set[int]) -> Iterator[Any]:
    """The value and all that is in it; tensors with the version of what they hold, if a model can decide by it."""
    left = [value]
    while left:
        value = left.pop()
        yield value
        if isinstance(value, torch.Tensor):
            if not (value.is_floating_point() or value.is_complex()) and value.device.type != "meta":
                yield value._version
            continue
        if isinstance(value, (*_VALUES, *_OPAQUE, torch.nn.Module)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            left += value
        left += [item for name, item in attributes(value) if not _TOLD(name)]


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, _VALUES) and type(one) is type(other) and one == other)
