"""Boxes in answers: what lmms-eval and Shikra say of 2,400 made-up ones; RefCOCO's files; the playground's."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from pathlib import Path

import pytest

from llava_pat.data.refer_files import read_refs
from llava_pat.evaluation.benchmark import find_benchmark
from llava_pat.evaluation.referring import read_expressions
from llava_pat.evaluation.scorers.rec import iou, parse_box, pixels_to_square, rec_scores, square_to_pixels
from llava_pat.evaluation.tasks.region_caption import written_box
from llava_pat.types import DataError

HERE = Path(__file__).parent
IMAGES = [
    {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 640, "height": 480},
    {"id": 8, "file_name": "COCO_train2014_000000000008.jpg", "width": 300, "height": 500},
]
ANNOTATIONS = [
    {"id": 70, "image_id": 7, "bbox": [64.0, 80.0, 320.0, 320.0]},
    {"id": 80, "image_id": 8, "bbox": [0.0, 0.0, 300.0, 500.0]},
    {"id": 81, "image_id": 8, "bbox": [10.0, 20.0, 30.0, 40.0]},
]
REFS = [
    {
        "ref_id": 1,
        "ann_id": 70,
        "image_id": 7,
        "split": "val",
        "file_name": "COCO_train2014_000000000007_70.jpg",
        "sentences": [{"sent_id": 3, "sent": "the big dog"}, {"sent_id": 4, "sent": "dog on left"}],
    },
    {"ref_id": 2, "ann_id": 80, "image_id": 8, "split": "testA", "sentences": [{"sent_id": 5, "sent": "all of it"}]},
    {"ref_id": 9, "ann_id": 81, "image_id": 8, "split": "val", "sentences": [{"sent_id": 6, "sent": "corner"}]},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "refcoco"
    (tmp_path / "coco" / "train2014").mkdir(parents=True)
    folder.mkdir()
    (folder / "instances.json").write_text(json.dumps({"images": IMAGES, "annotations": ANNOTATIONS}))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(REFS, protocol=2))
    return tmp_path


def made_up() -> tuple[list, dict]:
    spec = importlib.util.spec_from_file_location("make_rec", HERE / "original" / "make_rec.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_rec"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    expected = json.loads((HERE / "expected" / "rec.json").read_text())
    made_by = expected["generator"]
    assert made_by["version"] == module.VERSION
    return module.cases(made_by["seed"], made_by["count"]), expected


def test_figures_are_the_originals() -> None:
    cases, expected = made_up()
    found = rec_scores([c.answer for c in cases], [c.box for c in cases], [c.size for c in cases])
    figures = expected["figures"]
    assert found.accuracy == {threshold: figures[str(threshold)] for threshold in (0.3, 0.5, 0.7)}
    assert found.mean_iou == pytest.approx(figures["mean_iou"], abs=1e-12)
    assert found.unparsable == figures["unparsable"]
    assert len(cases) >= 1000 and 0.3 < figures["0.5"] < 0.7


def test_every_answer_overlaps_as_in_the_original() -> None:
    cases, expected = made_up()
    for case, there in zip(cases, expected["iou"], strict=True):
        box = parse_box(case.answer)
        here = 0.0 if box is None else iou(square_to_pixels(box, *case.size), case.box)
        assert here == pytest.approx(there, abs=1e-8), case


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("It is [0.1,0.2,\n0.3, 0.4 ].", (0.1, 0.2, 0.3, 0.4)),
        ("[1] [0, 0, 1, 1] [0.5, 0.5, 1, 1]", (0, 0, 1, 1)),
        ("[0.1, 0.2, 0.3, 0.4, 0.5] [0.2, 0.2, 0.4, 0.4]", (0.2, 0.2, 0.4, 0.4)),
        ("[-0.1, 0.2, 12, 0.4]", (-0.1, 0.2, 12, 0.4)),
        ("(0.1, 0.2, 0.3, 0.4)", None),
        ("[0.1, 0.2, 0.3]", None),
        ("", None),
        (f"[0, 0, 1, {'9' * 400}]", None),  # no finite number
    ],
)
def test_reading_a_box(text: str, box: tuple | None) -> None:
    assert parse_box(text) == box


def test_square_of_a_wide_and_a_tall_image() -> None:
    assert square_to_pixels((0.1, 0.25, 0.6, 0.75), 640, 480) == pytest.approx((64, 80, 384, 400))
    assert square_to_pixels((0.2, 0.0, 0.8, 1.0), 300, 500) == pytest.approx((0, 0, 300, 500))
    assert pixels_to_square((64, 80, 384, 400), 640, 480) == pytest.approx((0.1, 0.25, 0.6, 0.75))
    odd = square_to_pixels(pixels_to_square((1, 2, 30, 40), 101, 50), 101, 50)  # the offset is floored: 25, not 25.5
    assert odd == pytest.approx((1, 2, 30, 40))
    assert pixels_to_square((0, 0, 101, 50), 101, 50) == pytest.approx((0, 25 / 101, 1, 75 / 101))


def test_what_is_wrong_with_an_answer_is_counted() -> None:
    answers = ["[0.6, 0.75, 0.1, 0.25]", "[10, 25, 60, 75]", "nowhere", "[0.1, 0.25, 0.6, 0.75]"]
    found = rec_scores(answers, [(64, 80, 384, 400)] * 4, [(640, 480)] * 4)
    assert (found.swapped, found.out_of_range, found.unparsable) == (1, 1, 1)
    assert found.accuracy == {0.3: 0.25, 0.5: 0.25, 0.7: 0.25}
    assert found.mean_iou == pytest.approx(0.25)
    with pytest.raises(ValueError, match="2 answers, 1 boxes"):
        rec_scores(["", ""], [(0, 0, 1, 1)], [(2, 2)])


def test_refcoco_end_to_end(root: Path) -> None:
    benchmark = find_benchmark("refcoco_val")
    assert benchmark.missing(root) == []
    questions = benchmark.questions(root)
    assert [question.id for question in questions] == [3, 4, 6]
    assert questions[0].images == (root / "refcoco/../coco/train2014/COCO_train2014_000000000007.jpg",)
    assert questions[0].text == (
        "Please provide the bounding box coordinate of the region this sentence describes: the big dog"
    )
    texts = ("[0.1, 0.25, 0.6, 0.75]", "[0.1, 0.25, 0.6, 0.60]", "no idea")  # IoU 1, 0.7, none
    scores = benchmark.score(root, {q.key: text for q, text in zip(questions, texts, strict=True)})
    assert next(iter(scores.metrics)) == "accuracy@0.5"
    assert scores.metrics["accuracy@0.5"] == pytest.approx(200 / 3)
    assert scores.metrics["mean_iou"] == pytest.approx(170 / 3)
    assert scores.metrics["unparsable"] == 1
    partial = benchmark.score(root, {questions[0].key: texts[0]})
    assert partial.metrics["accuracy@0.5"] == 100
    assert any("2 of 3 questions have no answer" in note for note in partial.notes)


def test_region_captioning_asks_with_the_squares_numbers(root: Path) -> None:
    benchmark = find_benchmark("region_refcoco_testA")
    (question,) = benchmark.questions(root)
    assert question.text == "Please provide a short description for this region: [0.2, 0.0, 0.8, 1.0]"
    assert written_box((64, 80, 384, 400), (640, 480)) == "[0.1, 0.25, 0.6, 0.75]"


def test_same_expressions_from_json_and_from_python_2s_pickle(root: Path) -> None:
    folder = root / "refcoco"
    instances = folder / "instances.json"
    (folder / "refs(unc).json").write_text(json.dumps(REFS))
    as_json = read_expressions(folder / "refs(unc).json", instances, "val")
    assert read_expressions(folder / "refs(unc).p", instances, "val") == as_json
    assert as_json[0].sentences == ((3, "the big dog"), (4, "dog on left"))
    # Python 2's str, as the official files have it: opcode U, short binary string
    (folder / "two.p").write_bytes(b"\x80\x02]}U\x05splitU\x03vals\x61.")
    assert read_refs(folder / "two.p") == [{"split": "val"}]


class _Danger:
    def __reduce__(self):
        return (print, ("run as the file was read",))


def test_pickle_that_would_run_code_is_refused(root: Path, capsys: pytest.CaptureFixture) -> None:
    file = root / "refcoco" / "refs(unc).p"
    file.write_bytes(pickle.dumps([{"ref_id": _Danger()}]))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: not read, since the pickle asks for builtins\.print"):
        find_benchmark("refcoco_val").questions(root)
    assert capsys.readouterr().out == ""


def test_bad_files_are_named(root: Path) -> None:
    folder = root / "refcoco"
    refs, instances = folder / "refs(unc).p", folder / "instances.json"
    with pytest.raises(DataError, match="no expression of the split 'testB' among 3; it has testA, val"):
        read_expressions(refs, instances, "testB")
    refs.write_bytes(refs.read_bytes()[:40])
    with pytest.raises(DataError, match="no whole pickle"):
        read_refs(refs)
    refs.write_bytes(pickle.dumps([{**REFS[0], "ann_id": 71}]))
    with pytest.raises(DataError, match="ref_id 1 is about annotation 71, which .*instances.json does not have"):
        read_expressions(refs, instances, "val")
    refs.unlink()
    (missing,) = find_benchmark("refcoco_val").missing(root)
    assert missing.path == "refs(unc).p" and "refer" in missing.where


def test_playgrounds_true_boxes_are_right(tmp_path: Path) -> None:
    """The playground writes its answers itself (playground/text.py): read back, they are the true boxes, rounded."""
    from playground import world
    from playground.generate import generate
    from playground.text import write_box

    generate(tmp_path, train=1, val=6, seed=3, workers=1)
    benchmark = find_benchmark("playground_rec")
    root = tmp_path / "eval"
    assert benchmark.missing(root) == []
    questions = benchmark.questions(root)
    assert all(question.images[0].is_file() for question in questions)
    things = [(scene, thing) for scene in (world.scene(3, "val", i) for i in range(6)) for thing in scene.things]
    answers = {q.key: write_box(scene, thing.box) for q, (scene, thing) in zip(questions, things, strict=True)}
    scores = benchmark.score(root, answers)
    assert scores.metrics["accuracy@0.5"] == 100
    assert 75 < scores.metrics["mean_iou"] < 90  # boxes are written in twentieths
