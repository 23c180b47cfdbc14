"""Why a backward has twice the FLOPs of its forward, or has not.

A product ``A B`` has two gradients, one per factor, of as many FLOPs each: hence the 2. A module's products are the
matmul, convolution, attention and recurrent operators that it owns itself; their gradients are found again among its
backward operators by their cost, and every cause below says how many of the two there are. A cause is given only where
the FLOPs that it predicts are exactly those counted; else the row is `UNEXPLAINED`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import UNATTRIBUTED
from gpuprof.theory.rows import read_shapes
from gpuprof.theory.rules import PRODUCTS

ASSUMED = 2
"""Backward FLOPs over forward FLOPs, as most counters have it."""

TWO = "two gradients"
FROZEN = "frozen"
NO_INPUT_GRADIENT = "no input gradient"
SOME_GRADIENTS = "some gradients"
NOTHING_TRAINED = "nothing trained before"
NOT_PASSED = "no gradient passes"
UNUSED = "never backward"
MIXED = "mixed"
EMBEDDING = "embedding"
NO_PRODUCT = "no matmul"
UNEXPLAINED = "unexplained"

CAUSES = {
    TWO: "",
    FROZEN: "weights frozen: input gradient only",
    NO_INPUT_GRADIENT: "its input needs no gradient: weight gradient only",
    SOME_GRADIENTS: "some factors of its products need no gradient",
    NOTHING_TRAINED: "frozen, nothing before it is trained: no backward",
    NOT_PASSED: "not trained, and no gradient passes through it: no backward",
    UNUSED: "trainable, but ran forward only: its output does not reach the loss",
    MIXED: "its parts differ",
    EMBEDDING: "a lookup, no matmul FLOPs",
    NO_PRODUCT: "no matmul FLOPs",
    UNEXPLAINED: "unexplained",
}
"""Every cause of a ratio, in words."""

_SHOWN = 3  # parts that a reason names


@dataclass
class Part:
    """What is known of a module, of its own products, or of a class.

    Attributes:
        forward: matmul FLOPs.
        backward: likewise.
        cause: of `CAUSES`; empty where the part has done nothing.
        words: the cause as it is here.
        explained: backward FLOPs that the cause predicts; None where there is none.
        notes: what else is to be said: recompute, a fused attention backward.
        away: what of it is not at twice its forward, by name below it: itself, or parts of it.
    """

    forward: int = 0
    backward: int = 0
    cause: str = ""
    words: str = ""
    explained: int | None = None
    notes: list[str] = field(default_factory=list)
    away: list[tuple[str, Part]] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Backward over forward; None without a forward."""
        return self.backward / self.forward if self.forward else None


class _Products(NamedTuple):
    """Products of one cost in the forward of a module, and their gradients."""

    cost: int
    forward: int
    backward: int
    to_first: int
    to_second: int


def explain(run: Record, ops: pd.DataFrame, table: pd.DataFrame) -> tuple[dict[str, Part], list[Part]]:
    """What is known of every module, its children included, and of the modules' own products.

    Args:
        run: one that was counted.
        ops: what `gpuprof.analysis.counted.counted` gives of it.
        table: by module, with what was computed again: a column ``flops_recompute``.
    """
    mine: dict[str, list[Any]] = {}
    for row in ops[_OF_ROW].reset_index(drop=True).itertuples():
        mine.setdefault(row.module, []).append(row)
    children: dict[str, list[str]] = {path: [] for path in table.index}
    for path in run.tree["module"]:
        if path:
            children[path.rpartition(".")[0]].append(path)
    facts = _Facts(run, children, mine)
    parts: dict[str, Part] = {}
    alone = []
    for path in [*reversed(list(run.tree["module"])), UNATTRIBUTED]:  # children before their parent
        own = _own(path, mine.get(path, []), facts)
        alone.append(own)
        named = [(child.rpartition(".")[2], parts[child]) for child in children.get(path, [])]
        part = merged([("its own products", own), *named] if named else [("", own)])
        if not part.cause and path in mine:
            lookup = any(row.op.startswith("aten::embedding") for row in mine[path])
            part.cause = EMBEDDING if lookup else NO_PRODUCT
        elif not part.cause and any(child.cause for _, child in named):
            part.cause = NO_PRODUCT
        part.words = part.words or CAUSES.get(part.cause, "")
        recompute = table.at[path, "flops_recompute"]
        if not pd.isna(recompute) and recompute and part.forward:
            part.notes.append(f"recompute apart: {recompute / part.forward:.3f} x forward")
        part.notes += own.notes
        parts[path] = part
    return parts, alone


