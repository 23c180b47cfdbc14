"""Inputs for a Hugging Face model, read off its configuration and the signature of its forward."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.workload.anyres import choose_grid, grids, image_positions
from gpuprof.workload.options import SIZES, Options, flag
from gpuprof.workload.steps import cache_argument

# What a model with a tokenizer reads: experts and caches see the statistics of a language and not of noise.
TEXT = (
    "The lighthouse keeper counted the ships as they came home, and wrote each name in a book nobody read. ",
    "In winter the harbour froze, so he repaired clocks instead; most of them had stopped for want of oil. ",
    "One evening a captain asked him how far the light could be seen, and how bright it really was. ",
    "He answered that the maker promised twenty miles, but that he himself had measured only seventeen. ",
    "A promise is what the lamp could do on a perfect night, he said, a measurement is what it did in ours. ",
    "They walked up the stairs together, looked out over the dark water, and began to count the seconds. ",
)
LANGUAGE_MODEL_HEADS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration")
# Text after the image where no length is given: a question, as a user would ask it.
QUESTION_LENGTH = 64


@dataclass
class Inputs:
    """The inputs of one model call.

    Attributes:
        kwargs: The arguments by name.
        sizes: The size options as resolved; None for those that mean nothing here.
        tokens_per_step: Positions of text that one step processes; None without text.
    """

    kwargs: dict[str, Any]
    sizes: dict[str, int | None]
    tokens_per_step: int | None = None


def make_inputs(
    model: Any,
    options: Options,
    *,
    defaults: dict[str, int] | None = None,
    tokenizer: Any = None,
    device: torch.device,
    weightless: bool = False,
) -> Inputs:
    """Makes seeded inputs that fit a transformers model.

    Args:
        model: The model; only its configuration, class and signature are looked at.
        options: The user's; a size left at None comes from `defaults`, else from the kind of model.
        defaults: Sizes a preset proposes.
        tokenizer: Where there is one, the text inputs are real text.
        device: Where the inputs go.
        weightless: Floating inputs become `meta` tensors, and integer inputs stay on the CPU.

    Returns:
        The inputs of the step, labels included in train mode if the model takes any. In generate mode they
        are those of the prefill.

    Raises:
        GpuprofError: An option does not fit the model, or the kind of model is not known.
    """
    maker = _Maker(model, options, defaults or {}, tokenizer, device, weightless)
    if maker.generating:
        if not model.can_generate():
            raise GpuprofError(f"{maker.architecture} cannot --mode generate: it is no decoder; use --mode forward")
        cache_argument(model)  # refuses a model that takes none
    inputs = _family(maker)(maker)
    # A cache would add copies that no training and no single forward needs; generation turns it on itself.
    if options.mode != "generate" and "use_cache" in maker.takes:
        inputs.kwargs["use_cache"] = False
    return inputs


@dataclass
class _Maker:
    """Makes tensors for one model, and knows what the user asked for."""

    model: Any
    options: Options
    defaults: dict[str, int]
    tokenizer: Any
    device: torch.device
    weightless: bool
    random: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        # On the CPU, so that every device gets the same inputs.
        self.random = torch.Generator().manual_seed(self.options.seed)
        self.config = self.model.config
        self.text_config = getattr(self.config, "text_config", None) or self.config
        self.architecture = type(self.model).__name__
        self.takes = frozenset(inspect.signature(self.model.forward).parameters)
        self.training = self.options.mode == "train"
        self.generating = self.options.mode == "generate"

    def size(self, name: str, fallback: int) -> int:
        """A size option: the user's, else the preset's, else the fallback."""
        return getattr(self.options, name) or self.defaults.get(name, fallback)

    def accept(self, kind: str, *names: str) -> None:
        """Refuses the size options that mean nothing for this kind of model."""
        for name in SIZES:
            if getattr(self.options, name) is not None and name not in names:
                raise GpuprofError(
                    f"{flag(name)} means nothing for {self.architecture}, {kind}, in --mode {self.options.mode}"
                )

    def floats(self, *shape: int) -> torch.Tensor:
        """Normally distributed values in the model's dtype."""
        if self.weightless:
            return torch.empty(shape, dtype=self.model.dtype, device="meta")
        return torch.randn(shape, generator=self.random).to(self.device, self.model.dtype)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Integers in [0, high)."""
        return self.place(torch.randint(high, shape, generator=self.random))

    def place(self, integers: torch.Tensor) -> torch.Tensor:
        """Integer inputs keep their values even without weights: models look at them to decide what to do."""
        return integers if self.weightless else integers.to(self.device)

    def text(self, batch: int, length: int) -> torch.Tensor:
        """Token ids, shape (batch, length): real text if there is a tokenizer, else random ordinary ids."""
        if self.tokenizer is None:
            vocabulary = getattr(self.text_config, "vocab_size", None)
            if not isinstance(vocabulary, int):
                raise _unknown_inputs(self)
            ordinary = torch.ones(vocabulary, dtype=torch.bool)
            ordinary[[token for token in _special_tokens(self.config) if token < len(ordinary)]] = False
            allowed = ordinary.nonzero().flatten()
            ids = allowed[torch.randint(len(allowed), (batch, length), generator=self.random)]
        else:
            ids = torch.tensor([_tokenize(self.tokenizer, start, length) for start in range(batch)])
            if int(ids.max()) >= self.text_config.vocab_size:
                raise GpuprofError(
                    "the tokenizer is not the model's: it gives tokens beyond the vocabulary of "
                    f"{self.text_config.vocab_size}"
                )
        return self.place(ids)

    def decoder_start(self, batch: int) -> torch.Tensor:
        """The token a decoder starts with, shape (batch, 1)."""
        names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
        known = [token for name in names if (token := getattr(self.config, name, None)) is not None]
        return self.place(torch.full((batch, 1), known[0] if known else 0, dtype=torch.long))

    def lengths(self, fallback: int = 512, prompt: int = 512, *, shortest: int = 1) -> dict[str, int | None]:
        """The lengths of a text: `seq_len`, or in generate mode `prompt_len` and `new_tokens`."""
        limit, learned = _position_limit(self.model)
        sizes: dict[str, int | None] = dict.fromkeys(SIZES)
        if self.generating:
            new_tokens = self.size("new_tokens", 16)
            longest = max(shortest, limit - new_tokens + 1)
            prompt_len = self.size("prompt_len", min(prompt, longest))
            sizes |= {"prompt_len": prompt_len, "new_tokens": new_tokens}
            total, asked = prompt_len + new_tokens - 1, f"--prompt-len {prompt_len} --new-tokens {new_tokens}"
        else:
            total = self.size("seq_len", min(fallback, limit))
            sizes["seq_len"], asked = total, f"--seq-len {total}"
        if learned and total > limit:
            raise GpuprofError(f"{asked} goes beyond the {limit} positions that {self.architecture} knows")
        return sizes


def _family(maker: _Maker) -> Any:
    """The function that makes the inputs of this kind of model."""
    takes, config, main = maker.takes, maker.config, maker.model.main_input_name
    if config.model_type == "llava_onevision":
        return _llava_onevision
    if {"pixel_values", "input_ids"} <= takes:
        if getattr(config, "image_seq_length", None) and _image_token(config) is not None:
            return _image_and_text
        if "return_loss" in takes:
            return _contrastive
    elif "decoder_input_ids" in takes and main in ("input_ids", "input_features"):
        return _seq2seq
    elif main == "input_ids":
        return _text
    elif main == "pixel_values" and not hasattr(config, "num_frames"):
        return _image
    elif main == "input_values":
        return _waveform
    raise _unknown_inputs(maker)


def _unknown_inputs(maker: _Maker) -> GpuprofError:
    return GpuprofError(
        f"gpuprof does not know the inputs of {maker.architecture} (model type {maker.config.model_type!r}): write "
        "a function that returns the model and its inputs, and give it as file.py:function"
    )


def _text(maker: _Maker) -> Inputs:
    """Decoders and encoders of text, with whatever head."""
    lengths = ("prompt_len", "new_tokens") if maker.generating else ("seq_len",)
    maker.accept("a text model", "batch_size", *lengths)
    batch = maker.size("batch_size", 1)
    sizes = maker.lengths()
    length = sizes["prompt_len"] or sizes["seq_len"] or 0
    ids = maker.text(batch, length)
    kwargs = {"input_ids": ids}
    if maker.training:
        kwargs |= _text_labels(maker, ids)
    total = length + (sizes["new_tokens"] or 1) - 1
    return Inputs(kwargs, sizes | {"batch_size": batch}, batch * total)


def _text_labels(maker: _Maker, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Labels for the heads whose labels are known; without any the loss is the mean of the first output."""
    batch, length = ids.shape
    name = maker.architecture
    if name.endswith("ForQuestionAnswering") and "start_positions" in maker.takes:
        return {key: maker.integers(length, batch) for key in ("start_positions", "end_positions")}
    if "labels" not in maker.takes:
        return {}
    if name.endswith(LANGUAGE_MODEL_HEADS):
        return {"labels": ids}
    # One label alone is a regression in transformers, with floating labels.
    if name.endswith("ForSequenceClassification") and maker.config.num_labels > 1:
        return {"labels": maker.integers(maker.config.num_labels, batch)}
    if name.endswith("ForTokenClassification"):
        return {"labels": maker.integers(maker.config.num_labels, batch, length)}
    return {}


