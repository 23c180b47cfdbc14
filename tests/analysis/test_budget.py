import json

import numpy as np
import pandas as pd
import pytest
from runs import gpu_run, kernel_row, ops_row, tree_row

import gpuprof
from gpuprof.analysis.bounds import read_ceilings
from gpuprof.analysis.budget import PARTS, budget, budget_by, idle_owners
from gpuprof.analysis.kernel_time import owned, union_ns
from gpuprof.analysis.steps import step_seconds
from gpuprof.analysis.totals import totals
from gpuprof.record import PassOutcome
from gpuprof.run import Run
from gpuprof.schema import UNATTRIBUTED, table

NS = 1e-9


def run_of(ops, kernels, step_ns=None, *, tree=(), **device):
    """A step on a device of 100 FLOP/ns; the traced step alone where no time is given."""
    modules = dict.fromkeys([row["module"] for row in [*ops, *kernels]])
    samples = [{"step": 0, "phase": "step", "time_s": step_ns * NS}] if step_ns else []
    return Run(
        workload={"name": "net", "mode": "train"},
        device={"type": "cuda", "name": "Toy GPU", "peaks": {"datasheet": {"bfloat16": 100e9}}, **device},
        environment={},
        passes={name: PassOutcome("done") for name in ("count", "trace", *(["time"] if step_ns else []))},
        tree=table("tree", list(tree) or [tree_row(module, "Part") for module in modules if module != UNATTRIBUTED]),
        ops=table("ops", ops),
        kernels=table("kernels", kernels),
        samples=table("samples", samples),
    )


def op(module, phase, name, flops, *, shapes="", nbytes=0, **more):
    return {**ops_row(module, phase, name, flops, **more), "shapes": shapes, "bytes": nbytes}


def parts_ns(found):
    """Nanoseconds of the parts that are not 0, and that are known."""
    times = found.parts.set_index("part")["time_s"].dropna() / NS
    return {part: round(value, 6) for part, value in times.items() if round(value, 6)}


def assert_adds_up(found):
    """The parts, the rows of every table and the kernels' own time with their gaps are the step."""
    exactly = pytest.approx(found.step_s, rel=1e-12)
    assert found.parts["time_s"].sum() == exactly
    assert found.rows["time_s"].sum() == exactly
    for by in ("module", "class"):
        rows = budget_by(found, by)
        assert rows["time_s"].sum() == exactly
        assert rows[[f"{part}_s" for part in PARTS]].sum().sum() == exactly


def test_the_parts_of_a_training_step():
    # 12,000 FLOPs at 100 FLOP/ns; products for 80 + 320 ns, the optimizer for 40, of a step of 480
    found = budget(gpu_run())

    assert parts_ns(found) == {"ideal": 120, "matmul": 280, "optimizer": 40, "other": 40}
    assert found.parts.set_index("part")["share"]["matmul"] == pytest.approx(280 / 480)
    assert (found.mfu, found.hfu) == (pytest.approx(0.25), pytest.approx(0.25))
    assert (found.step_s, found.denominator, found.convention) == (480e-9, "datasheet", "causal")
    assert_adds_up(found)


def test_a_product_exactly_at_peak_is_100_percent():
    found = budget(
        run_of([op("fc", "forward", "aten::mm.default", 5000)], [kernel_row("fc", "forward", "aten::mm", 0, 50)], 50)
    )

    assert parts_ns(found) == {"ideal": 50}
    assert found.mfu == pytest.approx(1, abs=1e-12)
    assert f"{100 * found.mfu:.1f}" == "100.0"


def test_peaks_are_told_by_their_flops_most_first():
    ops = [
        op("angles", "forward", "aten::mm.default", 10) | {"dtype": "float32"},
        op("fc", "forward", "aten::mm.default", 4000),
    ]
    kernels = [kernel_row("angles", "forward", "aten::mm", 0, 1), kernel_row("fc", "forward", "aten::mm", 1, 50)]
    run = run_of(ops, kernels, 51)
    run.device["peaks"] = {"datasheet": {"bfloat16": 100e9, "float32": 10e9}}
    what = budget(run).parts.set_index("part")["what"]["ideal"]
    assert what == "4.010 KFLOPs at bfloat16 100.0 GFLOP/s, float32 10.00 GFLOP/s"


