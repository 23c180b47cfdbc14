"""Who owns an operator: module calls as intervals of autograd sequence numbers.

Every autograd node takes the next number of its thread when it is made, in the forward. So the numbers between a
module's start and its end are the nodes of that module, and in the backward the number of the running node tells
whose work it is. No tensor is touched and no node is added; outputs may be anything. Backward hooks can do neither
(docs/method.md has the comparison).
"""

from __future__ import annotations

import functools
import inspect
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import get_ident
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils.checkpoint

from gpuprof.calls import calls_through
from gpuprof.paths import ancestors
from gpuprof.schema import UNATTRIBUTED
from gpuprof.theory.masks import AttentionFacts
from gpuprof.undo import patched

_next_number = torch.autograd._get_sequence_nr


def in_backward() -> bool:
    """Whether the calling thread is inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


@dataclass(frozen=True)
class Scope:
    """What work is booked on: a module, and within it perhaps one fused attention call.

    Attributes:
        module: path; the root is the empty path.
        facts: what is known of the attention products made here.
    """

    module: str
    facts: AttentionFacts | None = None


NOWHERE = Scope(UNATTRIBUTED)
"""Of what belongs to no module."""


class Call:
    """One call of a module, in order of start: its scope, whether inside a backward, and the thread."""

    __slots__ = ("in_backward", "range", "scope", "thread")

    def __init__(self, scope: Scope, inside: bool, thread: int) -> None:
        self.scope = scope
        self.in_backward = inside
        self.thread = thread
        self.range: AbstractContextManager[Any] | None = None


Mark = Callable[[int], AbstractContextManager[Any]]
"""Given the index of a call, a context to hold open while it runs (a range in the trace)."""


class Ownership:
    """The module calls of a step, while they happen and afterwards.

    Args:
        mark: see `Mark`.

    Attributes:
        calls: every module call so far.
    """

    def __init__(self, mark: Mark | None = None) -> None:
        self.calls: list[Call] = []
        self._mark = mark
        # by thread: the calls that are open, the outermost first
        self._stacks: defaultdict[int, list[Call]] = defaultdict(list)
        # by thread: the sequence numbers at which the scope changed, and which scope new nodes belong to from there on
        self._numbers: defaultdict[int, list[int]] = defaultdict(list)
        self._scopes: defaultdict[int, list[Scope | None]] = defaultdict(list)
        self._seen: dict[int, int] = {}  # by thread: the next sequence number at the last change or claim

    def open(self, scope: Scope) -> Call:
        """A module starts."""
        thread = get_ident()
        call = Call(scope, in_backward(), thread)
        self.calls.append(call)
        self._stacks[thread].append(call)
        self._change(thread, scope)
        return call

    def close(self, call: Call) -> None:
        """A module ends, also by an exception; calls that were left open inside it end with it."""
        thread = get_ident()
        stack = self._stacks.get(thread, [])
        if call not in stack:
            return
        while stack and stack.pop() is not call:
            pass
        self._change(thread, stack[-1].scope if stack else None)

    def run(self, scope: Scope, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a module, marked."""
        call = self.open(scope)
        if self._mark is not None:
            around = self._mark(len(self.calls) - 1)
            around.__enter__()
            call.range = around
        try:
            return function(*args, **kwargs)
        finally:
            if call.range is not None:
                around, call.range = call.range, None
                around.__exit__(None, None, None)
            self.close(call)

    def _change(self, thread: int, scope: Scope | None) -> None:
        """New nodes of this thread belong to that scope."""
        self._seen[thread] = number = _next_number()
        self._numbers[thread].append(number)
        self._scopes[thread].append(scope)

    def claim(self, scope: Scope | None) -> None:
        """The nodes made on this thread since the last change or claim belong to that scope, and the next ones too."""
        thread = get_ident()
        scopes = self._scopes[thread]
        if not scopes or scopes[-1] is not scope:
            self._numbers[thread].append(self._seen.get(thread, 0))
            scopes.append(scope)
        self._seen[thread] = _next_number()

    def running(self) -> Scope | None:
        """The innermost scope that is open on this thread."""
        stack = self._stacks.get(get_ident())
        return stack[-1].scope if stack else None

    def open_here(self) -> list[Call]:
        """The calls that are open on this thread, the outermost first: now, and as long as there is this."""
        return self._stacks[get_ident()]

    @contextmanager
    def within(self, scope: Scope) -> Iterator[None]:
        """Book what happens on this scope, without counting it as a call of the module."""
        call = self.open(scope)
        self.calls.pop()
        try:
            yield
        finally:
            self.close(call)

    def maker(self, thread: int, number: int) -> Scope | None:
        """The scope that made the node with this sequence number on this thread; None outside every scope."""
        numbers = self._numbers.get(thread)
        if not numbers:
            return None
        index = bisect_right(numbers, number) - 1
        return self._scopes[thread][index] if index >= 0 else None

    def thread(self) -> int:
        """The calling thread if it ever called a module, else the first that did."""
        here = get_ident()
        return here if here in self._numbers else next(iter(self._numbers), here)


