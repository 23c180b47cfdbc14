"""Whether torch.compile works in a micro-batch, whose time is that of no step then."""

from __future__ import annotations

from torch._dynamo.callback import CallbackArgs, callback_handler


class Compiling:
    """Counts the compilations, and recordings of CUDA graphs, that begin while the block is open.

    Attributes:
        begun: how many.
    """

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun = 0

    def _begins(self, _: CallbackArgs) -> None:
        self.begun += 1

    def __enter__(self) -> None:
        callback_handler.start_callbacks.append(self._begins)

    def __exit__(self, *_: object) -> None:
        if self._begins in callback_handler.start_callbacks:  # torch._dynamo.reset takes them all away
            callback_handler.start_callbacks.remove(self._begins)
