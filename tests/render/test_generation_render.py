import csv
import io
import json

import pytest
from runs import generation_run, gpu_run, traffic_row
from typer.testing import CliRunner

import gpuprof
from gpuprof.analysis import generation as g
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.ranks import rank_rows
from gpuprof.cli import app
from gpuprof.errors import GpuprofError
from gpuprof.job import assemble
from gpuprof.job_part import part
from gpuprof.render import render
from gpuprof.render.view import View
from gpuprof.schema import table


def lines_of(text):
    """The lines of each label of the header, which follows the verdict, joined."""
    found, label = {}, ""
    for line in text.split("\n\n")[1].splitlines():
        label = line[:13].strip() or label
        found.setdefault(label, []).append(line[13:].strip())
    return {name: "\n".join(lines) for name, lines in found.items()}


def csv_rows(run, by):
    return list(csv.DictReader(io.StringIO(render(run, "csv", View(by=by)))))


def test_the_header_has_a_line_for_each_phase_and_the_cache():
    lines = lines_of(render(generation_run(), "tree", View(width=200)))

    assert lines["Step"].endswith("prefill 400.0 ns, decode 960.0 ns; 5.882 M tokens/s")
    assert lines["Prefill"] == (
        "TTFT 400.0 ns; 4 positions x 2 sequences; 20.00 KFLOPs, 50.00 GFLOP/s, MFU 50.0 % of datasheet"
    )
    assert lines["Decode"] == (
        "TPOT 320.0 ns median, p90 356.4 ns, p99 372.2 ns; 6.250 M tokens/s\n"
        "1.543 KiB must move per step of decoding: weights 57.0 %, cache 30.4 %, activations 12.7 %\n"
        "MBU 49.4 % of datasheet (10.00 GB/s), 61.7 % of measured (8.000 GB/s)"
    )
    assert lines["Cache"] == "560 B at the end, 40 B more per token and sequence (DynamicCache)"
    assert "model FLOPs over the step, prefill and decode mixed (apart above)\nMFU 18.2 %" in lines["Achieved"]
    assert "Encode" not in lines


def test_no_other_run_has_them():
    text = render(gpu_run(), "tree", View(width=200))

    assert not {"Prefill", "Decode", "Cache", "Encode"} & lines_of(text).keys()
    assert "mixed" not in text
    assert "samples/s" in text


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_tree_of_a_generation_keeps_to_its_width_and_says_what_bounds_each_phase(width):
    text = render(generation_run(), "tree", View(width=width))

    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    head = next(line for line in text.splitlines() if line.startswith("module"))
    assert head.split()[-4:] == ["MFU", "%", "decode", "MBU %"] or "decode  MBU %" in head
    above = text.splitlines()[text.splitlines().index(head) - 1]
    assert above.split() == ["kernel", "kernel"]
    root = next(line for line in text.splitlines() if line.startswith("Net "))
    assert root.split()[-3:] == ["600", "ns", "79.0"]
    assert "300 ns   66.7" in root


def test_the_tree_has_bytes_where_there_is_room():
    wide, narrow = (render(generation_run(), "tree", View(width=width)) for width in (120, 60))

    assert "  MFU %     bytes decode  MBU %" in wide
    assert "2.695 KiB" in wide
    assert "bytes" not in narrow.split("\n\n")[1]
    assert "Bytes are those that must move in the decode" in wide


def test_colour_follows_the_time_that_each_bound_loses():
    text = render(generation_run(), "tree", View(width=200, color=True))

    # of the prefill attn loses 20 of 100 ns of kernels, of 100 lost in all; of the decode it is ahead of its bound
    attn = next(line for line in text.splitlines() if "attn" in line)
    assert "\x1b[1;31m  80.0\x1b[0m" in attn
    assert "\x1b[32m 115.0\x1b[0m" in attn


def test_equal_layers_fold_with_rates_of_their_mean_times():
    run = generation_run()
    for name in ("tree", "ops", "kernels", "traffic"):
        rows = getattr(run, name)
        rows["module"] = rows["module"].replace({"attn": "0", "head": "1"})
    run.tree["class"] = ["Net", "Block", "Block"]
    run.tree["params"] = [50, 25, 25]
    run.tree["trainable_params"] = run.tree["params"]
    for name in ("flops_causal", "flops_full", "flops_hardware", "calls"):
        run.ops[name] = [10000, 10000, 2400, 2400] if name != "calls" else [1, 1, 3, 3]
    of_modules = [
        traffic_row(module, phase, "weights", nbytes)
        for module in ("0", "1")
        for phase, nbytes in (("prefill", 1000), ("decode", 2400))
    ]
    run.traffic = table("traffic", [*run.traffic[run.traffic["module"] == "*"].to_dict("records"), *of_modules])

    text = render(run, "tree", View(width=160))

    folded = next(line for line in text.splitlines() if "2 x Block" in line)
    # 10,000 FLOPs in 100 and 200 ns at 100 a ns; 2,400 bytes in 240 and 360 ns at 10 a ns
    assert folded.split()[-10:] == ["150", "ns", "±33%", "66.7", "2.344", "KiB", "300", "ns", "±20%", "80.0"]


