"""Names that Dynamo gives modules, followed to the modules."""

import pytest
import torch
from torch import nn

from gpuprof.compiled.stacks import module_of, names_in

NET = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.GELU()) for _ in range(2)])})
NET["a key"] = nn.ReLU()
NET.plain = [NET["blocks"][1]]
STEP = {"net": NET, "nets": {"a": NET}, "x": torch.ones(1)}


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("L['self']", NET),
        ("L['self'].blocks.1.0", NET["blocks"][1][0]),
        ("L['self'].blocks._modules['1']._modules['0']", NET["blocks"][1][0]),
        ("L['self']._modules['blocks'][0][1]", NET["blocks"][0][1]),
        ("L['self'].a key", NET["a key"]),
        ("L['self'].plain[0]", NET["blocks"][1]),
        ("G['step']['net'].blocks.0", NET["blocks"][0]),
        ('G["step"]["nets"]["a"]', NET),
        ("G['step']['x']", None),
        ("L['self'].blocks.7", None),
        ("L['other'].blocks", None),
        ("L['self'].blocks.name", None),
    ],
)
def test_a_name_leads_to_its_module(name, module):
    assert module_of(name, {"self": NET}, {"step": STEP}) is module


def test_names_in_a_graph_and_in_the_functions_of_its_own():
    inside, graph, holder = torch.fx.Graph(), torch.fx.Graph(), nn.Module()
    stacks = {inside: {"b": ("L['self'].b", nn.Linear)}, graph: {"a": ("L['self']", NET), "c": ("L['self'].c", NET)}}
    for made, stack in stacks.items():
        given = made.placeholder("x")
        given.meta["nn_module_stack"] = stack
        made.output(given)
    holder.wrap_body = torch.fx.GraphModule(nn.Module(), inside)
    graph.get_attr("wrap_body")
    whole = torch.fx.GraphModule(holder, graph)
    assert names_in(whole) == {"L['self']", "L['self'].b", "L['self'].c"}
