import pandas as pd
import pytest
from runs import counters_row, ops_row, row, tree_row

from gpuprof.analysis.executed import (
    EXECUTED_COLUMNS,
    KEY,
    MODULE_COLUMNS,
    executed,
    executed_by_module,
    executed_flops,
    not_collected,
)
from gpuprof.errors import GpuprofError
from gpuprof.run import Run
from gpuprof.schema import table

NVJET = "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN"
AMPERE = "ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn"
REDUCE = "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(cublasSplitKParams<float>)"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)"
FLASH = "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<{}, 128, 64, 4, false>>(T1)"
FLASH_BACKWARD = (
    "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<pytorch_flash::Flash_bwd_kernel_traits<"
    "128, 64, 128, 8, 2, 4, 2, false>>(T1)"
)


def mm(module, m, n, k, *, phase="forward", calls=1, dtype="bfloat16", op="aten::mm.default"):
    row = ops_row(module, phase, op, calls * 2 * m * n * k, calls=calls, dtype=dtype)
    return row | {"shapes": f"{m}x{k} {k}x{n} -> {m}x{n}"}


def a_run(*pairs, tree=("", "a", "a.b")):
    """A run from operators, each with its launches."""
    ops, launches = [op for op, _ in pairs if op], [launch for _, found in pairs for launch in found]
    for number, launch in enumerate(launches):
        launch["number"] = number
    return Run(
        workload={"name": "net", "mode": "train"},
        device={"type": "cuda", "name": "Toy GPU"},
        environment={},
        tree=table("tree", [tree_row(path, path.rpartition(".")[2].upper() or "Net") for path in tree]),
        ops=table("ops", ops),
        counters=table("counters", launches),
    )


def test_an_exact_product():
    op = mm("a", 4096, 4096, 4096, calls=3)
    flops = 2 * 4096**3
    launches = [counters_row(op, NVJET, tensor=flops, dram_read_bytes=70, dram_written_bytes=30) for _ in range(3)]

    table = executed(a_run((op, launches)))

    assert list(table.columns) == EXECUTED_COLUMNS
    assert row(table, op="aten::mm.default") | {"flops_scalar": None} == {
        "module": "a", "phase": "forward", "op": "aten::mm.default", "shapes": op["shapes"], "dtype": "bfloat16",
        "kind": "matmul", "kernels": NVJET, "cause": "exact", "calls": 3, "launches": 3,
        "flops_causal": 3 * flops, "flops_full": 3 * flops, "flops_hardware": 3 * flops, "flops_tensor": 3 * flops,
        "flops_scalar": None, "flops_executed": 3 * flops, "flops_expected": 3 * flops, "dram_bytes": 300,
        "bytes": 10, "factor": 1.0, "residual": 0.0,
    }  # fmt: skip
    assert table["flops_scalar"].isna().all()


def test_padding_is_the_cause_of_what_is_too_much():
    op = mm("a", 4000, 4000, 4000)

    found = executed(a_run((op, [counters_row(op, NVJET, tensor=2 * 4096 * 4096 * 4032)]))).iloc[0]

    assert found["cause"] == "tile padding"
    assert found["flops_expected"] == 2 * 4096 * 4096 * 4032
    assert found["factor"] == pytest.approx(1.0570, abs=5e-5)
    assert found["residual"] == 0


def test_a_reduction_after_a_split_product_multiplies_nothing():
    op = mm("a", 128, 128, 1000, calls=2)
    kernel = AMPERE.replace("256", "128")
    # 3 slices of 384
    pair = [counters_row(op, kernel, tensor=2 * 128 * 128 * 1152, grid="1x1x3"), counters_row(op, REDUCE, tensor=0)]

    found = executed(a_run((op, [*pair, *pair]))).iloc[0]

    assert (found["launches"], found["calls"], found["cause"]) == (4, 2, "split-K padding")
    assert found["kernels"].splitlines() == [kernel, REDUCE]
    assert found["flops_executed"] == found["flops_expected"] == 2 * 2 * 128 * 128 * 1152


