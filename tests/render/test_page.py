"""The HTML report: whole in one file, names escaped, and alive in a browser."""

import base64
import gzip
import html
import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import pandas as pd
import pytest
from analysis.test_memory_analysis import training
from plotly.offline import get_plotlyjs
from runs import counted_run, generation_run, gpu_run, kernel_row, tree_row

import gpuprof
from gpuprof.analysis.budget import budget
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.verdict import verdict
from gpuprof.render import page_charts, page_roofline, palette
from gpuprof.render.page import render_page
from gpuprof.run import Run
from gpuprof.schema import table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def sections(page):
    return re.findall(r'<h2 id="([\w-]+)">', page)


def unpacked(page, name):
    """What a block of gzip in base64 holds, as a browser unpacks it."""
    block = re.search(rf'<script type="text/plain" id="{name}">([A-Za-z0-9+/=]+)</script>', page)[1]
    return gzip.decompress(base64.b64decode(block, validate=True)).decode()


def test_a_measured_run_has_every_section_that_it_has_data_for():
    assert sections(render_page(gpu_run())) == [
        "budget", "hints", "time", "modules", "backward", "roofline", "operators", "kernels", "provenance",
    ]  # fmt: skip


def test_a_count_alone_is_shown_without_what_was_not_measured():
    run = gpu_run()
    for name in ("time", "trace", "memory"):
        del run.passes[name]
    run.samples, run.kernels = table("samples", []), table("kernels", [])

    page = render_page(run)
    assert sections(page) == ["modules", "backward", "operators", "provenance"]
    assert "Layers that agree in every count are one line." in page
    assert "traced step" not in page


def test_an_empty_run_renders():
    about, device = {"name": "m", "mode": "train"}, {"type": "cpu", "name": "c", "peaks": {}}
    run = Run(about, device, environment={}, tree=table("tree", [tree_row("", "Net")]))

    assert sections(render_page(run)) == ["modules", "provenance"]


def test_nothing_is_loaded_from_elsewhere():
    page = render_page(gpu_run())

    assert not re.findall(r"<(?:link|iframe)\b|<(?:script|img)[^>]*\bsrc\s*=", page.partition("<script>")[0])
    assert page.count("<script") == 3  # the figures, the library, and the page's own
    assert unpacked(page, "plotly") == get_plotlyjs()


def test_a_page_without_figures_has_no_library():
    about, device = {"name": "m", "mode": "train"}, {"type": "cpu", "name": "c", "peaks": {}}
    page = render_page(Run(about, device, environment={}, tree=table("tree", [tree_row("", "Net")])))

    assert page.count("<script") == 1
    assert len(page) < 30_000


def test_a_figure_has_its_room_before_it_is_drawn_and_says_what_it_needs():
    page = render_page(gpu_run())

    places = re.findall(r'<div class="plot" data-figure="(\w+)" style="height:(\d+)px"><noscript><p>(.*?)</p>', page)
    heights = {name: figure["layout"]["height"] for name, figure in json.loads(unpacked(page, "figures")).items()}
    assert {name: int(height) for name, height, _ in places} == heights
    assert {said for _, _, said in places} == {"This figure needs JavaScript."}


def test_headline_figures_are_those_of_the_record():
    """Model FLOPs 12000 in 480 ns on a peak of 100 GFLOP/s: 25 %."""
    page = render_page(gpu_run())

    assert "<span>MFU</span><b>25.0 %</b>" in page
    assert "<span>Step</span><b>480.0 ns</b>" in page
    assert "convention causal" in page


def test_names_are_text_and_nothing_else():
    run = gpu_run()
    for frame in (run.tree, run.ops, run.kernels, run.estimates):
        frame["module"] = frame["module"].replace("head", EVIL)
    run.kernels = table(
        "kernels", [*run.kernels.to_dict("records"), kernel_row(EVIL, "forward", EVIL, 9999, 5, kernel=EVIL)]
    )
    run.workload["name"] = run.device["name"] = EVIL
    run.warnings = [EVIL]

    page = render_page(run)

    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_data_of_figures_is_json_and_names_in_it_are_escaped_twice():
    run = gpu_run()
    run.tree["class"] = run.tree["class"].replace("Linear", EVIL)

    page = render_page(run)

    figures = json.loads(unpacked(page, "figures"))
    assert list(figures) == ["budget", "time", "backward", "roofline"]
    assert all("data" in figure for figure in figures.values())
    assert any("&lt;img" in json.dumps(figure) for figure in figures.values())  # Plotly reads labels as HTML
    assert not any("<img" in json.dumps(figure) for figure in figures.values())


