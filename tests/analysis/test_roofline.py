"""Rates and roofs by hand: a device of 100 FLOP/ns and 1 byte/ns, so its ridge is at 100 FLOP per byte."""

import pytest
from runs import counted_run, generation_run, gpu_run, kernel_row, ops_row, row

import gpuprof
from gpuprof.analysis.roofline import COLUMNS, by_bound, clouds, dtypes, roofline, roofs
from gpuprof.schema import table


def toy(ops=None, kernels=None, **device):
    """`gpu_run`, or other operators on its device: 4000 FLOPs forward, 8000 backward, 10 bytes per operator."""
    run = gpu_run()
    run.device |= {"memory_bandwidth": 1e9} | device
    if ops is not None:
        run.ops = table("ops", ops)
        run.kernels = table("kernels", kernels)
    return run


def test_a_row_by_hand():
    rows = roofline(toy())

    assert list(rows.columns) == COLUMNS
    mm = row(rows, name="aten::mm")
    assert (mm["kind"], mm["kernel"], mm["kernels"]) == ("matmul", "gemm", 1)
    assert (mm["flops"], mm["bytes"]) == (4000, 3 * 10)
    assert mm["time_s"] == pytest.approx(80e-9)
    assert mm["time_share"] == pytest.approx(80 / 440)
    assert mm["intensity"] == pytest.approx(4000 / 30)
    assert mm["flops_per_s"] == pytest.approx(50e9)
    # 4000 FLOPs take 40 ns and 30 bytes take 30 ns
    assert (mm["bound"], mm["of_roof"], mm["roof_flops_per_s"]) == ("compute", pytest.approx(0.5), pytest.approx(100e9))
    assert rows["time_share"].sum() == pytest.approx(1)
    assert rows["time_s"].is_monotonic_decreasing


def test_below_the_ridge_memory_is_the_roof():
    mm = row(roofline(toy(memory_bandwidth=0.5e9)), name="aten::mm")

    assert (mm["bound"], mm["of_roof"]) == ("memory", pytest.approx(60 / 80))
    assert mm["roof_flops_per_s"] == pytest.approx(mm["intensity"] * 0.5e9)


def test_what_is_not_known_is_missing():
    rows = roofline(toy())
    step = row(rows, name="mylib::step")

    assert [step[name] for name in ("bound", "kind")] == ["", ""]
    assert rows.set_index("name").loc["mylib::step", ["flops", "intensity", "of_roof"]].isna().all()
    assert by_bound(rows) == {"": pytest.approx(40 / 440), "compute": pytest.approx(400 / 440)}

    without = roofline(toy(memory_bandwidth=None))
    assert set(without["bound"]) == {""}
    assert row(without, name="aten::mm")["flops_per_s"] == pytest.approx(50e9)


@pytest.mark.parametrize(
    ("by", "name", "forward", "backward"),
    [("class", "Block", (2000, 40), (4000, 160)), ("module", "layers.1", (1000, 20), (2000, 80))],
)
def test_classes_and_modules_own_their_work_alone(by, name, forward, backward):
    rows = roofline(toy(), by)

    for phase, (flops, time) in (("forward", forward), ("backward", backward)):
        found = row(rows, name=name, phase=phase)
        assert (found["kind"], found["flops"], found["time_s"]) == ("matmul", flops, pytest.approx(time * 1e-9))
    assert rows["time_share"].sum() == pytest.approx(1)


def test_vector_work_has_its_estimate_and_float32s_roof():
    ops = [ops_row("head", "forward", "aten::add.Tensor", 0, kind="vector", vector=600, dtype="bfloat16")]
    kernels = [kernel_row("head", "forward", "aten::add_", 0, 100, kernel="add")]
    peaks = {"datasheet": {"bfloat16": 100e9, "float32": 20e9}}

    add = row(roofline(toy(ops, kernels, peaks=peaks)), name="aten::add")

    # 600 FLOPs at 20 FLOP/ns take 30 ns, 10 bytes 10 ns
    assert (add["flops"], add["bound"], add["of_roof"]) == (600, "compute", pytest.approx(0.3))


def test_every_dtype_is_held_against_its_own_peak():
    ops = [
        ops_row("head", "forward", "aten::mm.default", 1000, dtype="bfloat16"),
        ops_row("head", "forward", "aten::mm.default", 1000, dtype="float32"),
    ]
    kernels = [kernel_row("head", "forward", "aten::mm", 100 * call, 100, call=call) for call in (0, 1)]
    run = toy(ops, kernels, peaks={"datasheet": {"bfloat16": 100e9, "float32": 20e9}})

    mm = row(roofline(run), name="aten::mm")

    assert mm["of_roof"] == pytest.approx((1000 / 100 + 1000 / 20) / 200)
    assert sorted(dtypes(run)) == ["bfloat16", "float32"]


def test_work_above_its_roof_stays_so():
    ops = [ops_row("head", "forward", "aten::add.Tensor", 0, kind="vector", vector=5)]
    mm = row(roofline(toy(ops, [kernel_row("head", "forward", "aten::add", 0, 4)])), name="aten::add")

    assert (mm["bound"], mm["of_roof"]) == ("memory", pytest.approx(10 / 4))  # 10 bytes in 4 ns: from a cache


