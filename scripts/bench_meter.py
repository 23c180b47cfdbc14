"""What a meter adds to a step of 10 ms: `gpuprof.Meter` beside what Hugging Face's Trainer and Lightning have.

Each is measured in the loop that it is made for, with and without it by turns, step by step in one process. A step is a
network's forward and backward of about 10 ms, then a small model's with the optimizer's step. The network empties the
caches as a real step does; it is timed by itself and left out, since its own time varies by more than what is looked
for. A pair is two neighbours, of which the first has the meter as often as the second. What is said is the
median over the pairs and the interval that holds it in at least 95 % of all cases, whatever the distribution.

To gpuprof's own the cost of a ``read`` every 50 steps is added; to the others nothing of what they log. On a CPU
there is no device to wait for, so what the others cost on a GPU, where they wait for it at each step, is not in this;
the GPU suite's check `meter` has it. Two ranks, which the Trainer's tokens make wait for one another, are in it.

Exit status 1 where one of gpuprof's takes 0.5 % of a step or more, or the plain meter more than a fifth of what the
cheapest of the others takes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench_generate import interval

from gpuprof import Meter
from gpuprof.hardware.device import describe, environment

STEP_S = 0.010
MOST_ADDED = 0.005
LEAST_CHEAPER = 5.0
READ_EVERY = 50
WARM_UP = 20
"""Steps before the first pair: the meter has counted by then, and the frameworks have settled."""


class Course:
    """The batches of a loop, each step with or without what is measured, and the seconds that steps take.

    A framework may fetch ahead: `on` speaks of the step between two fetches, whichever batch it is of.
    """

    def __init__(self, pairs: int, work: Callable[[], Any]) -> None:
        self.on = True
        self._pairs, self._work, self._worked_s = pairs, work, 0.0
        self._steps: list[tuple[bool, float]] = []
        ids = torch.randint(0, 64, (4, 128))
        self.batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def work(self) -> None:
        """The network, timed by itself."""
        begin = time.perf_counter()
        self._work()
        self._worked_s += time.perf_counter() - begin

    def __len__(self) -> int:
        return WARM_UP + 2 * self._pairs + 1

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        begin = time.perf_counter()
        for number in range(len(self)):
            if number > WARM_UP:
                self._steps.append((self.on, time.perf_counter() - begin - self._worked_s))
            self.on = number < WARM_UP or (number - WARM_UP) % 4 in (0, 3)  # with, without, without, with
            self._worked_s, begin = 0.0, time.perf_counter()
            yield self.batch

    def added(self) -> list[float]:
        """Seconds by which the step with it exceeds the one without it, of each pair."""
        pairs = zip(self._steps[::2], self._steps[1::2], strict=True)
        return [one - other if first else other - one for (first, one), (_, other) in pairs]


class Small(torch.nn.Module):
    """A model of two layers with the network before it, which is no part of what a meter counts."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(64, 8)
        self.head = torch.nn.Linear(8, 64)
        self._work = work

    def forward(  # noqa: D102
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        self._work()
        logits = self.head(self.embed(input_ids))
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def layers_of_a_step() -> int:
    """Layers of the network whose forward and backward take about `STEP_S`."""
    layers = 1
    while min(_seconds(network(layers)) for _ in range(5)) < STEP_S:
        layers += 1
    return layers


def network(layers: int) -> Callable[[], None]:
    """The forward and backward of a network of this depth, which are many operators as those of a real step are."""
    model = torch.nn.Sequential(
        *[
            torch.nn.Sequential(torch.nn.Linear(192, 192), torch.nn.GELU(), torch.nn.LayerNorm(192))
            for _ in range(layers)
        ]
    )
    batch = torch.randn(64, 192)

    def work() -> None:
        with torch.enable_grad():
            model(batch).sum().backward()
        model.zero_grad()

    return work


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def by_turns(meter: Any, course: Course) -> None:
    """Let a meter begin only in the steps that have it: what does not begin ends by itself."""
    begin = meter.begin
    meter.begin = lambda: begin() if course.on else None


def plain(course: Course) -> None:
    """The plain loop with the meter."""
    model = Small(course.work)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    meter = Meter(model, optimizer, peak_tflops=1.0)
    for batch in course:
        with meter.step(batch) if course.on else contextlib.nullcontext():
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()


def _trainer(course: Course, callbacks: list[Any], **more: Any) -> None:
    """A run of the Trainer of transformers."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class Over(Trainer):
        def get_train_dataloader(self) -> Course:
            return course

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=len(course), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
            logging_strategy="no", logging_nan_inf_filter=False, optim="sgd", **more,
        )  # fmt: skip
        trainer = Over(Small(course.work), arguments, callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def tokens_seen(course: Course, how: str) -> None:
    """The Trainer, with ``include_num_input_tokens_seen``."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, *_: Any, **__: Any) -> None:
            args.include_num_input_tokens_seen = how if course.on else "no"

    _trainer(course, [Turns()], include_num_input_tokens_seen=how)


def trainer_meter(course: Course) -> None:
    """The Trainer, with gpuprof's callback."""
    from gpuprof.integrations import GpuprofCallback

    class Turns(GpuprofCallback):
        def on_train_begin(self, *given: Any, **named: Any) -> None:
            super().on_train_begin(*given, **named)
            by_turns(self.meter, course)

    _trainer(course, [Turns(peak_tflops=1.0)])


def _lightning(course: Course, callback: Any) -> None:
    """A run of Lightning's Trainer."""
    import lightning

    class Module(lightning.LightningModule):
        flops_per_batch = 1

        def __init__(self) -> None:
            super().__init__()
            self.model = Small(course.work)

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_steps=len(course), accelerator="cpu", devices=1, callbacks=[callback], default_root_dir=folder,
            logger=lightning.pytorch.loggers.CSVLogger(folder), enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, log_every_n_steps=READ_EVERY,
        )  # fmt: skip
        trainer.fit(Module(), course)


