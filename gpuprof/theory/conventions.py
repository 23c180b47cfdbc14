"""Under which convention FLOPs are added up: rules on the operators that ran, and closed formulas for a whole step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpuprof.errors import GpuprofError

from . import calflops, formulas, rows
from .architecture import Architecture


@dataclass(frozen=True)
class Convention:
    """One way of counting.

    Attributes:
        name: what the user writes and every total shows.
        title: one sentence on what is counted.
        source: where it comes from.
        modules_in: the field of `gpuprof.theory.Cost` that modules are counted in. All there is to ``causal`` and
            ``full``; with ``rule`` what their figures are nearest to; with ``parts`` what modules fall back to,
            as a formula knows only the whole step.
        assumptions: what it takes for granted, one sentence each.
        rule: MACs and FLOPs of one row of the operator table, in a convention that counts otherwise.
        parts: FLOPs of a whole step by part, in a convention that is a formula.
        misfit: why the formula does not describe a step, None where it does.
        backward_factor: forwards that a backward is taken for, where the backward is not counted.
        recompute_in_backward: whether a forward that is run again counts as backward.
    """

    name: str
    title: str
    source: str
    modules_in: Literal["causal", "full"]
    assumptions: tuple[str, ...] = ()
    rule: Callable[[rows.Row], rows.Count] | None = None
    parts: Callable[[Architecture], formulas.Parts] | None = None
    misfit: Callable[[Architecture], str | None] = formulas.misfit
    backward_factor: int | None = None
    recompute_in_backward: bool = False

    def applies_to(self, facts: Mapping[str, Any] | None) -> str:
        """Why it does not describe a step with these facts of its workload; empty where it does."""
        if self.parts is None:
            return ""
        if not facts:
            return "it needs the sizes of a Hugging Face model, and this run does not record them"
        return self.misfit(Architecture.from_facts(facts)) or ""


_STACKS = "For encoders, encoder-decoders and vision transformers it is gpuprof's reading; the source has decoders."
_ENDS = "V of a classifier meets one position per sequence; pooler, transform and patch embedding are left out."

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
        Convention(
            "flash",
            "As counted, but causal attention is half the square, and its fused backward 2.5 forwards.",
            "FlashAttention, benchmarks/benchmark_flash_attention.py",
            "causal",
            ("Half of the square leaves out half of the diagonal.",
             "A fused backward computes the scores once more, and that counts.",
             "Windows narrower than the sequence are not known: they count as half the square."),
            rule=rows.flash,
        ),
        Convention(
            "torch-counter",
            "What torch.utils.flop_counter.FlopCounterMode says, its gaps included.",
            "torch 2.13, torch/utils/flop_counter.py",
            "full",
            ("Attention is the whole square, a fused backward five products, recomputation a part of the backward.",
             "Fused attention on a CPU, grouped and integer matmul and fused recurrent layers count 0.",
             "Sparse products count as if they were dense, complex ones as if they were real.",
             "The weight gradient of a grouped convolution counts as many times as there are groups.",
             "Counted without a device, fused attention is taken to run in one of the kernels of a GPU."),
            rule=rows.torch_counter,
            recompute_in_backward=True,
        ),
        Convention(
            "calflops",
            "What calflops would print, its faults included: no fused attention, products lined up from the left.",
            "calflops (github.com/MrYxJ/calculate-flops.pytorch), by its behaviour in tests/data/reports",
            "full",
            ("Only the forward is counted, in evaluation mode; a backward is twice the forward.",
             "Fused attention is 0; elementwise FLOPs are in the same sum as those of multiplications.",
             "Additions and products of tensors of unequal rank cost the product of both shapes from the left.",
             "Every addition, product, softmax and batched matmul is taken to come from a function that it replaces.",
             "Rotary tables and GELUTanh count as in the transformers of its day, and the bias of a transposed "
             "convolution is left out.",
             "It is the calflops of the report that gpuprof was made to validate; calflops-0.3 is today's."),
            rule=calflops.count,
            backward_factor=calflops.BACKWARD_FACTOR,
        ),
        Convention(
            "calflops-0.3",
            "What calflops 0.3.2 prints on torch 2.13: as calflops, but it does not see operators such as + and *.",
            "calflops 0.3.2 (github.com/MrYxJ/calculate-flops.pytorch), run",
            "full",
            ("Only the forward is counted, in evaluation mode; a backward is twice the forward.",
             "Fused attention is 0; elementwise FLOPs are in the same sum as those of multiplications.",
             "Every addition and product is taken to be an operator, every softmax and batched matmul a function.",
             "The bias of a transposed convolution is left out."),
            rule=calflops.count_today,
            backward_factor=calflops.BACKWARD_FACTOR,
        ),
        Convention(
            "palm",
            "6 N + 12 L H Q s per token: every parameter multiplies, attention over the whole square.",
            "PaLM, arXiv 2204.02311, appendix B",
            "full",
            ("N is every parameter: lookup tables, norms and biases too; a tied table counts once.",
             _STACKS,
             "A pooler, a classifier and the patch embedding multiply at every position too, as every parameter does.",
             "Of two stacks each has its own N and positions; a table that both look up is in both.",
             "A backward is two forwards."),
            parts=formulas.palm,
            misfit=formulas.misfit_dense,
        ),
        Convention(
            "chinchilla",
            "Appendix F: every multiplication, the embedding as one, and the softmax; attention the whole square.",
            "Hoffmann et al., arXiv 2203.15556, appendix F",
            "full",
            ("The embedding counts as a multiplication with its table, as the appendix says; its own tables leave "
             "embedding and logits out.",
             "Softmax is 3 FLOPs per score; norms and activations are 0.",
             "Keys shared between heads and gates are counted as they are, which the paper did not have.",
             _STACKS,
             "The embedding is the table of tokens alone; patches are embedded by a multiplication of their own.",
             "A backward is two forwards."),
            parts=formulas.chinchilla,
            misfit=formulas.misfit_dense,
        ),
        Convention(
            "megatron",
            "Megatron-LM's own count: three forwards, 2 m n k per multiplication, half the attention square.",
            "NVIDIA Megatron-LM, megatron/training/training.py, num_floating_point_operations (main)",
            "causal",
            ("Releases before the square was halved are megatron-paper's reading.",
             "Routers, norms, biases and lookups are 0; the vocabulary is not padded here.",
             _STACKS,
             "Only causal attention is half a square: that of an encoder and cross-attention are whole.",
             "A backward is two forwards."),
            parts=formulas.megatron,
        ),
        Convention(
            "megatron-paper",
            "72 B L s h^2 (1 + s/6h + V/12hL): attention over the whole square, for the layers of GPT.",
            "Korthikanti et al., arXiv 2205.05198, appendix A",
            "full",
            ("Layers are GPT's: four matrices of h x h and two of h x 4h, also in an encoder or a vision transformer.",
             _ENDS,
             "A backward is two forwards."),
            parts=formulas.megatron_paper,
            misfit=formulas.misfit_gpt,
        ),
        Convention(
            "megatron-hfu",
            "96 B L s h^2 (1 + s/6h + V/16hL): four forwards of the layers, three of the head; its MFU is an HFU.",
            "Narayanan et al., arXiv 2104.04473; written out for any width of heads and feed-forward",
            "full",
            ("Every layer is run once more in the backward, whether this run did so or not.",
             "Attention is the whole square, and the fused backward's own recomputation is not in it.",
             _STACKS,
             _ENDS),
            parts=formulas.megatron_hfu,
            misfit=formulas.misfit_recompute,
        ),
        Convention(
            "torchtitan",
            "6 (N - N_emb) + 6 L H (d_qk + d_v) s per token: attention over the whole square.",
            "torchtitan, torchtitan/models/utils.py",
            "full",
            ("Lookup tables are left out; where input and output share one, nothing is.",
             "Of experts, those count that a token is sent to.",
             "It is for decoders, which torchtitan trains.",
             "A backward is two forwards."),
            parts=formulas.torchtitan,
            misfit=formulas.misfit_decoder,
        ),
        Convention(
            "mosaic",
            "3 (2 N + 4 L d s) per token: every parameter multiplies, attention as wide as the model.",
            "MosaicML llm-foundry, scripts/train/benchmarking/README.md (MFU)",
            "full",
            ("N is every parameter that a token meets, lookup tables too; llm-foundry's models tie them.",
             "Heads are together as wide as the model.",
             "It is for decoders, which llm-foundry trains.",
             "A backward is two forwards."),
            parts=formulas.mosaic,
            misfit=formulas.misfit_decoder,
        ),
    )
}  # fmt: skip
"""Every convention by name."""

DEFAULT_CONVENTION = "causal"


def convention(name: str, facts: Mapping[str, Any] | None = None, model: str = "this model") -> Convention:
    """A convention by name, if it describes the step.

    Args:
        name: of `CONVENTIONS`.
        facts: of the workload, what `Architecture.from_facts` reads.
        model: what to call the model in an error.

    Raises:
        GpuprofError: there is no such convention, or it does not fit the model.
    """
    if name not in CONVENTIONS:
        raise GpuprofError(f"no convention {name!r}: known are {', '.join(CONVENTIONS)}")
    reason = CONVENTIONS[name].applies_to(facts)
    if reason:
        raise GpuprofError(f"convention {name} does not fit {model}: {reason}")
    return CONVENTIONS[name]
