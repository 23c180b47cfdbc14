"""Training loops with a meter in them, whose FLOPs are derived by hand."""

import torch
from torch import nn

import gpuprof

IN, WIDE, OUT = 6, 10, 3
PEAK_TFLOPS = 1e-6
"""Of a device that does a million FLOPs per second."""


def net(seed=0):
    """Two linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(IN, WIDE), nn.ReLU(), nn.Linear(WIDE, OUT))


def flops(samples, first_trained=True):
    """Of a forward and a backward of `net`: each weight multiplies, and is multiplied for its own gradient.

    The input needs no gradient; that of the second layer does as long as the first is trained.
    """
    forward = 2 * samples * (IN * WIDE + WIDE * OUT)
    weights = 2 * samples * (IN * WIDE * first_trained + WIDE * OUT)
    return forward + weights + 2 * samples * WIDE * OUT * first_trained


def metered(model, optimizer=None, **options):
    return gpuprof.Meter(model, optimizer, peak_tflops=PEAK_TFLOPS, **options)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def train(meter, model, optimizer, steps=1, samples=4, accumulation=1):
    """Steps of so many micro-batches each, on random input; the losses."""
    losses = []
    for micro in range(steps * accumulation):
        batch = torch.randn(samples, IN)
        with meter.step(batch):
            loss = model(batch).square().mean()
            loss.backward()
            if (micro + 1) % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
        losses.append(loss.item())
    return losses
