"""What the user may ask of a workload. It is checked without torch, whose import takes longer than the check."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuprof.errors import GpuprofError

if TYPE_CHECKING:
    import torch

DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "float32": "float32",
    "fp32": "float32",
}
"""Names of dtypes, and what torch calls them."""

CHOICES = {
    "mode": ("train", "forward", "generate"),
    "attention": (None, "eager", "sdpa", "flash_attention_2", "flex_attention"),
    "cache": (None, "dynamic", "static"),
    "checkpointing": ("none", "reentrant", "non-reentrant"),
    "optimizer": ("none", "adamw", "sgd"),
    "parallel": ("none", "ddp", "fsdp", "tp"),
    "compile": ("none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "dtype": (None, *DTYPES),
}
SIZES = ("batch_size", "seq_len", "prompt_len", "new_tokens", "image_crops")


@dataclass(frozen=True)
class Options:
    """How to build a workload; `None` leaves the choice to the workload, which writes down what it chose.

    Attributes:
        mode: `train` (forward, loss, backward), `forward` (no gradients) or `generate` (one prefill, then
            one decode step per further token).
        batch_size: Samples in one step.
        seq_len: Positions of text per sample in train and forward mode; the decoder's for whisper.
        prompt_len: Positions of the prompt in generate mode, the image's own included.
        new_tokens: Tokens to generate; the prefill gives the first of them.
        image_crops: Crops of each image that go through the vision tower, the whole-image one included.
        dtype: `bfloat16`, `float16` or `float32`, or `bf16`, `fp16`, `fp32`.
        attention: The attention implementation, as transformers names it.
        cache: Of generate mode: `dynamic`, what the model makes itself, or `static`, made for all positions at once.
        device: A torch device; CUDA where there is one, else the CPU.
        checkpointing: Activation checkpointing: `none`, `reentrant` or `non-reentrant`.
        optimizer: `none`, `adamw` or `sgd`; for train mode.
        freeze: Patterns (`fnmatch`) of module or parameter paths that are not trained.
        parallel: How a named model is sharded over the processes of a job: `none`, `ddp`, `fsdp` (each process has a
            batch of its own, of `batch_size`) or `tp` (all share one batch).
        compile: Mode in which torch.compile compiles the model, as torch names it, or `none`.
        seed: Seed of the random weights and of the inputs.
        trust_remote_code: Whether the code in a model's own repository may run.

    Raises:
        GpuprofError: A value is not one of the choices, a size is below 1, or two options contradict.
    """

    mode: str = "train"
    batch_size: int | None = None
    seq_len: int | None = None
    prompt_len: int | None = None
    new_tokens: int | None = None
    image_crops: int | None = None
    dtype: str | None = None
    attention: str | None = None
    cache: str | None = None
    device: str | None = None
    checkpointing: str = "none"
    optimizer: str = "none"
    freeze: tuple[str, ...] = ()
    parallel: str = "none"
    compile: str = "none"
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        # A list, as a command line gives it, is as good.
        freeze = (self.freeze,) if isinstance(self.freeze, str) else self.freeze
        if not isinstance(freeze, (tuple, list)) or not all(isinstance(pattern, str) for pattern in freeze):
            raise GpuprofError(f"--freeze takes patterns of paths, not {freeze!r}")
        object.__setattr__(self, "freeze", tuple(freeze))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice is not None)
                given = " ".join(repr(getattr(self, name)).split())
                raise GpuprofError(f"{flag(name)} {given} is not one of: {known}")
        check_device(self.device)
        check_seed(self.seed)
        for name in SIZES:
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise GpuprofError(f"{flag(name)} must be at least 1, not {size!r}")
        if self.mode != "train":
            for name in ("optimizer", "checkpointing", "freeze"):
                if getattr(self, name) not in ("none", ()):
                    raise GpuprofError(f"{flag(name)} is for --mode train: --mode {self.mode} trains nothing")
        if self.mode != "train" and self.parallel == "ddp":
            raise GpuprofError(
                f"--parallel ddp averages gradients, and --mode {self.mode} has none: leave it out, or use fsdp or tp"
            )
        for name in ("new_tokens", "cache"):
            if self.mode != "generate" and getattr(self, name) is not None:
                raise GpuprofError(f"{flag(name)} is for --mode generate, not --mode {self.mode}")
        if self.mode == "generate" and self.seq_len is not None:
            raise GpuprofError(
                "--seq-len is for --mode train and forward; --mode generate has --prompt-len, --new-tokens"
            )


def flag(name: str) -> str:
    """The command line's spelling of an option: `seq_len` is `--seq-len`."""
    return "--" + name.replace("_", "-")


def check_seed(seed: int) -> None:
    """Refuse what torch cannot be seeded with.

    Raises:
        GpuprofError: It is no whole number of its range.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise GpuprofError(f"--seed must be from 0 to 2**63 - 1, not {seed!r}")


def check_device(name: str | None) -> None:
    """Refuse what names no device that a step may run on; whether it is there only torch can tell.

    Raises:
        GpuprofError: The name is no device.
    """
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"(cuda|cpu|meta)(:(0|[1-9]\d?))?", name)):
        raise GpuprofError(f"--device {name!r} is no device that gpuprof knows; use cuda, cuda:0 or cpu")


def resolve_device(name: str | None) -> torch.device:
    """The device a step runs on: the one asked for, else CUDA where there is one, else the CPU.

    Raises:
        GpuprofError: The name is no device, or there is no such device here.
    """
    import torch

    check_device(name)
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise GpuprofError(f"no CUDA device: torch {torch.__version__} finds none here; use --device cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise GpuprofError(f"no device {name}: there are {torch.cuda.device_count()} CUDA devices here")
    return device


def resolve_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of a name of `DTYPES`; None for None."""
    import torch

    return None if name is None else getattr(torch, DTYPES[name])


def preferred_dtype(device: torch.device) -> torch.dtype:
    """The dtype of a model whose own is not known: bfloat16, on a CPU float32."""
    import torch

    return torch.float32 if device.type == "cpu" else torch.bfloat16


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` as `bfloat16`."""
    return str(dtype).removeprefix("torch.")
