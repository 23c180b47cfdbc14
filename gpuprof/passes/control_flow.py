"""torch's control flow in a counted step: cond, map, scan and while_loop as the plain Python that they mean.

Outside a compiled region torch makes a graph of the branch or the body first, and of its backward in every backward. A
counted step is eager, where such a graph hides its operators and cannot hold the parameters that a branch closes over.
As Python, the branch that is taken and every round of a loop are counted, in forward and backward, with the modules
that own them. What a graph computes again in its backward is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gpuprof.undo import patched


@contextmanager
def plain_control_flow() -> Iterator[None]:
    """Replace the operators of torch's control flow where its functions look them up; put back afterwards.

    What another torch does not have stays as that torch has it.
    """
    with ExitStack() as patches:
        for (module, name), ours in _PLAIN.items():
            library = importlib.import_module(f"torch._higher_order_ops.{module}")
            if hasattr(library, name):
                patches.enter_context(patched(library, {name: ours}))
        yield


def _cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Sequence[Any] = ()) -> Any:
    return (true_fn if pred else false_fn)(*operands)


def _map(body: Callable[..., Any], xs: Sequence[torch.Tensor], args: Sequence[Any]) -> Any:
    return _stacked([body(*slices, *args) for slices in zip(*(x.unbind() for x in xs), strict=True)])


def _scan(
    body: Callable[..., Any], init: Sequence[Any], xs: Sequence[torch.Tensor], additional_inputs: Sequence[Any] = ()
) -> tuple[Any, Any]:
    carry: Any = tuple(init)
    results = []
    for slices in zip(*(x.unbind() for x in xs), strict=True):
        carry, result = body(*pytree.tree_leaves(carry), *slices, *additional_inputs)
        results.append(result)
    return carry, _stacked(results)


def _while_loop(
    goes_on: Callable[..., Any], body: Callable[..., Any], carried: Any, additional_inputs: Sequence[Any] = ()
) -> Any:
    while goes_on(*pytree.tree_leaves(carried), *additional_inputs):
        carried = body(*pytree.tree_leaves(carried), *additional_inputs)
    return carried


_PLAIN: dict[tuple[str, str], Callable[..., Any]] = {
    ("cond", "cond_op"): _cond,
    ("map", "map_impl"): _map,
    ("scan", "scan_op"): _scan,
    ("while_loop", "while_loop_op"): _while_loop,
}


def _stacked(results: list[Any]) -> Any:
    """The results of all rounds as one, in the structure that each of them has."""
    return pytree.tree_map(lambda *parts: None if parts[0] is None else torch.stack(parts), *results)
