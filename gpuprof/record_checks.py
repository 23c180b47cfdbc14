"""What a saved run must hold before anything is concluded from it; what it lacks is a ValueError that names it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import Any

from gpuprof.coded import Column, decoded, distinct
from gpuprof.dates import in_utc
from gpuprof.schema import (
    ALL,
    COUNTS,
    DEFAULTS,
    DOUBTS,
    FLOATS,
    FORWARD,
    INTEGERS,
    NOBODYS,
    PHASES,
    RANK_QUANTITIES,
    TABLES,
    TRAFFIC,
)

_LARGEST = 2**1000  # of a count: rates and shares of it are floats, which end at 2**1024


def check_facts(data: dict[str, Any]) -> None:
    """That the parts are there and what a verdict divides by, sorts by or names is usable."""
    for part in ("workload", "device", "environment", "settings", "doubts"):
        if not isinstance(data[part], dict):
            raise ValueError(f"{part} is no object")
    names = (data["workload"]["name"], data["workload"]["mode"], data["device"]["type"])
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError("no name, mode or device")
    _check_job(data)
    if data["doubts"] and set(data["doubts"]) != set(DOUBTS):
        raise ValueError("doubts of what nobody knows")
    lists = {"warnings": data["warnings"], **{f"doubts.{name}": found for name, found in data["doubts"].items()}}
    for name, texts in lists.items():
        if not (isinstance(texts, list) and all(isinstance(one, str) for one in texts)):
            raise ValueError(f"{name} is no list of texts")
    if data["environment"].get("date") not in (None, ""):
        in_utc(data["environment"]["date"])
    given = {name: data["passes"].get(name, {}).get("facts", {}) for name in ("count", "time")}
    if not _is_texts(data["workload"].get("compiled", {})):
        raise ValueError("workload.compiled does not say how")
    hidden = data["passes"].get("trace", {}).get("facts", {}).get("hidden", [])
    if not isinstance(hidden, list) or not all(isinstance(one, str) for one in hidden):
        raise ValueError("the trace hides what is no module")
    cache = given["count"].get("cache", {"bytes": []})
    if not all(type(held) is int for held in cache["bytes"]):
        raise ValueError("a cache without its bytes")
    words, numbers = (
        [given["count"].get(name, "") for name in ("inputs", "inputs_before")],
        given["time"].get("inputs", {}),
    )
    if not all(isinstance(one, str) for one in words) or not all(type(steps) is int for steps in numbers.values()):
        raise ValueError("the inputs of a step are none")
    if not all(isinstance(text, str) for text in given["count"].get("traffic_unknown", ())):
        raise ValueError("what is not known of traffic is no list of texts")
    devices = [data["device"], *(one["device"] for one in data["device"].get("ranks", ()))]
    for peaks in [known for device in devices for known in device.get("peaks", {}).values()]:
        if not all(_is_number(peak) and peak > 0 for peak in peaks.values()):
            raise ValueError("device.peaks holds what is no peak")


def _is_texts(of: Any) -> bool:
    """Whether it is an object of texts."""
    return isinstance(of, dict) and all(isinstance(one, str) for one in of.values())


def _check_job(data: dict[str, Any]) -> None:
    """That a rank's place in its job is one, and that a job knows all its ranks."""
    workload = data["workload"]
    world, mesh, groups = workload.get("world", 1), workload.get("mesh", {}), workload.get("groups", {})
    if type(world) is not int or world < 1:
        raise ValueError("a world that is no number of processes")
    of_job = world > 1 and "rank" not in workload
    if "rank" in workload and (type(workload["rank"]) is not int or not 0 <= workload["rank"] < world):
        raise ValueError(f"rank {workload['rank']} of {world}")
    if not isinstance(mesh, dict) or not all(type(size) is int and size > 0 for size in mesh.values()):
        raise ValueError("a mesh without sizes")
    for members in [one for lists in groups.values() for one in (lists if of_job else [lists])]:
        if not isinstance(members, list) or not all(type(rank) is int and 0 <= rank < world for rank in members):
            raise ValueError("a process group that is no list of ranks")
    if not all(isinstance(how, str) for how in workload.get("parallel", ())):
        raise ValueError("workload.parallel is no list of texts")
    if of_job:
        _check_ranks(data, world)


