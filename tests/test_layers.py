"""Imports point one way, and only the parts that need torch load it."""

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import gpuprof
from gpuprof.record import PassOutcome
from gpuprof.schema import INTEGERS, TABLES

PACKAGE = Path(gpuprof.__file__).parent

# from the bottom up: a module may import from its own layer and from those before it
LAYERS = [
    ("coded", "errors", "late", "process", "signals", "undo", "units", "version"),
    ("files", "schema"),
    ("dates", "pictures"),
    ("store_url",),
    ("log", "tables"),
    ("log_content",),
    ("record_checks",),
    ("record",),
    ("paths",),
    ("reports",),
    ("hardware",),
    ("theory",),
    ("workload",),
    ("calls", "traces"),
    ("sweep",),
    ("analysis",),
    ("render",),
    ("run",),
    ("attribution",),
    ("parallel",),
    ("passes", "compiled"),
    ("launches",),
    ("profiler", "imported"),
    ("launched",),
    ("fit", "job_part", "job_facts"),
    ("job",),
    ("meter",),
    ("integrations",),
    ("history_schema",),
    ("history",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

TORCH_FREE = [
    "coded",
    "errors",
    "late",
    "process",
    "signals",
    "undo",
    "units",
    "dates",
    "pictures",
    "log",
    "tables",
    "log_content",
    "files",
    "schema",
    "record_checks",
    "record",
    "run",
    "paths",
    "reports",
    "sweep",
    "store_url",
    "history_schema",
    "history",
    "theory",
    "analysis",
    "render",
    "cli",
    "hardware.facts",
    "hardware.peaks",
    "hardware.nvml",
    "workload",
    "workload.names",
    "passes.options",
    "traces",
    "traces.ncu_table",
    "traces.events",
    "traces.owners",
    "traces.nodes",
    "traces.phases",
    "traces.taken_over",
    "traces.steps",
    "traces.scopes",
    "traces.chrome",
    "traces.device",
    "traces.foreign",
    "traces.ops",
    "imported",
    "job",
    "job_facts",
    "job_part",
    "traces.composite",
    "traces.pricing",
]

NET = """
import torch

def net():
    return torch.nn.Sequential(torch.nn.Linear(50, 50), torch.nn.ReLU(), torch.nn.Linear(50, 8)), torch.ones(4, 50)
"""

# the file of the model and the run are there, nothing that is called absent is
WRONG = [
    ["profile", "smolm2-135m"],
    ["profile", "no/such.py:net"],
    ["profile", "net.py"],
    ["profile", "empty"],
    ["profile", "gpt2", "--mode", "dream"],
    ["profile", "gpt2", "--device", "gpu"],
    ["profile", "gpt2", "--device", "meta"],
    ["profile", "gpt2", "--dtype", "int3"],
    ["profile", "gpt2", "--seq-len", "0"],
    ["profile", "gpt2", "--steps", "0"],
    ["profile", "gpt2", "--compile", "fast"],
    ["sweep", "gpt2", "--compile", "none,fast", "-o", "points"],
    ["profile", "gpt2", "--passes", "count,speed"],
    ["profile", "gpt2", "--peak-tflops", "-1"],
    ["profile", "gpt2", "--launches", "0"],
    ["profile", "gpt2", "--mode", "forward", "--optimizer", "adamw"],
    ["profile", "gpt2", "-o", "nowhere/run.json"],
    ["profile", "gpt2", "--parallel", "fsdp"],
    ["profile", "gpt2", "--parallel", "ddp", "--mode", "forward"],
    ["profile", "net.py:net", "--parallel", "tp"],
    ["count", "gpt2", "--seed", "-1"],
    ["count", "gpt2", "--attention", "flex_attention"],
    ["ceilings", "--device", "gpu"],
    ["ceilings", "--dtype", "int3"],
    ["validate", "report.txt"],
    ["validate", "report.txt", "smolm2-135m"],
    ["show", "absent.json"],
    ["budget", "absent.json"],
    ["memory", "absent.json", "--fit", "batch", "--batch-size", "2"],
    ["check", "absent.json"],
    ["watch", "absent"],
    ["watch", "runs", "--once", "--min-change", "much"],
    ["ab", "true", "true", "--margin", "much"],
    ["devices", "no such card"],
    ["sweep", "qwen2-0.5b,nosuch", "-o", "points"],
    ["sweep", "qwen2-0.5b,no/such.py:net", "-o", "points"],
    ["sweep", "gpt2", "--mode", "dream", "-o", "points"],
    ["sweep", "gpt2", "--peak-tflops", "-1", "-o", "points"],
    ["sweep", "gpt2", "--seq-len", "long", "-o", "points"],
    ["sweep", "gpt2", "--limit", "0", "-o", "points"],
    ["compare", "run.json", "absent.json"],
    ["compare", "absent.json", "run.json"],
    ["check", "run.json", "--against", "absent.json"],
    ["check", "absent.json", "--against", "run.json"],
    ["check", "run.json", "--store", "foo://x"],
    ["check", "run.json", "--store", "absent/history.db"],
    ["validate", "absent.txt", "gpt2"],
    ["validate", "absent.txt", "--run", "run.json"],
    ["validate", "run.json", "--run", "absent.json"],
    ["budget", "run.json", "--ceilings", "absent.json"],
    ["ceilings", "--shapes", "absent.json"],
    ["profile", "gpt2", "--store", "foo://x"],
    ["profile", "gpt2", "--store", "sqlite+absent:///history.db"],
    ["profile", "gpt2", "--store", "absent/history.db"],
    ["profile", "gpt2", "--store", "sqlite:///absent/history.db"],
    ["history", "import", "absent.json", "--store", "history.db"],
    ["history", "list", "--store", "absent.db"],
    ["history", "list", "--store", "run.json", "--since", "lately"],
    ["history", "prune", "--store", "run.json", "--before", "lately"],
    ["history", "plot", "--store", "run.json", "-o", "picture.txt"],
    ["budget", "run.json", "--chart", "picture.txt"],
    ["memory", "run.json", "--chart", "picture.txt"],
    ["backward", "run.json", "--chart", "picture.txt"],
    ["history", "show", "1", "--store", "absent.db"],
    ["history", "plot", "--store", "absent.db", "-o", "plot.png"],
    ["history", "export", "--store", "absent.db", "--to", "runs"],
    ["history", "accept", "1", "--store", "absent.db"],
    ["history", "prune", "--store", "absent.db", "--keep", "1"],
]


def imports(path: Path) -> set[str]:
    """First part below gpuprof of everything that a file imports, anywhere in it."""
    found = set()
    package = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom):
            found.add(package[0])
        found.update(name.split(".")[1] for name in names if name.startswith("gpuprof."))
    return found & set(RANK)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in ("__init__", "__main__"):
        return

    above = {name for name in imports(path) if RANK[name] > RANK[own]}

    assert not above


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    names = {path: ("gpuprof", *path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def imported_by(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file names in an import, anywhere in it, also where only types need it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(inner & known.keys() or {node.module})
    return {name for name in found if known.get(name, path) != path}


def test_no_modules_import_one_another_in_a_circle():
    known = modules()
    left = {name: imported_by(path, known) for name, path in known.items()}
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]

    assert not left


def test_every_part_has_a_layer():
    parts = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}

    assert parts - {"__init__", "__main__"} == set(RANK)


def loaded_by(code: str, cwd: Path | None = None) -> list[str]:
    """Which of the heavy libraries a fresh interpreter has after running code."""
    heavy = ("torch", "transformers", "pandas", "sqlalchemy", "matplotlib")
    check = f"{code}\nimport sys; print([name for name in {heavy!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=cwd, env=environment
    )
    return ast.literal_eval(run.stdout.splitlines()[-1])


def command(*arguments: str, status: int) -> str:
    """Code that runs the command line and holds its exit status."""
    return (
        f"import sys\nsys.argv = ['gpuprof', *{arguments!r}]\nfrom gpuprof.cli import main\n"
        f"try:\n    main()\nexcept SystemExit as end:\n    assert end.code == {status}, end.code\n"
        f"else:\n    assert not {status}\n"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    (folder / "net.py").write_text(NET)
    gpuprof.Run({"name": "m", "mode": "train"}, {"type": "cpu", "name": "c"}, {}).save(folder / "run.json")
    return folder


def test_importing_gpuprof_loads_nothing_heavy():
    assert loaded_by("import gpuprof") == []


def test_the_command_line_loads_nothing_heavy_before_a_verb_runs():
    assert loaded_by("import gpuprof.cli") == []


def test_torch_free():
    code = "import importlib, sys\nfor part in {parts!r}:\n    importlib.import_module(f'gpuprof.{{part}}')\n"
    code += "    assert 'torch' not in sys.modules, part\n"

    assert "torch" not in loaded_by(code.format(parts=TORCH_FREE))


def test_loading_and_showing_a_run_needs_no_torch(tmp_path):
    path = tmp_path / "run.json"
    gpuprof.Run({"name": "m", "mode": "train"}, {"type": "cpu", "name": "c"}, {}).save(path)
    code = f"import gpuprof\nfrom gpuprof.render import render\nrender(gpuprof.load({str(path)!r}), 'csv')"

    assert "torch" not in loaded_by(code)


def test_a_model_is_counted_and_saved_without_pandas(tmp_path):
    path = tmp_path / "run.json"
    code = f"import gpuprof\ngpuprof.count('smollm2-135m').save({str(path)!r})"

    assert "pandas" not in loaded_by(code)
    assert gpuprof.load(path).done("count")


def test_a_counted_run_is_shown_without_anything_heavy(tmp_path):
    run = gpuprof.Run({"name": "m", "mode": "train"}, {"type": "meta"}, {}, passes={"count": PassOutcome("done")})
    run.tree = {name: [""] if name not in INTEGERS else [1] for name in TABLES["tree"]}
    run.ops = {name: ["forward" if name == "phase" else ""] if name not in INTEGERS else [2] for name in TABLES["ops"]}
    run.save(tmp_path / "run.json")

    code = command("show", "run.json", status=0) + "assert 'numpy' not in sys.modules\n"
    assert loaded_by(code, tmp_path) == []


def test_what_is_wrong_is_told_before_anything_heavy_is_loaded(folder):
    """One after the other in one process, which ends with what the first of them would have loaded."""
    code = "".join(command(*arguments, status=2) for arguments in WRONG)

    assert loaded_by(code, folder) == []
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"empty", "net.py", "run.json"}


def test_a_gpu_that_is_not_there_is_told_before_transformers_is_loaded():
    assert "transformers" not in loaded_by(command("profile", "gpt2", "--device", "cuda:99", status=2))


def test_presets_are_listed_without_anything_heavy():
    assert loaded_by(command("presets", status=0)) == []


def test_a_wrong_argument_costs_less_than_0_6_s_of_processor_time():
    spent = []
    for _ in range(3):  # the first may have to compile what it imports
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        loaded_by(command("profile", "smolm2-135m", status=2))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)

    assert min(spent) < 0.6


def test_a_model_of_ones_own_loads_no_transformers(folder):
    code = (
        "import torch, gpuprof\ngpuprof.profile(torch.nn.Linear(4, 3), torch.ones(2, 4), passes=['count', 'memory'])\n"
    ) + command("profile", "net.py:net", "-q", "--passes", "count,memory", status=0)

    assert loaded_by(code, folder) == ["torch", "pandas"]


def test_a_model_of_ones_own_needs_no_working_transformers(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("raise RuntimeError('broken on purpose')")
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "import torch, gpuprof\n"
        "gpuprof.profile(torch.nn.Linear(4, 3), torch.ones(2, 4), passes=['count', 'time', 'trace', 'memory'])\n"
    )
    for arguments, status in ((("profile", "net.py:net", "-q"), 0), (("count", "gpt2"), 2), (("doctor",), 0)):
        code += command(*arguments, status=status)

    assert "transformers" not in loaded_by(code, tmp_path)
