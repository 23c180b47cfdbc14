"""What to change first: at most five hints from a budget, each with its evidence and what it would gain.

A gain is an estimate that the sentence explains: the time of the work less what the same work needs by a figure of this
run or its device. It is what there is to win at most, and gains overlap: they do not add up. Where the largest part of
the budget has no such hint, one says what to measure next, and claims no gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from gpuprof import units
from gpuprof.analysis.budget import Budget, idle_owners
from gpuprof.analysis.budget_words import LAUNCH_GAP_S
from gpuprof.analysis.consistency import withheld_of_kernels
from gpuprof.analysis.denominators import denominators, peak_dtype
from gpuprof.analysis.generation import generation, moved
from gpuprof.analysis.kernel_time import busy_seconds
from gpuprof.analysis.next_steps import next_step
from gpuprof.analysis.operators import GENERATED, plain_op
from gpuprof.analysis.steps import traced
from gpuprof.analysis.telemetry import limits
from gpuprof.record import Record
from gpuprof.schema import NOBODYS
from gpuprof.theory.rows import read_shapes
from gpuprof.theory.rules import ITEM_BYTES

MOST = 5
"""Hints that are given."""

LEAST_GAIN = 0.005
"""Share of the step below which a gain is not worth a hint."""

WORTH = 0.25
"""Share of the largest part below which a gain is small beside it: it is no answer to that part, and not first."""

_FACTORS = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0, "aten::baddbmm": 1}  # which input the left one is
_MULTIPLE = 8  # of 16-bit sizes, for rows to start at 16 bytes
_ATTENTION_PRODUCT = r"aten::(bmm|baddbmm|matmul)\b"
_NOT_FUSED = rf"embedding|^{GENERATED}"  # lookups, and what is fused already
_SMALL = 64  # a product with a side below this is short of work, however it is aligned


class Hint(NamedTuple):
    """One thing to change, or to measure next.

    Attributes:
        text: what takes the time, and what it would need instead: a sentence with its figures.
        gain_s: seconds of the step that it would save; None where nothing is known of that.
        gain_share: the same as a share of the step.
        action: what to do.
        part: of the budget, the one that it is about; of several the largest.
    """

    text: str
    gain_s: float | None
    gain_share: float | None
    action: str
    part: str


_Found = Iterator[tuple[str, float, str]]


def hints(found: Budget) -> list[Hint]:
    """The `MOST` hints with the largest gain, that first; fewer where the record has evidence for fewer.

    One about the largest part beside the ideal is always among them. If no gain worth `WORTH` of it is known, that one
    has no gain. It comes first where all gains are small beside the part, and last where they are not.

    Args:
        found: what `gpuprof.analysis.budget.budget` gives.
    """
    rates = not withheld_of_kernels(found.run)
    gains = [  # of a job each rank's own run has them: they are told by kernels
        (gain_s, Hint(text, gain_s, gain_s / found.step_s, action, _largest(found, parts)))
        for look, parts in ({} if found.run.is_job else _LOOKS).items()
        if rates or look not in _BY_RATE
        for text, gain_s, action in look(found)
        if gain_s >= LEAST_GAIN * found.step_s
    ]
    gains.sort(key=lambda gain: -gain[0])
    best = [hint for _, hint in gains]
    if found.rest.empty or found.rest["share"][0] < LEAST_GAIN:
        return best[:MOST]
    part, worth = str(found.rest["part"][0]), WORTH * float(found.rest["time_s"][0])
    own = next((hint for gain_s, hint in gains if hint.part == part and gain_s >= worth), None)
    if own is not None:
        return best[:MOST] if own in best[:MOST] else [*best[: MOST - 1], own]
    text, action = next_step(found, part)
    own = Hint(text, None, None, action, part)
    small = not gains or gains[0][0] < worth
    return [own, *best[: MOST - 1]] if small else [*best[: MOST - 1], own]


def _largest(found: Budget, parts: tuple[str, ...]) -> str:
    return max(parts, key=found.seconds)


def _of_step(found: Budget, seconds: float) -> str:
    return f"{units.duration(seconds)}, {units.percent(seconds / found.step_s)} of the {found.span}"


def _cuda(found: Budget) -> bool:
    return bool(found.run.device.get("type") == "cuda")


def _compiled(found: Budget, fact: str = "compiled") -> bool:
    """Whether the trace has compiled code, or says something else of it."""
    return bool(found.run.passes["trace"].facts.get(fact))


def _attention(found: Budget) -> _Found:
    """Scores that are written out, where a fused kernel would keep them on chip and skip the masked ones.

    Single queries are left out: what they take is reading the cache, fused or not.
    """
    kernels = found.kernels[found.kernels["work"] == "attention"]
    kernels = kernels[kernels["shapes"].map(_many_queries).astype(bool)]
    modules = set(kernels.loc[kernels["kind"] != "attention", "module"])
    kernels = kernels[kernels["module"].isin(modules)]
    ops = found.mine(found.run.ops)
    ops = ops[ops["module"].isin(modules) & ops["op"].str.match(_ATTENTION_PRODUCT)]
    ops = ops[ops["shapes"].map(_many_queries).astype(bool)]
    now = float(kernels["own_s"].sum())
    products = float(kernels.loc[kernels["op"].str.match(_ATTENTION_PRODUCT), "own_s"].sum())
    if ops.empty or not products:
        return
    rate = float(ops["flops_hardware"].sum()) / products
    # a fused backward computes the scores once more: five products for four gradients
    flops = ops["flops_causal"].where(ops["phase"] != "backward", ops["flops_causal"] * 5 // 4)
    needed = float(flops.sum()) / rate
    how = found.run.workload.get("attention")
    means = "sdpa in its math backend" if how == "sdpa" else f"{how} attention" if how else "attention"
    yield (
        f"{means} writes out its scores and takes {_of_step(found, now)}; fused and over unmasked pairs alone it would "
        f"need about {units.duration(needed)} at the {units.si(rate, 'FLOP/s')} that its products reach",
        now - needed,
        "give sdpa a dtype, head size, mask and dropout that flash takes"
        if how == "sdpa"
        else "use sdpa or flash attention",
    )


def _many_queries(shapes: str) -> bool:
    inputs = read_shapes(shapes)[0]
    return len(inputs) > 0 and len(inputs[0]) > 1 and inputs[0][-2] > 1


def _precision(found: Budget) -> _Found:
    """Products in float32 where TF32 or bfloat16 has a higher peak."""
    peaks = denominators(found.run).get(found.denominator, {})
    products = found.kernels["work"].isin(["matmul", "attention"]) & (found.kernels["dtype"] == "float32")
    products &= found.kernels["kind"].isin(["matmul", "convolution", "recurrent", "attention"])
    kernels, ops = found.kernels[products], found.ops[found.ops["dtype"] == "float32"]
    by_peak = {
        dtype: float(rows["own_s"].sum())
        for dtype, rows in kernels.groupby(kernels["kind"].map(lambda kind: peak_dtype("float32", kind, found.run)))
    }
    bytes_s = float(ops["bytes_s"].sum()) if "bytes_s" in ops else 0.0
    for dtype, what, action in (
        ("tf32", "in TF32", "torch.set_float32_matmul_precision('high')"),
        ("bfloat16", "in bfloat16", "bfloat16 weights, or torch.autocast"),
    ):
        slower = {now: time_s for now, time_s in by_peak.items() if 0 < peaks.get(now, 0) < peaks.get(dtype, 0)}
        if not slower or (dtype == "tf32" and not _cuda(found)):
            continue
        now_s = sum(slower.values())
        if now_s < LEAST_GAIN * found.step_s:  # the rotary angles of a step in bfloat16, say: nothing hangs on them
            continue
        then_s = sum(time_s * peaks[now] / peaks[dtype] for now, time_s in slower.items())
        gain = now_s - then_s
        text = (
            f"float32 products take {_of_step(found, now_s)}; {what}, at the same share of a peak of "
            f"{units.si(peaks[dtype], 'FLOP/s')} instead of "
            f"{', '.join(units.si(peaks[now], 'FLOP/s') for now in slower)}, they would need {units.duration(then_s)}"
        )
        if dtype == "bfloat16" and bytes_s:
            gain += bytes_s / 2
            text += f", and half of the {units.duration(bytes_s)} for the bytes of memory-bound work would go"
        yield text, gain, action


def _in_phase(phase: str) -> str:
    return "" if phase == "other" else f" in the {phase}"


def _decoding(found: Budget) -> _Found:
    """Gaps of the decode, in which nothing moves: what is left of a token's time without them."""
    if (decode := found.decode) is None or not decode.number or _compiled(found, "without_cuda_graphs"):
        return
    late = decode.kernels[decode.kernels["idle_s"] > 0]
    if late.empty:
        return
    idle_s, cuda = float(late["idle_s"].sum()), _cuda(found)
    now_s, then_s = (seconds / decode.number for seconds in (decode.step_s, decode.step_s - idle_s))
    number = units.number(int(decode.kernels["kernels"].sum()), "kernel" if cuda else "operator")
    text = (
        f"in the decode {'the GPU waits for the host' if cuda else 'the host is between operators for'} "
        f"{_of_step(found, idle_s)}: {units.number(len(late), 'gap')} among {number}; without them a token takes "
        f"{units.duration(then_s)} at least instead of {units.duration(now_s)}"
    )
    if decode.floor_s is not None and decode.bandwidth and decode.floor_s / decode.number < then_s:
        text += (
            f", and no less than the {units.duration(decode.floor_s / decode.number)} that its bytes need at "
            f"{units.si(decode.bandwidth, 'B/s')} however its kernels are fused"
        )
    eager = "a static cache and torch.compile"
    action = f"{'torch.compile' if _compiled(found) else eager}(mode='reduce-overhead'), or CUDA graphs of your own"
    if not cuda:
        action = f"{'' if _compiled(found) else f'{eager}, or '}more work per operator: a larger batch"
    yield text, idle_s, action