def throughput_monitor(course: Course) -> None:
    """Lightning, with its ``ThroughputMonitor``, told samples and tokens."""
    from lightning.pytorch.callbacks import ThroughputMonitor

    class Turns(ThroughputMonitor):
        def on_train_batch_end(self, *given: Any, **named: Any) -> None:
            if course.on:
                super().on_train_batch_end(*given, **named)

    _lightning(course, Turns(lambda batch: len(batch["input_ids"]), lambda batch: batch["input_ids"].numel()))


def lightning_meter(course: Course) -> None:
    """Lightning, with gpuprof's callback."""
    from gpuprof.integrations import LightningMeter

    class Turns(LightningMeter):
        def on_train_start(self, *given: Any, **named: Any) -> None:
            super().on_train_start(*given, **named)
            by_turns(self.meter, course)

    _lightning(course, Turns(peak_tflops=1.0))


PLAIN = "Meter, plain loop"
OURS: dict[str, Callable[[Course], None]] = {
    PLAIN: plain,
    "GpuprofCallback, Trainer": trainer_meter,
    "LightningMeter, Lightning": lightning_meter,
}
OTHERS: dict[str, Callable[[Course], None]] = {
    "include_num_input_tokens_seen=all, Trainer": lambda course: tokens_seen(course, "all"),
    "include_num_input_tokens_seen=non_padding, Trainer": lambda course: tokens_seen(course, "non_padding"),
    "ThroughputMonitor, Lightning": throughput_monitor,
}
TWO = ", 2 ranks"
OF_TWO = [f"{name}{TWO}" for name in ("GpuprofCallback, Trainer", "include_num_input_tokens_seen=all, Trainer")]


