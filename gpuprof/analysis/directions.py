"""Which way a phase goes: the parts of a generation are forwards, for whatever asks for the forward alone."""

from __future__ import annotations

from gpuprof.late import pd
from gpuprof.schema import FORWARD

_FORWARDS = dict.fromkeys(FORWARD, "forward")


def direction(phase: str) -> str:
    """``forward`` of every phase in which the model goes forward; of any other the phase itself."""
    return _FORWARDS.get(phase, phase)


def directions(phases: pd.Series) -> pd.Series:
    """The same of a column of a frame."""
    return phases.replace(_FORWARDS)
