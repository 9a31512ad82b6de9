"""Pictures are what a person sees, or a line that says which one is not."""

from __future__ import annotations

import io

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.images import load_images
from fedtune.tasks.pictures import CLEAR, DEEP, Unreadable, in_eight_bits

SIDE = 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png(image, form="PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def grey(value, dtype=np.uint8) -> Image.Image:
    return Image.fromarray(np.full((SIDE, SIDE), value, dtype=dtype))


def loaded(data, **changes):
    return load_images(TaskSection(data=str(data), test=str(data), **changes))


def pixels(examples) -> list[int]:
    """The first pixel of each training picture."""
    return examples.train.pixels[:, 0, 0, 0].tolist()


FILES = {f"{value}.png": png(grey(value)) for value in (10, 60, 110, 160)}
CONTENT = list(FILES.values())
COLUMNS = {
    "bytes": (CONTENT, pa.binary()),
    "large bytes": (CONTENT, pa.large_binary()),
    "bytes and path": ([{"bytes": b, "path": n} for n, b in FILES.items()], None),
    "bytes alone": ([{"bytes": b} for b in CONTENT], None),
    "path alone": ([{"bytes": None, "path": f"img/{n}"} for n in FILES],
                   pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    "names": ([f"img/{n}" for n in FILES], pa.string()),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLUMNS)
def test_pictures_in_parquet(tmp_path, kind, monkeypatch):
    (tmp_path / "img").mkdir()
    for name, content in FILES.items():
        (tmp_path / "img" / name).write_bytes(content)
    values, type_ = COLUMNS[kind]
    table = pa.table({"image": pa.array(values, type_), "label": ["a", "b", "a", "b"]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert pixels(loaded(tmp_path / "x.parquet")) == [10, 60, 110, 160]


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_names_of_pictures_are_relative_to_the_file_that_names_them(tmp_path, name):
    (tmp_path / "img").mkdir()
    for file, content in FILES.items():
        (tmp_path / "img" / file).write_bytes(content)
    rows = pd.DataFrame({"image": [f"img/{n}" for n in FILES], "label": list("abab")})
    rows.loc[0, "image"] = str(tmp_path / "img" / "10.png")
    if name == "x.csv":
        rows.to_csv(tmp_path / name, index=False)
    else:
        rows.to_json(tmp_path / name, orient="records", lines=True)
    assert pixels(loaded(tmp_path / name)) == [10, 60, 110, 160]
    (tmp_path / "img" / "60.png").write_bytes(png(grey(200)))
    assert pixels(loaded(tmp_path / name)) == [10, 200, 110, 160]
    (tmp_path / "img" / "60.png").unlink()
    with pytest.raises(
        ScenarioError, match=r"there is no such file in row 1 \(.*60.png\), of class b"
    ):
        loaded(tmp_path / name)


def test_a_folder_of_pictures_by_class_is_as_before(tmp_path):
    for n, (name, content) in enumerate(FILES.items()):
        place = tmp_path / "data" / ("train", "test")[n % 2] / "ab"[n // 2]
        place.mkdir(parents=True)
        (place / name).write_bytes(content)
    examples = load_images(TaskSection(data=str(tmp_path / "data")))
    assert sorted(pixels(examples)) == [10, 110]
    assert examples.classes == ["a", "b"]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_by_what_they_hold_and_it_is_said(tmp_path, form):
    """They were clipped at 255, so that all of these were the same white picture."""
    values = [0, 257, 20 * 257, 40_000, 65_535]
    content = [png(grey(value, np.uint16), form) for value in values]
    table = {"image": content, "label": list("abaab")}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    examples = loaded(tmp_path / "x.parquet")
    assert pixels(examples) == [0, 1, 20, 156, 255]
    assert examples.notes == [f"data: 10 {DEEP}"]
    assert loaded(tmp_path / "x.parquet").notes == examples.notes  # from the cache too


@given(st.integers(0, 65_535))
def test_sixteen_bits_are_rounded_to_the_nearest_of_eight(value):
    image, done = in_eight_bits(grey(value, np.uint16), "L")
    found = int(np.asarray(image)[0, 0])
    assert done == [DEEP]
    assert abs(found / 255 - value / 65_535) <= 0.5 / 255
    assert np.asarray(in_eight_bits(image, "L")[0])[0, 0] == found


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_known_range_are_refused(tmp_path, dtype):
    features = Features({"image": ImageFeature(), "label": Value("string")})
    pictures = [np.full((SIDE, SIDE), v, dtype=dtype) for v in (0, 1)]
    rows = Dataset.from_dict({"image": pictures, "label": ["dark", "bright"]}, features=features)
    rows.to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(ScenarioError, match=r"32 bits .* in row 0, of class dark"):
        loaded(tmp_path / "x.parquet")


def drawn(colour, alpha, mode="RGBA") -> Image.Image:
    """A picture of one colour whose shape is in its transparency."""
    image = Image.new("RGBA", (SIDE, SIDE), (*colour, 0))
    image.paste((*colour, alpha), (2, 2, 6, 6))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pictures_are_seen_on_white_and_it_is_said(mode):
    image, done = in_eight_bits(drawn((0, 0, 0), 255, mode), "L")
    found = np.asarray(image)
    assert done == [CLEAR]
    assert (found[2:6, 2:6] == 0).all()
    assert (found[:2] == 255).all()


def test_a_palette_with_a_transparent_colour():
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.paste(1, (2, 2, 6, 6))
    shown = Image.open(io.BytesIO(_saved(image, transparency=0)))
    found, done = in_eight_bits(shown, "RGB")
    assert done == [CLEAR]
    assert np.asarray(found)[0, 0].tolist() == [255] * 3
    assert np.asarray(found)[3, 3].tolist() == [0] * 3


def _saved(image, **more) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **more)
    return file.getvalue()


def test_a_shape_that_white_hides_is_refused():
    with pytest.raises(Unreadable, match="white on nothing"):
        in_eight_bits(drawn((255, 255, 255), 255), "RGB")
    in_eight_bits(Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0)), "RGB")  # has no shape


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGB", "L", "P", "1", "CMYK"])
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_opaque_pictures_of_eight_bits_are_converted_as_ever(mode, wanted):
    values = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    image = Image.fromarray(values).convert(mode)
    found, done = in_eight_bits(image, wanted)
    assert not done
    assert np.array_equal(np.asarray(found), np.asarray(image.convert(wanted)))


@pytest.mark.parametrize("where", ["bytes", "file", "folder"])
def test_a_truncated_picture_is_one_line_with_file_and_class(tmp_path, where):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = [*CONTENT, png(Image.fromarray(noise))[:2000], *CONTENT]
    labels = [*"abab", "broken", *"abab"]
    names = [f"{n}.png" for n in range(len(content))]
    data = tmp_path / "x.parquet"
    if where == "bytes":
        pq.write_table(pa.table({"image": content, "label": labels}), data)
    else:
        data = tmp_path / "data"
        for name, label, one in zip(names, labels, content, strict=True):
            (data / label).mkdir(parents=True, exist_ok=True)
            (data / label / name).write_bytes(one)
    if where == "file":
        data = data / "x.csv"
        files = [f"{label}/{name}" for label, name in zip(labels, names, strict=True)]
        pd.DataFrame({"image": files, "label": labels}).to_csv(data, index=False)
    with pytest.raises(ScenarioError) as error:
        load_images(TaskSection(data=str(data), labels=["a", "b", "broken"]))
    said = str(error.value)
    assert "\n" not in said
    assert "cannot be read (" in said
    assert "of class broken" in said
    if where != "folder":
        assert "in row 4" in said  # the file's own, not the split's
    assert ("4.png" in said) == (where != "bytes")
    assert "0x" not in said


@pytest.mark.parametrize("content", [b"no picture", b"", None])
def test_what_is_no_picture_is_one_line(tmp_path, content):
    values = pa.array([*CONTENT, content], pa.binary())
    pq.write_table(pa.table({"image": values, "label": list("ababa")}), tmp_path / "x.parquet")
    with pytest.raises(ScenarioError, match=r"(is no picture|holds None) in row 4, of class a"):
        loaded(tmp_path / "x.parquet")


def test_a_column_that_holds_no_pictures_is_refused(tmp_path):
    table = pa.table({"image": [[1, 2], [3, 4]], "label": ["a", "b"]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ScenarioError, match=r"task.image = 'image': holds list.*names of files"):
        loaded(tmp_path / "x.parquet")


def test_what_was_altered_is_kept_on_every_device():
    from fedtune.tasks.pixels import PixelTable

    table = PixelTable(
        torch.zeros(1, 1, 2, 2), torch.zeros(1), torch.zeros(2, 1, 1, 1), altered={DEEP: 1}
    )
    assert table.to(torch.device("cpu"), torch.float64).altered == {DEEP: 1}