def test_a_count_has_bytes_and_no_columns_of_times():
    run = generation_run()
    for name in ("generation", "samples", "kernels"):
        setattr(run, name, table(name, []))
    for name in ("time", "trace", "memory"):
        del run.passes[name]

    text = render(run, "tree", View(width=120))

    assert lines_of(text)["Prefill"] == "4 positions x 2 sequences; 20.00 KFLOPs"
    assert lines_of(text)["Decode"].startswith("1.543 KiB must move per step of decoding")
    assert "MBU" not in text
    assert "4.629 KiB" in next(line for line in text.splitlines() if line.startswith("Net "))
    assert "MBU" not in render(run, "table", View(by="phase"))


def test_by_phase_keeps_time_and_both_bounds_at_80_columns():
    text = render(generation_run(), "table", View(by="phase", width=80))

    assert text.splitlines()[0].split()[:4] == ["phase", "time_s", "mfu", "mbu"]
    assert text.splitlines()[2].startswith("decode   960.0 ns   5.0 %  49.4 %")
    assert "MBU is bytes that must move over time and datasheet bandwidth, 10.00 GB/s." in text


def test_machines_get_every_figure_of_a_phase():
    decode = csv_rows(generation_run(), "phase")[1]

    assert (decode["phase"], decode["moved_bytes"], decode["weights_bytes"]) == ("decode", "4740", "2700")
    assert (decode["cache_read_bytes"], decode["cache_written_bytes"], decode["activations_bytes"]) == (
        "1200",
        "240",
        "600",
    )
    assert float(decode["mbu"]) == pytest.approx(0.49375)


def test_machines_get_columns_of_each_phase_by_module():
    rows = csv_rows(generation_run(), "module")

    assert (rows[0]["flops_prefill"], rows[0]["bytes_decode"]) == ("20000", "4740")
    assert float(rows[0]["kernel_mbu_decode"]) == pytest.approx(0.79)
    assert rows[-1]["kernel_mbu_decode"] == ""
    assert "kernel_mbu_decode" not in csv_rows(gpu_run(), "module")[0]


def test_a_share_above_the_bandwidth_is_explained():
    assert "Above 100 % the bytes fit the device's own caches" in render(generation_run(), "table", View(by="module"))
    assert "Above 100 %" not in render(generation_run(), "table", View(by="phase"))


def long_run(tokens=100):
    run = generation_run()
    whole = [row for row in run.traffic.to_dict("records") if row["module"] == "*" and row["part"] == 0]
    rows = [
        {"step": 0, "part": part, "phase": "decode" if part else "prefill", "samples": 2,
         "positions": 1 if part else 4, "time_s": 1e-6}
        for part in range(tokens)
    ]  # fmt: skip
    run.generation = table("generation", rows)
    run.traffic = table(
        "traffic", [*whole, *(traffic_row("*", "decode", "weights", 1000, part) for part in range(1, tokens))]
    )
    return run


def test_many_parts_are_thinned_for_people_and_all_there_for_machines():
    run = long_run()
    text = render(run, "table", View(by="part", width=120))

    shown = [line.split()[0] for line in text.splitlines()[1:17]]
    assert shown == ["0", "1", "8", "15", "22", "29", "36", "43", "50", "57", "64", "71", "78", "85", "92", "99"]
    assert text.splitlines()[16].split()[:4] == ["99", "decode", "102", "1.000"]
    assert "84 parts between these are left out: --format csv has all." in text
    assert len(csv_rows(run, "part")) == len(json.loads(render(run, "json", View(by="part")))) == 100
    assert "left out" not in render(long_run(16), "table", View(by="part", width=120))
    assert len(render(run, "table", View(by="part", top=30)).splitlines()) > 30


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"traffic_unknown": ["the step runs another model"]}, "MBU unknown: the step runs another model"),
        ({}, "MBU unknown: the bytes that must move were not counted"),
    ],
)
def test_bytes_that_are_not_known_are_said_where_the_mbu_would_be(facts, said):
    run = generation_run()
    run.passes["count"].facts |= facts
    run.traffic = table("traffic", [])

    assert lines_of(render(run, "tree", View(width=200)))["Decode"].endswith(said)
    for by in ("phase", "part", "module"):
        assert f"{said}.\n" in render(run, "table", View(by=by, width=200))
    assert csv_rows(run, "part")[0]["withheld"] == said.removeprefix("MBU ")
    assert lines_of(render(run, "tree", View(width=200)))["Prefill"].endswith("MFU 50.0 % of datasheet")


