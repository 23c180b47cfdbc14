import csv
import io
import json
import re

import pytest
from analysis.test_memory_analysis import training
from runs import counted_run, generation_run, gpu_run

import gpuprof
from gpuprof.analysis.forecast import Fit, Forecast, Sized
from gpuprof.analysis.memory import ACCOUNT_COLUMNS, MODULE_COLUMNS, Prediction
from gpuprof.analysis.roofline import COLUMNS
from gpuprof.render.memory import render_memory
from gpuprof.render.memory_chart import memory_chart
from gpuprof.render.roofline import render_roofline
from gpuprof.render.roofline_chart import roofline_chart
from gpuprof.render.timeline import cache
from gpuprof.render.view import View
from gpuprof.schema import table


def roof_run(**device):
    run = counted_run()
    run.device |= {"memory_bandwidth": 1e9} | device
    return run


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("by", ["op", "class", "module", "kernel"])
def test_a_roofline_keeps_to_its_width(width, by):
    text = render_roofline(roof_run(), "text", View(by=by, width=width))

    assert max(map(len, text.splitlines())) <= width
    assert "compute" in text


def test_a_roofline_says_where_the_ridge_is_and_what_limits():
    text = render_roofline(roof_run(), "text", View(by="op", width=200))

    assert "Ridge at 100 FLOP/B: bfloat16 100.0 GFLOP/s (datasheet dense peak) over 1.000 GB/s (datasheet)." in text
    assert (
        "Of the kernel time, at these ceilings: compute limits 90.9 %, nothing that is known 9.1 % (no rule, no peak, "
        "or no work)." in text
    )
    (mm,) = [line.split() for line in text.splitlines() if line.startswith("mm ")]
    # 4000 FLOPs over 30 bytes at least, and 120 that DRAM moved; 80 of 440 ns
    assert mm == ["mm", "matmul", "18.2", "%", "133", "50.0", "G", "50.0", "%", "compute", "33.3", "gemm"]


def test_a_narrow_roofline_lets_the_kernels_name_go():
    run = roof_run()
    run.kernels["kernel"] = "void gemm_with_a_long_name"

    assert "kernel" in render_roofline(run, "text", View(by="op", width=120)).split("\n\n")[1]
    narrow = render_roofline(run, "text", View(by="module", width=80))
    assert "gemm_with" not in narrow
    assert narrow.endswith("Not shown at this width: kernel.\n")


def test_a_roofline_of_60_columns_cuts_no_figure():
    text = render_roofline(roof_run(), "text", View(by="op", width=60))

    # 12 of the name, then 7, 6, 6, 7 and 8 of time, FLOP/B, FLOP/s, of roof and bound by, a space before each
    (mm,) = [line for line in text.splitlines() if line.startswith("mm ")]
    assert mm.split() == ["mm", "18.2", "%", "133", "50.0", "G", "50.0", "%", "compute"]
    assert " ".join(text.split()).endswith("Not shown at this width: kind, DRAM FLOP/B, kernel.")


def test_a_device_without_bandwidth_or_peak_is_told_how_to_get_one():
    run = roof_run(memory_bandwidth=None)
    assert "no ridge: 'gpuprof ceilings' measures one" in render_roofline(run)
    run.device |= {"peaks": {}, "peak_remedy": "give one with --peak-tflops"}
    assert "so no roof: give one with --peak-tflops." in render_roofline(run)


def test_dots_above_the_roof_are_said():
    text = render_roofline(roof_run(memory_bandwidth=0.1e9), "text", View(by="op", width=200))

    assert "rows, with 18.2 % of the time, are above their roof: bytes that stayed in a cache" in text


def test_rooflines_for_machines():
    rows = list(csv.DictReader(io.StringIO(render_roofline(roof_run(), "csv"))))
    assert list(rows[0]) == COLUMNS
    assert {row["name"]: row["flops"] for row in rows} == {"aten::mm": "4000", "aten::bmm": "8000", "mylib::step": ""}
    found = json.loads(render_roofline(roof_run(), "json"))
    assert found["roofs"][0]["ridges"] == {"bfloat16": 100.0}
    assert [row["bound"] for row in found["rows"]] == ["compute", "compute", ""]
    assert "| mm | matmul | 18.2 % |" in render_roofline(roof_run(), "markdown")


def words(picture):
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture.read_text())


def test_a_roofline_is_drawn(tmp_path):
    run = roof_run(measured_bandwidth=0.9e9, peaks={"datasheet": {"bfloat16": 100e9}, "measured": {"bfloat16": 81e9}})

    picture = roofline_chart(run, tmp_path / "roof.svg", View(by="op"))

    found = words(picture)
    for name in (
        "datasheet bfloat16 100 GFLOP/s", "measured bfloat16 81.0 GFLOP/s", "datasheet 1.00 GB/s",
        "measured 900 MB/s", "ridge 100", "mm 18.2 %", "bmm 72.7 %", "matmul", "per byte that DRAM moved",
        "by op, areas as kernel time: 90.9 % of it is drawn",
    ):  # fmt: skip
        assert name in found, found
    assert not [name for name in found if "prefill" in name]
    first = picture.read_bytes()
    assert roofline_chart(run, picture, View(by="op")).read_bytes() == first


