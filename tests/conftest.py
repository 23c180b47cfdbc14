import pytest
import torch


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def no_real_cache(tmp_path_factory):
    """Keep the developer's own measured ceilings out of every test, and the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUPROF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def brief_ceiling(monkeypatch):
    """Measure the CPU's ceiling for a moment only, where the test is not about it."""
    from gpuprof import profiler

    matmul, copy = profiler.cpu_ceilings, profiler.measure_copy
    monkeypatch.setattr(profiler, "cpu_ceilings", lambda dtypes, seconds: matmul(dtypes, 0.01))
    monkeypatch.setattr(profiler, "measure_copy", lambda device, seconds: copy(device, 0.01))
