from runs import gpu_run

from gpuprof.analysis.consistency import mismatches
from gpuprof.analysis.memory import account


def test_passes_that_agree():
    run = gpu_run()
    run.ops.loc[run.ops["op"] == "mylib::step.default", "kind"] = "vector"

    assert mismatches(run) == []


def test_a_call_that_was_counted_but_not_traced_is_said():
    run = gpu_run()
    run.ops.loc[0, "calls"] = 2

    assert mismatches(run) == ["aten::mm in the forward: counted 4 calls, traced 3: the passes ran different steps"]


def test_the_memory_account_names_its_residual():
    (forward,) = account(gpu_run()).to_dict(orient="records")

    assert (forward["moment"], forward["expected"], forward["measured"], forward["residual"]) == (
        "end of forward", 950, 1000, 50,
    )  # fmt: skip
