"""What reading a recorded trace costs: ``gpuprof.read_trace`` beside HolisticTraceAnalysis, TraceLens and orjson alone.

Traces are made here, in the text that Kineto of torch 2.13 writes for ``record_shapes=True, with_stack=True``: training
steps of an encoder, with Python frames, module ranges, nested operators, autograd's nodes on a thread of their own, an
optimizer, runtime calls, kernels, copies and flows. Each reader works in a process of its own, on one file in turn:
from the file to a table of operators with their kernel time. Importing its libraries is not counted as time; they are
as memory. orjson only decodes. A peer that is not installed is left out:

    pip install HolisticTraceAnalysis "pandas<3" orjson
    pip install git+https://github.com/AMD-AGI/TraceLens    # not tracelens from PyPI, which is something else
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TextIO

STEPS = 5
BATCH, LENGTH, HIDDEN, INNER, HEADS = 8, 512, 1024, 4096, 16
TOKENS = BATCH * LENGTH
PEAK, BANDWIDTH = 989e12, 3.35e12
PROCESS, ENGINE, STREAM = 4242, 4343, 7
TIME_OF_PEER, TIME_OF_DECODING, MEMORY_OF_PEER = 1 / 6, 1.2, 1 / 2


# the trace


class Kernel(NamedTuple):
    """Work of the GPU, and the call that launches it."""

    name: str
    ns: int
    category: str = "kernel"
    call: str = "cudaLaunchKernel"


class Work(NamedTuple):
    """A range on the host, and what happens in it."""

    category: str
    name: str
    inside: tuple[Any, ...] = ()
    inputs: str = ""
    node: str = ""  # autograd's, which the operator makes


def inputs(*arguments: Any) -> str:
    """What Kineto writes of an operator's arguments: tuples are bfloat16 tensors, lists and text are given as such."""
    dims, strides, kinds, values = [], [], [], []
    for one in arguments:
        tensor = isinstance(one, tuple)
        dims.append(list(one) if tensor else [])
        strides.append([stride(one, at) for at in range(len(one))] if tensor else [])
        kinds.append("c10::BFloat16" if tensor else "ScalarList" if isinstance(one, list) else "Scalar" if one else "")
        values.append("" if tensor else str(one))
    return (
        f'"Concrete Inputs": {json.dumps(values)}, "Input type": {json.dumps(kinds)}, '
        f'"Input Strides": {json.dumps(strides)}, "Input Dims": {json.dumps(dims)}'
    )


def stride(shape: tuple[int, ...], at: int) -> int:
    product = 1
    for size in shape[at + 1 :]:
        product *= size
    return product


def op(name: str, arguments: tuple[Any, ...], *inside: Any, node: str = "") -> Work:
    return Work("cpu_op", f"aten::{name}", inside, inputs(*arguments), node)


def python(name: str, *inside: Any) -> Work:
    return Work("python_function", name, inside)


def module(name: str, *inside: Any) -> Work:
    """A module's call, with the frames that torch has around it."""
    tracing = "<built-in method _get_tracing_state of pybind11_builtins.pybind11_detail_function_record_v1_system_libs"
    tracing += "tdcpp_gxx_abi_1xxx_use_cxx11_abi_1 object at 0x7f6a19a2ac30>"
    attribute = python("torch/nn/modules/module.py(1954): __getattr__")
    forward = python(f"model/{name.lower()}.py(90): forward", attribute, attribute, *inside)
    call = python("torch/nn/modules/module.py(1782): _call_impl", python(tracing), forward)
    return python(f"nn.Module: {name}", call)


def asks(*names: str) -> tuple[Work, ...]:
    """Runtime calls that launch nothing."""
    return tuple(Work("cuda_runtime", name) for name in names)


def gemm(m: int, n: int, k: int) -> Kernel:
    name = "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT" if n > m else "nvjet_tst_192x192_64x4_1x2_h_bz_coopB_NTN"
    return Kernel(name, int(2 * m * n * k / (0.6 * PEAK) * 1e9), call="cudaLaunchKernelExC")


