from dataclasses import replace

import pandas as pd
import pytest
from runs import generation_run, gpu_run

from gpuprof.analysis.comparison import (
    LAUNCH_COLUMNS,
    differences,
    fingerprint,
    kernel_seconds,
    launches,
    own_counts,
    workload_key,
)
from gpuprof.errors import GpuprofError
from gpuprof.schema import table


def launched_run():
    """gpu_run() timed in two processes, at 1000 and 900 MHz, the second under heat."""
    run = gpu_run()
    run.device |= {"flops_per_clock_per_sm": {"bfloat16": 100}, "sm_count": 1}  # 100 GFLOP/s at 1 GHz
    run.settings |= {"warmup": 5, "steps": 10}
    run.samples = table("samples", [
        {"launch": launch, "step": step, "phase": phase, "time_s": time_s * slow * 1e-9}
        for launch, slow in ((1, 1), (2, 2)) for step, time_s in enumerate((400, 480, 600, 480, 480))
        for phase in ("step", "forward")
    ])  # fmt: skip
    run.telemetry = table("telemetry", [
        {"launch": launch, "time_s": time_s, "quantity": quantity, "unit": unit, "value": value}
        for launch, clock, mask in ((1, 1000, 0), (2, 900, 0x40)) for time_s, quantity, unit, value in (
            (0, "sm_clock", "MHz", clock), (1, "event_reasons", "", mask),
            (0, "energy", "J", 100), (2, "energy", "J", 130),
        )
    ])  # fmt: skip
    run.launches = table("launches", [
        {"launch": 1, "quantity": "peak_bytes", "value": 1500},
        {"launch": 2, "quantity": "peak_bytes", "value": 1600},
        *({"launch": launch, "module": module, "phase": "forward", "quantity": "kernel_s", "value": launch * value}
          for launch in (1, 2) for module, value in (("layers.0", 1e-6), ("layers.1", 2e-6), ("head", 4e-6))),
    ])  # fmt: skip
    return run


def test_a_launch_is_a_row_of_its_own_medians():
    first, second = launches(launched_run()).to_dict("records")

    # 12000 model FLOPs at 100 GFLOP/s are 120 ns; 8 tokens and 2 samples a step
    assert first["step_s"] == pytest.approx(480e-9)
    assert first["step_iqr_s"] == 0
    assert first["forward_s"] == pytest.approx(480e-9)
    assert first["mfu_datasheet"] == pytest.approx(120 / 480)
    assert first["mfu_clock"] == pytest.approx(120 / 480)
    assert first["tokens_per_s"] == pytest.approx(8 / 480e-9)
    assert first["samples_per_s"] == pytest.approx(2 / 480e-9)
    assert first["energy_j"] == pytest.approx(30 / 15)
    assert (first["sm_clock_mhz"], first["peak_bytes"], first["flops"], first["kernels"]) == (1000, 1500, 12000, 7)
    assert first["invalid"] == ""
    # half as fast, of a peak nine tenths as high
    assert second["mfu_datasheet"] == pytest.approx(120 / 960)
    assert second["mfu_clock"] == pytest.approx(120 / 0.9 / 960)
    assert (second["launch"], second["peak_bytes"]) == (2, 1600)
    assert second["invalid"] == "hardware thermal slowdown in 1 of 1 samples"
    assert pd.isna(first["backward_s"])
    assert pd.isna(first["mfu_measured"])


