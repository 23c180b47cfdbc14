"""profile() and count(): one pass after another over a workload, a Run out."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from gpuprof.analysis.consistency import inconsistencies, unchecked
from gpuprof.analysis.denominators import peak_dtype
from gpuprof.analysis.ranks import LEAST_STEPS, rank_rows
from gpuprof.analysis.replication import model_flops
from gpuprof.compiled.regions import regions
from gpuprof.compiled.watch import watched
from gpuprof.errors import GpuprofError
from gpuprof.hardware import ceiling_cache
from gpuprof.hardware.ceilings import DTYPES, cpu_ceilings, measure_copy
from gpuprof.hardware.checkup import require_internals
from gpuprof.hardware.device import describe, environment
from gpuprof.launches import merge, repeat
from gpuprof.parallel.control import Control
from gpuprof.parallel.join import join
from gpuprof.parallel.launch import TIMEOUT_S
from gpuprof.parallel.layout import layout
from gpuprof.parallel.same_model import same_model
from gpuprof.passes.failure import StepFailure, explain, let_go, short
from gpuprof.passes.modes import modes_as_before
from gpuprof.passes.module_tree import module_tree
from gpuprof.passes.options import DEFAULT_PASSES, check
from gpuprof.passes.preserve import preserved
from gpuprof.passes.table import PASSES, Measuring, Pass, Progress
from gpuprof.passes.unsharded import count_unsharded
from gpuprof.process import settle
from gpuprof.record import PassOutcome, Record
from gpuprof.run import Run
from gpuprof.schema import UNATTRIBUTED, table
from gpuprof.theory.conventions import convention as fitting_convention
from gpuprof.theory.rules import RULES_VERSION
from gpuprof.version import __version__
from gpuprof.workload import Options, Workload, build, from_module
from gpuprof.workload.options import check_seed, dtype_name
from gpuprof.workload.parallel import replicas
from gpuprof.workload.workload import call_arguments, check_call, check_parts

_WORTH_COUNTING = 1e-4
"""Share of a step's FLOPs above which a dtype gets counters: every kernel is replayed again and again for each dtype.

Below it are the rotary angles of newer transformers, float32 products of one column.
"""

_alone = threading.RLock()
"""Held while passes run: what they patch is the whole process's, and other work beside a step is in its time."""


