import json
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_accuracy

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the script's own children do: the models are tiny
    yield bench_accuracy
    torch.set_num_threads(threads)


def test_the_closed_forms_are_these_numbers(bench):
    cases = bench.CASES
    # 2 x batch x outputs x (inputs / groups) x kernel
    assert cases["Conv2d, 4 groups"].forward == 2 * 2 * (16 * 8 * 8) * 4 * 9
    assert cases["Conv2d, strided"].forward == 2 * 2 * (6 * 5 * 5) * 4 * 9
    assert cases["Conv1d, depthwise, dilated"].forward == 2 * 2 * (8 * 10) * 1 * 4
    # 2 x batch x inputs x (outputs / groups) x kernel
    assert cases["ConvTranspose2d, 2 groups"].forward == 2 * 2 * (8 * 5 * 5) * 2 * 9
    # query, key, value, out of 32 positions; two products of 2 x 4 heads of 16 x 16 x 8
    assert cases["Attention block, SDPA"].forward == 2 * 32 * 4 * 32 * 32 + 2 * 2 * (2 * 4) * 16 * 16 * 8
    assert cases["LSTM"].forward == 2 * 5 * 2 * (4 * 6) * (8 + 6)
    layer = 2 * 32 * 32 * (32 + 16 + 16 + 32) + 2 * 2 * (2 * 4) * 16 * 16 * 8 + 3 * 2 * 32 * 32 * 48
    assert cases["Llama, eager"].forward == 2 * layer + 2 * 32 * 32 * 64
    assert cases["Llama, eager"].both == 3 * cases["Llama, eager"].forward


