"""The report: a run as one HTML page that needs nothing else, with tables that sort and figures that answer."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from gpuprof import units
from gpuprof.analysis.budget import budget
from gpuprof.analysis.collectives import ON_A_CPU, by_collective
from gpuprof.analysis.communication import collectives
from gpuprof.analysis.consistency import withheld_of_kernels
from gpuprof.analysis.executed import counters_only
from gpuprof.analysis.generation import (
    phases_of,
    untold_parts,
    withheld_of_bytes,
)
from gpuprof.analysis.hints import hints
from gpuprof.analysis.known_flops import at_least, known_of
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.once import unchanged
from gpuprof.analysis.op_tables import by_kernel, by_op
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.ranks import by_rank, straggler
from gpuprof.analysis.replication import sentence
from gpuprof.analysis.untold import untold
from gpuprof.analysis.verdict import verdict
from gpuprof.errors import GpuprofError
from gpuprof.record import Record
from gpuprof.render.backward import verdict as backward_verdict
from gpuprof.render.footer import of_modules, times_of, warnings
from gpuprof.render.header import compilation_lines
from gpuprof.render.page_cards import cards, subtitle, title
from gpuprof.render.page_tables import flat, module_table, provenance
from gpuprof.render.tables import OF_A_JOB, OF_COMPILED

_MOST_KERNELS = 200
_LEVEL = 6  # of gzip: the best, 9, takes a third longer for 4 kB of 2 MB
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
    with unchanged(run):
        return filled(
            title=title(run),
            subtitles=[subtitle(run)],
            verdict=verdict(run, convention),
            cards=list(cards(run, convention)),
            warnings=doubts(run),
            untold=untold(run),
            sections=list(_sections(run, convention, command)),
        )


def filled(**content: Any) -> str:
    """The page with its content; its figures by section, and the library that draws them, are packed."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    drawn = {one["id"]: one["figure"] for one in content["sections"] if one["figure"]}
    return template.render(**content, **_packed_figures(drawn))


def _packed_figures(drawn: dict[str, Any]) -> dict[str, str]:
    """What the page unpacks to draw figures; nothing where there are none."""
    if not drawn:
        return {"figures": "", "plotly": ""}
    figures = ",".join(f'"{name}":{figure.to_json()}' for name, figure in drawn.items())
    return {"figures": _packed(f"{{{figures}}}"), "plotly": _library()}


@cache
def _library() -> str:
    """Plotly, packed."""
    from plotly.offline import get_plotlyjs

    return _packed(get_plotlyjs())


def _packed(text: str) -> str:
    """In as few letters of ASCII as a browser unpacks by itself: gzip in base64, which means nothing to HTML."""
    return base64.b64encode(gzip.compress(text.encode(), _LEVEL, mtime=0)).decode()


def doubts(run: Record) -> list[str]:
    """What puts figures of a run in doubt, a line each."""
    why = untold_parts(run)
    return [*warnings(run), *([f"No time to first token, time per token and MBU: {why}."] if why else [])]


def section(name: str, title: str, text: str = "", **content: Any) -> dict[str, Any]:
    """A section of the page: hints, a figure and a table, of those that it is given."""
    return {"id": name, "title": title, "text": text, "hints": None, "figure": None, "table": None} | content


