import json
import sys
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


def writing(path, result, after=""):
    """A command that writes a result as a check does."""
    return [sys.executable, "-c", f"import json; open({str(path)!r}, 'w').write(json.dumps({result!r})); {after}"]


def test_without_a_gpu_it_says_so_in_one_line(suite, monkeypatch, capsys):
    monkeypatch.setattr(suite, "device_name", lambda: "")

    assert suite.main([]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_listing_needs_no_gpu(suite, monkeypatch, capsys):
    monkeypatch.setattr(suite, "device_name", lambda: pytest.fail("asked for a device"))

    assert suite.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("doctor", "link-train", "ceilings", "reference"))


def test_three_runs_of_ten_minutes_are_enough(checks):
    assert sum(check.limit_s for check in checks.CHECKS.values()) <= 3 * 600 * 0.95
    assert all(check.limit_s < 600 for check in checks.CHECKS.values())


def test_an_unknown_name_is_refused_with_the_known_ones(suite):
    assert suite.chosen("b, a", ["a", "b", "c"]) == ["a", "b"]
    with pytest.raises(SystemExit, match="no check named x: known are a, b"):
        suite.chosen("x", ["a", "b"])


def test_a_device_s_name_becomes_a_folder(suite):
    assert suite.slug("NVIDIA H200") == "nvidia-h200"
    assert suite.slug("NVIDIA A100-SXM4-80GB ") == "nvidia-a100-sxm4-80gb"


def test_a_finished_check_is_what_it_wrote(suite, tmp_path):
    command = writing(tmp_path / "a.json", {"check": "a", "status": "done", "facts": {"x": 1}})

    result = suite.run_check("a", tmp_path, 30, command)

    assert (result["status"], result["facts"]) == ("done", {"x": 1})
    assert "stderr" not in result
    assert json.loads((tmp_path / "a.json").read_text()) == result


def test_a_crash_is_recorded_with_the_end_of_what_it_said(suite, tmp_path):
    crash = [sys.executable, "-c", "import os, sys; print('x' * 9000); sys.stderr.write('boom'); os.abort()"]

    result = suite.run_check("a", tmp_path, 30, crash)

    assert result["status"] == "crashed with exit code -6"
    assert result["stderr"] == "boom"
    assert len(result["stdout"]) == suite.TAIL


def test_a_check_that_takes_too_long_is_killed_with_its_children(suite, tmp_path):
    begin = time.monotonic()
    flag = tmp_path / "alive"
    hang = ["sh", "-c", f"(sleep 3; touch {flag}) & sleep 60"]

    result = suite.run_check("a", tmp_path, 0.5, hang)

    assert result["status"] == "killed after 0.5 s"
    assert time.monotonic() - begin < 20
    time.sleep(3)
    assert not flag.exists()


def test_a_result_that_was_written_before_a_hang_is_kept(suite, tmp_path):
    command = writing(tmp_path / "a.json", {"check": "a", "status": "done", "facts": {}}, "import time; time.sleep(60)")

    result = suite.run_check("a", tmp_path, 5, command)

    assert (result["status"], result["note"]) == ("done", "killed after 5 s")


def test_an_old_result_does_not_stand_for_a_crash(suite, tmp_path):
    (tmp_path / "a.json").write_text('{"status": "done"}')

    result = suite.run_check("a", tmp_path, 30, [sys.executable, "-c", "raise SystemExit(3)"])

    assert result["status"] == "crashed with exit code 3"


def run_all(suite, out, names, monkeypatch, **args):
    started = []

    def run_check(name, out, limit_s):
        started.append(name)
        return {"check": name, "status": "done" if name != "bad" else "failed", "seconds": 1.0, "error": "why\nit"}

    monkeypatch.setattr(suite, "run_check", run_check)
    given = SimpleNamespace(**{"minutes": None, "force": False, "pack": None} | args)
    code = suite.run_all(names, dict.fromkeys(names, 60), given, out, out, "NVIDIA Test")
    return code, started, json.loads((out / "suite.json").read_text())


def test_what_has_a_result_is_skipped_unless_forced(suite, tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('{"status": "done"}')
    (tmp_path / "b.json").write_text('{"status": "failed"}')

    code, started, whole = run_all(suite, tmp_path, ["a", "b"], monkeypatch)
    assert (code, started) == (0, ["b"])
    assert whole["checks"]["a"]["status"].startswith("skipped")

    _, started, _ = run_all(suite, tmp_path, ["a", "b"], monkeypatch, force=True)
    assert started == ["a", "b"]


def test_a_check_that_no_longer_fits_is_not_started(suite, tmp_path, monkeypatch, capsys):
    code, started, whole = run_all(suite, tmp_path, ["a"], monkeypatch, minutes=0.5)

    assert (code, started) == (0, [])
    assert whole["checks"]["a"]["status"].startswith("not started")
    assert "not started" in capsys.readouterr().out


def test_one_failure_does_not_stop_the_rest_but_is_told(suite, tmp_path, monkeypatch, capsys):
    code, started, whole = run_all(suite, tmp_path, ["bad", "good"], monkeypatch, pack=tmp_path.parent / "all.tar.gz")

    assert (code, started) == (1, ["bad", "good"])
    assert whole["device"] == "NVIDIA Test"
    assert "failed  it" in capsys.readouterr().out
    assert (tmp_path.parent / "all.tar.gz").stat().st_size > 0


def test_a_check_that_raises_is_a_failed_result(suite, checks, tmp_path, monkeypatch):
    def broken(folder):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(checks.CHECKS, "doctor", checks.Check(broken, 1, "what"))

    assert suite.child_main("doctor", tmp_path / "doctor.json") == 1
    result = json.loads((tmp_path / "doctor.json").read_text())
    assert result["status"] == "failed"
    assert result["error"].rstrip().endswith("no such thing")
    assert str(SCRIPTS.parent) not in result["error"]


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
