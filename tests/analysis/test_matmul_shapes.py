import pytest
from runs import ops_row

from gpuprof.analysis.ceilings import matmul_shapes
from gpuprof.errors import GpuprofError
from gpuprof.run import Run
from gpuprof.schema import table


def run(*ops, **environment):
    rows = []
    for op, shapes, calls, flops, *rest in ops:
        kind, dtype = (*rest, *("matmul", "bfloat16")[len(rest) :])
        rows.append(ops_row("fc", "forward", op, flops, kind=kind, calls=calls, dtype=dtype) | {"shapes": shapes})
    return Run({}, {"type": "cuda"}, environment, ops=table("ops", rows))


def test_products_of_every_spelling_are_added_up_and_sorted_by_flops():
    frame = matmul_shapes(
        run(
            # 2 x 64 x 16 x 32 = 65,536 FLOPs a call
            ("aten::mm.default", "64x32 32x16 -> 64x16", 2, 131_072),
            ("aten::addmm.default", "16 64x32 32x16 -> 64x16", 1, 65_536),
            ("aten::mm.out", "64x32 32x16 64x16 -> 64x16", 1, 65_536),
            # 4 x 2 x 8 x 128 x 64 = 524,288
            ("aten::bmm.default", "4x8x64 4x64x128 -> 4x8x128", 1, 524_288),
            ("aten::baddbmm.default", "4x8x128 4x8x64 4x64x128 -> 4x8x128", 1, 524_288),
            # the same product but for the side it lies on
            ("aten::mm.default", "16x32 32x64 -> 16x64", 1, 65_536),
            # no product of two matrices, though it counts in the whole
            ("aten::convolution.default", "1x3x8x8 4x3x3x3 -> 1x4x6x6", 1, 724_672, "convolution"),
            ("aten::add.Tensor", "8 8 -> 8", 1, None, ""),
        )
    )

    # 131,072 + 65,536 + 65,536 + 2 x 524,288 + 65,536 + 724,672 = 2,100,928
    assert frame.to_dict(orient="records") == [
        {"dtype": "bfloat16", "batch": 4, "m": 8, "n": 128, "k": 64, "calls": 2, "flops": 1_048_576,
         "share": pytest.approx(1_048_576 / 2_100_928)},
        {"dtype": "bfloat16", "batch": 1, "m": 64, "n": 16, "k": 32, "calls": 4, "flops": 262_144,
         "share": pytest.approx(262_144 / 2_100_928)},
        {"dtype": "bfloat16", "batch": 1, "m": 16, "n": 64, "k": 32, "calls": 1, "flops": 65_536,
         "share": pytest.approx(65_536 / 2_100_928)},
    ]  # fmt: skip


@pytest.mark.parametrize(("allowed", "dtype"), [(True, "tf32"), (False, "float32")])
def test_float32_is_held_against_tf32_where_it_may_run_as_it(allowed, dtype):
    frame = matmul_shapes(
        run(("aten::mm.default", "2x4 4x8 -> 2x8", 1, 128, "matmul", "float32"), allow_tf32_matmul=allowed)
    )

    assert list(frame["dtype"]) == [dtype]


def test_a_product_of_nothing_is_none():
    with pytest.raises(GpuprofError, match=r"no matrix products in this run \(it has none\)"):
        matmul_shapes(run(("aten::mm.default", "0x4 4x8 -> 0x8", 1, 0)))


def test_a_run_that_was_not_counted_says_so():
    with pytest.raises(GpuprofError, match=r"\(its operators were not counted\): give one saved by"):
        matmul_shapes(run())
