"""The meter in a Trainer of Lightning, as a callback of it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from gpuprof.errors import GpuprofError
from gpuprof.meter import Meter


def _callback() -> Any:
    """The class of callbacks of the Lightning that is used, or else of one that is there.

    ``lightning`` and ``pytorch_lightning`` hold the same code twice, each with classes of its own; a Trainer of either
    takes callbacks of the other.
    """
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError as missing:
            if not name.startswith(str(missing.name)):  # what it needs is missing
                raise
    raise GpuprofError("LightningMeter needs lightning, which is not installed: pip install 'gpuprof[lightning]'")


_Callback: Any = _callback()


class LightningMeter(_Callback):
    """The meter of a Lightning Trainer: ``Trainer(..., callbacks=[LightningMeter()])``.

    The meter's figures go to all loggers of the Trainer, every ``log_every_n_steps`` steps. A step has the number of
    the Trainer's ``global_step``, also when it goes on from a checkpoint. Validation, its sanity check, testing and
    prediction are no part of a step. Optimization may be automatic or manual; of several optimizers the first ends a
    step.

    Args:
        settings: those of `gpuprof.Meter`.

    Attributes:
        meter: of the training that runs or ran last, once there was one.
    """

    meter: Meter

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._resumed: dict[str, int] = {}  # from a checkpoint

    def state_dict(self) -> dict[str, int]:
        """For a checkpoint, the number of the step where ``global_step``, which is of all optimizers, does not tell."""
        return self.meter.state_dict() if hasattr(self, "meter") and self._several else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The training will go on from a checkpoint."""
        self._resumed = state_dict

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """A meter for this training."""
        self.meter = Meter(trainer.model, trainer.optimizers, **self._settings)
        self._several = len(trainer.optimizers) > 1
        steps = trainer.global_step // max(len(trainer.optimizers), 1)  # where they step equally often
        self.meter.load_state_dict(self._resumed or {"step": steps})
        self._resumed = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A micro-batch begins; the model's forward and backward are in the optimizer's step, or before it."""
        self.meter.begin()
        self.meter.given(batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A micro-batch has ended, and perhaps a step, after which the loggers may be told.

        They are told as Lightning's own monitors do it: ``log_dict`` would make each figure a tensor of float32 on the
        device, rounded, and wait for that.
        """
        before = self.meter.number
        # a step that the scaler of fp16 has had the optimizer skip has ended too; in manual optimization nobody knows
        self.meter.end(last=trainer.global_step > before if pl_module.automatic_optimization else None)
        if self.meter.number != before and trainer._logger_connector.should_update_logs:
            trainer._logger_connector.log_metrics(self.meter.read(reduce=True))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """No micro-batch is open any more, also where the model ended the epoch at the start of one."""
        self.meter.end(StopIteration())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """What came after the last log goes into the meter's own."""
        self.meter.read(reduce=True)
        self.meter.rest()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """What ends the training ends the micro-batch."""
        if hasattr(self, "meter"):
            self.meter.end(exception)
            self.meter.rest()
