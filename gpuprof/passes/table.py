"""The passes in the order in which they run, all of one shape: what each needs, the steps before it, and how it runs.

What the processes of a job have to do in step is said here and nowhere else.
"""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from gpuprof.compiled.afresh import compiled_afresh
from gpuprof.compiled.watch import Watch, again
from gpuprof.errors import GpuprofError
from gpuprof.parallel.layout import first_steps
from gpuprof.passes import counters, memory, steady, telemetry, timing, trace
from gpuprof.passes.failure import explain, let_go
from gpuprof.passes.seeding import seed_all
from gpuprof.record import PassOutcome, Record
from gpuprof.schema import WHOLE_STEP
from gpuprof.workload import Workload

_MOST_WINDOWS, _WINDOWS_OF_JOB = 5, 3
"""How often a pass warms up at most, once more wherever something was compiled in it; and how often in a job.

Compiled are the code, the code for more shapes once these change, and CUDA graphs.
"""

Progress = Callable[[str, int, int], None]
"""Called with the name of a pass, what is done of it and how much there is."""

_MAY_TAKE_TURNS = ("module", "file")
"""Sources of workloads whose steps may differ in turn, by the step or by what the model keeps."""

_ATTACHED = (
    "an earlier trace of this process left CUPTI attached, so the timed steps may be slower: time in a fresh process"
)

_PROFILED = "a torch.profiler of your own is recording"


@dataclass
class Measuring:
    """What the passes work on, and add what they find to.

    Attributes:
        workload: the step.
        run: what is known so far.
        wanted: names of the passes that were asked for.
        warmup: steps before the clock counts.
        steps: timed steps.
        seed: of every step.
        counter_level: what the counters pass collects.
        multiplied: dtypes that the step multiplies in, once it is counted.
        tell: told how far each pass is.
        traced_steps: how many steps the trace pass records: several tell whether it is always the same rank of a job
            that is late.
        further: the trace of each step after the first.
        watch: sees what is compiled.
    """

    workload: Workload
    run: Record
    wanted: set[str]
    warmup: int
    steps: int
    seed: int
    counter_level: str
    multiplied: Callable[[], list[str]]
    tell: Progress
    traced_steps: int = 1
    watch: Watch = field(default_factory=Watch)
    further: list[trace.Traced] = field(default_factory=list)

    def seeded(self) -> None:
        """Set every random state to where each step begins."""
        seed_all(self.seed)

    def warm_up(self, steps: int) -> None:
        """Run steps that nobody looks at, and as many again as long as something is compiled in them."""
        for window in range(_MOST_WINDOWS):
            before = self.watch.begun
            timing.warm_up(self.workload, steps, self.seeded, lambda: None)
            if not self.again(window, before):
                return

    def again(self, window: int, before: int) -> bool:
        """Whether to warm up once more after the window with this number, as something was compiled in it.

        In a job every rank has to do the same, and what is compiled may differ: there it goes by what is compiled at
        all, and a fixed number.

        Args:
            window: from 0 on.
            before: how much had been compiled when it began.
        """
        if self.run.workload.get("world", 1) > 1:
            return "compiled" in self.run.workload and window < _WINDOWS_OF_JOB - 1
        return self.watch.begun > before and window < _MOST_WINDOWS - 1

    def length(self, name: str) -> int:
        """How many steps a pass tells of as it goes."""
        return self.warmup + self.steps if name == "time" else 1


def _nothing_missing(_: Measuring) -> PassOutcome | None:
    return None


def _no_steps(_: Measuring) -> int:
    return 0


class Pass(NamedTuple):
    """One pass.

    Attributes:
        name: of `gpuprof.passes.options.PASSES`.
        run: does it, adds its tables to the run and says how it ended.
        missing: what it needs and is not there, as the outcome of a pass that is skipped; None where it can run.
        before: how many steps that nobody looks at have to be run before.
        tables: of the run, that it fills.
    """

    name: str
    run: Callable[[Measuring], PassOutcome]
    tables: tuple[str, ...]
    missing: Callable[[Measuring], PassOutcome | None] = _nothing_missing
    before: Callable[[Measuring], int] = _no_steps


def _count(measuring: Measuring) -> PassOutcome:
    """The counting pass."""
    run = measuring.run
    counted, difference = steady.count_steady(measuring.workload, measuring.seeded)
    run.ops, run.tree, run.traffic = map(counted.held, ("ops", "tree", "traffic"))
    run.workload |= counted.amounts
    run.warnings += [*difference, *_bounds(counted.outcome), *_loss_warning(counted.result)]
    return counted.outcome


