import pandas as pd

from gpuprof.analysis.each import each, each_row, numbered, where
from gpuprof.analysis.kernel_time import busy_seconds_by
from gpuprof.schema import table

OPS = pd.Series(["mm", "add", "mm", ""], index=[7, 3, 9, 1], dtype="object")


def test_something_of_each_text_is_found_once():
    asked = []

    found = each(OPS, lambda op: asked.append(op) or op.upper())

    assert asked == ["mm", "add", ""]
    assert (found.tolist(), found.index.tolist(), found.dtype) == (["MM", "ADD", "MM", ""], [7, 3, 9, 1], "object")
    assert each(OPS, {"mm": ("a", 1), "add": None, "": 2}).tolist() == [("a", 1), None, ("a", 1), 2]
    assert where(OPS, lambda op: op.startswith("m")).tolist() == [True, False, True, False]


def test_rows_that_are_alike_have_one_number():
    rows = pd.DataFrame({"op": OPS, "call": pd.array([1, None, 1, None], dtype="Int64")})

    places, first = numbered(rows)

    assert places.tolist() == [0, 1, 0, 2]
    assert first.index.tolist() == [7, 3, 1]
    assert each_row(rows[["op"]], lambda op: len(op)).tolist() == [2, 3, 2, 0]


def test_of_nothing_nothing_is_found():
    places, first = numbered(table("kernels", [])[["module", "call"]])

    assert (len(places), len(first), len(each(OPS[:0], str)), len(where(OPS[:0], bool))) == (0, 0, 0, 0)
    assert busy_seconds_by(table("kernels", []), ["module"]) == {}


def test_kernels_beside_one_another_count_once_for_whom_they_are():
    # of a: 0 to 10 and 5 to 12, and 20 to 21; of b: 5 to 12
    rows = [("a", 0, 10), ("b", 5, 7), ("a", 5, 7), ("a", 20, 1)]
    kernels = table("kernels", [{"module": owner, "start_ns": at, "duration_ns": ns} for owner, at, ns in rows])

    assert busy_seconds_by(kernels, ["module"]) == {("a",): 13 * 1e-9, ("b",): 7 * 1e-9}