def test_an_operator_of_two_kernels_is_not_counted_twice():
    kernels = [
        kernel_row("fc", "forward", "aten::mm", at, 40, kernel=name) for at, name in ((0, "gemm"), (40, "splitK"))
    ]
    found = budget(run_of([op("fc", "forward", "aten::mm.default", 5000)], kernels, 80))

    assert parts_ns(found) == {"ideal": 50, "matmul": 30}


def test_overlapping_streams_are_not_added_twice():
    ops = [op(module, "forward", "aten::mm.default", 2000) for module in ("a", "b")]
    kernels = [
        kernel_row("a", "forward", "aten::mm", 0, 100),
        kernel_row("b", "forward", "aten::mm", 50, 100, stream="8"),
    ]
    found = budget(run_of(ops, kernels, 200))

    assert list(found.kernels["own_s"] / NS) == pytest.approx([100, 50])
    assert parts_ns(found) == {"ideal": 40, "matmul": 110, "other": 50}


def test_idle_time_is_that_of_the_gaps_and_theirs_who_ended_them():
    # gaps of 100, 50 and 250,000 ns, in a step as long as the trace
    kernels = [
        kernel_row("layers.0.fc", "forward", "aten::mm", 100, 100),
        kernel_row("layers.1.fc", "forward", "aten::mm", 250, 100),
        kernel_row("head", "backward", "aten::mul", 250_350, 100),
    ]
    found = budget(run_of([], kernels, 250_450))

    assert parts_ns(found) == {"matmul": 200, "memory": 100, "idle_launch": 150, "idle_host": 250_000}
    owners = idle_owners(found)
    assert list(owners["owner"]) == ["head", "layers.*.fc"]
    assert list(owners["gaps"]) == [1, 2]
    assert list(owners["idle_s"] / NS) == pytest.approx([250_000, 150])
    assert list(owners["op"]) == ["aten::mul", "aten::mm"]
    rows = budget_by(found).set_index("module")
    assert rows.at["layers.1.fc", "idle_launch_s"] == pytest.approx(50e-9)
    assert_adds_up(found)


def test_gaps_of_a_slower_trace_share_the_idle_time_of_the_step():
    # 100 + 100 ns of work, gaps of 300 and 100 ns in the trace, where the undisturbed step is idle for 40
    kernels = [kernel_row("a", "forward", "x::y", 300, 100), kernel_row("b", "forward", "x::y", 500, 100)]
    found = budget(run_of([], kernels, 240))

    assert list(found.kernels["idle_s"] / NS) == pytest.approx([30, 10])
    assert parts_ns(found) == {"other": 200, "idle_launch": 40}


def test_a_step_longer_than_the_trace_is_not_idle_for_it():
    kernels = [kernel_row("a", "forward", "x::y", 10, 100), kernel_row("b", "forward", "x::y", 130, 70)]
    found = budget(run_of([], kernels, 300))

    # 170 ns of kernels and 30 of gaps were traced; what made the other 100 is not known
    assert parts_ns(found) == {"idle_launch": 30, "other": 170 + 100}
    assert found.notes[0].startswith("The undisturbed step took 100.0 ns longer than the traced one")
    assert budget_by(found).set_index("module").at[UNATTRIBUTED, "other_s"] == pytest.approx(100e-9)
    assert_adds_up(found)


def test_communication_counts_where_no_computation_hides_it():
    kernels = [
        kernel_row("fc", "backward", "aten::mm", 0, 100),
        kernel_row("", "backward", "c10d::allreduce_", 50, 130, kernel="ncclDevKernel_AllReduce", stream="9"),
        kernel_row("fc", "backward", "aten::mm", 120, 30),
        kernel_row("", "backward", "", 170, 20, kernel="ncclDevKernel_AllGather", stream="10"),
    ]
    found = budget(run_of([op("fc", "backward", "aten::mm.default", 9000)], kernels, 200))

    # the transfers cover 50 to 190, computation hides 50 to 100 and 120 to 150
    assert parts_ns(found) == {"ideal": 90, "matmul": 40, "communication": 60, "other": 10}
    assert found.parts.set_index("part")["what"]["communication"] == "of 140.0 ns in all"