def test_a_page_of_a_model_of_seven_billion_parameters_is_small():
    run = gpuprof.count("qwen2-7b", seq_len=16)

    assert len(render_page(run).encode()) < 2.5e6


def test_the_title_says_the_workload_and_the_page_begins_with_the_verdict():
    run = gpu_run()
    run.workload |= {"batch_size": 2, "seq_len": 4, "attention": "sdpa"}

    page = render_page(run)

    title = "net · batch 2 · sequence 4 · sdpa attention · bfloat16"
    assert f"<title>{title} · gpuprof</title>" in page
    assert f"<h1>{title}</h1>" in page
    assert html.unescape(re.search(r'<p class="verdict">(.*?)</p>', page)[1]) == " ".join(verdict(run))
    assert page.index('class="verdict"') < page.index('class="cards"')


def test_a_waterfall_is_in_a_unit_that_fits_and_two_are_on_one_scale():
    found = budget(gpu_run())
    slow = replace(found, step_s=7.2)

    figure = page_charts.waterfall(found)
    (bars,) = figure.data
    # 12000 FLOPs take 120 of 480 ns at 100 GFLOP/s
    assert figure.layout.xaxis.title.text == "ns"
    assert (bars.base[0], bars.x[0], bars.text[0]) == (0, pytest.approx(120), "120.0 ns  25.0 %")
    assert (bars.y[-1], bars.base[-1], bars.x[-1]) == ("step", 0, pytest.approx(480))
    both = page_charts.waterfall(found, slow, names=("base", "head"))
    assert [trace.x[-1] for trace in both.data] == pytest.approx([480e-9, 7.2])
    assert both.layout.xaxis2.title.text == "s"
    assert both.layout.xaxis.range == both.layout.xaxis2.range == (0, 7.2)


def test_a_negative_part_goes_back_and_its_figure_is_on_the_right():
    found = budget(gpu_run())
    parts = found.parts.head(2).assign(part=["ideal", "clock"], time_s=[300e-9, -100e-9])

    (bars,) = page_charts.waterfall(replace(found, parts=parts)).data

    assert list(bars.base) == pytest.approx([0, 200, 0])
    assert list(bars.x) == pytest.approx([300, 100, 480])
    assert list(bars.marker.color) == [palette.BLUE, palette.TEAL, palette.GREY]
    assert bars.text[1] == "-100.0 ns  -20.8 %"


def test_bars_of_the_backward_that_are_cut_have_their_figure_and_containers_are_left_out():
    run = gpu_run()
    head = (run.kernels["module"] == "head") & (run.kernels["phase"] == "backward")
    run.kernels.loc[head, "duration_ns"] = 400  # ten times the forward's 40

    figure = page_charts.backward(run)

    bars = {trace.name: dict(zip(trace.y, zip(trace.x, trace.text, strict=True), strict=True)) for trace in figure.data}
    assert bars == {
        "by counted FLOPs": {"Linear": (2.0, "2.00"), "Block x 2": (2.0, "2.00")},
        "by time": {"Linear": (6.0, "10.00 →"), "Block x 2": (4.0, "4.00")},
    }
    (line,) = figure.layout.shapes
    assert (line.x0, line.name, line.showlegend, line.layer) == (2, "assumed: 2.0", True, "below")
    assert not figure.layout.annotations


def test_the_memory_chart_goes_through_the_peak_of_its_card():
    """900 bytes between two readings of 650 and 460."""
    figure = page_charts.memory(training())

    (in_use,) = [trace for trace in figure.data if trace.name == "in use"]
    (label,) = figure.layout.annotations
    assert max(in_use.y) == label.y == 900
    assert label.x == in_use.x[list(in_use.y).index(900)]
    assert (label.text, figure.layout.yaxis.title.text) == ("peak 900 B, backward", "B")
    assert "<span>Memory</span><b>900 B</b>" in render_page(training())


def test_axes_of_the_roofline_are_in_units_and_its_dots_have_names():
    run = counted_run()
    run.device |= {"memory_bandwidth": 1e9}

    figure = page_roofline.roofline(run)

    assert {label.text for label in figure.layout.annotations} == {"mm", "bmm"}
    # 50 and 25 GFLOP/s below 100, thrice as far; 133 and 267 FLOP/B
    assert figure.layout.yaxis.ticktext == ("10 GFLOP/s", "100 GFLOP/s")
    assert figure.layout.yaxis.tickvals == (1e10, 1e11)
    assert figure.layout.xaxis.ticktext == ("100",)
    assert page_roofline.roofs_in_words(run) == "Roofs: datasheet bfloat16 100.0 GFLOP/s, 1.000 GB/s."


