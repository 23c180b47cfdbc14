import pytest
import torch


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def brief_ceiling(monkeypatch):
    """Measure the CPU's ceiling for a moment only, where the test is not about it."""
    from gpuprof import profiler

    measured = profiler.cpu_ceilings
    monkeypatch.setattr(profiler, "cpu_ceilings", lambda dtypes, seconds: measured(dtypes, 0.01))
