"""Imports point one way, and only the parts that need torch load it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpuprof

PACKAGE = Path(gpuprof.__file__).parent

# from the bottom up: a module may import from its own layer and from those before it
LAYERS = [
    ("errors", "units"),
    ("record",),
    ("reports",),
    ("hardware",),
    ("theory",),
    ("workload",),
    ("attribution",),
    ("passes",),
    ("profiler", "launches"),
    ("sweep",),
    ("analysis",),
    ("fit",),
    ("history",),
    ("render",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Run.modules() and Run.backward_ratios() are conveniences that reach up, when they are called; so does the profiler, to
# say in run.warnings what an analysis makes of the run that it has just measured
EXCEPTIONS = {("record", "analysis"), ("profiler", "analysis")}

TORCH_FREE = [
    "errors",
    "units",
    "record",
    "reports",
    "sweep",
    "history",
    "theory",
    "analysis",
    "render",
    "cli",
    "hardware.peaks",
    "hardware.nvml",
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

    above = {name for name in imports(path) if RANK[name] > RANK[own] and (own, name) not in EXCEPTIONS}

    assert not above


def test_every_part_has_a_layer():
    parts = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}

    assert parts - {"__init__", "__main__"} == set(RANK)


def loaded_by(code: str) -> list[str]:
    """Which of the heavy libraries a fresh interpreter has after running code."""
    check = f"{code}\nimport sys; print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return ast.literal_eval(run.stdout.splitlines()[-1])


def test_importing_gpuprof_loads_nothing_heavy():
    assert loaded_by("import gpuprof") == []


def test_the_command_line_loads_nothing_heavy_before_a_verb_runs():
    assert loaded_by("import gpuprof.cli") == []


@pytest.mark.parametrize("part", TORCH_FREE)
def test_torch_free(part):
    assert "torch" not in loaded_by(f"import gpuprof.{part}")


def test_loading_and_showing_a_run_needs_no_torch(tmp_path):
    path = tmp_path / "run.json"
    gpuprof.Run({"name": "m", "mode": "train"}, {"type": "cpu", "name": "c"}, {}).save(path)
    code = f"import gpuprof\nfrom gpuprof.render import render\nrender(gpuprof.load({str(path)!r}), 'csv')"

    assert "torch" not in loaded_by(code)
