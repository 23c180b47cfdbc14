"""What came back from a GPU as something to commit: ``gpu_suite.py --commit-ready DIR``. Needs no GPU.

results/DEVICE/DATE/ gets the result of each check, the runs, pictures and table.md; results/README.md a section with a
sentence per finding; tests/data/DEVICE/ the recordings that tests can use. What names a machine is left out.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tarfile
import tempfile
import textwrap
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuprof import units
from gpuprof.analysis.budget import budget
from gpuprof.analysis.executed import TOLERANCE, executed, executed_by_module, not_collected
from gpuprof.errors import ForeignFileError, GpuprofError
from gpuprof.record import load
from gpuprof.render.budget import budget_chart
from gpuprof.run import Run

Facts = dict[str, Any]
Result = dict[str, Any]

_PACKAGES = re.compile(r"torch|triton|transformers|numpy|pandas|accelerate|nvidia-", re.IGNORECASE).match
_FIXTURES = (
    "counters-*.json.gz", "counters-siglip-ncu-1.csv.gz", "kineto-*.json", "chrome-*.json.gz", "telemetry.csv",
)  # fmt: skip
_OF_TRACE = ("schemaVersion", "deviceProperties", "record_shapes", "baseTimeNanoseconds", "traceEvents")
_DRAWN = ("reference-generate", "reference-train")
_HOST = re.compile(r'"(\d+\.){3}\d+"')


def commit_ready(source: Path, results: Path, fixtures: Path) -> Path:
    """Turn the folder, or the archive, of a suite into results and fixtures; returns the folder of the results.

    A check that was done before on the same day keeps its result and its runs where it fails now, and a recording that
    is there already is kept. Nothing is written before everything is made.

    Args:
        source: what ``--out`` or ``--pack`` of the suite wrote.
        results: folder of all results.
        fixtures: folder of all recordings for tests.

    Raises:
        GpuprofError: it holds no suite, or a rehearsed one.
    """
    with _unpacked(source) as folder, tempfile.TemporaryDirectory() as made:
        device, date, names = _suite(folder, source)
        from gpu_suite import done, slug

        target, fresh, recordings = results / slug(device) / date, Path(made) / slug(device) / date, Path(made) / "data"
        if target.exists():
            shutil.copytree(target, fresh)
        (fresh / "runs").mkdir(parents=True, exist_ok=True)
        for name in names:
            path, kept = folder / f"{name}.json", fresh / f"{name}.json"
            # not started now, or done before
            if not path.exists() or (done(kept) and not done(path)):
                continue
            raw = folder / "runs" / name
            for run in sorted(raw.glob("*.json.gz")):
                _keep_run(run, fresh / "runs")
            for study in sorted(raw.glob("*-backward")):
                shutil.copytree(study, fresh / "backward", dirs_exist_ok=True)
            _keep_result(_read(path), kept)
            if done(kept):
                _keep_fixtures(raw, recordings)
        _draw(fresh)
        text = section(fresh, device, date)
        (fresh / "table.md").write_text(text.replace(f"({slug(device)}/{date}/", "("))
        shutil.copytree(fresh, target, dirs_exist_ok=True)
        there = fixtures / slug(device)
        for path in sorted(recordings.glob("*")):
            if not (there / path.name).exists():  # tests know its figures: take the old one away to renew it
                there.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, there / path.name)
    _put_section(results / "README.md", text)
    return target


def _suite(folder: Path, source: Path) -> tuple[str, str, list[str]]:
    """Device, date and checks of a suite.

    Raises:
        GpuprofError: it is none, or a rehearsed one.
    """
    suite = _read(folder / "suite.json", source)
    device, date, names = (suite.get(name) for name in ("device", "date", "checks"))
    known = isinstance(device, str) and re.search(r"\w", device) and isinstance(names, dict) and names
    if not (known and isinstance(date, str) and re.match(r"\d{4}-\d\d-\d\dT", date)):
        raise GpuprofError(f"{source} holds no results of the GPU suite: suite.json lacks its device, date or checks")
    if suite.get("rehearsal"):
        raise GpuprofError(f"{source} holds a rehearsal: its figures are of no GPU")
    return device, date[:10], [name for name in names if name in SAYINGS]


def _read(path: Path, source: Path | None = None) -> Facts:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise GpuprofError(f"{source or path} holds no results of the GPU suite ({error})") from error
    if not isinstance(found, dict):
        raise GpuprofError(f"{source or path} holds no results of the GPU suite: {path.name} is no object")
    return found


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(source) as tar:
                _extract(tar, Path(folder).resolve())
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise GpuprofError(f"{source} is neither a folder nor an archive of the GPU suite ({reason})") from error
        yield Path(folder)


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Its plain files; the filter that ``extractall`` has for them came with Python 3.11.4."""
    for member in filter(tarfile.TarInfo.isfile, tar):
        target, content = (folder / member.name).resolve(), tar.extractfile(member)
        if content is None or not target.is_relative_to(folder):
            raise tarfile.TarError(f"{member.name} would be outside of it")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.read())


