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
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from gpuprof.calls import calls_through
from gpuprof.late import np
from gpuprof.undo import patched, undoing
from gpuprof.workload import Workload


@contextmanager
def preserved(workload: Workload) -> Iterator[None]:
    """Put back, at the end, what the steps of a workload change.

    Gradients (of the inputs too), training flags, ``requires_grad``, buffers, random states and which data a parameter
    has always; values of parameters and optimizer state from copies in host memory, made when an optimizer first steps,
    and of gradients from copies made at once where DDP has them in its buckets. What a lazy module makes at its first
    call stays, as it was made. A workload made for this run alone (``owned``) needs none of the copies: nobody sees it
    again.
    """
    model = workload.model
    with undoing() as undo, ExitStack() as into:
        for get, put_back in _random_states():
            undo(put_back, get())
        undo(torch.set_grad_enabled, torch.is_grad_enabled())
        for module in model.modules():
            if hasattr(module, "training"):  # a frozen module of TorchScript has none
                undo(_put_back_flag, module, module.training)
        grads, copies = _Gradients(), _Copies()
        undo(grads.put_back)
        optimized = workload.optimizer.param_groups if workload.optimizer is not None else []
        leaves = [*model.parameters(), *(p for group in optimized for p in group["params"])]
        if workload.owned:
            for leaf in leaves:  # nobody wants them back, and they would stand beside those of every step
                leaf.grad = None
        else:
            if any(getattr(module, "gradient_as_bucket_view", False) for module in model.modules()):
                copies.keep(leaf.grad for leaf in leaves)  # DDP has them in its buckets, which the next step fills
            grads.set_aside(leaves)
            undo(copies.put_back)
            copies.keep(model.buffers())
            copies.keep_places(model.parameters())
            for module in model.modules():
                undo(_put_back_members, module, dict(module._parameters), dict(module._buffers))
                if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
                    undo(_when_made(module, copies.keep).remove)
            if workload.optimizer is not None:
                copies.keep_optimizer(workload.optimizer)
            undo(register_optimizer_step_pre_hook(lambda one, *_: copies.keep_optimizer(one)).remove)
            if workload.description.get("step") == "given":
                copies.keep(model.parameters())  # it may change them by itself
                # where it is compiled as a whole, what is around its model's call would be compiled with it
                into.enter_context(grads.of_first_backward())
            else:
                into.enter_context(calls_through(grads.of_first_call, [model]))
        yield


