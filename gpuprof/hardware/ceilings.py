"""The best that this very device reaches, in multiplying and in copying: the ceilings a datasheet cannot give.

The idea is MAMF of Stas Bekman's "Machine Learning Engineering": random data, several shapes, the best one.
Zeros would flatter the figure, for they draw less power and clock higher.

On CUDA, a product finds its operands in memory, as in a model, and not in the cache where the last call left them: a
buffer larger than L2 is written before each. A CPU is spared that: its cache does hold what the layer before has just
written, and a flush takes no more than 1 to 5 % off products from 512 cubed on.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from gpuprof.errors import GpuprofError, is_out_of_memory

Shape = tuple[int, int, int]
"""M, N and K of a product (M, K) x (K, N)."""

Stopwatch = Callable[[Callable[[], Any], int], list[float]]
"""Makes so many calls and gives the seconds of each."""

DTYPES = {
    "cpu": ("bfloat16", "float16", "float32", "float64"),
    "cuda": ("bfloat16", "float16", "tf32", "float32", "float8", "float64", "int8"),
}
"""What can be measured, by type of device."""

# small to large: a shape is skipped when the rate so far says that it would not fit in the time
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
_WARM_SHAPE = (4096, 4096, 4096)
_GRID = 256  # sizes that the search tries are multiples of it
_MINIMUM_SAMPLES = 5
_LONGEST_S = 1.0  # no shape may take longer than half of this for one multiplication
_BURST_S = 0.05  # calls between two looks at the clock
_WINDOW_S = 0.2  # of the warm-up, from which one rate is taken
_WARM_UP_S = 2.0  # at most
_STEADY = 0.995  # a rate that has not fallen below so much of an earlier one has stopped falling
_FLUSH_BYTES = 256 << 20
_COPY_BYTES = (256 << 20, 1 << 30, 4 << 30)
_REPEATED_BYTES = 8 << 20


def measure_matmul(device: torch.device, dtype: str, seconds: float = 1.0) -> dict[str, Any]:
    """Measure the matmul ceiling of one dtype: the best of a few shapes, and on CUDA of those around it.

    Data are N(0, 1), uniform for int8. On CUDA the device is first worked until its rate stops falling, and each sample
    is one multiplication between two events, with the cache flushed before.

    Args:
        device: CPU or CUDA.
        dtype: of `DTYPES`; float8 is e4m3.
        seconds: about how long in all. On CUDA up to a quarter of it warms up, at most 2 s; half of the rest finds the
            shape, half measures it.

    Returns:
        flops_per_s (of the median sample; on a CPU of the fastest tenth), shape ([M, N, K]), samples (how many),
        spread (10th to 90th percentile over the value) and times_s (every sample).

    Raises:
        GpuprofError: the device has no such multiplication.
    """
    end = time.perf_counter() + seconds
    with _measuring(device, dtype) as stopwatch:
        if device.type == "cuda":
            _warm_up(stopwatch, matmul(device, dtype, _WARM_SHAPE), min(seconds / 4, _WARM_UP_S))
        shape = _best_shape(device, dtype, stopwatch, (end - time.perf_counter()) / 2)
        times = _times(stopwatch, matmul(device, dtype, shape), end - time.perf_counter())
    return {"flops_per_s": _flops(shape) / _typical(device, times), "shape": list(shape), **_samples(device, times)}


def measure_shapes(
    device: torch.device, products: Sequence[tuple[str, int, Shape]], rates: Mapping[str, float], seconds: float
) -> list[dict[str, Any]]:
    """Measure given products, in their order, as many as there is time for; samples are as in `measure_matmul`.

    Args:
        device: CPU or CUDA.
        products: dtype, batch and shape of each.
        rates: ceiling of each dtype, FLOP/s; says beforehand what will not fit into the time that is left.
        seconds: about how long in all.

    Returns:
        For each product flops_per_s, samples and spread, or a reason why it was not measured.
    """
    end = time.perf_counter() + seconds
    flops = [batch * _flops(shape) for _, batch, shape in products]
    needs = [
        (_MINIMUM_SAMPLES + 1) * count / rates.get(dtype, math.inf)
        for count, (dtype, *_) in zip(flops, products, strict=True)
    ]
    found: list[dict[str, Any]] = []
    for number, (dtype, batch, shape) in enumerate(products):
        now = time.perf_counter()
        if dtype not in rates:
            found.append({"reason": f"no ceiling of {dtype}"})
        elif needs[number] > end - now:
            found.append({"reason": "no time left"})
        else:
            spare = max(0.0, end - now - sum(needs[number:])) / (len(products) - number)
            try:
                with _measuring(device, dtype) as stopwatch:
                    run = matmul(device, dtype, shape, batch)
                    times = _times(stopwatch, run, now + needs[number] + spare - time.perf_counter())
            except GpuprofError as error:
                found.append({"reason": str(error)})
                continue
            figures = _samples(device, times)
            del figures["times_s"]
            found.append({"flops_per_s": flops[number] / _typical(device, times), **figures})
    return found


def measure_copy(device: torch.device, seconds: float = 1.0) -> dict[str, Any]:
    """Measure the copy bandwidth: device to device, each byte read once and written once, and both counted.

    The buffers hold random bits and are larger than the last-level cache.

    Args:
        device: CPU or CUDA.
        seconds: about how long in all.

    Returns:
        Of the best size bytes_per_s (both ways; of the median sample, on a CPU of the fastest tenth), bytes (of one
        buffer), samples and spread; and sizes: bytes, seconds (of that sample) and bytes_per_s of each.

    Raises:
        GpuprofError: the device cannot copy, or has not the memory.
    """
    tried = []
    with _measuring(device) as stopwatch:
        sizes = _copy_sizes(device)
        for size in sizes:
            times = _times(stopwatch, _copy(_random_bits(size, device)), seconds / len(sizes))
            tried.append((_typical(device, times), size, _samples(device, times)))
    typical, size, figures = min(tried, key=lambda one: one[0] / one[1])
    return {
        "bytes_per_s": 2 * size / typical,
        "bytes": size,
        "samples": figures["samples"],
        "spread": figures["spread"],
        "sizes": [{"bytes": size, "seconds": typical, "bytes_per_s": 2 * size / typical} for typical, size, _ in tried],
    }


def cpu_ceilings(dtypes: Iterable[str], seconds: float = 1.0) -> dict[str, Any]:
    """Measured matmul ceilings of this CPU.

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
            if dtype in DTYPES["cpu"]
        }
    return {"measured": {dtype: result["flops_per_s"] for dtype, result in how.items()}, "how": how}


