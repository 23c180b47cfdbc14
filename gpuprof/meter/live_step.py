"""A step of the loop that was recorded, and the run that is made of it."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from gpuprof.analysis.ranks import rank_rows
from gpuprof.compiled.regions import regions
from gpuprof.hardware.device import environment
from gpuprof.job import add_rows, rows_of
from gpuprof.meter.machine import Machine
from gpuprof.parallel.layout import layout
from gpuprof.passes.counting import Counted
from gpuprof.passes.module_tree import module_tree
from gpuprof.passes.trace import Traced
from gpuprof.profiler import add_all_owners, add_ceilings, never_made, say_what_is_withheld
from gpuprof.record import PassOutcome, Record
from gpuprof.schema import table
from gpuprof.theory.rules import RULES_VERSION
from gpuprof.workload import Workload


class Part(NamedTuple):
    """A micro-batch, as far as its cost depends on it.

    Attributes:
        key: its signature, and which parameters are trained.
        first: whether it begins a step: it makes gradients, and a further one adds to them.
        last: whether it ends one, with the optimizer's step and in a job the reduction of the gradients.
    """

    key: tuple[Hashable, tuple[bool, ...]]
    first: bool
    last: bool


@dataclass
class LiveStep:
    """A step that was recorded.

    Attributes:
        asked: number of the step that was asked for.
        number: of the one that was recorded.
        parts: its micro-batches.
        inputs: descriptions of what each was given.
        traced: the tables of the trace.
        refused: why what is compiled could not be captured.
        times: seconds of undisturbed steps before it by their number.
    """

    asked: int
    number: int
    parts: list[Part]
    inputs: list[dict[str, Any]]
    traced: Traced
    refused: str
    times: dict[int, float]


def run_of(live: LiveStep, counts: list[Counted], workload: Workload, machine: Machine) -> Record:
    """The run of a recorded step.

    Args:
        live: the step.
        counts: what was counted of its micro-batches, of as many as were.
        workload: model and device of the loop.
        machine: the facts of its runs, and the peaks.
    """
    model = workload.model
    lies, compiled = layout(model), regions(workload)
    machine.peaks()  # measures what it lacks
    facts = machine.facts
    run = Record(
        facts["workload"]
        | _inputs_of(live.inputs if len(live.inputs) == len(live.parts) else [])
        | lies
        | ({"compiled": compiled} if compiled else {}),
        facts["device"],
        environment() | {"flop_rules": RULES_VERSION} | ({"host": platform.node()} if lies else {}),
        facts["settings"] | {"step": live.number},
    )
    if len(counts) == len(live.parts):
        run.ops, run.tree, run.passes["count"] = _added(model, counts)
    else:
        run.passes["count"] = PassOutcome(
            "skipped", f"no other step was counted that is as step {live.number} was", "record another step"
        )  # fmt: skip
    run.passes["time"] = PassOutcome("done", facts={"steps": len(live.times)})
    if not live.times:
        run.passes["time"] = PassOutcome(
            "skipped", f"no undisturbed step before step {live.number} had its shapes", "record a later step"
        )
    rows = [{"step": number, "phase": "step", "time_s": time_s} for number, time_s in live.times.items()]
    run.samples = table("samples", rows)
    run.kernels, run.estimates, run.graphs, run.nodes, run.passes["trace"] = live.traced
    for name in ("memory", "telemetry"):
        reason = "a step of a training runs once, and this pass is not of it"
        run.passes[name] = PassOutcome("skipped", reason, "give the model to gpuprof.profile")
    if live.number != live.asked:
        run.warnings.append(f"step {live.number} was recorded: step {live.asked} compiled something, or failed")
    if run.passes["count"].facts.get("values"):
        run.warnings.append(
            f"step {live.number} has FLOPs that depend on more than shapes, and they are those of another step"
        )
    if live.refused:
        run.warnings.append(f"what torch.compile made is not told apart: {live.refused}")
    if not machine.denominator:  # nothing was ever counted
        add_ceilings(run)
    add_all_owners(run, model)
    if lies and not run.kernels.empty:
        run.ranks = table("ranks", [row | {"step": 0} for row in rank_rows(run, lies["rank"])])
    run.warnings += never_made(model)
    say_what_is_withheld(run)
    return run


def _added(model: torch.nn.Module, counts: list[Counted]) -> tuple[Any, Any, PassOutcome]:
    """The ``ops`` and the ``tree`` of several micro-batches together, and how they were counted."""
    sums: dict[tuple[Any, ...], list[int | None]] = {}
    calls: Counter[str] = Counter()
    causality: dict[str, str] = {}
    facts: dict[str, Any] = {"calls": 0, "ops_without_rule": []}
    for found in counts:
        add_rows(sums, "ops", found.columns("ops"))
        for module, times, how in found.tree[["module", "calls", "causality"]].itertuples(index=False, name=None):
            calls[module] += int(times)
            known = causality.get(module, "")
            causality[module] = "unknown" if "unknown" in (how, known) else how or known
        said = found.outcome.facts
        facts["calls"] += said["calls"]
        for name in ("ops_without_rule", "ops_bounded", "sparse", "nested", "values"):
            if name in said:
                facts[name] = sorted({*facts.get(name, ()), *said[name]})
    facts["inputs_seen"] = True  # of one signature, and so of the same shapes as what was recorded
    return rows_of("ops", sums), module_tree(model, dict(calls), causality), PassOutcome("done", facts=facts)


def _inputs_of(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the micro-batches of a step were given, as a workload describes it; of several each by its number."""
    if not parts:
        return {}
    found: dict[str, Any] = {}
    for unit in ("tokens_per_step", "samples_per_step"):
        amounts = [part[unit] for part in parts]
        found[unit] = None if None in amounts else sum(amounts)
    found["inputs"] = [
        given | {"name": f"{number}.{given['name']}" if len(parts) > 1 else given["name"]}
        for number, part in enumerate(parts)
        for given in part["inputs"]
    ]
    return found
