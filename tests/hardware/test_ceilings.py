import math
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpuprof.errors import GpuprofError
from gpuprof.hardware import ceilings

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def made_up(monkeypatch, rate, tried=None):
    """Let products take 2MNK over a made-up rate, and keep their shapes."""

    def product(device, dtype, shape, batch=1):
        if tried is not None:
            tried.append(shape)
        return SimpleNamespace(seconds=2 * batch * math.prod(shape) / rate(shape))

    monkeypatch.setattr(ceilings, "matmul", product)
    monkeypatch.setattr(ceilings, "_times", lambda stopwatch, run, seconds, minimum=5: [run.seconds] * minimum)


@pytest.mark.parametrize("dtype", ceilings.DTYPES["cpu"])
def test_the_rate_is_two_m_n_k_over_the_time_of_the_fastest_tenth(monkeypatch, dtype):
    monkeypatch.setattr(ceilings, "_CPU_SHAPES", [(64, 64, 64), (96, 128, 64)])
    result = ceilings.measure_matmul(CPU, dtype, seconds=0.02)
    m, n, k = result["shape"]

    assert result["flops_per_s"] == pytest.approx(
        2 * m * n * k / statistics.quantiles(result["times_s"], n=10, method="inclusive")[0]
    )
    assert (m, n, k) in {(64, 64, 64), (96, 128, 64)}
    assert result["samples"] == len(result["times_s"]) >= 5
    assert result["spread"] >= 0


def test_a_shape_that_would_take_seconds_is_skipped(monkeypatch):
    tried = []
    made_up(monkeypatch, lambda shape: 1e9, tried)
    result = ceilings.measure_matmul(CPU, "float16", seconds=1.0)

    # at 1 GFLOP/s 1024 cubed takes 2.1 s, and it would run twice
    assert tried == [(256, 256, 256), (512, 512, 512), (256, 256, 256)]
    assert result["flops_per_s"] == pytest.approx(1e9)


def test_the_best_shape_wins(monkeypatch):
    made_up(monkeypatch, lambda shape: {(512, 512, 512): 9e12}.get(shape, 8e12))
    result = ceilings.measure_matmul(CPU, "float32")

    assert result["shape"] == [512, 512, 512]
    assert result["flops_per_s"] == pytest.approx(9e12)
    assert result["spread"] == 0


def test_the_search_climbs_from_the_best_start_to_a_peak_beside_it():
    def rate(shape):  # highest at 1024 x 2560 x 512
        m, n, k = shape
        return 1e12 / (1 + abs(math.log(m / 1024)) + abs(math.log(n / 2560)) + abs(math.log(k / 512)))

    assert ceilings.climb(rate, [(512, 512, 512), (1024, 1536, 512)], lambda: True) == (1024, 2560, 512)
    # 1536 -> 2048 (a grid step of 1.25 x) -> 2560
    assert ceilings.neighbours((1024, 1536, 512))[3] == (1024, 2048, 512)
    assert ceilings.neighbours((1024, 2048, 512))[3] == (1024, 2560, 512)


def test_on_cuda_the_search_leaves_the_known_shapes_for_better_ones(monkeypatch):
    # 4096 cubed is the best known one, and beside it lies a better one that is in no list
    made_up(monkeypatch, lambda shape: {(4096,) * 3: 8e14, (4096, 4096, 5120): 9e14}.get(shape, 7e14))

    assert ceilings._best_shape(CUDA, "bfloat16", None, seconds=60) == (4096, 4096, 5120)
    assert ceilings._best_shape(CUDA, "bfloat16", None, seconds=0) == (4096, 4096, 4096)


def test_without_time_for_neighbours_the_best_start_it_is():
    tried = []
    best = ceilings.climb(lambda shape: tried.append(shape) or sum(shape), [(1, 1, 1), (2, 2, 2)], lambda: False)

    assert best == (2, 2, 2)
    assert tried == [(1, 1, 1), (2, 2, 2)]


