"""Counts of any size: a run whose every count is multiplied by one number, read and shown by all that reads and shows.

The first number leaves totals within 64 bits and beyond what a float holds, the second beyond 64 bits.
"""

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from releases import rotary_product
from runs import counted_run, generation_run, gpu_run, kernel_row, ops_row

import gpuprof
from gpuprof.analysis.backward import backward_ratios
from gpuprof.analysis.budget import budget
from gpuprof.analysis.ceilings import matmul_shapes
from gpuprof.analysis.check import check, check_interleaved
from gpuprof.analysis.conventions import beside
from gpuprof.analysis.modules import by_class, by_module
from gpuprof.analysis.op_tables import by_op
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.ranks import rank_rows
from gpuprof.analysis.sweep import sweep_table
from gpuprof.analysis.totals import totals
from gpuprof.analysis.validation import validate
from gpuprof.history import open_store
from gpuprof.render import FORMATS, render
from gpuprof.render.backward import render_backward
from gpuprof.render.backward_chart import backward_chart
from gpuprof.render.budget import budget_chart, render_budget
from gpuprof.render.page import render_page
from gpuprof.render.regression import render_check
from gpuprof.render.roofline import render_roofline
from gpuprof.render.roofline_chart import roofline_chart
from gpuprof.render.sweep import FORMATS as SWEEP_FORMATS
from gpuprof.render.validation import FORMATS as VALIDATION_FORMATS
from gpuprof.render.validation import render_validation
from gpuprof.render.view import BY, View
from gpuprof.schema import integers, table
from gpuprof.sweep import Point

TIMES = [10**13 + 37, 10**20 + 39]
"""In neither case is a product with a small number the float next to it."""

COUNTS = ("flops", "macs", "vector_flops", "bytes", "difference")
NO_COUNTS = ("flops_per_s", "flops_executed", "difference_percent", "flops_profiler", "bytes_s")


def times(run, factor):
    for name in ("ops", "estimates"):
        frame = getattr(run, name)
        for column in frame.columns.intersection(["flops_causal", "flops_full", "flops_hardware", "vector_flops",
                                                  "bytes", "flops_profiler"]):  # fmt: skip
            frame[column] = integers(None if pd.isna(value) else int(value) * factor for value in frame[column])
    for peaks in run.device["peaks"].values():  # or it would have done more than its device can
        peaks.update({dtype: peak * factor for dtype, peak in peaks.items()})
    return run


def a_rank(factor=1):
    """`counted_run` so many times as large, with a message, as the one rank of a job."""
    run = counted_run()
    message = ops_row("", "backward", "c10d::allreduce_.default", 0, kind="communication")
    run.ops = table("ops", [*run.ops.to_dict("records"), message])
    kernel = kernel_row("", "backward", "c10d::allreduce_", 440, 10, kernel="ncclDevKernel_AllReduce", call=10)
    run.kernels = table("kernels", [*run.kernels.to_dict("records"), kernel])
    run = times(run, factor)
    run.ranks = table("ranks", rank_rows(run, 0))
    return run


def with_shapes(run):
    """Products of (2, 3) with (3, 4), in float32 and bfloat16 alike."""
    run.ops["shapes"] = "2x3 3x4 -> 2x4"
    run.kernels["shapes"] = "2x3 3x4"
    return run


def is_count(name):
    return str(name).startswith(COUNTS) and not str(name).startswith(NO_COUNTS)


def same_times(small, large, factor, where=""):
    """How many counts were compared in two JSON documents of one form."""
    if isinstance(small, dict):
        assert small.keys() == large.keys(), where
        return sum(
            compared(value, large[key], factor, f"{where}.{key}") if is_count(key)
            else same_times(value, large[key], factor, f"{where}.{key}")
            for key, value in small.items()
        )  # fmt: skip
    if isinstance(small, list):
        assert len(small) == len(large), where
        return sum(same_times(a, b, factor, f"{where}[{n}]") for n, (a, b) in enumerate(zip(small, large, strict=True)))
    return 0


def compared(small, large, factor, where):
    if small is None:
        assert large is None, where
        return 0
    assert type(large) is int, (where, large)
    assert large == small * factor, where
    return 1


@pytest.mark.parametrize("factor", TIMES)
@pytest.mark.parametrize("by", [by for by in BY if by not in ("kernel", "part")])
def test_shown_as_json_and_csv(factor, by):
    runs = a_rank(), a_rank(factor)
    small, large = (json.loads(render(run, "json", View(by=by))) for run in runs)
    assert same_times(small, large, factor)
    lines = (csv.DictReader(io.StringIO(render(run, "csv", View(by=by)))) for run in runs)
    for one, other in zip(*lines, strict=True):
        for name in filter(is_count, one):
            assert other[name] == (str(int(one[name]) * factor) if one[name] else ""), name


