"""Communication has no FLOPs; what it moves between processes is its message.

Of any operator whose name is communication, `rule_for` knows the kind, and `message` is its rule. Here are those whose
arguments do not say what is sent, and those that communicate and multiply.
"""

from __future__ import annotations

from typing import Any

from .rules import Cost, TensorSpec, bytes_of, flop_rule

_SIGNALS = """
    _c10d_functional::wait_tensor c10d_functional::wait_tensor _c10d_functional::_wrap_tensor_autograd
    c10d::barrier c10d::monitored_barrier_ c10d::check_for_nan
    symm_mem::_barrier symm_mem::_rendezvous symm_mem::get_remote_tensors symm_mem::memset32_
    symm_mem::stream_write_value32_ symm_mem::nccl_wait_for_signal symm_mem::nccl_wait_signal
    symm_mem::nvshmem_wait_for_signal
"""  # they wait, or prepare, and send nothing of their tensors


@flop_rule(*_SIGNALS.split(), kind="communication")
def _signal(*args: Any, out: Any, **_: Any) -> Cost:
    return Cost(nbytes=0)


@flop_rule("symm_mem::one_shot_all_reduce_copy", "symm_mem::one_shot_all_reduce_copy_out", kind="communication")
def _through_buffer(symm_buffer: TensorSpec, local_input: TensorSpec, *args: Any, out: Any, **_: Any) -> Cost:
    return Cost(nbytes=local_input.nbytes)  # the buffer may have room for more


@flop_rule(
    "symm_mem::all_to_all_vdev", "symm_mem::all_to_all_vdev_2d", "symm_mem::all_to_all_vdev_2d_offset",
    "symm_mem::tile_reduce", "symm_mem::multi_root_tile_reduce", kind="communication",
)  # fmt: skip
def _sent(sent: Any, *args: Any, out: Any, **_: Any) -> Cost:
    return Cost(nbytes=bytes_of(sent))  # what is received into has room for the worst case


@flop_rule("symm_mem::fused_all_gather_matmul", "symm_mem::fused_all_gather_scaled_matmul")
def _gathered(rows: TensorSpec, factors: Any, *args: Any, out: Any, **_: Any) -> Cost:
    return Cost(full=2 * rows.shape[-1] * sum(product.numel for product in out[1]))


@flop_rule(
    "symm_mem::fused_matmul_reduce_scatter", "symm_mem::fused_scaled_matmul_reduce_scatter", "symm_mem::_async_input_mm"
)
def _product(left: TensorSpec, right: TensorSpec, *args: Any, out: Any, **_: Any) -> Cost:
    return Cost(full=2 * left.numel * right.shape[-1])


@flop_rule("fsdp::all_gather_copy_in", "fsdp::chunk_cat", "fsdp::split_with_sizes_copy", kind="movement")
def _copied(given: Any, *args: Any, out: Any, **_: Any) -> Cost:
    return Cost(nbytes=2 * bytes_of(given))  # read once, written once; the other side has padding too


@flop_rule("fsdp::copy_", kind="movement")
def _copy(to: TensorSpec, given: TensorSpec, *, out: Any) -> Cost:
    return Cost(nbytes=bytes_of(to, given))
