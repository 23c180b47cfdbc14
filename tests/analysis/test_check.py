import time
from dataclasses import replace

import pandas as pd
import pytest
from runs import generation_run, gpu_run, kernel_row, row

from gpuprof.analysis.check import check, check_interleaved, compare, unopposed
from gpuprof.analysis.metrics import METRICS, verdicts
from gpuprof.analysis.moved import moved
from gpuprof.errors import GpuprofError
from gpuprof.schema import table


def timed(step_ns, day=1, launches=1, **device):
    """gpu_run() with steps of so long, in so many launches."""
    run = gpu_run()
    run.environment["date"] = f"2026-01-{day:02}T00:00:00+00:00"
    run.device |= device
    run.samples = table("samples", [
        {"launch": launch, "step": 0, "phase": "step", "time_s": step_ns * 1e-9} for launch in range(launches)
    ])  # fmt: skip
    return run


def longer(run, factor, module="head", phase="forward"):
    """The same run with one module's kernels so much longer in a phase."""
    chosen = (run.kernels["module"] == module) & (run.kernels["phase"] == phase)
    run.kernels.loc[chosen, "duration_ns"] = (run.kernels.loc[chosen, "duration_ns"] * factor).astype("Int64")
    return run


BASELINE = [timed(1000 + offset, day) for day, offset in enumerate((0, 2, -2, 1, -1), start=1)]


def test_a_slower_step_is_a_regression_and_the_module_to_blame_comes_first():
    found = check(longer(timed(1030, 9), 1.75), BASELINE)

    assert found.status == "regression"
    step = found.deciding[0]
    assert (step.metric, step.status, step.n, step.k) == ("step_s", "regression", 5, 1)
    assert step.change == pytest.approx(0.03)
    assert [verdict.metric for verdict in found.deciding] == ["step_s", "flops", "kernels", "peak_bytes"]
    first = found.moved["layer"].iloc[0]
    assert (first["layer"], first["phase"], first["status"]) == ("head", "forward", "slower")
    assert first["change_s"] == pytest.approx(30e-9)  # 40 ns three quarters longer
    assert first["change"] == pytest.approx(0.75)
    assert found.moved["kernel"].iloc[0]["kernel"] == "gemm"
    assert found.notes[0] == "Baseline: 5 launches of 5 runs, 2026-01-01 to 2026-01-05."


def with_reference(run, reference_ns):
    """The same run, its CPU at the speed of so long a product between the steps."""
    rows = [
        {"launch": launch, "step": 0, "phase": "reference", "time_s": reference_ns * 1e-9}
        for launch in sorted(set(run.samples["launch"]))
    ]
    run.samples = pd.concat([run.samples, table("samples", rows)], ignore_index=True)
    return run


@pytest.mark.parametrize(
    ("step_ns", "reference_ns", "status", "why"),
    [
        (1050, 105, "pass", "5.0 % worse, but no worse at the same speed of the CPU"),
        (1050, 100, "regression", "5.0 % worse at the same speed of the CPU, z = "),
        (1030, 95, "regression", "8.4 % worse at the same speed of the CPU, z = "),
    ],
)
def test_a_slow_cpu_is_no_regression(step_ns, reference_ns, status, why):
    # the steps of the baseline are ten products long, however fast the CPU was
    baseline = [
        with_reference(timed(10 * ns, day, 3), ns) for day, ns in enumerate((100, 96, 104, 98, 102), start=1)
    ]  # fmt: skip
    found = check(with_reference(timed(step_ns, 9, 3), reference_ns), baseline)

    assert found.status == status
    assert not any("No clock was read" in note for note in found.notes)
    assert found.deciding[0].why.startswith(why)


def test_launches_without_the_clock_that_others_have_are_passed_over():
    """Fifteen of sixteen launches of the baseline have it: a slow CPU is told by them."""
    baseline = [with_reference(timed(10 * ns, day, 3), ns) for day, ns in enumerate((100, 96, 104, 98, 102), 1)]
    older = timed(1000, 6)
    head = with_reference(timed(1050, 9, 3), 105)
    found = check(head, [*baseline, older])

    assert (found.status, found.deciding[0].n) == ("pass", 15)
    assert found.notes[-1] == "Without those launches that lack the speed of the CPU: 1 of 19."

    # too few have it
    found = check(head, [baseline[0], older, timed(1000, 7, 3)])
    assert (found.status, found.deciding[0].n) == ("regression", 7)
    assert found.notes[-1].startswith("No clock was read")


