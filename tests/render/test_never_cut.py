"""No figure is ever cut: names are, and columns that do not fit are left out and named."""

import io
import re
import sys
from pathlib import Path

import pytest

import gpuprof
from gpuprof.cli.encoding import spell_out
from gpuprof.cli.output import in_color
from gpuprof.errors import GpuprofError
from gpuprof.render import render
from gpuprof.render.console import to_text
from gpuprof.render.tables import aligned
from gpuprof.render.view import BY, View
from tests.runs import compiled_run, generation_run, gpu_run

CUT = re.compile(r"(?<![\w:.])[\d.,]+ ?[KMGTP]?(?:\.\.\.|…)|… *%|±…|[A-Z/]{3,}…")
"""A number, a unit, a spread or a head that was cut."""


@pytest.fixture(scope="module")
def example():
    return gpuprof.load(Path(__file__).parents[2] / "examples" / "smollm2-train.json.gz")


def cut_lines(run, by, width):
    for format in ("tree", "table") if by == "module" else ("table",):
        for line in render(run, format, View(by=by, width=width)).splitlines():
            if CUT.search(line) or (re.search(r"\d  ", line) and len(line) > width):
                yield line


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("make", [gpu_run, generation_run, compiled_run])
def test_no_figure_of_a_table_is_cut(make, width):
    run = make()
    for by in BY:
        try:
            assert list(cut_lines(run, by, width)) == []
        except GpuprofError:  # the run has no such rows
            continue


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("by", ["module", "kernel", "op", "convention"])
def test_no_figure_of_a_measured_run_is_cut(example, by, width):
    assert list(cut_lines(example, by, width)) == []


@pytest.mark.parametrize(("by", "columns"), [
    ("module", ["module", "class", "time_forward_s", "time_backward_s"]),
    ("kernel", ["kernel", "time_s", "time_share", "kernels", "median_s", "kind"]),
])  # fmt: skip
def test_80_columns_show_time(example, by, columns):
    lines = render(example, "table", View(by=by, width=80, top=3)).splitlines()

    assert lines[0].split() == columns
    assert lines[4].startswith("Not shown at this width: ")


def test_wide_spreads_are_whole_and_what_is_left_out_is_said(example):
    text = render(example, "tree", View(width=80))

    assert "335 us ±126%" in text
    assert "\nNot shown at this width: of params, MACs, of FLOPs, FLOP/s\n" in text
    assert "FLOP/s\n" not in render(example, "tree", View(width=140)).split("\n\n")[1]


def test_exact_counts_are_whole(example):
    rows = render(example, "table", View(by="module", width=120, top=1)).splitlines()

    assert "134,515,008" in rows[1].split()


def test_names_share_what_room_there_is_and_modules_keep_their_end():
    columns = {"module": ["model.layers.0.self_attn.q_proj"], "class": ["QuantizedLinear"], "time_s": ["1.234 ms"]}
    grid, note = aligned(columns, 50, ("module", "class"), ["time_s"], ("module", "class"))

    # 50 less 8 of the figure and 2 gaps of 2 leave 38 for names: 15 of the class, 23 of the module
    assert to_text(grid, View(width=50)).splitlines()[1] == ("…ers.0.self_attn.q_proj  QuantizedLinear  1.234 ms")
    assert note == ""


def test_what_does_not_fit_at_all_is_left_out():
    columns = {"op": ["aten::mm"], "a": ["1.000 ms"], "b": ["2.000 ms"]}
    grid, note = aligned(columns, 19, ("op",), [])

    assert to_text(grid, View(width=19)) == "op               a\naten::mm  1.000 ms\n"
    assert note == "Not shown at this width: b"


def test_a_dumb_terminal_has_its_width_and_no_colour(monkeypatch):
    plain = render(gpu_run(), "tree", View(width=120))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())

    assert not in_color()
    assert re.sub(r"\x1b\[[\d;]*m", "", render(gpu_run(), "tree", View(width=120, color=True))) == plain
    monkeypatch.setenv("TERM", "xterm")
    assert in_color()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not in_color()


def test_an_output_without_boxes_gets_ascii(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    spell_out()

    print("├─ (0-1): 2 x Block… 50 ns ±0%\n└─ h · é", flush=True)

    assert written.getvalue().decode("ascii") == "|- (0-1): 2 x Block~ 50 ns +-0%\n`- h - ?\n"
