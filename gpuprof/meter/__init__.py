"""The meter: MFU, rates and times of a training loop from inside of it, counted once and timed without waiting."""

from gpuprof.meter.meter import Meter

__all__ = ["Meter"]
