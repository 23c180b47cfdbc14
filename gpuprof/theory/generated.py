"""What Inductor names the kernels that it generates, read back: the operators fused in one, and how it works.

A name is ``triton_poi_fused_gelu_view_1``: the language, how the kernel works, the operators of the model's graph that
it was made of, each once in the order of the alphabet, and a number. In a trace of a CPU it is
``graph_0_cpp_fused_gelu_view_1``: the number of the graph is before it, and nothing says how it works. The operators'
names are joined by the sign that is inside them too, so they are told apart by those that are known and by their order,
the longest first.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from gpuprof.late import pattern

from .rules import PRODUCTS, rule_for

POINTWISE = "pointwise"
REDUCTION = "reduction"
TEMPLATE = "template"
FOREACH = "foreach"
SCAN = "scan"

_WORKS = {
    "poi": POINTWISE, "red": REDUCTION, "per": REDUCTION, "tem": TEMPLATE, "for": FOREACH, "spl": SCAN, "unk": "",
}  # fmt: skip
_TEMPLATES = ("cutlass", "rocm", "cutedsl", "nv_universal_gemm")
"""Languages in which it writes templates alone."""

_NAME = pattern(
    r"(?:\w+?_)??"  # of the graph, or of a model that was compiled ahead of time
    rf"(?:triton_(?P<work>{'|'.join(_WORKS)})|(?P<language>cpp|pallas|{'|'.join(_TEMPLATES)}))_fused(?P<rest>\w*?)"
    r"(?P<cut>\.\.\.|…)?"
)
_INDUCTOR = pattern(r"inductor::(?P<what>fused|template)(?P<rest>\w*?)(?P<cut>_and_more)?")
# Templates by themselves, as where they are tried out against one another, and those of the C++ backend.
_TRIED = pattern(
    r"triton_(?P<name>(?:scaled_)?(?:grouped_)?(?:mm|bmm|addmm|baddbmm)|mm_plus_mm|flex_attention(?:_backward)?"
    r"|flex_decoding|(?:depthwise_)?convolution\dd|b2b_gemm\w*?)(?:_[a-z]\w*?)??(?:_(?P<number>\d+))?"
)
_CPP_TEMPLATE = pattern(r"graph_\d+_(?:(?P<gemm>gemm)_m\d+n\d+k\d+_)?kernel")
# torch 2.0 called all kernels the same; then its Triton put what it knew of each argument behind every name
_NAMELESS = pattern(r"triton_(?:_kernel)?(?:_0[cde]*(?:\d+[cde]*)*)?")
_ARGUMENTS = pattern(r"_0[cde]*(?=[\dcde]*[cde])[\dcde]*$")
_HASH = pattern(r"_(?=[a-f]*\d)[0-9a-f]{8}$")

_BESIDES = frozenset(
    """
    all_gather_into_tensor all_reduce all_to_all_single reduce_scatter_tensor wait_tensor
    associative_scan auto_functionalized auto_functionalized_v2 flex_attention flex_attention_backward
    inline_asm_elementwise invoke_subgraph run_and_save_rng_state run_with_rng_state graphsafe_run_with_rng_state
    triton_kernel_wrapper_mutation
    _low_memory_max_pool_offsets_to_indices _low_memory_max_pool_with_offsets broadcast_in_dim convert_element_type
    inductor_lookup_seed inductor_randint inductor_random inductor_seed inductor_seeds prepare_softmax_online xor_sum
    dequantize_per_channel dequantize_per_tensor quantize_per_channel quantize_per_tensor
    _embedding_bag_backward _unsafe_masked_index_put_accumulate as_strided_scatter diagonal_copy diagonal_scatter
    fractional_max_pool2d fractional_max_pool2d_backward multi_margin_loss native_channel_shuffle
    reflection_pad3d reflection_pad3d_backward replication_pad1d_backward rrelu_with_noise_backward
    """.split()
)
"""Operators whose names have the joining sign in them and that no rule of ``aten`` has."""


class Generated(NamedTuple):
    """A kernel that Inductor generated, by its name.

    Attributes:
        work: `POINTWISE`, `REDUCTION`, `TEMPLATE` (a product or an attention), `FOREACH` (several kernels in one
            launch), `SCAN`; empty where the name does not say.
        ops: operators fused in it, without namespace, as ``gelu`` or ``native_layer_norm``; what no operator is known
            by stays in one piece. Empty where the name has none.
        number: of the kernel in its graph, None where there is none.
        more: whether the name was cut off, and there are more operators than these.
    """

    work: str
    ops: tuple[str, ...] = ()
    number: int | None = None
    more: bool = False

    @property
    def op(self) -> str:
        """What stands for its operator: ``inductor::fused_gelu_view``, of a template ``inductor::template_mm``."""
        what = "inductor::template" if self.work == TEMPLATE else "inductor::fused"
        return "_".join([what, *self.ops]) + ("_and_more" if self.more else "")

    @property
    def kind(self) -> str:
        """The kind of work, as in the ``ops`` table: what is no template multiplies no matrices.

        Products are in the names of other kernels where what came before or after one was fused. Empty where nothing is
        known of it.
        """
        rules = [rule_for(f"aten::{name}") for name in self.ops]
        kinds = {rule.kind if rule else "" for rule in rules}
        if self.work == TEMPLATE:
            attends = any("flex_attention" in name for name in self.ops)
            told = [rule.kind for rule in rules if rule and rule.kind in PRODUCTS]
            return "attention" if attends else told[0] if told else "matmul"
        if kinds and kinds <= {"movement", "view"}:
            return "movement"
        return "vector" if kinds or self.work else ""

    @property
    def words(self) -> str:
        """The operators in words, as ``gelu, view and more``; empty where the name has none."""
        return ", ".join(self.ops) + (" and more" if self.more else "")


@cache
def generated(name: str) -> Generated | None:
    """What a name says of a kernel that Inductor generated; None of any other's.

    Args:
        name: of a kernel on a device or of its event on the host, or what `Generated.op` makes of one.
    """
    if found := _NAME.fullmatch(name):
        made = _read(found["rest"], bool(found["cut"]))
        return made._replace(work=_WORKS.get(found["work"] or "", TEMPLATE if found["language"] in _TEMPLATES else ""))
    if found := _INDUCTOR.fullmatch(name):
        ops = tuple(_pieces(found["rest"][1:])) if found["rest"] else ()
        return Generated(TEMPLATE if found["what"] == "template" else "", ops, None, bool(found["cut"]))
    if found := _CPP_TEMPLATE.fullmatch(name):
        return Generated(TEMPLATE, ("mm",) if found["gemm"] else ())
    if found := _TRIED.fullmatch(name):
        return Generated(TEMPLATE, (_tried(found["name"]),), int(found["number"]) if found["number"] else None)
    return Generated("") if _NAMELESS.fullmatch(name) else None


def _tried(template: str) -> str:
    """The operator that a template is for."""
    if "convolution" in template:
        return "convolution"
    if template == "flex_decoding":
        return "flex_attention"
    return template if rule_for(f"aten::{template}") or template in _BESIDES else "mm"


def _read(rest: str, cut: bool) -> Generated:
    """Operators and number in what stands after ``fused`` in a name."""
    plain = _HASH.sub("", _ARGUMENTS.sub("", rest))
    number = re.search(r"_(\d+)$", plain)
    text = plain[: number.start()] if number else plain
    pieces = _pieces(text[1:]) if text[1:] else []
    # a whole name ends with the number, or, of tools that leave it out, with an operator
    ends = not pieces or _known(pieces[-1])
    more = cut or (number is None and not ends)
    return Generated("", tuple(pieces if ends or not more else pieces[:-1]), int(number[1]) if number else None, more)


def _pieces(text: str) -> list[str]:
    """Operators' names that are joined by the sign that is in them too, in order where all are known."""
    words = text.split("_")
    return _ordered(words, "") or _longest(words)


def _ordered(words: list[str], after: str) -> list[str] | None:
    """Known names, the longest first, each behind the one before in the alphabet; None where these words are not."""
    if not words:
        return []
    for end in range(len(words), 0, -1):
        name = "_".join(words[:end])
        if name > after and _known(name) and (others := _ordered(words[end:], name)) is not None:
            return [name, *others]
    return None


def _longest(words: list[str]) -> list[str]:
    """Known names, the longest first, and what is between them."""
    pieces: list[str] = []
    unknown: list[str] = []
    while words:
        end = next((end for end in range(len(words), 0, -1) if _known("_".join(words[:end]))), 0)
        if end and unknown:
            pieces.append("_".join(unknown))
            unknown = []
        if end:
            pieces.append("_".join(words[:end]))
        else:
            unknown.append(words[0])
        words = words[end or 1 :]
    return [*pieces, "_".join(unknown)] if unknown else pieces


def _known(name: str) -> bool:
    if name[:1] == "_" == name[-1:]:  # two that begin with the sign, which come first, meet more often than in place
        return False
    return bool(name) and (name in _BESIDES or rule_for(f"aten::{name}") is not None)
