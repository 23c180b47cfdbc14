"""A workload of the user's own: `file.py:function` returns a model and its inputs."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.workload.options import SIZES, Options, flag
from gpuprof.workload.weightless import drop_values
from gpuprof.workload.workload import call_arguments

KEYS = ("model", "inputs", "loss", "optimizer", "step")
SHAPES = "a model and its inputs (and a loss function), or a dict with some of: " + ", ".join(KEYS)


@dataclass
class Given:
    """What the user's function gave.

    Attributes:
        model: The module.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.
        loss: Turns the output into a scalar.
        optimizer: Steps after each backward.
        step: A whole step of the user's own.
    """

    model: torch.nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    loss: Callable[[Any], torch.Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None
    step: Callable[[], Any] | None = None


def call(reference: str, options: Options) -> Given:
    """Imports the file, calls the function and sorts what it returns.

    Args:
        reference: `path/to/file.py:function`. The function takes nothing, or the `Options`.
        options: The user's.

    Raises:
        GpuprofError: There is no such file or function, it raised, or it returned something else.
    """
    file, _, name = reference.rpartition(":")
    path = Path(file).expanduser()
    label = f"{path.name}:{name}"
    # The folder is on the path while the function runs too: it may import its neighbours only then.
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        function = getattr(_import(path), name, None)
        if not callable(function):
            raise GpuprofError(f"no function {name!r} in {file}")
        takes_options = _takes_options(function)
        if not takes_options:
            _refuse_options(label, options)
        torch.manual_seed(options.seed)
        try:
            result = function(options) if takes_options else function()
        except Exception as error:
            raise _raised(label, error) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return _sort(label, result)


def place(given: Given, device: torch.device, dtype: torch.dtype | None) -> Given:
    """Moves a model and its tensors to a device, and to a dtype where one is given.

    On `meta` only floating inputs go: models look at the values of integers to decide what to do.

    Raises:
        GpuprofError: The model is sharded already, and neither its buckets nor its shards would move with it.
    """
    _refuse_moving(given.model, device, dtype)
    given.model.to(dtype=dtype)
    if device.type == "meta":
        drop_values(given.model, given.optimizer)
    else:
        given.model.to(device)

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if device.type == "meta" and value.layout is not torch.strided:
                return value  # what is sparse is small, and on `meta` it would not know how much it stores
            if value.is_floating_point():
                return value.to(device=device, dtype=dtype or value.dtype)
            return value if device.type == "meta" else value.to(device)
        if isinstance(value, Mapping):
            # of its own class, which the model may ask for more than items
            moved: Any = copy(value) if isinstance(value, MutableMapping) else {}
            for key, item in value.items():
                moved[key] = move(item)
            return moved
        if type(value) in (list, tuple):
            return type(value)(move(item) for item in value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(move, value))
        if is_dataclass(value) and not isinstance(value, type):
            moved = copy(value)
            for field in fields(value):
                object.__setattr__(moved, field.name, move(getattr(value, field.name)))
            return moved
        return value

    return replace(given, args=move(given.args), kwargs=move(given.kwargs))


def _refuse_moving(model: torch.nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    parameters = list(model.parameters())
    wrapped = any(isinstance(module, torch.nn.parallel.DistributedDataParallel) for module in model.modules())
    if not (wrapped or any(hasattr(parameter, "device_mesh") for parameter in parameters)):
        return
    there = next((one.device.type for one in parameters if one.device.type not in (device.type, "meta")), None)
    if there is not None and device.type != "meta":
        raise GpuprofError(
            f"the model is sharded on {there}, from where it cannot move to {device.type}: put it there before it is "
            f"sharded (torch.cuda.current_device() is the GPU of this process), or give --device {there}"
        )
    if dtype is not None and any(one.is_floating_point() and one.dtype != dtype for one in parameters):
        raise GpuprofError("--dtype cannot reach a model that is sharded already: let the file make it in that dtype")


def _import(path: Path) -> Any:
    """The file as a module under a name of its own, so that it hides no other."""
    name = f"gpuprof_workload_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles of the file look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _raised(path.name, error) from error
    return module


def _raised(label: str, error: Exception) -> GpuprofError:
    """The user's own exception in one line, with the line of the file that it came from."""
    lines = str(error).strip().splitlines()
    if lines and "default process group twice" in lines[0]:
        lines[0] += ": under torchrun gpuprof has made it; call it only where is_initialized() is false"
    return GpuprofError(f"{label} raised {type(error).__name__}: {lines[0] if lines else '(no message)'}")


def _takes_options(function: Callable[..., Any]) -> bool:
    """Whether a function asks for the options: a parameter called so, or one that it cannot do without."""
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(
        parameter.kind in named and (parameter.default is parameter.empty or parameter.name == "options")
        for parameter in parameters
    )


def _refuse_options(label: str, options: Options) -> None:
    """A function that takes nothing decides the sizes itself; an option that changes nothing is a mistake."""
    for name in (*SIZES, "attention", "cache"):
        if getattr(options, name) is not None:
            raise GpuprofError(f"{flag(name)} cannot reach {label}: let the function take one argument, the options")


def _sort(label: str, result: Any) -> Given:
    if isinstance(result, Mapping) and "model" in result:
        if unknown := set(result) - set(KEYS):
            raise GpuprofError(f"{label} returned unknown keys {sorted(unknown)}; it may return {SHAPES}")
        given = dict(result)
    elif isinstance(result, Sequence) and 2 <= len(result) <= 3:
        given = dict(zip(("model", "inputs", "loss"), result, strict=False))
    else:
        raise GpuprofError(f"{label} returned {type(result).__name__}; it must return {SHAPES}")
    if not isinstance(given["model"], torch.nn.Module):
        raise GpuprofError(f"{label}: the model is a {type(given['model']).__name__}, no torch.nn.Module")
    for key in ("loss", "step"):
        if given.get(key) is not None and not callable(given[key]):
            raise GpuprofError(f"{label}: the {key} is a {type(given[key]).__name__}, no function")

    args, kwargs = call_arguments(given["model"], given.pop("inputs", None))
    return Given(**given, args=args, kwargs=kwargs)
