"""What stands at the head of a page: of what it is, and the figures that everybody looks for first."""

from __future__ import annotations

from collections.abc import Iterator

from gpuprof import units
from gpuprof.analysis.consistency import withheld_of_step
from gpuprof.analysis.counted import convention_of
from gpuprof.analysis.denominators import denominator
from gpuprof.analysis.generation import (
    BANDWIDTHS,
    bandwidths,
    generation,
    is_generation,
    mbu,
    withheld_of_bytes,
)
from gpuprof.analysis.known_flops import at_least, known_of
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.totals import totals
from gpuprof.analysis.untold import host_steps
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render.charts import sizes
from gpuprof.render.header import of_steps


def title(run: Record) -> str:
    """What was measured, in the words that tell it from other runs."""
    about = run.workload
    attention = f"{about['attention']} attention" if about.get("attention") else None
    parts = [about["name"], *sizes(run), attention, about.get("dtype")]
    return " · ".join(str(part) for part in parts if part)


def subtitle(run: Record) -> str:
    """On what and when."""
    about, env = run.workload, run.environment
    parts = [about.get("architecture"), about.get("mode"), run.of_job, run.device.get("name")]
    return " · ".join(str(part) for part in (*parts, env.get("date")) if part)


def cards(run: Record, convention: str | None) -> Iterator[dict[str, str]]:
    """The figures that everybody looks for first; those that are not known are left out."""
    sums = totals(run, convention)
    if is_generation(run):
        yield from _cards_of_generation(run, convention)
    elif sums["mfu"] is not None:
        least, part = at_least(run), known_of(run)
        hfu = f"HFU {least}{units.percent(sums['hfu'])}, " if sums["hfu"] is not None else ""
        about = f"{hfu}of {sums['denominator']}, convention {convention_of(run, convention)}"
        about += f"; {part}" if part else ""
        yield {"name": "MFU", "figure": f"{least}{units.percent(sums['mfu'])}", "about": about}
    elif sums["withheld"] and (sums["step_s"] is not None or run.recorded):
        yield {"name": "MFU and FLOP/s", "figure": units.MISSING, "about": sums["withheld"]}
    if sums["step_s"] is not None:
        steps = of_steps(run, sums) if run.metered else f"median of {units.number(sums['steps'], 'step')}"
        about = f"{steps}, IQR {units.duration(sums['step_iqr_s'])}"
        about = "of one recorded step" if run.recorded and sums["steps"] == 1 else about
        about += f"; {host}" if (host := host_steps(run)) else ""
        about += ", each of the slowest rank" if run.is_job else ""
        yield {"name": "Step", "figure": units.duration(sums["step_s"]), "about": about}
    if sums["flops"] is not None:
        back = f"{sums['backward_ratio']:.3f} x the forward in the backward" if sums["backward_ratio"] else "a forward"
        back = "prefill and decode together" if is_generation(run) else back
        if sums["ratio_withheld"] and sums["flops_backward"]:
            back = f"forward and backward, their ratio {sums['ratio_withheld']}"
        yield {"name": "Model FLOPs", "figure": f"{at_least(run)}{units.si(sums['flops'], 'FLOPs')}", "about": back}
    if sums["flops_per_s"] and not is_generation(run):
        rate = f"{units.si(sums['tokens_per_s'])} tokens/s" if sums["tokens_per_s"] else "of model FLOPs over the step"
        yield {"name": "Achieved", "figure": f"{at_least(run)}{units.si(sums['flops_per_s'], 'FLOP/s')}", "about": rate}
    if sums["peak_bytes"] is not None:
        what = "allocated at the peak" if run.device.get("type") == "cuda" else "resident set of the process"
        what += f" of rank {run.passes['memory'].facts['rank']}, the most of all" if run.is_job else ""
        yield {"name": "Memory", "figure": units.size(sums["peak_bytes"]), "about": what}
    if sums["params"] is not None:
        trained = f"{units.si(sums['trainable_params'])} trained"
        yield {"name": "Parameters", "figure": units.si(sums["params"]), "about": trained}


def _cards_of_generation(run: Record, convention: str | None) -> Iterator[dict[str, str]]:
    """What those who serve a model ask for; prefill and decode each by what bounds it."""
    found = generation(run)
    assert found is not None
    if found.ttft_s is not None:
        prompt = [units.number(found.prompt, "position")] if found.prompt else []
        sequences = [units.number(found.sequences, "sequence")] if found.sequences else []
        about = " x ".join([*prompt, *sequences])
        yield {"name": "Time to first token", "figure": units.duration(found.ttft_s), "about": about}
    if found.tpot_s is not None:
        about = f"median of the steps; p90 {units.duration(found.tpot_p90_s)}, p99 {units.duration(found.tpot_p99_s)}"
        yield {"name": "Time per token", "figure": units.duration(found.tpot_s), "about": about}
    if found.tokens_per_s is not None:
        about = f"new ones over the step; {units.si(found.decode_tokens_per_s)} tokens/s while decoding"
        about += f"; {units.si(found.joules_per_token, 'J')} per token" if found.joules_per_token else ""
        yield {"name": "Tokens/s", "figure": units.si(found.tokens_per_s), "about": about}
    phases = by_phase(run, convention).set_index("phase")
    least, part = at_least(run), known_of(run)
    share = phases["mfu"].get("prefill") if "mfu" in phases else None
    if share is not None and not pd.isna(share):
        about = f"of {denominator(run)[0]}, convention {convention_of(run, convention)}{f'; {part}' if part else ''}"
        yield {"name": "MFU of prefill", "figure": f"{least}{units.percent(share)}", "about": about}
    elif reason := withheld_of_step(run):
        yield {"name": "MFU of prefill", "figure": units.MISSING, "about": reason}
    if utilisation := mbu(run):
        rates = bandwidths(run)
        named = [
            f"{units.percent(share)} of {BANDWIDTHS[name]}, {units.si(rates[name], 'B/s')}"
            for name, share in utilisation.items()
        ]
        figure, _, first = named[0].partition(" of ")
        yield {"name": "MBU of decode", "figure": figure, "about": "; ".join([f"of {first}", *named[1:]])}
    elif reason := withheld_of_bytes(run):
        yield {"name": "MBU of decode", "figure": units.MISSING, "about": reason}
    if found.cache_bytes:
        each = found.cache_bytes_per_token
        about = f"at the end{f'; {units.size(each)} per token and sequence' if each else ''}"
        yield {"name": "Cache", "figure": units.size(found.cache_bytes), "about": about}
