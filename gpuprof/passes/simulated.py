"""A step without weights, and what its tensors would take: every operator's result, as long as something holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gpuprof.attribution import Ownership, observed
from gpuprof.passes.caches import DEEPEST
from gpuprof.passes.kept import Held, Kept, kept_for_backward, total_bytes
from gpuprof.passes.modes import unseen
from gpuprof.passes.objects import named_tensors
from gpuprof.passes.phases import Phase, observed_phases
from gpuprof.theory.names import without_overload
from gpuprof.workload import Workload, weightless
from gpuprof.workload.steps import tensors

_to_copy = torch.ops.aten._to_copy.default
_sdpa = torch.nn.functional.scaled_dot_product_attention


class Simulated(NamedTuple):
    """Bytes of a simulated step.

    Attributes:
        kept: what its forward keeps for the backward, by module.
        live: after each operator, tensors that the step made and that are still there; without parameters, buffers
            and inputs.
        phases: in which phase each operator ran.
        parts: of a generation, how many of its parts had begun when each operator ran.
        cache: of a generation, what its cache holds at the end of each of its phases; none where none is handed on.
    """

    kept: dict[str, int]
    live: list[int]
    phases: list[str]
    parts: list[int]
    cache: dict[str, int]


def simulate(workload: Workload, attention: Mapping[str, str]) -> Simulated:
    """Run a step without computing anything, and follow its tensors.

    What an operator takes while it runs is not seen.

    Args:
        workload: one built without weights.
        attention: the operator that carries out fused attention, by module, as a real step had it: it depends on the
            device. Other modules spell their attention out.

    Raises:
        GpuprofError: the step does something that it cannot do without weights.
    """
    kept = Kept()
    with (
        torch.compiler.set_stance("force_eager"),
        torch.autograd.set_multithreading_enabled(False),
        observed(workload.model, through_compiled=True, again=lambda: attending) as ownership,
        observed_phases(workload) as phase,
        kept_for_backward(workload.model, ownership, kept),
        weightless.Answers(),
        unseen(attending := _FusedAttention(ownership, attention)),
        _Follower(workload.model, phase) as follower,
    ):
        workload.step()
        follower.note_cache()
    return Simulated(kept.by_module, follower.live, follower.phases, follower.parts, follower.cache)


class _Follower(TorchDispatchMode):
    """Carries out operators without weights, and notes what is there after each."""

    supports_higher_order_operators = True

    def __init__(self, model: torch.nn.Module, phase: Phase) -> None:
        super().__init__()
        self.live: list[int] = []
        self.phases: list[str] = []
        self.parts: list[int] = []
        self.cache: dict[str, int] = {}
        self._phase = phase
        self._held = Held()
        self._held.leave_out((*model.parameters(), *model.buffers()))

    def note_cache(self) -> None:
        """The part of a generation to which the last operator belongs is over, and the next one is given the cache."""
        generating = self._phase.generating
        if self.phases and generating is not None and generating.cache is not None:
            self.cache[self.phases[-1]] = total_bytes(tensor for _, tensor in named_tensors(generating.cache, DEEPEST))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _to_copy and "device" in kwargs and kwargs.get("dtype", args[0].dtype) == args[0].dtype:
            return args[0]  # to the device of the model: there a real step has it already
        if self.parts and len(self._phase.parts) > self.parts[-1]:
            self.note_cache()
        out = weightless.execute(func, args, kwargs)
        for tensor in tensors(out):
            self._held.add(tensor)
        self.live.append(self._held.bytes)
        self.phases.append(self._phase.name)
        self.parts.append(len(self._phase.parts))
        return out


class _FusedAttention(TorchFunctionMode):
    """Carries out attention as the named operators, where torch would spell it out for tensors without values."""

    def __init__(self, ownership: Ownership, attention: Mapping[str, str]) -> None:
        super().__init__()
        self._ownership = ownership
        self._attention = attention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        scope = self._ownership.running()
        if func is _sdpa and scope is not None and scope.module in self._attention:
            return _attend(self._attention[scope.module], *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    op: str, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """Fused attention by the operator of this name, with those of the arguments that it takes."""
    namespace, _, name = without_overload(op).partition("::")
    operator = getattr(getattr(torch.ops, namespace), name).default
    given = {
        "attn_mask": attn_mask, "attn_bias": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal, "scale": scale,
        "compute_log_sumexp": True,
    }  # fmt: skip
    takes = {argument.name for argument in operator._schema.arguments}
    return operator(query, key, value, **{name: value for name, value in given.items() if name in takes})[0]