def test_every_instant_has_one_owner():
    random = np.random.default_rng(3)
    for _ in range(40):
        start = np.sort(random.integers(0, 60, 12))
        duration = random.integers(0, 15, 12)
        communicates = random.random(12) < 0.4
        expected = np.zeros(12, "int64")
        gaps = np.zeros(12, "int64")
        for instant in range(80):
            here = [i for i in range(12) if start[i] <= instant < start[i] + duration[i]]
            if here:
                expected[min(here, key=lambda i: (communicates[i], i))] += 1
            else:
                later = [i for i in range(12) if start[i] > instant]
                if later:
                    gaps[later[0]] += 1

        own, before = owned(start, duration, communicates)

        assert own.tolist() == expected.tolist()
        assert own.sum() == union_ns(start, start + duration)
        # kernels of no length may end a gap too
        assert before.sum() == gaps.sum()
        assert own.dtype == before.dtype == np.dtype("int64")


def test_a_lower_clock_costs_the_ideal_work_its_deficit():
    run = run_of(
        [op("fc", "forward", "aten::mm.default", 5000)], [kernel_row("fc", "forward", "aten::mm", 0, 90)], 90,
        flops_per_clock_per_sm={"bfloat16": 50}, sm_count=2,
    )  # fmt: skip
    run.telemetry = table(
        "telemetry", [{"time_s": t, "quantity": "sm_clock", "unit": "MHz", "value": 800.0} for t in (0, 1)]
    )

    # 100 FLOP per cycle at 0.8 GHz: 80 FLOP/ns, so 62.5 ns instead of 50
    assert parts_ns(budget(run)) == {"ideal": 50, "clock": 12.5, "matmul": 27.5}
    assert parts_ns(budget(run, denominator="clock")) == {"ideal": 62.5, "matmul": 27.5}
    assert pd.isna(budget(run, denominator="clock").parts.set_index("part")["time_s"]["clock"])


def test_bytes_bound_elementwise_work_and_thin_products():
    ops = [
        op("norm", "forward", "aten::mul.Tensor", 0, kind="vector", nbytes=1000),
        op("head", "forward", "aten::mm.default", 1000, nbytes=500),  # 10 ns of FLOPs, 50 of bytes
        op("fc", "forward", "aten::mm.default", 9000, nbytes=100),  # 90 ns of FLOPs, 10 of bytes
    ]
    kernels = [
        kernel_row("norm", "forward", "aten::mul", 0, 150),
        kernel_row("head", "forward", "aten::mm", 150, 60),
        kernel_row("fc", "forward", "aten::mm", 210, 95),
    ]
    found = budget(run_of(ops, kernels, 305, memory_bandwidth=10e9))

    assert parts_ns(found) == {"ideal": 100, "matmul": 10 + 5, "memory_bytes": 100 + 40, "memory": 50}
    rows = budget_by(found).set_index("module")
    assert rows.at["head", "memory_bytes_s"] == pytest.approx(40e-9)
    assert parts_ns(budget(run_of(ops, kernels, 305))) == {"ideal": 100, "matmul": 55, "memory": 150}
    measured = {"copy": {"bytes_per_s": 20e9}}
    assert budget(run_of(ops, kernels, 305, memory_bandwidth=10e9), ceilings=measured).bandwidth == 20e9


