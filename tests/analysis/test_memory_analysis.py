"""A step of one layer on a device of 10,000 bytes, its readings made up so that everything can be added in the head."""

import pytest
from runs import generation_run, gpu_run, row, tree_row

import gpuprof
from gpuprof.analysis.generation import held_after
from gpuprof.analysis.memory import ACCOUNT_COLUMNS, account, by_module, made, peak, predict, running
from gpuprof.record import PassOutcome
from gpuprof.render.memory import render_memory
from gpuprof.run import Run
from gpuprof.schema import table


def reading(module, phase, quantity, size, source="measured"):
    return {"module": module, "phase": phase, "quantity": quantity, "source": source, "bytes": size}


def line(time, phase, module, event, now, most, kept, gradients, reserved=None):
    return {
        "time_s": time, "phase": phase, "module": module, "event": event, "bytes": now, "peak_bytes": most,
        "reserved_bytes": reserved, "kept_bytes": kept, "gradient_bytes": gradients,
    }  # fmt: skip


def training(state_before=200) -> Run:
    """100 bytes of parameters, 200 of state, 30 of other things; 300 kept by the forward, 500 at its peak."""
    levels = {"forward": (330, 650, 830), "backward": (650, 440, 900), "optimizer": (440, 440, 490)}
    memory = [
        reading("", "", name, size, "analytic")
        for name, size in (("parameters", 100), ("buffers", 0), ("gradients", 100), ("optimizer_state", 200),
                           ("optimizer_state_before", state_before))
    ]  # fmt: skip
    memory += [
        reading("fc", "", "activations", 250, "analytic"),
        reading("(unattributed)", "", "activations", 50, "analytic"),
        reading("fc", "forward", "peak_above_entry", 480),
        reading("fc", "forward", "retained", 260),
        reading("", "forward", "peak_above_entry", 500),
        reading("", "forward", "retained", 320),
    ]
    born = 200 - state_before  # in the first step of an optimizer its state is only made while it steps
    for phase, (entry, end, highest) in levels.items():
        later = 0 if phase == "optimizer" else born
        memory += [
            reading("", phase, "allocated_entry", entry - born),
            reading("", phase, "allocated_exit", end - later),
            reading("", phase, "allocated_peak", highest - later),
            reading("", phase, "reserved_peak", 2 * (highest - later)),
        ]
    timeline = [
        line(0.0, "forward", "", "begin", 330, 330, 0, 0),
        line(0.1, "forward", "", "enter", 330, 330, 0, 0),
        line(0.2, "forward", "fc", "enter", 340, 345, 0, 0),
        line(0.3, "forward", "fc", "exit", 600, 830, 250, 0),
        line(0.4, "forward", "", "exit", 640, 700, 250, 0),
        line(0.5, "forward", "", "end", 650, 650, 300, 0),
        line(0.5, "backward", "", "begin", 650, 650, 300, 0),
        line(0.6, "backward", "fc", "gradient", 450, 900, 0, 100),
        line(0.7, "backward", "", "end", 440, 450, 0, 100),
        line(0.7, "optimizer", "", "begin", 440, 440, 0, 100),
        line(0.8, "optimizer", "", "end", 440, 490, 0, 100),
    ]
    return Run(
        workload={"name": "net", "mode": "train"},
        device={"type": "cuda", "name": "Toy", "memory_bytes": 10_000},
        environment={},
        passes={name: PassOutcome("done") for name in ("count", "memory")},
        tree=table("tree", [tree_row("", "Net", 50), tree_row("fc", "Linear", 50)]),
        memory=table("memory", memory),
        timeline=table("timeline", timeline),
    )


def test_expected_and_measured_at_every_end_and_peak():
    rows = account(training())

    assert list(rows.columns) == ACCOUNT_COLUMNS
    figures = rows.set_index("moment")[["gradients", "activations", "expected", "before", "workspace", "measured"]]
    assert figures.to_dict(orient="index") == {
        moment: dict(zip(figures.columns, values, strict=True))
        for moment, values in {
            "end of forward": (0, 300, 600, 30, 20, 650),
            "end of backward": (100, 0, 400, 30, 10, 440),
            "end of optimizer": (100, 0, 400, 30, 10, 440),
            "peak of forward": (0, 250, 550, 30, 250, 830),
            "peak of backward": (0, 300, 600, 30, 270, 900),  # of the readings around it the one that knows more
            "peak of optimizer": (100, 0, 400, 30, 60, 490),
        }.items()
    }
    assert (rows["residual"] == rows["before"] + rows["workspace"]).all()
    assert (rows["expected"] + rows["residual"] == rows["measured"]).all()


def test_without_a_timeline_the_ends_are_still_known():
    run = training()
    run.timeline = table("timeline", [])

    rows = account(run)

    assert rows["moment"].tolist() == ["end of forward", "end of backward", "end of optimizer"]
    assert rows["expected"].tolist() == [600, 400, 400]
    assert account(gpu_run())["residual"].tolist() == [50]  # what runs had from the beginning


