"""What is walked as plain rows says what its frame says, and needs no frame where there are no kernels."""

import pytest

import gpuprof
from gpuprof.analysis.counted import counted, counted_columns
from gpuprof.analysis.modules import by_module, module_columns
from gpuprof.analysis.once import unchanged
from gpuprof.analysis.op_tables import ruleless
from gpuprof.analysis.telemetry import invalid
from gpuprof.analysis.totals import totals
from gpuprof.analysis.unpriced import unpriced
from gpuprof.analysis.verdict import verdict
from gpuprof.late import pattern
from gpuprof.record import PassOutcome
from gpuprof.render import render
from gpuprof.schema import TABLES, columns
from tests.runs import compiled_run, counted_run, generation_run, gpu_run, ops_row, rank_run, tree_row

EXACT = 2**70 + 1  # beyond 64 bits, and no float


def only_counted() -> gpuprof.Run:
    """A block of two layers, the second without a rule: its tables as a pass sets them, in columns."""
    rows = [
        ops_row("fc", "forward", "aten::mm.default", EXACT, full=2 * EXACT, dtype="float32"),
        ops_row("act", "forward", "mylib::odd.default", None, kind="", calls=3),
        ops_row("act", "forward", "mylib::odd_.out", None, kind="", calls=4),
        ops_row("fc", "backward", "aten::mm.default", 2 * EXACT, dtype="float32"),
    ]
    for row in rows[1:3]:
        row |= {"flops_full": None, "flops_hardware": None, "vector_flops": None}
    run = gpuprof.Run({"name": "net", "mode": "train"}, {"type": "meta"}, {}, passes={"count": PassOutcome("done")})
    modules = [tree_row("", "Net", 5), tree_row("fc", "Linear", 5), tree_row("act", "Odd")]
    run.tree = {name: [row[name] for row in modules] for name in TABLES["tree"]}
    run.ops = {name: [row.get(name) for row in rows] for name in TABLES["ops"]}
    return run


@pytest.mark.parametrize(
    "make", [only_counted, gpu_run, counted_run, compiled_run, generation_run, lambda: rank_run(0)]
)
@pytest.mark.parametrize("convention", ["causal", "calflops", "torch-counter"])
def test_plain_rows_are_those_of_the_frames(make, convention):
    run = make()

    assert module_columns(run, convention) == columns(by_module(run, convention))
    found, frame = counted_columns(run, convention), counted(run, convention)
    times = ("ideal_s", "hardware_ideal_s")
    assert {name: list(values) for name, values in found.items() if name not in times} == columns(
        frame.drop(columns=[*times])
    )
    assert [list(found[name]) for name in times] == [pytest.approx(frame[name].tolist(), nan_ok=True) for name in times]


def test_exact_integers_of_any_size_roll_up():
    found = module_columns(only_counted())

    assert found["module"] == ["", "fc", "act", "(unattributed)"]
    assert found["flops_forward"] == [EXACT, EXACT, 0, 0]
    assert found["flops_backward"] == [2 * EXACT, 2 * EXACT, 0, 0]
    assert found["macs"] == [EXACT // 2, EXACT // 2, 0, 0]
    assert found["params"] == [5, 5, 0, None]
    assert found["kernel_mfu"] == found["time_forward_s"] == [None] * 4
    assert totals(only_counted())["flops"] == 3 * EXACT


def test_an_assumed_backward_repeats_the_rows_of_the_forward():
    run = only_counted()
    shapes = ["2x3 3x4 -> 2x4", "", "", "2x4 4x3 -> 2x3"]
    run.ops = {**run.columns("ops"), "shapes": shapes}

    found = counted_columns(run, "calflops")

    forward = 2 * 2 * 3 * 4
    assert found["phase"] == ["forward", "forward", "forward", "backward", "backward"]
    assert found["flops"] == [forward, 0, 0, 0, 2 * forward]
    assert found["macs"] == [forward // 2, 0, 0, 0, forward]
    assert found["flops_hardware"] == [EXACT, None, None, 2 * EXACT, 0]
    assert found["calls"] == [1, 3, 4, 1, 0]
    assert found["op"][-1] == "aten::mm.default"
    assert columns(counted(run, "calflops"))["flops"] == found["flops"]


def test_operators_without_a_rule_are_told_with_and_without_a_trace():
    assert ruleless(only_counted()) == [{"op": "mylib::odd", "calls": 7}]
    (row,) = ruleless(gpu_run())
    assert (row["op"], row["calls"], row["time_share"]) == ("mylib::step", 3, pytest.approx(40 / 440))
    assert unpriced(only_counted()) == {"act": ["mylib::odd.default", "mylib::odd_.out"]}


def test_a_counted_run_is_shown_from_its_columns(tmp_path):
    run = only_counted()
    before = render(run)

    assert all(isinstance(run.held(name), dict) for name in TABLES)
    assert "mylib::odd (7 calls)" in before
    loaded = gpuprof.load(run.save(tmp_path / "run.json"))
    assert render(loaded) == before
    assert all(isinstance(loaded.held(name), dict) for name in TABLES)
    for name in TABLES:
        getattr(loaded, name)  # from now on a frame
    assert render(loaded) == before
    assert verdict(loaded) == verdict(run)
    assert invalid(loaded) == []


def test_figures_follow_a_table_that_is_set_anew_or_changed_in_its_frame():
    run = only_counted()
    assert totals(run)["flops"] == 3 * EXACT

    run.ops = {name: values[:1] for name, values in run.columns("ops").items()}
    assert totals(run)["flops"] == EXACT
    run.ops.loc[0, ["flops_causal", "flops_full", "flops_hardware"]] = 8
    assert totals(run)["flops"] == 8


def test_modules_are_named_as_the_tree_names_them_now():
    run = gpu_run()
    before = by_module(run)

    run.tree["class"], run.tree["calls"] = "Renamed", 7
    after = by_module(run)

    assert set(before["calls"][:-1]) == {1}
    assert set(after["class"][:-1]) == {"Renamed"}
    assert set(after["calls"][:-1]) == {7}
    assert after.drop(columns=["class", "calls"]).equals(before.drop(columns=["class", "calls"]))


def test_a_run_that_is_unchanged_is_looked_at_once_and_anew_afterwards():
    run = gpu_run()
    whole = sum(run.column("kernels", "duration_ns"))

    with unchanged(run):
        before = totals(run)["kernel_s"]
        run.kernels["duration_ns"] *= 2  # which nobody may
        assert totals(run)["kernel_s"] == before == pytest.approx(whole * 1e-9)
    assert totals(run)["kernel_s"] > before


def test_columns_of_a_table_one_by_one():
    run = only_counted()
    plain = run.column("ops", "flops_causal"), run.distinct("ops", "phase")

    assert plain == ([EXACT, None, None, 2 * EXACT], {"forward", "backward"})
    assert run.ops is run.ops
    assert (run.column("ops", "flops_causal"), run.distinct("ops", "phase")) == plain


def test_a_late_pattern_is_compiled_when_it_is_used():
    broken, fine = pattern("("), pattern("a+", 2)

    assert fine.fullmatch("aAa")
    assert not fine.fullmatch("b")
    with pytest.raises(Exception, match="unterminated"):
        broken.search("")