def test_the_measured_ceiling_of_a_shape_explains_its_part():
    ops = [
        op("a", "forward", "aten::addmm.default", 2 * 4 * 8 * 16, shapes="8 4x16 16x8 -> 4x8"),
        op("b", "forward", "aten::bmm.default", 2 * 3 * 4 * 8 * 16, shapes="3x4x16 3x16x8 -> 3x4x8"),
        op("c", "forward", "aten::mm.default", 2 * 4 * 4 * 4 * 5, shapes="4x4 4x4 -> 4x4", calls=5),
    ]
    kernels = [kernel_row(o["module"], "forward", o["op"].partition(".")[0], 50 * i, 50) for i, o in enumerate(ops[:2])]
    kernels += [kernel_row("c", "forward", "aten::mm", 100 + 10 * call, 10, call=call) for call in range(5)]
    shapes = [
        {"dtype": "bfloat16", "batch": 1, "m": 4, "n": 8, "k": 16, "flops_per_s": 50e9},
        {"dtype": "bfloat16", "batch": 3, "m": 4, "n": 8, "k": 16, "flops_per_s": 25e9},
        {"dtype": "bfloat16", "batch": 1, "m": 4, "n": 4, "k": 4, "reason": "no time left"},
    ]
    found = budget(run_of(ops, kernels, 150), ceilings={"shapes": shapes})

    # at half and at a quarter of the peak: 1 and 3 times the ideal 10.24 and 30.72 ns beyond it
    expected = {"ideal": 10.24 + 30.72 + 6.4, "matmul_shape": 10.24 + 3 * 30.72, "matmul": 150 - 47.36 - 102.4}
    assert parts_ns(found) == pytest.approx(expected)
    what = found.parts.set_index("part")["what"]["matmul_shape"]
    assert what == "86.5 % of their FLOPs have one measured"  # 1024 + 3072 of 4736
    assert_adds_up(found)


def attention_run():
    """Scores of 8 queries and 8 keys, written out, beside a rotary embedding in the same module."""
    square, tall = "2x8x8", "2x8x4"
    ops = [
        op("attn", "forward", "aten::mul.Tensor", 0, kind="vector", shapes=f"{tall} {tall} -> {tall}"),
        op("attn", "forward", "aten::bmm.default", 600, full=1024, hardware=1024, shapes=f"{tall} 2x4x8 -> {square}"),
        op("attn", "forward", "aten::_softmax.default", 0, kind="vector", shapes=f"{square} -> {square}"),
        op("attn", "forward", "aten::bmm.default", 600, full=1024, hardware=1024, shapes=f"{square} {tall} -> {tall}"),
        op("fc", "forward", "aten::mm.default", 4000, shapes="8x8 8x8 -> 8x8"),
    ]
    kernels, at = [], 0
    for row, duration in zip(ops, (10, 30, 20, 30, 50), strict=True):
        name = row["op"].partition(".")[0]
        kernels.append(
            {**kernel_row(row["module"], "forward", name, at, duration), "shapes": row["shapes"].partition(" ->")[0]}
        )
        at += duration
    tree = [tree_row("", "Net"), {**tree_row("attn", "Attention"), "causality": "known"}, tree_row("fc", "Linear")]
    return run_of(ops, kernels, 140, tree=tree)


def test_what_is_done_to_scores_is_attention():
    found = budget(attention_run())

    # 12 ns of unmasked products; the embedding's own product is no attention
    assert parts_ns(found) == {"ideal": 12 + 40, "attention": 80 - 12, "matmul": 10, "memory": 10}
    assert "scores written out" in found.parts.set_index("part")["what"]["attention"]
    full = budget(attention_run(), "full")
    assert parts_ns(full)["attention"] == pytest.approx(80 - 20.48)


def test_faster_than_its_bound_is_negative_and_said():
    found = budget(
        run_of([op("fc", "forward", "aten::mm.default", 8000)], [kernel_row("fc", "forward", "aten::mm", 0, 77)], 77)
    )

    assert parts_ns(found) == {"ideal": 80, "matmul": -3}
    assert found.notes == [
        "Matmul is negative: products were faster than the peak, bandwidth or ceiling that they are held against, "
        "which was measured under other load, or a cache holds what they read."
    ]
    assert (found.slowed, found.rest.empty) == (1, True)
    assert_adds_up(found)