_OF_ROW = ["module", "phase", "op", "kind", "shapes", "calls", "flops", "flops_hardware"]
"""Columns of what was counted that causes are found in."""


class _Facts:
    """What the record says of modules: what of them is trained, and what ran before them."""

    def __init__(self, run: Record, children: dict[str, list[str]], mine: dict[str, list[Any]]) -> None:
        rows = zip(run.tree["module"], run.tree["params"], run.tree["trainable_params"], strict=True)
        # none of a recording, and of a training those of the whole model alone
        known = [] if run.tree["params"].isna().any() else list(rows)
        self.params = {path: (int(params), int(trainable)) for path, params, trainable in known}
        self.has_own = {
            path: self.params[path][0] > sum(self.params[child][0] for child in below) or not below
            for path, below in children.items()
            if path in self.params
        }
        forwards = {path: [row.Index for row in rows if row.phase == "forward"] for path, rows in mine.items()}
        self.starts = starts = {path: min(rows) for path, rows in forwards.items() if rows}
        self.of_classes = run.metered
        trained = [
            starts[path]
            for path, (_, trainable) in self.params.items()
            if path in starts and trainable > sum(self.params[child][1] for child in children[path])
        ]
        self.first_trained = min(trained, default=None)

    def training(self, path: str) -> tuple[bool, bool]:
        """Whether a module has parameters of which none, and of which all, are trained."""
        params, trainable = self.params.get(path, (0, 0))
        return params > 0 == trainable, params > 0 and trainable == params

    def trained_before(self, path: str) -> bool:
        """Whether an operator of a module with trained parameters of its own ran before the first one of this."""
        return self.first_trained is not None and self.first_trained < self.starts.get(path, 0)


def _own(path: str, rows: list[Any], facts: _Facts) -> Part:
    """The products that a module owns itself."""
    products = [row for row in rows if row.kind in PRODUCTS and not pd.isna(row.flops) and row.flops > 0]
    forward, backward = ([row for row in products if row.phase == phase] for phase in ("forward", "backward"))
    part = Part(sum(int(row.flops) for row in forward), sum(int(row.flops) for row in backward))
    if not part.forward and not part.backward:
        return part
    part.notes = _fused(forward, backward)
    if part.backward == ASSUMED * part.forward:
        part.cause, part.explained = TWO, part.backward
        return part
    if not any(row.phase == "backward" for row in rows):
        _, trainable = facts.params.get(path, (0, 0))
        part.cause = UNUSED if trainable else NOT_PASSED if facts.trained_before(path) else NOTHING_TRAINED
        part.words, part.explained = CAUSES[part.cause], 0
        return part
    if facts.of_classes:
        part.cause, part.words = UNEXPLAINED, "modules of one class together, as a meter's log has them: record a step"
        return part
    groups = _matched(forward, backward)
    found = [_cause(group, path, facts) for group in groups or []]
    predicted = sum(group.cost * group.backward for group in groups or [])
    if not found or None in found or predicted != part.backward:
        part.cause, part.words = UNEXPLAINED, CAUSES[UNEXPLAINED]
        return part
    causes = list(dict.fromkeys(f for f in found if f is not None))
    different = [(cause, words) for cause, words in causes if cause != TWO]
    part.cause = different[0][0] if len(causes) == 1 else SOME_GRADIENTS
    part.words = ("in part: " if len(causes) > len(different) else "") + ", ".join(words for _, words in different)
    part.explained = predicted
    return part


