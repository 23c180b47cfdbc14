import gzip
import json
import re
import tarfile
from pathlib import Path

import pytest
from runs import gpu_run

import gpuprof
from gpuprof.errors import GpuprofError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
RECORDED = Path(__file__).resolve().parents[1] / "data" / "nvidia-h200"

LINK = {
    "kernels": 1200, "linked_share": 1.0, "attributed_share": 0.99986, "nodes_with_a_maker": 9, "nodes_numbered": 10,
    "mismatches": ["aten::mm"], "phase_ns": {"forward": 1_500_000, "backward": 3_000_000}, "passed": False,
}  # fmt: skip
DOCTOR = {
    "findings": [{"name": "python", "ok": True}, {"name": "ncu", "ok": False}],
    "versions": {"torch": "2.11.0", "nvidia-ml-py": "13", "somebodys-own": "1"},
    "telemetry": {"facts": {"failed_calls": {}}},
    "nvml": {"median_us": {"energy": 2750.0}, "gpm": {"activity": {"gpm_tensor_active": 89.57}}},
    "passed": True,
}  # fmt: skip


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu_results

    return gpu_results


@pytest.fixture
def bundle(tmp_path):
    """A suite that was run on a made-up device: a check that passed, one that failed, one that was not started."""
    folder = tmp_path / "out"
    for name in ("link-train", "recording", "counters-siglip"):
        (folder / "runs" / name).mkdir(parents=True)
    environment = {"torch": "2.11.0", "platform": "Linux 6.1.2-build7 x86_64"}
    recording = {"events": 9, "on_device": 4, "passed": True}
    checks = {"doctor": ("done", DOCTOR), "link-train": ("failed", LINK), "recording": ("done", recording)}
    for name, (status, facts) in checks.items():
        result = {"check": name, "status": status, "facts": facts, "environment": environment}
        (folder / f"{name}.json").write_text(json.dumps(result))
    about = {"device": "NVIDIA T1", "rehearsal": False, "date": "2026-01-02T03:04:05+00:00"}
    suite = about | {"checks": dict.fromkeys((*checks, "timing"), None)}
    (folder / "suite.json").write_text(json.dumps(suite))
    run = gpu_run()
    run.device["uuid"], run.environment["platform"] = "GPU-1", environment["platform"]
    run.save(folder / "runs" / "link-train" / "link-train.json.gz")
    trace = b'{"host_name": "10.0.0.7", "schemaVersion": 1, "traceEvents": []}'
    (folder / "runs" / "recording" / "chrome-step.json.gz").write_bytes(gzip.compress(trace))
    (folder / "runs" / "recording" / "kineto-step.json").write_text('{"events": []}')
    table = '"ID","Host Name"\n"","",\n"0","10.0.0.7"\n'
    (folder / "runs" / "recording" / "counters-siglip-ncu-1.csv.gz").write_bytes(gzip.compress(table.encode()))
    return folder


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_suite_becomes_results_a_section_and_fixtures(results, bundle, tmp_path):
    target = results.commit_ready(bundle, tmp_path / "results", tmp_path / "data")

    assert target == tmp_path / "results" / "nvidia-t1" / "2026-01-02"
    assert sorted(path.name for path in target.iterdir()) == [
        "doctor.json",
        "link-train.json",
        "recording.json",
        "runs",
        "table.md",
    ]
    assert sorted(path.name for path in (target / "runs").iterdir()) == ["link-train.json.gz"]
    assert sorted(path.name for path in (tmp_path / "data" / "nvidia-t1").iterdir()) == [
        "chrome-step.json.gz",
        "counters-siglip-ncu-1.csv.gz",
        "kineto-step.json.gz",
    ]
    section = (tmp_path / "results" / "README.md").read_text()
    assert "## GPU suite on NVIDIA T1, 2026-01-02\n\n    python scripts/gpu_suite.py      # torch 2.11.0\n" in section
    joined = re.sub(r"\n  ", " ", section)
    assert (
        "- [doctor](nvidia-t1/2026-01-02/doctor.json): 2 findings, 1 fault; no NVML call failed; one reading takes "
        "energy 2.75 ms; GPM sees the tensor cores busy for 89.6 % of some seconds of matmuls.\n"
    ) in joined
    assert (
        "- [link-train](nvidia-t1/2026-01-02/link-train.json) **failed**: 1,200 kernels and copies; 100.00 % of their "
        "time is linked to an operator and 99.9860 % to a module or the optimizer (forward 1.500 ms, backward "
        "3.000 ms); 9 of 10 numbered nodes have a maker; 1 mismatch between counted and traced calls.\n"
    ) in joined
    assert "](doctor.json)" in (target / "table.md").read_text()


