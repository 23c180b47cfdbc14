"""What a step of another size needs of memory, and the largest that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from fractions import Fraction
from typing import NamedTuple

from gpuprof.analysis.forecast import Fit, Forecast, Sized, What
from gpuprof.analysis.generation import generation
from gpuprof.analysis.memory import made, predict
from gpuprof.errors import GpuprofError
from gpuprof.late import np
from gpuprof.passes.simulated import simulate
from gpuprof.record import Record
from gpuprof.schema import FORWARD
from gpuprof.workload import Options, Workload, build

SIZES: tuple[What, ...] = ("batch_size", "seq_len", "prompt_len", "new_tokens")

_ENDLESS = 1 << 40
_FEW_TOKENS = (4, 5, 6, 7)
_MOST_TOKENS = 16
"""Generations up to so many tokens are simulated as they are; of longer ones those few tell."""


def forecast(
    run: Record,
    largest: What | None = None,
    *,
    capacity: int | None = None,
    model: str | None = None,
    **sizes: int | None,
) -> Forecast:
    """What a step of another size needs of memory, or the largest batch or length that fits.

    Args:
        run: a measured step, with the memory pass and the counting pass.
        largest: of what the largest is wanted; None for the prediction of one size.
        capacity: bytes that there are; all of the device by default.
        model: what the model was, as on the command line, where the run's name does not say: a directory or a file.
        sizes: of `SIZES`; what is not given is the run's own.

    Raises:
        GpuprofError: see `Sizes`, `Sizes.at` and `Sizes.largest`; or the device's memory is not known.
    """
    of_run = Sizes(run, model)
    capacity = capacity or run.device.get("memory_bytes")
    if largest is not None and capacity is None:
        raise GpuprofError("how much memory this device has is not known: give it with --memory")
    if largest is None:
        return Forecast(of_run.at(**sizes), None, of_run.miss, of_run.calibration)
    fit = of_run.largest(largest, int(capacity or 0), **sizes)
    return Forecast(None, fit, of_run.miss, of_run.calibration)


class _Step(NamedTuple):
    """A simulated step, of a generation without what is between its first and its last step of decoding.

    Attributes:
        kept: bytes that its forward keeps for the backward.
        cache: bytes that the cache holds at the end of each phase.
        live: bytes that are there after each operator.
        phases: in which phase each operator ran.
    """

    kept: int
    cache: dict[str, int]
    live: np.ndarray
    phases: list[str]

    @property
    def peaks(self) -> dict[str, float]:
        """The most that is there in each phase; in the optimizer's, what is there when it begins."""
        where = np.array(self.phases)
        peaks = {phase: float(self.live[where == phase].max()) for phase in dict.fromkeys(self.phases)}
        if "optimizer" in peaks:
            first = self.phases.index("optimizer")
            peaks["optimizer"] = float(self.live[first - 1]) if first else 0.0
        return peaks