def test_what_is_not_known_of_all_launches_is_said():
    untraced = timed(1000, 6)
    untraced.passes.pop("trace")
    more = timed(1000, 9)
    more.kernels = pd.concat([more.kernels, more.kernels], ignore_index=True)
    found = check(more, [*BASELINE, untraced])

    assert found.status == "regression"
    assert [(one.metric, one.n) for one in found.deciding if one.status == "regression"] == [("kernels", 5)]
    assert "Of the baseline only 5 of 6 launches have kernels, and those count." in found.notes

    found = check(untraced, BASELINE)
    assert "Not judged: kernels, not known of the head." in found.notes
    assert [one.metric for one in found.deciding] == ["step_s", "flops", "peak_bytes"]


def test_a_run_without_anything_to_hold_it_against_has_its_step_time():
    found = unopposed(timed(1000), "it is the first")

    assert found.status == "inconclusive"
    assert [(one.metric, one.value, one.n, one.why) for one in found.verdicts] == [
        ("step_s", pytest.approx(1e-6), 0, "it is the first")
    ]
    with pytest.raises(GpuprofError, match="the head has no valid timed launch"):
        unopposed(replace(timed(1000), samples=table("samples", [])), "it is the first")


def test_metrics_follow_the_step():
    statuses = {verdict.metric: verdict.status for verdict in check(timed(1030, 9), BASELINE).verdicts}

    assert statuses == {
        "step_s": "regression", "tokens_per_s": "regression", "samples_per_s": "regression",
        "mfu_datasheet": "regression", "flops": "pass", "kernels": "pass", "peak_bytes": "pass",
    }  # fmt: skip


def test_the_same_again_passes():
    found = check(timed(1003, 9), BASELINE)

    assert found.status == "pass"
    assert (found.moved["layer"]["status"] == "same").all()


def test_more_flops_are_a_regression_at_any_speed():
    head = timed(900, 9)
    head.ops.loc[0, "flops_causal"] += 1
    found = check(head, BASELINE)

    assert found.status == "regression"
    assert [verdict.metric for verdict in found.deciding if verdict.status == "regression"] == ["flops"]
    assert found.deciding[0].status == "improvement"


def test_more_memory_counts_from_sixteen_mebibytes():
    def with_peak(nbytes):
        head = timed(1000, 9)
        head.memory.loc[head.memory["quantity"] == "allocated_peak", "bytes"] = nbytes
        return check(head, BASELINE).status

    assert with_peak(1200 + (16 << 20)) == "pass"  # the baseline has 1200
    assert with_peak(1201 + (16 << 20)) == "regression"


def test_a_kernel_more_in_a_hundred_is_no_regression():
    def with_kernels(number, more):
        runs = [timed(1000, day) for day in range(1, 6)]
        head = timed(1000, 9)
        for run, count in [*((run, number) for run in runs), (head, number + more)]:
            rows = [kernel_row("head", "forward", "aten::mm", at, 1) for at in range(count)]
            run.kernels = table("kernels", rows)
        return check(head, runs).status

    assert with_kernels(100, 1) == "pass"
    assert with_kernels(100, 2) == "regression"


def test_a_small_baseline_is_inconclusive_and_has_its_figures():
    found = check(timed(2000, 9), BASELINE[:4])

    assert found.status == "inconclusive"
    assert found.deciding[0].change == pytest.approx(2000 / 1000.5 - 1)


def test_launches_of_few_runs_make_a_baseline():
    found = check(timed(1000, 9, launches=3), [timed(1000, 1, launches=3), timed(1000, 2, launches=2)])

    assert found.status == "pass"
    assert (found.deciding[0].n, found.deciding[0].k) == (5, 3)
    assert found.notes[0] == "Baseline: 5 launches of 2 runs, 2026-01-01 to 2026-01-02."


def test_of_a_long_baseline_the_newest_twenty_count():
    runs = [timed(500 if day <= 5 else 1000, day) for day in range(1, 26)]
    found = check(timed(1000, 28), runs[::-1])

    assert (found.deciding[0].n, found.deciding[0].m0) == (20, pytest.approx(1000e-9))
    assert found.base.environment["date"].startswith("2026-01-25")


def hot(run):
    run.telemetry = table("telemetry", [{"time_s": 0, "quantity": "event_reasons", "unit": "", "value": 0x40}])
    return run


