import pytest
from runs import compiled_run, counted_run, counters_row, generation_run, gpu_run, kernel_row, rank_run
from test_budget import op, run_of

from gpuprof.analysis.verdict import verdict
from gpuprof.job import assemble
from gpuprof.job_part import part
from gpuprof.record import PassOutcome
from gpuprof.render import render
from gpuprof.render.verdict import verdict_text
from gpuprof.render.view import View
from gpuprof.run import Run
from gpuprof.schema import table

PEAK = "the datasheet dense peak (bfloat16 100.0 GFLOP/s)"
CEILINGS = (
    "Next (what it would gain is not known): 'gpuprof ceilings --shapes RUN -o FILE' on the same device says whether "
    "products reach what it reaches for their shapes, and 'gpuprof budget RUN --ceilings FILE' what is left."
)


def test_the_mfu_what_took_the_rest_and_what_to_measure_next():
    # 12,000 FLOPs at 100 FLOP/ns are 120 of 480 ns; products take 280 more, the optimizer and the rest 40 each
    assert verdict(gpu_run()) == [
        f"MFU 25.0 % of {PEAK}; the largest part beside the ideal is matmul (above ideal) with 58.3 % of the step.",
        CEILINGS,
    ]


def waiting(first_ns, second_ns):
    """A step of 1,000 ns at a tenth of the peak that waits for two things, for launches and in the open."""
    kernels = [
        kernel_row("fc", "forward", "aten::mm", 0, 1000 - first_ns - second_ns),
        kernel_row("", "backward", "", 1000 - first_ns - second_ns, second_ns, kernel="ncclDevKernel_AllReduce"),
        kernel_row("fc", "forward", "aten::mm", 1000, 0),
    ]
    return run_of([op("fc", "forward", "aten::mm.default", 10_000)], kernels, 1000)


def test_the_first_change_and_its_gain():
    assert verdict(waiting(600, 100)) == [
        f"MFU 10.0 % of {PEAK}; the largest part beside the ideal is idle launch (GPU waits) with 60.0 % of the step.",
        "Change first (at most 60.0 % of the step, 600.0 ns, an estimate): CUDA graphs, "
        "torch.compile(mode='reduce-overhead'), or more work per kernel.",
    ]


def test_two_parts_and_two_changes_that_are_about_as_large():
    # within a tenth of the larger: 40 and 37 %, but not 40 and 36 %
    first, change = verdict(waiting(400, 370))
    assert "idle launch (GPU waits) with 40.0 % and communication (not hidden) with 37.0 % of the step, too" in first
    assert first.endswith("too close to say which is larger.")
    assert change.startswith(
        "Change first, as two would gain about as much (at most 40.0 % and 37.0 % of the step, estimates that overlap)"
    )
    assert "reduce-overhead'), or more work per kernel; or start communication earlier" in change
    first, change = verdict(waiting(400, 360))
    assert first.endswith("communication (not hidden) with 36.0 % of the step.")
    assert change.startswith("Change first (at most 40.0 % of the step, 400.0 ns, an estimate)")


def test_work_at_its_peak_has_nothing_to_change():
    run = run_of([op("fc", "forward", "aten::mm.default", 5000)], [kernel_row("fc", "forward", "aten::mm", 0, 50)], 50)

    assert verdict(run) == [
        f"MFU 100.0 % of {PEAK}; no part beside the ideal is 0.5 % of the step.",
        "No change is known that would gain anything.",
    ]


def test_without_a_peak_there_is_a_rate_and_the_way_to_a_peak():
    run = gpu_run()
    run.device |= {"peaks": {}, "peak_remedy": "measure it: 'gpuprof ceilings'"}

    assert verdict(run)[0] == (
        "25.00 GFLOP/s of the model, no MFU: measure it: 'gpuprof ceilings'; the largest part is matmul (all of it) "
        "with 83.3 % of the step."
    )
    run.device["peaks"] = {"datasheet": {"float16": 100e9}}
    assert "no MFU: no datasheet peak is known for bfloat16;" in verdict(run)[0]


def test_a_withheld_mfu_says_why():
    run = gpu_run()
    run.passes["count"].facts["inputs"] = "4x8"
    run.passes["time"].facts["inputs"] = {"4x8": 1, "4x9": 2}
    first, _ = verdict(run)

    assert first.startswith(
        "FLOP/s and MFU withheld: the inputs of the step vary: counted at 4x8, 2 of 3 timed steps at 4x9; let the step "
        "take batches of one shape; the largest part is matmul (all of it) with 83.3 % of the step"
    )


def test_a_doubtful_peak_and_a_slow_trace_are_said_with_the_figures():
    run = gpu_run()
    run.device |= {"peaks": {"measured": {"bfloat16": 100e9}}, "peak_spread": {"bfloat16": 0.8}}
    run.samples["time_s"] *= 400 / 480  # kernels of 440 ns, 400 of them products, scaled to a step of 400

    assert verdict(run)[0] == (
        "MFU 30.0 % of the best matmul measured on this device (bfloat16 100.0 GFLOP/s); that peak varied by 80% while "
        "it was measured, so MFU is uncertain; tracing slowed the step 1.1 x, so shares are rough and idle time cannot "
        "be told; the largest part beside the ideal is matmul (above ideal) with 60.9 % of the step."
    )
    run.device["peak_spread"] = {"bfloat16": 0.5, "float16": 37.0}  # no FLOPs of the run are in float16
    assert "varied" not in verdict(run)[0]
    run.samples["time_s"] /= 2  # now the two are no longer one step
    assert "what FLOPs explain of the step is withheld: kernels of the traced step took 440.0 ns" in verdict(run)[0]


