"""The traced step along time: which kernels ran beside one another, and how long each module and phase lasted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gpuprof.analysis.consistency import owned_kernels
from gpuprof.analysis.counted import chosen, counted, priced
from gpuprof.analysis.operators import input_shapes, plain_op
from gpuprof.analysis.ran import ran
from gpuprof.late import pd
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.theory import rule_for

_MULTIPLY = ("matmul", "convolution", "attention", "recurrent")


class Kernel(NamedTuple):
    """One row of the ``kernels`` table, or the part of one that is one owner's.

    Attributes:
        module, phase, op, kernel, call, shapes: as there; ``call`` is None where no operator launched it.
        start_ns, end_ns: from the beginning of the step.
        flops: model FLOPs of the operator call that it belongs to, None where they are not known; of a part those of
            its owner.
        part: number of the part, 0 of a whole kernel.
    """

    module: str
    phase: str
    op: str
    kernel: str
    call: int | None
    shapes: str
    start_ns: int
    end_ns: int
    flops: int | None
    part: int = 0


class Span(NamedTuple):
    """Consecutive kernels of one module, children included, or of one phase.

    Attributes:
        module: path; None for a phase.
        phase: of all its kernels.
        start_ns, end_ns: of the first kernel and of the last.
        kernels: its kernels.
    """

    module: str | None
    phase: str
    start_ns: int
    end_ns: int
    kernels: Sequence[Kernel]

    @property
    def launched(self) -> int:
        """How many kernels there are, of which some may be others' in part."""
        return len(whole(self.kernels))

    @property
    def busy_ns(self) -> int:
        """Time in which one of its kernels ran."""
        return sum(kernel.end_ns - kernel.start_ns for kernel in self.kernels)

    @property
    def flops(self) -> int | None:
        """Model FLOPs of its operator calls; None where one of them is not known."""
        calls = {(kernel.call, kernel.part): kernel.flops for kernel in self.kernels if kernel.call is not None}
        known = [flops for flops in calls.values() if flops is not None]
        return sum(known) if len(known) == len(calls) else None


def lanes(run: Record, convention: str | None = None) -> dict[tuple[str, int], list[Kernel]]:
    """Kernels by stream (thread on a CPU) and number of the lane, in order of start; in a lane no two overlap.

    A stream has more than one lane only where a kernel began before the one ahead of it had ended.

    Args:
        run: a run with a trace.
        convention: how FLOPs are counted; the run's own by default.
    """
    found: dict[tuple[str, int], list[Kernel]] = {}
    flops, compiled = _flops_per_call(run, convention), _flops_of_compiled(run, convention)
    for row in owned_kernels(run).sort_values("start_ns", kind="stable").to_dict(orient="records"):
        start, call = int(row["start_ns"]), None if pd.isna(row["call"]) else int(row["call"])
        kernel = Kernel(
            row["module"], row["phase"], row["op"], row["kernel"], call, row["shapes"], start,
            start + int(row["duration_ns"]), None, int(row["part"]),
        )  # fmt: skip
        if row["compiled"] in compiled:
            of_owners = compiled[row["compiled"]]
            kernel = kernel._replace(flops=of_owners.get((kernel.module, kernel.phase) if row["parts"] > 1 else None))
        elif run.done("count"):
            kernel = kernel._replace(flops=_flops_of(row, flops))
        number = 1
        while (lane := found.setdefault((row["stream"], number), [])) and lane[-1].end_ns > start:
            number += 1
        lane.append(kernel)
    return found


def whole(kernels: Sequence[Kernel]) -> list[list[Kernel]]:
    """Kernels of a lane with the parts of each together."""
    found: list[list[Kernel]] = []
    for kernel in kernels:
        before = found[-1][-1] if found else None
        if before is not None and kernel.part > before.part and kernel.call == before.call:
            found[-1].append(kernel)
        else:
            found.append([kernel])
    return found


def module_spans(lane: Sequence[Kernel], depth: int | None = None) -> list[Span]:
    """How long each module lasted, each time, a parent before its children and around them.

    Args:
        lane: kernels that do not overlap, in order.
        depth: modules down to this depth; the root is 0. None for all.
    """
    return _spans(lane, [ancestors(kernel.module)[::-1][: None if depth is None else depth + 1] for kernel in lane])


def phase_spans(lane: Sequence[Kernel]) -> list[Span]:
    """How long each phase lasted, each time."""
    return _spans(lane, [[None] for _ in lane])


def _spans(lane: Sequence[Kernel], chains: Sequence[Sequence[str | None]]) -> list[Span]:
    """Runs of kernels with the same phase and the same beginning of their chain, one span for every such beginning."""
    members: list[tuple[str | None, list[Kernel]]] = []
    open_spans: list[tuple[str | None, list[Kernel]]] = []
    before: Kernel | None = None
    for kernel, chain in zip(lane, chains, strict=True):
        same = 0
        if before is not None and before.phase == kernel.phase:
            while same < min(len(open_spans), len(chain)) and open_spans[same][0] == chain[same]:
                same += 1
        new = [(module, list[Kernel]()) for module in chain[same:]]
        members += new
        open_spans = open_spans[:same] + new
        for _, kernels in open_spans:
            kernels.append(kernel)
        before = kernel
    return [Span(module, of[0].phase, of[0].start_ns, of[-1].end_ns, of) for module, of in members]


def _flops_per_call(run: Record, convention: str | None) -> dict[tuple[str, str, str], dict[str, set[int]]]:
    """FLOPs that one call may have, by module, phase and operator, and then by the shapes of its inputs."""
    if not run.done("count"):
        return {}
    found: dict[tuple[str, str, str], dict[str, set[int]]] = {}
    ops = counted(run, convention)
    if chosen(run, convention).backward_factor is not None:  # it is assumed, not that of the operators that ran
        ops = ops[ops["phase"] != "backward"]
    for row in ops[(ops["calls"] > 0) & ops["flops"].notna()].to_dict(orient="records"):
        shapes = found.setdefault((row["module"], row["phase"], plain_op(row["op"])), {})
        shapes.setdefault(input_shapes(row["shapes"]), set()).add(int(row["flops"]) // int(row["calls"]))
    return found


def _flops_of_compiled(run: Record, convention: str | None) -> dict[str, dict[tuple[str, str] | None, int | None]]:
    """FLOPs of one call of each kernel of compiled code, by its owners, and under None of all of them."""
    found: dict[str, dict[tuple[str, str] | None, int | None]] = {}
    if not run.done("count"):
        return found
    ops = priced(run, ran(run), convention)
    for row in ops[(ops["compiled"] != "") & (ops["calls"] > 0)].to_dict(orient="records"):
        sums = found.setdefault(row["compiled"], {})
        for key in ((row["module"], row["phase"]), None):
            before, flops = sums.get(key, 0), row["flops"]
            sums[key] = None if before is None or pd.isna(flops) else before + int(flops) // int(row["calls"])
    return found


def _flops_of(row: dict[Any, Any], known: dict[tuple[str, str, str], dict[str, set[int]]]) -> int | None:
    """FLOPs of a kernel's call: by operator if all its calls cost the same there, else by shapes."""
    shapes = known.get((row["module"], row["phase"], plain_op(row["op"])))
    if shapes is None:  # in place where it was counted out of place, say: nothing, if it does not multiply
        rule = rule_for(row["op"])
        return None if rule is not None and rule.kind in _MULTIPLY else 0
    fitting = {flops for of_shape in shapes.values() for flops in of_shape}
    if len(fitting) > 1:
        fitting = shapes.get(row["shapes"], set())
    return next(iter(fitting)) if len(fitting) == 1 else None
