"""The workload: a model, and the step that the passes repeat."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.paths import unsharded
from gpuprof.theory.nested import packed_shape
from gpuprof.workload.nested import part_shapes
from gpuprof.workload.options import CHOICES, Options, dtype_name
from gpuprof.workload.steps import GIVEN_LOSS, MEAN_LOSS, OWN_LOSS, forward_step, tensors, train_step


@dataclass
class Workload:
    """A model and a step to measure.

    Attributes:
        model: The module whose submodules the figures are for.
        step: Runs one whole step: forward and, in train mode, loss, backward and the optimizer if there is
            one. Returns the loss in train mode, else the output.
        description: What this workload is, in JSON's types: `name`, `source` (`preset`, `directory`, `hub`,
            `file` or `module`), `own` (what a `file` gave of `loss`, `optimizer` and `step`), `architecture`,
            `mode`, every option as resolved, `loss`, `weights` (`random`, `loaded` or `none`), `inputs` (a list
            of `name`, `shape`, `dtype`), `tokens_per_step` (positions of text that one step processes, encoder
            and decoder together; None where there is no text), `samples_per_step` (None where no inputs are
            given; of a given step both are what it is counted to take, None until then), `notes` and `facts` (the
            architecture as closed formulas ask for it, see `gpuprof.theory.Architecture`; None where it is not known).
        device: Where the step runs; `meta` for a workload without weights.
        optimizer: What the step updates the parameters with.
        owned: The model was made for this run, so nobody minds what becomes of it.
        called: Modules of the model that a given step calls itself, none below another; None until a step was observed.
        recipe: Reference and `Options` that `gpuprof.workload.build` made it from; None of a module that was given.
    """

    model: torch.nn.Module
    step: Callable[[], Any]
    description: dict[str, Any]
    device: torch.device
    optimizer: torch.optim.Optimizer | None = None
    owned: bool = False
    called: set[torch.nn.Module] | None = None
    recipe: tuple[str, Options] | None = None


def from_module(
    model: torch.nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    loss: Callable[[Any], torch.Tensor] | None = None,
    mode: str = "train",
    optimizer: torch.optim.Optimizer | None = None,
    step: Callable[[], Any] | None = None,
    name: str | None = None,
) -> Workload:
    """Makes a workload of any module: it stays where it is, and its training flags as they are.

    Args:
        model: The module.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.
        loss: Turns the output into a scalar; else `output.loss`, else the mean of the output's first floating
            tensor.
        mode: `train` or `forward`; with `step` only a word in the description.
        optimizer: Steps after each backward. Its learning rate is the user's: the parameters will change.
        step: A step of the user's own, used as it is.
        name: What to call it; the class's name unless given.

    Raises:
        GpuprofError: The mode is unknown, needs a `step`, or contradicts the other arguments.
    """
    if mode not in CHOICES["mode"]:
        raise GpuprofError(f"mode {mode!r} is not one of: {', '.join(map(str, CHOICES['mode']))}")
    if mode == "generate" and step is None:
        raise GpuprofError("mode 'generate' of a module needs a step function that generates")
    if mode != "train" and (optimizer is not None or loss is not None):
        raise GpuprofError(f"an optimizer or a loss is for mode 'train', not mode {mode!r}")
    if not isinstance(args, Sequence) or isinstance(args, (str, torch.Tensor)):
        raise GpuprofError("args must be a tuple of the positional arguments, such as (tensor,)")
    kwargs = dict(kwargs or {})

    parameter = next(model.parameters(), None)
    device = _device(model, [*args, *kwargs.values()])
    description: dict[str, Any] = {
        "name": name or _class_name(model),
        "source": "module",
        "architecture": _class_name(model),
        "mode": mode,
        "dtype": None if parameter is None else dtype_name(parameter.dtype),
        "device": str(device),
        "optimizer": "none" if optimizer is None else type(optimizer).__name__.lower(),
        "loss": _expected_loss(kwargs, given=loss is not None or step is not None) if mode == "train" else None,
        "weights": "given",
        **describe_inputs(args, kwargs),
        "notes": [],
    }
    if step is not None:  # it may call the model with them many times or not at all, as the counting pass will see
        description |= dict.fromkeys(("tokens_per_step", "samples_per_step"))
    description["facts"] = _facts(model, description) if step is None else None
    if step is not None:
        description["step"] = "given"
    elif mode == "train":
        step = train_step(model, args, kwargs, description, loss=loss, optimizer=optimizer)
    else:
        step = forward_step(model, args, kwargs)
    return Workload(model, step, description, device, optimizer)


def check_parts(model: Any, loss: Any, optimizer: Any, step: Any) -> None:
    """Refuse a model or parts of its step that are no such things, each with what to give instead.

    Raises:
        GpuprofError: One of them is not.
    """
    if not isinstance(model, torch.nn.Module):
        remedy = "give the torch.nn.Module that holds the parameters"
        if isinstance(model, type):
            remedy = f"give a module, such as {model.__name__}(...)"
        elif callable(model):
            remedy += ", and the function as step=: gpuprof.profile(model, step=function)"
        raise GpuprofError(f"the model is {_what(model)}, no module: {remedy}")
    for name, given, takes in (("loss", loss, "the model's output"), ("step", step, "nothing")):
        if given is not None and (not callable(given) or isinstance(given, type)):
            raise GpuprofError(f"the {name} is {_what(given)}, no function: give one that takes {takes}")
    if optimizer is not None and (isinstance(optimizer, type) or not hasattr(optimizer, "zero_grad")):
        raise GpuprofError(
            f"the optimizer is {_what(optimizer)}, no optimizer: make one of the model's parameters, such as "
            "torch.optim.AdamW(model.parameters())"
        )
    if step is not None and loss is not None:
        raise GpuprofError("a step of one's own computes its own loss: leave the other loss out")


def _what(given: Any) -> str:
    if isinstance(given, str):
        return f"the text {given!r}"
    return f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"


def _class_name(model: torch.nn.Module) -> str:
    """The class that the user wrote, whatever shards or compiles it."""
    while (inner := _wrapped(model)) is not None:
        model = inner
    return unsharded(type(model).__name__)


def _wrapped(model: torch.nn.Module) -> torch.nn.Module | None:
    """The module that DDP, or torch.compile where it gives a new one, is put around; None of any other."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return model.module
    return model._orig_mod if isinstance(model, torch._dynamo.eval_frame.OptimizedModule) else None


