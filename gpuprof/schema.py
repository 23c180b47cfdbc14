"""What a record holds: its parts, its raw tables with meaning and type of each column, and the names in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from operator import mul
from typing import Any

from gpuprof.coded import Column
from gpuprof.late import np, pd

SCHEMA_VERSION = 7

FACTS = ("workload", "device", "environment", "settings", "warnings", "doubts")
"""Parts of a saved run beside its passes and tables."""

DOUBTS = ("mismatches", "misbooked", "misowned", "invalid")
"""Why figures are withheld: what `gpuprof.analysis.consistency` finds, and what the telemetry tells."""

UNATTRIBUTED = "(unattributed)"
"""The module of time and work that belongs to no module, so that every total adds up."""

GRADIENT_ALLREDUCE = "(gradient all-reduce)"
"""The module of DDP's reductions: of a bucket of gradients, which is sent when the last of them is there."""

NOBODYS = (UNATTRIBUTED, GRADIENT_ALLREDUCE)
"""Owners that are no module of the model."""

WHOLE_STEP = "(step)"
"""What a step that is compiled as a whole is called among the modules that are, in ``workload.compiled``."""

FORWARD = ("forward", "encode", "prefill", "decode")
"""Phases in which the model goes forward: the parts of a generation have names of their own."""

MODEL = (*FORWARD, "backward")
"""Phases whose FLOPs are the model's."""

PHASES = (*FORWARD, "recompute", "backward", "optimizer", "other")

