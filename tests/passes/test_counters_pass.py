"""The counters pass, its child really run on the CPU under a stand-in for Nsight Compute."""

import stat
import sys
from pathlib import Path

import pytest
import torch
from runs import gpu_run

import gpuprof
from gpuprof import profiler
from gpuprof.errors import GpuprofError
from gpuprof.hardware import counters as names
from gpuprof.hardware import ncu
from gpuprof.passes import counters
from gpuprof.schema import UNATTRIBUTED, table
from gpuprof.workload import Options, build

HERE = Path(__file__).parent
MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 128, bias=False), nn.Linear(128, 64, bias=False)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def net():
    return Block(), (torch.randn(32, 64),)
"""
FORWARD = 2 * 32 * 64 * 128  # of either layer


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The stand-in on PATH."""
    script = tmp_path / "bin" / "ncu"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{(HERE / 'fake_ncu.py').read_text()}")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
    return str(script)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "net.py"
    file.write_text(MODEL)
    return f"{file}:net"


@pytest.fixture(scope="module")
def counted(model):
    return gpuprof.profile(model, device="cpu", dtype="bfloat16", passes=["count"])


def collect(path, model, ops):
    plan = names.plan(names.names_of("9.0"), ["bfloat16"])
    return counters.collect(path, plan, (model, Options(device="cpu", dtype="bfloat16")), "cpu", ops, seed=0)


