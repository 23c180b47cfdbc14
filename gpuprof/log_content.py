"""A meter's log as the content of a run file: one run of the steps whose time counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from gpuprof.dates import in_utc
from gpuprof.errors import GpuprofError
from gpuprof.log import KEY, ROOT, SUMS, begins, columns_of, lines


class _Part(NamedTuple):
    """What one process of a training wrote."""

    header: dict[str, Any]
    counted: dict[int, list[dict[str, Any]]]
    steps: list[list[Any]]
    clocks: list[tuple[str, float]]


def content(raw: bytes, path: Path) -> dict[str, Any]:
    """The facts, the passes and the tables tree, ops, samples and telemetry of a run file, column by column.

    They are of the newest training of the log, from where it began, or was resumed in another place than before. Its
    samples are all steps whose time counts. What it counted, its tokens and its samples are the mean of a step of them,
    so that their FLOPs over their time are what the meter said: of steps that are all alike they are that step, of
    others they are rounded to whole numbers.

    Args:
        raw: content of a log.
        path: of it, for what is said.

    Raises:
        GpuprofError: it has no step whose time counts, or is broken.
    """
    try:
        return _content(raw, path)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise GpuprofError(f"{path} is a meter's log with a part missing or broken ({error})") from error


def _content(raw: bytes, path: Path) -> dict[str, Any]:
    parts, warnings = _newest(_parts(lines(raw, path)))
    steps = _lasting(parts)
    kept = [(part, step) for part, step in steps if not step[7]]
    if not kept:
        raise GpuprofError(f"{path} has no step yet whose time counts: let it train, and read the meter, for longer")
    counted = [(part, step) for part, step in kept if not {*step[3]} - {*part.counted}]
    used = counted or kept
    header = parts[-1].header
    kinds = Counter(_kind(part, step) for part, step in used)
    named = {name: header[name] for name in ("workload", "device", "environment", "settings")}
    named["environment"]["date"] = parts[0].header["environment"].get("date")
    named["workload"] |= {"source": "meter", "micro_batches": _micro_batches(kinds)}
    named["workload"] |= _sizes([step for _, step in used])
    dropped = Counter(step[7] for _, step in steps if step[7])
    time_facts = {"kinds": len(kinds), "processes": len(parts), "dropped": dict(dropped)}
    time_facts |= {"uncounted": len(kept) - len(used)} if len(used) < len(kept) else {}
    tables, facts = _tables(used) if counted else (_untold(named["workload"]), {})
    no_count = {"status": "skipped", "reason": "the meter could not count these steps", "remedy": ""}
    return {
        **named,
        "warnings": warnings,
        "passes": {
            "count": {"status": "done", "facts": facts} if counted else no_count,
            "time": {"status": "done", "facts": time_facts},
            "trace": _without("Meter(profile_at=[200], out=...) saves a run of live step 200"),
            "memory": _without("give the model to gpuprof.profile"),
        },
        **tables,
        "samples": {
            "launch": [0] * len(used),
            "step": [step[0] for _, step in used],
            "phase": ["step"] * len(used),
            "time_s": [step[1] for _, step in used],
        },
        "telemetry": _telemetry(parts),
    }


def _telemetry(parts: list[_Part]) -> dict[str, Any]:
    """The table telemetry: the SM clock as it was at each read."""
    clocks = [one for part in parts for one in part.clocks]
    dates = [in_utc(date) for date, _ in clocks]
    return {
        "launch": [0] * len(clocks),
        "time_s": [(date - dates[0]).total_seconds() for date in dates],
        "quantity": ["sm_clock"] * len(clocks),
        "unit": ["MHz"] * len(clocks),
        "value": [clock for _, clock in clocks],
    }


def _without(remedy: str) -> dict[str, str]:
    return {"status": "skipped", "reason": "a meter's log has times of whole steps only", "remedy": remedy}


def _parts(found: Iterable[dict[str, Any]]) -> list[_Part]:
    parts: list[_Part] = []
    for line in found:
        if begins(line):
            parts.append(_Part(line, {}, [], []))
        elif "signature" in line:
            parts[-1].counted.setdefault(line["signature"], []).append(line)
        elif "steps" in line:
            parts[-1].steps.extend(line["steps"])
            clock = line.get("figures", {}).get("device/clock_mhz")
            if clock is not None:
                parts[-1].clocks.append((line["date"], clock))
    return parts


def _newest(parts: list[_Part]) -> tuple[list[_Part], list[str]]:
    """The processes of the newest training that ran in one place, and what is to be said of those before."""
    parts = [part for part in parts if part.steps] or parts[-1:]
    first = max(len(parts) - 1, 0)
    different: list[str] = []
    while first and parts[first].header["steps_before"]:
        different = _differences(parts[first - 1], parts[first])
        if different:
            break
        first -= 1
    before = sum(len(part.steps) for part in parts[:first])
    if not before:
        return parts, []
    if different:
        why = f"the training was resumed after step {parts[first].header['steps_before']:,} with another "
        why += ", ".join(different)
    else:
        why = "the training began anew in this folder"
    return parts[first:], [f"{why}: {before:,} steps before that are left out of all figures"]


def _lasting(parts: list[_Part]) -> list[tuple[_Part, list[Any]]]:
    """Their steps, each with its part: of one that was trained again, from a checkpoint before it, the later."""
    steps: list[tuple[_Part, list[Any]]] = []
    for part in parts:
        for step in part.steps:
            while steps and steps[-1][1][0] >= step[0]:
                steps.pop()
            steps.append((part, step))
    return steps


def _differences(before: _Part, after: _Part) -> list[str]:
    """What two processes cannot have different and be one training, where they do: ``device (A against B)``."""
    base, head = before.header, after.header
    names = {"device": _PLACE} | {
        part: [name for name in {**base[part], **head[part]} if name not in _FREE]
        for part in ("environment", "settings", "workload")
    }
    pairs = [
        ("device" if (part, name) == ("device", "name") else name, base[part].get(name), head[part].get(name))
        for part, several in names.items()
        for name in several
    ]
    if before.counted and after.counted:
        pairs.append(("model", _model(before), _model(after)))
    return [f"{name} ({one} against {other})" for name, one, other in pairs if one != other]


def _model(part: _Part) -> str:
    """What was counted, by class and size."""
    root = next(iter(part.counted.values()))[0]["root"]
    return f"{root['class']} of {root['params']:,} parameters"


_PLACE = ("type", "name", "uuid", "driver", "power_limit_w")

_FREE = ("date", "gpuprof", "python", "platform")
"""What a process of one training may have different in its environment from the one before."""


def _kind(part: _Part, step: list[Any]) -> tuple[str, ...]:
    """Its micro-batches in words, in one order: which of them comes first makes no other step."""
    found = [part.counted[number][0] for number in step[3] if number in part.counted]
    return tuple(sorted(one["inputs"] for one in found if one["calls"]))  # the optimizer's step calls no module


def _micro_batches(kinds: Counter[tuple[str, ...]]) -> list[str]:
    """What the micro-batches of a step are, if most steps are alike; and whether others are not."""
    (usual, number), *others = kinds.most_common()
    most = [f"{count} x {words}" if count > 1 else words for words, count in Counter(usual).items()]
    if not others:
        return most
    return [*most, OTHERS] if 2 * number > kinds.total() else [OTHERS]


OTHERS = "of other shapes"


def _sizes(steps: list[list[Any]]) -> dict[str, Any]:
    """Tokens and samples of the mean step, missing where they are not known of all; the batch where it is one."""
    sizes: dict[str, Any] = {}
    for name, at in (("tokens", 4), ("samples", 6)):
        known = [step[at] for step in steps if step[at] is not None]
        if known and len(known) == len(steps):
            mean = sum(known) / len(known)
            sizes[f"{name}_per_step"] = int(mean) if mean.is_integer() else mean
            if name == "samples" and len({*known}) == 1:
                sizes["batch_size"] = known[0]
    return sizes


def _tables(used: list[tuple[_Part, list[Any]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables tree and ops of the mean step, and what the counting of its signatures had to say."""
    times: Counter[tuple[int, int]] = Counter()
    parts = {id(part): part for part, _ in used}
    for part, step in used:
        times.update((id(part), number) for number in step[3])
    sums: dict[tuple[str, ...], list[Fraction | None]] = {}
    calls: dict[str, Fraction] = {}
    causality: dict[str, str] = {}
    facts: dict[str, list[Any]] = {}
    of_step = [
        (one, Fraction(often, len(several) * len(used)))
        for (of, number), often in times.items()
        for several in [parts[of].counted[number]]
        for one in several
    ]
    for one, often in of_step:
        for row in zip(*(one["ops"][name] for name in (*KEY, *SUMS)), strict=True):
            entry = sums.setdefault(row[: len(KEY)], [Fraction()] * len(SUMS))
            for at, value in enumerate(row[len(KEY) :]):
                so_far = entry[at]
                entry[at] = None if so_far is None or value is None else so_far + often * value
        for name, count in one["calls"].items():
            calls[name] = calls.get(name, Fraction()) + often * count
        for name, how in one["causality"].items():
            if causality.get(name) != "unknown":
                causality[name] = how
        for name, values in one["facts"].items():
            facts[name] = sorted({*facts.get(name, ()), *values})
    means = {key: [_whole(entry[0], least=1), *map(_whole, entry[1:])] for key, entry in sums.items()}
    root = one["root"]
    names = [name for name in calls if name]
    nothing: list[Any] = [None] * len(names)
    tree = {
        "module": ["", *names], "class": [root["class"], *names], "extra": [""] * (len(names) + 1),
        "calls": [_whole(calls[name], least=int(calls[name] > 0)) for name in ("", *names)],
        **{name: [root[name], *nothing] for name in ROOT if name != "class"},
        "causality": [causality.get(name, "") for name in ("", *names)],
    }  # fmt: skip
    return {"tree": tree, "ops": columns_of(means)}, facts


def _whole(mean: Fraction | None, least: int = 0) -> int | None:
    """The nearest whole number, of any size, and at least one that says that there was something."""
    return None if mean is None else max(round(mean), least)


def _untold(workload: dict[str, Any]) -> dict[str, Any]:
    """The tables of a training of which nothing was counted."""
    root = {"module": "", "class": workload.get("architecture") or workload["name"], "extra": "", "causality": ""}
    unknown = dict.fromkeys(("calls", *ROOT[1:]))
    return {
        "tree": {name: [value] for name, value in (root | unknown).items()},
        "ops": columns_of({}),
    }