def test_phases_have_parts_of_their_own():
    ops = [op("fc", phase, "aten::mm.default", 1000) for phase in ("forward", "recompute", "backward")]
    kernels = [
        kernel_row(
            "fc", phase, {"optimizer": "aten::_foreach_add_", "other": "aten::add"}.get(phase, "aten::mm"), 20 * i, 20
        )
        for i, phase in enumerate(("forward", "recompute", "backward", "optimizer", "other"))
    ]
    found = budget(run_of(ops, kernels, 100))

    assert parts_ns(found) == {"ideal": 20, "recompute": 20, "matmul": 20, "optimizer": 20, "other": 20}
    assert (found.mfu, found.hfu) == (pytest.approx(0.2), pytest.approx(0.3))
    # where recomputation counts as backward, it is no part of its own
    assert parts_ns(budget(run_of(ops, kernels, 100), "torch-counter")) == {
        "ideal": 30, "matmul": 30, "optimizer": 20, "other": 20,
    }  # fmt: skip


def test_a_trace_slower_than_the_step_is_scaled_down():
    found = budget(
        run_of([op("fc", "forward", "aten::mm.default", 1000)], [kernel_row("fc", "forward", "aten::mm", 7, 60)], 50)
    )

    assert parts_ns(found) == {"ideal": 10, "matmul": 40}
    assert found.notes[0].startswith(
        "Tracing slowed the step: its kernels take 60.00 ns, the undisturbed step 50.00 ns."
    )


def test_without_a_timed_step_the_traced_one_is_split():
    found = budget(
        run_of([op("fc", "forward", "aten::mm.default", 1000)], [kernel_row("fc", "forward", "aten::mm", 7, 93)])
    )

    assert found.step_s == pytest.approx(100e-9)
    assert parts_ns(found) == {"ideal": 10, "matmul": 83, "idle_launch": 7}
    assert found.notes == ["No undisturbed step was timed: this is the traced one, which tracing lengthens."]


def test_without_a_peak_nothing_is_ideal():
    run = run_of(
        [op("fc", "forward", "aten::mm.default", 1000)], [kernel_row("fc", "forward", "aten::mm", 0, 40)], 50, peaks={}
    )
    found = budget(run)

    assert pd.isna(found.parts.set_index("part")["time_s"]["ideal"])
    assert parts_ns(found) == {"matmul": 40, "other": 10}
    assert (found.mfu, found.hfu, found.denominator) == (None, None, "")
    assert found.notes[1:] == ["No ideal time: no peak is known of this device."]


def test_a_dtype_without_a_peak_is_named():
    ops = [op("a", "forward", "aten::mm.default", 1000), op("b", "forward", "aten::mm.default", 1000, dtype="float64")]
    kernels = [kernel_row("a", "forward", "aten::mm", 0, 20), kernel_row("b", "forward", "aten::mm", 20, 20)]
    found = budget(run_of(ops, kernels, 40))

    assert parts_ns(found) == {"ideal": 10, "matmul": 30}
    assert found.mfu is None
    assert found.notes == ["No datasheet peak is known for float64: no ideal time for its FLOPs, and no MFU."]


def test_rows_are_each_their_own_work_and_depth_joins_them():
    found = budget(gpu_run())

    rows = budget_by(found).set_index("module")
    # 20 + 80 ns at 10 + 20 of ideal; nothing belongs to the root or to the list of layers alone
    assert rows.loc["layers.0", ["time_s", "ideal_s", "matmul_s"]].tolist() == pytest.approx([100e-9, 30e-9, 70e-9])
    assert list(rows.index) == ["head", UNATTRIBUTED, "layers.0", "layers.1"]  # the most beyond its ideal first
    joined = budget_by(found, depth=1).set_index("module")
    assert joined.at["layers", "time_s"] == pytest.approx(200e-9)
    assert joined.at["layers", "class"] == "ModuleList"
    assert budget_by(found, depth=0).set_index("module").at["", "time_s"] == pytest.approx(400e-9)
    classes = budget_by(found, "class").set_index("class")
    assert classes.loc["Block", ["modules", "time_s"]].tolist() == [2, pytest.approx(200e-9)]
    assert classes.at["", "optimizer_s"] == pytest.approx(40e-9)
    assert pd.isna(classes.at["Block", "clock_s"])


