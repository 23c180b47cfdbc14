import pytest
from runs import gpu_run, kernel_row, tree_row
from test_budget import attention_run, op, run_of

from gpuprof.analysis.budget import budget
from gpuprof.analysis.hints import MOST, hints
from gpuprof.analysis.hints_of_work import LEAST_GAIN
from gpuprof.schema import table

NS = 1e-9


def the(found, words):
    """The one hint that has these words, its gain in nanoseconds."""
    given = [hint for hint in hints(found) if words in hint.text]
    assert len(given) == 1, hints(found)
    assert given[0].gain_share == pytest.approx(given[0].gain_s / found.step_s)
    return given[0].text, given[0].gain_s / NS, given[0].action


def shaped(row, shapes):
    return {**row, "shapes": shapes}


def product(name, m, n, k, start, duration, *, calls=1, dtype="bfloat16"):
    """A product by its sizes: its row of operators and its kernel."""
    inputs = f"{m}x{k} {k}x{n}"
    row = op(name, "forward", "aten::mm.default", 2 * m * n * k * calls, shapes=f"{inputs} -> {m}x{n}", dtype=dtype)
    return row | {"calls": calls}, shaped(kernel_row(name, "forward", "aten::mm", start, duration), inputs)


def test_scores_written_out():
    # 80 ns of attention, of which products of 2,048 FLOPs take 60; 1,200 of them are of unmasked pairs
    run = attention_run()
    run.workload["attention"] = "eager"
    text, gain, action = the(budget(run), "writes out its scores")

    assert gain == pytest.approx(80 - 60 * 1200 / 2048)
    assert text == (
        "eager attention writes out its scores and takes 80.00 ns, 57.1 % of the step; fused and over unmasked pairs "
        "alone it would need about 35.16 ns at the 34.13 GFLOP/s that its products reach"
    )
    assert action == "use sdpa or flash attention"
    run.workload["attention"] = "sdpa"
    assert the(budget(run), "sdpa in its math backend")[2].startswith("give sdpa")


def test_a_fused_backward_computes_the_scores_again():
    run = attention_run()
    run.ops.loc[run.ops["op"].str.contains("bmm"), "phase"] = "backward"
    run.kernels.loc[run.kernels["op"] == "aten::bmm", "phase"] = "backward"

    assert the(budget(run), "writes out its scores")[1] == pytest.approx(80 - 60 * 1500 / 2048)


def test_single_queries_are_no_reason_to_fuse():
    run = attention_run()
    for frame in (run.ops, run.kernels):
        frame["shapes"] = frame["shapes"].str.replace("2x8x8", "2x1x8").str.replace("2x8x4", "2x1x4")

    assert not [hint for hint in hints(budget(run)) if "writes out its scores" in hint.text]


def test_float32_without_tf32():
    # 1,000 FLOPs in 100 ns; at the same share of eight times, and sixteen times, the peak 12.5 and 6.25 ns
    peaks = {"float32": 50e9, "tf32": 400e9, "bfloat16": 800e9}
    ops = [
        op("fc", "forward", "aten::mm.default", 1000, dtype="float32"),
        op("norm", "forward", "aten::mul.Tensor", 0, kind="vector", dtype="float32", nbytes=400),
    ]
    kernels = [kernel_row("fc", "forward", "aten::mm", 0, 100), kernel_row("norm", "forward", "aten::mul", 100, 50)]
    run = run_of(ops, kernels, 150, peaks={"datasheet": peaks}, memory_bandwidth=10e9)
    found = budget(run)

    text, gain, action = the(found, "in TF32")
    assert gain == pytest.approx(87.5)
    assert "float32 products take 100.0 ns, 66.7 % of the step" in text
    assert "a peak of 400.0 GFLOP/s instead of 50.00 GFLOP/s, they would need 12.50 ns" in text
    assert "set_float32_matmul_precision" in action
    # half of the bytes of the elementwise work: 400 at 10 byte/ns
    assert the(found, "in bfloat16")[1] == pytest.approx(93.75 + 20)
    run.environment["allow_tf32_matmul"] = True
    assert not [hint for hint in hints(budget(run)) if "in TF32" in hint.text]
    assert the(budget(run), "in bfloat16")[1] == pytest.approx(50 + 20)
    run.device["type"] = "cpu"
    assert not [hint for hint in hints(budget(run)) if "in TF32" in hint.text]


