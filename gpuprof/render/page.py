"""The report: a run as one HTML page that needs nothing else, with tables that sort and figures that answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any

import pandas as pd

from gpuprof import units
from gpuprof.analysis.budget import budget
from gpuprof.analysis.collectives import ON_A_CPU, by_collective
from gpuprof.analysis.communication import collectives
from gpuprof.analysis.consistency import inconsistencies, withheld_of_kernels, withheld_of_step
from gpuprof.analysis.denominators import denominator
from gpuprof.analysis.executed import counters_only
from gpuprof.analysis.generation import (
    BANDWIDTHS,
    bandwidths,
    generation,
    is_generation,
    mbu,
    phases_of,
    untold_parts,
    withheld_of_bytes,
)
from gpuprof.analysis.hints import hints
from gpuprof.analysis.known_flops import at_least, known_of
from gpuprof.analysis.modules import by_kernel, by_module, by_op, by_phase, convention_of, totals
from gpuprof.analysis.ranks import by_rank, straggler
from gpuprof.analysis.replication import sentence
from gpuprof.analysis.telemetry import invalid_reasons
from gpuprof.analysis.untold import host_steps, untold
from gpuprof.errors import GpuprofError
from gpuprof.record import Record
from gpuprof.render.backward import verdict
from gpuprof.render.header import compilation_lines, of_steps, times_of
from gpuprof.render.tables import OF_A_JOB, OF_COMPILED, plain, readable, spread
from gpuprof.render.tree import build, has_rate, walk
from gpuprof.schema import UNATTRIBUTED
from gpuprof.theory import CONVENTIONS

_MOST_KERNELS = 200
_NEEDS = "the report needs plotly and jinja2, which are not installed: pip install 'gpuprof[report]'"


def check_page() -> None:
    """Refuse a page that could not be made, before anything is read.

    Raises:
        GpuprofError: a library is missing.
    """
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise GpuprofError(_NEEDS) from error


def render_page(run: Record, convention: str | None = None, command: str = "") -> str:
    """A run as one self-contained HTML page.

    Args:
        run: any; sections that it has nothing for are left out, and said.
        convention: how FLOPs are counted; the run's own by default.
        command: how the page was made, for its last section.

    Raises:
        GpuprofError: plotly or jinja2 is missing, the convention does not fit the run, or that is a table of Nsight
            Compute.
    """
    check_page()
    if counters_only(run):
        raise GpuprofError("a table of Nsight Compute has kernels alone, no page: 'gpuprof show RUN' reports them")
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    invalid = run.doubts["invalid"] if run.is_job else invalid_reasons(run.telemetry)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    sections = list(_sections(run, convention, command))
    for section in sections:
        figure = section["figure"]
        # inside a script element nothing but its end tag means anything
        section["figure"] = figure and Markup(figure.to_json().replace("<", "\\u003c"))
    return template.render(
        title=str(run.workload["name"]),
        subtitle=_subtitle(run),
        cards=list(_cards(run, convention)),
        warnings=[
            *dict.fromkeys((*run.warnings, *inconsistencies(run))),
            *(f"Invalid for tracking: {reason}" for reason in invalid),
            *([f"No time to first token, time per token and MBU: {why}."] if (why := untold_parts(run)) else []),
        ],
        untold=untold(run),
        sections=sections,
        plotly=Markup(get_plotlyjs()),
    )


def _subtitle(run: Record) -> str:
    about, env = run.workload, run.environment
    parts = [about.get("architecture"), about.get("mode"), about.get("dtype"), run.of_job, run.device.get("name")]
    return " · ".join(str(part) for part in (*parts, env.get("date")) if part)


def _cards(run: Record, convention: str | None) -> Iterator[dict[str, str]]:
    """The figures that everybody looks for first; those that are not known are left out."""
    sums = totals(run, convention)
    if is_generation(run):
        yield from _cards_of_generation(run, convention)
    elif sums["mfu"] is not None:
        least, part = at_least(run), known_of(run)
        hfu = f"HFU {least}{units.percent(sums['hfu'])}, " if sums["hfu"] is not None else ""
        about = f"{hfu}of {sums['denominator']}, convention {convention_of(run, convention)}"
        about += f"; {part}" if part else ""
        yield {"name": "MFU", "figure": f"{least}{units.percent(sums['mfu'])}", "about": about}
    elif sums["withheld"] and (sums["step_s"] is not None or run.recorded):
        yield {"name": "MFU and FLOP/s", "figure": units.MISSING, "about": sums["withheld"]}
    if sums["step_s"] is not None:
        steps = of_steps(run, sums) if run.metered else f"median of {units.number(sums['steps'], 'step')}"
        about = f"{steps}, IQR {units.duration(sums['step_iqr_s'])}"
        about = "of one recorded step" if run.recorded and sums["steps"] == 1 else about
        about += f"; {host}" if (host := host_steps(run)) else ""
        about += ", each of the slowest rank" if run.is_job else ""
        yield {"name": "Step", "figure": units.duration(sums["step_s"]), "about": about}
    if sums["flops"] is not None:
        back = f"{sums['backward_ratio']:.3f} x the forward in the backward" if sums["backward_ratio"] else "a forward"
        back = "prefill and decode together" if is_generation(run) else back
        if sums["ratio_withheld"] and sums["flops_backward"]:
            back = f"forward and backward, their ratio {sums['ratio_withheld']}"
        yield {"name": "Model FLOPs", "figure": f"{at_least(run)}{units.si(sums['flops'], 'FLOPs')}", "about": back}
    if sums["flops_per_s"] and not is_generation(run):
        rate = f"{units.si(sums['tokens_per_s'])} tokens/s" if sums["tokens_per_s"] else "of model FLOPs over the step"
        yield {"name": "Achieved", "figure": f"{at_least(run)}{units.si(sums['flops_per_s'], 'FLOP/s')}", "about": rate}
    if sums["peak_bytes"] is not None:
        what = "allocated at the peak" if run.device.get("type") == "cuda" else "resident set of the process"
        what += f" of rank {run.passes['memory'].facts['rank']}, the most of all" if run.is_job else ""
        yield {"name": "Memory", "figure": units.size(sums["peak_bytes"]), "about": what}
    if sums["params"] is not None:
        trained = f"{units.si(sums['trainable_params'])} trained"
        yield {"name": "Parameters", "figure": units.si(sums["params"]), "about": trained}


def _cards_of_generation(run: Record, convention: str | None) -> Iterator[dict[str, str]]:
    """What those who serve a model ask for; prefill and decode each by what bounds it."""
    found = generation(run)
    assert found is not None
    if found.ttft_s is not None:
        prompt = [units.number(found.prompt, "position")] if found.prompt else []
        sequences = [units.number(found.sequences, "sequence")] if found.sequences else []
        about = " x ".join([*prompt, *sequences])
        yield {"name": "Time to first token", "figure": units.duration(found.ttft_s), "about": about}
    if found.tpot_s is not None:
        about = f"median of the steps; p90 {units.duration(found.tpot_p90_s)}, p99 {units.duration(found.tpot_p99_s)}"
        yield {"name": "Time per token", "figure": units.duration(found.tpot_s), "about": about}
    if found.tokens_per_s is not None:
        about = f"new ones over the step; {units.si(found.decode_tokens_per_s)} tokens/s while decoding"
        about += f"; {units.si(found.joules_per_token, 'J')} per token" if found.joules_per_token else ""
        yield {"name": "Tokens/s", "figure": units.si(found.tokens_per_s), "about": about}
    phases = by_phase(run, convention).set_index("phase")
    least, part = at_least(run), known_of(run)
    share = phases["mfu"].get("prefill") if "mfu" in phases else None
    if share is not None and not pd.isna(share):
        about = f"of {denominator(run)[0]}, convention {convention_of(run, convention)}{f'; {part}' if part else ''}"
        yield {"name": "MFU of prefill", "figure": f"{least}{units.percent(share)}", "about": about}
    elif reason := withheld_of_step(run):
        yield {"name": "MFU of prefill", "figure": units.MISSING, "about": reason}
    if utilisation := mbu(run):
        rates = bandwidths(run)
        named = [
            f"{units.percent(share)} of {BANDWIDTHS[name]}, {units.si(rates[name], 'B/s')}"
            for name, share in utilisation.items()
        ]
        figure, _, first = named[0].partition(" of ")
        yield {"name": "MBU of decode", "figure": figure, "about": "; ".join([f"of {first}", *named[1:]])}
    elif reason := withheld_of_bytes(run):
        yield {"name": "MBU of decode", "figure": units.MISSING, "about": reason}
    if found.cache_bytes:
        each = found.cache_bytes_per_token
        about = f"at the end{f'; {units.size(each)} per token and sequence' if each else ''}"
        yield {"name": "Cache", "figure": units.size(found.cache_bytes), "about": about}


def _section(name: str, title: str, text: str = "", **content: Any) -> dict[str, Any]:
    return {"id": name, "title": title, "text": text, "hints": None, "figure": None, "table": None} | content


def _sections(run: Record, convention: str | None, command: str) -> Iterator[dict[str, Any]]:
    from gpuprof.render import page_charts

    modules, of_parts = by_module(run, convention), phases_of(run)
    if of_parts:
        yield from _sections_of_generation(run, convention)
    if run.done("count") and (len(run.busy) if run.is_job else run.done("trace") and len(run.kernels)):
        found = budget(run, convention)
        yield _section(
            "budget", "Where the time went", " ".join(_budget_words(found)), figure=page_charts.waterfall(found)
        )
        best = hints(found)
        told = [{"gain": units.percent(h.gain_share), "text": h.text, "action": h.action} for h in best]
        text = "" if told else "No hint has evidence in this run."
        if run.is_job:
            text = "Hints are told by kernels: the page of a rank's own file has them."
        yield _section("hints", "What to change first", text, hints=told)
    by_mbu = "kernel_mbu_decode" in modules and modules["kernel_mbu_decode"].notna().any()
    if picture := page_charts.icicle(modules, "kernel_mbu_decode" if by_mbu else "kernel_mfu"):
        colour = "kernel MBU of decode" if by_mbu else "kernel MFU"
        text = f"As wide as the kernel time, coloured by {colour}; click to go in. {times_of(run)}."
        yield _section("time", "Time by module", text, figure=picture)
    backward = "" if of_parts else ", backward with recompute"
    text = f"{times_of(run)}{backward}; layers that agree in every count are one line."
    yield _section("modules", "Modules", text, table=module_table(run, modules))
    if (run.ops["phase"] == "backward").any():
        yield _section("backward", "Backward over forward", verdict(run), figure=page_charts.backward(run))
    if reason := withheld_of_kernels(run):
        yield _section("roofline", "Roofline", f"FLOP/s are {reason}.")
    elif run.done("count") and run.done("trace") and (picture := page_charts.roofline(run)):
        text = (
            "Each dot is an operator, as large as its share of the time: under the slope memory limits it, under the "
            "level arithmetic does. FLOPs of vector operators are an estimate."
        )
        yield _section("roofline", "Roofline", text, figure=picture)
    if picture := page_charts.memory(run):
        what = "allocated by torch" if run.device.get("type") == "cuda" else "resident set of the process"
        text = f"In use is the {what}; by size are the tensors themselves. 'gpuprof memory' has the account."
        yield _section("memory", "Memory", text, figure=picture)
    if len(messages := by_collective(run) if run.is_job else collectives(run)):
        text = "Exposed is what no computation hides; of what is perhaps communication, by its name, nobody knows."
        text = OF_A_JOB["communication"] if run.is_job else text
        text += f" {ON_A_CPU}" if run.is_job and run.device.get("type") == "cpu" else ""
        yield _section("communication", "Communication", text, table=_flat(messages))
    if run.ranks["rank"].nunique() > 1:
        of_ranks = by_rank(run)
        picture = page_charts.ranks(of_ranks)
        said = [straggler(run).text, *([OF_A_JOB["rank"]] if run.is_job else [])]
        if run.workload.get("unsharded"):
            said.append(f"Replication: {sentence(run.workload['unsharded'], run.workload['world'])}.")
        yield _section("ranks", "Ranks", " ".join(said), figure=picture, table=_flat(of_ranks, summary=True))
    if compiled := compilation_lines(run):
        of_graphs = run.graphs.assign(region=run.graphs["region"].replace("", "(root)"))
        shown = _flat(of_graphs) if len(of_graphs) else None
        yield _section("compilation", "Compilation", lines=compiled, table=shown)
    if run.done("count"):
        text = OF_A_JOB["op"] if run.is_job else ""
        text = OF_COMPILED["op"] if len(run.nodes) else text
        yield _section("operators", "Operators", text, table=_flat(by_op(run, convention)))
    if run.done("trace") and len(run.kernels):
        kernels = by_kernel(run, convention)
        many = f"The {_MOST_KERNELS} with most time of {len(kernels)}." if len(kernels) > _MOST_KERNELS else ""
        many += f" {OF_COMPILED['kernel']}" if len(run.nodes) else ""
        yield _section("kernels", "Kernels", many.strip(), table=_flat(kernels.head(_MOST_KERNELS)))
    if picture := page_charts.telemetry(run):
        whose = run.passes["telemetry"].facts["rank"] if run.is_job else None
        text = "" if whose is None else f"Of rank {whose}, whose step is longest."
        yield _section("telemetry", "Telemetry", text, figure=picture)
    yield _section("provenance", "Provenance", table=_provenance(run, convention, command))


def _sections_of_generation(run: Record, convention: str | None) -> Iterator[dict[str, Any]]:
    from gpuprof.render import page_charts

    if picture := page_charts.tokens(run):
        text = (
            "Steps of decoding by what the cache held before each, over all timed steps. Their bytes are those that "
            "must move: what is above the line is not memory's."
        )
        if reason := withheld_of_bytes(run):
            text = f"Steps of decoding by what the cache held before each. What their bytes would take is {reason}."
        yield _section("tokens", "Time per token", text, figure=picture)
    phases = by_phase(run, convention)
    text = (
        "What each phase has of the step, and what the bytes are that it must move. MFU, MBU and rates are over the "
        "time in the undisturbed step, those of kernels over kernel time."
    )
    yield _section("phases", "Prefill and decode", text, figure=page_charts.phases(phases), table=_flat(phases))


def _budget_words(found: Any) -> Iterator[str]:
    if found.mfu is not None:
        part = f"; {known}" if (known := known_of(found.run)) else ""
        shares = f"MFU {at_least(found.run)}{units.percent(found.mfu)} of {found.denominator}"
        yield f"{shares}, convention {found.convention}{part}."
    apart = set(untold(found.run))  # in a list of their own
    yield from (note for note in found.notes if note not in apart)


_SHARES_OF_PARTS = {
    "kernel_mfu_prefill": ("kernel MFU", "of the prefill: ideal time over kernel time"),
    "kernel_mbu_decode": ("kernel MBU", "of the decode: bytes that must move over kernel time and bandwidth"),
}
_TREE_COLUMNS = {
    "params": ("params", "parameters, children included"),
    "flops_forward": ("FLOPs", "of the forward, in the convention"),
    "time_forward_s": ("forward", "kernel time"),
    "time_backward_s": ("backward", "kernel time, recompute included"),
    "flops_per_s": ("FLOP/s", "forward and backward over their kernel time"),
    "kernel_mfu": ("kernel MFU", "ideal time over kernel time"),
}


def module_table(run: Record, modules: pd.DataFrame) -> dict[str, Any]:
    """The tree of modules, folded as in the terminal."""
    rows = []
    columns = dict(_TREE_COLUMNS)
    if of_parts := phases_of(run):
        columns = {name: columns[name] for name in ("params", "flops_forward")}
        columns["flops_forward"] = "FLOPs", "of all phases, in the convention"
        for phase in of_parts:
            columns[f"time_{phase}_s"] = phase, "kernel time"
            columns |= {name: head for name, head in _SHARES_OF_PARTS.items() if name.endswith(phase)}
    if modules["params"].isna().all():
        del columns["params"]
    for prefix, node in walk(build(modules)):
        rows.append(_tree_row(columns, len(prefix) // 3, node.label, node.figures, bool(node.children)))
    rest = modules[modules["module"] == UNATTRIBUTED].iloc[0].to_dict()
    rows.append(_tree_row(columns, 0, UNATTRIBUTED, rest, False))
    heads = [{"name": "module", "about": ""}]
    heads += [{"name": name, "about": about} for name, about in columns.values()]
    return {"tree": True, "words": False, "heads": heads, "rows": rows}


def _tree_row(columns: Iterable[str], depth: int, label: str, figures: dict[str, Any], parent: bool) -> dict[str, Any]:
    numbers = {name: plain(value) for name, value in figures.items()}
    back = [numbers[f"time_{phase}_s"] for phase in ("recompute", "backward")]
    numbers["time_backward_s"] = sum(t or 0.0 for t in back) if any(t is not None for t in back) else None
    time = (numbers["time_forward_s"] or 0.0) + (numbers["time_backward_s"] or 0.0)
    flops = (numbers["flops_forward"] or 0) + (numbers["flops_backward"] or 0)
    numbers["flops_per_s"] = flops / time if flops and time and has_rate(figures) else None
    name, _, kind = label.partition(": ")
    path = str(figures["module"]) or "(root)"
    cells = [{"text": name, "value": path}]
    for column in columns:
        value = numbers[column]
        cells.append({"text": readable(column, value), "value": "" if value is None else value})
    return {"depth": depth, "path": path, "class": kind, "parent": parent, "cells": cells}


def _flat(frame: pd.DataFrame, summary: bool = False) -> dict[str, Any]:
    """A table whose rows stand alone; of ranks, with ``summary``, the least, the median and the most below them."""
    rows = []
    for row in [*frame.to_dict(orient="records"), *(spread(frame).to_dict(orient="records") if summary else [])]:
        values = {str(name): plain(value) for name, value in row.items()}
        cells = [{"text": readable(n, v), "value": "" if v is None else v} for n, v in values.items()]
        if "owners" in values:  # of a product that all modules call, all of them
            owners = cells[list(values).index("owners")]
            owners |= {"whole": owners["text"], "text": units.shortened(owners["text"], 60)}
        rows.append({"depth": None, "cells": cells})
    heads = [{"name": _heading(str(name)), "about": ""} for name in frame]
    return {"tree": False, "words": False, "heads": heads, "rows": rows}


def _heading(column: str) -> str:
    """A column's name without its unit, which every cell has."""
    name = column.replace("flops_per_s", "FLOP/s").replace("bytes_per_s", "B/s").removesuffix("_s").replace("_", " ")
    return name.replace("flops", "FLOPs").replace("mfu", "MFU").replace("mbu", "MBU")


