import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from runs import gpu_run, ops_row, tree_row
from typer.testing import CliRunner

import gpuprof
from gpuprof.analysis.modules import convention_by_module
from gpuprof.analysis.validation import match
from gpuprof.cli import app
from gpuprof.record import PassOutcome
from gpuprof.render import render
from gpuprof.render.view import View
from gpuprof.schema import table

DATA = Path(__file__).parents[1] / "data" / "reports"
REFERENCE = DATA / "calflops_llava_onevision_qwen2_7b.txt"
TOTALS = ("params", "macs_forward", "flops_forward", "macs_forward_backward", "flops_forward_backward")
FIGURES = ["params", "params_share", "macs", "macs_share", "flops", "flops_share"]


def read(text, tmp_path):
    path = tmp_path / "report.txt"
    path.write_text(text, encoding="utf-8")
    return gpuprof.read_report(path)


def as_printed(report):
    """Text of every figure by module and quantity."""
    return {(row.module, row.quantity): row.text for row in report.itertuples()}


def total_lines(text):
    return [line for line in text.splitlines() if line.startswith(("Total Training Params:", "fwd"))][-5:]


def toy(modules, **changes):
    """A forward counted in hand-made modules: (path, class, extra, parameters, FLOPs of its own)."""
    rows = [tree_row(path, cls, params) | {"extra": extra} for path, cls, extra, params, _ in modules]
    ops = [ops_row(path, "forward", "aten::mm.default", flops) for path, *_, flops in modules if flops]
    run = gpuprof.Run({"name": "toy", "mode": "forward"}, {"type": "cpu", "name": "c"}, {}, **changes)
    run.passes["count"] = PassOutcome("done")
    run.tree, run.ops = table("tree", rows), table("ops", ops)
    return run


# --- the report that this project sets out to validate


@pytest.fixture(scope="module")
def llava_text(llava_run):
    return render(llava_run, "calflops", View(convention="calflops"))


def test_the_frame_of_the_reference_is_the_same_line_by_line(llava_text):
    ours, theirs = llava_text.split("\n"), REFERENCE.read_text().split("\n")
    labelled = [number for number, line in enumerate(theirs[:24]) if "  " in line or "--" in line or not line]

    assert [number for number, line in enumerate(ours[:24]) if "  " in line or "--" in line or not line] == labelled
    # the assumed backward, and the model with its figures
    for number in (*labelled, 6, 22, 23):
        assert ours[number] == theirs[number]
    assert total_lines(llava_text) == [
        "Total Training Params:                                                  8.03 B  ",
        "fwd MACs:                                                               53.1858 TMACs",
        "fwd FLOPs:                                                              111.817 TFLOPS",
        "fwd+bwd MACs:                                                           159.557 TMACs",
        "fwd+bwd FLOPs:                                                          335.45 TFLOPS",
    ]
    assert ours[-3:] == [")", "-" * 99, ""]


def test_every_figure_of_the_reference(llava_run, llava_text, tmp_path):
    reference = gpuprof.read_report(REFERENCE)
    ours = as_printed(read(llava_text, tmp_path))
    places = match(reference, llava_run) | {"(total)": ["(total)"]}
    modules = convention_by_module(llava_run, "calflops").set_index("module")
    compared, gone = 0, set()
    for claim in reference[reference["quantity"] != "memory_bytes"].itertuples():  # no line of calflops
        paths = places[claim.module]
        if claim.module.endswith("self_attn.rotary_emb"):  # transformers has one for all layers by now
            gone.add(claim.module)
        elif len(paths) == 1:
            assert ours[paths[0], claim.quantity] == claim.text, claim
            compared += 1
        else:  # and no module around language model and head
            assert paths == ["model.language_model", "lm_head"]
            whole = 1 if not claim.quantity.endswith("_share") else modules.loc["", claim.quantity[:-6]]
            found = modules.loc[paths, claim.quantity.removesuffix("_share")].sum() / whole
            assert abs(found - claim.value) <= claim.precision, claim
            compared += 1

    assert len(gone) == 28
    assert compared == len(reference) - 1 - 28 * len(FIGURES)


def test_layers_fold_to_the_lines_of_the_reference(llava_text):
    def lines(text):
        # a module and what it says of itself, but for what moved: brackets, names of classes, new facts of a LayerNorm
        return {
            line.strip().replace(", bias=True)", ")") for line in text.splitlines() if "(0-" in line or "): L" in line
        }

    ours, theirs = lines(llava_text), lines(REFERENCE.read_text())
    assert {line for line in theirs if "Llava" not in line} == {line for line in ours if "Llava" not in line}


# --- round trips