def test_every_launch_belongs_to_its_row_of_the_operator_table(fake, model, counted):
    frame, facts = collect(fake, model, counted.ops)

    work = frame[frame["tensor_bfloat16"] > 0].groupby(["module", "phase"])["tensor_bfloat16"].sum()
    assert work.to_dict() == {
        ("up", "forward"): FORWARD,
        ("down", "forward"): FORWARD,
        ("down", "backward"): 2 * FORWARD,
        ("up", "backward"): FORWARD,  # the input needs no gradient
    }
    keys = ["module", "phase", "op", "shapes", "dtype"]
    assert set(frame[keys].itertuples(index=False)) <= set(counted.ops[keys].itertuples(index=False))
    assert facts["differences"] == []
    assert facts["replays"] == [1, 1]
    assert facts["launches"] == len(frame) == frame["number"].max() + 1
    assert (frame["tensor_instructions"] == frame["tensor_bfloat16"] // 4096).all()
    assert (frame["dram_read_bytes"] == 64).all()
    assert frame["scalar_float32"].isna().all()
    assert [(c["shape"], c["expected"], c["executed"]) for c in facts["calibration"]] == [
        ([4096, 4096, 4096], 2 * 4096**3, 2 * 4096**3),
        ([4000, 4000, 4000], 2 * 4000**3, 2 * 4000**3),
        ([1, 4096, 4096], 2 * 4096**2, 2 * 4096**2),
    ]


def test_a_child_that_fails_says_why_in_its_own_words(fake, counted):
    with pytest.raises(GpuprofError, match="exit code 2: gpuprof: no model 'smolm2'"):
        collect(fake, "smolm2", counted.ops)


# by hand

WIDTHS = {"tensor_bfloat16": {"t": 1}}
STEP = counters.Step(
    table("ops", [{"module": "a", "phase": "forward", "op": "aten::mm.default", "calls": 1, "dtype": "bfloat16"}]),
    [0],
    {},
)


def launch(ranges, value, kernel="k"):
    return ncu.Launch(kernel, "1x1x1", "1x1x1", ranges, {"t": value})


def calibration(value=2 * 4096**3, kernel="k"):
    return launch(":gpuprof|calibration|bfloat16|4096x4096x4096:", value, kernel)


def by_hand(*launches, step=STEP, scale=1, ops=STEP.ops):
    plan = names.Plan((("t",),), WIDTHS, ())
    return counters.combine(plan, [([calibration(scale * 2 * 4096**3), *launches], step)], ops)


@pytest.mark.parametrize("scale", [0.5, 2])
def test_a_count_of_half_or_twice_the_flops_is_brought_right(scale):
    frame, facts = by_hand(launch("gpuprof|op|0|1", scale * 1000), scale=scale)

    assert facts["calibration"][0]["executed"] == scale * 2 * 4096**3
    assert list(frame["tensor_bfloat16"]) == [1000]


@pytest.mark.parametrize("scale", [0, 0.75, 3, 1.0001])
def test_any_other_count_stops_the_pass(scale):
    with pytest.raises(GpuprofError, match=r"a 4096x4096x4096 matmul in bfloat16 reads .* cannot be believed"):
        by_hand(scale=scale)


def test_a_canary_that_agrees_is_joined_and_one_of_other_launches_is_left_out_and_said():
    plan = names.Plan((("t",), ("i",)), WIDTHS | {"tensor_instructions": {"i": 1}}, ())
    work = [calibration(), launch("gpuprof|op|0|1", 8)]
    canary = [one._replace(metrics={"i": 3}) for one in work]

    frame, facts = counters.combine(plan, [(work, STEP), (canary, STEP)], STEP.ops)
    assert (list(frame["tensor_bfloat16"]), list(frame["tensor_instructions"])) == ([8], [3])
    assert facts["differences"] == []

    frame, facts = counters.combine(plan, [(work, STEP), (canary + canary[-1:], STEP)], STEP.ops)
    assert (list(frame["tensor_bfloat16"]), frame["tensor_instructions"].isna().all()) == ([8], True)
    assert facts["differences"] == ["the run for tensor_instructions launched other kernels, and is left out"]


def test_another_step_than_the_counted_one_is_said():
    _, facts = by_hand(ops=STEP.ops.assign(calls=2))

    assert facts["differences"] == ["the counted step ran other operators than the counting pass"]


def test_a_launch_outside_every_range_belongs_to_nobody():
    frame, _ = by_hand(launch("", 5), launch("gpuprof|op|0|1", 7))

    assert list(frame["module"]) == [UNATTRIBUTED, "a"]
    assert list(frame["phase"]) == ["other", "forward"]
    assert list(frame["tensor_bfloat16"]) == [5, 7]


def test_a_launch_of_a_call_that_failed_belongs_to_nobody():
    frame, _ = by_hand(launch("gpuprof|op|0|1", 5), launch("gpuprof|op|1|1", 7), step=STEP._replace(row_of=[None, 0]))

    assert list(frame["module"]) == [UNATTRIBUTED, "a"]
    assert list(frame["phase"]) == ["other", "forward"]
    assert list(frame["tensor_bfloat16"]) == [5, 7]


@pytest.mark.parametrize("order", [1, -1])
def test_of_nested_operators_the_innermost_counts_in_whichever_order_they_are_printed(order):
    ops = table("ops", [{"module": name, "phase": "forward", "op": "x", "calls": 1, "dtype": ""} for name in "ab"])
    ranges = " ".join(["gpuprof|op|0|1", "gpuprof|op|1|2"][::order])

    frame, _ = by_hand(launch(ranges, 1), step=counters.Step(ops, [0, 1], {}))

    assert list(frame["module"]) == ["b"]


def test_what_was_not_read_is_missing_and_said():
    frame, facts = by_hand(launch("gpuprof|op|0|1", None))

    assert frame["tensor_bfloat16"].isna().all()
    assert facts["differences"] == ["not read for every kernel: tensor_bfloat16"]


def test_a_calibration_of_several_kernels_is_their_sum():
    half = 4096**3
    scale, (entry,), _ = counters.calibrate([calibration(half), calibration(half, "splitK")], WIDTHS)

    assert scale == {"tensor_bfloat16": 1.0}
    assert entry["kernels"] == ["k", "splitK"]


def test_a_calibration_that_was_not_read_or_is_not_there_stops():
    with pytest.raises(GpuprofError, match="reads nothing"):
        counters.calibrate([calibration(None)], WIDTHS)
    with pytest.raises(GpuprofError, match="no kernel of the bfloat16 multiplication"):
        counters.calibrate([], WIDTHS)


# 2MNK, half of it and a reading that is neither, in three dtypes
MIXED = {"tensor_bfloat16": 2 * 4096**3, "tensor_tf32": 4096**3, "tensor_float8": 12_345}


def mixed(*columns):
    """A step in which each launch reads 1000 in every column, calibrated as `MIXED` says, in one run."""
    parts = {column: {column: 1} for column in columns}
    launches = [
        ncu.Launch("q", "1x1x1", "1x1x1", f":gpuprof|calibration|{column.partition('_')[2]}|4096x4096x4096:",
                   dict.fromkeys(columns, None) | {column: MIXED[column]})
        for column in columns
    ]  # fmt: skip
    launches.append(ncu.Launch("k", "1x1x1", "1x1x1", "gpuprof|op|0|1", dict.fromkeys(columns, 1000)))
    return counters.combine(names.Plan((columns,), parts, ()), [(launches, STEP)], STEP.ops)


def test_a_dtype_that_does_not_calibrate_loses_its_column_and_the_others_stay():
    frame, facts = mixed(*MIXED)

    assert list(frame["tensor_bfloat16"]) == [1000]
    assert list(frame["tensor_tf32"]) == [2000]
    assert frame["tensor_float8"].isna().all()
    assert facts["differences"] == [
        "calibration: a 4096x4096x4096 matmul in float8 reads 12,345 FLOPs where it is 137,438,953,472, so "
        "tensor_float8 cannot be believed (kernels: q)"
    ]
    assert [(entry["column"], entry["executed"]) for entry in facts["calibration"]] == list(MIXED.items())


def test_no_dtype_that_calibrates_stops_the_pass():
    with pytest.raises(GpuprofError, match="matmul in float8 reads 12,345 FLOPs"):
        mixed("tensor_float8")


def test_outside_tensor_cores_the_scaling_of_the_result_is_allowed_for():
    parts = {"scalar_float32": {"t": 1}}
    named = ":gpuprof|calibration|float32|4096x4096x4096:"
    scale, _, _ = counters.calibrate([launch(named, 2 * 4096**3 + 2 * 4096**2)], parts)

    assert scale == {"scalar_float32": 1.0}
    with pytest.raises(GpuprofError, match="cannot be believed"):
        counters.calibrate([launch(named, 2 * 4096**3 * 1.01)], parts)


def test_a_dtype_that_cannot_be_multiplied_here_is_left_out_and_said():
    step = STEP._replace(refused={"float8": "no kernel"})
    plan = names.Plan((("t", "u"),), WIDTHS | {"tensor_float8": {"u": 1}}, ())

    frame, facts = counters.combine(plan, [([calibration(), launch("gpuprof|op|0|1", 7)], step)], STEP.ops)

    assert frame["tensor_float8"].isna().all()
    assert facts["differences"] == ["float8 is not counted, for it cannot be calibrated (no kernel)"]


def test_a_refused_dtype_outside_tensor_cores_is_left_out_too():
    step = STEP._replace(refused={"float32": "out of memory"})
    plan = names.Plan((("t", "u"),), WIDTHS | {"scalar_float32": {"u": 1}}, ())

    frame, facts = counters.combine(plan, [([calibration(), launch("gpuprof|op|0|1", 7)], step)], STEP.ops)

    assert frame["scalar_float32"].isna().all()
    assert facts["differences"] == ["float32 is not counted, for it cannot be calibrated (out of memory)"]


# which dtypes are collected


def multiplying(*rows, **environment):
    """Dtypes that a GPU run with operators of these dtypes, kinds and FLOPs is counted in."""
    run = gpu_run()
    run.ops = table("ops", [{"dtype": d, "kind": kind, "flops_full": flops} for d, kind, flops in rows])
    run.environment |= environment
    return profiler._multiplied(run, least=profiler._WORTH_COUNTING)


@pytest.mark.parametrize(("flops", "found"), [(99, ["bfloat16"]), (101, ["bfloat16", "float32"])])
def test_a_dtype_with_less_than_a_ten_thousandth_of_the_flops_is_not_collected(flops, found):
    # the rotary angles of transformers 5.17, float32 products with K = 1
    assert multiplying(("bfloat16", "matmul", 1_000_000 - flops), ("float32", "matmul", flops)) == found


def test_tf32_is_collected_where_float32_may_run_as_it():
    matmul, convolution = ("float32", "matmul", 600), ("float32", "convolution", 400)

    assert multiplying(matmul, allow_tf32_cudnn=True) == ["float32"]
    assert multiplying(matmul, allow_tf32_matmul=True) == ["float32", "tf32"]
    assert multiplying(("float32", "attention", 1), allow_tf32_matmul=True) == ["float32", "tf32"]
    assert multiplying(convolution, allow_tf32_cudnn=True) == ["float32", "tf32"]
    assert multiplying(("float32", "recurrent", 1), allow_tf32_cudnn=True) == ["float32", "tf32"]
    assert multiplying(convolution, allow_tf32_matmul=True) == ["float32"]
    assert multiplying(("bfloat16", "matmul", 1), allow_tf32_matmul=True, allow_tf32_cudnn=True) == ["bfloat16"]
    assert multiplying(("float8_e4m3fn", "matmul", 1), ("float8_e5m2", "matmul", 1)) == ["float8"]


def test_an_operator_without_flops_has_no_dtype_to_collect():
    assert multiplying(("bfloat16", "matmul", 5), ("float64", "matmul", 0), ("float16", "", None)) == ["bfloat16"]


# what cannot run


class Gpu:
    """A CUDA device for who asks its type, and the CPU for who builds on it."""

    type = "cuda"

    def __str__(self):
        return "cpu"


@pytest.fixture
def workload(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(ncu, "forbidden", lambda: False)
    built = build(model, Options(device="cpu", dtype="bfloat16"))
    built.device = Gpu()
    return built


def test_the_whole_pass(fake, workload, counted):
    frame, outcome = counters.measure(workload, counted.ops, ["bfloat16"], "minimal", seed=0)

    # this Nsight Compute lists no counter of FLOPs
    assert (outcome.status, len(frame)) == ("skipped", 0)
    assert outcome.reason == "no counter of FLOPs in bfloat16 is known on this GPU"


def test_the_whole_pass_with_the_counters_of_the_chip(fake, workload, counted, monkeypatch):
    monkeypatch.setattr(ncu, "metrics_of", lambda path, capability: names.names_of(capability))

    frame, outcome = counters.measure(workload, counted.ops, ["bfloat16"], "minimal", seed=0)

    assert outcome.status == "done"
    assert (outcome.facts["ncu"], outcome.facts["level"]) == ("2025.3.1.0", "minimal")
    assert frame["tensor_bfloat16"].sum() == 5 * FORWARD


def test_without_permission_it_is_skipped_with_what_to_do(fake, workload, counted, monkeypatch):
    monkeypatch.setattr(ncu, "forbidden", lambda: True)

    _, outcome = counters.measure(workload, counted.ops, ["bfloat16"], "minimal", seed=0)

    assert outcome.status == "skipped"
    assert "administrators" in outcome.reason
    assert "CAP_PERFMON" in outcome.remedy


def test_without_ncu_it_is_skipped_with_what_to_do(workload, counted, monkeypatch):
    monkeypatch.setenv("PATH", "")

    _, outcome = counters.measure(workload, counted.ops, ["bfloat16"], "minimal", seed=0)

    assert (outcome.status, outcome.reason) == ("skipped", "no ncu on PATH")
    assert "Nsight Compute" in outcome.remedy


def test_a_model_given_as_an_object_cannot_be_built_again(workload, counted):
    workload.recipe = None

    _, outcome = counters.measure(workload, counted.ops, ["bfloat16"], "minimal", seed=0)

    assert outcome.status == "skipped"
    assert "file.py:function" in outcome.remedy


def test_on_a_cpu_the_run_goes_on_without_it(model):
    run = gpuprof.profile(model, device="cpu", passes=["count", "counters"])

    assert run.passes["counters"].status == "skipped"
    assert run.passes["counters"].reason == "hardware counters need an NVIDIA GPU"
    assert run.done("count")
    assert run.counters.empty


def test_it_needs_the_counting_pass(model):
    run = gpuprof.profile(model, device="cpu", passes=["memory", "counters"])

    assert run.passes["counters"].remedy == "add count to --passes"


def test_an_unknown_level_is_refused(model):
    with pytest.raises(GpuprofError, match="--counters must be minimal or full, not some"):
        gpuprof.profile(model, device="cpu", passes=["count"], counter_level="some")


def test_a_count_that_was_printed_with_six_digits_is_exact_enough():
    frame, facts = by_hand(launch("gpuprof|op|0|1", 1000), scale=1.37439e11 / (2 * 4096**3))

    assert facts["calibration"][0]["executed"] == 137_439_000_000
    assert list(frame["tensor_bfloat16"]) == [1000]
