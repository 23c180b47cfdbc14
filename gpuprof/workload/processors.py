"""Images and sounds as transformers' own processors prepare them for a model, built without a download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from gpuprof.errors import GpuprofError, first_line
from gpuprof.workload.configuration import ask

# What a processor calls differently than the configuration of its model does.
_ALIASES = {
    "merge_size": ("spatial_merge_size",),
    "feature_size": ("num_mel_bins", "n_mels", "num_mel_features", "input_feat_per_channel"),
}
SECONDS = 5
"""Length of a sound, where nothing else is asked for."""
_SIDE = 448  # of an image where the model takes any: whole patches of 14, 16, 28 and 32 pixels


def processed_image(parts: list[Any], side: int | None, layouts: list[str]) -> dict[str, Any]:
    """What the model's image processor makes of one image.

    Args:
        parts: The configuration and those of its parts, most telling first; the first that has a processor decides.
        side: Height and width that the model's images have; None where it takes any.
        layouts: Model types whose processors make what the model takes, where it has none of its own.

    Returns:
        Tensors by the names under which the model takes them, for one sample; nothing where there is no processor.

    Raises:
        GpuprofError: The processor cannot be built or used, for want of a library most often.
    """
    processor = _build(parts, IMAGE_PROCESSOR_MAPPING_NAMES, side, layouts)
    image = torch.zeros(3, side or _SIDE, side or _SIDE, dtype=torch.uint8)
    return _made(processor, lambda: processor(images=[image], return_tensors="pt"))


def processed_sound(parts: list[Any], samples: int | None, *, masked: bool = False) -> dict[str, Any]:
    """What the model's feature extractor makes of one sound.

    Args:
        parts: As of `processed_image`.
        samples: Of the sound; None for 5 s of it.
        masked: Whether the model asks which of the features are sound.

    Returns:
        As `processed_image`, and so are the errors.
    """
    extractor = _build(parts, FEATURE_EXTRACTOR_MAPPING_NAMES, None, [])

    def make() -> Any:
        asks = masked and "return_attention_mask" in signature(extractor).parameters
        asked = {"return_attention_mask": True} if asks else {}
        rate = extractor.sampling_rate
        # Noise, as some divide by the loudness.
        wave = torch.rand(samples or SECONDS * rate, generator=torch.Generator().manual_seed(0)) - 0.5
        return extractor(wave.numpy(), sampling_rate=rate, return_tensors="pt", **asked)

    return _made(extractor, make)


def _made(processor: Any, make: Callable[[], Any]) -> dict[str, Any]:
    if processor is None:
        return {}
    try:
        return {name: value for name, value in make().items() if isinstance(value, torch.Tensor)}
    except Exception as error:  # the processor's own code decides which
        raise GpuprofError(f"{type(processor).__name__}: {first_line(error)}") from error


def _build(parts: list[Any], names: Any, side: int | None, others: list[str]) -> Any:
    """The processor of the first model type that has one, with the sizes that the configuration gives; else None.

    Raises:
        GpuprofError: None can be built, for want of a library or of sizes that fit.
    """
    failure: Exception | None = None
    own = [ask(part, "model_type") or "" for part in parts]
    for model_type in [*own, *others, *map(model_type_to_module_name, own)]:  # a part has the processor of its whole
        known = names.get(model_type) or {}
        name = known if isinstance(known, str) else known.get("pil") or known.get("torchvision")
        if name:
            try:
                kind = getattr(transformers, name)
                default = kind()
                return kind(**_settings(default, parts), **_sizes(default, side))
            except Exception as error:  # the processor's own code decides which
                failure = failure or error
    if failure is not None:
        raise GpuprofError(first_line(failure)) from failure
    return None


def _settings(default: Any, parts: list[Any]) -> dict[str, Any]:
    """Whole numbers that the configuration gives and the processor has under the same name, or a known other one."""
    settings = {}
    for name, value in vars(default).items():
        mono = name == "feature_size" and value == 1
        if isinstance(value, int) and not isinstance(value, bool) and not mono:
            given = (ask(part, alias) for alias in (name, *_ALIASES.get(name, ())) for part in parts)
            settings[name] = next(
                (size for size in given if isinstance(size, int) and not isinstance(size, bool)), value
            )
    changed: dict[str, Any] = {name: size for name, size in settings.items() if size != getattr(default, name)}
    if getattr(default, "truncation", None) == "fusion" and not any(ask(part, "enable_fusion") for part in parts):
        changed["truncation"] = "rand_trunc"
    return changed


def _sizes(default: Any, side: int | None) -> dict[str, dict[str, int]]:
    """The sizes of a processor that makes every image as large as the next, for images of this side."""
    found = {}
    for name in ("size", "crop_size"):
        size = {key: value for key, value in dict(getattr(default, name, None) or {}).items() if value is not None}
        if side and (set(size) == {"height", "width"} or (size and getattr(default, "do_center_crop", None))):
            found[name] = dict.fromkeys(size, side)
    cells = getattr(default, "max_image_size", None)
    if side and isinstance(cells, Mapping) and "longest_edge" in cells:  # of the cells that an image is cut into
        cut = default.size["longest_edge"] // cells["longest_edge"]
        found |= {"max_image_size": {"longest_edge": side}, "size": {"longest_edge": cut * side}}
    return found
