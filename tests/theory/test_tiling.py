import math
import random

import pytest

from gpuprof.theory import TensorSpec, cost_of
from gpuprof.theory.kernel_names import Tile, multiplies, tile_of
from gpuprof.theory.tiling import Call, expectations

NVJET = "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN"
NVJET_OF_EIGHT = "nvjet_sm90_tst_192x8_64x8_2x1_v_bz_TNT"
GEMV = (
    "void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float, 128, 16, 4, 4, false, true,"
    " cublasGemvParamsEx<int, cublasGemvTensorStridedBatched<__nv_bfloat16 const>, float> >(float)"
)
EFFICIENT = (
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t,"
    " cutlass::arch::Sm80, true, 64, 128, 128, true, true>::Params)"
)
WGRAD = (
    "void cutlass__5x_cudnn::Kernel<conv::ImplicitGemmConvolution<conv::ImplicitGemmMultistage<gemm::GemmShape<256, 64,"
    " 32>, conv::Conv2dWgradOutputGradientTileAccessIteratorOptimized<cutlass__5x_cudnn::MatrixShape<256, 32>,"
    " cutlass__5x_cudnn::bfloat16_t>, gemm::GemmShape<64, 64, 32>>>>(T1::Params)"
)
CUDNN = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_cga1x1x1_kernel0_0"


def flash(head, rows, columns):
    return (
        f"void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<{head}, {rows}, {columns}, 4,"
        f" false, false, cutlass::bfloat16_t, pytorch_flash::Flash_kernel_traits<{head}, {rows}, {columns}, 4,"
        " cutlass::bfloat16_t> >, false, true, false, false, true, true, false, false>(pytorch_flash::Flash_fwd_params)"
    )


def flash_backward(head, rows, columns):
    return (
        "void flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<"
        f"(int){head}, (int){rows}, (int){columns}, (int)8, (int)2, (int)4, (int)2, (bool)0>>"
    )


@pytest.mark.parametrize(
    ("kernel", "tile"),
    [
        ("ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn", Tile(128, 256, 64)),
        ("ampere_fp16_s16816gemm_fp16_128x64_sliced1x2_ldg8_f2f_stages_64x5_tn", Tile(128, 64, 64)),
        (
            "sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x96x32_stage3_warpsize2x2x1_tensor16x8x16_kernel",
            Tile(128, 96, 32),
        ),
        (
            "sm90_xmma_gemm_bf16bf16_bf16f32_f32_nt_n_tilesize128x256x64_warpgroupsize1x1x1_execute_segment_k_off"
            "_kernel__5x_cublas",
            Tile(128, 256, 64),
        ),
        (NVJET, Tile(128, 256, 64, (1, 2))),
        ("nvjet_sm90_tst_192x8_64x8_2x1_v_bz_TNT", Tile(192, 8, 64, (2, 1))),
        ("nvjet_sm100_tst_64x16_128x16_2x4_2cta_h_bz_splitK_TNT", Tile(64, 16, 128, (2, 4))),
        ("nvjet_tst_128x128_64x6_h_TNT", Tile(128, 128, 64)),
        ("nvjet_sm120_tst_mma_64x96x128_3_32x32x128_tmaAB_alignCD4_bz_TNNN", Tile(64, 96, 128)),
        ("cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_align8", Tile(256, 128, 32)),
        (
            "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x32_128x2_tn_align8>"
            "(cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x32_128x2_tn_align8::Params)",
            Tile(16, 32, 128),
        ),
        (
            "cutlass3x_sm90_tensorop_s64x256x16gemm_bf16_bf16_f32_bf16_bf16_128x192x64_1x2x1_0_tnn_align8",
            Tile(128, 192, 64),
        ),
        ("ampere_sgemm_128x64_tn", Tile(128, 64, None)),
        ("volta_sgemm_32x128_sliced1x4_tn", Tile(32, 128, None)),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_256x128_8x4_nn_align1>(T1::Params)", Tile(256, 128, 8)),
        (
            "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x32_stage4_warpsize2x2x1"
            "_g1_tensor16x8x16_kernel_cudnn",
            Tile(128, 64, 32),
        ),
        (
            "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_64x128_32x10_nhwc_align8>"
            "(T1::Params)",
            Tile(64, 128, 32),
        ),
        ("volta_scudnn_winograd_128x128_ldg1_ldg4_relu_tile148t_nt_v1", Tile(128, 128, None)),
        (WGRAD, Tile(256, 64, 32)),
        (
            "_ZN7cutlass6KernelINS_4gemm6kernel4GemmINS1_9GemmShapeILi128ELi64ELi32EEELi4EEEEEvNT_6ParamsE",
            Tile(128, 64, 32),
        ),
        (EFFICIENT, Tile(64, 128, None)),
        ("fmha_cutlassB_bf16_aligned_128x64_k96_sm80", Tile(128, 64, None)),
        (flash(96, 128, 64), Tile(128, 64, 96)),
        (flash_backward(128, 64, 128), Tile(64, 128, 128)),
        (CUDNN, Tile(64, 128, 128)),
        (
            "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<"
            "flash::CollectiveMainloopFwdSm90<2, cute::tuple<cute::C<1>, cute::C<1>, cute::C<1> >, cute::tuple<"
            "cute::C<128>, cute::C<176>, cute::C<64> >, 64, cutlass::bfloat16_t, float> > > >(T1::Params)",
            Tile(128, 176, 64),
        ),
        (GEMV, None),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)", None),
        ("triton_tem_fused_flex_attention_0", None),
    ],
)
def test_tiles_are_read_from_names(kernel, tile):
    assert tile_of(kernel) == tile