def _rest(found: Budget) -> Budget:
    """The budget without the kernels of a decode whose gaps `_decoding` tells of."""
    if next(_decoding(found), None) is None:
        return found
    return replace(found, kernels=found.kernels[found.kernels["phase"] != "decode"])


def _launches(found: Budget) -> _Found:
    """Gaps as short as a launch."""
    found = _rest(found)
    late = found.kernels[(found.kernels["idle_s"] > 0) & (found.kernels["gap_s"] <= LAUNCH_GAP_S)]
    if late.empty or not _cuda(found) or _compiled(found, "without_cuda_graphs"):  # with them it does not wait so
        return
    idle_s, kernels = float(late["idle_s"].sum()), found.kernels
    number = int(kernels["kernels"].sum())
    mean_s = float(kernels["own_s"].sum()) / number
    worst = idle_owners(found, LAUNCH_GAP_S).iloc[0]
    yield (
        f"the GPU waits for launches {_of_step(found, idle_s)}: {units.number(len(late), 'gap')} of "
        f"{units.duration(idle_s / len(late))} between {units.number(number, 'kernel')} of "
        f"{units.duration(mean_s)} on average, {units.percent(worst['idle_s'] / idle_s)} of it "
        f"before those of {worst['owner'] or '(root)'}{_in_phase(worst['phase'])}",
        idle_s,
        "CUDA graphs, torch.compile(mode='reduce-overhead'), or more work per kernel",
    )