@pytest.mark.parametrize("factor", TIMES)
@pytest.mark.parametrize("by", ["part", "phase", "module", "class"])
def test_bytes_of_a_generation(factor, by):
    def shown(run):
        return json.loads(render(run, "json", View(by=by)))

    large = generation_run()
    held = large.passes["count"].facts["cache"]
    held["bytes"] = [size * factor for size in held["bytes"]]
    large.traffic["bytes"] = integers(int(size) * factor for size in large.traffic["bytes"])
    for one, other in zip(shown(generation_run()), shown(large), strict=True):
        of_bytes = [name for name in one if name.startswith("bytes_") or name.endswith("_bytes") or name == "bytes"]
        of_bytes = [name for name in of_bytes if "per_s" not in name and one[name] != other[name]]
        assert all(other[name] == one[name] * factor for name in of_bytes)
        assert of_bytes or not any(value for name, value in one.items() if "bytes" in name)


@pytest.mark.parametrize("factor", TIMES)
@pytest.mark.parametrize("by", ["module", "class"])
def test_backward_and_roofline(factor, by):
    for show in (render_backward, render_roofline):
        small, large = (json.loads(show(run, "json", View(by=by))) for run in (gpu_run(), times(gpu_run(), factor)))
        assert same_times(small, large, factor)
    pd.testing.assert_series_equal(
        backward_ratios(gpu_run(), by)["ratio_flops"], backward_ratios(times(gpu_run(), factor), by)["ratio_flops"]
    )


@pytest.mark.parametrize("factor", TIMES)
def test_roofline_by_kernel(factor):
    small, large = (
        json.loads(render_roofline(run, "json", View(by="kernel")))
        for run in (with_shapes(gpu_run()), with_shapes(times(gpu_run(), factor)))
    )
    assert same_times(small, large, factor)


def test_roofline_by_kernel_of_a_call_that_is_no_whole_number():
    """Three calls of 10^20 + 39 FLOPs in all, each with a kernel of its own: the kernels have all of them again."""
    run = with_shapes(gpu_run())
    mine = run.ops["module"] == "head"
    run.ops = pd.concat([run.ops[mine & (run.ops["phase"] == "forward")]], ignore_index=True)
    run.ops["calls"] = pd.array([3], dtype="Int64")
    run.ops["flops_hardware"] = integers([10**20 + 39])
    one = run.kernels[(run.kernels["module"] == "head") & (run.kernels["phase"] == "forward")]
    run.kernels = pd.concat([one.assign(call=call) for call in range(3)], ignore_index=True)
    run.kernels["call"] = run.kernels["call"].astype("Int64")
    run.device["peaks"] = {}

    rows = json.loads(render_roofline(run, "json", View(by="kernel")))

    assert [row["flops"] for row in rows["rows"]] == [10**20 + 39]


@pytest.mark.parametrize("factor", TIMES)
def test_every_format_and_picture_of_the_page_shows_it(factor):
    run = a_rank(factor)
    for format in FORMATS:
        for by in [by for by in BY if by != "part"] if format != "tree" else ("module",):
            assert render(run, format, View(by=by)).endswith("\n")
    for format in ("text", "markdown", "csv", "json"):
        assert render_budget(budget(run), format)
        assert render_backward(run, format)
        assert render_roofline(run, format)
    page = render_page(run)
    prefix = {10**13 + 37: "120.0 PFLOPs", 10**20 + 39: "1.200 YFLOPs"}[factor]
    assert prefix in render(run, "tree")
    assert prefix in page


@pytest.mark.parametrize("factor", TIMES)
def test_a_trace_for_perfetto(factor):
    small, large = (json.loads(render(run, "perfetto")) for run in (gpu_run(), times(gpu_run(), factor)))
    pairs = list(zip(small["traceEvents"], large["traceEvents"], strict=True))
    assert sum(same_times(one["args"], other["args"], factor) for one, other in pairs) > 10


@pytest.mark.parametrize("factor", TIMES)
@pytest.mark.parametrize("convention", ["causal", "full", "flash", "torch-counter", "calflops", "calflops-0.3"])
def test_totals_in_every_convention_of_rows(factor, convention):
    """Twice a row is a row of twice as much, and an assumed backward still twice its forward."""
    small, large = (with_shapes(run) for run in (gpu_run(), times(gpu_run(), factor)))
    if convention.startswith(("calflops", "torch-counter")):  # they count from the shapes alone
        factor = 1
    a, b = totals(small, convention), totals(large, convention)
    for name in ("macs", "flops_forward", "flops_backward", "flops", "counted_flops"):
        assert type(b[name]) is int
        assert b[name] == a[name] * factor, name


