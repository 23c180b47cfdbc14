"""The operators of a compiled graph: whose they are, in which phase, what they cost, what they move in their kernel.

A kernel of several owners (a module in a phase) is split between them by the bytes that each of them moves:

- what its operators read and no operator of the kernel made, each tensor once;
- what they make that leaves the kernel: read by another one, returned by the graph, written into an argument.

A view is looked through to the tensor that it is of; one that narrows counts as much as it leaves, together never more
than the whole. Of a table that is looked up by places as much is read as comes out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, Node

from gpuprof.passes.operators import name_of
from gpuprof.passes.specs import spec_of
from gpuprof.paths import ancestors
from gpuprof.schema import NOBODYS, PHASES, UNATTRIBUTED
from gpuprof.theory import rule_for
from gpuprof.theory.masks import AttentionFacts
from gpuprof.theory.names import without_overload
from gpuprof.theory.priced import FIGURES, Described, describe, dtype_of, shapes_text, tensor_specs
from gpuprof.theory.rules import Missing, TensorSpec
from gpuprof.theory.vector import GATHERS
from gpuprof.workload.options import dtype_name

Owner = Callable[[Node], str | None]
"""Path of the module whose work a node is; None of no module's, or of one that cannot be told."""

_OPTIMIZERS = os.path.join("torch", "optim", "")
_COPY = torch.ops.aten.copy_.default  # into an argument, at the end of a graph
_ADD = (torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default)  # what they add is their first argument
_WITH_STATE = {"run_and_save_rng_state": 0, "run_with_rng_state": 1, "graphsafe_run_with_rng_state": 0}
"""Operators that call another one with a state of random numbers, and where among their arguments that is."""
_CONTROL_FLOW = ("cond", "while_loop", "invoke_subgraph")
"""Operators that call graphs of their own, whose operators do the work."""
_UNKNOWN = Missing(number=True)


def operators(
    graph: Graph,
    number: int,
    kernels: Mapping[str, Sequence[str]],
    direction: str,
    owner: Owner,
    calls: int = 1,
    device: str = "cpu",
    facts: Callable[[str], AttentionFacts | None] = lambda module: None,
) -> list[dict[str, Any]]:
    """Rows of the ``nodes`` table for a graph as Inductor generated code from it.

    Args:
        graph: after all passes of Inductor, ``meta["val"]`` on its nodes.
        number: of the graph.
        kernels: names of the nodes that each call of a kernel does, by ``KERNEL:NUMBER``, in the order of the calls.
            Names that the graph has not are passed over, see `strangers`.
        direction: as in ``graphs``.
        owner: asked of nodes that say where they are from; whose the others are, `owners` finds.
        calls: of the graph, in the step.
        device: type of the device.
        facts: of the attention module with this path.
    """
    done_in = _kernels_of(graph, kernels)
    owner_of = owners(graph, owner)
    phase_of = _phases(graph, direction)
    moved = _moved(graph, done_in, {node: (owner_of[node], phase_of(node)) for node in owner_of})
    rows: dict[Any, dict[str, Any]] = {}
    for node in _nodes(graph):
        found = _described(node, device, facts(owner_of[node]))
        for repeat, kernel in enumerate(done_in.get(node.name, [""])):
            bytes_moved = moved[node, kernel] if kernel else None
            place = (number, kernel, min(repeat, 1), owner_of[node], phase_of(node))
            key = place + found[:4]
            if key in rows:
                row = rows[key]
                row["calls"] += calls
                row["moved"] = _sum(row["moved"], bytes_moved)
                for figure, value in zip(FIGURES, found.priced, strict=True):
                    row[figure] = _sum(row[figure], None if value is None else value * calls)
            else:
                figures = [None if value is None else value * calls for value in found.priced]
                rows[key] = dict(zip(_KEY, key, strict=True)) | {"calls": calls, "moved": bytes_moved}
                rows[key] |= zip(FIGURES, figures, strict=True)
    return list(rows.values())


