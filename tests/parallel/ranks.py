"""Functions in the processes of one job: torchrun, gloo, a time limit, and what each rank returned.

``launch(__file__, ["ddp", "fsdp"])`` calls ``ddp()`` and ``fsdp()`` of that file, one after the other, in two processes
that share a group. Starting two of them takes seconds: call many functions in one launch.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
TIMED_OUT = 124
"""Exit status of a job whose time was up, as timeout(1) has it."""


def torchrun(
    *command: str, world: int = 2, seconds: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python COMMAND`` in every process of a job, and all that they started is gone afterwards.

    Args:
        command: a script and its arguments, or ``-m`` and a module.
        world: number of processes.
        seconds: what it may take.
        environment: variables beside those of this process.

    Returns:
        Exit status and what all ranks wrote; `TIMED_OUT` as the status where the time was up.
    """
    paths = [str(REPOSITORY), str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    job = subprocess.Popen([*start, *command], env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = job.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        job.terminate()  # torchrun ends its workers, which are in sessions of their own
        try:
            out, err = job.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            job.kill()
            out, err = job.communicate()
        return subprocess.CompletedProcess(job.args, TIMED_OUT, out, err)
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)


def launch(file: str | Path, cases: Sequence[str], world: int = 2, seconds: float = 120) -> list[dict[str, Any]]:
    """Call functions of a file in every process of a job.

    Args:
        file: Python that defines them.
        cases: their names, called in this order; each returns what JSON can hold.
        world: number of processes.
        seconds: what all of it may take.

    Returns:
        Of each rank what every function returned, by its name.

    Raises:
        AssertionError: a rank failed, or the time was up; with what all ranks wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "cache")
        done = torchrun(__file__, str(file), folder, *cases, world=world, seconds=seconds, GPUPROF_CACHE=cache)
        found = [Path(folder) / f"{rank}.json" for rank in range(world)]
        if done.returncode or not all(path.exists() for path in found):
            raise AssertionError(f"exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return [json.loads(path.read_text()) for path in found]


def main(file: str, folder: str, *cases: str) -> None:
    """In a process of the job: call the functions, and leave behind what they return."""
    import torch
    import torch.distributed as dist

    from gpuprof import profiler
    from gpuprof.hardware import ceilings

    torch.set_num_threads(1)
    # what the CPU reaches is measured for a moment, and once for all runs
    matmul = functools.cache(lambda dtype: ceilings.cpu_ceilings([dtype], 0.01)["how"])
    copy = functools.cache(lambda device: ceilings.measure_copy(device, 0.01))
    profiler.cpu_ceilings = lambda dtypes, seconds: {"how": {k: v for d in dtypes for k, v in matmul(d).items()}}
    profiler.measure_copy = lambda device, seconds: copy(device)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    spec = importlib.util.spec_from_file_location("cases", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = module
    spec.loader.exec_module(module)
    returned = {case: getattr(module, case)() for case in cases}
    (Path(folder) / f"{dist.get_rank()}.json").write_text(json.dumps(returned))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
