"""What those who serve a model ask of a generation, in labelled lines: each phase by what bounds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpuprof import units
from gpuprof.analysis.consistency import withheld_of_step
from gpuprof.analysis.denominators import denominator
from gpuprof.analysis.generation import Generation, bandwidths, generation, mbu, parts, phases_of, withheld_of_bytes
from gpuprof.analysis.known_flops import at_least
from gpuprof.analysis.phase_table import by_phase
from gpuprof.late import pd
from gpuprof.record import Record

_KINDS = {"weights": ("weights",), "cache": ("cache_read", "cache_written"), "activations": ("activations",)}
"""What the bytes of a phase are made of, in words."""


def generation_lines(run: Record, convention: str | None = None) -> Iterator[tuple[str, str]]:
    """Label and text of Encode, Prefill, Decode and Cache, as far as a run has them; none of one that is no generation.

    Args:
        run: the run.
        convention: how FLOPs are counted; the run's own by default.
    """
    found = generation(run)
    if found is None:
        return
    phases = by_phase(run, convention).set_index("phase")
    known = {
        str(phase): {name: value for name, value in row.items() if not pd.isna(value)}
        for phase, row in phases.iterrows()
    }
    if "encode" in known:
        yield "Encode", _joined(units.duration(known["encode"].get("time_s")), _arithmetic(run, known["encode"]))
    if "prefill" in known:
        yield "Prefill", _prefill(run, found, known["prefill"])
    if "decode" in known:
        yield "Decode", "\n".join(_decode(run, found, known["decode"]))
    if found.cache_bytes:
        each, kind = found.cache_bytes_per_token, run.passes["count"].facts["cache"]["class"]
        grows = f", {units.size(each)} more per token and sequence" if each else ""
        yield "Cache", f"{units.size(found.cache_bytes)} at the end{grows} ({kind})"


def _joined(*texts: str) -> str:
    return "; ".join(text for text in texts if text and text != units.MISSING)


def _prefill(run: Record, found: Generation, phase: dict[str, Any]) -> str:
    said = [f"TTFT {units.duration(found.ttft_s)}"] if found.ttft_s else []
    if not said and len(run.generation) and "decode" not in phases_of(run):
        said.append("TTFT unknown: several prefills, and no decode that tells which of them gives the first token")
    if found.prompt and found.sequences:
        said.append(f"{units.number(found.prompt, 'position')} x {units.number(found.sequences, 'sequence')}")
    if (found.generations or 1) > 1:
        said.append(f"{found.generations} times a step")
    return _joined(*said, _arithmetic(run, phase))


def _arithmetic(run: Record, phase: dict[str, Any]) -> str:
    """FLOPs of a phase, and the MFU over its time in the undisturbed step."""
    figures = [units.si(phase.get("flops"), "FLOPs"), units.si(phase.get("flops_per_s"), "FLOP/s")]
    if "mfu" in phase:
        figures.append(units.percent(phase["mfu"]))
    said = [at_least(run) + figure for figure in figures if figure != units.MISSING]
    if "mfu" in phase:
        said[-1] = f"MFU {said[-1]} of {denominator(run)[0]}"
    elif "flops" in phase and "time_s" in phase and withheld_of_step(run):
        said.append("MFU withheld as below")
    return ", ".join(said)


def _decode(run: Record, found: Generation, phase: dict[str, Any]) -> Iterator[str]:
    if found.tpot_s:
        ninety, most = units.duration(found.tpot_p90_s), units.duration(found.tpot_p99_s)
        rate = f"; {units.si(found.decode_tokens_per_s)} tokens/s" if found.decode_tokens_per_s else ""
        yield f"TPOT {units.duration(found.tpot_s)} median, p90 {ninety}, p99 {most}{rate}"
    if moved := phase.get("moved_bytes"):
        most = "at most " if run.passes["count"].facts.get("weights_at_most") else ""
        steps = parts(run)
        each = moved / steps.loc[steps["phase"] == "decode", "bytes"].count()
        shares = {words: sum(phase[f"{name}_bytes"] for name in names) / moved for words, names in _KINDS.items()}
        what = ", ".join(f"{words} {units.percent(share)}" for words, share in shares.items())
        where = " on all ranks together" if run.is_job else ""
        yield f"{most}{units.size(each)} must move per step of decoding{where}: {what}"
    if utilisation := mbu(run):
        rates = bandwidths(run)
        said = [
            f"{units.percent(share)} of {name} ({units.si(rates[name], 'B/s')})" for name, share in utilisation.items()
        ]
        yield f"MBU {', '.join(said)}"
    elif reason := withheld_of_bytes(run):
        yield "MBU withheld as below" if reason == withheld_of_step(run) else f"MBU {reason}"
    elif moved and "time_s" in phase and not bandwidths(run):
        yield "no MBU: no bandwidth of this device is known ('gpuprof ceilings' measures it)"