@pytest.mark.parametrize(
    ("kernel", "product"),
    [
        (NVJET, True),
        (GEMV, True),
        (EFFICIENT, True),
        (flash_backward(64, 64, 128), True),
        ("void dot_kernel<float, 128, 0, cublasDotParams<cublasGemvTensor<float const>>>(T1)", True),
        ("void at::native::conv_depthwise2d_forward_kernel<3, float, int>(T1)", True),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(cublasSplitKParams<float>)", False),
        ("void reduce_1Block_kernel<float, 128, 7, cublasGemvTensorStridedBatched<float>>(T1)", False),
        ("void flash_bwd_convert_dq_kernel<Flash_bwd_kernel_traits<128, 64, 128>>(Flash_bwd_params)", False),
        ("void cudnn::winograd_nonfused::winogradForwardData4x4<float, float>(T1)", False),
        ("void at::native::(anonymous namespace)::softmax_warp_forward<float>(float*)", False),
        # what a name says among its arguments counts only where the function is a frame around them
        (WGRAD, True),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>(T1::Params)", True),
        (
            "void cutlass__5x_cudnn::Kernel<reduction::ReduceSplitK<cutlass__5x_cudnn::MatrixShape<4, 256>,"
            " epilogue::LinearCombination<cutlass__5x_cudnn::bfloat16_t, 8>>>(T1::Params)",
            False,
        ),
        (
            "std::enable_if<!T7, void>::type internal::kernel<int, int, __nv_bfloat16, float, 0, 1,"
            " cublasGemvParamsEx<int, cublasGemvTensorStridedBatched<__nv_bfloat16>, float>>(T13)",
            True,
        ),
        (
            "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<"
            "flash::CollectiveMainloopFwdSm90<2>>>>(T1::Params)",
            True,
        ),
        ("void at::native::(anonymous namespace)::conv_depthwise3d_cuda_kernel<float>(float*)", True),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128>>(Flash_fwd_params)", True),
        ("void pytorch_flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<128, 64, 128>>(T1)", False),
        ("void fbgemm_gpu::permute_1D_data_kernel<int>(int)", False),
        ("void at::native::vectorized_elementwise_kernel<4, fbgemm_gpu::Scale, T1>(int)", False),
        ("void <unnamed>::elementwise_kernel_with_index<int, at::native::gemm_like>(int)", False),
        ("void im2col4d_kernel<float, int>(im2col4d_params, cudnnConvolutionStruct, float const*)", False),
        ("void cudnn::winograd_nonfused::winogradWgradData4x4<float, float>(T1)", False),
        ("cudnn::cnn::computeWgradBOffsetsKernel(cudnn::cnn::ComputeOffsetsParams)", False),
    ],
)
def test_a_name_says_whether_a_kernel_multiplies(kernel, product):
    assert multiplies(kernel) is product


def matmul(batch, m, n, k, op="aten::mm.default", dtype="bfloat16"):
    flops = 2 * batch * m * n * k
    shapes = ((m, k), (k, n)), ((m, n),)
    if "bmm" in op:
        shapes = ((batch, m, k), (batch, k, n)), ((batch, m, n),)
    return Call(op, "matmul", *shapes, dtype, flops, flops, flops)


