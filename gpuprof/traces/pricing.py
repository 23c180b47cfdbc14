"""What a trace says of the inputs of an operator, turned into a row of the ``ops`` table. No torch.

Files differ in what they have. From 2023 on there are the values of numbers and of lists of them; before, nobody knows
a stride, and so the result of a convolution. Files of 2020 have no dtypes either. None has the texts among the
arguments, dtypes in a list of tensors, or anything of a list of more than 30. What is not there is `MISSING`: a rule
that does not ask for it gives its FLOPs, one that does gives none.
"""

from __future__ import annotations

import functools
from itertools import zip_longest
from typing import Any

from gpuprof.errors import GpuprofError
from gpuprof.theory import rule_for
from gpuprof.theory.generated import TEMPLATE, Generated, generated
from gpuprof.theory.priced import Described, describe
from gpuprof.theory.results import result_of
from gpuprof.theory.rules import MISSING, PRODUCTS, Missing, NotKnownError, TensorSpec
from gpuprof.traces.events import Inputs

NO_SHAPES = "shapes of its inputs are not recorded"
NO_VALUES = "values of its arguments are not recorded"
NO_LISTS = "its list of tensors is not recorded"
NO_RESULT = "the shape of its result cannot be told from its inputs"
NOT_STORED = "what its sparse factor stores is not recorded"
NO_RULE = "it has no FLOP rule"
UNLIKE = "its inputs are unlike those that its FLOP rule knows"
IN_TEMPLATE = "the sizes of what its template multiplies are not recorded"

_DTYPES = {
    "bool": "bool", "unsigned char": "uint8", "signed char": "int8", "char": "int8", "short": "int16",
    "short int": "int16", "int": "int32", "long": "int64", "long int": "int64", "long long": "int64",
    "long long int": "int64", "__int64": "int64", "float": "float32", "double": "float64", "c10::Half": "float16",
    "c10::BFloat16": "bfloat16", "c10::complex<c10::Half>": "complex32", "c10::complex<float>": "complex64",
    "c10::complex<double>": "complex128", "unsigned short": "uint16", "short unsigned int": "uint16",
    "unsigned int": "uint32", "unsigned long": "uint64", "long unsigned int": "uint64", "unsigned long long": "uint64",
    "unsigned __int64": "uint64",
}  # fmt: skip
"""Names of C++ types, as compilers spell them; those of c10 are torch's own."""

# Arguments that a rule asks for by name, where they stand among all of an operator.
_ADAM = dict(enumerate("lr beta1 beta2 weight_decay eps amsgrad maximize grad_scale found_inf".split(), 6))
_KEYWORDS: dict[str, dict[int, str]] = {
    "aten::gelu": {1: "approximate"},
    "aten::gelu_": {1: "approximate"},
    "aten::gelu_backward": {2: "approximate"},
    "aten::_scaled_dot_product_flash_attention_for_cpu": {5: "attn_mask", 6: "scale"},
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": {8: "attn_mask", 9: "scale"},
    "aten::_flash_attention_forward": {
        10: "scale", 11: "window_size_left", 12: "window_size_right", 13: "seqused_k", 14: "alibi_slopes",
        15: "block_table", 16: "num_splits",
    },
    "aten::_flash_attention_backward": {14: "scale", 15: "window_size_left", 16: "window_size_right"},
    "aten::_efficient_attention_forward": {11: "scale", 12: "seqlen_k", 13: "window_size"},
    "aten::_efficient_attention_backward": {16: "scale", 17: "num_splits_key", 18: "window_size"},
    "aten::_fused_adam_": _ADAM,
    "aten::_fused_adamw_": _ADAM,
    "aten::_fused_sgd_": dict(enumerate("weight_decay momentum lr dampening nesterov maximize".split(), 3)),
    "aten::_fused_adagrad_": dict(enumerate("lr lr_decay weight_decay eps maximize".split(), 4)),
}  # fmt: skip

# How many arguments stand before the result, in operators that are told where to write it by others than torch itself.
_BEFORE_OUT = {
    "aten::mm": 2, "aten::bmm": 2, "aten::addmm": 5, "aten::baddbmm": 5, "aten::mv": 2, "aten::dot": 2,
    "aten::_int_mm": 2, "aten::_scaled_mm": 8, "aten::convolution": 9, "aten::cat": 2, "aten::stack": 2,
    "aten::index_select": 3, "aten::gather": 4,
}  # fmt: skip

# Where arguments stand that no file has: texts, and lists of tensors some of which may be none.
_NEVER = {
    "aten::index": 1, "aten::_unsafe_index": 1, "aten::index_put": 1, "aten::index_put_": 1, "aten::linalg_qr": 1,
    "aten::_index_put_impl_": 1, "aten::_unsafe_index_put": 1, "aten::_sparse_mm_reduce_impl": 2,
}  # fmt: skip

