"""Everything that gpuprof may touch in a process and a model, to be the same after a profile, however that ends."""

import gc
import os
import random
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.attention.flex_attention as flex
import torch.overrides
import torch.utils.checkpoint
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import optimizer as optimizers
from torch.utils import _python_dispatch
from torch.utils._pytree import tree_flatten

PATCHED = [
    (torch.autograd, ["backward", "grad", "_engine_run_backward"]),
    (torch.Tensor, ["backward"]),
    (torch.utils.checkpoint, ["CheckpointFunction", "_checkpoint_without_reentrant_generator", "SAC_IGNORED_OPS"]),
    (torch.overrides, ["has_torch_function"]),
    (torch.nn.functional, ["scaled_dot_product_attention", "multi_head_attention_forward"]),
    (flex, ["_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", "_validate_device", "flex_attention_hop"]),
    (nn.Module, ["__call__", "_call_impl", "_wrapped_call_impl"]),
]


@contextmanager
def as_before(model=None, optimizer=None, inputs=(), drawn=True):
    """Assert at the end of the block, however it ends, that it changed nothing of these and of the process.

    Args:
        model: parameters, gradients, buffers, flags and hooks of its modules. What a lazy module has made may stay.
        optimizer: its groups and its state.
        inputs: tensors, themselves and their gradients.
        drawn: whether random states must be the same too.
    """
    modules = [] if model is None else model.modules()
    lazy = {module for module in modules if any(map(is_lazy, module.parameters(recurse=False)))}
    optimizer = None if lazy else optimizer  # of parameters that are not made yet
    before = _state(model, optimizer, inputs, drawn, lazy)
    try:
        yield
    finally:
        after = _state(model, optimizer, inputs, drawn, lazy)
        for key, value in before.items():
            assert _same(value, after[key]), f"{key}: {value} before, and {after[key]} after"
        assert before.keys() == after.keys()


def _state(model, optimizer, inputs, drawn, lazy):
    state = dict(_process())
    if drawn:
        state |= {"random": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    state |= _model(model, lazy) if model is not None else {}
    state |= _optimizer(optimizer) if optimizer is not None else {}
    return state | {f"input {index}": _tensor(tensor) for index, tensor in enumerate(inputs)}


def _process():
    yield "hooks of optimizers", (list(optimizers._global_optimizer_pre_hooks.values()),
                                  list(optimizers._global_optimizer_post_hooks.values()))  # fmt: skip
    for name, table in vars(nn.modules.module).items():
        if name.startswith("_global_"):
            yield name, list(table) if hasattr(table, "__len__") else table
    for holder, names in PATCHED:
        for name in names:
            yield f"{holder.__name__}.{name}", id(vars(holder).get(name))
    yield "classes with a way of their own to call", {c.__qualname__ for c in _modules() if "_call_impl" in vars(c)}
    yield "operators that selective checkpointing leaves alone", set(torch.utils.checkpoint.SAC_IGNORED_OPS)
    yield "dispatch modes", [id(mode) for mode in _python_dispatch._get_current_dispatch_mode_stack()]
    yield "function modes", [id(mode) for mode in torch.overrides._get_current_function_mode_stack()]
    yield "in a mode", {name: value for name, value in vars(_python_dispatch).items() if name.startswith("_is_in_")}
    yield "saved tensors", torch._C._autograd._top_saved_tensors_default_hooks(False)
    yield "profiler", torch.autograd._profiler_enabled()
    yield "gradients", (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    yield "threads", (torch._C._is_multithreading_enabled(), torch.get_num_threads())
    yield "deterministic", (torch.are_deterministic_algorithms_enabled(), torch.get_deterministic_debug_mode())
    yield "precision", (torch.get_default_dtype(), torch.get_float32_matmul_precision())
    yield "autocast", [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    yield "stance", torch._dynamo.eval_frame._stance
    yield "fused layers", torch.backends.mha.get_fastpath_enabled()
    yield "environment", {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    yield "collector", gc.isenabled()


def _modules(kind=nn.Module):
    """The class and all below it."""
    yield kind
    for inner in kind.__subclasses__():
        yield from _modules(inner)


def _model(model, lazy):
    state = {}
    for path, module in model.named_modules():
        if module in lazy:  # what it was is no longer there, nor its hooks
            continue
        here = f"{path or '(root)'} "
        state[here + "class"] = type(module)
        state[here + "training"] = getattr(module, "training", None)  # frozen modules of TorchScript have none
        state[here + "call"] = id(module._compiled_call_impl)
        state[here + "attributes of ours"] = [name for name in vars(module) if "gpuprof" in name or "_call" in name]
        tables = {name: table for name, table in vars(module).items() if "_hooks" in name and isinstance(table, dict)}
        state[here + "hooks"] = {name: list(table.values()) for name, table in tables.items() if table}
        for kind in ("_parameters", "_buffers"):
            for name, tensor in dict(getattr(module, kind)).items():
                state[here + name] = tensor if tensor is None else _tensor(tensor)
    return state


def _tensor(tensor):
    shape = None if tensor.is_nested else tensor.shape
    place = (id(tensor), shape, tensor.dtype, tensor.device, tensor.requires_grad)
    tables = (getattr(tensor, name, None) or {} for name in ("_backward_hooks", "_post_accumulate_grad_hooks"))
    hooks = [list(table.values()) for table in tables]
    grad = tensor.grad if tensor.is_leaf else None
    return place, tensor.detach().clone(), hooks, None if grad is None else (id(grad), grad.clone())


def _optimizer(optimizer):
    entries = {id(key): dict(entry) for key, entry in optimizer.state.items()}
    groups = [dict(group) for group in optimizer.param_groups]
    return {
        "groups": [(id(group), _leaves(held)) for group, held in zip(optimizer.param_groups, groups, strict=True)],
        "optimizer state": {key: _leaves(entry) for key, entry in entries.items()},
    }


def _leaves(value):
    leaves, spec = tree_flatten(value)
    return [_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec


def _same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and _bits(one) == _bits(other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _bits(tensor):
    """The values as they are, also of one that is no number or of a kind that cannot be compared."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return repr(tensor)
    return tensor.shape, tensor.dtype, bytes(tensor.reshape(-1).contiguous().view(torch.uint8).numpy())