def test_a_launch_of_a_generation():
    """Steps of 1360 ns, slower by 1, 1.1 and 0.9: parts of 400 ns, and 300, 320, 340 to decode."""
    run = generation_run()
    first, second = run.generation, run.generation.assign(launch=1, time_s=2 * run.generation["time_s"])
    run.generation = pd.concat([first, second], ignore_index=True)
    run.samples = pd.concat(
        [run.samples, run.samples.assign(launch=1, time_s=2 * run.samples["time_s"])], ignore_index=True
    )

    for launch, slow in zip(launches(run).to_dict("records"), (1, 2), strict=True):
        assert launch["ttft_s"] == pytest.approx(slow * 400e-9)
        assert launch["tpot_s"] == pytest.approx(slow * 320e-9)
        # of 270, 288, 300, 306, 320, 330, 340, 352, 374 ns: 0.99 of the way is at the place 7.92 of 0 to 8
        assert launch["tpot_p99_s"] == pytest.approx(slow * (352 + 0.92 * 22) * 1e-9)
        assert launch["tokens_per_s"] == pytest.approx(2 * 4 / (slow * 1360e-9))
        assert launch["samples_per_s"] == pytest.approx(2 / (slow * 1360e-9))
        assert launch["mfu_datasheet"] == pytest.approx(248 / (slow * 1360))
        assert launch["mfu_prefill_datasheet"] == pytest.approx(200 / (slow * 400))
        assert launch["mbu_datasheet"] == pytest.approx(4740 / 10 / (slow * 960))
        assert launch["mbu_measured"] == pytest.approx(4740 / 8 / (slow * 960))
        assert pd.isna(launch["forward_s"])


def test_a_generation_from_before_its_phases_were_told_apart():
    run = generation_run()
    run.generation, run.traffic = table("generation", []), table("traffic", [])
    for name in ("samples", "ops", "kernels"):
        rows = getattr(run, name)
        setattr(run, name, rows[rows["phase"] != "prefill"].replace({"phase": {"decode": "forward"}}))

    (launch,) = launches(run).to_dict("records")

    assert launch["forward_s"] == pytest.approx(960e-9)
    assert launch["tokens_per_s"] == pytest.approx(8 / 1360e-9)
    unknown = ["ttft_s", "tpot_s", "tpot_p99_s", "mfu_prefill_datasheet", "mbu_datasheet", "mbu_measured"]
    assert all(pd.isna(launch[name]) for name in unknown)


def test_shares_of_a_training_are_of_the_whole_step():
    (launch,) = launches(gpu_run()).to_dict("records")
    assert launch["mfu_datasheet"] == pytest.approx(120 / 480)
    assert pd.isna(launch["mfu_prefill_datasheet"])
    assert pd.isna(launch["ttft_s"])


def test_kernel_time_by_phase():
    assert kernel_seconds(generation_run(), "phase")[0].to_dict() == {
        "prefill": pytest.approx(300e-9), "decode": pytest.approx(600e-9)
    }  # fmt: skip
    assert own_counts(generation_run(), "phase").to_dict() == {
        "kernels": {"prefill": 2, "decode": 6}, "flops": {"prefill": 20000, "decode": 4800}
    }  # fmt: skip


def test_a_run_that_timed_itself_is_one_launch():
    frame = launches(gpu_run())

    assert list(frame) == LAUNCH_COLUMNS
    assert list(frame["launch"]) == [0]
    assert frame["step_s"][0] == pytest.approx(480e-9)
    assert frame["backward_s"][0] == pytest.approx(340e-9)
    assert frame["peak_bytes"][0] == 1200
    assert frame["sm_clock_mhz"].isna().all()


def test_the_product_between_the_steps_is_told_by_its_median():
    run = gpu_run()
    rows = [{"step": step, "phase": "reference", "time_s": seconds} for step, seconds in enumerate((3.0, 9.0, 4.0))]
    run.samples = pd.concat([run.samples, table("samples", rows)], ignore_index=True)
    frame = launches(run)

    assert list(frame["reference_per_s"]) == [0.25]
    assert frame["step_s"][0] == pytest.approx(480e-9)
    assert launches(gpu_run())["reference_per_s"].isna().all()


def test_a_count_has_no_launch():
    run = gpu_run()
    run.samples = table("samples", [])

    assert len(launches(run)) == 0


