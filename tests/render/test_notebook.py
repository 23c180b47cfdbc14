"""A run where Python shows it: two lines, HTML for a notebook, the report printed, and charts as figures."""

import sys
from html.parser import HTMLParser

import pytest
import trainings
from runs import counted_run, generation_run, gpu_run, rank_run, tree_row

import gpuprof
from gpuprof.record import PassOutcome
from gpuprof.render import render
from gpuprof.render.view import View
from gpuprof.schema import table

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Tags(HTMLParser):
    """What a browser makes of a text: its tags in order, and whether each is closed where it was opened."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def named(self, name):
        return [attrs for tag, attrs in self.seen if tag == name]


def counted():
    run = gpu_run()
    for name in ("time", "trace", "memory"):
        del run.passes[name]
    run.samples, run.kernels = table("samples", []), table("kernels", [])
    return run


def recorded(steps=True):
    run = gpu_run()
    run.passes["trace"] = PassOutcome("done", facts={"recorded": True})
    run.samples = run.samples.head(4) if steps else table("samples", [])
    return run


def nothing():
    about, device = {"name": "m", "mode": "train"}, {"type": "cpu", "name": "c"}
    return gpuprof.Run(about, device, {"threads": 1}, tree=table("tree", [tree_row("", "Net")]))


def of_an_unknown_cpu():
    run = nothing()
    run.device["name"], run.environment = "CPU", {}
    return run


def of_counters():
    run = counted_run()
    run.tree = table("tree", [])
    return run


ON_TOY = "train of net · bfloat16 · Toy GPU"


@pytest.mark.parametrize(
    ("run", "lines"),
    [
        # 12000 FLOPs in 480 ns on 100 GFLOP/s
        (gpu_run, [ON_TOY, "step 480.0 ns (median of 3); MFU 25.0 % of datasheet (bfloat16 100.0 GFLOP/s)"]),
        (counted, [ON_TOY, "counted, not timed; 12.00 KFLOPs a step"]),
        (recorded, [ON_TOY, "step 480.0 ns (one recorded step); MFU 25.0 % of datasheet (bfloat16 100.0 GFLOP/s)"]),
        # 4000 * 2 / 100 + 8000 * 4 / 100 + 40 ns
        (lambda: recorded(steps=False),
         [ON_TOY, "not timed, 440.0 ns of kernels in the recording; MFU withheld: no step is found in the recording "
          "('gpuprof import --step all' takes the whole of it as one)"]),
        (lambda: rank_run(0), [
            "train of net · bfloat16 · rank 0 of 2 · Toy GPU",
            "step 160.0 ns (median of 3); MFU 25.0 % of datasheet (bfloat16 100.0 GFLOP/s, float32 50.00 GFLOP/s)",
        ]),
        (generation_run, [
            "generate of net · batch 2 · prompt 4 · 4 new tokens · bfloat16 · Toy GPU",
            "step 1.360 us (median of 3); 320.0 ns per token; MBU of the decode 49.4 % of datasheet (10.00 GB/s)",
        ]),
        (nothing, ["train of m · CPU (c, 1 thread)", "nothing was measured"]),
        (of_an_unknown_cpu, ["train of m · CPU", "nothing was measured"]),
        (of_counters, [ON_TOY, "6 launches of a table of Nsight Compute"]),
    ],
)  # fmt: skip
def test_a_run_is_two_lines(run, lines):
    assert repr(run()).split("\n") == lines


def test_a_training_is_two_lines(tmp_path):
    """7 of 10 steps of 0.5 s count, in which 6000 FLOPs are next to nothing of 100 GFLOP/s."""
    run = gpuprof.load(trainings.training(tmp_path, trainings.even(0.5)))

    assert repr(run).split("\n") == [
        "train of Net · batch 4 · bfloat16 · Toy GPU",
        "step 500.0 ms (mean of 7 steps without 3 warm-up); MFU <0.1 % of datasheet (bfloat16 100.0 GFLOP/s)",
    ]


def test_a_job_is_two_lines_and_html(tmp_path):
    """Both ranks' 8000 FLOPs over the slowest step, 180 ns, on 200 GFLOP/s."""
    ranks = rank_run(0), rank_run(1, compute=130, waits=20, step_ns=180)
    job = gpuprof.read_job([run.save(tmp_path / f"run.rank{rank}.json") for rank, run in enumerate(ranks)])

    assert repr(job).split("\n")[0] == "train of net · bfloat16 · 2 ranks · Toy GPU"
    assert repr(job).split("\n")[1].startswith("step 180.0 ns (median of 3); MFU ")
    assert not Tags(job._repr_html_()).open