def test_a_generation_is_two_clouds(tmp_path):
    run = generation_run()
    found = words(roofline_chart(run, tmp_path / "roof.svg", View(by="op")))

    assert {"mm prefill 33.3 %", "mm decode 66.7 %", "prefill: products", "decode: products"} <= set(found)
    text = render_roofline(run, "text", View(by="op", width=200))
    # 20,000 FLOPs over 2,120 bytes, 4,800 over 4,740
    assert (
        "Prefill: compute limits 100.0 %; 20.00 KFLOPs of products, 9.43 FLOP/B over 2.070 KiB that must move" in text
    )
    assert "Decode: compute limits 100.0 %; 4.800 KFLOPs of products, 1.01 FLOP/B over 4.629 KiB that must move" in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("mm")] == [
        ["mm", "decode"], ["mm", "prefill"],
    ]  # fmt: skip
    of_one = render_roofline(run, "text", View(by="op", phase="decode", width=200))
    assert "Decode: " in of_one
    assert "Prefill: " not in of_one
    figures = json.loads(render_roofline(run, "json"))["phases"]
    assert [(row["phase"], row["moved_bytes"]) for row in figures] == [("prefill", 2120), ("decode", 4740)]


def test_a_roofline_with_nothing_to_draw(tmp_path):
    run = roof_run()
    run.ops["flops_hardware"] = table("ops", [{}] * len(run.ops))["flops_hardware"]

    with pytest.raises(gpuprof.GpuprofError, match="nothing to draw"):
        roofline_chart(run, tmp_path / "roof.png")


def told(fit=None, sized=None, miss=0):
    return Forecast(sized, fit, miss, 1.05)


def sized(batch):
    found = Prediction("backward", 1 << 30, 0, batch << 30, 0, 1 << 29, (batch + 1) << 30, (2 * batch + 3) << 29)
    return Sized(batch, 64, None, None, activations=batch << 30, cache={}, prediction=found)


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("forecast", [None, told(sized=sized(3))])
def test_a_memory_account_keeps_to_its_width(width, forecast):
    text = render_memory(training(), "text", View(width=width), forecast)

    assert max(map(len, text.splitlines())) <= width


def test_a_memory_account_reads():
    text = render_memory(training(), "text", View(width=120))
    lines = [" ".join(line.split()) for line in text.splitlines()]

    assert "Peak 900 B allocated, in the backward, before the gradient of fc; 9.0 % of the device's 9.766 KiB." in lines
    assert "Reserved 1.758 KiB, 900 B of it not allocated at the peak (fragmentation and cache)." in lines
    assert "end of end of end of peak of peak of peak of" in lines
    assert "activations 300 B 0 B 0 B 250 B 300 B 0 B" in lines
    assert "workspace 20 B 10 B 10 B 250 B 270 B 60 B" in lines
    assert "measured 650 B 440 B 440 B 830 B 900 B 490 B" in lines
    assert "└─ fc: Linear 100 B 100 B 250 B 260 B 480 B" in lines
    assert "(unattributed) - - 50 B - -" in lines
    assert "fc: Linear" not in render_memory(training(), "text", View(depth=0))


def test_a_run_without_a_timeline_says_what_it_lacks(tmp_path):
    assert "No peaks: this run has no memory timeline: profile it again" in render_memory(gpu_run())
    with pytest.raises(gpuprof.GpuprofError, match="no memory timeline"):
        memory_chart(gpu_run(), tmp_path / "m.svg")
    run = gpu_run()
    run.memory = table("memory", [])
    with pytest.raises(gpuprof.GpuprofError, match="no memory readings"):
        render_memory(run)


def test_a_forecast_reads():
    def lines(forecast):
        return render_memory(training(), "text", View(width=500), forecast)

    text = lines(told(Fit("batch_size", 5 << 30, sized(3), sized(4), "")))
    assert (
        "The largest batch predicted to fit in 5.000 GiB: batch 3, sequence 64, with 4.500 GiB (at least 4.000 GiB) at "
        "its peak, in the backward: 1.000 GiB parameters, buffers and optimizer state + 3.000 GiB made by the step + "
        "512.0 MiB outside torch; activations kept: 3.000 GiB.\n4 would take 5.500 GiB.\n" in text
    )
    assert "activations are those recorded, to the byte. The measured step made 1.050 times" in text
    text = lines(told(Fit("seq_len", 5 << 30, sized(3), None, "64 positions are known"), miss=-2048))
    assert "Not memory is the limit: 64 positions are known." in text
    assert "activations miss those recorded by 2.000 KiB." in text
    text = lines(told(Fit("batch_size", 1 << 30, None, sized(1), "")))
    assert (
        "Nothing fits in 1.000 GiB: even batch 1, sequence 64 is predicted to take 2.500 GiB (at least 2.000 GiB)"
        in text
    )
    assert "Batch 3, sequence 64 is predicted to take 4.500 GiB" in lines(told(sized=sized(3)))


