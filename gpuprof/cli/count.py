"""``gpuprof count``: theory alone, without weights and without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuprof.cli import options as o
from gpuprof.cli.output import deliver
from gpuprof.parallel.launch import require_one_process

if TYPE_CHECKING:
    from gpuprof.record import Run


def count(
    model: o.ModelArgument,
    mode: o.ModeOption = o.Mode.train,
    batch_size: o.BatchSize = None,
    seq_len: o.SeqLen = None,
    prompt_len: o.PromptLen = None,
    new_tokens: o.NewTokens = None,
    image_crops: o.ImageCrops = None,
    dtype: o.Dtype = None,
    attention: o.AttentionOption = None,
    cache: o.CacheOption = None,
    checkpointing: o.CheckpointingOption = o.Checkpointing.none,
    optimizer: o.OptimizerOption = o.Optimizer.none,
    freeze: o.Freeze = None,
    seed: o.Seed = 0,
    trust_remote_code: o.TrustRemoteCode = False,
    convention: o.ConventionOption = o.Convention.causal,
    output: o.OutputFile = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Count a model's FLOPs, forward and backward, per module, without weights and without running it."""
    require_one_process("count", "under torchrun 'profile --passes count' counts what each rank does")
    chosen = o.plain(locals())
    o.check_workload(model, chosen, weightless=True)
    for name in ("output", "quiet", "verbose"):
        del chosen[name]

    def make() -> Run:
        from gpuprof.profiler import count

        return count(**chosen)

    deliver(make, output, quiet, verbose)