def test_one_reason_that_withholds_all_is_said_once():
    run = generation_run()
    run.passes["count"].facts["inputs"] = "2x4"
    run.passes["time"].facts["inputs"] = {"2x9": 3}

    lines = lines_of(render(run, "tree", View(width=200)))
    text = render(run, "table", View(by="phase", width=200))

    assert lines["Prefill"].endswith("20.00 KFLOPs, MFU withheld as below")
    assert lines["Decode"].endswith("MBU withheld as below")
    assert lines["Achieved"].startswith("FLOP/s and MFU withheld: the inputs of the step vary")
    assert text.count("withheld") == 1
    assert "FLOP/s, MFU and MBU withheld: the inputs" in text


def test_without_a_bandwidth_it_is_said_how_to_get_one():
    run = generation_run()
    run.device |= {"memory_bandwidth": None, "measured_bandwidth": None}
    why = "no bandwidth of this device is known ('gpuprof ceilings' measures it)"

    assert lines_of(render(run, "tree", View(width=200)))["Decode"].endswith(f"no MBU: {why}")
    assert f"No MBU: {why}." in render(run, "table", View(by="part", width=200))


def test_experts_whose_tokens_are_not_known_make_the_bytes_an_upper_bound():
    run = generation_run()
    run.passes["count"].facts["weights_at_most"] = ["attn"]

    assert "at most 1.543 KiB must move" in lines_of(render(run, "tree", View(width=200)))["Decode"]


def test_telemetry_says_joules_per_token_and_the_clock_of_each_phase():
    run = generation_run()
    run.settings |= {"warmup": 0, "steps": 3}
    run.samples["time_s"] *= 1e6
    run.generation["time_s"] *= 1e6
    run.generation["start_s"] = run.generation["time_s"].cumsum() - run.generation["time_s"]
    readings = [(number / 50, 1000.0 + number, 300.0) for number in range(205)]
    run.telemetry = table(
        "telemetry",
        [
            {"time_s": at, "quantity": quantity, "unit": unit, "value": value}
            for at, clock, power in readings
            for quantity, unit, value in (("sm_clock", "MHz", clock), ("power_instant", "W", power))
        ]
        + [
            {"time_s": at, "quantity": "energy", "unit": "J", "value": joules}
            for at, joules in ((0.0, 5.0), (4.08, 53.0))
        ],
    )

    line = lines_of(render(run, "tree", View(width=200)))["Telemetry"]

    assert "16 J per step, 2 J per new token" in line  # 48 J for 3 steps of 8 tokens
    assert "\nprefill: SM clock 1,0" in line
    assert "300 W, medians of" in line


def test_a_file_that_knows_no_parts_says_to_profile_again(tmp_path):
    run = generation_run()
    for name in ("ops", "kernels", "samples", "memory"):
        rows = getattr(run, name)
        rows["phase"] = rows["phase"].replace({"prefill": "forward", "decode": "forward"})
    run.generation, run.traffic = table("generation", []), table("traffic", [])
    text = " ".join(render(run, "tree", View(width=120)).split())

    assert "No time to first token, time per token and MBU: this file does not tell prefill and decode apart" in text
    assert "5.882 M tokens/s" in text
    run.save(tmp_path / "old.json")
    result = CliRunner().invoke(app, ["show", str(tmp_path / "old.json"), "--by", "part"])
    assert isinstance(result.exception, GpuprofError)
    assert "profile again" in str(result.exception)


def test_parts_of_a_training_are_refused_in_one_line():
    with pytest.raises(GpuprofError, match="those of a generation, --mode generate"):
        render(gpu_run(), "table", View(by="part"))


