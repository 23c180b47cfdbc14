"""Many workloads, each measured by a child process of its own, into a folder that keeps what is done."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuprof.errors import GpuprofError, is_out_of_memory
from gpuprof.signals import held_back

if TYPE_CHECKING:
    from gpuprof.record import Record  # which loads pandas, and a plan is checked without

SCHEMA_VERSION = 1
SIZES = ("seq_len", "batch_size", "prompt_len", "new_tokens", "image_crops")
SWEPT = (*SIZES, "dtype", "attention", "cache", "checkpointing", "optimizer", "compile", "mode")
"""Options that may have several values, in the order in which they vary: the last the fastest."""

NOT_RUN, DONE, OUT_OF_MEMORY, TIMED_OUT, FAILED = "not run", "done", "out of memory", "timed out", "failed"

_GRACE_S = 5.0


@dataclass
class Point:
    """One workload of a sweep, and what became of it.

    Attributes:
        model: as on the command line.
        options: the swept options that were given, of `SWEPT` and in its order.
        status: not run, done, out of memory, timed out or failed.
        reason: why it is not done, one line.
        seconds: how long its child ran.
    """

    model: str
    options: dict[str, int | str]
    status: str = NOT_RUN
    reason: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Model and swept values, in characters that suit a file's name."""
        return ",".join([_safe(self.model), *(f"{flag(name)[2:]}={value}" for name, value in self.options.items())])

    @property
    def arguments(self) -> list[str]:
        """The point as arguments of ``gpuprof profile``."""
        return [self.model, *itertools.chain(*((flag(name), str(value)) for name, value in self.options.items()))]

    def file(self, folder: Path) -> Path:
        """Where its run is saved."""
        return folder / f"{self.name}.json.gz"


Tell = Callable[[Sequence[Point], Sequence[Point]], None]
"""Called with the points that were run and those that are left, the next one first."""


def flag(name: str) -> str:
    """The command line's spelling of an option: ``seq_len`` is ``--seq-len``."""
    return "--" + name.replace("_", "-")


def grid(models: Sequence[str], swept: Mapping[str, Sequence[int | str]]) -> list[Point]:
    """Every combination of models and values, in the order of `SWEPT`."""
    names = [name for name in SWEPT if name in swept]
    return [
        Point(model, dict(zip(names, values, strict=True)))
        for model in models
        for values in itertools.product(*(swept[name] for name in names))
    ]


def check(points: Sequence[Point], **fixed: Any) -> None:
    """Find what no workload could be built with before anything runs.

    Args:
        points: the combinations.
        fixed: fields of `gpuprof.workload.Options` that all of them share.

    Raises:
        GpuprofError: the model of a point is none, or its options contradict, or are none.
    """
    from gpuprof.workload import Options, names

    for point in points:
        given: dict[str, Any] = {**fixed, **point.options}
        names.check(point.model, Options(**given))


def read(folder: Path) -> tuple[list[str] | None, list[Point]]:
    """What a folder holds: the arguments that its points share (None where there are no points), and the points.

    Raises:
        GpuprofError: its ``sweep.json`` is none, or is newer than this gpuprof.
    """
    path = folder / "sweep.json"
    try:
        data = json.loads(path.read_text())
        if data["gpuprof"] != "sweep" or data["schema_version"] > SCHEMA_VERSION:
            raise ValueError("a newer gpuprof wrote it" if data["gpuprof"] == "sweep" else "no sweep")
        points = [Point(**point) for point in data["points"]]
        options = list(data["options"])
    except FileNotFoundError:
        return None, []
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise GpuprofError(f"cannot read {path} ({error}): give another folder with -o") from error
    for point in points:
        _look(point, folder)
    return options, points


def run_of(point: Point, folder: Path) -> Record | None:
    """The saved run of a point, None where there is no whole one."""
    from gpuprof.record import load

    with suppress(GpuprofError):
        return load(point.file(folder))
    return None


def joined(planned: Sequence[Point], options: Sequence[str], folder: Path) -> list[Point]:
    """The points of a folder as they stand, and after them those planned ones that are new to it.

    Raises:
        GpuprofError: the folder's points were measured with other options, so that they would not compare.
    """
    before, points = read(folder)
    if before is not None and before != list(options):
        raise GpuprofError(
            f"{folder} holds points measured with {' '.join(before)}, not {' '.join(options)}: give the same options, "
            "or another folder with -o"
        )
    known = {point.name for point in points}
    new = [point for point in planned if point.name not in known]
    for point in new:  # sweep.json may have been lost, and the runs not
        _look(point, folder)
    return points + new


def to_run(planned: Sequence[Point], points: Sequence[Point], retry: bool) -> list[Point]:
    """Those of a folder's points that are planned and still to be run; failed ones only to retry."""
    wanted = {point.name for point in planned}
    return [p for p in points if p.name in wanted and (p.status == NOT_RUN or (retry and p.status != DONE))]


