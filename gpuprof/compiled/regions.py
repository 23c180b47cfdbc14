"""What of a workload torch.compile has taken over, and how it was told to."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch._dynamo.eval_frame import OptimizedModule, innermost_backend

from gpuprof.attribution import inside_compiled, named_paths
from gpuprof.schema import WHOLE_STEP
from gpuprof.workload import Workload


def regions(workload: Workload) -> dict[str, str]:
    """How each region is compiled, ``inductor, mode default``, by the path of its module, or `WHOLE_STEP`.

    Functions that a step calls and that are no modules, such as that of an optimizer, nobody knows beforehand.
    """
    model = workload.model
    hidden = inside_compiled(model)
    found = {WHOLE_STEP: _how(workload.step)} if _is_compiled(workload.step) else {}
    for path, module in named_paths(model):
        if module in hidden:
            continue
        if isinstance(module, OptimizedModule):
            found[path] = _how(module)
        elif module._compiled_call_impl is not None:
            found[path] = _how(module._compiled_call_impl)
    return found


def _is_compiled(function: Any) -> bool:
    return hasattr(function, "get_compiler_config")


def _how(compiled: Any) -> str:
    """In words what was asked of torch.compile, as far as that is known."""
    if not _is_compiled(compiled):
        return "compiled"
    context = inspect.getclosurevars(compiled.get_compiler_config).nonlocals["self"]
    backend: Any = innermost_backend(context.callback)
    words = [getattr(backend, "compiler_name", None) or getattr(backend, "__name__", type(backend).__name__)]
    settings = getattr(backend, "config", None)
    if words == ["inductor"] and isinstance(settings, dict):
        words += _mode(settings)
    elif given := getattr(backend, "kwargs", None):
        words += [f"{name} {value}" for name, value in given.items()]
    if context._dynamic is not None:
        words.append("dynamic shapes" if context._dynamic else "static shapes")
    if context.fullgraph:
        words.append("fullgraph")
    return ", ".join(map(str, words))


def _mode(settings: dict[str, Any]) -> list[str]:
    """The mode of Inductor's that asks for the most of these settings and for no other, and what is left."""
    modes: dict[str, dict[str, Any]] = torch._inductor.list_mode_options()
    fitting = [name for name, asked in modes.items() if asked.items() <= settings.items()]
    mode = max(fitting, key=lambda name: len(modes[name]))
    left = [f"{name}={value}" for name, value in settings.items() if name not in modes[mode]]
    return [f"mode {mode}", *left]
