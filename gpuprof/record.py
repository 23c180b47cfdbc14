"""The record: everything that was measured, raw, in one JSON file. Rates, ratios and percentages are never stored."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from gpuprof import log
from gpuprof.dates import in_utc
from gpuprof.errors import ForeignFileError, GpuprofError, no_run

SCHEMA_VERSION = 6
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

_SINCE = {
    "counters": 2, "timeline": 2, "launches": 2, "ranks": 3, "busy": 4, "collectives": 4, "graphs": 5, "nodes": 5,
    "compilations": 5, "breaks": 5, "generation": 6, "traffic": 6,
}  # fmt: skip
"""Schema version that a table came with."""

_DEFAULTS = {"launch": 0, "within": "", "group": "", "compiled": ""}
"""What a column holds where nothing is said of it, as in runs from before there was one."""

_INTEGERS = {
    "calls", "params", "trainable_params", "param_bytes", "trainable_bytes", "flops_causal", "flops_full",
    "flops_hardware", "vector_flops", "bytes", "call", "start_ns", "duration_ns", "flops_profiler", "step", "launch",
    "number",
    "tensor_bfloat16", "tensor_float16", "tensor_tf32", "tensor_float64", "tensor_float8", "scalar_float16",
    "scalar_float32", "scalar_float64", "tensor_instructions", "dram_read_bytes", "dram_written_bytes", "peak_bytes",
    "reserved_bytes", "kept_bytes", "gradient_bytes", "rank", "amount", "ranks", "kernels", "total_ns", "least_ns",
    "most_ns", "exposed_ns", "graph", "nodes", "repeat", "moved", "breaks", "part", "samples", "positions",
}  # fmt: skip

_COUNTS = {"flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes", "flops_profiler", "amount"}
"""Integers of any size: a step of the largest models is beyond 64 bits."""

_FLOATS = {"time_s", "start_s", "value", "total_s", "dynamo_s", "inductor_s"}


def table(name: str, rows: list[dict[str, Any]] | dict[str, list[Any]]) -> pd.DataFrame:
    """A raw table with exactly its columns; integers stay exact, unknown ones are missing, never 0.

    Args:
        name: of `TABLES`.
        rows: a list of rows, or columns by name; what is not given is missing, and the launch 0.
    """
    if isinstance(rows, list):
        columns = {column: [row.get(column, _DEFAULTS.get(column)) for row in rows] for column in TABLES[name]}
    else:
        length = len(next(iter(rows.values()), ()))
        given = {column: [default] * length for column, default in _DEFAULTS.items()} | rows
        columns = {column: given[column] for column in TABLES[name]}
    return pd.DataFrame({column: _typed(column, values) for column, values in columns.items()})


def _typed(column: str, values: list[Any]) -> Any:
    # never through a frame of mixed values: pandas would make floats of integers, and those round beyond 2**53
    if column in _COUNTS:
        return integers(values)
    if column in _INTEGERS:
        return pd.array([None if value is None or value is pd.NA else int(value) for value in values], dtype="Int64")
    if column in _FLOATS:
        return pd.Series(values, dtype="float64")
    return pd.Series(["" if value is None else value for value in values], dtype="object")


def integers(values: Iterable[Any]) -> Any:
    """A column of exact integers of any size, missing where they are None or missing.

    Returns:
        An array of pandas's Int64 where even sums of it stay below 2**63, else of Python's own integers: pandas would
        let Int64 wrap around without a word.
    """
    exact = [None if pd.isna(value) else int(value) for value in values]
    if sum(abs(value) for value in exact if value) < _ROOM:
        return pd.array(exact, dtype="Int64")
    return np.array([pd.NA if value is None else value for value in exact], dtype=object)


FACTS = ("workload", "device", "environment", "settings", "warnings", "doubts")
"""Parts of a saved run beside its passes and tables."""

DOUBTS = ("mismatches", "misbooked", "misowned", "invalid")
"""Why figures are withheld: what `gpuprof.analysis.consistency` finds, and what the telemetry tells."""

_ROOM = 2**60  # of a whole column: eight of them may be added up


@dataclass
class PassOutcome:
    """How one pass ended.

    Attributes:
        status: done, skipped or failed.
        reason: why it was skipped or failed, one line.
        remedy: what to do about it, one line.
        seconds: wall time it took.
        facts: what the pass has to say of itself, e.g. events read.
    """

    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    remedy: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """One workload, measured once: of a single process, of one rank of a job, or of the job as a whole.

    The tables are tidy and raw; `TABLES` says what each column holds. What they come to is a matter of
    `gpuprof.analysis`, and `gpuprof.run.Run` has that at hand.

    Attributes:
        workload: what was run: name, mode, every option, inputs, loss. In a job also ``world`` (number of processes),
            ``mesh`` (sizes by dimension), ``groups`` and ``parallel``; of one of its ranks ``rank``. Where something is
            compiled ``compiled``: how, by the path of each module that is, or `WHOLE_STEP`.
        device: what it ran on, with the peaks known of it (FLOP/s); of a job those of all its ranks together, and a
            list ``ranks`` of what each said of itself, see `gpuprof.job`.
        environment: versions, date, settings that change speed.
        settings: how the record is to be read: convention, user-given peak.
        passes: outcome of each pass by name.
        warnings: what the user should know, one line each.
        doubts: of a rank or a job why figures of it are withheld, a list for each of `DOUBTS`; of any other
            run it is found out when it is asked for.
        tree, ops, kernels, graphs, nodes, compilations, breaks, estimates, counters, samples, generation, traffic,
            launches, ranks, busy, collectives, memory, timeline, telemetry: the raw tables; graphs, nodes, compilations
            and breaks are of steps that torch.compile took part in; generation and traffic of generations; busy and
            collectives of ranks and jobs, and a job has no kernels.
    """

    workload: dict[str, Any]
    device: dict[str, Any]
    environment: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=lambda: {"convention": "causal"})
    passes: dict[str, PassOutcome] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    doubts: dict[str, list[str]] = field(default_factory=dict)
    tree: pd.DataFrame = field(default_factory=lambda: table("tree", []))
    ops: pd.DataFrame = field(default_factory=lambda: table("ops", []))
    kernels: pd.DataFrame = field(default_factory=lambda: table("kernels", []))
    graphs: pd.DataFrame = field(default_factory=lambda: table("graphs", []))
    nodes: pd.DataFrame = field(default_factory=lambda: table("nodes", []))
    compilations: pd.DataFrame = field(default_factory=lambda: table("compilations", []))
    breaks: pd.DataFrame = field(default_factory=lambda: table("breaks", []))
    estimates: pd.DataFrame = field(default_factory=lambda: table("estimates", []))
    counters: pd.DataFrame = field(default_factory=lambda: table("counters", []))
    samples: pd.DataFrame = field(default_factory=lambda: table("samples", []))
    generation: pd.DataFrame = field(default_factory=lambda: table("generation", []))
    traffic: pd.DataFrame = field(default_factory=lambda: table("traffic", []))
    launches: pd.DataFrame = field(default_factory=lambda: table("launches", []))
    ranks: pd.DataFrame = field(default_factory=lambda: table("ranks", []))
    busy: pd.DataFrame = field(default_factory=lambda: table("busy", []))
    collectives: pd.DataFrame = field(default_factory=lambda: table("collectives", []))
    memory: pd.DataFrame = field(default_factory=lambda: table("memory", []))
    timeline: pd.DataFrame = field(default_factory=lambda: table("timeline", []))
    telemetry: pd.DataFrame = field(default_factory=lambda: table("telemetry", []))

    def done(self, name: str) -> bool:
        """Whether the named pass ran to its end."""
        return name in self.passes and self.passes[name].status == "done"

    @property
    def recorded(self) -> bool:
        """Whether it was read from a recorded trace, and not measured."""
        return self.done("trace") and bool(self.passes["trace"].facts.get("recorded"))

    @property
    def metered(self) -> bool:
        """Whether it is of the steps of a training, which need not be alike: what it counted is their mean."""
        return self.workload.get("source") == "meter"

    @property
    def is_job(self) -> bool:
        """Whether it is of a job as a whole, and not of one of its ranks."""
        return self.workload.get("world", 1) > 1 and "rank" not in self.workload

    @property
    def of_job(self) -> str:
        """What it is of a job, in words: ``4 ranks`` or ``rank 1 of 4``; empty of a single process."""
        world = self.workload.get("world", 1)
        if "rank" in self.workload:
            return f"rank {self.workload['rank']} of {world}"
        return f"{world} ranks" if world > 1 else ""

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON-ready values; tables column by column."""
        return {
            "gpuprof": "run",
            "schema_version": SCHEMA_VERSION,
            "workload": self.workload,
            "device": self.device,
            "environment": self.environment,
            "settings": self.settings,
            "passes": {name: vars(outcome) for name, outcome in self.passes.items()},
            "warnings": self.warnings,
            **({"doubts": self.doubts} if self.doubts else {}),
            **{name: columns(getattr(self, name)) for name in TABLES},
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the run as JSON, gzip if the name ends in ``.gz``. The file appears whole or not at all.

        Raises:
            GpuprofError: the file cannot be written.
        """
        text = json.dumps(self.to_dict(), allow_nan=False, separators=(",", ":"))
        return write_atomically(path, text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what was saved, or the log of a `gpuprof.Meter`, or the folder of one. Does not need torch.

        Raises:
            GpuprofError: no such file, not a gpuprof run, truncated, a part missing or broken, or written by a newer
                gpuprof.
        """
        data = read(path)
        with whole_file(path):
            run = cls(
                **{key: data[key] for key in FACTS},
                passes={name: PassOutcome(**outcome) for name, outcome in data["passes"].items()},
                **{name: table(name, data[name]) for name in TABLES if name in data},
            )
            _check_tables(run)
        return run


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write text or bytes (gzip if the name ends in ``.gz``) so that the file is never seen half-written.

    Raises:
        GpuprofError: the file cannot be written.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes the file private
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise GpuprofError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def load(path: str | os.PathLike[str]) -> Record:
    """Read a saved record; see `Record.load`."""
    return Record.load(path)


def read(path: str | os.PathLike[str], tables: Iterable[str] = TABLES) -> dict[str, Any]:
    """A saved run as `Record.to_dict` has it, as far as it goes without what holds between tables.

    Args:
        path: of the file.
        tables: those that are wanted. What the file is too old to have is left out.

    Raises:
        GpuprofError: as in `Record.load`.
    """
    path = Path(path)
    if path.is_dir():
        path = log.of_folder(path)
    try:
        raw = path.read_bytes()
        if log.is_log(path):
            return _of_log(raw, path, tables)
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        data = json.loads(text)
    except OSError as error:
        if not path.exists():
            raise no_run(path) from error
        raise GpuprofError(f"cannot read {path}: {error.strerror or error}") from error
    except (EOFError, RecursionError, ValueError, zlib.error) as error:
        if path.suffix == ".jsonl" and not raw:
            raise GpuprofError(f"{path} is empty: its meter has not been read yet") from error
        raise GpuprofError(f"{path} is not a whole gpuprof run (truncated or foreign): profile again") from error
    if _is_trace(data):
        raise ForeignFileError(f"{path} is a trace: make a run of it with 'gpuprof import {path} -o run.json.gz'")
    if not isinstance(data, dict) or data.get("gpuprof") != "run":
        raise ForeignFileError(f"{path} is JSON but no gpuprof run: give a file saved by 'gpuprof profile -o'")
    version = data.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise GpuprofError(
            f"{path} has schema version {version}, this gpuprof reads up to {SCHEMA_VERSION}: upgrade gpuprof"
        )
    return _checked(data, path, tables)


def _of_log(raw: bytes, path: Path, tables: Iterable[str]) -> dict[str, Any]:
    """The log of a meter as the run that it is, which has few tables."""
    content = {name: columns(table(name, [])) for name in TABLES} | log.content(raw, path)
    return _checked({"schema_version": SCHEMA_VERSION, **content}, path, tables)


def _checked(data: dict[str, Any], path: Path, tables: Iterable[str]) -> dict[str, Any]:
    version = data["schema_version"]
    with whole_file(path):
        if version < 1:
            raise ValueError(f"schema version {version}")
        data.setdefault("doubts", {})
        _check_facts(data)
        there = [name for name in tables if version >= _SINCE.get(name, 1)]
        facts = {key: data[key] for key in (*FACTS, "passes")}
        for name, outcome in data["passes"].items():
            if PassOutcome(**outcome).status not in ("done", "skipped", "failed"):
                raise ValueError(f"the {name} pass neither ended nor did not")
        return facts | {name: _checked_columns(name, data[name]) for name in there}


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is wrong inside a file is one line that names it."""
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise GpuprofError(f"{path} is a gpuprof run with a part missing or broken ({error}): profile again") from error


def _is_trace(data: Any) -> bool:
    """Whether it is what torch.profiler saves: an object with the events, or they alone."""
    if isinstance(data, list):
        return bool(data) and isinstance(data[0], dict) and "ph" in data[0]
    return isinstance(data, dict) and "traceEvents" in data


def _check_facts(data: dict[str, Any]) -> None:
    """That the parts are there and what a verdict divides by, sorts by or names is usable."""
    for part in ("workload", "device", "environment", "settings", "doubts"):
        if not isinstance(data[part], dict):
            raise ValueError(f"{part} is no object")
    names = (data["workload"]["name"], data["workload"]["mode"], data["device"]["type"])
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError("no name, mode or device")
    _check_job(data)
    if data["doubts"] and set(data["doubts"]) != set(DOUBTS):
        raise ValueError("doubts of what nobody knows")
    lists = {"warnings": data["warnings"], **{f"doubts.{name}": found for name, found in data["doubts"].items()}}
    for name, texts in lists.items():
        if not (isinstance(texts, list) and all(isinstance(one, str) for one in texts)):
            raise ValueError(f"{name} is no list of texts")
    if data["environment"].get("date") not in (None, ""):
        in_utc(data["environment"]["date"])
    given = {name: data["passes"].get(name, {}).get("facts", {}) for name in ("count", "time")}
    if not _is_texts(data["workload"].get("compiled", {})):
        raise ValueError("workload.compiled does not say how")
    hidden = data["passes"].get("trace", {}).get("facts", {}).get("hidden", [])
    if not isinstance(hidden, list) or not all(isinstance(one, str) for one in hidden):
        raise ValueError("the trace hides what is no module")
    cache = given["count"].get("cache", {"bytes": []})
    if not all(type(held) is int for held in cache["bytes"]):
        raise ValueError("a cache without its bytes")
    words, numbers = (
        [given["count"].get(name, "") for name in ("inputs", "inputs_before")],
        given["time"].get("inputs", {}),
    )
    if not all(isinstance(one, str) for one in words) or not all(type(steps) is int for steps in numbers.values()):
        raise ValueError("the inputs of a step are none")
    if not all(isinstance(text, str) for text in given["count"].get("traffic_unknown", ())):
        raise ValueError("what is not known of traffic is no list of texts")
    devices = [data["device"], *(one["device"] for one in data["device"].get("ranks", ()))]
    for peaks in [known for device in devices for known in device.get("peaks", {}).values()]:
        if not all(_is_number(peak) and peak > 0 for peak in peaks.values()):
            raise ValueError("device.peaks holds what is no peak")


def _is_texts(of: Any) -> bool:
    """Whether it is an object of texts."""
    return isinstance(of, dict) and all(isinstance(one, str) for one in of.values())


def _check_job(data: dict[str, Any]) -> None:
    """That a rank's place in its job is one, and that a job knows all its ranks."""
    workload = data["workload"]
    world, mesh, groups = workload.get("world", 1), workload.get("mesh", {}), workload.get("groups", {})
    if type(world) is not int or world < 1:
        raise ValueError("a world that is no number of processes")
    of_job = world > 1 and "rank" not in workload
    if "rank" in workload and (type(workload["rank"]) is not int or not 0 <= workload["rank"] < world):
        raise ValueError(f"rank {workload['rank']} of {world}")
    if not isinstance(mesh, dict) or not all(type(size) is int and size > 0 for size in mesh.values()):
        raise ValueError("a mesh without sizes")
    for members in [one for lists in groups.values() for one in (lists if of_job else [lists])]:
        if not isinstance(members, list) or not all(type(rank) is int and 0 <= rank < world for rank in members):
            raise ValueError("a process group that is no list of ranks")
    if not all(isinstance(how, str) for how in workload.get("parallel", ())):
        raise ValueError("workload.parallel is no list of texts")
    if of_job:
        _check_ranks(data, world)


def _check_ranks(data: dict[str, Any], world: int) -> None:
    """What a job says of each of its ranks."""
    if not data["doubts"]:
        raise ValueError("a job that does not say what its ranks doubt")
    ranks = data["device"].get("ranks")
    if not isinstance(ranks, list) or [one["rank"] for one in ranks] != list(range(world)):
        raise ValueError(f"not the {world} ranks that the job has")
    for one in ranks:
        if not all(isinstance(one[part], dict) for part in ("device", "environment", "passes")):
            raise ValueError(f"rank {one['rank']} says nothing of itself")
        if not isinstance(one["file"], str):
            raise ValueError(f"the file of rank {one['rank']} has no name")
    memory = data["passes"].get("memory", {})
    if memory.get("status") == "done" and memory.get("facts", {}).get("rank") not in range(world):
        raise ValueError("memory of no rank")
    if unsharded := data["workload"].get("unsharded"):
        counts = [unsharded["flops"], *unsharded["repeated"].values(), *unsharded["missing"].values()]
        if not all(_is_number(count, _LARGEST) for count in counts) or unsharded["replicas"] not in range(1, world + 1):
            raise ValueError("workload.unsharded is no count of FLOPs")


def _is_number(value: Any, most: int = 2**63) -> bool:
    return type(value) in (int, float) and abs(value) < most  # no NaN either


_LARGEST = 2**1000  # of a count: rates and shares of it are floats, which end at 2**1024


def _checked_columns(name: str, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns of a `table` that a file holds, if every one is of its type and as long as the others."""
    known = {column: columns[column] for column in TABLES[name] if column in columns or column not in _DEFAULTS}
    if len(set(map(len, known.values()))) > 1:
        raise ValueError(f"{name} has columns of different length")
    for column, values in known.items():
        types = {int} if column in _INTEGERS else {int, float} if column in _FLOATS else {str}
        if not isinstance(values, list) or not set(map(type, values)) <= types | {type(None)}:
            raise ValueError(f"{name}.{column} is no list of {'texts' if types == {str} else 'figures'}")
        most = _LARGEST if column in _COUNTS else 2**63
        if types != {str} and not all(_is_number(value, most) for value in {*values} - {None}):
            raise ValueError(f"{name}.{column} is out of range")
    return known


def _check_tables(run: Record) -> None:
    """What holds between rows and tables, and is divided by."""
    samples = run.samples
    steps = samples.loc[samples["phase"].isin(["step", "reference"])]
    modules = {*run.tree["module"], *NOBODYS}
    booked = (run.ops, run.kernels, run.nodes, run.counters, run.busy, run.traffic)
    owners = {module for rows in booked for module in rows["module"]} - {ALL}
    if not owners <= modules:
        raise ValueError("rows of modules that it has not")
    if not {*samples["launch"]} <= {*steps.loc[steps["phase"] == "step", "launch"]}:
        raise ValueError("samples has a launch without a step")
    if not (steps["time_s"] > 0).all():
        raise ValueError("samples has a step of no time")
    ranks = run.ranks
    missing = ranks[["rank", "quantity", "amount"]].isna().any(axis=None)
    if missing or not (ranks.loc[ranks["quantity"] == "step_ns", "amount"] > 0).all():
        raise ValueError("ranks has a figure or a time of a step missing")
    times = ranks[ranks["dtype"] == ""].groupby(["rank", "step"])["quantity"]
    if len(times) < ranks.groupby(["rank", "step"]).ngroups or any(
        set(RANK_QUANTITIES) - set(given) for _, given in times
    ):
        raise ValueError("ranks has a step without one of its times")
    given = run.collectives.drop(columns="bytes")
    if given.isna().any(axis=None) or (given[["number", "start_ns", "duration_ns", "exposed_ns"]] < 0).any(axis=None):
        raise ValueError("collectives has a place or a time missing")
    times = run.busy[["kernels", "total_ns", "least_ns", "most_ns"]]
    if run.busy.isna().any(axis=None) or (run.busy["ranks"] < 1).any() or (times < 0).any(axis=None):
        raise ValueError("busy has a time missing")
    _check_compiled(run)
    _check_generation(run)


def _check_generation(run: Record) -> None:
    """What times are divided by and bytes are added up by, in the tables of a generation."""
    parts, traffic = run.generation, run.traffic
    phases, times = {*FORWARD} - {"forward"}, parts[["launch", "step", "part", "time_s"]]
    if times.isna().any(axis=None) or (times < 0).any(axis=None) or not {*parts["phase"]} <= phases:
        raise ValueError("generation has a part without its phase or time")
    if parts.duplicated(["launch", "step", "part"]).any():
        raise ValueError("generation has a part twice")
    if ((parts["samples"] < 1) | (parts["positions"] < 1)).any():
        raise ValueError("generation has a part of no sequences or positions")
    if traffic["bytes"].isna().any() or (traffic["bytes"] < 0).any() or not {*traffic["phase"]} <= phases:
        raise ValueError("traffic has a row without its phase or bytes")
    if not (traffic["part"].isna() == (traffic["module"] != ALL)).all():
        raise ValueError("traffic of the whole model without its part, or of a module with one")
    if not {*traffic["what"]} <= {*TRAFFIC}:
        raise ValueError("traffic of what nobody knows")


def _check_compiled(run: Record) -> None:
    """What times are split by and FLOPs are added up by, in the tables of what torch.compile made."""
    graphs, nodes = run.graphs, run.nodes
    numbers = set(graphs["graph"])
    counts = graphs[["graph", "nodes", "kernels", "calls"]]
    if counts.isna().any(axis=None) or (counts < 0).any(axis=None) or len(numbers) < len(graphs):
        raise ValueError("graphs has no such figures, or a graph twice")
    if not {*nodes["graph"]} <= numbers:
        raise ValueError("nodes of graphs that it has not")
    if nodes[["calls", "repeat"]].isna().any(axis=None) or not {*nodes["phase"]} <= {*PHASES}:
        raise ValueError("nodes has a phase or its calls missing")
    figures = nodes[[column for column in nodes if column in _INTEGERS]]
    if (figures < 0).any(axis=None) or (nodes["calls"] < 1).any() or not {*nodes["repeat"]} <= {0, 1}:
        raise ValueError("nodes has a figure out of range")
    calls = [_CALL(key) for key in set(run.kernels["compiled"]) - {""}]
    if not all(call and int(call[1]) in numbers for call in calls):
        raise ValueError("kernels of graphs that it has not")
    if (run.compilations[["total_s", "dynamo_s", "inductor_s"]] < 0).any(axis=None):
        raise ValueError("compilations has a time out of range")
    if run.breaks.isna().any(axis=None) or (run.breaks["breaks"] < 1).any():
        raise ValueError("breaks has no number")


_CALL = re.compile(r"(\d{1,18})/.*:\d+").fullmatch


def columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as JSON-ready values, column by column; `table` makes it one again."""
    return {str(column): [_plain(value) for value in frame[column].tolist()] for column in frame.columns}


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value