class Sizes:
    """Predictions for other sizes than that of a measured step, whose model is built again without weights.

    Args:
        run: the measured step, with the memory pass and the counting pass.
        model: what the model was, as on the command line, where the run's name does not say: a directory or a file.

    Attributes:
        own: the sizes of the run; None for those that it does not have.
        miss: activations simulated less those recorded, in bytes, at the run's own size, and of a generation what
            its cache holds at the end; 0 is exact, None where there is nothing to compare.
        calibration: what the run made in its backward (or forward) over what is simulated of it.

    Raises:
        GpuprofError: the run has no such passes, the model cannot be built again or run without weights, or ``model``
            is another.
    """

    def __init__(self, run: Record, model: str | None = None) -> None:
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
        self.own: dict[str, int | None] = {name: about.get(name) for name in SIZES}
        forward = run.ops[run.ops["phase"].isin(FORWARD) & run.ops["op"].str.contains("::_scaled_dot_product")]
        self._attention = dict(zip(forward["module"], forward["op"], strict=True))
        own = self._step(self.own)
        self._own = own.peaks
        self.miss = self._miss(own)
        measured = made(run)
        phase = "backward" if "backward" in measured else max(measured, key=lambda name: measured[name], default="")
        simulated = self._own.get(phase)
        self.calibration = measured[phase] / simulated if simulated else 1.0

    def _miss(self, own: _Step) -> int | None:
        if (of_run := generation(self.run)) is None:
            recorded = self.run.memory.loc[self.run.memory["quantity"] == "activations", "bytes"]
            return own.kept - int(recorded.sum())
        held = own.cache.get(own.phases[-1])
        return None if held is None or of_run.cache_bytes is None else held - of_run.cache_bytes

    def at(self, **sizes: int | None) -> Sized:
        """The prediction for a size, of `SIZES`; what is not given is the run's own.

        Raises:
            GpuprofError: the workload has no such size.
        """
        given = self._given(sizes)
        return self._sized(given, self._step(given))

    def largest(self, what: What, capacity: int, **sizes: int | None) -> Fit:
        """The largest batch or length that fits; the other sizes as given or as in the run.

        What is there after each operator is a polynomial of the size, of at most the second degree. It is taken from
        small sizes, whose masks and ids take no memory to speak of, and held against one more.

        Args:
            what: which size.
            capacity: bytes that there are.
            sizes: the others.

        Raises:
            GpuprofError: the workload has no such size, or its memory does not follow it.
        """
        given, own = self._given(sizes), self.own[what]
        if own is None:
            raise GpuprofError(f"the steps of this run have no --{what.replace('_', '-')}: there is nothing to fit")

        def sizes_at(size: int) -> dict[str, int | None]:
            return given | {what: size}

        if what == "new_tokens":
            step_at = _polynomial(lambda size: self._simulated(sizes_at(size)), _FEW_TOKENS)
        else:
            near = _near(own)
            if self._refusal(sizes_at(min(near))):  # a prompt that has to hold an image, for one
                near = [own + own // 8 * index for index in range(4)]
            step_at = _polynomial(lambda size: self._step(sizes_at(size)), near)

        def sized(size: int) -> Sized:
            return self._sized(sizes_at(size), step_at(size))

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
        if what != "batch_size" and self._refusal(sizes_at(best)):
            if best < own:
                least = 1 + _last(lambda size: bool(self._refusal(sizes_at(size))), best, own)
                return Fit(what, capacity, None, sized(least), "")
            best = _last(lambda size: not self._refusal(sizes_at(size)), own, best)
            limit = self._refusal(sizes_at(best + 1))
        return Fit(what, capacity, sized(best), None if limit else sized(best + 1), limit)

    def _given(self, sizes: dict[str, int | None]) -> dict[str, int | None]:
        return self.own | {name: size for name, size in sizes.items() if size is not None}

    def _sized(self, sizes: dict[str, int | None], step: _Step) -> Sized:
        peaks = step.peaks
        prediction = predict(
            self.run, {phase: (own, peaks[phase]) for phase, own in self._own.items() if phase in peaks}
        )
        return Sized(**sizes, activations=step.kept, cache=step.cache, prediction=prediction)

    def _step(self, sizes: dict[str, int | None]) -> _Step:
        """The step of a size; where it generates many tokens, by the polynomials through those that generate few."""
        tokens = sizes["new_tokens"]
        if tokens is None or tokens <= _MOST_TOKENS:
            return self._simulated(sizes)
        self._built(sizes)  # or there is no such size
        return _polynomial(lambda few: self._simulated(sizes | {"new_tokens": few}), _FEW_TOKENS)(tokens)

    def _simulated(self, sizes: dict[str, int | None]) -> _Step:
        workload = self._built(sizes)
        params, of_run = sum(p.numel() for p in workload.model.parameters()), int(self.run.tree["params"].iloc[0])
        if params != of_run:
            raise GpuprofError(f"{self.model} is not the model of this run: {params:,} parameters, not {of_run:,}")
        try:
            found = simulate(workload, self._attention)
        except GpuprofError:
            raise
        except Exception as error:  # whatever the model's own code makes of tensors without values
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise GpuprofError(f"{self.model} cannot be run without weights, so not be predicted: {reason}") from error
        last = found.parts[-1] if found.parts else 0
        told = [phase != "decode" or part == last for phase, part in zip(found.phases, found.parts, strict=True)]
        phases = [phase for phase, tells in zip(found.phases, told, strict=True) if tells]
        return _Step(sum(found.kept.values()), found.cache, np.array(found.live, dtype=float)[told], phases)

    def _built(self, sizes: dict[str, int | None]) -> Workload:
        known = {field.name: self.run.workload.get(field.name) for field in fields(Options)}
        # code of the model's own is not run because a file says so
        known |= sizes | {"device": None, "trust_remote_code": False}
        options = Options(**{name: value for name, value in known.items() if value is not None})
        return build(self.model, options, weightless=True)

    def _refusal(self, sizes: dict[str, int | None]) -> str:
        """Why a step of this size cannot be built; empty where it can."""
        try:
            self._built(sizes)
        except GpuprofError as error:
            return str(error)
        return ""


def _near(own: int) -> list[int]:
    """Sizes near one: downwards, as there may be a longest; not to 1, where views take the place of copies."""
    return [own - index * (own // 8) if own >= 16 else max(own, 2) + index for index in range(4)]


def _polynomial(step_at: Callable[[int], _Step], sizes: Sequence[int]) -> Callable[[int], _Step]:
    """Steps of any size, by the polynomials through those of the given sizes but the last.

    Raises:
        GpuprofError: that of the last size is not on them.
    """
    *through, further = sizes
    *steps, last = [step_at(size) for size in sizes]

    def at(size: int) -> _Step:
        weights = []
        for point in through:
            weight = Fraction(1)
            for other in through:
                weight *= Fraction(size - other, point - other) if other != point else 1
            weights.append(weight)
        sums = [sum((weight * step.kept for weight, step in zip(weights, steps, strict=True)), Fraction(0))]
        sums += [
            sum((weight * step.cache[phase] for weight, step in zip(weights, steps, strict=True)), Fraction(0))
            for phase in last.cache
        ]
        live = sum(float(weight) * step.live for weight, step in zip(weights, steps, strict=True))
        kept, *cache = map(round, sums)
        return _Step(kept, dict(zip(last.cache, cache, strict=True)), np.asarray(live), last.phases)

    alike = all(step.phases == last.phases and step.cache.keys() == last.cache.keys() for step in steps)
    if alike:
        found = at(further)
        alike = (found.kept, found.cache) == (last.kept, last.cache) and np.allclose(found.live, last.live, atol=1.0)
    if not alike:
        raise GpuprofError("the memory of this step does not follow its size smoothly: ask for single sizes instead")
    return at


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last size from low, where it holds, to high, where it does not, at which it holds."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
