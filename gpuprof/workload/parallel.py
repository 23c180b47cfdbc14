"""A named model sharded over the processes of a job, by torch's own ways: DDP, FSDP2 or tensor parallel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from gpuprof.errors import GpuprofError, first_line, is_out_of_memory
from gpuprof.paths import layer_of
from gpuprof.workload.configuration import ask
from gpuprof.workload.options import Options


def construction_device(options: Options, device: torch.device) -> torch.device:
    """Where a model is made: in host memory, where no device is to hold all of it."""
    return torch.device("cpu") if options.parallel in ("fsdp", "tp") else device


def replicas(options: Options) -> int:
    """How many batches a step of the job works on: one for each process, or one that all of them share.

    Raises:
        GpuprofError: The processes have no group, or there is but one.
    """
    world = 1 if options.parallel == "none" else _world(options.parallel)
    return 1 if options.parallel == "tp" else world


def batch_number(options: Options) -> int:
    """Which of these batches is this process's; errors as of `replicas`."""
    return torch.distributed.get_rank() if replicas(options) > 1 else 0


def notes(options: Options, batch: int | None) -> list[str]:
    """What the user should know of the batches of a job."""
    if options.parallel == "none":
        return []
    if options.parallel == "tp":
        return [f"all {_world('tp')} processes work on one batch"]
    return [f"each of {replicas(options)} processes has a batch of its own: {batch} samples in each"]


def shard(model: Any, options: Options, device: torch.device, step: Callable[[], Any]) -> nn.Module:
    """Shards a model over all processes of the job; each has made it alike, and set it up for its mode.

    Args:
        model: A transformers model, on `construction_device`: its parts go to the device as they are sharded.
        options: The user's; `parallel` says how.
        device: Where this process works.
        step: Of the model by itself, which under `ddp` tells whether all parameters get a gradient.

    Returns:
        The model; under `ddp` the wrapper around it.

    Raises:
        GpuprofError: There is no group, or the model cannot be sharded so.
    """
    if options.parallel == "none":
        return model
    from torch.distributed.device_mesh import init_device_mesh

    world = _world(options.parallel)
    dimension = "tp" if options.parallel == "tp" else "dp"
    name = type(model).__name__
    if options.parallel == "fsdp" and options.mode == "generate" and getattr(model.config, "is_encoder_decoder", False):
        raise GpuprofError(
            f"--parallel fsdp: {name} cannot --mode generate, which calls its encoder by itself, and FSDP gathers the "
            "weights where the whole model is called; use --mode forward"
        )
    try:
        mesh = init_device_mesh(device.type, (world,), mesh_dim_names=(dimension,))
        if options.parallel == "ddp":
            unused = _has_unused(model, step, mesh.get_group(), device)
            if unused and options.checkpointing == "reentrant":
                raise GpuprofError(
                    f"--parallel ddp: {name} has parameters without a gradient, and DDP cannot look for them under "
                    "reentrant checkpoints; use --checkpointing non-reentrant"
                )
            return nn.parallel.DistributedDataParallel(
                model, process_group=mesh.get_group(), find_unused_parameters=unused
            )
        (_fully_shard if options.parallel == "fsdp" else _parallelize)(model, mesh)
        return model.to(device)
    except GpuprofError:
        raise
    except Exception as error:  # whatever torch makes of a model that is not as it expects
        if is_out_of_memory(error):
            raise GpuprofError(f"out of memory on {device} while {name} is sharded: take more processes") from error
        raise GpuprofError(f"--parallel {options.parallel}: {name} cannot be sharded: {first_line(error)}") from error


def _world(how: str) -> int:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() < 2:
        raise GpuprofError(
            f"--parallel {how} needs the processes of a job as one group: call torch.distributed.init_process_group "
            "first, in each of them"
        )
    return distributed.get_world_size()


