"""Under which convention FLOPs are added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Convention:
    """One way of counting.

    Attributes:
        name: what the user writes and every total shows.
        title: one sentence on what is counted.
        source: where it comes from.
        field: the field of `gpuprof.theory.Cost` that is added up.
    """

    name: str
    title: str
    source: str
    field: Literal["causal", "full"]


CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "causal",
            "Matrix multiplications and convolutions as they ran, attention over unmasked pairs only.",
            "the mathematics; FlashAttention's benchmark and Megatron-LM halve the square instead",
            "causal",
        ),
        Convention(
            "full",
            "Matrix multiplications and convolutions as they ran, attention over the whole square.",
            "PaLM (arXiv 2204.02311, appendix B), torchtitan and torch.utils.flop_counter count attention so",
            "full",
        ),
    )
}
"""Every convention by name."""

DEFAULT_CONVENTION = "causal"
