"""A training loop as it might be anyone's, of which torch.profiler records two steps.

    python examples/record_training.py trace.json.gz

No line of it knows gpuprof, which reads the recording: `gpuprof import trace.json.gz -o imported.json.gz`.
"""

import sys

import torch
from own_model import WORDS, Model
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, schedule

SHAPES = {"record_shapes": True, "with_stack": True}
"""What a trace has to say for FLOPs and modules to be known."""


def train(steps, profiler):
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        words = torch.randint(WORDS, (4, 128))
        loss = F.cross_entropy(model(words)[:, :-1].flatten(0, 1), words[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        profiler.step()


if __name__ == "__main__":
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    two_steps = schedule(wait=0, warmup=2, active=2, repeat=1)
    with profile(
        activities=activities,
        schedule=two_steps,
        on_trace_ready=lambda recorded: recorded.export_chrome_trace(sys.argv[1]),
        **SHAPES,
    ) as profiler:
        train(4, profiler)
