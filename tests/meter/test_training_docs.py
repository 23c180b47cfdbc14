"""docs/training.md and the loop in README.md, run: every block of code and every command line in them."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import gpuprof
from gpuprof.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/training.md").read_text()
README = (ROOT / "README.md").read_text()
SECTIONS = dict(re.findall(r"^##+ (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE))

FIGURES = re.findall(r"^\| `([a-z_/]+)` \|", SECTIONS["What each figure means"], re.MULTILINE)
OF_A_GPU = {"device/clock_mhz"}
STEPS = 40


class Texts(torch.utils.data.Dataset):
    """Short texts of one length, with padding at their end."""

    def __len__(self):
        return 4 * STEPS

    def __getitem__(self, place):
        ids = torch.arange(place, place + 16) % 64
        return {"input_ids": ids, "labels": ids, "attention_mask": (torch.arange(16) < 12).long()}


def block(text, kind="python"):
    """The one block of this kind in a piece of Markdown."""
    (code,) = re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return code


def after(diff):
    """What a diff makes of a program."""
    return "".join(line[2:] + "\n" for line in diff.splitlines() if not line.startswith("-"))


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """The names that a block may use, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    logged = []

    def train(batch):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "gpuprof": gpuprof, "model": model, "optimizer": optimizer, "train": train, "logged": logged,
        "loader": torch.utils.data.DataLoader(Texts(), batch_size=1), "dataset": Texts(), "log": logged.append,
    }  # fmt: skip


def flops(loop, micro_batches):
    """Of a step, as `gpuprof.count` has them of a step of its own."""
    batch = next(iter(torch.utils.data.DataLoader(Texts(), batch_size=1)))
    run = gpuprof.profile(loop["model"], batch, passes=["count"])
    return micro_batches * int(run.ops.loc[run.ops["phase"].isin(["forward", "backward"]), "flops_causal"].sum())


def test_the_loop_of_the_readme_has_three_lines_more(loop):
    diff = block(README, "diff")

    assert [line[0] for line in diff.splitlines()] == ["+", " ", "+", " ", "+"]
    exec(after(diff), loop)

    assert [one["meter/step"] for one in loop["logged"]] == [50, 100, 150]
    assert {one["meter/flops_per_step"] for one in loop["logged"]} == {flops(loop, 1)}
    assert all(name in loop["logged"][0] for name in re.findall(r"device/\w+", diff))


def test_the_page_and_the_readme_say_the_same_of_the_loop():
    code = "".join(block(SECTIONS["A plain loop"], "diff").split())

    for line in block(README, "diff").splitlines():
        if line.startswith("+"):
            assert "".join(line.split("  #")[0].split()).lstrip("+").replace("number", "step") in code.replace("+", "")


def test_a_plain_loop(loop):
    exec(block(SECTIONS["A plain loop"]), loop)

    assert [one["meter/step"] for one in loop["logged"]] == [10, 20, 30, 40]
    assert {one["meter/flops_per_step"] for one in loop["logged"]} == {flops(loop, 4)}
    assert Path("runs/plain/meter.jsonl").is_file()


def test_every_figure_that_is_read_is_explained_and_every_explained_one_is_read(loop):
    exec(block(SECTIONS["A plain loop"]), loop)

    read = {name for one in loop["logged"] for name in one}
    of_one = {name for name in read if "/" in name}
    assert of_one == set(FIGURES) - OF_A_GPU
    assert read - of_one == {name.removeprefix("device/") for name in of_one if name.startswith("device/")}


def test_the_words_beside_the_figures(loop):
    exec(block(SECTIONS["A plain loop"]), loop)

    about = loop["meter"].about
    assert about["meter/convention"] == "causal"
    assert all(isinstance(word, str) for word in about.values())


def test_the_trainer_of_hugging_face(loop):
    pytest.importorskip("accelerate")
    from transformers import TrainingArguments

    loop["arguments"] = TrainingArguments(
        "out", per_device_train_batch_size=1, gradient_accumulation_steps=4, num_train_epochs=1, logging_steps=10,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    exec(block(SECTIONS["Hugging Face Trainer"]), loop)

    history = [one for one in loop["trainer"].state.log_history if "device/mfu" in one]
    assert [one["meter/step"] for one in history] == [10, 20, 30, 40]
    assert {one["meter/flops_per_step"] for one in history} == {flops(loop, 4)}
    assert Path("runs/trainer/meter.jsonl").is_file()


def test_lightning(loop):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = loop["model"]

        def training_step(self, batch, _):
            return self.model(**batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    loop["module"] = Module()
    exec(block(SECTIONS["Lightning"]), loop)

    (meter,) = [one.meter for one in loop["trainer"].callbacks if hasattr(one, "meter")]
    figures = meter.read()
    assert (figures["meter/step"], figures["meter/flops_per_step"]) == (40, flops(loop, 4))
    assert Path("runs/lightning/meter.jsonl").is_file()


def test_accelerate(loop):
    tracking = pytest.importorskip("accelerate.tracking")

    class Tracker(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "kept", False, ()

        def __init__(self):
            super().__init__()
            self.tracker = []

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **_):
            self.tracker.append((step, values))

    loop["trackers"] = tracker = Tracker()
    exec(block(SECTIONS["accelerate"]), loop)

    assert [step for step, _ in tracker.tracker] == [10, 20, 30, 40]
    assert {values["meter/flops_per_step"] for _, values in tracker.tracker} == {flops(loop, 4)}
    assert Path("runs/accelerate/meter.jsonl").is_file()


def test_from_the_dashboard_to_the_module(loop):
    exec(block(SECTIONS["From the dashboard to the module"]), loop)

    run, root = loop["run"], loop["run"].modules().iloc[0]
    assert root["flops_forward"] + root["flops_backward"] == flops(loop, 1)
    assert run.passes["memory"].status == "skipped"


def test_a_step_that_the_environment_asks_for(loop, monkeypatch):
    (line,) = commands("From the dashboard to the module")
    variable, _, _ = line.partition(" python ")
    name, _, steps = variable.partition("=")
    monkeypatch.setenv(name, steps.replace("200,400", "20,40"))
    exec(block(SECTIONS["From the dashboard to the module"]).replace(", profile_at=[20]", ""), loop)

    assert sorted(path.name for path in Path("runs/drill").glob("step-*")) == ["step-20.json.gz", "step-40.json.gz"]


def commands(section):
    """The lines of a section that are typed into a shell."""
    text = re.sub(r"^```.*?^```", "", SECTIONS[section], flags=re.DOTALL | re.MULTILINE)
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def test_every_command_on_the_log(loop):
    code = block(SECTIONS["A plain loop"])
    for folder in ("plain", "new", *(f"old/{number}" for number in range(5))):
        exec(code.replace("runs/plain", f"runs/{folder}"), loop)

    typed = commands("The log")
    assert [line.split()[1] for line in typed] == ["watch", "show", "history", "check"]
    for line in typed:
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code in ((0, 1, 3) if " check " in line else (0,)), done.output


def test_the_extras_are_those_of_the_package():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"gpuprof\[(\w+)\]", PAGE)) == {"trainer", "lightning"} <= extras.keys()


def test_the_table_is_the_one_that_was_measured():
    (table,) = (ROOT / "results/cpu").glob("*-meter/table.md")
    rows = [line for line in table.read_text().splitlines() if line.startswith("|")]

    assert "\n".join(rows) in PAGE
