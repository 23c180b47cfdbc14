"""The budgets of a generation's phases by hand: a prefill and 3 steps of decoding on 100 FLOP/ns and 8 bytes/ns."""

import pytest
from runs import generation_run, gpu_run, kernel_row, ops_row, rank_run
from test_budget import assert_adds_up, op, parts_ns, run_of
from test_hints import the

from gpuprof.analysis.budget import budget, idle_owners
from gpuprof.analysis.hints import hints
from gpuprof.errors import GpuprofError
from gpuprof.job import assemble
from gpuprof.job_part import part
from gpuprof.schema import table

NS = 1e-9


def waiting_run(late=60):
    """`generation_run` with a gap of 100 ns before the prefill and one before every kernel of the decode."""
    run, clock = generation_run(), 100
    for index, (phase, duration) in enumerate(zip(run.kernels["phase"], run.kernels["duration_ns"], strict=True)):
        clock += late if phase == "decode" else 0
        run.kernels.loc[index, "start_ns"] = clock
        clock += int(duration)
    decoding = run.ops["phase"] == "decode"
    run.ops.loc[decoding, "bytes"] = [1920, 2400]
    run.passes["count"].facts["cache"] = {"class": "DynamicCache", "appends": True, "bytes": [320, 400, 480, 560]}
    return run


def test_the_decode_by_hand():
    # kernels of 3 x (80 + 120) ns for 4,800 FLOPs; 1,920 and 2,400 bytes at 8 bytes/ns, of which 18 and 30 ns are FLOPs
    found = budget(waiting_run(), phase="decode")

    assert parts_ns(found) == {"ideal": 48, "memory_bytes": 222 + 270, "matmul": 60, "idle_launch": 360}
    assert (found.phase, found.span, found.number) == ("decode", "decode", 3)
    assert found.step_s == pytest.approx(960 * NS)
    assert found.mfu == pytest.approx(0.05)
    assert_adds_up(found)
    assert set(found.kernels["phase"]) == set(found.ops["phase"]) == {"decode"}


def test_the_floor_is_what_must_move():
    found = budget(waiting_run(), phase="decode")

    # weights 3 x 900, cache read 320 + 400 + 480, written 3 x 80, activations 3 x 200
    assert found.moved_bytes == 2700 + 1200 + 240 + 600
    assert found.floor_s == pytest.approx(4740 / 8 * NS)


@pytest.mark.parametrize(
    ("phase", "flops"), [("prefill", "20.00 KFLOPs"), ("decode", "4.800 KFLOPs"), (None, "24.80 KFLOPs")]
)
def test_the_flops_of_a_budget_are_those_of_its_phase(phase, flops):
    parts = budget(waiting_run(), phase=phase).parts.set_index("part")

    assert parts.loc["ideal", "what"].startswith(flops)


def test_phases_add_up_to_the_step():
    run = waiting_run()
    phases = [budget(run, phase=phase) for phase in ("prefill", "decode")]
    whole = budget(run)

    assert parts_ns(phases[0]) == {"ideal": 200, "matmul": 100, "idle_launch": 100}
    assert sum(found.step_s for found in phases) == pytest.approx(whole.step_s)
    for name, time_s in parts_ns(whole).items():
        assert sum(parts_ns(found).get(name, 0) for found in phases) == pytest.approx(time_s)
    assert (whole.phase, whole.number, whole.moved_bytes, whole.floor_s) == ("", None, None, None)


def test_a_gap_is_of_the_phase_whose_kernel_ends_it():
    owners = idle_owners(budget(waiting_run(), phase="decode"))

    assert dict(zip(owners["owner"], owners["gaps"], strict=True)) == {"attn": 3, "head": 3}
    assert list(owners["idle_s"] / NS) == pytest.approx([180, 180])