def profile(
    model: torch.nn.Module | str,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
    optimizer: torch.optim.Optimizer | str | None = None,
    step: Callable[[], Any] | None = None,
    mode: str = "train",
    passes: str | Iterable[str] = DEFAULT_PASSES,
    warmup: int | None = None,
    steps: int | None = None,
    convention: str = "causal",
    peak_tflops: float | None = None,
    counter_level: str = "minimal",
    launches: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    rank_timeout: float = TIMEOUT_S,
    **options: Any,
) -> Run:
    """Measure a step of a model, forward and backward, per module.

    The model is as before afterwards: parameters, gradients, buffers, flags, hooks and random states.

    Where `torch.distributed` has a default group, every process of it has to call this: they go through the passes in
    step, and each gets the run of its own rank; `gpuprof.gather` makes the job's of them.

    Args:
        model: a module, or the name of a model as on the command line.
        inputs: a tensor, a tuple of positional arguments, or a mapping: of keyword arguments, or where the forward does
            not take them its one argument.
        kwargs: keyword arguments beside positional inputs.
        loss: turns the output into a scalar; else ``output.loss``, else the mean of the output's first floating
            tensor.
        optimizer: steps after each backward; its state and the parameters are put back. For a named model its name.
        step: a whole step of one's own, used as it is.
        mode: train, forward or generate.
        passes: which passes to run, of `gpuprof.passes.options.PASSES`; also as one text, ``"count,time"``.
        warmup: steps before the clock counts; 1 on a CPU and 5 on a GPU unless given.
        steps: timed steps; 3 on a CPU and 20 on a GPU unless given.
        convention: how FLOPs are counted, of `gpuprof.theory.conventions.CONVENTIONS`.
        peak_tflops: peak of the device in TFLOP/s, for every dtype, instead of the table's.
        counter_level: what the counters pass collects, of `gpuprof.passes.options.LEVELS`.
        launches: fresh processes that the timing pass is repeated in, for a named model; in this one unless given.
        seed: of every step, so that each pass repeats the same one.
        progress: told how far each pass is.
        rank_timeout: in a job of several processes, seconds after which a rank that does not come is given up.
        options: fields of `gpuprof.workload.Options`, for a named model.

    Raises:
        GpuprofError: wrong arguments, or the step fails in every pass.
    """
    how: dict[str, Any] = {
        "warmup": warmup, "steps": steps, "seed": seed, "convention": convention, "peak_tflops": peak_tflops,
        "rank_timeout": rank_timeout,
    }  # fmt: skip
    passes = check(passes, warmup, steps, peak_tflops, counter_level, launches)
    check_seed(seed)
    if progress is not None and not callable(progress):
        raise GpuprofError(f"progress must be a function of a pass, how far it is and its length, not {progress!r}")
    if launches is not None and not isinstance(model, str):
        raise GpuprofError("launches: fresh processes need a model given by name")
    if isinstance(model, str):
        _refuse_parts(inputs=inputs, kwargs=kwargs, loss=loss, step=step)
        chosen = _options(mode=mode, seed=seed, optimizer=optimizer or "none", **options)
        if launches:
            if not join(rank_timeout).alone:
                raise GpuprofError("launches repeats one process: leave it out in a job of several")
            return _launched(model, chosen, passes, launches, counter_level, progress, how)
        workload = join(rank_timeout).together("making the model", lambda: build(model, chosen))
    else:
        workload = _of_module(model, inputs, kwargs, options, loss=loss, mode=mode, optimizer=optimizer, step=step)
    run = run_passes(workload, passes=passes, counter_level=counter_level, progress=progress, **how)
    if workload.recipe is not None and workload.recipe[1].parallel != "none" and run.done("count"):
        _add_whole_model(run, workload.recipe)
    return run


def _of_module(
    model: torch.nn.Module, inputs: Any, kwargs: Mapping[str, Any] | None, options: dict[str, Any], **parts: Any
) -> Workload:
    """The workload of a module of one's own, once it is known that what was given can be one."""
    check_parts(model, parts["loss"], parts["optimizer"], parts["step"])
    if options:
        _options(**options)
        raise GpuprofError(f"{', '.join(options)}: only for a model given by name; here the module says it")
    args, keywords = call_arguments(model, inputs, kwargs)
    if parts["step"] is None:
        check_call(model, args, keywords)
    return from_module(model, args, keywords, **parts)


def _add_whole_model(run: Record, recipe: tuple[str, Options]) -> None:
    """On rank 0, what the model does that nobody has sharded: `gpuprof.job` holds the sum of all ranks against it."""
    if run.workload["rank"] == 0:
        try:
            once = model_flops(count_unsharded(recipe, recipe[1].seed))
        except GpuprofError as error:  # flex_attention needs values, say
            run.warnings.append(f"the unsharded model was not counted: {error}")
        else:
            run.workload["whole_model"] = {"flops": once, "batches": replicas(recipe[1])}


def _launched(
    model: str, options: Options, passes: set[str], launches: int, level: str, progress: Progress | None,
    how: dict[str, Any],
) -> Run:  # fmt: skip
    """Fresh processes take the time, one after the other, before this one takes room for the model itself."""
    repeated = repeat(model, options, passes, launches, progress or (lambda name, done, total: None), **how)
    rest = passes - {"time", "telemetry"}
    run = Run.of(repeated[0])
    if rest:
        run = run_passes(build(model, options), passes=rest, counter_level=level, progress=progress, **how)
    merge(run, repeated)
    say_what_is_withheld(run)
    if "trace" not in rest and "measured" not in run.device["peaks"]:  # else the other passes have added them
        add_ceilings(run)
    return run


