"""Our scorers on made-up answers, against figures of the original scorers (tests/evaluation/expected/*.json).

The generators in tests/evaluation/original are seeded; the originals ran on what they make, in a scratch folder. Each
JSON names the original file and commit, its figures, and hashes of what was made up and of the result for each item.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from llava_pat.evaluation.scorers import gqa, m4c, mme, mmmu, pope, reviews, scienceqa, seed
from llava_pat.evaluation.scorers.vqa_accuracy import vqa_accuracy

EXPECTED = Path(__file__).parent / "expected"


def sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


def golden(name: str) -> tuple[Any, dict[str, Any]]:
    """What the generator makes, and what the original says of it."""
    expected = json.loads((EXPECTED / f"{name}.json").read_text())
    module = importlib.import_module(f"tests.evaluation.original.make_{name}")
    items = module.make()
    assert module.SEED == expected["seed"]
    assert sha256(items) == expected["made_up_sha256"], f"make_{name}.py makes other answers than the original scored"
    return items, expected


def test_vqa_accuracy_is_the_official_one_and_m4cs_is_llavas() -> None:
    items, expected = golden("vqa")
    official = [vqa_accuracy(item["answer"], item["references"]) for item in items]
    llava = [m4c.textvqa_accuracy(item["answer"], item["references"]) for item in items]
    figures = expected["figures"]
    assert round(100 * sum(official) / len(official), 12) == pytest.approx(figures["vqa_accuracy"], abs=1e-9)
    for kind, figure in figures["vqa_per_answer_type"].items():
        of_kind = [score for score, item in zip(official, items, strict=True) if item["answer_type"] == kind]
        assert 100 * sum(of_kind) / len(of_kind) == pytest.approx(figure, abs=1e-9)
    assert 100 * sum(llava) / len(llava) == pytest.approx(figures["m4c_accuracy"], abs=1e-9)
    differ = sum(abs(one - other) > 1e-6 for one, other in zip(official, llava, strict=True))
    assert differ == figures["items_where_they_differ"] > 100
    hashes = expected["per_item_sha256"]
    assert sha256([m4c.m4c_answer(item["answer"]) for item in items]) == hashes["m4c_answers"]
    assert sha256([round(score, 9) for score in llava]) == hashes["m4c"]
    assert sha256([round(score, 9) for score in official]) == hashes["vqa"]


@pytest.mark.parametrize(
    ("answer", "references", "official", "llava"),
    [
        ("Yes", ["yes"] * 10, 0.0, 1.0),  # all agree: VQA compares as written
        ("Yes", ["yes"] * 9 + ["no"], 1.0, 1.0),
        ("dog's", ["dog's"] * 9 + ["dog"], 1.0, 1.0),
        ("1,,000", ["1,,000"] * 5 + ["1000"] * 5, 1.0, 1.0),
        ("two", ["2"] * 3 + ["3"] * 7, 0.9, 0.9),
        ("", [""] * 5 + ["x"] * 5, 1.0, 1.0),
    ],
)
def test_where_the_two_vqa_accuracies_differ(answer: str, references: list[str], official: float, llava: float) -> None:
    assert vqa_accuracy(answer, references) == pytest.approx(official)
    assert m4c.textvqa_accuracy(answer, references) == pytest.approx(llava)


def test_textvqa() -> None:
    items, expected = golden("textvqa")
    scores = [m4c.textvqa_accuracy(item["answer"], item["references"]) for item in items]
    accuracy = 100 * sum(scores) / len(scores)
    assert accuracy == pytest.approx(expected["figures"]["accuracy"], abs=1e-9)
    assert [f"Samples: {len(scores)}", f"Accuracy: {accuracy:.2f}%"] == expected["figures"]["printed"]
    assert sha256([round(score, 9) for score in scores]) == expected["per_item_sha256"]["scores"]
    questions = [m4c.question_of_prompt(item["prompt"]) for item in items]
    assert sha256(questions) == expected["per_item_sha256"]["questions"]
    assert questions == [item["question"].lower() for item in items]


def test_textvqa_refuses_what_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="9 reference answers; TextVQA has 10"):
        m4c.textvqa_accuracy("a", ["a"] * 9)
    with pytest.raises(ValueError, match="no question found"):
        m4c.question_of_prompt("only one line")


def test_pope() -> None:
    items, expected = golden("pope")
    for category, figures in expected["figures"].items():
        of_category = [item for item in items if item["category"] == category]
        counts = pope.pope_counts([item["text"] for item in of_category], [item["label"] for item in of_category])
        found = {
            "TP": counts.true_positive,
            "FP": counts.false_positive,
            "TN": counts.true_negative,
            "FN": counts.false_negative,
            "Accuracy": counts.accuracy,
            "Precision": counts.precision,
            "Recall": counts.recall,
            "F1 score": counts.f1,
            "Yes ratio": counts.yes_ratio,
        }
        assert found == pytest.approx(figures, abs=1e-12), category
    says = ["yes" if pope.says_yes(item["text"]) else "no" for item in items]
    assert sha256(says) == expected["per_item_sha256"]["says"]


def test_pope_without_a_yes_is_zero_not_a_crash() -> None:
    counts = pope.pope_counts(["no", "no"], ["yes", "no"])
    assert (counts.precision, counts.f1, counts.accuracy) == (0.0, 0.0, 0.5)
    with pytest.raises(ValueError, match="1 answers for 2 labels"):
        pope.pope_counts(["no"], ["yes", "no"])


def test_scienceqa() -> None:
    items, expected = golden("scienceqa")
    index = [
        None if item["text"] is None else scienceqa.scienceqa_index(item["text"], len(item["choices"]))
        for item in items
    ]
    figures = expected["figures"]
    right = [found == item["answer"] for found, item in zip(index, items, strict=True)]
    assert (sum(right), len(right)) == (figures["correct"], figures["count"])
    image = [ok for ok, item in zip(right, items, strict=True) if item["image"] and item["text"] is not None]
    assert (sum(image), len(image)) == (figures["image_correct"], figures["image_count"])
    assert sha256([-1 if found is None else found for found in index]) == expected["per_item_sha256"]["index"]


def test_gqa() -> None:
    items, expected = golden("gqa")
    predictions = [gqa.gqa_answer(item["text"]) for item in items.values()]
    assert sha256(predictions) == expected["per_item_sha256"]["predictions"]
    metrics = gqa.gqa_metrics(list(items.values()), predictions)
    figures = expected["figures"]
    assert next(iter(metrics)) == "accuracy"
    found = {name: metrics[name] for name in ("accuracy", "binary", "open", "distribution")}
    assert found == pytest.approx({name: figures[name] for name in found}, abs=1e-9)
    structural = {f"structural_{name}": value for name, value in figures["structural"].items()}
    semantic = {f"semantic_{gqa.SEMANTIC[name]}": value for name, value in figures["semantic"].items()}
    assert {name: metrics[name] for name in structural | semantic} == pytest.approx(structural | semantic, abs=1e-9)


def test_mme() -> None:
    items, expected = golden("mme")
    figures = expected["figures"]
    scores = {
        task: mme.mme_score(*zip(*((i["text"], i["label"]) for i in items if i["task"] == task), strict=True))
        for task in (*mme.PERCEPTION, *mme.COGNITION)
    }
    assert scores == pytest.approx(figures["tasks"], abs=1e-9)
    assert sum(scores[task] for task in mme.PERCEPTION) == pytest.approx(figures["perception"], abs=1e-9)
    assert sum(scores[task] for task in mme.COGNITION) == pytest.approx(figures["cognition"], abs=1e-9)
    assert sha256([mme.mme_answer(item["text"]) for item in items]) == expected["per_item_sha256"]["says"]


def test_mme_wants_pairs() -> None:
    with pytest.raises(ValueError, match="asks two questions about each image"):
        mme.mme_score(["yes"], ["Yes"])


def test_seed() -> None:
    data, expected = golden("seed")
    names = {number: name for name, number in data["question_type"].items()}
    metrics = seed.seed_metrics(data["questions"], [question["text"] for question in data["questions"]], names)
    figures = expected["figures"]
    printed = [
        f"{name}: {metrics[f'type_{name}']:.2f}%"
        for name, _ in sorted(data["question_type"].items(), key=lambda t: t[1])
    ]
    assert [*printed, f"Total accuracy: {metrics['total']:.2f}%"] == figures["all"]
    assert [f"image accuracy: {metrics['image']:.2f}%"] == figures["image"]
    assert [f"video accuracy: {metrics['video']:.2f}%"] == figures["video"]


def test_mmmu() -> None:
    items, expected = golden("mmmu")
    hashes, figures = expected["per_item_sha256"], expected["figures"]
    rng = random.Random(mmmu.SEED)
    choices = [mmmu.mmmu_option(item["text"], item["options"], rng) for item in items["choice"]]
    assert sha256(choices) == hashes["choices"]
    right = sum(choice == item["answer"] for choice, item in zip(choices, items["choice"], strict=True))
    assert (right, len(choices)) == (figures["choice_correct"], figures["choice_count"])
    assert sha256([sorted(map(str, mmmu.mmmu_values(item["text"]))) for item in items["open"]]) == hashes["open_values"]
    opened = [mmmu.mmmu_open_is_right(item["text"], item["answer"]) for item in items["open"]]
    assert sha256(opened) == hashes["open_right"]
    assert (sum(opened), len(opened)) == (figures["open_correct"], figures["open_count"])


def test_reviews() -> None:
    items, expected = golden("reviews")
    scores = [reviews.review_scores(item["content"]) for item in items]
    assert sha256([list(pair) for pair in scores]) == expected["per_item_sha256"]["tuples"]
    summary = reviews.summarise_reviews([(item["category"], pair) for item, pair in zip(items, scores, strict=True)])
    assert summary == {category: figures[0] for category, figures in expected["figures"].items()}