def test_attention_of_few_queries_is_bound_by_the_cache_that_it_reads():
    def attention(phase, number):
        name = "aten::_scaled_dot_product_flash_attention"
        ops = op("attn", phase, f"{name}.default", 100, kind="attention", nbytes=400)
        return ops, kernel_row("attn", phase, name, 100 * number, 100)

    ops, kernels = zip(attention("prefill", 0), attention("decode", 1), strict=True)
    found = budget(run_of(list(ops), list(kernels), 200, memory_bandwidth=10e9))

    # 400 bytes at 10 bytes/ns are 40 ns, 1 of which the FLOPs take; of the prefill, whose keys meet many queries, all
    # beyond its FLOPs stays attention's
    assert parts_ns(found) == {"ideal": 2, "memory_bytes": 39, "attention": 159}


def test_phases_of_a_training_step():
    # forward 80 of 80 ns, backward 320 of 340, optimizer 40 of 60
    run = gpu_run()

    assert parts_ns(budget(run, phase="forward")) == {"ideal": 40, "matmul": 40}
    assert parts_ns(budget(run, phase="backward")) == {"ideal": 80, "matmul": 240, "other": 20}
    optimizer = budget(run, phase="optimizer")
    assert parts_ns(optimizer) == {"optimizer": 40, "other": 20}
    assert (optimizer.mfu, optimizer.number) == (None, None)


def test_what_is_recomputed_is_in_the_backward():
    ops = [op("fc", phase, "aten::mm.default", 1000) for phase in ("forward", "recompute", "backward")]
    kernels = [
        kernel_row("fc", row["phase"], "aten::mm", 20 * number, 20, call=number) for number, row in enumerate(ops)
    ]
    run = run_of(ops, kernels, 60)
    run.samples = table(
        "samples", [{"step": 0, "phase": phase, "time_s": ns * NS} for phase, ns in (("step", 60), ("backward", 40))]
    )

    assert parts_ns(budget(run, phase="backward")) == {"ideal": 10, "matmul": 10, "recompute": 20}
    with pytest.raises(GpuprofError, match=r"no phase 'recompute' .*: there are forward, backward"):
        budget(run, phase="recompute")


def test_a_phase_that_was_not_timed_is_the_traced_one():
    run = waiting_run()
    run.samples = run.samples[run.samples["phase"] == "step"]
    found = budget(run, phase="decode")

    assert found.step_s == pytest.approx(960 * NS)
    assert "No undisturbed decode was timed: this is the traced one, which tracing lengthens." in found.notes


def test_a_trace_that_waits_longer_promises_no_more_than_the_step_has():
    # gaps of 6 x 160 ns in the trace, where the timed decode has 360 ns beside its kernels
    found = budget(waiting_run(late=160), phase="decode")

    assert parts_ns(found)["idle_launch"] == 360
    assert_adds_up(found)


@pytest.mark.parametrize("phase", ["encode", "forward", "backward"])
def test_a_phase_that_is_not_there_names_those_that_are(phase):
    with pytest.raises(GpuprofError, match=f"no phase '{phase}' in this run .* there are prefill, decode"):
        budget(waiting_run(), phase=phase)


def test_a_job_has_no_budget_of_a_phase():
    job = assemble(part(rank_run(rank)) for rank in (0, 1))

    with pytest.raises(GpuprofError, match="a budget of a phase"):
        budget(job, phase="forward")


# hints


@pytest.mark.parametrize(("phase", "span"), [(None, "26.5 % of the step"), ("decode", "37.5 % of the decode")])
def test_what_a_token_takes_without_its_gaps(phase, span):
    text, gain, action = the(budget(waiting_run(), phase=phase), "in the decode the GPU waits")

    assert gain == pytest.approx(360)
    assert text == (
        f"in the decode the GPU waits for the host 360.0 ns, {span}: 6 gaps among 6 kernels; without them a token "
        "takes 200.0 ns at least instead of 320.0 ns, and no less than the 197.5 ns that its bytes need at 8.000 GB/s "
        "however its kernels are fused"
    )
    assert action == "a static cache and torch.compile(mode='reduce-overhead'), or CUDA graphs of your own"