def test_nothing_that_names_a_machine_is_kept(results, bundle, tmp_path):
    target = results.commit_ready(bundle, tmp_path / "results", tmp_path / "data")

    doctor = json.loads((target / "doctor.json").read_text())
    assert doctor["facts"]["versions"] == {"torch": "2.11.0", "nvidia-ml-py": "13"}
    assert doctor["environment"]["platform"] == "Linux 6.1.2 x86_64"
    run = gpuprof.load(target / "runs" / "link-train.json.gz")
    assert (run.device["uuid"], run.environment["platform"]) == (None, "Linux 6.1.2 x86_64")
    table = gzip.decompress((tmp_path / "data" / "nvidia-t1" / "counters-siglip-ncu-1.csv.gz").read_bytes()).decode()
    assert table == '"ID","Host Name"\n"","",\n"0","host"\n'
    trace = gzip.decompress((tmp_path / "data" / "nvidia-t1" / "chrome-step.json.gz").read_bytes())
    assert json.loads(trace) == {"schemaVersion": 1, "traceEvents": []}


def test_a_second_call_of_the_day_adds_to_the_first_and_takes_nothing_away(results, bundle, tmp_path):
    readme = tmp_path / "results" / "README.md"
    readme.parent.mkdir()
    readme.write_text("# Results\n\nFirst.\n\n## Something else\n\nIts text.\n")
    results.commit_ready(bundle, tmp_path / "results", tmp_path / "data")
    (bundle / "doctor.json").write_text(json.dumps({"check": "doctor", "status": "killed after 3 s", "facts": {}}))
    done = {"check": "link-train", "status": "done", "facts": LINK | {"mismatches": []}}
    (bundle / "link-train.json").write_text(json.dumps(done))
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as tar:
        tar.add(bundle, arcname=".")

    target = results.commit_ready(tmp_path / "all.tar.gz", tmp_path / "results", tmp_path / "data")

    assert json.loads((target / "doctor.json").read_text())["status"] == "done"
    assert json.loads((target / "link-train.json").read_text())["status"] == "done"
    text = readme.read_text()
    assert text.startswith(
        "# Results\n\nFirst.\n\n## Something else\n\nIts text.\n\n## GPU suite on NVIDIA T1, 2026-01-02\n"
    )
    assert text.count("## GPU suite on") == 1
    assert "no mismatch between counted and traced calls" in re.sub(r"\n  ", " ", text)
    assert "**failed**" not in text


def test_a_failure_later_in_the_day_takes_no_run_and_no_recording_away(results, bundle, tmp_path):
    rewrite(bundle / "link-train.json", status="done")
    target = results.commit_ready(bundle, tmp_path / "results", tmp_path / "data")
    run, recording = target / "runs" / "link-train.json.gz", tmp_path / "data" / "nvidia-t1" / "kineto-step.json.gz"
    before = run.read_bytes(), recording.read_bytes()
    rewrite(bundle / "link-train.json", status="failed")
    other = gpu_run()
    other.workload["name"] = "other"
    other.save(bundle / "runs" / "link-train" / "link-train.json.gz")
    (bundle / "runs" / "recording" / "kineto-step.json").write_text('{"events": [1]}')

    results.commit_ready(bundle, tmp_path / "results", tmp_path / "data")

    assert (run.read_bytes(), recording.read_bytes()) == before
    assert json.loads((target / "link-train.json").read_text())["status"] == "done"


def test_executed_flops_are_judged_by_the_rules_of_today(results, bundle, tmp_path):
    run = gpuprof.load(RECORDED / "counters-siglip.json.gz")
    run.save(bundle / "runs" / "counters-siglip" / "counters-siglip.json.gz")
    said = {"status": "done", "facts": run.passes["counters"].facts}
    facts = {"outcome": said, "run": "counters-siglip.json.gz", "mismatches": [], "rows": ["old"], "passed": False}
    result = {"check": "counters-siglip", "status": "failed", "facts": facts}
    (bundle / "counters-siglip.json").write_text(json.dumps(result))
    rewrite(bundle / "suite.json", checks={"counters-siglip": {}})

    target = results.commit_ready(bundle, tmp_path / "results", tmp_path / "data")

    judged = json.loads((target / "counters-siglip.json").read_text())
    assert (judged["status"], judged["facts"]["unexplained"]) == ("done", [])
    assert judged["facts"]["launches_without_a_range"] == 0
    assert "46 of 46 rows that multiply are explained" in re.sub(r"\n  ", " ", (target / "table.md").read_text())


