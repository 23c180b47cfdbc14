"""Shapes of what a step of a user's own gives its model: a step that draws batches of other lengths is not one step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpuprof.attribution import inside_compiled
from gpuprof.workload import Workload
from gpuprof.workload.steps import tensors

_LONGEST = 200  # characters of a step's shapes that are kept as they are


@contextmanager
def observed_inputs(workload: Workload) -> Iterator[Callable[[], str]]:
    """Note the inputs of the model, or of its direct children where a step calls these one by one.

    One Python call for each of the model's, on the host, with nothing read from the device. gpuprof's own steps give
    the same tensors every time, so there is nothing to note of them.

    Yields:
        What gives the shapes of the step since it was last asked, in words: ``4x128 4x128 (2 calls), 4x1``. Empty where
        no call was seen.
    """
    seen: dict[str, int] = {}
    with _noted(workload.model if workload.description.get("step") == "given" else None, seen):

        def shapes() -> str:
            text = ", ".join(f"{one} ({calls} calls)" if calls > 1 else one for one, calls in seen.items())
            seen.clear()
            if len(text) > _LONGEST:
                text = f"{text[:_LONGEST]}... [{hashlib.sha256(text.encode()).hexdigest()[:8]}]"
            return text

        yield shapes


@contextmanager
def _noted(model: torch.nn.Module | None, seen: dict[str, int]) -> Iterator[None]:
    """Count the calls of a model by the shapes of their tensors."""
    if model is None:
        yield
        return
    undo: dict[torch.nn.Module, Callable[[], None]] = {}

    def note(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():  # the step is compiled as a whole: not a part of it
            return
        if module is model and len(undo) > 1:  # then its children tell nothing new
            for child in [child for child in undo if child is not model]:
                undo.pop(child)()
        text = " ".join(map(_shape, tensors([args, kwargs])))
        seen[text] = seen.get(text, 0) + 1

    def instead(module: torch.nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            note(module, args, kwargs)
            return compiled(*args, **kwargs)

        return call

    hidden = inside_compiled(model)
    try:
        for module in (model,) if model in hidden else (model, *model.children()):
            compiled = module._compiled_call_impl
            if compiled is not None:  # a hook would be compiled too: around it
                module._compiled_call_impl = instead(module, compiled)
                undo[module] = lambda module=module, compiled=compiled: setattr(  # type: ignore[misc]
                    module, "_compiled_call_impl", compiled
                )
            elif module not in hidden:
                undo[module] = module.register_forward_pre_hook(note, with_kwargs=True).remove
        yield
    finally:
        for put_back in undo.values():
            put_back()


def _shape(tensor: torch.Tensor) -> str:
    if tensor.is_nested:  # its lengths are a name of their own each time
        return f"{tensor.numel()} nested"
    return "x".join(map(str, tensor.shape)) or "scalar"
