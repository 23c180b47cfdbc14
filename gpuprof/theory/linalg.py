"""Linear algebra whose work its sizes fix: triangular solves, LU, Cholesky and QR.

They count as matmul FLOPs, since nearly all of their work is products of blocks. The counts of multiplications (with
divisions) and additions are LAPACK's own (LAPACK Working Note 41, Blackford and Dongarra, Installation Guide for
LAPACK, appendix C): of n x n, LU is about 2/3 n^3, Cholesky 1/3 n^3, a triangular solve for k columns n^2 k, and QR of
m x n with its Q about 4 m n^2 - 4/3 n^3. Of complex numbers a multiplication is 6 real FLOPs and an addition 2.

Eigenvalues, singular values, least squares and the matrix exponential take as many rounds as their input's values need:
they have no rule, and are named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from .rules import Cost, TensorSpec, flop_rule

Counts = tuple[Fraction, Fraction]
"""Multiplications and additions."""


def _flops(a: TensorSpec, *parts: Counts) -> int:
    """Real FLOPs of one matrix of the dtype of ``a``."""
    times, plus = (6, 2) if a.dtype.startswith("complex") else (1, 1)
    return int(sum(times * multiplications + plus * additions for multiplications, additions in parts))


def _batch(a: TensorSpec) -> int:
    return math.prod(a.shape[:-2])


def lu(m: int, n: int) -> Counts:
    """Of LU with pivoting (GETRF), m x n; of wider matrices, which the source leaves out, by the same sums."""
    k = min(m, n)
    # pivot j updates m - j rows of n - j elements, after a reciprocal and m - j products with it
    updates = k * m * n - Fraction((m + n) * k * (k + 1), 2) + Fraction(k * (k + 1) * (2 * k + 1), 6)
    return updates + k * m - k * (k + 1) // 2 + k, updates


def cholesky(n: int) -> Counts:
    """Of a Cholesky decomposition (POTRF)."""
    size = Fraction(n)
    return size**3 / 6 + size**2 / 2 + size / 3, size**3 / 6 - size / 6


def triangular_solve(n: int, columns: int) -> Counts:
    """Of a triangular n x n matrix and so many right-hand sides (TRSM)."""
    return Fraction(columns * n * (n + 1), 2), Fraction(columns * n * (n - 1), 2)


def lu_solve(n: int, columns: int) -> Counts:
    """Of both triangles of an LU (GETRS), one of which has ones on its diagonal."""
    return Fraction(columns * n * n), Fraction(columns * n * (n - 1))


def householder(m: int, n: int) -> Counts:
    """Of QR as reflections and R (GEQRF), m x n."""
    rows, columns = Fraction(m), Fraction(n)
    if m > n:
        common = columns * (Fraction(1, 2) - columns / 3 + rows)
        return columns * (common + rows + Fraction(23, 6)), columns * (common + Fraction(5, 6))
    common = rows * (Fraction(-1, 2) - rows / 3 + columns)
    return rows * (common + 2 * columns + Fraction(23, 6)), rows * (common + columns + Fraction(5, 6))


def orthogonal(m: int, n: int, k: int) -> Counts:
    """Of the first n columns of the Q that k reflections make (ORGQR), m x n."""
    common = k * (Fraction(2 * k, 3) - (m + n))
    multiplications = k * (2 * m * n + 2 * n - Fraction(5, 3) + common - k)
    return multiplications, k * (2 * m * n + n - m + Fraction(1, 3) + common)


def _columns(result: TensorSpec, a: TensorSpec) -> int:
    """Right-hand sides of a whole batch, from what is solved for."""
    return result.numel // max(a.shape[-1], 1)


@flop_rule("aten::linalg_lu_factor_ex", "aten::linalg_lu_factor", "aten::linalg_lu", "aten::_lu_with_info")
def _lu(a: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    return _batch(a) * _flops(a, lu(*a.shape[-2:]))


@flop_rule("aten::_linalg_det", "aten::_linalg_slogdet")
def _determinant(a: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(full=_batch(a) * _flops(a, lu(*a.shape[-2:])), vector=_batch(a) * a.shape[-1])


@flop_rule("aten::_linalg_solve_ex")
def _solve(a: TensorSpec, b: TensorSpec, *_: Any, out: Sequence[TensorSpec], **__: Any) -> int:
    n = a.shape[-1]
    return _batch(a) * _flops(a, lu(n, n)) + _flops(a, lu_solve(n, _columns(out[0], a)))


@flop_rule("aten::linalg_inv_ex")
def _inverse(a: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    # torch solves for the columns of the identity.
    n = a.shape[-1]
    return _batch(a) * _flops(a, lu(n, n), lu_solve(n, n))


@flop_rule("aten::linalg_lu_solve")
def _lu_solve(a: TensorSpec, pivots: Any, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    return _flops(a, lu_solve(a.shape[-1], _columns(out, a)))


@flop_rule("aten::linalg_solve_triangular")
def _solve_triangular(a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    return _flops(a, triangular_solve(a.shape[-1], _columns(out, a)))


@flop_rule("aten::triangular_solve")
def _triangular_solve(b: TensorSpec, a: TensorSpec, *_: Any, out: Sequence[TensorSpec], **__: Any) -> int | None:
    if a.stored is not None:  # of which only one triangle is read, perhaps without its diagonal
        return None
    return _flops(a, triangular_solve(a.shape[-1], _columns(out[0], a)))


@flop_rule("aten::linalg_cholesky_ex", "aten::cholesky")
def _cholesky(a: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    return _batch(a) * _flops(a, cholesky(a.shape[-1]))


@flop_rule("aten::cholesky_solve")
def _cholesky_solve(b: TensorSpec, a: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    return 2 * _flops(a, triangular_solve(a.shape[-1], _columns(out, a)))


@flop_rule("aten::cholesky_inverse")
def _cholesky_inverse(a: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    n = Fraction(a.shape[-1])  # POTRI
    return _batch(a) * _flops(a, (n**3 / 3 + n**2 + 2 * n / 3, n**3 / 3 - n**2 / 2 + n / 6))


@flop_rule("aten::linalg_qr")
def _qr(a: TensorSpec, mode: str = "reduced", *_: Any, out: Sequence[TensorSpec], **__: Any) -> int:
    m, n = a.shape[-2:]
    parts = [householder(m, n)]
    if mode != "r":
        parts.append(orthogonal(m, out[0].shape[-1], min(m, n)))
    return _batch(a) * _flops(a, *parts)


@flop_rule("aten::geqrf")
def _geqrf(a: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    return _batch(a) * _flops(a, householder(*a.shape[-2:]))


@flop_rule("aten::linalg_householder_product")
def _householder_product(a: TensorSpec, tau: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    m, n = a.shape[-2:]
    return _batch(a) * _flops(a, orthogonal(m, n, tau.shape[-1]))
