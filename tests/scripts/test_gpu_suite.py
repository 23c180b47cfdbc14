import json
import os
import signal
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu_suite

    return gpu_suite


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu_checks

    return gpu_checks


def test_without_a_gpu_it_says_so_in_one_line(suite, monkeypatch, capsys):
    monkeypatch.setattr(suite, "device_name", lambda: "")

    assert suite.main([]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_listing_needs_no_gpu(suite, monkeypatch, capsys):
    monkeypatch.setattr(suite, "device_name", lambda: pytest.fail("asked for a device"))

    assert suite.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("doctor", "link-train", "ceilings", "reference"))


def test_two_calls_of_five_minutes_hold_every_check(checks):
    seconds = [check.seconds for check in checks.CHECKS.values()]
    # the first call ends with the last check that fits into it, and the second has room for the rest
    first = 0
    while seconds and first + seconds[0] <= 300:
        first += seconds.pop(0)
    assert sum(seconds) <= 300
    assert all(check.seconds <= check.limit_s < 300 for check in checks.CHECKS.values())


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({}, True),
        ({"cache_tensors_bytes": None}, True),
        ({"cache_tensors_bytes": 99}, False),
        ({"figures": None}, False),
        ({"mbu": {}}, False),
        ({"mbu": {"datasheet": 1.2}}, False),
        ({"outcomes": {"time": ["failed", "out of memory"]}}, False),
        ({"mismatches": ["a"]}, False),
    ],
)
def test_a_generation_is_whole_where_its_bytes_are_those_of_its_cache(checks, changes, whole):
    case = {
        "outcomes": {"time": ["done", ""]}, "mismatches": [], "cache_tensors_bytes": 100, "mbu": {"datasheet": 0.5},
        "figures": {"cache_bytes": 100},
    }  # fmt: skip

    assert checks._whole(case | changes) is whole


def test_the_list_says_which_kinds_of_device_have_a_result(suite, checks, tmp_path, monkeypatch, capsys):
    for device, name, status in (("nvidia-h100", "tests", "failed"), ("nvidia-h200", "tests", "done")):
        (tmp_path / device / "2026-01-02").mkdir(parents=True)
        (tmp_path / device / "2026-01-02" / f"{name}.json").write_text(json.dumps({"status": status}))
    monkeypatch.setattr(suite, "RESULTS", tmp_path)

    assert suite.main(["--list", "--only", "timing,tests"]) == 0
    first, second, whole = capsys.readouterr().out.splitlines()
    assert first.startswith("timing ")
    assert "[-]" in first
    assert "[nvidia-h200]" in second
    together = checks.CHECKS["timing"].seconds + checks.CHECKS["tests"].seconds
    assert whole.split()[0] == str(together)


def test_checks_run_in_the_order_in_which_they_are_named_and_unknown_ones_are_refused(suite):
    assert suite.chosen("b, a,b", ["a", "b", "c"]) == ["b", "a"]
    with pytest.raises(ValueError, match="no check named x: known are a, b"):
        suite.chosen("x", ["a", "b"])


def test_a_device_s_name_becomes_a_folder(suite):
    assert suite.slug("NVIDIA H200") == "nvidia-h200"
    assert suite.slug("NVIDIA A100-SXM4-80GB ") == "nvidia-a100-sxm4-80gb"