# Where tensors stand that may be none, in operators whose rule asks: files without values call a list the same.
_OPTIONAL = {
    "aten::_scaled_dot_product_efficient_attention": (3,),
    "aten::_scaled_dot_product_efficient_attention_backward": (4,),
    "aten::_scaled_dot_product_cudnn_attention": (3,),
    "aten::_scaled_dot_product_cudnn_attention_backward": (8,),
    "aten::_flash_attention_forward": (3, 4, 13, 15),
    "aten::_flash_attention_backward": (6, 7),
    "aten::_efficient_attention_forward": (3, 4, 5, 12),
    "aten::_efficient_attention_backward": (4, 6, 7),
}

# Operators of sparse tensors: of these a file has the shape, and not what they store.
_SPARSE = frozenset(
    f"aten::{name}"
    for name in "_sparse_addmm _sparse_sparse_matmul _sparse_mm_reduce_impl _sparse_mm_reduce_impl_backward hspmm "
    "sparse_sampled_addmm".split()
)

# How many arguments there are at least: with fewer, those of an earlier torch stand elsewhere.
_AT_LEAST = {
    "aten::_efficient_attention_forward": 14,
    "aten::_scaled_dot_product_cudnn_attention_backward": 16,
}

_TEXT_DECIDES = ("aten::gelu", "aten::gelu_", "aten::gelu_backward")
"""Operators whose vector FLOPs depend on a text, and nothing else of them does."""

_PAIRS = frozenset(
    f"aten::{name}{how}"
    for name in "add sub rsub mul div true_divide remainder fmod floor_divide pow maximum minimum eq ne lt le gt ge "
    "bitwise_and bitwise_or bitwise_xor logical_and logical_or logical_xor where atan2 xlogy".split()
    for how in ("", "_")
)
_OF_PYTHON = {"float64": 1.0, "int64": 1, "complex128": 1j}
"""Numbers of Python are tensors without dimensions to these operators, of these dtypes: any number stands for them."""


_NUMBER = Missing(number=True)


def described(name: str, inputs: Inputs | None, device: str, causal: bool | None = None) -> Described:
    """What a call of an operator with these inputs says in the ``ops`` table.

    Args:
        name: ``namespace::name``.
        inputs: as the file has them; None where it has none.
        device: type of the device, of which the dtype of some results depends.
        causal: whether an attention is, where the file does not say. None counts its FLOPs as if it were not, the most
            that they can be. Its causality is unknown either way.

    Returns:
        Figures that the inputs do not tell are None: FLOPs of products with a reason in `Described.lacks`; vector FLOPs
        and bytes each by itself.
    """
    if made := generated(name):
        return _of_generated(name, made, inputs)
    rule = rule_for(name)
    if inputs is None or inputs.shapes is None:
        return _unknown(name, NO_SHAPES if rule else NO_RULE)
    if inputs.sparse and rule is not None and rule.kind != "view":
        return _unknown(name, NOT_STORED)
    try:
        args = _arguments(name, inputs, _NUMBER)
        if len(args) < _AT_LEAST.get(name, 0):
            return _unknown(name, UNLIKE)
        if args and args[0] is None and rule is not None and rule.kind == "vector":  # a nested tensor
            return _unknown(name, UNLIKE)
        out = result_of(name, tuple(args), device)
        found = _priced(name, args, out, device)
        if not found.kind and rule is not None and rule.kind == "attention":
            found = _priced(name, _arguments(name, inputs, Missing(True, bool(causal))), out, device)
            found = found._replace(causality="unknown", bound=True) if found.kind else found
    except (GpuprofError, NotKnownError, AttributeError, LookupError, TypeError, ValueError):
        return _unknown(name, UNLIKE)
    if found.kind:
        return found
    if rule is None:
        return found._replace(lacks=NO_RULE)
    if name in _SPARSE:
        lacks = NOT_STORED
    elif any(kind == "TensorList" and not dims for kind, dims in zip(inputs.types or (), inputs.shapes, strict=False)):
        lacks = NO_LISTS
    else:
        lacks = NO_RESULT if out is MISSING and inputs.concrete is not None else NO_VALUES
    return _unknown(name, lacks, found.shapes, found.dtype)


def _unknown(name: str, lacks: str, shapes: str = "", dtype: str = "") -> Described:
    """A call without its figures; that it multiplies nothing is known by its rule."""
    rule = rule_for(name)
    if rule is None or rule.kind in PRODUCTS:
        return Described(name, rule.kind if rule else "", shapes, dtype, (None,) * 5, "", lacks=lacks)
    adds = rule.kind == "vector" or "index_put" in name
    moved = (0, 0) if rule.kind == "view" else (None if adds else 0, None)
    return Described(name, rule.kind, shapes, dtype, (0, 0, 0, *moved), "")


