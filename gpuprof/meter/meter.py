"""The meter: what a training loop reaches, measured from inside of it and without making it wait."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.meter.clock import Clock
from gpuprof.meter.optimizers import optimizers_of, watched
from gpuprof.meter.readings import Sample, figures
from gpuprof.meter.signature import in_words, signature
from gpuprof.meter.tokens import Tokens
from gpuprof.meter.work import Work, work_of
from gpuprof.passes.counting import Counted, counting
from gpuprof.workload import Workload, from_module

_WARM_UP = 3
"""Steps after the start of which nothing is reported: allocators fill, libraries choose their kernels."""

_MANY = 8
"""Signatures from which on it is said that there are many."""


class Meter:
    """MFU, FLOP/s, tokens and times of the steps of a training loop.

        meter = gpuprof.Meter(model, optimizer)
        for batch in loader:
            with meter.step(batch):
                loss = model(**batch).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            if step % 50 == 0:
                log(meter.read())

    A step is what ends with a step of the optimizer: of several micro-batches each stands in a ``with`` of its own, and
    their FLOPs and times add up. What is outside of it (evaluation, checkpoints, the loader) is no part of a step.

    FLOPs are counted, once for each signature of a micro-batch: the step in which one is seen first, but for the very
    first step, runs under the counting mode, and is left out of the times. On CUDA times are those of events on the
    current stream, read when the device has come to them. Nothing is changed in the model, and between two steps
    nothing of the meter is attached to anything.

    Args:
        model: whose steps they are.
        optimizer: whose step ends a step, or several of them that step together; without one every ``with`` is a step.
        out: folder for a log of every step, and for the run files of `profile_at`.
        profile_at: numbers of steps that are profiled as they run, counted from 1.
        convention: how FLOPs are counted, of `gpuprof.theory.conventions.CONVENTIONS`.
        peak_tflops: peak of the device in TFLOP/s, for every dtype, instead of the table's.
        interpolate: between shapes that were counted, where their FLOPs prove to be a polynomial of the sizes.

    Raises:
        GpuprofError: no such convention, or something that is no optimizer.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        *,
        out: str | Path | None = None,
        profile_at: Iterable[int] = (),
        convention: str = "causal",
        peak_tflops: float | None = None,
        interpolate: bool = False,
    ) -> None:
        self._out = None if out is None else Path(out)
        self._profile_at = sorted(set(profile_at))
        self._interpolate = interpolate
        self._model = model
        self._optimizers = optimizers_of(optimizer)
        self._settings = {"convention": convention, "peak_tflops": peak_tflops}
        self._workload: Workload = from_module(model, step=_live, mode="train")
        self._clock = Clock(self._workload.device)
        self._about: dict[str, Any] = {}  # of the runs that FLOPs are read from; once something was counted
        self.number = 0
        """Steps that have ended."""
        self._counted: dict[Hashable, Counted] = {}
        self._work: dict[Hashable, Work] = {}
        self._optimizer_work = Work()
        self._unknown: dict[Hashable, str] = {}  # why nothing is known of a signature
        self._micro: _Micro | None = None
        self._parts: list[_Micro] = []  # of the step that has not ended
        self._pending: deque[_Step] = deque()
        self._samples: list[Sample] = []  # since they were last read
        self._last: Any = None  # mark at the end of the last step
        self._dropped = 0
        self._flops: int | None = None

    def step(self, batch: Any) -> AbstractContextManager[None]:
        """What is to be put around a micro-batch: forward, backward and, at the end of a step, the optimizer's step.

        Args:
            batch: what the model is given: a tensor, or containers that hold tensors.
        """
        return _Block(self, batch)

    def begin(self, batch: Any = None) -> None:
        """A micro-batch begins, for a framework that has no place for a ``with``; `given` may say later what it is.

        Raises:
            GpuprofError: the last one has not ended.
        """
        if self._micro is not None:
            raise GpuprofError("a step of the meter is inside another: end the first before the next begins")
        self._micro = micro = _Micro(self._clock.mark())
        micro.hooks = watched(self._optimizers, micro.stepped)
        micro.hooks.__enter__()
        if batch is not None:
            self.given(batch)

    def given(self, batch: Any, inside: bool = False) -> None:
        """What the model is given in the micro-batch that has begun; the first word counts.

        Args:
            batch: as for `step`.
            inside: this is said from inside the model's call, by a forward pre-hook of it.
        """
        micro = self._micro
        if micro is None or micro.key is not None:
            return
        kind = self._workload.device.type
        micro.key = signature(batch), self._model.training, torch.is_autocast_enabled(kind)
        micro.tokens.add(batch)
        if self.number and micro.key not in self._work and micro.key not in self._unknown:
            micro.count = counting(self._workload, inside=inside)
            micro.found = micro.count.__enter__()
            micro.dropped = "counted"

    def end(self, error: BaseException | None = None) -> None:
        """A micro-batch ends.

        Args:
            error: that ended it.
        """
        micro = self._micro
        if micro is None:
            return
        self._micro = None
        what = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        try:
            if micro.count is not None:
                micro.count.__exit__(*what)
        finally:
            micro.hooks.__exit__(*what)
        micro.finish = self._clock.mark()
        if error is not None:
            micro.dropped = f"{type(error).__name__} in it"
        self._parts.append(micro)
        if micro.found:
            self._learn(micro.key, micro.found[0])
        if micro.steps or not self._optimizers:
            self._close()

    def _learn(self, key: Hashable, found: Counted) -> None:
        if not self._about:
            self._about = about_of(self._workload, self._settings, found)
        optimizer = found.ops["phase"] == "optimizer"
        self._counted[key] = found
        self._work[key] = work_of(self._about, found, found.ops[~optimizer])
        if len(self._work) == _MANY:
            warnings.warn(
                f"gpuprof: {_MANY} kinds of micro-batches were counted, the last {in_words(key[0])}: each further one "  # type: ignore[index]
                "costs a slow step; pad to few lengths",
                stacklevel=2,
            )

    def _close(self) -> None:
        """The step ends."""
        self.number += 1
        parts, self._parts = self._parts, []
        dropped = next((part.dropped for part in parts if part.dropped), "")
        if self.number <= _WARM_UP:
            dropped = dropped or "warm-up"
        self._pending.append(_Step(self.number, self._last, parts, dropped))
        self._last = parts[-1].finish

    def read(self, reduce: bool = False) -> dict[str, float]:
        """What the steps since the last time came to, as far as the device has come; never waits for it.

        Returns:
            Figures by the name that dashboards give them, see docs/training.md; what is not known is left out.
        """
        while self._pending and self._clock.reached(self._pending[0].parts[-1].finish):
            self._samples.append(self._resolved(self._pending.popleft()))
        samples, self._samples = self._samples, []
        self._dropped += sum(bool(sample.dropped) for sample in samples)
        known = [sample.work.flops for sample in samples if sample.work is not None]
        self._flops = known[-1] if known else self._flops
        return figures(samples) | {
            **({} if self._flops is None else {"meter/flops_per_step": self._flops}),
            "meter/counted_signatures": len(self._work),
            "meter/dropped_steps": self._dropped,
        }

    def _resolved(self, step: _Step) -> Sample:
        clock = self._clock
        time_s = sum(clock.seconds(part.start, part.finish) for part in step.parts)
        between_s = None if step.before is None else clock.seconds(step.before, step.parts[0].start)
        work: Work | None = self._optimizer_work
        for part in step.parts:
            one = self._work.get(part.key)
            work = None if work is None or one is None else work.plus(one)
        every, real = Tokens.of(part.tokens for part in step.parts)
        return Sample(step.number, time_s, between_s, (), work, False, every, real, None, step.dropped)


