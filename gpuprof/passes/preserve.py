"""A profile leaves nothing behind: everything that a step may change is as it was before, also after an exception."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from gpuprof.attribution import inside_compiled
from gpuprof.workload import Workload


@contextmanager
def preserved(workload: Workload) -> Iterator[None]:
    """Put back, at the end, what the steps of a workload change.

    Gradients (of the inputs too), training flags, ``requires_grad``, buffers and random states always; parameters and
    optimizer state from copies in host memory, made when an optimizer first steps. What a lazy module makes at its
    first call stays, as it was made. A workload made for this run alone (``owned``) needs none of the copies: nobody
    sees it again.
    """
    model = workload.model
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_initialized():
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        grads = stack.enter_context(_gradients())
        optimized = workload.optimizer.param_groups if workload.optimizer is not None else []
        leaves = [*model.parameters(), *(p for group in optimized for p in group["params"])]
        if workload.owned:
            for leaf in leaves:  # nobody wants them back, and they would stand beside those of every step
                leaf.grad = None
        else:
            grads.set_aside(leaves)
            copies = stack.enter_context(_copies())
            copies.keep(model.buffers())
            for module in model.modules():
                stack.callback(_refill, module._buffers, dict(module._buffers))
                if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
                    stack.callback(_when_made(module, copies.keep).remove)
            if workload.optimizer is not None:
                copies.keep_optimizer(workload.optimizer)
            if workload.description.get("step") == "given":  # it may change parameters by itself
                copies.keep(model.parameters())
            stack.callback(register_optimizer_step_pre_hook(lambda one, *_: copies.keep_optimizer(one)).remove)
            if model not in inside_compiled(model):

                def first_call(_: torch.nn.Module, args: Any, kwargs: Any) -> None:
                    handle.remove()
                    grads.set_aside(tree_leaves((args, kwargs)))

                handle = model.register_forward_pre_hook(first_call, with_kwargs=True)
                stack.callback(handle.remove)
        yield


class _Gradients:
    """Gradients and ``requires_grad`` of leaves from before."""

    def __init__(self) -> None:
        self._leaves: dict[int, tuple[torch.Tensor, torch.Tensor | None, bool]] = {}

    def set_aside(self, values: Iterable[Any]) -> None:
        """Take the gradients of leaves that are new here off them."""
        for leaf in values:
            if isinstance(leaf, torch.Tensor) and leaf.is_leaf and id(leaf) not in self._leaves:
                self._leaves[id(leaf)] = (leaf, leaf.grad, leaf.requires_grad)
                leaf.grad = None

    def put_back(self) -> None:
        for leaf, grad, requires in self._leaves.values():
            leaf.grad = grad
            if leaf.requires_grad != requires:
                leaf.requires_grad_(requires)


class _Copies:
    """Values of tensors and optimizers from before, in host memory."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._optimizers: dict[int, tuple[torch.optim.Optimizer, list[dict[str, Any]], dict[Any, Any]]] = {}

    def keep(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or is_lazy(tensor) or tensor.device.type == "meta":
                continue
            if id(tensor) not in self._tensors:
                self._tensors[id(tensor)] = (tensor, _once(tensor).detach().to("cpu", copy=True))

    def keep_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if id(optimizer) not in self._optimizers:
            with _disable_current_modes():  # copying is none of the step's work
                groups = [_containers(group) for group in optimizer.param_groups]
                state = _containers(dict(optimizer.state))
                self._optimizers[id(optimizer)] = (optimizer, groups, state)
                self.keep(tree_leaves((groups, list(state.values()))))

    def put_back(self) -> None:
        with torch.no_grad():
            for tensor, before in self._tensors.values():
                _once(tensor).copy_(before)
        for optimizer, groups, state in self._optimizers.values():
            for group, group_before in zip(optimizer.param_groups, groups, strict=False):
                _refill(group, group_before)
            del optimizer.param_groups[len(groups) :]
            _refill(optimizer.state, state)


def _when_made(module: torch.nn.Module, keep: Callable[[Iterable[Any]], None]) -> RemovableHandle:
    """Keep what a lazy module makes, before its first call goes on to use it: its own hook, which does so, is first."""

    def first_call(*_: Any) -> None:
        handle.remove()
        with _disable_current_modes():
            keep([*module.parameters(recurse=False), *module.buffers(recurse=False)])

    handle = module.register_forward_pre_hook(first_call)
    return handle


@contextmanager
def _gradients() -> Iterator[_Gradients]:
    gradients = _Gradients()
    try:
        yield gradients
    finally:
        gradients.put_back()


@contextmanager
def _copies() -> Iterator[_Copies]:
    copies = _Copies()
    try:
        yield copies
    finally:
        copies.put_back()


def _containers(value: Any) -> Any:
    """A copy of nested lists and dictionaries around the same tensors."""
    return tree_map(lambda leaf: leaf, value)


def _refill(mapping: dict[Any, Any], before: dict[Any, Any]) -> None:
    mapping.clear()
    mapping.update(before)


def _once(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without the repetitions of an expanded one, which cannot be written to."""
    for dim, stride in enumerate(tensor.stride() if tensor.layout == torch.strided else ()):
        if stride == 0:
            tensor = tensor.narrow(dim, 0, min(tensor.shape[dim], 1))
    return tensor