def test_what_no_prediction_meets_is_unexplained_with_the_nearest():
    op = mm("a", 4096, 4096, 4096)
    flops = 2 * 4096**3

    within = executed(a_run((op, [counters_row(op, NVJET, tensor=flops * 1009 // 1000)]))).iloc[0]
    beyond = executed(a_run((op, [counters_row(op, NVJET, tensor=flops * 1011 // 1000)]))).iloc[0]

    assert (within["cause"], beyond["cause"]) == ("exact", "unexplained")
    assert beyond["flops_expected"] == flops
    assert beyond["residual"] == pytest.approx(0.011, abs=1e-9)


def test_a_product_in_several_launches_is_exact_together():
    op = mm("a", 512, 512, 512)
    halves = [counters_row(op, "some_kernel", tensor=512**3) for _ in range(2)]

    found = executed(a_run((op, halves))).iloc[0]

    assert (found["cause"], found["flops_expected"]) == ("exact", 2 * 512**3)


def test_more_launches_than_calls_are_said():
    op = mm("a", 512, 512, 512)
    twice = [counters_row(op, NVJET, tensor=2 * 512**3) for _ in range(2)]

    found = executed(a_run((op, twice))).iloc[0]

    assert (found["cause"], found["factor"]) == ("more or fewer launches than calls", 2)


def test_one_token_without_tensor_cores():
    op = mm("a", 1, 896, 4864)
    gemv = "void gemv2T_kernel_val<int, int, __nv_bfloat16>(cublasGemvParamsEx<int, float>)"
    flops = 2 * 896 * 4864
    launches = [
        counters_row(op, gemv, tensor=0, scalar_float32=flops + 896),
        counters_row(op, ADD, tensor=0, scalar_float32=10**9),
    ]

    found = executed(a_run((op, launches))).iloc[0]

    assert found["cause"] == "exact, outside tensor cores"
    assert (found["flops_tensor"], found["flops_executed"], found["flops_expected"]) == (0, flops + 896, flops)
    assert found["flops_scalar"] == flops + 896 + 10**9


def test_without_tf32_the_scalar_flops_are_the_executed_ones():
    op = mm("a", 128, 128, 1000, dtype="float32")
    launch = counters_row(
        op, "ampere_sgemm_128x64_tn", tensor=None, instructions=0, scalar_float32=2 * 128 * 128 * 1001
    )
    unknown = counters_row(op, "ampere_sgemm_128x64_tn", tensor=None, instructions=0)

    found = executed(a_run((op, [launch]))).iloc[0]
    missing = executed(a_run((op, [unknown]))).iloc[0]

    assert (found["cause"], found["flops_tensor"]) == ("exact, outside tensor cores", 0)
    assert found["flops_executed"] == 2 * 128 * 128 * 1001
    assert missing["cause"] == "outside tensor cores, not collected"
    assert missing[["flops_executed", "flops_expected", "factor", "residual", "dram_bytes"]].isna().all()


def test_a_dtype_that_was_not_collected_is_never_0():
    half, double = mm("a", 64, 64, 64, dtype="float16"), mm("a.b", 64, 64, 64, dtype="float64")
    run = a_run(
        (half, [counters_row(half, NVJET, tensor=0, instructions=500) for _ in range(2)]),
        # neither its FLOPs nor the tensor pipe's instructions
        (double, [counters_row(double, "some_kernel", tensor=0)]),
    )

    table = executed(run)

    assert list(table["cause"]) == ["not collected", "not collected"]
    assert table["flops_executed"].isna().all()
    assert table["flops_tensor"].isna().all()
    assert not_collected(run).to_dict("records") == [
        {"module": "a", "phase": "forward", "op": "aten::mm.default", "dtype": "float16", "kernel": NVJET,
         "launches": 2, "tensor_instructions": 1000}
    ]  # fmt: skip
    assert executed_by_module(run).iloc[0]["causes"] == "not collected -100 %"
    assert executed_flops(run).isna().all()


def test_tensor_work_without_a_rule_is_not_counted():
    op = ops_row("a", "forward", "mylib::mix.default", None, kind="") | {"shapes": "8x8 -> 8x8"}
    op |= dict.fromkeys(("flops_full", "flops_hardware", "vector_flops", "bytes"))
    orphan = mm("(unattributed)", 8, 8, 8, phase="other")
    run = a_run((op, [counters_row(op, "mix_kernel", tensor=100)]), (None, [counters_row(orphan, "stray", tensor=7)]))

    table = executed(run)

    assert list(table["cause"]) == ["not counted", "not counted"]
    assert list(table["flops_executed"]) == [100, 7]
    assert table["factor"].isna().all()
    assert table["calls"].isna().tolist() == [False, True]


def test_operators_that_multiply_nothing_execute_nothing():
    op = ops_row("a", "forward", "aten::add.Tensor", 0, kind="vector", vector=64) | {"shapes": "8x8 8x8 -> 8x8"}

    found = executed(a_run((op, [counters_row(op, ADD, tensor=0, instructions=0, scalar_float32=64)]))).iloc[0]

    assert (found["flops_executed"], found["flops_scalar"], found["cause"]) == (0, 64, "")


def test_an_fft_has_no_closed_form():
    flops = 2 * 64 * 32 * 32 * 64 * 9
    op = ops_row("a", "forward", "aten::convolution.default", flops, kind="convolution")
    op |= {"shapes": "1x64x32x32 64x64x3x3 -> 1x64x32x32"}
    launches = [counters_row(op, "ampere_bf16_cgemm_64x32_nt", tensor=flops // 3)]

    found = executed(a_run((op, launches))).iloc[0]

    assert found["cause"] == "no closed form"
    assert pd.isna(found["flops_expected"])
    assert pd.isna(found["residual"])


def test_a_convolution_backward_is_two_products():
    # 2 x 14 x 14 positions, 96 filters of 3 x 3 x 32
    base = 2 * 392 * 96 * 288
    op = ops_row("a", "backward", "aten::convolution_backward.default", 2 * base, kind="convolution")
    op |= {"shapes": "2x96x14x14 2x32x14x14 96x32x3x3 -> 2x32x14x14 96x32x3x3"}
    name = "sm80_xmma_{}_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x32_stage4_kernel"
    # 392 positions as 512 and 32 channels as 64, 864 = 27 x 32 deep; 96 x 288 as 128 x 320, 392 deep as 416
    data, weight = 2 * 512 * 64 * 864, 2 * 128 * 320 * 416
    launches = [
        counters_row(op, name.format("dgrad"), tensor=data),
        counters_row(op, name.format("wgrad"), tensor=weight),
        counters_row(op, "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16>(T1)", tensor=0),
    ]

    found = executed(a_run((op, launches))).iloc[0]

    assert (found["cause"], found["residual"]) == ("tile padding", 0)
    assert found["flops_expected"] == data + weight


def qwen2(module="a", tokens=1024):
    """Fused causal attention of Qwen2-7B: 28 query heads, 4 key heads, 128 each; forward and backward."""
    pairs = tokens * (tokens + 1) // 2
    q, kv = f"1x28x{tokens}x128", f"1x4x{tokens}x128"
    name = "aten::_scaled_dot_product_flash_attention"
    each = 28 * 2 * 128
    forward = ops_row(module, "forward", f"{name}.default", 2 * each * pairs, full=2 * each * tokens**2,
                      kind="attention") | {"shapes": f"{q} {kv} {kv} -> {q}"}  # fmt: skip
    backward = ops_row(module, "backward", f"{name}_backward.default", 4 * each * pairs, full=4 * each * tokens**2,
                       hardware=5 * each * pairs, kind="attention") | {
        "shapes": f"{q} {q} {kv} {kv} {q} -> {q} {kv} {kv}"
    }  # fmt: skip
    return forward, backward


def test_causal_attention_goes_through_whole_blocks():
    # 1024 tokens: 72 blocks of 128 x 64, and 72 of 64 x 128: 589,824 pairs where 524,800 are unmasked
    forward, backward = qwen2()
    run = a_run(
        (forward, [counters_row(forward, FLASH.format(128), tensor=28 * 4 * 128 * 589_824)]),
        (backward, [counters_row(backward, FLASH_BACKWARD, tensor=28 * 10 * 128 * 589_824)]),
    )

    table = executed(run)

    assert list(table["cause"]) == ["causal blocks"] * 2
    assert list(table["residual"]) == [0, 0]
    assert table["factor"].tolist() == [pytest.approx(589_824 / 524_800)] * 2


def test_causes_and_figures_by_module():
    # SigLIP's attention: 729 patches, 16 heads of 72 as 96, in 6 x 12 blocks of 128 x 64: 768 x 768 pairs
    siglip = ops_row("a.b", "forward", "aten::_scaled_dot_product_flash_attention.default", 16 * 4 * 72 * 729**2,
                     kind="attention") | {"shapes": " ".join(["1x16x729x72"] * 3) + " -> 1x16x729x72"}  # fmt: skip
    # its projection: 729 rows as 768, 1152 columns as 1152 or 1280, 1152 deep
    project = mm("a", 729, 1152, 1152)
    attended, projected = 16 * 4 * 96 * 768**2, 2 * 768 * 1152 * 1152
    stray = mm("(unattributed)", 64, 64, 64, phase="optimizer")
    unseen = mm("a", 64, 64, 64, phase="backward")
    moved = {"dram_read_bytes": 6, "dram_written_bytes": 4}
    run = a_run(
        (siglip, [counters_row(siglip, FLASH.format(96), tensor=attended, **moved)]),
        (project, [counters_row(project, AMPERE, tensor=projected, **moved)]),
        (stray, [counters_row(stray, NVJET, tensor=5 * 10**5)]),
        (unseen, []),
    )

    table = executed_by_module(run)

    assert list(table.columns) == MODULE_COLUMNS
    assert list(zip(table["module"], table["phase"], strict=True)) == [
        ("", "forward"), ("", "backward"), ("a", "forward"), ("a", "backward"), ("a.b", "forward"),
        ("(unattributed)", "optimizer"),
    ]  # fmt: skip
    counted = siglip["flops_hardware"] + project["flops_hardware"]
    found = row(table, module="a", phase="forward")
    assert (found["flops_hardware"], found["flops_executed"]) == (counted, attended + projected)
    assert found["factor"] == (attended + projected) / counted
    assert (found["launches"], found["dram_bytes"], found["bytes"], found["residual"]) == (2, 20, 20, 0)
    heads, blocks = 16 * 4 * 24 * 768**2, 16 * 4 * 72 * (768**2 - 729**2)
    tiles = projected - project["flops_hardware"]
    assert heads + blocks + tiles == attended + projected - counted
    assert found["causes"] == (
        f"head padding +{100 * heads / counted:.0f} %, block padding +{100 * blocks / counted:.1f} %,"
        f" tile padding +{100 * tiles / counted:.1f} %"
    )
    lost = row(table, module="a", phase="backward")
    assert (lost["causes"], lost["launches"]) == ("no launch seen -100 %", 0)
    assert pd.isna(lost["flops_executed"])
    odd = row(table, module="(unattributed)")
    assert odd["causes"] == ""
    assert odd["residual"] == pytest.approx(5 * 10**5 / (2 * 64**3) - 1)


def test_every_total_adds_up():
    forward, backward = qwen2("a.b")
    project, head = mm("a", 1024, 512, 512, calls=2), mm("", 1024, 1000, 512)
    stray = mm("(unattributed)", 64, 64, 64, phase="optimizer")
    scalar = mm("a", 1, 512, 512, phase="other")
    run = a_run(
        (forward, [counters_row(forward, FLASH.format(128), tensor=10**10)]),
        (backward, [counters_row(backward, FLASH_BACKWARD, tensor=3 * 10**10), counters_row(backward, ADD, tensor=0)]),
        (project, [counters_row(project, NVJET, tensor=2 * 1024 * 512 * 512) for _ in range(2)]),
        (head, [counters_row(head, NVJET, tensor=2 * 1024 * 1024 * 512)]),
        (scalar, [counters_row(scalar, "gemv2N_kernel", tensor=0, scalar_float32=2 * 512 * 512)]),
        (stray, [counters_row(stray, NVJET, tensor=2 * 128 * 256 * 64)]),
    )
    of_launches = int(run.counters["tensor_bfloat16"].sum()) + 2 * 512 * 512

    rows, modules = executed(run), executed_by_module(run)

    assert rows["flops_executed"].sum() == of_launches
    assert rows["launches"].sum() == len(run.counters)
    assert modules.loc[modules["module"].isin(["", "(unattributed)"]), "flops_executed"].sum() == of_launches
    assert len(rows) == len(run.counters.drop_duplicates(KEY))
    flops = executed_flops(run)
    assert flops["a.b", "backward"] == 3 * 10**10
    assert flops["", "forward"] == flops["a", "forward"] + 2 * 1024 * 1024 * 512


def test_a_class_counts_modules_within_its_own_once():
    outer, inner = mm("a", 512, 512, 512), mm("a.a", 512, 512, 512)
    launches = [[counters_row(op, NVJET, tensor=2 * 512**3)] for op in (outer, inner)]
    run = a_run((outer, launches[0]), (inner, launches[1]), tree=("", "a", "a.a"))

    table = executed_by_module(run, by="class")

    assert list(table.columns) == MODULE_COLUMNS[1:]
    assert row(table, **{"class": "A"})["flops_executed"] == 2 * 2 * 512**3
    assert row(table, **{"class": "Net"})["factor"] == 1
    assert executed_flops(run, by="class")["A", "forward"] == 2 * 2 * 512**3
    with pytest.raises(GpuprofError, match="by 'layer': known are module, class"):
        executed_by_module(run, by="layer")


def test_a_run_without_counters_has_empty_tables():
    op = mm("a", 8, 8, 8)
    run = a_run((op, []))

    assert executed(run).empty
    assert not_collected(run).empty
    assert executed_by_module(run).empty
    assert executed_flops(run).empty