def on_tensor_cores(call, kernel, grid=(1, 1, 1)):
    """Cause by FLOPs of everything that may run on tensor cores."""
    found = [e for e in expectations(call, kernel, grid) if e.tensor]
    for e in found:
        assert e.flops == e.base + sum(flops for _, flops in e.parts)
    return {e.flops: e.cause for e in found}


def test_an_aligned_product_is_exact():
    assert on_tensor_cores(matmul(1, 4096, 4096, 4096), NVJET) == {137_438_953_472: "exact"}


def test_sizes_are_padded_to_the_tile():
    # 4000 = 31.25 x 128 = 15.625 x 256, so 4096 either way; and 62.5 x 64, so 4032 deep
    assert on_tensor_cores(matmul(1, 4000, 4000, 4000), NVJET) == {
        2 * 4000**3: "exact",
        2 * 4096 * 4096 * 4032: "tile padding",
        2 * 4096 * 4096 * 4000: "tile padding",
    }


def test_a_tile_may_lie_either_way():
    kernel = "ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn"
    # 300 rows are 512 in steps of 256 and 384 in steps of 128; 1100 columns 1152 or 1280
    assert on_tensor_cores(matmul(1, 300, 1100, 64), kernel) == {
        2 * 300 * 1100 * 64: "exact",
        2 * 512 * 1152 * 64: "tile padding",
        2 * 384 * 1280 * 64: "tile padding",
    }
    # cuBLAS, by columns: its first size along torch's columns
    assert next(e for e in expectations(matmul(1, 300, 1100, 64), kernel) if e.parts).flops == 2 * 512 * 1152 * 64


def test_tiles_are_worked_on_in_whole_clusters():
    # by columns 1100 are 9 tiles of 128 and 400 are 2 of 256: pairs along the second, so no more; the other way
    # 400 are 4 tiles of 128 and 1100 are 5 of 256, which makes 6
    assert on_tensor_cores(matmul(1, 400, 1100, 64), NVJET) == {
        2 * 400 * 1100 * 64: "exact",
        2 * 512 * 1152 * 64: "tile padding",
        2 * 512 * 1536 * 64: "tile padding, cluster padding",
    }
    # tiles that fit are still too few for the clusters: 9 of 128 make 10
    found = expectations(matmul(1, 1152, 1152, 64), "nvjet_sm90_tst_96x128_64x6_4x2_h_bz_NTN")
    assert ("cluster padding", 2 * 1152 * 128 * 64) in [part for e in found for part in e.parts]


def test_where_the_name_gives_no_depth_it_is_that_of_the_instruction():
    kernel = "turing_fp16_s1688gemm_fp16_128x128_ldg8_f2f_tn"

    assert set(on_tensor_cores(matmul(1, 128, 128, 20, dtype="float16"), kernel)) == {
        2 * 128 * 128 * 20,
        2 * 128 * 128 * 32,
    }
    assert 2 * 128 * 128 * 24 in on_tensor_cores(matmul(1, 128, 128, 20, dtype="float32"), kernel)
    assert 2 * 128 * 128 * 64 in on_tensor_cores(matmul(1, 128, 128, 36, dtype="float8_e4m3fn"), kernel)


def test_one_token_fills_a_tile_of_eight():
    # Qwen2-0.5B's down projection in decoding: 4864 = 76 x 64 deep, 896 columns are 5 tiles of 192, in pairs 6
    found = on_tensor_cores(matmul(1, 1, 896, 4864), NVJET_OF_EIGHT)

    assert found[2 * 8 * 1152 * 4864] == "tile padding, cluster padding"
    assert dict(next(e for e in expectations(matmul(1, 1, 896, 4864), NVJET_OF_EIGHT) if e.parts[1:]).parts) == {
        "tile padding": 2 * (8 * 960 - 896) * 4864,
        "cluster padding": 2 * 8 * 192 * 4864,
    }


def test_a_vector_kernel_does_no_tensor_work():
    found = expectations(matmul(1, 1, 896, 4864), GEMV)

    assert [(e.flops, e.tensor, e.cause) for e in found] == [(2 * 896 * 4864, False, "exact, outside tensor cores")]


def test_without_tf32_a_product_runs_outside_tensor_cores_and_in_tiles_too():
    found = expectations(matmul(1, 100, 100, 64, dtype="float32"), "ampere_sgemm_128x64_tn")

    assert {(e.flops, e.tensor, e.cause) for e in found} == {
        (2 * 100 * 100 * 64, False, "exact, outside tensor cores"),
        (2 * 128 * 128 * 64, False, "tile padding, outside tensor cores"),
    }


