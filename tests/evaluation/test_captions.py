"""Captions: pycocoevalcap's figures against independent arithmetic, with Java and without, and what moves lines."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from llava_pat.evaluation.benchmark import find_benchmark
from llava_pat.evaluation.scorers import captions
from llava_pat.evaluation.scorers.captions import PLAIN, caption_scores, has_java
from llava_pat.types import DataError

pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (scripts/requirements.txt)")
needs_java = pytest.mark.skipif(not has_java(), reason="no java on this machine: PTB tokenizer and METEOR not tested")

REFERENCES = {
    1: ["a cat sits on the mat", "the cat on a mat"],
    2: ["two dogs run over the grass", "dogs running in a green field"],
    3: ["a red bus in the street", "the bus is red"],
}
FOUND = {1: "a cat on the mat", 2: "two dogs in a field", 3: "a blue car"}


@pytest.fixture
def without_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "_meteor", lambda expected, found: 0.25)  # 8 seconds of loading paraphrases


def grams(text: str, n: int) -> Counter:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def cider_d(references: dict, found: dict) -> float:
    """CIDEr-D of arXiv 1411.5726, written down from the paper: sigma 6, n up to 4, times 10; clipped counts."""
    scores = []
    log_count = math.log(len(references))
    for image, caption in found.items():
        per_n = []
        for n in range(1, 5):
            frequency = Counter()
            for texts in references.values():
                frequency.update(set().union(*(grams(text, n) for text in texts)))

            def vector(text: str, n=n, frequency=frequency) -> dict:
                return {g: c * (log_count - math.log(max(1, frequency[g]))) for g, c in grams(text, n).items()}

            here = vector(caption)
            similarity = 0.0
            for text in references[image]:
                there = vector(text)
                norm = math.hypot(*here.values()) * math.hypot(*there.values()) if here and there else 0.0
                dot = sum(min(here[g], there.get(g, 0.0)) * there.get(g, 0.0) for g in here)
                apart = (len(caption.split()) - len(text.split())) ** 2
                similarity += (dot / norm if norm else 0.0) * math.exp(-apart / (2 * 6.0**2))
            per_n.append(similarity / len(references[image]))
        scores.append(10 * sum(per_n) / 4)
    return sum(scores) / len(scores)


def test_cider_and_bleu_by_hand() -> None:
    scores = caption_scores(REFERENCES, FOUND, java=False)
    assert list(scores.metrics)[0] == f"CIDEr{PLAIN}"
    assert scores.metrics[f"CIDEr{PLAIN}"] == pytest.approx(100 * cider_d(REFERENCES, FOUND), rel=1e-6)
    # words found in a reference: 5 of 5, 4 of 5 ("field" and "in", "a", "dogs" are in the second; "two" in the first:
    # clipped over both, so 5 of 5), "a" of 3; closest reference lengths 5, 6 and 4 against 13 words
    assert scores.metrics[f"BLEU-1{PLAIN}"] == pytest.approx(100 * (11 / 13) * math.exp(1 - 15 / 13), rel=1e-6)
    assert sum(scores.cider.values()) / 3 == pytest.approx(scores.metrics[f"CIDEr{PLAIN}"])
    assert "no working java" in scores.notes[-1] and "METEOR" not in "".join(scores.metrics)


def test_worse_captions_score_worse() -> None:
    best = {image: texts[0] for image, texts in REFERENCES.items()}
    worst = {1: REFERENCES[2][0], 2: REFERENCES[3][0], 3: REFERENCES[1][0]}
    order = [caption_scores(REFERENCES, texts, java=False).metrics[f"CIDEr{PLAIN}"] for texts in (best, FOUND, worst)]
    assert order == sorted(order, reverse=True) and order[0] > 10 * order[2]


@needs_java
def test_java_and_plain_tokens_nearly_agree(without_meteor: None) -> None:
    by_java = caption_scores(REFERENCES, FOUND)
    plain = caption_scores(REFERENCES, FOUND, java=False)
    for name, value in by_java.metrics.items():
        if name not in ("METEOR", "SPICE"):
            assert value == pytest.approx(plain.metrics[f"{name}{PLAIN}"], rel=1e-6), name
    assert by_java.metrics["METEOR"] == 25


@needs_java
@pytest.mark.parametrize("char", ["\r", "\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "\x00", "\ud83d", "\x1d"])
def test_no_character_moves_captions_to_other_images(char: str, without_meteor: None) -> None:
    """For Java most of these end a line: each later caption would be scored against the next image's references."""
    best = {image: texts[0] for image, texts in REFERENCES.items()}
    whole = caption_scores(REFERENCES, best)
    found = caption_scores(REFERENCES, {**best, 1: best[1].replace(" ", f" {char} ", 1)})
    assert found.cider[2] == pytest.approx(whole.cider[2]) and found.cider[3] == pytest.approx(whole.cider[3])
    if char not in ("\ud83d",):
        assert found.cider[1] == pytest.approx(whole.cider[1])