def assert_same_utilisation(found, report):
    """MFU, HFU and the ideal part are those of the header; calflops gives FLOPs to integers, which have no peak."""
    for ours, theirs in ((found.mfu, report["mfu"]), (found.hfu, report["hfu"])):
        assert (ours is None and theirs is None) or ours == pytest.approx(theirs, rel=1e-12)
    assert report["mfu"] is not None or found.convention.startswith("calflops")
    if report["mfu"] is not None:
        assert found.seconds("ideal") == pytest.approx(report["mfu"] * found.step_s, rel=1e-12)


@pytest.mark.parametrize("convention", ["causal", "full", "flash", "torch-counter", "calflops", "calflops-0.3"])
def test_the_ideal_part_is_the_mfu_of_the_report(convention):
    for run in (gpu_run(), attention_run()):
        found, report = budget(run, convention), totals(run, convention)

        assert_same_utilisation(found, report)
        assert_adds_up(found)


TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A small model in training on this CPU, its scores written out, its layers checkpointed."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY))
    return gpuprof.profile(
        str(folder), seq_len=16, attention="eager", checkpointing="non-reentrant", optimizer="adamw", steps=2,
        device="cpu", passes=["count", "time", "trace", "memory"],
    )  # fmt: skip


@pytest.mark.parametrize("convention", ["causal", "full", "palm", "megatron", "torch-counter", "calflops"])
def test_a_real_step_adds_up_to_its_median_and_its_mfu(real, convention):
    found, report = budget(real, convention), totals(real, convention)

    assert found.step_s == report["step_s"]
    assert_same_utilisation(found, report)
    assert_adds_up(found)


def test_a_real_step_has_the_parts_that_it_must_have(real):
    found = budget(real)

    times = found.parts.set_index("part")["time_s"]
    assert (times[["ideal", "recompute", "matmul", "attention", "memory", "optimizer"]] > 0).all()
    assert times["communication"] == times["idle_launch"] == 0
    attention = found.kernels[found.kernels["work"] == "attention"]
    assert {"aten::bmm", "aten::_softmax", "aten::_softmax_backward_data"} <= set(attention["op"])
    assert set(attention["module"]) == {f"model.layers.{n}.self_attn" for n in (0, 1)}


@pytest.mark.parametrize("phase", ["forward", "backward", "optimizer"])
def test_a_phase_of_a_real_step_adds_up_to_its_median(real, phase):
    found = budget(real, phase=phase)

    assert found.step_s == step_seconds(real, phase)
    assert_adds_up(found)


def test_no_phase_has_a_part_of_a_formula(real):
    with pytest.raises(gpuprof.GpuprofError, match="palm is a formula for the whole step, of which no phase has a"):
        budget(real, "palm", phase="forward")


def test_what_cannot_be_split_is_one_line(tmp_path):
    run = gpu_run()
    del run.passes["trace"]
    with pytest.raises(gpuprof.GpuprofError, match="profile with the passes count, time and trace"):
        budget(run)
    with pytest.raises(gpuprof.GpuprofError, match="no denominator 'clock' in this run: it has datasheet"):
        budget(gpu_run(), denominator="clock")
    with pytest.raises(gpuprof.GpuprofError, match="no budget by 'op'"):
        budget_by(budget(gpu_run()), "op")


def test_ceilings_must_be_of_the_same_device(tmp_path):
    run, file = gpu_run(), tmp_path / "ceilings.json"
    with pytest.raises(gpuprof.GpuprofError, match="cannot read"):
        read_ceilings(file, run)
    for content in ("{", '{"gpuprof": "ceilings", "devices": {}}', '{"device": {"name": "Toy GPU"}, "shapes": [{}]}'):
        file.write_text(content)
        with pytest.raises(gpuprof.GpuprofError, match="has no ceilings: give a file saved by"):
            read_ceilings(file, run)
    file.write_text('{"device": {"name": "Other GPU"}, "shapes": []}')
    with pytest.raises(gpuprof.GpuprofError, match="is of Other GPU, the run of Toy GPU"):
        read_ceilings(file, run)
    file.write_text('{"device": {"name": "Toy GPU"}, "shapes": [], "copy": null}')
    assert budget(run, ceilings=read_ceilings(file, run)).bandwidth is None