def test_every_slice_of_a_split_depth_is_padded():
    kernel = "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_64x3_tn"
    # 1000 in three slices of 334, each of six steps of 64: 3 x 384; as one it would be 1024
    found = on_tensor_cores(matmul(1, 128, 128, 1000), kernel, grid=(1, 1, 3))

    assert found[2 * 128 * 128 * 1152] == "split-K padding"
    assert found[2 * 128 * 128 * 1024] == "tile padding"
    assert 2 * 128 * 128 * 1152 not in on_tensor_cores(matmul(1, 128, 128, 1000), kernel)


def test_the_slices_of_nvjet_are_the_blocks_of_a_tile():
    split, whole = "nvjet_tst_128x128_64x6_2x1_v_bz_splitK_TNT", "nvjet_tst_128x128_64x6_2x1_v_bz_TNT"
    # a pair of tiles, so six blocks are three slices of 384
    assert on_tensor_cores(matmul(1, 128, 256, 1000), split, grid=(2, 3, 1))[2 * 128 * 256 * 1152] == "split-K padding"
    # blocks that are no multiple of the tiles tell nothing; nor do those of a kernel that splits no depth
    for kernel, grid in ((split, (1, 5, 1)), (whole, (2, 3, 1))):
        assert 2 * 128 * 256 * 1152 not in on_tensor_cores(matmul(1, 128, 256, 1000), kernel, grid)


def test_each_product_of_a_batch_is_padded_and_the_batch_is_no_split():
    call = matmul(12, 729, 729, 72, op="aten::bmm.default")

    assert on_tensor_cores(call, "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn", grid=(1, 1, 12)) == {
        2 * 12 * 729 * 729 * 72: "exact",
        2 * 12 * 768 * 768 * 128: "tile padding",
        2 * 12 * 768 * 768 * 80: "tile padding",
    }


