"""The figures of all processes of a job, gathered on the control channel: no process group has to do with it."""

from __future__ import annotations

import torch

from gpuprof.errors import GpuprofError
from gpuprof.job_facts import ranks_per_batch
from gpuprof.meter.readings import Totals, figures
from gpuprof.parallel.join import join
from gpuprof.parallel.layout import layout


def of_all(model: torch.nn.Module, mine: Totals | None) -> dict[str, float]:
    """Figures of all processes together; none where one of them has none. Each of a job has to call this.

    Args:
        model: tells how many of them share a batch.
        mine: what this process came to.

    Raises:
        GpuprofError: a process did not come, or is somewhere else.
    """
    control = join()
    said = control.agree("reading the meter", mine)
    if control.lost:
        raise GpuprofError(control.who_is_gone())
    processes = [Totals(*one) for one in said if one is not None]
    if len(processes) < len(said):
        return {}
    lies = layout(model)
    return figures(processes, ranks_per_batch(lies) if lies.get("parallel") else 1)