def _kernels_of(graph: Graph, kernels: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The kernels that do a node, by its name.

    A kernel of somebody's library does one operator, and is named after it. Inductor notes further ones where its
    inputs are copied first, and the operator with that copy: neither does the other's work. One that only copies them
    is the operator's too, which it does not do again.
    """
    ops = {node.name: _plain(_name(_call(node)[0])) for node in _nodes(graph) if not _is_view(node)}
    alone: dict[str, str] = {}
    for kernel, names in kernels.items():
        parts = kernel.rpartition(":")[0].split(".")  # extern_kernels.mm, torch.ops.aten.sort.stable
        function = parts[3] if parts[:2] == ["torch", "ops"] else parts[-1]
        own = [name for name in names if len(parts) > 1 and name in ops and function.endswith(ops[name])]
        alone |= dict.fromkeys(own, kernel)
    found: dict[str, list[str]] = {}
    for kernel, names in kernels.items():
        own = [name for name in names if alone.get(name) == kernel]
        others = [name for name in names if name not in alone]
        for name in dict.fromkeys(own or (others if not ops.keys().isdisjoint(others) else names)):
            found.setdefault(name, []).append(kernel)
    for name, kernel in alone.items():
        found[name].sort(key=kernel.__ne__)
    return found


def _plain(op: str) -> str:
    return without_overload(op).partition("::")[2]


_KEY = ("graph", "kernel", "repeat", "module", "phase", "op", "kind", "shapes", "dtype")


def strangers(graph: Graph, kernels: Mapping[str, Iterable[str]]) -> list[str]:
    """Names of nodes that the kernels do and the graph has not."""
    known = {node.name for node in graph.nodes}
    return sorted({name for names in kernels.values() for name in names} - known)


def place(rows: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """The module and phase that all owners of a kernel are in, but for those that compute and move nothing in it.

    Args:
        rows: those of ``nodes`` with this kernel.

    Returns:
        The lowest module that has all owners in it, `UNATTRIBUTED` where there is none; and their phase, of several
        the backward where it is among them, else the first.
    """
    rows = list(rows)
    working = [row for row in rows if not _is_idle(row)] or rows
    phases = {row["phase"] for row in working}
    phase = "backward" if "backward" in phases else next((name for name in PHASES if name in phases), "other")
    return _common({row["module"] for row in working}), phase


def _common(modules: Collection[str]) -> str:
    """The lowest module that has all of these in it; `UNATTRIBUTED` where there is none."""
    if not modules or not {*NOBODYS}.isdisjoint(modules):
        return UNATTRIBUTED
    first, *others = (ancestors(module) for module in modules)
    return next(path for path in first if all(path in above for above in others))


def _is_idle(row: Mapping[str, Any]) -> bool:
    """Whether it is a view, or a constant, which Inductor keeps only once for all that use it."""
    return row["kind"] == "view" or (row["kind"] == "movement" and row["moved"] == 0)


def owners(graph: Graph, owner: Owner) -> dict[Node, str]:
    """Path of the module of every operator of a graph.

    One that does not say it belongs to the owner of the input that was made last: so a sum of gradients, which the
    engine also makes as soon as it has the last of them, inside the module that gave it. Where Inductor made one with a
    product of it, as of gradients of a tied weight, it is the product's. Without such an input it is the module's that
    all its users are in, as of seeds that Inductor makes at once for all that need one, else `UNATTRIBUTED`.
    """
    found: dict[Node, str] = {}
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in _nodes(graph):
        if _says_it(node):
            path = owner(node)
            found[node] = UNATTRIBUTED if path is None else path
        else:
            inputs = [
                _maker(given) for given in node.all_input_nodes if node.target not in _ADD or given != node.args[0]
            ]
            given = next((one for one in sorted(inputs, key=order.__getitem__, reverse=True) if one in found), None)
            found |= {node: found[given]} if given is not None else {}
    for node in reversed(_nodes(graph)):
        if node not in found:
            found[node] = _common({found[user] for user in _users(node) if user in found})
    return found


def _says_it(node: Node) -> bool:
    """Whether a node tells where it is from. Sums of gradients, and what the compiler adds by itself, do not."""
    meta = node.meta
    if "nn_module_stack" in meta or "fwd_nn_module_stack" in meta:  # None of what no module has done
        return True
    added = meta.get("is_gradient_acc") or meta.get("partitioner_tag") == "is_backward" or node.target is _COPY
    return "stack_trace" in meta and not added


def _users(node: Node) -> list[Node]:
    return [last for user in node.users for last in (_users(user) if user.target is getitem else [user])]


def _phases(graph: Graph, direction: str) -> Callable[[Node], str]:
    """Phase of a node. What the partitioner took from the forward into a backward graph is computed again."""
    if direction == "backward":
        return lambda node: "recompute" if node.meta.get("partitioner_tag") == "is_forward" else "backward"
    if any(_OPTIMIZERS in (node.meta.get("stack_trace") or "") for node in graph.nodes):
        return lambda node: "optimizer"
    return lambda node: "forward"


def _nodes(graph: Graph) -> list[Node]:
    """Operators of a graph: what takes a result apart, computes with sizes alone, or calls other graphs, is none."""
    return [
        node
        for node in graph.nodes
        if node.op == "call_function"
        and node.target is not getitem
        and getattr(node.target, "_name", "") not in _CONTROL_FLOW
        and not _is_of_sizes(node)
    ]


def _is_of_sizes(node: Node) -> bool:
    made = _value(node)
    return isinstance(made, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))


def _described(node: Node, device: str, facts: AttentionFacts | None) -> Described:
    """What its row says; FLOPs and bytes None where a size is not known."""
    target, given, named, made = _call(node)
    op = _name(target)
    args, kwargs, out = _specs(given), dict(_specs(named)), _specs(made)
    specs = tensor_specs(args) + tensor_specs(tuple(kwargs.values()))
    if all(_is_known(spec) for spec in specs + tensor_specs((out,))):
        return describe(op, args, kwargs, out, facts, device)
    rule = rule_for(op)
    results = tensor_specs((out,))
    shapes = f"{shapes_text(list(map(_readable, specs)))} -> {shapes_text(list(map(_readable, results)))}"
    kind = rule.kind if rule else ""
    return Described(op, kind, shapes, dtype_of(specs + results), (0,) * 5 if kind == "view" else (None,) * 5, "")


def _call(node: Node) -> tuple[Any, tuple[Any, ...], dict[str, Any], Any]:
    """An operator, its arguments and what it makes: also of one that is called with a state of random numbers."""
    made, name = _value(node), getattr(node.target, "_name", "")
    if name in _WITH_STATE:
        at = _WITH_STATE[name]
        named = {name: value for name, value in node.kwargs.items() if name != "rng_state"}
        return node.args[at], tuple(node.args[at + 1 :]), named, made[1] if name == "run_and_save_rng_state" else made
    return node.target, node.args, dict(node.kwargs), made


def _name(target: Any) -> str:
    """``namespace::name.overload``; of a function that Inductor put into the graph ``inductor::`` and its name."""
    if isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        return name_of(target)
    return f"inductor::{getattr(target, '__name__', type(target).__name__)}"


def _is_known(spec: TensorSpec) -> bool:
    return all(size is not _UNKNOWN for size in spec.shape)


def _readable(spec: TensorSpec) -> TensorSpec:
    return spec._replace(shape=tuple("?" if size is _UNKNOWN else size for size in spec.shape))  # type: ignore[misc]


def _specs(value: Any) -> Any:
    """What rules see of an argument, see `spec_of`: nodes as what they make, sizes by their hints."""
    if isinstance(value, Node):
        return _specs(_value(value))
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value.node.hint if value.node.has_hint() else _UNKNOWN
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(map(_specs, value.shape)), dtype_name(value.dtype))
    if isinstance(value, (tuple, list)):
        return tuple(_specs(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _specs(item)) for key, item in value.items())
    return spec_of(value)


def _value(node: Node) -> Any:
    """What a node makes: of a constant of the graph itself, which has no value noted, the constant."""
    if node.op == "get_attr" and "val" not in node.meta:
        return getattr(node.graph.owning_module, str(node.target), None)
    return node.meta.get("val")


def _moved(
    graph: Graph, done_in: Mapping[str, Sequence[str]], owner_of: Mapping[Node, tuple[str, str]]
) -> dict[tuple[Node, str], int | None]:
    """Bytes by the rule above for each node and kernel: an owner's tensor is its first node's that reads it."""
    moved: dict[tuple[Node, str], int | None] = {}
    read: dict[tuple[str, tuple[str, str], Node], dict[Node, int | None]] = {}  # parts of a tensor
    for node in _nodes(graph):
        for kernel in done_in.get(node.name, ()):
            moved[node, kernel] = _written(node, kernel, done_in)
            for given, part in _reads(node):
                if kernel in done_in.get(_maker(given).name, ()):
                    continue
                parts = read.setdefault((kernel, owner_of[node], given), {})
                before = _at_most(given, parts.values())
                parts[part] = _most(parts.get(part, 0), _bytes_read(node, part))
                after = _at_most(given, parts.values())
                more = None if before is None or after is None else after - before
                moved[node, kernel] = _sum(moved[node, kernel], more)
    return moved


def _written(node: Node, kernel: str, done_in: Mapping[str, Sequence[str]]) -> int | None:
    """Bytes that a node writes in a kernel, the first of those that do it."""
    if done_in[node.name][0] != kernel or _is_view(node):
        return 0
    written = _arguments(node, written=True)
    if written:
        return _sum(*(_nbytes(given) for given in written))
    results = [user for user in node.users if user.target is getitem] or [node]
    return _sum(0, *(_nbytes(result) for result in results if _leaves(result, node, done_in)))


def _leaves(tensor: Node, maker: Node, done_in: Mapping[str, Sequence[str]]) -> bool:
    """Whether a result is read where it was not made: in a kernel that does not make it too, or by nobody's kernel."""
    making = {*done_in[maker.name]}
    for user in tensor.users:
        if user.op == "output" or (not _is_view(user) and not making.issuperset(done_in.get(user.name, [""]))):
            return True
        if (_is_view(user) or user.target is getitem) and _leaves(user, maker, done_in):
            return True
    return False


def _reads(node: Node) -> list[tuple[Node, Node]]:
    """Tensors that an operator reads: each whole, and as the narrowest of the views on the way to it."""
    return [] if _is_view(node) else [_base(given) for given in _arguments(node, written=False)]


def _base(given: Node) -> tuple[Node, Node]:
    part = given
    while (source := _viewed(given)) is not None:
        given = source
        narrower = _nbytes(part), _nbytes(given)
        if None in narrower or narrower[0] >= narrower[1]:  # type: ignore[operator]
            part = given
    return given, part


def _viewed(node: Node) -> Node | None:
    """The tensor that a node is a view of, a part of such a view included; None of what is none."""
    if node.target is getitem:
        return _viewed(node.args[0])  # type: ignore[arg-type]
    return node.all_input_nodes[0] if _is_view(node) and node.all_input_nodes else None


def _is_view(node: Node) -> bool:
    rule = rule_for(_name(node.target)) if node.op == "call_function" else None
    return rule is not None and rule.kind == "view"


def _maker(tensor: Node) -> Node:
    return tensor.args[0] if tensor.target is getitem else tensor  # type: ignore[return-value]


def _arguments(node: Node, written: bool) -> list[Node]:
    """Tensors that an operator is given to write, or to read: ``copy_`` does not read what it writes."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    mutable = {
        argument.name
        for argument in (schema.arguments if schema else ())
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    given = [*zip(names or map(str, range(len(node.args))), node.args, strict=False), *node.kwargs.items()]
    only_written = node.target is _COPY
    found: list[Node] = []
    for name, value in given:
        if (name in mutable) if written else not (only_written and name in mutable):
            torch.fx.node.map_arg(value, found.append)
    return [one for one in dict.fromkeys(found) if isinstance(_value(one), torch.Tensor)]


def _bytes_read(node: Node, part: Node) -> int | None:
    whole = _nbytes(part)
    if without_overload(_name(node.target)) in GATHERS and node.args and _base(node.args[0])[1] is part:  # type: ignore[arg-type]
        out = _nbytes(node)
        return None if whole is None or out is None else min(whole, out)
    return whole


def _nbytes(node: Node) -> int | None:
    spec = _specs(_value(node))
    if not isinstance(spec, TensorSpec):
        return 0
    return spec.nbytes if _is_known(spec) else None


def _at_most(whole: Node, parts: Iterable[int | None]) -> int | None:
    limit, found = _nbytes(whole), _sum(0, *parts)
    return None if limit is None or found is None else min(limit, found)


def _most(*values: int | None) -> int | None:
    return None if None in values else max(value for value in values if value is not None)


def _sum(*values: int | None) -> int | None:
    return None if None in values else sum(value for value in values if value is not None)