TABLES: dict[str, dict[str, str]] = {
    "tree": {
        "module": "path in the model; the root is the empty path",
        "class": "class name",
        "extra": "what the module says of itself (extra_repr)",
        "calls": "calls in one step, recomputation not counted",
        "params": "parameters of the module and its children, each once; of a sharded one those of all ranks",
        "trainable_params": "those of them that require a gradient",
        "param_bytes": "bytes of the parameters, as far as this process holds them",
        "trainable_bytes": "bytes of the trainable ones",
        "causality": "attention products: known, unknown (counted full), or empty",
    },
    "ops": {
        "module": "owner",
        "phase": "one of PHASES: forward, encode, prefill, decode, recompute, backward, optimizer, other",
        "op": "operator and overload",
        "kind": "matmul, convolution, attention, recurrent, vector, movement, view, communication; empty: no rule",
        "shapes": "shapes of the tensor inputs -> shapes of the tensor results",
        "dtype": "dtype of the first floating input",
        "calls": "calls in one step",
        "flops_causal": "matmul FLOPs, unmasked pairs only",
        "flops_full": "matmul FLOPs, whole square",
        "flops_hardware": "matmul FLOPs that the operators really do",
        "vector_flops": "elementwise FLOPs, an estimate",
        "bytes": "least bytes moved; of communication those of the message, as this process sees it",
        "group": "of communication the short name of its process group, as in workload; empty otherwise",
    },
    "kernels": {
        "module": "owner",
        "phase": "as in ops",
        "op": "operator that launched it, as in ops but without the overload",
        "kernel": "kernel name; on a CPU the operator's own time",
        "call": "number of the operator call: kernels of one call share it",
        "shapes": "shapes of the tensor inputs of that call",
        "stream": "CUDA stream, or thread",
        "start_ns": "start from the beginning of the traced step",
        "duration_ns": "duration",
        "compiled": "of a kernel that compiled code calls its graph and call, GRAPH/KERNEL:NUMBER as in nodes; empty "
        "otherwise. Its module and phase are those that all its owners are in",
    },
    "graphs": {
        "graph": "number, in the order in which the trace pass compiled them",
        "frame": "function that Dynamo made it of, and where",
        "region": "path of the module whose forward that is; (unattributed) of any other function",
        "direction": "forward, backward, or whole: of what needs no gradient",
        "nodes": "operators in it",
        "kernels": "calls of kernels in its code",
        "calls": "calls in the traced step",
        "cut": "why Dynamo ended it where it did; empty where the function returned",
        "cut_at": "where that was",
        "unmapped": "why its kernels were not given to its operators; empty where they were",
    },
    "nodes": {
        "graph": "as in graphs",
        "kernel": "call of a kernel that does it, KERNEL:NUMBER; empty where none does",
        "repeat": "1 where a kernel does again what another one, which has it under 0, does too",
        "module": "owner",
        "phase": "as in ops",
        "op": "as in ops, after what the compiler made of it",
        "kind": "as in ops",
        "shapes": "as in ops",
        "dtype": "as in ops",
        "calls": "calls in the traced step",
        "flops_causal": "as in ops",
        "flops_full": "as in ops",
        "flops_hardware": "as in ops",
        "vector_flops": "as in ops",
        "bytes": "as in ops",
        "moved": "bytes of one call of the kernel by which its time is split: what the owner's operators read that the "
        "kernel did not make, each tensor once, and what they make that leaves it",
    },
    "compilations": {
        "pass": "in which it happened; warm where it is what was compiled before, once more, from caches that hold it",
        "step": "number of the timed step; missing outside of them",
        "frame": "as in graphs; empty where it is not known",
        "direction": "forward, backward where that was compiled by itself; empty of the recording of a CUDA graph",
        "reason": "of a recompilation the guards that failed; empty of the first of its function",
        "cache": "hit, miss, or bypass and why; empty where none was asked",
        "cuda_graph": "recorded, or why there is none though one was asked for; empty otherwise",
        "gave_up": "why Dynamo gave the function up, which is not compiled then; empty where it did not",
        "total_s": "seconds it took",
        "dynamo_s": "those of them in Dynamo: tracing the Python of the function",
        "inductor_s": "those in Inductor: code generation and compilers; missing where it is not known",
    },
    "breaks": {
        "frame": "as in graphs",
        "place": "file and line of what Dynamo could not trace",
        "reason": "why",
        "breaks": "how many times",
    },
    "estimates": {
        "module": "owner",
        "phase": "as in ops",
        "op": "operator",
        "within": "operator call, as in kernels, that it is part of; empty where it is part of none",
        "calls": "calls in the traced step",
        "flops_profiler": "what torch.profiler(with_flops=True) itself estimates",
    },
    "counters": {
        "number": "number of the kernel in the counted step",
        "module": "owner",
        "phase": "as in ops",
        "op": "operator and overload, as in ops",
        "shapes": "as in ops: the launch belongs to the row of ops with the same module, phase, op, shapes and dtype",
        "dtype": "as in ops",
        "kernel": "kernel name, demangled",
        "grid": "blocks, x by y by z",
        "block": "threads per block, x by y by z",
        "tensor_bfloat16": "FLOPs executed by tensor cores on bfloat16 operands; missing where not collected",
        "tensor_float16": "the same on float16",
        "tensor_tf32": "the same on float32 rounded to TF32",
        "tensor_float64": "the same on float64",
        "tensor_float8": "the same on 8-bit floats; on Blackwell with those of 4 and 6 bits",
        "scalar_float16": "FLOPs executed outside tensor cores on half precision, issued lanes",
        "scalar_float32": "the same on float32",
        "scalar_float64": "the same on float64",
        "tensor_instructions": "instructions of the tensor pipe that multiply matrices, of any dtype",
        "dram_read_bytes": "bytes read from device memory",
        "dram_written_bytes": "bytes written to device memory",
        "duration_ns": "duration under the counters, where kernels run one by one: not for rates",
    },
    "samples": {
        "launch": "number of the process: 0 the one that made the run, from 1 on fresh ones",
        "step": "number of the timed step",
        "phase": "step (the whole of it), a phase, or reference: a fixed product after the step, on a CPU",
        "time_s": "seconds",
    },
    "generation": {
        "launch": "as in samples",
        "step": "as in samples",
        "part": "number of the part in its step, from 0: an encoding, a prefill or a piece of one, a step of decoding",
        "phase": "encode, prefill or decode",
        "samples": "sequences that it works on; missing where its inputs do not tell",
        "positions": "positions of each that are new to it; likewise",
        "start_s": "seconds since the telemetry's window opened; missing without one",
        "time_s": "seconds, until the next part begins or the step ends",
    },
    "traffic": {
        "module": "owner; * is the whole model",
        "phase": "encode, prefill or decode",
        "part": "as in generation: of the whole model a row for each part; missing of a module, whose rows are sums",
        "what": "weights, cache read, cache written or activations",
        "dtype": "dtype of what is stored",
        "bytes": "bytes that must move in one step, see docs/generate.md",
    },
    "memory": {
        "module": "path, or empty for the whole model",
        "phase": "as in ops, or empty",
        "quantity": "what was read",
        "source": "measured or analytic",
        "bytes": "bytes",
    },
    "timeline": {
        "time_s": "seconds since the step of the memory pass began",
        "phase": "as in ops",
        "module": "path; empty where a phase begins or ends",
        "event": "begin or end of a phase, enter or exit of a module's call, gradient: of a parameter of the module",
        "bytes": "in use: allocated by torch on CUDA, on a CPU the resident set of the process",
        "peak_bytes": "the most in use since the row before; missing where the system does not say",
        "reserved_bytes": "held by torch's allocator on CUDA",
        "kept_bytes": "tensors kept for the backward that are there, by their sizes",
        "gradient_bytes": "gradients that are there, by their sizes",
    },
    "launches": {
        "launch": "as in samples",
        "module": "path, or empty for the whole model",
        "phase": "as in ops, or empty",
        "quantity": "kernel_s (kernel time of the module's own work, s) or peak_bytes",
        "value": "figure",
    },
    "ranks": {
        "rank": "number of the process in its job",
        "step": "number of the step in its record; missing of what is the rank's and of no single traced step",
        "quantity": "step_ns, compute_ns, communication_ns, exposed_ns, idle_ns, kernels; flops_... as in ops; without "
        "a step also peak_bytes, sm_clock_hz, energy_uj (of a step), matmul_ns (kernels that multiply) and priced_ns "
        "(those whose FLOPs are known)",
        "dtype": "of FLOPs: whose peak they run against; empty otherwise",
        "amount": "figure",
    },
    "busy": {
        "module": "owner; * is all of them",
        "phase": "as in ops",
        "op": "operator, as in kernels but not told in place or not; or *, all work of the module and its children",
        "ranks": "how many ranks of the job did any",
        "kernels": "their kernels in the traced step, all ranks together",
        "total_ns": "their time, the ranks' added up: durations, of * unions of the intervals",
        "least_ns": "of the rank with the least, 0 where one did none",
        "most_ns": "of the rank with the most",
    },
    "collectives": {
        "rank": "number of the process in its job",
        "group": "as in ops; empty where it is not known",
        "number": "of the rank's calls in this group, in the order of their kernels",
        "name": "operator, as in kernels; of a kernel that none launched its own",
        "phase": "as in ops",
        "bytes": "of the message, as this process sees it; missing where it is not known",
        "start_ns": "start of its first kernel from the beginning of the rank's own traced step",
        "duration_ns": "until the end of its last",
        "exposed_ns": "what of it no computation of this rank hides",
    },
    "telemetry": {
        "launch": "as in samples",
        "time_s": "seconds since the window opened",
        "quantity": "name",
        "unit": "unit",
        "value": "reading",
    },
}
"""Columns of each raw table and what they mean."""

