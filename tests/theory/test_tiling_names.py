"""Names of kernels as recorded on many GPUs: which multiply, in which tiles, and which take float32 to tensor cores."""

import pytest

from gpuprof.theory.kernel_names import Tile, multiplies, tensor_float32, tile_of

TENSILE = "Cijk_Alik_Bljk_{types}_BH_Bias_HA_S_SAV_UserArgs_MT256x192x64_MI16x16x1_SN_LDSB1_AFC1_ISA942_WG64_4_1"
CK_CONVOLUTION = (
    "_ZN2ck16tensor_operation6device12_GLOBAL__N_139kernel_grouped_conv_fwd_xdl_cshuffle_v3INS_34GridwiseGemmMultiD_xdl_"
    "cshuffle_v3INS_13tensor_layout4gemm8RowMajorENS6_11ColumnMajorES7_ttftLNS1_18GemmSpecializationE7ELi256ELi128ELi96E"
    "Li64ELi8ELi8ELi32ELi32ELi2ELi2ENS_8SequenceIJLi8ELi32ELi1EEEEEEEvT_"
)
CK_CONVOLUTION_PREFETCHED = (
    "_ZN2ck16tensor_operation6device12_GLOBAL__N_149kernel_grouped_conv_fwd_multiple_abd_xdl_cshuffleINS_34GridwiseGemm"
    "MultipleD_xdl_cshuffleItttftLi1ELi256ELi128ELi64ELi32ELi8ELi8ELi32ELi32ELi2ELi2EEEEvT_"
)
CK_ATTENTION = (
    "void ck_tile::kentry<256, 2, ck_tile::FmhaFwdKernel<ck_tile::BlockFmhaPipelineQRKSVSAsync<ck_tile::TileFmhaShape<"
    "ck_tile::sequence<128, 64, 32, 64, 32, 96>, ck_tile::sequence<4, 1, 1>, true> > >, Kargs>(Kargs)"
)
CK_NORM = (
    "_ZN7ck_tile6kentryILi1ENS_12Rmsnorm2dFwdINS_27Rmsnorm2dFwdPipelineOnePassINS_8sequenceIJLi1ELi3072EEEEEEEEvT_"
)
TRTLLM = (
    "bmm_MxE4m3_MxE2m1MxE4m3_Fp32_t128x16x256u2_s3_et128x16_m128x16x32_cga1x1x1_16dp256b_rM_TN_transOut_schedP2x1x2x3"
    "_biasM_bN_tma_tmaOpt_clmp_swiGlu_dynBatch_sm100f"
)
FMHA = "fmhaSm100aKernel_QkvE4m3OBfloat16H64PagedKvSlidingOrChunkedCausalP16VarSeqQ128Kv128PersistentContext"
FMHA_LATENT = (
    "fmhaSm100fKernel_QkvBfloat16OBfloat16HQk576HV512HVPerCta256PagedKvDenseP64MultiCtasKvVarSeqQ16Kv128StaticSwapsAb"
)
MIOPEN = "igemm_bwd_gtcx3_nhwc_bf16_bx0_ex1_bt256x64x32_wt32x32x8_ws1x1_wr2x2_ta1x8x4x1_1x4x1x64_tb1x4x1x2_1x8x1x32_mh"
DGRAD = "void cudnn::detail::dgrad_engine<float, 512, 6, 5, 3, 3, 3, false>(int, int, int, float const*, int)"
WGRAD = "void cudnn::cnn::wgrad_alg0_engine<float, 128, 6, 8, 3, 3, 5, false, 512>(int, int, int, float const*, int)"
SGEMM_OF_CONVOLUTION = (
    "void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1, false, true, true>(int, int, int, float const*)"
)
GEMVX = (
    "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, float, float, float, float, false, true, "
    "false, false, 7, false, cublasGemvParamsEx<int, cublasGemvTensorStridedBatched<float const>, float> >(T13)"
)
PREFILL = (
    "void flashinfer::BatchPrefillWithPagedKVCacheKernel<flashinfer::KernelTraits<(flashinfer::MaskMode)1, 128u, 2u>,"
    " flashinfer::BatchPrefillPagedParams<__nv_bfloat16> >(flashinfer::BatchPrefillPagedParams<__nv_bfloat16>)"
)
CUTLASS = "void cutlass::Kernel<cutlass_80_tensorop_{}_256x64_16x4_tn_align1>(T1::Params)"

