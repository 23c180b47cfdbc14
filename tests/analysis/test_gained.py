import json

import pandas as pd
import pytest
from runs import compiled_run, eager_run, row

from gpuprof.analysis.check import check, compare
from gpuprof.analysis.gained import gained
from gpuprof.errors import GpuprofError
from gpuprof.render.comparison import COMPARISONS
from gpuprof.render.view import View
from gpuprof.schema import table


def test_what_compilation_gained_module_by_module():
    found = gained(eager_run(), compiled_run(), "module")

    figures = found.set_index("module")[["eager_s", "compiled_s", "gained_s"]] * 1e9
    assert figures.round(6).to_dict("index") == {
        "norm": {"eager_s": 120.0, "compiled_s": 67.0, "gained_s": 53.0},
        "act": {"eager_s": 105.0, "compiled_s": 64.0, "gained_s": 41.0},
        "fc": {"eager_s": 60.0, "compiled_s": 60.0, "gained_s": 0.0},
        "head": {"eager_s": 40.0, "compiled_s": 40.0, "gained_s": 0.0},
        "": {"eager_s": 0.0, "compiled_s": 10.0, "gained_s": -10.0},  # a kernel that is not split
    }
    assert list(found["module"]) == ["norm", "act", "fc", "head", ""]
    norm, act, rest = (row(found, module=path) for path in ("norm", "act", ""))
    assert norm["speedup"] == pytest.approx(120 / 67)
    assert pd.isna(rest["speedup"])
    assert (norm["fused_share"], act["fused_share"], row(found, module="fc")["fused_share"]) == (1.0, 1.0, 0.0)


def test_kernels_count_once_and_flops_are_those_of_what_ran():
    found = gained(eager_run(), compiled_run(), "module").set_index("module")

    assert found["eager_kernels"].to_dict() == {"norm": 2, "act": 2, "fc": 3, "head": 3, "": 0}
    assert found["compiled_kernels"].to_dict() == {"norm": 1, "act": 1, "fc": 3, "head": 3, "": 1}
    assert found["eager_flops"].fillna(0).to_dict() == {"norm": 0, "act": 0, "fc": 3000, "head": 1200, "": 0}
    assert found.loc["fc", "compiled_flops"] == 3000


def test_a_region_that_nobody_looked_into_is_held_against_all_that_is_in_it():
    hidden = compiled_run()
    inside = hidden.kernels["compiled"] != ""
    hidden.kernels.loc[inside, ["module", "compiled"]] = ["", ""]
    hidden.nodes = table("nodes", [])

    found = gained(eager_run(), hidden, "module")

    times = (found.set_index("module")[["eager_s", "compiled_s"]] * 1e9).round(6)
    assert times.to_dict("index") == {
        "": {"eager_s": 285.0, "compiled_s": 201.0}, "head": {"eager_s": 40.0, "compiled_s": 40.0},
    }  # fmt: skip


def test_paths_of_a_wrapped_model_are_those_of_the_bare_one():
    head = compiled_run()
    for frame in (head.tree, head.ops, head.nodes, head.kernels):
        frame["module"] = ["_orig_mod." * bool(path) + path if path else "_orig_mod" for path in frame["module"]]
    head.tree = table("tree", [head.tree.iloc[0].to_dict() | {"module": "", "class": "OptimizedModule"},
                               *head.tree.to_dict("records")])  # fmt: skip

    assert set(gained(eager_run(), head, "module")["module"]) == {"norm", "act", "fc", "head", ""}


def said(base, head, format="text", **view):
    return COMPARISONS[format](compare(base, head), View(**view))


def test_a_model_beside_the_same_compiled():
    text = said(eager_run(), compiled_run(), width=130)

    first = " ".join(text.split("\n\n")[0].split())
    assert first == (
        "compilation: step 1.42 x faster, 426.0 ns -> 300.0 ns; most gained in norm -53.00 ns (1.79 x faster), "
        "act -41.00 ns (1.64 x faster)."
    )
    assert "new" not in text.split()
    assert "gone" not in text.split()
    assert "no verdict on the code" in " ".join(text.split())
    lines = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line.strip()}
    assert lines["norm"] == "norm 120.0 ns 67.00 ns -53.00 ns 1.79 x 100.0 % 2 to 1 same"
    assert lines["fc"] == "fc 60.00 ns 60.00 ns +0 s 1.00 x 3 same"
    assert lines["(root)"] == "(root) 0 s 10.00 ns +10.00 ns - 0 to 1 same"


def test_the_other_way_round_it_is_the_same_gain():
    sentence = " ".join(said(compiled_run(), eager_run()).split("\n\n")[0].split())

    assert sentence.startswith("compilation: step 1.42 x faster, 426.0 ns -> 300.0 ns; most gained in norm -53.00 ns")


def test_compilation_that_costs_time_says_where():
    slow = compiled_run()
    slow.samples["time_s"] *= 2

    sentence = " ".join(said(eager_run(), slow).split("\n\n")[0].split())

    assert sentence == "compilation: step 1.41 x slower, 426.0 ns -> 600.0 ns; most lost in (root) +10.00 ns."


def test_machines_get_every_column():
    lines = said(eager_run(), compiled_run(), "csv").splitlines()

    assert lines[0].startswith("layer,eager_s,compiled_s,gained_s,speedup,fused_share,eager_kernels,compiled_kernels,")
    assert len(lines) == 6
    rows = json.loads(said(eager_run(), compiled_run(), "json"))["gained"]
    assert (rows[0]["layer"], rows[0]["eager_kernels"]) == ("norm", 2)
    assert "| norm | 120.0 ns | 67.00 ns |" in said(eager_run(), compiled_run(), "markdown")


def test_a_compiled_run_is_no_baseline_of_an_eager_one():
    with pytest.raises(GpuprofError, match="--allow-different workload"):
        check(eager_run(), [compiled_run()])


def test_two_compiled_runs_compare_as_any_two():
    found = compare(compiled_run(), compiled_run())

    assert found.gained.empty
    assert set(found.moved) == {"layer"}


def test_what_differs_beside_compilation_is_not_its_gain():
    eager, head = eager_run(), compiled_run()
    head.workload["name"] = "another file"

    held = compare(eager, head, (), allowed=("workload",))
    assert not held.gained.empty
    assert held.notes == ["Their workloads differ in more than compilation."]

    head.tree = table("tree", [*head.tree.to_dict("records"), head.tree.iloc[-1].to_dict() | {"module": "further"}])
    assert compare(eager, head, (), allowed=("workload",)).gained.empty  # of another model


def test_one_model_with_and_without_has_no_such_note():
    assert compare(eager_run(), compiled_run()).notes == []