def test_neighbours_are_a_quarter_away_on_the_grid_and_never_the_shape_itself():
    assert ceilings.neighbours((4096, 1024, 256)) == [
        (3072, 1024, 256), (5120, 1024, 256), (4096, 768, 256), (4096, 1280, 256),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rates", "steady"),
    [
        ([], False),
        ([800e12, 800e12], False),  # two windows are not enough to see a fall
        ([800e12, 780e12, 760e12], False),  # falls
        ([800e12, 780e12, 779e12], False),  # fell a window ago
        ([800e12, 780e12, 779e12, 778e12], True),  # 0.26 % over two windows
        ([500e12, 800e12, 810e12], True),  # climbs, as from idle clocks
    ],
)
def test_the_device_has_settled_when_its_rate_stops_falling(rates, steady):
    assert ceilings.settled(rates) is steady


def test_the_warm_up_ends_with_the_fall_or_with_its_time(monkeypatch):
    windows = iter([1.0, 1.1, 1.2, 1.2, 1.2, 1.2])  # seconds of a call: slower and slower, then steady
    monkeypatch.setattr(ceilings, "_times", lambda *_: [next(windows)])
    ceilings._warm_up(None, None, seconds=60)
    assert list(windows) == [1.2]  # three of 1.2 are needed: the sixth is not asked for

    monkeypatch.setattr(ceilings, "_times", lambda *_: pytest.fail("no time"))
    ceilings._warm_up(None, None, seconds=0)


@pytest.mark.parametrize(
    ("seconds", "samples"),
    # calls of 10 ms: one to warm up and five are 0.06 s, then bursts of 1 + 0.05 / 0.01005 = 5 until a second is over
    [(0.0, 5), (1.0, 5 + 19 * 5)],
)
def test_samples_go_on_for_the_time_and_are_never_fewer_than_asked(monkeypatch, seconds, samples):
    now = [0.0]
    monkeypatch.setattr(ceilings, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run():
        now[0] += 0.01

    def stopwatch(run, calls):
        return [run() or 0.01 for _ in range(calls)]

    assert ceilings._times(stopwatch, run, seconds) == [0.01] * samples
    assert now[0] == pytest.approx(0.01 * (samples + 1))


class Device:
    """What stands for CUDA: events that tell a made-up time, and a record of what was put on the stream."""

    def __init__(self, monkeypatch):
        self.stream, self.clock = [], 0.0
        outer = self

        class Event:
            def __init__(self, enable_timing):
                self.at = None

            def record(self):
                outer.stream.append("event")
                self.at = outer.clock

            def elapsed_time(self, other):
                return 1e3 * (other.at - self.at)  # ms, as torch has it

        buffer = SimpleNamespace(zero_=lambda: self.stream.append("flush"))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.stream.append("wait"))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=60 << 20))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, 80 << 30))
        monkeypatch.setattr(torch, "empty", lambda size, **_: self.sizes.append(size) or buffer)
        self.sizes, self.free = [], 80 << 30

    def run(self):
        self.stream.append("run")
        self.clock += 0.002


def test_on_cuda_the_cache_is_flushed_outside_the_events_and_the_host_waits_once(monkeypatch):
    fake = Device(monkeypatch)
    times = ceilings._cuda_stopwatch(CUDA, flush=True)(fake.run, 2)

    assert times == pytest.approx([0.002, 0.002])
    assert fake.stream == ["flush", "event", "run", "event"] * 2 + ["wait"]
    assert fake.sizes == [256 << 20]  # larger than twice 60 MiB of L2


def test_copies_flush_nothing(monkeypatch):
    fake = Device(monkeypatch)
    ceilings._cuda_stopwatch(CUDA, flush=False)(fake.run, 1)

    assert fake.stream == ["event", "run", "event", "wait"]
    assert fake.sizes == []


@pytest.mark.parametrize(
    ("free_gib", "mib"),
    [(80, [256, 1024, 4096]), (16, [256, 1024]), (2, [256]), (0.1, [256])],  # two buffers leave half of it free
)
def test_copies_on_cuda_are_of_sizes_above_the_cache_that_fit(monkeypatch, free_gib, mib):
    fake = Device(monkeypatch)
    fake.free = int(free_gib * (1 << 30))

    assert ceilings._copy_sizes(CUDA) == [size << 20 for size in mib]


