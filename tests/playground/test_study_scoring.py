"""Tallies by scene: the reference answers score full marks, and figures equal those of llava_pat's scorers."""

from __future__ import annotations

import numpy as np
import pytest

from llava_pat.evaluation.benchmark import Benchmark
from llava_pat.types import DataError
from playground import text, world
from playground.study.dialogue import read_turns, turn_tallies
from playground.study.evaluate import Split, _scored, benchmarks, scene_of
from playground.study.scoring import box_overlap, caption_tallies, counts, kinds_in, objects_in, turn_is_right
from playground.study.tallies import figures, pool

RNG = np.random.default_rng(3)


def test_objects_of_a_caption():
    said = "There are 2 objects: a red six at the top left and an Orange ring. A threesome of stars, blue."
    assert objects_in(said) == {("red", "six"), ("orange", "ring")}
    assert kinds_in("a six, a cross and sixes") == {"six", "cross"}
    assert objects_in("the six is red") == set(), "a colour stands right before its kind"
    assert counts({1, 2, 3}, {2, 3, 4, 5}) == (2, 1, 2)


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_reference_caption_names_its_scene(split):
    """In every style of text.py: else a perfect caption would not score 1."""
    rng = np.random.default_rng(0)
    for index in range(60):
        scene = world.scene(5, split, index)
        true = {(thing.colour, thing.kind) for thing in scene.things}
        for _ in range(6):
            caption = text.caption(scene, rng)
            assert objects_in(caption) == true and kinds_in(caption) == {kind for _, kind in true}, caption


def test_caption_tallies_by_hand():
    found = caption_tallies(
        {0: "a red six and a blue six", 2: ""}, {0: ["red six", "green star"], 2: ["red one"]}, {0: 150.0, 2: 0.0}, 3
    )
    assert found["cider"].tolist() == [[1.5, 1], [0, 0], [0, 1]]
    assert found["objects"].tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert found["kinds"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]


def test_turns():
    labels = ["red six", "green star"]
    right = [
        ("kind", "six", "six"),
        ("reg", " a red six ", "a red six"),
        ("rec", "[0.10, 0.10, 0.30, 0.32]", "[0.10, 0.10, 0.30, 0.30]"),
        ("caption", "a green star and a red six.", "whatever the reference is"),
    ]
    wrong = [
        ("kind", "Six", "six"),
        ("rec", "[0.10, 0.10, 0.19, 0.30]", "[0.10, 0.10, 0.30, 0.30]"),
        ("rec", "there", "[0.10, 0.10, 0.30, 0.30]"),
        ("caption", "a green star", "a green star and a red six"),
        ("caption", "a green star, a red six and a pink ring", "a green star and a red six"),
    ]
    assert all(turn_is_right(kind, said, true, labels, (1, 1)) for kind, said, true in right)
    assert not any(turn_is_right(kind, said, true, labels, (1, 1)) for kind, said, true in wrong)


def test_boxes_are_in_pixels():
    # a landscape of 112 x 80 is padded by 16 above and below
    assert box_overlap("[0.0, 0.142857, 0.5, 0.857143]", (0, 0, 56, 80), (112, 80)) == pytest.approx(1, abs=1e-4)
    assert box_overlap("no box", (0, 0, 56, 80), (112, 80)) == 0.0


@pytest.fixture(scope="module", params=["val", "test"])
def files(request, made) -> Split:
    return Split(made, request.param, None)


def perfect(files: Split, name: str, kind: Benchmark, questions: list) -> dict:
    """Right answers from the files of the benchmark."""
    if name == "captions":
        return {image.id: image.references[0] for image in kind.images(files.root)}
    if name == "qa":
        import json

        notes = json.loads((files.root / "vqa_annotations.json").read_text())["annotations"]
        return {note["question_id"]: note["multiple_choice_answer"] for note in notes}
    square = [world.scene(5, files.name, scene_of(q)) for q in questions]
    return {
        q.id: text.write_box(scene, tuple(round(edge) for edge in q.extra["box"]))
        for q, scene in zip(questions, square, strict=True)
    }