def test_heat_under_the_head_is_inconclusive_but_for_exact_figures():
    found = check(hot(timed(1500, 9)), BASELINE)

    assert found.status == "inconclusive"
    assert found.deciding[0].why == "no measure of the code: hardware thermal slowdown in 1 of 1 samples"
    assert {verdict.status for verdict in found.deciding[1:]} == {"pass"}


def test_heat_under_the_baseline_leaves_a_launch_out():
    found = check(timed(1000, 9), [*BASELINE, hot(timed(1500, 8))])

    assert found.status == "pass"
    assert found.deciding[0].n == 5
    assert "Left out of the baseline: a launch with hardware thermal slowdown in 1 of 1 samples." in found.notes


def test_what_does_not_compare_is_left_out_and_said():
    found = check(timed(1000, 9), [*BASELINE, timed(500, 7, driver="1"), timed(500, 8, driver="1")])

    assert found.deciding[0].n == 5
    assert "Left out of the baseline: 2 of another driver (1 against unknown)." in found.notes
    assert check(timed(1000, 9), [timed(1000, 7, driver="1")], allowed=["driver"]).deciding[0].n == 1


def test_nothing_that_compares_is_refused():
    with pytest.raises(GpuprofError, match=r"driver \(1 against unknown\).*; if meant, --allow-different driver"):
        check(timed(1000, 9), [timed(1000, 1, driver="1")])
    with pytest.raises(GpuprofError, match="there is no other run"):
        check(timed(1000, 9), [])


def test_what_was_not_timed_is_refused():
    count = gpu_run()
    count.samples = table("samples", [])

    with pytest.raises(GpuprofError, match="the head has no valid timed launch"):
        check(count, BASELINE)
    with pytest.raises(GpuprofError, match="the baseline has no valid timed launch"):
        check(timed(1000, 9), [count])


def test_a_clock_that_fell_is_inconclusive():
    def clocked(run, mhz):
        run.telemetry = table("telemetry", [{"time_s": 0, "quantity": "sm_clock", "unit": "MHz", "value": mhz}])
        return run

    baseline = [clocked(timed(1000, day), 1800) for day in range(1, 6)]

    assert check(clocked(timed(1040, 9), 1730), baseline).status == "inconclusive"
    assert check(clocked(timed(1040, 9), 1800), baseline).status == "regression"


def test_what_moved_by_module():
    head = longer(gpu_run(), 0.25, "layers.0", "backward")
    extra = [kernel_row("layers.1", "recompute", "aten::add", 900, 7, kernel="add")]
    kept = head.kernels[head.kernels["phase"] != "optimizer"]
    head.kernels = pd.concat([kept, table("kernels", extra)], ignore_index=True)
    found = moved([gpu_run()], [head], "module")

    assert list(found["status"][:3]) == ["faster", "gone", "new"]  # 60, 40 and 7 ns
    assert set(found["status"][3:]) == {"same"}
    gone = row(found, module="(unattributed)", phase="optimizer")
    assert (gone["base_s"], gone["head_s"]) == (pytest.approx(40e-9), 0)
    assert (gone["base_kernels"], gone["head_kernels"]) == (1, 0)
    faster = row(found, module="layers.0", phase="backward")
    assert faster["change"] == pytest.approx(-0.75)
    assert (faster["base_flops"], faster["head_flops"]) == (2000, 2000)
    new = row(found, module="layers.1", phase="recompute")
    assert (new["base_s"], new["head_s"]) == (0, pytest.approx(7e-9))
    assert pd.isna(new["change"])


def test_what_moved_no_more_than_it_does_by_itself_is_the_same():
    # medians and deviations of 80, 80, 100, 120, 120: 100 and 20, so 2 x 1.4826 x 20 % = 59 %;
    # one traced step of the head: 3 x 1.4826 x 20 % x sqrt(1/5 + 1.57) = 118 %
    runs = [longer(gpu_run(), factor) for factor in (0.8, 0.8, 1, 1.2, 1.2)]

    def status(factor):
        return row(moved(runs, [longer(gpu_run(), factor)]), module="head", phase="forward")["status"]

    assert (status(2.15), status(2.25)) == ("same", "slower")


def test_nothing_moved_without_a_trace():
    run = gpu_run()
    del run.passes["trace"]

    assert len(moved([run], [gpu_run()], "op")) == 0