def _sections(run: Record, convention: str | None, command: str) -> Iterator[dict[str, Any]]:
    from gpuprof.render import page_charts, page_roofline

    modules, of_parts = by_module(run, convention), phases_of(run)
    if of_parts:
        yield from _sections_of_generation(run, convention)
    if has_budget(run):
        found = budget(run, convention)
        yield section(
            "budget", "Where the time went", " ".join(_budget_words(found)), figure=page_charts.waterfall(found)
        )
        best = hints(found)
        told = [{"gain": units.percent(h.gain_share), "text": h.text, "action": h.action} for h in best]
        text = "" if told else "No hint has evidence in this run."
        if run.is_job:
            text = "Hints are told by kernels: the page of a rank's own file has them."
        yield section("hints", "What to change first", text, hints=told)
    by_mbu = "kernel_mbu_decode" in modules and modules["kernel_mbu_decode"].notna().any()
    if picture := page_charts.icicle(modules, "kernel_mbu_decode" if by_mbu else "kernel_mfu"):
        colour = "kernel MBU of decode" if by_mbu else "kernel MFU"
        text = f"As wide as the kernel time, coloured by {colour}; click to go in. {times_of(run)}."
        yield section("time", "Time by module", text, figure=picture)
    yield section("modules", "Modules", of_modules(run), table=module_table(run, modules))
    if (run.ops["phase"] == "backward").any():
        yield section("backward", "Backward over forward", backward_verdict(run), figure=page_charts.backward(run))
    if reason := withheld_of_kernels(run):
        yield section("roofline", "Roofline", f"FLOP/s are {reason}.")
    elif run.done("count") and run.done("trace") and (picture := page_roofline.roofline(run)):
        text = (
            "Each dot is an operator, as large as its share of the time: under the slope memory limits it, under the "
            f"level arithmetic does. FLOPs of vector operators are an estimate. {page_roofline.roofs_in_words(run)}"
        )
        yield section("roofline", "Roofline", text, figure=picture)
    if picture := page_charts.memory(run):
        what = "what torch has allocated" if run.device.get("type") == "cuda" else "the resident set of the process"
        text = f"In use is {what}; below it what is expected by size. 'gpuprof memory' has the account."
        text += f" {few}" if (few := page_charts.moments_left_out(run)) else ""
        yield section("memory", "Memory", text, figure=picture)
    if len(messages := by_collective(run) if run.is_job else collectives(run)):
        text = "Exposed is what no computation hides; of what is perhaps communication, by its name, nobody knows."
        text = OF_A_JOB["communication"] if run.is_job else text
        text += f" {ON_A_CPU}" if run.is_job and run.device.get("type") == "cpu" else ""
        yield section("communication", "Communication", text, table=flat(messages))
    if run.ranks["rank"].nunique() > 1:
        of_ranks = by_rank(run)
        picture = page_charts.ranks(of_ranks)
        said = [straggler(run).text, *([OF_A_JOB["rank"]] if run.is_job else [])]
        if run.workload.get("unsharded"):
            said.append(f"Replication: {sentence(run.workload['unsharded'], run.workload['world'])}.")
        yield section("ranks", "Ranks", " ".join(said), figure=picture, table=flat(of_ranks, summary=True))
    if compiled := compilation_lines(run):
        of_graphs = run.graphs.assign(region=run.graphs["region"].replace("", "(root)"))
        shown = flat(of_graphs) if len(of_graphs) else None
        yield section("compilation", "Compilation", lines=compiled, table=shown)
    if run.done("count"):
        text = OF_A_JOB["op"] if run.is_job else ""
        text = OF_COMPILED["op"] if len(run.nodes) else text
        yield section("operators", "Operators", text, table=flat(by_op(run, convention)))
    if run.done("trace") and len(run.kernels):
        kernels = by_kernel(run, convention)
        many = f"The {_MOST_KERNELS} with most time of {len(kernels)}." if len(kernels) > _MOST_KERNELS else ""
        many += f" {OF_COMPILED['kernel']}" if len(run.nodes) else ""
        yield section("kernels", "Kernels", many.strip(), table=flat(kernels.head(_MOST_KERNELS)))
    if picture := page_charts.telemetry(run):
        whose = run.passes["telemetry"].facts["rank"] if run.is_job else None
        text = "" if whose is None else f"Of rank {whose}, whose step is longest."
        yield section("telemetry", "Telemetry", text, figure=picture)
    yield section("provenance", "Provenance", table=provenance(run, convention, command))


def has_budget(run: Record) -> bool:
    """Whether its time can be taken apart."""
    return run.done("count") and bool(len(run.busy) if run.is_job else run.done("trace") and len(run.kernels))


def _sections_of_generation(run: Record, convention: str | None) -> Iterator[dict[str, Any]]:
    from gpuprof.render import page_charts

    if picture := page_charts.tokens(run):
        text = (
            "Steps of decoding by what the cache held before each, over all timed steps. Their bytes are those that "
            "must move: what is above the line is not memory's."
        )
        if reason := withheld_of_bytes(run):
            text = f"Steps of decoding by what the cache held before each. What their bytes would take is {reason}."
        yield section("tokens", "Time per token", text, figure=picture)
    phases = by_phase(run, convention)
    text = (
        "What each phase has of the step, and what the bytes are that it must move. MFU, MBU and rates are over the "
        "time in the undisturbed step, those of kernels over kernel time."
    )
    yield section("phases", "Prefill and decode", text, figure=page_charts.phases(phases), table=flat(phases))


def _budget_words(found: Any) -> Iterator[str]:
    if found.mfu is not None:
        part = f"; {known}" if (known := known_of(found.run)) else ""
        shares = f"MFU {at_least(found.run)}{units.percent(found.mfu)} of {found.denominator}"
        yield f"{shares}, convention {found.convention}{part}."
    apart = set(untold(found.run))  # in a list of their own
    yield from (note for note in found.notes if note not in apart)
