import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from runs import gpu_run
from typer.testing import CliRunner

import gpuprof
from gpuprof.cli import app
from gpuprof.errors import GpuprofError
from gpuprof.schema import table

RUNNER = CliRunner()


def save(path, step_ns=1000, day=1, slow=1.0, **device):
    """gpu_run() with a step of so long, and the forward kernels of the head so much slower."""
    run = gpu_run()
    run.environment["date"] = f"2026-01-{day:02}T00:00:00+00:00"
    run.device |= device
    run.samples = table("samples", [{"step": 0, "phase": "step", "time_s": step_ns * 1e-9}])
    chosen = (run.kernels["module"] == "head") & (run.kernels["phase"] == "forward")
    run.kernels.loc[chosen, "duration_ns"] = int(40 * slow)
    run.save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Five runs of 998 to 1002 ns."""
    path = tmp_path / "net"
    path.mkdir()
    for day, offset in enumerate((0, 2, -2, 1, -1), start=1):
        save(path / f"{day}.json.gz", 1000 + offset, day)
    return path


def run(*arguments):
    """Exit code and output of a verb; what it refuses is raised."""
    ended = RUNNER.invoke(app, [str(argument) for argument in arguments])
    if isinstance(ended.exception, GpuprofError):
        raise ended.exception
    return ended.exit_code, ended.stdout


def test_check_against_a_folder(folder, tmp_path):
    code, said = run("check", save(tmp_path / "h.json", 1030, 9, slow=1.75), "--against", folder)

    assert code == 1
    assert said.startswith("REGRESSION  net-train-bfloat16-")
    assert "Step time 1.030 us against 1.000 us: 3.0 % worse, z = 7.5." in said
    assert "More time in head forward (+30.00 ns, slower)" in said
    assert run("check", save(tmp_path / "h.json", 1003, 9), "--against", folder)[0] == 0


@pytest.mark.parametrize(
    ("slow", "said"),
    [
        (1.0, "Kernel time is the same, the step +100.00 ns: most of it is between kernels, on the host."),
        # 40 ns and a fifth are less than a tenth of the step's
        (1.2, "Kernel time changed by +8.000 ns, the step +100.00 ns: most of it is between kernels, on the host."),
        (2.25, "More time in head forward (+50.00 ns, slower), gemm (+50.00 ns, slower)."),
    ],
)
def test_what_was_gained_outside_of_kernels_is_blamed_on_none(folder, tmp_path, slow, said):
    code, text = run("check", save(tmp_path / "h.json", 1100, 9, slow=slow), "--against", folder)

    assert code == 1
    assert said in text.replace("\n", " ")
    assert ("More time" in text) == (slow > 2)
    assert ("outside" in text or "between kernels" in text) == (slow < 2)


def test_check_a_folder_takes_its_newest_run(folder):
    save(folder / "0.json", 1030, 9)  # the newest by its date, not by its name

    code, said = run("check", folder)

    assert code == 1
    assert f"The head is {folder / '0.json'}, the newest there." in " ".join(said.split())
    assert "Baseline: 5 launches of 5 runs, 2026-01-01 to 2026-01-05." in said


def test_a_folder_with_a_broken_file_has_no_newest_run(folder):
    (folder / "6.json.gz").write_bytes((folder / "5.json.gz").read_bytes()[:99])

    with pytest.raises(GpuprofError, match=r"6.json.gz is not a whole gpuprof run"):
        run("check", folder)
    (folder / "6.json.gz").write_text("{}")  # something else, and whole
    assert run("check", folder)[0] == 3  # of four


def test_a_copy_of_a_run_is_that_run(folder, tmp_path):
    slow = save(tmp_path / "slow.json.gz", 1030, 9)
    for name in ("copied.json.gz", "again.json.gz"):
        (folder / name).write_bytes(slow.read_bytes())

    code, said = run("check", slow, "--against", folder, "--against", folder / "1.json.gz")
    assert code == 1
    assert "Baseline: 5 launches of 5 runs" in said
    copies = "Not counted: again.json.gz is the head itself; copied.json.gz is the head itself."
    assert copies in " ".join(said.split())
    (folder / "copied.json.gz").write_bytes((folder / "2.json.gz").read_bytes())
    (folder / "again.json.gz").unlink()
    _, said = run("check", slow, "--against", folder)
    assert "Not counted: copied.json.gz is 2.json.gz once more." in " ".join(said.split())


@pytest.mark.parametrize("name", ["a.json", "copy.json"])
def test_a_head_is_not_held_against_its_own_file(tmp_path, name):
    head = save(tmp_path / "a.json")
    (tmp_path / "copy.json").write_bytes(head.read_bytes())

    with pytest.raises(GpuprofError, match=f"^nothing to hold the head against: {name} is the head itself; give earl"):
        run("check", head, "--against", tmp_path / name)


def test_the_head_is_not_held_against_itself(folder):
    code, said = run("check", folder / "5.json.gz", "--against", folder)

    assert code == 3
    assert "Baseline: 4 launches of 4 runs" in said
    assert "a baseline of 4, and no noise is known of fewer than 5 launches" in said


def test_check_against_files_one_by_one(folder, tmp_path):
    options = [text for number in range(1, 6) for text in ("--against", folder / f"{number}.json.gz")]

    assert run("check", save(tmp_path / "h.json", 1030), *options)[0] == 1


def test_the_margin_is_the_users(folder, tmp_path):
    head = save(tmp_path / "h.json", 1030)

    assert run("check", head, "--against", folder, "--margin", "5%")[0] == 0
    assert run("check", head, "--against", folder, "--margin", "0.05")[0] == 0
    for margin in ("2", "0", "-1%", "a lot"):
        with pytest.raises(GpuprofError, match="is no share: give one such as 2%"):
            run("check", head, "--against", folder, "--margin", margin)


def test_files_that_are_no_runs_are_left_out_and_said(folder, tmp_path):
    (folder / "results.json").write_text("{}")
    (folder / "torn.json.gz").write_bytes((folder / "1.json.gz").read_bytes()[:99])
    (folder / "table.md").write_text("nothing")

    code, said = run("check", save(tmp_path / "h.json", day=9), "--against", folder)

    assert code == 0
    assert "Left out: results.json, torn.json.gz: no whole run." in said


def test_another_fingerprint_is_refused_until_allowed(tmp_path):
    base, head = save(tmp_path / "a.json", driver="570"), save(tmp_path / "b.json", driver="575")

    for arguments in (("compare", base, head), ("check", head, "--against", base)):
        with pytest.raises(GpuprofError, match=r"driver \(570 against 575\); if meant, --allow-different driver"):
            run(*arguments)
        assert run(*arguments, "--allow-different", "driver")[0] in (0, 3)
    with pytest.raises(GpuprofError, match="no field drivers"):
        run("compare", base, head, "--allow-different", "drivers")


def test_junit_has_a_case_for_each_metric_that_decides(folder, tmp_path):
    head = save(tmp_path / "h.json", 1030, 9, slow=1.75)
    code, said = run("check", head, "--against", folder, "--format", "junit", "-o", tmp_path / "j.xml")

    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (code, suite.tag, suite.get("tests"), suite.get("failures")) == (1, "testsuite", "4", "1")
    assert [case.get("name") for case in suite.iter("testcase")] == [
        "step time", "model FLOPs", "kernels", "peak memory",
    ]  # fmt: skip
    (failure,) = suite.iter("failure")
    assert failure.get("message") == "step time 1.030 us against 1.000 us: 3.0 % worse, z = 7.5"
    assert "head   forward  slower" in suite.find("system-out").text
    assert said.startswith("regression: step time 1.030 us against 1.000 us")  # for the log


def test_junit_skips_what_is_inconclusive_and_holds_any_name(folder, tmp_path):
    head = gpuprof.load(save(tmp_path / "h.json", 1030))
    head.kernels["kernel"] = "gemm<a & b>\x1b[1m"
    head.save(tmp_path / "h.json")
    code, said = run("check", tmp_path / "h.json", "--against", folder / "1.json.gz", "-f", "junit")

    suite = ElementTree.fromstring(said)
    assert (code, suite.get("skipped")) == (3, "1")
    assert "gemm<a & b>?[1m" in suite.find("system-out").text


def test_markdown_for_a_pull_request(folder, tmp_path):
    said = run("check", save(tmp_path / "h.json", 1030, 9, slow=1.75), "--against", folder, "-f", "markdown")[1]

    assert said.startswith("### gpuprof: regression\n")
    assert "| step time | 1.000 us | 1.030 us | +3.0 % | 2.0 % | z = 7.5 | regression |" in said
    assert "| head | forward | slower | 40.00 ns | 70.00 ns | +30.00 ns | +75.0 % | 1 |" in said


def test_json_has_raw_figures(folder, tmp_path):
    head = save(tmp_path / "h.json", 1030, 9, slow=1.75)
    said = json.loads(run("check", head, "--against", folder, "-f", "json")[1])

    assert said["status"] == "regression"
    step = said["metrics"][0]
    assert (step["metric"], step["n"], step["k"], step["decides"]) == ("step_s", 5, 1, True)
    assert step["change"] == pytest.approx(0.03)
    assert step["p"] is None
    assert said["moved"]["layer"][0]["change_s"] == pytest.approx(30e-9)
    assert said["fingerprint"]["device"] == "Toy GPU"


def test_compare_two_runs(tmp_path):
    base, head = save(tmp_path / "a.json"), save(tmp_path / "b.json", 1030, slow=1.75)
    code, said = run("compare", base, head, "--by", "module")

    assert code == 0
    assert "No verdicts: they need a baseline of 5 launches at least" in said
    assert "verdict" not in said.splitlines()[0]
    assert [line.split() for line in said.splitlines() if line.startswith("step time")] == [
        ["step", "time", "1.000", "us", "1.030", "us", "+3.0", "%"]
    ]
    assert "head    forward  slower" in said


@pytest.mark.parametrize(
    ("by", "first"),
    [("module", "head,forward"), ("layer", "head,forward"), ("class", "Linear,forward"), ("op", "aten::mm"),
     ("kernel", "gemm")],
)  # fmt: skip
def test_compare_by(tmp_path, by, first):
    base, head = save(tmp_path / "a.json"), save(tmp_path / "b.json", slow=1.75)
    run("compare", base, head, "--by", by, "-f", "csv", "-o", tmp_path / "rows.csv")

    row = pd.read_csv(tmp_path / "rows.csv").iloc[0]
    assert ",".join(row[:2] if "," in first else row[:1]) == first
    assert (row["status"], row["change_s"]) == ("slower", pytest.approx(30e-9))
    assert "| " in run("compare", base, head, "--by", by, "-f", "markdown")[1]
    assert json.loads(run("compare", base, head, "--by", by, "-f", "json", "--top", 1)[1])["moved"].keys() == {by}


def measures(folder, step_ns, launches=5):
    """A command that saves another run of such a step each time."""
    folder.mkdir()
    for day in range(1, launches + 1):
        save(folder / f"{day}.json", step_ns, day)
    return f'mv "$(ls {folder}/* | head -1)"'


def test_ab_takes_turns_and_judges_by_rank(tmp_path):
    log = tmp_path / "log"
    base, head = measures(tmp_path / "a", 1000), measures(tmp_path / "b", 1030)
    code, said = run(
        "ab", f"{base} {{out}}; echo base >> {log}", f"{head} {{out}}; echo head >> {log}", "--keep",
        tmp_path / "kept runs",
    )  # fmt: skip

    assert code == 1
    assert "Step time 1.030 us against 1.000 us: 3.0 % worse by the median of the pairs, p = 0.0040." in said
    assert log.read_text().split() == [
        "base", "head", "head", "base", "base", "head", "head", "base", "base", "head",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "kept runs").iterdir())[:3] == [
        "01-base.json.gz", "02-head.json.gz", "03-head.json.gz",
    ]  # fmt: skip


def test_ab_appends_the_file_where_the_command_has_no_place_for_it(tmp_path):
    (tmp_path / "save.sh").write_text('mv "$(ls "$1"/* | head -1)" "$3"\n')
    for name, step in (("a", 1000), ("b", 1001)):
        measures(tmp_path / name, step, 7)
    commands = [f"sh {tmp_path}/save.sh {tmp_path / name}" for name in ("a", "b")]

    assert run("ab", *commands, "-q")[0] == 0
    assert run("ab", *commands, "-q", "--launches", 2)[0] == 0  # nearly the same twice needs no test


def test_ab_refuses_a_run_that_was_there_before(tmp_path):
    same = f"cp {save(tmp_path / 'a.json')} {{out}}"
    with pytest.raises(GpuprofError, match=r"^launch 2 of 4, head: the command saved a run that was there before: it"):
        run("ab", same, same, "-q", "--launches", 2)
    with pytest.raises(GpuprofError, match=r"^launch 3 of 4, head: the command saved a run that was there before: it"):
        run("ab", f"{measures(tmp_path / 'new', 1001)} {{out}}", same, "-q", "--launches", 2)


def test_ab_of_few_launches_is_inconclusive(tmp_path):
    commands = [f"{measures(tmp_path / str(step), step)} {{out}}" for step in (1000, 1100)]

    code, said = run("ab", *commands, "-q", "--launches", 3)

    assert code == 3
    words = (
        "10.0 % worse by the median of the pairs, but such ranks come by chance with p = 0.0500; below 0.01 is needed"
    )
    assert words in " ".join(said.split())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo 'gpuprof: no model x' >&2; exit 2; {out}", "launch 1 of 10, base: the command ended with status 2: no"),
        ("true {out}", "base: the command saved no run: let it take -o FILE, or write {out}"),
        ("echo nonsense > {out}", "is not a whole gpuprof run"),
    ],
)
def test_ab_says_what_is_wrong_with_a_command(tmp_path, command, words):
    with pytest.raises(GpuprofError) as refused:
        run("ab", command, command)

    assert words in str(refused.value)


def test_ab_ends_at_the_first_run_that_is_not_timed(tmp_path):
    counted = gpu_run()
    counted.samples = table("samples", [])
    counted.save(tmp_path / "counted.json")

    with pytest.raises(GpuprofError, match="launch 1 of 10, base: its run has no valid timed launch"):
        run("ab", *[f"cp {tmp_path / 'counted.json'} {{out}}"] * 2)


def gpuprof_cli(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "gpuprof", *map(str, arguments)], text=True, cwd=cwd,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(gpuprof.__file__).parent.parent)},
        # a shell lets what it starts in the background ignore interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_until_gone(pid):
    """What has ended keeps its number until the system has taken notice."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "gpuprof: interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_an_ab_that_is_told_to_end_leaves_nothing_running(tmp_path, number, status, said):
    command = f"echo $$ > {tmp_path}/pid; exec sleep 60; {{out}}"
    child = gpuprof_cli("ab", command, command, cwd=tmp_path)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    child.send_signal(number)
    _, complaint = child.communicate(timeout=120)

    assert (child.returncode, complaint) == (status, said)
    wait_until_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "a.json"], "say what to hold a.json against"),
        (["check", "a.json", "--against", "absent.json"], "no file absent.json"),
        (["check", "empty"], "no run in empty"),
        (["check", "a.json", "--against", "empty"], "there is no other run"),
        (["compare", "a.json", "a.json", "-o", "nowhere/x"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.json")
    (tmp_path / "empty").mkdir()

    with pytest.raises(GpuprofError) as refused:
        run(*arguments)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_exit_status_of_bad_input_is_2(tmp_path):
    child = gpuprof_cli("check", "absent.json", "--against", "absent.json", cwd=tmp_path)
    said, complaint = child.communicate(timeout=120)

    assert (child.returncode, said) == (2, "")
    assert complaint.startswith("gpuprof: no file absent.json")
    assert len(complaint.splitlines()) == 1