def test_a_count_alone_says_how_to_measure():
    run = counted_run()
    for name in ("time", "trace"):
        run.passes.pop(name, None)
    run.samples, run.kernels = table("samples", []), table("kernels", [])

    assert verdict(run) == [
        "12.00 KFLOPs of the model in a step, counted and not timed: no MFU.",
        "Next: 'gpuprof profile MODEL' times and traces this step, and says what takes its time.",
    ]


def test_a_step_that_was_timed_and_not_traced():
    run = gpu_run()
    del run.passes["trace"]
    run.kernels = table("kernels", [])

    assert verdict(run) == [
        f"MFU 25.0 % of {PEAK}.", "Next: profile with the pass trace too, to be told what takes the time.",
    ]  # fmt: skip
    run.passes["trace"] = PassOutcome("failed", "no memory is left", "take a smaller batch")
    assert verdict(run)[1] == "Next: no memory is left; take a smaller batch."


def test_a_generation_has_the_mfu_of_one_phase_and_the_mbu_of_the_other():
    # 20,000 FLOPs in 400 ns at 100 FLOP/ns; 4,740 bytes in 960 ns at 10 byte/ns
    first, _ = verdict(generation_run())

    assert first.startswith(f"Prefill MFU 50.0 % of {PEAK}, decode MBU 49.4 % of the datasheet bandwidth (10.00 GB/s);")
    run = generation_run()
    run.device |= {"memory_bandwidth": None, "measured_bandwidth": None}
    assert f"Prefill MFU 50.0 % of {PEAK}, no decode MBU (no bandwidth is known)" in verdict(run)[0]


def test_a_rank_and_its_job():
    ranks = [rank_run(rank) for rank in range(2)]
    assert verdict(ranks[0])[0].startswith("Rank 0 of 2: MFU 25.0 % of the datasheet dense peak")
    job = assemble(part(run, f"run.rank{rank}.json") for rank, run in enumerate(ranks))
    first, change = verdict(job)

    assert first.startswith("2 ranks: MFU 25.0 % of the datasheet dense peak")
    assert "of all ranks together)" in first
    assert "run.rank0.json' splits the step of rank 0" in change
    ranks[1] = rank_run(1, compute=130, waits=20, step_ns=180)
    first, change = verdict(assemble(part(run, f"run.rank{rank}.json") for rank, run in enumerate(ranks)))
    # 40 of 180 ns; 115 ns of computation in the mean
    assert "MFU 22.2 %" in first
    assert "the largest part beside the ideal is compute (above ideal) with 41.7 % of the step" in first
    assert change == (
        "Next (what it would gain is not known): 'gpuprof budget run.rank1.json' splits the step of rank 1."
    )


def test_a_recording_without_shapes_or_a_step():
    run = gpu_run()
    run.passes = {name: PassOutcome("done") for name in ("count", "trace")}
    run.passes["trace"].facts["recorded"] = True
    run.samples = table("samples", [])
    assert "of the recording" in verdict(run)[0]
    assert verdict(run)[0].startswith("FLOP/s and MFU withheld: no step is found in the recording")
    run.ops[["flops_causal", "flops_full", "flops_hardware"]] = None
    first, change = verdict(run)
    assert first.startswith("FLOPs are unknown, for the recording has no shapes of operators that multiply")
    assert change.startswith("Next (what it would gain is not known): record with record_shapes=True")


def test_a_table_of_nsight_compute_has_no_step():
    run = Run({"name": "t", "mode": "kernels"}, {"type": "cuda", "name": "Toy GPU"}, {})
    run.passes["counters"] = PassOutcome("done")
    launch = gpu_run().ops.iloc[0].to_dict() | {"module": "", "phase": "other"}
    run.counters = table("counters", [counters_row(launch, "gemm", tensor=4096)])

    assert verdict(run)[0] == (
        "4.096 KFLOPs executed in 1 launch by the GPU's own counters, under which kernels run one by one: there is no "
        "step, so no MFU."
    )


def test_compiled_code_has_the_same_verdict():
    # 4,200 FLOPs at 100 FLOP/ns of 300 ns
    assert verdict(compiled_run())[0].startswith(f"MFU 14.0 % of {PEAK}; the largest parts beside the ideal are memory")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_it_stands_first_plain_and_narrow(width):
    text = render(gpu_run(), "tree", View(width=width))
    first = text.split("\n\n")[0]

    assert " ".join(first.split()) == " ".join(verdict(gpu_run()))
    assert max(map(len, first.splitlines())) <= min(width, 80)
    assert first.isascii()
    assert not any(line.startswith("%") for line in first.splitlines())  # a figure keeps its unit
    assert text.split("\n\n")[1].startswith("Workload")


def test_an_option_is_whole_on_one_line():
    run = gpu_run()
    run.device |= {"peaks": {}, "peak_remedy": "give the peak of this device with --peak-tflops"}

    assert "--peak-tflops" in verdict_text(run, View(width=80))
