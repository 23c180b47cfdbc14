"""The step: what one run of a workload does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from gpuprof.errors import GpuprofError

OWN_LOSS = "model's own .loss"
MEAN_LOSS = "mean of the first output"
GIVEN_LOSS = "given"
# What models call the cache of a generation, as argument and in the output. The newest name is asked first: a library
# that still answers to an older one warns, and will not always.
CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")


def train_step(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    description: dict[str, Any],
    *,
    loss: Callable[[Any], torch.Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Callable[[], torch.Tensor]:
    """Makes the step of a training: forward, loss, backward and, where there is one, the optimizer.

    Args:
        model: The module to run.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        description: The workload's; `loss` in it is set to the kind of loss the step found.
        loss: Turns the output into a scalar; else `output.loss`, else the mean of the first output.
        optimizer: Steps after the backward.
    """
    with_gradient = [given for given in tensors([args, kwargs]) if given.is_leaf and given.requires_grad]

    def step() -> torch.Tensor:
        # At the start, so that after a step the gradients are still there to be looked at, and so that every
        # step allocates them anew, as the first does.
        model.zero_grad(set_to_none=True)
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            output = model(*args, **kwargs)
            output = output if loss is not None else _done(output, list)
            found = (call_loss(loss, output), GIVEN_LOSS) if loss is not None else find_loss(output)
            value, description["loss"] = found
            _check_loss(value, description["loss"])
            for given in with_gradient:  # not before the call, until which somebody may want to know what there was
                given.grad = None
            value.backward()
        if optimizer is not None:
            optimizer.step()
        return value.detach()

    return step


def call_loss(loss: Callable[[Any], torch.Tensor], output: Any) -> torch.Tensor:
    """A given loss of an output. By this function an error in it is known for the loss's: `gpuprof.passes.failure`."""
    return loss(output)


def _check_loss(value: Any, kind: str) -> None:
    """Refuse a loss that has no backward.

    Raises:
        GpuprofError: It is no tensor, no scalar, or needs no gradient.
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.requires_grad:
        return
    what = f"a {type(value).__name__}"
    if isinstance(value, torch.Tensor):
        what = f"a tensor of shape {list(value.shape)}" if value.numel() != 1 else "a tensor that needs no gradient"
    raise GpuprofError(
        f"the loss ({kind}) is no scalar tensor that needs a gradient, but {what}; give a loss function that returns "
        "one, or use --mode forward"
    )


def forward_step(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], Any]:
    """Makes the step of an inference: one forward without gradients, which returns the model's output."""

    def step() -> Any:
        with torch.no_grad():
            return _done(model(*args, **kwargs), _last)

    return step


def _done(output: Any, run: Callable[[Iterator[Any]], Any]) -> Any:
    """A model's output after its work: a forward that is a generator works as it is run, not as it is called.

    Raises:
        GpuprofError: The forward is asynchronous, and waits for a loop to run it.
    """
    if inspect.isawaitable(output) or inspect.isasyncgen(output):
        if inspect.iscoroutine(output):
            output.close()
        raise GpuprofError(
            "the model's forward is asynchronous, so calling it does nothing: give a step that runs it, "
            "step=lambda: asyncio.run(...)"
        )
    return run(output) if isinstance(output, Iterator) else output


def _last(yielded: Iterator[Any]) -> Any:
    """The last of what is yielded; None of nothing. What came before is dropped, as by whoever streams it."""
    last = None
    for last in yielded:  # noqa: B007
        pass
    return last


def generate_step(
    model: torch.nn.Module,
    prompt: Mapping[str, torch.Tensor],
    new_tokens: int,
    *,
    call_options: Mapping[str, Any],
    token: int | None = None,
    static: bool = False,
) -> Callable[[], torch.Tensor]:
    """Makes the step of a greedy generation by a decoder: one prefill, then `new_tokens - 1` decode steps.

    Our own loop and not `model.generate`: no sampling, no stopping at an end token and no bookkeeping of the library's,
    so every step does the same operations. The tokens are those of `generate(do_sample=False)`.

    Args:
        model: A decoder that takes `use_cache` and a cache, under one of `CACHE_NAMES`.
        prompt: The prefill's inputs, `input_ids` of shape (batch, prompt length) among them.
        new_tokens: Tokens to generate.
        call_options: Further arguments of every call, such as `logits_to_keep`.
        token: Feed this token instead of the one the logits give, which without weights have no values.
        static: Give the model a static cache, made anew in each step as `generate` does, instead of letting it make
            one that grows.

    Returns:
        A step that returns the new tokens, shape (batch, new_tokens).

    Raises:
        GpuprofError: The model takes no cache, or no static one; the step raises it where the model returns none.
    """
    cache = cache_argument(model)
    if static:
        require_static_cache(model)

    def step() -> torch.Tensor:
        with torch.no_grad():
            positions = prompt["input_ids"].shape[1] + new_tokens - 1
            first = {cache: static_cache(model, positions)} if static else {}
            output = model(**prompt, **first, use_cache=True, **call_options)
            tokens = [_next(output.logits, token)]
            while len(tokens) < new_tokens:
                output = model(
                    input_ids=tokens[-1],
                    **{cache: returned_cache(model, output)},
                    use_cache=True,
                    **call_options,
                )
                tokens.append(_next(output.logits, token))
            return torch.cat(tokens, dim=1)

    return step


