"""Pretrain `builtin:vit-letters`: a small vision transformer that has read printed letters only.

The federation of the quickstart learns handwritten digits, so this model must not have seen one:
it is trained to tell 52 printed letters (A-Z, a-z) apart, drawn from the fonts that Matplotlib
ships, distorted, and reduced to 8x8 exactly as scikit-learn's digits were made (32x32 bitmaps,
counts of set pixels in 4x4 blocks). Writes the backbone, its processor and its figures.

    python scripts/pretrain_vit_letters.py            # about 6 minutes on 2 CPU cores
"""

from __future__ import annotations

import argparse
import json
import math
import string
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

LETTERS = string.ascii_letters
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
SIDE, BLOCK = 32, 4
OUT = Path(__file__).parent.parent / "fedtune" / "builtin" / "vit-letters"


def draw_letter(letter: str, font: ImageFont.FreeTypeFont, draw: np.random.Generator) -> np.ndarray:
    """One distorted letter as an 8x8 uint8 image (counts of 16, scaled to 0..255)."""
    big = Image.new("L", (96, 96))
    ImageDraw.Draw(big).text((48, 48), letter, fill=255, font=font, anchor="mm")
    angle, shear = draw.normal(0, 8.0), draw.normal(0, 0.15)
    big = big.rotate(angle, Image.Resampling.BILINEAR)
    big = big.transform(
        big.size,
        Image.Transform.AFFINE,
        (1, shear, -48 * shear, 0, 1, 0),
        Image.Resampling.BILINEAR,
    )
    weight = draw.integers(0, 4)
    if weight:
        big = big.filter(ImageFilter.MaxFilter(2 * int(weight) + 1))
    glyph = big.crop(big.getbbox())
    width = max(8, min(SIDE, round(SIDE * glyph.width / glyph.height * draw.uniform(0.8, 1.2))))
    glyph = glyph.resize((width, SIDE), Image.Resampling.BILINEAR)
    canvas = np.zeros((SIDE, SIDE), dtype=bool)
    left = int(draw.integers(0, SIDE - width + 1))
    canvas[:, left : left + width] = np.asarray(glyph) > 127
    counts = canvas.reshape(8, BLOCK, 8, BLOCK).sum((1, 3))
    return np.round(counts * (255.0 / 16.0)).astype(np.uint8)


def letters(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 1, 8, 8) in [-1, 1] and labels."""
    draw = np.random.default_rng(seed)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 56) for name in FONTS]
    labels = draw.integers(len(LETTERS), size=count)
    images = [draw_letter(LETTERS[i], fonts[draw.integers(len(fonts))], draw) for i in labels]
    pixels = torch.from_numpy(np.stack(images)).float().unsqueeze(1) / 127.5 - 1.0
    return pixels, torch.from_numpy(labels)


def accuracy(model: ViTForImageClassification, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = [
            model(pixel_values=a).logits.argmax(-1) == b
            for a, b in zip(x.split(512), y.split(512), strict=True)
        ]
    model.train()
    return float(torch.cat(right).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    started = time.time()
    x, y = letters(arguments.images, 1)
    test_x, test_y = letters(5_000, 2)
    print(f"drew {len(x)} letters in {time.time() - started:.0f} s", flush=True)
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128,
        image_size=8, patch_size=2, num_channels=1, num_labels=len(LETTERS),
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = ViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    steps = arguments.epochs * math.ceil(len(x) / 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for epoch in range(arguments.epochs):
        for rows in torch.randperm(len(x)).split(256):
            loss = torch.nn.functional.cross_entropy(
                model(pixel_values=x[rows]).logits, y[rows], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        found = accuracy(model, test_x, test_y)
        print(
            f"epoch {epoch + 1}: held-out letters {found:.3f} ({time.time() - started:.0f} s)",
            flush=True,
        )
    model.config.num_labels = 2
    model.vit.save_pretrained(arguments.out)
    ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]
    ).save_pretrained(arguments.out)
    figures = {
        "trained on": f"{len(x)} drawn letters, 52 classes, {len(FONTS)} fonts",
        "epochs": arguments.epochs,
        "held-out letters accuracy": round(found, 4),
        "parameters": sum(p.numel() for p in model.vit.parameters()),
        "seconds": round(time.time() - started),
        "command": "python scripts/pretrain_vit_letters.py",
    }
    (arguments.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