def _provenance(run: Record, convention: str | None, command: str) -> dict[str, Any]:
    """Where every figure comes from."""
    name = convention_of(run, convention)
    facts: dict[str, Any] = {
        "convention": f"{name}: {CONVENTIONS[name].title} Source: {CONVENTIONS[name].source}",
        **{f"workload: {key}": value for key, value in run.workload.items() if _short(value)},
        **{f"device: {key}": value for key, value in run.device.items() if _short(value)},
        **{f"environment: {key}": value for key, value in run.environment.items() if _short(value)},
        **{f"settings: {key}": value for key, value in run.settings.items() if _short(value)},
    }
    for one in run.device["ranks"] if run.is_job else ():
        names = (one["file"], one["device"].get("name"), one["device"].get("uuid"), one["environment"].get("host"))
        facts[f"rank {one['rank']}"] = ", ".join(str(name) for name in names if name)
    for key, outcome in run.passes.items():
        about = "; ".join(part for part in (outcome.reason, outcome.remedy) if part)
        facts[f"pass: {key}"] = f"{outcome.status} in {outcome.seconds:g} s {about}".strip()
    if command:
        facts["this page"] = command
    rows = [
        {"depth": None, "cells": [{"text": str(key), "value": ""}, {"text": str(value), "value": ""}]}
        for key, value in facts.items()
    ]
    heads = [{"name": "what", "about": ""}, {"name": "value", "about": ""}]
    return {"tree": False, "words": True, "heads": heads, "rows": rows}


def _short(value: Any) -> bool:
    return value not in (None, "", [], {}) and len(str(value)) < 400