def count(
    model: torch.nn.Module | str,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
    step: Callable[[], Any] | None = None,
    mode: str = "train",
    convention: str = "causal",
    seed: int = 0,
    **options: Any,
) -> Run:
    """Count a step without measuring it: a named model without weights, a given module by really running it once.

    A named model is counted whole, by this process alone. Arguments and errors are those of `profile`.
    """
    if not isinstance(model, str):
        return profile(
            model, inputs, kwargs=kwargs, loss=loss, step=step, mode=mode, passes=("count",), convention=convention,
            seed=seed, **options,
        )  # fmt: skip
    _refuse_parts(inputs=inputs, kwargs=kwargs, loss=loss, step=step)
    workload = build(model, _options(mode=mode, seed=seed, **options), weightless=True)
    return run_passes(workload, passes=("count",), convention=convention, seed=seed, alone=True)


def run_passes(
    workload: Workload,
    *,
    passes: Iterable[str] = DEFAULT_PASSES,
    warmup: int | None = None,
    steps: int | None = None,
    convention: str = "causal",
    peak_tflops: float | None = None,
    counter_level: str = "minimal",
    seed: int = 0,
    progress: Progress | None = None,
    rank_timeout: float = TIMEOUT_S,
    alone: bool = False,
) -> Run:
    """Run the passes over a workload, each alone with its step; see `profile` for the arguments.

    A pass that fails is recorded with its reason and the others still deliver. Threads take turns. Where ``alone``,
    other processes of a job have no part in it.
    """
    settle()  # all is imported and the model is made
    require_internals()
    control = Control() if alone else join(rank_timeout)
    if why := control.broken():
        raise GpuprofError(f"{why}: make a new one with init_process_group, on every rank")
    cuda = workload.device.type == "cuda"
    wanted = check(passes, warmup, steps, peak_tflops, counter_level)
    fitting_convention(convention, workload.description.get("facts"), workload.description["name"])
    warmup = (5 if cuda else 1) if warmup is None else warmup
    steps = (20 if cuda else 3) if steps is None else steps
    settings = {
        "mode": workload.description["mode"], "warmup": warmup, "steps": steps, "seed": seed, "passes": sorted(wanted),
        "convention": convention,
    }  # fmt: skip
    control.same("versions", {"gpuprof": __version__, "torch": torch.__version__})
    control.same("settings", settings)
    lies = {} if alone else layout(workload.model)
    same_model(control, workload.model, lies)
    compiled = regions(workload)
    run = Run(
        workload=workload.description | lies | ({"compiled": compiled} if compiled else {}),
        device=describe(workload.device),
        environment=environment()
        | {"flop_rules": RULES_VERSION}
        | ({} if control.alone else {"host": platform.node()}),
        settings={
            "convention": convention,
            "peak_tflops": peak_tflops,
            "warmup": warmup,
            "steps": steps,
            "seed": seed,
        },
    )
    measuring = Measuring(
        workload, run, wanted, warmup, steps, seed, counter_level,
        multiplied=lambda: _multiplied(run, least=_WORTH_COUNTING),
        tell=progress or (lambda name, done, total: None),
        traced_steps=1 if control.alone else LEAST_STEPS,
    )  # fmt: skip
    _run_wanted(measuring, control)
    _complete(measuring, control)
    return run


def _run_wanted(measuring: Measuring, control: Control) -> None:
    """Run the passes that are wanted, one after the other, and keep how each ended.

    Raises:
        GpuprofError: no pass was done, or what the step changes could not be put back.
    """
    workload, run = measuring.workload, measuring.run
    on_device = torch.cuda.device(workload.device) if workload.device.type == "cuda" else nullcontext()
    failures: list[StepFailure] = []
    unkept = ""
    try:
        with _alone, preserved(workload), on_device, watched(measuring.tell) as measuring.watch:
            for one in PASSES:
                if one.name in measuring.wanted:
                    measuring.watch.begin(one.name)
                    run.passes[one.name] = _run_pass(one, measuring, failures, control)
            run.compilations, run.breaks = measuring.watch.rows, measuring.watch.breaks
    except GpuprofError:  # ranks are not at the same point
        raise
    except Exception as error:  # not of a pass: after an error of the device, nothing can be copied back
        unkept = f"what the step changes could not be kept and put back: {type(error).__name__}: {short(error)}"
        if not failures:
            raise GpuprofError(unkept) from error
    done = any(run.done(one.name) for one in PASSES)
    if failures and (unkept or not done):
        raise GpuprofError(f"{failures[0].line}; {unkept}" if unkept else failures[0].line) from failures[0].error
    if not done and (why := control.broken()):
        raise GpuprofError(why)