def test_state_that_the_step_makes_is_not_expected_before():
    rows = account(training(state_before=0)).set_index("moment")

    assert rows.loc["end of forward", "optimizer_state"] == rows.loc["peak of backward", "optimizer_state"] == 0
    assert rows.loc["end of optimizer", "optimizer_state"] == 200


def test_a_recomputation_is_part_of_the_backward():
    run = training()
    run.timeline.loc[run.timeline["event"] == "gradient", "phase"] = "recompute"

    assert row(account(run), moment="peak of backward")["activations"] == 300


def test_modules_with_their_children():
    rows = by_module(training())

    assert row(rows, module="fc") | {"class": ""} == {
        "module": "fc", "class": "", "parameters": 100, "gradients": 100, "activations": 250, "retained": 260,
        "peak_above_entry": 480,
    }  # fmt: skip
    assert row(rows, module="")["activations"] == 250
    assert row(rows, module="(unattributed)")["activations"] == 50


def test_the_peak_has_a_place():
    found = peak(training())

    assert found == {
        "bytes": 900, "phase": "backward", "module": "fc", "time_s": 0.6, "reserved_bytes": 1800,
        "fragmentation_bytes": 900, "outside_bytes": None, "outside_of": None, "capacity_bytes": 10_000,
    }  # fmt: skip


@pytest.mark.parametrize(("quantity", "whose"), [("process_total", "process"), ("device_used", "device")])
def test_outside_torch_is_what_the_driver_counts_beyond_the_reserved(quantity, whose):
    run = training()
    run.memory = table("memory", [*run.memory.to_dict(orient="records"), reading("", "", quantity, 2500)])

    found = peak(run)

    assert (found["outside_bytes"], found["outside_of"]) == (700, whose)


def test_what_ran_before_a_reading():
    # the reading at the entry of fc is of what its parent did; that at its exit of fc itself
    assert running(training().timeline) == ["", "", "", "fc", "", "", "", "fc", "", "", ""]


def test_a_run_without_readings():
    run = gpu_run()
    run.memory = table("memory", [])

    assert peak(run)["bytes"] is None
    assert account(run).empty
    with pytest.raises(gpuprof.GpuprofError, match="no memory readings: profile it again"):
        predict(run, {})


def test_what_the_step_made():
    # all but 100 of parameters, 200 of state and 30 from before; the optimizer's own 50 stay apart
    assert made(training()) == {"forward": 500, "backward": 570, "optimizer": 110}


def test_a_prediction_adds_up():
    found = predict(training(), {"forward": (400, 400), "backward": (500, 1000), "optimizer": (100, 100)})

    # measured were 570: the 70 that were not simulated are twice as many, or still 70
    assert (found.phase, found.fixed, found.before, found.made) == ("backward", 300, 30, 2 * 570)
    # reserved was twice the allocated, so as much again as is allocated
    assert found.fragmentation == 300 + 30 + 2 * 570
    assert found.total == 2 * (300 + 30 + 2 * 570)
    assert found.least == 2 * (300 + 30 + 1000 + 70)


def test_a_smaller_step_makes_at_most_what_the_difference_leaves():
    found = predict(training(), {"backward": (500, 250), "forward": (500, 0), "optimizer": (110, 0)})

    assert (found.phase, found.made) == ("backward", 250 + 70)
    assert found.least == 2 * (300 + 30 + 570 // 2)


def test_what_the_optimizer_takes_does_not_grow():
    run = training()
    run.memory = run.memory[run.memory["quantity"] != "reserved_peak"]

    found = predict(run, {"forward": (500, 0), "backward": (570, 0), "optimizer": (110, 330)})

    assert (found.phase, found.made, found.fragmentation) == ("optimizer", 3 * 110 + 50, 0)
    assert found.least == found.total == 300 + 30 + 3 * 110 + 50


def test_state_that_the_measured_step_made_is_there_in_the_next():
    later, first = training(), training(state_before=0)

    assert predict(first, {}).fixed == predict(later, {}).fixed == 300
    assert made(first) == made(later)
    assert predict(first, {}).total == predict(later, {}).total


def test_outside_torch_is_added():
    run = training()
    without = predict(run, {}).total
    run.memory = table("memory", [*run.memory.to_dict(orient="records"), reading("", "", "process_total", 2500)])

    assert predict(run, {}).total == without + 700


def test_the_cache_of_a_generation_is_expected_at_the_end_of_its_phases():
    run = generation_run()
    run.passes["count"] = PassOutcome("done", facts={"cache": {"bytes": [320, 400, 480, 560]}})

    (end,) = account(run).to_dict(orient="records")

    assert (end["moment"], end["cache"], end["expected"], end["measured"]) == ("end of prefill", 320, 320, 1000)
    assert end["workspace"] == 1000 - 320 - end["before"]
    assert held_after(run) == {"prefill": 320, "decode": 560}
    run.passes["count"].facts["cache"]["bytes"].append(640)  # of another number of parts
    (end,) = account(run).to_dict(orient="records")
    assert (end["cache"], end["expected"], end["workspace"]) == (None, 0, 1000 - end["before"])
    assert "How much the cache holds is not known, so it is in the workspace" in render_memory(run)
