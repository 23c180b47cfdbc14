"""Options that verbs share, each said once."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gpuprof import dates, store_url
from gpuprof.errors import GpuprofError, no_run


class Mode(StrEnum):
    """What a step is."""

    train = "train"
    forward = "forward"
    generate = "generate"


class Attention(StrEnum):
    """Attention implementations of transformers."""

    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    flex_attention = "flex_attention"


class Cache(StrEnum):
    """What a generation keeps its keys and values in."""

    dynamic = "dynamic"
    static = "static"


class Checkpointing(StrEnum):
    """Activation checkpointing."""

    none = "none"
    reentrant = "reentrant"
    non_reentrant = "non-reentrant"


class Optimizer(StrEnum):
    """Optimizers of torch."""

    none = "none"
    adamw = "adamw"
    sgd = "sgd"


class Parallel(StrEnum):
    """Torch's ways to shard a model."""

    none = "none"
    ddp = "ddp"
    fsdp = "fsdp"
    tp = "tp"


class Compile(StrEnum):
    """Modes of torch.compile."""

    none = "none"
    default = "default"
    reduce_overhead = "reduce-overhead"
    max_autotune = "max-autotune"
    max_autotune_no_cudagraphs = "max-autotune-no-cudagraphs"


class Format(StrEnum):
    """How to print a table."""

    text = "text"
    markdown = "markdown"
    csv = "csv"
    json = "json"


class CounterLevel(StrEnum):
    """How much the counters pass collects: `gpuprof.passes.options.LEVELS`."""

    minimal = "minimal"
    full = "full"


class Convention(StrEnum):
    """How FLOPs are counted: `gpuprof.theory.CONVENTIONS`."""

    causal = "causal"
    full = "full"
    flash = "flash"
    torch_counter = "torch-counter"
    calflops = "calflops"
    calflops_03 = "calflops-0.3"
    palm = "palm"
    chinchilla = "chinchilla"
    megatron = "megatron"
    megatron_paper = "megatron-paper"
    megatron_hfu = "megatron-hfu"
    torchtitan = "torchtitan"
    mosaic = "mosaic"


_WORKLOAD, _OUTPUT = "Workload", "Output"


def existing(path: Path | None) -> Path | None:
    """A run that is there, if one is given: told before what reads it is loaded."""
    if path is not None and not path.exists():
        raise no_run(path)
    return path


def readable(what: str = "") -> Callable[[Path | None], Path | None]:
    """Check of a file that is no run, and what to call it."""

    def check(path: Path | None) -> Path | None:
        try:
            if path is not None:
                path.stat()  # not open: who writes to a pipe would be gone
        except OSError as error:
            raise GpuprofError(f"cannot read {what}{path}: {error.strerror or error}") from error
        return path

    return check


def storable(create: bool) -> Callable[[str | None], str | None]:
    """Check of the URL of a run store, which is made where there is none or has to be there."""

    def check(url: str | None) -> str | None:
        if url is not None:
            store_url.check(url, create)
        return url

    return check


def _peak(tflops: float | None) -> float | None:
    from gpuprof.hardware.peaks import check_peak

    check_peak(tflops)
    return tflops


def dated(date: str) -> str:
    """Check of a date, where one is given."""
    if date:
        dates.kept(date)
    return date


def share(text: str, option: str, also: str = "") -> float:
    """A share, written ``2%`` or ``0.02``, that an option was given, which takes some other word as well.

    Raises:
        GpuprofError: it is something else, or not between 0 and 1.
    """
    try:
        read = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        read = -1.0
    if not 0 < read < 1:
        other = f", or {also}" if also else ""
        raise GpuprofError(f"{option} {text!r} is no share: give one such as 2% or 0.02{other}")
    return read


RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A run saved with -o, or a training's folder.", show_default=False, callback=existing
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="For people or for machines.")]
TextFile = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here instead of to the terminal.")
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A preset ('gpuprof presets'), a local Hugging Face directory, a Hub id, or file.py:function.",
        show_default=False,
    ),
]
ModeOption = Annotated[Mode, typer.Option("--mode", help="What a step is.", rich_help_panel=_WORKLOAD)]
BatchSize = Annotated[int | None, typer.Option(help="Samples per step.", rich_help_panel=_WORKLOAD)]
SeqLen = Annotated[int | None, typer.Option(help="Positions per sample.", rich_help_panel=_WORKLOAD)]
PromptLen = Annotated[int | None, typer.Option(help="Positions of the prompt (generate).", rich_help_panel=_WORKLOAD)]
NewTokens = Annotated[int | None, typer.Option(help="Tokens to generate.", rich_help_panel=_WORKLOAD)]
ImageCrops = Annotated[
    int | None, typer.Option(help="Crops of the image (vision-language models).", rich_help_panel=_WORKLOAD)
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="bfloat16, float16 or float32; by default bfloat16 on CUDA, float32 on a CPU, a directory's own.",
        rich_help_panel=_WORKLOAD,
    ),
]
AttentionOption = Annotated[
    Attention | None, typer.Option("--attention", help="Attention implementation.", rich_help_panel=_WORKLOAD)
]
CacheOption = Annotated[
    Cache | None,
    typer.Option(
        "--cache",
        help="Cache of a generation: dynamic, as the model makes it (the default), or static, of all positions.",
        rich_help_panel=_WORKLOAD,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cuda, cuda:1 or cpu; by default cuda where there is one.", rich_help_panel=_WORKLOAD),
]
CheckpointingOption = Annotated[
    Checkpointing,
    typer.Option("--checkpointing", help="Activation checkpointing.", rich_help_panel=_WORKLOAD),
]
OptimizerOption = Annotated[
    Optimizer,
    typer.Option("--optimizer", help="Optimizer that steps after each backward.", rich_help_panel=_WORKLOAD),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Modules or parameters to freeze, e.g. 'model.layers.*'; repeatable.",
        rich_help_panel=_WORKLOAD,
    ),
]
ParallelOption = Annotated[
    Parallel,
    typer.Option(
        "--parallel",
        help="Under torchrun: how a named model is sharded over the processes. Under ddp and fsdp each has a batch of "
        "its own.",
        rich_help_panel=_WORKLOAD,
    ),
]
CompileOption = Annotated[
    Compile,
    typer.Option(
        "--compile", help="Compile the model with torch.compile, in this mode of it.", rich_help_panel=_WORKLOAD
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of weights, inputs and every step.", rich_help_panel=_WORKLOAD)]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Let a Hub model run its own code.", rich_help_panel=_WORKLOAD),
]
PeakTflops = Annotated[
    float | None,
    typer.Option(
        help="Peak of the device in TFLOP/s, instead of the table's.",
        show_default=False,
        rich_help_panel=_OUTPUT,
        callback=_peak,
    ),
]
ConventionOption = Annotated[
    Convention,
    typer.Option(
        "--convention",
        help="How FLOPs are counted: attention over unmasked pairs (causal) or the full square, as another tool "
        "counts the operators (flash, torch-counter, calflops, calflops-0.3), or by a formula for the whole step "
        "(the others).",
        rich_help_panel=_OUTPUT,
    ),
]
OutputFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Save the run here (.json or .json.gz).",
        rich_help_panel=_OUTPUT,
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="A run store: sqlite:///FILE or a path, or postgresql+psycopg://USER@HOST/DATABASE.",
        show_default=False,
        rich_help_panel=_OUTPUT,
        callback=storable(create=True),
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no report.", rich_help_panel=_OUTPUT)]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also how each pass went; errors with their traceback.",
        rich_help_panel=_OUTPUT,
    ),
]


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a verb as the Python API takes them: choices by their names, lists as tuples."""
    return {
        name: value.value if isinstance(value, StrEnum) else tuple(value or ()) if name == "freeze" else value
        for name, value in arguments.items()
    }


def names(listed: str) -> list[str]:
    """The names in a list separated by commas."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def check_workload(model: str, arguments: dict[str, Any], *, weightless: bool = False) -> None:
    """Refuse a workload that cannot be built before torch is loaded to build it.

    Args:
        model: MODEL.
        arguments: of a verb, as `plain` gives them.
        weightless: whether it is to be counted without weights.

    Raises:
        GpuprofError: MODEL names nothing, or the options contradict.
    """
    from gpuprof.workload import Options
    from gpuprof.workload.names import check

    options = {name: value for name, value in arguments.items() if name in Options.__dataclass_fields__}
    check(model, Options(**options), weightless=weightless)