def _complete(measuring: Measuring, control: Control) -> None:
    """Add to a run what its passes make known together: ceilings, owners, the rank's own times, and what to warn of."""
    workload, run, wanted = measuring.workload, measuring.run, measuring.wanted
    if "telemetry" in wanted and "telemetry" not in run.passes:
        reason, remedy = "telemetry is read around the timing pass, which did not end", "see its reason"
        if "time" not in wanted:
            reason, remedy = "telemetry is read around the timing pass, which was not asked for", "add time to --passes"
        run.passes["telemetry"] = PassOutcome("skipped", reason, remedy)
    if workload.device.type in DTYPES and wanted & {"time", "trace"}:
        measuring.tell("ceiling", 0, 1)
        add_ceilings(run)
        measuring.tell("ceiling", 1, 1)
    add_all_owners(run, workload.model)
    if not (control.alone or run.kernels.empty):
        run.ranks = table("ranks", list(_of_rank(run, control.rank, measuring)))
    run.warnings += [*never_made(workload.model), *control.late]
    control.late.clear()
    run.warnings += [f"the {name} pass failed: {o.reason}" for name, o in run.passes.items() if o.status == "failed"]
    say_what_is_withheld(run)


def _run_pass(one: Pass, measuring: Measuring, failures: list[StepFailure], control: Control) -> PassOutcome:
    """Run one pass, in step with the other ranks, and say how it ended for all; why it failed is added to the failures.

    What it measured counts only if it was done on every rank.
    """
    total, run = measuring.length(one.name), measuring.run
    measuring.tell(one.name, 0, total)
    what, start, outcomes = f"the {one.name} pass", time.perf_counter(), []
    missing = one.missing(measuring)
    ready = control.agree(what, {"left": control.left, "missing": missing and [missing.reason, missing.remedy]})
    if left := next((said["left"] for said in ready if said and said["left"]), ""):
        control.leave(left)
    if why := control.broken():
        return PassOutcome("skipped", why, "see the pass that failed")
    for rank, said in enumerate(ready):
        if said["missing"]:
            reason, remedy = said["missing"]
            return missing or PassOutcome("skipped", f"rank {rank}: {reason}", remedy)

    def body() -> None:
        with modes_as_before():
            measuring.warm_up(one.before(measuring))
            outcomes.append(one.run(measuring))

    def words(error: Exception) -> tuple[str, str]:
        reason, remedy, _ = explain(error, measuring.workload)
        return reason, remedy

    report, error = control.reported(what, body, words)
    if error is not None:
        let_go(error)
        if measuring.workload.device.type == "cuda" and not control.left:
            torch.cuda.empty_cache()
    failed = control.first_failure(control.agree(f"the end of {what}", report))
    if failed is None:
        outcome, control.measured = outcomes[0], True
    else:
        outcome = PassOutcome("failed", failed["reason"], failed["remedy"])
        failures.append(StepFailure(failed["reason"], failed["remedy"], error or GpuprofError(failed["reason"])))
        for name in one.tables:
            setattr(run, name, table(name, []))
    outcome.seconds = round(time.perf_counter() - start, 3)
    measuring.tell(one.name, total, total)
    return outcome


def _of_rank(run: Record, rank: int, measuring: Measuring) -> Iterator[dict[str, Any]]:
    """Rows of the ``ranks`` table for each step that was traced; the times of all are beside the same timed step."""
    yield from rank_rows(run, rank)
    for step, traced in enumerate(measuring.further, start=1):
        yield from rank_rows(replace(run, kernels=traced.kernels, estimates=traced.estimates), rank, step)


def say_what_is_withheld(run: Record) -> None:
    """Add to the warnings of a run why figures of it are withheld."""
    found = inconsistencies(run) or filter(None, [unchecked(run)])
    run.warnings += [line for line in found if line not in run.warnings]


