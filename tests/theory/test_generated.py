"""Names of kernels that Inductor generated, as recordings and generated code have them (torch 2.0 to 2.13)."""

import json
from pathlib import Path

import pytest

from gpuprof.theory.generated import _BESIDES, Generated, generated
from gpuprof.theory.kernel_names import multiplies
from gpuprof.theory.rules import _RULES

TRITON = json.loads((Path(__file__).parents[1] / "data" / "compiled" / "triton-kernels.json").read_text())["cases"]
WORKS = {
    "pointwise": "pointwise", "reduction": "reduction", "persistent_reduction": "reduction", "template": "template",
    "foreach": "foreach",
}  # fmt: skip

NAMES = {
    # of a GPU
    "triton_poi_fused_gelu_view_1": Generated("pointwise", ("gelu", "view"), 1),
    "triton_poi_fused__unsafe_view_mul_silu_2": Generated("pointwise", ("_unsafe_view", "mul", "silu"), 2),
    "triton_red_fused__unsafe_view_add_mean_mul_pow_rsqrt_1": Generated(
        "reduction", ("_unsafe_view", "add", "mean", "mul", "pow", "rsqrt"), 1
    ),
    "triton_poi_fused_add_bitwise_and_bitwise_not_bitwise_or_ge_lt_mul_sub_0": Generated(
        "pointwise", ("add", "bitwise_and", "bitwise_not", "bitwise_or", "ge", "lt", "mul", "sub"), 0
    ),
    "triton_per_fused_add_native_layer_norm_native_layer_norm_backward_view_12": Generated(
        "reduction", ("add", "native_layer_norm", "native_layer_norm_backward", "view"), 12
    ),
    "triton_per_fused__safe_softmax_prepare_softmax_online_view_3": Generated(
        "reduction", ("_safe_softmax", "prepare_softmax_online", "view"), 3
    ),
    "triton_per_fused__to_copy_add_embedding_dense_backward_native_dropout_backward_nll_loss_forward_30": Generated(
        "reduction",
        ("_to_copy", "add", "embedding_dense_backward", "native_dropout_backward", "nll_loss_forward"),
        30,
    ),
    "triton_red_fused__fused_rms_norm__to_copy_add_mul_1": Generated(
        "reduction", ("_fused_rms_norm", "_to_copy", "add", "mul"), 1
    ),
    "triton_poi_fused_add_copy__3": Generated("pointwise", ("add", "copy_"), 3),
    "triton_poi_fused_constant_pad_nd_moe_forward_0": Generated("pointwise", ("constant_pad_nd", "moe_forward"), 0),
    "triton_poi_fused_0": Generated("pointwise", (), 0),
    "triton_for_fused_1": Generated("foreach", (), 1),
    "triton_spl_fused_cumsum_0": Generated("scan", ("cumsum",), 0),
    "triton_tem_fused_mm_3": Generated("template", ("mm",), 3),
    "triton_tem_fused__to_copy_addmm_gelu_t_view_9": Generated(
        "template", ("_to_copy", "addmm", "gelu", "t", "view"), 9
    ),
    "triton_tem_fused_flex_attention_backward_zeros_1": Generated("template", ("flex_attention_backward", "zeros"), 1),
    "triton_mm_21": Generated("template", ("mm",), 21),
    "triton_mm_persistent_tma_7": Generated("template", ("mm",), 7),
    "triton_convolution2d_4": Generated("template", ("convolution",), 4),
    "triton_flex_decoding_0": Generated("template", ("flex_attention",), 0),
    "cutlass_fused_mm_relu_0d1e2f3a": Generated("template", ("mm", "relu")),
    # of a CPU
    "graph_0_cpp_fused_gelu_gelu_backward_sum_view_1": Generated("", ("gelu", "gelu_backward", "sum", "view"), 1),
    "cpp_fused_native_layer_norm_0": Generated("", ("native_layer_norm",), 0),
    "graph_0_gemm_m128n64k64_kernel": Generated("template", ("mm",)),
    "graph_1_kernel": Generated("template"),
    # compiled ahead of time, and named by others
    "encoder_triton_poi_fused_relu_2": Generated("pointwise", ("relu",), 2),
    "triton_unk_fused__npu_dtype_cast__softmax_add": Generated("", ("_npu_dtype_cast", "_softmax", "add")),
    "triton_poi_fused_upsample_bilinear2d": Generated("pointwise", ("upsample_bilinear2d",)),
    "triton_for_fused_0_ca70313c": Generated("foreach", (), 0),
    # of torch 2.0 and 2.1, with what Triton knew of the arguments
    "triton__0d1d2d3d": Generated(""),
    "triton__0d1d23d": Generated(""),
    "triton_poi_fused_add_cos_sin_5_0d1d2de": Generated("pointwise", ("add", "cos", "sin"), 5),
    # cut off
    "triton_per_fused__to_copy_add_addmm_native_layer_nor...": Generated(
        "reduction", ("_to_copy", "add", "addmm"), None, True
    ),
    "triton_poi_fused_gelu_native_layer_no": Generated("pointwise", ("gelu",), None, True),
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_a_name_tells_how_a_kernel_works_and_what_is_fused_in_it(name, expected):
    assert generated(name) == expected


@pytest.mark.parametrize(
    "name",
    ["aten::mm", "triton_unified_attention", "_matmul_ogs_NNT_bf16", "fused_moe_kernel", "kernel", "graph_0", "",
     "my_fused_op", "void at::native::vectorized_elementwise_kernel<4>", "torch_fused_add_0", "inductor::resize_"],
)  # fmt: skip
def test_others_are_not_of_inductor(name):
    assert generated(name) is None


def test_two_operators_come_apart_but_where_they_begin_with_the_name_of_another():
    """All that have rules, but for overloads alone, or that have none and the joining sign in their names."""
    known = {name for name in _RULES if name.startswith("aten::") and "." not in name and not name.endswith("_")}
    names = sorted({name.removeprefix("aten::") for name in known} | _BESIDES)
    assert len(names) > 800
    pairs = [(first, second) for at, first in enumerate(names) for second in names[at + 1 :: 8]]
    wrong = [pair for pair in pairs if generated("triton_poi_fused_{}_{}_0".format(*pair)).ops != pair]
    assert len(wrong) < 10
    for first, second in [("clamp", "max"), ("as_strided", "scatter"), *wrong]:
        assert any(f"{first}_{second}_".startswith(f"{name}_") for name in names if len(name) > len(first))


@pytest.mark.parametrize(
    ("name", "op", "kind"),
    [
        ("triton_poi_fused_gelu_view_1", "inductor::fused_gelu_view", "vector"),
        ("graph_3_cpp_fused_gelu_view_7", "inductor::fused_gelu_view", "vector"),
        ("triton_poi_fused_addmm_relu_0", "inductor::fused_addmm_relu", "vector"),
        ("triton_red_fused_mm_0", "inductor::fused_mm", "vector"),
        ("triton_poi_fused__to_copy_view_0", "inductor::fused__to_copy_view", "movement"),
        ("triton_poi_fused_moe_forward_0", "inductor::fused_moe_forward", "vector"),
        ("triton_for_fused_0", "inductor::fused", "vector"),
        ("triton__0d1d2d", "inductor::fused", ""),
        ("triton_tem_fused_addmm_relu_0", "inductor::template_addmm_relu", "matmul"),
        ("triton_tem_fused_convolution_relu_0", "inductor::template_convolution_relu", "convolution"),
        ("triton_tem_fused_flex_attention_mm_0", "inductor::template_flex_attention_mm", "attention"),
        ("triton_tem_fused_0", "inductor::template", "matmul"),
    ],
)
def test_what_stands_for_its_operator_and_the_kind_of_its_work(name, op, kind):
    assert generated(name).op == op
    assert generated(name).kind == kind
    again = generated(op)
    assert (again.op, again.ops) == (op, generated(name).ops)
    assert again.kind == (kind if again.ops or kind == "matmul" else "")


def test_what_stands_for_a_name_that_was_cut_off_says_so():
    made = generated("triton_poi_fused_gelu_native_layer_no")
    assert made.op == "inductor::fused_gelu_and_more"
    assert generated(made.op) == Generated("", ("gelu",), None, True)


def test_words_name_the_operators():
    assert generated("triton_poi_fused_gelu_view_1").words == "gelu, view"
    assert generated("triton_poi_fused_gelu_native_layer_no").words == "gelu and more"
    assert generated("triton_poi_fused_0").words == ""


@pytest.mark.parametrize("case", TRITON, ids=[case["what"] for case in TRITON])
def test_names_say_what_the_code_is_decorated_with(case):
    for name, heuristics in case["kernels"].items():
        assert generated(name).work == WORKS[heuristics]
        assert multiplies(name) is (heuristics == "template")


@pytest.mark.parametrize("case", TRITON, ids=[case["what"] for case in TRITON])
def test_names_have_the_operators_that_the_nodes_were_made_of(case):
    """Of the first call: a kernel that does again what another has done is called by that one's name."""
    for graph in case["graphs"]:
        calls = [call.rpartition(":") for call in graph]
        assert [int(number) for *_, number in calls] == sorted(int(number) for *_, number in calls)
        first = {name: graph[f"{name}:{number}"] for name, _, number in reversed(calls)}
        for name, operators in first.items():
            made = generated(name)
            assert (made is not None) is (name in case["kernels"])
            if made and made.ops:  # combined kernels of torch 2.13 name none
                assert list(made.ops) == operators


def test_most_of_them_name_operators():
    names = [name for case in TRITON for name in case["kernels"]]
    assert (len(names), sum(bool(generated(name).ops) for name in names)) == (60, 56)