def generate_seq2seq_step(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    new_tokens: int,
    *,
    token: int | None = None,
    static: bool = False,
) -> Callable[[], torch.Tensor]:
    """Makes the step of a greedy generation by an encoder and a decoder: the encoder runs once. Nothing is sampled.

    Args:
        model: A model that has an encoder (`get_encoder`) and takes `decoder_input_ids`, `encoder_outputs`, `use_cache`
            and a cache, under one of `CACHE_NAMES`.
        inputs: The encoder's inputs, and `decoder_input_ids` of shape (batch, decoder prompt length).
        new_tokens: Tokens to generate.
        token: Feed this token instead of the one the logits give, which without weights have no values.
        static: As in `generate_step`.

    Returns:
        A step that returns the new tokens, shape (batch, new_tokens).

    Raises:
        GpuprofError: The model takes no cache, or no static one; the step raises it where the model returns none.
    """
    cache = cache_argument(model)
    if static:
        require_static_cache(model)
    read = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    said = {name: value for name, value in inputs.items() if name.startswith("decoder_")}

    def step() -> torch.Tensor:
        with torch.no_grad():
            encoded = model.get_encoder()(**read)  # as the library does it: some have outputs of a class of their own
            positions = said["decoder_input_ids"].shape[1] + new_tokens - 1
            first = {cache: static_cache(model, positions, encoded[0].shape[1])} if static else {}
            output = model(encoder_outputs=encoded, **said, **first, use_cache=True)
            tokens = [_next(output.logits, token)]
            while len(tokens) < new_tokens:
                output = model(
                    encoder_outputs=encoded,
                    decoder_input_ids=tokens[-1],
                    **{cache: returned_cache(model, output)},
                    use_cache=True,
                )
                tokens.append(_next(output.logits, token))
            return torch.cat(tokens, dim=1)

    return step


def cache_argument(model: torch.nn.Module) -> str:
    """The name under which a model's forward takes the cache of a generation.

    Raises:
        GpuprofError: It takes none under a known name.
    """
    taken = inspect.signature(model.forward).parameters
    return _cache_name(model, "takes", taken)


def require_static_cache(model: Any) -> None:
    """Refuse a model for which transformers has no static cache.

    Raises:
        GpuprofError: It has none.
    """
    if not getattr(model, "_can_compile_fullgraph", False):
        import transformers

        raise GpuprofError(
            f"{type(model).__name__} cannot --cache static: with transformers {transformers.__version__} it only has a "
            "cache that it makes itself; use --cache dynamic"
        )


def static_cache(model: Any, positions: int, encoded: int | None = None) -> Any:
    """A cache that has room for all positions of a generation from the start.

    Args:
        model: Of transformers.
        positions: Of the decoder: its prompt and the new tokens but for the last, which is fed to nothing.
        encoded: Of the encoder, where there is one.
    """
    from transformers import EncoderDecoderCache, StaticCache

    config = model.config.get_text_config(decoder=True)
    cache = StaticCache(config=config, max_cache_len=positions)
    return cache if encoded is None else EncoderDecoderCache(cache, StaticCache(config=config, max_cache_len=encoded))


def returned_cache(model: torch.nn.Module, output: Mapping[str, Any]) -> Any:
    """The cache that a model returned, which may have another name: its code can be older than the library's outputs.

    Raises:
        GpuprofError: It returned none under a known name.
    """
    return output[_cache_name(model, "returns", output)]


def _cache_name(model: torch.nn.Module, does: str, names: Container[str]) -> str:
    for name in CACHE_NAMES:
        if name in names:
            return name
    import transformers

    raise GpuprofError(
        f"{type(model).__name__} cannot --mode generate: with transformers {transformers.__version__} it {does} no "
        f"cache under a name that gpuprof knows ({', '.join(CACHE_NAMES)}); use --mode forward"
    )


def find_loss(output: Any) -> tuple[torch.Tensor, str]:
    """The loss in a model's output: its own `.loss`, else the mean of its first floating tensor.

    Args:
        output: What the model returned: a tensor, or any nesting of mappings, sequences and dataclasses.

    Returns:
        The scalar, and `"model's own .loss"` or `"mean of the first output"`.

    Raises:
        GpuprofError: No floating tensor in the output needs a gradient.
    """
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, torch.Tensor):
        return own, OWN_LOSS
    for tensor in tensors(output):
        # A mask or a constant that happens to come first has no backward to measure.
        if tensor.is_floating_point() and tensor.requires_grad:
            # of a strided nested tensor torch takes no mean
            return (tensor.values() if tensor.is_nested else tensor).mean(), MEAN_LOSS
    raise GpuprofError(
        f"{type(output).__name__}, the model's output, holds no floating tensor that needs a gradient: "
        "give a loss function, or use --mode forward"
    )


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a nesting of mappings, sequences and dataclasses, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def _next(logits: torch.Tensor, token: int | None) -> torch.Tensor:
    """The greedy next token of each sample, shape (batch, 1)."""
    greedy = logits[:, -1:].argmax(-1)
    # Without weights the argmax is still an operation that a real run does, but its value is nowhere.
    return greedy if token is None else torch.full(greedy.shape, token, dtype=torch.long, device="cpu")
