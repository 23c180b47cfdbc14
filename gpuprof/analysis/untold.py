"""What a recorded trace cannot tell, each with its share of the kernel time and what would have recorded it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpuprof import units
from gpuprof.analysis.communication import messages
from gpuprof.analysis.consistency import IN_GRAPHS, graph_share
from gpuprof.analysis.each import each, where
from gpuprof.analysis.known_flops import NEARLY_ALL, matmul_kernels, priced_share
from gpuprof.analysis.operators import plain_op
from gpuprof.analysis.steps import step_seconds
from gpuprof.record import Record
from gpuprof.schema import UNATTRIBUTED
from gpuprof.theory.generated import REDUCTION, generated
from gpuprof.traces.events import launches_graph

_LEAST = 0.0005
"""Share of the kernel time below which nothing is said of it."""

_AHEAD = 0.05
"""By how much the host's time of a step may differ from the GPU's without a word."""

_NAMES = 3
"""Kernels, operators or reasons that are named."""


def untold(run: Record) -> list[str]:
    """What is not known of an imported run, a sentence each; nothing of one that was measured."""
    if not run.recorded:
        return []
    facts = run.passes["trace"].facts
    looks = (
        _shapes, _modules, _regions, _unseen, _graphs, _launchers, _without_flops, _as_sums, _unread, _masks, _not_run,
        _device, _outside, _left_out, _accuracy,
    )  # fmt: skip
    return [sentence for look in looks for sentence in look(run, facts)]


def host_steps(run: Record) -> str:
    """How long the host took for its steps, where that is not what the GPU took; empty where it is, or is not known."""
    steps, step_s = run.passes["trace"].facts.get("host_step_s") or [] if run.recorded else [], step_seconds(run)
    if not steps or not step_s or all(abs(host / step_s - 1) <= _AHEAD for host in steps):
        return ""
    low, high = units.duration(min(steps), 3), units.duration(max(steps), 3)
    return f"on the host ProfilerStep took {low if low == high else f'{low} to {high}'}"


def _shapes(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    yield from _share_of(
        run, facts.get("no_shapes_ns", 0),
        "{} of the kernel time is of operators without shapes, so without FLOPs"
        + (": record with record_shapes=True" if "record_shapes" in facts.get("lacks", ()) else ""),
    )  # fmt: skip


def _modules(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    nobodys = (run.kernels["phase"] == "optimizer") | messages(run)  # nor need they be
    kernels = run.kernels[(run.kernels["module"] == UNATTRIBUTED) & ~nobodys]
    nowhere, backward = (int(rows["duration_ns"].sum()) for rows in (kernels, kernels[kernels["phase"] == "backward"]))
    text = "{} of the kernel time is of no module"
    if 0 < backward < nowhere:
        text += f", {units.percent(_share(run, backward))} in the backward"
    if run.ops.empty and not run.kernels["op"].any():
        text += ", as the recording has no operators: record the activity CPU too, with with_stack=True"
    elif "with_modules" in facts.get("lacks", ()):
        text += ": record with with_stack=True"
        if facts.get("scopes") == "labels":
            text += "; what stands for modules here are labels (record_function)"
    yield from _share_of(run, nowhere, text)


def _regions(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    paths = set(facts.get("regions", ()))
    inside = int(run.kernels.loc[run.kernels["module"].isin(paths), "duration_ns"].sum())
    yield from _share_of(
        run, inside,
        f"{{}} of the kernel time is in {units.number(len(paths), 'compiled region')}: modules inside are unknown; "
        "gpuprof profile --compile tells them",
    )  # fmt: skip


def _unseen(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    if unseen := facts.get("unseen_ns", 0):
        yield (
            f"Compiled code took {units.duration(unseen * 1e-9, 3)} outside its operators: kernels fused for a CPU are "
            "recorded where torch._inductor.config.cpp.enable_kernel_profile was set when they were compiled."
        )


def _graphs(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    text = "{} of the kernel time is in CUDA or HIP graphs: without operator, shapes, FLOPs and module"
    if _LEAST <= graph_share(run) <= IN_GRAPHS:  # above that it is why all rates are withheld, which is said everywhere
        yield f"{text.format(units.percent(graph_share(run)))}."


def _launchers(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    kernels = run.kernels[run.kernels["call"].isna() & ~where(run.kernels["op"], launches_graph)]
    times = kernels.groupby("op")["duration_ns"].sum().nlargest(_NAMES)
    named = _named([op or "nothing that is recorded" for op in times.index])
    yield from _share_of(
        run, int(kernels["duration_ns"].sum()), f"{{}} of the kernel time was launched by no operator: by {named}"
    )


def _without_flops(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    share, kernels = priced_share(run), matmul_kernels(run)
    if share is not None and share < NEARLY_ALL:
        times = kernels[~kernels["priced"]].groupby("kernel")["duration_ns"].sum().nlargest(_NAMES)
        bound = "; FLOPs, FLOP/s and MFU of modules with such are lower bounds" if share else ""
        yield (
            f"{units.percent(1 - share)} of the matmul kernel time is of kernels whose FLOPs are not known, "
            f"most of it {_named(times.index)}{bound}."
        )


def _as_sums(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    kernels = run.kernels[where(run.kernels["kernel"], _perhaps_sums)]
    times = kernels.groupby("kernel")["duration_ns"].sum().sort_values(ascending=False)
    yield from _share_of(
        run, int(times.sum()),
        f"{{}} of the kernel time is of {_named(times.index)}: where a compiler wrote a product out as a sum, its "
        "FLOPs are in no count",
    )  # fmt: skip


def _perhaps_sums(kernel: str) -> bool:
    """Whether a generated kernel may multiply without being a template: products with few rows are summed so."""
    made = generated(kernel)
    return made is not None and made.work in ("", REDUCTION) and not {"mm", "bmm", "mv", "dot"}.isdisjoint(made.ops)


def _unread(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    unread = run.passes["count"].facts.get("ops_unread") or {} if run.done("count") else {}
    times = run.kernels["duration_ns"].groupby(each(run.kernels["op"], plain_op)).sum()
    by_reason: dict[str, list[str]] = {}
    for op, why in unread.items():
        by_reason.setdefault(str(why), []).append(op)
    if "record_shapes" in facts.get("lacks", ()):
        return  # as `_shapes` says of all of them
    for why, ops in by_reason.items():
        share = _share(run, int(times.reindex([plain_op(op) for op in ops]).fillna(0).sum()))
        yield f"FLOPs of {_named(ops)} cannot be told for all calls: {why} ({units.percent(share)} of the kernel time)."


def _masks(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    if masked := run.passes["count"].facts.get("flops_perhaps_masked") if run.done("count") else 0:
        yield (
            "Whether fused attention is causal, the recording does not say: it counts over the whole square, and "
            f"{units.si(masked, 'FLOPs')} of it are none if it is."
        )


def _not_run(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    found = run.passes["count"].facts.get("ops_not_run") or {} if run.done("count") else {}
    if found:
        many = units.number(sum(found.values()), "call")
        yield (
            f"{many} of {_named(found)} launched no kernel: captured into a graph, run on the CPU or broken off. "
            "Not counted."
        )


def _device(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    if run.device.get("type") == "cuda" and not facts.get("devices") and not run.device.get("peaks"):
        yield "The recording does not name its device: no peak and no MFU without --device-name or --peak-tflops."


def _outside(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    """Kernels that are of no step."""
    whole = facts.get("all_ns", 0)
    for kind, what in (("early", "launched before the recording began"), ("outside", "launched outside every step")):
        if (count := facts.get(f"{kind}_kernels", 0)) and whole:
            share, many = units.percent(facts.get(f"{kind}_ns", 0) / whole), units.number(count, "kernel")
            yield f"{many} ({share} of its kernel time) {what}: of no step, and left out."


def _left_out(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    if left_out := facts.get("left_out"):
        reasons = ", ".join(f"{count} for {reason}" for reason, count in left_out.items())
        yield f"Broken events of the file are left out: {reasons}."


def _accuracy(run: Record, facts: dict[str, Any]) -> Iterator[str]:
    if facts.get("whole_us") and len(run.kernels):
        median = units.duration(float(run.kernels["duration_ns"].median()) * 1e-9, 2)
        yield f"All times are whole microseconds, so each is known to 1 us: half the kernels take {median} at most."


def _share_of(run: Record, nanoseconds: int, text: str) -> Iterator[str]:
    share = _share(run, nanoseconds)
    if share >= _LEAST:
        yield f"{text.format(units.percent(share))}."


def _share(run: Record, nanoseconds: int) -> float:
    whole = int(run.kernels["duration_ns"].sum())
    return nanoseconds / whole if whole else 0.0


def _named(names: Any) -> str:
    shown = [units.shortened(str(name)) for name in names]
    more = f" and {len(shown) - _NAMES} more" if len(shown) > _NAMES else ""
    return f"{', '.join(shown[:_NAMES])}{more}"
