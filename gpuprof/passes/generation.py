"""Which part of a generation a call of the model is: an encoding, a prefill, or a step of decoding.

A call tells by what it is given: the cache, and how many positions are new. Nothing is read from the device.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from gpuprof.workload import Workload
from gpuprof.workload.steps import CACHE_NAMES

_POSITIONS = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds", "input_features")


class Part(NamedTuple):
    """One part of a generation.

    Attributes:
        phase: encode, prefill or decode.
        samples: sequences that it works on, None where the call's inputs do not tell.
        positions: positions of each that are new to it, likewise.
    """

    phase: str
    samples: int | None
    positions: int | None


class Parts:
    """The parts of one step after another.

    Args:
        workload: of mode ``generate``.

    Attributes:
        modules: whose calls are parts.
        first: phase in which a step begins, until a call says otherwise.
        cache: what the last call of the model was given as its cache, and may have added to.
    """

    def __init__(self, workload: Workload) -> None:
        model = workload.model
        self._encoder = _encoder(model)
        self.modules = [model, *([self._encoder] if self._encoder is not None else [])]
        self.first = "encode" if self._encoder is not None else "prefill"
        self._taken = taken(model)
        self._cache_names = tuple(name for name in CACHE_NAMES if name in self._taken)
        self.start()

    def start(self) -> None:
        """A step starts."""
        self._last: str | None = None
        self.cache: Any = None

    def part_of(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Part:
        """What a call of one of the `modules`, inside none of the others, is."""
        samples, positions = _size(module, args, kwargs)
        if module is self._encoder:
            return Part("encode", samples, positions)
        given = dict(zip(self._taken, args, strict=False)) | dict(kwargs)
        # a library that renames its cache takes it under the old name too
        names = CACHE_NAMES if self._cache_names else ()
        cache = next((given[name] for name in names if given.get(name) is not None), None)
        kept = given.get("logits_to_keep")
        verified = isinstance(kept, int) and kept == positions
        phase = "decode" if self._goes_on(cache, positions == 1 or verified) else "prefill"
        self._last, self.cache = phase, cache
        return Part(phase, samples, positions)

    def _goes_on(self, cache: Any, made: bool) -> bool:
        """Whether a call goes on from the one before by what that has made: a token, or a few that are verified.

        More positions right after a prefill are another piece of it, unless all their logits are asked for. Of a model
        that is given no cache they are another prompt, at any time.

        Args:
            cache: that it is given.
            made: whether it may be given what the one before has made, right after a prefill.
        """
        if self._last is None or (self._cache_names and cache is None):
            return False
        if not self._cache_names:
            return made
        same = self.cache is None or cache is self.cache or isinstance(cache, (tuple, list))
        return same and (made or self._last == "decode")


def _encoder(model: Any) -> torch.nn.Module | None:
    """What an encoder-decoder of transformers calls once per generation; None of any other model."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    try:
        found = model.get_encoder()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, torch.nn.Module) and found is not model else None


def taken(model: torch.nn.Module) -> tuple[str, ...]:
    """The names of what a model's forward takes, in their order; none where it does not say."""
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):  # its own forward takes anything
        model = model._orig_mod
    try:
        return tuple(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return ()


def _size(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Sequences and new positions of a call: the first two dimensions of what it is given first of all."""
    named = (kwargs.get(name) for name in (*reversed(_POSITIONS[2:4]), *_POSITIONS))
    given = next((value for value in (*named, *args) if isinstance(value, torch.Tensor) and value.dim() >= 2), None)
    if given is None or given.is_nested:
        return None, None
    return given.shape[0], given.shape[-1 if given.dim() == 2 else 1]