@pytest.mark.parametrize("convention", ["causal", "full", "flash", "torch-counter", "calflops"])
def test_a_round_trip_gives_the_figures_back(convention, tmp_path):
    run = gpu_run()
    text = render(run, "calflops", View(convention=convention))
    found = as_printed(report := read(text, tmp_path))
    modules = convention_by_module(run, convention).set_index("module")

    assert report.attrs["tool"] == "calflops"
    assert {path for path, quantity in found if quantity == "macs"} == {"", "layers.0", "layers.1", "head"}
    values = report.set_index(["module", "quantity"])["value"]
    for path in ("", "layers.0", "layers.1", "head"):
        for quantity in ("params", "macs", "flops"):
            assert values[path, quantity] == modules.loc[path, quantity]
            whole = modules.loc["", quantity]
            assert values[path, f"{quantity}_share"] == pytest.approx(
                modules.loc[path, quantity] / whole if whole else 0, abs=1e-6
            )


def test_a_counted_backward_is_said_and_added(tmp_path):
    run = gpu_run()
    run.ops.loc[(run.ops["module"] == "head") & (run.ops["phase"] == "backward"), ["flops_causal", "flops_full"]] = 2600
    text = render(run, "calflops")
    found = as_printed(read(text, tmp_path))

    assert "counted backward is 1.65x forward" in text
    assert found["(total)", "backward_factor"] == "1.65"
    assert [found["(total)", quantity] for quantity in TOTALS] == [
        "70", "2 KMACs", "4 KFLOPS", "5.3 KMACs", "10.6 KFLOPS",
    ]  # fmt: skip


def test_where_no_backward_ran_none_is_claimed(tmp_path):
    run = gpu_run()
    run.ops = run.ops[run.ops["phase"] == "forward"]
    text = render(run, "calflops")
    found = as_printed(read(text, tmp_path))

    assert "no backward ran" in text
    assert "as much" not in text
    assert ("(total)", "backward_factor") not in found
    assert found["(total)", "flops_forward_backward"] == found["(total)", "flops_forward"] == "4 KFLOPS"


def test_the_convention_of_the_run_and_calflops_own_assumption(tmp_path):
    run = toy([("", "Linear", "in_features=8", 8, 1)], settings={"convention": "calflops"})
    run.ops["shapes"] = "4x8 8x16 -> 4x16"
    text = render(run, "calflops")

    assert text == render(run, "calflops", View(convention="calflops"))
    assert "takes 2.00 times as much computation as forward propagation." in text
    assert "counted backward" not in text


def test_a_forward_outside_the_model_is_in_the_total_and_said():
    run = gpu_run()
    run.ops = pd.concat([run.ops, table("ops", [ops_row("(unattributed)", "forward", "aten::mm.default", 4000)])])
    text = render(run, "calflops")

    assert "fwd FLOPs:                                                              8 KFLOPS" in text
    assert "  70 = 100% Params, 2 KMACs = 50% MACs, 4 KFLOPS = 50% FLOPs" in text
    assert "4.000 KFLOPs of the forward belong to no module." in text


def test_frozen_parameters_are_no_training_parameters(tmp_path):
    run = gpu_run()
    run.tree["trainable_params"] = [50, 0, 0, 0, 50]

    ours, theirs = (
        as_printed(read(render(run, "calflops", View(convention=c)), tmp_path)) for c in ("full", "calflops")
    )

    assert (ours["(total)", "params"], ours["", "params"], ours["layers.0", "params"]) == ("50", "70", "10")
    assert (theirs["(total)", "params"], theirs["", "params"], theirs["layers.0", "params"]) == ("50", "50", "0")


def test_gpt2_as_calflops_of_today_prints_it(tmp_path):
    facts = json.loads((Path(gpuprof.__file__).parent / "workload/presets/gpt2.json").read_text())
    config = transformers.AutoConfig.for_model(**facts["config"] | {"n_layer": 2, "use_cache": False})
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.zeros(2, 64, dtype=torch.int64)
    run = gpuprof.count(model, kwargs={"input_ids": ids}, mode="forward")
    text = render(run, "calflops", View(convention="calflops-0.3"))
    ours, reference = read(text, tmp_path), gpuprof.read_report(DATA / "calflops_gpt2.txt")
    theirs = as_printed(reference)
    figures = ours.set_index(["module", "quantity"])

    for claim in reference[reference["module"] == "(total)"].itertuples():
        mine = figures.loc[("(total)", claim.quantity)]
        assert abs(mine["value"] - claim.value) <= 1.01 * max(claim.precision, mine["precision"])
    assert {key: text for key, text in as_printed(ours).items() if key in theirs and key[0] != "(total)"} == {
        key: text for key, text in theirs.items() if key[0] != "(total)"
    }  # a Conv1D prints itself: calflops adds no figures to it
    own = {line for line in text.splitlines() if "Conv1D" not in line and line.startswith("  ")}
    assert {line for line in (DATA / "calflops_gpt2.txt").read_text().splitlines() if line.startswith("   ")} - own == {
        line for line in (DATA / "calflops_gpt2.txt").read_text().splitlines() if "Conv1D" in line
    }