def _cause(group: _Products, path: str, facts: _Facts) -> tuple[str, str] | None:
    """Why products of one cost have the gradients that they have; None where the record does not say."""
    if group.backward == 2 * group.forward:
        return TWO, ""
    if group.backward > 2 * group.forward:
        return None
    frozen, trained = facts.training(path)
    weights = facts.has_own.get(path, False) and (frozen or trained or facts.params.get(path, (0, 0))[1] > 0)
    known = group.to_first + group.to_second == group.backward
    if weights and group.backward == group.forward:
        if frozen or (not trained and known and not group.to_second):
            return FROZEN, CAUSES[FROZEN]
        if (trained and not (known and group.to_first)) or (known and not group.to_first):
            return NO_INPUT_GRADIENT, CAUSES[NO_INPUT_GRADIENT]
    return SOME_GRADIENTS, f"{group.backward} of the {2 * group.forward} factors of its products need a gradient"


def _matched(forward: list[Any], backward: list[Any]) -> list[_Products] | None:
    """Products and their gradients by what one costs; None where a gradient fits no product."""
    calls: Counter[tuple[str, int]] = Counter()
    operands: dict[tuple[str, int], list[tuple[Any, Any]]] = {}
    for row in forward:
        key = (_family(row.kind), int(row.flops) // int(row.calls))
        calls[key] += int(row.calls)
        operands.setdefault(key, []).append(_factors(row.shapes, row.kind))
    gradients: Counter[tuple[str, int]] = Counter()
    first: Counter[tuple[str, int]] = Counter()
    second: Counter[tuple[str, int]] = Counter()
    for row in backward:
        count, total = 1, int(row.flops) // int(row.calls)
        if row.kind == "attention":  # both products of it, each with both its gradients
            count = 2
        elif row.kind == "convolution":
            inputs, results = read_shapes(row.shapes)
            count = sum(result in inputs[1:3] for result in results if len(result) > 2)
        if not count or total % count:
            return None
        key = (_family(row.kind), total // count)
        if key not in calls:
            return None
        gradients[key] += count * int(row.calls)
        if row.kind == "matmul":
            side = _side(read_shapes(row.shapes)[1], operands[key])
            first[key] += int(row.calls) if side == 0 else 0
            second[key] += int(row.calls) if side == 1 else 0
        elif row.kind == "convolution":
            first[key] += int(row.calls) if inputs[1] in results else 0
            second[key] += int(row.calls) if inputs[2] in results else 0
    return [_Products(key[1], calls[key], gradients[key], first[key], second[key]) for key in calls]


def _family(kind: str) -> str:
    return kind if kind in ("convolution", "attention") else "matmul"


def _factors(shapes: str, kind: str) -> tuple[Any, Any]:
    """Both factors of a product, without the order of their sizes: a gradient may come transposed."""
    inputs = [shape for shape in read_shapes(shapes)[0] if len(shape) > 1]
    pair = inputs[:2] if kind == "convolution" else inputs[-2:]
    return (sorted(pair[0]), sorted(pair[1])) if len(pair) == 2 else (None, None)


def _side(results: tuple[tuple[int, ...], ...], operands: list[tuple[Any, Any]]) -> int | None:
    """Which factor's gradient a result is, as far as its sizes tell: 0, 1 or None."""
    shape = sorted(results[0]) if results else None
    sides = {side for factors in operands for side in (0, 1) if factors[side] == shape}
    return sides.pop() if len(sides) == 1 else None


def _fused(forward: list[Any], backward: list[Any]) -> list[str]:
    """What a fused attention backward adds in hardware, where it is exactly the scores once more."""
    fused = ([row.flops_hardware for row in rows if row.kind == "attention"] for rows in (backward, forward))
    above, below = (sum(int(flops) for flops in known if not pd.isna(flops)) for known in fused)
    if above and 2 * above == 5 * below:
        return ["fused attention computes its scores again: 2.5 x in hardware"]
    return []


def merged(named: Iterable[tuple[str, Part]], together: bool = False) -> Part:
    """Parts as one: of a module (its own products and its children), or the members of a class, ``together``."""
    known = list(named)
    busy = [(name, part) for name, part in known if part.forward or part.backward]
    whole = Part(sum(part.forward for _, part in busy), sum(part.backward for _, part in busy))
    if not busy:
        whole.cause = next((part.cause for _, part in known if part.cause), "") if together else ""
        whole.words = CAUSES.get(whole.cause, "")
        return whole
    lost = [(name, part) for name, part in busy if part.cause == UNEXPLAINED]
    causes = {part.cause for _, part in busy}
    words = {part.words for _, part in busy}
    if lost:
        whole.cause = UNEXPLAINED
        whole.words = f"{CAUSES[UNEXPLAINED]}: {_list(lost)}" if len(known) > 1 else lost[0][1].words
        return whole
    whole.explained = sum(part.explained or 0 for _, part in busy)
    if len(causes) == 1 and (MIXED not in causes or (together and len(words) == 1)):
        whole.cause = busy[0][1].cause
        whole.words = busy[0][1].words if len(words) == 1 else CAUSES[whole.cause]
    else:
        whole.cause = MIXED
        whole.away = [entry for name, part in busy for entry in _away(name, part)]
        whole.words = _mix(busy) if together else f"mixed: {_list(whole.away)}"
    if whole.backward == ASSUMED * whole.forward and whole.cause in (MIXED, SOME_GRADIENTS):
        whole.words = f"2 by chance: {whole.words}"
    return whole


def _away(name: str, part: Part) -> list[tuple[str, Part]]:
    """What of a part is not at twice its forward: the few parts of it that are not, or itself."""
    if part.backward == ASSUMED * part.forward and part.cause != MIXED:
        return []
    if len(_runs(part.away)) in range(1, 2 * _SHOWN):
        return [(f"{name}.{below}", inner) for below, inner in part.away]
    return [(name, part)]


def _runs(parts: list[tuple[str, Part]]) -> list[list[tuple[str, Part]]]:
    """Parts with numbered neighbours that agree in one list."""
    runs: list[list[tuple[str, Part]]] = []
    for name, part in parts:
        if runs:
            before, last = runs[-1][-1]
            (stem, _, number), (other, _, following) = before.rpartition("."), name.rpartition(".")
            numbered = stem == other and number.isdigit() and following.isdigit()
            if numbered and int(following) == int(number) + 1 and last.ratio == part.ratio:
                runs[-1].append((name, part))
                continue
        runs.append([(name, part)])
    return runs


def _list(parts: list[tuple[str, Part]]) -> str:
    """Parts by name with their ratio: what agrees is said once, the largest differences first."""
    said: dict[str, list[str]] = {}
    for run in sorted(_runs(parts), key=lambda run: -sum(abs(p.backward - ASSUMED * p.forward) for _, p in run)):
        first, last = run[0][0], run[-1][0].rpartition(".")[2]
        said.setdefault(_times(run[0][1]), []).append(first if len(run) == 1 else f"{first}-{last}")
    lines: list[str] = []
    left = 0
    for ratio, names in said.items():
        shown = names[: 2 * _SHOWN] if len(lines) < _SHOWN else []
        left += len(names) - len(shown)
        if shown:
            lines.append(f"{', '.join(shown)} {ratio}")
    return "; ".join(lines) + (f"; {left} more" if left else "")


def _mix(busy: list[tuple[str, Part]]) -> str:
    """Members of a class by their ratio: how many have which."""
    ratios = Counter(_times(part) for _, part in busy)
    shown = [f"{count} at {ratio}" for ratio, count in ratios.most_common(_SHOWN)]
    left = sum(ratios.values()) - sum(count for _, count in ratios.most_common(_SHOWN))
    return f"mixed: {', '.join(shown)}" + (f", {left} others" if left else "")


def _times(part: Part) -> str:
    if part.ratio is None:
        return "backward only"
    return f"{part.ratio:.0f}x" if part.ratio == round(part.ratio) else f"{part.ratio:.3f}x"
