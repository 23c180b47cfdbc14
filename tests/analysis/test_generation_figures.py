import pandas as pd
import pytest
from runs import generation_run, gpu_run, row, traffic_row

from gpuprof.analysis import generation as g
from gpuprof.analysis.modules import by_class, by_module
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.telemetry import of_phases
from gpuprof.analysis.totals import totals
from gpuprof.record import load
from gpuprof.schema import table

NS = 1e-9


def timed_run(steps):
    """Of steps, by launch lists of parts: (phase, sequences, positions, nanoseconds)."""
    run = generation_run()
    parts, samples = [], []
    for launch, of_launch in steps.items():
        for step, found in enumerate(of_launch):
            key = {"launch": launch, "step": step}
            samples.append(key | {"phase": "step", "time_s": sum(part[3] for part in found) * NS})
            for number, (phase, sequences, positions, took) in enumerate(found):
                parts.append(
                    key
                    | {
                        "part": number,
                        "phase": phase,
                        "samples": sequences,
                        "positions": positions,
                        "time_s": took * NS,
                    }
                )
    run.generation, run.samples = table("generation", parts), table("samples", samples)
    run.traffic = table("traffic", [])
    return run


def generated(prefill, *decode, sequences=2, prompt=4):
    return [("prefill", sequences, prompt, prefill), *(("decode", sequences, 1, took) for took in decode)]


def test_time_to_the_first_token_and_to_each_further_one():
    found = g.generation(generation_run())

    # of decode parts 270 288 300 306 320 330 340 352 374 ns: the 90th percentile is a fifth of the way from the 8th on
    assert found.ttft_s == pytest.approx(400 * NS)
    assert found.tpot_s == pytest.approx(320 * NS)
    assert found.tpot_p90_s == pytest.approx((352 + 0.2 * 22) * NS)
    assert found.tpot_p99_s == pytest.approx((352 + 0.92 * 22) * NS)
    assert (found.generations, found.sequences, found.prompt, found.new_tokens) == (1, 2, 4, 4)
    assert found.tokens_per_s == pytest.approx(2 * 4 / (1360 * NS))
    assert found.decode_tokens_per_s == pytest.approx(2 / (320 * NS))
    assert found.joules_per_token is None


def test_launches_are_medians_of_medians_and_percentiles_of_all_parts():
    run = timed_run(
        {
            0: [generated(100, 10, 10), generated(100, 10, 10), generated(100, 10, 10)],
            1: [generated(200, 20, 20)],
            2: [generated(600, 60, 60)],
        }
    )

    found = g.generation(run)

    assert (found.ttft_s, found.tpot_s) == (pytest.approx(200 * NS), pytest.approx(20 * NS))
    assert found.tpot_p90_s == pytest.approx(60 * NS)  # of six of 10, two of 20 and two of 60
    assert found.tokens_per_s == pytest.approx(6 / (240 * NS))


def test_the_prefill_ends_where_its_last_piece_does_and_an_encoder_is_part_of_the_wait():
    run = timed_run({0: [[("encode", 2, 9, 5), ("prefill", 2, 3, 30), ("prefill", 2, 1, 20), *generated(0, 7, 7)[1:]]]})

    found, parts = g.generation(run), g.parts(run)

    assert found.ttft_s == pytest.approx(55 * NS)
    assert (found.prompt, found.new_tokens, found.sequences) == (4, 3, 2)
    assert parts["phase"].tolist() == ["encode", "prefill", "prefill", "decode", "decode"]
    assert parts["positions_before"].tolist() == [pd.NA, 0, 3, 4, 5]


def test_a_step_that_generates_twice_has_two_first_tokens():
    run = timed_run({0: [[*generated(40, 4, 4), *generated(60, 6, 6)]]})

    found = g.generation(run)

    assert (found.generations, found.sequences, found.new_tokens) == (2, 2, 3)
    assert found.ttft_s == pytest.approx(50 * NS)
    assert found.tpot_s == pytest.approx(5 * NS)
    assert found.tokens_per_s == pytest.approx(12 / (120 * NS))
    assert g.parts(run)["positions_before"].tolist() == [0, 4, 5, 0, 4, 5]