def test_copy_bandwidth_counts_a_read_and_a_write(monkeypatch):
    monkeypatch.setattr(ceilings, "_copy_sizes", lambda device: [8 << 20, 16 << 20])
    seconds = iter([[0.001, 0.001], [0.0016, 0.0016]])
    monkeypatch.setattr(ceilings, "_times", lambda *_: next(seconds))
    result = ceilings.measure_copy(CPU)

    assert result == {
        "bytes_per_s": pytest.approx(2 * 16 * 2**20 / 0.0016),
        "bytes": 16 << 20,
        "samples": 2,
        "spread": 0,
        "sizes": [
            {"bytes": 8 << 20, "seconds": pytest.approx(0.001), "bytes_per_s": pytest.approx(2 * 8 * 2**20 / 0.001)},
            {
                "bytes": 16 << 20,
                "seconds": pytest.approx(0.0016),
                "bytes_per_s": pytest.approx(2 * 16 * 2**20 / 0.0016),
            },
        ],
    }


@pytest.mark.parametrize(("cache_mib", "mib"), [(3, 6), (1, 4)])
def test_copies_on_a_cpu_are_real_and_larger_than_its_cache(monkeypatch, cache_mib, mib):
    monkeypatch.setattr(ceilings, "_COPY_BYTES", (4 << 20,))
    monkeypatch.setattr(ceilings, "_last_level_cache", lambda: cache_mib << 20)
    result = ceilings.measure_copy(CPU, seconds=0.02)

    assert result["bytes_per_s"] > 0
    assert result["bytes"] == mib << 20
    assert result["samples"] >= 5


def test_the_caches_of_a_cpu_are_counted_once_each(monkeypatch, tmp_path):
    for cpu, (level, size, shared) in {
        0: ("index3", "32768K", "0-1"), 1: ("index3", "32768K", "0-1"), 2: ("index3", "16384K", "2"),
    }.items():  # fmt: skip
        for index, kilobytes in (("index0", "48K"), (level, size)):
            folder = tmp_path / f"cpu{cpu}" / "cache" / index
            folder.mkdir(parents=True)
            (folder / "size").write_text(f"{kilobytes}\n")
            (folder / "shared_cpu_list").write_text(f"{shared}\n")
    monkeypatch.setattr(ceilings.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)

    assert ceilings._last_level_cache(tmp_path) == (32 + 16) << 20  # nothing is known of CPU 3
    assert ceilings._last_level_cache(Path(tmp_path / "none")) == 0


def test_products_are_measured_in_order_while_there_is_time(monkeypatch):
    made_up(monkeypatch, lambda shape: 4e9)
    wanted = [
        ("float32", 1, (1000, 1000, 1000)),  # 2 GFLOPs, six times at 4 GFLOP/s: 3 s
        ("float32", 50, (100, 100, 100)),  # 0.1 GFLOPs
        ("float32", 1, (2000, 1000, 1000)),  # 4 GFLOPs: 6 s
        ("tf32", 1, (10, 10, 10)),
    ]
    found = ceilings.measure_shapes(CPU, wanted, {"float32": 4e9}, seconds=4.0)

    assert [one.get("flops_per_s") for one in found] == [pytest.approx(4e9), pytest.approx(4e9), None, None]
    assert [one.get("reason") for one in found] == [None, None, "no time left", "no ceiling of tf32"]
    assert found[0] == {"flops_per_s": pytest.approx(4e9), "samples": 5, "spread": 0}


@pytest.mark.parametrize("product", [("float32", 1, (64, 32, 16)), ("bfloat16", 3, (8, 4, 16))])
def test_products_are_real(product):
    (found,) = ceilings.measure_shapes(CPU, [product], {product[0]: 1e11}, seconds=0.02)

    assert found["flops_per_s"] > 0
    assert found["samples"] >= 5


