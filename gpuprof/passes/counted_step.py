"""The child of the counters pass: builds the workload again and runs one warm step of it inside the profiled window.

``python -m gpuprof.passes.counted_step JOB.json`` under Nsight Compute. Every kernel runs inside an NVTX range that
names the row of the operator table it belongs to: the step runs in the counting pass's own mode, so whose operator it
is, in forward and backward, is settled by the same rule as there, and on one thread.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.files import write_atomically
from gpuprof.hardware.ceilings import float32_precision, matmul
from gpuprof.passes.counting import count
from gpuprof.passes.preserve import preserved
from gpuprof.passes.seeding import seed_all
from gpuprof.workload import Options, build

OP = "gpuprof|op|"
CALIBRATION = "gpuprof|calibration|"

CALIBRATION_SHAPES = ((4096, 4096, 4096), (4000, 4000, 4000), (1, 4096, 4096))
"""(M, N, K): the first fills its tiles exactly and must be executed as counted; the others show the padding."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Build, warm up, and run the step once inside the window.

    Args:
        job: ``model`` and ``options`` of `gpuprof.workload.build`; ``dtypes`` to calibrate; ``warmup`` steps; ``seed``.

    Returns:
        ``ops``, the operator table as columns; ``row_of``, its row by the number in a range's name; ``refused``, why
        a dtype could not be multiplied, by dtype.
    """
    workload = build(job["model"], Options(**job["options"]))
    calibrations, refused = _calibrations(workload.device, job["dtypes"])
    with preserved(workload):
        for _ in range(job["warmup"]):
            seed_all(job["seed"])
            workload.step()
        seed_all(job["seed"])
        here = torch.cuda.device(workload.device) if workload.device.type == "cuda" else nullcontext()
        with here, _window(workload.device):
            for name, multiply in calibrations.items():
                with _range(name):
                    multiply()
            depth = 0

            @contextmanager
            def mark(number: int) -> Iterator[None]:
                nonlocal depth
                depth += 1
                try:
                    with _range(f"{OP}{number}|{depth}"):
                        yield
                finally:
                    depth -= 1

            counted = count(workload, mark=mark)
    return {"ops": counted.columns("ops"), "row_of": counted.row_of, "refused": refused}


def _calibrations(device: torch.device, dtypes: Sequence[str]) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Multiplications by the name of their range, each run once; and the dtypes that this device refuses, with why."""
    ready: dict[str, Callable[[], Any]] = {}
    refused: dict[str, str] = {}
    for dtype in dtypes:
        try:
            for shape in CALIBRATION_SHAPES:
                multiply = partial(_multiply, device, dtype, matmul(device, dtype, shape))
                multiply()
                ready[f"{CALIBRATION}{dtype}|{'x'.join(map(str, shape))}"] = multiply
        except RuntimeError as error:
            refused[dtype] = str(error).splitlines()[0]
            ready = {
                name: multiply for name, multiply in ready.items() if not name.startswith(f"{CALIBRATION}{dtype}|")
            }
    return ready, refused


def _multiply(device: torch.device, dtype: str, multiply: Callable[[], Any]) -> None:
    with float32_precision(device, dtype), torch.inference_mode():
        multiply()


@contextmanager
def _window(device: torch.device) -> Iterator[None]:
    """What Nsight Compute looks at: from cudaProfilerStart to cudaProfilerStop."""
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    try:
        yield
        torch.cuda.synchronize(device)
    finally:
        torch.cuda.profiler.stop()


@contextmanager
def _range(name: str) -> Iterator[None]:
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()


def main(path: str) -> int:
    """Do the job in the file and write what came of it beside it, as ``step.json``."""
    file = Path(path)
    try:
        done = run(json.loads(file.read_text()))
    except GpuprofError as error:
        print(f"gpuprof: {error}", file=sys.stderr)
        return 2
    write_atomically(file.with_name("step.json"), json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
