"""Nsight Compute as a child process: is it here, may it read counters, and what it read. Changes no setting."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpuprof.errors import GpuprofError
from gpuprof.hardware.counters import CHIPS, names_of
from gpuprof.signals import held_back

DRIVER_PARAMS = Path("/proc/driver/nvidia/params")
OWN_STATUS = Path("/proc/self/status")
REPLAYS = "profiler__replayer_passes"
"""Column that says how often a kernel was replayed: in every table, asked for or not."""

_REINSTALL = "reinstall Nsight Compute"
INSTALL = "install Nsight Compute (it comes with the CUDA toolkit) and put ncu on PATH"
PERMISSION = (
    "run as root with CAP_SYS_ADMIN (or CAP_PERFMON from driver R565), in a container with "
    "--cap-add=SYS_ADMIN, or ask the administrator for "
    "'options nvidia NVreg_RestrictProfilingToAdminUsers=0' in /etc/modprobe.d"
)

_CAP_SYS_ADMIN, _CAP_PERFMON = 21, 38  # bits, linux/capability.h
_BASE_UNITS = {
    "byte": 1, "kbyte": 1e3, "mbyte": 1e6, "gbyte": 1e9, "tbyte": 1e12,
    "ns": 1, "nsecond": 1, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9, "second": 1e9,
    "inst": 1, "": 1,
}  # fmt: skip
_NUMBER = re.compile(r"-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?([eE][+-]?\d+)?").fullmatch
_HEADER = re.compile(r'\ufeff?"?ID"?,').match
_ABSENT = ("", "n/a", "nan", "no data")


class UnavailableError(GpuprofError):
    """Counters cannot be read on this machine: nothing is wrong with the run.

    Attributes:
        remedy: what to do about it.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Launch(NamedTuple):
    """One kernel launch.

    Attributes:
        kernel: name, demangled.
        grid: blocks, x by y by z.
        block: threads per block, x by y by z.
        ranges: text of the NVTX ranges that were open.
        metrics: readings by name, in bytes, nanoseconds or counts; None where there is none. Those that were asked for,
            and `REPLAYS`.
    """

    kernel: str
    grid: str
    block: str
    ranges: str
    metrics: dict[str, float | None]


def find() -> str:
    """Path of Nsight Compute's command line.

    Raises:
        UnavailableError: it is not here, or does not run.
    """
    path = shutil.which("ncu")
    if path is None:
        raise UnavailableError("no ncu on PATH", INSTALL)
    return path


def version(path: str) -> str:
    """Version of Nsight Compute.

    Raises:
        UnavailableError: it does not run.
    """
    found = re.search(r"Version (\S+)", _ask(path, "--version"))
    return found.group(1) if found else "of unknown version"


def forbidden() -> bool:
    """Whether the driver keeps counters for administrators and this process is none; False where it does not say."""
    return admin_only() is True and not privileged()


