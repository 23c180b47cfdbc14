"""``python -m gpuprof.launched JOB.json``: one launch, in a process of its own; it saves the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gpuprof.errors import GpuprofError
from gpuprof.process import run


def main() -> int:
    """Profile what the job in the file says, in this fresh process."""
    from gpuprof.profiler import profile

    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        profile(job["model"], **job["arguments"]).save(job["out"])
    except GpuprofError as error:
        print(f"gpuprof: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run(main)
