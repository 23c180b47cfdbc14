"""How LLaVA-OneVision cuts an image into crops, and how many positions of the text it takes."""

from __future__ import annotations

import math
from typing import Any

from gpuprof.errors import GpuprofError


def grids(config: Any) -> dict[int, list[tuple[int, int]]]:
    """The grids (rows, columns) of a LLaVA-OneVision configuration, by the crops they give."""
    side = config.vision_config.image_size
    found: dict[int, list[tuple[int, int]]] = {}
    for height, width in config.image_grid_pinpoints:
        rows, columns = height // side, width // side
        found.setdefault(rows * columns + 1, []).append((rows, columns))
    return found


def choose_grid(config: Any, crops: int) -> tuple[int, int]:
    """Rows and columns of the grid that gives this many crops: the squarest, then the widest.

    Args:
        config: A LLaVA-OneVision configuration; its pinpoints list the grids there are.
        crops: Cells of the grid, and one for the whole image.

    Raises:
        GpuprofError: No grid gives this many crops.
    """
    known = grids(config)
    if crops not in known:
        possible = ", ".join(map(str, sorted(known)))
        raise GpuprofError(f"--image-crops {crops} fits no grid of this model; it can be one of: {possible}")
    return min(known[crops], key=lambda grid: (abs(grid[0] - grid[1]), grid[0]))


def image_positions(config: Any, rows: int, columns: int) -> int:
    """Positions that LLaVA-OneVision's image takes in the text, for an image that fills its grid exactly.

    The whole image gives side x side features. The grid's rows x columns x side x side are scaled down where
    they exceed `anyres_max_N` whole images by more than a tenth, and each line of them ends in a newline.

    Args:
        config: The configuration.
        rows: Rows of crops.
        columns: Columns of crops.
    """
    side = config.vision_config.image_size // config.vision_config.patch_size
    height, width = rows * side, columns * side
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(height * width / (most * side**2))
    if ratio > 1.1:
        height, width = int(height // ratio), int(width // ratio)
    return side**2 + height * (width + 1)