def _host(found: Budget) -> _Found:
    """Gaps in which the host did something else."""
    found, cuda = _rest(found), _cuda(found)
    late = found.kernels[(found.kernels["idle_s"] > 0) & ((found.kernels["gap_s"] > LAUNCH_GAP_S) | (not cuda))]
    if late.empty:
        return
    idle_s, longest = float(late["idle_s"].sum()), late.loc[late["gap_s"].idxmax()]
    where = units.shortened(longest["op"] or longest["kernel"])
    where += f" of {longest['module'] or '(root)'}{_in_phase(longest['phase'])}"
    most = units.duration(float(longest["gap_s" if cuda else "idle_s"]))
    if cuda:
        yield (
            f"the GPU waits for the host {_of_step(found, idle_s)}: {units.number(len(late), 'gap')} over "
            f"{units.duration(LAUNCH_GAP_S, 1)} in the {traced(found.run)}, the longest of {most} before {where}",
            idle_s,
            "look at what the host does in the long gaps: values read back (.item()), data, Python",
        )
    else:
        yield (
            f"the host takes {_of_step(found, idle_s)}, between operators: {units.duration(idle_s / len(late))} of "
            f"Python and dispatch before each of {len(late):,}, the longest ({most}) before {where}",
            idle_s,
            f"{'' if _compiled(found) else 'torch.compile, or '}more work per operator: a larger batch",
        )


