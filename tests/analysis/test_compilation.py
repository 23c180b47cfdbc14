from runs import gpu_run

from gpuprof.analysis.compilation import compile_lines, compile_seconds
from gpuprof.record import PassOutcome
from gpuprof.schema import table

FRAME = "forward (net.py:14)"


def compilation(name, direction, cache, total, **more):
    inductor = None if cache == "hit" else total / 2
    return {
        "pass": name, "frame": FRAME, "direction": direction, "cache": cache, "total_s": total, "dynamo_s": total / 4,
        "inductor_s": inductor, **more,
    }  # fmt: skip


def compiled_run(*rows, breaks=()):
    run = gpu_run()
    run.passes["time"] = PassOutcome("done")
    run.workload["compiled"] = {"": "inductor, mode default"}
    run.compilations, run.breaks = table("compilations", list(rows)), table("breaks", list(breaks))
    return run


COLD = [compilation("time", "forward", "miss", 8.0), compilation("time", "backward", "miss", 4.0)]
WARM = compilation("warm", "forward", "hit", 0.5)
TRACED = compilation("trace", "forward", "disabled", 100.0, reason="a == b")


def test_nothing_is_said_of_a_run_without_compilation():
    assert compile_lines(gpu_run()) == []


def test_cold_and_warm():
    run = compiled_run(*COLD, WARM, TRACED)

    assert compile_seconds(run) == (12.0, 0.5)
    assert compile_lines(run) == [
        "Compiled: the model (inductor, mode default)",
        "Time to compile: 12.00 s with empty caches (3.000 s in Dynamo, 6.000 s in Inductor)",
        "Compiled once more from the caches: 500.0 ms",
        "Caches: while empty 2 x miss; once filled 1 x hit",
        "No graph breaks",
    ]


def test_why_a_cache_was_not_asked():
    refused = compilation("time", "forward", "miss; AOTAutograd bypass: a hook", 1.0)
    run = compiled_run(refused, compilation("time", "forward", "hit", 1.0))

    assert compile_lines(run)[2:4] == ["Caches: while empty 1 x miss, 1 x hit", "  miss; AOTAutograd bypass: a hook"]


def test_of_equal_graphs_the_second_is_cold_too_and_later_passes_are_not():
    equal, later = compilation("time", "forward", "hit", 0.25), compilation("memory", "forward", "hit", 2.0)

    assert compile_seconds(compiled_run(*COLD, equal, WARM, later)) == (12.25, 0.5)


def test_what_was_compiled_before_has_no_time():
    run = compiled_run(TRACED)

    assert compile_seconds(run) == (None, None)
    assert compile_lines(run)[1] == (
        "Time to compile: not known with empty caches, as it was compiled before the profile"
    )


def test_a_function_that_was_compiled_before_is_missing_in_the_sum():
    other = WARM | {"frame": "step (net.py:30)"}

    assert compile_seconds(compiled_run(*COLD, WARM, other)) == (None, 1.0)


def test_what_the_caches_did_not_have_is_no_warm_time():
    assert compile_seconds(compiled_run(*COLD, WARM, WARM | {"cache": "miss"})) == (12.0, None)


def test_only_counted():
    run = compiled_run()
    run.passes = {"count": PassOutcome("done")}

    assert compile_lines(run) == ["Compiled: the model (inductor, mode default)"]


def test_a_job_leaves_it_to_its_ranks():
    run = compiled_run()
    run.workload["world"] = 2

    assert not any("Time to compile" in line for line in compile_lines(run))


def test_breaks_recompilations_and_cuda_graphs():
    again = compilation("time", "forward", "miss", 1.0, reason="x.size(0) == 8 (net.py:15)")
    given_up = compilation("time", "forward", "", 0.0, reason="y", gave_up="Dynamo recompile limit exceeded")
    skipped = compilation("time", "forward", "miss", 1.0, cuda_graph="skipped: not on CUDA")
    recorded = {"pass": "time", "frame": FRAME, "cuda_graph": "recorded", "total_s": 0.1}
    at = {"place": "net.py:20", "reason": "print"}
    run = compiled_run(
        *COLD, again, given_up, skipped, recorded,
        breaks=[{"frame": FRAME, "breaks": 1, **at}, {"frame": "other", "breaks": 2, **at}],
    )  # fmt: skip

    assert compile_lines(run)[2:] == [
        "Caches: while empty 4 x miss",
        "3 graph breaks:",
        "  net.py:20: print (3 times)",
        f"{FRAME} recompiled 2 times, first as it failed x.size(0) == 8 (net.py:15)",
        f"{FRAME} not compiled: Dynamo recompile limit exceeded",
        "CUDA graphs skipped: not on CUDA (1 graph)",
        "1 CUDA graph recorded; the trace pass runs the same kernels without them",
    ]


def test_regions_are_told_by_how_they_are_compiled():
    run = compiled_run(*COLD)
    run.workload["compiled"] = {f"layers.{number}": "inductor, mode default" for number in range(6)} | {"(step)": "X"}

    assert compile_lines(run)[:2] == [
        "Compiled: layers.0, layers.1 and 4 more modules (inductor, mode default)",
        "Compiled: the step (X)",
    ]