@pytest.mark.parametrize("factor", TIMES)
def test_products_of_a_run(factor):
    small, large = (matmul_shapes(with_shapes(run)) for run in (gpu_run(), times(gpu_run(), factor)))
    assert [int(flops) for flops in large["flops"]] == [int(flops) * factor for flops in small["flops"]]
    assert list(large["share"]) == pytest.approx(list(small["share"]))


@pytest.mark.parametrize("factor", TIMES)
def test_a_sweep(factor):
    point = Point("net", {"mode": "train"}, "done")
    tables = [sweep_table([(point, run)]) for run in (gpu_run(), times(gpu_run(), factor))]
    small, large = (json.loads(SWEEP_FORMATS["json"](table, View())) for table in tables)
    assert same_times(small, large, factor)
    for show in SWEEP_FORMATS.values():
        assert show(tables[1], View())


@pytest.mark.parametrize("factor", TIMES)
def test_a_file_and_a_store_give_back_every_digit(factor, tmp_path):
    run = times(gpu_run(), factor)
    run.device["peaks"] = {}  # no file holds one as high
    loaded = gpuprof.load(run.save(tmp_path / "run.json.gz"))
    assert loaded.to_dict() == run.to_dict()
    assert totals(loaded)["flops"] == 12_000 * factor

    with open_store(tmp_path / "history.db") as store:
        store.add(run)
        later = times(gpu_run(), factor)
        later.environment["date"] = "2026-02-02T00:00:00+00:00"
        later.samples = table("samples", [{"step": n, "phase": "step", "time_s": 480e-9, "launch": n} for n in (0, 1)])
        store.add(later, verdict="improvement", accepted=True)
        assert list(store.runs()["flops"]) == [12_000 * factor] * 2
        assert list(store.series()["flops"]) == [12_000 * factor] * 3
        newest = times(gpu_run(), factor)
        newest.environment["date"] = "2026-03-02T00:00:00+00:00"
        assert list(store.baseline(newest)["flops"]) == [12_000 * factor] * 3


@pytest.mark.parametrize("factor", TIMES)
def test_one_flop_more_is_seen(factor):
    """Of two runs in 12,000 times the number FLOPs, one has a single one more."""

    def run(day, more=0):
        made = times(gpu_run(), factor)
        made.environment["date"] = f"2026-01-{day:02}T00:00:00+00:00"
        made.ops["flops_causal"] = integers(
            None if pd.isna(flops) else int(flops) + (more if row == 0 else 0)
            for row, flops in enumerate(made.ops["flops_causal"])
        )
        return made

    baseline, head = [run(1), run(2), run(3)], run(4, more=1)
    for found in (check(head, baseline), check_interleaved(baseline[:2], [head, head])):
        flops = next(verdict for verdict in found.verdicts if verdict.metric == "flops")
        assert (flops.status, flops.value - flops.m0) == ("regression", 1)
        for format in ("text", "markdown", "json"):
            assert render_check(found, format)
    assert next(v for v in check(run(4), baseline).verdicts if v.metric == "flops").status == "pass"


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        ([2**59 - 1, 2**59], [2**59 - 1, 2**59]),
        ([2**62, 2**62, None], [2**62, 2**62, pd.NA]),  # each fits in 64 bits, their sum does not
        ([2**64 + 1, 0], [2**64 + 1, 0]),
        ([-(2**63), None, 5], [-(2**63), pd.NA, 5]),
        ([np.int64(2**62), pd.NA, float("nan"), 7, np.int64(2**62)], [2**62, pd.NA, pd.NA, 7, 2**62]),
        ([], []),
    ],
)
def test_columns_add_up_without_a_wrap(values, exact):
    column = pd.Series(integers(values))

    assert [value if value is pd.NA else int(value) for value in column] == exact
    assert column.sum() == sum(value for value in exact if value is not pd.NA)


def test_a_file_of_before_is_read_as_it_was(tmp_path):
    """Nothing in the form of a file has changed: small counts are the same bytes and the same columns."""
    run = gpu_run()
    assert str(gpuprof.load(run.save(tmp_path / "run.json")).ops["flops_full"].dtype) == "Int64"


def test_a_count_that_no_rate_could_be_made_of_is_refused(tmp_path):
    run = gpu_run()
    text = json.dumps(run.to_dict()).replace('"flops_full": [2000,', f'"flops_full": [{10**400},')
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(gpuprof.GpuprofError, match="flops_full is out of range"):
        gpuprof.load(tmp_path / "run.json")


