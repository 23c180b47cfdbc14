"""What the supported releases of transformers do differently."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from gpuprof.run import Run

_LACKS = (
    "requires the Torchvision library",
    "Unrecognized model identifier",
    "Validation error",
    "reads the value of a computed",
)


@contextmanager
def architecture_may_lack() -> Iterator[None]:
    """Skips where this release lacks an architecture, does not read it, or cannot prepare or count its inputs.

    5.4 wants torchvision for every image processor; up to 5.17 the experts of Aria take turns, by computed numbers.
    """
    try:
        yield
    except Exception as refused:
        if not any(words in f"{type(refused).__name__} {refused}" for words in _LACKS):
            raise
        pytest.skip(f"this release of the library: {str(refused).strip().splitlines()[0]}")


@contextmanager
def implementation_may_lack() -> Iterator[None]:
    """Skips where this release lacks the attention implementation for the model: T5 in 5.4 has the eager one alone."""
    try:
        yield
    except ValueError as refused:
        if "does not support an attention implementation" not in str(refused):
            raise
        pytest.skip("this release of the library has no such combination")


def rotary_product(run: Run) -> int:
    """FLOPs of the rotary angles: some releases of transformers (5.4, 5.17) compute them by a matmul, of no weights."""
    return int(run.ops.loc[run.ops["module"].str.endswith("rotary_emb"), "flops_full"].sum())


def without_rotary(run: Run) -> Run:
    """The same run without what the rotary embedding does, which is the same in every release."""
    return replace(run, ops=run.ops[~run.ops["module"].str.endswith("rotary_emb")])
