"""The log that a meter writes: as a run it says what the meter said."""

import json
from collections import deque

import pytest
import torch
from loops import IN, OUT, WIDE, flops, net, sgd, train

import gpuprof
from gpuprof.analysis.backward import backward_ratios
from gpuprof.analysis.comparison import launches
from gpuprof.analysis.totals import totals
from gpuprof.log import Log

PEAK = 1e12


def metered(model, optimizer=None, **options):
    """On a device of 1 TFLOP/s, which no CPU comes near with these models."""
    return gpuprof.Meter(model, optimizer, peak_tflops=1.0, **options)


def loop(tmp_path):
    model = net()
    optimizer = sgd(model)
    return metered(model, optimizer, out=tmp_path / "run"), model, optimizer


def test_the_run_of_a_log_has_the_figures_of_the_meter(ticks, tmp_path):
    meter, model, optimizer = loop(tmp_path)
    train(meter, model, optimizer, steps=10, accumulation=2)
    said = meter.read()

    run = gpuprof.load(tmp_path / "run")

    (launch,) = launches(run).to_dict("records")
    assert launch["flops"] == said["meter/flops_per_step"] == 2 * flops(4)
    assert launch["step_s"] == said["device/step_s"] == 2
    assert launch["mfu_given"] == pytest.approx(said["device/mfu"], rel=1e-9)
    assert launch["samples_per_s"] == said["device/samples_per_sec"] == 4  # 8 in 2 s
    assert run.workload["micro_batches"] == ["2 x 4x6"]
    assert run.passes["time"].facts["dropped"] == {
        "warm-up": 2,
        "counted": 1,
    }


def test_mfu_of_all_reads_is_that_of_the_run_whatever_the_shapes(tmp_path):
    meter, model, optimizer = loop(tmp_path)
    kept_s, ideal_s, kept = 0.0, 0.0, 0
    for read in range(4):
        for samples in (4, 12, 4, 30):
            train(meter, model, optimizer, samples=samples)
        figures = meter.read()
        lines = [json.loads(line) for line in (tmp_path / "run" / "meter.jsonl").read_text().splitlines()]
        steps = [one for one in lines[-1]["steps"] if not one[7]]
        seconds = sum(one[1] for one in steps)
        if read:
            assert figures["device/step_s"] == pytest.approx(seconds / len(steps), rel=1e-4)
            assert figures["device/mfu"] == pytest.approx(
                sum(flops([4, 12, 4, 30][(one[0] - 1) % 4]) for one in steps) / PEAK / seconds, rel=1e-4
            )
        kept_s, kept = kept_s + seconds, kept + len(steps)
        ideal_s += sum(flops([4, 12, 4, 30][(one[0] - 1) % 4]) for one in steps) / PEAK

    run = gpuprof.load(tmp_path / "run")

    (launch,) = launches(run).to_dict("records")
    assert len(run.samples) == kept > 8
    assert launch["step_s"] == pytest.approx(kept_s / kept)
    assert ideal_s / kept_s == pytest.approx(launch["mfu_given"], rel=1e-6)
    assert run.workload["micro_batches"] in (["4x6", "of other shapes"], ["of other shapes"])


def test_a_resumed_loop_goes_on_in_its_log(ticks, tmp_path):
    for _ in range(2):
        meter, model, optimizer = loop(tmp_path)
        if (tmp_path / "state").exists():
            meter.load_state_dict(json.loads((tmp_path / "state").read_text()))
        train(meter, model, optimizer, steps=8)
        meter.read()
        (tmp_path / "state").write_text(json.dumps(meter.state_dict()))

    run = gpuprof.load(tmp_path / "run")

    assert run.samples["step"].tolist() == [4, 5, 6, 7, 8, 12, 13, 14, 15, 16]
    assert run.passes["time"].facts["processes"] == 2
    assert totals(run)["flops"] == flops(4)


