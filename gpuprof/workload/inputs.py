"""Inputs for a Hugging Face model, read off its configuration and the signature of its forward."""

from __future__ import annotations

from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.workload import media
from gpuprof.workload.anyres import choose_grid, grids, image_positions
from gpuprof.workload.configuration import ask, parts
from gpuprof.workload.maker import QUESTION_LENGTH, SOUNDS, Inputs, Maker
from gpuprof.workload.options import SIZES, Options, flag
from gpuprof.workload.steps import cache_argument

LANGUAGE_MODEL_HEADS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration")


def make_inputs(
    model: Any,
    options: Options,
    *,
    defaults: dict[str, int] | None = None,
    tokenizer: Any = None,
    device: torch.device,
    weightless: bool = False,
    number: int = 0,
) -> Inputs:
    """Makes seeded inputs that fit a transformers model.

    Args:
        model: The model; its configuration, class and signature are looked at, and where an image or a sound stands in
            a text, its own function is asked for how many positions.
        options: The user's; a size left at None comes from `defaults`, else from the kind of model.
        defaults: Sizes a preset proposes.
        tokenizer: Where there is one, the text inputs are real text.
        device: Where the inputs go.
        weightless: Floating inputs become `meta` tensors, and integer inputs stay on the CPU.
        number: Which of the batches of a job; each is another one.

    Returns:
        The inputs of the step, labels included in train mode if the model takes any. In generate mode they
        are those of the prefill.

    Raises:
        GpuprofError: An option does not fit the model, or the kind of model is not known.
    """
    maker = Maker(model, options, defaults or {}, tokenizer, device, weightless, number)
    if maker.generating:
        if not model.can_generate():
            raise GpuprofError(f"{maker.architecture} cannot --mode generate: it is no decoder; use --mode forward")
        cache_argument(model)  # refuses a model that takes none
    inputs = _family(maker)(maker)
    for name, make in _BESIDE_TEXT.items():
        if name in maker.takes and "input_ids" in inputs.kwargs:
            inputs.kwargs |= make(maker, *inputs.kwargs["input_ids"].shape[:2])
    # A cache would add copies that no training and no single forward needs; generation turns it on itself.
    if options.mode != "generate" and "use_cache" in maker.takes:
        inputs.kwargs["use_cache"] = False
    return inputs


def _family(maker: Maker) -> Any:
    """The function that makes the inputs of this kind of model."""
    takes, main = maker.takes, maker.main
    if maker.config.model_type == "llava_onevision":
        return _llava_onevision
    if main == "past_values":
        return _series
    if main == "latents":
        return _latents
    if {"states", "actions", "timesteps"} <= takes:
        return _trajectory
    if "input_ids" in takes and maker.media:
        return _contrastive if "return_loss" in takes else _text_and_media
    if "decoder_input_ids" in takes and (main == "input_ids" or maker.media):
        return _seq2seq
    if main == "input_ids":
        return _text
    if maker.media:
        return _media
    raise maker.unknown()


def _text(maker: Maker) -> Inputs:
    """Decoders and encoders of text, with whatever head."""
    lengths = ("prompt_len", "new_tokens") if maker.generating else ("seq_len",)
    maker.accept("a text model", "batch_size", *lengths)
    batch = maker.size("batch_size", 1)
    # A model of bytes with a table of queries says something at each of its positions, and learns it at each.
    sizes = maker.lengths(maker.position_limit()[0] if maker.model.main_input_name == "inputs" else 512)
    length = sizes["prompt_len"] or sizes["seq_len"] or 0
    ids = maker.text(batch, length)
    if maker.config.model_type == "kyutai_speech_to_text":  # a text, and the codes of what is heard meanwhile
        codes = maker.integers(maker.config.codebook_vocab_size, batch, length, maker.config.num_codebooks)
        ids = torch.cat([ids[..., None], codes], dim=-1)
    kwargs = {"input_ids": ids}
    if maker.training:
        kwargs |= _text_labels(maker, ids)
    total = length + (sizes["new_tokens"] or 1) - 1
    return Inputs(kwargs, sizes | {"batch_size": batch}, batch * total)