def test_a_product_that_torch_refuses_has_its_reason(monkeypatch):
    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nstack")

    monkeypatch.setattr(ceilings, "matmul", refuse)
    found = ceilings.measure_shapes(CPU, [("float32", 1, (1, 1, 1))], {"float32": 1e9}, seconds=1.0)

    assert found == [{"reason": "cpu cannot multiply float32 matrices here (CUDA out of memory.)"}]


@pytest.mark.parametrize(("batch", "sizes"), [(1, (3, 4)), (5, (5, 3, 4))])
def test_a_product_has_the_sizes_it_says(batch, sizes):
    assert ceilings.matmul(CPU, "bfloat16", (3, 4, 7), batch)().shape == sizes


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", "tf32"), ("cpu", "float8"), ("cpu", "int64"), ("meta", "float32")]
)
def test_what_cannot_be_measured_says_what_can(device, dtype):
    with pytest.raises(GpuprofError, match=f"no matmul ceiling for {dtype} on {device}: there it can measure"):
        ceilings.measure_matmul(torch.device(device), dtype)


def test_copies_need_a_device():
    with pytest.raises(GpuprofError, match="no copy bandwidth on meta: there it can measure nothing"):
        ceilings.measure_copy(torch.device("meta"))


def test_a_multiplication_torch_refuses_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no kernel\nstack")

    monkeypatch.setattr(ceilings, "matmul", refuse)
    with pytest.raises(GpuprofError, match=r"^cpu cannot multiply float32 matrices here \(no kernel\)$"):
        ceilings.measure_matmul(CPU, "float32")


def test_a_shape_that_does_not_fit_into_memory_is_passed_over(monkeypatch):
    made_up(monkeypatch, lambda shape: 1e12)
    fits = ceilings.matmul

    def product(device, dtype, shape, batch=1):
        if shape[0] > 512:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return fits(device, dtype, shape, batch)

    monkeypatch.setattr(ceilings, "matmul", product)

    assert ceilings.measure_matmul(CPU, "float32")["shape"] == [256, 256, 256]


def test_float8_accumulates_fast_as_the_datasheet_has_it(monkeypatch):
    asked = []

    def scaled_mm(a, b, **how):
        asked.append((a.dtype, b.dtype, how["use_fast_accum"]))
        return real(a, b, **how)

    real = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)

    result = ceilings.matmul(CPU, "float8", (16, 32, 64))()

    assert asked == [(torch.float8_e4m3fn, torch.float8_e4m3fn, True)]
    assert (result.shape, result.dtype) == ((16, 32), torch.bfloat16)


def test_cpu_ceilings_leave_out_what_has_no_matmul(monkeypatch):
    monkeypatch.setattr(ceilings, "_CPU_SHAPES", [(64, 64, 64)])
    result = ceilings.cpu_ceilings(["float32", "int64", "float32"], seconds=0.01)

    assert set(result["measured"]) == {"float32"}
    assert result["measured"]["float32"] == result["how"]["float32"]["flops_per_s"]


def test_the_users_precision_is_left_as_it_was():
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32
    with ceilings.float32_precision(torch.device("cuda"), "tf32"):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    with ceilings.float32_precision(torch.device("cuda"), "float32"):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"

    assert (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32", "float32"])
def test_cuda_ceiling_is_of_the_order_of_the_datasheet(dtype):
    from gpuprof.hardware import peaks

    properties = torch.cuda.get_device_properties(0)
    row = peaks.for_device(properties.name, properties.multi_processor_count)
    if row is None or dtype not in row.flops_per_s:
        pytest.skip("no datasheet peak of this device")
    share = ceilings.measure_matmul(torch.device("cuda"), dtype)["flops_per_s"] / row.flops_per_s[dtype]

    assert 1 / 3 < share < 1.25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_copies_are_of_the_order_of_the_datasheet():
    from gpuprof.hardware import peaks

    properties = torch.cuda.get_device_properties(0)
    row = peaks.for_device(properties.name, properties.multi_processor_count)
    if row is None or row.memory_bandwidth is None:
        pytest.skip("no datasheet bandwidth of this device")

    assert 1 / 2 < ceilings.measure_copy(torch.device("cuda"))["bytes_per_s"] / row.memory_bandwidth < 1.05