def _check_ranks(data: dict[str, Any], world: int) -> None:
    """What a job says of each of its ranks."""
    if not data["doubts"]:
        raise ValueError("a job that does not say what its ranks doubt")
    ranks = data["device"].get("ranks")
    if not isinstance(ranks, list) or [one["rank"] for one in ranks] != list(range(world)):
        raise ValueError(f"not the {world} ranks that the job has")
    for one in ranks:
        if not all(isinstance(one[part], dict) for part in ("device", "environment", "passes")):
            raise ValueError(f"rank {one['rank']} says nothing of itself")
        if not isinstance(one["file"], str):
            raise ValueError(f"the file of rank {one['rank']} has no name")
    memory = data["passes"].get("memory", {})
    if memory.get("status") == "done" and memory.get("facts", {}).get("rank") not in range(world):
        raise ValueError("memory of no rank")
    if unsharded := data["workload"].get("unsharded"):
        counts = [unsharded["flops"], *unsharded["repeated"].values(), *unsharded["missing"].values()]
        if not all(_is_number(count, _LARGEST) for count in counts) or unsharded["replicas"] not in range(1, world + 1):
            raise ValueError("workload.unsharded is no count of FLOPs")


def _is_number(value: Any, most: int = 2**63) -> bool:
    return type(value) in (int, float) and abs(value) < most  # no NaN either


