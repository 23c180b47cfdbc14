"""The page of two runs: what changed, by the rule of check, and whether the two compare."""

import html
import re

import pytest
from runs import gpu_run

import gpuprof
from gpuprof.record import PassOutcome
from gpuprof.render.page_pair import render_pair
from gpuprof.schema import table

EVIL = "</script><img src=x onerror=alert(2)>"


def timed(step_ns, launches=6):
    """gpu_run() whose launches all took so long for a step."""
    run = gpu_run()
    rows = [{"launch": launch, "phase": "step", "time_s": step_ns * 1e-9, "step": 0} for launch in range(launches)]
    run.samples = table("samples", rows)
    return run


def first(page):
    return html.unescape(re.search(r'<p class="verdict">(.*?)</p>', page)[1])


def compared(page):
    return html.unescape(re.search(r'<h2 id="compared">.*?<p class="soft">(.*?)</p>', page, re.DOTALL)[1])


@pytest.mark.parametrize(
    ("head_ns", "said"),
    [
        # the noise is the least there is, 0.3 %, of 6 launches against 6: z = 0.1 / (0.003 sqrt(2.57 / 6))
        (528, "Slower: step time 528.0 ns against 480.0 ns (+10.0 %): 10.0 % worse, z = 50.9."),
        (432, "Faster: step time 432.0 ns against 480.0 ns (-10.0 %): 10.0 % better, z = 50.9."),
        (484.8, "The same: step time 484.8 ns against 480.0 ns (+1.0 %), within 2.0 %."),
    ],
)
def test_what_changed_is_said_first_by_the_rule(head_ns, said):
    assert first(render_pair(timed(480), timed(head_ns))).startswith(said)


def test_of_few_launches_nothing_is_told():
    assert first(render_pair(timed(480, 1), timed(528, 1))).startswith(
        "Whether it is slower or faster cannot be told: step time 528.0 ns against 480.0 ns (+10.0 %): a baseline of "
        "1, and no noise is known of fewer than 5 launches."
    )


def test_runs_that_do_not_compare_stand_side_by_side_without_a_verdict():
    head = timed(480)
    head.workload["batch_size"] = 4

    page = render_pair(timed(480), head)

    assert first(page).startswith("Whether it is slower or faster cannot be told: they differ in workload.")
    assert re.match(r"The workloads are net-train-bfloat16-\w{8} and net-train-batch4-bfloat16-\w{8}\.", compared(page))
    assert "<h1>net · bfloat16 against net · batch 4 · bfloat16</h1>" in page
    assert re.match(
        r"Both are of the workload net-train-bfloat16-\w{8}\.", compared(render_pair(timed(480), timed(480)))
    )


def test_cards_waterfalls_and_what_moved_are_of_both():
    base, head = timed(480), timed(528)
    slow = head.kernels["module"] == "head"
    head.kernels.loc[slow, "duration_ns"] *= 2  # 40 ns of the forward and 160 of the backward more

    page = render_pair(base, head)

    assert re.findall(r'<h2 id="([\w-]+)">', page) == [
        "compared", "budget", "moved-layer", "provenance-base", "provenance-head",
    ]  # fmt: skip
    card = re.search(r'<div class="card pair"><span>MFU</span>(.*?)</div>\n', page, re.DOTALL)[1]
    # 120 ns at the peak, of 480 and of 528
    assert re.findall("<span>(base|head)</span><b>(.*?)</b>", card) == [("base", "25.0 %"), ("head", "22.7 %")]
    rows = page[page.index('id="table-moved-layer"') :].partition("</tbody>")[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", rows, re.DOTALL)[1:]]
    assert cells == [
        ["head", "backward", "slower", "160.0 ns", "320.0 ns", "160.0 ns", "100.0 %", "1", "1"],
        ["head", "forward", "slower", "40.00 ns", "80.00 ns", "40.00 ns", "100.0 %", "1", "1"],
    ]


def test_names_of_both_are_text():
    base, head = timed(480), timed(480)
    for run in (base, head):
        run.workload["name"] = run.device["name"] = EVIL
        run.tree["class"] = run.tree["class"].replace("Linear", EVIL)

    assert "<img" not in render_pair(base, head)


def test_a_page_of_three_runs_is_refused_in_a_line(gpuprof_cli, tmp_path):
    runs = [timed(480).save(tmp_path / f"{name}.json") for name in "abc"]

    refused = gpuprof_cli("report", *runs, "-o", tmp_path / "page.html")

    assert refused.returncode == 2
    assert refused.stderr == "gpuprof: a page is of one run or of two, not of 3: 'gpuprof history' shows many\n"
    assert not (tmp_path / "page.html").exists()
    assert gpuprof_cli("report", *runs[:2], "-o", tmp_path / "page.html").returncode == 0
    assert "gpuprof report a.json b.json -o page.html" in (tmp_path / "page.html").read_text()


def test_a_table_of_kernels_has_no_page_of_two():
    run = gpu_run()
    run.tree, run.passes = table("tree", []), {"counters": PassOutcome("done")}
    with pytest.raises(gpuprof.GpuprofError, match="has no step to compare"):
        render_pair(timed(480), run)