def _of_generated(name: str, made: Generated, inputs: Inputs | None) -> Described:
    """A kernel that Inductor generated: what is no template has no matmul FLOPs, all else of it is not known.

    A file may have the shapes of its arguments, but of the tensors as they are stored: what it reads of them, and as
    which sizes, only its code says.
    """
    args = _arguments(name, inputs, _NUMBER) if inputs is not None and inputs.shapes is not None else []
    known = describe(name, tuple(args), {}, MISSING, None, "")
    if made.work == TEMPLATE:
        return known._replace(kind=made.kind, lacks=IN_TEMPLATE)
    if not made.kind:
        return known._replace(lacks=NO_RULE)
    return known._replace(kind=made.kind, priced=(0, 0, 0, 0 if made.kind == "movement" else None, None))


def _priced(name: str, args: list[Any], out: Any, device: str) -> Described:
    keywords = {at: word for at, word in _KEYWORDS.get(name, {}).items() if at < len(args)}
    given = tuple(value for at, value in enumerate(args) if at not in keywords)
    named = {word: args[at] for at, word in keywords.items()}
    end = _BEFORE_OUT.get(name)
    if end is not None and len(given) > end and isinstance(given[end], TensorSpec):
        given, named = given[:end], {**named, "out": out}
    if name in _SPARSE:
        given = (MISSING,) * len(given)
    if name in _TEXT_DECIDES:
        found = describe(name, given, {"approximate": "none"}, out, None, device)
        *others, _vector, nbytes = found.priced
        return found._replace(priced=(*others, None, nbytes))
    return describe(_overload(name, args), given, named, out, None, device)._replace(op=name)


def _overload(name: str, args: list[Any]) -> str:
    """The overload that these arguments are of, where some have rules of their own."""
    if name == "aten::_scaled_dot_product_flash_attention" and not isinstance(args[3], (float, int, Missing)):
        return f"{name}.quantized"
    if name == "aten::_slow_conv2d_backward" and len(args) == 7:
        return f"{name}.output_mask"
    if name == "mkldnn::_linear_pointwise" and len(args) == 5:
        return f"{name}.binary"
    return name


# -- arguments


def _arguments(name: str, inputs: Inputs, number: Missing) -> list[Any]:
    """Arguments as a rule takes them, numbers that the file does not have as this."""
    types = inputs.types or ()
    lists = [dims for dims, kind in zip(inputs.shapes, types, strict=False) if kind == "TensorList"]
    parts = zip_longest(inputs.shapes, types, inputs.concrete or ())
    args: list[Any] = []
    for dims, kind, text in parts:
        if (dims and isinstance(dims[0], list)) or (kind == "TensorList" and any(lists)):
            args.append(tuple(TensorSpec(_shape(each), "") for each in dims))
        elif dims:
            args.append(TensorSpec(_shape(dims), _dtype(kind or "")))
        elif kind in ("Scalar", "ScalarList"):
            args.append(_value(text) if text else number)
        elif kind == "" and inputs.concrete is not None:
            args.append(None)
        elif kind in _DTYPES or (kind or "").startswith("c10::"):
            args.append(TensorSpec((), _dtype(kind)))
        else:
            args.append(MISSING)
    never = _NEVER.get(name)
    if never is not None and never < len(args):
        args[never] = MISSING
    if inputs.concrete is None:
        for at in _OPTIONAL.get(name, ()):
            if at < len(args) and isinstance(args[at], Missing) and types and types[at] == "":
                args[at] = None
    if name in _PAIRS:
        args = _of_python(args)
    return args


def _of_python(args: list[Any]) -> list[Any]:
    """The same with numbers for the tensors that torch makes of Python's; one tensor there must be."""
    tensors = [value for value in args if isinstance(value, TensorSpec)]
    made = [value for value in tensors if not value.shape and value.dtype in _OF_PYTHON]
    kept = made[0] if len(made) == len(tensors) and made else None
    return [
        _OF_PYTHON[value.dtype] if any(value is each for each in made) and value is not kept else value
        for value in args
    ]


def _shape(dims: Any) -> tuple[int, ...]:
    if not all(type(size) is int and 0 <= size < 2**63 for size in dims):
        raise ValueError(dims)
    return tuple(dims)


def _dtype(kind: str) -> str:
    """Torch's name of a dtype; one that is not known here keeps the name that the file has."""
    if kind in _DTYPES:
        return _DTYPES[kind]
    plain = kind.removeprefix("c10::")
    return plain[:1].lower() + plain[1:] if plain != kind else kind


@functools.lru_cache(4096)
def _value(text: str) -> Any:
    """A number or a list of them; missing where the text is neither."""
    if text.startswith("["):
        inside = text.strip("[] ")
        return tuple(_value(item.strip()) for item in inside.split(",")) if inside else ()
    if text in ("True", "False"):
        return text == "True"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return _NUMBER
