"""Calls of modules, seen without a hook on any of them.

A hook changes what a module does: torch's transformer layers are fused only where none of their modules has one. So
what runs around a call is put where ``torch.nn.Module.__call__`` looks for what it calls, in the classes of the modules
in question. It is around the hooks of the user's own too, which are part of the call, and works for scripted modules,
which take no hooks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._dynamo.eval_frame import skip_code

from gpuprof.undo import patched, undoing

Around = Callable[[torch.nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Given a module, what is called, and its arguments: returns what that returns."""

_labels = itertools.count()


@contextmanager
def calls_through(around: Around, modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Run every call of these modules through ``around``; all is put back afterwards, also after an exception.

    A module that is compiled in place is called as a whole. Copies that are made of a module meanwhile, such as the
    replicas of DataParallel, are seen as that module.

    Args:
        around: what to run instead of each call.
        modules: none of them inside another that is compiled: that is called by no Python.
    """
    listed = list(modules)
    label = f"_gpuprof_call_{next(_labels)}"  # an attribute, so that a copy has it too

    def through(plain: Callable[..., Any], kind: type) -> Callable[..., Any]:
        def _call_impl(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            traced = torch.compiler.is_dynamo_compiling()  # is_compiling: also while another thread compiles
            number = vars(self).get(label) if type(self) is kind and not traced else None
            if number is None:
                return plain(self, *args, **kwargs)
            return around(listed[number], plain.__get__(self), args, kwargs)

        skip_code(_call_impl.__code__)  # what a compiled region calls outside of it is not compiled with this around it
        return _call_impl

    def compiled(module: torch.nn.Module, plain: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: around(module, plain, args, kwargs)

    with undoing() as undo, ExitStack() as classes:
        for number, module in enumerate(listed):
            plain = module._compiled_call_impl
            if plain is not None:
                undo(setattr, module, "_compiled_call_impl", plain)
                module._compiled_call_impl = compiled(module, plain)
            else:
                undo(vars(module).pop, label, None)
                vars(module)[label] = number
        for kind in _kinds(listed):
            classes.enter_context(patched(kind, {"_call_impl": through(kind._call_impl, kind)}))
        yield


def _kinds(modules: Iterable[torch.nn.Module]) -> list[type[torch.nn.Module]]:
    """Classes of modules, each once, with what those of lazy modules become at the first call."""
    kinds = {type(module): None for module in modules}
    lazy = [getattr(kind, "cls_to_become", None) for kind in kinds]
    return [*kinds, *(kind for kind in lazy if kind is not None and kind not in kinds)]
