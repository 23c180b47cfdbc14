"""What torch.compile does while a step runs: what it compiles, when, how long that takes, and what it gives up on.

Dynamo and Inductor tell of themselves whenever they compile something; of a step in which nothing is compiled nobody
hears anything, and it costs nothing.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch._dynamo.utils as dynamo
from torch._dynamo import trace_rules
from torch._dynamo.callback import CallbackArgs, CallbackTrigger, callback_handler

from gpuprof.compiled.afresh import Backend, compiled_afresh
from gpuprof.compiled.caches import clear_caches, empty_caches
from gpuprof.undo import patched, undoing

_PACKAGE = Path(__file__).parents[1]
_OURS = [_PACKAGE / part for part in ("passes", "compiled", "attribution.py", "undo.py")]
"""What may run inside a step: where that is compiled, it is not to be compiled with it."""

WARM = "warm"
"""The pass of what is compiled once more, with caches that hold it."""

_CACHE = re.compile(r"(autograd|fx_graph)_cache_(\w+)").fullmatch
_GUARD = re.compile(r"^\d+/\d+: (?P<guard>.*?)(?:\s+#.*?(?P<place>[^/\s#]+:\d+) in \S+.*)?\s*$").match
_EXPLANATION = re.compile(r"^\s*Explanation: (.*)$", re.MULTILINE).search


@dataclass
class Watch:
    """What has been compiled so far.

    Attributes:
        tell: told of ``compiling``, how many compilations are over and how many have begun.
        begun: compilations and recordings of CUDA graphs so far.
        rows: of the table ``compilations``.
    """

    tell: Callable[[str, int, int], None] = lambda name, done, total: None
    begun: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    _in_pass: str = ""
    _step: int | None = None
    _ended: int = 0
    _since: float = 0.0
    _breaks: dict[str, Counter[tuple[str, str, str]]] = field(default_factory=dict)
    _frames: dict[str, str] = field(default_factory=dict)  # by the first part of the id of their compilations
    _caches: list[tuple[str, str]] = field(default_factory=list)  # what each said since the last compilation
    _skipped: int = 0  # graphs that were to be CUDA graphs, and are none

    def begin(self, name: str) -> None:
        """A pass begins."""
        self._in_pass, self._step = name, None

    def number(self, step: int | None) -> None:
        """The timed step with this number begins."""
        self._step = step

    @property
    def breaks(self) -> list[dict[str, Any]]:
        """Rows of the table of that name: what is compiled afresh in several passes breaks in each."""
        most: Counter[tuple[str, str, str]] = Counter()
        for found in self._breaks.values():
            most |= found
        names = ("frame", "place", "reason")
        return [dict(zip(names, key, strict=True)) | {"breaks": n} for key, n in most.items()]

    def in_timed_steps(self) -> str:
        """What was compiled in timed steps, and why; empty where nothing was."""
        found = [row for row in self.rows if row["step"] is not None]
        if not found:
            return ""
        first = next((row for row in found if row["reason"]), found[0])
        did = "compiled" if first["direction"] else "recorded a CUDA graph of"
        others = len({row["frame"] for row in found}) - 1
        why = f" as it failed {first['reason']}" if first["reason"] else ""
        return (
            f"torch.compile {did} {first['frame'] or 'a function'}{f' and {others} more' if others else ''} in "
            f"{len({row['step'] for row in found})} of the timed steps{why}: what they took is the time of no step; "
            "give more warm-up steps, or mark as dynamic what varies"
        )

    def gave_up(self) -> list[str]:
        """Functions that run as they are after they were compiled too often, a line each."""
        return [
            f"torch.compile gave up {row['frame']}, which now runs as it is: {row['gave_up']}"
            for row in self.rows
            if "recompile limit" in row["gave_up"] and row["pass"] != WARM
        ]

    def once_more(self, step: Callable[[], Any]) -> None:
        """Run a step and compile anew what is compiled in it, from caches that hold it, if they were empty before."""
        if not any(row["cache"].startswith("miss") for row in self.rows):
            return
        before, self._in_pass = self._in_pass, WARM
        try:
            with compiled_afresh(again):
                clear_caches()  # those in memory: another process has none
                step()
        finally:
            self._in_pass = before

    def starts(self, _: CallbackArgs) -> None:
        """Dynamo's callback."""
        self.begun += 1
        self._since = time.perf_counter()
        self.tell("compiling", self._ended, self.begun)

    def ends(self, about: CallbackArgs) -> None:
        """Dynamo's callback."""
        self._ended += 1
        if about.callback_trigger == CallbackTrigger.CUDAGRAPH_RECORDING:
            self._add(
                frame=self._frames.get(about.compile_id.partition("/")[0], ""), cuda_graph="recorded",
                total_s=time.perf_counter() - self._since,
            )  # fmt: skip
        self.tell("compiling", self._ended, self.begun)

    def says(self, event: str, about: dict[str, Any]) -> None:
        """A cache was asked."""
        if found := _CACHE(event):
            reason = about.get("cache_bypass_reason")
            said = f"{found[2]}: {' '.join(str(reason).split())}" if reason else found[2]
            self._caches.append((found[1], said))

    def breaks_at(self, reasons: Sequence[Any], frame: str) -> None:
        """Where Dynamo ended graphs of a function."""
        found = self._breaks.setdefault(self._in_pass, Counter())
        found.update((frame, place(one.user_stack), in_short(one.reason)) for one in reasons)

    def compiled(self, metrics: Any) -> None:
        """A compilation is over, well or not."""
        if metrics.is_runtime:  # of CUDA graphs and kernels that choose among themselves when they run
            return
        number = str(metrics.compile_id).partition("/")[0]
        if metrics.co_name is not None:
            where = f"{os.path.basename(metrics.co_filename or '')}:{metrics.co_firstlineno}"
            self._frames[number] = f"{metrics.co_name} ({where})"
        spent, backend = metrics.dynamo_cumulative_compile_time_us, metrics.aot_autograd_cumulative_compile_time_us
        self._add(
            frame=self._frames.get(number, ""),
            direction="backward" if metrics.is_forward is False else "forward",
            reason=guards(metrics.recompile_reason or ""),
            cache=self._cache(),
            cuda_graph=self._cuda_graph(metrics.cudagraph_skip_reason),
            gave_up="" if metrics.fail_type is None else in_short(metrics.fail_reason or metrics.fail_type),
            total_s=_seconds(metrics.duration_us),
            dynamo_s=None if spent is None else _seconds(spent - (backend or 0)),
            inductor_s=_seconds(metrics.inductor_cumulative_compile_time_us),
        )

    def _add(self, **row: Any) -> None:
        empty = dict.fromkeys(("direction", "reason", "cache", "cuda_graph", "gave_up"), "")
        self.rows.append({"pass": self._in_pass, "step": self._step, **empty, **row})

    def _cache(self) -> str:
        """What the last compilation had of the caches: a hit is of all its graphs, by AOTAutograd or by Inductor."""
        said, self._caches = self._caches, []
        found = [what for cache, what in said if cache == "fx_graph" or what == "hit"] or [what for _, what in said]
        refused = [f"AOTAutograd {what}" for cache, what in said if cache != "fx_graph" and ": " in what]
        return "; ".join([next((one for one in found if one != "hit"), found[0]), *refused[:1]]) if found else ""

    def _cuda_graph(self, reason: str | None) -> str:
        skips = dynamo.counters["inductor"]["cudagraph_skips"]
        before, self._skipped = self._skipped, skips
        if reason:
            return f"skipped: {reason.splitlines()[0].removeprefix('skipping cudagraphs due to ')}"
        return "skipped: not on CUDA" if skips > before else ""


