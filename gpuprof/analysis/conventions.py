"""The conventions beside each other: what each makes of one step, and where the difference comes from."""

from __future__ import annotations

from collections.abc import Iterator

from gpuprof import units
from gpuprof.analysis.counted import chosen, counted, formula_parts, of_no_part, whole_step
from gpuprof.analysis.known_flops import none_known
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import FORWARD, MODEL
from gpuprof.theory import CONVENTIONS, Architecture
from gpuprof.theory.names import without_overload

REFERENCE = "causal"
"""What the others are compared with."""

COLUMNS = ["convention", "flops", "difference", "difference_percent", "because"]
"""Columns of `beside`."""

_WORDS = {
    "layers": "weights of the layers",
    "head": "output head",
    "transform": "pooler or transform before the head",
    "patches": "patch embedding",
    "attention": "attention",
    "embedding": "lookup tables counted as multiplications",
    "vectors": "norms and biases counted as multiplications",
    "softmax": "softmax",
    "elementwise": "elementwise operators",
    "recompute": "layers run once more",
    "backward": "a backward of exactly two forwards, where {counted} ran",
}

_ENDS = {"head": "head", "transform": "transform", "patch": "patches"}
"""Parts of a formula by the fact that holds the path of their module."""


def beside(run: Record) -> pd.DataFrame:
    """Every convention that fits the run, and how far it is from the counted causal FLOPs.

    Returns:
        Columns `COLUMNS`: model FLOPs of the step (integers), the difference to those counted over unmasked pairs, the
        same in percent, and its parts in words, the largest first. The parts are those of `difference`.

    Raises:
        GpuprofError: it is a recording of which no FLOPs are known.
    """
    if none_known(run):
        raise GpuprofError("nothing of this recording can be counted: it has no shapes of operators that multiply")
    reference = _flops(run, REFERENCE)
    rows = []
    for name in fitting(run):
        flops = _flops(run, name)
        rows.append(
            {
                "convention": name,
                "flops": flops,
                "difference": flops - reference,
                "difference_percent": 100 * (flops - reference) / reference if reference else None,
                "because": in_words(run, name),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def fitting(run: Record) -> list[str]:
    """Names of the conventions that describe this run."""
    facts = run.workload.get("facts")
    return [name for name, how in CONVENTIONS.items() if not (of_no_part(run, how) or how.applies_to(facts))]


def misfits(run: Record) -> dict[str, str]:
    """The others, each with the reason why it does not."""
    facts = run.workload.get("facts")
    reasons = {name: of_no_part(run, how) or how.applies_to(facts) for name, how in CONVENTIONS.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def difference(run: Record, name: str) -> dict[str, int]:
    """FLOPs by which a convention exceeds the counted causal ones, by where they come from; they sum up exactly.

    Keys are those of `gpuprof.theory.formulas`; ``elementwise``, operators that are no multiplication; and
    ``backward``, what the assumption that a backward is two forwards adds to the one that ran. Parts that agree are
    left out.

    Raises:
        GpuprofError: there is no such convention, or it does not fit the model.
    """
    parts = formula_parts(run, name)
    found = _of_formula(run, parts) if parts is not None else _of_rows(run, name)
    return {part: flops for part, flops in found.items() if flops}


def in_words(run: Record, name: str) -> str:
    """The parts of a difference as a phrase, the largest first; empty where there is none."""
    parts = sorted(difference(run, name).items(), key=lambda item: -abs(item[1]))
    return "; ".join(f"{_describe(run, name, part, flops)} {_signed(flops)}" for part, flops in parts)


def _describe(run: Record, name: str, part: str, flops: int) -> str:
    if part == "attention":
        return _attention_words(run, name, flops)
    if part == "recompute" and chosen(run, name).parts is None:
        return "recomputation counted as backward"
    if part == "backward":
        groups = _by_group(run)
        forward = sum(ran for ran, _ in groups.values())
        ratio = sum(back for _, back in groups.values()) / forward if forward else 0.0
        return _WORDS[part].format(counted=units.significant(ratio))
    return _WORDS[part]


def _attention_words(run: Record, name: str, flops: int) -> str:
    how, ops = chosen(run, name), run.ops
    if name.startswith("calflops"):
        return "attention as far as it is seen"
    if name == "torch-counter" and flops < 0:
        return "fused attention that it does not know"
    masked = bool((ops["flops_causal"] < ops["flops_full"]).any())
    square = "half the square" if how.modules_in == "causal" else "the whole square"
    words = [f"attention over {square}"] if masked else []
    backward = (ops["kind"] == "attention") & ops["op"].str.contains("_backward")
    if how.rule is not None and backward.any():
        words.append("the scores once more in the fused backward")
    return " and ".join(words) or "attention"


def _signed(flops: int) -> str:
    return f"{'+' if flops > 0 else '-'}{units.si(abs(flops))}FLOPs"


def _flops(run: Record, name: str) -> int:
    flops: int = whole_step(run, name)["flops"]
    return flops


def _by_group(run: Record) -> dict[str, tuple[int, int]]:
    """Counted causal FLOPs of forward and backward, by the part of the model."""
    groups: dict[str, list[int]] = {}
    for group, phase, flops, _ in _rows(run, counted(run, REFERENCE)):
        if phase in MODEL:
            groups.setdefault(group, [0, 0])[phase == "backward"] += flops
    return {group: (forward, backward) for group, (forward, backward) in groups.items()}


def _rows(run: Record, ops: pd.DataFrame) -> Iterator[tuple[str, str, int, int]]:
    """Group, phase, FLOPs and position of every row."""
    attending = set(run.tree.loc[run.tree["causality"] != "", "module"])
    facts = run.workload.get("facts") or {}
    ends = {facts[fact]: part for fact, part in _ENDS.items() if facts.get(fact)}
    columns = ops[["module", "phase", "op", "kind", "flops"]].itertuples(index=False, name=None)
    for index, (module, phase, op, kind, flops) in enumerate(columns):
        product = without_overload(op) in ("aten::bmm", "aten::baddbmm", "aten::baddbmm_", "aten::matmul")
        if kind == "attention" or (product and module in attending):
            group = "attention"
        elif kind not in ("matmul", "convolution", "recurrent", ""):
            group = "elementwise"
        else:
            group = ends.get(module, "layers")
        yield group, phase, 0 if flops is pd.NA else int(flops), index


def _of_formula(run: Record, parts: dict[str, int]) -> dict[str, int]:
    groups = _by_group(run)
    passes = Architecture.from_facts(run.workload["facts"]).passes
    found = {part: flops for part, flops in parts.items() if part not in groups}
    for group, (forward, _) in groups.items():
        found[group] = parts.get(group, 0) - passes * forward
    found["backward"] = sum((passes - 1) * forward - backward for forward, backward in groups.values())
    return found


def _of_rows(run: Record, name: str) -> dict[str, int]:
    how = chosen(run, name)
    theirs, ours = counted(run, name), counted(run, REFERENCE)
    found: dict[str, int] = {}
    again = {index for index, phase in enumerate(run.ops["phase"]) if phase == "recompute"}
    # a backward that is only assumed is no operator that ran: its forwards are compared, and counted as often
    phases = FORWARD if how.backward_factor is not None else MODEL
    for sign, ops in ((1, theirs), (-1, ours)):
        for group, phase, flops, index in _rows(run, ops):
            if phase in phases:
                part = "recompute" if index in again else group
                found[part] = found.get(part, 0) + sign * flops
    if how.backward_factor is not None and (ours["phase"] == "backward").any():
        factor = how.backward_factor
        found = {part: flops * (1 + factor) for part, flops in found.items()}
        found["backward"] = sum(factor * forward - backward for forward, backward in _by_group(run).values())
    return found
