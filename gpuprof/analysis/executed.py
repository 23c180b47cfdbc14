"""FLOPs that the hardware executed against those counted, launch by launch, and why the two differ.

Every launch in ``counters`` belongs to a row of ``ops``. What it executed is held against what a kernel of its name
must execute for these shapes (`gpuprof.theory.tiling`); a cause is accepted only where its prediction meets the
executed figure within `TOLERANCE`, else the row is `UNEXPLAINED`. Nothing is fitted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple

from gpuprof.analysis.directions import directions
from gpuprof.errors import GpuprofError
from gpuprof.hardware.counters import SCALAR_COLUMNS, TENSOR_COLUMNS, columns_of, names_of
from gpuprof.late import pd
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.schema import PHASES, UNATTRIBUTED, integers
from gpuprof.theory.kernel_names import multiplies
from gpuprof.theory.rows import read_shapes
from gpuprof.theory.rules import PRODUCTS
from gpuprof.theory.tiling import EXACT, SCALAR, Call, expectations
from gpuprof.units import significant

TOLERANCE = 0.01
"""Share by which a prediction may miss the executed FLOPs and still explain them."""

UNEXPLAINED = "unexplained"
NO_FORM = "no closed form"
NO_RULE = "not counted"
NOT_COLLECTED = "not collected"
NO_LAUNCH = "no launch seen"
LAUNCHES = "more or fewer launches than calls"

ALONE = "Times and FLOP/s are of kernels that ran one by one under the counters: no rates of a step, and no MFU."
"""What the times under the counters are."""

KEY = ["module", "phase", "op", "shapes", "dtype"]
"""Columns by which launches join the row of ``ops`` that launched them."""

EXECUTED_COLUMNS = [
    *KEY, "kind", "kernels", "cause", "calls", "launches", "flops_causal", "flops_full", "flops_hardware",
    "flops_tensor", "flops_scalar", "flops_executed", "flops_expected", "dram_bytes", "bytes", "factor", "residual",
]  # fmt: skip
"""Columns of `executed`: the machine-readable contract."""

MODULE_COLUMNS = [
    "module", "class", "phase", "causes", "launches", "flops_hardware", "flops_executed", "dram_bytes", "bytes",
    "factor", "residual",
]  # fmt: skip
"""Columns of `executed_by_module`, likewise; without ``module`` for classes."""

KERNEL_COLUMNS = [
    "kernel", "launches", "time_s", "time_share", "flops_executed", "flops_per_s", "dram_bytes", "intensity",
    "flops_tensor", "flops_scalar",
]  # fmt: skip
"""Columns of `executed_by_kernel`, likewise."""

_RATIOS = ("factor", "residual")
_WORDS = (*KEY, "class", "kind", "kernels", "cause", "causes")


class _Row(NamedTuple):
    """A row of `executed`, and FLOPs by cause: added to those counted they give the expected."""

    values: dict[str, Any]
    parts: Counter[str]


def executed(run: Record) -> pd.DataFrame:
    """One row per operator, shapes, dtype, module and phase that launched kernels under the counters.

    Returns:
        Columns `EXECUTED_COLUMNS`, summed over calls and launches. ``kernels`` are the distinct names, by lines.
        ``flops_executed`` are matmul FLOPs: those of tensor cores, or the scalar ones of a product whose launches did
        no tensor work. ``factor`` is that over ``flops_hardware``; ``flops_expected`` is what the cause predicts, or
        the nearest prediction where it is unexplained, and ``residual`` how far the executed are off it, as a share of
        it. ``dram_bytes`` were moved, ``bytes`` are the least. What is not known is missing, never 0.
    """
    return _table([row.values for row in _explained(run) if row.values["launches"]], EXECUTED_COLUMNS)


def not_collected(run: Record) -> pd.DataFrame:
    """Kernels that multiplied matrices on tensor cores in a dtype whose FLOPs were not collected.

    Returns:
        Columns module, phase, op, dtype, kernel, launches and tensor_instructions.
    """
    by = ["module", "phase", "op", "dtype", "kernel"]
    grouped = _launches(run).query("unseen").groupby(by, sort=False)["tensor_instructions"]
    return grouped.agg(launches="size", tensor_instructions="sum").reset_index()


def executed_by_module(run: Record, by: Literal["module", "class"] = "module") -> pd.DataFrame:
    """Executed FLOPs per phase of every module, its children included, or class.

    Args:
        run: the run.
        by: what a row is: a module, or a class, a module inside another of the same class counted once.

    Returns:
        Columns `MODULE_COLUMNS`; what belongs to no module is in ``(unattributed)``. ``causes`` are what makes the
        executed FLOPs differ from those counted, each with its share of the counted; ``residual`` is what they leave
        unexplained, as a share of what they predict. What is not known is missing, never 0.

    Raises:
        GpuprofError: ``by`` is something else.
    """
    if by not in ("module", "class"):
        raise GpuprofError(f"cannot sum executed FLOPs by {by!r}: known are module, class")
    classes = dict(zip(run.tree["module"], run.tree["class"], strict=True)) | {UNATTRIBUTED: ""}
    sums: dict[tuple[str, str], list[_Row]] = {}
    for row in _explained(run):
        above = ancestors(row.values["module"])
        names = above if by == "module" else dict.fromkeys(classes[path] for path in above)
        for name in names:
            sums.setdefault((name, row.values["phase"]), []).append(row)
    rows = []
    for name in classes if by == "module" else dict.fromkeys(classes.values()):
        for phase in PHASES:
            if (name, phase) in sums:
                named = {"module": name, "class": classes[name]} if by == "module" else {"class": name}
                rows.append({**named, "phase": phase, **_summed(sums[name, phase])})
    return _table(rows, MODULE_COLUMNS if by == "module" else MODULE_COLUMNS[1:])


def executed_whole(run: Record) -> dict[str, Any]:
    """The whole step: launches, flops_hardware, flops_executed, dram_bytes, bytes, factor, residual and causes.

    As in `executed_by_module`; None where a figure is not known.
    """
    return _summed(_explained(run))


def counters_only(run: Record) -> bool:
    """Whether a run is a table of Nsight Compute: kernels and what they executed, without operators and modules."""
    return not run.has("tree") and run.done("counters")


def executed_by_kernel(run: Record) -> pd.DataFrame:
    """One row per kernel name: what its launches executed and moved, most time first.

    Returns:
        Columns `KERNEL_COLUMNS`, sums over the launches. ``flops_tensor`` and ``flops_scalar`` are of the dtypes that
        were collected, on tensor cores and outside them, ``flops_executed`` both; ``intensity`` is FLOPs per byte of
        device memory. Times are of kernels that ran one by one under the counters: ``flops_per_s`` is the rate of a
        kernel alone, at whatever clock that was, and no MFU is made of it. What is not known of each launch is missing.
    """
    launches = _launches(run)
    collected = [launches[name] for name in ("tensor", "scalar") if launches[name].notna().any()]
    launches["executed"] = reduce(add, collected) if collected else pd.NA
    launches["dram"] = launches["dram_read_bytes"] + launches["dram_written_bytes"]
    sums = {"flops_executed": "executed", "flops_tensor": "tensor", "flops_scalar": "scalar", "dram_bytes": "dram"}
    rows = []
    for kernel, group in launches.groupby("kernel", sort=False):
        row: dict[str, Any] = {"kernel": kernel, "launches": len(group)}
        row |= {name: _whole(group[column]) for name, column in sums.items()}
        nanoseconds = _whole(group["duration_ns"])
        row["time_s"] = None if nanoseconds is None else nanoseconds * 1e-9
        row["flops_per_s"] = _share(row["flops_executed"], row["time_s"])
        row["intensity"] = _share(row["flops_executed"], row["dram_bytes"])
        rows.append(row)
    total = sum(row["time_s"] or 0.0 for row in rows)
    for row in rows:
        row["time_share"] = _share(row["time_s"], total)
    table = pd.DataFrame({name: _kernel_column(name, [row[name] for row in rows]) for name in KERNEL_COLUMNS})
    return table.sort_values("time_s", ascending=False, kind="stable", ignore_index=True)


def flops_by_dtype(launches: pd.DataFrame) -> list[tuple[str, bool, int]]:
    """FLOPs that rows of ``counters`` executed: dtype, whether on tensor cores, and their sum, as far as collected."""
    columns = [(True, *item) for item in TENSOR_COLUMNS.items()] + [(False, *item) for item in SCALAR_COLUMNS.items()]
    found = [(dtype, tensor, launches[column].dropna()) for tensor, dtype, column in columns]
    return [(dtype, tensor, sum(map(int, values))) for dtype, tensor, values in found if len(values)]


def _whole(values: pd.Series) -> int | None:
    return None if values.isna().any() else sum(map(int, values))


def _kernel_column(name: str, values: list[Any]) -> Any:
    if name == "kernel":
        return pd.array(values, dtype="object")
    if name in ("launches", "flops_executed", "flops_tensor", "flops_scalar", "dram_bytes"):
        return integers(values)
    return pd.array(values, dtype="Float64")


def executed_flops(run: Record, by: Literal["module", "class"] = "module") -> pd.Series:
    """Executed matmul FLOPs by module (children included) or class and direction; missing where not known in part.

    Args:
        run: the run.
        by: as in `executed_by_module`.
    """
    table = executed_by_module(run, by)
    table["phase"] = directions(table["phase"])
    sums: dict[tuple[str, str], Any] = {}
    for name, phase, flops in table[[by, "phase", "flops_executed"]].itertuples(index=False, name=None):
        sums[name, phase] = sums.get((name, phase), 0) + flops  # missing and anything is missing
    index = pd.MultiIndex.from_tuples(sums, names=[by, "phase"]) if sums else pd.MultiIndex([[], []], [[], []])
    return pd.Series(integers(sums.values()), index=index, name="flops_executed")


def _table(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: _typed(name, [row.get(name) for row in rows]) for name in columns})


def _typed(name: str, values: list[Any]) -> Any:
    if name in _WORDS:
        return pd.Series(["" if value is None else value for value in values], dtype="object")
    return pd.array(values, dtype="Float64") if name in _RATIOS else integers(values)


def _total(values: Iterable[Any]) -> Any:
    """Sum of what is known, missing where nothing is."""
    known = [int(value) for value in values if value is not None and value is not pd.NA]
    return sum(known) if known else None


def _share(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _launches(run: Record) -> pd.DataFrame:
    """The launches, with their FLOPs on tensor cores and outside them, and the bytes they moved.

    ``unseen`` are those that used tensor cores in a dtype that was not collected. No FLOPs are 0 only where the tensor
    pipe's instructions say so, or the FLOPs of the operator's own dtype were collected; else they are missing.
    """
    launches = run.counters.copy()
    for name, columns in (
        ("tensor", TENSOR_COLUMNS.values()),
        ("scalar", SCALAR_COLUMNS.values()),
        ("dram", ("dram_read_bytes", "dram_written_bytes")),
    ):
        launches[name] = pd.Series(pd.NA, index=launches.index, dtype="Int64")
        for column in columns:
            launches[name] = launches[name].add(launches[column], fill_value=0)
    idle, instructions = launches["tensor"].fillna(0) == 0, launches["tensor_instructions"]
    launches["unseen"] = idle & (instructions.fillna(0) > 0)
    known = instructions.notna() | ~launches["dtype"].str.contains("float|^$")
    known |= launches[_tensor_columns(run)].notna().all(axis=1)
    for name, column in TENSOR_COLUMNS.items():
        dtype = "float32" if name == "tf32" else name
        known |= launches["dtype"].str.startswith(dtype) & launches[column].notna()
    launches["tensor"] = launches["tensor"].where(~idle, 0).where(~idle | (known & ~launches["unseen"]))
    return launches


def _tensor_columns(run: Record) -> list[str]:
    """Columns of all the tensor work that the chip has counters for, as far as that is known."""
    capability = ".".join(map(str, run.device.get("compute_capability") or ()))
    columns = columns_of(names_of(capability)) or dict.fromkeys(TENSOR_COLUMNS.values())
    return [column for column in TENSOR_COLUMNS.values() if column in columns]


def _by_key(frame: pd.DataFrame, columns: Iterable[str]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Rows of a table by `KEY`; None where missing."""
    known = {column: [None if value is pd.NA else value for value in frame[column]] for column in columns}
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    keys = zip(*(frame[column] for column in KEY), strict=True)
    for key, row in zip(keys, zip(*known.values(), strict=True), strict=True):
        groups.setdefault(key, []).append(dict(zip(known, row, strict=True)))
    return groups


