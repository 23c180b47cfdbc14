from __future__ import annotations

import subprocess
import sys

import pytest

from gpuprof.errors import GpuprofError
from gpuprof.theory import Cost, TensorSpec, conventions, cost_of, flop_rule, least_bytes, rule_for, rules

T = TensorSpec


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))


def test_importing_theory_does_not_import_torch():
    code = "import sys, gpuprof.theory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("registry")
def test_a_rule_of_ones_own_replaces_the_built_in_one_and_may_be_for_one_overload():
    flop_rule("aten::mm.dtype")(lambda a, b, dtype, *, out: 7)
    args = T((2, 3)), T((3, 4))
    assert cost_of("aten::mm.default", args, {}, T((2, 4))) == (Cost(full=48), "matmul")
    assert cost_of("aten::mm.dtype", (*args, "float32"), {}, T((2, 4))) == (Cost(full=7), "matmul")


@pytest.mark.usefixtures("registry")
def test_a_rule_may_say_that_it_cannot_tell():
    flop_rule("mylib::packed", kind="attention")(lambda *args, out: None)
    assert rule_for("mylib::packed.default") is not None
    assert cost_of("mylib::packed.default", (), {}, None) is None
    assert cost_of("mylib::unheard_of.default", (), {}, None) is None


def broken(*_, out):
    raise KeyError("K")


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (broken, "raised KeyError: 'K'"),
        (lambda a, *, out: "x", "raised ValueError: invalid literal"),
        (lambda a, *, out: float("nan"), "raised ValueError: cannot convert float NaN"),
        (lambda a, *, out: -5, "gives less than 0 FLOPs"),
        (lambda a, *, out: Cost(full=5, causal=-1), "gives less than 0 FLOPs"),
    ],
)
def test_a_rule_that_is_wrong_is_named_and_not_the_model(rule, why):
    flop_rule("mylib::wrong")(rule)
    with pytest.raises(GpuprofError, match=f"^the FLOP rule of mylib::wrong.default {why}"):
        cost_of("mylib::wrong.default", (T((2,)),), {}, T((2,)))


def test_out_variants_cost_what_their_operator_costs():
    out = T((2, 4))
    cost, kind = cost_of("aten::mm.out", (T((2, 3)), T((3, 4))), {"out": out}, out)
    assert cost.full == 48
    assert least_bytes(cost, kind, (T((2, 3)), T((3, 4))), {"out": out}, out) == 4 * (6 + 12 + 8)


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "out", "expected"),
    [
        ("aten::mm.default", (T((2, 3), "int8"), T((3, 4), "int8")), {}, T((2, 4), "int16"), 18 + 16),
        ("aten::view.default", (T((2, 3)), [6]), {}, T((6,)), 0),
        ("aten::add.Tensor", (T((2, 3)), T((3,))), {}, T((2, 3)), 4 * (6 + 3 + 6)),
        ("aten::add_.Tensor", (T((2, 3)), T((2, 3))), {}, T((2, 3)), 4 * 18),
        ("aten::copy_.default", (T((5,)), T((5,), "bfloat16")), {}, T((5,)), 20 + 10),
        ("aten::zeros.default", ([5],), {}, T((5,)), 20),
        ("aten::fill_.Scalar", (T((5,)), 1.0), {}, T((5,)), 20),
        # Rows gathered and written, and the indices; not the table.
        ("aten::embedding.default", (T((1000, 8)), T((3,), "int64")), {}, T((3, 8)), 24 + 2 * 96),
        ("aten::index.Tensor", (T((1000, 8)), [T((3,), "int64")]), {}, T((3, 8)), 24 + 2 * 96),
        ("aten::_foreach_add_.Scalar", ([T((5,)), T((3,))], 1), {}, None, 2 * 32),
        ("aten::_foreach_mul_.List", ([T((5,))], [T((5,))]), {}, None, 3 * 20),
        ("aten::nll_loss_forward.default", (T((4, 100)), T((4,), "int64"), None, 1), {}, (T(()), T(())), 56),
    ],
)  # fmt: skip
def test_least_bytes(op, args, kwargs, out, expected):
    cost, kind = cost_of(op, args, kwargs, out)
    assert least_bytes(cost, kind, args, kwargs, out) == expected


def test_bytes_of_a_spec():
    assert T((2, 3), "float64").nbytes == 48
    assert T((2, 3), "float8_e4m3fn").nbytes == 6
    assert T(()).nbytes == 4


def test_conventions_name_a_field_of_the_cost():
    for name, convention in conventions.CONVENTIONS.items():
        assert convention.name == name
        assert hasattr(Cost(), convention.modules_in)
    assert conventions.DEFAULT_CONVENTION in conventions.CONVENTIONS