def test_the_workload_key_is_of_the_workload_alone():
    run, later = gpu_run(), gpu_run()
    later.environment["date"] = "2027-01-01T00:00:00+00:00"
    later.workload |= {"seed": 7, "device": "cuda:1"}
    longer = replace(gpu_run(), workload=run.workload | {"batch_size": 2, "seq_len": 4})
    frozen = replace(gpu_run(), workload=run.workload | {"freeze": ["head"]})

    assert workload_key(run) == workload_key(later)
    assert workload_key(run).startswith("net-train-bfloat16-")
    assert workload_key(longer).startswith("net-train-batch2-seq4-bfloat16-")
    assert workload_key(frozen) != workload_key(run)
    assert workload_key(replace(run, workload={"name": "a/b.py:f", "mode": "train"})).startswith("a-b.py-f-train-")


def test_the_workload_key_says_that_it_is_compiled():
    run, compiled = gpu_run(), gpu_run()
    compiled.workload["compiled"] = {"": "inductor, mode default"}
    plain, key = workload_key(run), workload_key(compiled)
    assert key.rpartition("-")[0] == f"{plain.rpartition('-')[0]}-compiled"
    assert key.rpartition("-")[2] != plain.rpartition("-")[2]


def test_fingerprints_differ_by_field():
    run, other = gpu_run(), gpu_run()
    other.device |= {"driver": "575.2", "uuid": "GPU-2"}
    other.environment["torch"] = "2.14.0"
    other.settings["convention"] = "full"
    here, there = fingerprint(run), fingerprint(other)

    assert differences(here, here) == []
    assert differences(here, there) == [
        "convention (causal against full)",
        "uuid (unknown against GPU-2)",
        "driver (unknown against 575.2)",
        "torch (2.13.0 against 2.14.0)",
    ]
    assert differences(here, there, ["uuid", "driver", "convention"]) == ["torch (2.13.0 against 2.14.0)"]
    with pytest.raises(GpuprofError, match="no field drvier to allow: there are workload, convention"):
        differences(here, there, ["drvier"])


def test_threads_are_part_of_a_cpus_fingerprint_alone():
    run = gpu_run()
    run.environment["threads"] = 4

    assert fingerprint(run)["threads"] == ""
    assert fingerprint(replace(run, device={"type": "cpu", "name": "c"}))["threads"] == "4"


def seconds(run, by):
    frame = kernel_seconds(run, by)
    return {part: [round(value * 1e9) for value in values] for part, *values in frame.itertuples(name=None)}


def test_kernel_time_is_of_the_work_of_a_part_alone():
    run = gpu_run()

    assert seconds(run, "module")["layers.0", "forward"] == [20]
    assert seconds(run, "module")["head", "backward"] == [160]
    assert seconds(run, "layer") == {
        ("layers.*", "forward"): [40], ("head", "forward"): [40], ("layers.*", "backward"): [160],
        ("head", "backward"): [160], ("(unattributed)", "optimizer"): [40],
    }  # fmt: skip
    assert seconds(run, "class")["Block", "backward"] == [160]
    assert seconds(run, "op") == {"aten::mm": [80], "aten::bmm": [320], "mylib::step": [40]}
    assert seconds(run, "kernel") == {"gemm": [400], "step": [40]}


def test_kernel_time_of_launches_goes_before_that_of_the_run():
    run = launched_run()

    assert seconds(run, "layer") == {("layers.*", "forward"): [3000, 6000], ("head", "forward"): [4000, 8000]}
    assert seconds(run, "kernel") == {"gemm": [400], "step": [40]}  # launches do not say it by kernel


def test_counts_are_of_the_work_of_a_part_alone():
    counts = own_counts(gpu_run(), "layer")

    assert counts.loc[("layers.*", "backward")].to_dict() == {"kernels": 2, "flops": 4000}
    assert pd.isna(counts.loc[("(unattributed)", "optimizer"), "flops"])
    assert own_counts(gpu_run(), "kernel")["flops"].isna().all()
