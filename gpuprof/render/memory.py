"""The memory account of a run as text, as a chart over time, and what another size needs."""

from __future__ import annotations

import json as json_module
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.generation import generation, held_after, is_generation
from gpuprof.analysis.memory import account, by_module, no_timeline, peak
from gpuprof.analysis.modules import by_module as module_table
from gpuprof.analysis.steps import refuse_log
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render.charts import subject
from gpuprof.render.console import to_text
from gpuprof.render.tables import plain
from gpuprof.render.tree import build, walk
from gpuprof.render.view import View, depth_of
from gpuprof.schema import UNATTRIBUTED

if TYPE_CHECKING:
    from gpuprof.analysis.forecast import Forecast, Sized

_QUANTITIES = {
    "parameters": "parameters", "buffers": "buffers", "gradients": "gradients", "optimizer_state": "optimizer state",
    "cache": "cache", "activations": "activations", "expected": "expected", "before": "before the step",
    "workspace": "workspace", "measured": "measured",
}  # fmt: skip
_SUMS = ("expected", "measured")
_COLUMNS = {
    "parameters": "params", "gradients": "gradients", "activations": "activations", "retained": "retained",
    "peak_above_entry": "peak above",
}  # fmt: skip
_WORDS = {
    "batch_size": "batch", "seq_len": "sequence", "prompt_len": "prompt", "new_tokens": "number of new tokens",
}  # fmt: skip


def render_memory(run: Record, format: str = "text", view: View | None = None, forecast: Forecast | None = None) -> str:
    """The memory account of a run in one of the `FORMATS`; of the view, ``depth``, ``width`` and ``color`` count.

    Raises:
        GpuprofError: no such format, or the run has no memory pass.
    """
    if format not in FORMATS:
        raise GpuprofError(f"no format {format!r}: known are {', '.join(FORMATS)}")
    refuse_log(run, "memory account", "memory")
    if run.memory.empty:
        what = (
            "a recorded trace has no memory readings: profile the workload"
            if run.recorded
            else ("this run has no memory readings: profile it again")
        )
        raise GpuprofError(f"{what} with the memory pass")
    return FORMATS[format](run, view or View(), forecast)


def text(run: Record, view: View, forecast: Forecast | None) -> str:
    """The peak, the account by phase, the modules with equal layers folded, and the forecast."""
    parts: list[RenderableType] = [*_wrapped(_sentences(run), view)]
    if forecast is not None:
        parts += [Text(""), *_wrapped(_foretold(run, forecast), view)]
    parts += [Text(""), _moments(run), Text(""), _modules(run, view), Text("")]
    return to_text(Group(*parts, *_wrapped(_notes(run), view)), view)


def markdown(run: Record, view: View, forecast: Forecast | None) -> str:
    """The same as Markdown, modules one by one."""
    lines = list(_sentences(run)) + ([*_foretold(run, forecast)] if forecast is not None else [])
    rows = account(run)
    tables = [
        [["", *rows["moment"]], ["---", *("---:" for _ in range(len(rows)))]]
        + [[words, *map(units.size, rows[name])] for name, words in _quantities(run).items()],
        [["module", "class", *_COLUMNS.values()], ["---", "---", *("---:" for _ in _COLUMNS)]]
        + [
            [row["module"] or "(root)", row["class"], *(_size(row[name]) for name in _COLUMNS)]
            for row in _shown(run, view).to_dict(orient="records")
        ],
    ]
    piped = ["".join(f"| {' | '.join(map(_escaped, row))} |\n" for row in table) for table in tables]
    return "\n\n".join([*lines, *piped])


def csv(run: Record, view: View, forecast: Forecast | None) -> str:
    """One row per module, in bytes; empty where unknown."""
    return _shown(run, view).to_csv(index=False, lineterminator="\n")


