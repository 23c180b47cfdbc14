"""Groups of options: a verb takes each as one parameter, the command line as the options that it holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from gpuprof.cli import options as o

_MEASURING = "Measuring"
_SWEPT = "Swept: several values, separated by commas"


@dataclass(kw_only=True)
class Described:
    """What a step is, of a model that is counted without weights."""

    mode: o.ModeOption = o.Mode.train
    batch_size: o.BatchSize = None
    seq_len: o.SeqLen = None
    prompt_len: o.PromptLen = None
    new_tokens: o.NewTokens = None
    image_crops: o.ImageCrops = None
    dtype: o.Dtype = None
    attention: o.AttentionOption = None
    cache: o.CacheOption = None
    checkpointing: o.CheckpointingOption = o.Checkpointing.none
    freeze: o.Freeze = None
    seed: o.Seed = 0
    trust_remote_code: o.TrustRemoteCode = False


@dataclass(kw_only=True)
class Reported(Described):
    """What a report is of: mostly of a forward."""

    mode: o.ModeOption = o.Mode.forward


@dataclass(kw_only=True)
class Counted(Described):
    """What a step is, the optimizer's part with it."""

    optimizer: o.OptimizerOption = o.Optimizer.none


@dataclass(kw_only=True)
class Measured(Counted):
    """What a step is, and where and how it runs."""

    device: o.Device = None
    parallel: o.ParallelOption = o.Parallel.none
    compile: o.CompileOption = o.Compile.none


@dataclass(kw_only=True)
class Sizes:
    """The sizes of a step, another than a run has."""

    batch_size: o.BatchSize = None
    seq_len: o.SeqLen = None
    prompt_len: o.PromptLen = None
    new_tokens: o.NewTokens = None


def _list(help: str) -> Any:
    return typer.Option(metavar="LIST", help=help, rich_help_panel=_SWEPT, show_default=False)


@dataclass(kw_only=True)
class Swept:
    """What a step may be, each of it several."""

    seq_len: Annotated[str | None, _list("Positions per sample.")] = None
    batch_size: Annotated[str | None, _list("Samples per step.")] = None
    prompt_len: Annotated[str | None, _list("Positions of the prompt (generate).")] = None
    new_tokens: Annotated[str | None, _list("Tokens to generate.")] = None
    image_crops: Annotated[str | None, _list("Crops of the image (vision-language models).")] = None
    dtype: Annotated[str | None, _list("bfloat16, float16, float32.")] = None
    attention: Annotated[str | None, _list("eager, sdpa, flash_attention_2, flex_attention.")] = None
    cache: Annotated[str | None, _list("dynamic, static (generate).")] = None
    checkpointing: Annotated[str | None, _list("none, reentrant, non-reentrant.")] = None
    optimizer: Annotated[str | None, _list("none, adamw, sgd.")] = None
    compile: Annotated[str | None, _list("none, default, reduce-overhead, max-autotune.")] = None
    mode: Annotated[str | None, _list("train, forward, generate.")] = None


@dataclass(kw_only=True)
class Shared:
    """What a step is at every point of a sweep."""

    device: o.Device = None
    freeze: o.Freeze = None
    seed: o.Seed = 0
    trust_remote_code: o.TrustRemoteCode = False


@dataclass(kw_only=True)
class Timing:
    """How often a step is run, and what its FLOPs are held against."""

    warmup: Annotated[
        int | None,
        typer.Option(
            help="Steps before the clock counts; by default 5 on CUDA, 1 on a CPU.", rich_help_panel=_MEASURING
        ),
    ] = None
    steps: Annotated[
        int | None, typer.Option(help="Timed steps; by default 20 on CUDA, 3 on a CPU.", rich_help_panel=_MEASURING)
    ] = None
    peak_tflops: o.PeakTflops = None
    convention: o.ConventionOption = o.Convention.causal


@dataclass(kw_only=True)
class Delivery:
    """Where a new run goes, and what is said of it."""

    output: o.OutputFile = None
    quiet: o.Quiet = False
    verbose: o.Verbose = False


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as the command line calls it: in the place of each parameter that is a group, the options of that.

    Args:
        verb: whose parameters may be annotated with a dataclass of annotated options, all of which have defaults.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    by_name = inspect.Parameter.KEYWORD_ONLY
    hints = get_type_hints(verb, include_extras=True)
    for name, parameter in inspect.signature(verb).parameters.items():
        if not is_dataclass(hints[name]):
            parameters.append(parameter.replace(kind=by_name, annotation=hints[name]))
            continue
        groups[name] = hints[name]
        options = inspect.signature(hints[name], eval_str=True).parameters
        parameters += [one.replace(kind=by_name) for one in options.values()]

    def call(**given: Any) -> None:
        filled = {
            name: group(**{field: given.pop(field) for field in group.__dataclass_fields__})
            for name, group in groups.items()
        }
        verb(**filled, **given)

    call.__name__, call.__doc__, call.__module__ = verb.__name__, verb.__doc__, verb.__module__
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call