def sweep(
    planned: Sequence[Point],
    options: Sequence[str],
    folder: Path,
    *,
    limit_s: float | None = None,
    retry: bool = False,
    tell: Tell | None = None,
) -> list[Point]:
    """Measure the planned points that the folder does not have yet, one after another.

    Each outcome is written down before the next point begins, so that an interrupted sweep goes on where it was.

    Args:
        planned: which points.
        options: further arguments of ``gpuprof profile``, the same for all.
        folder: where runs and ``sweep.json`` go; it is made if need be.
        limit_s: seconds after which a point is killed, with everything it started.
        retry: also run again what is there without being done.
        tell: told how far the sweep is.

    Returns:
        All points of the folder, those of earlier sweeps included.

    Raises:
        GpuprofError: the folder cannot be used, or another sweep is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GpuprofError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    with _alone(folder) as lock:
        points = joined(planned, options, folder)
        left = to_run(planned, points, retry)
        over: list[Point] = []
        _write(folder, options, points)
        while left:
            if tell:
                tell(over, left)
            _measure(left[0], options, folder, limit_s, lock)
            over.append(left.pop(0))
            _write(folder, options, points)
        if tell:
            tell(over, left)
    return points


def command() -> list[str]:
    """What measures a point. Modules that happen to lie in the working directory are none of ours."""
    here = Path(__file__).parent.parent == Path.cwd()  # a checkout that is not installed
    return [sys.executable, *([] if here else ["-P"]), "-m", "gpuprof", "profile"]


def _measure(point: Point, options: Sequence[str], folder: Path, limit_s: float | None, lock: int) -> None:
    """Run a point in a process group of its own, and set what became of it."""
    path = point.file(folder).absolute()
    path.unlink(missing_ok=True)
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        child, late = None, True
        try:
            with held_back():
                child = subprocess.Popen(
                    [*command(), *point.arguments, *options, "-q", "-o", str(path)], stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=said, start_new_session=True, pass_fds=(lock,),
                )  # fmt: skip
            with suppress(subprocess.TimeoutExpired):
                child.wait(limit_s)
                late = False
        finally:
            if child is not None and late:
                stop(child)
        said.seek(0)
        complaint = said.read()
    point.seconds = round(time.perf_counter() - begin, 1)
    if run := run_of(point, folder):
        point.status, point.reason = _judge(run)
    elif late:
        point.status, point.reason = TIMED_OUT, f"killed after {limit_s:g} s: raise --limit"
    else:
        point.reason = _reason(complaint, child.returncode)
        point.status = OUT_OF_MEMORY if is_out_of_memory(point.reason) else FAILED


def stop(child: subprocess.Popen[bytes]) -> None:
    """Interrupt a child, so that it ends what runs in other process groups for it, then kill what is left of it."""
    try:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(child.pid, signal.SIGINT)
            child.wait(_GRACE_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _judge(run: Record) -> tuple[str, str]:
    """Status and reason of a point that saved its run: passes may have failed in it."""
    for name, outcome in run.passes.items():
        if outcome.status == "failed":
            return OUT_OF_MEMORY if is_out_of_memory(outcome.reason) else FAILED, f"{name}: {outcome.reason}"
    return DONE, ""


def _look(point: Point, folder: Path) -> None:
    """Set what became of a point. Its file decides: the child may have outlived the sweep that should note its end."""
    if run := run_of(point, folder):
        point.status, point.reason = _judge(run)
    elif point.status == DONE:
        point.status = NOT_RUN


def _reason(complaint: str, code: int) -> str:
    """Why a child failed, of what it printed and how it ended, in one line."""
    if code < 0:
        short = ", as the system does when memory is short" if -code == signal.SIGKILL else ""
        return f"ended by signal {-code} ({signal.strsignal(-code)}){short}"
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    ours = [line.removeprefix("gpuprof: ") for line in lines if line.startswith("gpuprof: ")]
    words = (ours if code == 2 and ours else lines)[-1:]
    return words[0][:300] if words else f"ended with exit code {code} and said nothing"


def _write(folder: Path, options: Sequence[str], points: Sequence[Point]) -> None:
    from gpuprof.files import write_atomically

    data = {
        "gpuprof": "sweep", "schema_version": SCHEMA_VERSION, "options": list(options),
        "points": [asdict(point) for point in points],
    }  # fmt: skip
    write_atomically(folder / "sweep.json", json.dumps(data, indent=1) + "\n")


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold the folder's lock, which a child holds too: one that outlived its sweep would disturb the next one's times.

    Raises:
        GpuprofError: somebody holds it, or the folder is not writable.
    """
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise GpuprofError(f"cannot write in {folder}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GpuprofError(
                f"another sweep is at work in {folder}, or the last point of one that was killed: wait for it to end, "
                "or give another folder with -o"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield handle
    finally:
        os.close(handle)


def _safe(text: str, most: int = 80) -> str:
    """Text in characters that suit a file's name; what that changes still has a name of its own."""
    safe = re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-.")[-most:]
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