def test_a_few_float32_products_are_no_reason_for_another_dtype():
    # as the rotary angles of a step in bfloat16: 4 of 1,000 ns, beside norms in float32 whose bytes are no weights'
    peaks = {"float32": 50e9, "tf32": 400e9, "bfloat16": 800e9}
    ops = [
        op("fc", "forward", "aten::mm.default", 1000),
        op("rotary", "forward", "aten::bmm.default", 10, dtype="float32"),
        op("norm", "forward", "aten::mul.Tensor", 0, kind="vector", dtype="float32", nbytes=1000),
    ]
    kernels = [
        kernel_row("fc", "forward", "aten::mm", 0, 896),
        kernel_row("rotary", "forward", "aten::bmm", 896, 4),
        kernel_row("norm", "forward", "aten::mul", 900, 100),
    ]
    run = run_of(ops, kernels, 1000, peaks={"datasheet": peaks}, memory_bandwidth=10e9)

    assert not [hint for hint in hints(budget(run)) if "float32 products" in hint.text]


def test_waiting_for_launches():
    # gaps of 20 ns before three of four
    kernels = [kernel_row(f"layers.{n}.norm", "forward", "aten::mul", 30 * n, 10) for n in range(4)]
    text, gain, action = the(budget(run_of([], kernels, 100)), "waits for launches")

    assert gain == pytest.approx(60)
    assert text == (
        "the GPU waits for launches 60.00 ns, 60.0 % of the step: 3 gaps of 20.00 ns between 4 kernels of 10.00 ns on "
        "average, 100.0 % of it before those of layers.*.norm in the forward"
    )
    assert "CUDA graphs" in action


def test_waiting_for_the_host():
    kernels = [
        kernel_row("a", "forward", "aten::mul", 0, 10),
        kernel_row("head", "backward", "aten::add_", 200_010, 90),
    ]
    run = run_of([], kernels, 200_100)

    text, gain, _ = the(budget(run), "waits for the host")
    assert gain == pytest.approx(200_000)
    assert "1 gap over 100 us in the traced step, the longest of 200.0 us before aten::add of head in the" in text
    run.device["type"] = "cpu"
    text, gain, _ = the(budget(run), "Python and dispatch")
    assert gain == pytest.approx(200_000)
    assert text.startswith("the host takes 200.0 us, 100.0 % of the step, between operators: 200.0 us of Python and")


def recomputing(memory_bytes):
    ops = [
        op("fc", "recompute", "aten::mm.default", 1000, shapes="4x8 8x16 -> 4x16", calls=10),
        op("fc", "recompute", "aten::t.default", 0, shapes="8x16 -> 16x8", kind="view", calls=10),
    ]
    kernels = [kernel_row("fc", "recompute", "aten::mm", 0, 30), kernel_row("fc", "backward", "aten::mm", 30, 70)]
    run = run_of(ops, kernels, 100, memory_bytes=memory_bytes)
    peak = {"module": "", "phase": "backward", "quantity": "allocated_peak", "source": "measured", "bytes": 5000}
    run.memory = table("memory", [peak])
    return budget(run)


def test_checkpoints_that_memory_does_not_need():
    # ten results of 4 x 16 in 2 bytes beside the peak of 5,000: 6,280 bytes
    text, gain, _ = the(recomputing(6280), "checkpoints take 30.00 ns, 30.0 % of the step")

    assert gain == pytest.approx(30)
    assert "the peak of 4.883 KiB grows by 1.250 KiB of activations at most, and the device has 6.133 KiB" in text
    assert [hint for hint in hints(recomputing(6279)) if hint.gain_s is not None] == []


def optimizing(op_name):
    run = run_of(
        [], [kernel_row("fc", "optimizer", op_name, 10 * n, 10) for n in range(10)], 100, memory_bandwidth=10e9
    )
    run.tree = table("tree", [tree_row("", "Net", 25), tree_row("fc", "Linear", 25)])
    run.memory = table(
        "memory",
        [{"module": "", "phase": "", "quantity": quantity, "source": "analytic", "bytes": nbytes}
         for quantity, nbytes in (("gradients", 50), ("optimizer_state", 100))],
    )  # fmt: skip
    return budget(run)


def test_an_optimizer_in_many_kernels():
    # 50 bytes of parameters and 100 of state read and written, 50 of gradients read: 350 at 10 byte/ns
    text, gain, action = the(optimizing("aten::_foreach_addcdiv_"), "the optimizer takes 100.0 ns")

    assert gain == pytest.approx(65)
    assert "in 10 kernels" in text
    assert "350 B, needs 35.00 ns at 10.00 GB/s" in text
    assert action.startswith("fused=True")
    fused = hints(optimizing("aten::_fused_adamw_"))
    assert [(hint.part, hint.gain_s) for hint in fused] == [("optimizer", None)]


