"""Names of operators and kernels: which communicate, what is an overload. Decided here and nowhere else."""

from __future__ import annotations

import re
from functools import cache

from gpuprof.late import pattern

_FUNCTION = pattern(r"(?:void )?((?:::)?\w+(?:::\w+)*(?:\.\w+)?)")
_ANONYMOUS = pattern(r"(\(anonymous namespace\)|<unnamed>|\{anonymous\})::")
_MULTIPLIED_TOO = pattern(r"symm_mem::(fused_\w*matmul|_async_input_mm)")
_COMMUNICATION = pattern(
    r"""
    (c10d|_?c10d_functional(_autograd)?|symm_mem)::                       # operators, by their namespace
    |record_param_comms$
    |vllm::(all_|reduce_scatter)|_dtensor::shard_dim_alltoall
    |(\w+::)*(nccl[A-Z]|rccl[A-Z_]|multimem_|msccl|nvshmem|deep_ep)       # kernels, by how a part of their path begins
    |.*(one_shot_all_reduce|two_shot_all_reduce|cross_device_reduce|allreduce_fusion)
    """,
    re.VERBOSE,
)
_PERHAPS = pattern("all_?reduce|all_?gather|reduce_?scatter|all_?to_?all", re.IGNORECASE)
_ALL_REDUCE = pattern("all_?reduce", re.IGNORECASE)


def without_overload(op: str) -> str:
    """``aten::add`` for ``aten::add.Tensor``."""
    return op.partition(".")[0]


@cache
def communicates(name: str) -> bool:
    """Whether a kernel or an operator moves data between devices or processes, or waits for that, by its name.

    What an operator of this kind calls, and the kernels it launches, are communication too. An operator that also
    multiplies, such as ``symm_mem::fused_all_gather_matmul``, is none; of its kernels those whose own name says so.

    Args:
        name: of a kernel, demangled or not, or of an operator, with or without its overload. Only the function's own
            name counts, not its template arguments. A text that is no name of a function, such as a label, is none.
    """
    function = function_of(name)
    return bool(_COMMUNICATION.match(function)) and not _MULTIPLIED_TOO.match(function)


@cache
def all_reduces(name: str) -> bool:
    """Whether it sums up over processes what each of them then has, as DDP does with gradients."""
    return communicates(name) and bool(_ALL_REDUCE.search(name))


def perhaps_communicates(name: str) -> bool:
    """Whether the name of a kernel or an operator has that of a collective, but is none that `communicates`."""
    return bool(_PERHAPS.search(function_of(name))) and not communicates(name)


def function_of(name: str) -> str:
    """The path of a function, without its return type, template arguments and parameters; empty if it is none."""
    if name.startswith("_Z"):
        return "::".join(_mangled(name))
    found = _FUNCTION.fullmatch(re.split(r"[<(\[]", _ANONYMOUS.sub("", name), maxsplit=1)[0].strip())
    return found[1].removeprefix("::") if found else ""


def _mangled(name: str) -> list[str]:
    """The parts of the path in a name as the Itanium C++ ABI mangles it: each has its length before it."""
    parts, rest = [], re.sub("^_ZN?K?L?", "", name)
    while length := re.match(r"\d+", rest):
        begin, end = length.end(), length.end() + int(length[0])
        parts.append(rest[begin:end])
        rest = rest[end:]
    return parts
