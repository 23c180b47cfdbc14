"""README and docs say what is so: transcripts, command lines, code, links and words."""

import ast
import fnmatch
import functools
import importlib
import inspect
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.main import get_command

import gpuprof
from gpuprof.cli import app
from gpuprof.theory import rules

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import docs  # noqa: E402

BLOCKS = [block for page in docs.PAGES for block in docs.blocks(page)]
COMMITTED = ("examples/", "tests/data/", "results/cpu/", "results/nvidia")

# measured elsewhere, or too dear to run here: the page has command, device and date, or says that it is made up
SHOWN_ONLY = {
    "AMD EPYC · 2 threads · torch 2.13.0+cpu": "docs/ceilings.md measures a device",
    "phase    time_s    flops  moved_bytes": "docs/generate.md counts a model of 7 billion parameters for 10 s",
    "Between 2026-01-03": "docs/history.md has a year of made up nights",
    "Continues the runs": "docs/history.md has a year of made up nights",
    "NVIDIA H100 80GB HBM3 31.91 ms": "docs/import.md has traces that are not ours to commit",
    "NVIDIA H100 80GB HBM3 309.4 us": "docs/compare.md has traces that are not ours to commit",
    "Workload     Qwen2Model": "docs/import.md has a trace that is not ours to commit",
    "The largest batch predicted": "docs/memory.md simulates batches for half a minute",
    "batch-size  prompt-len": "docs/sweep.md measures for minutes",
    "[1/9] gpt2,seq-len=16": "docs/sweep.md measures for minutes",
    "Net on NVIDIA H100": "docs/watch.md looks at a training that is running",
    "all ranks together": "docs/parallel.md has a job of two processes",
}
PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in docs.PAGES]
TYPED = re.compile(r"(\$ |[A-Z_]+=\S+ |export |srun )?(gpuprof|torchrun|python|pip|scripts/|git|export|source|\. )")


def of(*languages):
    """The blocks in these languages, as parameters of a test."""
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language in languages]


@pytest.mark.parametrize("block", of("console"))
def test_a_transcript_is_what_its_commands_print(block):
    assert block.lines[0].startswith("$ ")
    assert docs.difference(block) == "", "python scripts/docs.py --write puts it right"


@pytest.mark.parametrize("block", of("", "indented"))
def test_what_is_printed_stands_in_a_transcript(block):
    if not any(block.lines[0].startswith(begin) for begin in SHOWN_ONLY):
        assert TYPED.match(block.lines[0]), "```console and '$ gpuprof ...' above it, or a reason in SHOWN_ONLY"


def test_every_exception_is_met():
    assert [begin for begin in SHOWN_ONLY if not any(block.lines[0].startswith(begin) for block in BLOCKS)] == []