def _explained(run: Record) -> list[_Row]:
    """Every row of ``ops``, and of launches that no row of it has, in their order; none without launches."""
    figures = ("calls", "flops_causal", "flops_full", "flops_hardware", "bytes")
    groups = _by_key(_launches(run), ("kernel", "grid", "tensor", "scalar", "dram", "unseen"))
    ops = _by_key(run.ops, ("kind", *figures)) if groups else {}
    rows = []
    for key in dict.fromkeys([*ops, *groups]):
        same, launches = ops.get(key, []), groups.get(key, [])
        values: dict[str, Any] = dict(zip(KEY, key, strict=True))
        values["kind"] = same[0]["kind"] if same else ""
        values |= {name: _total(op[name] for op in same) for name in figures}
        values["kernels"] = "\n".join(dict.fromkeys(launch["kernel"] for launch in launches))
        values["launches"] = len(launches)
        for name, column in (("flops_tensor", "tensor"), ("flops_scalar", "scalar"), ("dram_bytes", "dram")):
            values[name] = _total(launch[column] for launch in launches)
        parts = _explain(values, launches)
        values["factor"] = _share(values["flops_executed"], values["flops_hardware"])
        ratio = _share(values["flops_executed"], values["flops_expected"])
        values["residual"] = None if ratio is None else ratio - 1
        rows.append(_Row(values, parts))
    return rows