def test_names_of_dots_lie_on_no_other_name_and_no_dot():
    rows = [("a_long_name", 1.0, 1e9), ("another_name", 1.4, 1e9), ("at_its_place", 1.4, 1e9), ("the_last", 2.0, 1.1e9)]
    dots = pd.DataFrame(rows, columns=["name", "intensity", "flops_per_s"]).assign(phase="", time_share=0.25)
    wide, high = 330, 300  # pixels for three powers of ten each

    labels = list(page_roofline._labels(dots, (0.03, 30.0), (3e7, 3e10)))

    assert [label["text"] for label in labels] == ["a_long_name", "another_name", "the_last"]
    boxes = []
    for label in labels:
        x = (label["x"] - math.log10(0.03)) / 3 * wide + label["xshift"]
        y = (label["y"] - math.log10(3e7)) / 3 * high + label["yshift"]
        length = 6 * len(label["text"])
        left = x - {"left": 0, "center": length / 2, "right": length}[label["xanchor"]]
        low = y - {"bottom": 0, "middle": 7, "top": 14}[label["yanchor"]]
        boxes.append((left, low, left + length, low + 14))
    # a dot of a quarter of the time is 14 pixels in radius
    boxes += [
        (x - 9, y - 9, x + 9, y + 9)
        for x, y in ((math.log10(i / 0.03) * wide / 3, math.log10(f / 3e7) * high / 3) for _, i, f in rows)
    ]
    assert not [
        (one, other) for one, other in itertools.product(boxes[:3], boxes)
        if one is not other and one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
    ]  # fmt: skip


def test_colours_of_shares_tell_5_from_20_percent_and_the_unknown_from_all():
    modules = by_module(gpu_run())
    (icicle,) = page_charts.icicle(modules).data

    scale = {round(place * 106 - 6, 3): color for place, color in icicle.marker.colorscale}
    assert _contrast(scale[5], scale[20]) > 2
    assert (icicle.marker.cmin, icicle.marker.cmax, scale[-6]) == (-6, 100, palette.PALE)
    shares = dict(zip(icicle.ids, icicle.marker.colors, strict=True))
    assert shares["head"] == pytest.approx(30)  # 6000 FLOPs, 60 of 200 ns
    modules["kernel_mfu"] = modules["kernel_mfu"].mask(modules["module"] == "head")
    (icicle,) = page_charts.icicle(modules).data
    assert dict(zip(icicle.ids, icicle.marker.colors, strict=True))["head"] == -6


def test_colours_stand_out_on_white_and_on_the_dark_page():
    lines = (palette.BLUE, palette.TEAL, palette.ORANGE, palette.RED, palette.MAGENTA, palette.GREY)

    assert all(_contrast(color, page) > 2.8 for color in lines for page in ("#ffffff", "#0d1117"))


