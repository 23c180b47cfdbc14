"""The report: what ran and on what, its totals, and the module tree with repeated layers folded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.generation import PARTS, moved, phases_of
from gpuprof.analysis.modules import module_columns
from gpuprof.analysis.totals import totals
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render.console import to_text
from gpuprof.render.footer import footer
from gpuprof.render.header import header
from gpuprof.render.view import View
from gpuprof.schema import UNATTRIBUTED

_TIMES = ("time_forward_s", "time_recompute_s", "time_backward_s")
_COLUMNS = (
    "params", "of params", "MACs", "FLOPs", "of FLOPs", "executed", "forward", "backward", "FLOP/s", "MFU %",
)  # fmt: skip
"""Figures of a line; executed is what counters say over the counted hardware FLOPs."""

_PARTS = ("encode", "prefill", "MFU %", "bytes", "decode", "MBU %")
"""Those of a generation in place of forward and what follows it: MFU of the prefill, bytes and MBU of the decode."""

_RANKS = 8
"""Ranks that are told one by one below the tree."""

_GIVE_WAY = ("MACs", "of params", "of FLOPs", "FLOP/s", "bytes", "params", "FLOPs")
"""Figures left out of a narrow report, in this order, so that names keep 32 columns."""

_GIVE_WAY_LAST = ("executed", "encode", "backward", "forward", "prefill", "decode", "MFU %", "MBU %")
"""The same so that they keep 16."""

_Rate = tuple[str, tuple[str, ...]]

_RATES: dict[str, _Rate] = {"MFU %": ("kernel_mfu", _TIMES)}
"""Columns of shares of the most that there can be, and the times that they are over."""

_BOUND = {"MFU %": "prefill", "MBU %": "decode"}
"""Whose they are in a generation."""

_RATES_OF_PARTS: dict[str, _Rate] = {
    "MFU %": ("kernel_mfu_prefill", ("time_prefill_s",)), "MBU %": ("kernel_mbu_decode", ("time_decode_s",)),
}  # fmt: skip
"""The same of it."""

_HEADINGS = {"of params": "%", "of FLOPs": "%", "MFU %": "kernel\nMFU %", "MBU %": "kernel\nMBU %"}


@dataclass
class Node:
    """A line of the tree: one module, or several that agree, folded.

    Attributes:
        label: name and class.
        figures: its row of the module table; times of folded modules are their mean.
        spread: of the folded modules' times, standard deviation over mean, by column; empty for one module.
        children: the lines below it.
        modules: paths of the modules that the line is of.
    """

    label: str
    figures: dict[str, Any]
    spread: dict[str, float] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)


def render(run: Record, view: View) -> str:
    """Header, tree and notes as text of the view's width."""
    modules = module_columns(run, view.convention)
    rows = [dict(zip(modules, row, strict=True)) for row in zip(*modules.values(), strict=True)]
    sums = totals(run, view.convention)
    of_parts = phases_of(run)
    rates = {name: rate for name, rate in (_RATES_OF_PARTS if of_parts else _RATES).items() if rate[0] in modules}
    lost = {name: (_lost(rows[0], *rate) or 0.0, rate) for name, rate in rates.items()}
    lines = [(prefix + node.label, _cells(node, sums, lost)) for prefix, node in walk(folded(rows, view.depth))]
    rest = next(row for row in rows if row["module"] == UNATTRIBUTED)
    if any(_number(rest[c]) for c in (*_TIMES, "flops_forward", "flops_backward", "vector_flops_forward")):
        lines.append((UNATTRIBUTED, _cells(Node(UNATTRIBUTED, rest), sums, lost)))
    known = _known(run, sums, of_parts)
    columns, names = _fitting(view.width, known, [cells for _, cells in lines])
    grid = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False, header_style="bold")
    grid.add_column("module", no_wrap=True, vertical="bottom", overflow="ellipsis", min_width=16, max_width=names)
    for name in columns:
        grid.add_column(_HEADINGS.get(name, name), justify="right", no_wrap=True, vertical="bottom")
    for label, cells in lines:
        grid.add_row(Text(_cut(label, names)), *(cells[name] for name in columns))
    left_out = [name for name in known if name not in columns]
    more = [Text(f"Not shown at this width: {', '.join(left_out)}")] if left_out else []
    tree = to_text(Group(header(run, view, sums), Text(""), grid, *more), view)
    several = len(run.distinct("ranks", "rank"))
    top = None if several <= _RANKS else 0  # of many the least, the median and the most
    ranks = f"\n{_by_rank(run, View('rank', top=top, width=view.width, color=view.color))}" if several else ""
    return tree + ranks + to_text(Group(*footer(run, view, sums)), view)


def _by_rank(run: Record, view: View) -> str:
    from gpuprof.render import tables

    return tables.text(run, view)


def _cut(label: str, most: int) -> str:
    """A label that may be cut, but not within the number of its modules."""
    cut = units.shortened(label, most)
    return cut if cut == label else f"{cut[:-1].rstrip(' 0123456789')}{cut[-1]}"


