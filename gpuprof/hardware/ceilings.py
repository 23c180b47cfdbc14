"""The best matrix multiplication this very device reaches: the ceiling a datasheet cannot give.

The idea is MAMF of Stas Bekman's "Machine Learning Engineering": random data, several shapes, the best one.
Zeros would flatter the figure, for they draw less power and clock higher.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpuprof.errors import GpuprofError

# (M, N, K), small to large: a shape is skipped when the rate so far says that it would not fit in the time
_CPU_SHAPES = [(256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (4096, 512, 1024), (2048, 2048, 2048)]
# squares, and the tall shapes that came out best on A100 and H100 in the public MAMF lists
_CUDA_SHAPES = [
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (1024, 10240, 5120),
    (2048, 2048, 13312),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (16384, 8192, 4224),
]
_CPU_DTYPES = ("bfloat16", "float16", "float32", "float64")
_CUDA_DTYPES = (*_CPU_DTYPES, "tf32", "float8", "int8")
_MINIMUM_SAMPLES = 5
_LONGEST_S = 1.0  # no shape may take longer than half of this for one multiplication


def measure_matmul(device: torch.device, dtype: str, seconds: float = 1.0) -> dict[str, Any]:
    """Measure the matmul ceiling of one dtype: the best of a few shapes.

    Data are N(0, 1), uniform for int8, and stay in cache if they fit. On CUDA each sample is one
    multiplication between two events.

    Args:
        device: CPU or CUDA.
        dtype: bfloat16, float16, float32, float64; on CUDA also tf32, float8 (e4m3) and int8.
        seconds: about how long to measure; half finds the shape, half measures it.

    Returns:
        flops_per_s (of the median sample; on a CPU of the fastest tenth), shape ([M, N, K]), samples (how many),
        spread (10th to 90th percentile over the value) and times_s (every sample).

    Raises:
        GpuprofError: the device has no such multiplication.
    """
    supported = {"cpu": _CPU_DTYPES, "cuda": _CUDA_DTYPES}.get(device.type, ())
    if dtype not in supported:
        known = ", ".join(supported) or "nothing"
        raise GpuprofError(f"no matmul ceiling for {dtype} on {device.type}: there it can measure {known}")
    shapes = _CPU_SHAPES if device.type == "cpu" else _CUDA_SHAPES
    with _float32_precision(device, dtype), torch.inference_mode():
        try:
            shape = _best_shape(device, dtype, shapes, seconds / 2)
            times = _times(device, _matmul(device, dtype, shape), seconds / 2)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise GpuprofError(f"{device.type} cannot multiply {dtype} matrices here ({reason})") from error
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    # on a CPU other processes take their share, and a ceiling is what is left without them
    typical = deciles[0] if device.type == "cpu" else statistics.median(times)
    return {
        "flops_per_s": _flops(shape) / typical,
        "shape": list(shape),
        "samples": len(times),
        "spread": (deciles[-1] - deciles[0]) / typical,
        "times_s": times,
    }


def cpu_ceilings(dtypes: Iterable[str], seconds: float = 1.0) -> dict[str, Any]:
    """Measured ceilings of this CPU.

    Args:
        dtypes: those that a run used; the ones without a CPU matmul ceiling are left out.
        seconds: about how long to measure each.

    Returns:
        ``{"measured": {dtype: FLOP/s}, "how": {dtype: what measure_matmul says}}``.
    """
    with torch.random.fork_rng(devices=()):
        how = {
            dtype: measure_matmul(torch.device("cpu"), dtype, seconds)
            for dtype in dict.fromkeys(dtypes)
            if dtype in _CPU_DTYPES
        }
    return {"measured": {dtype: result["flops_per_s"] for dtype, result in how.items()}, "how": how}


def _best_shape(
    device: torch.device, dtype: str, shapes: list[tuple[int, int, int]], seconds: float
) -> tuple[int, int, int]:
    best, best_rate, share = shapes[0], 0.0, seconds / len(shapes)
    for shape in shapes:
        # some CPUs multiply float16 a thousand times slower than float32, and ever slower as it grows
        if best_rate and 2 * _flops(shape) / best_rate > _LONGEST_S:
            continue
        rate = _flops(shape) / min(_times(device, _matmul(device, dtype, shape), share / 2, minimum=1))
        if rate > best_rate:
            best, best_rate = shape, rate
    return best


def _flops(shape: tuple[int, int, int]) -> int:
    m, n, k = shape
    return 2 * m * n * k


def _matmul(device: torch.device, dtype: str, shape: tuple[int, int, int]) -> Callable[[], Any]:
    m, n, k = shape
    if dtype == "float8":
        one = torch.ones((), device=device)
        a = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
        b = torch.randn(n, k, device=device).to(torch.float8_e4m3fn).t()  # the kernel wants it column by column
        return lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    if dtype == "int8":
        a = torch.randint(-128, 128, (m, k), device=device, dtype=torch.int8)
        b = torch.randint(-128, 128, (n, k), device=device, dtype=torch.int8).t()
        return lambda: torch._int_mm(a, b)
    torch_dtype = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    a = torch.randn(m, k, device=device).to(torch_dtype)
    b = torch.randn(k, n, device=device).to(torch_dtype)
    out = torch.empty(m, n, device=device, dtype=torch_dtype)
    return lambda: torch.mm(a, b, out=out)


def _times(
    device: torch.device, run: Callable[[], Any], seconds: float, minimum: int = _MINIMUM_SAMPLES
) -> list[float]:
    """Seconds of each call, after one to warm up, until the time is used up."""
    run()
    clock = _cuda_seconds if device.type == "cuda" else _wall_seconds
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < minimum or time.perf_counter() - begin < seconds:
        times.append(clock(run))
    return times


def _wall_seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _cuda_seconds(run: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@contextmanager
def _float32_precision(device: torch.device, dtype: str) -> Iterator[None]:
    """Let CUDA use TF32 for tf32 and for nothing else; put the user's choice back. A CPU keeps its own."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
