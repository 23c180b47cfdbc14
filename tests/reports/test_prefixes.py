"""Reports in logs: what stands in front of every line, and the ranks that print at once, change no figure."""

import html
from pathlib import Path

import pytest

from gpuprof.errors import GpuprofError
from gpuprof.reports import read_report

DATA = Path(__file__).parents[1] / "data/reports"
REPORTS = [
    "calflops_gpt2", "deepspeed_gated", "deepspeed_03_net", "ptflops_gpt2", "ptflops_04_net", "mmcv_net",
    "fvcore_bert_str", "mmengine_net", "torch_counter_gpt2_training", "torchinfo_gpt2", "torch_summary_net",
    "torchsummary_net", "lightning_net", "lightning_net_rich", "torchtnt_net", "thop_net", "thop_net_clever",
]  # fmt: skip


def _seconds(number):
    return f"10:00:{number % 60:02}"


PREFIXES = {
    "srun": lambda number: "0: ",
    "srun, padded": lambda number: "  3: ",
    "torchrun": lambda number: "[default0]:",
    "rank": lambda number: "[rank0]: ",
    "quote": lambda number: "> ",
    "quoted twice": lambda number: "> > ",
    "comment": lambda number: "# ",
    "added in a patch": lambda number: "+",
    "logging": lambda number: "INFO:root:",
    "hydra": lambda number: f"[2024-05-01 {_seconds(number)},{number * 37 % 1000:03}][INFO] - ",
    "deepspeed": lambda number: f"[2024-05-01 {_seconds(number)},{number}] [INFO] [logging.py:96:log_dist] [Rank 0] ",
    "openmmlab": lambda number: f"05/01 {_seconds(number)} - mmengine - INFO - ",
    "loguru": lambda number: f"2024-05-01 {_seconds(number)}.123 | INFO     | __main__:main:12 - ",
    "glog": lambda number: f"I0501 {_seconds(number)}.{number * 7919 % 10**6:06} 140 train.py:12] ",
    "kubectl": lambda number: f"2024-05-01T{_seconds(number)}.{number * 7919:09}Z ",
    "ray": lambda number: "(RayTrainWorker pid=1234, ip=10.0.0.1) ",
    "compose": lambda number: "worker-0  | ",
    "seconds": lambda number: f"[{number * 0.37:12.6f}] ",
    "grep -n": lambda number: f"{number}:",
    "cat -n": lambda number: f"{number:6}\t",
    "tab": lambda number: "\t",
}


@pytest.fixture
def read_text(tmp_path):
    def read(text):
        path = tmp_path / "report.txt"
        path.write_text(text)
        return read_report(path)

    return read


def text_of(name):
    return (DATA / f"{name}.txt").read_text()


def figures(frame):
    return frame.drop(columns="line").to_dict("list")


@pytest.mark.parametrize("name", REPORTS)
def test_what_is_in_front_of_every_line_changes_nothing(name, read_text):
    expected = read_report(DATA / f"{name}.txt").to_dict("list")
    for make in PREFIXES.values():
        lines = text_of(name).split("\n")
        assert (
            read_text("\n".join(make(place) + line for place, line in enumerate(lines, 1))).to_dict("list") == expected
        )
        # editors cut spaces off at the ends of lines
        prefixed = [(make(place) + line).rstrip() for place, line in enumerate(lines, 1)]
        assert read_text("\n".join(prefixed)).to_dict("list") == expected


@pytest.mark.parametrize("name", REPORTS)
def test_a_frame_around_the_report_and_other_lines_in_it_change_nothing(name, read_text):
    expected = figures(read_report(DATA / f"{name}.txt"))
    lines = text_of(name).split("\n")
    width = max(map(len, lines))
    noise = ["50%|##  | 1/2", "WARNING something (odd): x", "[rank1]: step 3"]

    assert figures(read_text("\n".join(f"| {line:<{width}} |" for line in lines))) == expected
    assert figures(read_text("\n".join("\n".join([f"[rank0]: {line}", *noise]) for line in lines))) == expected


@pytest.mark.parametrize("name", REPORTS)
def test_a_logger_with_one_prefix_for_the_message(name, read_text):
    lines = text_of(name).strip("\n").split("\n")
    first = "2024-05-01 10:00:00,123 - INFO - "

    frame = read_text("\n".join([f"{first}before", first + lines[0], *lines[1:], f"{first}after"]))

    assert figures(frame) == figures(read_report(DATA / f"{name}.txt"))


def test_a_logger_with_a_prefix_before_the_model_alone(read_text):
    text = text_of("ptflops_gpt2").replace("GPT2LMHeadModel(", "INFO:root:GPT2LMHeadModel(")

    frame = read_text(f"INFO:root:loading (1 of 2)\n{text}INFO:root:done\n")

    assert figures(frame) == figures(read_report(DATA / "ptflops_gpt2.txt"))
    assert set(frame.loc[frame["module"] == "", "class"]) == {"GPT2LMHeadModel"}


def test_a_summary_with_prefixes_above_a_model_without(read_text):
    lines = text_of("deepspeed_gated").split("\n")
    model = next(place for place, line in enumerate(lines) if line.startswith("Gated("))

    frame = read_text("\n".join([f"INFO:root:{line}" for line in lines[:model]] + lines[model:]))

    assert figures(frame) == figures(read_report(DATA / "deepspeed_gated.txt"))


