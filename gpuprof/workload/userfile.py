"""A workload of the user's own: `file.py:function` returns a model and its inputs."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpuprof.errors import GpuprofError, place_of
from gpuprof.process import let_others_in
from gpuprof.workload.options import SIZES, Options, flag, preferred_dtype, resolve_dtype
from gpuprof.workload.weightless import drop_values
from gpuprof.workload.workload import call_arguments, check_call, check_parts

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
        named: Options that the function was given by name, which are its own to follow.
        sizes: Options that it decided itself: what its parameters are where the user said nothing.
    """

    model: torch.nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    loss: Callable[[Any], torch.Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None
    step: Callable[[], Any] | None = None
    named: frozenset[str] = frozenset()
    sizes: dict[str, Any] = field(default_factory=dict)


def call(reference: str, options: Options, device: torch.device) -> Given:
    """Imports the file, calls the function with what its parameters name and sorts what it returns.

    Args:
        reference: `path/to/file.py:function`.
        options: The user's.
        device: The one that the step runs on, `meta` without weights: the function then makes them on the CPU.

    Raises:
        GpuprofError: There is no such file or function, it takes something else, it raised, or it returned something
            else.
    """
    file, _, name = reference.rpartition(":")
    path = Path(file).expanduser()
    label = f"{path.name}:{name}"
    let_others_in()
    # The folder is on the path while the function runs too: it may import its neighbours only then.
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        function = getattr(_import(path), name, None)
        if not callable(function):
            raise GpuprofError(f"no function {name!r} in {file}")
        signature = _signature(function)
        named = _arguments(label, signature, options, device)
        _refuse_options(label, options, named)
        bound = inspect.BoundArguments(signature, OrderedDict(named))
        bound.apply_defaults()
        torch.manual_seed(options.seed)
        try:
            result = function(*bound.args, **bound.kwargs)
        except (Exception, SystemExit) as error:
            raise _raised(label, error) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    given = _sort(label, result)
    return replace(given, named=frozenset(named), sizes=_own_sizes(signature, named, options))


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
                return _moved(value, device, dtype or value.dtype)
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
            for each in fields(value):
                object.__setattr__(moved, each.name, move(getattr(value, each.name)))
            return moved
        return value

    return replace(given, args=move(given.args), kwargs=move(given.kwargs))


def _moved(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A tensor somewhere else, which has its gradient there if it has one: handing that back is no work of a step."""
    moved = tensor.to(device=device, dtype=dtype)
    if moved is tensor or not (tensor.is_leaf and tensor.requires_grad):
        return moved
    return moved.detach().requires_grad_()


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
    except (Exception, SystemExit) as error:  # a script that reads its arguments ends itself
        raise _raised(path.name, error) from error
    return module


def _raised(label: str, error: BaseException) -> GpuprofError:
    """The user's own exception in one line, with the line of the file that it came from."""
    lines = str(error).strip().splitlines()
    if lines and "default process group twice" in lines[0]:
        lines[0] += ": under torchrun gpuprof has made it; call it only where is_initialized() is false"
    said = lines[0] if lines else "(no message)"
    return GpuprofError(f"{label} raised {type(error).__name__}: {said}{place_of(error)}")


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # code that is not Python's has none
        return inspect.Signature()


def _arguments(label: str, signature: inspect.Signature, options: Options, device: torch.device) -> dict[str, Any]:
    """What a function gets: the fields of the options that its parameters name, and all as `options`.

    What the user did not give is left to the parameter's default. Without one the device is the one that the step runs
    on and the dtype that of a preset there; nothing else can be known.

    Raises:
        GpuprofError: A parameter without a default is no option, or was not given.
    """
    found: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        needed = parameter.default is parameter.empty
        if name == "options":
            found[name] = options
        elif name not in _FIELDS:
            if needed:
                raise GpuprofError(
                    f"{label} takes {name!r}, which gpuprof does not know: give it a default; known are "
                    f"{', '.join(_FIELDS)}, and options for all of them"
                )
        elif name == "device" and (needed or options.device is not None):
            found[name] = torch.device("cpu") if device.type == "meta" else device
        elif name == "dtype" and (needed or options.dtype is not None):
            found[name] = resolve_dtype(options.dtype) or preferred_dtype(device)
        elif (value := getattr(options, name)) is not None:
            found[name] = value
        elif needed:
            raise GpuprofError(f"{label} takes {name!r}: give {flag(name)}, or the parameter a default")
    return found


_FIELDS = tuple(each.name for each in fields(Options))


def _refuse_options(label: str, options: Options, named: Mapping[str, Any]) -> None:
    """A function that does not take a size decides it itself; an option that changes nothing is a mistake."""
    for name in () if "options" in named else (*SIZES, "attention", "cache"):
        if getattr(options, name) is not None and name not in named:
            raise GpuprofError(f"{flag(name)} cannot reach {label}: let the function take a parameter {name}")


def _own_sizes(signature: inspect.Signature, named: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The defaults that stood for options, as far as the mode has such."""
    found = {}
    for name in (*SIZES, "attention", "cache"):
        default = signature.parameters[name].default if name in signature.parameters else None
        if name not in named and default is not None:
            with suppress(GpuprofError):
                replace(options, **{name: default})
                found[name] = default
    return found


def _sort(label: str, result: Any) -> Given:
    if isinstance(result, Mapping) and "model" in result:
        if unknown := set(result) - set(KEYS):
            raise GpuprofError(f"{label} returned unknown keys {sorted(unknown)}; it may return {SHAPES}")
        given = dict(result)
    elif isinstance(result, Sequence) and 2 <= len(result) <= 3:
        given = dict(zip(("model", "inputs", "loss"), result, strict=False))
    else:
        what = type(result).__name__
        if isinstance(result, (Mapping, Sequence)) and not isinstance(result, str):
            what += f" of {', '.join(map(str, result))}" if isinstance(result, Mapping) else f" of {len(result)}"
        raise GpuprofError(f"{label} returned {what}; it must return {SHAPES}")
    if not isinstance(given["model"], torch.nn.Module):
        raise GpuprofError(f"{label}: the model is a {type(given['model']).__name__}, no torch.nn.Module")
    inputs = given.pop("inputs", None)
    try:
        check_parts(**{"loss": None, "optimizer": None, "step": None} | given)
        args, kwargs = call_arguments(given["model"], inputs)
        if given.get("step") is None:
            check_call(given["model"], args, kwargs)
    except GpuprofError as error:
        raise GpuprofError(f"{label}: {error}") from error
    return Given(**given, args=args, kwargs=kwargs)