def json(run: Record, view: View, forecast: Forecast | None) -> str:
    """Everything in bytes: peak, account, modules and forecast; null where unknown."""
    tables = {"account": account(run), "modules": _shown(run, view)}
    rows = {
        name: [{key: plain(value) for key, value in row.items()} for row in table.to_dict(orient="records")]
        for name, table in tables.items()
    }
    found = None if forecast is None else asdict(forecast)
    return json_module.dumps({"peak": peak(run), **rows, "forecast": found}, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Record, View, Any], str]] = {"text": text, "markdown": markdown, "csv": csv, "json": json}
"""Every format by name."""


def _shown(run: Record, view: View) -> pd.DataFrame:
    rows = by_module(run)
    return rows if view.depth is None else rows[rows["module"].map(depth_of) <= view.depth]


def _sentences(run: Record) -> Iterator[str]:
    yield subject(run)
    figures = peak(run)
    if figures["bytes"] is None:
        return
    what = "allocated" if run.device.get("type") == "cuda" else "resident set of the process"
    what += f" on rank {run.passes['memory'].facts['rank']}, the most of all" if run.is_job else ""
    text = f"Peak {units.size(figures['bytes'])} {what}, {where_of(figures['phase'], figures['module'])}"
    if figures["capacity_bytes"]:
        text += f"; {units.percent(figures['bytes'] / figures['capacity_bytes'])} of the device's "
        text += units.size(figures["capacity_bytes"])
    yield f"{text}."
    if figures["reserved_bytes"]:
        text = f"Reserved {units.size(figures['reserved_bytes'])}, {units.size(figures['fragmentation_bytes'])} of it "
        text += "not allocated at the peak (fragmentation and cache)"
        if figures["outside_bytes"] is not None:
            whose = "by this process" if figures["outside_of"] == "process" else "by all processes on the device"
            text += f"; {units.size(figures['outside_bytes'])} outside torch, {whose}"
        yield f"{text}."


def where_of(phase: str, module: str | None) -> str:
    """A place in the step in words."""
    where = "before the gradient of" if phase == "backward" else "in"
    return f"in the {phase}" + (f", {where} {module}" if module else "")


def _moments(run: Record) -> Table:
    """The account, a column per moment."""
    rows = account(run)
    grid = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False, header_style="bold")
    grid.add_column("", no_wrap=True)
    for moment in rows["moment"]:
        grid.add_column(moment.replace(" of ", " of\n"), justify="right", no_wrap=True, min_width=9)
    for name, words in _quantities(run).items():
        style = "bold" if name in _SUMS else ""
        grid.add_row(Text(words, style), *(Text(_size(value), style) for value in rows[name]))
    return grid


def _quantities(run: Record) -> dict[str, str]:
    return {name: words for name, words in _QUANTITIES.items() if name != "cache" or is_generation(run)}


def _modules(run: Record, view: View) -> Table:
    """Modules as a tree, equal layers as one line with the figures of the first."""
    rows = by_module(run)
    found = {row["module"]: row for row in rows.to_dict(orient="records")}
    columns = [name for name in _COLUMNS if rows[name].notna().any() and rows[name].fillna(0).max() > 0]
    sizes = rows.set_index("module")[["parameters", "gradients", "activations"]]
    tree = module_table(run).set_index("module").join(sizes).reset_index()
    grid = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False, header_style="bold")
    grid.add_column("module", no_wrap=True, overflow="ellipsis", max_width=max(view.width - 12 * len(columns), 16))
    for name in columns:
        grid.add_column(_COLUMNS[name], justify="right", no_wrap=True, min_width=11)
    lines = [(prefix + node.label, found[node.figures["module"]]) for prefix, node in walk(build(tree, view.depth))]
    lines += [(UNATTRIBUTED, found[UNATTRIBUTED])] if UNATTRIBUTED in found else []
    for label, row in lines:
        grid.add_row(Text(label), *(_size(row[name]) for name in columns))
    return grid


