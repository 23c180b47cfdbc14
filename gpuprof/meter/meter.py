"""The meter: what a training loop reaches, measured from inside of it and without making it wait."""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import get_autocast_dtype, is_autocast_enabled

from gpuprof.analysis.unpriced import unpriced
from gpuprof.errors import GpuprofError, first_line
from gpuprof.hardware.peaks import check_peak
from gpuprof.late import pd
from gpuprof.log import Log, made
from gpuprof.meter import counts
from gpuprof.meter.account import Account, of_job
from gpuprof.meter.clock import Clock
from gpuprof.meter.compiling import Compiling
from gpuprof.meter.drill import Drill, steps_of
from gpuprof.meter.interpolation import Shapes
from gpuprof.meter.machine import Machine
from gpuprof.meter.optimizers import optimizers_of
from gpuprof.meter.readings import Sample, Totals, logged
from gpuprof.meter.signature import Signature, form_of, in_words, is_of, key_of, tensors_of
from gpuprof.meter.steps import Kind, Micro, Same, Step, kind_of
from gpuprof.meter.tokens import Padding, added, sizes_of
from gpuprof.meter.work import Work, work_of
from gpuprof.parallel.layout import in_job
from gpuprof.passes.counting import Counted
from gpuprof.theory.conventions import convention as fitting_convention
from gpuprof.workload import Workload, from_module

_WARM_UP = 3
"""Steps after the start of which nothing is reported: allocators fill, libraries choose their kernels."""

_MANY = 8
"""Signatures from which on it is said that there are many, and the last whose counts are kept."""

_PATIENCE = 3
"""Micro-batches without a backward from which on a training has none."""

_UNREAD = 64
"""Steps that have ended from which on the meter looks by itself whether the device has come to them."""

_MOST_PARTS = 10_000
"""Micro-batches that are kept for a step that does not end."""

_MOST_SAMPLES = 10_000
"""Steps that are kept until they are read; older ones are forgotten."""


