"""The captured graphs as tables, and whose work each call of a kernel is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpuprof.compiled.capture import Graph
from gpuprof.compiled.nodes import operators, place, strangers
from gpuprof.theory.attention import AttentionFacts
from gpuprof.theory.priced import FIGURES
from gpuprof.traces.owners import KernelCall

_GENERATED = re.compile(r"(?:cpp|triton_[a-z]+)_(\w+?)(?:_\d+)?$").match


class Lowered:
    """What was made of a step.

    Args:
        graphs: in the order in which code was made of them.
        device: type of the device.
        facts: of the attention module with this path.
    """

    def __init__(self, graphs: list[Graph], device: str, facts: Callable[[str], AttentionFacts | None]) -> None:
        self._graphs = graphs
        self._nodes = [
            operators(graph.nodes, number, graph.kernels, graph.direction, graph.owner, device=device, facts=facts)
            for number, graph in enumerate(graphs)
        ]
        self._rows: dict[str, list[dict[str, Any]]] = {}
        for rows in self._nodes:
            for row in rows:
                self._rows.setdefault(f"{row['graph']}/{row['kernel']}", []).append(row)

    def kernel_call(self, key: str) -> KernelCall:
        """Whose work a kernel is, by ``GRAPH/KERNEL:NUMBER``."""
        number, _, kernel = key.partition("/")
        name = kernel.rpartition(":")[0]
        generated = "" if "." in name else name
        module, phase = place(self._rows[key]) if key in self._rows else (None, "")
        if self._graphs[int(number)].direction != "backward" and phase == "forward":
            phase = ""  # it may be called again in the backward, by a checkpoint
        return KernelCall(key, generated, _operator(generated), module, phase)

    def graphs(self, called: Mapping[tuple[str, str], int]) -> Iterator[dict[str, Any]]:
        """Rows of the ``graphs`` table.

        Args:
            called: how many times the traced step called each kernel, by its key and the phase that the step was in.
        """
        for number, (graph, calls) in enumerate(zip(self._graphs, self._calls(called), strict=True)):
            frame = graph.frame
            unknown = strangers(graph.nodes, graph.kernels)
            yield {
                "graph": number, "frame": frame.name, "region": frame.region, "direction": graph.direction,
                "nodes": sum(node.op == "call_function" for node in graph.nodes.nodes), "kernels": len(graph.kernels),
                "calls": sum(calls.values()), "cut": frame.cut, "cut_at": frame.cut_at,
                "unmapped": f"operators that the graph has not: {', '.join(unknown)}" if unknown else "",
            }  # fmt: skip

    def nodes(self, called: Mapping[tuple[str, str], int]) -> Iterator[dict[str, Any]]:
        """Rows of the ``nodes`` table, likewise."""
        for rows, calls in zip(self._nodes, self._calls(called), strict=True):
            for row in rows:
                for phase, times in calls.items():
                    figures = {name: None if row[name] is None else row[name] * times for name in FIGURES}
                    yield row | figures | {"calls": row["calls"] * times, "phase": phase or row["phase"]}

    def _calls(self, called: Mapping[tuple[str, str], int]) -> Iterator[dict[str, int]]:
        """How many times each graph was called, by phase; empty where its operators know theirs."""
        for number, graph in enumerate(self._graphs):
            keys = {f"{number}/{kernel}" for kernel in graph.kernels}
            static = any(row["phase"] != "forward" for row in self._nodes[number])
            calls: dict[str, dict[str, int]] = {}
            for (key, phase), times in called.items():
                if key in keys:
                    of_phase = calls.setdefault("" if static else phase, {})
                    of_phase[key] = of_phase.get(key, 0) + times
            yield {phase: max(times.values()) for phase, times in calls.items()}


def _operator(generated: str) -> str:
    """What stands for an operator where a kernel was generated: its name, without its language and number."""
    found = _GENERATED(generated)
    return f"inductor::{found[1] if found else generated}" if generated else ""