def test_steps_of_several_lengths_have_no_number_of_tokens_but_a_rate_each():
    run = timed_run({0: [generated(50, 10, 10), generated(50, 10), generated(50, 10, 10, 10)]})

    found = g.generation(run)

    assert (found.new_tokens, found.sequences, found.tpot_s) == (None, 2, pytest.approx(10 * NS))
    # 6, 4 and 8 tokens in 70, 60 and 80 ns: a token takes 11.67, 15 and 10
    assert found.tokens_per_s == pytest.approx(6 / (70 * NS))


def test_a_decode_that_verifies_several_positions_makes_an_unknown_number_of_tokens():
    run = timed_run({0: [[("prefill", 2, 4, 40), ("decode", 2, 3, 10)]]})

    found = g.generation(run)

    assert (found.ttft_s, found.sequences) == (pytest.approx(40 * NS), 2)
    assert (found.new_tokens, found.tpot_s, found.tokens_per_s, found.decode_tokens_per_s) == (None,) * 4


@pytest.mark.parametrize("missing", ["samples", "positions"])
def test_inputs_that_tell_no_size_leave_times_but_no_rate(missing):
    run = generation_run()
    run.generation[missing] = pd.array([None] * len(run.generation), dtype="Int64")

    found = g.generation(run)

    assert found.ttft_s == pytest.approx(400 * NS)
    assert found.tokens_per_s is found.decode_tokens_per_s is None
    assert (found.tpot_s is None) == (missing == "positions")


def test_a_single_token_has_no_time_per_further_one():
    run = timed_run({0: [generated(40)]})

    found = g.generation(run)

    assert (found.new_tokens, found.ttft_s, found.tpot_s, found.tpot_p90_s) == (1, pytest.approx(40 * NS), None, None)


def test_prefills_without_any_decode_do_not_say_which_of_them_gives_the_first_token():
    """As of a loop without a cache, which passes all tokens again for each."""
    run = timed_run({0: [[("prefill", 2, 4, 40), ("prefill", 2, 5, 50), ("prefill", 2, 6, 60)]]})

    found = g.generation(run)

    assert (found.ttft_s, found.prompt, found.new_tokens, found.tokens_per_s) == (None,) * 4
    assert found.sequences == 2


def test_what_was_not_timed_is_as_long_as_it_was_asked_to_be():
    run = generation_run()
    run.generation, run.samples = table("generation", []), table("samples", [])
    for name in ("time", "trace"):
        del run.passes[name]

    found = g.generation(run)

    assert (found.sequences, found.prompt, found.new_tokens, found.generations) == (2, 4, 4, None)
    assert found.ttft_s is found.tpot_s is found.tokens_per_s is None
    parts = g.parts(run)
    assert parts["bytes"].tolist() == [2120, 1500, 1580, 1660]
    assert parts[["positions_before", "time_s", "mbu"]].isna().all(axis=None)


def test_of_a_run_that_is_no_generation_there_is_nothing():
    run = gpu_run()

    assert not g.is_generation(run)
    assert g.generation(run) is None
    assert g.moved(run).empty
    assert g.parts(run).empty
    assert g.mbu(run) == g.kernel_mbu(run) == {}
    assert g.unknown_bytes(run) == g.withheld_of_bytes(run) == g.untold_parts(run) == ""


def test_bytes_that_must_move_by_phase_part_and_module_add_up():
    run = generation_run()

    moved = g.moved(run)

    assert list(moved) == g.MOVED_COLUMNS
    assert moved.loc["prefill"].tolist() == [1000, 0, 320, 800, 2120]
    assert moved.loc["decode"].tolist() == [3 * 900, 320 + 400 + 480, 3 * 80, 3 * 200, 4740]
    assert g.parts(run)["bytes"].tolist() == [2120, 1500, 1580, 1660]
    modules = g.moved_by_module(run, "decode")
    assert modules.loc[""].tolist() == moved.loc["decode"].tolist()
    assert (modules.loc["attn"] + modules.loc["head"]).tolist() == moved.loc["decode"].tolist()
    assert modules.loc["attn"].tolist() == [1080, 1200, 240, 240, 2760]


def test_bytes_beyond_64_bits_stay_exact():
    run = generation_run()
    run.traffic = table("traffic", [traffic_row("*", "decode", "weights", 2**63 + number, number) for number in (1, 2)])
    run.passes["count"].facts = {}  # without a cache, whose bytes these are not

    assert g.moved(run).loc["decode", "bytes"] == 2**64 + 3