def test_logits_of_every_position():
    row, kernel = product("lm_head", 64, 10, 8, 0, 80)
    run = run_of([row], [kernel], 100)
    run.workload |= {"mode": "generate", "batch_size": 2, "facts": {"head": "lm_head"}}

    text, gain, action = the(budget(run), "logits of every position")
    assert gain == pytest.approx(80 * 62 / 64)  # two sequences of 32 positions
    assert "where the last one is 3.1 % of its FLOPs" in text
    assert "logits_to_keep" in action
    run.workload["mode"] = "train"
    assert not [hint for hint in hints(budget(run)) if "logits" in hint.text]


def test_elementwise_work_far_from_the_bandwidth():
    ops = [op(name, "forward", "aten::mul.Tensor", 0, kind="vector", nbytes=100) for name in ("norm", "act")]
    kernels = [kernel_row("norm", "forward", "aten::mul", 0, 70), kernel_row("act", "forward", "aten::mul", 70, 30)]
    tree = [tree_row("norm", "RMSNorm"), tree_row("act", "SiLU")]
    run = run_of(ops, kernels, 100, tree=tree, memory_bandwidth=10e9)

    text, gain, _ = the(budget(run), "2 elementwise operators take 100.0 ns")
    assert gain == pytest.approx(80)
    assert "their bytes need 20.00 ns at 10.00 GB/s; 70.0 % of it is in RMSNorm" in text
    run.device["memory_bandwidth"] = None  # then there is nothing to hold it against
    found = hints(budget(run))
    assert [(hint.part, hint.gain_s, hint.gain_share) for hint in found] == [("memory", None, None)]
    assert found[0].action.startswith("'gpuprof ceilings' measures the bandwidth")


def test_sizes_that_tensor_cores_pad():
    # 2 x 64 x 101 x 64 FLOPs at a hundredth of the rate of the aligned product, 2 x 64 x 128 x 64 in 10 ns
    made = [
        product("body", 64, 128, 64, 0, 10),
        product("head", 64, 101, 64, 10, 990),
        product("one", 1, 101, 64, 1000, 5),
    ]
    run = run_of([row for row, _ in made], [kernel for _, kernel in made], 1005)
    run.device["peaks"] = {"datasheet": {"bfloat16": 200e12}}
    found = budget(run)

    text, gain, action = the(found, "no multiple of 8")
    assert gain == pytest.approx(990 - 10 * 101 / 128)
    assert "take 990.0 ns, 98.5 % of the step" in text
    assert "the longest (m x n x k) 64 x 101 x 64; at the 104.9 TFLOP/s" in text  # 1,048,576 FLOPs in 10 ns
    assert "vocabulary" in action


def test_convolutions_laid_out_anew():
    kernels = [
        kernel_row("conv", "forward", "aten::convolution", 0, 60),
        kernel_row("conv", "forward", "aten::convolution", 60, 25, kernel="void cudnn::ops::nchwToNhwcKernel<__half>"),
        kernel_row("conv", "forward", "aten::convolution", 85, 15, kernel="void cudnn::ops::nhwcToNchwKernel<__half>"),
    ]
    text, gain, action = the(budget(run_of([], kernels, 100)), "channels-first")

    assert gain == pytest.approx(40)
    assert text.startswith("2 kernels turn channels-first")
    assert "channels_last" in action


def test_communication_in_the_open():
    kernels = [
        kernel_row("fc", "backward", "aten::mm", 0, 60),
        kernel_row("", "backward", "", 20, 80, kernel="ncclDevKernel_AllReduce", stream="9"),
    ]
    text, gain, _ = the(budget(run_of([], kernels, 100)), "communication")

    assert gain == pytest.approx(40)
    assert "not hidden by computation for 40.00 ns, 40.0 % of the step, of 80.00 ns that they run" in text


def test_a_power_cap_is_worth_the_clock_it_takes():
    row, kernel = op("fc", "forward", "aten::mm.default", 5000), kernel_row("fc", "forward", "aten::mm", 0, 90)
    run = run_of([row], [kernel], 90, flops_per_clock_per_sm={"bfloat16": 100}, sm_count=1)
    readings = [("sm_clock", "MHz", 800.0), ("event_reasons", "", 4.0)]
    run.telemetry = table(
        "telemetry",
        [{"time_s": t, "quantity": q, "unit": u, "value": v} for t in (0.0, 1.0) for q, u, v in readings],
    )
    text, gain, action = the(budget(run), "power cap held the clock down")

    assert gain == pytest.approx(12.5)  # 62.5 ns at 80 FLOP/ns, 50 at 100
    assert "12.50 ns, 13.9 % of the step longer" in text
    assert action == "a higher power limit, if there is one"


