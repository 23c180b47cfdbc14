"""The captured graphs as tables, and whose work each call of a kernel is.

One graph may be called on behalf of several modules, as by equal blocks, and in several phases, as by a checkpoint that
runs it again in the backward. Each of these is a graph of its own in the tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gpuprof.compiled.capture import Graph
from gpuprof.compiled.nodes import operators, place, strangers
from gpuprof.schema import UNATTRIBUTED
from gpuprof.theory.generated import generated
from gpuprof.theory.masks import AttentionFacts
from gpuprof.theory.priced import FIGURES
from gpuprof.traces.owners import KernelCall


class _Called(NamedTuple):
    """A graph as it is called.

    Attributes:
        place: of the graph among those that were captured.
        region: path of the module that calls it, as in the ``graphs`` table.
        phase: of the step; empty where the graph's operators know theirs.
    """

    place: int
    region: str
    phase: str


class Lowered:
    """What was made of a step.

    Args:
        graphs: in the order in which code was made of them.
        device: type of the device.
        facts: of the attention module with this path.
    """

    def __init__(self, graphs: list[Graph], device: str, facts: Callable[[str], AttentionFacts | None]) -> None:
        self._graphs = graphs
        self._numbers: dict[_Called, int] = {}
        self._calls: Counter[str] = Counter()  # of kernels, by their keys
        self._known: dict[tuple[str, str, str], KernelCall] = {}
        self._nodes = [
            operators(graph.nodes, number, graph.kernels, graph.direction, graph.owner, device=device, facts=facts)
            for number, graph in enumerate(graphs)
        ]

    def kernel_call(self, mark: str, caller: str, phase: str) -> KernelCall:
        """The next call of a kernel in the step: whose work it is.

        Args:
            mark: ``GRAPH/KERNEL:NUMBER``, the graph as it was captured.
            caller: module that calls the graph.
            phase: that the step is in.
        """
        found = self._known.get((mark, caller, phase))
        if found is None:
            found = self._known[mark, caller, phase] = self._kernel_call(mark, caller, phase)
        self._calls[found.key] += 1
        return found

    def _kernel_call(self, mark: str, caller: str, phase: str) -> KernelCall:
        number, _, kernel = mark.partition("/")
        graph, rows = self._graphs[int(number)], self._nodes[int(number)]
        static = any(row["phase"] != "forward" for row in rows)
        region = graph.frame.region
        if UNATTRIBUTED not in (region, caller):
            region = caller
        called = _Called(int(number), region, "" if static else phase)
        key = f"{self._numbers.setdefault(called, len(self._numbers))}/{kernel}"
        module, where = UNATTRIBUTED, ""
        if of_kernel := [row for row in rows if row["kernel"] == kernel]:
            module, where = place(of_kernel)
        module = _moved(module, graph.frame.region, region)
        name = kernel.rpartition(":")[0]
        if "." in name:  # extern_kernels.mm, torch.ops.aten.sort.stable: called as it is
            return KernelCall(key, "", "", module, where if static else "")
        return KernelCall(key, name, _operator(name), module, where if static else "")

    def graphs(self) -> Iterator[dict[str, Any]]:
        """Rows of the ``graphs`` table: of those that the step has called."""
        for called, number in self._numbers.items():
            graph = self._graphs[called.place]
            unknown = strangers(graph.nodes, graph.kernels)
            unmapped = f"operators that the graph has not: {', '.join(unknown)}" if unknown else ""
            if graph.body and graph.direction == "backward":
                unmapped = unmapped or "torch notes no modules in the backward of a branch"
            yield {
                "graph": number, "frame": graph.frame.name, "region": called.region, "direction": graph.direction,
                "nodes": sum(node.op == "call_function" for node in graph.nodes.nodes), "kernels": len(graph.kernels),
                "calls": self._times(called), "cut": graph.frame.cut, "cut_at": graph.frame.cut_at,
                "unmapped": unmapped,
            }  # fmt: skip

    def nodes(self) -> Iterator[dict[str, Any]]:
        """Rows of the ``nodes`` table, likewise. What graphs for several sizes do, called with such, is not known."""
        for called, number in self._numbers.items():
            frame, times = self._graphs[called.place].frame, self._times(called)
            region = frame.region
            for row in self._nodes[called.place]:
                figures = {name: None if row[name] is None else row[name] * times for name in FIGURES}
                if frame.varies and row["kind"] != "view":
                    figures = dict.fromkeys([*FIGURES, "moved"])
                yield row | figures | {
                    "graph": number, "module": _moved(row["module"], region, called.region),
                    "phase": called.phase or row["phase"], "calls": row["calls"] * times,
                }  # fmt: skip

    def _times(self, called: _Called) -> int:
        """How many times the step has called a graph."""
        return max(self._calls[f"{self._numbers[called]}/{kernel}"] for kernel in self._graphs[called.place].kernels)


def _moved(module: str, region: str, caller: str) -> str:
    """The module of the caller that is where this one is in the region of which the graph was made."""
    if module == region or region == caller:
        return caller if module == region else module
    inside = f"{region}." if region else ""
    if module == UNATTRIBUTED or not module.startswith(inside):  # somebody else's, whoever calls
        return module
    rest = module[len(inside) :]
    return f"{caller}.{rest}" if caller else rest


def _operator(kernel: str) -> str:
    """What stands for an operator where a kernel was generated, or written by the user in Triton."""
    found = generated(kernel)
    return found.op if found else f"inductor::{kernel}"
