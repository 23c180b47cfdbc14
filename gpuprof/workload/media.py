"""What a model sees and hears: images, videos and sounds of its own size, and their positions in a text."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_KEYPOINT_MATCHING_MAPPING_NAMES

from gpuprof.errors import GpuprofError, first_line
from gpuprof.workload.configuration import ask, parts
from gpuprof.workload.maker import IMAGES, QUESTION_LENGTH, VIDEOS, Maker
from gpuprof.workload.processors import SECONDS, processed_image, processed_sound
from gpuprof.workload.steps import tensors
from gpuprof.workload.weightless import Answers, Weightless

_Tensors = dict[str, torch.Tensor]

# What a model calls a medium: the token that stands for a position of it, what marks where it begins and ends, and its
# number among the kinds of position.
_NAMES = {
    "image": (("image_token_id", "image_token_index"), ("vision", "image"), 1),
    "video": (("video_token_id", "video_token_index"), ("vision", "video"), 2),
    "audio": (("audio_token_id", "audio_token_index"), ("audio",), 3),
}
_SOUND_MASKS = {"input_features_mask", "feature_attention_mask"}  # what a feature extractor calls `attention_mask`
_SPECTRUM = ("feature_projection_input_dim", "input_dim")  # values of a sound in each hundredth of a second
# Arguments that go with a layout of images that many models share, and the model whose processor makes it.
_LAYOUTS = {
    "image_grid_thw": "qwen2_vl",
    "spatial_shapes": "siglip2",
    "pixel_attention_mask": "idefics3",
    "target_sizes": "minicpmv4_6",
}


def kind(name: str) -> str:
    """The kind of medium that an argument brings: `image`, `video` or `audio`."""
    return "image" if name in IMAGES else "video" if name in VIDEOS else "audio"


def medium(maker: Maker, name: str, batch: int) -> _Tensors:
    """One image, video or sound per sample.

    Args:
        maker: Of the model.
        name: The argument that brings it: one of `IMAGES`, `VIDEOS` or `SOUNDS`.
        batch: Samples.

    Returns:
        That argument, and those that go with it.
    """
    make = {"image": _image, "video": _video, "audio": _sound}[kind(name)]
    return make(maker, name, batch)


def image_shape(config: Any, default: int = 224) -> tuple[int, int, int]:
    """Channels, height and width of the images a vision configuration is made for."""
    height, width = _side(config) or (default, default)
    return ask(config, "num_channels") or ask(config, "in_channels") or 3, height, width


def _vision(config: Any) -> Any:
    """The part of a configuration that says how large its images are, else the one that describes what sees."""
    told = [part for part in parts(config) if _side(part)]
    return (told or [ask(config, "vision_config") or config])[0]


def _side(config: Any) -> tuple[int, int] | None:
    """Height and width that a configuration gives its images; None where it gives none."""
    size = ask(config, "image_size") or ask(config, "crop_size") or ask(config, "max_img_size")
    if isinstance(size, int):
        return size, size
    return tuple(size) if isinstance(size, (list, tuple)) and len(size) == 2 else None


def _image(maker: Maker, name: str, batch: int) -> _Tensors:
    """One image per sample, as the model's processor makes it, or a plain one of the size that its configuration gives.

    The size of a part deep within is that of a backbone, which takes any: there the processor knows better.
    """
    config = maker.config
    seen = _vision(config)
    side = _side(seen) if seen is config or seen is ask(config, "vision_config") else None
    layouts = [model_type for argument, model_type in _LAYOUTS.items() if argument in maker.takes]
    given, why = _processed(maker, lambda: processed_image(parts(config), min(side) if side else None, layouts))
    main = given.get(name)
    several = 2 if _compares(config) else 1 if config.model_type == "idefics" else None
    film = [number] if (number := frames(config) or several) else []
    # Without a size of its own, one that masks what is no image takes any size, and another the usual one.
    plain = main is None or (
        main.dim() == 4 and len(main) == 1 and set(given) <= ({name, "pixel_mask"} if side else {name})
    )
    if (plain or film) and name == "pixel_values":
        shape = image_shape(seen)
        if "prompt_pixel_values" in maker.takes:  # the model's image is the prompt's above the one asked about
            half = (shape[0], shape[1] // 2, shape[2])
            return {key: maker.floats(batch, *half) for key in (name, "prompt_pixel_values", "prompt_masks")}
        asked = required(_getter(maker, "image")) & maker.takes
        if why and (layouts or asked - {name, "image_sizes"}):
            raise maker.unknown(why)
        sizes = {"image_sizes": maker.place(torch.tensor([shape[1:]] * batch))} if "image_sizes" in asked else {}
        return {name: maker.floats(batch, *film, *shape), **sizes, **_query(maker, batch)}
    if main is None:
        raise maker.unknown(why)
    # Where a sample has places for several images, models look which of them are empty.
    known = main.dim() == 5 and "pixel_attention_mask" in given
    return _query(maker, batch) | {
        key: _repeated(maker, tensor, batch, known=known, mask="mask" in key) for key, tensor in given.items()
    }


def _query(maker: Maker, batch: int) -> _Tensors:
    """The text that a query transformer reads beside the image, where there is one."""
    if "qformer_input_ids" not in maker.takes:
        return {}
    return {"qformer_input_ids": maker.integers(maker.config.qformer_config.vocab_size, batch, QUESTION_LENGTH)}


def _compares(config: Any) -> bool:
    """Whether a model looks for what two images have in common."""
    return ask(config, "model_type") in MODEL_FOR_KEYPOINT_MATCHING_MAPPING_NAMES


def _processed(maker: Maker, process: Callable[[], dict[str, Any]]) -> tuple[_Tensors, str]:
    """What a processor makes that the model takes; nothing, and why, where it cannot be used."""
    try:
        return _fitting(maker, process()), ""
    except GpuprofError as error:
        return {}, str(error)


def _video(maker: Maker, name: str, batch: int) -> _Tensors:
    return {name: maker.floats(batch, frames(maker.config) or 8, *image_shape(_vision(maker.config)))}


def frames(config: Any) -> int | None:
    """Images of a video that a model is made for; None where its configuration does not say."""
    names = ("num_frames", "frames_per_clip")
    told = (ask(part, name) for part in parts(config) for name in names)
    return next((number for number in told if isinstance(number, int)), None)


def _sound(maker: Maker, name: str, batch: int) -> _Tensors:
    samples = None if "input_ids" in maker.takes else maker.options.seq_len
    bins, length = (ask(maker.config, field) for field in ("num_mel_bins", "max_source_positions"))
    if name == "input_features" and bins and length:
        # Two frames of spectrogram become one position in the convolutions: 3000 frames are whisper's 30 s.
        return {name: maker.floats(batch, bins, 2 * length), **_all_sound(maker, batch, 2 * length)}
    masked = not _SOUND_MASKS.isdisjoint(maker.takes)
    given, why = _processed(maker, lambda: processed_sound(parts(maker.config), samples, masked=masked))
    if name not in given:
        told = (ask(part, field) for part in parts(maker.config) for field in _SPECTRUM)
        width = next((size for size in told if isinstance(size, int)), None)
        if name == "input_features" and width:
            return {name: maker.floats(batch, 100 * SECONDS, width), **_all_sound(maker, batch, 100 * SECONDS)}
        if name != "input_values":
            raise maker.unknown(why)
        channels = ask(maker.config, "audio_channels") or ask(maker.config, "in_channels")
        rate = ask(maker.config, "sampling_rate") or ask(maker.config, "sample_rate") or 16_000
        mono = (channels,) if isinstance(channels, int) else ()
        return {name: maker.floats(batch, *mono, samples or SECONDS * rate)}
    return {key: _repeated(maker, tensor, batch, mask="mask" in key) for key, tensor in given.items()}


def _all_sound(maker: Maker, batch: int, length: int) -> _Tensors:
    """A mask which says that none of the features is padding, for a model that asks."""
    return {name: maker.place(torch.ones(batch, length, dtype=torch.long)) for name in _SOUND_MASKS & maker.takes}


def _fitting(maker: Maker, made: Mapping[str, Any]) -> _Tensors:
    """Of what a processor made the tensors that the model takes, under the names under which it does."""
    mask = next((name for name in _SOUND_MASKS if name in maker.takes), None)
    renamed = {mask if name == "attention_mask" and mask else name: value for name, value in made.items()}
    if "input_ids" in maker.takes:
        renamed.pop("attention_mask", None)  # which is the text's there
    return {name: value for name, value in renamed.items() if name in maker.takes and isinstance(value, torch.Tensor)}


def _repeated(
    maker: Maker, tensor: torch.Tensor, batch: int, *, known: bool = False, mask: bool = False
) -> torch.Tensor:
    """What one sample has, for all of them: floating values are new, whole numbers and masks are the same."""
    if tensor.is_floating_point() and not mask:
        return maker.floats(batch * tensor.shape[0], *tensor.shape[1:], known=known)
    return maker.place(tensor.repeat(batch, *[1] * (tensor.dim() - 1)))


def positions(maker: Maker, medium_kind: str, given: _Tensors) -> int:
    """Positions of the text that a medium takes, as the model itself finds them: 0 where it does not stand in the text.

    Args:
        maker: Of the model.
        medium_kind: `image`, `video` or `audio`.
        given: The medium, of one sample.

    Raises:
        GpuprofError: The model does not take it.
    """
    if not stands_in_text(maker, medium_kind):
        return 0
    getter = _getter(maker, medium_kind)
    if getter is None:
        return 1  # one token for all of it
    taken = inspect.signature(getter).parameters
    named = {key: value for key, value in given.items() if key in taken}
    known = given if "args" in taken or required(getter) - {*named} else named
    training = maker.model.training
    maker.model.eval()
    try:
        with torch.no_grad(), ExitStack() as contexts:
            if maker.weightless:
                contexts.enter_context(Answers())
                contexts.enter_context(Weightless())
            else:
                contexts.enter_context(torch.random.fork_rng([maker.device] if maker.device.type == "cuda" else []))
            features = getter(**known)
    except Exception as error:  # whatever the model's own code makes of what it does not expect
        raise GpuprofError(
            f"{maker.architecture} does not take the {medium_kind} that gpuprof makes for it ({first_line(error)}): "
            "write a function that returns the model and its inputs, and give it as file.py:function"
        ) from error
    finally:
        maker.model.train(training)
    # An output holds hidden states beside the features that stand in the text, which may not be one of its keys.
    told = (getattr(features, name, None) for name in ("pooler_output", "last_hidden_state"))
    features = next((tensor for tensor in told if tensor is not None), features)
    count = sum(math.prod(tensor.shape[:-1]) for tensor in tensors(features))
    if not count:
        raise maker.unknown(f"its {getter.__name__} gives no features")
    return count


def stands_in_text(maker: Maker, medium_kind: str) -> bool:
    """Whether tokens of the text stand for a medium.

    Raises:
        GpuprofError: They should, and the configuration does not say which: the medium would be left out.
    """
    if token(maker.config, medium_kind) is not None:
        return True
    field = next((name for name in _NAMES[medium_kind][0] if hasattr(type(maker.config), name)), None)
    if field is not None and _getter(maker, medium_kind) is not None:
        raise maker.unknown(f"config.json gives no {field}")
    return False


def _getter(maker: Maker, medium_kind: str) -> Any:
    """The model's function that turns a medium into features; None where it has none."""
    name = f"get_{medium_kind}_features"
    found = [function for module in maker.model.modules() if (function := getattr(module, name, None))]
    return max(found, key=lambda function: len(required(function)), default=None)


def required(function: Any) -> set[str]:
    """Parameters that a function cannot do without."""
    parameters = inspect.signature(function).parameters.values() if function else ()
    return {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}


def token(config: Any, medium_kind: str) -> int | None:
    """The token that stands for a position of a medium."""
    names, _, _ = _NAMES[medium_kind]
    said = (ask(part, name) for part in parts(config) for name in names)
    return next((value for value in said if isinstance(value, int)), None)


def placeholders(maker: Maker, medium_kind: str, count: int) -> tuple[list[int], list[int]]:
    """The tokens that stand for a medium, those around it included, and the kind of each position: 0 is text."""
    _, prefixes, number = _NAMES[medium_kind]
    around = [
        next((t for p in prefixes if isinstance(t := ask(maker.config, f"{p}_{end}_token_id"), int)), None)
        for end in ("start", "end")
    ]
    begin, end = ([] if t is None else [t] for t in around)
    stands = token(maker.config, medium_kind)
    assert stands is not None
    return [*begin, *[stands] * count, *end], [*[0] * len(begin), *[number] * count, *[0] * len(end)]
