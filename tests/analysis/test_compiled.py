import pandas as pd
import pytest
from runs import compiled_run, gpu_run, kernel_row, node_row, ops_row, row

from gpuprof.analysis.compiled import COLUMNS, compiled_flops, compiled_lines, hardware_of_compiled
from gpuprof.schema import table


def changed(**tables):
    """The compiled run with further rows in these tables, its own first."""
    run = compiled_run()
    for name, rows in tables.items():
        setattr(run, name, table(name, [*getattr(run, name).to_dict("records"), *rows]))
    return run


def product(module, phase, flops, calls=1, op="aten::mm.default", kind="matmul"):
    return node_row(1, "extern_kernels.mm:9", module, phase, op, 30, flops, kind=kind, calls=calls)


def test_compiled_code_that_does_what_was_counted():
    run = compiled_run()
    frame = compiled_flops(run)

    assert list(frame) == COLUMNS
    assert (frame["cause"] == "").all()
    assert row(frame, module="fc", phase="backward")["flops_compiled"] == 2000
    assert row(frame, module="head", phase="backward")["flops_compiled"] == 800  # not compiled, and the same
    assert compiled_lines(run) == [
        "Compiled code does the 4.200 KFLOPs that were counted, each module its own.",
        "  70 FLOPs of elementwise work, computed again in the backward: act",
    ]
    assert hardware_of_compiled(run) == 1000 + 2000 + 400 + 800


def test_what_was_not_counted_is_not_taken_for_none():
    run = compiled_run()
    del run.passes["count"]
    run.ops = table("ops", [])

    assert compiled_flops(run).empty
    assert compiled_lines(run) == []


def test_an_eager_run_has_no_such_table():
    assert compiled_flops(gpu_run()).empty
    assert compiled_lines(gpu_run()) == []
    assert hardware_of_compiled(gpu_run()) is None


@pytest.mark.parametrize(
    ("counted", "made", "cause"),
    [
        ([], [product("fc", "recompute", 1000)], "computed again in the backward"),
        ([ops_row("fc", "recompute", "aten::mm.default", 1000)], [], "not computed again"),
        ([ops_row("act", "forward", "aten::mm.default", 600)], [], "left out"),
        ([], [product("act", "forward", 600)], "further products"),
        # 300 multiply-accumulates, as 300 products of elements
        (
            [ops_row("act", "forward", "aten::mm.default", 600)],
            [node_row(0, "cpp_fused_0:9", "act", "forward", "aten::mul.Tensor", 8, vector=300)],
            "done as elementwise work",
        ),
        (
            [ops_row("act", "forward", "aten::mm.default", 600), ops_row("act", "forward", "aten::mv.default", 80)],
            [node_row(0, "cpp_fused_0:9", "act", "forward", "aten::mul.Tensor", 8, vector=300)],
            "done as elementwise work, left out",
        ),
        (
            [ops_row("act", "forward", "aten::bmm.default", 600, calls=2)],
            [product("act", "forward", 500, op="aten::_scaled_dot_product_flash_attention.default", kind="attention")],
            "fused attention",
        ),
        # a kernel that masks by itself leaves half of it out
        (
            [ops_row("act", "forward", "aten::_flash.default", 600, full=1000, kind="attention")],
            [product("act", "forward", 1000, op="aten::_flash.default", kind="attention")],
            "the whole square of attention, for a mask that is a tensor",
        ),
        (
            [ops_row("act", "forward", "aten::mm.default", 600)],
            [
                product("act", "forward", 640),
                node_row(0, "t:9", "act", "forward", "aten::constant_pad_nd.default", 8, kind="movement"),
            ],
            "padded",
        ),
    ],
)
def test_a_difference_is_named(counted, made, cause):
    run = changed(ops=counted, nodes=made)
    frame = compiled_flops(run)
    differ = frame[frame["cause"] != ""]

    assert differ["cause"].tolist() == [cause]
    assert int(differ["flops_counted"].sum()) == sum(one["flops_hardware"] for one in counted)
    assert int(differ["flops_compiled"].sum()) == sum(one["flops_hardware"] for one in made)


def test_the_lines_add_up_and_name_the_modules():
    run = changed(
        ops=[ops_row("act", "forward", "aten::mm.default", 600)],
        nodes=[product("fc", "recompute", 1000), product("act", "recompute", 200)],
    )

    assert compiled_lines(run) == [
        "Compiled code does 5.400 KFLOPs, where 4.800 KFLOPs were counted:",
        "  600 FLOPs less, left out: act",
        "  1.200 KFLOPs more, computed again in the backward: act, fc",
        "  70 FLOPs of elementwise work, computed again in the backward: act",
    ]
    assert hardware_of_compiled(run) == 4200 + 1200


def test_a_product_that_nobody_knows_is_not_none():
    run = changed(nodes=[product("fc", "backward", None)])
    frame = compiled_flops(run)

    assert pd.isna(row(frame, module="fc", phase="backward")["flops_compiled"])
    assert row(frame, module="fc", phase="backward")["cause"] == ""
    assert compiled_lines(run)[-1] == "  not known: fc"
    assert hardware_of_compiled(run) is None


def test_a_product_outside_that_was_not_counted_so_is_not_known():
    run = changed(kernels=[kernel_row("head", "forward", "aten::bmm", 900, 5, call=99)])

    assert hardware_of_compiled(run) is None


def test_without_a_count_nothing_is_compared():
    run = compiled_run()
    run.ops = table("ops", [])

    assert compiled_flops(run).empty
    assert compiled_lines(run) == []


def test_what_python_called_inside_a_region_is_not_left_out():
    again = ops_row("fc", "forward", "aten::addmm.default", 1000)  # a second time, and that on the region
    run = changed(ops=[again], kernels=[kernel_row("", "forward", "aten::addmm", 900, 5, call=99)])
    frame = compiled_flops(run)

    assert row(frame, module="fc", phase="forward")["flops_counted"] == 2000
    assert pd.isna(row(frame, module="fc", phase="forward")["flops_compiled"])
    assert (frame["cause"] == "").all()
    assert compiled_lines(run)[-1] == "  not known: fc"


def test_regions_whose_insides_are_not_known_are_not_compared():
    run = compiled_run()
    run.passes["trace"].facts["hidden"] = ["fc"]

    assert "fc" not in set(compiled_flops(run)["module"])


def test_a_region_that_dynamo_leaves_alone_hides_what_is_inside():
    run = compiled_run()
    run.kernels = table("kernels", [kernel_row("", "forward", "aten::addmm", 0, 5, call=0)])
    run.nodes, run.graphs, run.passes["trace"].facts = table("nodes", []), table("graphs", []), {}
    modules = run.modules().set_index("module")

    assert modules.loc["", "time_forward_s"] == pytest.approx(5e-9)
    assert modules.loc[["norm", "act", "fc", "head"], "time_forward_s"].isna().all()