def test_reading_at_each_step_loses_none(ticks, tmp_path):
    meter, model, optimizer = loop(tmp_path)
    for _ in range(6):
        train(meter, model, optimizer)
        meter.read()

    lines = [json.loads(line) for line in (tmp_path / "run" / "meter.jsonl").read_text().splitlines()]

    assert [one[0] for line in lines for one in line.get("steps", ())] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["steps_before"] == 0


def test_a_training_that_is_read_late_began_where_it_began(ticks, tmp_path, monkeypatch):
    meter, model, optimizer = loop(tmp_path)
    monkeypatch.setattr(meter, "_samples", deque(maxlen=4))  # steps that are kept until they are read
    train(meter, model, optimizer, steps=9)
    meter.read()

    header, *_ = [json.loads(line) for line in (tmp_path / "run" / "meter.jsonl").read_text().splitlines()]

    assert header["steps_before"] == 0  # or the next training in this folder would be taken for its continuation


def test_parameters_that_are_frozen_on_the_way_cost_less_from_then_on(ticks, tmp_path):
    meter, model, optimizer = loop(tmp_path)
    train(meter, model, optimizer, steps=8)
    meter.read()
    model[0].requires_grad_(False)
    train(meter, model, optimizer, steps=1)
    meter.read()
    train(meter, model, optimizer, steps=5)
    meter.read()

    run = gpuprof.load(tmp_path / "run")

    steps = run.samples["step"].tolist()
    before, after = sum(one <= 8 for one in steps), sum(one > 8 for one in steps)
    assert before >= 5
    assert after >= 3
    mean = (before * flops(4) + after * flops(4, first_trained=False)) / (before + after)
    assert abs(totals(run)["flops"] - mean) <= 2  # each row is rounded


def test_a_disk_that_is_full_ends_the_log_and_not_the_training(tmp_path, monkeypatch):
    meter, model, optimizer = loop(tmp_path)
    train(meter, model, optimizer, steps=5)

    def full(self, mode):
        raise gpuprof.GpuprofError("cannot write the meter's log: No space left on device")

    monkeypatch.setattr(Log, "_open", full)
    with pytest.warns(UserWarning, match="No space left on device; it ends there"):
        assert "device/mfu" in meter.read()
    train(meter, model, optimizer, steps=5)
    assert "device/mfu" in meter.read()  # and nothing more is said


def test_losses_are_the_same_to_the_bit_with_a_log(tmp_path):
    def losses(**options):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters())
        meter = metered(model, optimizer, **options)
        torch.manual_seed(1)
        found = []
        for _ in range(3):
            found += train(meter, model, optimizer, steps=4)
            meter.read()
        return found

    assert losses(out=tmp_path) == losses()


def test_a_folder_that_cannot_be_made_is_told_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(gpuprof.GpuprofError, match="cannot make the folder"):
        metered(net(), out=tmp_path / "file" / "run")


def test_a_file_of_that_name_that_is_no_log_is_left_alone(tmp_path):
    (tmp_path / "meter.jsonl").write_text("mine\n")
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, out=tmp_path)

    with pytest.warns(UserWarning, match=r"is not the log of a gpuprof\.Meter: give it another folder"):
        train(meter, model, optimizer, steps=5)

    assert (tmp_path / "meter.jsonl").read_text() == "mine\n"
    assert "device/mfu" in meter.read()


def test_a_log_tells_ratios_of_classes_and_no_causes_of_modules(tmp_path):
    """Of the two layers the first one's input needs no gradient; which that is a log does not know."""
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, out=tmp_path)
    train(meter, model, optimizer, steps=6)
    meter.read()
    ratios = backward_ratios(gpuprof.load(tmp_path)).set_index("module")

    forward = 2 * 4 * (IN * WIDE + WIDE * OUT)
    assert ratios.at["Linear", "ratio_flops"] == pytest.approx((flops(4) - forward) / forward)
    assert ratios.at["Linear", "reason"].startswith("modules of one class together")
