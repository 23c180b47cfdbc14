"""Which operators are counted: those that do work themselves, not those that only call others."""

from __future__ import annotations

import functools

import torch

_COMPOSITE = "CompositeImplicitAutograd"
_BACKENDS = ("CPU", "CUDA")
_NESTED = ("NestedTensorCPU", "NestedTensorCUDA", "CompositeImplicitAutogradNestedTensor")


@functools.cache
def is_composite(overload: str, nested: bool = False) -> bool:
    """Whether ``namespace::name.overload`` only calls others; one with a kernel of its own beside that does not.

    Args:
        overload: the operator.
        nested: on nested tensors (strided), which some have kernels of their own for.
    """
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    backends = (*_BACKENDS, *_NESTED) if nested else _BACKENDS
    return has(overload, _COMPOSITE) and not any(has(overload, backend) for backend in backends)


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
