"""What a recording cannot tell, and what is withheld of it: of the runs that `recorded` makes, by hand."""

import pytest
from recorded import recorded_run
from runs import counted_run, gpu_run, kernel_row, row

from gpuprof.analysis.budget import budget
from gpuprof.analysis.comparison import launches
from gpuprof.analysis.consistency import misbooked, mismatches, withheld, withheld_of_kernels, withheld_of_step
from gpuprof.analysis.known_flops import at_least, known_of, priced_share
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.op_tables import by_op
from gpuprof.analysis.totals import totals
from gpuprof.analysis.untold import host_steps, untold
from gpuprof.record import load
from gpuprof.schema import UNATTRIBUTED, table

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


def test_a_recording_that_tells_everything():
    run = recorded_run()
    sums = totals(run)

    assert untold(run) == []
    assert (sums["step_s"], sums["steps"], sums["flops"]) == (1.5e-3, 3, 6 * 10**11)
    assert sums["mfu"] == sums["hfu"] == pytest.approx(0.4)  # 600 us of products at the peak, in 1.5 ms
    assert sums["params"] is None
    assert row(by_module(run), module="Net_0.Linear_0")["kernel_mfu"] == pytest.approx(0.5)  # 300 us in 600


@pytest.mark.parametrize("make", [gpu_run, counted_run])
def test_nothing_of_that_is_said_of_a_measured_run(make):
    assert untold(make()) == []
    assert host_steps(make()) == ""
    assert priced_share(make()) == 1.0


def test_kernels_of_a_measured_gpu_without_flops_make_a_lower_bound():
    run = gpu_run()
    more = kernel_row("head", "forward", "mylib::moe", 440, 110, kernel="my_gemm", call=20)
    run.kernels = table("kernels", [*run.kernels.to_dict("records"), more])

    assert priced_share(run) == pytest.approx(400 / 510)
    assert (at_least(run), known_of(run)) == ("at least ", "FLOPs are known of 78.4 % of the matmul kernel time")
    run.passes["trace"].facts["compiled"] = True  # its operators were counted one by one, under other names
    assert (priced_share(run), at_least(run)) == (1.0, "")


def test_a_cpu_has_no_kernels_to_ask():
    run = gpu_run()
    run.device["type"] = "cpu"

    assert priced_share(run) is None


def test_operators_of_a_recorded_cpu_are_asked_by_their_kind():
    run = recorded_run()
    run.device["type"] = "cpu"
    run.kernels["kernel"] = run.kernels["op"]
    run.ops.loc[run.ops["op"] == "aten::mm", ["flops_causal", "flops_full", "flops_hardware"]] = None

    assert priced_share(run) == pytest.approx(400 / 1200)


def test_in_a_graph_there_are_no_operators():
    few, many = recorded_run(graph_us=50), recorded_run(graph_us=600)

    assert priced_share(few) == pytest.approx(1200 / 1250)
    assert totals(few)["mfu"] == pytest.approx(0.4)
    assert untold(few)[1:] == [
        "3.4 % of the kernel time is in CUDA or HIP graphs: without operator, shapes, FLOPs and module.",
        "4.0 % of the matmul kernel time is of kernels whose FLOPs are not known, most of it "
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64…; FLOPs, FLOP/s and MFU of modules with such are "
        "lower bounds.",
    ]
    reason = "30.0 % of the kernel time is in CUDA or HIP graphs, where a recording has no operators"
    assert not any("graphs" in line for line in untold(many))  # it is why there is no rate, and said as that
    assert mismatches(many) == [reason]
    assert {totals(many)[name] for name in ("mfu", "hfu", "flops_per_s")} == {None}
    assert withheld_of_step(many) == withheld_of_kernels(many) == f"withheld: {reason}"


def test_without_shapes_flops_are_unknown_and_not_none():
    run = recorded_run(shapes=False)
    sums, found = totals(run), budget(run)

    assert [sums[name] for name in ("flops", "macs", "flops_hardware", "mfu", "flops_per_s")] == [None] * 5
    assert by_module(run)["flops_forward"].isna().all()
    assert untold(run)[0] == (
        "100.0 % of the kernel time is of operators without shapes, so without FLOPs: record with record_shapes=True."
    )
    assert found.parts.set_index("part")["time_s"][["ideal", "memory_bytes"]].isna().all()
    assert launches(run)["flops"].isna().all()


def test_without_a_step_there_is_no_mfu_of_it_and_operators_have_theirs():
    run = recorded_run(steps=False)

    assert withheld(run) == ""
    assert withheld_of_step(run).startswith("withheld: no step is found in the recording")
    assert (totals(run)["mfu"], totals(run)["flops_per_s"], budget(run).mfu) == (None, None, None)
    assert row(by_op(run), op="aten::mm")["kernel_mfu"] == pytest.approx(0.5)
    assert budget(run).step_s == pytest.approx(1.4e-3)


