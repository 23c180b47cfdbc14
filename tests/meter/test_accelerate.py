"""The meter in a loop of accelerate that really trains, on a CPU; its figures through ``accelerator.log``."""

import tempfile

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from meter.small_llama import Rows, llama, train_flops
from parallel.ranks import launch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gpuprof

ROWS, EVERY, STEPS = 2, 4, 6


def train(folder, metered=True, **arguments):
    """Steps of some micro-batches each.

    Returns:
        The losses, what was read after each step, and the accelerator.
    """
    AcceleratorState._reset_state()  # another test of this process may have chosen otherwise
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=EVERY, project_dir=folder, **arguments)
    accelerator.init_trackers("run")
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loader = torch.utils.data.DataLoader(Rows(STEPS * EVERY * ROWS * accelerator.num_processes), batch_size=ROWS)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    meter = gpuprof.Meter(model, optimizer)
    losses, reads = [], []
    for batch in loader:
        with accelerator.accumulate(model), meter.step(batch) if metered else tempfile.TemporaryFile():
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if accelerator.sync_gradients and metered:
            reads.append(meter.read(reduce=True))
            accelerator.log(reads[-1], step=meter.number)
    return losses, reads, accelerator


def test_micro_batches_are_a_step_and_the_tracker_has_its_figures(tmp_path):
    losses, reads, accelerator = train(tmp_path, log_with="tensorboard")
    accelerator.end_training()

    assert [read.get("meter/flops_per_step") for read in reads] == [None, *[EVERY * train_flops(ROWS)] * (STEPS - 1)]
    assert [read["meter/step"] for read in reads] == [1, 2, 3, 4, 5, 6]
    assert losses == train(tmp_path / "bare", metered=False)[0]
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    # which keeps single precision, and no configuration
    assert {name: [event.value for event in events.Scalars(name)][-1] for name in reads[-1]} == (
        pytest.approx(reads[-1], rel=1e-6)
    )
    assert [event.step for event in events.Scalars("device/mfu")] == [4, 5, 6]


def ddp():
    with tempfile.TemporaryDirectory() as folder:
        losses, reads, accelerator = train(folder)
        return {"last": reads[-1], "same": losses == train(folder, metered=False)[0], "on": accelerator.process_index}


def test_two_ranks_count_each_its_own_and_read_all_of_both():
    one, other = [rank["ddp"] for rank in launch(__file__, ["ddp"])]
    assert (one["on"], other["on"]) == (0, 1)
    for rank in one, other:
        assert rank["same"]
        assert rank["last"]["meter/flops_per_step"] == EVERY * train_flops(ROWS)
    assert one["last"]["mfu"] == other["last"]["mfu"]
    assert one["last"]["tokens_per_sec"] == other["last"]["tokens_per_sec"]