class _Gradients:
    """Gradients and ``requires_grad`` of leaves from before."""

    def __init__(self) -> None:
        self._leaves: dict[int, tuple[torch.Tensor, torch.Tensor | None, bool]] = {}
        self._called = False

    def set_aside(self, values: Iterable[Any]) -> None:
        """Take the gradients of leaves that are new here off them."""
        for leaf in values:
            if isinstance(leaf, torch.Tensor) and leaf.is_leaf and id(leaf) not in self._leaves:
                self._leaves[id(leaf)] = (leaf, leaf.grad, leaf.requires_grad)
                leaf.grad = None

    def of_first_call(self, _: torch.nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Take those of the inputs off them, when the model is first called."""
        if not self._called:
            self._called = True
            with torch._C.DisableTorchFunction():
                self.set_aside(tree_leaves((args, kwargs)))
        return call(*args, **kwargs)

    @contextmanager
    def of_first_backward(self) -> Iterator[None]:
        """Take those of all that it reaches off them, before the first backward."""
        autograd: Any = torch.autograd
        run_backward = autograd._engine_run_backward

        def backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._called:
                self._called = True
                self.set_aside(_leaves_below(outputs))
            return run_backward(outputs, *args, **kwargs)

        with patched(autograd, {"_engine_run_backward": backward}):
            yield

    def put_back(self) -> None:
        for leaf, grad, requires in self._leaves.values():
            leaf.grad = grad
            if leaf.requires_grad != requires:
                leaf.requires_grad_(requires)


def _leaves_below(outputs: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Leaves of the graphs of these tensors."""
    left: list[Any] = [output.grad_fn for output in outputs]
    seen = set(left)
    while left:
        node = left.pop()
        if hasattr(node, "variable"):
            yield node.variable
        below = {one for one, _ in getattr(node, "next_functions", ()) if one is not None} - seen
        seen |= below
        left += below


def _random_states() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How to read and how to set the state of each generator that a step may draw from."""
    yield random.getstate, random.setstate
    yield np.random.get_state, np.random.set_state
    yield torch.get_rng_state, torch.set_rng_state
    if torch.cuda.is_initialized():
        yield torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all


class _Copies:
    """Values of tensors and optimizers from before, in host memory."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._values: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}
        self._optimizers: dict[int, tuple[torch.optim.Optimizer, list[dict[str, Any]], dict[Any, Any]]] = {}

    def keep_places(self, tensors: Iterable[Any]) -> None:
        """Which data they have, for the case that they are given other; costs nothing."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and not is_lazy(tensor) and tensor.device.type != "meta":
                # the same storage in the same shape, whatever becomes of the tensor itself
                self._places.setdefault(id(tensor), (tensor, tensor.detach()))

    def keep(self, tensors: Iterable[Any]) -> None:
        """Their values too."""
        tensors = list(tensors)
        self.keep_places(tensors)
        for tensor in tensors:
            if id(tensor) in self._places and id(tensor) not in self._values:
                nbytes = tensor.untyped_storage().nbytes() if _is_plain(tensor) else 0
                self._values[id(tensor)] = (tensor, nbytes, _once(tensor.detach()).to("cpu", copy=True))

    def keep_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if id(optimizer) not in self._optimizers:
            with _disable_current_modes():  # copying is none of the step's work
                groups = [_containers(group) for group in optimizer.param_groups]
                state = _containers(dict(optimizer.state))
                self._optimizers[id(optimizer)] = (optimizer, groups, state)
                self.keep(tree_leaves((groups, list(state.values()))))

    def put_back(self) -> None:
        with undoing() as undo:
            for tensor, nbytes, values in self._values.values():
                undo(_fill, tensor, nbytes, values)
            for tensor, same in self._places.values():
                undo(_put_back, tensor, same)
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


def _containers(value: Any) -> Any:
    """A copy of nested lists and dictionaries around the same tensors."""
    return tree_map(lambda leaf: leaf, value)


def _refill(mapping: dict[Any, Any], before: dict[Any, Any]) -> None:
    mapping.clear()
    mapping.update(before)


def _put_back(tensor: torch.Tensor, same: torch.Tensor) -> None:
    """Give a tensor that was resized, or given other data, the storage and the shape that it had, ``same``."""
    if _is_plain(same) and (not _is_plain(tensor) or _place(tensor) != _place(same)):
        tensor.data = same


def _fill(tensor: torch.Tensor, nbytes: int, values: torch.Tensor) -> None:
    """Give a tensor the values that it had, and its storage the size; what is the same is not written to."""
    if _is_plain(tensor) and tensor.untyped_storage().nbytes() != nbytes:
        tensor.untyped_storage().resize_(nbytes)
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        now = _once(tensor)
        if not _equal(now, values):
            now.copy_(values)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one piece of one storage."""
    return tensor.layout == torch.strided and not tensor.is_nested and not is_traceable_wrapper_subclass(tensor)


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()._cdata
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.storage_offset(), storage


def _equal(tensor: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether they are surely equal: some layouts and dtypes cannot be compared."""
    try:
        return _is_plain(tensor) and torch.equal(tensor.to("cpu"), values)
    except NotImplementedError:
        return False


def _put_back_flag(module: torch.nn.Module, training: bool) -> None:
    """Only where it is another one: there are modules that let nothing be set."""
    if module.training != training:
        module.training = training


def _put_back_members(
    module: torch.nn.Module, parameters: dict[str, torch.Tensor | None], buffers: dict[str, torch.Tensor | None]
) -> None:
    """Parameters and buffers by their names: those that were there are there again, and no other buffer is."""
    for name in set(dict(module._buffers)) - set(buffers):
        delattr(module, name)
    members: Any = ((module._parameters, parameters), (module._buffers, buffers))
    for held, before in members:
        now = dict(held)  # of a scripted module a copy, and no dictionary at all
        for name, tensor in before.items():
            if now.get(name) is not tensor and not is_lazy(tensor):
                held[name] = tensor


def _once(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without the repetitions of an expanded one, which cannot be written to."""
    for dim, stride in enumerate(tensor.stride() if _is_plain(tensor) else ()):
        if stride == 0:
            tensor = tensor.narrow(dim, 0, min(tensor.shape[dim], 1))
    return tensor
