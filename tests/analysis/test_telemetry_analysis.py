import pytest
from runs import gpu_run, kernel_row, ops_row

from gpuprof.analysis.telemetry import energy_per_step_j, flops_per_joule, summary, tensor_activity
from gpuprof.record import load
from gpuprof.schema import table

UNITS = {"sm_clock": "MHz", "temperature": "C", "event_reasons": "mask", "energy": "J", "gpm_tensor_active": "%"}


def readings(**quantities):
    """Telemetry from lists of (time, value)."""
    rows = [
        {
            "time_s": at,
            "quantity": name,
            "unit": UNITS.get(name, "s" if name.endswith("_time") else "W"),
            "value": value,
        }
        for name, values in quantities.items()
        for at, value in values
    ]
    return table("telemetry", sorted(rows, key=lambda row: row["time_s"]))


def watched_run(window_s=4.0, tensor=30.0):
    """Five warm-up and fifteen timed steps in four seconds, on ten SMs that do 100 bfloat16 FLOPs per clock each.

    At 1000 MHz that is 10^12 FLOP/s. A step is forward 2 x 10^10 FLOPs, backward 4 x 10^10 and 10^10 more in hardware.
    """
    run = gpu_run()
    run.settings |= {"warmup": 5, "steps": 15}
    run.device |= {
        "sm_count": 10,
        "flops_per_clock_per_sm": {"bfloat16": 100, "float8": 200, "float32": 10},
        "peaks": {"datasheet": {"bfloat16": 1.2e12, "float8": 2.4e12, "float32": 0.6e12}},
        "max_sm_clock_mhz": 1250,
        "power_limit_w": 700,
    }
    run.ops = table(
        "ops",
        [
            ops_row("head", "forward", "aten::mm.default", 2 * 10**10, full=4 * 10**10),
            ops_row("head", "backward", "aten::mm.default", 4 * 10**10, full=8 * 10**10, hardware=5 * 10**10),
        ],
    )
    run.kernels = table(
        "kernels",
        [kernel_row("head", phase, "aten::mm", at, 10**8) for phase, at in (("forward", 0), ("backward", 10**8))],
    )
    run.samples["time_s"] *= 0.2 / 480e-9
    run.telemetry = readings(
        sm_clock=[(0.0, 300.0), (1.0, 1000.0), (window_s, 1000.0)],
        power_instant=[(0.1, 500.0), (1.0, 610.0), (2.0, 650.0), (3.0, 630.0)],
        power_average=[(1.0, 100.0)],
        temperature=[(0.0, 40.0), (2.0, 61.0), (3.0, 60.0)],
        event_reasons=[(0.0, 0), (2.0, 4)],
        power_policy_time=[(0.0, 10.0), (window_s, 10.5)],
        energy=[(0.0, 5000.0), (window_s, 7400.0)],
        gpm_tensor_active=[(window_s, tensor)],
    )
    return run


def without(run, *quantities):
    run.telemetry = run.telemetry[~run.telemetry["quantity"].isin(quantities)]
    return run


def test_energy_per_step_is_the_growth_of_the_counter_over_all_steps_warm_up_included():
    assert energy_per_step_j(watched_run()) == pytest.approx(2400 / (5 + 15))


@pytest.mark.parametrize("window_s", [0.5, 0.999])
def test_no_energy_nor_activity_of_a_window_in_which_one_step_of_the_counters_matters(window_s):
    run = watched_run(window_s)
    run.telemetry = run.telemetry[run.telemetry["time_s"] <= window_s]

    assert energy_per_step_j(run) is None
    assert flops_per_joule(run) is None
    assert tensor_activity(run) is None


def test_a_second_is_long_enough():
    run = watched_run(1.0)
    run.telemetry = run.telemetry[run.telemetry["time_s"] <= 1]

    assert energy_per_step_j(run) == pytest.approx(120)


def test_no_energy_where_it_was_not_read_did_not_move_or_the_steps_are_unknown():
    assert energy_per_step_j(gpu_run()) is None
    assert energy_per_step_j(without(watched_run(), "energy")) is None
    still, unknown = watched_run(), watched_run()
    still.telemetry.loc[still.telemetry["quantity"] == "energy", "value"] = 5000.0
    assert energy_per_step_j(still) is None
    del unknown.settings["steps"]
    assert energy_per_step_j(unknown) is None
    assert tensor_activity(unknown) is None


def test_a_counter_that_was_reset_in_the_window_is_no_energy():
    run = watched_run()
    run.telemetry.loc[run.telemetry["quantity"] == "energy", "value"] = [5000.0, 100.0]

    assert energy_per_step_j(run) is None
    assert summary(run)["energy_j"] is None


