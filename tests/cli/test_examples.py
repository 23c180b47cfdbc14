"""Every reading verb on the runs of `examples/`."""

from pathlib import Path

import pytest

from gpuprof.cli.show import By, Format

EXAMPLES = Path(__file__).parents[2] / "examples"
SHOWN = {
    By.part: "smollm2-generate", By.executed: "h200-counters", By.convention: "smollm2-train",
}  # fmt: skip
"""Which run has what not all have."""
READ = [
    "budget own-base.json.gz",
    "budget h200-train.json.gz --format markdown",
    "budget smollm2-generate.json.gz --phase decode --format json",
    "budget imported.json.gz --format csv",
    "roofline own-base.json.gz",
    "roofline h200-train.json.gz --format csv -o {out}/roofline.csv",
    "roofline smollm2-generate.json.gz --phase prefill --format json",
    "memory own-base.json.gz",
    "memory smollm2-generate.json.gz --format csv",
    "memory smollm2-train.json.gz --depth 1 --format markdown",
    "backward own-base.json.gz",
    "backward imported.json.gz --format json",
    "backward h200-counters.json.gz --depth 1",
    "report own-head.json.gz -o {out}/page.html",
    "compare own-base.json.gz own-head.json.gz",
    "compare own-base.json.gz own-head.json.gz --by kernel --format json",
    "validate report.txt --run own-base.json.gz",
    "validate report.txt --run own-base.json.gz --format html -o {out}/report.html",
    "import trace.json.gz -o {out}/imported.json",
    "history import own-base.json.gz own-head.json.gz --store {out}/history.db",
]


@pytest.mark.parametrize("by", [by for by in By if by not in (By.rank, By.communication)])  # no run of several ranks
def test_show_by_each(gpuprof_cli, by):
    done = gpuprof_cli("show", EXAMPLES / f"{SHOWN.get(by, 'own-base')}.json.gz", "--by", by.value)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 2


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("name", ["own-base", "imported"])
def test_show_in_each_format(gpuprof_cli, tmp_path, name, format):
    done = gpuprof_cli("show", EXAMPLES / f"{name}.json.gz", "--format", format.value, "-o", tmp_path / "shown")

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "shown").stat().st_size > 200


@pytest.mark.parametrize("line", READ)
def test_read(gpuprof_cli, tmp_path, line):
    done = gpuprof_cli(*line.format(out=tmp_path).split(), cwd=EXAMPLES)

    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout or list(tmp_path.iterdir())


def test_check_finds_what_was_made_slower(gpuprof_cli):
    done = gpuprof_cli("check", "own-head.json.gz", "--against", "own-base.json.gz", cwd=EXAMPLES)

    assert done.returncode == 1
    assert done.stdout.startswith("REGRESSION")
    assert "blocks.*.attention forward" in done.stdout


def test_the_report_left_attention_out(gpuprof_cli):
    """Products of the linear modules alone: 6 FLOPs per parameter and token, but nothing for attention's 2 x 50.7 M."""
    linear = 2 * (128 * 384 + 128 * 128 + 2 * 128 * 512) + 128 * 1000

    done = gpuprof_cli("validate", "report.txt", "--run", "own-base.json.gz", cwd=EXAMPLES)

    assert f"{6 * 4 * 128 * linear / 1e6:.3f}M" == "1601.176M"
    assert "1601.176M" in done.stdout
    assert "fused attention not counted" in done.stdout
    assert "\n\n\n" not in done.stdout


def test_a_count_explains_that_report_as_a_measured_run_does(gpuprof_cli, tmp_path):
    counted = ["count", "own_model.py:make", "--like", "own-base.json.gz", "-q", "-o", tmp_path / "count.json"]
    assert gpuprof_cli(*counted, cwd=EXAMPLES).returncode == 0
    done = gpuprof_cli("validate", "report.txt", "--run", tmp_path / "count.json", cwd=EXAMPLES)

    assert done.returncode == 0
    assert "4 right, 12 explained, 0 unexplained" in done.stdout.replace("\n", " ")


def test_every_file_is_in_its_table():
    table = (EXAMPLES / "README.md").read_text()

    assert [path.name for path in EXAMPLES.iterdir() if path.is_file() and f"`{path.name}`" not in table] == [
        "README.md"
    ]
