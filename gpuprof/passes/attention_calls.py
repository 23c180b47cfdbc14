"""Calls of torch's attention functions, which are taken apart before a dispatch mode sees them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gpuprof.attribution import Ownership, Scope
from gpuprof.passes.place import Place
from gpuprof.theory.masks import AttentionFacts

_sdpa = torch.nn.functional.scaled_dot_product_attention
_multi_head = torch.nn.functional.multi_head_attention_forward


class AttentionCalls(TorchFunctionMode):
    """Opens a scope around torch's attention functions, so that their parts know what the arguments said.

    They are taken apart, by the math backend or for the weights, before a dispatch mode sees them; only here is
    ``is_causal`` still known.
    """

    def __init__(self, ownership: Ownership, place: Place, fuse: bool) -> None:
        super().__init__()
        self.ownership = ownership
        self.place = place
        self.fuse = fuse
        self._scopes: dict[Scope, Scope] = {}  # one for all calls alike, so that their identity tells them

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _sdpa:
            return self._attend(*args, **kwargs)
        if func is _multi_head:
            causal = True if kwargs.get("is_causal") else False if kwargs.get("attn_mask") is None else None
            width, heads = args[3:5]
            facts = AttentionFacts(causal, None, (width // heads,), align="top-left")
            with self._within(self.place.now()[0].module, facts):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _within(self, module: str, facts: AttentionFacts) -> AbstractContextManager[None]:
        scope = Scope(module, facts)
        return self.ownership.within(self._scopes.setdefault(scope, scope))

    def _attend(
        self, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        around, _ = self.place.now()
        dims = (query.size(-1), value.size(-1))  # of strided nested tensors too, which have no shape
        if attn_mask is None:
            facts = AttentionFacts(is_causal, None, dims, align="top-left")
        elif around.facts is not None:
            facts = replace(around.facts, head_dims=dims)
        else:
            facts = AttentionFacts(None, None, dims)
        with self._within(around.module, facts):
            if self.fuse and not query.is_nested and attn_mask is None and dims[0] == dims[1]:
                # the default backend of meta tensors is the slow one; any of them counts the same
                fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
                return fused(query, key, value, 0.0, is_causal, scale=kwargs.get("scale"))[0]
            return _sdpa(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)