def call_arguments(
    model: torch.nn.Module, inputs: Any, kwargs: Mapping[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model's call.

    Args:
        model: Whose forward says what a mapping is: its keyword arguments if it takes them, else its one argument.
        inputs: None, a tensor, a tuple or list of positional arguments, or a mapping.
        kwargs: Keyword arguments beside them.

    Raises:
        GpuprofError: The forward takes a mapping neither way, or the keyword arguments are no mapping.
    """
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise GpuprofError(f"kwargs must be a mapping of keyword arguments, not {_what(kwargs)}")
    keywords = dict(kwargs or {})
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):  # its own forward takes anything
        model = model._orig_mod
    if inputs is None:
        return (), keywords
    if isinstance(inputs, Mapping):  # ModelOutput and BatchEncoding are mappings too
        if _takes(model, (), {**inputs, **keywords}):
            return (), {**inputs, **keywords}
        if _takes(model, (inputs,), keywords) and not _misspelt(model, inputs):
            return (inputs,), keywords
        raise GpuprofError(
            f"{type(model).__name__} takes the inputs ({', '.join(map(str, inputs))}) neither as keywords nor as one "
            f"mapping: its forward is {inspect.signature(model.forward)}"
        )
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), keywords
    return (inputs,), keywords


def _takes(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[Any, Any]) -> bool:
    """Whether the signature of a model's forward allows a call."""
    if not all(isinstance(key, str) for key in kwargs):
        return False
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # code that is not Python's has no signature
        return True
    return True


def check_call(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse inputs that a model's forward does not take, unless a hook may change them.

    Raises:
        GpuprofError: There are too few, too many, or others than it takes.
    """
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        model = model._orig_mod
    if model._forward_pre_hooks:
        return
    try:
        signature = inspect.signature(model.forward)
    except ValueError:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = [_shown(value) for value in args] + [f"{name}={_shown(value)}" for name, value in kwargs.items()]
        raise GpuprofError(
            f"{type(model).__name__} cannot be called with {', '.join(given) or 'no inputs'}: {error}; its forward "
            f"takes ({', '.join(signature.parameters)})"
        ) from error


def _shown(value: Any) -> str:
    """An input in a word or two."""
    return (
        f"a tensor of {list(value.shape)}" if isinstance(value, torch.Tensor) and not value.is_nested else _what(value)
    )


def _misspelt(model: torch.nn.Module, inputs: Mapping[Any, Any]) -> bool:
    """Whether a mapping that is no call's keywords holds some of them: then it is no one argument either."""
    try:
        names = [*inspect.signature(model.forward).parameters]
    except ValueError:
        return False
    return len(names) > 1 and any(name in inputs for name in names)


def _device(model: torch.nn.Module, inputs: Sequence[Any]) -> torch.device:
    """Where a model works: where accelerate brings its parameters to, else where they are, else where the inputs are.

    With one of these on `meta` it works there: nothing comes of it but shapes.
    """
    hooks = [hook for module in model.modules() if (hook := getattr(module, "_hf_hook", None)) is not None]
    hooks = [each for hook in hooks for each in getattr(hook, "hooks", [hook])]
    known = [torch.device(given) for hook in hooks if (given := getattr(hook, "execution_device", None)) is not None]
    if known:
        return next((device for device in known if device.type not in ("cpu", "meta")), known[0])
    known = [tensor.device for tensor in (*model.parameters(), *tensors(inputs), *model.buffers())]
    return next((device for device in known if device.type == "meta"), (*known, torch.device("cpu"))[0])


def _facts(model: torch.nn.Module, description: dict[str, Any]) -> dict[str, Any] | None:
    """What closed formulas ask of a Hugging Face model; of another None, and transformers is not loaded for that."""
    config = type(getattr(model, "config", None))
    if not any(base.__module__.startswith("transformers.") for base in config.__mro__):
        return None
    from gpuprof.workload.facts import architecture_facts

    return architecture_facts(model, description)


def describe_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What the inputs say of a step: `inputs`, `tokens_per_step` and `samples_per_step`.

    The samples are the first dimension of the first tensor, None where no tensor is given; the tokens are known where
    a tensor is called `input_ids`. A nested tensor has the shape of its sequences one after the other, and beside it
    `parts`, the shape of each.
    """
    named = list(_named(dict(enumerate(args)), "")) + list(_named(kwargs, ""))
    ids = [tensor for name, tensor in named if name.rpartition(".")[2] == "input_ids"]
    return {
        "inputs": [{"name": name, **_shape(tensor), "dtype": dtype_name(tensor.dtype)} for name, tensor in named],
        "tokens_per_step": ids[0].numel() if ids else None,
        "samples_per_step": (named[0][1].size(0) if named[0][1].dim() else 1) if named else None,
    }


def _shape(tensor: torch.Tensor) -> dict[str, Any]:
    if not tensor.is_nested:
        return {"shape": list(tensor.shape)}
    parts = part_shapes(tensor)
    return {"shape": list(packed_shape(parts)), "parts": list(map(list, parts))}


def _named(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of nested arguments under its dotted path; positional ones under their index."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        yield from _named(dict(enumerate(value)), path)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _named({field.name: getattr(value, field.name) for field in fields(value)}, path)


def _expected_loss(kwargs: Mapping[str, Any], *, given: bool) -> str:
    """The kind of loss to expect; the first step replaces it with what it found."""
    if given:
        return GIVEN_LOSS
    return OWN_LOSS if kwargs.get("labels") is not None else MEAN_LOSS
