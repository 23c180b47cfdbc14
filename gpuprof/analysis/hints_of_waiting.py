"""Where to look for hints: gaps in which the device waits for launches, or for the host."""

from __future__ import annotations

from dataclasses import replace

from gpuprof import units
from gpuprof.analysis.budget import Budget, idle_owners
from gpuprof.analysis.budget_words import LAUNCH_GAP_S
from gpuprof.analysis.hints_of_work import Looked, is_compiled, of_step, on_a_gpu
from gpuprof.analysis.steps import traced


def _in_phase(phase: str) -> str:
    return "" if phase == "other" else f" in the {phase}"


def decoding(found: Budget) -> Looked:
    """Gaps of the decode, in which nothing moves: what is left of a token's time without them."""
    if (decode := found.decode) is None or not decode.number or is_compiled(found, "without_cuda_graphs"):
        return
    late = decode.kernels[decode.kernels["idle_s"] > 0]
    if late.empty:
        return
    idle_s, cuda = float(late["idle_s"].sum()), on_a_gpu(found)
    now_s, then_s = (seconds / decode.number for seconds in (decode.step_s, decode.step_s - idle_s))
    number = units.number(int(decode.kernels["kernels"].sum()), "kernel" if cuda else "operator")
    text = (
        f"in the decode {'the GPU waits for the host' if cuda else 'the host is between operators for'} "
        f"{of_step(found, idle_s)}: {units.number(len(late), 'gap')} among {number}; without them a token takes "
        f"{units.duration(then_s)} at least instead of {units.duration(now_s)}"
    )
    if decode.floor_s is not None and decode.bandwidth and decode.floor_s / decode.number < then_s:
        text += (
            f", and no less than the {units.duration(decode.floor_s / decode.number)} that its bytes need at "
            f"{units.si(decode.bandwidth, 'B/s')} however its kernels are fused"
        )
    eager = "a static cache and torch.compile"
    action = f"{'torch.compile' if is_compiled(found) else eager}(mode='reduce-overhead'), or CUDA graphs of your own"
    if not cuda:
        action = f"{'' if is_compiled(found) else f'{eager}, or '}more work per operator: a larger batch"
    yield text, idle_s, action


def _rest(found: Budget) -> Budget:
    """The budget without the kernels of a decode whose gaps `decoding` tells of."""
    if next(decoding(found), None) is None:
        return found
    return replace(found, kernels=found.kernels[found.kernels["phase"] != "decode"])


def launches(found: Budget) -> Looked:
    """Gaps as short as a launch."""
    found = _rest(found)
    late = found.kernels.loc[(found.kernels["idle_s"] > 0) & (found.kernels["gap_s"] <= LAUNCH_GAP_S), "idle_s"]
    if late.empty or not on_a_gpu(found) or is_compiled(found, "without_cuda_graphs"):  # with them it does not wait so
        return
    idle_s, kernels = float(late.sum()), found.kernels
    number = int(kernels["kernels"].sum())
    mean_s = float(kernels["own_s"].sum()) / number
    worst = idle_owners(found, LAUNCH_GAP_S).iloc[0]
    yield (
        f"the GPU waits for launches {of_step(found, idle_s)}: {units.number(len(late), 'gap')} of "
        f"{units.duration(idle_s / len(late))} between {units.number(number, 'kernel')} of "
        f"{units.duration(mean_s)} on average, {units.percent(worst['idle_s'] / idle_s)} of it "
        f"before those of {worst['owner'] or '(root)'}{_in_phase(worst['phase'])}",
        idle_s,
        "CUDA graphs, torch.compile(mode='reduce-overhead'), or more work per kernel",
    )


def host(found: Budget) -> Looked:
    """Gaps in which the host did something else."""
    found, cuda = _rest(found), on_a_gpu(found)
    waited = (found.kernels["idle_s"] > 0) & ((found.kernels["gap_s"] > LAUNCH_GAP_S) | (not cuda))
    late = found.kernels.loc[waited, ["gap_s", "idle_s"]]
    if late.empty:
        return
    idle_s, longest = float(late["idle_s"].sum()), found.kernels.loc[late["gap_s"].idxmax()]
    where = units.shortened(longest["op"] or longest["kernel"])
    where += f" of {longest['module'] or '(root)'}{_in_phase(longest['phase'])}"
    most = units.duration(float(longest["gap_s" if cuda else "idle_s"]))
    if cuda:
        yield (
            f"the GPU waits for the host {of_step(found, idle_s)}: {units.number(len(late), 'gap')} over "
            f"{units.duration(LAUNCH_GAP_S, 1)} in the {traced(found.run)}, the longest of {most} before {where}",
            idle_s,
            "look at what the host does in the long gaps: values read back (.item()), data, Python",
        )
    else:
        yield (
            f"the host takes {of_step(found, idle_s)}, between operators: {units.duration(idle_s / len(late))} of "
            f"Python and dispatch before each of {len(late):,}, the longest ({most}) before {where}",
            idle_s,
            f"{'' if is_compiled(found) else 'torch.compile, or '}more work per operator: a larger batch",
        )
