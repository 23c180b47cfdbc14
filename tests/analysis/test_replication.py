"""The sum over ranks against the unsharded model. Two blocks of 64 -> 256 -> 64 and a head 64 -> 128, on 128 rows."""

import pytest
from runs import ops_row, tree_row

from gpuprof.analysis.replication import model_flops, replication, sentence
from gpuprof.run import Run
from gpuprof.schema import table

UP = 2 * 128 * 64 * 256
HEAD = 2 * 128 * 64 * 128


def step(layer, head, prefix=""):
    """Rows of ``ops``: FLOPs of the forward of each layer and of the head, and twice as many in the backward."""
    layers = {f"{prefix}blocks.{block}.{name}": layer for block in range(2) for name in ("up", "down")}
    return [
        ops_row(module, phase, "aten::mm.default", flops * (1 if phase == "forward" else 2))
        for phase in ("forward", "backward")
        for module, flops in (layers | {f"{prefix}head": head}).items()
    ]


def job(rows, wrapper=""):
    """All ranks together; in a wrapper of this class."""
    layers = [f"blocks.{block}.{name}" for block in (0, 1) for name in ("up", "down")]
    inside = ["blocks", "blocks.0", "blocks.1", *layers, "head"]
    modules = {"": wrapper, "module": "Net", **{f"module.{name}": "" for name in inside}} if wrapper else {"": "Net"}
    tree = [tree_row(module, kind) for module, kind in modules.items()]
    return Run({}, {}, {}, ops=table("ops", rows), tree=table("tree", tree))


WHOLE = model_flops(table("ops", step(UP, HEAD)))


def test_a_head_that_both_ranks_compute():
    ranks = 2 * step(UP // 2, HEAD)
    assert sum(row["flops_causal"] for row in ranks) == 62_914_560

    found = replication(job(ranks), WHOLE, 1)

    assert found == {
        "flops": 56_623_104, "replicas": 1, "convention": "causal", "repeated": {"head": 6_291_456}, "missing": {},
    }  # fmt: skip
    assert sentence(found, 2) == (
        "all ranks together 62,914,560 FLOPs (causal), the unsharded model 56,623,104; repeated on 2 ranks: head "
        "6,291,456"
    )


@pytest.mark.parametrize(("wrapper", "prefix"), [("", ""), ("DistributedDataParallel", "module.")])
def test_each_rank_has_a_batch(wrapper, prefix):
    found = replication(job(2 * step(UP, HEAD, prefix), wrapper), WHOLE, 2)

    assert (found["flops"], found["replicas"]) == (113_246_208, 2)
    assert found["repeated"] == found["missing"] == {}
    assert sentence(found, 2) == (
        "all ranks together 113,246,208 FLOPs (causal), the unsharded model on 2 batches the same"
    )


def test_recompute_is_no_repetition():
    again = [ops_row("blocks.0.up", "recompute", "aten::mm.default", UP)]
    assert replication(job(step(UP, HEAD) + again), WHOLE, 1)["repeated"] == {}


def test_what_no_rank_does():
    found = replication(job(step(UP, 0) + step(0, 0)), WHOLE, 1)

    assert (found["repeated"], found["missing"]) == ({}, {"head": 3 * HEAD})
    assert sentence(found, 2) == (
        "all ranks together 50,331,648 FLOPs (causal), the unsharded model 56,623,104; missing on all ranks: head "
        "6,291,456"
    )


def test_layers_are_named_together():
    found = replication(job(2 * step(UP, HEAD)), WHOLE, 1)

    assert sentence(found, 2).endswith(
        "repeated on 2 ranks: blocks.*.up 25,165,824, blocks.*.down 25,165,824, head 6,291,456"
    )
    found["repeated"] |= {"norm": 5, "": 7}
    assert sentence(found, 2).endswith("head 6,291,456, 2 more 12")
    assert sentence({**found, "repeated": {"": 7}}, 2).endswith("repeated on 2 ranks: the model itself 7")


def test_unknown_flops_add_nothing():
    unknown = ops_row("head", "forward", "mylib::op.default", None)
    assert replication(job([*step(UP, HEAD), unknown]), WHOLE, 1)["repeated"] == {}