def test_mbu_is_over_the_step_and_kernel_mbu_over_the_kernels():
    run = generation_run()

    # decode: 4740 bytes in 960 ns of the step and 600 ns of kernels, at 10 and 8 bytes per ns
    assert g.bandwidths(run) == {"datasheet": 10e9, "measured": 8e9}
    assert g.mbu(run) == {"datasheet": pytest.approx(4740 / 9600), "measured": pytest.approx(4740 / 7680)}
    assert g.mbu(run, "prefill")["datasheet"] == pytest.approx(2120 / 4000)
    assert g.kernel_mbu(run)["datasheet"] == pytest.approx(4740 / 6000)
    assert g.mbu(run, "encode") == {}
    # 1500, 1580 and 1660 bytes in 300, 320 and 340 ns
    assert g.parts(run)["mbu"].tolist() == pytest.approx([0.53, 0.5, 0.49375, 1660 / 3400])


def test_a_measured_bandwidth_stands_in_for_the_datasheets():
    run = generation_run()
    run.device["memory_bandwidth"] = None

    assert g.bandwidth(run) == ("measured", 8e9)
    assert row(by_phase(run), phase="decode")["mbu"] == pytest.approx(4740 / 7680)


def test_without_a_bandwidth_there_are_bytes_and_rates_but_no_mbu():
    run = generation_run()
    run.device |= {"memory_bandwidth": None, "measured_bandwidth": None}

    decode = row(by_phase(run), phase="decode")

    assert g.mbu(run) == {}
    assert decode["bytes_per_s"] == pytest.approx(4740 / (960 * NS))
    assert pd.isna(decode["kernel_mbu"])
    assert pd.isna(decode["mbu"])
    assert by_module(run)["kernel_mbu_decode"].isna().all()
    assert g.parts(run)["mbu"].isna().all()


def test_by_phase_has_both_bounds_over_step_and_kernels():
    prefill, decode = (row(by_phase(generation_run()), phase=phase) for phase in ("prefill", "decode"))

    assert (prefill["flops"], decode["flops"]) == (20000, 4800)
    assert (prefill["mfu"], decode["mfu"]) == (pytest.approx(0.5), pytest.approx(0.05))
    assert (prefill["kernel_mfu"], decode["kernel_mfu"]) == (pytest.approx(200 / 300), pytest.approx(48 / 600))
    assert (prefill["mbu"], decode["mbu"]) == (pytest.approx(0.53), pytest.approx(0.49375))
    assert (prefill["kernel_mbu"], decode["kernel_mbu"]) == (pytest.approx(212 / 300), pytest.approx(474 / 600))
    assert decode["flops_per_s"] == pytest.approx(4800 / (960 * NS))
    assert decode["kernel_bytes_per_s"] == pytest.approx(4740 / (600 * NS))
    sizes = ("moved_bytes", "weights_bytes", "cache_read_bytes", "cache_written_bytes", "activations_bytes", "bytes")
    assert [decode[name] for name in sizes] == [4740, 2700, 1200, 240, 600, 20]  # bytes: the operators' own


