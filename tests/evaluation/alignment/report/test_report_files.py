"""Reading a measuring run: what is taken, and what is refused by which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llava_pat.evaluation.alignment.report.files import read_curves, read_pictures, read_run
from llava_pat.types import DataError

FIRST = "run-none-seed0"


def change_metrics(out: Path, change: Callable[[dict], None]) -> None:
    content = json.loads((out / "metrics.json").read_text())
    change(content)
    (out / "metrics.json").write_text(json.dumps(content))


def change_arrays(path: Path, **changes: np.ndarray | None) -> None:
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_rows_and_pictures_are_what_was_written(make_run) -> None:
    out = make_run()
    run = read_run(out)
    content = json.loads((out / "metrics.json").read_text())
    assert [row.name for row in run.checkpoints] == list(content["checkpoints"])
    assert [row.name for row in run.baselines] == list(content["baselines"])
    assert run.checkpoints[0].metrics == content["checkpoints"][FIRST]
    assert {row.kind for row in run.baselines} == {"random_projector", "mean_vector"}
    with np.load(out / "data" / f"{FIRST}-pictures.npz") as stored:
        picture = run.pictures[FIRST].images[1]
        assert np.array_equal(picture.cosine, stored["cosine_1"].astype(np.float32))
        assert np.array_equal(picture.masks, stored["masks_1"])
    assert picture.decompositions[0].words == ("red", "circle", "the")


def test_a_row_without_arrays_or_pictures_is_no_error(make_run) -> None:
    out = make_run()
    for file in (out / "data").glob(f"{FIRST}*"):
        file.unlink()
    run = read_run(out)
    assert run.checkpoints[0].curves == {}
    assert FIRST not in run.pictures and len(run.pictures) == 2


def test_pictures_without_an_object_vocabulary_need_no_nearest_entry(make_run) -> None:
    out = make_run()
    data = out / "data"
    head = json.loads((data / f"{FIRST}-pictures.json").read_text())
    (data / f"{FIRST}-pictures.json").write_text(json.dumps(head | {"vocabulary_size": 0}))
    change_arrays(data / f"{FIRST}-pictures.npz", nearest_entry_0=None, nearest_entry_1=None)
    assert read_pictures(data, FIRST).images[0].nearest_entry.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["checkpoints"].clear(), "no checkpoint"),
        (lambda c: c.pop("baselines"), "'baselines'"),
        (lambda c: c["checkpoints"][FIRST].update(hit_at_1="0.5"), f"{FIRST}/hit_at_1 is '0.5', not a number"),
        (lambda c: c["checkpoints"][FIRST].update(hit_at_1=True), "is True, not a number"),
        (lambda c: c["checkpoints"].update({"../x": {}}), "'../x' is no file name"),
        (lambda c: c["checkpoints"].update({"..": {}}), "'..' is no file name"),
        (lambda c: c["baselines"].update({FIRST: {}}), "both a checkpoint and a baseline"),
    ],
)
def test_metrics_that_are_refused(make_run, change, message: str) -> None:
    out = make_run()
    change_metrics(out, change)
    with pytest.raises(DataError, match="metrics.json") as caught:
        read_run(out)
    assert message in str(caught.value)


def test_a_folder_without_a_run_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bash scripts/analyze.sh CHECKPOINT"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cosine_wrong": np.zeros(7, int)}, "cosine_right has 200 values and cosine_wrong 7"),
        ({"cosine_edges": np.zeros(200)}, "cosine_edges has 200 values and cosine_right 200, expected 201"),
        ({"label_iou": np.zeros(3)}, "label_words has 7 values and label_iou 3"),
        ({"ima": np.zeros((2, 3))}, r"ima has the shape \(2, 3\)"),
    ],
)
def test_curves_that_do_not_fit(make_run, changes, message: str) -> None:
    path = make_run() / "data" / f"{FIRST}.npz"
    change_arrays(path, **changes)
    with pytest.raises(DataError, match=message):
        read_curves(path)


def test_a_cut_file_is_named(make_run) -> None:
    path = make_run() / "data" / f"{FIRST}.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"run-none-seed0\.npz: no readable \.npz"):
        read_curves(path)


def test_pickled_arrays_are_not_opened(make_run) -> None:
    path = make_run() / "data" / f"{FIRST}.npz"
    np.savez(path, label_words=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="no readable"):
        read_curves(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cosine_0": np.zeros((16, 6))}, r"cosine_0 has the shape \(16, 6\), expected \(16, 7\)"),
        ({"masks_1": np.zeros((1, 32, 32), bool)}, r"masks_1 has the shape \(1, 32, 32\), expected \(2, 32, 32\)"),
        ({"pixels_0": np.zeros((32, 32), np.uint8)}, r"expected \(any, any, 3\)"),
        ({"nearest_entry_0": np.full(16, 7)}, "outside the vocabulary of 7 words"),
        ({"nearest_words_1": None}, "nearest_words_1"),
    ],
)
def test_pictures_that_do_not_fit(make_run, changes, message: str) -> None:
    data = make_run() / "data"
    change_arrays(data / f"{FIRST}-pictures.npz", **changes)
    with pytest.raises(DataError, match=message):
        read_pictures(data, FIRST)


def test_half_of_the_pictures(make_run) -> None:
    data = make_run() / "data"
    (data / f"{FIRST}-pictures.npz").unlink()
    with pytest.raises(DataError, match="the other half"):
        read_pictures(data, FIRST)


def test_pictures_of_different_images_are_not_set_side_by_side(make_run) -> None:
    out = make_run()
    head = out / "data" / f"{FIRST}-pictures.json"
    head.write_text(head.read_text().replace("val/00001.png", "val/00007.png"))
    with pytest.raises(DataError, match="of different images"):
        _ = read_run(out).pictures
