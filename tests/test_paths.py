"""Paths of modules, and that a model is the same in a wrapper and sharded."""

import pandas as pd
import pytest
from runs import gpu_run

from gpuprof.analysis.comparison import kernel_seconds, own_counts
from gpuprof.analysis.matching import match
from gpuprof.paths import ancestors, unsharded, unwrapped

TABLES = ["tree", "ops", "kernels"]


def test_what_is_no_module_s_is_part_of_what_is_unattributed():
    assert ancestors("a.b") == ["a.b", "a", ""]
    assert ancestors("(gradient all-reduce)") == ancestors("(unattributed)") == ["(unattributed)"]


def test_paths_without_their_wrappers():
    classes = {
        "": "DistributedDataParallel", "module": "OptimizedModule", "module._orig_mod": "Net",
        "module._orig_mod.module": "Head", "module._orig_mod.a": "CheckpointWrapper",
        "module._orig_mod.a._checkpoint_wrapped_module": "FullyShardedDataParallel",
        "module._orig_mod.a._checkpoint_wrapped_module._fsdp_wrapped_module": "Block",
        "module._orig_mod.a._checkpoint_wrapped_module._fsdp_wrapped_module.up": "Linear",
    }  # fmt: skip
    assert list(unwrapped(classes, classes.values()).values()) == ["", "", "", "module", "a", "a", "a", "a.up"]


def test_classes_before_they_were_sharded():
    assert [unsharded(name) for name in ("FSDPBlock", "Block", "FSDP", "FSDPs")] == ["Block", "Block", "FSDP", "FSDPs"]


def in_ddp():
    """gpu_run() inside DDP."""
    run = gpu_run()
    for name in TABLES:
        frame = getattr(run, name)
        inside = ["module" + (path and f".{path}") if path[:1] != "(" else path for path in frame["module"]]
        setattr(run, name, frame.assign(module=inside))
    root = run.tree.iloc[:1].assign(module="", **{"class": "DistributedDataParallel"})
    run.tree = pd.concat([root, run.tree], ignore_index=True)
    return run


def in_shards():
    """gpu_run() under FSDP2."""
    run = gpu_run()
    run.tree["class"] = run.tree["class"].replace({"Net": "FSDPNet", "Block": "FSDPBlock"})
    return run


@pytest.mark.parametrize("wrapped", [in_ddp, in_shards])
@pytest.mark.parametrize("by", ["module", "layer", "class"])
def test_a_sharded_run_is_compared_part_by_part(wrapped, by):
    for figures in (kernel_seconds, own_counts):
        pd.testing.assert_frame_equal(figures(wrapped(), by), figures(gpu_run(), by))


@pytest.mark.parametrize(("wrapped", "before"), [(in_ddp, "module."), (in_shards, "")])
def test_a_report_of_the_model_is_one_of_the_sharded(wrapped, before):
    lines = [("layers.0", "Block"), ("layers.1", "Block"), ("head", "Linear")]
    columns = ["module", "class", "quantity", "value", "precision"]
    claims = pd.DataFrame([(*line, "macs_forward", 1.0, 0.5) for line in lines], columns=columns)

    assert match(claims, wrapped()) == {module: [f"{before}{module}"] for module, _ in lines}


def test_a_report_without_names_is_one_of_the_sharded():
    lines = [("1-1", "ModuleList"), ("2-1", "Block"), ("2-2", "Block"), ("1-2", "Linear")]
    columns = ["module", "class", "quantity", "value", "precision"]
    depth = {"1": "{}", "2": "1-1.{}"}
    names = [(depth[name[0]].format(name), kind) for name, kind in lines]
    claims = pd.DataFrame([(*line, "macs_forward", 1.0, 0.5) for line in names], columns=columns)

    plain = match(claims, gpu_run())
    assert list(plain.values()) == [["layers"], ["layers.0"], ["layers.1"], ["head"]]
    assert match(claims, in_ddp()) == {line: [f"module.{path}" for path in paths] for line, paths in plain.items()}
