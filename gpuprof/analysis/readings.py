"""A run as other counters would print it, module by module, and what of it differs from the count and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gpuprof.analysis.counted import read_rows
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.theory import CONVENTIONS
from gpuprof.theory.calflops import count_today
from gpuprof.theory.rows import Row, elements

TOTAL = "(total)"
"""Stands for the whole run: the model, what runs outside of it, and what a tool adds to its total alone."""

ATTENTION = "fused attention not counted"
SQUARE = "attention over the whole square"
BROADCAST = "elementwise operators broadcast from the left"
VECTOR = "other elementwise operators"
PRODUCTS = "multiplications counted otherwise"
UNCOVERED = "module types not covered"
AGAIN = "functional operators counted again"
EMBEDDING = "embedding counted as a multiplication"
SEQUENCE = "linear layers without the sequence length"
CONVOLUTION = "Conv1D taken for a convolution"
GROUPS = "weight gradient of grouped convolutions counted per group"
RECOMPUTE = "recompute counted as backward"
PREFILL = "the prefill alone"
ELEMENTWISE = "elementwise "
BIAS = "bias of "
"""How causes begin that name one operator."""


class Part(NamedTuple):
    """What a tool makes of one row or module.

    Attributes:
        module: where it is booked.
        macs: as the tool counts.
        flops: likewise.
        full: FLOPs that were counted, over the whole square.
        cause: why they differ, if they do.
    """

    module: str
    macs: int
    flops: int
    full: int
    cause: str


Sums = dict[str, dict[str, int]]
"""By module, children included: ``macs``, ``flops``, and of each by how much causes change it (``flops CAUSE``)."""


def add_up(values: Iterable[tuple[str, dict[str, int]]]) -> Sums:
    """Sums of named values over modules and all that contain them; everything is part of `TOTAL`."""
    sums: Sums = {}
    for module, named in values:
        places = [] if module == TOTAL else ancestors(module)
        for path in (*places, TOTAL):
            entry = sums.setdefault(path, {})
            for name, value in named.items():
                entry[name] = entry.get(name, 0) + value
    return sums


def readings(run: Record, tool: str) -> list[Sums]:
    """What the tool would print of the run, under each of the rules that its releases follow."""
    rows = list(zip(run.ops["module"], read_rows(run), strict=True))
    if tool == "torchinfo":
        return [_sums(_torchinfo(run, rows)), _sums(_torchinfo(run, rows, predecessor=True))]
    return [_sums(_by_row(rows, rule)) for rule in _RULES.get(tool, ())]


def _sums(parts: Iterable[Part]) -> Sums:
    return add_up(
        (part.module, {
            "macs": part.macs, "flops": part.flops,
            f"macs {part.cause}": part.macs - part.full // 2, f"flops {part.cause}": part.flops - part.full,
        })
        for part in parts
    )  # fmt: skip


Rule = Callable[[Row], tuple[int, int, str] | None]
"""MACs and FLOPs that a tool gives a row, and why they are not those counted; None of a phase that it leaves out."""


def _by_row(rows: list[tuple[str, Row]], rule: Rule) -> Iterator[Part]:
    for module, row in rows:
        made = rule(row)
        if made is None:
            continue
        full = 0 if row.phase == "recompute" else row.full or 0
        yield Part(module, made[0], made[1], full, made[2])
        if rule is _ptflops:
            macs, cause = _ptflops_functional(row)
            yield Part(TOTAL, macs, 2 * macs, 0, cause)


def _convention(name: str, forward_only: bool = False) -> Rule:
    of_row = CONVENTIONS[name].rule
    assert of_row is not None
    recompute = CONVENTIONS[name].recompute_in_backward and not forward_only
    phases = ("forward", "backward", "recompute") if recompute else ("forward",)

    def rule(row: Row) -> tuple[int, int, str] | None:
        if row.phase not in phases:
            return None
        count = of_row(row)
        macs, flops = count.macs or 0, count.flops or 0
        return macs, flops, _cause(row, flops)

    return rule


def _cause(row: Row, flops: int) -> str:
    if row.kind == "attention":
        return ATTENTION
    if row.phase == "recompute":
        return RECOMPUTE
    if row.op == "aten::convolution_backward":
        return GROUPS
    if row.full or not flops:
        return PRODUCTS
    widest = max((elements(shape) for shape in row.results), default=0)
    elementwise = row.op.startswith(("aten::mul", "aten::add"))
    return BROADCAST if elementwise and flops > widest * row.calls else VECTOR


def _deepspeed(row: Row) -> tuple[int, int, str] | None:
    """Multiplications and fused attention over the whole square; in FLOPs also what its patched functions cost.

    calflops grew out of it and sees the same functions, but for attention and ``bmm``.
    """
    if row.phase != "forward":
        return None
    macs, added = (row.full or 0) // 2, _beside(row)
    return macs, (row.full or 0) + added, (BIAS if macs else ELEMENTWISE) + row.op.removeprefix("aten::").strip("_")


def _deepspeed_03(row: Row) -> tuple[int, int, str] | None:
    """Of 0.3: the same, where all that is not a multiplication is a MAC too, and FLOPs are twice the MACs."""
    made = _deepspeed(row)
    if made is None:
        return None
    macs = made[0] + _beside(row)
    return macs, 2 * macs, made[2]


def _beside(row: Row) -> int:
    """What DeepSpeed and calflops count in a row beside its multiplications."""
    count = count_today(row)
    return (count.flops or 0) - 2 * (count.macs or 0)


def _torchtnt(row: Row) -> tuple[int, int, str] | None:
    """MACs of matrix products and convolutions, none of fused attention."""
    if row.phase != "forward":
        return None
    full = 0 if row.kind == "attention" else row.full or 0
    return full // 2, full, ATTENTION


def _fvcore(row: Row) -> tuple[int, int, str] | None:
    """MACs, and a few operations per element of norms and pooling in the same sum."""
    if row.phase != "forward":
        return None
    if row.kind == "attention":
        return 0, 0, ATTENTION
    if row.full or not row.inputs:
        return (row.full or 0) // 2, row.full or 0, PRODUCTS
    each = 0
    if row.op in ("aten::native_layer_norm", "aten::native_group_norm"):
        each = 5 if len(row.inputs) > 1 else 4
    elif "batch_norm" in row.op:
        each = 2 if len(row.inputs) == 5 else 1
    elif row.op in ("aten::mean", "aten::_adaptive_avg_pool2d") and "AdaptiveAvgPool" in row.module_class:
        each = 1
    operations = each * elements(row.inputs[0]) * row.calls
    return operations, 2 * operations, VECTOR


_POOLS = "(Adaptive)?(Max|Avg)Pool[123]d|Upsample"
_RECURRENT = "RNN|GRU|LSTM|(RNN|GRU|LSTM)Cell"
_COVERED = {
    "ptflops": re.compile(
        r"Linear|Conv(Transpose)?[123]d|(Batch|Instance)Norm[123]d|(Layer|Group)Norm|(P|Leaky|)ReLU6?|R?ELU|GELU|SiLU"
        rf"|{_POOLS}|{_RECURRENT}|MultiheadAttention"
    ),
    "mmcv": re.compile(
        r"Linear|Conv(Transpose)?[123]d|(Batch|Instance)Norm[123]d|(Layer|Group)Norm|(P|Leaky|)ReLU6?|ELU"
        rf"|{_POOLS}"
    ),
    "thop": re.compile(
        r"Linear|Conv(Transpose)?[123]d|(Batch|Instance)Norm[123]d|SyncBatchNorm|LayerNorm|(P|Leaky|)ReLU6?|Softmax"
        rf"|{_POOLS}|Upsampling(Bilinear|Nearest)2d|{_RECURRENT}"
    ),
}
"""Module types that a tool knows, where it knows only some."""

_PER_INPUT = re.compile(
    r"aten::(relu|leaky_relu|elu|gelu|silu|(max|avg)_pool[123]d(_with_indices)?|_adaptive_avg_pool[23]d|mean)_?"
)


def _ptflops(row: Row) -> tuple[int, int, str] | None:
    """What a module that ptflops knows gets from its hook; nothing of other modules."""
    if row.phase != "forward" or not row.inputs:
        return None
    if not _COVERED["ptflops"].fullmatch(row.module_class):
        return 0, 0, ATTENTION if row.kind == "attention" else UNCOVERED
    macs, cause = (row.full or 0) // 2, VECTOR
    if row.op == "aten::addmm":
        macs += elements(row.inputs[0]) * row.calls
    elif row.op == "aten::convolution" and len(row.inputs) > 2:
        macs += elements(row.results[0]) * row.calls
    elif "batch_norm" in row.op:
        macs = elements(row.inputs[0]) * row.calls * (2 if len(row.inputs) == 5 else 1)
    elif row.op == "aten::native_layer_norm" or _PER_INPUT.fullmatch(row.op):
        macs = elements(row.inputs[0]) * row.calls
    return macs, 2 * macs, cause


def _ptflops_06(row: Row) -> tuple[int, int, str] | None:
    """Of 0.6: the modules, and nothing of functional operators in the total."""
    return _ptflops(row)


def _ptflops_functional(row: Row) -> tuple[int, str]:
    """What is in ptflops' total and in no module: multiplications elsewhere, activations and pooling once more."""
    covered = _COVERED["ptflops"].fullmatch(row.module_class)
    if not covered:
        return ((row.full or 0) // 2 if row.kind == "matmul" else 0), UNCOVERED
    return (elements(row.inputs[0]) * row.calls if row.inputs and _PER_INPUT.fullmatch(row.op) else 0), AGAIN


_NORMS = re.compile(r"aten::(native_layer_norm|native_group_norm|\w*batch_norm\w*)")


def _mmcv(row: Row) -> tuple[int, int, str] | None:
    """What mmcv's hooks give the modules it knows: biases of convolutions, norms, activations and pooling with it."""
    if row.phase != "forward" or not row.inputs:
        return None
    if not _COVERED["mmcv"].fullmatch(row.module_class):
        return 0, 0, ATTENTION if row.kind == "attention" else UNCOVERED
    macs = (row.full or 0) // 2
    if row.op == "aten::convolution" and len(row.inputs) > 2:
        macs += elements(row.results[0]) * row.calls
    elif _NORMS.fullmatch(row.op):
        macs = elements(row.inputs[0]) * row.calls * (2 if _affine(row) else 1)
    elif _PER_INPUT.fullmatch(row.op):
        macs = elements(row.inputs[0]) * row.calls
    return macs, 2 * macs, VECTOR


def _thop(row: Row) -> tuple[int, int, str] | None:
    """What thop's hooks give the modules it knows: two or four operations per element of a norm, and averages."""
    if row.phase != "forward" or not row.inputs:
        return None
    if not _COVERED["thop"].fullmatch(row.module_class):
        return 0, 0, ATTENTION if row.kind == "attention" else UNCOVERED
    macs = (row.full or 0) // 2
    if _NORMS.fullmatch(row.op):
        macs = elements(row.inputs[0]) * row.calls * (4 if _affine(row) else 2)
    elif row.module_class.startswith("AdaptiveAvgPool"):
        macs = (elements(row.inputs[0]) + elements(row.results[0])) * row.calls
    elif row.module_class.startswith("AvgPool"):
        macs = elements(row.results[0]) * row.calls
    return macs, 2 * macs, VECTOR


def _affine(row: Row) -> bool:
    """Whether a norm has a weight: it follows the input, before running mean and variance."""
    return len(row.inputs) == 5 or ("batch_norm" not in row.op and len(row.inputs) > 1)


def _torchinfo(run: Record, rows: list[tuple[str, Row]], predecessor: bool = False) -> Iterator[Part]:
    """Parameters times the batch, in what has Conv in its name times the positions; nothing without parameters.

    Its predecessor torch-summary takes the weight alone, and one sample of the batch.
    """
    parents = {path.rpartition(".")[0] for path in run.tree["module"] if path}
    forward: dict[str, list[Row]] = {}
    for module, row in rows:
        if row.phase == "forward":
            forward.setdefault(module, []).append(row)
    tree = run.tree[["module", "class", "params"]]
    for module, name, params in tree.itertuples(index=False, name=None):
        ran = forward.get(module, [])
        full = sum(row.full or 0 for row in ran)
        if module in parents or not params or not ran or not ran[-1].results:
            attention = any(row.kind == "attention" for row in ran)
            yield Part(module, 0, 0, full, ATTENTION if attention else UNCOVERED)
            continue
        shape = ran[-1].results[0]
        positions = elements(shape[2:]) if "Conv" in name else 1
        macs = _weight(ran[-1]) * positions if predecessor else int(params) * shape[0] * positions
        cause = VECTOR if "Norm" in name else SEQUENCE
        if any(row.op == "aten::embedding" for row in ran):
            cause = EMBEDDING
        elif "Conv" in name:
            cause = PRODUCTS if any(row.kind == "convolution" for row in ran) else CONVOLUTION
        yield Part(module, macs, 2 * macs, full, cause)


def _weight(row: Row) -> int:
    """Elements of the weight that an operator takes."""
    if row.op == "aten::embedding":
        return elements(row.inputs[0])
    if row.kind == "matmul":
        return elements(row.inputs[-1])
    return elements(row.inputs[1]) if len(row.inputs) > 1 else 0


_RULES: dict[str, tuple[Rule, ...]] = {
    "calflops": (_convention("calflops"), _convention("calflops-0.3")),
    "torch-counter": (_convention("torch-counter"),),
    "fvcore": (_fvcore,),
    "ptflops": (_ptflops, _ptflops_06, _mmcv),  # mmcv's counter is that of ptflops before 0.6
    "deepspeed": (_deepspeed, _deepspeed_03),
    "mmcv": (_mmcv,),
    "thop": (_thop,),
    "torchtnt": (_torchtnt,),
    "lightning": (_convention("torch-counter", forward_only=True),),
}


def covered_params(run: Record, tool: str) -> dict[str, int] | None:
    """Parameters by module of only the types that the tool knows; None if it knows all."""
    if tool not in _COVERED:
        return None
    leaves = (
        (path, {"params": int(params)})
        for path, name, params in run.tree[["module", "class", "params"]].itertuples(index=False, name=None)
        if _COVERED[tool].fullmatch(name)
    )
    return {path: entry["params"] for path, entry in add_up(leaves).items()}


def lookups(run: Record) -> tuple[Sums, Sums]:
    """FLOPs by which the forward changes with the output layer at every position, and with embeddings as products."""
    rows = [(module, row) for module, row in zip(run.ops["module"], read_rows(run), strict=True)
            if row.phase == "forward" and len(row.inputs) > 1]  # fmt: skip
    positions: dict[tuple[int, ...], int] = {}
    for _, row in rows:
        if row.op == "aten::embedding":
            positions[row.inputs[0]] = positions.get(row.inputs[0], 0) + elements(row.inputs[1]) * row.calls
    heads: list[tuple[str, dict[str, int]]] = []
    products: list[tuple[str, dict[str, int]]] = []
    complete = set()
    for module, row in rows:
        table = row.inputs[0] if row.op == "aten::embedding" else row.inputs[-1][::-1]
        if row.op == "aten::embedding":
            products.append((module, {"flops": 2 * elements(table) * elements(row.inputs[1]) * row.calls}))
        elif row.kind == "matmul" and table in positions:
            everywhere = 0 if table in complete else 2 * elements(table) * positions[table]
            complete.add(table)
            heads.append((module, {"flops": everywhere - (row.full or 0)}))
    return add_up(heads), add_up(products)


def own_counts(run: Record) -> Sums:
    """The count itself: ``PHASE causal``, ``PHASE full`` and what of it is ``PHASE attention``; ``profiler``.

    The phases are forward and backward; the parts of a generation are forward, and each by itself too.
    """
    values: list[tuple[str, dict[str, int]]] = []
    for module, phase, row in zip(run.ops["module"], run.ops["phase"], read_rows(run), strict=True):
        figures = {"full": row.full or 0, "causal": row.causal or 0}
        figures["attention"] = figures["full"] if row.kind == "attention" else 0
        if row.phase in ("forward", "backward"):
            names = dict.fromkeys((row.phase, phase))
            values.append((module, {f"{name} {what}": flops for name in names for what, flops in figures.items()}))
    for row in run.estimates.itertuples(index=False):
        values.append((row.module, {"profiler": int(row.flops_profiler)}))
    return add_up(values)