ALL = "*"
"""What ``busy`` has for an operator where all work of a module and its children is meant, and for all modules; what
``traffic`` has for the whole model."""

TRAFFIC = ("weights", "cache read", "cache written", "activations")
"""What ``traffic`` tells apart."""

RANK_QUANTITIES = ("step_ns", "compute_ns", "communication_ns", "exposed_ns", "idle_ns", "kernels")
"""What ``ranks`` holds of every step; FLOPs only where they are known."""

SINCE = {
    "counters": 2, "timeline": 2, "launches": 2, "ranks": 3, "busy": 4, "collectives": 4, "graphs": 5, "nodes": 5,
    "compilations": 5, "breaks": 5, "generation": 6, "traffic": 6,
}  # fmt: skip
"""Schema version that a table came with."""

DEFAULTS = {"launch": 0, "within": "", "group": "", "compiled": ""}
"""What a column holds where nothing is said of it, as in runs from before there was one."""

INTEGERS = {
    "calls", "params", "trainable_params", "param_bytes", "trainable_bytes", "flops_causal", "flops_full",
    "flops_hardware", "vector_flops", "bytes", "call", "start_ns", "duration_ns", "flops_profiler", "step", "launch",
    "number",
    "tensor_bfloat16", "tensor_float16", "tensor_tf32", "tensor_float64", "tensor_float8", "scalar_float16",
    "scalar_float32", "scalar_float64", "tensor_instructions", "dram_read_bytes", "dram_written_bytes", "peak_bytes",
    "reserved_bytes", "kept_bytes", "gradient_bytes", "rank", "amount", "ranks", "kernels", "total_ns", "least_ns",
    "most_ns", "exposed_ns", "graph", "nodes", "repeat", "moved", "breaks", "part", "samples", "positions",
}  # fmt: skip
"""Columns of integers; what is in neither `INTEGERS` nor `FLOATS` holds texts."""

COUNTS = {"flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes", "flops_profiler", "amount"}
"""Integers of any size: a step of the largest models is beyond 64 bits."""

FLOATS = {"time_s", "start_s", "value", "total_s", "dynamo_s", "inductor_s"}

_ROOM = 2**60  # of a whole column: eight of them may be added up


def table(name: str, rows: list[dict[str, Any]] | dict[str, Any]) -> pd.DataFrame:
    """A raw table with exactly its columns; integers stay exact, unknown ones are missing, never 0.

    Args:
        name: of `TABLES`.
        rows: a list of rows, or columns by name, each a list or a `Column`; what is not given is missing, and the
            launch 0.
    """
    return frame(name, plain(name, rows))


