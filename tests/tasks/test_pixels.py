"""Images are what the base's own processor makes of them, kept as bytes where that is possible."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import BeitImageProcessor, ConvNextImageProcessor, ViTImageProcessor

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks import pixels
from fedtune.tasks.pixels import pixel_table

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SIDE = {"height": 8, "width": 8}
PROCESSORS = {
    "vit": lambda: ViTImageProcessor(size=SIDE, image_mean=MEAN, image_std=STD),
    "beit, cropped": lambda: BeitImageProcessor(
        size={"height": 10, "width": 10}, crop_size=SIDE, do_center_crop=True, image_mean=MEAN
    ),
    "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": 8}, crop_pct=0.8),
    "not normalised": lambda: ViTImageProcessor(size=SIDE, do_normalize=False),
    "not rescaled": lambda: ViTImageProcessor(size=SIDE, do_rescale=False, do_normalize=False),
}
LABELS = np.arange(150) % 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def images(seed=0, mode="RGB") -> list[Image.Image]:
    draw = np.random.default_rng(seed)
    shape = (10, 12, 3)
    return [
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).convert(mode) for _ in LABELS
    ]


def rows_of(pictures) -> Dataset:
    return Dataset.from_dict({"image": pictures}, features=Features({"image": ImageFeature()}))


def own_output(processor, pictures, mode="RGB") -> torch.Tensor:
    arrays = [np.atleast_3d(np.asarray(image.convert(mode))) for image in pictures]
    made = processor(arrays, return_tensors="pt", input_data_format="channels_last")
    return made["pixel_values"].float()


def table_of(processor, pictures, channels=3) -> pixels.PixelTable:
    return pixel_table(TaskSection(), rows_of(pictures), LABELS, processor, channels)


@pytest.mark.parametrize("name", PROCESSORS)
def test_values_are_the_processors_own_and_bytes_on_disk(name):
    processor, pictures = PROCESSORS[name](), images()
    table = table_of(processor, pictures)
    assert table.pixels.dtype == torch.uint8
    order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))
    batch = table.gather(order)
    wanted = own_output(processor, pictures)[order]
    torch.testing.assert_close(batch.inputs["pixel_values"], wanted, rtol=1e-6, atol=1e-6)
    assert batch.labels.tolist() == LABELS[order].tolist()


def test_grey_images_for_a_model_of_one_channel():
    processor = ViTImageProcessor(size=SIDE, image_mean=[0.5], image_std=[0.5])
    table, pictures = table_of(processor, images(), channels=1), images()
    found = table.gather(torch.arange(9)).inputs["pixel_values"]
    wanted = own_output(processor, pictures, "L")[:9]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


class Squared(ViTImageProcessor):
    """A processor that ends with something else."""

    def __call__(self, *given, **more):
        made = super().__call__(*given, **more)
        made["pixel_values"] = made["pixel_values"] ** 2
        return made


def test_what_is_no_bytes_is_kept_as_it_is():
    processor, pictures = Squared(size=SIDE), images()
    table = table_of(processor, pictures)
    assert table.pixels.dtype == torch.float32
    found = table.gather(torch.arange(len(LABELS))).inputs["pixel_values"]
    assert torch.equal(found, own_output(processor, pictures))


def test_the_last_image_alone_may_be_no_bytes(monkeypatch):
    class Late(ViTImageProcessor):
        def __call__(self, arrays, **more):
            made = super().__call__(arrays, **more)
            if len(arrays) != pixels.CHUNK:
                made["pixel_values"][-1] += 0.001
            return made

    table = table_of(Late(size=SIDE), images())
    assert table.pixels.dtype == torch.float32
    assert len(table) == len(table.pixels) == len(LABELS)


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)],
)
def test_values_are_rounded_once_to_the_compute_precision(dtype, rounding):
    table = table_of(PROCESSORS["vit"](), images())
    found = table.to(torch.device("cpu"), dtype).gather(torch.arange(20)).inputs["pixel_values"]
    assert found.dtype == dtype
    mean, std = (torch.tensor(t, dtype=torch.float64)[:, None, None] for t in (MEAN, STD))
    wanted = (table.pixels[:20].double() / 255 - mean) / std
    torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=rounding)


def test_processed_once_for_equal_rows_and_settings(cache, monkeypatch):
    calls = []
    made = ViTImageProcessor.__call__
    monkeypatch.setattr(
        ViTImageProcessor, "__call__", lambda *a, **k: calls.append(1) or made(*a, **k)
    )

    def again(processor, seed=0) -> int:
        before = len(calls)
        table_of(processor, images(seed))
        return len(calls) - before

    assert again(PROCESSORS["vit"]()) == 3
    assert again(PROCESSORS["vit"]()) == 0
    assert again(PROCESSORS["not normalised"]()) == 3
    assert again(PROCESSORS["vit"](), seed=1) == 3
    assert not any(file.stat().st_size > 150 * 192 + 200 for file in cache.rglob("*.npy"))


def test_a_value_that_is_no_image_is_named_with_its_row(cache):
    pictures = images()
    pictures[100] = None
    with pytest.raises(ScenarioError, match=r"column 'image' holds None in row 100"):
        table_of(PROCESSORS["vit"](), pictures)
    assert not list(cache.rglob("*.npy"))


def on_disk(folder, seed) -> Dataset:
    """Names of files in a column, as many data sets have them, saved and read again."""
    folder.mkdir(exist_ok=True)
    names = []
    for index, image in enumerate(images(seed)):
        names.append(str(folder / f"{index}.png"))
        image.save(names[-1])
    rows = Dataset.from_dict({"image": names}).cast_column("image", ImageFeature())
    rows.save_to_disk(str(folder / "saved"))
    return rows


@pytest.mark.parametrize("again", [lambda folder, rows: rows, None], ids=["names", "saved"])
def test_files_that_were_written_again_are_read_again(tmp_path, again):
    read = again or (lambda folder, rows: Dataset.load_from_disk(str(folder / "saved")))
    found = []
    for seed in (0, 1):
        rows = read(tmp_path / "images", on_disk(tmp_path / "images", seed))
        table = pixel_table(TaskSection(), rows, LABELS, PROCESSORS["vit"](), 3)
        found.append(table.gather(torch.arange(5)).inputs["pixel_values"])
    wanted = own_output(PROCESSORS["vit"](), images(1)[:5])
    assert not torch.equal(*found)
    torch.testing.assert_close(found[1], wanted, rtol=1e-6, atol=1e-6)


def test_other_columns_are_not_read():
    columns = {"image": images(), "mask": [{"bytes": None, "path": "/nowhere.png"}] * len(LABELS)}
    features = Features({"image": ImageFeature(), "mask": ImageFeature()})
    rows = Dataset.from_dict(columns, features=features)
    assert len(pixel_table(TaskSection(), rows, LABELS, PROCESSORS["vit"](), 3)) == len(LABELS)


def test_a_processor_for_other_channels_is_refused():
    with pytest.raises(ScenarioError, match="is for 3 channels, the model takes 1"):
        table_of(PROCESSORS["vit"](), images(), channels=1)


def test_images_that_come_out_in_several_sizes_are_refused(cache):
    pictures = images()
    pictures[64:] = [image.resize((7, 7)) for image in pictures[64:]]
    processor = ViTImageProcessor(do_resize=False)
    with pytest.raises(ScenarioError, match=r"several sizes, \(3, 10, 12\) and, from row 64 on"):
        table_of(processor, pictures)
    assert not list(cache.rglob("*.npy"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ScenarioError, match=r"cannot be written .*HF_DATASETS_CACHE"):
        table_of(PROCESSORS["vit"](), images())
