"""Hand-made runs with figures that are easy to check."""

import pandas as pd

from gpuprof.record import PassOutcome
from gpuprof.run import Run
from gpuprof.schema import table


def ops_row(module, phase, op, flops, *, full=None, hardware=None, kind="matmul", calls=1, vector=0, dtype="bfloat16"):
    return {
        "module": module, "phase": phase, "op": op, "kind": kind, "shapes": "", "dtype": dtype, "calls": calls,
        "flops_causal": flops, "flops_full": flops if full is None else full,
        "flops_hardware": flops if hardware is None else hardware, "vector_flops": vector, "bytes": 10,
    }  # fmt: skip


def tree_row(module, cls, params=0, calls=1):
    return {
        "module": module, "class": cls, "extra": "", "calls": calls, "params": params, "trainable_params": params,
        "param_bytes": 2 * params, "trainable_bytes": 2 * params, "causality": "",
    }  # fmt: skip


def kernel_row(module, phase, op, start, duration, *, kernel="gemm", call=0, stream="7"):
    return {
        "module": module, "phase": phase, "op": op, "kernel": kernel, "call": call, "shapes": "", "stream": stream,
        "start_ns": start, "duration_ns": duration,
    }  # fmt: skip


def gpu_run() -> Run:
    """Two equal layers and a head on a device of 100 GFLOP/s: forward at half of peak, backward at a quarter."""
    modules = [("", "Net"), ("layers", "ModuleList"), ("layers.0", "Block"), ("layers.1", "Block"), ("head", "Linear")]
    work = {"layers.0": 1000, "layers.1": 1000, "head": 2000}
    ops, kernels, clock = [], [], 0
    for phase, factor, slow in (("forward", 1, 2), ("backward", 2, 4)):
        for number, (module, flops) in enumerate(work.items()):
            duration = flops * factor * slow // 100  # ns at 100 FLOP/ns
            op = "aten::mm.default" if phase == "forward" else "aten::bmm.default"
            ops.append(ops_row(module, phase, op, flops * factor, full=2 * flops * factor))
            kernels.append(kernel_row(module, phase, op.partition(".")[0], clock, duration, call=number))
            clock += duration
    ops.append(ops_row("(unattributed)", "optimizer", "mylib::step.default", None, kind="", calls=3))
    ops[-1].update(flops_full=None, flops_hardware=None, vector_flops=None, bytes=None)
    kernels.append(kernel_row("(unattributed)", "optimizer", "mylib::step", clock, 40, kernel="step", call=9))
    return Run(
        workload={"name": "net", "mode": "train", "dtype": "bfloat16", "tokens_per_step": 8, "samples_per_step": 2},
        device={"type": "cuda", "name": "Toy GPU", "peaks": {"datasheet": {"bfloat16": 100e9}}},
        environment={"torch": "2.13.0", "transformers": "5.0", "date": "2026-01-02T03:04:05+00:00"},
        settings={"convention": "causal", "peak_tflops": None},
        passes={name: PassOutcome("done") for name in ("count", "time", "trace", "memory")},
        tree=table("tree", [tree_row(m, c, {"": 70, "layers": 20, "head": 50}.get(m, 10)) for m, c in modules]),
        ops=table("ops", ops),
        kernels=table("kernels", kernels),
        estimates=table(
            "estimates",
            [{"module": "head", "phase": "forward", "op": "aten::mm", "calls": 3, "flops_profiler": 4000}],
        ),
        samples=table(
            "samples",
            [{"step": n, "phase": p, "time_s": t * s} for n, s in enumerate((1.0, 1.1, 0.9))
             for p, t in (("step", 480e-9), ("forward", 80e-9), ("backward", 340e-9), ("optimizer", 60e-9))],
        ),
        memory=table(
            "memory",
            [{"module": "", "phase": "forward", "quantity": "allocated_exit", "source": "measured", "bytes": 1000},
             {"module": "", "phase": "forward", "quantity": "allocated_peak", "source": "measured", "bytes": 1200},
             {"module": "", "phase": "", "quantity": "parameters", "source": "analytic", "bytes": 700},
             {"module": "head", "phase": "", "quantity": "activations", "source": "analytic", "bytes": 250}],
        ),
    )  # fmt: skip