PRODUCTS = {
    # V100
    "volta_sgemm_32x128_tn": Tile(32, 128, None),
    "volta_fp16_s884gemm_fp16_128x64_ldg8_f2f_nn": Tile(128, 64, None),
    "volta_fp16_s884cudnn_fp16_256x64_ldg8_relu_f2f_exp_small_nhwc2nchw_tn_v1": Tile(256, 64, None),
    "cudnn_infer_volta_scudnn_128x64_3dconv_fprop_medium_nn_v1": Tile(128, 64, None),
    "cudnn_train_volta_scudnn_128x128_stridedB_splitK_interior_nn_v1": Tile(128, 128, None),
    # by the grids: 1152 x 784 gradients in 18 x 25 blocks, 147 x 64 weights in 5 x 2, 1568 x 512 results in 49 x 16
    DGRAD: Tile(64, 32, None),
    WGRAD: Tile(64, 256, None),
    SGEMM_OF_CONVOLUTION: Tile(32, 32, None),
    "void cudnn::winograd_nonfused::winogradForwardGemm4x4<float, float>(T1)": None,
    GEMVX: None,
    # RTX 2080 Ti
    "turing_fp16_s1688gemm_fp16_256x128_ldg8_f2f_nn": Tile(256, 128, None),
    "turing_fp16_s1688cudnn_fp16_128x128_ldg8_relu_f2f_exp_interior_nhwc2nchw_tn_v1": Tile(128, 128, None),
    # A100
    CUTLASS.format("s1688gemm"): Tile(256, 64, 16),
    "ampere_gcgemm_64x64_nt": Tile(64, 64, None),
    # B200
    "nvjet_tst_144x128_64x6_2x1_v_bz_bias_TNN": Tile(144, 128, 64, (2, 1)),
    "nvjet_tst_64x16_64x16_2x4_2cta_h_bz_bias_TNT": Tile(64, 16, 64, (2, 4)),
    TRTLLM: Tile(128, 16, 256),
    FMHA: Tile(128, 128, 64),
    FMHA_LATENT: Tile(16, 128, 576),
    PREFILL: None,
    "void flashinfer::BatchDecodeWithPagedKVCacheKernel<(flashinfer::PosEncodingMode)0, 2u, 4u>(T1)": None,
    "void vllm::paged_attention_v2_kernel<__nv_bfloat16, __nv_bfloat16, 128, 16, 128>(T1)": None,
    "void marlin::Marlin<__nv_bfloat16, 1125899906909960l, 256, 4, 16, 4, true>(int4 const*)": None,
    # MI210, MI300X
    TENSILE.format(types="BBS"): Tile(256, 192, 64),
    MIOPEN: Tile(256, 64, 32),
    CK_CONVOLUTION: Tile(128, 96, 64),
    CK_CONVOLUTION_PREFETCHED: Tile(128, 64, 32),
    CK_ATTENTION: Tile(128, 64, 96),
    "aiter::fmha_fwd_hd128_bf16_causal": None,
    "_ZN5aiter30fmha_fwd_hd128_bf16_rtna_groupE.kd": None,
    "aiter::fmha_bwd_hd64_bf16_causal_a32_rtz_pssk": None,
    "void paged_attention_ll4mi_QKV_mfma16_kernel<__hip_bfloat16, (vllm::Fp8KVCacheDataType)0>(T1)": None,
    "void wvSplitK_hf_sml_<__hip_bfloat16, 64, 2, 16, 8, 1, 1>(int, int)": None,
    "miopenSp3AsmConv_v30_3_1_gfx9_fp32_f3x2_stride1": None,
    # Triton
    "_matmul_ogs_NNT_bf16xbf16xmxfp4_16x128x256x1_swiglu": Tile(16, 128, 256),
    "_p_matmul_ogs_NTN_bf16xbf16xbf16_128x128x128x1": Tile(128, 128, 128),
    "attn_fwd": None,
    "bwd_kernel_dk_dv": None,
    "kernel_unified_attention_2d": None,
    "fused_moe_kernel": None,
    "triton_tem_fused_mm_3": None,
    "triton_tem_fused_addmm_relu_1": None,
}  # fmt: skip