def typed(text):
    """The command lines of gpuprof in a text for a shell, as words; those in quotes too."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if "gpuprof" in line:
            yield from commands(synopsis(line) if re.search(r"\s\[-|\soptions\]", line) else line)


def synopsis(line):
    """A synopsis with everything that may be left out."""
    return re.sub(r"\[(?:[a-z][a-z .]*|,\w+)\]|[\[\]]| \| |\.\.\.", " ", line)


def commands(line):
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a sentence with an apostrophe
        return
    part = []
    for word in [*words, ";"]:
        if word in ("|", "||", "&&", ";", ">", ">>", "2>"):
            yield from command(part)
            part = []
        else:
            part.append(word)


def command(words):
    for at, word in enumerate(words):
        before = words[at - 1] if at else "$"
        if word == "gpuprof" and (before in ("$", "-m", "srun", "run:") or re.match(r"[A-Z_]+=", before)):
            yield words[at + 1 :]
        elif "gpuprof " in word:  # a command in quotes
            yield from commands(re.sub(r"^\w+=", "", word))


def wrong(words):
    """What is wrong with a command line of gpuprof, without running it."""
    at = root()
    context = at.context_class(at, info_name="gpuprof")
    words = list(words)
    while words and hasattr(at, "commands"):
        if words[0].startswith("-") or words[0].isupper():
            return ""
        name = words.pop(0)
        at = at.get_command(context, name)
        if at is None:
            return f"no verb {name}"
        context = at.context_class(at, info_name=at.name, parent=context)
    try:
        values, left, _ = at.make_parser(context).parse_args(list(words))
        for one in at.params:
            one.callback = None  # it would look for files
            for value in choices(values.get(one.name)):
                one.process_value(context, value)
    except Exception as error:  # of click, or of the click inside Typer
        return getattr(error, "message", "") or str(error) or type(error).__name__
    if [word for word in left if not re.match(r"\[|[A-Z]", word)]:
        return f"too many arguments: {' '.join(left)}"
    missing = [word for word in words if word.startswith(COMMITTED) and not list(ROOT.glob(word.partition(":")[0]))]
    return f"no such file: {', '.join(missing)}" if missing else ""


@functools.cache
def root():
    return get_command(app)


def choices(value):
    """The values that an option is given in a synopsis; not those that stand for another, as FILE and <device> do."""
    if not isinstance(value, str):
        return [value]
    return [one for one in value.split("|") if not re.search(r"[A-Z$<{]|^\.+$", one)]


def shell(page):
    """The blocks of a page that a shell takes, and synopses, each in one line."""
    for block in docs.blocks(page):
        text = "\n".join(block.lines)
        if block.language in ("bash", "sh", "yaml", "console"):
            yield text
        elif block.language in ("", "indented"):
            yield re.sub(r"\n {4,}", " ", re.sub(r"\|\n\s+", "|", text))


@pytest.mark.parametrize("page", PAGES)
def test_a_command_line_is_one_that_gpuprof_takes(page):
    assert [(words, why) for text in shell(page) for words in typed(text) if (why := wrong(words))] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_command_in_a_sentence_has_a_verb_and_options_of_gpuprof(page):
    mentioned = [one for one in re.findall(r"`([^`]+)`", prose(page)) if re.match(r"gpuprof [a-z]", one)]
    left_out = ("Missing parameter", "Option '")  # a sentence names the verb, and not always all that it takes
    told = [(one, wrong(words)) for one in mentioned for words in typed(" ".join(one.split()))]

    assert [(one, why) for one, why in told if why and not (why.startswith(left_out) and "No such" not in why)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"https?:|mailto:", target):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def prose(page):
    """A page without its code."""
    return re.sub(r"^```.*?^```$|^ {4}[^\n]*$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """What the headings of a page are called in links."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", head)).lower().replace(" ", "-") for head in heads
    }


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/index.md").read_text()

    assert [
        page.name for page in ROOT.glob("docs/*.md") if page.name != "index.md" and f"({page.name})" not in index
    ] == []


GLOSSARY = [line.split(" | ")[0].removeprefix("| ") for line in (ROOT / "docs/glossary.md").read_text().splitlines()]
TERMS = [one.strip(" `") for cell in GLOSSARY for one in cell.split(",")]


def test_a_word_is_in_the_glossary_once():
    rows = [cell for cell in GLOSSARY if cell and not cell.startswith(("#", "|--"))]

    assert [cell for cell in rows if rows.count(cell) > 1 and cell not in ("word", "line", "column")] == []


@pytest.mark.parametrize("name", ["train", "generate"])
@pytest.mark.parametrize("by", ["module", "class", "phase", "op"])
def test_every_column_is_in_the_glossary(name, by, gpuprof_cli):
    done = gpuprof_cli("show", ROOT / f"examples/smollm2-{name}.json.gz", "--by", by, "--format", "csv")
    columns = done.stdout.splitlines()[0].split(",")

    assert [one for one in columns if not any(fnmatch.fnmatchcase(one, term) for term in TERMS)] == []


def test_every_line_of_the_header_is_in_the_glossary():
    labels = {label for file in ("header", "generation") for label in re.findall(
        r'yield "([A-Z][A-Za-z ]+)", ', (ROOT / f"gpuprof/render/{file}.py").read_text())}  # fmt: skip

    assert len(labels) > 15
    assert labels - set(TERMS) == set()


def test_the_readme_quotes_other_pages_as_they_are():
    readme, accuracy = ((ROOT / name).read_text() for name in ("README.md", "docs/accuracy.md"))
    rows = [line.strip("| ").split(" | ") for line in accuracy.split("### Forward and backward")[1].splitlines()]
    table = [line.strip("| ").split(" | ") for line in re.findall(r"^\| .*", readme, re.MULTILINE)]
    bench = json.loads(max(ROOT.glob("results/cpu/*-meter/bench.json")).read_text())["found"]
    columns = {row[0]: row for row in rows if len(row) > 2}
    ours = list(zip(*table, strict=True))

    assert [name.removesuffix(", FLOPs") for name in ours[0][2:]] == columns["model"][2:]
    assert [list(column[1:]) for column in ours[1:]] == [columns[column[0]][1:] for column in ours[1:]]
    assert f"it adds {1e6 * bench['Meter, plain loop']['added_s']:.0f} us a step" in readme


