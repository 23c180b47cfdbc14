import pandas as pd
import pytest
from runs import compiled_run, gpu_run, row

from gpuprof.analysis.consistency import owned_kernels
from gpuprof.analysis.modules import by_class
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.shares import split_kernels, split_ns
from gpuprof.analysis.totals import totals
from gpuprof.schema import table


@pytest.mark.parametrize(
    ("duration", "weights", "parts"),
    [
        (101, [96, 48], [67, 34]),  # 67.33 and 33.67
        (10, [1, 1, 1], [3, 3, 4]),
        (1, [1, 1, 1], [0, 0, 1]),
        (7, [5], [7]),
        (0, [3, 4], [0, 0]),
        (2**62 + 1, [2**61, 2**61], [2**61, 2**61 + 1]),  # beyond what floats hold
    ],
)
def test_parts_are_whole_and_add_up(duration, weights, parts):
    assert split_ns(duration, weights) == parts


def test_a_fused_kernel_is_split_over_modules_and_phases_by_their_bytes():
    kernels = split_kernels(compiled_run())

    columns = ["module", "phase", "start_ns", "duration_ns", "part", "parts", "kernels"]
    parts = kernels[kernels["parts"] > 1][columns].to_numpy().tolist()
    assert parts == [
        ["norm", "forward", 0, 67, 0, 2, 1],  # 64 + 32 of 144 bytes
        ["act", "forward", 67, 34, 1, 2, 0],
        ["act", "recompute", 201, 10, 0, 2, 0],  # 32 of 96 bytes
        ["act", "backward", 211, 20, 1, 2, 1],
    ]


def test_split_kernels_add_up_and_count_once():
    run = compiled_run()
    kernels = split_kernels(run)

    assert kernels["duration_ns"].sum() == run.kernels["duration_ns"].sum() == 241
    assert kernels["kernels"].sum() == len(run.kernels) == 9
    times = kernels.groupby("compiled")["duration_ns"].sum()
    assert times.to_dict() == run.kernels.groupby("compiled")["duration_ns"].sum().to_dict()


def test_a_kernel_of_unknown_bytes_stays_whole_with_those_that_all_its_owners_are_in():
    kernels = split_kernels(compiled_run())

    whole = row(kernels, op="inductor::fused_sum")
    assert (whole["module"], whole["phase"], whole["duration_ns"], whole["parts"]) == ("", "backward", 10, 1)


def test_an_owner_that_moves_nothing_has_no_part():
    run = compiled_run()
    run.nodes.loc[run.nodes["module"] == "norm", "moved"] = 0

    kernel = row(split_kernels(run), op="inductor::fused_native_layer_norm_gelu")

    assert (kernel["module"], kernel["duration_ns"], kernel["part"], kernel["parts"]) == ("act", 101, 0, 1)


def test_kernels_without_compiled_code_are_as_they_were():
    run = gpu_run()

    kernels = owned_kernels(run)

    pd.testing.assert_frame_equal(kernels[list(run.kernels)], run.kernels)
    assert (kernels["part"].tolist(), kernels["parts"].tolist()) == ([0] * 7, [1] * 7)


def test_modules_of_a_compiled_run_have_their_parts():
    frame = compiled_run().modules()

    norm, act, root = (row(frame, module=path) for path in ("norm", "act", ""))
    assert norm["time_forward_s"] == pytest.approx(67e-9)
    assert norm["time_backward_s"] == 0.0
    assert (act["time_forward_s"], act["time_recompute_s"], act["time_backward_s"]) == pytest.approx(
        (34e-9, 10e-9, 20e-9)
    )
    assert root["time_forward_s"] == pytest.approx(129e-9)
    assert root["time_backward_s"] == pytest.approx(102e-9)
    assert row(frame, module="fc")["kernel_mfu_forward"] == pytest.approx(0.5)


def test_recomputation_that_the_compiler_chose_is_a_phase():
    phases = by_phase(compiled_run()).set_index("phase")["kernel_time_s"]

    assert phases.to_dict() == pytest.approx({"forward": 129e-9, "recompute": 10e-9, "backward": 102e-9})


def test_all_but_what_cannot_be_split_has_an_owner():
    assert totals(compiled_run())["owned_share"] == 1.0


def hidden_run():
    """The compiled run, had nothing been found out of its graphs: their kernels are the whole model's."""
    run = compiled_run()
    run.kernels.loc[run.kernels["compiled"] != "", ["module", "compiled"]] = ["", ""]
    run.nodes = table("nodes", [])
    return run


_TIMES = ["time_forward_s", "time_recompute_s", "time_backward_s", "kernel_mfu"]


def test_what_a_trace_did_not_look_into_is_unknown_never_0():
    frame = hidden_run().modules().set_index("module")

    assert frame.loc[["norm", "act", "fc"], _TIMES].isna().all(axis=None)
    assert frame.loc["fc", "flops_forward"] == 1000
    assert frame.loc["", "time_forward_s"] == pytest.approx(129e-9)
    assert frame.loc["head", "time_forward_s"] == pytest.approx(8e-9)


def test_all_below_a_region_that_could_not_be_told_apart_is_unknown():
    run = compiled_run()
    run.passes["trace"].facts["hidden"] = [""]

    frame = run.modules().set_index("module")

    assert frame.loc[["norm", "act", "fc", "head"], _TIMES].isna().all(axis=None)
    assert frame.loc["", "time_forward_s"] == pytest.approx(129e-9)


def test_a_region_hides_what_is_below_it_and_not_itself():
    run = compiled_run()
    run.passes["trace"].facts["hidden"] = ["fc"]

    assert run.modules()["time_forward_s"].notna().all()


def test_a_class_with_a_hidden_module_has_no_time():
    classes = by_class(hidden_run())

    assert row(classes, **{"class": "Linear"})["flops_forward"] == 1400
    assert pd.isna(row(classes, **{"class": "Linear"})["time_forward_s"])
    assert pd.isna(row(classes, **{"class": "Linear"})["time_s"])
    assert row(classes, **{"class": "Net"})["time_forward_s"] == pytest.approx(129e-9)
