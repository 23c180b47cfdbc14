"""What an operator costs, from its shapes alone. Importing it registers every rule; torch is not loaded."""

from __future__ import annotations

from . import attention, communication, convolution, inner, linalg, matmul, prims, quantized, recurrent, varlen, vector
from .architecture import Architecture
from .conventions import CONVENTIONS, DEFAULT_CONVENTION, Convention, convention
from .masked import masked_matmul, with_facts
from .masks import AttentionFacts, unmasked_pairs
from .rules import RULES_VERSION, Cost, Kind, TensorSpec, cost_of, flop_rule, least_bytes, rule_for

__all__ = [
    "CONVENTIONS",
    "DEFAULT_CONVENTION",
    "RULES_VERSION",
    "Architecture",
    "AttentionFacts",
    "Convention",
    "Cost",
    "Kind",
    "TensorSpec",
    "attention",
    "communication",
    "convention",
    "convolution",
    "cost_of",
    "flop_rule",
    "inner",
    "least_bytes",
    "linalg",
    "masked_matmul",
    "matmul",
    "prims",
    "quantized",
    "recurrent",
    "rule_for",
    "unmasked_pairs",
    "varlen",
    "vector",
    "with_facts",
]