def _seq2seq(maker: _Maker) -> Inputs:
    """An encoder of text or of a spectrogram, and a decoder of text.

    `seq_len` is the length of both texts, or of the decoder's alone where the encoder hears sound, whose
    length the model fixes. In generate mode the prompt is the encoder's text, and the decoder starts with one
    token; with sound it is the decoder's (whisper's: start, language, task, no timestamps).
    """
    lengths = ("prompt_len", "new_tokens") if maker.generating else ("seq_len",)
    maker.accept("a model with encoder and decoder", "batch_size", *lengths)
    batch = maker.size("batch_size", 1)
    hears = maker.model.main_input_name == "input_features"
    sizes = maker.lengths(prompt=4 if hears else 512)
    length = sizes["prompt_len"] or sizes["seq_len"] or 0

    kwargs: dict[str, Any] = {}
    if hears:
        if not {"num_mel_bins", "max_source_positions"} <= set(dir(maker.config)):
            raise GpuprofError(f"gpuprof does not know the sound that {maker.architecture} hears; use file.py:function")
        # Two frames of spectrogram become one position in the convolutions: 3000 frames are whisper's 30 s.
        kwargs["input_features"] = maker.floats(batch, maker.config.num_mel_bins, 2 * maker.config.max_source_positions)
    else:
        kwargs["input_ids"] = maker.text(batch, length)

    encoded = 0 if hears else length
    if maker.generating:
        start = maker.decoder_start(batch)
        rest = [maker.text(batch, length - 1)] if hears and length > 1 else []
        kwargs["decoder_input_ids"] = torch.cat([start, *rest], dim=1)
        decoded = kwargs["decoder_input_ids"].shape[1] + (sizes["new_tokens"] or 1) - 1
    else:
        decoded = length
        labels = maker.training and "labels" in maker.takes
        kwargs["labels" if labels else "decoder_input_ids"] = maker.text(batch, length)
    return Inputs(kwargs, sizes | {"batch_size": batch}, batch * (encoded + decoded))