def _recompute(found: Budget) -> _Found:
    """Checkpoints, if what they save would fit."""
    run, seconds = found.run, found.seconds("recompute")
    rows = run.ops[(run.ops["phase"] == "recompute") & ~run.ops["kind"].isin(["view", "communication"])]
    held = run.device.get("memory_bytes")
    peaks = run.memory.loc[run.memory["quantity"].isin(["allocated_peak", "rss_peak"]), "bytes"]
    if not seconds or rows.empty or not held or peaks.empty:
        return
    # at most: not every result is kept for the backward
    kept = sum(
        sum(map(math.prod, read_shapes(row.shapes)[1])) * ITEM_BYTES.get(row.dtype, 1) * int(row.calls)
        for row in rows.itertuples(index=False)
    )
    peak = int(peaks.max())
    if peak + kept <= held:
        yield (
            f"checkpoints take {_of_step(found, seconds)}, for forwards run again; without them the peak of "
            f"{units.size(peak)} grows by {units.size(kept)} of activations at most, and the device has "
            f"{units.size(held)}",
            seconds,
            "switch activation checkpointing off, or checkpoint fewer layers",
        )


def _optimizer(found: Budget) -> _Found:
    """An optimizer that reads and writes its state many times over."""
    run, seconds = found.run, found.seconds("optimizer")
    kernels = found.kernels[found.kernels["part"] == "optimizer"]
    sizes = run.memory[run.memory["source"] == "analytic"].groupby("quantity")["bytes"].sum()
    if kernels.empty or not found.bandwidth or not len(run.tree) or "gradients" not in sizes:
        return
    if kernels["op"].str.contains("::_fused_").any():
        return
    needed_bytes = 2 * int(run.tree["trainable_bytes"].iloc[0]) + int(sizes["gradients"])
    needed_bytes += 2 * int(sizes.get("optimizer_state", 0))
    needed = needed_bytes / found.bandwidth
    many = units.number(int(kernels["kernels"].sum()), "kernel" if _cuda(found) else "operator")
    yield (
        f"the optimizer takes {_of_step(found, seconds)} in {many}; reading gradients and state and "
        f"writing parameters and state once, {units.size(needed_bytes)}, needs {units.duration(needed)} at "
        f"{units.si(found.bandwidth, 'B/s')}",
        seconds - needed,
        "fused=True for the optimizer, where it has that",
    )


def _logits(found: Budget) -> _Found:
    """An output head that meets every position of a prompt, where the next token needs the last."""
    run = found.run
    head = _head(run)
    figures = generation(run)
    batch = run.workload.get("batch_size") or (figures.sequences if figures else None)
    if run.workload.get("mode") != "generate" or not head or not batch:
        return
    rows = run.ops[(run.ops["module"] == head) & (run.ops["flops_full"].fillna(0) > 0)]
    kernels = found.kernels[(found.kernels["module"] == head) & (found.kernels["work"] == "matmul")]
    if figures is not None:  # a step of decoding has no others
        rows, kernels = (table[table["phase"] == "prefill"] for table in (found.mine(rows), kernels))
    done = needed = written = 0
    for row in rows.itertuples(index=False):
        if not (results := read_shapes(row.shapes)[1]):
            return
        positions = math.prod(results[0][:-1])
        done += int(row.flops_full)
        needed += int(row.flops_full) * min(batch, positions) // positions
        written += math.prod(results[0]) * int(row.calls) * ITEM_BYTES.get(row.dtype, 1)
    seconds = float(kernels["own_s"].sum())
    if done:
        yield (
            f"{head} takes {_of_step(found, seconds)} for logits of every position of the prompt, "
            f"{units.si(done, 'FLOPs')} and {units.size(written)} of them, where the last one is "
            f"{units.percent(needed / done)} of its FLOPs",
            seconds * (1 - needed / done),
            "logits_to_keep=1, or slice the hidden states before the head",
        )


def _head(run: Record) -> str:
    """The output head; of a model of which no facts are known the root's child that multiplies last in a decode."""
    facts = run.workload.get("facts")
    if facts is not None:
        return str(facts.get("head") or "")
    rows = run.ops[(run.ops["phase"] == "decode") & (run.ops["flops_full"].fillna(0) > 0)]
    children = [module for module in rows["module"] if module and "." not in module and module not in NOBODYS]
    return children[-1] if children else ""