@needs_java
def test_empty_captions_count_as_nothing(without_meteor: None) -> None:
    found = caption_scores(REFERENCES, {1: "", 2: " \n", 3: REFERENCES[3][0]})
    assert found.cider[1] == found.cider[2] == 0 and found.cider[3] > 0
    nothing = caption_scores(REFERENCES, dict.fromkeys(REFERENCES, ""))
    assert nothing.metrics["CIDEr"] == 0 and nothing.metrics["BLEU-1"] == pytest.approx(0)


@needs_java
def test_meteor_runs() -> None:
    found = caption_scores(REFERENCES, {**FOUND, 3: ""})
    assert 20 < found.metrics["METEOR"] < 60
    assert ("SPICE" in found.metrics) == captions.has_spice_models()
    assert captions.has_spice_models() or any("SPICE is left out" in note for note in found.notes)


def test_what_cannot_be_scored_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="2 captions for 3 images"):
        caption_scores(REFERENCES, {1: "a", 2: "b"})
    with pytest.raises(DataError, match="image 2 has no reference"):
        caption_scores({**REFERENCES, 2: []}, FOUND)
    one = caption_scores({1: REFERENCES[1]}, {1: FOUND[1]}, java=False)
    assert any("single image is 0" in note for note in one.notes)
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install pycocoevalcap"):
        caption_scores(REFERENCES, FOUND)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco(count: int, **more: list) -> dict:
    further = [{key: values[i] for key, values in more.items()} for i in range(count)]
    images = [{"id": i, "file_name": f"{i}.jpg", **further[i]} for i in range(count)]
    said = [{"id": n, "image_id": n % count, "caption": f"thing {n % count} number {n}"} for n in range(2 * count)]
    return {"images": images, "annotations": said}


def test_karpathys_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_pat.evaluation.scorers.captions.has_java", lambda: False)
    image = {"filename": "COCO_val2014_000000000042.jpg", "cocoid": 42, "imgid": 0, "sentences": [{"raw": "A Dog."}]}
    other = {**image, "cocoid": 43, "imgid": 1, "sentences": [{"raw": "Two cats sleep."}]}
    images = [{**image, "split": "test"}, {**image, "cocoid": 1, "split": "restval"}, {**other, "split": "test"}]
    write(tmp_path / "coco/dataset_coco.json", {"images": images})
    (tmp_path / "pope/val2014").mkdir(parents=True)  # LLaVA's place for POPE's images
    benchmark = find_benchmark("coco_caption")
    questions = benchmark.questions(tmp_path)
    assert [question.id for question in questions] == [42, 43]
    assert questions[0].images[0].resolve() == tmp_path / "pope/val2014/COCO_val2014_000000000042.jpg"
    assert questions[0].text == "Provide a one-sentence caption for the provided image."
    texts = {question.key: text for question, text in zip(questions, ("a dog", "two cats sleep"), strict=True)}
    assert benchmark.score(tmp_path, texts).metrics[f"BLEU-1{PLAIN}"] == pytest.approx(100)


def test_nocaps_by_domain_and_its_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_pat.evaluation.scorers.captions.has_java", lambda: False)
    domain = ["in-domain", "out-domain", "out-domain"]
    write(tmp_path / "nocaps/nocaps_val_4500_captions.json", coco(3, domain=domain))
    write(tmp_path / "nocaps/nocaps_test_image_info.json", {"images": coco(3)["images"]})
    (tmp_path / "nocaps/images").mkdir()
    benchmark = find_benchmark("nocaps")
    assert benchmark.missing(tmp_path) == []  # images of both sets may lie in one folder
    answers = {q.key: f"thing {q.id}" if q.id else "nothing" for q in benchmark.questions(tmp_path)}
    metrics = benchmark.score(tmp_path, answers).metrics
    assert metrics[f"CIDEr{PLAIN}_in-domain"] == 0 < metrics[f"CIDEr{PLAIN}_out-domain"]
    whole = (metrics[f"CIDEr{PLAIN}_in-domain"] + 2 * metrics[f"CIDEr{PLAIN}_out-domain"]) / 3
    assert metrics[f"CIDEr{PLAIN}"] == pytest.approx(whole)

    server = find_benchmark("nocaps_test")
    first, *_ = server.questions(tmp_path)
    scores = server.score(tmp_path, {first.key: "a thing"}, tmp_path / "out")
    assert scores.metrics == {}
    lines = json.loads(scores.submission.read_text())
    assert lines == [{"image_id": i, "caption": "a thing" if i == 0 else ""} for i in range(3)]
    assert any("eval.ai" in note for note in scores.notes)


def test_a_caption_about_no_image_is_refused(tmp_path: Path) -> None:
    content = coco(2)
    content["annotations"][1]["image_id"] = 99
    write(tmp_path / "coco/annotations/captions_val2017.json", content)
    (tmp_path / "coco/val2017").mkdir()
    with pytest.raises(DataError, match="annotation 1 is about image 99"):
        find_benchmark("coco_caption_val2017").questions(tmp_path)