@pytest.mark.parametrize("block", of("python"))
def test_python_names_what_gpuprof_has(block):
    """Names and keyword arguments, also of what is not run here."""
    names = {"gpuprof": gpuprof}
    for node in ast.walk(tree := ast.parse("\n".join(block.lines))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpuprof"):
            names |= {one.asname or one.name: taken(node.module, one.name) for one in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            assert hasattr(names[node.value.id], node.attr), ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in names:
            function = eval(ast.unparse(node.func), {}, names)
            takes = inspect.signature(function).parameters
            if not any(one.kind is one.VAR_KEYWORD for one in takes.values()):
                assert {one.arg for one in node.keywords} <= takes.keys(), ast.unparse(node)


def taken(module, name):
    inside = importlib.import_module(module)
    return getattr(inside, name) if hasattr(inside, name) else importlib.import_module(f"{module}.{name}")


# pages whose Python is not run here
NOT_RUN = {
    "examples/README.md": "FlopCounterMode prints by tabulate, which gpuprof does not need",
    "docs/training.md": "tests/meter/test_training_docs.py runs it and holds its figures",
    "docs/compile.md": "torch.compile takes half a minute; tests/compiled does the same",
    "docs/own-models.md": "tests/workload/test_own_models.py runs its files; the rest has a model of its own",
    "docs/parallel.md": "needs a job of several processes; tests/parallel does the same",
}


@pytest.mark.parametrize("page", [page for page in PAGES if page.id not in NOT_RUN])
def test_the_python_of_a_page_runs(page, setting):
    for block in docs.blocks(page):
        if block.language == "python":
            exec(compile("\n".join(block.lines), str(block), "exec"), setting)


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """The names that a block may use, in a folder of its own: a small Llama in training, its batches, files of runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "_RULES", {**rules._RULES})  # which a block may add to
    gpuprof.load(ROOT / "examples/smollm2-train.json.gz").save("run.json")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.arange(16).reshape(1, 16)
    batch = {"input_ids": ids, "labels": ids}

    def train(batch):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "gpuprof": gpuprof, "torch": torch, "model": model, "optimizer": optimizer, "ids": ids, "batch": batch,
        "batches": [batch] * 20, "loader": [batch] * 20, "train": train, "train_step": train, "log": print,
        "ROOT": ROOT,
    }  # fmt: skip


def test_a_transcript_that_is_not_true_is_found_and_put_right(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "# Before\n\n```console\n$ gpuprof --version\ngpuprof 0.0.0\n\n$ COLUMNS=80 gpuprof presets \\\n"
        "    | wc -l | tr -d 0-9\n```\nafter\n"
    )
    (block,) = docs.blocks(page := tmp_path / "page.md")
    said = docs.difference(block)

    assert (block.number, f"\n-gpuprof 0.0.0\n+gpuprof {gpuprof.__version__}\n" in said) == (4, True)
    assert [docs.write(page), docs.write(page)] == [1, 0]
    assert page.read_text() == (
        f"# Before\n\n```console\n$ gpuprof --version\ngpuprof {gpuprof.__version__}\n\n"
        "$ COLUMNS=80 gpuprof presets \\\n    | wc -l | tr -d 0-9\n\n```\nafter\n"
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("gpuprof show run.json --by module", ""),
        ("gpuprof show run.json --by modules", "modules"),
        ("gpuprof show", "run"),
        ("gpuprof show a.json b.json", "too many"),
        ("gpuprof shows run.json", "no verb shows"),
        ("gpuprof show run.json --layers 3", "--layers"),
        ("gpuprof show examples/of-nothing.json.gz", "no such file"),
        ("gpuprof show run.json [--by op|modules] [--depth N]", "modules"),
        ('cd base && gpuprof ab "gpuprof profile gpt2 --sequence 3" "python b.py" | tee log', "--sequence"),
        ("torchrun --nproc-per-node 2 -m gpuprof profile gpt2 --device gpu7", ""),
    ],
)
def test_what_is_wrong_with_a_command_line(line, why):
    found = [said for words in typed(line) if (said := wrong(words))]

    assert (bool(found), why in "".join(found)) == (bool(why), True)