def _elementwise(found: Budget) -> _Found:
    """Elementwise operators and reductions that are far from the bandwidth; lookups are not for fusing."""
    if "bytes_s" not in found.ops:
        return
    kernels, ops = (
        rows[(rows["part"] == "memory") & (rows["kind"] == "vector") & ~rows["op"].str.contains(_NOT_FUSED)]
        for rows in (found.kernels, found.ops)
    )
    now, needed = float(kernels["own_s"].sum()), float(ops["bytes_s"].sum())
    if kernels.empty or ops["bytes"].isna().any():
        return
    classes = dict(zip(found.run.tree["module"], found.run.tree["class"], strict=True))
    many = units.number(int(kernels["kernels"].sum()), "elementwise operator")
    by_class = kernels.groupby(kernels["module"].map(classes).fillna("no module"))["own_s"].sum()
    yield (
        f"{many} take {_of_step(found, now)}, where their bytes need "
        f"{units.duration(needed)} at {units.si(found.bandwidth, 'B/s')}; {units.percent(by_class.max() / now)} of it "
        f"is in {by_class.idxmax()}",
        now - needed,
        "fuse elementwise operators: torch.compile, or fused kernels for norms, activations and loss",
    )


def _alignment(found: Budget) -> _Found:
    """Products whose sizes tensor cores have to pad, against the others of the same run."""
    kernels = found.kernels[
        (found.kernels["part"] == "matmul")
        & found.kernels["op"].isin(_FACTORS.keys())
        & found.kernels["dtype"].isin(["float16", "bfloat16"])
    ]
    if kernels.empty or not _cuda(found):
        return
    sums = {True: [0.0, 0.0], False: [0.0, 0.0]}  # FLOPs and seconds, by whether they are aligned
    worst = (0.0, "")
    for (op, shapes), rows in kernels.groupby(["op", "shapes"]):
        factors = read_shapes(shapes)[0][_FACTORS[op] :][:2]
        if len(factors) < 2:
            continue
        left, right = factors
        sides = (left[-2], right[-1], left[-1])
        if min(sides) < _SMALL:
            continue
        time_s = float(rows["own_s"].sum())
        aligned = all(side % _MULTIPLE == 0 for side in sides)
        batch = left[0] if len(left) == 3 else 1
        sums[aligned][0] += 2 * batch * math.prod(sides) * rows["call"].nunique()
        sums[aligned][1] += time_s
        if not aligned:
            worst = max(worst, (time_s, " x ".join(map(str, sides))))
    (flops, seconds), (others, their_seconds) = sums[False], sums[True]
    if flops and others:
        rate = others / their_seconds
        yield (
            f"products with a size that is no multiple of {_MULTIPLE} take {_of_step(found, seconds)} at "
            f"{units.si(flops / seconds, 'FLOP/s')}, the longest (m x n x k) {worst[1]}; at the "
            f"{units.si(rate, 'FLOP/s')} of the run's aligned products they would need {units.duration(flops / rate)}",
            seconds - flops / rate,
            "pad sizes of products to a multiple of 64, a vocabulary for one",
        )


def _layout(found: Budget) -> _Found:
    """Convolutions that cuDNN has to lay out anew for tensor cores."""
    turned = found.kernels[found.kernels["kernel"].str.contains("nchwToNhwc|nhwcToNchw", regex=True)]
    if len(turned):
        seconds = float(turned["own_s"].sum())
        yield (
            f"{units.number(len(turned), 'kernel')} turn channels-first tensors into channels-last and back: "
            f"{_of_step(found, seconds)}",
            seconds,
            "model.to(memory_format=torch.channels_last), and the input too",
        )


def _communication(found: Budget) -> _Found:
    """Transfers that computation does not hide."""
    seconds = found.seconds("communication")
    if seconds:
        kernels = found.kernels[found.kernels["part"] == "communication"]
        what = f"communication {'kernel' if _cuda(found) else 'operator'}"
        yield (
            f"{units.number(len(kernels), what)} are not hidden by computation for {_of_step(found, seconds)}, of "
            f"{units.duration(busy_seconds(kernels))} that they run",
            seconds,
            "start communication earlier: prefetching in FSDP, other bucket sizes in DDP",
        )