def test_right_answers_score_full_marks(files):
    asked = {name: (kind, files.ask(kind)) for name, kind in benchmarks(files.name).items()}
    said = {name: perfect(files, name, kind, questions) for name, (kind, questions) in asked.items()}
    tallies, further = _scored(files, asked, said)
    turns = files.turns()
    tallies |= turn_tallies(turns, {q.id: q.extra["answer"] for q in turns}, files.labels, files.scenes)
    found = figures(tallies)
    full = {name for name in found if name not in ("cider", "rec_iou")}
    assert {name: found[name] for name in full} == pytest.approx(dict.fromkeys(full, 100.0))
    assert {"object_f1", "kind_f1", "rec", "qa", "instruct", "instruct_reg"} <= full
    assert 75 < found["rec_iou"] < 90, "boxes are written in twentieths"
    assert further == {} or further["meteor"] > 50  # without java there is no METEOR


def test_figures_are_those_of_the_benchmarks(files):
    """Answers that are right now and then: shares equal what eval.sh would print."""
    asked = {name: (kind, files.ask(kind)) for name, kind in benchmarks(files.name).items()}
    said = {}
    for name, (kind, questions) in asked.items():
        right = perfect(files, name, kind, questions)
        others = RNG.permutation(list(right.values()))
        said[name] = {
            key: answer if RNG.random() < 0.6 else str(other)
            for (key, answer), other in zip(right.items(), others, strict=True)
        }
    tallies, further = _scored(files, asked, said)
    found = figures(tallies)
    theirs = {
        name: kind.score(files.root, {q.key: said[name][q.id] for q in questions}).metrics
        for name, (kind, questions) in asked.items()
    }
    assert found["cider"] == pytest.approx(next(iter(theirs["captions"].values())), rel=1e-5)
    assert further == pytest.approx({"meteor": theirs["captions"]["METEOR"]} if "METEOR" in theirs["captions"] else {})
    assert found["rec"] == pytest.approx(theirs["rec"]["accuracy@0.5"])
    assert found["rec_iou"] == pytest.approx(theirs["rec"]["mean_iou"])
    pooled = pool(tallies)
    qa = sum(pooled[f"qa_{kind}"] for kind in text.QUESTION_TYPES)
    assert 100 * qa[0] / qa[1] == pytest.approx(theirs["qa"]["accuracy"]), "all questions alike, as eval.sh does it"
    assert 0 < found["rec"] < 100 and 0 < found["qa"] < 100


def test_turns_have_the_true_turns_before_them(made):
    questions = read_turns(made / "eval" / "instruct.json", made / "images")
    for question in questions:
        place = int(question.id.split("/")[1])
        assert len(question.history) == 2 * place
        assert [turn.role for turn in question.history] == ["human", "gpt"] * place
        said = [turn.value for turn in question.history] + [question.text]
        assert said[0].startswith("<image>\n") == bool(question.images)
    last = {q.id.split("/")[0]: q for q in questions}
    assert {q.extra["scene"] for q in last.values()} == set(range(12))
    before = dict(zip([q.id for q in questions], [q.extra["answer"] for q in questions], strict=True))
    for question in last.values():
        name, _, place = question.id.partition("/")
        if int(place):
            assert question.history[-1].value == before[f"{name}/{int(place) - 1}"]


def test_only_the_first_scenes(made):
    few = Split(made, "val", 3)
    assert few.scenes == 3 and set(few.labels) == {0, 1, 2}
    for kind in benchmarks("val").values():
        assert {scene_of(question) for question in few.ask(kind)} == {0, 1, 2}
    assert {question.extra["scene"] for question in few.turns()} == {0, 1, 2}
    assert Split(made, "val", 99).scenes == 12


def test_a_split_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="regions_test.jsonl is not there: python -m playground.generate"):
        Split(tmp_path, "test", None)
