"""What other counters claim: their text reports as one table, never believed and never rounded further."""

from __future__ import annotations

from gpuprof.reports.figures import Claim
from gpuprof.reports.reading import read_report

__all__ = ["Claim", "read_report"]
