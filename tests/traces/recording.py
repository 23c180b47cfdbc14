"""A recorded trace, made by hand: each line an event, in the words of torch.profiler's newest format."""

import json


class Recording:
    """Times are microseconds. The host is process 1, its threads 10 (the main one) and 11 (autograd's)."""

    def __init__(self, name="NVIDIA H100 80GB HBM3", **header):
        self.header = {"schemaVersion": 1, "record_shapes": 1, "baseTimeNanoseconds": 1_700_000_000_000_000_000}
        if name:
            self.header["deviceProperties"] = [{"id": 0, "name": name, "numSms": 132}]
        self.header |= header
        self.events = []
        self.correlation = 1000

    def add(self, category, name, start, end, tid=10, pid=1, **args):
        self.events.append(
            {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid, "ts": start, "dur": end - start,
             "args": args}
        )  # fmt: skip
        return self

    def step(self, number, start, end):
        return self.add("user_annotation", f"ProfilerStep#{number}", start, end)

    def label(self, name, start, end, tid=10):
        return self.add("user_annotation", name, start, end, tid)

    def module(self, name, start, end, tid=10):
        return self.add("python_function", f"nn.Module: {name}", start, end, tid, **{"Python module id": 0})

    def op(self, name, start, end, dims=None, types=None, concrete=None, number=None, tid=10):
        args = {}
        if dims is not None:
            args |= {"Input Dims": dims, "Input type": types or ["float"] * len(dims)}
        if concrete is not None:
            args["Concrete Inputs"] = concrete
        if number is not None:
            args |= {"Sequence number": number, "Fwd thread id": 0}
        return self.add("cpu_op", name, start, end, tid, **args)

    def node(self, function, number, start, end, tid=11, thread=1):
        """The engine's range of a node, and that of its function inside."""
        args = {} if number is None else {"Sequence number": number, "Fwd thread id": thread}
        self.add("cpu_op", f"autograd::engine::evaluate_function: {function}", start, end, tid, **args)
        return self.add("cpu_op", function, start, end, tid, **args)

    def kernel(
        self, name, at, start, end, tid=10, stream=7, call="cudaLaunchKernel", correlation=None, category="kernel"
    ):
        """A kernel that the host launched at ``at``; by a call that is not in the file where that is None."""
        if correlation is None:
            self.correlation += 1
            correlation = self.correlation
        if at is not None:
            self.add("cuda_runtime", call, at, at + 1, tid, correlation=correlation)
        return self.add(
            category, name, start, end, stream, 0, device=0, stream=stream, correlation=correlation
        )  # fmt: skip

    def save(self, path):
        path.write_text(json.dumps(self.header | {"traceEvents": self.events}))
        return path
