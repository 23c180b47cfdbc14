"""Run the checks that need a GPU: most worth first, each in a process of its own with a time limit.

Processes are forked from this one, which has imported everything and never touched CUDA: none pays for the imports, and
a crash loses one check only. A check that has passed on this kind of device, with its result under results/DEVICE, is
not run again. Results are written as they come; ``--commit-ready`` then makes of them what is committed. Exits with 0
if nothing failed, 1 if something did, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
TAIL = 3000
GRACE_S = 5.0
"""Seconds that a check has to end what it started, once its time is up."""

Result = dict[str, Any]


def slug(name: str) -> str:
    """``NVIDIA H200`` as ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def device_name() -> str:
    """Name of the first GPU, empty where there is none. Not from torch: this process must not touch CUDA."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return next(iter(found.stdout.splitlines()), "").strip()


def committed(name: str, kept: Path) -> bool:
    """Whether a result of this check stands in the folder of a device, of any date."""
    return any(done(path) for path in kept.glob(f"*/{name}.json"))


def done(path: Path) -> bool:
    """Whether a file is the result of a check that passed."""
    try:
        return bool(json.loads(path.read_text())["status"] == "done")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def tail(text: str) -> str:
    """The end of what a check printed, without where it ran."""
    return text.replace(str(ROOT), ".").replace(str(Path.home()), "~")[-TAIL:]


def run_check(name: str, check: Callable[[Path], Mapping[str, Any]], out: Path, limit_s: float) -> Result:
    """Run one check in a fork of this process and write its result; however that ends, a result is returned.

    Args:
        name: of the check.
        check: what to run; it is given the folder for what it saves.
        out: folder of the results.
        limit_s: seconds after which it is ended, with everything it started.
    """
    path, printed = out / f"{name}.json", out / f"{name}.txt"
    path.unlink(missing_ok=True)
    begin = time.perf_counter()
    child = multiprocessing.get_context("fork").Process(target=_alone, args=(name, check, path, printed))
    child.start()
    child.join(limit_s)
    late = child.is_alive()
    if late:
        child.terminate()  # raises SystemExit there, so that it ends what it started in other sessions
        child.join(GRACE_S)
    child.kill()
    with suppress(ProcessLookupError):
        os.killpg(child.pid or 0, signal.SIGKILL)
    child.join()
    try:
        result: Result = json.loads(path.read_text())
    except (OSError, ValueError):
        result = {"check": name, "status": f"crashed with exit code {child.exitcode}", "facts": {}}
    if late:
        how = "note" if result["status"] == "done" else "status"  # it had written its result and hung at its end
        result[how] = f"killed after {limit_s:g} s"
    result["seconds"] = round(time.perf_counter() - begin, 1)
    if result["status"] != "done" and printed.exists():
        result["printed"] = tail(printed.read_text(errors="replace"))
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _alone(name: str, check: Callable[[Path], Mapping[str, Any]], path: Path, printed: Path) -> None:
    """The child's side: a session of its own, and everything printed into the file."""
    from gpuprof.hardware.device import environment
    from gpuprof.signals import exit_on_sigterm

    os.setsid()
    exit_on_sigterm()
    sys.stdout.flush()
    sys.stderr.flush()
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # whatever stood here before, a test's own among them, writes to the file too
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    result: Result = {"check": name, "status": "failed", "facts": {}}
    try:
        result["facts"] = check(path.parent / "runs" / name)
        result["status"] = "done" if result["facts"].get("passed") else "failed"
    except Exception:  # whatever it is belongs into the result
        result["error"] = tail(traceback.format_exc())
    result["environment"] = environment()
    path.write_text(json.dumps(result, indent=1, default=_plain) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def write_suite(out: Path, results: dict[str, Result], device: str, rehearsal: bool) -> None:
    """How each check went, in one file."""
    whole = {
        "device": device,
        "rehearsal": rehearsal,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "checks": {name: {k: v for k, v in result.items() if k != "facts"} for name, result in results.items()},
    }
    (out / "suite.json").write_text(json.dumps(whole, indent=1) + "\n")


def summary(name: str, result: Result) -> str:
    """How a check went, as one line."""
    seconds = f"{result['seconds']:6.1f} s" if "seconds" in result else " " * 8
    said = (result.get("error") or result.get("printed") or "").strip().splitlines()
    why = f"  {said[-1][:120]}" if result["status"] == "failed" and said else ""
    return f"{name:20} {seconds}  {result['status']}{why}"


def chosen(only: str | None, known: Sequence[str]) -> list[str]:
    """The checks to run, in the order in which they are named.

    Raises:
        ValueError: one of the names is unknown.
    """
    if not only:
        return list(known)
    names = list(dict.fromkeys(name.strip() for name in only.split(",") if name.strip()))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no check named {', '.join(unknown)}: known are {', '.join(known)}")
    return names


def run_all(
    names: Sequence[str], checks: Mapping[str, Any], args: argparse.Namespace, out: Path, kept: Path, device: str,
    say: Callable[[str, Result], str] = summary,
) -> dict[str, Result]:  # fmt: skip
    """Run checks one after another, within the budget: what no longer fits is left out, and the next is tried."""
    end = time.monotonic() + args.minutes * 60 if args.minutes else float("inf")
    results: dict[str, Result] = {}
    for name in names:
        left = end - time.monotonic() - GRACE_S
        if not args.force and committed(name, kept):
            results[name] = {"check": name, "status": "skipped: there is a committed result"}
        elif not args.force and done(out / f"{name}.json"):
            results[name] = {"check": name, "status": "skipped: an earlier call has its result"}
        elif checks[name].seconds > left:
            why = f"not started: takes about {checks[name].seconds} s, {max(left, 0):.0f} s left"
            results[name] = {"check": name, "status": why}
        else:
            results[name] = run_check(name, checks[name].run, out, min(checks[name].limit_s, left))
        print(say(name, results[name]), flush=True)
        write_suite(out, results, device, args.rehearse)  # after each, so that a run that is cut short loses nothing
        if args.pack:
            pack(out, args.pack)
    return results


def pack(out: Path, archive: Path) -> None:
    """Everything under the folder as one file."""
    fresh = archive.with_name(f".{archive.name}")
    with tarfile.open(fresh, "w:gz") as tar:
        tar.add(out, arcname=".", filter=lambda member: None if archive.name in member.name else member)
    fresh.replace(archive)


def list_checks(names: Sequence[str], checks: Mapping[str, Any]) -> None:
    """Name, seconds, limit, devices with a committed result, and what each check is worth; most worth first."""
    kinds = sorted(folder for folder in RESULTS.glob("*") if folder.is_dir())
    for name in names:
        there = [kind.name for kind in kinds if committed(name, kind)]
        check = checks[name]
        print(f"{name:20} {check.seconds:4} s, at most {check.limit_s:4} s  [{', '.join(there) or '-'}]  {check.what}")
    print(f"{'':20} {sum(checks[name].seconds for name in names):4} s together; in brackets: a result is committed")


def rehearse(names: Sequence[str], checks: Mapping[str, Any], args: argparse.Namespace, folder: Path) -> int:
    """Run checks with stand-ins for all that a GPU gives; 1 where one of them does not come to its verdict."""
    import gpu_checks
    import gpu_rehearsal

    gpu_rehearsal.install(folder)
    gpu_rehearsal.shorten(gpu_checks)
    out = args.out or folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    args.force = True
    unhurried = {name: check._replace(limit_s=600) for name, check in checks.items()}
    results = run_all(names, unhurried, args, out, out, gpu_rehearsal.DEVICE, _rehearsed)
    fallen = [result for result in results.values() if not _came_to_a_verdict(result)]
    for result in fallen:
        said = result.get("error") or result.get("printed", "")
        print(f"\n{result['check']}: {result['status']}\n{said}", file=sys.stderr)
    print(f"{len(results) - len(fallen)} of {len(results)} checks came to a verdict; which one means nothing here")
    return 1 if fallen else 0


def _came_to_a_verdict(result: Result) -> bool:
    return "error" not in result and result["status"] in ("done", "failed")


def _rehearsed(name: str, result: Result) -> str:
    return f"{name:20} {result['seconds']:6.1f} s  {'rehearsed' if _came_to_a_verdict(result) else 'fell'}"


def keep(source: Path) -> int:
    """Make what is committed of what a suite wrote."""
    from gpu_results import commit_ready

    from gpuprof.errors import GpuprofError

    try:
        target = commit_ready(source, RESULTS, ROOT / "tests" / "data")
    except GpuprofError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{target.relative_to(ROOT)}, results/README.md and tests/data: look at them, then commit")
    return 0


def _minutes(text: str) -> float:
    minutes = float(text)
    if not minutes > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return minutes


def _file(text: str) -> Path:
    path = Path(text).resolve()
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def _folder(text: str) -> Path:
    return Path(text).resolve()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the checks and stop")
    parser.add_argument("--only", metavar="NAME[,NAME]", help="run these alone, in this order")
    parser.add_argument("--minutes", type=_minutes, metavar="N", help="end within so many minutes, with the most worth")
    parser.add_argument(
        "--out", type=_folder, metavar="DIR", help="where results go (gpu-suite); a second call goes on"
    )
    parser.add_argument("--pack", type=_file, metavar="FILE", help="also keep everything there as one .tar.gz")
    parser.add_argument("--force", action="store_true", help="run checks that have a result too")
    parser.add_argument(
        "--commit-ready", type=_folder, metavar="DIR", help="make results and fixtures of DIR or archive"
    )
    parser.add_argument("--rehearse", action="store_true", help="run every check's code on a GPU of make-believe")
    args = parser.parse_args(arguments)
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]  # it also runs where gpuprof is not installed
    if args.commit_ready:
        return keep(args.commit_ready)
    device = "" if args.list or args.rehearse else device_name()
    if not (args.list or args.rehearse or device):
        print("no CUDA device: these checks need one (--list names them)", file=sys.stderr)
        return 2
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # asked whether there is a GPU, torch asks NVML: asking CUDA would forbid it to every fork
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.chdir(ROOT)
    from gpu_checks import CHECKS

    try:
        names = chosen(args.only, list(CHECKS))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if args.list:
        list_checks(names, CHECKS)
        return 0
    if args.rehearse:
        with tempfile.TemporaryDirectory() as folder:
            return rehearse(names, CHECKS, args, Path(folder))
    out = args.out or ROOT / "gpu-suite"
    out.mkdir(parents=True, exist_ok=True)
    results = run_all(names, CHECKS, args, out, RESULTS / slug(device), device)
    fine = ("done", "skipped", "not started")
    return 0 if all(result["status"].startswith(fine) for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
