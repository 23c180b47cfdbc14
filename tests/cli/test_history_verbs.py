"""The verbs of ``gpuprof history``, through Typer, on a store of two workloads."""

import csv
import io
import json
from itertools import pairwise

import pandas as pd
import pytest
from runs import generation_run, gpu_run
from typer.testing import CliRunner

from gpuprof.analysis.changepoints import series_of
from gpuprof.cli.history import history
from gpuprof.errors import GpuprofError
from gpuprof.history import open_store
from gpuprof.record import load
from gpuprof.render import history as render
from gpuprof.schema import table


def run(*arguments, columns=160):
    return CliRunner().invoke(history, [str(a) for a in arguments], env={"COLUMNS": str(columns), "NO_COLOR": "1"})


def text_of(*arguments, **options):
    result = run(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(*arguments):
    result = run(*arguments)
    assert isinstance(result.exception, GpuprofError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def night(number, step_s, clock=None, name="net", reference_s=None):
    """A run of one launch; its 12,000 FLOPs take 120 ns at the peak."""
    made = gpu_run()
    made.workload["name"] = name
    made.environment["date"] = f"2026-01-{number:02}T03:04:05+00:00"
    shares = {"step": 1.0, "forward": 0.25, "backward": 0.5, "optimizer": 0.25}
    samples = [{"step": 0, "phase": phase, "time_s": step_s * share} for phase, share in shares.items()]
    if reference_s:
        samples.append({"step": 0, "phase": "reference", "time_s": reference_s})
    made.samples = table("samples", samples)
    if clock:
        reading = {"time_s": 0.0, "quantity": "sm_clock", "unit": "MHz", "value": clock}
        made.telemetry = table("telemetry", [reading])
    return made


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Ten nights of 480 ns (an MFU of 25 %) and six of 600 ns (20 %) with a slower clock; and two of another model."""
    path = tmp_path_factory.mktemp("store") / "history.db"
    with open_store(path) as store:
        for number in range(1, 17):
            slow = number > 10
            made = night(number, (600e-9 if slow else 480e-9) + number * 1e-12, 1400 if slow else 1755)
            store.add(made, f"{number:08x}cafe", "regression" if number == 11 else "pass")
        store.mark(store.runs()["id"].iloc[10], accepted=False)
        for number in (20, 21):
            store.add(night(number, 1e-6, name="other"))
    return path


@pytest.fixture
def store(filled, tmp_path):
    """A copy to change."""
    return (tmp_path / "copy.db").write_bytes(filled.read_bytes()) and tmp_path / "copy.db"


def ids(path, **chosen):
    with open_store(path) as opened:
        return list(opened.runs(**chosen)["id"])


def test_the_list_has_a_table_for_each_series_and_its_changes(filled):
    net, other = text_of("list", "--store", filled).split("\n\n")
    lines = net.splitlines()

    assert lines[0].startswith("net-train-bfloat16-") and lines[0].endswith(" on Toy GPU")  # noqa: PT018
    assert lines[1].split("  ")[0] == "run"
    assert lines[1].split() == "run date commit launches step MFU SM clock verdict".split()
    assert len(lines) == 2 + 16 + 3
    first = lines[2].split()
    assert first[1:] == "2026-01-16 03:04 00000010 1 600.0 ns 20.0 % 1,400 MHz pass".split()
    assert lines[7].endswith("1,400 MHz  regression, not accepted")
    assert lines[-3] == "MFU is by the datasheet peak; figures are medians of valid launches."
    assert lines[-2] == (
        "Between 2026-01-10 at 0000000a and 2026-01-11 at 0000000b: MFU 25.0 % -> 20.0 % (-20.0 %), infrastructure: "
        "the SM clock moved with it, provisional."
    )
    assert lines[-1] == ("A provisional change is not seen without the newest 10 runs: later ones may do away with it.")
    # nothing is known of its clock, commit or verdict
    assert other.splitlines()[1].split() == "run date launches step MFU".split()
    assert len(other.splitlines()) == 2 + 2 + 1


def test_a_list_without_any_mfu_says_where_the_reason_is(tmp_path):
    with open_store(tmp_path / "history.db") as opened:
        for number in (1, 2):
            made = night(number, 480e-9)
            made.ops.loc[0, "calls"] = 2  # of one that was traced
            opened.add(made)
    lines = text_of("list", "--store", tmp_path / "history.db").splitlines()
    assert lines[1].split() == "run date launches step".split()
    assert lines[-1] == "A run without an MFU has none or has it withheld: 'gpuprof history show' of it says why."


def test_the_list_can_be_shorter(filled):
    lines = text_of("list", "--store", filled, "--workload", "net-", "--limit", "3").splitlines()

    assert [line.split()[1] for line in lines[2:5]] == ["2026-01-16", "2026-01-15", "2026-01-14"]
    assert lines[6] == "The newest 3 of 16 runs."
    assert "2026-01-11 at 0000000b" in lines[7]
    assert len(text_of("list", "--store", filled, "--since", "2026-01-15", "--workload", "net-").splitlines()) == 5
    assert text_of("list", "--store", filled, "--workload", "nothing") == "No runs.\n"


@pytest.mark.parametrize(
    ("columns", "shown", "left_out"),
    [
        # run and date are of 16 characters, commit, launches and step of 8, the MFU of 6, the clock of 9, a verdict of
        # 24, with two between: 109, 99, 88, 78, 52, 44
        (109, "run date commit launches step MFU SM clock verdict", ""),
        (108, "run date commit step MFU SM clock verdict", "launches"),
        (88, "run date commit step MFU verdict", "launches, SM clock"),
        (80, "run date step MFU verdict", "commit, launches, SM clock"),
        (77, "run date step MFU", "commit, launches, SM clock, verdict"),
        (20, "run date step", "commit, launches, MFU, SM clock, verdict"),
    ],
)
def test_a_narrow_list_leaves_out_whole_columns(columns, shown, left_out, filled):
    lines = text_of("list", "--store", filled, "--workload", "net-", columns=columns).splitlines()
    whole = text_of("list", "--store", filled, "--workload", "net-").splitlines()
    start = next(
        number for number, line in enumerate(lines) if line.startswith("run ")
    )  # the title may be of two lines

    assert lines[start].split() == shown.split()
    for narrow, wide in zip(lines[start + 1 : start + 17], whole[2:18], strict=True):
        assert narrow.split("  ")[:2] == wide.split("  ")[:2]  # id and date
        assert "600.0 ns" in narrow or "480.0 ns" in narrow
        assert "\N{HORIZONTAL ELLIPSIS}" not in narrow
    said = " ".join(lines[start + 17 :])
    assert said.startswith(
        f"Not shown at this width: {left_out} MFU is" if left_out else "MFU is by the datasheet peak"
    )


def test_the_list_as_markdown(filled):
    lines = text_of("list", "--store", filled, "--format", "markdown", "--limit", "2").splitlines()

    assert lines[0].startswith("### net-train-bfloat16-")
    assert lines[2] == "| run | date | commit | launches | step | MFU | SM clock | verdict |"
    assert lines[3] == "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"
    assert lines[4].endswith("| 2026-01-16 03:04 | 00000010 | 1 | 600.0 ns | 20.0 % | 1,400 MHz | pass |")
    assert lines[6:9] == ["", "- MFU is by the datasheet peak; figures are medians of valid launches.",
                          "- The newest 2 of 16 runs."]  # fmt: skip
    assert lines[9].startswith("- Between 2026-01-10 at 0000000a and 2026-01-11 at 0000000b: MFU 25.0 % -")
    assert lines[9].endswith(", provisional.")


def test_the_list_for_machines(filled, tmp_path):
    rows = list(csv.DictReader(io.StringIO(text_of("list", "--store", filled, "--format", "csv"))))
    assert len(rows) == 18
    assert float(rows[0]["mfu_datasheet"]) == pytest.approx(0.25, rel=1e-4)
    (changed,) = (row for row in rows if row["changed"])
    assert [changed[name] for name in ("commit", "changed", "infrastructure", "provisional", "gap_s")] == [
        "0000000bcafe", "mfu_datasheet", "True", "True", "",
    ]  # fmt: skip
    assert (changed["since_date"], changed["since_commit"]) == ("2026-01-10T03:04:05+00:00", "0000000acafe")
    assert float(rows[10]["change"]) == pytest.approx(-0.2, rel=1e-4)

    assert text_of("list", "--store", filled, "--format", "json", "-o", tmp_path / "list.json") == ""
    net, other = json.loads((tmp_path / "list.json").read_text())
    assert (len(net["runs"]), len(other["runs"]), other["changes"]) == (16, 2, [])
    assert net["runs"][0]["sm_clock_mhz"] == 1755
    assert net["runs"][0]["energy_j"] is None
    (change,) = net["changes"]
    assert (change["id"], change["infrastructure"]) == (net["runs"][10]["id"], True)
    assert (change["provisional"], change["gap_s"], net["continues"]) == (True, None, None)
    assert change["since"] == {name: net["runs"][9][name] for name in ("id", "date", "commit")}
    assert (change["before"], change["after"]) == (pytest.approx(0.25, rel=1e-4), pytest.approx(0.2, rel=1e-4))


def test_a_run_is_shown_by_the_beginning_of_its_id(filled):
    shown = text_of("show", ids(filled)[0][:8], "--store", filled)

    assert "Toy GPU" in shown
    assert "layers" in shown


def test_the_clock_of_a_cpu_is_the_product_between_its_steps(tmp_path):
    """500 products a second and then 400: steps a quarter longer are the machine's."""
    path, picture = tmp_path / "cpu.db", tmp_path / "cpu.svg"
    with open_store(path) as opened:
        for number in range(1, 17):
            slow = number > 10
            made = night(number, (600e-9 if slow else 480e-9) + number * 1e-12, reference_s=2.5e-3 if slow else 2e-3)
            opened.add(made, f"{number:08x}cafe")
    lines = text_of("list", "--store", path).splitlines()

    assert lines[1].split() == "run date commit launches step MFU speed of the CPU".split()
    assert (lines[2].split()[-2:], lines[17].split()[-2:]) == (["400", "products/s"], ["500", "products/s"])
    assert " ".join(lines[19:]) == (
        "Between 2026-01-10 at 0000000a and 2026-01-11 at 0000000b: MFU 25.0 % -> 20.0 % (-20.0 %), infrastructure: "
        "the speed of the CPU moved with it, provisional. "
        "A provisional change is not seen without the newest 10 runs: later ones may do away with it."
    )
    text_of("plot", "--store", path, "-o", picture)
    drawn = picture.read_text()
    assert "speed of the CPU," in drawn
    assert "products/s" in drawn


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """Nights 1 to 6 of 480 ns under driver 1.0; 8 to 22 of 500 under 2.0 and, after four without, 27 to 37 of 550."""
    path = tmp_path_factory.mktemp("moved") / "history.db"
    with open_store(path) as store:
        for number in [*range(1, 7), *range(8, 23), *range(27, 38)]:
            made = night(1, (480e-9 if number < 7 else 500e-9 if number < 23 else 550e-9) + number * 1e-12)
            made.environment["date"] = (
                f"{pd.Timestamp('2025-12-31') + pd.Timedelta(days=number):%Y-%m-%d}T03:00:00+00:00"
            )
            made.device["driver"] = "1.0" if number < 7 else "2.0"
            store.add(made, "0000aaaa" if number < 23 else "0000bbbb")
    return path


def test_a_change_names_the_runs_around_it_and_a_series_what_it_continues(moved):
    """An MFU is 120 ns by the step: 25.0, 24.0 and 21.8 %."""
    old, new = text_of("list", "--store", moved).split("\n\n")

    assert len(old.splitlines()) == 2 + 6 + 1
    assert new.splitlines()[-3:] == [
        "Continues the runs up to 2026-01-06 at 0000aaaa, under another driver (1.0 against 2.0): "
        "MFU 25.0 % -> 24.0 % (-4.0 %), no verdict on the code.",
        "Between 2026-01-22 at 0000aaaa and 2026-01-27 at 0000bbbb, 5 days apart: MFU 24.0 % -> 21.8 % (-9.1 %), "
        "provisional.",
        "A provisional change is not seen without the newest 10 runs: later ones may do away with it.",
    ]
    one = json.loads(text_of("list", "--store", moved, "--format", "json"))[1]
    (change,) = one["changes"]
    days = change["since"]["date"][:10], change["date"][:10]
    assert (*days, change["gap_s"]) == ("2026-01-22", "2026-01-27", 5 * 86400)
    assert (one["continues"]["commit"], one["continues"]["date"][:10]) == ("0000aaaa", "2026-01-06")
    assert one["continues"]["differences"] == ["driver (1.0 against 2.0)"]
    assert one["continues"]["before"] == pytest.approx(0.25, rel=1e-4)
    assert one["continues"]["after"] == pytest.approx(0.24, rel=1e-4)
    markdown = text_of("list", "--store", moved, "--format", "markdown")
    assert "- Continues the runs up to 2026-01-06" in markdown
    # of the runs that are looked at
    assert "Continues" not in text_of("list", "--store", moved, "--since", "2026-01-08")


def test_the_picture_of_a_gap(moved, tmp_path):
    picture = tmp_path / "gap.svg"
    text_of("plot", "--store", moved, "-o", picture)

    drawn = picture.read_text()
    assert "no run between" in drawn
    assert "provisional change" in drawn


@pytest.mark.parametrize("verb", [("list",), ("plot", "-o", "{}/x.svg")])
def test_the_least_change_is_for_the_caller_to_say(verb, moved, tmp_path):
    arguments = [part.format(tmp_path) for part in verb]

    def many(least):
        said = text_of(*arguments, "--store", moved, "--min-change", least)
        return said.count("Between") if verb == ("list",) else int(said.split(" runs, ")[1].split()[0])

    assert [many(least) for least in ("2%", "0.09", "9.2%")] == [1, 1, 0]
    assert error_of(*arguments, "--store", moved, "--min-change", "9.2") == (
        "--min-change '9.2' is no share: give one such as 2% or 0.02"
    )


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture(filled, tmp_path, suffix):
    picture = tmp_path / f"net{suffix}"
    said = text_of("plot", "--store", filled, "--workload", "net-", "-o", picture)

    assert said.endswith(f" on Toy GPU: 16 runs, 1 change, drawn in {picture}\n")
    if suffix == ".png":
        assert picture.read_bytes().startswith(b"\x89PNG")
    else:
        drawn = picture.read_text()
        for words in (
            "0000000b -20.0 %",
            "run, regression",
            "provisional change of the infrastructure",
            "SM clock, MHz",
            "MFU, %",
        ):
            assert words in drawn
        again = tmp_path / "again.svg"
        text_of("plot", "--store", filled, "--workload", "net-", "-o", again)
        assert again.read_text() == drawn


def test_the_picture_is_of_one_series(filled, store, tmp_path):
    picture = tmp_path / "net.svg"
    assert "choose one workload with --workload: net-train-bfloat16-" in error_of(
        "plot", "--store", filled, "-o", picture
    )
    assert error_of("plot", "--store", filled, "--workload", "none", "-o", picture) == (
        "there are no such runs: 'gpuprof history list' has all"
    )
    with open_store(store) as opened:
        here = opened.runs("net-")["fingerprint"].iloc[0]
        elsewhere = night(18, 500e-9)
        elsewhere.device["driver"] = "575.2"
        opened.add(elsewhere)
    said = text_of("plot", "--store", store, "--workload", "net-", "-o", picture).splitlines()
    assert said[0].endswith(f"1 run, 0 changes, drawn in {picture}")
    assert said[1] == "Not drawn: 16 runs with another fingerprint (device, driver, versions): give --fingerprint"
    said = text_of("plot", "--store", store, "--workload", "net-", "--fingerprint", here, "-o", picture)
    assert "16 runs, 1 change," in said


@pytest.mark.parametrize(
    ("moments", "labels", "shared"),
    [
        (["2026-01-05T03:04"], "04 05 06 07", "2026-Jan"),  # two days on either side
        (
            pd.date_range("2026-01-05T03:04", periods=3),
            "06:00 12:00 18:00 Jan-06 06:00 12:00 18:00 Jan-07",
            "2026-Jan-07",
        ),
        (pd.date_range("2026-01-05T03:04", periods=14, freq="4min"), "03:10 03:20 03:30 03:40 03:50", "2026-Jan-05"),
        (pd.date_range("2026-09-01T03:00", periods=30), "Sep 05 09 13 17 21 25 29 Oct", "2026-Oct"),
        (pd.date_range("2026-01-05T03:04", periods=40), "08 15 22 Feb 08 15", "2026-Feb"),
        (pd.date_range("2026-01-05T03:04", periods=400), "2026 Mar May Jul Sep Nov 2027", ""),
    ],
    ids=["one run", "three nights", "an hour", "a month", "forty nights", "a year"],
)
def test_dates_below_the_picture_stand_apart(moments, labels, shared, tmp_path, monkeypatch):
    with open_store(tmp_path / "one.db") as opened:
        opened.add(night(1, 480e-9, 1755))
        run, launch = opened.runs(), opened.series()
    dates = [f"{str(moment)[:16].replace(' ', 'T')}:00+00:00" for moment in moments]
    (series,) = series_of(pd.concat([run.assign(date=date) for date in dates], ignore_index=True))
    figures = []
    monkeypatch.setattr(render, "save_picture", lambda figure, path: figures.append(figure))
    render.history_chart(series, pd.concat([launch.assign(date=date) for date in dates]), tmp_path / "x.png")
    (figure,) = figures
    figure.draw_without_rendering()

    axis = figure.axes[-1].xaxis
    low, high = axis.get_view_interval()
    drawn = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert [text.get_text() for text in drawn] == labels.split()
    assert axis.get_offset_text().get_text() == shared
    boxes = [text.get_window_extent() for text in drawn]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert boxes[-1].x1 <= figure.bbox.x1


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """28 nights of a generation; from the 12th on its prefill is slower by 10 %."""
    path = tmp_path_factory.mktemp("store") / "served.db"
    with open_store(path) as store:
        for number in range(1, 29):
            made = generation_run()
            made.environment["date"] = f"2026-01-{number:02}T03:04:05+00:00"
            wobble = 1 + (number * 7 % 5 - 2) / 1000
            made.generation["time_s"] *= wobble
            if number >= 12:
                made.generation.loc[made.generation["phase"] == "prefill", "time_s"] *= 1.1
            store.add(made, commit=f"c{number:02}")
    return path


def test_a_generation_is_listed_by_what_it_costs(served):
    lines = text_of("list", "--store", served, "--limit", "1").splitlines()

    assert lines[0].startswith("net-generate-batch2-prompt4-new4-bfloat16-")
    heads = "run date commit launches step to first token per token prefill MFU decode MBU"
    assert " ".join(lines[1].split()) == heads
    # the 28th: 196 % 5 - 2 = -1 thousandth
    assert " ".join(lines[2].split()).endswith("03:04 c28 1 1.360 us 439.6 ns 319.7 ns 50.0 % 49.4 %")
    assert "MFU is by the datasheet peak; figures are medians of valid launches." in lines
    (change,) = [line for line in lines if "->" in line]
    assert change == "Between 2026-01-11 at c11 and 2026-01-12 at c12: to first token 400.0 ns -> 440.0 ns (+10.0 %)."


def test_a_generation_is_drawn_by_its_time_per_token_and_that_to_the_first(served, tmp_path):
    text_of("plot", "--store", served, "-o", tmp_path / "h.svg")

    picture = (tmp_path / "h.svg").read_text()
    for words in ("per token, ms", "to first token, ms", "c12 to first token +10.0 %"):
        assert f">{words}</text>" in picture


def test_a_picture_without_figures_is_refused(tmp_path):
    counted = gpu_run()
    counted.samples = table("samples", [])
    with open_store(tmp_path / "counted.db") as opened:
        opened.add(counted)

    said = error_of("plot", "--store", tmp_path / "counted.db", "-o", tmp_path / "x.png")
    assert said.startswith("there is nothing to draw: no run of net-")
    assert not (tmp_path / "x.png").exists()
    assert "run" in text_of("list", "--store", tmp_path / "counted.db")


def test_runs_go_out_and_come_in(filled, tmp_path):
    assert text_of("export", "--store", filled, "--to", tmp_path / "out", "--workload", "net-") == (
        f"16 runs exported to {tmp_path / 'out'}\n"
    )
    files = sorted((tmp_path / "out").glob("*.json.gz"))
    assert load(files[0]).workload["name"] == "net"
    assert text_of("import", *files, "--store", tmp_path / "new.db") == "16 runs imported\n"
    assert text_of("import", files[0], "--store", tmp_path / "new.db") == "0 runs imported, 1 was there\n"
    everything = list((tmp_path / "out").iterdir())  # the notes too
    assert len(everything) == 17
    assert text_of("import", *everything, "--store", tmp_path / "new.db") == "0 runs imported, 16 were there\n"
    assert text_of("list", "--store", tmp_path / "new.db") == text_of("list", "--store", filled, "--workload", "net-")


def test_a_regression_can_be_accepted_and_not(store):
    identity, other = ids(store)[10:12]

    assert text_of("accept", identity[:8], "--store", store) == f"1 run accepted: {identity}\n"
    assert "regression, accepted" in text_of("list", "--store", store)
    said = text_of("accept", identity, identity[:8], other, "--undo", "--store", store)
    assert said == f"2 runs left out of baselines: {identity}, {other}\n"
    assert "regression, not accepted" in text_of("list", "--store", store)
    assert "pass, not accepted" in text_of("list", "--store", store)


def test_nothing_is_accepted_where_one_of_the_ids_is_wrong(store):
    identity = ids(store)[10]

    assert error_of("accept", identity, "zzz", "--store", store).startswith("no run zzz in ")
    assert "regression, not accepted" in text_of("list", "--store", store)


@pytest.mark.parametrize("name", ["nothing.json", "history.json", "."])
def test_an_import_of_no_file_makes_no_store(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpu_run().save(tmp_path / "run.json")

    assert error_of("import", "run.json", name, "--store", "new.db") == (
        f"no file {name}: give runs saved with -o, the files of an export, FOLDER/*, or folders of trainings"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_old_runs_are_pruned(store):
    oldest = ids(store)[0]
    said = text_of("prune", "--store", store, "--before", "2026-01-02", "--dry-run").splitlines()
    assert said[0].startswith(f"{oldest}  2026-01-01  net-train-bfloat16-")
    assert said[1:] == ["1 run would be removed"]
    assert oldest in ids(store)

    assert text_of("prune", "--store", store, "--before", "2026-01-02").endswith("\n1 run removed\n")
    assert oldest not in ids(store)
    assert text_of("prune", "--store", store, "--keep", "1").endswith("15 runs removed\n")
    assert text_of("prune", "--store", store, "--keep", "1") == "0 runs removed\n"


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("show", "abc"), ("plot", "-o", "x.png"), ("export", "--to", "out"), ("prune", "--keep", "1"),
     ("accept", "abc")],
)  # fmt: skip
def test_reading_makes_no_store(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert error_of(*arguments, "--store", "none.db").startswith("there is no store none.db: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list", "--since", "yesterday"), "no date 'yesterday': give one such as 2026-01-31"),
        (("list", "-o", "no/such/file"), "there is no folder no/such"),
        (("show", "zzz"), "no run zzz in "),
        (("plot", "-o", "picture.gif"), "give a name that ends in .png or .svg"),
        (
            ("prune",),
            "say which runs to prune: those before a date (--before), or all but so many (--keep); not both",
        ),
        (("list", "--since", "0001-01-01T00:00:00+23:59"), "no date '0001-01-01T00:00:00+23:59': give one such as"),
        (("import", "nothing.json"), "no file nothing.json"),
        (("export", "--to", "no/such"), "cannot make the folder no/such"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, message, filled):
    assert message in error_of(*arguments, "--store", filled)
