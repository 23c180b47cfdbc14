"""Kernels of compiled code: whose they are, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuprof import units
from gpuprof.analysis.consistency import owned_kernels
from gpuprof.analysis.counted import priced
from gpuprof.analysis.each import each_row
from gpuprof.analysis.generation import is_generation
from gpuprof.analysis.operators import GENERATED
from gpuprof.analysis.shares import owners
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import UNATTRIBUTED, integers

COLUMNS = ["owners", "graph", "flops", "vector_flops", "bytes", "flops_per_s", "bytes_per_s"]
"""Columns of `of_compiled`."""


def graphs(run: Record) -> list[int | None]:
    """The graph of each row of ``kernels`` that a compiler wrote: those of other graphs have the same names."""

    def graph(op: str, compiled: str) -> int | None:
        return int(compiled.partition("/")[0]) if compiled and op.startswith(GENERATED) else None

    return each_row(run.kernels[["op", "compiled"]], graph).tolist()


def of_compiled(run: Record, names: Sequence[tuple[str, int | None]], convention: str | None = None) -> pd.DataFrame:
    """What a kernel of compiled code does, and whose it is.

    Args:
        run: one with compiled graphs.
        names: kernels, by their name and of those that a compiler wrote the graph.
        convention: how FLOPs are counted; the run's own by default.

    Returns:
        Columns `COLUMNS`, a row for each of the names. ``owners`` are its modules, each with its share of the time, the
        largest first, or ``(fused: a, b)`` of those that cannot be told apart. ``flops`` and ``vector_flops`` are those
        of its operators, ``bytes`` what these read that the kernel did not make and leave behind, each owner's; rates
        are over its time. Of a call of several kernels they are the longest one's. They are missing of a kernel that
        also runs outside compiled code.
    """
    whose: dict[tuple[str, int | None], dict[str, int]] = {}
    took: dict[tuple[str, int | None], int] = {}
    longest: dict[str, tuple[int, tuple[str, int | None]]] = {}
    of_owners, of_parts = owners(run), owned_kernels(run)
    keys = list(zip(run.kernels["kernel"], graphs(run), strict=True))
    first = of_parts.index[of_parts["part"] == 0]
    for key, compiled, duration in zip(keys, run.kernels["compiled"], run.kernels["duration_ns"], strict=True):
        took[key] = took.get(key, 0) + int(duration)
        if compiled:
            longest[compiled] = max(longest.get(compiled, (-1, key)), (int(duration), key), key=lambda one: one[0])
    kernel_of = pd.Series(keys, index=first, dtype="object").reindex(of_parts.index).ffill()
    columns = [of_parts[name] for name in ("module", "phase", "compiled", "parts", "duration_ns")]
    for key, module, phase, compiled, parts, duration in zip(kernel_of, *columns, strict=True):
        name = _named(module, phase)
        if len(several := of_owners.get(compiled, {})) > 1 and parts == 1 and None in several.values():
            name = f"(fused: {', '.join(dict.fromkeys(_named(*owner) for owner in several))})"
        shares = whose.setdefault(key, {})
        shares[name] = shares.get(name, 0) + int(duration)
    does = _does(run, {compiled: key for compiled, (_, key) in longest.items()}, convention)
    for key, compiled in zip(keys, run.kernels["compiled"], strict=True):
        if not compiled or longest[compiled][1] != key:  # not all of its time is that of what is known
            does.pop(key, None)
    rows = []
    for key in names:
        row: dict[str, Any] = {"owners": _told(whose[key]), "graph": key[1], **does.get(key, {})}
        for rate, amount in (("flops_per_s", row.get("flops")), ("bytes_per_s", row.get("bytes"))):
            row[rate] = amount / (took[key] * 1e-9) if amount and took[key] else None
        rows.append(row)
    return pd.DataFrame({name: _typed(name, [row.get(name) for row in rows]) for name in COLUMNS})


def lines(run: Record) -> list[str]:
    """What is to be known of the kernels of a compiled step and of whose they are, a sentence each; else none.

    Of a recording `gpuprof.analysis.untold.untold` says it.
    """
    facts = run.passes["trace"].facts if run.done("trace") and not run.recorded else {}
    said = []
    if facts.get("without_cuda_graphs") and not (run.compilations["cuda_graph"] == "recorded").any():
        said.append("The step runs in CUDA graphs; the traced one ran the same kernels without them.")
    whole = int(run.kernels["duration_ns"].sum()) if facts.get("compiled") else 0
    if not whole:
        return said
    kernels, unknown = owned_kernels(run), {one for one, of in owners(run).items() if None in of.values()}
    compiled, fused = kernels["compiled"] != "", kernels["compiled"].isin(unknown)
    nobodys, several = ~fused & (kernels["module"] == UNATTRIBUTED), kernels["parts"] > 1
    shares = {
        "{} of it has one module": compiled & ~(several | fused | nobodys),
        "{} is split over the modules fused in a kernel, by the bytes that each moves": several & ~nobodys,
        "{} is of fused modules and cannot be split": fused,
        "{} is of no module": compiled & nobodys,
    }
    times = {text: int(kernels.loc[rows, "duration_ns"].sum()) / whole for text, rows in shares.items()}
    if told := [text.format(units.percent(share)) for text, share in times.items() if share]:
        said.append(f"Compiled code has {units.percent(sum(times.values()))} of the kernel time: {', '.join(told)}.")
    if again := int(kernels.loc[compiled & (kernels["phase"] == "recompute"), "duration_ns"].sum()):
        said.append(f"What it computes again in the backward takes {units.percent(again / whole)} of the kernel time.")
    lacking = run.graphs[run.graphs["unmapped"] != ""]
    said += [
        f"Not all kernels of graph {number}, {frame}, could be given to operators: {why}."
        for number, frame, why in lacking[["graph", "frame", "unmapped"]].itertuples(index=False, name=None)
    ]
    if several := _of_several_sizes(run):
        grows = is_generation(run) and run.workload.get("cache") == "dynamic"
        said.append(
            f"What {units.number(len(several), 'graph')} did is not known, called with other sizes than compiled for"
            f"{': a cache that grows, where --cache static keeps its size' if grows else ''}."
        )
    hidden = [path or "(root)" for path in facts.get("hidden", ())]
    if hidden:
        said.append(f"Modules inside {', '.join(hidden)} cannot be told apart and have no times.")
    elif run.nodes.empty:
        said.append("Compiled code was not looked into: modules that it hides have no times.")
    return said


def _of_several_sizes(run: Record) -> list[int]:
    """Graphs of whose kernels nothing is known, FLOPs or bytes: as where a step calls them with several sizes."""
    nodes = run.nodes[(run.nodes["kernel"] != "") & ~run.nodes["kind"].isin(["", "view"])]  # known never, and always
    unknown = nodes[["flops_hardware", "bytes"]].isna().all(axis=1).groupby(nodes["graph"]).all()
    return [int(graph) for graph, lacks in unknown.items() if lacks]


def _does(
    run: Record, kernel_of: dict[str, tuple[str, int | None]], convention: str | None
) -> dict[tuple[str, int | None], dict[str, int | None]]:
    """FLOPs and bytes of all calls of each kernel; None where those of one of its operators are not known."""
    nodes = run.nodes[run.nodes["kernel"] != ""].reset_index(drop=True)
    work = priced(run, nodes.assign(group="")[list(run.ops)], convention)
    found: dict[tuple[str, int | None], dict[str, int | None]] = {}
    moved = [
        None if pd.isna(one) else int(one) * int(calls)
        for one, calls in zip(nodes["moved"], nodes["calls"], strict=True)
    ]
    columns = nodes["graph"], nodes["kernel"], work["flops"], work["vector_flops"], moved
    for graph, kernel, *figures in zip(*columns, strict=True):
        key = kernel_of.get(f"{graph}/{kernel}")
        if key is None:
            continue
        sums = found.setdefault(key, {"flops": 0, "vector_flops": 0, "bytes": 0})
        for name, figure in zip(list(sums), figures, strict=True):
            before = sums[name]
            sums[name] = None if before is None or figure is None or pd.isna(figure) else before + int(figure)
    return found


def _named(module: str, phase: str) -> str:
    return f"{module or '(root)'}{' (recompute)' if phase == 'recompute' else ''}"


def _told(shares: dict[str, int]) -> str:
    """Each owner with its share; alone without one."""
    whole = sum(shares.values())
    if len(shares) == 1 or not whole:
        return ", ".join(shares)
    largest = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {units.percent(took / whole)}" for name, took in largest)


def _typed(name: str, values: list[Any]) -> Any:
    if name == "owners":
        return pd.array(values, dtype="object")
    return pd.array(values, dtype="Float64") if name.endswith("_per_s") else integers(values)