OTHERS = [
    "void fbgemm_gpu::permute_2D_lengths_kernel<int>(int, int, int const*, int const*, int*)",
    "void fbgemm_gpu::_block_bucketize_sparse_features_cuda_kernel1<int, int>(int, int, int const*, int)",
    "void split_embedding_codegen_forward_unweighted_kernel<float, float, fbgemm_gpu::Access, 2ul>(T1)",
    "split_embedding_backward_codegen_find_long_segments(at::GenericPackedTensorAccessor<int, 1ul>)",
    "cask_cudnn::computeWgradSplitKOffsetsKernel(cask_cudnn::ComputeSplitKOffsetsParams)",
    "void cudnn::winograd_nonfused::winogradWgradDelta4x4<float, float>(T1)",
    "void cudnn::winograd_nonfused::winogradWgradOutput4x4<float, float>(T1)",
    "void cudnn::cnn::im2col4d_kernel<float, long>(cudnn::cnn::im2col4d_params, cudnnConvolutionStruct)",
    "void cudnn::cnn::reduce_wgrad_nchw_helper<float, float>(void*, void const*, float, int, int)",
    "void epilogue::impl::globalKernel<float, float, float, true, true>(int, int, long, float*, cublasLtEpilogue_t)",
    "void flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<64, 64, 256, 4>, 16, 4, true>(T1)",
    "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, unsigned char>(__nv_bfloat16 const*)",
    "void vllm::paged_attention_v2_reduce_kernel<__nv_bfloat16, 128, 128, 512>(T1)",
    "void paged_attention_ll4mi_reduce_kernel<__hip_bfloat16, 128, 128, 256>(T1)",
    "void gptq_marlin_repack_kernel<256, 4, true>(unsigned int const*)",
    "fmhaReductionKernel(T1)",
    "batched_transpose_32x32_half",
    "SubTensorOpWithScalar1d",
    "Cijk_BBS_PostGSU8_VW4",
    CK_NORM,
    "_finalize_matmul_scatter_bf16",
    "bwd_preprocess",
    "triton_poi_fused_addmm_relu_0",
    "triton_red_fused_mm_mul_2",
    "triton_per_fused_convolution_native_batch_norm_5",
    "triton__0d1d2d3d",
]


@pytest.mark.parametrize(("kernel", "tile"), PRODUCTS.items())
def test_what_multiplies_is_recognised_with_its_tile(kernel, tile):
    assert multiplies(kernel)
    assert tile_of(kernel) == tile


@pytest.mark.parametrize("kernel", OTHERS)
def test_what_only_speaks_of_products_does_not_multiply(kernel):
    assert not multiplies(kernel)


@pytest.mark.parametrize(
    ("kernel", "on_tensor_cores"),
    [
        (CUTLASS.format("s1688gemm"), True),
        (CUTLASS.format("tf32_s1688gemm_tf32"), True),
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x64x32_warpgroupsize1x1x1_execute_kernel__5x_cublas", True),
        ("sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nchw_tilesize128x128x16_kernel", True),
        ("cutlass3x_sm100_tensorop_s128x256x8tf32gemm_f32_f32_f32_f32_f32_128x256x32_1x1x1_0_tnn_align4", True),
        ("nvjet_sss_tf32_128x256_TNT", True),
        ("fmha_cutlassF_f32_aligned_64x64_rf_sm80", True),
        (TENSILE.format(types="S_MX_B"), True),
        # as wide, but outside tensor cores, or in full precision
        ("ampere_sgemm_128x64_nn", False),
        ("cutlass3x_sm100_simt_sgemm_f32_f32_f32_f32_f32_128x64x16_1x1x1_3_tnn_align1", False),
        ("cudnn_ampere_scudnn_128x64_relu_xregs_large_nn_v1", False),
        (TENSILE.format(types="S_B"), False),
        ("fmha_cutlassF_f32_aligned_64x64_rf_sm70", False),
        # sums in float32 of narrower numbers
        ("ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn", False),
        ("turing_fp16_s1688gemm_fp16_256x128_ldg8_f2f_nn", False),
        (CUTLASS.format("f16_s1688gemm_f16"), False),
        ("void cudnn::ops::convert_tf32<float>(T1)", False),
        ("triton_tem_fused_mm_3", False),
    ],
)
def test_a_name_says_whether_float32_ran_on_tensor_cores(kernel, on_tensor_cores):
    assert tensor_float32(kernel) is on_tensor_cores