def _known(run: Record, sums: dict[str, Any], of_parts: list[str]) -> list[str]:
    """The figures of which there can be any in the run."""
    lacking = set() if run.done("counters") else {"executed"}
    lacking |= {"params", "of params"} if sums["params"] is None else set()
    columns = list(_COLUMNS)
    if of_parts:
        lacking |= {*PARTS} - ({*of_parts} if run.done("trace") or run.has("busy") else set())
        lacking |= {name for name, phase in _BOUND.items() if phase in lacking}
        lacking |= set() if "decode" in of_parts and len(moved(run)) else {"bytes"}
        columns = [*columns[: columns.index("forward")], *_PARTS]
    return [name for name in columns if name not in lacking]


def _fitting(width: int, columns: list[str], lines: list[dict[str, Text]]) -> tuple[list[str], int]:
    """Those of the figures that leave names room, and how much; no figure is cut."""
    widths = {
        name: 1 + max(map(len, [*_HEADINGS.get(name, name).split("\n"), *(line[name].plain for line in lines)]))
        for name in columns
    }
    shown = list(columns)
    for room, gives_way in ((32, _GIVE_WAY), (16, _GIVE_WAY_LAST)):
        for name in (name for name in gives_way if name in shown):
            if width - sum(widths[one] for one in shown) < room:
                shown.remove(name)
    return shown, max(width - sum(widths[one] for one in shown), 16)


def build(modules: pd.DataFrame, depth: int | None = None) -> Node:
    """The tree of lines of a table of modules; see `folded`."""
    rows = modules.to_dict(orient="records")
    return folded(({str(c): None if pd.isna(v) else v for c, v in row.items()} for row in rows), depth)


def folded(modules: Iterable[dict[str, Any]], depth: int | None = None) -> Node:
    """The tree of lines, down to a depth. Neighbours that agree in all but their times become one line.

    Args:
        modules: figures of each module by column, None where one is missing.
        depth: of the deepest lines; the root is 0. None for all.
    """
    rows = {row["module"]: row for row in modules if row["module"] != UNATTRIBUTED}
    children: dict[str, list[str]] = {path: [] for path in rows}
    for path in rows:
        if path:
            children[path.rpartition(".")[0]].append(path)
    numbered = {path for path in rows if _is_numbered(_last(path), f"{rows[path]['class']}_")}

    def place(path: str) -> str:
        """What tells it from its neighbours: of a recorded module, which has the number of its class, the class."""
        return str(rows[path]["class"]) if path in numbered else _last(path)

    signatures: dict[str, tuple[Any, ...]] = {}
    for path in reversed(list(rows)):  # children come after their parent
        own = tuple((c, v) for c, v in rows[path].items() if v is not None and _must_agree(c))
        signatures[path] = (own, tuple((place(child), signatures[child]) for child in children[path]))

    def line(paths: list[str], level: int) -> Node:
        figures, spread = _mean([rows[path] for path in paths])
        below = [] if depth is not None and level >= depth else list(lines(paths, level + 1))
        name = _last(paths[0]) if len(paths) == 1 else f"({_last(paths[0])}-{_last(paths[-1])})"
        times = "" if len(paths) == 1 else f"{len(paths)} x "
        label = f"{name}: {times}{figures['class']}" if paths[0] else str(figures["class"]) or "(root)"
        if paths[0] in numbered:
            label = f"{times}{figures['class']} ({_numbers(paths)})" if times else name
        elif figures["class"].replace(".", "_") == name:  # a label
            label = str(figures["class"])
        return Node(label, figures, spread, below, paths)

    def lines(parents: list[str], level: int) -> Iterator[Node]:
        """Lines below parents that agree: their children of one name are one line, and neighbours may be too."""
        first = children[parents[0]]
        index = 0
        while index < len(first):
            end = index + 1
            if len(parents) == 1 and (_last(first[index]).isdigit() or first[index] in numbered):
                while end < len(first) and signatures[first[end]] == signatures[first[index]]:
                    end += 1
            if len(parents) == 1:
                yield line(first[index:end], level)
            else:
                yield same_child(parents, index, level)
            index = end

    def same_child(parents: list[str], index: int, level: int) -> Node:
        paths = [children[parent][index] for parent in parents]
        node = line(paths, level)
        node.label = place(paths[0]) if paths[0] in numbered else f"{_last(paths[0])}: {node.figures['class']}"
        return node

    return line([""], 0)


def _mean(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, float]]:
    """The rows' common figures with mean times and the rates that follow from them, and the spread of the times."""
    figures = dict(rows[0])
    if len(rows) == 1:
        return figures, {}
    spread = {}
    for column in figures:
        if _is_timed(column):
            given = [row[column] for row in rows]
            if given.count(None) == len(given):
                continue
            values = pd.Series(given, dtype="Float64")
            mean = values.mean(skipna=not column.startswith("time_"))
            figures[column] = None if mean is pd.NA else mean
            if column.startswith("time_") and values.mean() > 0:
                spread[column] = float(values.std(ddof=0) / values.mean())
    for phase in ("forward", "backward"):  # a rate of means, not a mean of rates
        time, flops = _number(figures[f"time_{phase}_s"]), _number(figures[f"flops_{phase}"])
        figures[f"flops_per_s_{phase}"] = flops / time if time and flops and has_rate(rows[0]) else None
    for rate, times in (*_RATES.values(), *_RATES_OF_PARTS.values()):
        if rate in figures:
            figures[rate] = _share_of_means(rows, rate, times)
    return figures, spread


