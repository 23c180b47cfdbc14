"""A profile leaves nothing behind: everything that a step may change is as it was before, also after an exception."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import _disable_current_modes

from gpuprof.workload import Workload


@contextmanager
def preserved(workload: Workload) -> Iterator[None]:
    """Put back, at the end, what the steps of a workload change.

    Gradients, training flags, ``requires_grad``, buffers and random states always; parameters and optimizer state
    from copies in host memory, made when an optimizer first steps. A workload made for this run alone
    (``owned``) needs none of the copies: nobody sees it again.
    """
    model = workload.model
    params = list(model.parameters())
    grads = [p.grad for p in params]
    trainable = [p.requires_grad for p in params]
    training = [(module, module.training) for module in model.modules()]
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    grad_mode = torch.is_grad_enabled()
    copies = _Copies()
    handles = []
    if not workload.owned:
        copies.keep(model.buffers())
        if workload.description.get("step") == "given":  # it may change parameters by itself
            copies.keep(params)
        handles.append(register_optimizer_step_pre_hook(lambda optimizer, *_: copies.keep_optimizer(optimizer)))
    for p in params:
        p.grad = None
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        copies.put_back()
        for p, grad, requires in zip(params, grads, trainable, strict=True):
            p.grad = grad
            p.requires_grad_(requires)
        for module, flag in training:
            module.training = flag
        torch.set_grad_enabled(grad_mode)
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


class _Copies:
    """Values of tensors and optimizers from before, in host memory."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._optimizers: dict[int, tuple[torch.optim.Optimizer, dict[str, Any], bool]] = {}

    def keep(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            if id(tensor) not in self._tensors and tensor.device.type != "meta":
                self._tensors[id(tensor)] = (tensor, tensor.detach().to("cpu", copy=True))

    def keep_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if id(optimizer) in self._optimizers:
            return
        with _disable_current_modes():  # copying is none of the step's work
            self._keep_optimizer(optimizer)

    def _keep_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizers[id(optimizer)] = (
            optimizer,
            copy.deepcopy(optimizer.state_dict()),
            bool(optimizer.state),
        )
        self.keep(p for group in optimizer.param_groups for p in group["params"])

    def put_back(self) -> None:
        with torch.no_grad():
            for tensor, before in self._tensors.values():
                tensor.copy_(before)
        for optimizer, state, had_state in self._optimizers.values():
            optimizer.load_state_dict(state)
            if not had_state:
                optimizer.state.clear()
