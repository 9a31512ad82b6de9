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


HALF = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) < SIDE * SIDE // 2


def rgba(colour, alpha) -> Image.Image:
    """A picture of colours, by pixel or one, and of their opacity."""
    values = np.empty((SIDE, SIDE, 4), np.uint8)
    values[..., :3] = np.broadcast_to(np.asarray(colour, np.uint8), (SIDE, SIDE))[..., None]
    values[..., 3] = alpha
    return Image.fromarray(values)


def speck() -> Image.Image:
    image = rgba(255, HALF * 255)
    image.putpixel((0, 0), (0, 0, 0, 255))
    return image


HIDDEN = {
    "white on nothing": rgba(255, HALF * 255),
    "all but white": rgba(250, HALF * 255),
    "a hole in white": rgba(255, ~HALF * 255),
    "with a dark pixel": speck(),
    "colours under nothing": rgba(HALF * 200, 0),
    "one colour under nothing": rgba(20, 0),
    "colours under all but nothing": rgba(HALF * 200, 10),
}


@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("stored", ["RGBA", "LA"])
def test_a_shape_that_white_hides_is_refused(kind, mode, stored):
    with pytest.raises(Unreadable, match="hidden by the white"):
        in_eight_bits(HIDDEN[kind].convert(stored), mode)


@pytest.mark.parametrize("image", [rgba(255, 0), rgba(255, 250), rgba(200, HALF * 255)])
def test_what_has_no_shape_or_a_seen_one_is_not(image):
    in_eight_bits(image, "RGB")


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 64))
def test_a_tenth_of_every_shape_is_seen_or_it_is_refused(colour, alpha, behind, pixels):
    """Computed pixel by pixel from the definition of laying one picture on another."""
    opacity = np.full(SIDE * SIDE, behind)
    opacity[:pixels] = alpha
    white = 255 - (255 - colour) * opacity / 255
    shaped = opacity >= 16 if np.ptp(opacity) >= 16 else np.full(SIDE * SIDE, colour <= 239)
    seen, shape = np.mean(white <= 239), np.mean(shaped)
    if np.abs(white - 239).min() < 2:  # on the edge, where rounding decides
        return
    image = rgba(colour, opacity.reshape(SIDE, SIDE))
    if opacity.min() < 255 and seen < 0.1 * shape:
        with pytest.raises(Unreadable):
            in_eight_bits(image, "L")
    else:
        found = np.asarray(in_eight_bits(image, "L")[0]).reshape(-1)
        if opacity.min() < 255:
            assert np.abs(found - white).max() <= 1.5


@pytest.mark.parametrize(("shape", "clear"), [(0, 65_535), (30_000, 0), (30_000, 65_535)])
def test_a_transparent_value_of_sixteen_bits(shape, clear):
    values = np.where(HALF, shape, clear).astype(np.uint16)
    shown = Image.open(io.BytesIO(_saved(Image.fromarray(values), transparency=clear)))
    found, done = in_eight_bits(shown, "L")
    assert done == [DEEP, CLEAR]
    assert np.array_equal(np.asarray(found), np.where(HALF, round(shape / 257), 255))


def test_white_on_a_transparent_value_of_sixteen_bits_is_refused():
    values = np.where(HALF, 65_535, 0).astype(np.uint16)
    shown = Image.open(io.BytesIO(_saved(Image.fromarray(values), transparency=0)))
    with pytest.raises(Unreadable, match="hidden by the white"):
        in_eight_bits(shown, "L")


@pytest.mark.parametrize("declared", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["16 bits", "transparent"])
def test_the_mode_that_a_column_declares_bypasses_no_rule(tmp_path, declared, kind):
    images = [grey(v, np.uint16) for v in (300, 60_000)] if kind == "16 bits" else [
        rgba(0, HALF * 255), rgba(0, 255 - HALF * 100)
    ]  # fmt: skip
    features = Features({"image": ImageFeature(mode=declared), "label": Value("string")})
    columns = {"image": [{"bytes": png(i), "path": None} for i in images], "label": list("ab")}
    Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "x.parquet"))
    examples = loaded(tmp_path / "x.parquet")
    assert examples.notes == [f"data: 4 {DEEP if kind == '16 bits' else CLEAR}"]
    for image, seen in zip(images, examples.train.pixels[:, 0].numpy(), strict=True):
        assert np.array_equal(np.asarray(in_eight_bits(image, "L")[0]), seen)


@pytest.mark.parametrize("cell", ["AbC/" * 2000, "data:image/png;base64," + "A" * 5000, "a\0b"])
def test_a_cell_that_can_be_no_name_of_a_file_is_one_line_cut(tmp_path, cell):
    table = pa.table({"image": [cell, cell], "label": ["a", "b"]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ScenarioError, match=r"there is no such file in row 0") as error:
        loaded(tmp_path / "x.parquet")
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


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
