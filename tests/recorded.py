"""Hand-made runs as `gpuprof import` makes them of a recording, with figures that are easy to check."""

from runs import kernel_row, ops_row

from gpuprof.record import PassOutcome
from gpuprof.run import Run
from gpuprof.schema import UNATTRIBUTED, table

FLOPS = 10**11  # of each of the six products: 100 us at the peak of 1,000 TFLOP/s
_SHAPES = {"aten::addmm": "5000 5000x2000 2000x5000", "aten::mm": "5000x2000 2000x5000"}
_PRODUCTS = [
    ("Net_0.Linear_0", "forward", "aten::addmm"), ("Net_0.Linear_1", "forward", "aten::addmm"),
    ("Net_0.Linear_1", "backward", "aten::mm"), ("Net_0.Linear_1", "backward", "aten::mm"),
    ("Net_0.Linear_0", "backward", "aten::mm"), ("Net_0.Linear_0", "backward", "aten::mm"),
]  # fmt: skip
_GEMM = (
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x"
)


def recorded_run(*, steps=True, modules=True, shapes=True, graph_us=0, **facts) -> Run:
    """A training step of 1.5 ms with 1.4 ms of kernels: six products of 200 us, activations, a fused optimizer.

    Args:
        steps: whether the recording has three, of 1.4, 1.5 and 1.6 ms.
        modules: whether it has ranges of modules.
        shapes: whether it has shapes.
        graph_us: kernel time in a CUDA graph at the end of the step, beside that.
        facts: of the trace, beside the rest.
    """
    ops, kernels, clock = [], [], 0

    def launch(module, phase, op, microseconds, kernel, call, of=""):
        nonlocal clock
        row = kernel_row(module, phase, op, clock, microseconds * 1000, kernel=kernel, call=call)
        kernels.append(row | {"shapes": _SHAPES.get(op, of) if shapes else ""})
        clock += microseconds * 1000

    def count(module, phase, op, flops, kind, calls=1, of="", **more):
        row = ops_row(module, phase, op, flops, kind=kind, calls=calls, **more)
        ops.append(row | {"shapes": f"{_SHAPES.get(op, of)} -> 5000x5000" if shapes else ""})
        if not shapes:
            ops[-1] |= {
                "dtype": "",
                **dict.fromkeys(("flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes")),
            }

    for call, (module, phase, op) in enumerate(_PRODUCTS):
        launch(module if modules else UNATTRIBUTED, phase, op, 200, _GEMM, call)
    for module, phase, op in dict.fromkeys(_PRODUCTS):
        calls = _PRODUCTS.count((module, phase, op))
        count(module if modules else UNATTRIBUTED, phase, op, FLOPS * calls, "matmul", calls)
    inner = "Net_0.ReLU_0" if modules else UNATTRIBUTED
    for call, (phase, op) in enumerate((("forward", "aten::relu"), ("backward", "aten::threshold_backward")), 6):
        launch(inner, phase, op, 50, "vectorized_elementwise_kernel", call, "5000x5000")
        count(inner, phase, op, 0, "vector", of="5000x5000", vector=25 * 10**6)
    launch(UNATTRIBUTED, "optimizer", "aten::_fused_adamw_", 100, "multi_tensor_apply_kernel", 8, "5000x2000")
    count(UNATTRIBUTED, "optimizer", "aten::_fused_adamw_", 0, "vector", of="5000x2000", vector=10**7)
    if graph_us:
        launch(UNATTRIBUTED, "forward", "cudaGraphLaunch", graph_us, _GEMM, None)
    paths = [("", ""), ("Net_0", "Net"), ("Net_0.Linear_0", "Linear"), ("Net_0.ReLU_0", "ReLU"),
             ("Net_0.Linear_1", "Linear")]  # fmt: skip
    told = {
        "recorded": True, "early_kernels": 0, "early_ns": 0, "outside_kernels": 0, "outside_ns": 0, "all_ns": clock,
        "graph_ns": graph_us * 1000, "no_shapes_ns": 0 if shapes else 1_400_000,
        "whole_us": False, "devices": ["NVIDIA H100 80GB HBM3"], "steps": [7, 8, 9] if steps else [],
        "lacks": [*([] if shapes else ["record_shapes"]), *([] if modules else ["with_modules"])],
        "step": 8 if steps else "all", "host_step_s": [1.5e-3] * 3 if steps else [],
        "scopes": "modules" if modules else "",
    }  # fmt: skip
    return Run(
        workload={"name": "Net", "mode": "train", "source": "trace", "file": "net.json.gz",
                  "dtype": "bfloat16" if shapes else None},
        device={
            "type": "cuda", "name": "NVIDIA H100 80GB HBM3", "uuid": None, "driver": None, "sm_count": 132,
            "memory_bytes": 85 * 10**9, "cpu": {}, "peaks": {"datasheet": {"bfloat16": 1e15, "float32": 67e12}},
            "flops_per_clock_per_sm": {}, "memory_bandwidth": 3.35e12, "peak_remedy": "",
        },
        environment={"date": "2026-01-02T03:04:05+00:00", "flop_rules": 1, "cuda": 12040, "hip": None},
        settings={"convention": "causal", "peak_tflops": None},
        passes={
            "count": PassOutcome("done", facts={"calls": 9, "ops_without_rule": [], "ops_unread": {}}),
            "time": PassOutcome("done")
            if steps
            else PassOutcome("skipped", "no step is marked in the trace", "call prof.step() after each"),
            "trace": PassOutcome("done", facts=told | facts),
            "memory": PassOutcome("skipped", "a trace does not tell the memory of a step", "gpuprof profile does"),
        },
        tree=table(
            "tree",
            [{"module": path, "class": name, "calls": 1} for path, name in (paths if modules else paths[:1])],
        ),
        ops=table("ops", ops),
        kernels=table("kernels", kernels),
        samples=table(
            "samples",
            [{"step": number, "phase": "step", "time_s": s} for number, s in enumerate((1.4e-3, 1.5e-3, 1.6e-3))]
            if steps
            else [],
        ),
    )  # fmt: skip
