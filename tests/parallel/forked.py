"""A launcher whose processes are forked from one that has loaded torch, so that starting a job takes no time.

As torchrun does, it ends the other ranks when one has failed; as with srun, it is rank 0 that keeps the job's store.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORLD = 2
PATIENCE_S = 60.0
"""Seconds after which a job hangs."""


def run(jobs: dict[str, dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """Run command lines of gpuprof as jobs of two ranks, one after the other.

    Args:
        jobs: by name: ``command``, a list of arguments; ``environment``, of all ranks; ``other``, that of rank 1 alone;
            ``limit``, the largest file that rank 1 may write, in bytes.
        folder: that they run in.

    Returns:
        By name: ``seconds``; and of each rank, in lists, ``status`` (negative: of a signal; None: it hung) and what it
        ``said``.
    """
    paths = os.pathsep.join(map(str, (HERE.parents[1], HERE)))
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(jobs), text=True, capture_output=True, cwd=folder, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, timeout=PATIENCE_S * (len(jobs) + 1),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def _one(job: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    pids = [_fork(rank, port, job) for rank in range(WORLD)]
    status: list[int | None] = [None] * WORLD
    left = set(range(WORLD))
    while left and time.monotonic() - start < PATIENCE_S:
        for rank in list(left):
            pid, code = os.waitpid(pids[rank], os.WNOHANG)
            if pid:
                left.remove(rank)
                status[rank] = os.waitstatus_to_exitcode(code)
                for other in left if status[rank] else ():
                    os.kill(pids[other], signal.SIGTERM)
        time.sleep(0.02)
    seconds = time.monotonic() - start
    for rank in left:
        os.kill(pids[rank], signal.SIGKILL)
        os.waitpid(pids[rank], 0)
    return {"seconds": seconds, "status": status, "said": [Path(f"said.{rank}").read_text() for rank in range(WORLD)]}


def _fork(rank: int, port: int, job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    said = os.open(f"said.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(job.get("environment", {}), **(job.get("other", {}) if rank else {}))
    if rank and "limit" in job:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts this in the background has it ignored
    sys.argv = ["gpuprof", *job["command"]]
    from gpuprof import cli

    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import gpuprof.cli
    import gpuprof.job
    import gpuprof.parallel.join
    import gpuprof.profiler
    import gpuprof.render  # noqa: F401

    print(json.dumps({name: _one(job) for name, job in json.load(sys.stdin).items()}))