def _notes(run: Record) -> Iterator[str]:
    cuda = run.device.get("type") == "cuda"
    there = "inputs and cuBLAS's workspace" if cuda else "Python and its libraries"
    yield (
        f"Expected is the sum of the sizes above it; before the step there were {there}; workspace is the rest: "
        "outputs, temporaries, and what the allocator rounds up or keeps."
    )
    if is_generation(run) and not held_after(run):
        yield "How much the cache holds is not known, so it is in the workspace: the count pass says it."
    yield (
        "Modules with their children: activations are kept by the forward for the backward, each storage once, by the "
        "module that keeps it first. Folded layers show their first."
    )
    if cuda:
        yield "Retained and peak above entry are measured around the module's forward."
    if run.timeline.empty:
        yield f"No peaks: {no_timeline(run)}."


def _foretold(run: Record, forecast: Forecast) -> Iterator[str]:
    fit = forecast.fit
    if fit is None:
        assert forecast.sized is not None
        yield f"{_sized(forecast.sized).capitalize()} is predicted to take {_sum(forecast.sized)}."
    else:
        word = _WORDS[fit.what]
        room = units.size(fit.capacity)
        if fit.largest is None:
            assert fit.beyond is not None
            yield f"Nothing fits in {room}: even {_sized(fit.beyond)} is predicted to take {_sum(fit.beyond)}."
        else:
            size = getattr(fit.largest, fit.what)
            yield f"The largest {word} predicted to fit in {room}: {_sized(fit.largest)}, with {_sum(fit.largest)}."
            if fit.beyond is not None:
                yield f"{size + 1} would take {units.size(fit.beyond.prediction.total)}."
            else:
                yield f"Not memory is the limit: {fit.limit}."
    exact, wrong = (
        ("activations are those recorded", "activations miss those recorded")
        if generation(run) is None
        else ("cache is the one that was counted", "cache misses the one that was counted")
    )
    match = f"{wrong} by {units.size(abs(forecast.miss))}" if forecast.miss else f"{exact}, to the byte"
    yield (
        "The step of that size was simulated without weights, tensor by tensor"
        + ("" if forecast.miss is None else f"; at the run's own size the simulated {match}")
        + f". The measured step made {forecast.calibration:.3f} times what is simulated of it: at most the difference "
        "grows as the step does, at least it stays."
    )


def _sized(sized: Sized) -> str:
    parts = [
        (sized.batch_size, "batch {}"), (sized.seq_len, "sequence {}"), (sized.prompt_len, "prompt {}"),
        (sized.new_tokens, "{} new tokens"),
    ]  # fmt: skip
    return ", ".join(words.format(size) for size, words in parts if size) or "this step"


def _sum(sized: Sized) -> str:
    found = sized.prediction
    parts = [(found.before, "before the step")]
    if not sized.cache:
        parts = [(found.fixed, "parameters, buffers and optimizer state"), *parts, (found.made, "made by the step")]
    else:
        cache = min(sized.cache.get(found.phase, 0), found.made)
        parts = [
            (found.fixed, "weights"), *parts, (cache, "cache"), (found.made - cache, "activations and temporaries"),
        ]  # fmt: skip
    parts += [(found.fragmentation, "fragmentation"), (found.outside, "outside torch")]
    known = " + ".join(f"{units.size(size)} {words}" for size, words in parts if size)
    kept = f"; activations kept: {units.size(sized.activations)}" if sized.activations else ""
    least = f" (at least {units.size(found.least)})" if found.least < found.total else ""
    return f"{units.size(found.total)}{least} at its peak, in the {found.phase}: {known}{kept}"


def _wrapped(sentences: Iterator[str], view: View) -> list[Text]:
    return [Text(line) for sentence in sentences for line in textwrap.wrap(sentence, view.width)]


def _size(value: Any) -> str:
    return units.size(None if value is None or pd.isna(value) else float(value))


def _escaped(value: str) -> str:
    return value.replace("|", "\\|").replace("<", "&lt;")
