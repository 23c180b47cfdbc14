from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpuprof.theory import Cost, TensorSpec, cost_of


class Call(NamedTuple):
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def cost(self) -> Cost:
        found = cost_of(*self)
        assert found is not None, self.op
        return found[0]


def to_spec(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    if isinstance(value, (list, tuple)):
        return type(value)(map(to_spec, value))
    if isinstance(value, dict):
        return {name: to_spec(item) for name, item in value.items()}
    return value


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        op = str(func).replace(".", "::", 1)
        self.calls.append(Call(op, to_spec(args), to_spec(kwargs or {}), to_spec(out)))
        return out


@contextmanager
def _record() -> Iterator[list[Call]]:
    with Recorder() as recorder:
        yield recorder.calls


@pytest.fixture
def record() -> Callable[[], Any]:
    """A context manager that lists every operator call inside it, tensors as specs."""
    return _record


@pytest.fixture
def spec() -> Callable[[Any], Any]:
    """Tensors to specs, in any nest."""
    return to_spec


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