def test_kernels_of_two_devices_have_no_peak():
    run = recorded_run(devices=[H100, A100])

    assert mismatches(run) == [f"the recording has kernels of 2 devices ({H100}, {A100}), not of one"]
    assert by_op(run)["kernel_mfu"].isna().all()


def test_kernels_outside_steps_whole_microseconds_and_the_time_of_the_host():
    run = recorded_run(
        early_kernels=5, early_ns=100_000, outside_kernels=1, outside_ns=5_000, all_ns=1_505_000, whole_us=True,
        host_step_s=[0.5e-3, 1.2e-3, 1.6e-3],
    )  # fmt: skip

    assert untold(run) == [
        "5 kernels (6.6 % of its kernel time) launched before the recording began: of no step, and left out.",
        "1 kernel (0.3 % of its kernel time) launched outside every step: of no step, and left out.",
        "All times are whole microseconds, so each is known to 1 us: half the kernels take 200 us at most.",
    ]
    assert host_steps(run) == "on the host ProfilerStep took 500 us to 1.60 ms"
    assert host_steps(recorded_run(host_step_s=[1.45e-3, 1.5e-3, 1.55e-3])) == ""  # within 5 %


def test_what_no_module_has_and_what_cannot_be_read():
    run = recorded_run(modules=False)
    run.passes["count"].facts["ops_unread"] = {"aten::mm": "no value of its stride is recorded"}
    run.kernels.loc[run.kernels["op"] == "aten::mm", "shapes"] = "4x4 4x4"
    run.ops.loc[run.ops["op"] == "aten::mm", ["flops_causal", "flops_full", "flops_hardware"]] = None

    assert priced_share(run) == pytest.approx(400 / 1200)
    assert untold(run) == [
        "92.9 % of the kernel time is of no module, 60.7 % in the backward: record with with_stack=True.",
        "66.7 % of the matmul kernel time is of kernels whose FLOPs are not known, most of it "
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64…; FLOPs, FLOP/s and MFU of modules with such are "
        "lower bounds.",
        "FLOPs of aten::mm cannot be told for all calls: no value of its stride is recorded (57.1 % of the kernel "
        "time).",
    ]
    assert totals(run)["backward_ratio"] is None


def test_a_rate_above_the_peak_is_a_mistake_of_reading():
    run = recorded_run()
    run.kernels["duration_ns"] //= 3  # of 200 us for 100 at the peak, 66.7

    first, *_ = misbooked(run)
    assert first == (
        "Net_0.Linear_0 in the forward would have run at 150.0 % of the datasheet dense peak: a mistake of reading, "
        "please report it"
    )
    assert "aten::mm of 5000x2000 2000x5000 would have run at 150.0 % of the datasheet dense peak" in str(
        misbooked(run)
    )
    assert by_op(run)["kernel_mfu"].isna().all()
    assert by_module(run)["kernel_mfu"].isna().all()


def test_an_operator_is_as_fast_as_the_kernels_of_it_that_multiply():
    run = recorded_run()
    products = run.kernels["op"] == "aten::addmm"  # of 100 us at the peak, in 90 us and 20 us of filling memory
    run.kernels.loc[products, "duration_ns"] = 90_000
    fills = run.kernels[products].assign(kernel="Memset (Device)", duration_ns=20_000)
    fills["start_ns"] += 90_000
    run.kernels = table("kernels", [*run.kernels.to_dict("records"), *fills.to_dict("records")])

    assert misbooked(run) == [
        "aten::addmm of 5000 5000x2000 2000x5000 would have run at 111.1 % of the datasheet dense peak: a mistake of "
        "reading, please report it"
    ]


def test_a_step_faster_than_the_device_is_one_too():
    run = recorded_run()
    run.samples["time_s"] = 0.5e-3

    assert mismatches(run) == [
        "the counted FLOPs in the time of the step are 120.0 % of the datasheet dense peak: a mistake of reading, "
        "please report it"
    ]


def test_a_given_peak_may_be_the_mistake():
    run = recorded_run()
    run.settings["peak_tflops"] = 300

    assert mismatches(run)[0].endswith(
        "133.3 % of the peak given with --peak-tflops: a mistake of reading, please report it, or that peak is too low"
    )


def test_it_is_the_same_from_a_file(tmp_path):
    run = recorded_run(graph_us=50)

    assert untold(load(run.save(tmp_path / "run.json.gz"))) == untold(run)


def test_a_recording_of_the_gpu_alone_has_no_operators_rather_than_no_modules():
    run = recorded_run(modules=False, shapes=False)
    run.ops = run.ops[:0]
    run.kernels = run.kernels.assign(op="", call=None, module=UNATTRIBUTED, phase="other")

    assert untold(run)[1] == (
        "100.0 % of the kernel time is of no module, as the recording has no operators: record the activity CPU too, "
        "with with_stack=True."
    )
    assert "lower bounds" not in " ".join(untold(run))  # there are none
