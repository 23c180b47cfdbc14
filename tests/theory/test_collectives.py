"""Operators that communicate: schemas as torch 2.13 registers them."""

from __future__ import annotations

import pytest

from gpuprof.theory import Cost, TensorSpec, cost_of, least_bytes, rule_for

T = TensorSpec
HALF = "bfloat16"
WHOLE, PART = T((8, 64), HALF), T((4, 64), HALF)  # of two ranks: 1024 and 512 bytes
GROUP = object()


@pytest.mark.parametrize(
    ("op", "args", "out", "nbytes"),
    [
        ("c10d::allreduce_.default", ((WHOLE, T((3,))), GROUP, GROUP, None, True, -1), ((WHOLE, T((3,))), GROUP), 1036),
        ("c10d::broadcast_.default", ((PART,), GROUP, 0, 0), ((PART,), GROUP), 512),
        ("c10d::_allgather_base_.default", (WHOLE, PART, GROUP, False), (WHOLE, GROUP), 1024),
        ("c10d::allgather_.default", (((PART, PART),), (PART,), GROUP), ((PART, PART), GROUP), 1024),
        ("c10d::_reduce_scatter_base_.default", (PART, WHOLE, GROUP, GROUP), (PART, GROUP), 1024),
        ("c10d::alltoall_base_.default", (PART, WHOLE, GROUP, [], []), GROUP, 1024),
        ("c10d::send.default", ((PART,), GROUP, 1, 0), GROUP, 512),
        ("c10d::barrier.default", (T((1,)), GROUP, [0]), GROUP, 0),
        ("_c10d_functional::all_reduce.default", (PART, "sum", "0"), PART, 512),
        ("_c10d_functional::all_gather_into_tensor.default", (PART, 2, "0"), WHOLE, 1024),
        ("_c10d_functional::all_gather_into_tensor", (PART, 2, "0"), None, 512),  # a result that nobody recorded
        ("_c10d_functional::reduce_scatter_tensor.default", (WHOLE, "sum", 2, "0"), PART, 1024),
        ("_c10d_functional_autograd::all_to_all_single.default", (PART, [2, 2], [2, 2], "0"), PART, 512),
        ("_c10d_functional::wait_tensor.default", (WHOLE,), WHOLE, 0),
        ("symm_mem::multimem_all_reduce_.default", (PART, "sum", "0"), PART, 512),
        ("symm_mem::one_shot_all_reduce_copy", (T((1000,)), PART, "sum", "0"), PART, 512),
        ("symm_mem::all_to_all_vdev", (PART, T((99, 64), HALF), T((2,), "int64"), T((2, 2), "int64"), "0"), None, 512),
        ("vllm::all_reduce.default", (PART, "tp:0"), PART, 512),
        ("_dtensor::shard_dim_alltoall.default", (PART, 0, 1, "0"), PART, 512),
    ],
)  # fmt: skip
def test_communication_is_priced_by_its_message_and_has_no_flops(op, args, out, nbytes):
    assert cost_of(op, args, {}, out) == (Cost(nbytes=nbytes), "communication")


@pytest.mark.parametrize("op", ["c10d::of_a_later_torch", "symm_mem::anything.default", "record_param_comms"])
def test_whatever_communicates_has_a_rule(op):
    assert rule_for(op).kind == "communication"


def test_a_product_fused_with_communication_is_a_product():
    # (4, 64) of each of two ranks, gathered to (8, 64), by (64, 16) and (64, 32)
    out = (None, [T((8, 16), HALF), T((8, 32), HALF)])
    factors = [T((64, 16), HALF), T((64, 32), HALF)]
    assert cost_of("symm_mem::fused_all_gather_matmul.default", (PART, factors, 0, "0"), {}, out) == (
        Cost(full=2 * 8 * 64 * (16 + 32)),
        "matmul",
    )
    out = T((4, 16), HALF)
    assert cost_of("symm_mem::fused_matmul_reduce_scatter.default", (WHOLE, factors[0], "sum", 0, "0"), {}, out) == (
        Cost(full=2 * 8 * 64 * 16),
        "matmul",
    )


def test_the_copies_of_fsdp_are_movement():
    cost, kind = cost_of("fsdp::split_with_sizes_copy.default", (WHOLE, [2, 6], 1), {}, None)
    assert (least_bytes(cost, kind, (WHOLE,), {}, None), kind) == (2048, "movement")
    cost, kind = cost_of("fsdp::copy_.default", (T((4, 64)), PART), {}, None)
    assert (cost.nbytes, kind) == (1024 + 512, "movement")