def checked_columns(name: str, columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of a `table` that a file holds, `decoded`, if each is of its type and as long as the others."""
    known = decoded(columns, [column for column in TABLES[name] if column in columns or column not in DEFAULTS])
    if len(set(map(len, known.values()))) > 1:
        raise ValueError(f"{name} has columns of different length")
    for column, rows in known.items():
        types = {int} if column in INTEGERS else {int, float} if column in FLOATS else {str}
        values = rows.values if isinstance(rows, Column) else rows
        found: set[type] = {int}  # the sums of steps
        if rows is not values or rows is columns[column]:
            found = set(map(type, values)) if isinstance(values, list) else {object}
        if not found <= types | {type(None)}:
            raise ValueError(f"{name}.{column} is no list of {'texts' if types == {str} else 'figures'}")
        if types == {str}:
            continue
        most = _LARGEST if column in COUNTS else 2**63
        figures = values if found <= types else [value for value in values if value is not None]
        if not _below_in_size(figures, most):
            raise ValueError(f"{name}.{column} is out of range")
    return known


def _below_in_size(figures: list[Any], most: int) -> bool:
    """Whether all of them are, and none is NaN: it may be neither the least nor the largest, but shows in a sum."""
    return not figures or (-most < min(figures) and max(figures) < most and not isnan(sum(figures)))


Columns = Mapping[str, Sequence[Any]]
"""A raw table as `gpuprof.record.Record.columns` has it."""


def check_tables(tables: Mapping[str, Columns]) -> None:
    """What holds between rows and tables, and is divided by.

    Raises:
        ValueError: something does not, and what.
    """
    modules = {*tables["tree"]["module"], *NOBODYS}
    booked = ("ops", "kernels", "nodes", "counters", "busy", "traffic")
    if not {module for name in booked for module in distinct(tables[name]["module"])} - {ALL} <= modules:
        raise ValueError("rows of modules that it has not")
    _check_samples(tables["samples"])
    _check_of_ranks(tables)
    _check_compiled(tables)
    _check_generation(tables)


def _check_samples(samples: Columns) -> None:
    timed = {launch for launch, phase in _rows(samples, "launch", "phase") if phase == "step"}
    if not {*samples["launch"]} <= timed:
        raise ValueError("samples has a launch without a step")
    of_steps = (time_s for phase, time_s in _rows(samples, "phase", "time_s") if phase in ("step", "reference"))
    if not all(time_s is not None and time_s > 0 for time_s in of_steps):
        raise ValueError("samples has a step of no time")


def _check_of_ranks(tables: Mapping[str, Columns]) -> None:
    """What a job has of its ranks."""
    ranks, busy, collectives = tables["ranks"], tables["busy"], tables["collectives"]
    rows = [*_rows(ranks, "rank", "step", "quantity", "dtype", "amount")]
    if _lacks(ranks, "rank", "quantity", "amount") or any(row[2] == "step_ns" and row[4] <= 0 for row in rows):
        raise ValueError("ranks has a figure or a time of a step missing")
    told: dict[tuple[int, int], set[str]] = {}
    for rank, step, quantity, dtype, _ in rows:
        if step is not None:
            told.setdefault((rank, step), set()).update({quantity} if dtype == "" else ())
    if any(set(RANK_QUANTITIES) - quantities for quantities in told.values()):
        raise ValueError("ranks has a step without one of its times")
    if _lacks(collectives, *(name for name in collectives if name != "bytes")) or _below(
        0, collectives, "number", "start_ns", "duration_ns", "exposed_ns"
    ):
        raise ValueError("collectives has a place or a time missing")
    times = ("kernels", "total_ns", "least_ns", "most_ns")
    if _lacks(busy, *busy) or _below(1, busy, "ranks") or _below(0, busy, *times):
        raise ValueError("busy has a time missing")


def _check_generation(tables: Mapping[str, Columns]) -> None:
    """What times are divided by and bytes are added up by, in the tables of a generation."""
    parts, traffic, phases = tables["generation"], tables["traffic"], {*FORWARD} - {"forward"}
    key = ("launch", "step", "part")
    if _lacks(parts, *key, "time_s") or _below(0, parts, *key, "time_s") or not {*parts["phase"]} <= phases:
        raise ValueError("generation has a part without its phase or time")
    if len(set(_rows(parts, *key))) < len(parts["part"]):
        raise ValueError("generation has a part twice")
    if _below(1, parts, "samples", "positions"):
        raise ValueError("generation has a part of no sequences or positions")
    if _lacks(traffic, "bytes") or _below(0, traffic, "bytes") or not {*traffic["phase"]} <= phases:
        raise ValueError("traffic has a row without its phase or bytes")
    if not all((part is None) == (module != ALL) for part, module in _rows(traffic, "part", "module")):
        raise ValueError("traffic of the whole model without its part, or of a module with one")
    if not {*traffic["what"]} <= {*TRAFFIC}:
        raise ValueError("traffic of what nobody knows")


def _check_compiled(tables: Mapping[str, Columns]) -> None:
    """What times are split by and FLOPs are added up by, in the tables of what torch.compile made."""
    graphs, nodes = tables["graphs"], tables["nodes"]
    numbers, counts = set(graphs["graph"]), ("graph", "nodes", "kernels", "calls")
    if _lacks(graphs, *counts) or _below(0, graphs, *counts) or len(numbers) < len(graphs["graph"]):
        raise ValueError("graphs has no such figures, or a graph twice")
    if not {*nodes["graph"]} <= numbers:
        raise ValueError("nodes of graphs that it has not")
    if _lacks(nodes, "calls", "repeat") or not {*nodes["phase"]} <= {*PHASES}:
        raise ValueError("nodes has a phase or its calls missing")
    figures = [column for column in nodes if column in INTEGERS]
    if _below(0, nodes, *figures) or _below(1, nodes, "calls") or not {*nodes["repeat"]} <= {0, 1}:
        raise ValueError("nodes has a figure out of range")
    calls = [_call(key) for key in distinct(tables["kernels"]["compiled"]) - {""}]
    if not all(call and int(call[1]) in numbers for call in calls):
        raise ValueError("kernels of graphs that it has not")
    if _below(0, tables["compilations"], "total_s", "dynamo_s", "inductor_s"):
        raise ValueError("compilations has a time out of range")
    if _lacks(tables["breaks"], *tables["breaks"]) or _below(1, tables["breaks"], "breaks"):
        raise ValueError("breaks has no number")


def _rows(table: Columns, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name] for name in names), strict=True)


def _lacks(table: Columns, *names: str) -> bool:
    """Whether a figure is missing in one of these columns."""
    return any(value is None for name in names for value in table[name])


def _below(least: int, table: Columns, *names: str) -> bool:
    """Whether a figure in one of these columns is below what it can be."""
    return any(value is not None and value < least for name in names for value in table[name])


def _call(key: str) -> re.Match[str] | None:
    return re.fullmatch(r"(\d{1,18})/.*:\d+", key)