@contextmanager
def watched(tell: Callable[[str, int, int], None]) -> Iterator[Watch]:
    """Watch whatever is compiled in here. From the first time on Inductor's caches are others, empty at first."""
    watch = Watch(tell)
    with undoing() as undo, ExitStack() as into:

        def starts(about: CallbackArgs) -> None:
            if not watch.begun:
                into.enter_context(empty_caches())
            watch.starts(about)

        seen = len(dynamo.graph_break_reasons)

        class Metrics(deque[Any]):
            def append(self, metrics: Any) -> None:
                nonlocal seen
                super().append(metrics)
                reasons = dynamo.graph_break_reasons
                watch.compiled(metrics)
                fresh = reasons[seen if seen <= len(reasons) else 0 :]  # who resets Dynamo empties it
                seen = len(reasons)
                watch.breaks_at(fresh, watch.rows[-1]["frame"] if watch.rows else "")

        def instant(event_name: str, metadata: dict[str, Any], time_ns: int | None = None) -> None:
            watch.says(event_name, metadata)
            told(event_name, metadata, time_ns)

        into.enter_context(patched(trace_rules, {"SKIP_DIRS_RE": _skipping(_OURS)}))
        told = dynamo.CompileEventLogger.instant
        kept = dynamo._compilation_metrics
        metrics = Metrics(kept, maxlen=kept.maxlen)
        watch._skipped = dynamo.counters["inductor"]["cudagraph_skips"]
        for callbacks, ours in (
            (callback_handler.start_callbacks, starts),
            (callback_handler.end_callbacks, watch.ends),
        ):
            undo(callbacks.remove, ours)
            callbacks.append(ours)
        into.enter_context(patched(dynamo.CompileEventLogger, {"instant": staticmethod(instant)}))
        into.enter_context(patched(dynamo, {"_compilation_metrics": metrics}))
        yield watch


def _skipping(files: Iterable[Path]) -> re.Pattern[str]:
    """What tells Dynamo of files whose functions it leaves alone, with these among them."""
    ours = "|".join(re.escape(file.as_posix()) for file in files)
    return re.compile(f"{trace_rules.SKIP_DIRS_RE.pattern}|^({ours})")


def again(backend: Backend) -> Backend:
    """A backend that does the same, and is another one to Dynamo."""
    return lambda graph, inputs, **rest: backend(graph, inputs, **rest)


def place(stack: Sequence[traceback.FrameSummary]) -> str:
    """File and line of the innermost of these frames; empty where there is none."""
    return f"{os.path.basename(stack[-1].filename)}:{stack[-1].lineno}" if stack else ""


def in_short(reason: str) -> str:
    """What Dynamo could not do, and the first sentence of its explanation, without hints and links, in one line."""
    first, explanation = reason.strip().partition("\n")[0], _EXPLANATION(reason)
    return f"{first}: {explanation[1].partition('. ')[0].rstrip('.')}" if explanation else first


def guards(reason: str) -> str:
    """Guards that failed, as Dynamo has them, each with its place: ``len(l) == 1 (net.py:27)``."""
    known = [_GUARD(line) for line in reason.splitlines()]
    # of other backends are what is compiled afresh, by us, and every graph that DDP cuts up for its buckets
    others = ("New backend: gpuprof.", "New backend: torch._dynamo.backends.distributed.")
    found = [one for one in known if one and not any(other in one["guard"] for other in others)]
    return "; ".join(f"{one['guard']} ({one['place']})" if one["place"] else one["guard"] for one in found)


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6