def pointwise(functor: str, elements: int) -> Kernel:
    name = (
        f"void at::native::vectorized_elementwise_kernel<8, at::native::{functor}<c10::BFloat16>, std::array<char*, "
        f"3ul> >(int, at::native::{functor}<c10::BFloat16>, std::array<char*, 3ul>)"
    )
    return Kernel(name, 2000 + int(6 * elements / BANDWIDTH * 1e9))


def transposed(shape: tuple[int, int], node: str = "") -> Work:
    strided = op("as_strided", (shape, [shape[1], shape[0]], [1, shape[1]], ""))
    return op("t", (shape,), op("transpose", (shape, "0", "1"), strided), node=node)


def linear(out: int, width: int) -> Work:
    x, weight, bias = (BATCH, LENGTH, width), (out, width), (out,)
    product = op(
        "addmm",
        (bias, (TOKENS, width), (width, out), "1", "1"),
        *asks("cudaStreamIsCapturing", "cudaStreamIsCapturing", "cudaOccupancyMaxActiveClusters"),
        gemm(TOKENS, out, width),
        node="AddmmBackward0",
    )
    whole = op(
        "linear",
        (x, weight, bias),
        transposed(weight, node="TBackward0"),
        op("view", (x, [TOKENS, width]), node="ViewBackward0"),
        product,
        op("view", ((TOKENS, out), [BATCH, LENGTH, out]), node="ViewBackward0"),
    )
    return module("Linear", python("<built-in function linear>", whole))


def norm() -> Work:
    x = (BATCH, LENGTH, HIDDEN)
    kernel = Kernel("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, false>("
                    "int, float, c10::BFloat16 const*, c10::BFloat16 const*, c10::BFloat16 const*, float*, float*, "
                    "c10::BFloat16*)", 14_000)  # fmt: skip
    args = (x, [HIDDEN], (HIDDEN,), (HIDDEN,), "1e-05")
    empty = op("empty", ([BATCH, LENGTH, HIDDEN], "15", "0", "", "", ""))
    native = op("native_layer_norm", args, empty, empty, empty, kernel, node="NativeLayerNormBackward0")
    call = python("<built-in function layer_norm>", op("layer_norm", args, native))
    return module("LayerNorm", python("torch/nn/functional.py(2923): layer_norm", call))


def added() -> Work:
    x = (BATCH, LENGTH, HIDDEN)
    kernel = pointwise("CUDAFunctor_add", TOKENS * HIDDEN)
    return op("add", (x, x, "1"), kernel, node="AddBackward0")