def test_a_llama_on_this_cpu(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)  # fmt: skip
    run = gpuprof.profile(
        str(tmp_path), mode="generate", batch_size=2, prompt_len=6, new_tokens=4, steps=3, warmup=1,
        passes=["count", "time", "trace"],
    )  # fmt: skip
    found, moved, parts = g.generation(run), g.moved(run), g.parts(run)

    # a position of a sequence: keys and values of 2 layers, 2 heads of 8, in float32
    position = 2 * 2 * 2 * 8 * 4
    assert (found.sequences, found.prompt, found.new_tokens) == (2, 6, 4)
    assert (found.cache_bytes_per_token, found.cache_bytes) == (position, 2 * 9 * position)
    assert moved.loc["prefill", ["cache_read", "cache_written"]].tolist() == [0, 2 * 6 * position]
    assert moved.loc["decode", ["cache_read", "cache_written"]].tolist() == [2 * (6 + 7 + 8) * position, 6 * position]
    # all weights but the embedding, of which a step reads the row of each sequence; and 4 frequencies of the positions
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert moved.loc["decode", "weights"] == 3 * 4 * (2 * layer + 32 + 128 * 32 + 2 * 32 + 4)
    assert parts["positions_before"].tolist() == [0, 6, 7, 8]
    assert parts["bytes"].sum() == moved["bytes"].sum()
    steps = run.samples.pivot(index="step", columns="phase", values="time_s")
    decode = steps.loc[steps["step"] == steps["step"].median(), "decode"].item()  # of the step of median time
    rate = run.device["measured_bandwidth"]
    assert g.mbu(run) == {"measured": pytest.approx(moved.loc["decode", "bytes"] / decode / rate)}
    times = run.generation[run.generation["phase"] == "decode"]["time_s"]
    assert len(times) == 9
    assert found.tpot_s == times.median()
    assert found.ttft_s == run.generation[run.generation["phase"] == "prefill"]["time_s"].median()
    assert found.tokens_per_s == pytest.approx(8 / run.samples[run.samples["phase"] == "step"]["time_s"].median())
    rows = run.modules().set_index("module")
    assert rows.loc["", "bytes_decode"] == moved.loc["decode", "bytes"]
    assert rows.loc["", "flops_prefill"] + rows.loc["", "flops_decode"] == rows.loc["", "flops_forward"]
    assert (rows["time_prefill_s"] + rows["time_decode_s"]).tolist() == pytest.approx(rows["time_forward_s"].tolist())
    assert "(DynamicCache)" in render(run, "tree", View(width=120))


def test_a_count_by_part_has_the_columns_that_it_can_fill():
    run = generation_run()
    run.generation, run.samples = table("generation", []), table("samples", [])
    del run.passes["time"], run.passes["trace"]

    assert render(run, "table", View(by="part", width=80)).split("\n")[:3] == [
        "part  phase        bytes",
        "   0  prefill  2.070 KiB",
        "   1  decode   1.465 KiB",
    ]
    assert csv_rows(run, "part")[1] == {
        "part": "1", "phase": "decode", "positions_before": "", "time_s": "", "mbu": "", "bytes": "1500",
        "time_q1_s": "", "time_q3_s": "",
    }  # fmt: skip


def test_a_job_moves_the_bytes_of_all_its_ranks_at_the_pace_of_the_slowest():
    ranks = []
    for rank, slow in enumerate((1.0, 1.5)):
        run = generation_run()
        run.workload |= {"world": 2, "rank": rank, "parallel": ["ddp"], "mesh": {"dp": 2}, "groups": {}}
        run.samples["time_s"] *= slow
        run.generation["time_s"] *= slow
        run.ranks = table("ranks", rank_rows(run, rank))
        ranks.append(part(run))
    job = assemble(ranks)

    lines = lines_of(render(job, "tree", View(width=200)))

    assert lines["Prefill"].startswith(
        "TTFT 600.0 ns; 4 positions x 4 sequences; 40.00 KFLOPs, 66.67 GFLOP/s, MFU 33.3 %"
    )
    # 2 x 4740 bytes in 1440 ns at 2 x 10 bytes a ns
    assert "3.086 KiB must move per step of decoding on all ranks together: weights 57.0 %" in lines["Decode"]
    assert "MBU 32.9 % of datasheet (20.00 GB/s)" in lines["Decode"]
    table_ = by_module(job).set_index("module")
    assert table_.loc["", "bytes_decode"] == 9480
    assert table_.loc["", "kernel_mbu_decode"] == pytest.approx(474 / 600)
    assert table_.loc["", "time_forward_s"] == pytest.approx(900e-9)


def test_prefills_alone_say_why_there_is_no_first_token():
    """As of a loop without a cache: which of its calls gives the first token nothing tells."""
    run = generation_run()
    for name in ("ops", "kernels", "samples", "generation", "traffic"):
        rows = getattr(run, name)
        setattr(run, name, rows.assign(phase=rows["phase"].replace("decode", "prefill")))

    text = render(run, "tree", View(width=200))

    assert "Prefill      TTFT unknown: several prefills, and no decode that tells which of them gives" in text
    assert "tokens/s" not in text
