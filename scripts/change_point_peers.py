"""What other tools say of series of measurements: labels of lasting changes by ruptures, change points by Otava.

scripts/study_histories.py runs this in the interpreter given by --tools, which needs no gpuprof:

    pip install ruptures apache-otava

From standard input a list of series, each with its values in the order of time and, if there is one, a stretch that is
left out of the labels; to standard output, a JSON object (`answer`).
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

import numpy as np

LEAST_RUNS, LEAST_SUPERIORITY = 9, 0.75
LARGE, SMALL = 0.02, 0.01
L1_PENALTY, KERNEL_PENALTY = 9.0, 3.0
ALIKE_RUNS = 3
OTAVA = {"window_len": 50, "max_pvalue": 0.001, "min_magnitude": 0.02}


def noise(logs: np.ndarray) -> float:
    """Standard deviation around a running median of nine, from mean absolute deviations: both modes count."""
    middles = [np.median(logs[max(at - 4, 0) : at + 5]) for at in range(len(logs))]
    return max(1.2533 * float(np.mean(abs(logs - middles))), 0.002)


def lasting(logs: np.ndarray, cuts: list[int], least: float) -> list[int]:
    """Those of the cuts that are changes of level, the smallest struck first.

    Medians on both sides differ by the least change, and a value of the one is above one of the other in
    `LEAST_SUPERIORITY` of the pairs: where two modes alternate, their median jumps, and the values do not.
    """
    kept = list(cuts)
    while kept:
        edges = [0, *kept, len(logs)]
        weak = []
        for place in range(len(kept)):
            before, after = logs[edges[place] : edges[place + 1]], logs[edges[place + 1] : edges[place + 2]]
            change = abs(float(np.median(after) - np.median(before)))
            above = float((after[:, None] > before).mean() + (after[:, None] == before).mean() / 2)
            if change < np.log1p(least) or max(above, 1 - above) < LEAST_SUPERIORITY:
                weak.append((change, place))
        if not weak:
            break
        del kept[min(weak)[1]]
    return kept


def labels(values: list[float], left_out: list[int] | None, least: float) -> list[dict[str, Any]]:
    """Lasting changes of level, in hindsight: where, by which share of the median, and whether both ways find it.

    The exact L1 Potts fit of the logarithms (PELT) places them; a kernel on the same confirms.
    """
    import ruptures

    runs = np.array([at for at in range(len(values)) if not left_out or not left_out[0] <= at < left_out[1]])
    logs = np.log(np.array(values)[runs])
    potts = ruptures.Pelt(model="l1", min_size=LEAST_RUNS, jump=1).fit(logs).predict(pen=L1_PENALTY * noise(logs))
    kernel = ruptures.KernelCPD(kernel="rbf", min_size=LEAST_RUNS).fit(logs[:, None]).predict(pen=KERNEL_PENALTY)
    placed, confirmed = (lasting(logs, cuts[:-1], least) for cuts in (potts, kernel))
    edges = [0, *placed, len(logs)]
    found = []
    for place, at in enumerate(placed):
        change = np.median(logs[at : edges[place + 2]]) - np.median(logs[edges[place] : at])
        both = any(abs(at - other) <= ALIKE_RUNS for other in confirmed)
        found.append({"at": int(runs[at]), "change": round(float(np.expm1(change)), 4), "confirmed": both})
    return [label for label in found if not left_out or label["at"] != left_out[1]]  # across what was left out


def otava(values: list[float]) -> list[list[tuple[int, float]]]:
    """Change points of the first run, of the first two, and so on: places, and by which share."""
    from otava.analysis import compute_change_points

    lists = []
    for seen in range(1, len(values) + 1):
        points, _ = compute_change_points(values[:seen], **OTAVA)
        lists.append([(int(point.index), float(point.stats.forward_rel_change())) for point in points])
    return lists


def answer(series: list[dict[str, Any]]) -> dict[str, Any]:
    """Versions, and of each series its labels, further ones of small changes, and Otava's lists if it is there."""
    versions = {}
    for name in ("ruptures", "apache-otava"):
        try:
            versions[name] = version(name)
        except ModuleNotFoundError:
            continue
    if "ruptures" not in versions:
        return {"versions": versions}
    found, further = [], []
    for one in series:
        found.append(labels(one["values"], one["left_out"], LARGE))
        small = labels(one["values"], one["left_out"], SMALL)
        further.append(
            [label for label in small if all(abs(label["at"] - other["at"]) > ALIKE_RUNS for other in found[-1])]
        )
    return {
        "versions": versions,
        "labels": found,
        "small": further,
        "otava": [otava(one["values"]) for one in series] if "apache-otava" in versions else None,
    }


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
