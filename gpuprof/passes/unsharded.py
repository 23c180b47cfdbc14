"""What a step of a named model is before it is sharded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gpuprof.passes.seeding import seed_all
from gpuprof.passes.steady import count_steady
from gpuprof.workload import Options, build

if TYPE_CHECKING:
    import pandas as pd


def count_unsharded(recipe: tuple[str, Options], seed: int = 0) -> pd.DataFrame:
    """Counts the unsharded model on the batch of one process, without weights and in this process alone.

    Args:
        recipe: of a `Workload`.
        seed: of the step.

    Returns:
        The ``ops`` table.

    Raises:
        GpuprofError: the model cannot be counted without weights.
    """
    reference, options = recipe
    workload = build(reference, replace(options, parallel="none", compile="none"), weightless=True)
    counted, _ = count_steady(workload, lambda: seed_all(seed))
    return counted.ops