def counted_run() -> Run:
    """The same run with counters: the head's forward executes half as much again, the rest what was counted."""
    run = gpu_run()
    readings = [("float8", 3), ("bfloat16", 100)]  # the first could not be believed and has no column
    run.passes["counters"] = PassOutcome(
        "done",
        facts={
            "calibration": [
                {"dtype": dtype, "column": f"tensor_{dtype}", "expected": 100, "executed": executed}
                for dtype, executed in readings
            ]
        },
    )
    rows = []
    for op in run.ops.to_dict("records"):
        if op["kind"]:
            more = 3 if (op["module"], op["phase"]) == ("head", "forward") else 2
            flops = op["flops_hardware"] * more // 2
            rows.append(counters_row(op, "gemm", tensor=flops, dram_read_bytes=30, dram_written_bytes=10))
    run.counters = table("counters", rows)
    return run


def row(frame: pd.DataFrame, **where) -> dict:
    """The one row of a table where the columns have these values."""
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0].to_dict()


def counters_row(op, kernel, *, tensor=None, column="tensor_bfloat16", instructions=None, grid="1x1x1", **figures):
    """A launch of the operator in this row of ``ops``, with so many FLOPs in a column of tensor-core FLOPs."""
    owner = {name: op[name] for name in ("module", "phase", "op", "shapes", "dtype")}
    figures = {column: tensor, "tensor_instructions": instructions, **figures}
    return {"number": 0, **owner, "kernel": kernel, "grid": grid, "block": "128x1x1", "duration_ns": 1000, **figures}


def rank_run(rank, *, world=2, compute=100, waits=50, step_ns=160, peak_bytes=1000, sends=None, **about) -> Run:
    """One rank of a data-parallel job, on a device of 100 FLOP/ns in bfloat16 and 50 in float32.

    Three products take ``compute``; an all-reduce of 64 bytes begins 10 ns before their end and takes ``waits`` longer.
    Or there are several, at (start, duration) of ``sends``.
    """
    sends = [(compute - 10, waits + 10)] if sends is None else sends
    kernels = [
        kernel_row("fc", "forward", "aten::mm", 0, compute - 40, call=0),
        kernel_row("fc", "recompute", "aten::mm", compute - 40, 20, call=1),
        kernel_row("fc", "backward", "aten::mm", compute - 20, 20, call=2),
        *(kernel_row("(unattributed)", "backward", "c10d::allreduce_", start, duration, kernel="ncclDevKernel",
                     call=3 + number, stream="9") | {"shapes": "16"} for number, (start, duration) in enumerate(sends)),
    ]  # fmt: skip
    ops = [
        ops_row("fc", "forward", "aten::mm.default", 2000, full=3000, hardware=4000),
        ops_row("fc", "backward", "aten::mm.default", 1000, dtype="float32"),
        ops_row("fc", "recompute", "aten::mm.default", 500),
        ops_row("(unattributed)", "backward", "c10d::allreduce_.default", 0, kind="communication", dtype="float32")
        | {"shapes": "16 -> 16", "calls": len(sends), "bytes": 64 * len(sends), "group": "dp"},
    ]  # fmt: skip
    phases = {"step": step_ns, "forward": compute - 40, "backward": step_ns - compute + 40}
    return Run(
        workload={
            "name": "net", "mode": "train", "dtype": "bfloat16", "tokens_per_step": 8, "samples_per_step": 2,
            "world": world, "rank": rank, "mesh": {"dp": world}, "groups": {"dp": list(range(world))},
            "parallel": ["ddp"], **about,
        },
        device={"type": "cuda", "name": "Toy GPU", "uuid": f"GPU-{rank}", "memory_bandwidth": 10e9, "sm_count": 5,
                "peaks": {"datasheet": {"bfloat16": 100e9, "float32": 50e9}}},
        environment={"torch": "2.13.0", "date": "2026-01-02T03:04:05+00:00"},
        settings={"convention": "causal", "peak_tflops": None},
        passes={name: PassOutcome("done") for name in ("count", "time", "trace", "memory")},
        tree=table("tree", [tree_row("", "Net", 10), tree_row("fc", "Linear", 10)]),
        ops=table("ops", ops),
        kernels=table("kernels", kernels),
        samples=table("samples", [{"step": number, "phase": phase, "time_s": time * 1e-9}
                                  for number in range(3) for phase, time in phases.items()]),
        memory=table("memory", [{"module": "", "phase": "forward", "quantity": "allocated_peak", "source": "measured",
                                 "bytes": peak_bytes}]),
    )  # fmt: skip


