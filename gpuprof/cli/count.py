"""``gpuprof count``: theory alone, without weights and without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuprof.cli import options as o
from gpuprof.cli.groups import Counted, Delivery, grouped
from gpuprof.cli.like import Like
from gpuprof.cli.output import deliver
from gpuprof.parallel.launch import require_one_process

if TYPE_CHECKING:
    from gpuprof.run import Run


@grouped
def count(
    model: o.ModelArgument,
    workload: Counted,
    *,
    like: Like = None,
    convention: o.ConventionOption = o.Convention.causal,
    delivery: Delivery,
) -> None:
    """Count a model's FLOPs, forward and backward, per module, without weights and without running it."""
    require_one_process("count", "under torchrun 'profile --passes count' counts what each rank does")
    asked = o.plain(vars(workload))
    o.check_workload(model, asked, weightless=True)

    def make() -> Run:
        from gpuprof.profiler import count

        return count(model, **asked, convention=convention.value)

    deliver(make, delivery.output, delivery.quiet, delivery.verbose)