def _multiplied(run: Record, least: float = 0.0) -> list[str]:
    """Dtypes that the step multiplies in; float32 that may run as TF32 is both, as not every kernel does.

    Args:
        run: whose operators are counted.
        least: share of the step's FLOPs up to which a dtype is left out.
    """
    flops: dict[str, int] = {}
    dtypes, kinds, counted = (run.column("ops", name) for name in ("dtype", "kind", "flops_full"))
    for dtype, kind, work in zip(dtypes, kinds, counted, strict=True):
        against = peak_dtype(dtype, kind, run)
        for name in (against, "float32") if against == "tf32" else (against,):
            flops[name] = flops.get(name, 0) + (work or 0)
    return sorted(dtype for dtype, work in flops.items() if work > least * sum(filter(None, counted)))


def add_ceilings(run: Record) -> None:
    """Best matmul rates of this very device as a peak of it: cached, or on a CPU measured now. And its copy bandwidth.

    A CPU has no other peak, so there the cache has to know every dtype that the step multiplies in.
    """
    cached: dict[str, Any] = {}
    try:
        cached = ceiling_cache.read(ceiling_cache.key(run.device, run.environment))
    except GpuprofError as error:
        run.warnings.append(str(error))
    known = {name: entry for name, entry in cached.items() if name != ceiling_cache.COPY}
    cpu = run.device["type"] == "cpu"
    copy = cached.get(ceiling_cache.COPY)
    if cpu and copy is None:
        with torch.random.fork_rng(devices=()):
            copy = measure_copy(torch.device("cpu"), seconds=0.3)
    if copy:
        run.device["measured_bandwidth"] = copy["bytes_per_s"]
    source = f"by 'gpuprof ceilings' on {', '.join(sorted({entry['date'][:10] for entry in known.values()}))}"
    if cpu:
        dtypes = set(_multiplied(run) or [run.workload.get("dtype") or "float32"]) & set(DTYPES["cpu"])
        if not dtypes <= known.keys():
            ceilings = cpu_ceilings(sorted(dtypes), seconds=0.5)
            known, source = ceilings["how"], "just after the passes"
    if known:
        run.device["peaks"]["measured"] = {dtype: entry["flops_per_s"] for dtype, entry in known.items()}
        run.device["peak_source_measured"] = source
        run.device["peak_spread"] = {dtype: entry["spread"] for dtype, entry in known.items()}


def add_all_owners(run: Record, model: torch.nn.Module) -> None:
    """Add to the tree every module that a pass booked anything on, also under a path no counted step called it by."""
    modules, calls, causality = (run.column("tree", name) for name in ("module", "calls", "causality"))
    booked = set().union(*(run.distinct(name, "module") for name in ("kernels", "estimates", "memory", "timeline")))
    booked -= {*modules, UNATTRIBUTED}
    if modules and not booked:
        return
    called = dict.fromkeys(sorted(booked), 0) | dict(zip(modules, calls, strict=True))
    run.tree = module_tree(model, called, dict(zip(modules, causality, strict=True)))


def never_made(model: torch.nn.Module) -> list[str]:
    """Parameters of lazy modules that no step has called: nobody knows their size."""
    paths = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if not paths:
        return []
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return [f"{paths[0]}{more}: made at the first call of a lazy module, which never came, so in no count or sum"]


def _refuse_parts(**given: Any) -> None:
    """Refuse parts of a step beside a model that is given by name."""
    if parts := [name for name, part in given.items() if part is not None]:
        raise GpuprofError(
            f"{', '.join(parts)}: only for a module; a model given by name has its own (or let the function of "
            "file.py:function return them)"
        )


def _options(**given: Any) -> Options:
    """The options of a model given by name; dtype and device may be torch's own."""
    for name, value in given.items():
        if isinstance(value, torch.dtype):
            given[name] = dtype_name(value)
        elif isinstance(value, torch.device):
            given[name] = str(value)
    try:
        return Options(**given)
    except TypeError as error:
        unknown = sorted(set(given) - set(Options.__dataclass_fields__))
        raise GpuprofError(
            f"unknown option {', '.join(unknown)}: known are {', '.join(Options.__dataclass_fields__)}"
        ) from error
