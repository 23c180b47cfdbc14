"""Counting a part of a live step: what runs between a beginning and an end, of one meter of the process at a time."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

from gpuprof.meter.signature import Signature
from gpuprof.passes.counting import Counted, counting
from gpuprof.passes.modes import modes_as_before
from gpuprof.workload import Workload

_turn = threading.Lock()
"""What a count patches is the whole process's: of two that overlap, the first to end would put back the second's."""

_COUNTED = (
    "gpuprof.Meter counted this micro-batch, as it does the first of each kind: it ran under a TorchDispatchMode, with "
    "torch.compile off. Without the meter it may run"
)


class Count:
    """A count that has begun.

    Args:
        workload: of the loop.
        signature: of what is counted.
        where: of `gpuprof.passes.counting.counting`, where it begins.
    """

    def __init__(self, workload: Workload, signature: Signature, **where: Any) -> None:
        self.signature = signature
        self._found: list[Counted] = []
        self._open = ExitStack()
        with ExitStack() as stack:
            stack.callback(_turn.release)
            stack.enter_context(modes_as_before())
            self._found = stack.enter_context(counting(workload, **where))
            self._open = stack.pop_all()

    def end(self, error: BaseException | None = None) -> Counted | None:
        """It ends; None where an error, which goes on its way, has ended it.

        Raises:
            Exception: it could not be counted.
        """
        try:
            if error is None:
                self._open.close()
            else:
                self._open.__exit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                raise
        if isinstance(error, Exception):
            error.add_note(_COUNTED)
        return self._found[0] if self._found and error is None else None


def begin(workload: Workload, signature: Signature, **where: Any) -> Count | None:
    """Begin to count; None where another count of this process has not ended."""
    return Count(workload, signature, **where) if _turn.acquire(blocking=False) else None
