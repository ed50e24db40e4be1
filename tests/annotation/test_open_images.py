"""Open Images' official layout: CSV of boxes or masks, class names, mask PNGs of another size than their image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.annotation.samples import SIZE, disc, labels_and_masks, lines_of, run, save_image

H, W = SIZE
A, B = "000002b66c9c498e", "0a419be97dec2fa3"
BOXES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)
MASKS = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (A, B):
        save_image(tmp_path / "images" / "train" / f"{name}.jpg")
    rows = [
        f"{A},xclick,/m/01g317,1,0.125000,0.500000,0.250000,0.750000,0,1,0,0,0",
        f"{B},xclick,/m/0449p,1,0.195312,0.999999,0.000000,0.500000,-1,-1,-1,-1,-1",
        f"{A},activemil,/m/01g317,1,0.000000,1.000000,0.000000,1.000000,0,1,1,0,0",  # rows need not be sorted
        f"{A},xclick,/m/0449p,1,0.0,0.25,0.0,0.25,0,0,0,1,0",
        f"{A},xclick,/m/unknown,1,0.0,0.25,0.0,0.25,0,0,0,0,0",
        "ffffffffffffffff,xclick,/m/01g317,1,0.0,0.25,0.0,0.25,0,0,0,0,0",
    ]
    (tmp_path / "train-annotations-bbox.csv").write_text(BOXES + "\n".join(rows) + "\n")
    names = '/m/01g317,Person\n/m/0449p,Jaguar (Animal)\n/m/x,"Café, bar"\n'
    (tmp_path / "class-descriptions-boxable.csv").write_text(names, encoding="utf-8")
    return tmp_path


def arguments(folder: Path, annotations: str, *more: object) -> tuple:
    base = (
        "open_images",
        "--annotations",
        folder / annotations,
        "--classes",
        folder / "class-descriptions-boxable.csv",
    )
    return *base, "--image_folder", folder / "images", "--prefix", "train", "--out", folder / "r.jsonl", *more


def rectangle(x0: int, x1: int, y0: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def test_boxes(folder: Path, capsys) -> None:
    status, table, error = run(capsys, *arguments(folder, "train-annotations-bbox.csv"))
    assert status == 0, error
    out = folder / "r.jsonl"
    found = labels_and_masks(out, f"train/{A}.jpg")
    assert [label for label, _ in found] == ["person", "jaguar"]
    assert np.array_equal(found[0][1], rectangle(8, 32, 12, 36)) and np.array_equal(
        found[1][1], rectangle(0, 16, 0, 12)
    )
    (only,) = lines_of(out)[f"train/{B}.jpg"]["regions"]
    assert only == {"label": "jaguar", "bbox": [12.5, 0, 51.5, 24], "area": 52 * 24}
    assert "1  a group (--groups drop)" in table and "1  its class has no name in --classes" in table
    assert "1  no such image file" in table


def test_switches(folder: Path, capsys) -> None:
    names = "LabelName,DisplayName\n/m/01g317,Person\n/m/0449p,Jaguar (Animal)\n/m/unknown,Tree\n"  # V7 has a header
    (folder / "class-descriptions-boxable.csv").write_text(names)
    more = ("--groups", "keep", "--depictions", "drop")
    assert run(capsys, *arguments(folder, "train-annotations-bbox.csv", *more))[0] == 0
    found = labels_and_masks(folder / "r.jsonl", f"train/{A}.jpg")
    assert [label for label, _ in found] == ["person", "person", "tree"] and found[1][1].all()


def masks_csv(folder: Path) -> str:
    """Masks at twice the image's size, at half of it, missing, of another mode, broken."""
    large = np.kron(disc(SIZE, 30, 20, 11), np.ones((2, 2), np.uint8))
    small = disc((24, 32), 12, 12, 7)
    where = folder / "masks" / "train-masks-0"
    where.mkdir(parents=True)
    Image.fromarray(large * 255).save(where / f"{A}_m01g317_1.png")
    Image.fromarray(small * 255).convert("1").save(where / f"{A}_m01g317_2.png")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(where / f"{A}_m01g317_4.png")
    (folder / "masks" / "0").mkdir()
    (folder / "masks" / "0" / f"{B}_m0449p_5.png").write_bytes((where / f"{A}_m01g317_1.png").read_bytes()[:70])
    rows = [
        f"{A}_m01g317_{i}.png,{A},/m/01g317,8423fe79,0.0,1.0,0.0,1.0,0.6{i},0.1 0.2 1;0.2 0.3 0" for i in (1, 2, 3, 4)
    ]
    rows.append(f"{B}_m0449p_5.png,{B},/m/0449p,8423fe79,0.0,1.0,0.0,1.0,,")
    (folder / "train-annotations-object-segmentation.csv").write_text(MASKS + "\n".join(rows) + "\n")
    return "train-annotations-object-segmentation.csv"


