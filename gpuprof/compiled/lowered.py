"""The captured graphs as tables, and whose work each call of a kernel is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from gpuprof.compiled.capture import Graph
from gpuprof.traces.owners import KernelCall

_GENERATED = re.compile(r"(?:cpp|triton_[a-z]+)_(\w+?)(?:_\d+)?$").match


class Lowered(NamedTuple):
    """What was made of a step.

    Attributes:
        graphs: rows of the ``graphs`` table.
        nodes: rows of ``nodes``.
        kernel_calls: by ``GRAPH/KERNEL:NUMBER``.
    """

    graphs: list[dict[str, Any]]
    nodes: list[dict[str, Any]]
    kernel_calls: dict[str, KernelCall]


def lowered(graphs: list[Graph], called: Mapping[str, int]) -> Lowered:
    """Describe graphs.

    Args:
        graphs: in order.
        called: how many times the traced step called each kernel, by ``GRAPH/KERNEL:NUMBER``.
    """
    rows: list[dict[str, Any]] = []
    nodes: list[dict[str, Any]] = []
    sites: dict[str, KernelCall] = {}
    for number, graph in enumerate(graphs):
        calls = max((called.get(f"{number}/{kernel}", 0) for kernel in graph.kernels), default=0)
        frame = graph.frame
        rows.append(
            {
                "graph": number, "frame": frame.name, "region": frame.region, "direction": graph.direction,
                "nodes": sum(node.op == "call_function" for node in graph.nodes.nodes), "kernels": len(graph.kernels),
                "calls": calls, "cut": frame.cut, "cut_at": frame.cut_at,
            }
        )  # fmt: skip
        for kernel in graph.kernels:
            key = f"{number}/{kernel}"
            name = kernel.rpartition(":")[0]
            generated = "" if "." in name else name
            owners = {
                o for n in graph.nodes.nodes if n.name in graph.kernels[kernel] and (o := graph.owner(n)) is not None
            }
            sites[key] = KernelCall(key, generated, _operator(generated), sorted(owners)[0] if owners else None, "")
    return Lowered(rows, nodes, sites)


def _operator(generated: str) -> str:
    """What stands for an operator where a kernel was generated: its name, without its language and number."""
    found = _GENERATED(generated)
    return f"inductor::{found[1] if found else generated}" if generated else ""