def test_a_check_that_ended_half_way_is_said_with_the_last_that_was_heard(results, bundle, tmp_path):
    (bundle / "timing.json").write_text(json.dumps({"check": "timing", "status": "killed after 9 s", "facts": {}}))
    half = {
        "check": "doctor",
        "status": "failed",
        "facts": {"findings": []},
        "error": "Traceback\n  File\nNo: such GPM\n",
    }
    (bundle / "doctor.json").write_text(json.dumps(half))
    (bundle / "link-train.json").write_text(
        json.dumps({"check": "link-train", "status": "failed", "facts": {"workload": {}, "passed": False}})
    )

    target = results.commit_ready(bundle, tmp_path / "results", tmp_path / "data")

    lines = (target / "table.md").read_text().splitlines()
    assert "- [timing](timing.json) **killed after 9 s**: no more than nothing is known of it." in lines
    assert "- [doctor](doctor.json) **failed**: No: such GPM" in lines
    assert "- [link-train](link-train.json) **failed**: no more than workload, passed is known of it." in lines


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rehearsal": True}, "holds a rehearsal"),
        ({"device": 5}, "lacks its device, date or checks"),
        ({"device": ""}, "lacks its device"),
        ({"date": "../../../x"}, "lacks its device"),
        ({"checks": {}}, "lacks its device"),
    ],
)
def test_what_is_no_suite_of_a_gpu_is_refused_and_nothing_is_written(results, bundle, tmp_path, changes, words):
    rewrite(bundle / "suite.json", **changes)

    with pytest.raises(GpuprofError, match=words):
        results.commit_ready(bundle, tmp_path / "results", tmp_path / "data")
    assert not (tmp_path / "results").exists()


def test_what_cannot_be_read_is_refused_in_one_line(results, bundle, tmp_path, capsys):
    import gpu_suite

    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as tar:
        tar.add(bundle, arcname=".")
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tar.gz").write_text("no archive")
    (bundle / "doctor.json").write_text('{"check"')
    for source in ("nothing.tar.gz", "cut.tar.gz", "text.tar.gz", ".", "out"):
        assert gpu_suite.main(["--commit-ready", str(tmp_path / source)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_said_of_generations(results):
    def case(tpot_s, mbu, **more):
        figures = {"ttft_s": 0.05, "tpot_s": tpot_s, "cache_bytes": 100}
        phases = [{"phase": "prefill", "mfu": 0.4}, {"phase": "decode", "mfu": 0.01}]
        return {"figures": figures, "phases": phases, "mbu": mbu, "cache_tensors_bytes": 100} | more

    cases = {
        "dynamic": case(0.01, {"datasheet": 0.1, "measured": 0.11}),
        "static": case(0.012, {"datasheet": 0.08}, cache_tensors_bytes=99),
        "graphs": case(0.002, {}, cache_tensors_bytes=None),
        "broken": {"figures": None},
    }

    said = results.SAYINGS["generate"]({"cases": cases, "over_bare": {"ttft_s": 1.001, "tpot_s": 1.01}})

    assert said == (
        "dynamic: TTFT 50.00 ms at MFU 40.0 %, TPOT 10.00 ms at MBU 10.0 % of the datasheet bandwidth, 11.0 % of the "
        "measured bandwidth, cache as counted; static: TTFT 50.00 ms at MFU 40.0 %, TPOT 12.00 ms at MBU 8.0 % of the "
        "datasheet bandwidth, cache not as counted; graphs: TTFT 50.00 ms at MFU 40.0 %, TPOT 2.000 ms at MBU -; "
        "broken: not measured. Over a bare loop: TTFT 1.001 x and TPOT 1.010 x."
    )


def test_the_meter_is_said_with_what_it_adds_and_what_waits(results):
    facts = {
        "added": {
            "step_s": {"bare": 0.01}, "meter_step_over_bare": 0.9991,
            "over_bare": {"meter": [1.0004, 0.9998, 1.0011], "synchronize": [1.03, 1.02, 1.04]},
        },
        "unwaiting": {"host_s": {"enter": 20e-6, "exit": 5e-6, "read": 1e-3}},
        "drill": {"same_flops": True, "owned_share": 0.998, "adds_up": True},
        "warnings": [],
    }  # fmt: skip

    assert results.SAYINGS["meter"](facts) == (
        "a step of 10.00 ms, over the bare one: meter 1.0004 (0.9998 to 1.0011), synchronize 1.0300 (1.0200 to 1.0400)."
        " The meter takes 25.00 us a step on the host and waits for nothing; its step is 0.9991 x the bare one. The "
        "live step: FLOPs as counted in the loop, 99.8 % owned, times add up."
    )
    facts["drill"] = {"same_flops": False, "owned_share": None, "adds_up": False}
    facts["warnings"] = ["gpuprof: called a synchronizing CUDA operation"]
    said = results.SAYINGS["meter"](facts)
    assert "on the host and gpuprof: called a synchronizing CUDA operation; its step" in said
    assert said.endswith("FLOPs not as counted in the loop, nothing owned, times do not add up.")


def test_every_check_has_a_saying(results):
    import gpu_checks

    assert set(results.SAYINGS) == set(gpu_checks.CHECKS)