def _clock(found: Budget) -> _Found:
    """A clock that power or heat holds down."""
    seen = limits(found.run.telemetry)
    if seen:
        seconds = found.seconds("clock")
        reasons = " and ".join(limit.cause.name for limit in seen)
        yield (
            f"{reasons} held the clock down: the model FLOPs alone take {_of_step(found, seconds)} longer than at the "
            "clock of the datasheet",
            seconds,
            "see to cooling" if any(limit.cause.invalid for limit in seen) else "a higher power limit, if there is one",
        )


def _batch(found: Budget) -> _Found:
    """Weights that every step of decoding reads, for as many sequences as there are."""
    decode, figures = found.decode, generation(found.run)
    if decode is None or figures is None or not figures.sequences or not decode.number:
        return
    if decode.floor_s is None or decode.moved_bytes is None or not decode.bandwidth or decode.floor_s > decode.step_s:
        return  # where they come from caches, they are not the limit
    weights = int(moved(found.run).loc["decode", "weights"])
    shared_s, ideal_s = weights / decode.bandwidth, decode.seconds("ideal")
    if 2 * ideal_s > 2 * decode.floor_s - shared_s:  # then the processor would be
        return
    each = figures.cache_bytes_per_token
    cache = "the cache of all" if each is None else f"the cache of all, {units.size(each)} a position of each,"
    yield (
        f"a step of decoding reads {units.size(weights / decode.number)} of weights for "
        f"{units.number(figures.sequences, 'sequence')}, {units.percent(weights / decode.moved_bytes)} of the bytes "
        f"that must move; with twice as many sequences as many tokens take half as many steps, and "
        f"{units.duration(shared_s / 2)} less at {units.si(decode.bandwidth, 'B/s')}",
        shared_s / 2,
        f"a larger batch, as far as a token may take longer and {cache} fits",
    )


def _cache(found: Budget) -> _Found:
    """A cache that is copied to append to it."""
    if (decode := found.decode) is None:
        return
    decoding = (rows[rows["phase"] == "decode"] for rows in (found.run.ops, decode.kernels))
    joined = (rows[rows["op"].map(plain_op) == "aten::cat"] for rows in decoding)
    ops, kernels = (rows[rows["shapes"].map(_appends).astype(bool)] for rows in joined)
    must = moved(found.run)
    if ops.empty or kernels.empty or "decode" not in must.index or ops["bytes"].isna().any():
        return
    seconds, nbytes, new = (
        float(kernels["own_s"].sum()),
        int(ops["bytes"].sum()),
        int(must.at["decode", "cache_written"]),
    )
    yield (
        f"appending to the cache takes {_of_step(found, seconds)}: torch.cat reads and writes {units.size(nbytes)} in "
        f"the decode, to add {units.size(new)}",
        seconds * (1 - new / nbytes),
        "a static cache, which is written in place, as long as attention over its whole length costs less",
    )


def _appends(shapes: str) -> bool:
    """Whether a concatenation puts a few positions behind many."""
    inputs = read_shapes(shapes)[0]
    if len(inputs) != 2 or len(inputs[0]) < 3 or len(inputs[0]) != len(inputs[1]):
        return False
    return inputs[0][:-2] == inputs[1][:-2] and inputs[0][-1] == inputs[1][-1] and inputs[0][-2] > inputs[1][-2]


_LOOKS: dict[Callable[[Budget], _Found], tuple[str, ...]] = {
    _attention: ("attention",), _precision: ("matmul", "attention"), _decoding: ("idle_launch", "idle_host"),
    _launches: ("idle_launch",), _host: ("idle_host",), _recompute: ("recompute",), _optimizer: ("optimizer",),
    _logits: ("matmul",), _batch: ("memory_bytes",), _cache: ("memory", "memory_bytes"), _elementwise: ("memory",),
    _alignment: ("matmul",), _layout: ("matmul",), _communication: ("communication",), _clock: ("clock",),
}  # fmt: skip
"""Where to look for hints, and the parts of the budget that they are about."""

_BY_RATE = (_attention, _precision, _alignment)
"""Those that say how long FLOPs take."""
