"""Whether torch.compile works in a micro-batch, whose time is that of no step then."""

from __future__ import annotations

from torch._dynamo.callback import CallbackArgs, callback_handler


class Compiling:
    """Counts the compilations, and recordings of CUDA graphs, that begin before it is removed.

    Attributes:
        begun: how many.
    """

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun = 0
        callback_handler.start_callbacks.append(self._begins)

    def _begins(self, _: CallbackArgs) -> None:
        self.begun += 1

    def remove(self) -> None:
        """No further one is counted."""
        if self._begins in callback_handler.start_callbacks:  # torch._dynamo.reset takes all away
            callback_handler.start_callbacks.remove(self._begins)