def test_launches_that_took_turns_are_judged_by_rank():
    base, head = [timed(1000, day) for day in range(1, 6)], [timed(1030, day) for day in range(1, 6)]
    found = check_interleaved(base, head)

    assert found.status == "regression"
    assert [verdict.metric for verdict in found.deciding] == ["step_s"]
    assert found.deciding[0].p == 1 / 252
    assert found.notes == []


def test_of_turns_that_differ_by_intent_the_difference_is_said():
    base, head = [timed(1000) for _ in range(5)], [timed(1000) for _ in range(5)]
    for run in head:
        run.workload["attention"] = "eager"

    found = check_interleaved(base, head)
    assert found.status == "pass"
    assert found.notes[0].startswith("They differ in workload (net-train-bfloat16-")


def test_turns_on_two_devices_are_refused():
    with pytest.raises(GpuprofError, match=r"in different places: uuid \(unknown against GPU-2\)"):
        check_interleaved([timed(1000)] * 5, [timed(1000, uuid="GPU-2")] * 5)


def test_heat_under_either_leaves_turns_inconclusive():
    found = check_interleaved([hot(timed(1000)) for _ in range(5)], [timed(1100) for _ in range(5)])

    assert found.status == "inconclusive"


def baseline_of(*runs):
    """A baseline of runs of five launches, each (step time, level, held, noise, more columns), as a store has it."""
    rows = [
        {"run": number, "date": "2026-01-01", "invalid": "", "step_s": step_s, "level": level, "held": held,
         "noise": noise, "began": False, "energy_j": None, "sm_clock_mhz": None, "flops": 1, "kernels": 1,
         "peak_bytes": 1, **more}
        for number, (step_s, level, held, noise, more) in enumerate(runs)
        for _ in range(5)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"energy_j": "float64", "sm_clock_mhz": "float64"})


def head_of(step_s, **more):
    row = {"invalid": "", "step_s": step_s, "energy_j": None, "sm_clock_mhz": None, "flops": 1, "kernels": 1}
    return pd.DataFrame([row | {"peak_bytes": 1} | more] * 5).astype({"energy_j": "float64", "sm_clock_mhz": "float64"})


@pytest.mark.parametrize(
    ("runs", "found"),
    [
        ([(100, 0, True, True, {})] * 6, None),
        # the newest two alone have it, and of two runs nothing is known
        ([(100, 0, True, True, {})] * 4 + [(100, 0, True, True, {"energy_j": 5.0})] * 2, ("regression", 10, 10)),
        # only one that was refused has it, and came back
        (
            [(100, 0, True, True, {})] * 4 + [(105, 0, False, True, {"energy_j": 5.0}), (100, 0, True, True, {})],
            None,
        ),
        # the refused one says of what noise it is, the newest what the level is
        (
            [(100, 0, True, True, {})] * 4
            + [(105, 0, False, True, {"energy_j": 5.0}), (100, 0, True, True, {"energy_j": 5.0})],
            ("regression", 5, 10),
        ),
    ],
)
def test_a_metric_that_some_runs_have_is_judged_by_those(runs, found):
    told = {verdict.metric: verdict for verdict in verdicts(baseline_of(*runs), head_of(100, energy_j=5.5), None)}

    assert told["step_s"].status == "pass"
    assert found is None if "energy_j" not in told else found == (
        told["energy_j"].status, told["energy_j"].n, told["energy_j"].known
    )  # fmt: skip


def test_a_clock_is_one_that_the_level_has():
    """Else the level of the step time were the one before, for it alone has the clock."""
    before, level = [(100, 0, True, True, {"sm_clock_mhz": 1700.0})] * 5, [(100, 1, True, True, {})]
    found = verdicts(baseline_of(*before, *level), head_of(104, sm_clock_mhz=1700.0), None)[0]

    assert (found.metric, found.status, found.n, found.known) == ("step_s", "regression", 5, 30)


def test_a_baseline_of_many_runs_is_told_fast():
    """Sixty runs of twenty launches: less than the pause that one notices, on a busy machine as well."""
    runs = [(100 + 0.1 * (at % 7), 0, True, True, {"sm_clock_mhz": 1700.0 + at % 5}) for at in range(240)]
    base, head = baseline_of(*runs), head_of(104, sm_clock_mhz=1700.0)
    base["run"] //= 4
    for name in METRICS:
        base[name], head[name] = base["step_s"], head["step_s"]
    start = time.process_time()
    found = verdicts(base, head, None)

    assert time.process_time() - start < 0.5
    assert [len(found), found[0].n, found[0].status] == [23, 1200, "regression"]


