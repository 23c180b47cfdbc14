"""Where to look for hints: work that takes longer than it has to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from gpuprof import units
from gpuprof.analysis.budget import Budget
from gpuprof.analysis.denominators import denominators, peak_dtype
from gpuprof.analysis.each import each, where
from gpuprof.analysis.generation import generation, moved
from gpuprof.analysis.kernel_time import busy_seconds
from gpuprof.analysis.operators import GENERATED, plain_op
from gpuprof.analysis.telemetry import limits
from gpuprof.record import Record
from gpuprof.schema import NOBODYS
from gpuprof.theory.rows import read_shapes
from gpuprof.theory.rules import ITEM_BYTES

LEAST_GAIN = 0.005
"""Share of the step below which a gain is not worth a hint."""

_FACTORS = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0, "aten::baddbmm": 1}  # which input the left one is
_MULTIPLE = 8  # of 16-bit sizes, for rows to start at 16 bytes
_ATTENTION_PRODUCT = r"aten::(bmm|baddbmm|matmul)\b"
_NOT_FUSED = rf"embedding|^{GENERATED}"  # lookups, and what is fused already
_SMALL = 64  # a product with a side below this is short of work, however it is aligned

Looked = Iterator[tuple[str, float, str]]
"""Hints as a look finds them: what takes the time in words, seconds to gain, and what to do."""


def of_step(found: Budget, seconds: float) -> str:
    """A time, and its share of the step."""
    return f"{units.duration(seconds)}, {units.percent(seconds / found.step_s)} of the {found.span}"


def on_a_gpu(found: Budget) -> bool:
    """Whether it is the budget of a GPU."""
    return bool(found.run.device.get("type") == "cuda")


def is_compiled(found: Budget, fact: str = "compiled") -> bool:
    """Whether the trace has compiled code, or says something else of it."""
    return bool(found.run.passes["trace"].facts.get(fact))


def attention(found: Budget) -> Looked:
    """Scores that are written out, where a fused kernel would keep them on chip and skip the masked ones.

    Single queries are left out: what they take is reading the cache, fused or not.
    """
    kernels = found.kernels[found.kernels["work"] == "attention"]
    kernels = kernels[where(kernels["shapes"], _many_queries)]
    modules = set(kernels.loc[kernels["kind"] != "attention", "module"])
    kernels = kernels[kernels["module"].isin(modules)]
    ops = found.mine(found.run.ops)
    ops = ops[ops["module"].isin(modules) & ops["op"].str.match(_ATTENTION_PRODUCT)]
    ops = ops[ops["shapes"].map(_many_queries).astype(bool)]
    now = float(kernels["own_s"].sum())
    products = float(kernels.loc[where(kernels["op"], re.compile(_ATTENTION_PRODUCT).match), "own_s"].sum())
    if ops.empty or not products:
        return
    rate = float(ops["flops_hardware"].sum()) / products
    # a fused backward computes the scores once more: five products for four gradients
    flops = ops["flops_causal"].where(ops["phase"] != "backward", ops["flops_causal"] * 5 // 4)
    needed = float(flops.sum()) / rate
    how = found.run.workload.get("attention")
    means = "sdpa in its math backend" if how == "sdpa" else f"{how} attention" if how else "attention"
    yield (
        f"{means} writes out its scores and takes {of_step(found, now)}; fused and over unmasked pairs alone it would "
        f"need about {units.duration(needed)} at the {units.si(rate, 'FLOP/s')} that its products reach",
        now - needed,
        "give sdpa a dtype, head size, mask and dropout that flash takes"
        if how == "sdpa"
        else "use sdpa or flash attention",
    )


def _many_queries(shapes: str) -> bool:
    inputs = read_shapes(shapes)[0]
    return len(inputs) > 0 and len(inputs[0]) > 1 and inputs[0][-2] > 1


def precision(found: Budget) -> Looked:
    """Products in float32 where TF32 or bfloat16 has a higher peak."""
    peaks = denominators(found.run).get(found.denominator, {})
    products = found.kernels["work"].isin(["matmul", "attention"]) & (found.kernels["dtype"] == "float32")
    products &= found.kernels["kind"].isin(["matmul", "convolution", "recurrent", "attention"])
    kernels, ops = found.kernels[products], found.ops[found.ops["dtype"] == "float32"]
    by_peak = {
        dtype: float(rows["own_s"].sum())
        for dtype, rows in kernels.groupby(each(kernels["kind"], lambda kind: peak_dtype("float32", kind, found.run)))
    }
    bytes_s = float(ops["bytes_s"].sum()) if "bytes_s" in ops else 0.0
    for dtype, what, action in (
        ("tf32", "in TF32", "torch.set_float32_matmul_precision('high')"),
        ("bfloat16", "in bfloat16", "bfloat16 weights, or torch.autocast"),
    ):
        slower = {now: time_s for now, time_s in by_peak.items() if 0 < peaks.get(now, 0) < peaks.get(dtype, 0)}
        if not slower or (dtype == "tf32" and not on_a_gpu(found)):
            continue
        now_s = sum(slower.values())
        if now_s < LEAST_GAIN * found.step_s:  # the rotary angles of a step in bfloat16, say: nothing hangs on them
            continue
        then_s = sum(time_s * peaks[now] / peaks[dtype] for now, time_s in slower.items())
        gain = now_s - then_s
        text = (
            f"float32 products take {of_step(found, now_s)}; {what}, at the same share of a peak of "
            f"{units.si(peaks[dtype], 'FLOP/s')} instead of "
            f"{', '.join(units.si(peaks[now], 'FLOP/s') for now in slower)}, they would need {units.duration(then_s)}"
        )
        if dtype == "bfloat16" and bytes_s:
            gain += bytes_s / 2
            text += f", and half of the {units.duration(bytes_s)} for the bytes of memory-bound work would go"
        yield text, gain, action


def recompute(found: Budget) -> Looked:
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
            f"checkpoints take {of_step(found, seconds)}, for forwards run again; without them the peak of "
            f"{units.size(peak)} grows by {units.size(kept)} of activations at most, and the device has "
            f"{units.size(held)}",
            seconds,
            "switch activation checkpointing off, or checkpoint fewer layers",
        )


def optimizer(found: Budget) -> Looked:
    """An optimizer that reads and writes its state many times over."""
    run, seconds = found.run, found.seconds("optimizer")
    kernels = found.kernels.loc[found.kernels["part"] == "optimizer", ["op", "kernels"]]
    sizes = run.memory[run.memory["source"] == "analytic"].groupby("quantity")["bytes"].sum()
    if kernels.empty or not found.bandwidth or not len(run.tree) or "gradients" not in sizes:
        return
    if any("::_fused_" in op for op in {*kernels["op"]}):
        return
    needed_bytes = 2 * int(run.tree["trainable_bytes"].iloc[0]) + int(sizes["gradients"])
    needed_bytes += 2 * int(sizes.get("optimizer_state", 0))
    needed = needed_bytes / found.bandwidth
    many = units.number(int(kernels["kernels"].sum()), "kernel" if on_a_gpu(found) else "operator")
    yield (
        f"the optimizer takes {of_step(found, seconds)} in {many}; reading gradients and state and "
        f"writing parameters and state once, {units.size(needed_bytes)}, needs {units.duration(needed)} at "
        f"{units.si(found.bandwidth, 'B/s')}",
        seconds - needed,
        "fused=True for the optimizer, where it has that",
    )


def logits(found: Budget) -> Looked:
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
            f"{head} takes {of_step(found, seconds)} for logits of every position of the prompt, "
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


def elementwise(found: Budget) -> Looked:
    """Elementwise operators and reductions that are far from the bandwidth; lookups are not for fusing."""
    if "bytes_s" not in found.ops:
        return
    fusable = (
        rows[["part", "kind", "op", *columns]][rows["part"] == "memory"]
        for rows, columns in ((found.kernels, ("module", "own_s", "kernels")), (found.ops, ("bytes", "bytes_s")))
    )
    kernels, ops = (
        rows[(rows["kind"] == "vector") & ~where(rows["op"], re.compile(_NOT_FUSED).search)] for rows in fusable
    )
    now, needed = float(kernels["own_s"].sum()), float(ops["bytes_s"].sum())
    if kernels.empty or ops["bytes"].isna().any():
        return
    classes = dict(zip(found.run.tree["module"], found.run.tree["class"], strict=True))
    many = units.number(int(kernels["kernels"].sum()), "elementwise operator")
    of_class = each(kernels["module"], lambda module: classes.get(module, "no module"))
    by_class = kernels["own_s"].groupby(of_class).sum()
    yield (
        f"{many} take {of_step(found, now)}, where their bytes need "
        f"{units.duration(needed)} at {units.si(found.bandwidth, 'B/s')}; {units.percent(by_class.max() / now)} of it "
        f"is in {by_class.idxmax()}",
        now - needed,
        "fuse elementwise operators: torch.compile, or fused kernels for norms, activations and loss",
    )


def alignment(found: Budget) -> Looked:
    """Products whose sizes tensor cores have to pad, against the others of the same run."""
    kernels = found.kernels.loc[found.kernels["part"] == "matmul", ["op", "shapes", "dtype", "own_s", "call"]]
    kernels = kernels[kernels["op"].isin(_FACTORS.keys()) & kernels["dtype"].isin(["float16", "bfloat16"])]
    if kernels.empty or not on_a_gpu(found):
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
            f"products with a size that is no multiple of {_MULTIPLE} take {of_step(found, seconds)} at "
            f"{units.si(flops / seconds, 'FLOP/s')}, the longest (m x n x k) {worst[1]}; at the "
            f"{units.si(rate, 'FLOP/s')} of the run's aligned products they would need {units.duration(flops / rate)}",
            seconds - flops / rate,
            "pad sizes of products to a multiple of 64, a vocabulary for one",
        )


def layout(found: Budget) -> Looked:
    """Convolutions that cuDNN has to lay out anew for tensor cores."""
    turned = found.kernels[where(found.kernels["kernel"], re.compile("nchwToNhwc|nhwcToNchw").search)]
    if len(turned):
        seconds = float(turned["own_s"].sum())
        yield (
            f"{units.number(len(turned), 'kernel')} turn channels-first tensors into channels-last and back: "
            f"{of_step(found, seconds)}",
            seconds,
            "model.to(memory_format=torch.channels_last), and the input too",
        )


def communication(found: Budget) -> Looked:
    """Transfers that computation does not hide."""
    seconds = found.seconds("communication")
    if seconds:
        kernels = found.kernels[found.kernels["part"] == "communication"]
        what = f"communication {'kernel' if on_a_gpu(found) else 'operator'}"
        yield (
            f"{units.number(len(kernels), what)} are not hidden by computation for {of_step(found, seconds)}, of "
            f"{units.duration(busy_seconds(kernels))} that they run",
            seconds,
            "start communication earlier: prefetching in FSDP, other bucket sizes in DDP",
        )


def clock(found: Budget) -> Looked:
    """A clock that power or heat holds down."""
    seen = limits(found.run.telemetry)
    if seen:
        seconds = found.seconds("clock")
        reasons = " and ".join(limit.cause.name for limit in seen)
        yield (
            f"{reasons} held the clock down: the model FLOPs alone take {of_step(found, seconds)} longer than at the "
            "clock of the datasheet",
            seconds,
            "see to cooling" if any(limit.cause.invalid for limit in seen) else "a higher power limit, if there is one",
        )


def batch(found: Budget) -> Looked:
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


def cache(found: Budget) -> Looked:
    """A cache that is copied to append to it."""
    if (decode := found.decode) is None:
        return
    decoding = (rows[rows["phase"] == "decode"] for rows in (found.run.ops, decode.kernels))
    joined = (rows[where(rows["op"], lambda op: plain_op(op) == "aten::cat")] for rows in decoding)
    ops, kernels = (rows[where(rows["shapes"], _appends)] for rows in joined)
    must = moved(found.run)
    if ops.empty or kernels.empty or "decode" not in must.index or ops["bytes"].isna().any():
        return
    seconds, nbytes, new = (
        float(kernels["own_s"].sum()),
        int(ops["bytes"].sum()),
        int(must.at["decode", "cache_written"]),
    )
    yield (
        f"appending to the cache takes {of_step(found, seconds)}: torch.cat reads and writes {units.size(nbytes)} in "
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