def frame(name: str, held: Mapping[str, Any]) -> pd.DataFrame:
    """The same of columns that are `plain` already."""
    return _frame(held) if next(iter(held.values())) else _without_rows(name).copy(deep=False)


def _frame(held: Mapping[str, Any]) -> pd.DataFrame:
    index, objects = pd.RangeIndex(len(next(iter(held.values())))), np.dtype(object)  # by name pandas looks for it long
    typed = {column: _typed(column, values) for column, values in held.items()}
    for column, values in typed.items():
        if values.dtype == objects:  # of objects that nobody says are some pandas would make texts of its own
            typed[column] = pd.Series(values, index, objects, copy=False)
    return pd.DataFrame(typed, index, copy=False)


@cache
def _without_rows(name: str) -> pd.DataFrame:
    """Most tables of most runs: a copy is made in less time than another, and has no values that could be changed."""
    return _frame({column: [] for column in TABLES[name]})


def plain(name: str, rows: list[dict[str, Any]] | dict[str, Any]) -> dict[str, Any]:
    """What `table` makes a frame of: exactly its columns, of values of Python; arguments as for `table`.

    A text that is not there is empty.

    Raises:
        KeyError: columns are given, but not one that has no default.
    """
    if isinstance(rows, list):
        made: dict[str, Any] = {
            column: [row.get(column, DEFAULTS.get(column)) for row in rows] for column in TABLES[name]
        }
    elif rows:
        length = len(next(iter(rows.values())))
        given = {column: [default] * length for column, default in DEFAULTS.items()} | rows
        made = {column: given[column] for column in TABLES[name]}
    else:
        return {column: [] for column in TABLES[name]}
    for column in made.keys() - INTEGERS - FLOATS:
        made[column] = _told(made[column])
    return made


def _told(texts: Any) -> Any:
    if isinstance(texts, Column):
        return Column(_told(texts.values), texts.places)
    return ["" if text is None else text for text in texts] if None in texts else texts


def _typed(column: str, held: Sequence[Any]) -> Any:
    # never through a frame of mixed values: pandas would make floats of integers, and those round beyond 2**53
    if isinstance(held, pd.api.extensions.ExtensionArray):  # integers, and those that are missing, already
        return held
    if isinstance(held, Column):
        places = np.asarray(held.places)
        return integers(held.values, places) if column in COUNTS else _typed(column, held.values).take(places)
    if column in COUNTS:
        return integers(held)
    if column in INTEGERS:
        return _int64(held)
    return np.array(held, dtype="float64" if column in FLOATS else "object")


def integers(values: Iterable[Any], places: np.ndarray | None = None) -> Any:
    """A column of exact integers of any size, missing where they are None or missing.

    Args:
        values: integers.
        places: of each row the place of its value among them; by default each has one row.

    Returns:
        An array of pandas's Int64 where even sums of it stay below 2**63, else of Python's own integers: pandas would
        let Int64 wrap around without a word.
    """
    exact = _exact(values)
    sizes = [abs(value or 0) for value in exact]
    if places is None:
        most = sum(sizes)
    else:
        most = max(sizes, default=0) * len(places)
        if most >= _ROOM:  # counting them takes longer, and they are rarely so large
            most = sum(map(mul, sizes, np.bincount(places, minlength=len(sizes)).tolist()))
    if most < _ROOM:
        held = _int64(exact)
    else:
        held = np.array([pd.NA if value is None else value for value in exact], dtype=object)
    return held if places is None else held.take(places)


def _int64(values: Sequence[Any]) -> Any:
    """The same of integers of 64 bits, whose sums are nobody's."""
    try:
        return pd.arrays.IntegerArray(np.array(values, dtype="int64"), np.zeros(len(values), dtype=bool))
    except (TypeError, ValueError):  # some are missing
        exact = _exact(values)
    missing = np.array([value is None for value in exact], dtype=bool)
    return pd.arrays.IntegerArray(np.array([value or 0 for value in exact], dtype="int64"), missing)


def _exact(values: Iterable[Any]) -> list[int | None]:
    """Values as integers of Python, None where one is missing."""
    held = values if isinstance(values, list) else list(values)
    if set(map(type, held)) <= {int, type(None)}:
        return held
    return [None if pd.isna(value) else int(value) for value in held]


def columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as JSON-ready values, column by column; `table` makes it one again."""
    return {str(column): values(frame[column]) for column in frame.columns}


def values(column: pd.Series) -> list[Any]:
    """A column of a table as JSON-ready values: what is missing is None."""
    held = column.tolist()
    return held if set(map(type, held)) <= {str, int} else [_plain(value) for value in held]


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value