def test_the_device_is_named_without_touching_cuda(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert suite.device_name() == ""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA H200'\n")
    smi.chmod(0o755)
    assert suite.device_name() == "NVIDIA H200"
    smi.write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n")
    assert suite.device_name() == ""


def test_a_finished_check_is_what_it_found_and_what_it_printed(suite, tmp_path):
    def check(folder):
        print("seen", folder.name)
        return {"x": 1, "passed": True}

    result = suite.run_check("a", check, tmp_path, 30)

    assert (result["status"], result["facts"]) == ("done", {"x": 1, "passed": True})
    assert "printed" not in result
    assert json.loads((tmp_path / "a.json").read_text()) == result
    assert (tmp_path / "a.txt").read_text() == "seen a\n"


def test_a_check_that_raises_is_a_failed_result_with_the_reason(suite, tmp_path):
    def check(folder):
        print("before")
        raise RuntimeError("no such thing")

    result = suite.run_check("a", check, tmp_path, 30)

    assert (result["status"], result["facts"]) == ("failed", {})
    assert result["error"].rstrip().endswith("no such thing")
    assert str(SCRIPTS.parent) not in result["error"]
    assert result["printed"] == "before\n"
    assert suite.summary("a", result).endswith("failed  RuntimeError: no such thing")


def test_a_crash_is_recorded_with_the_end_of_what_it_said(suite, tmp_path):
    def check(folder):
        print("x" * 9000)
        os.write(2, b"boom")
        os.kill(os.getpid(), signal.SIGKILL)

    result = suite.run_check("a", check, tmp_path, 30)

    assert result["status"] == "crashed with exit code -9"
    assert result["printed"].endswith("boom")
    assert len(result["printed"]) == suite.TAIL


def test_a_check_that_takes_too_long_is_ended_with_what_it_started_in_other_sessions(suite, tmp_path, monkeypatch):
    from gpuprof.hardware import ncu

    path = tmp_path / "ncu"
    path.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 60\n")
    path.chmod(0o755)

    result = suite.run_check("a", lambda folder: ncu._run([str(path)], 60.0), tmp_path, 2)

    assert result["status"] == "killed after 2 s"
    assert result["seconds"] < 2 + suite.GRACE_S + 3
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_check_that_does_not_listen_is_killed(suite, tmp_path, monkeypatch):
    def check(folder):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)

    monkeypatch.setattr(suite, "GRACE_S", 0.5)
    assert suite.run_check("a", check, tmp_path, 0.5)["status"] == "killed after 0.5 s"


def test_an_old_result_does_not_stand_for_a_crash(suite, tmp_path):
    (tmp_path / "a.json").write_text('{"status": "done"}')

    assert suite.run_check("a", lambda folder: os._exit(3), tmp_path, 30)["status"] == "crashed with exit code 3"


def test_a_check_s_process_is_not_this_one_and_shares_what_it_imported(suite, tmp_path):
    result = suite.run_check("a", lambda folder: {"pid": os.getpid(), "passed": "torch" in sys.modules}, tmp_path, 30)

    assert result["status"] == "done"
    assert result["facts"]["pid"] != os.getpid()


def run_all(suite, out, names, monkeypatch, seconds=60, **args):
    started = []

    def run_check(name, check, out, limit_s):
        started.append((name, limit_s))
        return {"check": name, "status": "done" if name != "bad" else "failed", "seconds": 1.0, "error": "why\nit"}

    monkeypatch.setattr(suite, "run_check", run_check)
    given = SimpleNamespace(**{"minutes": None, "force": False, "pack": None, "rehearse": False} | args)
    checks = {name: SimpleNamespace(run=None, seconds=seconds, limit_s=90) for name in names}
    results = suite.run_all(names, checks, given, out, out, "NVIDIA Test")
    whole = json.loads((out / "suite.json").read_text())
    assert whole["checks"].keys() == results.keys()
    return started, whole


def test_what_has_a_result_of_any_date_is_skipped_unless_forced(suite, tmp_path, monkeypatch):
    for name, status in (("a", "done"), ("b", "failed")):
        (tmp_path / "2026-01-02").mkdir(exist_ok=True)
        (tmp_path / "2026-01-02" / f"{name}.json").write_text(json.dumps({"status": status}))

    started, whole = run_all(suite, tmp_path, ["a", "b"], monkeypatch)
    assert started == [("b", 90)]
    assert whole["checks"]["a"]["status"].startswith("skipped")

    started, _ = run_all(suite, tmp_path, ["a", "b"], monkeypatch, force=True)
    assert [name for name, _ in started] == ["a", "b"]


def test_what_fits_is_ended_in_time_and_what_does_not_fit_is_not_started(suite, tmp_path, monkeypatch, capsys):
    ((name, limit_s),), _ = run_all(suite, tmp_path, ["a"], monkeypatch, minutes=1.2)
    assert name == "a"
    assert 72 - suite.GRACE_S - 5 < limit_s <= 72 - suite.GRACE_S

    started, whole = run_all(suite, tmp_path, ["a"], monkeypatch, minutes=0.5)
    assert started == []
    assert whole["checks"]["a"]["status"].startswith("not started: takes about 60 s, ")
    assert "not started" in capsys.readouterr().out


def test_one_failure_does_not_stop_the_rest_but_is_told(suite, tmp_path, monkeypatch, capsys):
    started, whole = run_all(suite, tmp_path, ["bad", "good"], monkeypatch, pack=tmp_path.parent / "all.tar.gz")

    assert [name for name, _ in started] == ["bad", "good"]
    assert whole["device"] == "NVIDIA Test"
    assert "failed  it" in capsys.readouterr().out
    with tarfile.open(tmp_path.parent / "all.tar.gz") as tar:
        assert "./suite.json" in tar.getnames()


