"""Whether torch.compile works in a micro-batch, whose time is that of no step then."""

from __future__ import annotations

import weakref
from typing import Any

from torch._dynamo.callback import CallbackArgs, callback_handler


class Compiling:
    """Counts the compilations, and recordings of CUDA graphs, that begin in this process.

    What counts is told by torch when it compiles, and never else; it goes with this object.

    Attributes:
        begun: how many.
    """

    def __init__(self) -> None:
        self.begun = 0
        here = weakref.ref(self)

        def begins(_: CallbackArgs) -> None:
            if (compiling := here()) is not None:
                compiling.begun += 1

        self._told = begins
        weakref.finalize(self, _forget, begins)

    def listen(self) -> None:
        """Be told from now on, if that is not so: torch._dynamo.reset ends it."""
        if self._told not in callback_handler.start_callbacks:
            callback_handler.start_callbacks.append(self._told)


def _forget(told: Any) -> None:
    if told in callback_handler.start_callbacks:
        callback_handler.start_callbacks.remove(told)