def _text_labels(maker: Maker, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Labels for the heads whose labels are known; without any the loss is the mean of the first output."""
    batch, length = ids.shape[:2]
    name = maker.architecture
    if name.endswith("ForQuestionAnswering") and "start_positions" in maker.takes:
        return {key: maker.integers(length, batch) for key in ("start_positions", "end_positions")}
    if "labels" not in maker.takes or maker.speaks:  # labels of speech are of several codebooks
        return {}
    if name.endswith(LANGUAGE_MODEL_HEADS):
        return {"labels": ids}
    # One label alone is a regression in transformers, with floating labels.
    if name.endswith("ForSequenceClassification") and maker.config.num_labels > 1:
        return {"labels": maker.integers(maker.config.num_labels, batch)}
    if name.endswith("ForTokenClassification"):
        return {"labels": maker.integers(maker.config.num_labels, batch, length)}
    return {}


def _seq2seq(maker: Maker) -> Inputs:
    """An encoder of text, of a sound or of an image, and a decoder of text.

    `seq_len` is the length of both texts, or of the decoder's alone where the encoder sees or hears. In generate mode
    the prompt is the encoder's text, and the decoder starts with one token; with sound it is the decoder's (whisper's:
    start, language, task, no timestamps).
    """
    lengths = ("prompt_len", "new_tokens") if maker.generating else ("seq_len",)
    maker.accept("a model with encoder and decoder", "batch_size", *lengths)
    batch = maker.size("batch_size", 1)
    reads = maker.main == "input_ids"
    sizes = maker.lengths(prompt=512 if reads else 4)
    length = sizes["prompt_len"] or sizes["seq_len"] or 0
    kwargs: dict[str, Any] = (
        {"input_ids": maker.text(batch, length)} if reads else media.medium(maker, maker.media[0], batch)
    )
    kwargs |= _decoded(maker, batch, length, prompt=0 if reads else length)
    written = length
    if maker.generating:
        written = kwargs["decoder_input_ids"].shape[1] + (sizes["new_tokens"] or 1) - 1
    return Inputs(kwargs, sizes | {"batch_size": batch}, batch * ((length if reads else 0) + written))


def _decoded(maker: Maker, batch: int, length: int, prompt: int = 0) -> dict[str, Any]:
    """What a decoder is given: the text that it learns to say, the one before the next word, or its first tokens."""
    if channels := ask(ask(maker.config, "decoder_config"), "num_channels"):  # of codes, one above the other (Dia)
        return {"decoder_input_ids": maker.integers(maker.config.decoder_config.vocab_size, batch, length, channels)}
    if maker.generating:
        start = maker.decoder_start(batch)
        rest = [maker.text(batch, prompt - 1)] if prompt > 1 else []
        return {"decoder_input_ids": torch.cat([start, *rest], dim=1)}
    text = maker.text(batch, length)
    # Transducers have a loss over all alignments, which takes more than the words.
    if not (maker.training and "labels" in maker.takes) or maker.architecture.endswith(("ForRNNT", "ForTDT")):
        return {"decoder_input_ids": text}
    # The model moves the labels by one itself if it knows what its decoder starts with.
    starts = ask(maker.config, "decoder_start_token_id") is not None
    return {"labels": text} if starts else {"labels": text, "decoder_input_ids": text}


def _media(maker: Maker) -> Inputs:
    """Models that see or hear only: one image, video or sound per sample, `seq_len` counting the samples of a sound."""
    name = maker.media[0]
    sound = name == "input_values"
    kind = {"image": "an image model", "video": "a video model", "audio": "a sound model"}[media.kind(name)]
    maker.accept(kind, "batch_size", *(("seq_len",) if sound else ()))
    batch = maker.size("batch_size", 8 if media.kind(name) == "image" else 1)
    kwargs = media.medium(maker, name, batch)
    for other in media.required(maker.model.forward) & {*SOUNDS} - {*kwargs}:
        kwargs |= media.medium(maker, other, batch)
    if maker.training and "labels" in maker.takes and maker.architecture.endswith("ForImageClassification"):
        kwargs["labels"] = maker.integers(maker.config.num_labels, batch)
    sizes = dict.fromkeys(SIZES) | {"batch_size": batch, "seq_len": kwargs[name].shape[-1] if sound else None}
    return Inputs(kwargs, sizes)


def _contrastive(maker: Maker) -> Inputs:
    """A tower for images, videos or sounds and one for text, side by side, as in CLIP."""
    maker.accept("a model of images beside text", "batch_size", "seq_len")
    batch = maker.size("batch_size", 8)
    length = maker.size("seq_len", min(64, maker.position_limit()[0]))
    kwargs: dict[str, Any] = {"input_ids": maker.text(batch, length)}
    for name in maker.media:
        kwargs |= media.medium(maker, name, batch)
    if maker.training:
        kwargs["return_loss"] = True
    return Inputs(kwargs, dict.fromkeys(SIZES) | {"batch_size": batch, "seq_len": length}, batch * length)


def _text_and_media(maker: Maker) -> Inputs:
    """A text with an image, a sound or both per sample, which may stand in the text, as in LLaVA, or beside it."""
    batch = maker.size("batch_size", 1)
    kwargs: dict[str, Any] = {}
    runs = []
    for name in maker.media:
        kind = media.kind(name)
        if kind == "audio" and maker.speaks:
            continue  # a voice to speak with, that the model does without
        if count := media.positions(maker, kind, media.medium(maker, name, 1)):
            runs.append(media.placeholders(maker, kind, count))
        kwargs |= media.medium(maker, name, batch)
    if "image_embeds_position_mask" in maker.takes:  # any token stands for the image, as the mask says
        runs = [([0] * maker.config.latent_query_num, [1] * maker.config.latent_query_num)]
    return _with_media(maker, batch, runs, kwargs)


def _llava_onevision(maker: Maker) -> Inputs:
    """One image per sample, cut into crops: the whole image scaled down, and the cells of a grid."""
    config = maker.config
    crops = maker.size("image_crops", min(grids(config), key=lambda crops: (abs(crops - 5), crops)))
    rows, columns = choose_grid(config, crops)
    side = config.vision_config.image_size
    batch = maker.size("batch_size", 1)
    kwargs = {
        "pixel_values": maker.floats(batch, crops, *media.image_shape(config.vision_config)),
        "image_sizes": maker.place(torch.tensor([[rows * side, columns * side]] * batch)),
    }
    run = media.placeholders(maker, "image", image_positions(config, rows, columns))
    return _with_media(maker, batch, [run], kwargs, crops)


def _with_media(
    maker: Maker, batch: int, runs: list[tuple[list[int], list[int]]], kwargs: dict[str, Any], crops: int | None = None
) -> Inputs:
    """A text that begins with what stands in it for images and sounds.

    Args:
        maker: Of the model.
        batch: Samples.
        runs: Of each image and sound the tokens that stand for it, and the kind of each of these positions.
        kwargs: The images and sounds themselves.
        crops: That the images are cut into; None where they are not.
    """
    lengths = ("prompt_len", "new_tokens") if maker.generating else ("prompt_len", "seq_len")
    maker.accept("a model of images and text", "batch_size", *lengths, *(("image_crops",) if crops else ()))
    asked = {maker.options.prompt_len, maker.options.seq_len} - {None}
    if len(asked) > 1:
        raise GpuprofError("--prompt-len and --seq-len both give the length of the text; give one of them")
    tokens, kinds = ([value for run in runs for value in run[part]] for part in (0, 1))
    # The two are the same here: the positions of the image and of the text around it.
    question = min(QUESTION_LENGTH, maker.position_limit()[0]) if not tokens else len(tokens) + QUESTION_LENGTH
    length = asked.pop() if asked else maker.size("prompt_len", question)
    assert length is not None
    if length < len(tokens):
        what = " and ".join({1: "image", 2: "video", 3: "sound"}[kind] for kind in sorted({*kinds} - {0}))
        of_crops = f" with {crops} crops" if crops else ""
        name = flag("prompt_len" if maker.options.prompt_len else "seq_len")
        raise GpuprofError(f"{name} {length} is too short: the {what} alone takes {len(tokens)} positions{of_crops}")
    new_tokens = maker.size("new_tokens", 16) if maker.generating else None

    placeholder = maker.place(torch.tensor([tokens] * batch, dtype=torch.long))
    words = maker.text(batch, length - len(tokens)) if length > len(tokens) else placeholder[:, :0]
    given: dict[str, Any] = {"input_ids": torch.cat([placeholder, words], dim=1), **kwargs}
    if tokens:
        of_text = [0] * (length - len(tokens))
        names = ("mm_token_type_ids", "token_type_ids", "image_embeds_position_mask")
        told = next((name for name in names if name in maker.takes), None)
        given |= {told: maker.place(torch.tensor([kinds + of_text] * batch))} if told else {}
    if "decoder_input_ids" in maker.takes and any(ask(part, "is_encoder_decoder") for part in parts(maker.config)):
        given |= _decoded(maker, batch, length)
    elif (
        maker.training
        and "labels" in maker.takes
        and not maker.speaks
        and maker.architecture.endswith(LANGUAGE_MODEL_HEADS)
    ):
        # A model learns to say the words, not the image.
        given["labels"] = torch.cat([torch.full_like(placeholder, -100), words], dim=1)
    sizes: dict[str, int | None] = dict.fromkeys(SIZES)
    sizes |= {"batch_size": batch, "image_crops": crops, "new_tokens": new_tokens}
    sizes["prompt_len" if maker.generating else "seq_len"] = length
    return Inputs(given, sizes, batch * (length + (new_tokens or 1) - 1))


def _series(maker: Maker) -> Inputs:
    """Time series: as many past values as the model looks back on, and what it is to say of the time to come."""
    maker.accept("a model of time series", "batch_size")
    config, batch = maker.config, maker.size("batch_size", 8)
    length = ask(config, "context_length")
    if not isinstance(length, int):
        raise maker.unknown()
    if "past_time_features" not in maker.takes:
        channels = ask(config, "num_input_channels")
        shape = (batch, length, channels) if isinstance(channels, int) else (batch, length)
        kwargs = {"past_values": maker.floats(*shape, known=True)}  # models look for what is missing
        return Inputs(kwargs, dict.fromkeys(SIZES) | {"batch_size": batch})
    past, future = length + max(config.lags_sequence), config.prediction_length
    size = () if config.input_size == 1 else (config.input_size,)
    kwargs = {
        "past_values": maker.floats(batch, past, *size),
        "past_time_features": maker.floats(batch, past, config.num_time_features),
        "past_observed_mask": maker.place(torch.ones(batch, past, *size, dtype=torch.bool)),
        "future_values": maker.floats(batch, future, *size),
        "future_time_features": maker.floats(batch, future, config.num_time_features),
    }
    for kind, make in (("categorical", maker.integers), ("real", maker.floats)):
        if number := ask(config, f"num_static_{kind}_features"):
            shape = (min(config.cardinality), batch, number) if kind == "categorical" else (batch, number)
            kwargs[f"static_{kind}_features"] = make(*shape)
    return Inputs(kwargs, dict.fromkeys(SIZES) | {"batch_size": batch})


def _latents(maker: Maker) -> Inputs:
    """The decoder of a codec: 64 frames of what its encoder makes of a sound."""
    maker.accept("the decoder of a codec", "batch_size")
    batch = maker.size("batch_size", 1)
    kwargs = {"latents": maker.floats(batch, maker.config.hidden_size, 64)}
    return Inputs(kwargs, dict.fromkeys(SIZES) | {"batch_size": batch})


def _trajectory(maker: Maker) -> Inputs:
    """What an agent saw, did and was given, step by step, as in a decision transformer."""
    maker.accept("a model of trajectories", "batch_size", "seq_len")
    config, batch, length = maker.config, maker.size("batch_size", 8), maker.size("seq_len", 20)
    kwargs = {
        "states": maker.floats(batch, length, config.state_dim),
        "actions": maker.floats(batch, length, config.act_dim),
        "rewards": maker.floats(batch, length, 1),
        "returns_to_go": maker.floats(batch, length, 1),
        "timesteps": maker.integers(config.max_ep_len, batch, length),
        "attention_mask": maker.place(torch.ones(batch, length, dtype=torch.long)),
    }
    return Inputs(kwargs, dict.fromkeys(SIZES) | {"batch_size": batch, "seq_len": length})


def _boxes(maker: Maker, batch: int, length: int) -> dict[str, Any]:
    """Where each token stands on its page: left, top, right, bottom, in thousandths."""
    return {"bbox": maker.integers(1000, batch, length, 4).sort(dim=-1).values}


def _regions(maker: Maker, batch: int, length: int) -> dict[str, Any]:
    """36 regions of an image, as a detector found them: their features and where they are."""
    config = maker.config
    return {
        "visual_feats": maker.floats(batch, 36, config.visual_feat_dim),
        "visual_pos": maker.floats(batch, 36, config.visual_pos_dim),
    }


def _unpadded(maker: Maker, batch: int, length: int) -> dict[str, Any]:
    """That all of the text is text, for a model that puts the sound into it itself."""
    return {"attention_mask": maker.place(torch.ones(batch, length, dtype=torch.long))}


def _sees_all(maker: Maker, batch: int, length: int) -> dict[str, Any]:
    """That all of the text looks at its one image."""
    if maker.config.model_type != "idefics":  # elsewhere the name means another mask
        return {}
    return {"image_attention_mask": maker.place(torch.ones(batch, length, 1, dtype=torch.long))}


# What some models cannot do without beside their text.
_BESIDE_TEXT = {
    "feature_attention_mask": _unpadded,
    "bbox": _boxes,
    "visual_feats": _regions,
    "image_attention_mask": _sees_all,
}
