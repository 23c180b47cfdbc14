"""The workload that MODEL of the command line becomes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpuprof.errors import GpuprofError, first_line
from gpuprof.workload import parallel, steps, training, userfile
from gpuprof.workload.names import check
from gpuprof.workload.options import Options, dtype_name, flag, resolve_device, resolve_dtype
from gpuprof.workload.workload import Workload, describe_inputs, from_module

if TYPE_CHECKING:
    from gpuprof.workload.maker import Inputs


def build(reference: str, options: Options, *, weightless: bool = False) -> Workload:
    """Builds the model that a reference names, with inputs and a step.

    Sets torch's global seed to `options.seed`, so two builds are the same.

    Args:
        reference: A preset's name, a local Hugging Face directory, a Hub id, or `file.py:function`.
        options: What the user asks of it.
        weightless: Build for counting: the model and its floating inputs are on the `meta` device and have no
            values, integer inputs are real. The step then needs a mode that lets the two mix.

    Raises:
        GpuprofError: The reference names nothing, or the options do not fit it.
    """
    kind = check(reference, options, weightless=weightless)
    if kind == "file":
        return _from_file(reference, options, weightless=weightless)
    device = torch.device("meta") if weightless else resolve_device(options.device)
    _require_transformers()
    from gpuprof.workload import huggingface  # which a file may do without
    from gpuprof.workload.facts import architecture_facts
    from gpuprof.workload.inputs import make_inputs

    load: Callable[..., huggingface.Loaded] = (
        huggingface.from_preset if kind == "preset" else huggingface.from_pretrained
    )
    number = parallel.batch_number(options)
    loaded = load(reference, options, device, parallel.construction_device(options, device))
    bare = loaded.model
    try:
        inputs = make_inputs(
            bare,
            options,
            defaults=loaded.defaults,
            tokenizer=loaded.tokenizer,
            device=device,
            weightless=weightless,
            number=number,
        )
    except (RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GpuprofError(f"the inputs cannot be made ({reason}): lower --batch-size or --seq-len") from error
    training.prepare(bare, options)
    description: dict[str, Any] = {
        "name": loaded.name,
        "source": loaded.source,
        "architecture": type(bare).__name__,
        **_described(options),
        **inputs.sizes,
        "dtype": dtype_name(bare.dtype),
        "attention": bare.config._attn_implementation,
        "cache": (options.cache or "dynamic") if options.mode == "generate" else None,
        "device": str(device),
        "weights": loaded.weights,
        **describe_inputs((), inputs.kwargs),
        "tokens_per_step": inputs.tokens_per_step,
        "samples_per_step": inputs.sizes["batch_size"],
        "notes": [*loaded.notes, *parallel.notes(options, inputs.sizes["batch_size"])],
    }
    # formulas count a whole step, of which a process does its part under tensor parallelism
    description["facts"] = None if options.parallel == "tp" else architecture_facts(bare, description)
    alone = _make_step(bare, inputs, options, description, None, weightless=weightless)
    model = parallel.shard(bare, options, device, alone)
    training.compile_in_place(model, options)
    optimizer = training.make_optimizer(model, options.optimizer)
    step = _make_step(model, inputs, options, description, optimizer, weightless=weightless)
    return Workload(model, step, description, device, optimizer, owned=True, recipe=(reference, options))


def _described(options: Options) -> dict[str, Any]:
    """Options as a description has them; how a model is sharded and compiled is told by its modules."""
    described = asdict(options) | {"freeze": list(options.freeze)}
    del described["parallel"], described["compile"]
    return described


def _require_transformers() -> None:
    """Loads transformers.

    Raises:
        GpuprofError: It cannot be imported.
    """
    try:
        import transformers  # noqa: F401
    except Exception as error:  # a broken installation raises what it wants
        raise GpuprofError(
            f"a model by name needs transformers, which cannot be imported ({first_line(error)}): reinstall it, or "
            "give a model of your own as file.py:function"
        ) from error


def _make_step(
    model: Any,
    inputs: Inputs,
    options: Options,
    description: dict[str, Any],
    optimizer: torch.optim.Optimizer | None,
    *,
    weightless: bool,
) -> Callable[[], Any]:
    """The step of the mode; also writes down the loss that train mode will use."""
    description["loss"] = None
    kwargs = inputs.kwargs
    if options.mode == "train":
        labelled = {"labels", "start_positions", "return_loss"} & set(kwargs)
        description["loss"] = steps.OWN_LOSS if labelled else steps.MEAN_LOSS
        return steps.train_step(model, (), kwargs, description, optimizer=optimizer)
    if options.mode == "forward":
        return steps.forward_step(model, (), kwargs)
    new_tokens = inputs.sizes["new_tokens"]
    assert new_tokens is not None
    # Any token will do where logits have no values; it takes part in no arithmetic but the embedding.
    token = 1 if weightless else None
    static = options.cache == "static"
    if "decoder_input_ids" in kwargs:
        return steps.generate_seq2seq_step(model, kwargs, new_tokens, token=token, static=static)
    # A prompt needs the logits of its last position only, and no generation computes the others.
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    call_options = {"logits_to_keep": 1} if keeps else {}
    return steps.generate_step(model, kwargs, new_tokens, call_options=call_options, token=token, static=static)


_UNASKED: dict[str, Any] = {
    "dtype": None, "checkpointing": "none", "optimizer": "none", "freeze": (), "compile": "none",
}  # fmt: skip
"""What gpuprof itself does to a model of a file, and how it is not asked for."""


def _from_file(reference: str, options: Options, *, weightless: bool) -> Workload:
    """The workload that a user's function describes."""
    device = torch.device("meta") if weightless else resolve_device(options.device)
    given = userfile.call(reference, options, device)
    # what the function was given by name it follows itself
    options, asked = replace(options, **{name: _UNASKED[name] for name in given.named & _UNASKED.keys()}), options
    own = [name for name in ("loss", "optimizer", "step") if getattr(given, name) is not None]
    if given.step is None and options.mode == "generate":
        raise GpuprofError(f"{reference} gives no step: --mode generate needs one that generates, as the key 'step'")
    if given.step is not None and (weightless or options.optimizer != "none"):
        why = "count without weights" if weightless else f"add --optimizer {options.optimizer} to"
        raise GpuprofError(f"{reference} gives a step of its own, which gpuprof cannot {why}")
    if given.step is not None and options.compile != "none":
        raise GpuprofError(f"{reference} gives a step of its own: let it compile that, and leave --compile out")
    for name in ("dtype", "checkpointing", "freeze") if given.step is not None else ():
        if getattr(options, name) != _UNASKED[name]:
            raise GpuprofError(
                f"{reference} gives a step of its own, which {flag(name)} cannot reach: let the function take a "
                f"parameter {name}"
            )
    if given.optimizer is not None and options.optimizer != "none":
        raise GpuprofError(f"{reference} gives an optimizer of its own; leave --optimizer {options.optimizer} out")

    if given.step is None:
        given = userfile.place(given, device, resolve_dtype(options.dtype))
        training.prepare(given.model, options)
        if options.mode == "train":
            given.optimizer = given.optimizer or training.make_optimizer(given.model, options.optimizer)
        else:
            given.optimizer = given.loss = None
        training.compile_in_place(given.model, options)
    workload = from_module(
        given.model,
        given.args,
        given.kwargs,
        loss=given.loss,
        mode=options.mode,
        optimizer=given.optimizer,
        step=given.step,
    )
    path, _, function = reference.rpartition(":")
    known = {key: value for key, value in workload.description.items() if value is not None}
    workload.description = _described(asked) | given.sizes | {"loss": None, "tokens_per_step": None} | known
    workload.description |= {
        "name": f"{Path(path).name}:{function}",
        "source": "file",
        "own": own,
        "weights": "none" if weightless else "given",
    }
    workload.owned = True
    workload.recipe = (reference, asked)
    return workload