def generated(day, prefill=1.0, decode=1.0):
    """generation_run() on a day, its prefill and its decoding slower by these factors."""
    run = generation_run()
    run.environment["date"] = f"2026-01-{day:02}T00:00:00+00:00"
    for rows in (run.samples, run.generation):
        rows["time_s"] = rows["time_s"] * rows["phase"].map({"prefill": prefill, "decode": decode}).fillna(1.0)
    phases = run.samples[run.samples["phase"] != "step"].groupby("step")["time_s"].sum()
    whole = run.samples["phase"] == "step"
    run.samples.loc[whole, "time_s"] = phases.to_numpy()
    return run


OF_DAYS = [generated(day, wobble, wobble) for day, wobble in enumerate((1.0, 1.002, 0.998, 1.001, 0.999), start=1)]


def test_a_slower_prefill_is_a_regression_that_the_step_does_not_show():
    # 3 % of 400 ns are 0.9 % of a step of 1360
    found = check(generated(9, prefill=1.03), OF_DAYS)

    assert found.status == "regression"
    assert [verdict.metric for verdict in found.deciding] == [
        "step_s", "ttft_s", "tpot_s", "flops", "kernels", "peak_bytes"
    ]  # fmt: skip
    told = {verdict.metric: verdict for verdict in found.verdicts}
    assert [told[name].status for name in ("step_s", "ttft_s", "tpot_s")] == ["pass", "regression", "pass"]
    assert told["ttft_s"].change == pytest.approx(0.03)
    assert told["mfu_prefill_datasheet"].change == pytest.approx(1 / 1.03 - 1)
    assert told["mbu_datasheet"].change == pytest.approx(0)


def test_a_slower_decoding_is_one_of_the_time_per_token():
    told = {verdict.metric: verdict for verdict in check(generated(9, decode=1.05), OF_DAYS).verdicts}

    assert [told[name].status for name in ("ttft_s", "tpot_s")] == ["pass", "regression"]
    for name, change in (("tpot_s", 0.05), ("tpot_p99_s", 0.05), ("mbu_datasheet", 1 / 1.05 - 1)):
        assert told[name].change == pytest.approx(change)
        assert told[name].status == "regression"


def test_a_generation_held_against_files_from_before_its_phases_were_told_apart():
    old = []
    for run in OF_DAYS:
        run = replace(run, generation=table("generation", []), traffic=table("traffic", []))
        for name in ("samples", "ops", "kernels"):
            rows = getattr(run, name)
            setattr(run, name, rows.replace({"phase": {"prefill": "forward", "decode": "forward"}}))
        old.append(run)

    found = check(longer(generated(9), 1.5, "head", "decode"), old)

    assert found.status == "pass"
    assert "Not judged: time to first token, not known of the baseline." in found.notes
    parts = {(part["layer"], part["phase"]): part for part in found.moved["layer"].to_dict("records")}
    assert parts.keys() == {("head", "forward"), ("attn", "forward")}
    # 200 + 3 x 120 ns, and 180 ns more
    assert parts["head", "forward"]["base_s"] == pytest.approx(560e-9)
    assert parts["head", "forward"]["change_s"] == pytest.approx(180e-9)
    assert parts["head", "forward"]["head_flops"] == 15000


def test_a_training_is_not_held_against_a_generation():
    with pytest.raises(
        GpuprofError, match=r"^nothing to hold the head against: workload \(net-train-.* against net-gen"
    ):
        compare(gpu_run(), generation_run())
    found = compare(gpu_run(), generation_run(), allowed=["workload", "transformers"])
    assert "One is of mode train, the other of mode generate: their steps are not the same work." in found.notes
    assert "Not judged: time to first token, not known of the baseline." in found.notes


def test_two_generations_beside_one_another_by_phase():
    found = compare(generated(1), longer(generated(2), 1.5, "head", "decode"), ["phase"])

    parts = {part["phase"]: part for part in found.moved["phase"].to_dict("records")}
    assert (parts["decode"]["base_s"], parts["decode"]["change_s"]) == (pytest.approx(600e-9), pytest.approx(180e-9))
    assert parts["prefill"]["status"] == "same"
