"""The control channel between the processes of a job: they go through every pass in step, and none waits without end.

Messages go through the store of `torch.distributed`, under keys of gpuprof's own, and never through a process group: so
they are no kernels, never come between the collectives of the step, and still arrive when a group is broken.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch.distributed as dist

from gpuprof.errors import GpuprofError, first_line
from gpuprof.parallel import launch
from gpuprof.parallel.launch import TIMEOUT_S

T = TypeVar("T")

LATE_S = 10.0
"""Seconds from which it is told that a rank came later than the others."""

_PATIENCE = 1.2
"""Of the time-out, until a rank is given up: its own collectives may end by the time-out first, and it says so."""

_POLL_S = 0.02
_WATCH_S = 1.0
_FAREWELL_S = 5.0
_PIECE = 4 << 20  # bytes: TCPStore refuses messages above 8 MiB, and closes the connection

DONE, FAILED, INTERRUPTED, GONE = "done", "failed", "interrupted", "gone"


def _words(error: Exception) -> tuple[str, str]:
    said = str(error) if isinstance(error, GpuprofError) else f"{type(error).__name__}: {first_line(error)}"
    return said, ""


class Report(dict[str, Any]):
    """How something ended on one rank: status, reason, remedy, and seconds since all ranks began with it."""

    @property
    def bad(self) -> bool:
        """Whether that ends it for all."""
        return self["status"] in (FAILED, INTERRUPTED, GONE)


class Control:
    """This process among those of its job; one that stands alone has a world of 1, and agrees with itself.

    Attributes:
        rank: number of this process.
        world: number of processes.
        timeout_s: how long a rank is waited for.
        lost: why a rank is no longer waited for, by its number.
        left: why the process groups are no longer there; empty while they are.
        late: who came late to what, a line each.
        measured: whether a pass is done, so that there is something to keep.
    """

    def __init__(self, store: Any = None, rank: int = 0, world: int = 1, timeout_s: float = TIMEOUT_S) -> None:
        self.rank, self.world, self.timeout_s = rank, world, timeout_s
        self.lost: dict[int, str] = {}
        self.left = ""
        self.late: list[str] = []
        self.measured = False
        self._store = store
        self._round = 0
        self._waited = 0.0
        self._before = "the start"
        self._places: list[dict[str, Any]] = []
        self._leaving = threading.Lock()
        self._watched: Any = store and store.clone()  # a connection for the thread of `_watching`

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world == 1

    def meet(self) -> None:
        """Wait until every rank is there, and know where each is."""
        self._places = self.agree("the start", {"host": _host(), "pid": os.getpid()})

    def agree(self, what: str, mine: Any) -> list[Any]:
        """What every rank says of it, in the order of ranks; None of one that is lost.

        Args:
            what: in words; the same on every rank.
            mine: what this one says, in JSON's types. A `Report` that is bad makes the groups be left, where others
                still wait in a collective for this rank.

        Raises:
            GpuprofError: ranks are at different points of their program.
        """
        if self.alone:
            return [mine]
        try:
            return self._agreed(what, mine)
        except dist.DistError:  # of the store: nothing can be agreed on any more
            self._lose(0, "it kept the store of the job, which does not answer any more")
            return [mine if rank == self.rank else None for rank in range(self.world)]

    def _agreed(self, what: str, mine: Any) -> list[Any]:
        self._round += 1
        self._store.set(self._key(self.rank), json.dumps({"what": what, "value": mine, "waited": self._waited}))
        start, said = time.monotonic(), {}
        pause = _POLL_S / 10
        bad_since = start if isinstance(mine, Report) and mine.bad else None
        while missing := [rank for rank in range(self.world) if rank not in said and rank not in self.lost]:
            for rank in missing:
                end = self._end_of(rank)  # looked at first: what it said before is in the store by now
                if self._store.check([self._key(rank)]):
                    said[rank] = json.loads(self._store.get(self._key(rank)))
                elif end:
                    self._lose(rank, end)
                elif time.monotonic() - start > _PATIENCE * self.timeout_s:
                    self._lose(rank, f"it did not come to {what} within {self.timeout_s:g} s")
                if bad_since is None and rank in said and _is_bad(said[rank]["value"]):
                    bad_since = time.monotonic()
            if bad_since is not None and time.monotonic() - bad_since > self._grace_s:
                self.leave("a rank failed while others waited for it")
            time.sleep(pause)
            pause = min(2 * pause, _POLL_S)
        self._waited = time.monotonic() - start
        for rank, message in said.items():
            if message["what"] != what:
                raise GpuprofError(
                    f"rank {rank} is at {message['what']} while rank {self.rank} is at {what}: every rank has to call "
                    "gpuprof at the same point, with the same arguments"
                )
        waits = {rank: message["waited"] for rank, message in said.items()}
        if len(waits) > 1 and max(waits.values()) - min(waits.values()) > LATE_S and not self.lost:
            last = min(waits, key=lambda rank: waits[rank])
            self.late.append(f"rank {last} came {max(waits.values()):.0f} s after the others to {self._before}")
        self._before = what
        if self._round > 1 and not self.lost:  # all are in this round, so all have read the one before
            self._store.delete_key(f"{self._round - 1}/{self.rank}")
        return [said[rank]["value"] if rank in said else None for rank in range(self.world)]

    def together(self, what: str, body: Callable[[], T]) -> T:
        """Do something on every rank; if it fails on one, it fails on all.

        Raises:
            GpuprofError: it failed here, or on another rank, which is named.
            KeyboardInterrupt: another rank was interrupted.
        """
        if self.alone:
            return body()
        self.agree(what, None)
        found: list[T] = []
        report, error = self.reported(what, lambda: found.append(body()))
        reports = self.agree(f"the end of {what}", report)
        failed = self.first_failure(reports)
        if failed is None:
            return found[0]
        raise GpuprofError(failed["reason"]) from error

    def gather(self, what: str, mine: bytes) -> Iterator[bytes]:
        """What every rank sends to rank 0, in the order of ranks, one at a time; on the others nothing.

        Raises:
            GpuprofError: a rank is lost.
        """
        place = f"{self._round + 1}/sent"
        pieces = [mine[start : start + _PIECE] for start in range(0, len(mine), _PIECE)]
        with suppress(dist.DistError):  # of the store: then nothing is agreed on either
            for number, piece in enumerate(pieces):
                self._store.set(f"{place}/{self.rank}/{number}", piece)
        counts = self.agree(what, len(pieces))
        if self.lost:
            raise GpuprofError(self.who_is_gone())
        return (self._received(f"{place}/{rank}", count) for rank, count in enumerate(counts) if self.rank == 0)

    def _received(self, place: str, pieces: int) -> bytes:
        """What a rank has sent, which is then no longer in the store."""
        keys = [f"{place}/{number}" for number in range(pieces)]
        found = b"".join(map(self._store.get, keys))
        for key in keys:
            self._store.delete_key(key)
        return found

    def same(self, what: str, mine: dict[str, Any]) -> None:
        """Refuse ranks that differ.

        Args:
            what: in words.
            mine: facts of this rank, in JSON's types.

        Raises:
            GpuprofError: a rank says something else than rank 0.
        """
        first, *others = self.agree(f"the {what}", mine)
        for rank, other in enumerate(others, start=1):
            for name, value in (first or {}).items():
                if other is not None and other[name] != value:
                    raise GpuprofError(
                        f"rank {rank} has {name} {other[name]}, rank 0 has {name} {value}: the ranks of a job need the "
                        f"same {what}"
                    )

    def reported(
        self, what: str, body: Callable[[], Any], words: Callable[[Exception], tuple[str, str]] = _words
    ) -> tuple[Report, Exception | None]:
        """Do this rank's part of something that all have begun: how it ended, and the exception that it ended with.

        Meanwhile the groups are left if another rank fails, so that no collective waits for it any longer.

        Args:
            what: in words.
            body: this rank's part.
            words: reason and remedy of an exception.
        """
        start = time.monotonic()
        with self._watching():
            try:
                body()
                return Report(status=DONE, seconds=time.monotonic() - start), None
            except Exception as error:
                seconds = time.monotonic() - start
                reason, remedy = words(error)
                return Report(status=FAILED, reason=reason, remedy=remedy, seconds=seconds), error
            except BaseException as error:  # Ctrl-C: the others need not wait to see it
                if isinstance(error, KeyboardInterrupt) and not self.alone:
                    self._round += 1
                    told = {"what": f"the end of {what}", "value": Report(status=INTERRUPTED), "waited": 0.0}
                    with suppress(dist.DistError):
                        self._store.set(self._key(self.rank), json.dumps(told))
                    self.leave("interrupted")
                raise

    def first_failure(self, reports: list[Report | None]) -> Report | None:
        """The report that says why something failed for all, its reason naming the rank; None where it did not.

        A rank whose collective broke only because another failed comes after that one.

        Raises:
            KeyboardInterrupt: a rank was interrupted.
        """
        for rank, reason in self.lost.items():
            return Report(status=GONE, reason=f"rank {rank} is lost: {reason}", remedy="")
        bad = {rank: Report(report) for rank, report in enumerate(reports) if report and Report(report).bad}
        for rank, report in bad.items():
            if report["status"] == INTERRUPTED:
                raise KeyboardInterrupt(f"rank {rank}")
        if not bad:
            return None
        first = min(bad, key=lambda rank: bad[rank]["seconds"])
        if len(bad) == self.world and len({report["reason"] for report in bad.values()}) == 1:
            return bad[first]
        return Report(bad[first], reason=f"rank {first}: {bad[first]['reason']}")

    def leave(self, why: str) -> None:
        """End this process's groups: on NCCL its own collectives end by that, on gloo those of the ranks that wait."""
        with self._leaving:
            if self.left or self.alone:
                return
            self.left = why
            if dist.is_initialized():
                dist.distributed_c10d._abort_process_group()

    def broken(self) -> str:
        """Why nothing can be measured together any more, in words; empty where it can."""
        if not (self.left or self.lost):
            return ""
        return f"the process groups of the job are no more: {self.who_is_gone() or self.left}"

    def part(self, why: str = "") -> None:
        """Say goodbye and wait for that of the others. Rank 0, which may keep the store, is the last to go.

        Args:
            why: the error that this rank ends with; a rank that ends without one is not lost.
        """
        if self.alone:
            return
        end = time.monotonic() + _FAREWELL_S
        try:
            self._store.set(f"bye/{self.rank}", why)
            others = [rank for rank in range(self.world) if rank not in self.lost]
            while time.monotonic() < end and not all(map(self._has_parted, others)):
                time.sleep(_POLL_S)
            if self.rank != 0:
                self._store.set(f"gone/{self.rank}", "")
            while (
                self.rank == 0 and time.monotonic() < end and not self._store.check([f"gone/{r}" for r in others if r])
            ):
                time.sleep(_POLL_S)
        except dist.DistError:  # whoever keeps the store is gone
            return

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Look, once a second and in a thread of its own, whether another rank has failed or is gone."""
        if self.alone:
            yield
            return
        over = threading.Event()
        store, key = self._watched, self._round + 1

        def bad(rank: int) -> bool:
            place = f"{key}/{rank}"
            return _is_bad(json.loads(store.get(place))["value"]) if store.check([place]) else bool(self._end_of(rank))

        def watch() -> None:
            since = None
            while not over.wait(_WATCH_S):
                try:
                    failed = any(bad(rank) for rank in range(self.world) if rank != self.rank)
                except dist.DistError:
                    failed = True
                if failed and since is None:
                    since = time.monotonic()
                # on gloo it is the rank that failed whose leaving ends what this one waits in: it comes first
                if since is not None and time.monotonic() - since > self._grace_s:
                    self.leave("another rank failed")
                    return

        thread = threading.Thread(target=watch, name="gpuprof-control", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @property
    def _grace_s(self) -> float:
        """How long ranks are given to fail as another did, before the groups are left."""
        return min(10.0, self.timeout_s / 30)

    def _key(self, rank: int) -> str:
        return f"{self._round}/{rank}"

    def _lose(self, rank: int, why: str) -> None:
        self.lost[rank] = why
        launch.gone.add(rank)

    def ended(self) -> list[int]:
        """Ranks on this host whose processes have ended; asks no other process, so a signal handler may call it."""
        return [rank for rank in range(len(self._places)) if self._has_ended(rank)]

    def _has_ended(self, rank: int) -> bool:
        place = self._places[rank] if self._places else None
        return place is not None and place["host"] == _host() and not _lives(place["pid"])

    def _end_of(self, rank: int) -> str:
        """How the process of a rank on this very host ended, in words; empty where it did so in order, or lives.

        Of another host nobody here can tell.
        """
        if not self._has_ended(rank):
            return ""
        if self._has_parted(rank):
            return self._store.get(f"bye/{rank}").decode()
        return f"its process {self._places[rank]['pid']} ended"

    def _has_parted(self, rank: int) -> bool:
        return bool(self._store.check([f"bye/{rank}"]))

    def who_is_gone(self) -> str:
        """The ranks whose processes have ended, in words; empty where all live, as far as can be told."""
        try:
            for rank in range(self.world):
                if rank not in self.lost and (end := self._end_of(rank)):
                    self._lose(rank, end)
        except dist.DistError:
            self._lose(0, "it kept the store of the job, which does not answer any more")
        return ", ".join(f"rank {rank} is lost: {why}" for rank, why in sorted(self.lost.items()))


def _is_bad(value: Any) -> bool:
    return isinstance(value, dict) and "status" in value and Report(value).bad


def _host() -> str:
    """This host, and within it the name space that numbers of processes are of."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return f"{socket.gethostname()}/{space}"


def _lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody asked for yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")  # a system without it: nobody can tell
    except OSError:
        return True
