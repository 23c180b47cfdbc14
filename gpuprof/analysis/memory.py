"""The memory account: what must be there by size, what was measured, and the residual between them."""

from __future__ import annotations

import pandas as pd

from gpuprof.record import Run

EXPECTED = ("parameters", "buffers", "gradients", "optimizer_state", "activations")


def account(run: Run) -> pd.DataFrame:
    """Expected against measured bytes at the end of the forward and of the backward, and at the peak.

    Columns: moment, then one per expected quantity, expected (their sum), measured, residual (measured - expected).
    Activations are expected at the end of the forward only: the backward frees them. The measured figure is torch's
    allocated memory on CUDA, elsewhere the resident set of the process (which holds Python and its libraries too).
    """
    memory = run.memory
    expected = memory[memory["source"] == "analytic"].groupby("quantity")["bytes"].sum()
    parts = {name: int(expected.get(name, 0)) for name in EXPECTED}
    rows = []
    for moment, phase, absent in (
        ("end of forward", "forward", ("gradients",)),
        ("end of backward", "backward", ("activations",)),
        ("peak", None, ()),
    ):
        measured = _measured(memory, phase)
        if measured is None:
            continue
        present = {name: 0 if name in absent else size for name, size in parts.items()}
        total = sum(present.values())
        rows.append(
            {
                "moment": moment,
                **present,
                "expected": total,
                "measured": measured,
                "residual": measured - total,
            }
        )
    return pd.DataFrame(rows, columns=["moment", *EXPECTED, "expected", "measured", "residual"])


def _measured(memory: pd.DataFrame, phase: str | None) -> int | None:
    measured = memory[(memory["source"] == "measured") & (memory["module"] == "")]
    if phase is None:
        peaks = measured.loc[measured["quantity"].isin(["allocated_peak", "rss_peak"]), "bytes"]
        return int(peaks.max()) if len(peaks) else None
    ends = measured.loc[
        measured["quantity"].isin(["allocated_exit", "rss_exit"]) & (measured["phase"] == phase), "bytes"
    ]
    return int(ends.iloc[0]) if len(ends) else None