class Meter:
    """MFU, FLOP/s, tokens and times of the steps of a training loop.

        meter = gpuprof.Meter(model, optimizer)
        for batch in loader:
            with meter.step(batch):
                loss = model(**batch).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            if step % 50 == 0:
                log(meter.read())

    A step is what ends with a step of the optimizer: of several micro-batches each stands in a ``with`` of its own, and
    their FLOPs and times add up. What is outside of it (evaluation, checkpoints, the loader) is no part of a step.

    A step that a ``GradScaler`` has the optimizer skip goes on in the next.

    FLOPs are counted, once for each signature of a micro-batch: the step in which one is seen first, but for the very
    first step, runs under the counting mode, and is left out of the times; once more after a hundred, to see whether
    shapes alone decide its FLOPs. On CUDA times are those of events on the current stream, read when the device has
    come to them. Nothing is changed in the model; the optimizer has one hook more, which goes with the meter.
    Where the meter itself fails, it warns once, and the training goes on without its figures.

    Args:
        model: whose steps they are.
        optimizer: whose step ends a step; of several the first one's. Without one every ``with`` is a step.
        out: folder for a log of every step, and for the run files of ``profile_at``; without one these are in the
            working directory, as ``gpuprof-step-200.json.gz``.
        profile_at: numbers of steps, from 2 on, that are profiled as they run: ``step-200.json.gz`` is a run as
            `gpuprof.profile` makes it. Those of ``GPUPROF_AT=200,400`` in the environment come to them.
        convention: how FLOPs are counted, of `gpuprof.theory.conventions.CONVENTIONS`, but for those that are formulas.
        peak_tflops: peak of the device in TFLOP/s, for every dtype, instead of the table's.
        interpolate: between shapes that were counted, where their FLOPs prove to be a polynomial of the sizes.

    Attributes:
        number: steps that have ended.
        signatures: of the micro-batches that were seen and of the optimizer's step, in order.

    Raises:
        GpuprofError: no such convention or peak, something that is no model or no optimizer, or a step that cannot be
            recorded.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        *,
        out: str | Path | None = None,
        profile_at: Iterable[int] = (),
        convention: str = "causal",
        peak_tflops: float | None = None,
        interpolate: bool = False,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise GpuprofError(f"the meter needs the model, a torch.nn.Module, and not {type(model).__name__}")
        fitting_convention(convention, None, type(model).__name__)
        check_peak(peak_tflops)
        self._profile_at = steps_of(profile_at)
        self._out = None if out is None else made(out)
        self._log: Log | None = None
        self._interpolate = interpolate
        self._model = model
        self._settings = {"convention": convention, "peak_tflops": peak_tflops}
        self._optimizers = optimizers_of(optimizer)
        self._batch: Any = None  # of the block that is about to begin
        self._off = ""  # why the meter does nothing any more
        self._warned: set[str] = set()

        self.number = 0
        self._ran = 0  # of them in this process, since the start or a resume
        self.signatures: list[Signature] = []
        self._known: dict[Hashable, Signature] = {}
        self._shapes = Shapes()
        self._stepping: Signature | None = None  # of the optimizer's step
        self._trains: tuple[bool, ...] | None = None  # which parameters need a gradient, where something was counted
        self._drill: Drill | None = None
        self._compiling = Compiling()
        self._hook: Any = None  # takes away the one that tells of the optimizer's steps
        self._ready = False
        self._same: Same | None = None
        self._kind_of_step = Kind([], [])
        self._micro: Micro | None = None
        self._parts: list[Micro] = []  # of the step that has not ended
        self._pending: deque[Step] = deque()
        self._samples: deque[Sample] = deque(maxlen=_MOST_SAMPLES)  # since they were last read
        self._last: Any = None  # mark at the end of the last step
        self._account = Account()

    def step(self, batch: Any = None) -> AbstractContextManager[None]:
        """What is to be put around a micro-batch: forward, backward and, at the end of a step, the optimizer's step.

        Args:
            batch: what the model is given: a tensor, or containers that hold tensors. None where all are alike.
        """
        self._batch = batch
        return self  # and no object of its own, which would be one more in every micro-batch

    def __enter__(self) -> None:
        batch, self._batch = self._batch, None
        self.begin()
        self.given(batch)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.end(error)

    def begin(self) -> None:
        """A micro-batch begins, for a framework that has no place for a ``with``; `given` says what it is."""
        try:
            if not self._ready and not self._prepared():
                return
            if self._micro is not None:
                self._warn("a micro-batch began before the last one had ended, which is left out")
                self.end(GpuprofError("it did not end"))
                self._prepared()
            if self._drill is not None:
                self._drill.begins(self.number + 1)
            self._micro = micro = Micro(self._clock.mark(), self._compiling.begun)
            if (stepping := self._stepping) is not None and stepping.due <= stepping.seen + 1:
                micro.hooks = [one.register_step_pre_hook(self._steps) for one in self._optimizers]
        except Exception as error:
            self._fail(error)

    def given(self, batch: Any) -> None:
        """What the model will be given in the micro-batch that has begun; the first word counts.

        To be said before the model is called, and not by a hook of it: where a count begins inside of its call, what
        torch.compile has made of it runs uncompiled ever after.

        Args:
            batch: as for `step`; of a call with keyword arguments their mapping.
        """
        micro = self._micro
        if micro is None or micro.signature is not None:
            return
        try:
            kind, same = self._kind, self._same
            how = self._model.training, get_autocast_dtype(kind) if is_autocast_enabled(kind) else None
            if same is not None and same.how == how and is_of(same.form, batch):
                signature, named = same.signature, batch
            else:
                signature, named = self._recognised(batch, *how)
            micro.signature = signature
            if masks := signature.sizes.masks:
                micro.unmasked = self._padding.unmasked(named, masks)
            wanted = False
            if self._ran:
                signature.seen += 1
                wanted = signature.due <= signature.seen and not self._inferred(signature)
            if self._drill is not None:
                self._drill.given(batch)
                wanted = (wanted or self._drill.wants(signature.key)) and not self._drill.active
            if wanted:
                self._count(micro, signature)
        except Exception as error:
            self._fail(error)

    def end(self, error: BaseException | None = None, last: bool | None = None) -> None:
        """A micro-batch ends.

        Args:
            error: that ended it.
            last: whether the step ends with it, where a framework knows; else it does where the optimizer has stepped.
        """
        micro = self._micro
        if micro is None:
            return
        try:
            for hook in micro.hooks:
                hook.remove()
            if error is not None:
                self.rest()
            micro.finish = self._clock.mark()
            self._micro = None
            found = None if micro.count is None else self._counted(micro, error)
            if self._compiling.begun != micro.compiled:
                micro.dropped = micro.dropped or "compiled"
            if error is not None:
                micro.dropped = f"{type(error).__name__} in it"
            self._parts.append(micro)
            closes = bool(micro.steps) or not self._optimizers if last is None else last
            if self._drill is not None:
                if self._drill.active:
                    micro.dropped = micro.dropped or "recorded"
                self._drill.ends(None if micro.signature is None else micro.signature.key, found, closes, error)
            if closes:
                self._close()
            elif len(self._parts) == _MOST_PARTS:
                self._warn(
                    f"{_MOST_PARTS:,} micro-batches and no step of the optimizer that the meter was given, by which a "
                    "step ends: is it the one that trains, and does it step inside of the meter's step?"
                )
                self._parts, self._last = [], None
            if micro.dropped == "counted":
                self._last = None  # what the meter has done since is no part of the loop
        except Exception as failed:
            self._fail(failed)

    def read(self, reduce: bool = False) -> dict[str, float]:
        """What the steps since the last time came to, as far as the device has come; never waits for it.

        Args:
            reduce: also the figures of all processes of the job together, each of which has to call this. They wait
                for one another, though for no device.

        Returns:
            Figures by the name that dashboards give them, see docs/training.md; what is not known is left out.
        """
        if self._off:
            return {}
        try:
            return self._read(reduce)
        except Exception as error:
            self._fail(error)
            return {}

    @property
    def about(self) -> dict[str, str]:
        """What the figures are held against, in words, for the configuration of a dashboard."""
        found = {"meter/convention": str(self._settings["convention"])}
        if self._ran:
            found |= self._machine.about()
        reasons = [signature.why for signature in self.signatures if signature.why]
        if self._off or reasons:
            found["meter/not_counted"] = self._off or reasons[0]
        return found

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint has to hold, so that a resumed run goes on with the number of its step."""
        return {"step": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after a step; the next ones warm up again.

        Args:
            state: as `state_dict` gives it.

        Raises:
            GpuprofError: it is something else.
        """
        try:
            self.number, self._ran = int(state["step"]), 0
        except (KeyError, TypeError, ValueError) as error:
            raise GpuprofError("that is no state of a gpuprof.Meter: give what its state_dict() gave") from error
        self._parts, self._last, self._ready = [], None, False

    def _start(self) -> None:
        """The first micro-batch begins: the model is where it is trained."""
        self._workload: Workload = from_module(
            self._model, step=_live, mode="train", optimizer=next(iter(self._optimizers), None)
        )
        self._clock = Clock(self._workload.device)
        self._kind = self._workload.device.type
        self._padding = Padding(self._workload.device)
        self._machine = Machine(self._workload, self._settings)
        if self._profile_at and self._drill is None:
            self._drill = Drill(self._workload, self._machine, self._profile_at, self._out)
            weakref.finalize(self, self._drill.over)
        if self._out is not None and self._log is None:
            try:
                self._log = Log(self._out, self._machine.facts["workload"].get("rank", 0), self.number)
            except GpuprofError as error:
                self._warn(f"no log is written: {error}")

    def _prepared(self) -> bool:
        """Get ready for the next micro-batch; False where the meter is off."""
        if self._off:
            return False
        if not self._ran and not self._parts:
            self._start()
        if self._optimizers and self._hook is None:
            self._hook = weakref.finalize(self, _hooked(self, self._optimizers[0]).remove)
        self._compiling.listen()
        self._ready = True
        return True

    def rest(self) -> None:
        """The loop is over, or pauses: nothing of the meter is attached to the optimizer until the next micro-batch."""
        self._ready = False
        if self._hook is not None:
            self._hook()
            self._hook = None

    def _recognised(self, batch: Any, training: bool, autocast: torch.dtype | None) -> tuple[Signature, dict[str, Any]]:
        """The signature of a batch, and its tensors by name."""
        tensors = tensors_of(batch)
        # of a batch in which there is no tensor, as of texts, nothing says how large it is
        key = None if not tensors and batch is not None else key_of(tensors), training, autocast
        if (signature := self._known.get(key)) is None:
            words = in_words(key[0]) + ("" if training else ", in evaluation") + (f", {autocast}" if autocast else "")
            signature = Signature(
                len(self.signatures) + 1, words.replace("torch.", "autocast to "), key, sizes_of(tensors)
            )
            self._known[key] = signature
            self.signatures.append(signature)
        form = form_of(batch, tensors)
        self._same = None if form is None else Same(form, (training, autocast), signature)
        return signature, dict(tensors)

    def _inferred(self, signature: Signature) -> bool:
        """Whether the work of a signature that was never counted is known from others."""
        asked = self._interpolate and not signature.works and signature.key[0] is not None
        work = self._shapes.work(signature.key) if asked else None
        if work is not None:
            signature.infer(work)
        return work is not None

    def _count(self, micro: Micro, signature: Signature, **where: bool) -> None:
        micro.count = counts.begin(self._workload, signature, **where)
        if micro.count is not None:
            micro.dropped = "counted"

    def _steps(self, *_: Any) -> None:
        """The optimizer is about to step: what it does is counted by itself, where this micro-batch is not."""
        micro, stepping = self._micro, self._stepping
        if micro is None or micro.count is not None or stepping is None or stepping.due > stepping.seen + 1:
            return
        if self._drill is not None and self._drill.active:
            return
        try:
            self._count(micro, stepping, optimizer=True)
        except Exception as error:
            self._fail(error)

    def _stepped(self, *_: Any) -> None:
        """The optimizer has stepped."""
        micro = self._micro
        if micro is None:
            if self._parts and not self._ran:  # a loop may leave steps out, but not all
                self._warn("the optimizer steps outside of the meter's step, which so never ends: put it inside")
            return
        try:
            micro.steps += 1
            if self._stepping is None:
                self._stepping = Signature(len(self.signatures) + 1, "the optimizer's step")
                self.signatures.append(self._stepping)
            self._stepping.seen += bool(self._ran)
            if len(self._optimizers) == 1 and micro.count is not None and micro.count.signature is self._stepping:
                self._counted(micro, None)  # of several the others may still step
        except Exception as error:
            self._fail(error)

    def _counted(self, micro: Micro, error: BaseException | None) -> Counted | None:
        """The count that began in a micro-batch ends, and something is learnt from it; the count of all of it."""
        count, micro.count = micro.count, None
        assert count is not None
        signature, stepping = count.signature, self._stepping
        try:
            found = count.end(error)
            if found is None or (signature is not stepping and self._broken(signature, found)):
                return None
            of_optimizer = found.ops["phase"] == "optimizer"
            if signature is not stepping:
                self._learn(signature, found, ~of_optimizer if self._optimizers else of_optimizer | True)
            if micro.steps == 1 and stepping is not None and stepping.due <= stepping.seen:
                self._learn(stepping, found, of_optimizer)
            return None if signature is stepping else found
        except Exception as failed:
            signature.give_up(f"it could not be counted: {type(failed).__name__}: {first_line(failed)}")
            self._warn(f"{signature.words}: {signature.why}; steps with it have no MFU")
            return None

    def _broken(self, signature: Signature, found: Counted) -> bool:
        """Whether a micro-batch that was counted seems to have been left in its middle, as by ``continue``.

        A training without any backward is one in the end.
        """
        if not self._model.training or "backward" in set(found.ops["phase"]):
            return False
        signature.broken += 1
        return signature.broken < _PATIENCE

    def _learn(self, signature: Signature, found: Counted, rows: pd.Series) -> None:
        run = self._machine.run(found)
        work = work_of(run, found.ops[rows])
        if signature is not self._stepping and not work.model:
            raise GpuprofError("no matrix was multiplied in it, where Python could see it")
        if signature is not self._stepping and not found.ops.loc[found.ops["phase"] == "forward", "flops_full"].any():
            self._warn(
                f"{signature.words}: no matrix was multiplied forward in it, so MFU is too low: the model's call "
                "belongs inside of the block"
            )
        if self._trains is None:
            self._trains = self._trained()
        untold = signature is not self._stepping and (
            signature.key[0] is None or bool({"values", "nested"} & found.outcome.facts.keys())
        )
        signature.learn(found, work, varies=untold)
        if self._log is not None:
            self._log.counted(signature.number, signature.words, replace(found, ops=found.ops[rows]))
        self._machine.need(run, work)
        if signature.key and not signature.varies:
            self._shapes.add(signature.key, work)
        for old in [one for one in self.signatures if one.counted is not None][:-_MANY]:
            old.counted = None  # they are large
        if signature.varies and len(signature.works) == 2:
            self._warn(
                f"{signature.words}: {_varying(*signature.works)}: the mean of those counted is taken for the others"
            )
        if lacking := unpriced(run):
            operators = sorted({op for ops in lacking.values() for op in ops})
            self._warn(f"{', '.join(operators[:3])}: no FLOPs are known of it, so MFU is at least what is said")
        if not self._interpolate and self._counted_signatures() == _MANY:
            self._warn(
                f"{_MANY} kinds of micro-batches were counted, the last {signature.words}: each further one costs a "
                "slow step; pad to few lengths, or give interpolate=True"
            )

    def _close(self) -> None:
        """The step ends."""
        self.number += 1
        self._ran += 1
        parts, self._parts = self._parts, []
        dropped = next((part.dropped for part in parts if part.dropped), "") if len(parts) > 1 else parts[0].dropped
        if self._ran <= _WARM_UP:
            dropped = dropped or "warm-up"
        self._pending.append((self.number, self._last, parts, dropped))
        self._last = parts[-1].finish
        if len(self._pending) > _UNREAD:
            self._settle()
        if self._drill is not None:
            if self._drill.active:
                self._settle()
                self._last = None  # what it takes to read the record is between no steps
            self._drill.closes()

    def _settle(self) -> None:
        """Steps that the device has come to the end of become samples."""
        while self._pending and self._clock.reached(self._pending[0][2][-1].finish):
            self._samples.append(self._resolved(*self._pending.popleft()))

    def _resolved(self, number: int, before: Any, parts: list[Micro], dropped: str) -> Sample:
        clock = self._clock
        time_s = 0.0
        for part in parts:
            time_s += clock.seconds(part.start, part.finish)
        between_s = None
        if before is not None:
            between_s = clock.seconds(before, parts[-1].finish) - time_s
            clock.release(before)
        clock.release(*[part.start for part in parts], *[part.finish for part in parts[:-1]])
        if self._drill is not None and not dropped:
            self._drill.timed(number, (part.signature and part.signature.key for part in parts), time_s)
        signatures = [part.signature for part in parts]
        signatures += [self._stepping] * sum([part.steps for part in parts])
        works = [None if one is None else one.work for one in signatures]
        if signatures != self._kind_of_step.signatures or works != self._kind_of_step.works:
            self._kind_of_step = kind_of(signatures, works, len(parts))
        kind = self._kind_of_step
        real = self._padding.real(parts[0].unmasked) if len(parts) == 1 else added(
            [self._padding.real(part.unmasked) for part in parts]
        )  # fmt: skip
        return Sample(
            number, time_s, between_s, kind.numbers, kind.work, kind.estimated, kind.tokens, real, kind.samples,
            dropped,
        )  # fmt: skip

    def _read(self, reduce: bool) -> dict[str, float]:
        found: dict[str, float] = {}
        mine: Totals | None = None
        samples: list[Sample] = []
        if not self._ran and len(self._parts) > _UNREAD:
            self._warn(
                f"no step has ended in {len(self._parts)} micro-batches: is optimizer.step() inside of the block, and "
                "that optimizer the one that the meter was given?"
            )
        if self._ran:
            self._compiling.listen()
            self._settle()
            samples = list(self._samples)
            self._samples.clear()
            if self._trains not in (None, self._trained()):
                self._forget()  # and when it changed nobody knows
                samples = [sample._replace(work=None) for sample in samples]
            mine, found = self._account.add(samples, self._machine, self._warn)
        if reduce or not in_job():
            found |= of_job(self._model, mine, self._machine if self._ran else None, self._warn)
        found |= self._account.so_far()
        found |= {"meter/counted_signatures": self._counted_signatures(), "meter/step": self.number}
        if self._log is not None:
            self._write(self._log, found, samples)
        return found

    def _write(self, log: Log, found: dict[str, float], samples: list[Sample]) -> None:
        known = any(signature.works or signature.why for signature in self.signatures)
        try:
            log.write(self._machine.facts if known else {}, self.number, found, map(logged, samples))
        except GpuprofError as error:
            self._log = None
            self._warn(f"{error}; it ends there")

    def _counted_signatures(self) -> int:
        return sum(bool(signature.works) for signature in self._known.values())

    def _trained(self) -> tuple[bool, ...]:
        return tuple([parameter.requires_grad for parameter in self._model.parameters()])

    def _forget(self) -> None:
        """Other parameters are trained: what was counted is of another step."""
        for signature in (*self._known.values(), *([self._stepping] if self._stepping else [])):
            signature.work = None
        self._known.clear()
        self._shapes = Shapes()
        self._stepping = self._trains = None

    def _warn(self, text: str, what: str = "") -> None:
        """Say something once, be it in other words that it is of what was said before."""
        if (what or text) in self._warned:
            return
        self._warned.add(what or text)
        with suppress(Warning):  # where they are errors; a training must not end by one
            warnings.warn(f"gpuprof: {text}", stacklevel=2)

    def _fail(self, error: Exception) -> None:
        """Something in the meter itself fails: nothing of it is left in the loop, which goes on."""
        self._off = str(error) if isinstance(error, GpuprofError) else f"{type(error).__name__}: {first_line(error)}"
        micro, self._micro = self._micro, None
        self.rest()
        for hook in micro.hooks if micro is not None else ():
            hook.remove()
        if micro is not None and micro.count is not None:
            with suppress(Exception):
                micro.count.end()
        if self._drill is not None:
            self._drill.over()
        self._pending.clear()
        self._warn(f"the meter stops, and the training goes on: {self._off}")


def _varying(one: Work, other: Work) -> str:
    """How two counts of a signature that depends on more than shapes differ, in words."""
    kinds = (
        ("its FLOPs depend", one.model, other.model),
        ("its FLOPs on the hardware depend", one.hardware or {}, other.hardware or {}),
    )
    for what, first, second in kinds:
        if first != second:
            return f"{what} on more than shapes, {sum(first.values())} and {sum(second.values())}"
    return "its FLOPs may depend on more than shapes"


def _hooked(meter: Meter, optimizer: torch.optim.Optimizer) -> Any:
    """The hook that tells a meter of the optimizer's steps; it keeps nothing alive."""
    here = weakref.ref(meter)

    def stepped(*_: Any) -> None:
        if (known := here()) is not None:
            known._stepped()

    return optimizer.register_step_post_hook(stepped)


def _live() -> None:
    raise GpuprofError("the step is the training loop's own")