def test_by_module_has_both_phases_beside_the_forward():
    table_ = by_module(generation_run())

    attn = row(table_, module="attn")
    assert (attn["flops_prefill"], attn["flops_decode"], attn["flops_forward"]) == (8000, 1800, 9800)
    assert attn["time_forward_s"] == pytest.approx(attn["time_prefill_s"] + attn["time_decode_s"])
    assert (attn["time_prefill_s"], attn["time_decode_s"]) == (pytest.approx(100 * NS), pytest.approx(240 * NS))
    assert (attn["kernel_mfu_prefill"], attn["kernel_mfu_decode"]) == (pytest.approx(80 / 100), pytest.approx(18 / 240))
    # two fifths of weights and activations, all of the cache: 1120 of 2120 bytes, less 0.6 of what is not cache
    assert (attn["bytes_prefill"], attn["bytes_decode"]) == (1000 * 2 // 5 + 320 + 320, 1080 + 1440 + 240)
    assert (attn["kernel_mbu_prefill"], attn["kernel_mbu_decode"]) == (
        pytest.approx(104 / 100),
        pytest.approx(276 / 240),
    )
    root = row(table_, module="")
    assert (root["bytes_decode"], root["kernel_mbu_decode"]) == (4740, pytest.approx(474 / 600))
    assert "flops_encode" not in table_
    assert list(by_module(gpu_run())) == list(table_)[:26]


def test_by_class_rates_are_over_the_sums():
    linear = row(by_class(generation_run()), **{"class": "Linear"})

    assert (linear["bytes_decode"], linear["flops_prefill"]) == (1980, 12000)
    assert linear["kernel_mbu_decode"] == pytest.approx(198 / 360)
    assert linear["kernel_mfu_prefill"] == pytest.approx(120 / 200)


def test_tokens_per_s_are_new_ones_also_in_a_file_that_knows_no_parts():
    run = generation_run()
    assert totals(run)["tokens_per_s"] == pytest.approx(8 / (1360 * NS))

    for name in ("ops", "kernels", "samples"):
        rows = getattr(run, name)
        rows["phase"] = rows["phase"].replace({"prefill": "forward", "decode": "forward"})
    run.generation, run.traffic = table("generation", []), table("traffic", [])

    assert totals(run)["tokens_per_s"] == pytest.approx(8 / (1360 * NS))
    assert g.generation(run) is None
    assert "profile again" in g.untold_parts(run)
    assert "mbu" not in by_phase(run)
    assert "kernel_mbu_decode" not in by_module(run)


@pytest.mark.parametrize("unknown", [["another cache"], ["another cache", "a kernel of its own"]])
def test_bytes_of_which_not_all_are_known_are_none(unknown):
    run = generation_run()
    run.passes["count"].facts["traffic_unknown"] = unknown

    assert g.moved(run).empty
    assert g.mbu(run) == g.kernel_mbu(run) == {}
    assert g.moved_by_module(run, "decode").empty
    assert g.unknown_bytes(run).startswith("unknown: another cache")
    assert ("1 more" in g.unknown_bytes(run)) == (len(unknown) == 2)
    assert by_module(run)[["bytes_decode", "kernel_mbu_decode"]].isna().all(axis=None)
    assert g.parts(run)["bytes"].isna().all()
    assert g.generation(run).tpot_s == pytest.approx(320 * NS)
    assert row(by_phase(run), phase="prefill")["mfu"] == pytest.approx(0.5)


def test_other_parts_when_timed_than_when_counted_withhold_the_mbu():
    run = generation_run()
    run.generation = run.generation[(run.generation["step"] != 1) | (run.generation["part"] != 3)]

    assert g.withheld_of_bytes(run) == (
        "withheld: the counted step has 1 part of prefill, 3 parts of decode, "
        "a timed one 1 part of prefill, 2 parts of decode"
    )
    assert g.mbu(run) == g.kernel_mbu(run) == {}
    assert g.moved(run).loc["decode", "bytes"] == 4740  # of the counted step they are what they are
    assert by_phase(run)[["mbu", "kernel_mbu"]].isna().all(axis=None)
    assert by_module(run)["kernel_mbu_decode"].isna().all()
    assert g.parts(run)["mbu"].isna().all()


def test_what_withholds_mfu_withholds_mbu():
    run = generation_run()
    run.passes["count"].facts["inputs"] = "2x4"
    run.passes["time"].facts["inputs"] = {"2x4": 2, "2x9": 1}

    assert g.withheld_of_bytes(run).startswith("withheld: the inputs of the step vary")
    assert g.mbu(run) == {}
    assert by_phase(run)[["mfu", "mbu", "kernel_mfu", "kernel_mbu"]].isna().all(axis=None)


def test_times_that_the_trace_books_wrongly_withhold_the_mbu_of_kernels_alone():
    run = generation_run()
    run.ops.loc[run.ops["phase"] == "prefill", ["flops_causal", "flops_full", "flops_hardware"]] = 10**6
    run.samples["time_s"] *= 100

    assert g.withheld_of_bytes(run) == ""
    assert "would have run at" in g.withheld_of_kernel_bytes(run)
    assert g.mbu(run)["datasheet"] == pytest.approx(4740 / 9600 / 100)
    assert g.kernel_mbu(run) == {}
    assert by_module(run)["kernel_mbu_decode"].isna().all()


def test_a_trace_without_times_or_counts_has_no_mbu():
    run = generation_run()
    run.traffic, run.ops = table("traffic", []), table("ops", [])
    del run.passes["count"]

    assert g.withheld_of_bytes(run) == ""
    assert g.mbu(run) == {}
    assert g.generation(run).ttft_s == pytest.approx(400 * NS)
    assert "mbu" not in by_phase(run)


def test_a_cache_grows_by_what_is_held_and_not_by_what_is_written():
    run = generation_run()
    assert (g.generation(run).cache_bytes, g.generation(run).cache_bytes_per_token) == (560, 40)

    run.passes["count"].facts["cache"]["bytes"] = [500, 500, 500, 500]  # of states, written whole
    assert (g.generation(run).cache_bytes, g.generation(run).cache_bytes_per_token) == (500, 0)

    run.passes["count"].facts["cache"]["bytes"] = [500, 501, 502, 503]  # what no two sequences share evenly
    assert g.generation(run).cache_bytes_per_token is None


def watched_run():
    """Two steps: a prefill of a second, and decoding for two in twenty parts; readings every 0.1 s."""
    run = generation_run()
    run.settings |= {"warmup": 0, "steps": 2}
    parts = []
    for step in range(2):
        begin = 0.5 + 3 * step
        took = [("prefill", 4, 1.0), *[("decode", 1, 0.1)] * 20]
        for number, (phase, positions, time_s) in enumerate(took):
            row = {"step": step, "part": number, "phase": phase, "samples": 2, "positions": positions}
            parts.append(row | {"start_s": begin, "time_s": time_s})
            begin += time_s
    run.generation = table("generation", parts)
    run.samples = table("samples", [{"step": step, "phase": "step", "time_s": 3.0} for step in range(2)])
    rows = [{"time_s": 0.0, "quantity": "energy", "unit": "J", "value": 1000.0}]
    for tick in range(66):
        at = tick / 10 + 0.05
        phase = "none" if not 0.5 <= at < 6.5 else "prefill" if (at - 0.5) % 3 < 1 else "decode"
        clock, power = {"none": (300, 90), "prefill": (1500, 700), "decode": (1900, 400)}[phase]
        rows += [
            {"time_s": at, "quantity": "sm_clock", "unit": "MHz", "value": clock},
            {"time_s": at, "quantity": "power_instant", "unit": "W", "value": power},
            {"time_s": at, "quantity": "power_average", "unit": "W", "value": 1.0},
        ]
    rows.append({"time_s": 6.6, "quantity": "energy", "unit": "J", "value": 4200.0})
    run.telemetry = table("telemetry", rows)
    return run


def test_joules_per_token_are_those_of_the_window_over_all_new_tokens_in_it():
    # two steps of 2 x 21 tokens
    assert g.generation(watched_run()).joules_per_token == pytest.approx(3200 / 84)


def test_a_window_too_short_for_energy_has_no_joules_per_token():
    run = watched_run()
    run.telemetry["time_s"] *= 0.1

    assert g.generation(run).joules_per_token is None


def test_clock_and_power_of_a_phase_are_those_read_within_it():
    found = of_phases(watched_run())

    # a second has ten readings, and the first is as old as what was before
    assert found.to_dict("records") == [
        {"phase": "prefill", "readings": 18, "sm_clock_mhz": 1500.0, "power_w": 700.0},
        {"phase": "decode", "readings": 38, "sm_clock_mhz": 1900.0, "power_w": 400.0},
    ]


def test_a_phase_with_few_readings_has_no_clock_of_its_own():
    run = watched_run()
    run.generation.loc[run.generation["phase"] == "prefill", "time_s"] = 0.25

    assert of_phases(run)["phase"].tolist() == ["decode"]

    run.generation["start_s"] = float("nan")  # no window was open
    assert of_phases(run).empty
    assert of_phases(gpu_run()).empty


def test_readings_of_one_launch_are_not_anothers():
    run = watched_run()
    run.generation["launch"] = 1

    assert of_phases(run).empty


def test_a_saved_generation_says_the_same(tmp_path):
    run = generation_run()
    run.save(tmp_path / "run.json")
    again = load(tmp_path / "run.json")

    assert g.generation(again) == g.generation(run)
    pd.testing.assert_frame_equal(g.parts(again), g.parts(run))
    pd.testing.assert_frame_equal(by_module(again), by_module(run))