def named_paths(
    module: torch.nn.Module, path: str = "", above: tuple[torch.nn.Module, ...] = ()
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every path with its module, a parent before its children: a module that several share has several."""
    yield path, module
    above = (*above, module)
    for name, child in module._modules.items():
        if child is not None and child not in above:
            yield from named_paths(child, f"{path}.{name}" if path else name, above)


def _callers(paths: dict[str, torch.nn.Module]) -> dict[str, str]:
    """The module above each path that would call it: containers such as a ModuleList call nothing."""
    # asked of the class: scripted modules have a forward of another kind
    forwards = {kind: inspect.getattr_static(kind, "forward") for kind in set(map(type, paths.values()))}
    callers = {}
    for path in paths:
        above = path.rpartition(".")[0]
        while above and forwards[type(paths[above])] is torch.nn.Module.forward:
            above = above.rpartition(".")[0]
        callers[path] = above
    return callers


def _distance(path: str, other: str) -> int:
    """Steps from one module to another in the tree."""
    here, there = (ancestors(one) for one in (path, other))
    return len(set(here) ^ set(there))


def inside_compiled(model: torch.nn.Module) -> set[torch.nn.Module]:
    """Modules whose calls happen inside a region that torch.compile has taken over."""
    hidden: set[torch.nn.Module] = set()
    for module in model.modules():
        if isinstance(module, torch._dynamo.eval_frame.OptimizedModule) or module._compiled_call_impl is not None:
            hidden.update(inner for inner in module.modules() if inner is not module)
    return hidden


@contextmanager
def observed(
    model: torch.nn.Module,
    scope_of: Callable[[torch.nn.Module, str], Scope] = lambda _, path: Scope(path),
    mark: Mark | None = None,
    through_compiled: bool = False,
    again: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Ownership]:
    """Record the calls of every module of a model. Nothing of it is left afterwards, also after an exception.

    Args:
        model: the model.
        scope_of: scope of a module under a path; by default the path alone. One that several share is booked under
            the path by which the module that runs calls it.
        mark: see `Mark`.
        through_compiled: see modules inside compiled regions too. Only where compilation is off for the while:
            otherwise no Python calls them, and such a region is owned by the module that is compiled.
        again: a context for what a checkpoint runs again: function modes are off inside a backward.
    """
    ownership = Ownership(mark)
    paths = dict(named_paths(model))
    callers = _callers(paths)
    scopes: dict[torch.nn.Module, list[Scope]] = {}
    for path, module in paths.items():
        scopes.setdefault(module, []).append(scope_of(module, path))
    hidden = set() if through_compiled else inside_compiled(model)

    def called(module: torch.nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        its = scopes[module]
        scope = its[0]
        if len(its) > 1 and (running := ownership.running()) is not None:
            scope = min(its, key=lambda one: _distance(callers[one.module], running.module))
        return ownership.run(scope, call, args, kwargs)

    def reopening(function: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpointed function; run again in the backward, it is booked on the module that ran it first."""
        scope = ownership.running()
        if scope is None:
            return function

        @functools.wraps(function, updated=())
        def run(*args: Any, **kwargs: Any) -> Any:
            if not in_backward():
                return function(*args, **kwargs)
            with again():
                return ownership.run(scope, function, args, kwargs)

        return run

    with calls_through(called, [module for module in scopes if module not in hidden]), _checkpointed(reopening):
        yield ownership


@contextmanager
def _checkpointed(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Pass every function that torch.utils.checkpoint will run again through ``wrap``.

    Both of its ways are changed where `checkpoint` itself looks them up: libraries have imported that by name.
    """
    library: Any = torch.utils.checkpoint
    reentrant, generator = library.CheckpointFunction, library._checkpoint_without_reentrant_generator
    ours = {
        "CheckpointFunction": SimpleNamespace(apply=lambda function, *rest: reentrant.apply(wrap(function), *rest)),
        "_checkpoint_without_reentrant_generator": lambda function, *rest, **kwargs: generator(
            wrap(function), *rest, **kwargs
        ),
    }
    with patched(library, ours):
        yield
