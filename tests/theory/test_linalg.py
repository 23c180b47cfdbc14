"""Linear algebra against operations counted one by one, as the textbook algorithms do them."""

from __future__ import annotations

import pytest
import torch

from gpuprof.analysis.unpriced import may_multiply
from gpuprof.theory import TensorSpec, cost_of, rule_for
from gpuprof.theory.linalg import householder, lu, orthogonal

T = TensorSpec
N, K = 4, 3
A, B = T((N, N)), T((N, K))


def lu_by_hand(m, n):
    """Each pivot: its reciprocal, the column below scaled, and the rest of the matrix updated."""
    return sum(1 + (m - j) + 2 * (m - j) * (n - j) for j in range(1, min(m, n) + 1))


def cholesky_by_hand(n):
    """Each column: the root, its elements below divided, and the triangle to the right updated."""
    return sum(1 + (n - j) + (n - j) * (n - j + 1) for j in range(1, n + 1))


SUBSTITUTION = K * sum(1 + 2 * j for j in range(N))  # per column: row i takes i products and sums, and a division
SUBSTITUTION_OF_ONES = K * sum(2 * j for j in range(N))


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "out", "flops"),
    [
        ("linalg_solve_triangular", (A, B), {"upper": True}, B, SUBSTITUTION),
        ("triangular_solve", (B, A), {}, (B, A), SUBSTITUTION),
        ("linalg_lu_factor_ex", (A,), {}, (A, T((N,)), T(())), lu_by_hand(N, N)),
        ("linalg_lu_factor_ex", (T((2, 6, N)),), {}, (T((2, 6, N)), T((2, N)), T((2,))), 2 * lu_by_hand(6, N)),
        ("linalg_lu", (T((N, 6)),), {}, (T((N, N)), T((N, N)), T((N, 6))), lu_by_hand(N, 6)),
        ("_linalg_det", (A,), {}, (T(()), A, T((N,))), lu_by_hand(N, N)),
        ("linalg_lu_solve", (A, T((N,)), B), {}, B, SUBSTITUTION + SUBSTITUTION_OF_ONES),
        ("_linalg_solve_ex", (A, B), {}, (B, A, T((N,)), T(())),
         lu_by_hand(N, N) + SUBSTITUTION + SUBSTITUTION_OF_ONES),
        ("_linalg_solve_ex", (T((5, N, N)), T((5, N, K))), {}, (T((5, N, K)), T((5, N, N)), T((5, N)), T((5,))),
         5 * (lu_by_hand(N, N) + SUBSTITUTION + SUBSTITUTION_OF_ONES)),
        ("_linalg_solve_ex", (A, T((N,))), {}, (T((N,)), A, T((N,)), T(())),
         lu_by_hand(N, N) + (SUBSTITUTION + SUBSTITUTION_OF_ONES) // K),
        ("linalg_inv_ex", (A,), {}, (A, T(())), lu_by_hand(N, N) + (SUBSTITUTION + SUBSTITUTION_OF_ONES) // K * N),
        ("linalg_cholesky_ex", (A,), {}, (A, T(())), cholesky_by_hand(N)),
        ("cholesky_solve", (B, A), {}, B, 2 * SUBSTITUTION),
    ],
)  # fmt: skip
def test_operations_one_by_one(op, args, kwargs, out, flops):
    cost, kind = cost_of(f"aten::{op}.default", args, kwargs, out)
    assert (cost.full, kind) == (flops, "matmul")


def test_sizes_that_lapack_is_known_for():
    """LAPACK Working Note 41: the leading terms, at a size where they are all there is."""
    n = 3000
    assert sum(lu(n, n)) == pytest.approx(2 * n**3 / 3, rel=1e-3)
    assert sum(householder(2 * n, n)) == pytest.approx(2 * (2 * n) * n**2 - 2 * n**3 / 3, rel=1e-3)
    assert sum(orthogonal(2 * n, n, n)) == pytest.approx(2 * (2 * n) * n**2 - 2 * n**3 / 3, rel=1e-3)
    inverse = cost_of("aten::cholesky_inverse.default", (T((n, n)),), {}, T((n, n)))[0].full
    assert inverse == pytest.approx(2 * n**3 / 3, rel=1e-3)


def test_qr_of_both_kinds():
    whole = cost_of("aten::linalg_qr.default", (T((5, 3)),), {}, (T((5, 3)), T((3, 3))))[0].full
    factor = cost_of("aten::linalg_qr.default", (T((5, 3)), "r"), {}, (T((0,)), T((3, 3))))[0].full
    assert (factor, whole) == (110, 110 + 71)  # 2 m n^2 - 2/3 n^3 + n^2 + m n + 14/3 n; and the Q of 5 x 3
    assert cost_of("aten::geqrf.default", (T((5, 3)),), {}, (T((5, 3)), T((3,))))[0].full == factor


def test_complex_multiplications_are_six_and_additions_two():
    c = T((N, N), "complex64"), T((N, K), "complex64")
    solved = cost_of("aten::linalg_solve_triangular.default", c, {"upper": True}, c[1])[0].full
    assert solved == 6 * K * (1 + 2 + 3 + 4) + 2 * K * (1 + 2 + 3)


def test_a_solution_by_torch_has_its_gradient_counted_too(record):
    a, b = torch.eye(N).requires_grad_(), torch.ones(N, K).requires_grad_()
    with record() as calls:
        torch.linalg.solve(a, b).sum().backward()
    counted = [call.cost.full for call in calls if call.cost.full]
    solve = SUBSTITUTION + SUBSTITUTION_OF_ONES
    assert counted == [lu_by_hand(N, N) + solve, solve, 2 * N * N * K]


@pytest.mark.parametrize("op", ["_linalg_svd", "_linalg_eigh", "linalg_eig", "linalg_lstsq", "linalg_matrix_exp"])
def test_what_takes_rounds_as_its_values_need_is_named_and_known_to_multiply(op):
    assert rule_for(f"aten::{op}") is None
    assert may_multiply(f"aten::{op}.default")
