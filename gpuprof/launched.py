"""``python -m gpuprof.launched JOB.json``: one launch, in a process of its own; it saves the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gpuprof.errors import GpuprofError
from gpuprof.profiler import profile


def main(path: str) -> int:
    """Profile what the job in the file says, in this fresh process."""
    job = json.loads(Path(path).read_text())
    try:
        profile(job["model"], **job["arguments"]).save(job["out"])
    except GpuprofError as error:
        print(f"gpuprof: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