def attention() -> Work:
    heads = (BATCH, HEADS, LENGTH, HIDDEN // HEADS)
    split = [BATCH, LENGTH, HEADS, HIDDEN // HEADS]
    parts = [
        part
        for _ in range(3)
        for part in (
            linear(HIDDEN, HIDDEN),
            op("view", ((BATCH, LENGTH, HIDDEN), split), node="ViewBackward0"),
            op("transpose", (tuple(split), "1", "2"), op("as_strided", (tuple(split), list(heads), [1], "0"))),
        )
    ]
    kernel = Kernel("void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, 128, 128, 4, "
                    "false, false, cutlass::bfloat16_t> >(pytorch_flash::Flash_fwd_params)", 48_000)  # fmt: skip
    args = (heads, heads, heads, "0.", "False")
    inner = op("_flash_attention_forward", (heads, heads, heads, "", "", "512", "512", "0.", "False"), kernel)
    flash = op(
        "_scaled_dot_product_flash_attention", args, inner, node="ScaledDotProductFlashAttentionBackward0"
    )  # fmt: skip
    whole = op("scaled_dot_product_attention", (heads, heads, heads, "", "0.", "False"), flash)
    call = python("<built-in function scaled_dot_product_attention>", whole)
    return module("Attention", *parts, call, linear(HIDDEN, HIDDEN))


def layer() -> Work:
    x = (BATCH, LENGTH, INNER)
    gelu = op("gelu", (x, "none"), pointwise("GeluCUDAKernelImpl", TOKENS * INNER), node="GeluBackward0")
    inner = module("Feedforward", linear(INNER, HIDDEN), module("GELU", gelu), linear(HIDDEN, INNER))
    return module("Layer", norm(), attention(), added(), norm(), inner, added())


def backward(node: str, arguments: str) -> tuple[Any, ...]:
    """What a node does, by the operator that made it: the arguments of addmm say how large it is."""
    x = (BATCH, LENGTH, HIDDEN)
    if node == "AddmmBackward0":
        _, (m, k), (_, n), *_ = json.loads("[" + arguments.split('"Input Dims": [')[1])
        ask = asks("cudaStreamIsCapturing", "cudaOccupancyMaxActiveClusters")
        total = Kernel("void at::native::reduce_kernel<128, 4, at::native::ReduceOp<c10::BFloat16, at::native::func_wr"
                       "apper_t<c10::BFloat16, at::native::sum_functor<c10::BFloat16, float, c10::BFloat16> >, unsigned"
                       " int, c10::BFloat16, 4, 4> >(at::native::ReduceOp<c10::BFloat16> )", 9_000)  # fmt: skip
        return (
            transposed((k, n)),
            op("mm", ((m, n), (n, k)), *ask, gemm(m, k, n)),
            transposed((m, n)),
            op("mm", ((k, m), (m, n)), *ask, gemm(k, n, m)),
            op("sum", ((m, n), [0], "True", ""), *asks("cudaStreamIsCapturing"), total),
            op("view", ((1, n), [n])),
        )
    if node == "TBackward0":
        return (transposed((HIDDEN, HIDDEN)),)
    if node == "ViewBackward0":
        return (op("reshape", (x, [TOKENS, HIDDEN]), op("view", (x, [TOKENS, HIDDEN]))),)
    if node == "AddBackward0":
        return ()
    if node == "GeluBackward0":
        inner = (BATCH, LENGTH, INNER)
        return (op("gelu_backward", (inner, inner, "none"), pointwise("GeluBackwardCUDAKernelImpl", TOKENS * INNER)),)
    if node == "NativeLayerNormBackward0":
        names = ("layer_norm_grad_input_kernel_vectorized", "GammaBetaBackwardCUDAKernelTemplate")
        kernels = [Kernel(f"void at::native::(anonymous namespace)::{name}<c10::BFloat16, float>()", 18_000)
                   for name in names]  # fmt: skip
        return (op("native_layer_norm_backward", (x, x, [HIDDEN], x, x, (HIDDEN,), (HIDDEN,)), *kernels),)
    heads = (BATCH, HEADS, LENGTH, HIDDEN // HEADS)
    kernel = Kernel("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<pytorch_flash::Flash_bwd_kernel_"
                    "traits<64, 128, 128, 8, 4, 4, 4, false, false, cutlass::bfloat16_t> >(pytorch_flash::Flash_bwd_"
                    "params)", 120_000)  # fmt: skip
    args = (heads, heads, heads, heads, heads, heads, "", "", "512", "512", "0.", "False")
    return (
        op("_scaled_dot_product_flash_attention_backward", args, op("_flash_attention_backward", args, kernel)),
    )  # fmt: skip


class Trace:
    """A file of events as it grows."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.events = self.kernels = self.kernel_ns = 0
        self.now, self.gpu = 5_011_689_909_514_581, 0
        self.thread = PROCESS
        self.external = self.correlation = self.number = self.frame = 0
        self.frames = [0]
        self.modules: dict[str, int] = {}
        self.nodes: list[tuple[int, str, str]] = []  # number, name and inputs, in order of the forward

    def span(self, category: str, name: str, at: tuple[Any, Any], start: int, end: int, args: str) -> None:
        """A range, on (process, thread) or (device, stream); nanoseconds."""
        self.write(
            f'"ph": "X",\n    "cat": "{category}",\n    "name": "{name}",\n    "pid": {at[0]},\n    "tid": {at[1]},\n'
            f'    "ts": {us(start)},\n    "dur": {us(end - start)}\n    ,\n    "args": {{\n      {args}\n    }}'
        )

    def flow(self, phase: str, category: str, number: int, at: tuple[Any, Any], start: int) -> None:
        """One end of an arrow between two ranges."""
        to = ',\n    "bp": "e"' if phase == "f" else ""
        self.write(
            f'"ph": "{phase}",\n    "id": {number},\n    "pid": {at[0]},\n    "tid": {at[1]},\n    "ts": {us(start)},\n'
            f'    "cat": "{category}",\n    "name": "{category}"{to}\n    '
        )

    def write(self, body: str) -> None:
        """An event, in the layout of Kineto."""
        self.file.write((",\n" if self.events else "") + "  {\n    " + body + "\n  }")
        self.events += 1

    def play(self, work: Work | Kernel) -> None:
        """Work on the host, with what is inside, from now on."""
        if isinstance(work, Kernel):
            self.launch(work)
            return
        start, self.now = self.now, self.now + 900
        at, name = (PROCESS, self.thread), work.name
        if work.category == "cuda_runtime":
            self.correlation += 1
            self.now += 700
            args = f'"External id": {self.external}, "cbid": 317, "correlation": {self.correlation}'
            self.span(work.category, name, at, start, self.now, args)
            self.flow("f", "ac2g", self.correlation, at, start)
            return
        if work.category == "python_function":
            self.frame += 1
            parent = self.frames[-1] or "null"
            args = f'"Python parent id": {parent}, "Python id": {self.frame}, "Ev Idx": {self.events}'
            if name.startswith("nn.Module: "):
                number = self.modules[name] = self.modules.get(name, -1) + 1
                args += f', "Python module id": {number}'
                name = f"{name}_{number}"
            self.frames.append(self.frame)
        else:
            self.external += 1
            args = f'"External id": {self.external}, "Record function id": 0'
            if work.category == "cpu_op" and work.inputs:
                if work.node or any(isinstance(inner, Work) and inner.node for inner in work.inside):
                    # of the node that comes next
                    args += f', "Sequence number": {self.number}, "Fwd thread id": 0'
                args += f", {work.inputs}"
            args += f', "Ev Idx": {self.events}'
        if work.node:
            self.flow("s", "fwdbwd", self.number, at, start)
            self.nodes.append((self.number, work.node, work.inputs))
        for inner in work.inside:
            self.play(inner)
        if work.node:
            self.number += 1
        if work.category == "python_function":
            self.frames.pop()
        self.now += 600
        self.span(work.category, name, at, start, self.now, args)

    def launch(self, kernel: Kernel) -> None:
        """A runtime call, and what it launches on the stream."""
        self.correlation += 1
        start, self.now = self.now, self.now + 4300
        host, device, link = (PROCESS, self.thread), (0, STREAM), f'"correlation": {self.correlation}'
        self.span(
            "cuda_runtime", kernel.call, host, start, self.now, f'"External id": {self.external}, "cbid": 211, {link}'
        )  # fmt: skip
        self.flow("s", "ac2g", self.correlation, host, start)
        begin = max(self.gpu, start + 6100)
        self.gpu = begin + kernel.ns
        args = f'"External id": {self.external}, "device": 0, "context": 1, "stream": {STREAM}, {link}'
        if kernel.category == "kernel":
            args = f'"queued": 0, {args}, "registers per thread": 32, "shared memory": 2112, "blocks per SM": 47.515152'
            args += ', "warps per SM": 380.121216, "grid": [1568, 1, 4], "block": [256, 1, 1]'
            args += ', "est. achieved occupancy %": 100'
        else:
            args += ', "bytes": 32768, "memory bandwidth (GB/s)": 11.4'
        self.span(kernel.category, kernel.name, device, begin, self.gpu, args)
        self.flow("f", "ac2g", self.correlation, device, begin)
        self.kernels += 1
        self.kernel_ns += kernel.ns

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        """An annotation, with its shadow on the GPU."""
        start, first = self.now, max(self.now, self.gpu)
        self.external += 1
        args = f'"External id": {self.external}, "Record function id": 0, "Ev Idx": {self.events}'
        yield
        self.span("user_annotation", name, (PROCESS, PROCESS), start, self.now, args)
        self.span("gpu_user_annotation", name, (0, STREAM), first, self.gpu, args)

    def run_backward(self) -> None:
        """Nodes of what was played forward, the last first, on the thread of the engine."""
        self.thread = ENGINE
        while self.nodes:
            number, name, arguments = self.nodes.pop()
            begin, at = self.now, (PROCESS, ENGINE)
            known = f'"Record function id": 0, "Sequence number": {number}, "Fwd thread id": 1'
            self.now += 1100
            inner = self.now
            self.flow("f", "fwdbwd", number, at, inner)
            for work in backward(name, arguments):
                self.play(work)
            self.external += 2
            args = f'"External id": {self.external}, {known}, {inputs((TOKENS, HIDDEN))}'
            self.span("cpu_op", name, at, inner, self.now, args)
            self.now += 800
            label = f"autograd::engine::evaluate_function: {name}"
            self.span("cpu_op", label, at, begin, self.now, f'"External id": {self.external - 1}, {known}')
            if name in ("TBackward0", "NativeLayerNormBackward0"):
                self.accumulate()
        self.thread = PROCESS

    def accumulate(self) -> None:
        """The node that takes a gradient: it has no number."""
        name, shape = "torch::autograd::AccumulateGrad", (HIDDEN, HIDDEN)
        grad = op("add_", (shape, shape, "1"), pointwise("CUDAFunctor_add", HIDDEN * HIDDEN))
        inner = Work("cpu_op", name, (op("detach", (shape,)), grad), inputs(shape))
        self.play(Work("cpu_op", f"autograd::engine::evaluate_function: {name}", (inner,)))

    def step(self, number: int, layers: int) -> None:
        """A step of training."""
        self.modules.clear()
        one, copy = layer(), Kernel("Memcpy HtoD (Pinned -> Device)", 2900, "gpu_memcpy", "cudaMemcpyAsync")
        adam = Kernel("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespa"
                      "ce)::FusedOptimizerTensorListMetadata<4>, at::native::(anonymous namespace)::FusedAdamMathFunct"
                      "or<float, 4, (at::native::ADAM_MODE)1, false> >()", 300_000)  # fmt: skip
        with self.label(f"ProfilerStep#{number}"):
            self.play(op("to", ((BATCH, LENGTH), "15", "0"), op("copy_", ((BATCH, LENGTH), (BATCH, LENGTH)), copy)))
            self.play(module("Encoder", *[one] * layers))
            self.run_backward()
            with self.label("Optimizer.step#AdamW.step"):
                self.play(op("_fused_adamw_", ("0.001", "0.9", "0.999"), *[adam] * (1 + layers // 4)))
            self.play(Work("cuda_runtime", "cudaDeviceSynchronize"))
        self.now = max(self.now, self.gpu) + 50_000


def us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03d}"


def make(path: Path, layers: int) -> Trace:
    """A trace of so many layers, and what is known of it."""
    device = {"id": 0, "name": "NVIDIA H100 80GB HBM3", "totalGlobalMem": 85_018_279_936, "numSms": 132}
    header = {"schemaVersion": 1, "deviceProperties": [device | {"computeMajor": 9, "computeMinor": 0}]}
    header |= {"cuda_runtime_version": 12080, "record_shapes": 1, "with_stack": 1, "displayTimeUnit": "ms"}
    with path.open("w") as file:
        file.write(json.dumps(header)[:-1] + ', "baseTimeNanoseconds": 1790857026000000000,\n"traceEvents": [\n')
        trace = Trace(file)
        for name, pid, value in (("python", PROCESS, "CPU"), ("python", 0, "GPU 0")):
            for key, argument in (("process_name", f'"name": "{name}"'), ("process_labels", f'"labels": "{value}"')):
                trace.write(f'"ph": "M", "name": "{key}", "ts": 0.0, "pid": {pid}, "tid": 0, "args": {{{argument}}}')
        for number in range(STEPS):
            trace.step(number, layers)
        file.write('\n  ],"traceName": "trace.json" }')
    return trace


def at_least(events: int, path: Path) -> Trace:
    small, larger = (make(path, layers).events for layers in (8, 12))
    per_layer = (larger - small) / 4
    return make(path, 8 + int((events - small) / per_layer) + 2)


# the readers: each gives the kernel time that it knows of, in seconds


def gpuprof_all(path: Path) -> float:
    import gpuprof

    return float(gpuprof.read_trace(path, step="all").kernels["duration_ns"].sum() / 1e9)


def gpuprof_median(path: Path) -> float:
    import gpuprof

    return float(gpuprof.read_trace(path).kernels["duration_ns"].sum() / 1e9)


def orjson(path: Path) -> None:
    import orjson

    orjson.loads(path.read_bytes())


def hta(path: Path) -> float:
    from hta.trace_analysis import TraceAnalysis

    analysis = TraceAnalysis(trace_files={0: str(path)}, trace_dir=str(path.parent), include_last_profiler_step=True)
    return float(analysis.get_gpu_kernel_breakdown(visualize=False)[1]["sum (us)"].sum() / 1e6)


def tracelens(path: Path) -> float:
    from TraceLens import TreePerfAnalyzer

    analyzer = TreePerfAnalyzer.from_file(str(path))
    launchers = analyzer.get_df_kernel_launchers()
    analyzer.get_df_kernel_launchers_summary(launchers)
    return float(launchers["total_direct_kernel_time"].sum() / 1e6)


def tracelens_flops(path: Path) -> float:
    """With the FLOPs of each operator, as gpuprof has them."""
    from TraceLens import TreePerfAnalyzer

    table = TreePerfAnalyzer.from_file(str(path)).build_df_unified_perf_table()
    return float(table["Kernel Time (µs)"].sum() / 1e6)


READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gpuprof": (gpuprof_median, "gpuprof.imported"),
    "gpuprof --step all": (gpuprof_all, "gpuprof.imported"),
    "orjson.loads": (orjson, "orjson"),
    "HTA": (hta, "hta.trace_analysis"),
    "TraceLens": (tracelens, "TraceLens"),
    "TraceLens, FLOPs": (tracelens_flops, "TraceLens"),
}
PEERS = ("HTA", "TraceLens", "TraceLens, FLOPs")


def child(reader: str, path: Path) -> int:
    """Read once, and print the seconds, those of the CPU, the most memory ever held, and the kernel time found."""
    read, package = READERS[reader]
    import_module(package)
    start, busy = time.perf_counter(), time.process_time()
    found = read(path)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    # of this process's own memory: what getrusage says may be its parent's, from before exec
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print(json.dumps({"wall_s": seconds, "cpu_s": busy, "peak_bytes": peak * 1024, "kernel_s": found}))
    return 0


def measure(path: Path, python: str, rounds: int) -> dict[str, Any]:
    """Best of so many rounds, by reader; the readers take turns."""
    found: dict[str, Any] = {}
    installed = {}
    for name, (_, package) in READERS.items():
        interpreter = sys.executable if name.startswith("gpuprof") else python
        ask = [
            interpreter,
            "-c",
            f"import importlib.util as u, sys; sys.exit(u.find_spec('{package.split('.')[0]}') is None)",
        ]
        installed[name] = subprocess.run(ask).returncode == 0 and interpreter
    for _ in range(rounds):
        for name, interpreter in installed.items():
            if not interpreter:
                continue
            command = [interpreter, str(Path(__file__).resolve()), "--child", name, "--file", str(path)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                found[name] = {"error": (done.stderr.strip().splitlines() or ["nothing said"])[-1]}
                continue
            one = json.loads(done.stdout.splitlines()[-1])
            best = found.setdefault(name, one)
            best |= {key: min(best[key], one[key]) for key in ("wall_s", "cpu_s", "peak_bytes")}
    return {name: found.get(name) for name in READERS}


def told(trace: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The table of a file, printed; returned are the bounds that do not hold."""
    print(f"\n{trace['events']:,} events, {trace['bytes'] / trace['events']:.0f} bytes each, {STEPS} steps of "
          f"{trace['events'] // STEPS:,}, {trace['kernels']:,} kernels of {trace['kernel_s']:.6f} s")  # fmt: skip
    base = found["gpuprof"]
    heads = (("wall s", 9), ("CPU s", 9), ("peak MB", 9), ("us/event", 10), ("x gpuprof", 11), ("memory x", 10),
             ("kernel s", 11))  # fmt: skip
    print(" " * 20 + "".join(head.rjust(width) for head, width in heads))
    for name, one in found.items():
        if one is None or "error" in one:
            print(f"{name:20}  {'not installed: skipped' if one is None else 'failed: ' + one['error']}")
            continue
        kernel = f"{one['kernel_s']:11.6f}" if one["kernel_s"] is not None else ""
        line = f"{name:20}{one['wall_s']:9.2f}{one['cpu_s']:9.2f}{one['peak_bytes'] / 1e6:9.0f}"
        line += f"{one['wall_s'] / trace['events'] * 1e6:10.2f}"
        if base and "error" not in base:
            line += f"{one['wall_s'] / base['wall_s']:11.2f}{one['peak_bytes'] / base['peak_bytes']:10.2f}"
        print(line + kernel)
    wrong = []
    for ours in ("gpuprof", "gpuprof --step all"):
        if not (mine := found[ours]) or "error" in mine:
            wrong.append(f"{ours} read nothing")
            continue
        # a whole window with its FLOPs is not held against a table without: that is told above, beside one with them
        peers = [peer for peer in PEERS if peer != "TraceLens" or ours == "gpuprof"]
        bounds = [(peer, TIME_OF_PEER, MEMORY_OF_PEER) for peer in peers] + [("orjson.loads", TIME_OF_DECODING, None)]
        for peer, time_bound, memory_bound in bounds:
            if not (other := found[peer]) or "error" in other:
                continue
            for what, key, bound in (("wall", "wall_s", time_bound), ("peak memory", "peak_bytes", memory_bound)):
                if bound is None:
                    continue
                ratio = mine[key] / other[key]
                line = f"{ours}: {what} {ratio:.3f} of {peer}'s (at most {bound:.3f})"
                print(f"{'pass' if ratio <= bound else 'FAIL'}  {line}")
                wrong += [line] if ratio > bound else []
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[200_000, 1_000_000], help="of each file, at least")
    parser.add_argument("--rounds", type=int, default=3, help="times that each reads; the best counts")
    parser.add_argument("--peers", metavar="PYTHON", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--make", type=Path, metavar="FILE", help="only make a trace of the first size, and keep it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--child", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.file)
    if args.make:
        trace = at_least(args.events[0], args.make)
        print(f"{args.make}: {trace.events:,} events, {trace.kernels:,} kernels of {trace.kernel_ns / 1e9:.6f} s")
        return 0
    wrong, result = [], []
    for events in args.events:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            made = at_least(events, path)
            trace = {"events": made.events, "bytes": path.stat().st_size, "kernels": made.kernels,
                     "kernel_s": made.kernel_ns / 1e9}  # fmt: skip
            found = measure(path, args.peers, args.rounds)
        wrong += told(trace, found)
        result.append(trace | {"steps": STEPS, "readers": found})
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print("\nall bounds hold" if not wrong else "\ndoes not hold: " + "; ".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
