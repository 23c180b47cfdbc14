"""What a step of another size needs of memory, and the largest that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Literal

import numpy as np

from gpuprof.analysis.memory import Prediction, made, predict
from gpuprof.errors import GpuprofError
from gpuprof.passes.simulated import Simulated, simulate
from gpuprof.record import FORWARD, Run
from gpuprof.workload import Options, Workload, build

What = Literal["batch_size", "seq_len"]

_ENDLESS = 1 << 40


@dataclass(frozen=True)
class Sized:
    """A prediction and the size that it is for.

    Attributes:
        batch_size: samples per step; None where the workload does not say.
        seq_len: positions per sample; None where the workload has none.
        activations: bytes that its forward keeps for the backward.
        prediction: of the step's peak.
    """

    batch_size: int | None
    seq_len: int | None
    activations: int
    prediction: Prediction


@dataclass(frozen=True)
class Fit:
    """The largest size that fits.

    Attributes:
        what: of what it is the largest.
        capacity: bytes that there are.
        largest: it; None where not even 1 fits.
        beyond: the next, which does not fit; None where something else than memory is the limit.
        limit: what that is, in words; empty where it is memory.
    """

    what: What
    capacity: int
    largest: Sized | None
    beyond: Sized | None
    limit: str


@dataclass(frozen=True)
class Forecast:
    """A prediction, and how well the simulation that it rests on meets the measured step.

    Attributes:
        sized: for a given size; None where the largest was asked for.
        fit: the largest that fits; None where a size was given.
        miss: as in `Sizes`.
        calibration: as in `Sizes`.
    """

    sized: Sized | None
    fit: Fit | None
    miss: int
    calibration: float


def forecast(
    run: Run,
    largest: What | None = None,
    *,
    capacity: int | None = None,
    batch_size: int | None = None,
    seq_len: int | None = None,
    model: str | None = None,
) -> Forecast:
    """What a step of another size needs of memory, or the largest batch or sequence that fits.

    Args:
        run: a measured step, with the memory pass and the counting pass.
        largest: of what the largest is wanted; None for the prediction of one size.
        capacity: bytes that there are; all of the device by default.
        batch_size: the run's own by default.
        seq_len: the run's own by default.
        model: what the model was, as on the command line, where the run's name does not say: a directory or a file.

    Raises:
        GpuprofError: see `Sizes`, `Sizes.at` and `Sizes.largest`; or the device's memory is not known.
    """
    sizes = Sizes(run, model)
    capacity = capacity or run.device.get("memory_bytes")
    if largest is not None and capacity is None:
        raise GpuprofError("how much memory this device has is not known: give it with --memory")
    if largest is None:
        return Forecast(sizes.at(batch_size, seq_len), None, sizes.miss, sizes.calibration)
    fit = sizes.largest(largest, int(capacity or 0), batch_size, seq_len)
    return Forecast(None, fit, sizes.miss, sizes.calibration)


class Sizes:
    """Predictions for other sizes than that of a measured step, whose model is built again without weights.

    Args:
        run: the measured step, with the memory pass and the counting pass.
        model: what the model was, as on the command line, where the run's name does not say: a directory or a file.

    Attributes:
        miss: activations simulated less those recorded, in bytes, at the run's own size; 0 is exact.
        calibration: what the run made in its backward (or forward) over what is simulated of it.

    Raises:
        GpuprofError: the run has no such passes, the model cannot be built again or run without weights, or ``model``
            is another.
    """

    def __init__(self, run: Run, model: str | None = None) -> None:
        missing = [name for name in ("count", "memory") if not run.done(name)]
        if missing:
            raise GpuprofError(f"no prediction without the {missing[0]} pass: profile again with it")
        about = run.workload
        if about.get("world", 1) > 1:
            raise GpuprofError(
                f"the run is of a job of {about['world']} processes, and a prediction is of one that holds the whole "
                "model: profile the model in one process, without --parallel"
            )
        if model is None and about.get("source") not in ("preset", "hub"):
            raise GpuprofError(
                "the run does not say where its model is: give it with --model (a directory or file.py:function)"
            )
        self.run, self.model = run, model or str(about["name"])
        self.batch_size: int | None = about.get("batch_size")
        self.seq_len: int | None = about.get("seq_len")
        forward = run.ops[run.ops["phase"].isin(FORWARD) & run.ops["op"].str.contains("::_scaled_dot_product")]
        self._attention = dict(zip(forward["module"], forward["op"], strict=True))
        own = self._simulated(self.batch_size, self.seq_len)
        self._own = _peaks(np.array(own.live), own.phases)
        recorded = int(run.memory.loc[run.memory["quantity"] == "activations", "bytes"].sum())
        self.miss = sum(own.kept.values()) - recorded
        measured = made(run)
        phase = "backward" if "backward" in measured else "forward"
        simulated = self._own.get(phase)
        self.calibration = measured[phase] / simulated if simulated else 1.0

    def at(self, batch_size: int | None = None, seq_len: int | None = None) -> Sized:
        """The prediction for a size; what is not given is the run's own.

        Raises:
            GpuprofError: the workload has no such size.
        """
        batch, seq = batch_size or self.batch_size, seq_len or self.seq_len
        step = self._simulated(batch, seq)
        return self._sized(batch, seq, sum(step.kept.values()), _peaks(np.array(step.live), step.phases))

    def largest(self, what: What, capacity: int, batch_size: int | None = None, seq_len: int | None = None) -> Fit:
        """The largest batch or sequence that fits; the other size as given or as in the run.

        What is there after each operator is a polynomial of the size, of at most the second degree. It is taken from
        small sizes, whose masks and ids take no memory to speak of, and held against one more.

        Args:
            what: which size.
            capacity: bytes that there are.
            batch_size: of the steps, where the sequence is looked for.
            seq_len: of the steps, where the batch is looked for.

        Raises:
            GpuprofError: the workload has no such size, or its memory does not follow it.
        """
        batch, seq = batch_size or self.batch_size, seq_len or self.seq_len
        own = self.batch_size if what == "batch_size" else self.seq_len
        if own is None:
            raise GpuprofError(f"the steps of this run have no --{what.replace('_', '-')}: there is nothing to fit")

        def sizes(size: int) -> tuple[int | None, int | None]:
            return (size, seq) if what == "batch_size" else (batch, size)

        steps_at = _polynomial(lambda size: self._simulated(*sizes(size)), own)

        def sized(size: int) -> Sized:
            kept, peaks = steps_at(size)
            return self._sized(*sizes(size), kept, peaks)

        def fits(size: int) -> bool:
            return sized(size).prediction.total <= capacity

        if not fits(1):
            return Fit(what, capacity, None, sized(1), "")
        above = 2
        while fits(above):
            above *= 2
            if above > _ENDLESS:
                raise GpuprofError(f"the memory of this step does not grow with its {what}: there is nothing to fit")
        best, limit = _last(fits, above // 2, above), ""
        if what == "seq_len" and self._refusal(*sizes(best)):
            best = _last(lambda size: not self._refusal(*sizes(size)), min(own, best), best)
            limit = self._refusal(*sizes(best + 1))
        return Fit(what, capacity, sized(best), None if limit else sized(best + 1), limit)

    def _sized(self, batch: int | None, seq: int | None, kept: int, peaks: dict[str, float]) -> Sized:
        both = {phase: (own, peaks[phase]) for phase, own in self._own.items() if phase in peaks}
        return Sized(batch, seq, kept, predict(self.run, both))

    def _simulated(self, batch: int | None, seq: int | None) -> Simulated:
        workload = self._built(batch, seq)
        params, of_run = sum(p.numel() for p in workload.model.parameters()), int(self.run.tree["params"].iloc[0])
        if params != of_run:
            raise GpuprofError(f"{self.model} is not the model of this run: {params:,} parameters, not {of_run:,}")
        try:
            return simulate(workload, self._attention)
        except GpuprofError:
            raise
        except Exception as error:  # whatever the model's own code makes of tensors without values
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise GpuprofError(f"{self.model} cannot be run without weights, so not be predicted: {reason}") from error

    def _built(self, batch: int | None, seq: int | None) -> Workload:
        known = {field.name: self.run.workload.get(field.name) for field in fields(Options)}
        # code of the model's own is not run because a file says so
        known |= {"batch_size": batch, "seq_len": seq, "device": None, "trust_remote_code": False}
        options = Options(**{name: value for name, value in known.items() if value is not None})
        return build(self.model, options, weightless=True)

    def _refusal(self, batch: int | None, seq: int | None) -> str:
        """Why a step of this size cannot be built; empty where it can."""
        try:
            self._built(batch, seq)
        except GpuprofError as error:
            return str(error)
        return ""


def _peaks(live: np.ndarray, phases: list[str]) -> dict[str, float]:
    """The most that is there in each phase; in the optimizer's, what is there when it begins."""
    where = np.array(phases)
    peaks = {phase: float(live[where == phase].max()) for phase in dict.fromkeys(phases)}
    if "optimizer" in peaks:
        first = phases.index("optimizer")
        peaks["optimizer"] = float(live[first - 1]) if first else 0.0
    return peaks