def _keep_result(result: Result, target: Path) -> None:
    result |= {"status": result.get("status", "failed"), "facts": result.get("facts", {})}
    if "environment" in result:
        _cut_platform(result["environment"])
    facts = result["facts"]
    if "versions" in facts:
        facts["versions"] = {name: version for name, version in facts["versions"].items() if _PACKAGES(name)}
    path = target.parent / "runs" / f"{target.stem}.json.gz"
    run = load(path) if target.stem.startswith("counters-") and path.exists() else None
    if run is not None and run.done("counters"):  # judged by the rules of today, from what was executed then
        kept = {name: facts[name] for name in ("outcome", "run", "mismatches") if name in facts}
        facts = result["facts"] = kept | explained(run)
        result["status"] = "done" if facts["passed"] else "failed"
    target.write_text(json.dumps(result, indent=1) + "\n")


def explained(run: Run) -> Facts:
    """How far the FLOPs that a run executed are explained, row by row; passed if all that matter are.

    What cuDNN's attention executes is not published: its rows are looked at, and none is asked to be explained.
    """
    rows = executed(run)
    whole = executed_by_module(run).query("module == ''")
    missed = ~(rows["residual"].abs() <= TOLERANCE) & (rows["flops_executed"].fillna(0) > 0)
    matters = rows["flops_hardware"].fillna(0) > 0.001 * rows["flops_hardware"].sum()
    closed = (rows["kind"] == "attention") & rows["kernels"].str.contains("cudnn")
    what = ["module", "phase", "op", "shapes", "kernels", "cause", "flops_hardware", "flops_executed", "flops_expected"]
    return {
        "launches_without_a_range": int((run.counters["op"] == "").sum()),
        "rows": int((rows["flops_executed"].fillna(0) > 0).sum()),
        "unexplained": json.loads(rows.loc[missed, what].to_json(orient="records")),
        "executed_over_counted": dict(zip(whole["phase"], whole["factor"], strict=True)),
        "not_collected": json.loads(not_collected(run).to_json(orient="records")),
        "passed": bool((matters & ~closed).any() and not (missed & matters & ~closed).any()),
    }


def _cut_platform(environment: Facts) -> None:
    """Of a kernel's release keep the number: what follows names somebody's build of it."""
    environment["platform"] = re.sub(r"^(\w+ [\d.]+)\S*", r"\1", environment.get("platform") or "")


def _keep_run(source: Path, target: Path) -> None:
    try:
        run = load(source)
    except ForeignFileError:  # a recording of another kind
        return
    run.device["uuid"] = None
    _cut_platform(run.environment)
    run.save(target / source.name)


