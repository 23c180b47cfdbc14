"""A run in the layout of calflops, so that scripts that read its reports go on working.

The labels, the lines and their numbers, units and rounding are those of calflops; the words between them are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpuprof import units
from gpuprof.analysis.consistency import withheld
from gpuprof.analysis.counted import convention_of, counted
from gpuprof.analysis.directions import directions
from gpuprof.analysis.known_flops import known_of, none_known
from gpuprof.analysis.modules import convention_by_module
from gpuprof.analysis.ranks import refuse_job
from gpuprof.analysis.totals import totals
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render.view import View
from gpuprof.schema import FORWARD, UNATTRIBUTED
from gpuprof.theory import CONVENTIONS

_WIDTH = 99
_LABEL = 72

_PARAMS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))
_COUNTS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "K"))


@dataclass(frozen=True)
class _Totals:
    """Figures of the header; None where nothing was counted.

    Attributes:
        macs, flops: of the forward.
        macs_backward, flops_backward: counted, or assumed in a convention that does.
        homeless: FLOPs of the forward that belong to no module.
    """

    macs: int | None = None
    flops: int | None = None
    macs_backward: int | None = None
    flops_backward: int | None = None
    homeless: int = 0


def render(run: Record, view: View) -> str:
    """Header, explanation and module tree, readable by `gpuprof.read_report`.

    In a calflops convention it says what calflops would, its assumed backward included; in any other the counts of that
    convention and the backward that ran.
    """
    refuse_job(run, "calflops' layout is of the model of one process, and a job counts all its ranks")
    convention = convention_of(run, view.convention)
    sums = _totals(run, convention)
    modules = convention_by_module(run, convention)
    lines = ["", " Calculate Flops Results ".center(_WIDTH, "-"), *_header(run, convention, sums), ""]
    lines += [" Detailed Calculated FLOPs Results ".center(_WIDTH, "-"), *_notes(run, convention, sums), ""]
    lines += [*_tree(run, modules, sums, view.depth), "-" * _WIDTH]
    return "\n".join(lines) + "\n"


def _totals(run: Record, convention: str) -> _Totals:
    if not run.done("count") or none_known(run):
        return _Totals()
    ops = counted(run, convention)
    factor = CONVENTIONS[convention].backward_factor
    if factor is not None:  # such a counter sees the model alone
        forward = ops[ops["phase"].isin(FORWARD) & (ops["module"] != UNATTRIBUTED)]
        macs, flops = int(forward["macs"].sum()), int(forward["flops"].sum())
        return _Totals(macs, flops, factor * macs, factor * flops)
    sums = ops.groupby(directions(ops["phase"]))[["macs", "flops"]].sum().reindex(["forward", "backward"], fill_value=0)
    macs, macs_backward = (int(value) for value in sums["macs"])
    flops, flops_backward = (int(value) for value in sums["flops"])
    homeless = ops.loc[ops["phase"].isin(FORWARD) & (ops["module"] == UNATTRIBUTED), "flops"].sum()
    return _Totals(macs, flops, macs_backward, flops_backward, int(homeless))


def _header(run: Record, convention: str, sums: _Totals) -> Iterator[str]:
    yield "Notations:"
    yield "Params are parameters, MACs multiply-accumulate operations;"
    yield "FLOPs and FLOPS both are numbers of floating-point operations, neither is a rate;"
    yield f"fwd is the forward, bwd the backward; counted by gpuprof in the convention {convention};"
    yield _assumption(run, convention, sums)
    yield ""
    params = run.tree.iloc[0]["trainable_params"] if len(run.tree) else None  # missing in a recording
    yield _total("Total Training Params", _short(params, _PARAMS))
    yield _total("fwd MACs", _long(sums.macs, "MACs"))
    yield _total("fwd FLOPs", _long(sums.flops, "FLOPS"))
    yield _total("fwd+bwd MACs", _long(_plus(sums.macs, sums.macs_backward), "MACs"))
    yield _total("fwd+bwd FLOPs", _long(_plus(sums.flops, sums.flops_backward), "FLOPS"))


def _assumption(run: Record, convention: str, sums: _Totals) -> str:
    takes = "model backpropagation takes {:.2f} times as much computation as forward propagation."
    factor = CONVENTIONS[convention].backward_factor
    if factor is not None:
        return f"default {takes.format(factor)}"
    if sums.flops is None:
        return "nothing was counted in this run."
    if not sums.flops_backward:
        return "no backward ran, and none is assumed: fwd+bwd is the forward alone."
    if not sums.flops:
        return "a backward was counted, and no forward."
    if reason := withheld(run) or known_of(run):
        return f"a backward was counted; times forward: {reason}"
    ratio = sums.flops_backward / sums.flops
    return f"counted backward is {ratio:.2f}x forward: {takes.format(ratio)}"


def _notes(run: Record, convention: str, sums: _Totals) -> Iterator[str]:
    how = CONVENTIONS[convention]
    yield "After its name every module has, of the forward and with its children, in this order:"
    yield "params, percentage of total params, MACs, percentage of total MACs, FLOPS, percentage of total FLOPs"
    yield ""
    yield "Note: 1. What runs in a module outside its children has no line of its own,"
    yield " and is the difference between the module's figures and the sum of theirs."
    words = [f"2. Convention {convention}: {how.title}"]
    if how.parts is not None and run.done("count"):
        step = totals(run, convention)["flops"]
        words.append(f"It makes {units.si(step, 'FLOPs')} of the whole step; these are counted as in {how.modules_in}.")
    if len(run.tree) and how.backward_factor is None:
        root = run.tree.iloc[0]
        if not pd.isna(root["params"]) and root["params"] != root["trainable_params"]:
            words.append("Params of modules are all of theirs; training params are those that are not frozen.")
    if sums.homeless:
        words.append(f"{units.si(sums.homeless, 'FLOPs')} of the forward belong to no module.")
    yield " ".join(words)


def _tree(run: Record, modules: pd.DataFrame, sums: _Totals, depth: int | None) -> list[str]:
    """The model as torch prints it, with figures in front of what each module says of itself."""
    rows = {row["module"]: row for row in modules.to_dict(orient="records") if row["module"] != UNATTRIBUTED}
    extras = dict(zip(run.tree["module"], run.tree["extra"], strict=True))
    children: dict[str, list[str]] = {path: [] for path in rows}
    for path in rows:
        if path:
            children[path.rpartition(".")[0]].append(path)
    whole = rows[""]["params"] if rows else None

    def printed(path: str, level: int) -> list[str]:
        """A module's lines, the first without its name."""
        row = rows[path]
        below = children[path] if depth is None or level < depth else []
        blocks = [(_name(child), printed(child, level + 1)) for child in below]
        listed = row["class"] == "ModuleList"  # torch prints it in a way of its own, where calflops adds nothing
        if listed:
            blocks = _folded(blocks)
            own = ""
        else:
            own = ", ".join(part for part in (_figures(row, whole, sums), _printable(extras.get(path, ""))) if part)
        cls = _class(row["class"])
        if not blocks:
            return [f"{cls}({own})"]
        lines = [f"{cls}(", *([f"  {own}"] if own else [])]
        for name, block in blocks:
            lines += [f"  ({name}): {block[0]}", *(f"  {line}" for line in block[1:])]
        return [*lines, ")"]

    return printed("", 0) if rows else []


