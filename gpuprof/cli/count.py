"""``gpuprof count``: theory alone, without weights and without a GPU."""

from __future__ import annotations

from gpuprof.cli import options as o
from gpuprof.cli.report import deliver


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
    from gpuprof.profiler import count as run_count

    made = run_count
    deliver(
        lambda: made(
            model,
            mode=mode.value,
            batch_size=batch_size,
            seq_len=seq_len,
            prompt_len=prompt_len,
            new_tokens=new_tokens,
            image_crops=image_crops,
            dtype=dtype,
            attention=attention.value if attention else None,
            checkpointing=checkpointing.value,
            optimizer=optimizer.value,
            freeze=tuple(freeze or ()),
            seed=seed,
            trust_remote_code=trust_remote_code,
            convention=convention.value,
        ),
        output,
        quiet,
        verbose,
    )