def _share_of_means(rows: list[dict[str, Any]], rate: str, times: tuple[str, ...]) -> float | None:
    """What a rate is over the mean times; None where one is not known."""
    weights = [sum(_number(row[c]) or 0.0 for c in times) for row in rows]
    shares = [_number(row[rate]) for row in rows]
    known = [(share, weight) for share, weight in zip(shares, weights, strict=True) if share is not None]
    return sum(s * w for s, w in known) / sum(w for _, w in known) if len(known) == len(rows) else None


def has_rate(figures: dict[str, Any]) -> bool:
    """Whether a row of the module table has FLOP/s: one that has FLOPs and time may still have them withheld."""
    return any(_number(figures[f"flops_per_s_{phase}"]) for phase in ("forward", "backward"))


def _is_numbered(name: str, stem: str) -> bool:
    """Whether a name is that and a number."""
    return name.startswith(stem) and name.removeprefix(stem).isdecimal()


def _must_agree(column: str) -> bool:
    """Whether layers that differ here are not the same. Times may, and the estimates that a line does not show."""
    return column != "module" and not _is_timed(column) and not column.startswith("vector_flops")


def _is_timed(column: str) -> bool:
    return column.startswith(("time_", "flops_per_s", "bytes_per_s", "kernel_"))


def _numbers(paths: list[str]) -> str:
    """Those of recorded modules, each after its class."""
    numbers = [int(path.rpartition("_")[2]) for path in paths]
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def walk(node: Node, prefix: str = "", below: str = "") -> Iterator[tuple[str, Node]]:
    """Every line from a node down, with the branches that lead to it."""
    yield prefix, node
    for index, child in enumerate(node.children):
        last = index == len(node.children) - 1
        yield from walk(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)


def _lost(figures: dict[str, Any], rate: str, times: tuple[str, ...]) -> float | None:
    """Kernel time that went beyond the ideal one: what colour is measured by, against that of the root."""
    share = _number(figures[rate])
    return None if share is None else (1 - share) * sum(_number(figures[c]) or 0.0 for c in times)


def _cells(node: Node, sums: dict[str, Any], lost: dict[str, tuple[float, _Rate]]) -> dict[str, Text]:
    figures = node.figures
    number = {column: _number(value) for column, value in figures.items() if column not in ("module", "class")}
    flops = _plus(number["flops_forward"], number["flops_backward"])
    time = _plus(*(number[c] for c in _TIMES))
    backward = _plus(number["time_backward_s"], number["time_recompute_s"])
    parts = {
        name: Text(_time(number[column], node.spread.get(column)))
        for name in PARTS
        if (column := f"time_{name}_s") in number
    }
    return {
        "params": Text(_count(number["params"])),
        "of params": Text(_share(number["params"], sums["params"])),
        "MACs": Text(_count(number["macs"])),
        "FLOPs": Text(_count(number["flops_forward"])),
        "of FLOPs": Text(_share(number["flops_forward"], sums["flops_forward"])),
        "executed": Text(_factor(number)),
        "forward": Text(_time(number["time_forward_s"], node.spread.get("time_forward_s"))),
        "backward": Text(_time(backward, node.spread.get("time_backward_s"))),
        "FLOP/s": Text(units.si(flops / time if flops and time and has_rate(figures) else None, digits=3)),
        "bytes": Text(units.size(number.get("bytes_decode"))),
        **parts,
        **{name: _coloured(figures, whole_s, *rate) for name, (whole_s, rate) in lost.items()},
    }


def _coloured(figures: dict[str, Any], whole_s: float, rate: str, times: tuple[str, ...]) -> Text:
    """A share in percent, in the colour of its part in the time that is lost in the whole model."""
    own_s = _lost(figures, rate, times)
    part = own_s / whole_s if own_s is not None and whole_s > 0 else 0.0
    style = "bold red" if part >= 0.1 else "yellow" if part >= 0.02 else "green"
    return Text(_percent(_number(figures[rate])), style=style if own_s is not None else "")


def _factor(number: dict[str, float | None]) -> str:
    parts = [number[f"flops_executed_{phase}"] for phase in ("forward", "recompute", "backward")]
    counted = number["flops_hardware"]
    return f"x {sum(parts) / counted:.3f}" if counted and None not in parts else units.MISSING  # type: ignore[arg-type]


def _plus(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _count(value: float | None) -> str:
    return units.si(value, digits=3)


def _share(value: float | None, total: float | None) -> str:
    return _percent(value / total if value is not None and total else None)


def _percent(share: float | None) -> str:
    return units.percent(share).removesuffix(" %")


def _time(seconds: float | None, spread: float | None) -> str:
    if not seconds:
        return units.MISSING
    text = units.duration(seconds, digits=3)
    return f"{text} ±{min(round(spread * 100), 999)}%" if spread is not None else text
