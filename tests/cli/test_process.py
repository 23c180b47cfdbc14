"""How a process of the command line starts and ends."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpuprof
from gpuprof.process import settle

LEFT = """
import atexit, gc, threading, time, sys
from gpuprof import process

class Left:
    def __del__(self):
        print("taken apart")

def late():
    time.sleep(0.1)
    print("thread")

left = Left()
atexit.register(print, "exit function")

def main():
    threading.Thread(target=late).start()
    {what}
    return {status}

process.run(main)
"""


def python(*arguments, **given):
    """What Python with these arguments says and ends with."""
    environment = {**os.environ, "PYTHONPATH": str(Path(gpuprof.__file__).parent.parent), **given.pop("env", {})}
    given = {"stdout": subprocess.PIPE, **given}
    return subprocess.run(
        [sys.executable, *arguments], stderr=subprocess.PIPE, text=True, env=environment, check=False, **given
    )


def test_it_ends_without_taking_apart_once_threads_and_exit_functions_are_done():
    run = python("-c", LEFT.format(what="", status=3))

    assert (run.stdout, run.stderr, run.returncode) == ("thread\nexit function\n", "", 3)


@pytest.mark.parametrize("way", ["others", "tool", "development"])
def test_where_others_may_have_something_left_to_do_it_ends_in_order(way):
    code = LEFT.format(what="process.let_others_in()" if way == "others" else "", status=3)
    env = {"NVTX_INJECTION64_PATH": "/nowhere"} if way == "tool" else {}
    run = python(*(["-X", "dev"] if way == "development" else []), "-c", code, env=env)

    assert (run.stdout, run.stderr, run.returncode) == ("thread\nexit function\ntaken apart\n", "", 3)


def test_an_error_is_one_and_words_are_status_1():
    assert python("-c", LEFT.format(what="1 / 0", status=0)).returncode == 1
    words = python("-c", LEFT.format(what="", status="'no way'"))
    assert (words.stderr, words.returncode) == ("no way\n", 1)


def test_output_that_cannot_be_written_is_told_as_ever():
    with open("/dev/full", "w") as full:
        run = python("-c", LEFT.format(what="", status=0), stdout=full, env={"PYTHONUNBUFFERED": ""})

    assert run.returncode == 120  # of Python's documentation: the standard streams could not be flushed
    assert run.stderr.splitlines()[-1] == "OSError: [Errno 28] No space left on device"


def test_a_profiler_that_runs_the_command_line_reports():
    run = python("-m", "cProfile", "-m", "gpuprof", "--version")

    assert run.stdout.startswith(f"gpuprof {gpuprof.__version__}\n")
    assert "function calls" in run.stdout


def test_an_interrupt_while_it_starts_is_one_line(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    run = python("-m", "gpuprof", "presets", env={"PYTHONPATH": f"{tmp_path}:{Path(gpuprof.__file__).parent.parent}"})

    assert (run.stdout, run.stderr, run.returncode) == ("", "gpuprof: interrupted\n", 130)


def test_garbage_is_looked_for_as_usual_once_it_has_started():
    what = "print(gc.get_threshold()[0] > 800); process.settle(); print(gc.get_threshold(), gc.get_freeze_count() > 0)"
    code = "import gc; gc.set_threshold(800, 9, 8)\n" + LEFT.format(what=what, status=0)

    assert python("-c", code).stdout.startswith("True\n(800, 9, 8) True\n")


def test_a_process_of_others_keeps_its_collector():
    before = gc.get_threshold(), gc.get_freeze_count()
    settle()

    assert (gc.get_threshold(), gc.get_freeze_count()) == before