def _explain(values: dict[str, Any], launches: list[dict[str, Any]]) -> Counter[str]:
    """Add to a row its executed FLOPs, those expected and the cause; return the FLOPs by cause."""
    counted, tensor = values["flops_hardware"] or 0, values["flops_tensor"]
    values.update(flops_executed=None, flops_expected=None, cause="")
    if not launches:
        values["cause"] = NO_LAUNCH if counted else ""
        return Counter({NO_LAUNCH: -counted} if counted else {})
    if any(launch["unseen"] for launch in launches) or (counted and tensor is None):
        values["cause"] = NOT_COLLECTED
        return Counter({NOT_COLLECTED: -counted})
    if not counted or values["kind"] not in PRODUCTS:
        values["flops_executed"] = tensor
        values["cause"] = NO_RULE if tensor else ""
        return Counter({NO_RULE: tensor} if tensor else {})
    if tensor:
        working = [(launch, launch["tensor"]) for launch in launches if launch["tensor"]]
    else:
        named = [launch for launch in launches if multiplies(launch["kernel"])] or launches
        working = [(launch, launch["scalar"]) for launch in named]
    values["flops_executed"] = _total(work for _, work in working)
    if values["flops_executed"] is None:
        values["cause"] = f"{SCALAR}, {NOT_COLLECTED}"
        return Counter({NOT_COLLECTED: -counted})
    alike = Counter((launch["kernel"], _grid(launch["grid"]), work or 0) for launch, work in working)
    return _match(values, alike, on_tensor_cores=bool(tensor))


