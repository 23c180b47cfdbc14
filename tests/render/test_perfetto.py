import gzip
import json
from itertools import pairwise

import pytest
from runs import gpu_run, kernel_row, ops_row, row, tree_row
from typer.testing import CliRunner

from gpuprof.cli import app
from gpuprof.errors import GpuprofError
from gpuprof.render import render
from gpuprof.render.view import View
from gpuprof.schema import table


def trace(run, **view):
    return json.loads(render(run, "perfetto", View(**view)))


def nanoseconds(value):
    return int(value * 1000.0)  # cut off, as Perfetto reads a number of microseconds


def tracks(trace):
    """Slices by the names of their process and thread, as (name, start, duration in ns, args)."""
    names = {
        (event["name"], event["pid"], event["tid"] if event["name"] == "thread_name" else 0): event["args"].get("name")
        for event in trace["traceEvents"]
        if event["ph"] == "M"
    }
    found = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            process, thread = event["pid"], event["tid"]
            track = (names["process_name", process, 0], names["thread_name", process, thread])
            when = (nanoseconds(event["ts"]), nanoseconds(event["dur"]))
            found.setdefault(track, []).append((event["name"], *when, event["args"]))
    return found


def test_every_event_has_what_the_format_asks_for():
    trace_ = trace(gpu_run())

    assert trace_["displayTimeUnit"] == "ns"
    assert {event["ph"] for event in trace_["traceEvents"]} == {"M", "X"}
    for event in trace_["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["args"], dict)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
    threads = [event["tid"] for event in trace_["traceEvents"] if event["name"] == "thread_name"]
    assert len(threads) == len(set(threads)) == 3


def test_kernels_are_all_there_with_their_times_and_flops():
    kernels = tracks(trace(gpu_run()))["GPU (traced step)", "stream 7"]

    # 1000 FLOPs at half of 100 FLOP/ns, twice, and 2000; the backward twice as many at a quarter; the optimizer
    assert [(name, start, duration) for name, start, duration, _ in kernels] == [
        ("gemm", 0, 20), ("gemm", 20, 20), ("gemm", 40, 40),
        ("gemm", 80, 80), ("gemm", 160, 80), ("gemm", 240, 160), ("step", 400, 40),
    ]  # fmt: skip
    assert [about.get("flops of the call") for *_, about in kernels] == [1000, 1000, 2000, 2000, 2000, 4000, None]
    assert kernels[3][3] == {
        "module": "layers.0", "phase": "backward", "op": "aten::bmm", "shapes": "", "flops of the call": 2000,
    }  # fmt: skip


def test_modules_stand_below_what_they_are_part_of():
    modules = tracks(trace(gpu_run()))["modules", "stream 7"]

    assert [(name, start, duration, about.get("flops")) for name, start, duration, about in modules] == [
        ("Net", 0, 80, 4000),
        ("layers: ModuleList", 0, 40, 2000), ("0: Block", 0, 20, 1000), ("1: Block", 20, 20, 1000),
        ("head: Linear", 40, 40, 2000),
        ("Net", 80, 320, 8000),
        ("layers: ModuleList", 80, 160, 4000), ("0: Block", 80, 80, 2000), ("1: Block", 160, 80, 2000),
        ("head: Linear", 240, 160, 4000),
        ("(unattributed)", 400, 40, 0),
    ]  # fmt: skip
    assert modules[1][3] == {
        "module": "layers", "phase": "forward", "kernels": 2, "kernel time, us": 0.04, "flops": 2000,
    }  # fmt: skip


def test_modules_down_to_a_depth_and_in_another_convention():
    modules = tracks(trace(gpu_run(), depth=1, convention="full"))["modules", "stream 7"]

    assert [(name, about["flops"]) for name, _, _, about in modules[:3]] == [
        ("Net", 8000), ("layers: ModuleList", 4000), ("head: Linear", 4000),
    ]  # fmt: skip


def test_phases_last_from_their_first_kernel_to_their_last():
    phases = tracks(trace(gpu_run()))["phases", "stream 7"]

    assert [slice_[:3] for slice_ in phases] == [("forward", 0, 80), ("backward", 80, 320), ("optimizer", 400, 40)]


def test_a_backward_that_is_assumed_has_no_flops():
    phases = tracks(trace(gpu_run(), convention="calflops"))["phases", "stream 7"]

    assert [("flops" in about) for *_, about in phases] == [True, False, True]


def many_streams():
    """Two streams at odd nanoseconds, a module that comes back, and a kernel that begins before the last one ended."""
    run = gpu_run()
    run.kernels = table(
        "kernels",
        [
            kernel_row("layers.0", "forward", "aten::mm", 1001, 1003, call=0),
            kernel_row("head", "forward", "aten::mm", 2004, 999_999, call=1),
            kernel_row("layers.0", "forward", "aten::mm", 1_002_003, 7, call=2),
            kernel_row("layers.1", "forward", "aten::mm", 1_002_009, 50, call=3),
            kernel_row("layers.1", "backward", "aten::bmm", 1_500_001, 50, call=4, stream="13"),
            kernel_row("layers.0", "backward", "aten::bmm", 1_500_051, 1, call=5, stream="13"),
        ],
    )
    return run


@pytest.mark.parametrize("run", [gpu_run(), many_streams()])
def test_slices_of_a_track_lie_in_one_another_or_apart(run):
    for slices in tracks(trace(run)).values():
        around = []
        for _, start, duration, _ in slices:
            while around and around[-1] <= start:
                around.pop()
            assert not around or start + duration <= around[-1]
            around.append(start + duration)
        assert all(before[1] <= after[1] for before, after in pairwise(slices))


def test_streams_are_tracks_and_kernels_that_overlap_have_one_each():
    found = tracks(trace(many_streams()))

    kernels = {thread: slices for (process, thread), slices in found.items() if process.startswith("GPU")}
    assert {thread: [slice_[1] for slice_ in slices] for thread, slices in kernels.items()} == {
        "stream 7": [1001, 2004, 1_002_003], "stream 7 (2)": [1_002_009], "stream 13": [1_500_001, 1_500_051],
    }  # fmt: skip
    assert sum(slice_[2] for slices in kernels.values() for slice_ in slices) == 1003 + 999_999 + 7 + 50 + 50 + 1
    # layers.0 ran, then the head, then layers.0 again
    names = [slice_[:3] for slice_ in found["modules", "stream 7"]]
    assert names == [
        ("Net", 1001, 1_002_010 - 1001),
        ("layers: ModuleList", 1001, 1003), ("0: Block", 1001, 1003), ("head: Linear", 2004, 999_999),
        ("layers: ModuleList", 1_002_003, 7), ("0: Block", 1_002_003, 7),
    ]  # fmt: skip


def test_calls_of_unlike_cost_are_told_apart_by_shapes_or_not_at_all():
    run = gpu_run()
    run.tree = table("tree", [tree_row("", "Net")])
    small, large = (ops_row("", "forward", "aten::mm.default", flops) for flops in (48, 4800))
    run.ops = table(
        "ops", [{**small, "shapes": "2x3 3x4 -> 2x4"}, {**large, "shapes": "20x3 3x40 -> 20x40", "calls": 1}]
    )
    mm = kernel_row("", "forward", "aten::mm", 0, 10)
    add = kernel_row("", "forward", "aten::add_", 20, 10, call=1)  # counted out of place elsewhere: no products
    run.kernels = table("kernels", [{**mm, "shapes": "20x3 3x40"}, add])

    (_, _, _, about), *_ = tracks(trace(run))["GPU (traced step)", "stream 7"]
    assert about["flops of the call"] == 4800
    assert tracks(trace(run))["phases", "stream 7"][0][3]["flops"] == 4800

    run.kernels = table("kernels", [mm, add])
    assert "flops of the call" not in tracks(trace(run))["GPU (traced step)", "stream 7"][0][3]
    assert "flops" not in tracks(trace(run))["phases", "stream 7"][0][3]


def test_names_are_kept_whatever_they_hold():
    run = gpu_run()
    name = 'void gemm<"a\\b", </script>>\n\u00e9'
    run.kernels.loc[0, "kernel"] = name

    assert tracks(trace(run))["GPU (traced step)", "stream 7"][0][0] == name


def test_a_cpu_has_threads():
    run = gpu_run()
    run.device = {"type": "cpu", "name": "AMD EPYC"}

    assert list(tracks(trace(run))) == [(name, "thread 7") for name in ("phases", "modules", "CPU (traced step)")]


def test_a_run_without_a_trace_is_refused():
    run = gpu_run()
    del run.passes["trace"]

    with pytest.raises(GpuprofError, match="no trace to show"):
        render(run, "perfetto")


def test_show_writes_it(tmp_path):
    gpu_run().save(tmp_path / "run.json")
    cli = CliRunner()

    ended = cli.invoke(app, ["show", f"{tmp_path}/run.json", "-f", "perfetto", "-o", f"{tmp_path}/trace.json.gz"])

    assert (ended.exit_code, ended.output) == (0, "")
    assert json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes())) == trace(gpu_run())
    refused = cli.invoke(app, ["show", f"{tmp_path}/run.json", "-f", "perfetto", "--by", "op"])
    assert isinstance(refused.exception, GpuprofError)
    assert "--format table" in str(refused.exception)


def test_the_figures_of_a_module_are_those_of_its_row():
    run = gpu_run()
    modules = run.modules()

    for name, path in (("Net", ""), ("layers: ModuleList", "layers"), ("head: Linear", "head")):
        forward, backward = (s for s in tracks(trace(run))["modules", "stream 7"] if s[0] == name)
        figures = row(modules, module=path)
        assert (forward[3]["flops"], backward[3]["flops"]) == (figures["flops_forward"], figures["flops_backward"])
        assert forward[3]["kernel time, us"] == pytest.approx(figures["time_forward_s"] * 1e6)
