import importlib
from concurrent.futures import ThreadPoolExecutor

import pytest

import gpuprof

NAMES = [
    "Cost",
    "GpuprofError",
    "Meter",
    "Run",
    "TensorSpec",
    "Validation",
    "count",
    "flop_rule",
    "gather",
    "load",
    "profile",
    "read_job",
    "read_report",
    "read_trace",
    "validate",
]


def test_public_names():
    assert gpuprof.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_exists_and_is_documented(name):
    assert getattr(gpuprof, name).__doc__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        gpuprof.nonsense  # noqa: B018


def test_version_is_the_packages_own():
    assert gpuprof.__version__ == importlib.metadata.version("gpuprof")


def test_a_rule_of_ones_own_prices_an_operator_of_ones_own():
    import torch

    @torch.library.custom_op("gpuprof_test::twice_matmul", mutates_args=())
    def twice_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 2 * (a @ b)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.gpuprof_test.twice_matmul(x, x)

    def counted() -> gpuprof.Run:
        return gpuprof.profile(Model(), torch.ones(8, 8), mode="forward", passes=["count"])

    before = counted()
    assert before.passes["count"].facts["ops_without_rule"] == ["gpuprof_test::twice_matmul.default"]
    assert before.modules()["flops_forward"].tolist() == [0, 0]

    @gpuprof.flop_rule("gpuprof_test::twice_matmul")
    def rule(a, b, out):
        return 2 * a.shape[0] * a.shape[1] * b.shape[1]

    assert counted().modules()["flops_forward"].tolist() == [2 * 8 * 8 * 8, 0]


def test_threads_take_turns_and_leave_nothing():
    import torch
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    def patched() -> tuple[object, ...]:
        return torch.nn.Linear._call_impl, torch.autograd._engine_run_backward, list(hooks)

    def flops(width: int) -> int:
        run = gpuprof.profile(torch.nn.Linear(width, width), torch.ones(2, width), passes=["count", "time"], steps=2)
        return int(run.ops["flops_full"].sum())

    before = patched()
    with ThreadPoolExecutor(3) as pool:
        widths = [4, 8, 16]
        assert list(pool.map(flops, widths)) == [2 * (2 * 2 * width * width) for width in widths]  # and of the weight
    assert patched() == before
