"""Using torch.profiler without its talk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Kineto's stages and torch's hint about cycles, of which there is one here, off stderr."""
    ours = "KINETO_LOG_LEVEL" not in os.environ
    if ours:
        os.environ["KINETO_LOG_LEVEL"] = "99"  # read before the first use only
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Profiler clears events")
            yield
    finally:
        if ours:
            os.environ.pop("KINETO_LOG_LEVEL", None)