def test_tables_of_large_and_small_rows_add_up():
    """One operator of 2^70 FLOPs beside the small ones: every sum has all of its digits."""
    run = gpu_run()
    run.ops["flops_causal"] = integers([2**70, *run.ops["flops_causal"][1:]])
    forward = 2**70 + 1000 + 2000

    assert totals(run)["flops_forward"] == forward
    assert by_module(run).set_index("module")["flops_forward"][""] == forward
    assert by_class(run).set_index("class")["flops_forward"]["Block"] == 2**70 + 1000
    assert by_op(run).set_index("op")["flops"]["aten::mm"] == forward
    assert by_phase(run).set_index("phase")["flops"]["forward"] == forward
    assert beside(run).set_index("convention")["flops"]["causal"] == forward + 8000


def test_rows_are_sorted_by_a_count_beyond_64_bits():
    run = times(gpu_run(), TIMES[1])
    rows = json.loads(render(run, "json", View(by="module", sort="flops_forward")))

    assert [row["module"] for row in rows] == ["", "layers", "head", "layers.0", "layers.1", "(unattributed)"]


@pytest.mark.parametrize("factor", TIMES)
def test_a_report_held_against_it(factor):
    """Right to the digit, beside a line that nothing was counted for."""
    names = ["line", "module", "class", "quantity", "value", "precision", "text"]
    of_tool = pd.DataFrame(
        [[1, "head", "Linear", "macs", 1000.0 * factor, 1e-9 * factor, f"{factor}000"],
         [1, "head", "Linear", "flops", 2000.0 * factor, 1e-9 * factor, f"{2 * factor}000"],
         [1, "head", "Linear", "latency", 1.0, 0.5, "1"]], columns=names,
    )  # fmt: skip
    of_tool.attrs["tool"] = "deepspeed"

    found = validate(of_tool, times(gpu_run(), factor))

    assert found.lines["verdict"].tolist() == ["right", "right", "not checked"]
    assert found.lines["causal"].tolist() == [1000 * factor, 2000 * factor, None]
    assert found.lines["full"].tolist() == [2000 * factor, 4000 * factor, None]
    assert f",{1000 * factor},{2000 * factor}," in render_validation(found, "csv")
    for format in VALIDATION_FORMATS:
        assert render_validation(found, format)


@pytest.mark.parametrize("factor", TIMES)
def test_pictures(factor, tmp_path):
    run = times(gpu_run(), factor)
    drawn = [
        backward_chart(run, tmp_path / "backward.svg"),
        roofline_chart(run, tmp_path / "roofline.svg"),
        budget_chart(budget(run), tmp_path / "budget.svg"),
    ]
    assert all(path.stat().st_size > 1000 for path in drawn)


# -- counting


def test_a_step_of_llama_405b(tmp_path):
    """Sizes of Llama 3.1 405B, 512 sequences of 8192, trained: 126 layers of grouped attention and a gated MLP.

    Hardware FLOPs have the scores of attention once more, which the fused backward computes again.
    """
    width, heads, tokens = 16384, 128, 512 * 8192
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": 53248,
        "num_attention_heads": heads, "num_hidden_layers": 126, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False, "max_position_embeddings": 8192, "hidden_act": "silu", "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = 126 * (2 * width * width + 2 * width * 1024 + 3 * width * 53248) + width * 128256
    pairs = 126 * heads * 512 * (8192 * 8193 // 2)
    forward = 2 * tokens * weights + 2 * pairs * (128 + 128)

    run = gpuprof.count(str(tmp_path), mode="train", batch_size=512, seq_len=8192)
    found, rotary = totals(run), rotary_product(run)

    assert found["flops_forward"] == forward + rotary == 3_528_763_547_213_365_248 + rotary
    assert found["flops"] == 3 * forward + rotary
    assert found["flops_hardware"] == 3 * forward + 2 * pairs * 128 + rotary
    assert "hardware 10.66 EFLOPs" in render(run, "tree")


@pytest.mark.parametrize(
    ("model", "shape", "flops"),
    [
        (lambda: torch.nn.Linear(2**16, 2**16, bias=False, device="meta"), (2**31, 2**16), 2 * 2**31 * 2**32),
        (lambda: torch.nn.Conv2d(4096, 4096, 3, padding=1, bias=False, device="meta"), (2**24, 4096, 64, 64),
         2 * 2**24 * 4096 * 64 * 64 * 4096 * 9),
        (lambda: Causal(), (2**18, 64, 2**16, 128), 2 * 2**18 * 64 * (2**16 * (2**16 + 1) // 2) * (128 + 128)),
    ],
    ids=["linear", "convolution", "attention"],
)  # fmt: skip
def test_one_operator_beyond_64_bits(model, shape, flops):
    run = gpuprof.count(model(), torch.empty(shape, device="meta"), mode="forward")

    assert flops > 2**63
    assert totals(run)["flops_forward"] == flops


class Causal(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