def test_other_gaps_have_their_own_hint():
    assert the(budget(waiting_run()), "waits for launches")[1] == pytest.approx(100)  # of the prefill alone
    assert not [hint for hint in hints(budget(waiting_run(), phase="decode")) if "waits for launches" in hint.text]


def test_cuda_graphs_are_not_hinted_at_where_there_are():
    run = waiting_run()
    run.passes["trace"].facts["without_cuda_graphs"] = True

    assert not [hint for hint in hints(budget(run, phase="decode")) if "gaps" in hint.text]


def test_weights_are_shared_by_more_sequences():
    text, gain, action = the(budget(waiting_run(), phase="decode"), "of weights for 2 sequences")

    # 3 x 900 bytes at 8 bytes/ns, halved
    assert gain == pytest.approx(2700 / 8 / 2)
    assert "reads 900 B of weights for 2 sequences, 57.0 % of the bytes that must move" in text
    assert (
        action
        == "a larger batch, as far as a token may take longer and the cache of all, 40 B a position of each, fits"
    )


@pytest.mark.parametrize(("name", "value"), [("peaks", {"datasheet": {"bfloat16": 10e9}}), ("measured_bandwidth", 4e9)])
def test_a_batch_helps_no_decode_that_the_processor_or_a_cache_bounds(name, value):
    # 2 x 480 ns of FLOPs are more than the bytes of twice the sequences; 4,740 bytes at 4 bytes/ns more than 960 ns
    run = waiting_run()
    run.device |= {name: value}

    assert not [hint for hint in hints(budget(run, phase="decode")) if "of weights for" in hint.text]


def test_a_cache_that_is_copied_to_append_to_it():
    run = waiting_run()
    shapes = {"shapes": "2x2x4x5 2x2x1x5 -> 2x2x5x5"}
    turned = {"shapes": "2x2x1x5 2x2x1x5 -> 2x2x1x10"}  # of a rotary embedding, which appends nothing
    ops = run.ops.to_dict("records")
    ops += [ops_row("attn", "decode", "aten::cat.default", 0, kind="movement") | shapes | {"calls": 6, "bytes": 2400}]
    ops += [ops_row("attn", "decode", "aten::cat.default", 0, kind="movement") | turned | {"bytes": 8000}]
    kernels = run.kernels.to_dict("records")
    kernels += [
        kernel_row("attn", "decode", "aten::cat", 2000, 100, kernel="cat", call=90) | {"shapes": "2x2x4x5 2x2x1x5"},
        kernel_row("attn", "decode", "aten::cat", 2100, 40, kernel="cat", call=91) | {"shapes": "2x2x1x5 2x2x1x5"},
    ]
    run.ops, run.kernels = table("ops", ops), table("kernels", kernels)

    text, gain, _ = the(budget(run, phase="decode"), "appending to the cache")
    # 240 bytes are new
    assert gain == pytest.approx(100 * (1 - 240 / 2400))
    assert "torch.cat reads and writes 2.344 KiB in the decode, to add 240 B" in text


@pytest.mark.parametrize("facts", [{"head": "head"}, None])
def test_logits_of_a_prompt_are_the_prefills(facts):
    run = waiting_run()
    run.workload |= {"facts": facts, "batch_size": 2 if facts else None}  # a step of the user's own tells neither
    run.ops["shapes"] = ["8x10 10x100 -> 8x100"] * 2 + ["2x10 10x100 -> 2x100"] * 2

    text, gain, action = the(budget(run, phase="prefill"), "logits of every position")
    # 2 sequences of 4 positions: a quarter of 12,000 FLOPs, in 200 ns
    assert gain == pytest.approx(200 * 3 / 4)
    assert "12.00 KFLOPs and 1.562 KiB of them, where the last one is 25.0 % of its FLOPs" in text
    assert action.startswith("logits_to_keep=1")
    assert not [hint for hint in hints(budget(run, phase="decode")) if "logits" in hint.text]