def _has_unused(model: nn.Module, step: Callable[[], Any], group: Any, device: torch.device) -> bool:
    """Whether a step of any process leaves parameters without a gradient, for which DDP waits unless it is told."""
    unused = False
    try:
        step()
        unused = any(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    except Exception:  # it will fail in every pass too, and there the reason is told
        pass
    model.zero_grad(set_to_none=True)
    # experts may have got a token here and none there, and DDP has to be told the same everywhere
    flag = torch.tensor(int(unused), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group)
    return bool(flag)


def _fully_shard(model: nn.Module, mesh: Any) -> None:
    """FSDP2 on every block, so that one of them at a time is whole, and on what is around them."""
    from torch.distributed.fsdp import fully_shard

    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Layers that a model repeats: the members of its lists of modules, of those within one another the outermost."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def _parallelize(model: nn.Module, mesh: Any) -> None:
    """Tensor parallel by the plan that transformers has for the model."""
    from torch.distributed.tensor.parallel import parallelize_module

    plan = _plan(model)
    _check_divisible(model, plan, mesh.size())
    styles = _styles()
    tied = _tied(model)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    # each process has made the same weights, so none needs to be told them
    parallelize_module(model, mesh, {path: styles[style]() for path, style in plan.items()}, src_data_rank=None)
    for (first, name), *others in tied:
        for module, also in others:
            setattr(module, also, getattr(first, name))
    for name, parameter in model.named_parameters():  # some styles make all theirs trained
        parameter.requires_grad_(trained[name])


def _styles() -> dict[str, Callable[[], Any]]:
    """Torch's ways to shard a module, by the names that transformers gives them, older ones too."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel

    def gathered() -> Any:
        return ColwiseParallel(output_layouts=Replicate())

    def split() -> Any:
        return RowwiseParallel(input_layouts=Replicate())

    def of_heads() -> Any:
        # a norm of each of a rank's own heads; whichever dimension but the last they are said to be in
        return SequenceParallel(sequence_dim=1, use_local_output=True)

    return {
        "colwise": ColwiseParallel,
        "rowwise": RowwiseParallel,
        "colwise_gather_output": gathered,
        "colwise_rep": gathered,
        "rowwise_split_input": split,
        "rowwise_rep": split,
        "embedding_rowwise": split,
        "replicated_with_grad_allreduce": of_heads,
    }


def _plan(model: nn.Module) -> dict[str, str]:
    """How each module is sharded, by its path.

    Raises:
        GpuprofError: transformers has no plan for the model, or one that torch has no styles for.
    """
    name = type(model).__name__
    # older releases leave out of a model's plan what its class says of the head
    wanted = {**(getattr(type(model), "_tp_plan", None) or {}), **(getattr(model, "_tp_plan", None) or {})}
    if not wanted:
        raise GpuprofError(f"--parallel tp: transformers has no plan of tensor parallelism for {name}; use ddp or fsdp")
    modules = dict(model.named_modules())
    plan = {path: wanted[layer_of(path)] for path in modules if layer_of(path) in wanted}
    known = _styles()
    parameters = {layer_of(path) for path, _ in model.named_parameters()}
    for path, style in wanted.items():
        # of experts it names parameters, and torch has styles for modules; what the model has not does not matter
        if path in parameters or (style not in known and path in map(layer_of, modules)):
            raise GpuprofError(
                f"--parallel tp: {name} wants {path} sharded as {style}, which torch.distributed.tensor.parallel has "
                "no style for; use ddp or fsdp"
            )
    tables = {id(module.weight): path for path, module in modules.items() if isinstance(module, nn.Embedding)}
    for path in list(plan):  # older plans leave out the embedding that a sharded head shares its weight with
        table = tables.get(id(getattr(modules[path], "weight", None)))
        if table is not None:
            plan.setdefault(table, "embedding_rowwise")
    return plan


def _check_divisible(model: Any, plan: dict[str, str], world: int) -> None:
    """Refuses a number of processes that heads or features of a layer cannot be shared out to evenly.

    Raises:
        GpuprofError: They cannot.
    """
    name = type(model).__name__
    config = ask(model.config, "text_config") or model.config
    for what, field in (("attention heads", "num_attention_heads"), ("key/value heads", "num_key_value_heads")):
        heads = ask(config, field)
        if isinstance(heads, int) and heads % world:
            raise GpuprofError(
                f"--parallel tp: {name} has {heads} {what}, which {world} processes cannot share: their number has to "
                f"divide {heads}"
            )
    for path, style in plan.items():
        layer: Any = model.get_submodule(path)
        features = {"colwise": "out_features", "rowwise": "in_features"}.get(style)
        size = getattr(layer, features or "", world)
        if size % world:
            raise GpuprofError(
                f"--parallel tp: {path} of {name} has {size} {features}, which {world} processes cannot share evenly"
            )


def _tied(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Modules and names under which a model has the same parameter."""
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places[id(parameter)].append((module, name))
    return [found for found in places.values() if len(found) > 1]