def node_row(graph, kernel, module, phase, op, moved, flops=0, *, kind="vector", vector=0, repeat=0, calls=1, nbytes=0):
    return {
        "graph": graph, "kernel": kernel, "repeat": repeat, "module": module, "phase": phase, "op": op, "kind": kind,
        "shapes": "", "dtype": "bfloat16", "calls": calls, "flops_causal": flops, "flops_full": flops,
        "flops_hardware": flops, "vector_flops": vector, "bytes": nbytes, "moved": moved,
    }  # fmt: skip


def compiled_run() -> Run:
    """A norm, a GELU and a product in two compiled graphs, and a head that is not, on a device of 100 GFLOP/s.

    Norm and GELU are one kernel in the forward, of 101 ns; in the backward GELU is computed again. Of one kernel the
    bytes are not known.
    """
    modules = [("", "Net"), ("norm", "LayerNorm"), ("act", "GELU"), ("fc", "Linear"), ("head", "Linear")]
    ops = [
        ops_row("norm", "forward", "aten::native_layer_norm.default", 0, kind="vector", vector=80),
        ops_row("act", "forward", "aten::gelu.default", 0, kind="vector", vector=90),
        ops_row("fc", "forward", "aten::addmm.default", 1000),
        ops_row("head", "forward", "aten::addmm.default", 400),
        ops_row("head", "backward", "aten::mm.default", 800, calls=2),
        ops_row("fc", "backward", "aten::mm.default", 2000, calls=2),
        ops_row("act", "backward", "aten::gelu_backward.default", 0, kind="vector", vector=180),
        ops_row("norm", "backward", "aten::native_layer_norm_backward.default", 0, kind="vector", vector=160),
    ]
    norm, gelu, bias = "triton_per_fused_native_layer_norm_gelu_0", "triton_poi_fused_gelu_0", "triton_red_fused_sum_1"
    nodes = [
        node_row(0, f"{norm}:1", "norm", "forward", "aten::var_mean.correction", 64, vector=60),
        node_row(0, f"{norm}:1", "norm", "forward", "aten::mul.Tensor", 32, vector=20),
        node_row(0, f"{norm}:1", "act", "forward", "aten::mul.Tensor", 48, vector=90),
        node_row(0, "extern_kernels.addmm:2", "fc", "forward", "aten::addmm.default", 500, 1000, kind="matmul"),
        node_row(1, "extern_kernels.mm:1", "fc", "backward", "aten::mm.default", 300, 1000, kind="matmul"),
        node_row(1, "extern_kernels.mm:2", "fc", "backward", "aten::mm.default", 300, 1000, kind="matmul"),
        node_row(1, f"{gelu}:3", "act", "recompute", "aten::erf.default", 32, vector=70),
        node_row(1, f"{gelu}:3", "act", "backward", "aten::mul.Tensor", 64, vector=180),
        node_row(1, f"{bias}:4", "norm", "backward", "aten::sum.dim_IntList", None, vector=150),
        node_row(1, f"{bias}:4", "fc", "backward", "aten::sum.dim_IntList", 10, vector=30),
    ]  # fmt: skip
    launched = [
        ("", "forward", "inductor::fused_native_layer_norm_gelu", norm, 101, f"0/{norm}:1"),
        ("fc", "forward", "aten::addmm", "gemm", 20, "0/extern_kernels.addmm:2"),
        ("head", "forward", "aten::addmm", "gemm", 8, ""),
        ("head", "backward", "aten::mm", "gemm", 16, ""),
        ("head", "backward", "aten::mm", "gemm", 16, ""),
        ("fc", "backward", "aten::mm", "gemm", 20, "1/extern_kernels.mm:1"),
        ("fc", "backward", "aten::mm", "gemm", 20, "1/extern_kernels.mm:2"),
        ("act", "backward", "inductor::fused_gelu", gelu, 30, f"1/{gelu}:3"),
        ("", "backward", "inductor::fused_sum", bias, 10, f"1/{bias}:4"),
    ]  # fmt: skip
    kernels, clock = [], 0
    for call, (module, phase, op, name, duration, compiled) in enumerate(launched):
        row = kernel_row(module, phase, op, clock, duration, kernel=name, call=call)
        kernels.append(row | {"compiled": compiled})
        clock += duration
    whole = {"region": "", "cut": "", "cut_at": "", "unmapped": "", "calls": 1, "frame": "forward (net.py:14)"}
    return Run(
        workload={"name": "net", "mode": "train", "dtype": "bfloat16", "tokens_per_step": 8, "samples_per_step": 2,
                  "compiled": {"": "inductor, mode default"}},
        device={"type": "cuda", "name": "Toy GPU", "peaks": {"datasheet": {"bfloat16": 100e9}},
                "memory_bandwidth": 10e9},
        environment={"torch": "2.13.0", "date": "2026-01-02T03:04:05+00:00"},
        settings={"convention": "causal", "peak_tflops": None},
        passes={name: PassOutcome("done") for name in ("count", "time")}
        | {"trace": PassOutcome("done", facts={"compiled": True, "hidden": []})},
        tree=table("tree", [tree_row(m, c, 10) for m, c in modules]),
        ops=table("ops", ops),
        kernels=table("kernels", kernels),
        nodes=table("nodes", nodes),
        graphs=table("graphs", [
            whole | {"graph": 0, "direction": "forward", "nodes": 4, "kernels": 2},
            whole | {"graph": 1, "direction": "backward", "nodes": 6, "kernels": 4},
        ]),
        samples=table("samples", [{"step": n, "phase": p, "time_s": t} for n in range(3)
                                  for p, t in (("step", 300e-9), ("forward", 150e-9), ("backward", 150e-9))]),
    )  # fmt: skip


