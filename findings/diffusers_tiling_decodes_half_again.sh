#!/usr/bin/env bash
# Tiling the autoencoder of diffusers costs half of its FLOPs again, and the more the larger the image is.
#
# Expected: enable_tiling() trades memory for a little time: tiles overlap by a quarter of their width so that their seams can be blended;
#   the FLOPs are about those of the image, the more so the larger it is, as a tile's border is then a small part.
# Happens: tiles begin every three quarters of a tile, so a side is decoded 4/3 times in the long run, and an area 16/9 = 1.78 times. It comes
#   nearer to that the larger the image is, not farther off: 1.44 at one and a quarter tiles a side, 1.56 at two and three, 1.72 at eight, for the
#   convolutions of encoder and decoder alike. The last tile of a row may be a strip that the one before it holds as a whole. Up to one
#   tile nothing is tiled. The mid block's attention is over a tile rather than over all, which saves a part of the whole.
# Who meets it: whoever turns it on for safety and compares times or MFU with the formula's FLOPs, or with a run without. Mend:
#   a smaller tile_overlap_factor.
# Versions: diffusers 0.42.1, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: diffusers/models/autoencoders/autoencoder_kl.py, AutoencoderKL._tiled_encode and tiled_decode
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 numpy==2.4.6 2>/dev/null
venv/bin/python -W ignore - <<'PYTHON'
import diffusers
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

print("diffusers", diffusers.__version__, "torch", torch.__version__)
model = AutoencoderKL(
    block_out_channels=(16, 16, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1, norm_num_groups=8, sample_size=128,
).eval().to("meta")


def convolutions(side):
    counts = []
    for run in (lambda: model.encode(torch.zeros(1, 3, side, side, device="meta")), lambda: model.decode(torch.zeros(1, 4, side // 8, side // 8, device="meta"))):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_flop_counts()["Global"][torch.ops.aten.convolution])
    return counts


found = {}
for side in (128, 160, 256, 384, 1024):
    model.disable_tiling()
    whole = convolutions(side)
    model.enable_tiling()
    found[side] = [round(tiled / plain, 4) for tiled, plain in zip(convolutions(side), whole, strict=True)]
    print(f"{side} pixels, tiles of 128: encode {found[side][0]:.4f} x the convolutions, decode {found[side][1]:.4f} x")
assert [found[side] for side in (128, 160, 256, 384, 1024)] == [[1.0, 1.0], [1.44, 1.44], [1.5625, 1.5625], [1.5625, 1.5625], [1.7227, 1.7227]], "that has changed"
PYTHON
echo "as described"