def _match(
    values: dict[str, Any], alike: Counter[tuple[str, tuple[int, int, int], int]], on_tensor_cores: bool
) -> Counter[str]:
    """Find the nearest prediction for every launch that did the work, and from them that of the row.

    Args:
        values: the row.
        alike: launches by kernel, grid, and FLOPs executed.
        on_tensor_cores: where they did them.
    """
    counted, done = values["flops_hardware"], values["flops_executed"]
    inputs, results = read_shapes(values["shapes"])
    each = [values[name] // values["calls"] for name in ("flops_causal", "flops_full", "flops_hardware")]
    call = Call(values["op"], values["kind"], inputs, results, values["dtype"], *each)
    predicted, base, accepted, foreseen = 0, 0, True, True
    parts: Counter[str] = Counter()
    for (kernel, grid, work), count in alike.items():
        every = expectations(call, kernel, grid)
        possible = [e for e in every if e.tensor is on_tensor_cores]
        foreseen &= bool(every)
        if not possible:
            accepted = False
            continue
        nearest = min(possible, key=lambda e: (abs(work - e.flops), len(e.parts)))
        accepted &= abs(work - nearest.flops) <= TOLERANCE * nearest.flops
        predicted += count * nearest.flops
        base += count * nearest.base
        parts.update({cause: count * flops for cause, flops in nearest.parts})
    if accepted:
        parts.update({LAUNCHES: base - counted} if base != counted else {})
        causes = list(parts) or [EXACT]
    elif abs(done - counted) <= TOLERANCE * counted:  # each launch did a part of it
        parts, predicted, causes = Counter(), counted, [EXACT]
    else:
        parts, causes = Counter(), [UNEXPLAINED if foreseen else NO_FORM]
        predicted = min((predicted, counted), key=lambda flops: abs(done - flops))
    values["flops_expected"] = None if NO_FORM in causes else predicted
    values["cause"] = ", ".join(causes if on_tensor_cores else [*causes, SCALAR])
    return parts


def _grid(text: str) -> tuple[int, int, int]:
    sizes = [int(size) for size in re.findall(r"\d+", text)]
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else (1, 1, 1)


def _summed(rows: list[_Row]) -> dict[str, Any]:
    """The columns of `executed_by_module` that follow from the rows of a module or class."""
    names = ("launches", "flops_hardware", "flops_executed", "dram_bytes", "bytes")
    values: dict[str, Any] = {name: _total(row.values.get(name) for row in rows) for name in names}
    counted, done = values["flops_hardware"] or 0, values["flops_executed"]
    parts: Counter[str] = Counter()
    for row in rows:
        parts.update(row.parts)
    ratio = _share(done, counted + sum(parts.values()))
    causes = [
        f"{cause} {_signed(flops / counted)}" if counted else cause
        for cause, flops in sorted(parts.items(), key=lambda part: -abs(part[1]))
        if flops
    ]
    return {
        **values,
        "factor": _share(done, counted),
        "residual": None if ratio is None else ratio - 1,
        "causes": ", ".join(causes),
    }


def _signed(share: float) -> str:
    return f"{'-' if share < 0 else '+'}{significant(100 * abs(share), 2)} %"
