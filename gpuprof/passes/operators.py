"""Which operators are counted: those that do work themselves, not those that only call others."""

from __future__ import annotations

import functools
from typing import Any

import torch

_COMPOSITE = "CompositeImplicitAutograd"
_BACKENDS = ("CPU", "CUDA")


def name_of(func: Any) -> str:
    """``namespace::name.overload`` of an operator, by which rules know it; of a higher-order one its own name."""
    if isinstance(func, torch._ops.OpOverload):
        return f"{func.namespace}::{func._opname}.{func._overloadname}"
    return f"higher_order::{getattr(func, '_name', func)}"


@functools.cache
def is_composite(overload: str) -> bool:
    """Whether ``namespace::name.overload`` only calls others; one with a kernel of its own beside that does not."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return has(overload, _COMPOSITE) and not any(has(overload, backend) for backend in _BACKENDS)


@functools.cache
def nested_kernel(overload: str, device: str) -> Any:
    """Dispatch key of what a composite operator runs on nested tensors (strided) of this type of device."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    keys = (f"NestedTensor{device.upper()}", "CompositeImplicitAutogradNestedTensor", _COMPOSITE)
    return next(getattr(torch._C.DispatchKey, key) for key in keys if has(overload, key))


@functools.cache
def is_question(func: Any) -> bool:
    """Whether it only asks a tensor for its sizes, strides or layout: an operator in Python alone."""
    return isinstance(func, torch._ops.OpOverload) and not torch._C._dispatch_has_kernel(func.name())


@functools.cache
def is_composite_name(name: str) -> bool:
    """The same for ``namespace::name``, all that a trace knows of an operator."""
    namespace, _, plain = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace, None), plain, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    overloads = [
        name if overload == "default" else f"{name}.{overload}"
        for overload in packet.overloads()
        if "out" not in overload
    ]
    # some overloads exist for TorchScript alone and are unknown to the dispatcher
    known = [overload for overload in overloads if torch._C._dispatch_has_kernel(overload)]
    return bool(known) and all(is_composite(overload) for overload in known)