def test_the_closed_forms_of_the_kinds_are_these_numbers(bench):
    cases = bench.CASES
    figures = {name: (cases[name].forward, cases[name].both - cases[name].forward) for name in cases}
    # 40 x 30 points of 8, twice: two more columns forward, a product for each side backward
    assert figures["cdist"] == (2 * 2 * 40 * 30 * 10, 2 * 2 * 2 * 40 * 30 * 8)
    assert figures["affine_grid"] == (2 * 2 * 64 * 3 * 2,) * 2
    # 32 rows of 5 and 7 to 3 outputs
    assert figures["Bilinear"] == (192 * 7 * 6, 192 * (2 * 35 + 5 * 8 + 7 * 6))
    assert figures["scan of 5 rounds"] == (5 * 2 * 4 * 16 * 16, 9 * 2 * 4 * 16 * 16)
    # a pivot of 6 costs 1 + 5 + 2 x 25 operations, ... ; 4 columns of 36 products and 30 sums
    assert figures["linalg.solve"] == (56 + 37 + 22 + 11 + 4 + 1 + 4 * 66, 4 * 66 + 2 * 6 * 4 * 6)
    assert figures["sparse.mm, coo"] == figures["A @ x, csr"] == (2 * 10 * 8,) * 2
    assert figures["Linear, complex"] == (8 * 6 * 8 * 5, 2 * 8 * 6 * 8 * 5)
    assert figures["Conv1d, complex"][0] == 3 * 2 * 2 * (5 * 14) * 8 * 3
    assert figures["Varlen attention of 3, 5 and 2 tokens"][0] == 2 * 4 * 8 * (9 + 25 + 4)
    assert figures["Linear on a nested tensor of 3, 5 and 2 tokens"][0] == 2 * 10 * 8 * 8
    assert figures["flex_attention, causal block mask: unmasked pairs"][0] == 2 * 4 * 8 * (128 * 129 // 2)
    assert figures["flex_attention, window of 16 in 128: unmasked pairs"][0] == 2 * 4 * 8 * (136 + 112 * 16)
    assert figures["flex_attention, window of 16 in 128: blocks of 32"][0] == 2 * 4 * 8 * 7 * 1024


def test_gpuprof_is_exact_on_every_row(bench):
    results = {name: bench.measure("gpuprof", name) for name in bench.CASES}
    assert list(bench.failures(results)) == []


def expected_of_torch(case):
    """What torch's counter misses on a CPU and counts twice, as (forward, backward)."""
    parts = dict(case.parts)
    groups = {
        "Conv2d, 4 groups": 4, "Conv2d, depthwise, 32 channels": 32, "Conv1d, depthwise, dilated": 8,
        "ConvTranspose2d, 2 groups": 2,
    }  # fmt: skip
    if case.name in groups:  # the gradient of the input as if there were no groups
        return case.forward, (groups[case.name] + 1) * case.forward
    if "SDPA" in case.name or case.name == "Llama, sdpa":
        del parts["attention"]
    if case.name == "LSTM":
        parts = {}
    if case.name.startswith("Mixtral"):
        del parts["experts"]
    forward, backward = (sum(part[i] for part in parts.values()) for i in (0, 1))
    if case.name.endswith("checkpointed: model FLOPs"):
        backward += 2 * recomputed()
    return forward, backward


def recomputed():
    """A layer of the tiny Llama without its last product, which a checkpoint need not run again."""
    return 2 * 32 * 32 * (32 + 16 + 16 + 32) + 2 * 2 * (2 * 4) * 16 * 16 * 8 + 2 * 2 * 32 * 32 * 48


def test_torch_s_counter_is_wrong_just_where_we_say(bench):
    for name, case in bench.CASES.items():
        if case.section != bench.LAYERS_AND_MODELS:  # in tests of their own, or not counted at all
            continue
        found = bench.measure("FlopCounterMode", name)
        forward, backward = expected_of_torch(case)
        assert (name, found["forward"], found["both"]) == (name, forward, forward + backward)


def test_cells_say_the_error_and_never_0_alone(bench):
    case = bench.CASES["Conv1d"]
    truth = case.forward

    def cell(**result):
        return bench.cell(result, case, "forward")

    assert cell(forward=truth) == "exact"
    assert cell(forward=0) == "0: not seen"
    assert cell(forward=2 * truth) == "+100 %"
    assert cell(forward=truth + 46, macs_forward=truth) == "+0.998 % (MACs: exact)"
    assert cell(forward=truth, macs_forward=truth) == "exact"
    assert cell(error="raises KeyError: a|b") == "raises KeyError: a b"
    assert bench.cell({"forward": 7}, bench.CASES["Embedding (a lookup: 0)"], "forward") == "7 FLOPs too many"


def test_a_wrong_or_incomplete_gpuprof_is_a_failure(bench):
    case = bench.CASES["Conv1d"]
    good = {"forward": case.forward, "both": case.both, "uncounted": []}
    assert list(bench.failures({"Conv1d": good})) == []
    assert len(list(bench.failures({"Conv1d": good | {"both": case.both + 1}}))) == 1
    assert len(list(bench.failures({"Conv1d": good | {"uncounted": ["x::y"]}}))) == 1
    assert len(list(bench.failures({"Conv1d": {"error": "raises"}}))) == 2


def test_a_missing_tool_is_a_column_that_says_so(bench, monkeypatch):
    monkeypatch.setitem(bench.TOOLS, "fvcore", bench.Tool(bench.by_fvcore, "no-such-package", "no_such_package"))
    found = {"fvcore": bench.in_children("fvcore", ["Conv1d", "Conv3d"], 30)}
    facts = {"command": "c", "device": "CPU", "date": "2026-01-01", "versions": {"torch": "2"}}
    page = bench.markdown(found, facts)
    assert page.count("| not installed |") == 4
    assert page.count("**none measured**") == 2
    assert "`c`, on CPU, 2026-01-01. torch 2." in page


def test_a_child_that_hangs_crashes_or_raises_costs_its_case_only(bench, monkeypatch, tmp_path):
    """A stand-in for the script, so that no tool is loaded."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "cases, out = json.loads(sys.argv[4]), sys.argv[6]\n"
        "for case in cases:\n"
        "    if case == 'hang': time.sleep(60)\n"
        "    if case == 'crash': os.abort()\n"
        "    result = {'error': 'raises'} if case == 'raise' else {'forward': 1, 'both': 3}\n"
        "    open(out, 'a').write(json.dumps([case, result]) + '\\n')\n"
        "    if case == 'raise': break\n"
    )
    monkeypatch.setattr(bench, "__file__", str(script))

    found = bench.in_children("FlopCounterMode", ["a", "raise", "b", "crash", "c", "hang", "d"], 2)

    assert [found[name] for name in "abcd"] == [{"forward": 1, "both": 3}] * 4
    assert found["raise"] == {"error": "raises"}
    assert found["crash"] == {"error": "crashed with exit code -6"}
    assert found["hang"] == {"error": "killed after 2 s"}


def test_the_committed_page_holds_the_whole_battery(bench):
    page = (SCRIPTS.parent / "docs" / "accuracy.md").read_text()
    for case in bench.CASES.values():
        for column in bench.columns_of(case):
            assert f"| {case.name} | {getattr(case, column):,} | exact |" in page
    assert json.dumps(page).count("not installed") == 0
