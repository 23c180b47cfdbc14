"""What a name is: communication, perhaps communication, or neither."""

from __future__ import annotations

import pytest

from gpuprof.theory.names import communicates, perhaps_communicates
from gpuprof.traces.events import OPERATOR, host_kind

COMMUNICATION = [  # kernels as real traces and sources spell them
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    "ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)",
    "ncclAllReduceRingLLKernel_sum_f32(ncclColl)",
    "ncclSymkDevKernel_AllReduce_RSxLDMC_AGxSTMC_sum_bf16(ncclSymkDevWorkArgs4K)",
    "rccl_main_kernel(ncclDevKernelArgsStorage<4096>)", "ncclDevKernel_Generic_4 [clone .kd]",
    "mscclKernel_Sum_half_Simple_false(ncclDevComm*, mscclAlgo*)",
    "void (anonymous namespace)::multimem_all_reduce_kernel<c10::BFloat16, 16>(c10::BFloat16*, unsigned long)",
    "void c10d::symmetric_memory::(anonymous namespace)::two_shot_all_reduce_kernel<float, 16>(float**)",
    "void <unnamed>::one_shot_all_reduce_kernel<c10::BFloat16, 16, 8>(c10::BFloat16**)",
    "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>(vllm::RankData*, vllm::RankSignals)",
    "_ZN4vllm26cross_device_reduce_2stageI13__nv_bfloat16Li8EEEvPNS_8RankDataENS_11RankSignalsE",
    "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<(int)0, __half>(int)",
    "mscclpp::allreduce::kernel<float>(float*)",
    "nvshmemi_transfer_rma_nbi_kernel",
    "void deep_ep::intranode::dispatch<8, 768, 8192>(int4*, float*)",
    "c10d::allreduce_", "c10d::_allgather_base_", "_c10d_functional::all_reduce", "_c10d_functional::wait_tensor",
    "_c10d_functional::all_gather_into_tensor.default", "_c10d_functional_autograd::all_to_all_single",
    "c10d_functional::all_reduce", "symm_mem::multimem_all_reduce_", "vllm::all_reduce", "vllm::all_gather",
    "_dtensor::shard_dim_alltoall", "record_param_comms",
]  # fmt: skip
PERHAPS = [
    "sgl_kernel::all_reduce", "void aiter::reduce_scatter_store<float>(float*)", "my_lib::AllToAllKernel(int)",
    "quick_allreduce", "symm_mem::fused_all_gather_matmul",
]  # fmt: skip
NEITHER = [
    "void at::native::vectorized_elementwise_kernel<4, ncclThing<float>, std::array<char*, 3ul>>(int, ncclThing)",
    "_ZN2at6native29vectorized_elementwise_kernelILi4E10ncclKernelEEvi",
    "void fused_kernel<Epilogue::one_shot_all_reduce>(float*)",
    "aten::_c10d_functional_all", "aten::mm", "aten::broadcast_tensors", "torch::distributed::reducer::mul_out",
    "fsdp::all_gather_copy", "symm_mem::_async_input_mm", "Memcpy DtoD (Device -> Device)", "warm up ncclKernel",
    "## alltoall_fwd_single ##", "nccl", "nccl_warm_up", "my c10d::allreduce_ label", "model::nccl c10d::", "",
]  # fmt: skip


@pytest.mark.parametrize("name", COMMUNICATION)
def test_communication_is_told_by_the_name_of_a_kernel_or_an_operator(name):
    assert communicates(name)
    assert not perhaps_communicates(name)


@pytest.mark.parametrize("name", PERHAPS)
def test_a_name_of_a_collective_that_nobody_knows_is_perhaps_one(name):
    assert perhaps_communicates(name)
    assert not communicates(name)


@pytest.mark.parametrize("name", NEITHER)
def test_template_arguments_and_labels_are_no_names_of_functions(name):
    assert not communicates(name)


def test_torchs_record_of_a_collective_is_an_operator_though_it_has_no_namespace():
    assert host_kind("record_param_comms") == OPERATOR
    assert host_kind("record_param_comms", label=True) != OPERATOR