@pytest.mark.parametrize("run", [gpu_run, counted, recorded, generation_run, nothing, of_counters])
def test_html_is_whole_and_needs_nothing_from_elsewhere(run, monkeypatch):
    for library in ("plotly", "jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, library, None)

    page = Tags(run()._repr_html_())

    assert not page.open
    assert {tag for tag, _ in page.seen} <= {
        "div", "style", "p", "table", "tr", "th", "td", "details", "summary", "span", "i", "pre",
    }  # fmt: skip


def test_the_tree_is_folded():
    page = Tags(gpu_run()._repr_html_())

    assert page.named("details") == [{"open": None}, {"open": None}]  # the model and its layers, which are one line
    assert [attrs["title"] for attrs in page.named("span") if "title" in attrs] == [
        "", "(root)", "layers", "layers.0", "head",
    ]  # fmt: skip
    assert "2 x Block" in gpu_run()._repr_html_()


def test_names_are_text_and_nothing_else():
    run = gpu_run()
    for frame in (run.tree, run.ops, run.kernels):
        frame["module"] = frame["module"].replace("head", EVIL)
    run.tree["class"] = run.tree["class"].replace("Linear", EVIL)
    run.workload["name"] = run.device["name"] = EVIL
    run.warnings = [EVIL]

    page = Tags(run._repr_html_())

    assert not page.open
    assert not page.named("script")
    assert not page.named("img")


@pytest.mark.parametrize(
    ("given", "format", "view"),
    [
        ({}, "tree", View()),
        ({"depth": 1}, "tree", View(depth=1)),
        ({"by": "op", "top": 2}, "table", View("op", top=2)),
        ({"format": "csv", "sort": "flops_forward", "convention": "full"}, "csv",
         View(sort="flops_forward", convention="full")),
    ],
)  # fmt: skip
def test_show_prints_what_the_command_line_does(given, format, view, capsys):
    gpu_run().show(**given)

    assert capsys.readouterr().out == render(gpu_run(), format, view)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "html"}, "no format 'html': known are tree, table"),
        ({"by": "layer"}, "cannot show by 'layer': known are module, class"),
        ({"depth": -1}, "depth must be a whole number of at least 0, not -1"),
        ({"depth": "2"}, "depth must be a whole number of at least 0, not '2'"),
        ({"top": 0}, "top must be a whole number of at least 1, not 0"),
        ({"by": "op", "sort": "speed"}, "no column 'speed' to sort by: there are op, "),
        ({"convention": "mine"}, "no convention 'mine': "),
        ({"format": "tree", "top": 3}, "a tree keeps the model's order: give --top and --sort with --format table"),
        ({"format": "tree", "by": "op"}, "a tree is by module; by op there are: "),
        ({"format": "calflops", "by": "op"}, "calflops' layout is by module"),
        ({"format": "perfetto", "sort": "module"}, "a trace has every kernel"),
    ],
)
def test_what_cannot_be_shown_is_one_line(given, message):
    with pytest.raises(gpuprof.GpuprofError, match="^" + message) as error:
        gpu_run().show(**given)

    assert "\n" not in str(error.value)


def test_charts_are_figures_that_a_notebook_shows():
    from matplotlib.figure import Figure

    run = gpu_run()
    figures = [
        run.budget_figure(), run.budget_figure("backward", convention="full"), run.backward_figure(),
        run.backward_figure("class", top=1),
    ]  # fmt: skip

    assert all(isinstance(figure, Figure) for figure in figures)
    assert figures[0]._repr_png_().startswith(b"\x89PNG")
    assert figures[1].axes[0].get_xlabel() == "% of the backward"
    assert [label.get_text() for label in figures[3].axes[0].get_yticklabels()] == ["Net"]


def test_a_figure_of_what_was_not_measured_is_one_line():
    with pytest.raises(gpuprof.GpuprofError, match="timeline"):
        gpu_run().memory_figure()
    with pytest.raises(gpuprof.GpuprofError, match="top must be a whole number of at least 1, not 0"):
        gpu_run().roofline_figure(top=0)


def test_without_matplotlib_there_is_all_but_figures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert repr(gpu_run()).startswith(ON_TOY)
    for name in ("budget", "backward", "roofline", "memory"):
        with pytest.raises(gpuprof.GpuprofError, match="charts need matplotlib, which is not installed: pip install"):
            getattr(gpu_run(), f"{name}_figure")()
