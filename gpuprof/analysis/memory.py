"""The memory account: what must be there by size, what was measured, and the residual between them."""

from __future__ import annotations

import pandas as pd

from gpuprof.record import Run

EXPECTED = ("parameters", "buffers", "gradients", "optimizer_state", "activations")


def account(run: Run) -> pd.DataFrame:
    """Expected against measured bytes at the end of the forward and of the backward.

    Columns: moment, then one per expected quantity, expected (their sum), measured, residual (measured - expected).
    Activations are there at the end of the forward, gradients at the end of the backward; a peak lies between, with
    some of both, and so has no expectation of its own. The measured figure is torch's allocated memory on CUDA,
    elsewhere the resident set of the process (which holds Python and its libraries too).
    """
    memory = run.memory
    expected = memory[memory["source"] == "analytic"].groupby("quantity")["bytes"].sum()
    parts = {name: int(expected.get(name, 0)) for name in EXPECTED}
    measured = memory[memory["quantity"].isin(["allocated_exit", "rss_exit"]) & (memory["module"] == "")]
    rows = []
    for phase, absent in (("forward", "gradients"), ("backward", "activations")):
        ends = measured.loc[measured["phase"] == phase, "bytes"]
        if len(ends):
            present = {**parts, absent: 0}
            total = sum(present.values())
            end = int(ends.iloc[0])
            rows.append(
                {"moment": f"end of {phase}", **present, "expected": total, "measured": end, "residual": end - total}
            )
    return pd.DataFrame(rows, columns=["moment", *EXPECTED, "expected", "measured", "residual"])
