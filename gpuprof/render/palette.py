"""The colours of every picture, on the page and in files alike.

They are Paul Tol's vibrant scheme, which readers who see fewer colours tell apart, and two greys; each stands out on
white and on a dark page. A thing has one colour wherever it is drawn.
"""

from __future__ import annotations

BLUE, CYAN, TEAL, ORANGE, RED, MAGENTA = "#0077bb", "#33bbee", "#009988", "#ee7733", "#cc3311", "#ee3377"
GREY, PALE = "#6e7781", "#afb8c1"

PARTS = {"ideal": BLUE, "idle": PALE, "idle_launch": PALE, "idle_host": PALE}
LOST, GAINED = ORANGE, TEAL
"""Of a step: what the FLOPs need and where nothing ran; what else comes on top; what is faster than its bound."""

MARK = RED
"""What the rest is held against: what is assumed, what was measured."""

KINDS = {
    "matmul": BLUE, "convolution": BLUE, "attention": TEAL, "recurrent": MAGENTA, "vector": ORANGE,
    "movement": GREY, "": GREY, "view": GREY, "communication": GREY,
}  # fmt: skip
"""Of operators."""

PHASES = {"encode": TEAL, "prefill": BLUE, "decode": RED}
"""Of a generation."""

TRAFFIC = {"weights": CYAN, "cache read": MAGENTA, "cache written": ORANGE, "activations": GREY}
"""Bytes that must move."""

HELD = {
    "before": PALE, "parameters": BLUE, "optimizer_state": CYAN, "cache": MAGENTA, "gradients": TEAL,
    "activations": ORANGE,
}  # fmt: skip
"""What takes memory."""

VERDICTS = {
    "none": BLUE, "pass": TEAL, "improvement": CYAN, "regression": RED, "drift": MAGENTA, "inconclusive": ORANGE,
}  # fmt: skip
"""On a run of a history."""

SERIES = (BLUE, ORANGE, TEAL, MAGENTA, CYAN, RED, GREY)
"""Lines of a sweep, one after the other."""

SHARES = {
    0: "#440154", 5: "#453882", 10: "#33638d", 20: "#21918c", 40: "#44bf70", 70: "#b5de2b", 100: "#fde725",
}  # fmt: skip
"""Of a share in percent, between these by straight lines: viridis, in steps that are finer where shares are small."""