def _folded(blocks: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Neighbours with the same text as one, as many times as there are."""
    found: list[tuple[str, list[str]]] = []
    first = 0
    while first < len(blocks):
        end = first + 1
        while end < len(blocks) and blocks[end][1] == blocks[first][1] and _follows(blocks[end - 1][0], blocks[end][0]):
            end += 1
        name, lines = blocks[first]
        if end - first > 1:
            name, lines = f"{name}-{blocks[end - 1][0]}", [f"{end - first} x {lines[0]}", *lines[1:]]
        found.append((name, lines))
        first = end
    return found


def _follows(before: str, after: str) -> bool:
    return before.isdecimal() and after.isdecimal() and int(after) == int(before) + 1


def _figures(row: dict[str, Any], params: int | None, sums: _Totals) -> str:
    parts = (
        (_short(row["params"], _PARAMS), _percent(row["params"], params), "Params"),
        (_short(row["macs"], _COUNTS, "MACs"), _percent(row["macs"], sums.macs), "MACs"),
        (_short(row["flops"], _COUNTS, "FLOPS"), _percent(row["flops"], sums.flops), "FLOPs"),
    )
    return ", ".join(f"{figure} = {share} {of}" for figure, share, of in parts)


def _total(label: str, figure: str) -> str:
    return f"{label + ':':<{_LABEL}}{figure:<8}"


def _short(value: int | None, prefixes: tuple[tuple[int, str], ...], unit: str = "") -> str:
    """Two decimals, zeros cut off."""
    if value is None or pd.isna(value):
        return f"{units.MISSING} {unit}".rstrip()
    number, prefix = _scaled(value, prefixes)
    return f"{_cut(f'{number:.2f}')} {prefix}{unit}".rstrip()


def _long(value: int | None, unit: str) -> str:
    """Six significant digits, zeros cut off."""
    if value is None:
        return f"{units.MISSING} {unit}"
    number, prefix = _scaled(value, _COUNTS)
    return f"{_cut(units.significant(number, 6))} {prefix}{unit}"


def _percent(value: int | None, of: int | None) -> str:
    if value is None or of is None or pd.isna(value) or pd.isna(of):
        return units.MISSING
    return f"{_cut(f'{100 * value / of:.4f}') if of else 0}%"


def _scaled(value: int, prefixes: tuple[tuple[int, str], ...]) -> tuple[float, str]:
    return next(((value / factor, prefix) for factor, prefix in prefixes if value >= factor), (float(value), ""))


def _cut(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def _plus(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


def _name(path: str) -> str:
    """Last part of a path; brackets mark where a name ends, so its own become others."""
    return _printable(path.rpartition(".")[2]).translate(str.maketrans("()", "[]"))


def _class(name: str) -> str:
    return re.sub(r"[\s()]", "_", _printable(name)) or "_"


def _printable(text: str) -> str:
    """One line, without what moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "_" for letter in " ".join(text.split()))
