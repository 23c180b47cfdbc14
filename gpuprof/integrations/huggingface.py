"""The meter in a Trainer of Hugging Face, as a callback of it.

Callbacks are given no inputs, and are told of no exception: so while an epoch runs, the Trainer's ``training_step`` is
one that says to the meter what it is given. Nothing is hooked to the model, which torch.compile would have to trace.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

from gpuprof.errors import GpuprofError
from gpuprof.meter import Meter
from gpuprof.undo import patched

try:
    import accelerate  # noqa: F401 - without it there is a callback, but no Trainer can be made
    from transformers import Trainer, TrainerCallback
except ImportError as missing:
    raise GpuprofError(
        f"a Trainer needs {missing.name}, which is not installed: pip install 'gpuprof[trainer]'"
    ) from missing


class GpuprofCallback(TrainerCallback):
    """The meter of a Trainer: ``Trainer(..., callbacks=[GpuprofCallback()])``.

    The meter's figures are in what the Trainer logs of its training, so that W&B, TensorBoard, MLflow and all others in
    ``report_to`` have them, and in ``state.log_history``. A step has the number of the Trainer's ``global_step``, also
    when it goes on from a checkpoint. Evaluation, prediction and saving are no part of a step.

    Args:
        settings: those of `gpuprof.Meter`.

    Attributes:
        meter: of the training that runs or ran last, once there was one.
    """

    meter: Meter

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A meter for this training, and the first place among the callbacks.

        What a later callback adds to the logs comes too late for those that report them, which the Trainer puts before
        its user's; and what other callbacks do after a step is no part of it.
        """
        self._trainer = trainer = _trainer_that_calls()
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))
        self.meter = Meter(trainer.model_wrapped, trainer.optimizer, **self._settings)
        self.meter.load_state_dict({"step": state.global_step})

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The epoch that now begins is metered."""
        trainer, meter = self._trainer, self.meter
        run_epoch = getattr(trainer, "_run_epoch", None)  # or what another callback of this class has made of it
        if run_epoch is None:
            warnings.warn(
                "gpuprof: this release of transformers runs its epochs in a way that is not known here, and nothing is "
                "measured: use gpuprof.Meter in a training_step of your own",
                stacklevel=2,
            )
            return

        def metered(*given: Any, **named: Any) -> Any:
            vars(trainer).pop("_run_epoch", None)
            try:
                with patched(trainer, {"training_step": _metered(meter, trainer.training_step)}):
                    return run_epoch(*given, **named)
            except BaseException as error:
                meter.end(error)
                meter.rest()
                raise

        trainer._run_epoch = metered

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A micro-batch of several has ended."""
        self.meter.end(last=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step has ended, also where the scaler of fp16 has had the optimizer skip it."""
        self.meter.end(last=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """What the meter reads is added to what is logged of the training."""
        if "loss" not in logs:  # of an evaluation, or of the whole training
            return
        figures = self.meter.read(reduce=True)
        logs |= figures
        if state.log_history and state.log_history[-1]["step"] == state.global_step:  # which has a copy already
            state.log_history[-1] |= figures

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What came after the last log goes into the meter's own."""
        self.meter.read(reduce=True)
        self.meter.rest()


def _metered(meter: Meter, training_step: Callable[..., Any]) -> Callable[..., Any]:
    own = getattr(training_step, "__func__", None) is Trainer.training_step

    def metered(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if own and not model.training:  # as after an evaluation: FLOPs depend on it, and it is the first that this does
            model.train()
        meter.begin()
        meter.given(inputs)
        return training_step(model, inputs, *rest, **named)

    return metered


def _trainer_that_calls() -> Trainer:
    """The Trainer inside of which this is called: its callbacks are given all it has, but not itself."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if isinstance(found := frame.f_locals.get("self"), Trainer):
            return found
        frame = frame.f_back
    raise GpuprofError("GpuprofCallback is a callback for a transformers.Trainer: in another loop use gpuprof.Meter")