def _time(measuring: Measuring) -> PassOutcome:
    """The timing pass, with the telemetry around it, from the first window of steps in which nothing is compiled."""
    run, workload, total = measuring.run, measuring.workload, measuring.length("time")
    if trace.cupti_attached(workload.device):
        run.warnings.append(_ATTACHED)
    if torch.autograd._profiler_enabled():
        run.warnings.append(f"{_PROFILED}, so the timed steps may be slower: call gpuprof outside of it")
    compiled = measuring.watch
    for window in range(_MOST_WINDOWS):
        before, done = compiled.begun, iter(range(1, total + 1))

        def tick(done: Iterator[int] = done) -> None:
            measuring.tell("time", next(done), total)

        # the energy of what is compiled is none of the steps
        with telemetry.watch(workload.device) if "telemetry" in measuring.wanted else nullcontext() as watched:
            timing.warm_up(workload, measuring.warmup, measuring.seeded, tick)
            if measuring.again(window, before):
                continue

            def before_step(number: int) -> None:
                measuring.seeded()
                compiled.number(number)

            whole = WHOLE_STEP in run.workload.get("compiled", ())
            run.samples, run.generation, outcome = timing.measure(
                workload, measuring.steps, before_step, tick, phases=not whole,
                opened=watched.opened if watched is not None else None,
            )  # fmt: skip
        break
    compiled.number(None)
    outcome.facts = {"warmup": measuring.warmup * (window + 1)} | outcome.facts
    run.warnings += compiled.gave_up()
    if why := compiled.in_timed_steps():
        raise GpuprofError(why)
    if watched is not None:
        run.telemetry, run.passes["telemetry"] = watched.rows(), watched.outcome
    if run.workload.get("world", 1) == 1:  # ranks may differ in what they have compiled
        try:
            compiled.once_more(lambda: timing.warm_up(workload, 1, measuring.seeded, lambda: None))
        except Exception as error:  # for want of memory, say; the steps were timed before
            run.warnings.append(f"what is compiled could not be compiled once more: {explain(error, workload).line}")
            let_go(error)
    return outcome


def _other_profiler(_: Measuring) -> PassOutcome | None:
    """What the trace pass lacks where somebody records already."""
    if torch.autograd._profiler_enabled():  # and would lose all it has
        return PassOutcome("skipped", f"{_PROFILED}, and there can be but one", "call gpuprof outside of it")
    return None


def _steps_before_trace(measuring: Measuring) -> int:
    """Steps to run before those of the trace, its warm-up and the traced one.

    The traced step is then so many after the counted one that no number from 2 to 6 divides it: steps that differ in
    turn, in a cycle as short as that, are at another one there.
    """
    run = measuring.run
    if not run.done("count"):
        return 0 if run.done("time") else first_steps(measuring.workload.model) - 1
    if run.workload["source"] not in _MAY_TAKE_TURNS:
        return 0
    timed = 0
    if "time" in measuring.wanted:
        facts = run.passes["time"].facts
        timed = facts["warmup"] + facts["steps"] if facts else measuring.length("time")
    return next(more for more in itertools.count() if math.gcd(timed + more + 2, 60) == 1)


def _trace(measuring: Measuring) -> PassOutcome:
    """The trace pass; in a job of several steps."""
    run = measuring.run
    alone = run.workload.get("world", 1) == 1
    first, *measuring.further = trace.traces(measuring.workload, measuring.seeded, measuring.traced_steps, alone)
    run.kernels, run.estimates, run.graphs, run.nodes, outcome = first
    return outcome


def _steps_before_memory(measuring: Measuring) -> int:
    """Steps to run before that of the memory pass, where no pass has run any: a first step is not as the others are."""
    done = any(measuring.run.done(name) for name in ("count", "time", "trace"))
    return 0 if done else first_steps(measuring.workload.model)


def _memory(measuring: Measuring) -> PassOutcome:
    """The memory pass, once more as long as something is compiled in it."""
    run = measuring.run
    # with all that looks at it such a step is compiled anew, and that is not to stay
    whole = WHOLE_STEP in run.workload.get("compiled", ())
    with compiled_afresh(again) if whole else nullcontext():
        for window in range(_MOST_WINDOWS):  # what is compiled in the step takes memory of its own
            before = measuring.watch.begun
            run.memory, run.timeline, outcome = memory.measure(measuring.workload, measuring.seeded)
            if not measuring.again(window, before):
                break
    return outcome


def _not_counted(measuring: Measuring) -> PassOutcome | None:
    """What the counters pass lacks: it replays kernels of one process, and collects what the counting pass saw."""
    if measuring.run.workload.get("world", 1) > 1:
        return PassOutcome("skipped", "Nsight Compute replays kernels of one process", "profile without torchrun")
    if measuring.run.done("count"):
        return None
    return PassOutcome("skipped", "what to collect is known from the counting pass", "add count to --passes")


def _counters(measuring: Measuring) -> PassOutcome:
    run = measuring.run
    run.counters, outcome = counters.measure(
        measuring.workload, run.ops, measuring.multiplied(), measuring.counter_level, measuring.seed
    )
    run.warnings += [f"counters: {text}" for text in outcome.facts.get("differences", ())]
    return outcome


PASSES = (
    Pass("count", _count, ("ops", "tree", "traffic")),
    Pass("time", _time, ("samples", "generation", "telemetry")),
    Pass("trace", _trace, ("kernels", "estimates", "graphs", "nodes"), _other_profiler, _steps_before_trace),
    Pass("memory", _memory, ("memory", "timeline"), before=_steps_before_memory),
    Pass("counters", _counters, ("counters",), missing=_not_counted),
)
"""Every pass, in order; telemetry is read around the timing pass."""


def _bounds(outcome: PassOutcome) -> list[str]:
    """Operators of which shapes alone were known."""
    return [
        f"{op} is counted at an upper bound, sequences as long as the longest: its offsets have no values"
        for op in outcome.facts.get("ops_bounded", ())
    ]


def _loss_warning(result: Any) -> list[str]:
    """A loss that is not finite is measured all the same, and said."""
    if not isinstance(result, torch.Tensor) or result.numel() != 1 or result.device.type == "meta":
        return []
    value = result.detach().item()
    if cmath.isfinite(value):  # a step may also return one number that is complex, whole or a bool
        return []
    return [f"the loss is {value}: measured anyway, but kernels may be faster or slower on such values"]
