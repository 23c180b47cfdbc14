"""The drill-down: a step of the loop, recorded as it runs, as a run file that tells of its modules.

Nothing is run for it: the profiler warms up in one step and records the next, and what its micro-batches cost is
counted in later ones like them, or was before. A failure of its own costs the file, and never the training.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import wraps
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerAction, profile

from gpuprof.compiled.capture import Captured, captured
from gpuprof.errors import GpuprofError, first_line
from gpuprof.hardware.checkup import require_internals
from gpuprof.meter.live_step import LiveStep, Part, run_of
from gpuprof.meter.machine import Machine
from gpuprof.parallel.layout import first_steps
from gpuprof.parallel.units import unit_of
from gpuprof.passes.counting import Counted
from gpuprof.passes.trace import Recording, ingest, profiled, recorded
from gpuprof.workload import Workload
from gpuprof.workload.workload import describe_inputs

VARIABLE = "GPUPROF_AT"
"""Of the environment: steps to record beside those that the meter is told."""

_MOST_TRIES = 4
"""How often a step is recorded, as long as something is compiled in it, or fails."""

_MOST_TIMED = 100
"""Steps before a recorded one whose times are kept."""

_MOST_COUNTED = 16
"""Counts of micro-batches that are kept for steps to come; they are large."""


def steps_of(profile_at: Iterable[int]) -> list[int]:
    """The steps that are to be recorded, those of the environment among them, in order.

    Raises:
        GpuprofError: one is no number, or the first step, which is like no other.
    """
    if isinstance(profile_at, str) or not isinstance(profile_at, Iterable):
        raise GpuprofError(f"profile_at={profile_at}: give a list of steps, such as [200]")
    steps = list(profile_at)
    given = os.environ.get(VARIABLE, "")
    try:
        steps += [int(step) for step in given.split(",") if step.strip()]
    except ValueError:
        raise GpuprofError(f"{VARIABLE}={given}: give numbers of steps, such as 200 or 200,400") from None
    if wrong := [step for step in steps if isinstance(step, bool) or not isinstance(step, Integral) or step < 2]:
        raise GpuprofError(
            f"step {wrong[0]} cannot be recorded: steps are numbered from 1, the profiler warms up in the one before, "
            "so give whole numbers from 2 on"
        )
    return sorted({int(step) for step in steps})


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    """A method whose failure ends all recording, and nothing else; of no more use it does nothing."""

    @wraps(method)
    def call(self: Drill, *args: Any, **kwargs: Any) -> None:
        if not (self._left or self._waiting):
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {first_line(error)}")

    return call


class Drill:
    """What records steps of a loop.

    Args:
        workload: model and device of the loop.
        machine: the facts of its runs, and the peaks.
        steps: numbers of those to record, in order.
        out: folder of their files; without one they go to the working directory.
    """

    def __init__(self, workload: Workload, machine: Machine, steps: list[int], out: Path | None) -> None:
        self._workload, self._machine, self._out = workload, machine, out
        self._left = deque(steps)
        self._at = self._left[0] if steps else 0  # the step that is recorded next
        self._tries = 0
        self._number = self._place = 0  # of the step that runs, and of the micro-batch in it
        self._began = 0  # number of the first step
        self._first_steps = first_steps(workload.model)
        self._wanted: Part | None = None  # what the micro-batch that runs is counted for
        self._vain = 0  # how often that gave nothing
        self._stack = ExitStack()  # of what is captured of compiled code
        self._profiling = ExitStack()
        self._profiler: profile | None = None
        self._recording: Recording | None = None
        self._compiled: Captured | None = None
        self._compilations = 0
        self._parts: list[Part] = []
        self._inputs: list[dict[str, Any]] = []
        self._waiting: list[LiveStep] = []
        self._counted: dict[Part, Counted] = {}
        self._timed: deque[tuple[int, Counter[Hashable], float]] = deque(maxlen=_MOST_TIMED)

    @property
    def active(self) -> bool:
        """Whether the step that runs is recorded, or the next one and the profiler warms up."""
        return self._profiler is not None

    @_harmless
    def begins(self, number: int) -> None:
        """A micro-batch of the step with this number begins."""
        first = number != self._number
        self._number, self._place = number, 0 if first else self._place + 1
        self._began, self._wanted = self._began or number, None
        if self._recording is not None:
            self._recording.begins()
            return
        while first and self._left and number > self._at:
            _warn(f"step {self._at} is not recorded: it was over before this loop began, whose first is {number}")
            self._next()
        if first and self._left and number >= self._at - 1:
            if self._profiler is None and not self._start():
                return
            if number == self._at:
                self._record()

    def _start(self) -> bool:
        """The profiler warms up; False where another one is at work."""
        if _other_profiler():
            _warn(
                f"step {self._at} is not recorded: a torch.profiler of your own is at work, and there can be but one; "
                "end it before that step"
            )
            self._next()
            return False
        if self._compiled is None:
            require_internals()
            model, device = self._workload.model, self._workload.device.type
            self._compiled = self._stack.enter_context(captured(model, device, live=True))
        self._profiler = self._profiling.enter_context(profiled(self._workload.device))
        return True

    def _record(self) -> None:
        assert self._profiler is not None
        assert self._compiled is not None
        self._compilations = self._compiled.compilations
        self._parts, self._inputs = [], []
        self._recording = self._profiling.enter_context(recorded(self._workload, self._profiler, self._compiled))
        self._recording.begins()

    @_harmless
    def given(self, batch: Any) -> None:
        """What the model is given in the micro-batch that has begun."""
        if self._recording is not None:
            args = () if isinstance(batch, Mapping) else (batch,)
            self._inputs.append(describe_inputs(args, batch if isinstance(batch, Mapping) else {}))

    def wants(self, key: Hashable) -> bool:
        """Whether a micro-batch of this signature, in the place that it has, is to be counted for a recorded step."""
        if not self._waiting or not self._steady():
            return False
        here = (key, self._trained()), not self._place
        self._wanted = next(
            (
                part
                for live in self._waiting
                for part in live.parts
                if part not in self._counted and part[:2] == here and part.last == (self._place == len(live.parts) - 1)
            ),
            None,
        )
        return self._wanted is not None

    def _steady(self) -> bool:
        """Whether the step that runs does what all further ones do."""
        return self._number >= self._began + self._first_steps

    @_harmless
    def ends(self, key: Hashable, found: Counted | None, last: bool, error: BaseException | None) -> None:
        """The micro-batch ends.

        Args:
            key: its signature.
            found: what was counted of it.
            last: whether the step ends with it.
            error: that ended it.
        """
        if found is not None and self._steady():
            self._counted[Part((key, self._trained()), not self._place, last)] = found
            needed = {part for live in self._waiting for part in live.parts}
            for part in [part for part in self._counted if part not in needed][:-_MOST_COUNTED]:
                del self._counted[part]
        if self._wanted is not None and self._wanted not in self._counted:
            self._vain += 1
        if self._recording is None:
            return
        self._recording.ends()
        self._parts.append(Part((key, self._trained()), not self._place, last))
        if error is not None:
            self._again(f"{type(error).__name__} ended it")

    def _trained(self) -> tuple[bool, ...]:
        return tuple([parameter.requires_grad for parameter in self._workload.model.parameters()])

    @_harmless
    def timed(self, number: int, keys: Iterable[Hashable], time_s: float) -> None:
        """An undisturbed step took so long."""
        self._timed.append((number, Counter(keys), time_s))

    @_harmless
    def closes(self) -> None:
        """The step ends, and `timed` was told of all before it."""
        if self._recording is not None:
            self._keep()
        for live in list(self._waiting):
            if self._vain >= _MOST_TRIES or all(part in self._counted for part in live.parts):
                self._save(live)
                self._waiting.remove(live)
        if not self._waiting:
            self._vain = 0
        if not (self._left or self._waiting):
            self._counted.clear()
            self._timed.clear()

    def _keep(self) -> None:
        """Read what was recorded of the step that has just ended."""
        profiler, recording, compiled = self._profiler, self._recording, self._compiled
        assert profiler is not None
        assert recording is not None
        assert compiled is not None
        self._profiling.close()
        self._profiler = self._recording = None
        if compiled.compilations > self._compilations:
            self._again("torch.compile compiled something in it")
            return
        traced = ingest(profiler, recording.ownership, unit_of(self._workload.model), compiled)
        keys = Counter(part.key[0] for part in self._parts)
        times = {number: time_s for number, those, time_s in self._timed if those == keys and number < self._number}
        self._waiting.append(
            LiveStep(self._left[0], self._number, self._parts, self._inputs, traced, compiled.refused, times)
        )
        self._next()

    def _again(self, why: str) -> None:
        """What was recorded is of no use: the profiler warms up in the next step, and the one after is recorded."""
        self._profiling.close()
        self._profiler = self._recording = None
        self._tries += 1
        if self._tries < _MOST_TRIES:
            self._at = self._number + 2
        else:
            _warn(f"step {self._left[0]} is not recorded, and none of {_MOST_TRIES} after it: {why}, each time")
            self._next()

    def _next(self) -> None:
        """The step that was to be recorded is no more."""
        self._left.popleft()
        self._tries, self._at = 0, self._left[0] if self._left else 0
        self._compiled = None
        self._stack.close()

    def _give_up(self, why: str) -> None:
        """Something of the recording's own failed: the training goes on without it."""
        at = self._left[0] if self._left else self._number
        _warn(f"step {at} is not recorded: {why}: the training goes on")
        for stack in (self._profiling, self._stack):
            try:
                stack.close()
            except Exception as error:
                _warn(f"what recorded it could not be ended: {type(error).__name__}: {first_line(error)}")
        self._profiler = self._recording = self._compiled = None
        self._left.clear()
        self._waiting.clear()

    @_harmless
    def over(self) -> None:
        """The loop is no more: what waits for a count is saved without it."""
        self._profiling.close()
        self._stack.close()
        for live in self._waiting:
            self._save(live)
        self._waiting.clear()
        for step in self._left:
            _warn(f"step {step} was never recorded: the training ended in step {self._number}")
        self._left.clear()

    @_harmless
    def _save(self, live: LiveStep) -> None:
        counts = [self._counted[part] for part in live.parts if part in self._counted]
        run = run_of(live, counts, self._workload, self._machine)
        rank = f".rank{run.workload['rank']}" if "rank" in run.workload else ""
        name = f"step-{live.asked}{rank}.json.gz"
        path = Path(f"gpuprof-{name}") if self._out is None else self._out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            run.save(path)
        except (OSError, GpuprofError) as error:
            _warn(f"step {live.asked} was recorded and is lost: {first_line(error)}")
            return
        if not run.workload.get("rank"):
            print(f"gpuprof: step {live.number} of the training is in {path}: gpuprof show {path}", file=sys.stderr)


def _other_profiler() -> bool:
    """Whether a profiler of the user's own records, or is about to by its schedule: each would end the other."""
    if torch.autograd._profiler_enabled():
        return True
    begun = [one for one in gc.get_objects() if issubclass(type(one), profile) and one.step_rec_fn is not None]
    ahead = range(_MOST_TRIES)
    return any(one.schedule(one.step_num + more) != ProfilerAction.NONE for one in begun for more in ahead)


def _warn(text: str) -> None:
    with suppress(Warning):  # where they are errors; a training must not end by one
        warnings.warn(f"gpuprof: {text}", stacklevel=3)
