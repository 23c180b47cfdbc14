import contextlib
import functools
import os
import signal
import subprocess

import pytest
import torch

import gpuprof.cli
from gpuprof import profiler
from gpuprof.hardware import ceilings

# The models here are small, and threads that wait for one another spin: on a busy machine most of the time.
os.environ["OMP_NUM_THREADS"] = "1"  # of what the tests start
torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)  # 80 in the workers of pytest-xdist, where nobody looks on


def pytest_make_parametrize_id(val, argname):
    """Bytes are not for names: what is packed has the time in it, and processes at once would not agree."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def no_real_cache(tmp_path_factory):
    """Keep the developer's own measured ceilings out of every test, and the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUPROF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def ceilings_measured_once():
    """What the CPU reaches is measured for a moment, and once for all runs: each would measure it again."""
    matmul = functools.cache(lambda dtype: ceilings.cpu_ceilings([dtype], 0.01)["how"])
    copy = functools.cache(lambda device: ceilings.measure_copy(device, 0.01))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            profiler,
            "cpu_ceilings",
            lambda dtypes, seconds: {"how": {k: v for d in dtypes for k, v in matmul(d).items()}},
        )
        patch.setattr(profiler, "measure_copy", lambda device, seconds: copy(device))
        yield


@pytest.fixture
def ceilings_measured(monkeypatch):
    """What the CPU reaches is measured after each run, where the test is about what that leaves behind."""
    monkeypatch.setattr(profiler, "cpu_ceilings", lambda dtypes, seconds: ceilings.cpu_ceilings(dtypes, 0.01))
    monkeypatch.setattr(profiler, "measure_copy", lambda device, seconds: ceilings.measure_copy(device, 0.01))


@pytest.fixture(scope="session")
def llava_run():
    """The generation of the reference report, counted once for all who read it."""
    return gpuprof.count("llava-onevision-qwen2-7b", mode="generate", image_crops=16, prompt_len=7405, new_tokens=7)


@pytest.fixture
def gpuprof_cli(monkeypatch, capfd):
    """The command line in this process, where the test is not about the process; gives what `subprocess.run` would."""

    def run(*arguments, cwd="."):
        monkeypatch.setattr("sys.argv", ["gpuprof", *map(str, arguments)])
        capfd.readouterr()
        with contextlib.chdir(cwd):
            try:
                status = gpuprof.cli.main()
            except SystemExit as end:
                status = end.code
        said = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, status or 0, said.out, said.err)

    before = signal.getsignal(signal.SIGTERM)  # which some verbs answer in their own way
    yield run
    signal.signal(signal.SIGTERM, before)