def _polynomial(step_at: Callable[[int], Simulated], own: int) -> Callable[[int], tuple[int, dict[str, float]]]:
    """Bytes kept, and peaks by phase, at any size, by the polynomials through those of sizes near the given one.

    Raises:
        GpuprofError: a further size is not on them.
    """
    # downwards, as there may be a longest sequence; not to 1, where views take the place of copies
    sizes = [own - index * (own // 8) if own >= 16 else max(own, 2) + index for index in range(4)]
    *through, further = sizes
    *steps, last = [step_at(size) for size in sizes]

    def at(size: int) -> tuple[int, np.ndarray]:
        kept, live = Fraction(0), np.zeros(len(last.live))
        for point, step in zip(through, steps, strict=True):
            weight = Fraction(1)
            for other in through:
                weight *= Fraction(size - other, point - other) if other != point else 1
            kept += weight * sum(step.kept.values())
            live += float(weight) * np.array(step.live)
        return round(kept), live

    alike = all(step.phases == last.phases for step in steps)
    if not alike or at(further)[0] != sum(last.kept.values()) or not np.allclose(at(further)[1], last.live, atol=1.0):
        raise GpuprofError("the memory of this step does not follow its size smoothly: ask for single sizes instead")

    def figures(size: int) -> tuple[int, dict[str, float]]:
        kept, live = at(size)
        return kept, _peaks(live, last.phases)

    return figures


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last size from low, where it holds, to high, where it does not, at which it holds."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