def test_masks_are_resized_to_their_image(folder: Path, capsys) -> None:
    more = ("--masks", folder / "masks")
    status, table, error = run(capsys, *arguments(folder, masks_csv(folder), *more))
    assert status == 0, error
    found = labels_and_masks(folder / "r.jsonl", f"train/{A}.jpg")
    assert [label for label, _ in found] == ["person", "person"]
    assert np.array_equal(found[0][1], disc(SIZE, 30, 20, 11))  # twice the size, back to its pixels
    assert np.array_equal(found[1][1], np.kron(disc((24, 32), 12, 12, 7), np.ones((2, 2), np.uint8)))
    lines = lines_of(folder / "r.jsonl")
    assert [r["score"] for r in lines[f"train/{A}.jpg"]["regions"]] == [0.61, 0.62]
    assert list(lines) == [f"train/{A}.jpg"]
    assert "2  its mask cannot be read" in table and "1  no pixel of the image is in it" in table


def test_bad_files(folder: Path, capsys) -> None:
    boxes = "train-annotations-bbox.csv"
    no_folder = tuple(a for a in arguments(folder, boxes) if a not in ("--image_folder", folder / "images"))
    status, _, error = run(capsys, *no_folder)
    assert status == 2 and f"image {A}: does not say the image's size; give --image_folder" in error
    status, _, error = run(capsys, *arguments(folder, masks_csv(folder)))
    assert status == 2 and "give that of the PNG files by --masks" in error
    (folder / boxes).write_text(BOXES + f"{A},xclick,/m/01g317,1,left,0.5,0.25,0.75,0,1,0,0,0\n")
    status, _, error = run(capsys, *arguments(folder, boxes))
    assert status == 2 and f"image {A}, byte {len(BOXES)}: XMin, XMax, YMin, YMax are ['left'" in error
    (folder / boxes).write_text(BOXES + "0000\n")
    status, _, error = run(capsys, *arguments(folder, boxes))
    assert status == 2 and f"{boxes}:2: has 1 columns, not 13" in error
    (folder / boxes).write_text("a,b\n1,2\n")
    status, _, error = run(capsys, *arguments(folder, boxes))
    assert status == 2 and "its columns are ['a', 'b']" in error
    (folder / "class-descriptions-boxable.csv").write_text("/m/01g317\n")
    status, _, error = run(capsys, *arguments(folder, boxes))
    assert status == 2 and "two columns are expected" in error


def test_a_mask_path_that_leads_out(folder: Path, capsys) -> None:
    text = MASKS + f"../{A}_m01g317_1.png,{A},/m/01g317,1,0,1,0,1,0.6,\n"
    (folder / masks_csv(folder)).write_text(text)
    status, _, error = run(
        capsys, *arguments(folder, "train-annotations-object-segmentation.csv", "--masks", folder / "masks")
    )
    assert status == 2 and "leads out of" in error and "nothing was written" in error
