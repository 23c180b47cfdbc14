"""Who owns an operator: module calls as intervals of autograd sequence numbers.

Every autograd node takes the next number of its thread when it is made, in the forward. So the numbers between a
module's start and its end are the nodes of that module, and in the backward the number of the running node tells
whose work it is. No tensor is touched and no node is added; outputs may be anything. Backward hooks can do neither
(docs/method.md has the comparison).
"""

from __future__ import annotations

import functools
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils.checkpoint

from gpuprof.record import UNATTRIBUTED
from gpuprof.theory.attention import AttentionFacts


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


class Call:
    """One call of a module, in order of start: its scope, whether inside a backward, and the thread."""

    __slots__ = ("in_backward", "range", "scope", "thread")

    def __init__(self, scope: Scope, inside: bool, thread: int) -> None:
        self.scope = scope
        self.in_backward = inside
        self.thread = thread
        self.range: AbstractContextManager[Any] | None = None


class Ownership:
    """The module calls of a step, while they happen and afterwards.

    Attributes:
        calls: every module call so far.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._stacks: dict[int, list[Call]] = {}
        # per thread: from this sequence number on, new nodes belong to that scope
        self._numbers: dict[int, list[int]] = {}
        self._scopes: dict[int, list[Scope | None]] = {}
        self._seen: dict[int, int] = {}

    def open(self, scope: Scope) -> Call:
        """A module starts."""
        thread = threading.get_ident()
        call = Call(scope, in_backward(), thread)
        self.calls.append(call)
        self._stacks.setdefault(thread, []).append(call)
        self._change(thread, scope)
        return call

    def close(self, call: Call) -> None:
        """A module ends, also by an exception; calls that were left open inside it end with it."""
        thread = threading.get_ident()
        stack = self._stacks.get(thread, [])
        if call not in stack:
            return
        while stack and stack.pop() is not call:
            pass
        self._change(thread, stack[-1].scope if stack else None)

    def _change(self, thread: int, scope: Scope | None) -> None:
        self._seen[thread] = torch.autograd._get_sequence_nr()
        self._numbers.setdefault(thread, []).append(self._seen[thread])
        self._scopes.setdefault(thread, []).append(scope)

    def claim(self, scope: Scope | None) -> None:
        """The nodes made on this thread since the last change or claim belong to that scope, and the next ones too."""
        thread = threading.get_ident()
        scopes = self._scopes.setdefault(thread, [])
        if not scopes or scopes[-1] is not scope:
            self._numbers.setdefault(thread, []).append(self._seen.get(thread, 0))
            scopes.append(scope)
        self._seen[thread] = torch.autograd._get_sequence_nr()

    def running(self) -> Scope | None:
        """The innermost scope that is open on this thread."""
        stack = self._stacks.get(threading.get_ident())
        return stack[-1].scope if stack else None

    def recomputing(self) -> bool:
        """Whether a module call is open on this thread inside a backward."""
        stack = self._stacks.get(threading.get_ident())
        return bool(stack) and stack[-1].in_backward  # type: ignore[index]

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
        here = threading.get_ident()
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


def _called_as(scopes: list[Scope], running: Scope | None) -> Scope:
    """Of a module's scopes, one for each of its paths, that under which the running module calls it."""
    if running is None or len(scopes) == 1:
        return scopes[0]
    caller = running.module.split(".") if running.module else []

    def distance(scope: Scope) -> int:
        path = scope.module.split(".")
        same = 0
        while same < min(len(path), len(caller)) and path[same] == caller[same]:
            same += 1
        return len(path) + len(caller) - 2 * same

    return min(scopes, key=distance)


def inside_compiled(model: torch.nn.Module) -> set[torch.nn.Module]:
    """Modules whose calls happen inside a region that torch.compile has taken over."""
    return _compiled(model)[0]


def _compiled(model: torch.nn.Module) -> tuple[set[torch.nn.Module], set[torch.nn.Module]]:
    """The same, and those of them whose call, compiled in place (``module.compile()``), is how a region is entered."""
    inside: set[torch.nn.Module] = set()
    entered: set[torch.nn.Module] = set()
    for module in model.modules():
        in_place = module._compiled_call_impl is not None
        if in_place or isinstance(module, torch._dynamo.eval_frame.OptimizedModule):
            inside.update(inner for inner in module.modules() if inner is not module)
        if in_place:
            entered.add(module)
    return inside | entered, entered - inside