def test_overlapping_kernels_take_their_union():
    ops = [ops_row("head", "forward", "aten::mm.default", 1000, calls=2)]
    kernels = [
        kernel_row("head", "forward", "aten::mm", 0, 60, call=0, stream="7"),
        kernel_row("head", "forward", "aten::mm", 40, 60, call=1, stream="8"),
    ]

    assert row(roofline(toy(ops, kernels)), name="aten::mm")["time_s"] == pytest.approx(100e-9)


def test_flops_are_booked_on_the_longest_kernel_of_each_call():
    ops = [
        ops_row("head", "backward", "aten::mm.default", 900) | {"shapes": "3x4 4x5 -> 3x5"},
        ops_row("head", "backward", "aten::mm.default", 800, calls=2) | {"shapes": "4x3 3x5 -> 4x5"},
    ]
    shapes = {"shapes": "4x3 3x5"}
    kernels = [
        kernel_row("head", "backward", "aten::mm", 0, 50, kernel="big", call=0) | {"shapes": "3x4 4x5"},
        kernel_row("head", "backward", "aten::mm", 50, 5, kernel="reduce", call=0) | {"shapes": "3x4 4x5"},
        kernel_row("head", "backward", "aten::mm", 60, 20, kernel="small", call=1) | shapes,
        kernel_row("head", "backward", "aten::mm", 80, 30, kernel="big", call=2) | shapes,
    ]

    rows = roofline(toy(ops, kernels), "kernel").set_index("name")

    assert rows["flops"].fillna(-1).to_dict() == {"big": 900 + 400, "small": 400, "reduce": -1}
    assert rows["bytes"].fillna(-1).to_dict() == {"big": 10 + 5, "small": 5, "reduce": -1}
    assert rows.loc["big", "time_s"] == pytest.approx(80e-9)


def test_counters_say_what_memory_really_moved():
    run = counted_run()  # every launch read 30 and wrote 10 bytes
    run.device["memory_bandwidth"] = 1e9

    mm = row(roofline(run), name="aten::mm")

    assert (mm["dram_bytes"], mm["dram_intensity"]) == (3 * 40, pytest.approx(4000 / 120))
    assert row(roofline(run, "class"), name="Block", phase="backward")["dram_bytes"] == 80
    run.counters.loc[0, "dram_read_bytes"] = None
    assert roofline(run).set_index("name").loc[["aten::mm"], "dram_bytes"].isna().all()


def test_roofs_pair_a_measured_peak_with_the_measured_bandwidth():
    run = toy(measured_bandwidth=0.8e9, peaks={"datasheet": {"bfloat16": 100e9}, "measured": {"bfloat16": 80e9}})

    datasheet, measured = roofs(run)

    assert (datasheet.bytes_per_s, datasheet.bandwidth_of, datasheet.ridge("bfloat16")) == (1e9, "datasheet", 100)
    assert (measured.bytes_per_s, measured.bandwidth_of, measured.ridge("bfloat16")) == (0.8e9, "measured", 100)
    assert datasheet.ridge("float32") is None
    # 4000 FLOPs at 80 FLOP/ns take 50 ns, 30 bytes at 0.8 bytes/ns 37.5
    assert row(roofline(run, denominator="measured"), name="aten::mm")["of_roof"] == pytest.approx(50 / 80)
    run.device["memory_bandwidth"] = None
    assert {entry.bandwidth_of for entry in roofs(run)} == {"measured"}


@pytest.mark.parametrize("by", ["op", "kernel"])
def test_a_generation_has_a_point_for_each_phase(by):
    # 20,000 FLOPs and 20 bytes in 300 ns of prefill; 4,800 and 20 in 600 ns of decoding
    rows = roofline(generation_run(), by)

    for phase, flops, time, share in (("prefill", 20_000, 300, 1 / 3), ("decode", 4800, 600, 2 / 3)):
        found = row(rows, phase=phase)
        assert (found["flops"], found["bytes"]) == (flops, 20)
        assert (found["time_s"], found["time_share"]) == (pytest.approx(time * 1e-9), pytest.approx(share))
        assert found["flops_per_s"] == pytest.approx(flops / time * 1e9)


def test_points_of_one_phase_share_its_time():
    rows = roofline(generation_run(), "module", phase="decode")

    assert dict(zip(rows["name"], rows["time_share"], strict=True)) == pytest.approx({"head": 0.6, "attn": 0.4})
    with pytest.raises(gpuprof.GpuprofError, match="there are those of prefill, decode"):
        roofline(generation_run(), phase="encode")


def test_clouds_by_hand():
    assert clouds(generation_run()).to_dict("records") == [
        {"phase": "prefill", "flops": 20_000, "bytes": 20, "moved_bytes": 2120, "time_s": pytest.approx(300e-9),
         "flops_per_s": pytest.approx(20_000 / 300e-9)},
        {"phase": "decode", "flops": 4800, "bytes": 20, "moved_bytes": 4740, "time_s": pytest.approx(600e-9),
         "flops_per_s": pytest.approx(8e9)},
    ]  # fmt: skip
    assert clouds(gpu_run()).empty


def test_what_cannot_be_is_said():
    run = toy()

    with pytest.raises(gpuprof.GpuprofError, match="no roofline by 'phase': known are op, class, module, kernel"):
        roofline(run, "phase")
    with pytest.raises(gpuprof.GpuprofError, match="no denominator 'clock' in this run: there are datasheet"):
        roofline(run, denominator="clock")
    del run.passes["trace"]
    with pytest.raises(gpuprof.GpuprofError, match="no roofline without the trace pass: profile again with it"):
        roofline(run)