def climb(rate: Callable[[Shape], float], starts: Sequence[Shape], more: Callable[[], bool]) -> Shape:
    """The best of the starts, then the best of its neighbours, and so on while one is better.

    Args:
        rate: FLOP/s of a shape, 0 for one that is out of the question.
        starts: shapes that are all tried.
        more: asked before each neighbour, whether there is time for it.
    """
    rates = {shape: rate(shape) for shape in starts}
    while True:
        best = max(rates, key=rates.__getitem__)
        for shape in neighbours(best):
            if shape in rates:
                continue
            if not more():
                return max(rates, key=rates.__getitem__)
            rates[shape] = rate(shape)
        if rates[best] == max(rates.values()):
            return best


def neighbours(shape: Shape) -> list[Shape]:
    """Shapes with one size a quarter smaller or larger, on a grid that tiles and tensor cores divide."""
    found = []
    for axis, size in enumerate(shape):
        for factor in (0.75, 1.25):
            other = max(_GRID, round(size * factor / _GRID) * _GRID)
            if other != size:
                found.append((*shape[:axis], other, *shape[axis + 1 :]))
    return found  # type: ignore[return-value]  # three sizes, as it came


def settled(rates: Sequence[float]) -> bool:
    """Whether the rates of successive windows stopped falling: neither of the last two is below the one before them."""
    return len(rates) > 2 and min(rates[-2:]) >= _STEADY * rates[-3]


def _best_shape(device: torch.device, dtype: str, stopwatch: Stopwatch, seconds: float) -> Shape:
    starts = _CPU_SHAPES if device.type == "cpu" else _CUDA_SHAPES
    end, share, best = time.perf_counter() + seconds, seconds / (2 * len(starts)), 0.0

    def rate(shape: Shape) -> float:
        nonlocal best
        # some CPUs multiply float16 a thousand times slower than float32, and ever slower as it grows
        if best and 2 * _flops(shape) / best > _LONGEST_S:
            return 0.0
        try:
            times = _times(stopwatch, matmul(device, dtype, shape), share, minimum=1)
        except RuntimeError as error:
            if is_out_of_memory(error):
                return 0.0
            raise
        found = _flops(shape) / _typical(device, times)
        best = max(best, found)
        return found

    return climb(rate, starts, lambda: device.type == "cuda" and time.perf_counter() < end)


def _flops(shape: Shape) -> int:
    return 2 * math.prod(shape)


def matmul(device: torch.device, dtype: str, shape: Shape, batch: int = 1) -> Callable[[], Any]:
    """A multiplication of random matrices, ready to be called.

    Args:
        device: where.
        dtype: as in `measure_matmul`; tf32 and float32 need `float32_precision` around the call.
        shape: M, N, K.
        batch: products in one call; float8 and int8 have no batched one.
    """
    m, n, k = shape
    if dtype == "float8":
        one = torch.ones((), device=device)
        a = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
        b = torch.randn(n, k, device=device).to(torch.float8_e4m3fn).t()  # the kernel wants it column by column
        # the datasheet's rate is that of fast accumulation, and so is the forward of models that run in float8
        return lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
    if dtype == "int8":
        a = torch.randint(-128, 128, (m, k), device=device, dtype=torch.int8)
        b = torch.randint(-128, 128, (n, k), device=device, dtype=torch.int8).t()
        return lambda: torch._int_mm(a, b)
    torch_dtype = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    batched = (batch,) if batch > 1 else ()
    multiply = torch.bmm if batched else torch.mm
    a = torch.randn(*batched, m, k, device=device).to(torch_dtype)
    b = torch.randn(*batched, k, n, device=device).to(torch_dtype)
    out = torch.empty(*batched, m, n, device=device, dtype=torch_dtype)
    return lambda: multiply(a, b, out=out)