def test_a_forecast_of_a_generation_names_weights_cache_and_activations_apart():
    def text(*where, **more):
        found = Forecast(*where, **{"miss": 0, "calibration": 1.0, **more})
        return render_memory(generation_run(), "text", View(width=500), found)

    made = Prediction("decode", 8 << 30, 1 << 20, 3 << 30, 0, 1 << 29, 23 << 29, 23 << 29)
    sized = Sized(16, None, 2048, 128, activations=0, cache={"prefill": 1 << 30, "decode": 2 << 30}, prediction=made)

    assert (
        "Batch 16, prompt 2048, 128 new tokens is predicted to take 11.50 GiB at its peak, in the decode: 8.000 GiB "
        "weights + 1.000 MiB before the step + 2.000 GiB cache + 1.000 GiB activations and temporaries + 512.0 MiB "
        "outside torch." in text(sized, None)
    )
    assert "at the run's own size the simulated cache is the one that was counted, to the byte." in text(sized, None)
    assert "cache misses the one that was counted by 1.000 KiB." in text(sized, None, miss=-1024)
    assert "tensor by tensor. The measured step" in text(sized, None, miss=None)
    fit = Fit("prompt_len", 12 << 30, sized, sized, "")
    assert "The largest prompt predicted to fit in 12.00 GiB: batch 16, prompt 2048, 128 new tokens" in text(None, fit)
    assert "\n2049 would take 11.50 GiB." in text(None, fit)
    fit = Fit("new_tokens", 12 << 30, sized, None, "")
    assert "The largest number of new tokens predicted to fit in 12.00 GiB" in text(None, fit)


def test_memory_for_machines():
    rows = list(csv.DictReader(io.StringIO(render_memory(training(), "csv"))))
    assert list(rows[0]) == MODULE_COLUMNS
    assert [row["activations"] for row in rows] == ["250", "250", "50"]
    found = json.loads(render_memory(training(), "json", None, told(sized=sized(3))))
    assert found["peak"]["bytes"] == 900
    assert list(found["account"][0]) == ACCOUNT_COLUMNS
    assert found["modules"][2]["parameters"] is None
    prediction = found["forecast"]["sized"]["prediction"]
    assert (prediction["made"], prediction["total"]) == (3 << 30, 9 << 29)
    assert "| workspace | 20 B | 10 B |" in render_memory(training(), "markdown")


def test_the_timeline_is_drawn(tmp_path):
    picture = memory_chart(training(), tmp_path / "memory.svg")

    found = words(picture)
    for name in (
        "forward", "backward", "optimizer", "peak 900 B", "before the gradient of fc", "parameters",
        "optimizer state", "gradients", "activations kept", "before the step", "measured: allocated",
    ):  # fmt: skip
        assert name in found, found
    assert "reserved" not in found  # it was not read
    first = picture.read_bytes()
    assert memory_chart(training(), picture).read_bytes() == first


@pytest.mark.parametrize("render", [render_roofline, render_memory])
def test_an_unknown_format_names_those_that_are(render):
    with pytest.raises(gpuprof.GpuprofError, match="no format 'xml': known are text, markdown, csv, json"):
        render(training(), "xml")


def decoding():
    """generation_run() whose memory was read where each part begins and ends, and once within."""
    run = generation_run()
    phases = ["prefill", "prefill", "decode", "decode", "decode"]  # the step begins before its first part does
    rows = [
        {"time_s": part + at / 10, "phase": phase, "module": "" if event else "attn", "event": event or "enter",
         "bytes": 2000 + 100 * part, "kept_bytes": 0, "gradient_bytes": 0}
        for part, phase in enumerate(phases) for at, event in enumerate(("begin", "", "end"))
    ]  # fmt: skip
    run.timeline = table("timeline", rows)
    run.passes["count"].facts["cache"] = {"class": "DynamicCache", "bytes": [320, 400, 480, 560]}
    return run


def test_the_parts_of_a_generation_are_one_stretch_for_each_phase_and_the_cache_grows(tmp_path):
    picture = memory_chart(decoding(), tmp_path / "memory.svg")

    found = words(picture)
    assert [found.count(name) for name in ("prefill", "decode", "cache")] == [1, 1, 1]
    assert "batch 2 · prompt 4 · 4 new tokens" in picture.read_text()
    assert cache(decoding()).tolist() == [0] * 5 + [320] * 3 + [400] * 3 + [480] * 3 + [560]


def test_a_cache_of_other_parts_is_not_drawn():
    run = decoding()
    run.passes["count"].facts["cache"]["bytes"].pop()
    assert not cache(run).any()
