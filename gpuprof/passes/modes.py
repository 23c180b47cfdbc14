"""Modes of torch: put back when a pass ends, and out of sight of what decides by them while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.overrides
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch

from gpuprof.undo import patched


@contextmanager
def modes_as_before() -> Iterator[None]:
    """Leave torch's modes as they were: at the limit of recursion even the end of a mode fails, and it stays on."""
    dispatch = _python_dispatch._get_current_dispatch_mode_stack()
    functions = torch.overrides._get_current_function_mode_stack()
    flags = {name: value for name, value in vars(_python_dispatch).items() if name.startswith("_is_in_")}
    try:
        yield
    finally:
        while len(_python_dispatch._get_current_dispatch_mode_stack()) > len(dispatch):
            _python_dispatch._pop_mode()
        while len(torch.overrides._get_current_function_mode_stack()) > len(functions):
            torch.overrides._pop_mode()
        vars(_python_dispatch).update(flags)
        if (internals := "_is_in_any_mode_without_ignore_compile_internals") in flags:  # torch keeps that one twice
            _python_dispatch.set_is_in_mode_without_ignore_compile_internals(flags[internals])


@contextmanager
def unseen(mode: TorchFunctionMode) -> Iterator[None]:
    """Enter a function mode so that torch's fused transformer layers are fused as they are without it.

    They are only where nothing has a ``__torch_function__``, a mode neither, and ask `torch.overrides` for that.
    """
    asked: Any = torch.overrides.has_torch_function

    def has_torch_function(arguments: Iterable[Any]) -> bool:
        if torch.overrides._get_current_function_mode() is not mode:
            return asked(arguments)
        with torch.overrides._pop_mode_temporarily():
            return asked(arguments)

    with mode, patched(torch.overrides, {"has_torch_function": has_torch_function}):
        yield