class _Block:
    """The ``with`` around a micro-batch."""

    __slots__ = ("_batch", "_meter")

    def __init__(self, meter: Meter, batch: Any) -> None:
        self._meter, self._batch = meter, batch

    def __enter__(self) -> None:
        self._meter.begin(self._batch)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._meter.end(error)


class _Micro:
    """A micro-batch."""

    __slots__ = ("count", "dropped", "finish", "found", "hooks", "key", "start", "steps", "tokens")

    def __init__(self, start: Any) -> None:
        self.start, self.finish = start, None
        self.key: Hashable = None
        self.tokens = Tokens()
        self.steps = 0  # of the optimizer
        self.dropped = ""
        self.count: AbstractContextManager[list[Counted]] | None = None
        self.found: list[Counted] = []
        self.hooks: Any = None

    def stepped(self, *_: Any) -> None:
        """The optimizer has stepped."""
        self.steps += 1


class _Step:
    """A step that has ended, as the host sees it."""

    __slots__ = ("before", "dropped", "number", "parts")

    def __init__(self, number: int, before: Any, parts: list[_Micro], dropped: str) -> None:
        self.number, self.before, self.parts, self.dropped = number, before, parts, dropped


def _live() -> None:
    raise GpuprofError("the step is the training loop's own")


def about_of(workload: Workload, settings: dict[str, Any], found: Counted) -> dict[str, Any]:
    """The facts of a run of this loop, the device's peaks among them; on a CPU they are measured here."""
    from gpuprof.hardware.device import describe, environment
    from gpuprof.profiler import add_ceilings
    from gpuprof.record import PassOutcome, Run
    from gpuprof.theory.rules import RULES_VERSION

    run = Run(
        workload.description, describe(workload.device), environment() | {"flop_rules": RULES_VERSION},
        settings, passes={"count": PassOutcome("done")}, ops=found.ops, tree=found.tree,
    )  # fmt: skip
    add_ceilings(run)
    return {name: getattr(run, name) for name in ("workload", "device", "environment", "settings")}