def _keep_fixtures(source: Path, target: Path) -> None:
    for pattern in _FIXTURES:
        for path in sorted(source.glob(pattern)):
            target.mkdir(parents=True, exist_ok=True)
            if path.name.endswith(".csv.gz"):
                text = _HOST.sub('"host"', gzip.decompress(path.read_bytes()).decode())
                (target / path.name).write_bytes(gzip.compress(text.encode(), mtime=0))
            elif path.name.startswith("chrome-"):
                trace = json.loads(gzip.decompress(path.read_bytes()))
                kept = json.dumps({name: trace[name] for name in _OF_TRACE if name in trace}, separators=(",", ":"))
                (target / path.name).write_bytes(gzip.compress(kept.encode(), mtime=0))
            elif path.name.endswith(".json.gz"):
                _keep_run(path, target)
            elif path.suffix == ".json":
                (target / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            else:
                shutil.copy(path, target / path.name)


def _draw(target: Path) -> None:
    for name in _DRAWN:
        path = target / "runs" / f"{name}.json.gz"
        run = load(path) if path.exists() else None
        if run is not None and all(map(run.done, ("count", "time", "trace"))):
            budget_chart(budget(run), target / f"{name}.png")


# a sentence per finding


def section(target: Path, device: str, date: str) -> str:
    """The section of results/README.md on the results in a folder."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(target.glob("*.json"))}
    environment = next((result["environment"] for result in found.values() if "environment" in result), {})
    names = [name for name in ("torch", "transformers", "cuda", "cudnn", "cublas") if environment.get(name)]
    software = ", ".join(f"{name} {environment[name]}" for name in names)
    here = f"{target.parent.name}/{date}"
    command = f"    python scripts/gpu_suite.py      # {software}" if software else "    python scripts/gpu_suite.py"
    lines = [f"## GPU suite on {device}, {date}", "", command, ""]
    for name, said in SAYINGS.items():
        if name in found:
            result = found[name]
            judged = "" if result["status"] == "done" else f" **{result['status']}**"
            lines += _wrapped(f"- [{name}]({here}/{name}.json){judged}: {_sentence(result, said)}")
    for path in sorted(target.glob("*.png")):
        lines += ["", f"![{path.stem}: where the step goes]({here}/{path.name})"]
    return "\n".join(lines) + "\n"


def _sentence(result: Result, said: Callable[[Facts], str]) -> str:
    """What a check found; of one that came to no verdict the last that was heard of it."""
    try:
        return said(result["facts"])
    except (LookupError, TypeError, ValueError, AttributeError):  # it ended half-way, with some of its facts or none
        heard = (result.get("error") or result.get("printed") or "").strip().splitlines()
        return heard[-1] if heard else f"no more than {', '.join(result['facts']) or 'nothing'} is known of it."


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 130, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _put_section(readme: Path, text: str) -> None:
    """Put a section at the end, or in the place of the one with the same heading."""
    heading = text.splitlines()[0]
    whole = readme.read_text() if readme.exists() else "# Results\n"
    parts = [part for part in re.split(r"(?m)^(?=## )", whole) if not part.startswith(f"{heading}\n")]
    readme.write_text("\n\n".join(part.strip() for part in (*parts, text)) + "\n")


def _no(things: int, noun: str, plural: str) -> str:
    return units.number(things, noun, plural) if things else f"no {noun}"


def _link(facts: Facts) -> str:
    phases = ", ".join(f"{phase} {units.duration(time * 1e-9)}" for phase, time in facts["phase_ns"].items())
    linked, owned = 100 * facts["linked_share"], 100 * facts["attributed_share"]
    wrong = _no(len(facts["mismatches"]), "mismatch", "mismatches")
    return (
        f"{facts['kernels']:,} kernels and copies; {linked:.2f} % of their time is linked to an operator and "
        f"{owned:.4f} % to a module or the optimizer ({phases}); {facts['nodes_with_a_maker']:,} of "
        f"{facts['nodes_numbered']:,} numbered nodes have a maker; {wrong} between counted and traced calls."
    )


def _executed(facts: Facts) -> str:
    if facts["outcome"]["status"] != "done":
        return f"{facts['outcome']['status']}: {facts['outcome']['reason']}"
    how, missed = facts["outcome"]["facts"], facts["unexplained"]
    first = how["calibration"][0]
    factors = ", ".join(f"{phase} {factor:.4f}" for phase, factor in facts["executed_over_counted"].items())
    rest = f"; not {', '.join(sorted({row['op'] for row in missed}))}" if missed else ""
    return (
        f"a 4096^3 matmul in {first['dtype']} executes {first['executed'] / first['expected']:.6g} of 2MNK; "
        f"{how['launches']} launches, {facts['launches_without_a_range']} of them in no range, each kernel run "
        f"{how['replays'][0]} time(s); executed over counted: {factors}; {facts['rows'] - len(missed)} of "
        f"{facts['rows']} rows that multiply are explained within {units.percent(TOLERANCE)}{rest}."
    )


def _doctor(facts: Facts) -> str:
    wrong = sum(not finding["ok"] for finding in facts["findings"])
    failed = len(facts["telemetry"]["facts"]["failed_calls"])
    costs = ", ".join(f"{name} {units.duration(us * 1e-6, 3)}" for name, us in facts["nvml"]["median_us"].items())
    return (
        f"{len(facts['findings'])} findings, {_no(wrong, 'fault', 'faults')}; {_no(failed, 'NVML call', 'NVML calls')} "
        f"failed; one reading takes {costs}; GPM sees the tensor cores busy for "
        f"{facts['nvml']['gpm']['activity']['gpm_tensor_active']:.1f} % of some seconds of matmuls."
    )


def _ceilings(facts: Facts) -> str:
    rows = [
        f"{row['dtype']} {units.si(row['flops_per_s'], 'FLOP/s')} ({units.percent(row['of_datasheet'])} of the "
        f"datasheet; {'x'.join(map(str, row['shape']))} at {row['sm_clock_mhz']:.0f} MHz and {row['power_w']:.0f} W)"
        for row in facts["matmul"]
    ]
    copy = facts["copy"]
    return "; ".join([*rows, f"copy {units.si(copy['bytes_per_s'], 'B/s')} ({units.percent(copy['of_datasheet'])})."])


def _timing(facts: Facts) -> str:
    def case(found: Facts) -> str:
        figures = found["totals"]
        return (
            f"Qwen2-0.5B, batch {found['batch_size']} x 1024: step {units.duration(figures['step_s'])}, MFU "
            f"{units.percent(figures['mfu'])}, kernels {units.percent(found['kernels_over_step'])} of it; the traced "
            f"step spans {found['traced_over_step']:.2f} x the undisturbed one, and timed after the trace it takes "
            f"{found['step_after_a_trace_over_step']:.3f} x; {found['launches']:,} launches for "
            f"{found['gpu_kernels']:,} kernels"
        )

    return f"{'. '.join(map(case, facts['cases']))}."


def _reference(facts: Facts) -> str:
    figures, flops = facts["totals"], facts["flops_without_rotary"]
    same = "as expected" if flops == facts["flops_expected"] else f"expected were {facts['flops_expected']}"
    return (
        f"{flops['full']:,} FLOPs full and {flops['causal']:,} causal, {same}; step "
        f"{units.duration(figures['step_s'])}, MFU {units.percent(figures['mfu'])}, kernels "
        f"{units.duration(figures['kernel_s'])}; peak {figures['peak_bytes'] / 1e9:.4f} GB allocated; the published "
        f"report says {facts['report_memory_gb']} GB."
    )


def _reference_train(facts: Facts) -> str:
    if "totals" not in facts:
        return f"none of {len(facts['did_not_fit'])} sizes fits."
    figures = facts["totals"]
    ratio = units.MISSING if figures["backward_ratio"] is None else f"{figures['backward_ratio']:.4f}"
    said = ", ".join(f"{name} {value}" for name, value in facts["options"].items())
    refused = len(facts["did_not_fit"])
    larger = f"; {units.number(refused, 'larger step')} did not fit" if refused else ""
    return (
        f"{said}: step {units.duration(figures['step_s'])}, MFU {units.percent(figures['mfu'])}, HFU "
        f"{units.percent(figures['hfu'])}, backward over forward {ratio} by FLOPs, kernels "
        f"{units.duration(figures['kernel_s'])}, peak {figures['peak_bytes'] / 1e9:.1f} GB allocated{larger}."
    )


def _repeatability(facts: Facts) -> str:
    medians = ", ".join(units.duration(launch["median_s"]) for launch in facts["launches"])
    off = units.percent(facts["largest_deviation"])
    return f"median steps of fresh processes {medians}: the farthest is {off} off the middle."


def _ranks(facts: Facts) -> str:
    said = []
    for name, case in facts["cases"].items():
        calls = ", ".join(f"{row['calls']} {row['name']}" for row in case["collectives"]) or "no collective"
        kernels = units.number(len(case["kernels"]), "kernel") + " of NCCL by name"
        same = "FLOPs as of the plain model" if case["same_flops"] else "FLOPs other than the plain model's"
        adds_up = "times add up" if case["adds_up"] else "times do not add up"
        said.append(f"{name}: {same}, {calls}, {kernels}, {adds_up}")
    return f"{'; '.join(said)}. Two GPUs would show: {', '.join(facts['with_two_gpus'])}."


def _compiled(facts: Facts) -> str:
    said = []
    for mode, case in facts["cases"].items():
        owned = units.percent(case["owned_share"]) if case["owned_share"] is not None else "nothing"
        inside = units.percent(case["compiled_share"]) if case["compiled_share"] is not None else "nothing"
        other = f", {len(case['named_otherwise'])} named otherwise" if case["named_otherwise"] else ""
        said.append(
            f"{mode}: {inside} of the kernel time in compiled code, {units.number(case['triton_kernels'], 'call')} of "
            f"Triton kernels{other}, {owned} owned, parts {'add' if case['adds_up'] else 'do not add'} up"
        )
    return f"{'; '.join(said)}."


def _generate(facts: Facts) -> str:
    said = []
    for name, case in facts["cases"].items():
        if (figures := case["figures"]) is None:
            said.append(f"{name}: not measured")
            continue
        prefill = next((row["mfu"] for row in case["phases"] if row["phase"] == "prefill"), None)
        shares = ", ".join(f"{units.percent(share)} of the {what} bandwidth" for what, share in case["mbu"].items())
        held = case["cache_tensors_bytes"]
        cache = (
            "" if held is None else f", cache {'as counted' if held == figures['cache_bytes'] else 'not as counted'}"
        )
        said.append(
            f"{name}: TTFT {units.duration(figures['ttft_s'])} at MFU {units.percent(prefill)}, TPOT "
            f"{units.duration(figures['tpot_s'])} at MBU {shares or units.MISSING}{cache}"
        )
    bare = " and ".join(f"{name[:4].upper()} {ratio:.3f} x" for name, ratio in facts["over_bare"].items())
    return f"{'; '.join(said)}. Over a bare loop: {bare or units.MISSING}."


def _meter(facts: Facts) -> str:
    added, drill = facts["added"], facts["drill"]
    ratios = ", ".join(
        f"{name} {ratio:.4f} ({low:.4f} to {high:.4f})" for name, (ratio, low, high) in added["over_bare"].items()
    )
    host_s = sum(facts["unwaiting"]["host_s"][name] for name in ("enter", "exit"))
    waits = "; ".join(facts["warnings"]) or "waits for nothing"
    owned = units.percent(drill["owned_share"]) if drill["owned_share"] is not None else "nothing"
    counted, add = "" if drill["same_flops"] else "not ", "" if drill["adds_up"] else "do not "
    return (
        f"a step of {units.duration(added['step_s']['bare'])}, over the bare one: {ratios}. The meter takes "
        f"{units.duration(host_s)} a step on the host and {waits}; its step is {added['meter_step_over_bare']:.4f} x "
        f"the bare one. The live step: FLOPs {counted}as counted in the loop, {owned} owned, times {add}add up."
    )


SAYINGS: dict[str, Callable[[Facts], str]] = {
    "tests": lambda facts: f"the tests that need a GPU {'all pass' if facts['passed'] else 'do not all pass'}.",
    "doctor": _doctor,
    "link-train": _link,
    "link-reentrant": _link,
    "link-non-reentrant": _link,
    "timing": _timing,
    "ceilings": _ceilings,
    "reference": _reference,
    "reference-train": _reference_train,
    "generate": _generate,
    "backward": lambda facts: "its table is in the folder `backward`.",
    "counters-qwen2": _executed,
    "counters-siglip": _executed,
    "counters-siglip-flash": _executed,
    "meter": _meter,
    "compiled": _compiled,
    "ranks": _ranks,
    "repeatability": _repeatability,
    "recording": lambda facts: f"{facts['events']:,} events, {facts['on_device']:,} of them on the device.",
}
"""What each check has found, in words."""