def _contrast(one, other):
    """Of two colours, as WCAG 2 has it: 21 of black on white."""
    light = sorted(_luminance(color) for color in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(color):
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_counts_are_in_full():
    run = gpu_run()
    run.ops["calls"] = run.ops["calls"].replace(3, 2137)

    assert '<td data-v="2137">2,137</td>' in render_page(run)


DRIVE = """
<pre id="result"></pre>
<script>
const out = {errors: window.failures};
addEventListener("load", () => {
  const table = document.getElementById("table-modules"), body = table.tBodies[0];
  const names = () => [...body.rows].filter(row => !row.hidden).map(row => row.cells[0].dataset.v);
  out.start = names();
  document.querySelector("button[data-close=modules]").click();
  out.closed = names();
  const layers = [...body.rows].find(row => row.cells[0].dataset.v === "layers");
  layers.querySelector("button.fold").click();
  out.opened = names();
  document.querySelector("button[data-open=modules]").click();
  const flops = table.tHead.rows[0].cells[2];
  flops.click();
  out.descending = [flops.getAttribute("aria-sort"), names()];
  flops.click();
  out.ascending = [flops.getAttribute("aria-sort"), names()];
  document.querySelectorAll(".plot").forEach(place => draw(place));
  document.getElementById("theme").click();
  out.plots = document.querySelectorAll(".plot .main-svg").length > 0;
  out.drawn = document.querySelectorAll(".plot.js-plotly-plot").length;
  out.theme = document.documentElement.dataset.theme;
  const widths = () => [...document.querySelectorAll(".plot .main-svg:first-of-type")].map(svg => svg.clientWidth);
  dispatchEvent(new Event("beforeprint"));
  out.paper = [document.documentElement.dataset.theme, new Set(widths()).size, widths()[0]];
  dispatchEvent(new Event("afterprint"));
  out.after = document.documentElement.dataset.theme;
  out.bar = getComputedStyle(document.querySelector(".modebar")).display;
  document.getElementById("result").textContent = JSON.stringify(out);
});
</script>
"""


def in_a_browser(page, folder, before, drive):
    """What a script at the page's end writes into #result, and what is logged, also of anything that is not loaded."""
    alone = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
        style-src 'unsafe-inline'">"""
    file = folder / "page.html"
    file.write_text(page.replace("<head>", f"<head>{alone}<script>{before}</script>").replace("</body>", drive))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return json.loads(re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)[1]), done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_the_tree_expands_and_sorting_sorts_without_an_error(tmp_path):
    listen = "window.failures = []; addEventListener('error', e => failures.push(String(e.message)));"

    found, logged = in_a_browser(render_page(counted_run()), tmp_path, listen, DRIVE)

    assert found["errors"] == []
    assert "CONSOLE" not in logged
    assert found["start"] == ["(root)", "layers", "layers.0", "head", "(unattributed)"]  # equal layers are one line
    assert found["closed"] == ["(root)", "layers", "head", "(unattributed)"]
    assert found["opened"] == found["start"]
    # FLOPs of the forward: layers and head 2000 each, in the model's order where they are equal; nothing is 0
    assert found["descending"] == ["descending", ["(root)", "layers", "layers.0", "head", "(unattributed)"]]
    assert found["ascending"] == ["ascending", ["(unattributed)", "(root)", "layers", "layers.0", "head"]]
    assert found["plots"]
    assert found["drawn"] == 4
    assert found["theme"] in ("dark", "light")
    assert found["paper"] == ["light", 1, 700]
    assert found["after"] == found["theme"]
    assert found["bar"] == "none"  # where no pointer is


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_that_cannot_unpack_says_so_in_each_figure_and_has_the_rest(tmp_path):
    drive = """<pre id="result"></pre><script>
    dispatchEvent(new Event("beforeprint"));
    const heads = document.getElementById("table-operators").tHead.rows[0].cells;
    heads[2].click();
    document.getElementById("result").textContent = JSON.stringify(
      {said: [...plots].map(place => place.innerText), sorted: heads[2].getAttribute("aria-sort")});
    </script>"""

    found, logged = in_a_browser(render_page(counted_run()), tmp_path, "delete window.DecompressionStream;", drive)

    why = "This figure needs a browser that unpacks gzip: Chrome 80, Firefox 113, Safari 16.4, or a later one."
    assert found == {"said": 4 * [why], "sorted": "descending"}
    assert "CONSOLE" not in logged


def test_a_long_timeline_is_thinned_which_is_said_and_keeps_its_peak():
    from gpuprof.render.page_charts import memory

    run = gpu_run()
    rows = [{"time_s": n * 1e-3, "phase": "forward", "event": "enter", "bytes": n % 100 + (10**9 if n == 7777 else 0)}
            for n in range(20_000)]  # fmt: skip
    run.timeline = table("timeline", rows)

    (in_use,) = [trace for trace in memory(run).data if trace.name == "in use"]
    assert len(in_use.x) == 3000
    assert "Of 20,000 moments 3,000 are drawn: of each stretch of time the one with most in use." in render_page(run)
    assert max(in_use.y) == (10**9 + 77) / 2**20


def test_a_generation_is_told_by_what_bounds_its_phases():
    """By hand: 400 ns to the first token, a median of 320 for each further one, 4740 bytes at 10 GB/s in 960 ns."""
    page = render_page(generation_run())

    assert sections(page)[:3] == ["tokens", "phases", "budget"]
    assert "backward" not in sections(page)
    for name, figure, about in (
        ("Time to first token", "400.0 ns", "4 positions x 2 sequences"),
        ("Time per token", "320.0 ns", "median of the steps; p90 356.4 ns, p99 372.2 ns"),
        ("Tokens/s", "5.882 M", "new ones over the step; 6.250 M tokens/s while decoding"),
        ("MFU of prefill", "50.0 %", "of datasheet, convention causal"),
        ("MBU of decode", "49.4 %", "of datasheet bandwidth, 10.00 GB/s; 61.7 % of bandwidth of a copy measured on "
         "this device, 8.000 GB/s"),
        ("Model FLOPs", "24.80 KFLOPs", "prefill and decode together"),
    ):  # fmt: skip
        assert f"<span>{name}</span><b>{figure}</b><span>{about}</span>" in page
    assert "<span>MFU</span>" not in page
    assert "with recompute" not in page
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", page[page.index('id="table-modules"') :].partition("</thead>")[0])
    assert heads == ["module", "params", "FLOPs", "prefill", "kernel MFU", "decode", "kernel MBU"]