def test_a_mig_slice_shares_energy_and_monitor_with_its_neighbours():
    run = watched_run()
    run.device["name"] = "NVIDIA H100 80GB HBM3 MIG 3g.40gb"

    assert energy_per_step_j(run) is None
    assert tensor_activity(run) is None


def test_flops_per_joule_are_model_flops_in_the_convention():
    run = watched_run()

    assert flops_per_joule(run) == pytest.approx(6 * 10**10 / 120)
    assert flops_per_joule(run, "full") == pytest.approx(12 * 10**10 / 120)
    del run.passes["count"]
    assert flops_per_joule(run) is None


def test_tensor_activity_against_counted_hardware_flops():
    activity = tensor_activity(watched_run())

    # 20 steps of 7 x 10^10 FLOPs in 4 s are 3.5 x 10^11 FLOP/s of 10^12; 30 % busy could do 3 x 10^11
    assert activity.busy == pytest.approx(0.30)
    assert activity.expected == pytest.approx(0.35)
    assert activity.ratio == pytest.approx(30 / 35)
    assert activity.counted_flops_per_s == pytest.approx(3.5e11)
    assert activity.implied_flops_per_s == pytest.approx(3.0e11)


def test_mixed_dtypes_are_each_asked_at_their_own_rate():
    run = watched_run()
    run.ops["dtype"] = ["bfloat16", "float8_e4m3fn"]

    # 2 x 10^10 at 10^12 and 5 x 10^10 at 2 x 10^12 FLOP/s: 45 ms a step, 20 of them in 4 s
    assert tensor_activity(run).expected == pytest.approx(20 * 0.045 / 4)


def test_products_outside_the_tensor_cores_ask_nothing_of_them():
    run = watched_run()
    run.ops["dtype"] = ["bfloat16", "float32"]
    assert tensor_activity(run).expected == pytest.approx(20 * 0.020 / 4)
    run.ops["dtype"] = ["float32", "float64"]
    assert tensor_activity(run) is None


def test_float32_as_tf32_runs_on_the_tensor_cores():
    run = watched_run()
    run.ops["dtype"] = ["bfloat16", "float32"]
    run.device["flops_per_clock_per_sm"]["tf32"] = 50
    run.environment["allow_tf32_matmul"] = True

    # 2 x 10^10 at 10^12 and 5 x 10^10 at 0.5 x 10^12 FLOP/s
    assert tensor_activity(run).expected == pytest.approx(20 * 0.120 / 4)


def test_operators_without_a_rule_do_not_hide_the_rest():
    run = watched_run()
    unknown = ops_row("head", "forward", "mylib::op.default", None, kind="")
    unknown |= {"flops_full": None, "flops_hardware": None, "vector_flops": None, "bytes": None}
    run.ops = table("ops", [*run.ops.to_dict(orient="records"), unknown])

    assert tensor_activity(run).expected == pytest.approx(0.35)


def test_no_tensor_activity_where_anything_is_missing():
    assert tensor_activity(gpu_run()) is None
    assert tensor_activity(without(watched_run(), "gpm_tensor_active")) is None
    assert tensor_activity(without(watched_run(), "sm_clock")) is None
    for change in ({"sm_count": None}, {"flops_per_clock_per_sm": {}}, {"flops_per_clock_per_sm": {"float16": 100}}):
        run = watched_run()
        run.device |= change
        assert tensor_activity(run) is None
    run = watched_run()
    del run.passes["count"]
    assert tensor_activity(run) is None


def test_summary():
    assert summary(watched_run()) == {
        "window_s": 4.0,
        "sm_clock_mhz": 1000.0,
        "max_sm_clock_mhz": 1250,
        "sm_clock_ratio": 0.8,
        "power_w": 620.0,  # between 610 and 630
        "power_max_w": 650.0,
        "power_limit_w": 700,
        "temperature_max_c": 61.0,
        "energy_j": 2400.0,
        "limits": ["power cap for 500.0 ms of 4.000 s"],
    }


def test_the_power_that_averages_is_taken_where_there_is_no_other():
    assert summary(without(watched_run(), "power_instant"))["power_w"] == 100.0


def test_summary_of_a_run_without_telemetry():
    known = summary(gpu_run())

    assert known.pop("limits") == []
    assert set(known.values()) == {None}


def test_a_saved_run_says_the_same(tmp_path):
    run = watched_run()
    again = load(run.save(tmp_path / "run.json"))

    assert summary(again) == summary(run)
    assert tensor_activity(again) == tensor_activity(run)