def test_a_second_call_goes_on_where_the_first_ended(suite, tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('{"status": "done"}')
    (tmp_path / "b.json").write_text('{"status"')

    started, whole = run_all(suite, tmp_path, ["a", "b"], monkeypatch)

    assert [name for name, _ in started] == ["b"]
    assert whole["checks"]["a"]["status"] == "skipped: an earlier call has its result"
    assert whole["rehearsal"] is False


def test_an_archive_among_the_results_does_not_hold_itself(suite, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    for _ in range(2):
        suite.pack(tmp_path, tmp_path / "all.tar.gz")

    with tarfile.open(tmp_path / "all.tar.gz") as tar:
        assert sorted(tar.getnames()) == [".", "./a.json"]


@pytest.mark.parametrize("wrong", ["--minutes=0", "--minutes=x", "--pack=/no/such/folder/all.tar.gz", "--only=x"])
def test_wrong_arguments_are_refused_before_anything_runs(suite, monkeypatch, capsys, wrong):
    monkeypatch.setattr(suite, "device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr(suite, "run_all", lambda *given: pytest.fail("it ran"))

    try:
        status = suite.main([wrong])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert wrong.partition("=")[2].removesuffix("/all.tar.gz") in capsys.readouterr().err


def test_the_exit_status_says_whether_something_failed(suite, checks, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "device_name", lambda: "NVIDIA Test")
    for passed in (True, False):
        check = checks.Check(lambda folder, passed=passed: {"passed": passed}, 1, 30, "what")
        monkeypatch.setitem(checks.CHECKS, "doctor", check)
        assert suite.main(["--only", "doctor", "--force", "--out", str(tmp_path)]) == (0 if passed else 1)


def test_the_training_step_is_tried_in_sizes_that_memory_allows(checks):
    def first(memory):
        return next(iter(checks._tries(memory)))

    assert first(150_109_880_320) == {"image_crops": 16, "seq_len": 7405, "optimizer": "adamw"}  # H200
    assert first(85_000_000_000)["optimizer"] == "sgd"  # H100: states of AdamW do not fit beside parameters, gradients
    assert len(checks._tries(24_000_000_000)) == 0


@pytest.mark.parametrize(("name", "layers"), [("qwen2_layers", 2), ("siglip_layers", 2), ("siglip_layers_flash", 2)])
def test_workloads_are_made_where_they_run_and_in_their_dtype(checks, name, layers):
    import gpu_workloads

    from gpuprof.workload import Options

    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        made = getattr(gpu_workloads, name)(Options(device="meta", dtype="bfloat16"))
        assert torch.backends.cuda.cudnn_sdp_enabled() == (cudnn and not name.endswith("flash"))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)

    assert {(p.device.type, p.dtype) for p in made["model"].parameters()} == {("meta", torch.bfloat16)}
    assert sum(type(module).__name__.endswith("Layer") for module in made["model"].modules()) == layers


@pytest.fixture
def small(monkeypatch, checks):
    """Checks of a decoder small enough for the CPU, in place of the real models."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from gpuprof.workload import from_module

    def build(model, options):
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
        )
        ids = torch.zeros(1, 4, dtype=torch.long)
        workload = from_module(LlamaForCausalLM(config), (), {"input_ids": ids, "labels": ids})
        workload.description["batch_size"] = 1
        return workload

    monkeypatch.setattr(checks, "build", build)
    return checks


def test_the_link_check_gives_shares_threads_and_what_is_left(small, tmp_path):
    facts = small.link("any", "link", tmp_path, mode="train")

    assert json.loads(json.dumps(facts))
    assert (facts["mismatches"], facts["linked_share"]) == ([], 1.0)
    assert facts["attributed_share"] > 0.9
    assert {row["op"] for row in facts["largest_unattributed"]} <= {"aten::ones_like", "aten::detach"}
    assert facts["nodes_with_a_maker"] == facts["nodes_numbered"] > 0
    assert (tmp_path / facts["run"]).exists()


def test_the_facts_of_a_measured_run_are_json(small, tmp_path):
    from gpuprof.profiler import run_passes

    run = run_passes(small.build("any", None), warmup=0, steps=2)
    facts = small._measured(run, tmp_path, "any")
    case = small._case(run, small.build("any", None))

    assert json.loads(json.dumps(facts, allow_nan=False, default=float))
    assert 0 < case["kernels_over_step"] < 2
    assert case["gpu_kernels"] == case["launches"] == 0  # on a CPU there are none