def test_the_time_per_token_lies_over_that_of_its_bytes():
    figure = page_charts.tokens(generation_run())

    lines = {trace.name: trace for trace in figure.data}
    assert list(lines["median"].x) == [4, 5, 6]
    assert list(lines["median"].y) == pytest.approx([300e-6, 320e-6, 340e-6])  # ms
    # the quartiles of 0.9, 1 and 1.1 are 0.95 and 1.05
    assert list(lines["quartiles"].y) == pytest.approx([315e-6, 336e-6, 357e-6])
    assert list(lines["its bytes at the datasheet 10.00 GB/s"].y) == pytest.approx([150e-6, 158e-6, 166e-6])
    assert list(lines["its bytes at the measured 8.000 GB/s"].y) == pytest.approx([187.5e-6, 197.5e-6, 207.5e-6])


def test_without_bytes_there_is_no_line_of_them_and_without_a_step_no_figure():
    run = generation_run()
    run.passes["count"].facts["traffic_unknown"] = ["mylib::op reads what it likes"]
    assert [trace.name for trace in page_charts.tokens(run).data if trace.name] == ["quartiles", "median"]
    assert "What their bytes would take is unknown: mylib::op reads what it likes" in render_page(run)
    run.generation = table("generation", [])
    assert page_charts.tokens(run) is None


def test_what_a_phase_has_of_the_step():
    figure = page_charts.phases(by_phase(generation_run()))

    bars = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in figure.data}
    # of 1360 ns, 24800 FLOPs and 2120 + 4740 bytes
    assert bars["decode"] == {
        "time": pytest.approx(100 * 960 / 1360), "FLOPs": pytest.approx(100 * 48 / 248),
        "bytes": pytest.approx(100 * 4740 / 6860),
    }  # fmt: skip
    assert bars["weights"] == {
        "bytes of prefill": pytest.approx(100 * 1000 / 2120), "bytes of decode": pytest.approx(100 * 2700 / 4740)
    }  # fmt: skip
    assert bars["cache read"] == {"bytes of decode": pytest.approx(100 * 1200 / 4740)}


def test_time_of_a_generation_is_not_counted_twice_in_its_picture():
    figure = page_charts.icicle(by_module(generation_run()), "kernel_mbu_decode")

    (icicle,) = figure.data
    assert dict(zip(icicle.ids, icicle.values, strict=True))["attn"] == pytest.approx(340e-9)  # 100 + 3 x 80
    # 40 % of all but the cache and all of it, over 240 ns and 10 GB/s
    least = 0.4 * (2700 + 600) + 1200 + 240
    assert dict(zip(icicle.ids, icicle.marker.colors, strict=True))["attn"] == pytest.approx(100 * least / 2400)


def test_a_page_of_a_generation_from_before_its_phases_were_told_apart_says_so():
    run = generation_run()
    run.generation, run.traffic = table("generation", []), table("traffic", [])
    for name in ("samples", "ops", "kernels"):
        setattr(run, name, getattr(run, name).replace({"phase": {"prefill": "forward", "decode": "forward"}}))

    page = render_page(run)

    assert sections(page)[0] == "budget"
    assert "No time to first token, time per token and MBU: this file does not tell prefill and decode apart" in page


def test_a_page_of_a_counted_generation_has_its_bytes():
    run = generation_run()
    for name in ("time", "trace", "memory"):
        del run.passes[name]
    for name in ("samples", "generation", "kernels"):
        setattr(run, name, table(name, []))

    page = render_page(run)

    assert sections(page) == ["phases", "modules", "operators", "provenance"]
    figure = page_charts.phases(by_phase(run))
    assert list(figure.layout.yaxis.categoryarray) == ["bytes of decode", "bytes of prefill", "bytes", "FLOPs"]
    assert "<span>Time to first token</span>" not in page
