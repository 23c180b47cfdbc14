"""A step that fails, in words: the model's own error shown short, where it came from, and what to do."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import NamedTuple

import torch

from gpuprof.errors import GpuprofError, is_out_of_memory, place_of
from gpuprof.units import size
from gpuprof.workload import Workload
from gpuprof.workload.steps import call_loss
from gpuprof.workload.weightless import reads_values


class StepFailure(NamedTuple):
    """Why a step failed.

    Attributes:
        reason: what happened and where.
        remedy: what to do about it, may be empty.
        error: the exception itself.
    """

    reason: str
    remedy: str
    error: Exception

    @property
    def line(self) -> str:
        """Reason and remedy as one line."""
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


def explain(error: Exception, workload: Workload) -> StepFailure:
    """Say what failed, in which phase and module; the error's frames then hold nothing of the step any more."""
    if isinstance(error, GpuprofError):
        return StepFailure(str(error), "", error)
    if workload.device.type == "meta" and (reason := reads_values(error)):
        return StepFailure(reason, "", error)
    phase, module = _where(error.__traceback__, workload)
    place = f"the {phase}" + (f" of {module}" if module and phase != "loss" else "")
    if is_out_of_memory(error):
        return StepFailure(f"out of memory in {place}{_reached(workload.device)}", _less_memory(workload), error)
    said = f"{type(error).__name__}: {short(error)}"
    if phase not in ("loss", "step"):
        return StepFailure(f"the model raised in {place}: {said}", "", error)
    remedy = _CALLED[phase] if isinstance(error, TypeError) else ""
    return StepFailure(f"{place} raised {said}{place_of(error)}", remedy, error)


_CALLED = {"loss": "a loss is called with the model's output alone", "step": "a step is called without arguments"}


def _where(trace: TracebackType | None, workload: Workload) -> tuple[str, str]:
    """Phase, and the innermost module whose method was running.

    What is of neither the model nor the optimizer is of the phase `loss`, or in a step of the user's own `step`.
    """
    model = workload.model
    paths = {id(module): path for path, module in model.named_modules()}
    phase, module = "forward", ""
    for frame, _ in traceback.walk_tb(trace):
        name = frame.f_code.co_filename.replace("\\", "/")
        if name.endswith(("torch/autograd/__init__.py", "torch/autograd/graph.py")):
            phase = "backward"
        elif "/torch/optim/" in name:
            phase = "optimizer step"
        elif frame.f_code is call_loss.__code__:
            phase = "loss"
        owner = frame.f_locals.get("self")
        if id(owner) in paths and isinstance(owner, torch.nn.Module):
            module = paths[id(owner)] or type(model).__name__
    if workload.description.get("step") == "given" and (phase, module) == ("forward", ""):
        phase = "step"
    return phase, module


def let_go(error: BaseException | None) -> None:
    """Let go of the tensors of a step that failed: the frames of the exception, and of those behind it, hold them.

    Where it failed in a backward, nodes that were still to run hold some too: autograd keeps them in this thread's
    queue until its next backward.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        for frame, _ in traceback.walk_tb(error.__traceback__):
            frame.f_locals.get("self")  # what was read of a frame stays with it until it is read again
        error = error.__cause__ or error.__context__
    torch.zeros((), device="cpu", requires_grad=True).backward()


def short(error: Exception, limit: int = 300) -> str:
    """What an error says, in one line of no more characters than that."""
    said = str(error)
    if said.startswith("The following operation failed in the TorchScript interpreter"):
        said = said.rstrip().rpartition("\n")[2]  # the error is its last line, below the trace of the script
    text = " ".join(said.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _reached(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    total = torch.cuda.get_device_properties(device).total_memory
    return f" (reached {size(torch.cuda.max_memory_reserved(device))} of {size(total)})"


def _less_memory(workload: Workload) -> str:
    if workload.description.get("source") == "module":  # the options below are for models given by name
        return "give smaller or fewer inputs, a model in a smaller dtype, or checkpoint its activations"
    lower = ["--batch-size", "--seq-len"]
    if workload.description.get("dtype") == "float32":
        lower.append("--dtype bfloat16")
    if workload.description.get("mode") == "train" and workload.description.get("checkpointing", "none") == "none":
        lower.append("--checkpointing non-reentrant")
    return f"lower {lower[0]} or {lower[1]}" + (f", or give {' or '.join(lower[2:])}" if lower[2:] else "")