@contextmanager
def _measuring(device: torch.device, dtype: str | None = None) -> Iterator[Stopwatch]:
    """What is around every measurement of products in a dtype, or of copies: a stopwatch, and errors in one line."""
    known = DTYPES.get(device.type, ())
    if not known or (dtype is not None and dtype not in known):
        what = f"matmul ceiling for {dtype}" if dtype else "copy bandwidth"
        raise GpuprofError(f"no {what} on {device.type}: there it can measure {', '.join(known) or 'nothing'}")
    cuda = device.type == "cuda"
    current = torch.cuda.device(device) if cuda else nullcontext()
    precision = float32_precision(device, dtype) if dtype else nullcontext()
    with current, precision, torch.inference_mode():
        try:
            yield _cuda_stopwatch(device, flush=dtype is not None) if cuda else _wall_stopwatch
        except RuntimeError as error:
            what = f"multiply {dtype} matrices" if dtype else "copy"
            raise GpuprofError(f"{device.type} cannot {what} here ({str(error).splitlines()[0]})") from error


def _wall_stopwatch(run: Callable[[], Any], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times


def _cuda_stopwatch(device: torch.device, flush: bool) -> Stopwatch:
    """Times calls by events, without making the host wait in between; writes over L2 before each, if told to."""
    size = max(_FLUSH_BYTES, 2 * torch.cuda.get_device_properties(device).L2_cache_size)
    buffer = torch.empty(size, dtype=torch.uint8, device=device) if flush else None

    def measure(run: Callable[[], Any], calls: int) -> list[float]:
        pairs = []
        for _ in range(calls):
            if buffer is not None:
                buffer.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize(device)
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]

    return measure


def _times(
    stopwatch: Stopwatch, run: Callable[[], Any], seconds: float, minimum: int = _MINIMUM_SAMPLES
) -> list[float]:
    """Seconds of each call, after one to warm up, until the time is used up."""
    begin = time.perf_counter()
    run()
    times = stopwatch(run, minimum)
    calls = 1 + int(_BURST_S / (times[-1] + _BURST_S / 1000))
    while time.perf_counter() - begin < seconds:
        times += stopwatch(run, calls)
    return times


def _warm_up(stopwatch: Stopwatch, run: Callable[[], Any], seconds: float) -> None:
    end, rates = time.perf_counter() + seconds, list[float]()
    while not settled(rates) and time.perf_counter() < end:
        rates.append(1 / statistics.median(_times(stopwatch, run, _WINDOW_S)))


def _typical(device: torch.device, times: list[float]) -> float:
    # on a CPU other processes take their share, and a ceiling is what is left without them
    return _deciles(times)[0] if device.type == "cpu" else statistics.median(times)


def _samples(device: torch.device, times: list[float]) -> dict[str, Any]:
    deciles = _deciles(times)
    spread = (deciles[-1] - deciles[0]) / _typical(device, times)
    return {"samples": len(times), "spread": spread, "times_s": times}


def _deciles(times: list[float]) -> list[float]:
    return statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times * 9


def _random_bits(size: int, device: torch.device) -> torch.Tensor:
    """A buffer of so many bytes; on a CPU the same 8 MiB again and again: making all takes longer than copying."""
    buffer = torch.empty(size // 8, dtype=torch.int64, device=device)
    if device.type != "cpu":
        return buffer.random_()
    bits = torch.empty(_REPEATED_BYTES // 8, dtype=torch.int64).random_()
    for part in buffer.split(len(bits)):
        part.copy_(bits[: len(part)])
    return buffer


def _copy(source: torch.Tensor) -> Callable[[], Any]:
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _copy_sizes(device: torch.device) -> list[int]:
    """Bytes of the buffers to copy: larger than the last-level cache; on CUDA several that leave half of it free."""
    if device.type == "cpu":
        return [max(_COPY_BYTES[0], 2 * _last_level_cache())]
    cache, free = torch.cuda.get_device_properties(device).L2_cache_size, torch.cuda.mem_get_info(device)[0]
    return [size for size in _COPY_BYTES if 2 * cache < size < free / 4] or [max(_COPY_BYTES[0], 2 * cache)]


def _last_level_cache(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Bytes of the last-level caches of the CPUs this process may use, together; 0 where Linux does not say."""
    caches: dict[str, int] = {}
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ():
        try:
            last = max((root / f"cpu{cpu}" / "cache").glob("index*"))
            caches[(last / "shared_cpu_list").read_text()] = int((last / "size").read_text().strip("K\n")) << 10
        except (OSError, ValueError):
            continue
    return sum(caches.values())


@contextmanager
def float32_precision(device: torch.device, dtype: str) -> Iterator[None]:
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
