"""The denominator 'measured' of a run: cached ceilings, or on a CPU what is measured after the passes."""

import pytest
import torch
from runs import gpu_run

from gpuprof import profiler
from gpuprof.analysis.denominators import denominators
from gpuprof.hardware import ceiling_cache
from gpuprof.hardware.device import describe, environment

GPU = {"type": "cuda", "uuid": "GPU-1", "driver": "570.1"}
KEY = "GPU-1, driver 570.1, torch 2.13.0"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUPROF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch):
    """Dtypes that were measured, each at 1 GFLOP/s."""
    asked = []

    def cpu_ceilings(dtypes, seconds):
        asked.extend(dtypes)
        how = {dtype: {"flops_per_s": 1e9, "spread": 0.25} for dtype in dtypes}
        return {"measured": dict.fromkeys(dtypes, 1e9), "how": how}

    monkeypatch.setattr(profiler, "cpu_ceilings", cpu_ceilings)
    return asked


def entry(rate, day, spread=0.02):
    return {"flops_per_s": rate, "spread": spread, "date": f"2026-11-{day}T10:00:00+00:00"}


def cpu_run(**settings):
    model = torch.nn.Linear(8, 4)
    return profiler.profile(model, torch.ones(2, 8), mode="forward", warmup=0, steps=1, **settings)


def cpu_key():
    return ceiling_cache.key(describe(torch.device("cpu")), environment())


def test_a_gpu_takes_what_was_measured_of_it_beside_the_datasheet():
    run = gpu_run()
    run.device |= GPU
    ceiling_cache.store(KEY, "bfloat16", entry(80e9, 21))
    ceiling_cache.store(KEY, "float32", entry(5e9, 23))
    ceiling_cache.store(KEY, "copy", {"bytes_per_s": 4e12, "spread": 0.01, "date": "2026-11-20"})
    profiler.add_ceilings(run)

    assert run.device["peaks"] == {"datasheet": {"bfloat16": 100e9}, "measured": {"bfloat16": 80e9, "float32": 5e9}}
    assert run.device["peak_source_measured"] == "by 'gpuprof ceilings' on 2026-11-21, 2026-11-23"
    assert run.device["peak_spread"] == {"bfloat16": 0.02, "float32": 0.02}
    assert list(denominators(run)) == ["datasheet", "measured"]
    assert run.device["measured_bandwidth"] == 4e12


@pytest.mark.parametrize("other", ["GPU-2, driver 570.1, torch 2.13.0", "GPU-1, driver 580.2, torch 2.13.0"])
def test_another_gpu_or_driver_has_none(other):
    run = gpu_run()
    run.device |= GPU
    ceiling_cache.store(other, "bfloat16", entry(80e9, 21))
    profiler.add_ceilings(run)

    assert run.device["peaks"] == {"datasheet": {"bfloat16": 100e9}}
    assert "peak_source_measured" not in run.device
    assert run.warnings == []


def test_a_cpu_that_knows_the_step_s_dtype_measures_nothing(measured):
    ceiling_cache.store(cpu_key(), "float32", entry(2e11, 22, spread=0.03))
    run = cpu_run()

    assert measured == []
    assert run.device["peaks"] == {"measured": {"float32": 2e11}}
    assert run.device["peak_source_measured"] == "by 'gpuprof ceilings' on 2026-11-22"
    assert run.device["peak_spread"] == {"float32": 0.03}


def test_a_cpu_that_knows_another_dtype_only_measures_after_the_passes_and_writes_nothing(measured):
    ceiling_cache.store(cpu_key(), "bfloat16", entry(9e11, 22))
    before = ceiling_cache.path().read_bytes()
    run = cpu_run()

    assert measured == ["float32"]
    assert run.device["peaks"] == {"measured": {"float32": 1e9}}
    assert run.device["peak_source_measured"] == "just after the passes"
    assert run.device["peak_spread"] == {"float32": 0.25}
    assert ceiling_cache.path().read_bytes() == before


def test_a_cpu_measures_every_dtype_however_little_is_multiplied_in_it(measured):
    large, small = torch.ones(64, 64), torch.ones(1, 1, dtype=torch.float64)
    profiler.profile(
        torch.nn.Identity(), mode="forward", warmup=0, steps=1, step=lambda: (large @ large, small @ small)
    )

    assert measured == ["float32", "float64"]  # 524,288 FLOPs and 2


def test_a_broken_cache_is_a_warning_and_no_error(measured, folder):
    folder.mkdir()
    (folder / "ceilings.json").write_text("{")
    run = cpu_run()

    assert measured == ["float32"]
    assert [text for text in run.warnings if "ceilings.json" in text] == [
        "the cached ceilings.json is ignored (it is no whole JSON): 'gpuprof ceilings' writes it anew"
    ]
    assert (folder / "ceilings.json").read_text() == "{"


def test_a_count_needs_no_ceiling(measured, folder):
    run = cpu_run(passes=("count",))

    assert measured == []
    assert run.device["peaks"] == {}
    assert not folder.exists()
