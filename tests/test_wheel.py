"""What is installed works outside the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gpuprof.version import __version__

ROOT = Path(__file__).parents[1]
DATA = ["py.typed", "workload/presets/*.json", "hardware/*.tsv", "render/*.html"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy, of which setuptools makes its folders."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "gpuprof", source / "gpuprof", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        folder,
    ]
    subprocess.run([*build, source], check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_has_all_files_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())

    package = ROOT / "gpuprof"
    files = [path for pattern in ["**/*.py", *DATA] for path in package.glob(pattern)]
    assert wheel.name == f"gpuprof-{__version__}-py3-none-any.whl"
    assert {str(path.relative_to(ROOT)) for path in files} == {name for name in names if name.startswith("gpuprof/")}
    assert all(list(package.glob(pattern)) for pattern in DATA)


def test_it_works_in_another_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "net.py").write_text("import torch\ndef net():\n    return torch.nn.Linear(50, 8), torch.ones(4, 50)\n")

    command = (
        "import sys; from gpuprof.cli import main\nfor line in sys.argv[1:]:\n"
        "    sys.argv = ['gpuprof', *line.split()]\n    main()"
    )
    lines = ["presets", f"report {ROOT / 'examples' / 'own-base.json.gz'} -o page.html", "count net.py:net"]
    done = subprocess.run(
        [sys.executable, "-c", command, *lines], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip

    assert "smollm2-135m" in done.stdout
    assert "own_model.py:make" in (tmp_path / "page.html").read_text()
    assert "3.200 KFLOPs" in done.stdout  # of one product of 4 x 50 by 50 x 8, a multiplication and an addition each