def test_the_largest_gain_comes_first_and_no_more_than_five():
    peaks = {"float32": 50e9, "tf32": 400e9, "bfloat16": 800e9}
    ops = [
        op("fc", "forward", "aten::mm.default", 1000, dtype="float32"),
        op("norm", "forward", "aten::mul.Tensor", 0, kind="vector", nbytes=10),
        op("conv", "forward", "aten::convolution.default", 1, dtype="float32", kind="convolution"),
    ]
    kernels = [
        kernel_row("fc", "forward", "aten::mm", 0, 100),
        kernel_row("norm", "forward", "aten::mul", 110, 50),
        kernel_row("conv", "forward", "aten::convolution", 160, 30, kernel="nchwToNhwcKernel"),
        kernel_row("", "backward", "", 190, 20, kernel="ncclDevKernel_AllReduce"),
        kernel_row("norm", "forward", "aten::mul", 300_210, 40),
    ]
    run = run_of(ops, kernels, 1250, peaks={"datasheet": peaks}, memory_bandwidth=10e9)
    given = hints(budget(run))

    assert len(given) == MOST == 5
    gains = [hint.gain_s for hint in given]
    assert gains == sorted(gains, reverse=True)
    assert min(hint.gain_share for hint in given) >= LEAST_GAIN
    assert all(any(letter.isdigit() for letter in hint.text) for hint in given)


def test_what_runs_well_gets_no_hint():
    run = run_of([op("fc", "forward", "aten::mm.default", 5000)], [kernel_row("fc", "forward", "aten::mm", 0, 50)], 50)

    assert hints(budget(run)) == []


def test_the_largest_part_has_a_hint_if_only_what_to_measure_next():
    # 280 of 480 ns are products above ideal, of which nothing in the run says that they could be faster
    (hint,) = hints(budget(gpu_run()))

    assert (hint.part, hint.gain_s, hint.gain_share) == ("matmul", None, None)
    assert hint.text == (
        "matmul (above ideal) takes 280.0 ns, 58.3 % of the step (400.0 ns for 12.00 KFLOPs: 30.00 GFLOP/s)"
    )
    assert hint.action.startswith("'gpuprof ceilings --shapes RUN -o FILE' on the same device says whether products")


def measured(work_ns, gap_ns):
    """A product without a gain for that long, and a gap before the one after it."""
    kernels = [
        kernel_row("fc", "forward", "aten::mm", 0, work_ns),
        kernel_row("fc", "forward", "aten::mm", work_ns + gap_ns, 0),
    ]
    return hints(budget(run_of([], kernels, work_ns + gap_ns)))


def test_a_hint_without_a_gain_comes_first_where_every_gain_is_small_beside_its_part():
    # a quarter of the largest part is worth telling first
    assert [hint.part for hint in measured(900, 100)] == ["matmul", "idle_launch"]
    assert [hint.part for hint in measured(800, 200)] == ["idle_launch", "matmul"]
    assert [hint.gain_s for hint in measured(800, 200)] == [pytest.approx(200e-9), None]


@pytest.mark.parametrize(
    ("kind", "op_name", "part", "words"),
    [
        ("attention", "aten::_flash_attention_forward", "attention", "gpuprof compare"),
        ("", "mylib::step", "other", "gpuprof.flop_rule"),
        ("convolution", "aten::convolution", "matmul", "gpuprof show RUN --by op"),
    ],
)
def test_what_to_look_at_next(kind, op_name, part, words):
    ops = [op("a", "forward", op_name, 100, kind=kind)]
    run = run_of(ops, [kernel_row("a", "forward", op_name, 0, 100)], 100)
    (hint,) = hints(budget(run))

    assert (hint.part, hint.gain_s) == (part, None)
    assert words in hint.action


def test_a_step_that_was_longer_than_its_trace_is_measured_again():
    (hint,) = hints(budget(run_of([], [kernel_row("a", "forward", "aten::mm", 0, 10)], 100)))

    assert hint.part == "other"
    assert hint.action.startswith("measure again while nothing else uses the device")


def test_products_with_their_ceilings_are_told_by_kernel():
    row, kernel = product("fc", 64, 64, 64, 0, 20_000)
    ceilings = {"shapes": [{"dtype": "bfloat16", "batch": 1, "m": 64, "n": 64, "k": 64, "flops_per_s": 50e9}]}
    (hint,) = hints(budget(run_of([row], [kernel], 20_000), ceilings=ceilings))

    # 524,288 FLOPs: 5,243 ns at peak, 10,486 at the ceiling, and 9,514 above that
    assert hint.text.startswith("matmul (above that limit) takes 9.514 us, 47.6 % of the step")
    assert hint.action == "'gpuprof show RUN --by kernel' says which kernels are behind"
