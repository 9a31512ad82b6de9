"""Saves MNIST with its writers as a data set: columns image, label, writer.

    .venv/bin/python scripts/prepare_mnist_by_writer.py ../shared/data/mnist_by_writer

The folder holds MNIST's idx files and QMNIST's label tables, whose rows follow the images' order.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

OUT = Path("data/mnist-by-writer")
HEADER, SIDE = 16, 28
CLASS, WRITER = 0, 2
SPLITS = {"train": ("train-images-idx3-ubyte.gz", "qmnist-train-labels.tsv.gz"),
          "test": ("t10k-images-idx3-ubyte.gz", "qmnist-test-labels.tsv.gz")}  # fmt: skip


def split(folder: Path, images: str, labels: str) -> Dataset:
    pixels = np.frombuffer(gzip.decompress((folder / images).read_bytes()), np.uint8, offset=HEADER)
    pixels = pixels.reshape(-1, SIDE, SIDE)
    table = np.loadtxt(folder / labels, dtype=np.int64, max_rows=len(pixels))
    names = [str(digit) for digit in range(10)]
    features = Features(
        {"image": ImageFeature(), "label": ClassLabel(names=names), "writer": Value("int64")}
    )
    columns = {
        "image": [Image.fromarray(image) for image in pixels],
        "label": table[:, CLASS].tolist(),
        "writer": table[:, WRITER].tolist(),
    }
    return Dataset.from_dict(columns, features=features)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    folder = Path(sys.argv[1])
    found = DatasetDict({name: split(folder, *files) for name, files in SPLITS.items()})
    found.save_to_disk(str(OUT))
    print({name: (len(part), len(set(part["writer"]))) for name, part in found.items()}, "in", OUT)


if __name__ == "__main__":
    main()