def _image(maker: _Maker) -> Inputs:
    """Models that see images only."""
    maker.accept("an image model", "batch_size")
    batch = maker.size("batch_size", 8)
    kwargs = {"pixel_values": maker.floats(batch, *_image_shape(maker.config))}
    if maker.training and "labels" in maker.takes and maker.architecture.endswith("ForImageClassification"):
        kwargs["labels"] = maker.integers(maker.config.num_labels, batch)
    return Inputs(kwargs, dict.fromkeys(SIZES) | {"batch_size": batch})


def _waveform(maker: _Maker) -> Inputs:
    """Models that hear raw sound: `seq_len` counts samples, 5 s at 16 kHz unless given."""
    maker.accept("a sound model", "batch_size", "seq_len")
    batch, samples = maker.size("batch_size", 1), maker.size("seq_len", 80_000)
    kwargs = {"input_values": maker.floats(batch, samples)}
    return Inputs(kwargs, dict.fromkeys(SIZES) | {"batch_size": batch, "seq_len": samples})


def _contrastive(maker: _Maker) -> Inputs:
    """A tower for images and one for text, side by side, as in CLIP."""
    maker.accept("a model of images beside text", "batch_size", "seq_len")
    batch = maker.size("batch_size", 8)
    length = maker.size("seq_len", min(64, getattr(maker.text_config, "max_position_embeddings", 64)))
    kwargs: dict[str, Any] = {
        "input_ids": maker.text(batch, length),
        "pixel_values": maker.floats(batch, *_image_shape(maker.config.vision_config)),
    }
    if maker.training:
        kwargs["return_loss"] = True
    return Inputs(kwargs, dict.fromkeys(SIZES) | {"batch_size": batch, "seq_len": length}, batch * length)


def _image_and_text(maker: _Maker) -> Inputs:
    """One image per sample that takes a fixed number of positions among the text, as in LLaVA."""
    return _with_image(
        maker,
        positions=maker.config.image_seq_length,
        image={"pixel_values": lambda batch: maker.floats(batch, *_image_shape(maker.config.vision_config))},
        accepted=(),
        crops=None,
    )