def admin_only() -> bool | None:
    """Whether the driver keeps counters for administrators; None where it does not say."""
    try:
        setting = re.search(r"^RmProfilingAdminOnly:\s*(\d)", DRIVER_PARAMS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if setting is None else setting.group(1) != "0"


def privileged() -> bool:
    """Whether this process has a capability that opens the counters."""
    try:
        effective = re.search(r"^CapEff:\s*([0-9a-f]+)", OWN_STATUS.read_text(), re.MULTILINE)
    except OSError:
        return False
    bits = int(effective.group(1), 16) if effective else 0
    return bool(bits >> _CAP_SYS_ADMIN & 1 or bits >> _CAP_PERFMON & 1)


def metrics_of(path: str, compute_capability: str) -> frozenset[str]:
    """Metrics of a chip as this Nsight Compute lists them, without suffix; what is known of the chip if it lists none.

    Args:
        path: of ncu.
        compute_capability: such as ``9.0``.
    """
    chip = CHIPS.get(compute_capability)
    try:
        listing = _ask(path, "--query-metrics", *(["--chips", chip.lower()] if chip else []))
    except UnavailableError:
        listing = ""
    listed = frozenset(re.findall(r"^\s*(\w+__\w+)\b", listing, re.MULTILINE))
    return listed or names_of(compute_capability)


def profile(path: str, metrics: Sequence[str], command: Sequence[str], limit_s: float) -> list[Launch]:
    """Run a command under Nsight Compute and read what it counted between cudaProfilerStart and Stop.

    Kernels are replayed one by one where the metrics need several passes. Clocks and caches are left as they are.

    Args:
        path: of ncu.
        metrics: names, with suffix.
        command: program and arguments.
        limit_s: seconds after which everything is killed.

    Raises:
        UnavailableError: the driver does not permit it.
        GpuprofError: it failed, took too long, or counted nothing.
    """
    with tempfile.TemporaryDirectory(prefix="gpuprof-ncu-") as folder:
        report = Path(folder) / "counted.ncu-rep"
        steady = ["--pipeline-boost-state", "dynamic"] if "pipeline-boost-state" in _ask(path, "--help") else []
        said = _run(
            [
                path, "--target-processes", "application-only", "--profile-from-start", "off",
                "--replay-mode", "kernel", "--cache-control", "none", "--clock-control", "none", *steady,
                "--graph-profiling", "node", "--nvtx", "--disable-extra-suffixes", "--apply-rules", "no",
                "--import-source", "no", "--import-sass", "no",
                "--metrics", ",".join(metrics), "--force-overwrite", "--export", str(report), *command,
            ],
            limit_s,
        )  # fmt: skip
        if not report.exists():
            raise GpuprofError(f"Nsight Compute wrote no report{_last_words(said)}")
        table = _run(
            [
                path, "--import", str(report), "--csv", "--page", "raw", "--print-units", "base", "--print-fp",
                "--print-kernel-base", "demangled",
            ],
            limit_s,
        )  # fmt: skip
    launches = read_csv(table, metrics)
    if not launches:
        raise GpuprofError(f"Nsight Compute counted no kernel{_last_words(said)}")
    return launches


def read_csv(text: str, metrics: Collection[str]) -> list[Launch]:
    """Launches of a ``--page raw --csv`` table, in launch order.

    Args:
        text: the table, after whatever else was printed.
        metrics: names, with suffix, that are read. Nsight Compute adds columns of its own to every table, in units of
            every kind.

    Raises:
        GpuprofError: it is no such table, breaks off, or has numbers of another locale or in an unknown unit.
    """
    header, parsed = _cells(text)
    places = {name: place for place, name in enumerate(header)}
    nvtx = [place for name, place in places.items() if "Push/Pop_Range" in name]
    read = {name: place for name, place in places.items() if name in metrics or name == REPLAYS}
    scale = dict.fromkeys(read, 1.0)  # also of a table without units, and of the replays whatever their unit
    launches = []
    for row in parsed:
        if _of_units(row, places):
            scale |= {name: _unit(row[place], name) for name, place in read.items() if name in metrics}
            continue
        launches.append(
            Launch(
                row[places["Kernel Name"]],
                _size(row[places["Grid Size"]]),
                _size(row[places["Block Size"]]),
                " ".join(row[place] for place in nvtx),
                {name: _reading(row[place], scale[name], name) for name, place in read.items()},
            )
        )
    return launches


def read_texts(text: str, columns: Collection[str]) -> dict[str, list[str]]:
    """What stands in columns of such a table: each cell's text once, in its order; without columns that are not there.

    Raises:
        GpuprofError: it is no such table, or breaks off.
    """
    header, parsed = _cells(text)
    places = {name: place for place, name in enumerate(header)}
    rows = [row for row in parsed if not _of_units(row, places)]
    found = {
        name: dict.fromkeys(row[place].strip() for row in rows) for name, place in places.items() if name in columns
    }
    return {name: [cell for cell in cells if cell.lower() not in _ABSENT] for name, cells in found.items()}


def _cells(text: str) -> tuple[list[str], list[list[str]]]:
    """Names of the columns of a raw table, and its rows; nothing where the text has none."""
    lines = text.splitlines(keepends=True)
    start = next((number for number, line in enumerate(lines) if _HEADER(line)), None)
    if start is None:
        return [], []
    rows = csv.reader(io.StringIO("".join(line for line in lines[start:] if not line.startswith("=="))), strict=True)
    try:
        header = [name.lstrip("\ufeff") for name in next(rows)]
        parsed = [row for row in rows if row]
    except csv.Error as error:
        raise GpuprofError(f"Nsight Compute's table breaks off ({error}): run again") from error
    if "Metric Name" in header:
        raise GpuprofError(
            "Nsight Compute's table has a row per metric, not one per kernel: print it with "
            "'ncu --import REPORT.ncu-rep --csv --page raw'"
        )
    if missing := [name for name in ("ID", "Kernel Name", "Grid Size", "Block Size") if name not in header]:
        raise GpuprofError(f"Nsight Compute's table has no column {', '.join(missing)}: this version is not known")
    for row in parsed:
        if len(row) != len(header):
            raise GpuprofError(
                f"Nsight Compute's table breaks off: a row of {len(row)} cells where there are {len(header)} columns"
            )
    return header, parsed


def _of_units(row: list[str], places: Mapping[str, int]) -> bool:
    return not row[places["ID"]].strip()


def _unit(text: str, metric: str) -> float:
    unit = text.strip().lower()
    if unit in _BASE_UNITS:
        return float(_BASE_UNITS[unit])
    if "/" in unit or unit == "%":  # a rate: none of ours
        return 1.0
    if unit in ("op", "ops", "flop", "cycle", "thread_inst", "instruction", "instructions", "warp_inst"):
        return 1.0
    raise GpuprofError(
        f"Nsight Compute gives {metric} in {text!r}, which gpuprof does not know: add --print-units base"
    )


def _reading(text: str, scale: float, metric: str) -> float | None:
    text = text.strip()
    if text.lower() in _ABSENT:
        return None
    if not _NUMBER(text):
        raise GpuprofError(f"Nsight Compute gives {metric} as {text!r}, no number of the C locale: set LC_ALL=C")
    return float(text.replace(",", "")) * scale


def _size(text: str) -> str:
    return "x".join(re.findall(r"\d+", text))


def _ask(path: str, *arguments: str) -> str:
    """What ncu says of itself.

    Raises:
        UnavailableError: nothing.
    """
    try:
        return _run([path, *arguments], 120.0)
    except UnavailableError:
        raise
    except GpuprofError as error:
        raise UnavailableError(f"ncu does not run ({error})", _REINSTALL) from error


def _run(command: Sequence[str], limit_s: float) -> str:
    """What a command prints, errors last; killed with everything it started when its time is up.

    Raises:
        UnavailableError: it cannot be started, or the driver does not permit counters.
        GpuprofError: it failed or took too long.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        child = None
        try:
            with held_back():
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=os.environ | {"LC_ALL": "C"},
                    start_new_session=True,
                )  # fmt: skip
            child.wait(limit_s)
        except OSError as error:
            raise UnavailableError(f"ncu does not run ({error.strerror or error})", _REINSTALL) from error
        except subprocess.TimeoutExpired:
            raise GpuprofError(f"Nsight Compute was killed after {limit_s:g} s: measure a smaller step") from None
        finally:
            if child is not None and child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        out.seek(0)
        err.seek(0)
        printed, complaint = out.read(), err.read()
    if "ERR_NVGPUCTRPERM" in printed + complaint:
        raise UnavailableError("the driver keeps hardware counters for administrators", PERMISSION)
    if child.returncode != 0 or "==ERROR==" in printed:
        raise GpuprofError(f"Nsight Compute failed with exit code {child.returncode}{_last_words(printed + complaint)}")
    return printed


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "==ERROR==" in line or "Error" in line or line.startswith("gpuprof:")]
    words = (errors or lines)[-1:]
    return f": {words[0][:300]}" if words else ""
