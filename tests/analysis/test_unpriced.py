"""A backward ratio is withheld where a product has no rule, in every renderer; elementwise operators do not matter."""

import json

import pytest
from runs import gpu_run, ops_row

from gpuprof.analysis.backward import whole
from gpuprof.analysis.totals import totals
from gpuprof.analysis.unpriced import may_multiply, ratio_withheld
from gpuprof.render import render
from gpuprof.render.backward import FORMATS, render_backward
from gpuprof.render.page import render_page
from gpuprof.schema import table

REASON = "withheld: bitsandbytes::gemm_of_tomorrow.default may multiply and has no FLOP rule"


def with_unpriced(op, phase="forward", module="head"):
    run = gpu_run()
    unknown = ops_row(module, phase, op, None, kind="")
    unknown |= dict.fromkeys(("flops_full", "flops_hardware", "vector_flops", "bytes"))
    run.ops = table("ops", [*run.ops.to_dict(orient="records"), unknown])
    return run


@pytest.fixture
def unpriced():
    return with_unpriced("bitsandbytes::gemm_of_tomorrow.default")


@pytest.mark.parametrize(
    ("op", "may"),
    [
        ("mylib::anything.default", True),
        ("bitsandbytes::gemm_8bit.default", True),
        ("higher_order::triton_kernel_wrapper_mutation", True),
        ("aten::_linalg_svd.default", True),
        ("aten::_foreach_mm.default", True),
        ("aten::_convolution_double_backward.default", True),
        ("aten::igamma.default", False),  # mm in no word of its own
        ("aten::polygamma.default", False),
        ("prims::convert_element_type.default", False),
        ("_c10d_functional::all_reduce.default", False),
    ],
)
def test_what_may_multiply(op, may):
    assert may_multiply(op) is may


def test_totals_and_tables_have_no_ratio_but_the_reason(unpriced):
    assert ratio_withheld(unpriced).startswith(REASON)
    sums, known = totals(unpriced), totals(gpu_run())
    assert sums["backward_ratio"] is None
    assert known["backward_ratio"] is not None
    assert sums["withheld"] == ""
    figures = whole(unpriced)
    assert figures["ratio_flops"] is figures["error_flops"] is None
    assert figures["withheld"].startswith(REASON)
    assert figures["flops_backward"] == whole(gpu_run())["flops_backward"]


def test_modules_without_it_keep_their_ratio(unpriced):
    rows = unpriced.backward_ratios().set_index("module")
    before = gpu_run().backward_ratios().set_index("module")
    for module in rows.index:
        if module in ("", "head"):
            assert rows.at[module, "reason"].startswith(REASON)
            assert rows.loc[module, ["ratio_flops", "ratio_hardware"]].isna().all()
        else:
            assert rows.at[module, "reason"] == before.at[module, "reason"]
    classes = unpriced.backward_ratios("class").set_index("class")
    assert classes.at["Linear", "reason"].startswith(REASON)


def test_every_renderer_says_why(unpriced):
    tree = " ".join(render(unpriced).split())
    assert f"x forward {REASON}" in tree
    assert " x forward as counted" not in tree
    for format in FORMATS:
        said = render_backward(unpriced, format)
        assert "gemm_of_tomorrow" in said
    assert json.loads(render_backward(unpriced, "json"))["whole"]["ratio_flops"] is None
    page = render_page(unpriced)
    assert REASON in page
    assert "x the forward in the backward" not in page


@pytest.mark.parametrize(("op", "phase"), [("aten::igamma.default", "forward"), ("mylib::step.default", "optimizer")])
def test_what_is_no_product_of_model_or_gradient_withholds_nothing(op, phase):
    assert ratio_withheld(with_unpriced(op, phase)) == ""