@contextmanager
def observed(
    model: torch.nn.Module,
    scope_of: Callable[[torch.nn.Module, str], Scope] = lambda _, path: Scope(path),
    mark: Callable[[int], AbstractContextManager[Any]] | None = None,
    through_compiled: bool = False,
    again: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Ownership]:
    """Record the calls of every module of a model. All hooks are gone afterwards, also after an exception.

    Args:
        model: the model.
        scope_of: scope of a module under a path; by default the path alone.
        mark: given the index of a call, a context to hold open while it runs (a range in the trace).
        through_compiled: hook modules inside compiled regions too. Only where compilation is off for the while:
            Python hooks would break it, so otherwise such a region is owned by the module that calls it.
        again: a context for what a checkpoint runs again: function modes are off inside a backward.
    """
    ownership = Ownership()
    open_calls: dict[int, list[Call]] = {}
    handles = []
    entries: dict[torch.nn.Module, Callable[..., Any]] = {}

    def start(*scopes: Scope) -> Call:
        call = ownership.open(_called_as(list(scopes), ownership.running()))
        if mark is not None:
            call.range = mark(len(ownership.calls) - 1)
            call.range.__enter__()
        return call

    def end(call: Call) -> None:
        if call.range is not None:
            call.range.__exit__(None, None, None)
            call.range = None
        ownership.close(call)

    # a copy that is made of a module while it is observed carries these hooks too: it is booked on the original
    def before(scopes: list[Scope], module: torch.nn.Module, *_: Any) -> None:
        open_calls.setdefault(id(module), []).append(start(*scopes))

    def after(module: torch.nn.Module, *_: Any) -> None:
        if open_calls.get(id(module)):
            end(open_calls[id(module)].pop())

    def reopening(function: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpointed function; run again in the backward, it is booked on the module that ran it first."""
        scope = ownership.running()
        if scope is None:
            return function

        @functools.wraps(function, updated=())
        def run(*args: Any, **kwargs: Any) -> Any:
            if not in_backward():
                return function(*args, **kwargs)
            call = start(scope)
            try:
                with again():
                    return function(*args, **kwargs)
            finally:
                end(call)

        return run

    def entering(scopes: list[Scope], region: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled region as a call of the module that it was compiled in, whose hooks would be inside."""

        @functools.wraps(region, updated=())
        def run(*args: Any, **kwargs: Any) -> Any:
            call = start(*scopes)
            try:
                return region(*args, **kwargs)
            finally:
                end(call)

        return run

    try:
        hidden, entered = (set(), set()) if through_compiled else _compiled(model)
        scopes_of: dict[torch.nn.Module, list[Scope]] = {}
        for path, module in named_paths(model):
            scopes_of.setdefault(module, []).append(scope_of(module, path))
        for module, scopes in scopes_of.items():
            if module in entered:
                entries[module] = module._compiled_call_impl  # type: ignore[assignment]
                module._compiled_call_impl = entering(scopes, entries[module])
            elif module not in hidden:
                # around the user's own hooks, whose work is the module's
                handles.append(module.register_forward_pre_hook(functools.partial(before, scopes), prepend=True))
                handles.append(module.register_forward_hook(after, always_call=True))
        with _checkpointed_functions(reopening):
            yield ownership
    finally:
        for handle in handles:
            handle.remove()
        for module, region in entries.items():
            module._compiled_call_impl = region
        for call in reversed(ownership.calls):  # an interrupt by the user skips the hooks of what was running
            if call.range is not None:
                end(call)


@contextmanager
def _checkpointed_functions(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Pass every function that torch.utils.checkpoint will run again through ``wrap``.

    Both of its ways are changed where `checkpoint` itself looks them up: libraries have imported that by name.
    """
    library: Any = torch.utils.checkpoint
    reentrant, generator = library.CheckpointFunction, library._checkpoint_without_reentrant_generator
    library.CheckpointFunction = SimpleNamespace(apply=lambda function, *rest: reentrant.apply(wrap(function), *rest))
    library._checkpoint_without_reentrant_generator = lambda function, *rest, **kwargs: generator(
        wrap(function), *rest, **kwargs
    )
    try:
        yield
    finally:
        library.CheckpointFunction, library._checkpoint_without_reentrant_generator = reentrant, generator