def eager_run() -> Run:
    """The same model without compilation: an operator is a kernel, and the step takes 426 ns."""
    run = compiled_run()
    took = {"norm": (90, 30), "act": (60, 45), "fc": (20, 20), "head": (8, 16)}  # ns of a kernel, by phase
    kernels, clock = [], 0
    for op in run.ops.to_dict("records"):
        for _ in range(op["calls"]):
            duration = took[op["module"]][op["phase"] == "backward"]
            name = op["op"].partition(".")[0]
            kernels.append(kernel_row(op["module"], op["phase"], name, clock, duration, call=len(kernels)))
            clock += duration
    run.kernels = table("kernels", kernels)
    run.nodes, run.graphs = table("nodes", []), table("graphs", [])
    run.passes = run.passes | {"trace": PassOutcome("done")}
    del run.workload["compiled"]
    run.samples["time_s"] *= 1.42
    return run


def generation_run() -> Run:
    """Two sequences of 4 positions and 4 new tokens: a prefill and 3 steps of decoding, on 100 GFLOP/s and 10 GB/s.

    The prefill is at half of the peak and of 5.3 GB/s, decoding at 5 % and of 4.9375 GB/s; a position of a sequence has
    40 bytes of cache.
    """
    modules = [("", "Net", 50), ("attn", "Attention", 20), ("head", "Linear", 30)]
    flops = {"prefill": {"attn": 8000, "head": 12000}, "decode": {"attn": 1800, "head": 3000}}
    took = {"prefill": {"attn": 100, "head": 200}, "decode": {"attn": 80, "head": 120}}  # ns of a kernel
    traffic, kernels, clock = [], [], 0
    for part, phase in enumerate(("prefill", "decode", "decode", "decode")):
        moved = {
            "weights": 900 if part else 1000, "cache read": 240 + 80 * part if part else 0,
            "cache written": 80 if part else 320, "activations": 200 if part else 800,
        }  # fmt: skip
        traffic += [traffic_row("*", phase, what, nbytes, part) for what, nbytes in moved.items()]
        for module in ("attn", "head"):
            kernels.append(kernel_row(module, phase, "aten::mm", clock, took[phase][module], call=len(kernels)))
            clock += took[phase][module]
    whole = {(row["phase"], row["what"]): 0 for row in traffic}
    for row in traffic:
        whole[row["phase"], row["what"]] += row["bytes"]
    for (phase, what), nbytes in whole.items():
        own = nbytes if what.startswith("cache") else nbytes * 2 // 5
        traffic.append(traffic_row("attn", phase, what, own))
        traffic.append(traffic_row("head", phase, what, nbytes - own))
    parts = [
        {"step": step, "part": part, "phase": "decode" if part else "prefill", "samples": 2,
         "positions": 1 if part else 4, "time_s": time_s * slow}
        for step, slow in enumerate((1.0, 1.1, 0.9)) for part, time_s in enumerate((400e-9, 300e-9, 320e-9, 340e-9))
    ]  # fmt: skip
    return Run(
        workload={
            "name": "net", "mode": "generate", "dtype": "bfloat16", "batch_size": 2, "prompt_len": 4, "new_tokens": 4,
            "tokens_per_step": 14, "samples_per_step": 2,
        },
        device={"type": "cuda", "name": "Toy GPU", "peaks": {"datasheet": {"bfloat16": 100e9}},
                "memory_bandwidth": 10e9, "measured_bandwidth": 8e9},
        environment={"torch": "2.13.0", "transformers": "5.4", "date": "2026-01-02T03:04:05+00:00"},
        settings={"convention": "causal", "peak_tflops": None},
        passes={name: PassOutcome("done") for name in ("time", "trace", "memory")}
        | {"count": PassOutcome("done", facts={
            "cache": {"class": "DynamicCache", "appends": True, "bytes": [320, 400, 480, 560]},
        })},
        tree=table("tree", [tree_row(path, cls, params, calls=4) for path, cls, params in modules]),
        ops=table("ops", [ops_row(module, phase, "aten::mm.default", flops[phase][module], calls=3 if phase == "decode"
                                  else 1) for phase in flops for module in flops[phase]]),
        kernels=table("kernels", kernels),
        samples=table("samples", [{"step": step, "phase": phase, "time_s": time_s * slow}
                                  for step, slow in enumerate((1.0, 1.1, 0.9))
                                  for phase, time_s in (("step", 1360e-9), ("prefill", 400e-9), ("decode", 960e-9))]),
        generation=table("generation", parts),
        traffic=table("traffic", traffic),
        memory=table("memory", [
            {"module": "", "phase": "prefill", "quantity": "allocated_exit", "source": "measured", "bytes": 1000},
            {"module": "", "phase": "prefill", "quantity": "allocated_peak", "source": "measured", "bytes": 1300},
            {"module": "", "phase": "decode", "quantity": "allocated_peak", "source": "measured", "bytes": 1200},
        ]),
    )  # fmt: skip


def traffic_row(module, phase, what, nbytes, part=None):
    return {"module": module, "phase": phase, "part": part, "what": what, "dtype": "bfloat16", "bytes": nbytes}
