"""Run the checks that need a GPU, each in a process of its own with a time limit.

A check that has passed on this kind of device, with its result under results/DEVICE/suite, is not run again. Each
writes its own JSON file, and suite.json holds all of them. Exits with 0 if nothing failed, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TAIL = 3000

Result = dict[str, Any]


def slug(name: str) -> str:
    """``NVIDIA H200`` as ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def device_name() -> str:
    """Name of the GPU, empty where there is none; asked in a child so that this process holds no memory there."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip().splitlines()[-1] if found.stdout.strip() else ""


def committed(name: str, results: Path) -> bool:
    """Whether a result of this check is there already."""
    try:
        return json.loads((results / f"{name}.json").read_text()).get("status") == "done"
    except (OSError, ValueError, AttributeError):
        return False


def tail(text: str) -> str:
    """The end of what a check printed, without where it ran."""
    return text.replace(str(ROOT), ".").replace(str(Path.home()), "~")[-TAIL:]


def run_check(name: str, out: Path, limit_s: float, command: Sequence[str] | None = None) -> Result:
    """Run one check in a process of its own and write its result; however that ends, a result is returned.

    Args:
        name: of the check.
        out: folder of the results.
        limit_s: seconds after which it is killed, with everything it started.
        command: what to run instead of this script.
    """
    path = out / f"{name}.json"
    path.unlink(missing_ok=True)
    command = command or [sys.executable, str(Path(__file__).resolve()), "--run", name, "--out", str(path)]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        child = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, cwd=ROOT, env=environment, start_new_session=True
        )
        status = ""
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            status, code = f"killed after {limit_s:g} s", None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        stdout.seek(0)
        stderr.seek(0)
        printed = {"stdout": tail(stdout.read()), "stderr": tail(stderr.read())}
    try:
        result: Result = json.loads(path.read_text())
        if status:  # it had written its result and hung at its end
            result["note"] = status
    except (OSError, ValueError):
        result = {"check": name, "status": status or f"crashed with exit code {code}", "facts": {}}
    result["seconds"] = round(time.perf_counter() - begin, 1)
    if result["status"] != "done":
        result |= printed
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def child_main(name: str, path: Path) -> int:
    """Run one check here and write its result."""
    import gpu_checks
    import torch

    from gpuprof.hardware.device import environment

    result: Result = {"check": name, "status": "failed", "what": gpu_checks.CHECKS[name].what, "facts": {}}
    try:
        result["facts"] = gpu_checks.CHECKS[name].run(path.parent / "runs")
        result["status"] = "done" if result["facts"].get("passed") else "failed"
    except Exception:  # whatever it is belongs into the result
        result["error"] = tail(traceback.format_exc())
    result["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    result["environment"] = environment()
    path.write_text(json.dumps(result, indent=1, default=_plain) + "\n")
    return 0 if result["status"] == "done" else 1


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def write_suite(out: Path, results: dict[str, Result], device: str) -> None:
    """All results in one file."""
    whole = {"device": device, "date": datetime.now(UTC).isoformat(timespec="seconds"), "checks": results}
    (out / "suite.json").write_text(json.dumps(whole, indent=1) + "\n")


def print_table(results: dict[str, Result]) -> None:
    width = max(map(len, results), default=0)
    for name, result in results.items():
        seconds = f"{result['seconds']:7.1f} s" if "seconds" in result else " " * 9
        said = (result.get("error") or result.get("stderr") or "").strip().splitlines()
        why = f"  {said[-1][:100]}" if result["status"] != "done" and said else ""
        print(f"{name:{width}}  {seconds}  {result['status']}{why}")


def chosen(only: str | None, known: Sequence[str]) -> list[str]:
    """The checks to run, in the order of the table.

    Raises:
        SystemExit: one of the names is unknown.
    """
    if not only:
        return list(known)
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no check named {', '.join(unknown)}: known are {', '.join(known)}")
    return [name for name in known if name in names]


def run_all(names: Sequence[str], limits: dict[str, int], args: Any, out: Path, kept: Path, device: str) -> int:
    """Run checks one after another, within the budget."""
    begin = time.monotonic()
    results: dict[str, Result] = {}
    for name in names:
        left = args.minutes * 60 - (time.monotonic() - begin) if args.minutes else float("inf")
        if not args.force and committed(name, kept):
            results[name] = {"check": name, "status": "skipped: there is a committed result"}
        elif limits[name] > left:
            results[name] = {"check": name, "status": f"not started: needs {limits[name]} s, {max(left, 0):.0f} s left"}
        else:
            print(f"{name}: up to {limits[name]} s", flush=True)
            results[name] = run_check(name, out, limits[name])
        write_suite(out, results, device)  # after each, so that a run that is cut short loses nothing
        if args.pack:
            pack(out, args.pack)
    print_table(results)
    fine = ("done", "skipped", "not started")
    return 0 if all(result["status"].startswith(fine) for result in results.values()) else 1


def pack(out: Path, archive: Path) -> None:
    """Everything under the folder as one file."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(out, arcname=".")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the checks and stop")
    parser.add_argument("--only", metavar="NAME[,NAME]", help="run these alone")
    parser.add_argument("--minutes", type=float, metavar="N", help="start no check whose limit no longer fits")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (results/DEVICE/suite)")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="also keep everything there as one .tar.gz")
    parser.add_argument("--force", action="store_true", help="run checks that have a committed result too")
    parser.add_argument("--run", metavar="NAME", help=argparse.SUPPRESS)  # the child's side
    args = parser.parse_args(arguments)
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]  # it also runs where gpuprof is not installed
    if args.run:
        return child_main(args.run, args.out)
    from gpu_checks import CHECKS

    names = chosen(args.only, list(CHECKS))
    if args.list:
        for name in names:
            print(f"{name:20} {CHECKS[name].limit_s:4} s  {CHECKS[name].what}")
        return 0
    device = device_name()
    if not device:
        print("no CUDA device: these checks need one (--list names them)", file=sys.stderr)
        return 2
    kept = ROOT / "results" / slug(device) / "suite"
    out = (args.out or kept).resolve()
    out.mkdir(parents=True, exist_ok=True)
    return run_all(names, {name: CHECKS[name].limit_s for name in names}, args, out, kept, device)


if __name__ == "__main__":
    sys.exit(main())