@pytest.mark.parametrize(
    ("op", "inputs", "results"),
    [
        ("aten::addmm.default", ((96,), (40, 64), (64, 96)), ((40, 96),)),
        ("aten::addmv.default", ((96,), (96, 64), (64,)), ((96,),)),
        ("aten::dot.default", ((64,), (64,)), ((),)),
        ("aten::_scaled_mm.default", ((40, 64), (64, 96), (), ()), ((40, 96),)),
    ],
)
def test_operators_are_read_as_their_rules_read_them(op, inputs, results):
    specs = tuple(TensorSpec(shape, "bfloat16") for shape in inputs)
    cost, kind = cost_of(op, specs, {}, TensorSpec(results[0], "bfloat16"))
    call = Call(op, kind, inputs, results, "bfloat16", cost.full, cost.full, cost.full)
    m, n = results[0] if len(results[0]) == 2 else (1, *results[0]) if results[0] else (1, 1)

    found = on_tensor_cores(call, "nvjet_tst_64x64_64x8_1x1_h_bz_TNT")

    assert found == {2 * m * n * 64: "exact", 2 * 64 * (-(-n // 64) * 64) * 64: "tile padding"}


def test_products_whose_sizes_are_data_have_no_closed_form():
    flops = 2 * 64 * 32 * 16
    shapes = ((64, 32), (4, 32, 16), (4,)), ((64, 16),)

    assert expectations(Call("aten::_grouped_mm.default", "matmul", *shapes, "bfloat16", *[flops] * 3), NVJET) == ()
    assert expectations(Call("aten::_cudnn_rnn.default", "recurrent", *shapes, "float32", *[flops] * 3), NVJET) == ()


def test_whole_tiles_against_a_loop_over_them():
    rng = random.Random(0)
    for _ in range(200):
        batch, m, n, k = rng.randint(1, 3), rng.randint(1, 400), rng.randint(1, 400), rng.randint(1, 400)
        rows, columns, deep = (rng.choice((16, 64, 128, 192)) for _ in range(3))
        op = "aten::bmm.default"
        kernel = f"sm80_xmma_gemm_bf16bf16_bf16f32_f32_nn_n_tilesize{columns}x{rows}x{deep}_stage3_kernel"
        tiles = sum(1 for _ in range(0, m, rows) for _ in range(0, n, columns) for _ in range(0, k, deep))

        assert batch * tiles * 2 * rows * columns * deep in on_tensor_cores(matmul(batch, m, n, k, op), kernel)


def attention(batch, heads, kv_heads, queries, keys, head, pairs, op=None, mask=False, dtype="bfloat16"):
    """A fused attention of so many unmasked pairs per head; with a mask tensor it is given the whole square."""
    op = op or "aten::_scaled_dot_product_flash_attention.default"
    q, kv = (batch, heads, queries, head), (batch, kv_heads, keys, head)
    backward = "backward" in op
    inputs = (q, q, kv, kv) if backward else (q, kv, kv)
    products, fused = (4, 5) if backward else (2, 2)
    each = 2 * batch * heads * head
    full, causal = products * each * queries * keys, products * each * pairs
    hardware = fused * each * (queries * keys if mask else pairs)
    return Call(op, "attention", inputs, (q, kv, kv), dtype, causal, full, hardware)


BACKWARD = "aten::_scaled_dot_product_flash_attention_backward.default"


def test_causal_blocks_by_hand():
    # Qwen2-7B, 1024 tokens: 8 rows of 128 queries go through 2, 4, ..., 16 blocks of 64 keys, 72 in all: 589,824 pairs
    call = attention(1, 28, 4, 1024, 1024, 128, 1024 * 1025 // 2)

    found = on_tensor_cores(call, flash(128, 128, 64))

    assert found == {
        28 * 4 * 128 * 524_800: "exact",
        28 * 4 * 128 * 589_824: "causal blocks",
        28 * 4 * 128 * 1024 * 1024: "whole square",
    }
    assert 589_824 / 1024**2 == 0.5625  # (1 + 128 / 1024) / 2


def test_a_fused_backward_multiplies_five_times():
    # 64 queries x 128 keys: rows 2 i and 2 i + 1 go through i + 1 blocks, 2 (1 + ... + 8) = 72
    call = attention(1, 28, 4, 1024, 1024, 128, 1024 * 1025 // 2, op=BACKWARD)

    found = on_tensor_cores(call, flash_backward(128, 64, 128))

    assert found[28 * 10 * 128 * 72 * 64 * 128] == "causal blocks"
    assert found[28 * 10 * 128 * 524_800] == "exact"


def test_heads_are_padded_to_what_the_kernel_was_built_for():
    # SigLIP: 729 patches in 6 rows of 128 and 12 blocks of 64, no mask; heads of 72 run as 96
    call = attention(1, 16, 16, 729, 729, 72, 729 * 729)

    found = {e.flops: e for e in expectations(call, flash(96, 128, 64)) if e.tensor}

    blocks, head = 16 * 4 * 72 * (768 * 768 - 729 * 729), 16 * 4 * (96 - 72) * 768 * 768
    assert found[16 * 4 * 96 * 768 * 768].parts == (("block padding", blocks), ("head padding", head))
    # without a name that says so, to the 16 of an instruction
    assert on_tensor_cores(call, "my_attention_kernel")[16 * 4 * 80 * 729 * 729] == "head padding"


def test_a_kernel_may_go_through_masked_blocks():
    call = attention(2, 4, 4, 256, 256, 64, 256 * 257 // 2)
    masked = attention(2, 4, 4, 256, 256, 64, 256 * 257 // 2, mask=True)
    whole = 2 * 4 * 4 * 64 * 256 * 256

    assert on_tensor_cores(call, flash(64, 128, 128))[whole] == "whole square"
    assert on_tensor_cores(masked, EFFICIENT)[2 * 4 * 256 * 256 * 2 * (64 + 128)] == "head padding"
    assert on_tensor_cores(masked, flash(64, 128, 128))[whole] == "exact"


@pytest.mark.parametrize("align", ["top-left", "bottom-right"])
def test_causal_blocks_against_a_loop_over_pairs(align):
    rng = random.Random(1)
    for _ in range(60):
        queries, head = rng.randint(2, 150), rng.choice((64, 128))
        keys = queries + rng.randint(0, 90)
        rows, columns = rng.choice((16, 32, 64)), rng.choice((16, 32, 64))
        offset = keys - queries if align == "bottom-right" else 0
        visible = [(i, j) for i in range(queries) for j in range(min(i + offset + 1, keys))]
        # a block of queries goes through all blocks of keys up to the end of the square that its last row starts
        blocks = {
            (i // rows, j // columns)
            for i in range(math.ceil(queries / rows) * rows)
            for j in range(min(i + offset + 1, keys))
        }
        executed = 3 * 2 * len(blocks) * rows * columns
        forward = attention(1, 3, 1, queries, keys, head, len(visible))
        backward = attention(1, 3, 1, queries, keys, head, len(visible), op=BACKWARD)

        assert executed * 2 * head in on_tensor_cores(forward, flash(head, rows, columns))
        assert executed * 5 * head in on_tensor_cores(backward, flash_backward(head, rows, columns))


def tiled(m, n, k, rows, columns, deep=32):
    """FLOPs of a product in whole tiles, counted one by one."""
    return sum(
        2 * rows * columns * deep for _ in range(0, m, rows) for _ in range(0, n, columns) for _ in range(0, k, deep)
    )


def test_memory_efficient_kernels_against_a_loop_over_their_products():
    rng = random.Random(2)
    for _ in range(60):
        queries, keys, head, causal = (
            rng.randint(2, 300),
            rng.randint(2, 300),
            rng.choice((40, 72, 128)),
            rng.random() < 0.5,
        )
        rows, columns = rng.choice(((64, 64), (64, 128), (128, 64)))
        pairs = sum(min(i + 1, keys) if causal else keys for i in range(queries))
        forward = backward = 0
        for start in range(0, queries, rows):
            seen = min(start + rows, keys) if causal else keys
            for key in range(0, seen, columns):
                forward += tiled(rows, columns, head, rows, columns)
                forward += tiled(rows, head, min(columns, seen - key), rows, columns)
                some, others = min(rows, queries - start), min(columns, keys - key)
                backward += 2 * tiled(columns, rows, head, columns, rows)  # scores and their gradient
                backward += 2 * tiled(columns, head, some, columns, rows)  # gradients of keys and values
                backward += tiled(rows, head, others, rows, columns)  # of the queries
        op = "aten::_scaled_dot_product_efficient_attention"
        calls = [attention(1, 2, 2, queries, keys, head, pairs, op=f"{op}{way}.default") for way in ("", "_backward")]

        assert 2 * forward in on_tensor_cores(calls[0], f"fmha_cutlassF_bf16_aligned_{rows}x{columns}_rf_sm80")
        assert 2 * backward in on_tensor_cores(calls[1], f"fmha_cutlassB_bf16_aligned_{rows}x{columns}_k65536_sm80")


def test_memory_efficient_kernels_take_three_tf32_products_for_float32():
    call = attention(
        1, 2, 2, 128, 128, 64, 128 * 128, op="aten::_scaled_dot_product_efficient_attention", dtype="float32"
    )

    found = on_tensor_cores(call, "fmha_cutlassF_f32_aligned_64x64_rf_sm80")

    assert found[3 * 2 * 4 * 64 * 128 * 128] == "three TF32 products"


def test_one_or_two_warp_groups_of_cudnn_take_a_block():
    call = attention(1, 8, 8, 320, 320, 128, 320 * 321 // 2, op="aten::_scaled_dot_product_cudnn_attention.default")

    found = on_tensor_cores(call, CUDNN)

    # rows of 64 see 1, 1, 2, 2, 3 blocks of 128 keys; rows of 128 see 1, 2, 3
    assert found[8 * 4 * 128 * 9 * 64 * 128] == "causal blocks"
    assert found[8 * 4 * 128 * 6 * 128 * 128] == "causal blocks"


def test_the_sequence_may_stand_before_the_heads():
    call = attention(2, 28, 4, 1024, 1024, 128, 1024 * 1025 // 2, op="flash_attn::_flash_attn_forward.default")
    swapped = tuple((batch, sequence, heads, head) for batch, heads, sequence, head in call.inputs)

    assert (
        on_tensor_cores(call._replace(inputs=swapped), flash(128, 128, 64))[2 * 28 * 4 * 128 * 589_824]
        == "causal blocks"
    )


def test_one_query_per_head_is_packed_with_those_that_share_its_keys():
    # 28 query heads and 4 key heads: 7 queries in one block, or 28 blocks of one query each; 1000 keys are 16 blocks
    call = attention(1, 28, 4, 1, 1000, 128, 1000)

    found = on_tensor_cores(call, flash(128, 64, 64).replace("flash_fwd_kernel", "flash_fwd_splitkv_kernel"))

    assert found[4 * 4 * 128 * 64 * 1024] == "block padding"
    assert found[28 * 4 * 128 * 64 * 1024] == "block padding"


def test_flex_attention_goes_through_blocks_of_its_mask_and_twice_backward():
    # blocks of 128: 1 + 2 + 3 of 9; heads of 72 as 128
    pairs, blocks = 384 * 385 // 2, 6 * 128 * 128
    kernel = "triton_tem_fused_flex_attention_backward_zeros_1"
    forward = attention(1, 2, 2, 384, 384, 72, pairs, op="higher_order::flex_attention")
    backward = attention(1, 2, 2, 384, 384, 72, pairs, op="higher_order::flex_attention_backward")
    q = (1, 2, 384, 72)
    backward = backward._replace(inputs=(q, q, q, q, (1, 2, 384), q))

    assert on_tensor_cores(forward, kernel)[2 * 4 * 128 * blocks] == "causal blocks, head padding"
    found = on_tensor_cores(backward, kernel)
    assert found[2 * 14 * 128 * blocks] == "causal blocks, scores computed twice, head padding"
    assert found[2 * 14 * 72 * pairs] == "scores computed twice"


def test_flex_attention_as_its_block_mask_said():
    """A window of 32 in 1024 leaves 15 blocks of 128, which the counted hardware FLOPs have; heads of 72 run as 128."""
    pairs, blocks = 32 * 33 // 2 + 992 * 32, 15 * 128 * 128
    kernel = "triton_tem_fused_flex_attention_backward_zeros_1"
    q = (1, 2, 1024, 72)
    for op, products, dims in (("flex_attention", 2, 2), ("flex_attention_backward", 5, 7)):
        call = attention(1, 2, 2, 1024, 1024, 72, pairs, op=f"higher_order::{op}")
        call = call._replace(inputs=(q, q, q), hardware=products * 2 * 2 * 72 * blocks)

        twice = ["scores computed twice"] if dims == 7 else []
        assert on_tensor_cores(call, kernel)[dims * 2 * 2 * 128 * blocks] == ", ".join([*twice, "head padding"])
        assert on_tensor_cores(call, kernel)[dims * 2 * 2 * 72 * blocks] == (", ".join(twice) or "exact")


def test_attention_outside_a_fused_kernel_is_two_products_over_the_square():
    pairs = 100 * 101 // 2
    call = attention(1, 4, 4, 100, 100, 64, pairs, op="aten::_scaled_dot_product_attention_math.default")

    found = {e.flops: e for e in expectations(call, "nvjet_tst_64x64_64x8_1x1_h_bz_TNT") if e.tensor}

    # scores: 128 x 128, 64 deep; values: 128 x 64, 128 deep
    scores = found[2 * 4 * 128 * 128 * 64]
    assert scores.base == 2 * 4 * pairs * 64
    assert [cause for cause, _ in scores.parts] == ["whole square", "tile padding"]
    assert found[2 * 4 * 100 * 100 * 64].cause == "whole square"


def convolution(images, channels, size, outputs, filter_size, out_size, op="aten::convolution.default", groups=1):
    x, weight = (images, channels, size, size), (outputs, channels // groups, filter_size, filter_size)
    out = (images, outputs, out_size, out_size)
    flops = 2 * math.prod(out) * math.prod(weight[1:])
    if "backward" in op:
        return Call(op, "convolution", (out, x, weight), (x, weight), "bfloat16", *[2 * flops] * 3)
    return Call(op, "convolution", (x, weight), (out,), "bfloat16", *[flops] * 3)


XMMA = "sm80_xmma_{}_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x32_stage4_warpsize2x2x1_kernel"


def test_a_convolution_is_a_product_over_positions_filters_and_taps():
    # 2 x 14 x 14 = 392 positions, 512 in steps of 128 and 448 in steps of 64; 96 filters, 128 either way; 9 x 32 deep
    found = on_tensor_cores(convolution(2, 32, 14, 96, 3, 14), XMMA.format("fprop"))

    assert found == {
        2 * 392 * 96 * 288: "exact",
        2 * 512 * 128 * 288: "tile padding",
        2 * 448 * 128 * 288: "tile padding",
    }


def test_the_gradients_of_a_convolution_are_products_of_their_own():
    # stride 2: 28 x 28 inputs, 14 x 14 outputs
    call = convolution(2, 32, 28, 96, 3, 14, op="aten::convolution_backward.default")
    base = 2 * 392 * 96 * 288

    to_input = {e.flops: e for e in expectations(call, XMMA.format("dgrad")) if e.tensor}
    to_weight = {e.flops: e for e in expectations(call, XMMA.format("wgrad")) if e.tensor}

    assert {e.base for e in (*to_input.values(), *to_weight.values())} == {base}
    # every input position with every tap is four times too much; with those that reach it, as much as forward
    assert to_input[4 * base].parts == (("all input positions", 3 * base),)
    assert to_input[base].cause == "exact"
    # 96 x 288 in tiles of 128 x 64: 128 x 320; 392 deep is 416
    assert to_weight[2 * 128 * 320 * 416].cause == "tile padding"
    assert 4 * base not in to_weight
    # where the name does not say which, either
    either = on_tensor_cores(call, "cutlass_80_tensorop_bf16_s16816gemm_bf16_128x64_32x6_nt_align8")
    assert {4 * base, base, 2 * 128 * 320 * 416} <= set(either)


def test_few_channels_are_padded():
    # SigLIP's patch embedding: 3 channels as 4 or 8, 196 taps; or every tap padded to the 32 of a step
    positions, filters = 27 * 27, 1152
    found = on_tensor_cores(convolution(1, 3, 378, 1152, 14, 27), XMMA.format("fprop"))

    assert found[2 * positions * filters * 588] == "exact"
    assert found[2 * positions * filters * 784] == "channel padding"
    assert found[2 * positions * filters * 1568] == "channel padding"
    # 729 positions are 768, 1568 = 49 x 32
    assert found[2 * 768 * 1152 * 1568] == "channel padding, tile padding"
    assert found[2 * positions * filters * 196 * 32] == "every filter tap padded"


def test_transposed_and_grouped_convolutions():
    up = Call("aten::cudnn_convolution_transpose.default", "convolution", ((1, 64, 8, 8), (64, 32, 2, 2)),
              ((1, 32, 16, 16),), "bfloat16", *[2 * 64 * 64 * 32 * 4] * 3)  # fmt: skip
    grouped = convolution(1, 64, 16, 128, 1, 16, groups=4)

    # all 256 output positions with all four taps are four times what is needed
    assert on_tensor_cores(up, XMMA.format("dgrad"))[2 * 256 * 32 * 64 * 4] == "all input positions"
    assert on_tensor_cores(up, XMMA.format("dgrad"))[2 * 64 * 64 * 32 * 4] == "exact"
    # each group: 256 positions, 32 filters padded to 64, 16 channels to 32
    assert on_tensor_cores(grouped, XMMA.format("fprop"))[4 * 2 * 256 * 64 * 32] == "tile padding"


def test_winograd_needs_fewer_products():
    call = convolution(1, 64, 32, 64, 3, 32)
    direct = 2 * 1024 * 64 * 576

    by_four = expectations(call, "void cudnn::winograd_nonfused::winogradForwardGemm4x4<float>(T1)")
    fused = {e.flops: e for e in expectations(call, "ampere_scudnn_winograd_128x128_ldg1_ldg4_relu_tile148t_nt_v1")}

    assert direct // 4 in {e.flops for e in by_four}
    assert direct * 16 // 36 not in {e.flops for e in by_four}
    assert not any(e.tensor for e in fused.values())
    assert fused[direct * 16 // 36].parts == (("Winograd", direct * 16 // 36 - direct),)
    # in several kernels the middle one is a plain product; one that is named a convolution is not
    assert on_tensor_cores(call, "ampere_bf16_s16816gemm_bf16_64x64_ldg8_f2f_stages_64x5_nn")[direct // 4] == "Winograd"
    assert direct // 4 not in on_tensor_cores(call, XMMA.format("fprop"))


def test_an_fft_has_no_closed_form():
    call = convolution(1, 64, 32, 64, 3, 32)

    assert expectations(call, "void fft2d_r2c_32x32<float, false, 1u, false>(float2*, float const*)") == ()
    assert expectations(call, "ampere_gcgemm_64x32_nt") == ()


def test_an_attention_whose_shapes_do_not_give_its_flops_has_no_closed_form():
    whole_layer = Call(
        "aten::_native_multi_head_attention.default", "attention", ((1, 8, 16),) * 3, ((1, 8, 16),), "bfloat16",
        *[2 * 4 * 8 * 16 * 16 + 4 * 64 * 16] * 3,
    )  # fmt: skip

    assert expectations(whole_layer, flash(32, 128, 128)) == ()
    assert expectations(whole_layer, NVJET) == ()
