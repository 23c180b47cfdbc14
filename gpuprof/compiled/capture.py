"""What Inductor makes of a step: its graphs, which operators each kernel does, and where in a trace each runs.

The step is compiled afresh, by the backend that it has, so that Inductor writes a mark into the code before each call
of a kernel, and tells which operators of the graph are in it. No mark does work, but they are in no timed step.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._guards import CompileContext

from gpuprof.attribution import Ownership, Scope, named_paths
from gpuprof.compiled.afresh import Backend, compiled_afresh
from gpuprof.compiled.caches import empty_caches
from gpuprof.compiled.stacks import module_of, names_in
from gpuprof.compiled.watch import in_short, place
from gpuprof.errors import first_line
from gpuprof.schema import UNATTRIBUTED
from gpuprof.theory.masks import AttentionFacts
from gpuprof.traces.events import KERNEL_MARK
from gpuprof.undo import patched
from gpuprof.workload.causality import attention_facts

_SETTINGS = {
    "trace.provenance_tracking_level": 1,  # which operators are in which kernel
    "cpp.enable_kernel_profile": True,  # else fused kernels of a CPU are no events
    "triton.cudagraphs": False,  # in which the profiler would see no launches
    "force_disable_caches": True,  # what is in them has no marks, and what has must not get there
}

_CALLS = torch.nn.Module.__call__.__code__.co_filename
"""Where modules are called, each in a function that names it ``self``."""


@dataclass
class Frame:
    """A function that Dynamo made a graph of.

    Attributes:
        name: of the function, and where it is.
        region: path of the module whose forward it is; `UNATTRIBUTED` of another function.
        paths: of the modules that its operators name.
        cut: why Dynamo ended the graph where it did; empty where the function returned.
        cut_at: file and line of that.
        varies: whether the step calls it with other sizes than it was compiled for.
        of_region: sequence numbers of operators that are the function's own, and in none of the modules that it calls.
    """

    name: str
    region: str
    paths: dict[str, str]
    cut: str = ""
    cut_at: str = ""
    varies: bool = False
    of_region: set[int] = field(default_factory=set)


@dataclass
class Graph:
    """A graph that Inductor made code of.

    Attributes:
        frame: that it is of.
        direction: forward, backward, or whole: of what needs no gradient.
        nodes: its operators, as they are when code is made of them.
        kernels: names of the operators in each call of a kernel, in order, by ``KERNEL:NUMBER``.
        body: whether it is a branch or the body of a loop in another graph.
    """

    frame: Frame
    direction: str
    nodes: torch.fx.Graph
    kernels: dict[str, list[str]]
    body: bool = False

    def owner(self, node: torch.fx.Node) -> str | None:
        """Path of the module that an operator is of; None of those that nobody called, as a sum of gradients."""
        meta = node.meta
        if stack := meta.get("nn_module_stack") or meta.get("fwd_nn_module_stack"):
            known = [self.frame.paths[name] for name, _ in stack.values() if name in self.frame.paths]
            return known[-1] if known else self.frame.region  # one that the model does not list is of who calls it
        in_forward = self.direction != "backward" or meta.get("partitioner_tag") == "is_forward"
        called = "stack_trace" in meta if in_forward else meta.get("seq_nr") in self.frame.of_region
        return self.frame.region if called else None


class Captured:
    """What has been compiled so far.

    Attributes:
        device: type of the device.
        graphs: in the order in which code was made of them.
        compilations: how many graphs of Dynamo's were given to Inductor.
        without_cuda_graphs: whether something was compiled that runs as CUDA graphs where it is not captured.
        refused: why something could not be compiled so, and was compiled as it is without this; empty where all could.
    """

    def __init__(self, model: torch.nn.Module, device: str) -> None:
        self.device = device
        self.graphs: list[Graph] = []
        self.compilations = 0
        self._ownership: Ownership | None = None  # of the step that is recorded now
        self.without_cuda_graphs = False
        self.refused = ""
        self._numbers: dict[Any, int] = {}  # by Inductor's own object
        self._frames: dict[Any, Frame] = {}
        self._paths: dict[torch.nn.Module, str] = {}
        self._modules = dict(named_paths(model))
        for path, module in self._modules.items():
            self._paths.setdefault(module, path)
        self._traced = threading.local()

    def facts(self, path: str) -> AttentionFacts | None:
        """What is known of the attention products of a module."""
        return attention_facts(self._modules[path], path) if path in self._modules else None

    def traced(self, frame: Any) -> None:
        """Dynamo is about to trace a frame."""
        self._traced.frame = frame

    def compiles(self, graph: torch.fx.GraphModule) -> Frame:
        """Dynamo has made a graph of it, and gives it to the backend."""
        self.compilations += 1
        frame = self._traced.frame
        code, variables, outer = frame.f_code, frame.f_locals, frame.f_globals
        modules = {name: module_of(name, variables, outer) for name in names_in(graph)}
        cut: Any = getattr(graph, "compile_subgraph_reason", None)
        cut = cut if cut is not None and cut.graph_break else None
        made = self._frames[CompileContext.current_compile_id()] = Frame(
            f"{code.co_name} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})",
            self._running(),
            {name: self._paths[module] for name, module in modules.items() if module in self._paths},
            in_short(cut.reason) if cut else "",
            place(cut.user_stack) if cut else "",
        )
        return made

    def calling(self, compiled: Callable[..., Any], frame: Frame, inputs: Sequence[Any]) -> Callable[..., Any]:
        """What Dynamo is to call in place of the code of a graph: that, as a call of the module that calls it.

        Args:
            compiled: the code.
            frame: that it is of.
            inputs: what it was compiled for.
        """
        sizes = _sizes(inputs)

        def call(*args: Any) -> Any:
            if self._ownership is None:
                return compiled(*args)
            frame.varies |= _sizes(args) != sizes
            if (path := self._running()) == UNATTRIBUTED:
                return compiled(*args)
            return self._ownership.run(Scope(path), compiled, args, {})

        return call

    @contextmanager
    def recorded(self, ownership: Ownership) -> Iterator[None]:
        """A step is recorded, and its module calls are noted."""
        self._ownership = ownership
        try:
            yield
        finally:
            self._ownership = None

    def _running(self) -> str:
        """Path of the module whose call is the innermost of this thread."""
        frame: Any = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename == _CALLS:
                path = self._paths.get(frame.f_locals.get("self"))
                if path is not None:
                    return path
            frame = frame.f_back
        return UNATTRIBUTED

    def calls(self, lowered: Any, kernel: str, nodes: list[str]) -> str | None:
        """Inductor writes a call of a kernel into the code of a graph.

        Returns:
            The mark for it; None where somebody else has the code made, and for longer than this.
        """
        frame = self._frames.get(CompileContext.current_compile_id())
        if frame is None:
            return None
        number = self._numbers.get(lowered)
        if number is None:
            number = self._numbers[lowered] = len(self.graphs)
            self.graphs.append(self._graph(lowered, frame))
        own, around = _names(lowered), {name for above in _above(lowered) for name in _names(above)}
        kernels = self.graphs[number].kernels
        call = f"{kernel}:{len(kernels) + 1}"  # Inductor's own number goes on from one backward to the next
        kernels[call] = [name for name in nodes if name in own or name not in around]
        return f"{KERNEL_MARK}{number}/{call}"

    def _graph(self, lowered: Any, frame: Frame) -> Graph:
        nodes = lowered.module.graph
        *_, whole = lowered, *_above(lowered)
        direction = "backward" if whole.is_backward else "whole" if whole.is_inference else "forward"
        if direction == "forward" and whole is lowered:  # operators of a branch have the number of what calls it
            for node in nodes.nodes:
                if node.op == "call_function" and not node.meta.get("nn_module_stack"):
                    frame.of_region.add(node.meta.get("seq_nr"))
            for node in nodes.nodes:
                if node.meta.get("nn_module_stack"):
                    frame.of_region.discard(node.meta.get("seq_nr"))
        return Graph(frame, direction, nodes, {}, body=whole is not lowered)


def _above(lowered: Any) -> Iterator[Any]:
    """The graphs that a branch or a body is in, the innermost first."""
    while (lowered := getattr(lowered, "parent", None)) is not None:
        yield lowered


def _names(lowered: Any) -> set[str]:
    return {node.name for node in lowered.module.graph.nodes}


def _sizes(values: Sequence[Any]) -> list[Any]:
    """Those of the arguments of a graph that are sizes, which Dynamo passes beside the tensors that have them."""
    sizes = [value for value in values if isinstance(value, (int, torch.SymInt))]
    return [size.node.hint if isinstance(size, torch.SymInt) else size for size in sizes]


@contextmanager
def captured(model: torch.nn.Module, device: str, live: bool = False) -> Iterator[Captured]:
    """Capture whatever is compiled by Inductor and called in here; nothing of it is left afterwards.

    Args:
        model: whose modules the operators are of.
        device: type of the device.
        live: somebody needs what the code computes: where it cannot be captured it is compiled as it is.
    """
    found = Captured(model, device)
    marked = False

    with ExitStack() as into:

        def backend_for(backend: Backend) -> Backend | None:
            if getattr(backend, "compiler_name", "") != "inductor":
                return None
            ours: Any = copy.copy(backend)
            asked = ours.config.get("triton.cudagraphs", torch._inductor.config.triton.cudagraphs)
            found.without_cuda_graphs |= bool(asked) and device == "cuda"
            ours.config = ours.config | _SETTINGS

            def compile_graph(graph: torch.fx.GraphModule, inputs: Any, **rest: Any) -> Any:
                nonlocal marked
                if not marked:  # not before Dynamo has said that it compiles: then caches may be put somewhere else
                    into.enter_context(_marked(found))
                    marked = True
                try:
                    frame = found.compiles(graph)
                    return found.calling(ours(graph, inputs, **rest), frame, inputs)
                except Exception as error:
                    if not live:
                        raise
                    found.refused = f"{type(error).__name__}: {first_line(error)}"
                    return backend(graph, inputs, **rest)

            return compile_graph

        into.enter_context(compiled_afresh(backend_for, found.traced))
        yield found


@contextmanager
def _marked(found: Captured) -> Iterator[None]:
    """Have Inductor write its marks, and keep what it compiles in a folder that is deleted afterwards."""
    # which most steps never need
    from torch._inductor import debug
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.virtualized import V

    plain = PythonWrapperCodegen.write_provenance_debug_handle

    def write(self: Any, kernel: str, number: int | None = None) -> None:
        plain(self, kernel, number)
        if number is None or V.graph.cpp_wrapper:
            return
        nodes = debug._inductor_triton_kernel_to_post_grad_node_info.get(f"{kernel}:{number}", ())
        mark = found.calls(V.graph, kernel, list(nodes))
        if mark is not None:
            self.writeline(f"with torch._C._profiler._RecordFunctionFast({mark!r}): pass")

    with (
        empty_caches(),
        debug.reset_provenance_globals(),  # what is in the kernels of a backward is kept
        patched(PythonWrapperCodegen, {"write_provenance_debug_handle": write}),
    ):
        yield