# --- the tree


def test_only_the_layers_of_a_list_fold_and_only_neighbours_that_agree():
    def layer(path, flops, extra=""):
        return (path, "Linear", extra, 10, flops)

    run = toy(
        [("", "Net", "", 90, 0), ("a", "ModuleList", "", 50, 0), layer("a.0", 2), layer("a.1", 2), layer("a.2", 4),
         layer("a.4", 4), layer("a.5", 4), ("s", "Sequential", "", 20, 0), layer("s.0", 2), layer("s.1", 2),
         ("e", "ModuleList", "", 0, 0), ("b", "Branch", "k=1", 20, 6), layer("b.c", 2, "bias=False")],
    )  # fmt: skip
    tree = render(run, "calflops").partition("\nNet(")[2]

    assert "    (0-1): 2 x Linear(10 = " in tree
    assert "    (2): Linear(" in tree
    assert "    (4-5): 2 x Linear(" in tree  # 2 and 4 are no neighbours
    assert "    (0): Linear(" in tree
    assert "    (1): Linear(" in tree
    assert "  (e): ModuleList()\n" in tree
    assert "  (b): Branch(\n    20 = 22.2222% Params, 4 MACs = 28.5714% MACs, 8 FLOPS = 28.5714% FLOPs, k=1\n" in tree
    assert "2 FLOPS = 7.1429% FLOPs, bias=False)\n" in tree


def test_depth_cuts_the_tree(tmp_path):
    found = as_printed(read(render(gpu_run(), "calflops", View(depth=1)), tmp_path))

    assert {path for path, _ in found} == {"(total)", "", "head"}


def test_odd_names_and_classes_are_still_read(tmp_path):
    run = toy(
        [("", "Net[T]|<b>", "", 40, 0), ("a b", "Odd (local)\n", "", 20, 2), ("(x)", "Ünï", "f(x)=(", 10, 4),
         ("0-3", "\x1b[31mRed", "say)", 10, 2), ("größe", "", "", 0, 0)],
    )  # fmt: skip
    text = render(run, "calflops")
    report = read(text, tmp_path)

    assert "\x1b" not in text
    assert dict(zip(report["module"], report["class"], strict=True)) == {
        "(total)": "", "": "Net[T]|<b>", "a b": "Odd__local_", "[x]": "Ünï", "0-3": "_[31mRed", "größe": "_",
    }  # fmt: skip
    assert as_printed(report)["[x]", "flops_share"] == "50%"


@pytest.mark.parametrize(
    ("count", "in_module", "in_total"),
    [
        (0, "0 MACs", "0 MACs"), (999, "999 MACs", "999 MACs"), (7_900_000_000, "7.9 GMACs", "7.9 GMACs"),
        (53_185_756_798_144, "53.19 TMACs", "53.1858 TMACs"), (200 * 10**15, "200000 TMACs", "200000 TMACs"),
        (4 * 10**18 + 10**13, "4000010 TMACs", "4000010 TMACs"),
    ],
)  # fmt: skip
def test_units_and_rounding(count, in_module, in_total, tmp_path):
    found = as_printed(read(render(toy([("", "Net", "", 0, 2 * count)]), "calflops"), tmp_path))

    assert (found["", "macs"], found["(total)", "macs_forward"]) == (in_module, in_total)
    assert found["", "macs_share"] == ("100%" if count else "0%")
    assert found["", "params_share"] == "0%"


def test_what_was_not_counted_is_missing_and_not_zero():
    run = gpu_run()
    del run.passes["count"]
    text = render(run, "calflops")

    assert "nothing was counted in this run." in text
    assert "fwd MACs:                                                               - MACs" in text
    assert "  70 = 100% Params, - MACs = - MACs, - FLOPS = - FLOPs\n" in text


def test_from_the_command_line(tmp_path):
    path = gpu_run().save(tmp_path / "run.json")
    shown = CliRunner().invoke(app, ["show", str(path), "--format", "calflops", "--convention", "full"])

    assert shown.exit_code == 0
    assert shown.stdout == render(gpu_run(), "calflops", View(convention="full"))
    for options in (["--by", "op"], ["--top", "3"]):
        refused = CliRunner().invoke(app, ["show", str(path), "--format", "calflops", *options])
        assert "--format table" in str(refused.exception)


def test_a_formula_is_told_apart_from_what_the_modules_show(tmp_path):
    run = gpuprof.count("gpt2", seq_len=64)
    text, full = (render(run, "calflops", View(convention=name)) for name in ("palm", "full"))

    assert "2. Convention palm: " in text
    assert "FLOPs of the whole step; these are counted as in full." in text
    assert total_lines(text) == total_lines(full)
    assert as_printed(read(text, tmp_path)) == as_printed(read(full, tmp_path))