def read_s() -> float:
    """Seconds of a ``read`` after `READ_EVERY` steps, the median of some."""
    course = Course(0, lambda: None)
    model = Small(course.work)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    meter = Meter(model, optimizer, peak_tflops=1.0)
    found = []
    for _ in range(20):
        for _ in range(READ_EVERY):
            with meter.step(course.batch):
                model(**course.batch)["loss"].backward()
                optimizer.step()
        found.append(_seconds(meter.read))
    return statistics.median(found[1:])


def measured(name: str, pairs: int, layers: int) -> dict[str, Any]:
    """What one of them adds to a step, in seconds."""
    if name.endswith(TWO):
        return on_two_ranks(name.removesuffix(TWO), pairs, layers)
    course = Course(pairs, network(layers))
    (OURS | OTHERS)[name](course)
    added = course.added()
    return {"added_s": statistics.median(added), "interval_s": interval(added)}


def on_two_ranks(name: str, pairs: int, layers: int) -> dict[str, Any]:
    """The same of the first of two ranks of a job (DDP, gloo)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
        command += ["--only", name, "--pairs", str(pairs), "--layers", str(layers), "--json", str(file)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        if not file.exists():
            raise RuntimeError(f"{name} on two ranks failed:\n{done.stderr}")
        found: dict[str, Any] = json.loads(file.read_text())["found"][name]
        return found


def verdicts(found: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Whether each goal is met, as far as what it needs was measured."""
    ours = {name: row["added_s"] for name, row in found.items() if name.removesuffix(TWO) in OURS}
    others = [row["added_s"] for name, row in found.items() if name in OTHERS]
    said = {f"{name}: below {MOST_ADDED:.1%} of a step": took < MOST_ADDED * STEP_S for name, took in ours.items()}
    if others and PLAIN in ours:
        ratio = min(others) / ours[PLAIN]
        goal = f"{PLAIN}: {ratio:.2f} x cheaper than the cheapest other, {LEAST_CHEAPER:g} x wanted"
        said[goal] = ratio >= LEAST_CHEAPER
    if all(name in found for name in OF_TWO):
        one, other = (found[name]["added_s"] for name in OF_TWO)
        said[f"on two ranks: {other / one:.2f} x cheaper than the Trainer's tokens"] = other / one >= LEAST_CHEAPER
    return said


def main() -> int:
    known = [*OURS, *OTHERS, *OF_TWO]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, help="of steps, of each")
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--layers", type=int, help="of the network, instead of as many as take 10 ms")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    if args.pairs < 2 or (args.layers is not None and args.layers < 1):
        parser.error("give at least --pairs 2, and --layers above 0")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    layers = args.layers or layers_of_a_step()
    step = network(layers)
    step_s = statistics.median(_seconds(step) for _ in range(50))
    found = {name: measured(name, args.pairs, layers) for name in args.only}
    reading = read_s() / READ_EVERY
    for name in OURS.keys() & found.keys():
        found[name]["added_s"] += reading
        found[name]["interval_s"] = [end + reading for end in found[name]["interval_s"]]
    if os.environ.get("RANK", "0") != "0":
        return 0
    print(f"a network of {step_s * 1e3:.1f} ms, {args.pairs} pairs of steps of each; us added to a step")
    for name, row in found.items():
        low, high = row["interval_s"]
        print(
            f"{name:55} {row['added_s'] * 1e6:7.1f} ({low * 1e6:.1f} to {high * 1e6:.1f} with 95 %), "
            f"{row['added_s'] / STEP_S:.2%} of {STEP_S * 1e3:g} ms"
        )
    print(f"{'of it a read every 50 steps':55} {reading * 1e6:7.1f}")
    goals = verdicts(found)
    for goal, met in goals.items():
        print(f"{'met    ' if met else 'NOT MET'}  {goal}")
    if args.json:
        about = {"device": describe(torch.device("cpu"))["name"], "environment": environment(), "pairs": args.pairs}
        result = about | {"network_s": step_s, "read_s_per_step": reading, "found": found, "goals": goals}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