@pytest.mark.parametrize("begins", ["+--", "Net("])
def test_of_two_layouts_one_has_prefixes(begins, read_text):
    lines = text_of("mmengine_net").split("\n")
    start = next(place for place, line in enumerate(lines) if line.startswith(begins))
    end = next(place for place, line in enumerate(lines) if place > start and line in ("", ")"))

    prefixed = [f"[rank0]: {line}" if start <= place <= end else line for place, line in enumerate(lines)]

    assert read_text("\n".join(prefixed)).to_dict("list") == read_report(DATA / "mmengine_net.txt").to_dict("list")


def test_two_ranks_that_print_two_layouts(read_text):
    lines = text_of("mmengine_net").split("\n")
    model = lines.index("Net(")

    frame = read_text("\n".join(f"{int(place >= model)}: {line}" for place, line in enumerate(lines)))

    assert frame.attrs["ranks"] == "2 ranks printed a report: this is of '0', and that of '1' differs from it"


# --- ranks


@pytest.mark.parametrize("name", REPORTS)
def test_ranks_that_print_at_once(name, read_text):
    lines = text_of(name).split("\n")

    frame = read_text("\n".join(f"{rank}: {line}" for line in lines for rank in (1, 0)))

    assert figures(frame) == figures(read_report(DATA / f"{name}.txt"))
    assert frame["line"].min() % 2 == 0
    assert frame.attrs["ranks"] == "2 ranks printed the same report: this is of '0'"


@pytest.mark.parametrize(
    ("prefix", "label"),
    [
        ("[2024-05-01 10:00:{number:02},{rank}23][rank{rank}][INFO] - ", "rank0"),
        ("(RayTrainWorker pid=41{rank}, ip=10.0.0.{rank}) ", "410"),
        ("node-{rank}.cluster: ", "0"),
        ("{name}: ", "alice:"),
    ],
)
def test_how_ranks_are_told_apart(prefix, label, read_text):
    lines = text_of("ptflops_04_net").split("\n")
    names = ("alice", "bob", "eve")

    frame = read_text("\n".join(
        prefix.format(rank=rank, name=names[rank], number=number) + line
        for number, line in enumerate(lines) for rank in (2, 0, 1)
    ))  # fmt: skip

    assert figures(frame) == figures(read_report(DATA / "ptflops_04_net.txt"))
    assert frame.attrs["ranks"] == f"3 ranks printed the same report: this is of '{label}'"


def test_ranks_with_other_times_say_the_same_and_with_other_figures_do_not(read_text):
    text = text_of("deepspeed_gated")
    latency = next(line for line in text.split("\n") if line.startswith("fwd latency")).split()[-2]

    def ranks(old, new):
        return read_text("\n".join(f"{rank}: {line}" for rank, report in ((0, text), (10, text.replace(old, new)))
                                   for line in report.split("\n"))).attrs["ranks"]  # fmt: skip

    assert ranks(f"{latency} ", "1234.5 ") == "2 ranks printed the same report: this is of '0'"
    assert (
        ranks("2.63 MMACs", "1.31 MMACs")
        == "2 ranks printed a report: this is of '0', and that of '10' differs from it"
    )


def test_a_rank_that_was_killed(read_text):
    lines = text_of("ptflops_04_net").split("\n")

    frame = read_text("\n".join([f"0: {line}" for line in lines] + [f"1: {line}" for line in lines[:5]]))

    assert frame.attrs["ranks"].startswith("2 ranks printed a report: this is of '0'; of '1': ")
    assert frame.attrs["ranks"].endswith(f"ends inside 'blocks' (line {len(lines) + 4}): the report is cut off")


def test_ranks_that_say_other_things_are_none(read_text):
    lines = text_of("ptflops_04_net").split("\n")

    frame = read_text(
        "\n".join(text for place, line in enumerate(lines) for text in (f"0: {line}", f"1: step {place}"))
    )

    assert "ranks" not in frame.attrs


def test_a_number_that_is_no_rank_takes_no_figure_away(read_text):
    lines = text_of("calflops_bert_summary").split("\n")

    # each line is printed by a line of its own of the user's program
    frame = read_text("\n".join(f"INFO train.py {40 + place % 2}] {line}" for place, line in enumerate(lines)))

    assert figures(frame) == figures(read_report(DATA / "calflops_bert_summary.txt"))
    assert "ranks" not in frame.attrs


@pytest.mark.parametrize("name", ["thop_net", "torchinfo_gpt2", "fvcore_bert_str"])
def test_a_copy_of_a_page_and_of_its_source(name, read_text):
    expected = figures(read_report(DATA / f"{name}.txt"))

    assert figures(read_text(f"<pre>\n{html.escape(text_of(name))}\n</pre>\n")) == expected
    assert figures(read_text(text_of(name).replace("  ", "\u00a0 "))) == expected


# --- what is wrong stays wrong


@pytest.mark.parametrize("name", ["ptflops_04_net", "calflops_gpt2"])
def test_two_reports_of_one_rank_are_refused(name, read_text):
    lines = text_of(name).split("\n") * 2

    with pytest.raises(GpuprofError, match="a second report"):
        read_text("\n".join(f"[2024-05-01 10:00:{place // 20:02}] {line}" for place, line in enumerate(lines)))


def test_a_cut_in_a_log_is_named_with_the_line_of_the_file(read_text):
    lines = ["starting", *(f"0: {line}" for line in text_of("ptflops_04_net").split("\n")[:8])]

    with pytest.raises(GpuprofError, match=r"ends inside 'blocks\.0' \(line 7\): the report is cut off"):
        read_text("\n".join(lines))
