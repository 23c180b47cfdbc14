"""What the pictures of runs share: a line that says of what they are, and the file. matplotlib is loaded late."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from gpuprof import units
from gpuprof.files import write_atomically
from gpuprof.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def subject(run: Record) -> str:
    """What was measured and on what, in a line."""
    about = run.workload
    device = run.device.get("name") or run.device.get("type")
    if run.device.get("type") == "cpu":
        threads = run.environment.get("threads")
        known = [str(device)] if str(device).upper() != "CPU" else []
        known += [units.number(threads, "thread")] if threads else []
        device = f"CPU ({', '.join(known)})" if known else "CPU"
    parts = (about.get("name"), *sizes(run), about.get("dtype"), run.of_job, device)
    return " · ".join(str(part) for part in parts if part)


def sizes(run: Record) -> list[str]:
    """Sizes of the inputs in words, those that are known: ``batch 1``, ``sequence 512``."""
    about = run.workload
    size = [f"batch {about['batch_size']}"] if about.get("batch_size") else []
    size += [f"sequence {about['seq_len']}"] if about.get("seq_len") else []
    size += [f"prompt {about['prompt_len']}"] if about.get("prompt_len") else []
    return size + ([f"{about['new_tokens']} new tokens"] if about.get("new_tokens") else [])


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, which no window of pyplot holds on to."""
    from gpuprof.render.figure import ShownFigure

    return ShownFigure(figsize=(width, height), dpi=150, layout="constrained")


def save_picture(figure: Figure, path: Path) -> None:
    """Write the picture whole, in the format of the suffix."""
    from matplotlib import rc_context

    kind = path.suffix.lower().removeprefix(".")
    picture = io.BytesIO()
    # no date and no random names in an SVG: the same run draws the same file
    with rc_context({"svg.hashsalt": "gpuprof", "svg.fonttype": "none"}):
        figure.savefig(picture, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(path, picture.getvalue())