def _llava_onevision(maker: _Maker) -> Inputs:
    """One image per sample, cut into crops: the whole image scaled down, and the cells of a grid."""
    config = maker.config
    crops = maker.size("image_crops", min(grids(config), key=lambda crops: (abs(crops - 5), crops)))
    rows, columns = choose_grid(config, crops)
    side = config.vision_config.image_size
    size = torch.tensor([[rows * side, columns * side]])
    return _with_image(
        maker,
        positions=image_positions(config, rows, columns),
        image={
            "pixel_values": lambda batch: maker.floats(batch, crops, *_image_shape(config.vision_config)),
            "image_sizes": lambda batch: maker.place(size.repeat(batch, 1)),
        },
        accepted=("image_crops",),
        crops=crops,
    )


def _with_image(
    maker: _Maker, *, positions: int, image: dict[str, Any], accepted: tuple[str, ...], crops: int | None
) -> Inputs:
    """A text that begins with an image of `positions` positions."""
    lengths = ("prompt_len", "new_tokens") if maker.generating else ("prompt_len", "seq_len")
    maker.accept("a model of images and text", "batch_size", *lengths, *accepted)
    asked = {maker.options.prompt_len, maker.options.seq_len} - {None}
    if len(asked) > 1:
        raise GpuprofError("--prompt-len and --seq-len both give the length of the text; give one of them")
    batch = maker.size("batch_size", 1)
    # The two are the same here: the positions of the image and of the text around it.
    length = asked.pop() if asked else maker.size("prompt_len", positions + QUESTION_LENGTH)
    assert length is not None
    if length < positions:
        of_crops = f" with {crops} crops" if crops else ""
        name = flag("prompt_len" if maker.options.prompt_len else "seq_len")
        raise GpuprofError(f"{name} {length} is too short: the image alone takes {positions} positions{of_crops}")
    new_tokens = maker.size("new_tokens", 16) if maker.generating else None

    placeholder = maker.place(torch.full((batch, positions), _image_token(maker.config) or 0))
    words = maker.text(batch, length - positions) if length > positions else placeholder[:, :0]
    kwargs = {"input_ids": torch.cat([placeholder, words], dim=1)}
    kwargs |= {name: make(batch) for name, make in image.items()}
    if maker.training and "labels" in maker.takes:
        # A model learns to say the words, not the image.
        kwargs["labels"] = torch.cat([torch.full_like(placeholder, -100), words], dim=1)
    sizes: dict[str, int | None] = dict.fromkeys(SIZES)
    sizes |= {"batch_size": batch, "image_crops": crops, "new_tokens": new_tokens}
    sizes["prompt_len" if maker.generating else "seq_len"] = length
    return Inputs(kwargs, sizes, batch * (length + (new_tokens or 1) - 1))


def _image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images a vision configuration is made for."""
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return getattr(config, "num_channels", 3), height, width


def _image_token(config: Any) -> int | None:
    """The token that stands for a position of an image."""
    return getattr(config, "image_token_id", getattr(config, "image_token_index", None))


def _special_tokens(config: Any) -> set[int]:
    """Every token that a configuration gives a meaning of its own, such as the end of the text."""
    special: set[int] = set()
    for part in (config, getattr(config, "text_config", None)):
        for name, value in (part.to_dict() if part is not None else {}).items():
            if name.endswith(("_token_id", "_token_ids", "_token_index")):
                values = value if isinstance(value, list) else [value]
                special.update(token for token in values if isinstance(token, int) and token >= 0)
    return special


def _position_limit(model: Any) -> tuple[int, bool]:
    """The most positions of text a model is made for, and whether it can do no more: they are learned."""
    config = getattr(model.config, "text_config", None) or model.config
    names = ("max_target_positions", "n_positions", "max_position_embeddings")
    limits = [limit for name in names if isinstance(limit := getattr(config, name, None), int) and limit > 0]
    if not limits:
        return 10**9, False
    # Some tables of positions have two rows more than positions (OPT, BART).
    learned = any(
        isinstance(module, torch.nn.Embedding) and 0 <= module.num_embeddings - limits[0] <= 2
        for name, module in model.named_modules()
        if "position" in name or name.endswith("wpe")
    )
    return limits[0], learned


def _tokenize(tokenizer: Any, start: int, length: int) -> list[int]:
    """The first `length` tokens of the text, each sample starting with another sentence."""
    first = start % len(TEXT)
    text = "".join(TEXT[first:] + TEXT[:first])
    copies = math.ceil(length / len(text.split()))
    ids = tokenizer(text * copies, truncation=True, max_length=length)["input_ids"]
    # A word is a token at least, so this is long enough; if a tokenizer joins words, begin again.
    return (ids * math.ceil(length / len(ids)))[:length]
