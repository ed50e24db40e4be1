"""Benchmarks with labels, on tiny folders in their official layout: what is asked, scored and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_pat.evaluation.benchmark import Benchmark, Needed, Scores, describe, find_benchmark, registry
from llava_pat.types import DataError

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
OURS = (
    "gqa", "llava_bench", "mmbench", "mmbench_cn", "mmbench_cn_test", "mmbench_test", "mme", "mmmu", "mmvet", "okvqa",
    "playground_pope", "playground_vqa", "pope", "scienceqa", "seed", "seed_all", "textvqa", "textvqa_no_ocr", "vizwiz",
    "vizwiz_val", "vqav2", "vqav2_val",
)  # fmt: skip


def put(path: Path, content: Any) -> Path:
    """A file of JSON, of JSON lines (a list for .jsonl), or of text; a folder where the content is None."""
    if content is None:
        path.mkdir(parents=True, exist_ok=True)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def scored(benchmark: Benchmark, root: Path, texts: list[str], out: Path | None = None) -> Scores:
    """The score of one text for each question, in order."""
    questions = benchmark.questions(root)
    return benchmark.score(root, dict(zip((q.key for q in questions), texts, strict=True)), out)


def vqa(folder: Path, questions: str, annotations: str, people: list[list[str]]) -> None:
    """VQA's two files with a question for each list of people's answers."""
    asked = [{"question_id": 10 + i, "image_id": i, "question": f"What {i}?"} for i in range(len(people))]
    answers = [
        {
            "question_id": 10 + i,
            "image_id": i,
            "answer_type": "number" if i else "other",
            "answers": [{"answer": answer, "answer_id": k} for k, answer in enumerate(given, start=1)],
        }
        for i, given in enumerate(people)
    ]
    put(folder / questions, {"questions": asked})
    put(folder / annotations, {"annotations": answers})


def test_registry_has_every_benchmark_once_and_says_what_there_is() -> None:
    assert set(OURS) <= set(registry())
    assert all(cls.name == name and cls.title and cls.needs for name, cls in registry().items())
    with pytest.raises(ValueError, match="no benchmark 'mmvte'; there are .*mmvet"):
        find_benchmark("mmvte")


@pytest.mark.parametrize("name", OURS)
def test_empty_folder_names_every_missing_file_and_its_source(name: str, tmp_path: Path) -> None:
    benchmark = find_benchmark(name)
    root = tmp_path / "eval"
    assert benchmark.missing(root) == list(benchmark.needs)
    first = benchmark.needs[0]
    assert first.where
    with pytest.raises(DataError, match="is missing") as error:
        benchmark.questions(root)
    assert any(describe(needed, root / benchmark.folder) in str(error.value) for needed in benchmark.needs)


def test_another_place_does_as_well(tmp_path: Path) -> None:
    needed = Needed("a/b", "labels", "https://example.org", instead=("c",))
    assert needed.found(tmp_path) is None
    put(tmp_path / "c", "x")
    assert needed.found(tmp_path) == tmp_path / "c"
    assert "(or " in describe(needed, tmp_path) and "https://example.org" in describe(needed, tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "questions", "annotations", "image"),
    [
        (
            "vqav2_val",
            "vqav2",
            "v2_OpenEnded_mscoco_val2014_questions.json",
            "v2_mscoco_val2014_annotations.json",
            "val2014/COCO_val2014_000000000001.jpg",
        ),
        (
            "okvqa",
            "okvqa",
            "OpenEnded_mscoco_val2014_questions.json",
            "mscoco_val2014_annotations.json",
            "val2014/COCO_val2014_000000000001.jpg",
        ),
        ("playground_vqa", "", "vqa_questions.json", "vqa_annotations.json", "../images/val/000001.png"),
    ],
)
def test_vqa_files(name: str, folder: str, questions: str, annotations: str, image: str, tmp_path: Path) -> None:
    root = tmp_path / "eval"
    vqa(root / folder, questions, annotations, [["red"] * 10, ["2"] * 2 + ["3"] * 8])
    benchmark = find_benchmark(name)
    put(root / folder / next(n.path for n in benchmark.needs if n.what == "images"), None)
    assert benchmark.missing(root) == []
    second = benchmark.questions(root)[1]
    assert (second.id, second.text, second.images) == (11, f"What 1?{SHORT}", (root / folder / image,))
    # "Red." is normalised before all ten people's "red" is compared with it (the playground's labels are compared as
    # they stand); two of ten said 2
    scores = scored(benchmark, root, ["red" if name == "playground_vqa" else "Red.", "two"])
    assert scores.metrics == pytest.approx({"accuracy": 80.0, "number_accuracy": 60.0, "other_accuracy": 100.0})
    assert next(iter(scores.metrics)) == "accuracy" and scores.notes == []
    partly = benchmark.score(root, {benchmark.questions(root)[0].key: "red"})
    assert partly.metrics["accuracy"] == 50.0 and partly.notes == ["1 of 2 questions have no answer"]


def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "eval"
    vqa(root, "vqa_questions.json", "vqa_annotations.json", [["red"] * 10])
    put(root / "../images", None)
    benchmark = find_benchmark("playground_vqa")
    with pytest.raises(DataError, match="1 of 1 answers are to questions that it does not have"):
        benchmark.score(root, {(99, None, "What?"): "red"})
    with pytest.raises(DataError, match="no answer to score; answer its 1 questions first"):
        benchmark.score(root, {})
    put(root / "vqa_annotations.json", {"annotations": []})
    with pytest.raises(DataError, match="no annotation of question 10"):
        scored(benchmark, root, ["red"])
    put(root / "vqa_questions.json", "[1")
    with pytest.raises(DataError, match="vqa_questions.json: no JSON"):
        benchmark.questions(root)
    put(root / "vqa_questions.json", {"questions": [{"question_id": 1}]})
    with pytest.raises(DataError, match="entry 0: no 'image_id'"):
        benchmark.questions(root)


def test_pope_has_llavas_ids_and_averages_f1(tmp_path: Path) -> None:
    for name, folder, labels in (("pope", "pope", "coco/coco_pope_{}.json"), ("playground_pope", "", "pope_{}.jsonl")):
        root = tmp_path / name / "eval"
        for category in ("adversarial", "random", "popular"):
            lines = [
                {"question_id": 1, "image": "a.jpg", "text": "Is there a cat?", "label": "yes"},
                {"question_id": 2, "image": "a.jpg", "text": "Is there a dog?", "label": "no"},
            ]
            put(root / folder / labels.format(category), "".join(json.dumps(line) + "\n" for line in lines))
        benchmark = find_benchmark(name)
        put(root / folder / benchmark.needs[-1].path, None)
        assert benchmark.missing(root) == []
        questions = benchmark.questions(root)
        assert [q.id for q in questions] == [1, 2, 10000001, 10000002, 20000001, 20000002]
        assert questions[0].text == f"Is there a cat?{SHORT}"
        scores = scored(benchmark, root, ["Yes", "No", "yes", "yes", "no", "no"])
        assert (scores.metrics["adversarial_f1"], scores.metrics["popular_f1"]) == (100.0, 0.0)
        assert scores.metrics["random_f1"] == pytest.approx(200 / 3)
        assert scores.metrics["f1"] == pytest.approx((100 + 200 / 3 + 0) / 3)
        partly = benchmark.score(root, {questions[0].key: "Yes", questions[1].key: "No"})
        assert partly.metrics["f1"] == 100.0 and len(partly.notes) == 3  # unanswered, and two categories left out


def textvqa(root: Path) -> None:
    entries = [
        {"image_id": "aa", "question": "What Brand?", "question_id": 1, "answers": ["dell"] * 10},
        {"image_id": "aa", "question": "what year?", "question_id": 2, "answers": ["1990"] * 2 + ["90"] * 8},
    ]
    put(root / "textvqa/TextVQA_0.5.1_val.json", {"data": entries})
    put(root / "textvqa/train_images", None)


def test_textvqa_built_and_from_llavas_file(tmp_path: Path) -> None:
    textvqa(tmp_path)
    plain, with_ocr = find_benchmark("textvqa_no_ocr"), find_benchmark("textvqa")
    assert [q.text for q in plain.questions(tmp_path)] == [f"What Brand?{SHORT}", f"what year?{SHORT}"]
    assert scored(plain, tmp_path, ["Dell", "1990"]).metrics == pytest.approx({"accuracy": 80.0})
    assert [needed.path for needed in with_ocr.missing(tmp_path)] == ["llava_textvqa_val_v051_ocr.jsonl"]
    tokens = [{"image_id": "aa", "ocr_tokens": ["DELL", "90"]}]
    put(tmp_path / "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", {"data": tokens})
    built = with_ocr.questions(tmp_path)
    assert built[0].text == f"What Brand?\nReference OCR token: DELL, 90{SHORT}"
    put(tmp_path / "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", {"data": []})
    assert with_ocr.questions(tmp_path)[0].text == f"What Brand?\nReference OCR token: {SHORT}"  # 115 of LLaVA's 5,000
    lines = [{"question_id": q.id, "image": q.images[0].name, "text": q.text, "category": "default"} for q in built]
    put(tmp_path / "textvqa/llava_textvqa_val_v051_ocr.jsonl", lines)
    assert [q.key for q in with_ocr.questions(tmp_path)] == [q.key for q in built]
    assert scored(with_ocr, tmp_path, ["Dell", "1990"]).metrics == pytest.approx({"accuracy": 80.0})
    only_first = with_ocr.score(tmp_path, {built[0].key: "dell"})
    assert only_first.metrics["accuracy"] == 100.0 and only_first.notes == ["1 of 2 questions have no answer"]


def test_gqa(tmp_path: Path) -> None:
    def entry(question: str, answer: str, structural: str) -> dict[str, Any]:
        types = {"structural": structural, "semantic": "attr", "detailed": "x"}
        return {
            "question": question,
            "imageId": "n1",
            "answer": answer,
            "isBalanced": True,
            "types": types,
            "groups": {"global": None},
        }

    labels = {"7": entry("Is it overcast?", "no", "verify"), "8": entry("What colour?", "red", "query")}
    put(tmp_path / "gqa/data/questions1.2/testdev_balanced_questions.json", labels)
    put(tmp_path / "gqa/data/images", None)
    benchmark = find_benchmark("gqa")
    built = benchmark.questions(tmp_path)
    assert (built[0].id, built[0].text, built[0].images[0].name) == ("7", f"Is it overcast?{SHORT}", "n1.jpg")
    scores = scored(benchmark, tmp_path, ["No.", "dark red"], tmp_path / "out")
    assert scores.metrics["accuracy"] == 50.0 and scores.metrics["open"] == 0.0 and scores.metrics["binary"] == 100.0
    assert json.loads(scores.submission.read_text())[0] == {"questionId": "7", "prediction": "no"}
    lines = [{"question_id": q.id, "image": q.images[0].name, "text": q.text} for q in reversed(built)]
    put(tmp_path / "gqa/llava_gqa_testdev_balanced.jsonl", lines)
    assert [q.key for q in benchmark.questions(tmp_path)] == [q.key for q in reversed(built)]
    assert scored(benchmark, tmp_path, ["red", "yes"]).metrics["open"] == 100.0
    put(tmp_path / "gqa/llava_gqa_testdev_balanced.jsonl", [lines[0] | {"question_id": "9"}])
    with pytest.raises(DataError, match="1 questions of .* are not in it .first: '9'"):
        scored(benchmark, tmp_path, ["red"])


def scienceqa(root: Path) -> None:
    problems = {
        "1": {"question": "Which?", "hint": "", "choices": ["a", "b"], "answer": 1, "image": None},
        "2": {"question": "What?", "hint": "Look.", "choices": ["x", "y", "z"], "answer": 2, "image": "image.png"},
        "3": {"question": "Train?", "hint": "", "choices": ["x"], "answer": 0, "image": None},
    }
    put(root / "scienceqa/problems.json", problems)
    put(root / "scienceqa/pid_splits.json", {"test": ["1", "2"], "train": ["3"]})
    put(root / "scienceqa/images/test", None)


def test_scienceqa_built_and_from_llavas_file(tmp_path: Path) -> None:
    scienceqa(tmp_path)
    benchmark = find_benchmark("scienceqa")
    text, image = benchmark.questions(tmp_path)
    assert (text.text, text.prompt, text.images) == (f"Which?\nA. a\nB. b{LETTER}", text.text, ())
    assert image.prompt == f"<image>\nContext: Look.\nWhat?\nA. x\nB. y\nC. z{LETTER}"
    assert image.images == (tmp_path / "scienceqa/images/test/2/image.png",)
    assert scored(benchmark, tmp_path, ["A", "C. z"]).metrics == {"image_accuracy": 100.0, "accuracy": 50.0}
    ready = [
        {"id": "1", "conversations": [{"from": "human", "value": "Which?\nA. a\nB. b"}, {"from": "gpt", "value": "B"}]},
        {
            "id": "2",
            "image": "2/image.png",
            "conversations": [{"from": "human", "value": "<image>\nContext: Look.\nWhat?\nA. x\nB. y\nC. z"}],
        },
    ]
    put(tmp_path / "scienceqa/llava_test_CQM-A.json", ready)
    assert [q.key for q in benchmark.questions(tmp_path)] == [text.key, image.key]
    assert benchmark.questions(tmp_path)[1].images == image.images
    only_text = benchmark.score(tmp_path, {text.key: "B"})
    assert only_text.metrics == {"accuracy": 50.0} and len(only_text.notes) == 2


def mme(data: Path) -> None:
    tasks = (
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
        "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
    )  # fmt: skip
    for task in tasks:
        apart = task in ("posters", "celebrity", "scene", "landmark", "artwork")
        images, texts = ("images", "questions_answers_YN") if apart else ("", "")
        put(data / task / images / "1.png", "x")
        put(
            data / task / texts / "1.txt",
            "A cat? Please answer yes or no.\tYes\nA dog?  Please answer yes or no.\tNo\n",
        )


@pytest.mark.parametrize("nested", ["", "MME_Benchmark"])
def test_mme(nested: str, tmp_path: Path) -> None:
    data = tmp_path / "MME/MME_Benchmark_release_version" / nested
    mme(data)
    benchmark = find_benchmark("mme")
    questions = benchmark.questions(tmp_path)
    assert len(questions) == 28 and len({q.key for q in questions}) == 28
    assert (questions[0].id, questions[0].text) == ("existence/1.png", f"A cat?{SHORT}")
    assert questions[1].text == f"A dog?{SHORT}"
    assert {q.id for q in questions if q.extra["task"] == "artwork"} == {"artwork/images/1.png"}
    scores = scored(benchmark, tmp_path, ["Yes", "No"] * 13 + ["Yes", "Yes"])
    assert (scores.metrics["perception"], scores.metrics["cognition"]) == (2000.0, 650.0)
    assert next(iter(scores.metrics)) == "perception"
    partly = benchmark.score(tmp_path, {q.key: "yes" for q in questions})
    assert partly.metrics["perception"] == 500.0  # half of the answers are right, no image's both
    limited = type(benchmark)()
    for asked in (questions[:3], questions[::2]):
        limited.questions = lambda root, asked=asked: asked  # type: ignore[method-assign]
        if len(asked) == 3:
            scores = scored(limited, tmp_path, ["yes", "no", "yes"])
            assert scores.metrics["perception"] == scores.metrics["existence"] == 200.0
            assert scores.notes[0].startswith("1 images left out") and "sums without count" in scores.notes[1]
            continue
        with pytest.raises(DataError, match="no image of which both questions were asked"):
            scored(limited, tmp_path, ["yes"] * len(asked))
    put(data / "OCR/1.txt", "Only one?\tYes\n")
    with pytest.raises(DataError, match="1.txt: 1 questions; MME asks 2"):
        benchmark.questions(tmp_path)
    put(data / "OCR/1.txt", "A cat?\tmaybe\nA dog?\tNo")
    with pytest.raises(DataError, match="line 1: .* is not `question<TAB>Yes or No`"):
        benchmark.questions(tmp_path)
    (data / "count/1.png").unlink()
    with pytest.raises(DataError, match="its image .* does not exist"):
        benchmark.questions(tmp_path)


def seed(root: Path) -> None:
    choices = {f"choice_{letter}": f"option {letter}" for letter in "abcd"}
    questions = [
        {"question_id": "5", "data_id": "55_66", "data_type": "image", "question_type_id": 1, "answer": "B"},
        {"question_id": "v6", "data_id": "x.mp4", "data_type": "video", "question_type_id": 10, "answer": "D"},
    ]
    asked = [question | {"question": "What?"} | choices for question in questions]
    names = {"Scene Understanding": 1, "Action Recognition": 10}
    put(root / "seed_bench/SEED-Bench.json", {"questions": asked, "question_type": names})
    put(root / "seed_bench/SEED-Bench-image", None)


def test_seed_image_and_all(tmp_path: Path) -> None:
    seed(tmp_path)
    image, everything = find_benchmark("seed"), find_benchmark("seed_all")
    (question,) = image.questions(tmp_path)
    assert question.id == 5 and question.images == (tmp_path / "seed_bench/SEED-Bench-image/55_66",)
    assert question.text == f"What?\nA. option a\nB. option b\nC. option c\nD. option d{LETTER}"
    scores = scored(image, tmp_path, ["B"], tmp_path / "out")
    assert scores.metrics == {"image": 100.0, "total": 100.0, "type_Scene Understanding": 100.0}
    assert scores.submission.read_text() == '{"question_id": "5", "prediction": "B"}\n'
    assert scored(image, tmp_path, ["B."]).metrics["image"] == 0.0
    assert [needed.path for needed in everything.missing(tmp_path)] == ["SEED-Bench-video-image"]
    put(tmp_path / "seed_bench/SEED-Bench-video-image", None)
    assert everything.questions(tmp_path)[1].images[0].name == "10_v6.png"
    both = scored(everything, tmp_path, ["B", "A"])
    assert next(iter(both.metrics.items())) == ("total", 50.0) and both.metrics["video"] == 0.0
    lines = [
        {"question_id": "v6", "image": "SEED-Bench-video-image/10_v6.png", "text": "Video?"},
        {"question_id": 5, "image": "SEED-Bench-image/55_66", "text": "Image?"},
    ]
    put(tmp_path / "seed_bench/llava-seed-bench.jsonl", lines)
    assert [q.text for q in image.questions(tmp_path)] == ["Image?"]
    assert scored(image, tmp_path, ["B"]).metrics["image"] == 100.0


def test_vizwiz_val(tmp_path: Path) -> None:
    answers = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 9 + [{"answer": "cat"}]
    entries = [{"image": "a.jpg", "question": "What?", "answers": answers, "answer_type": "unanswerable"}]
    put(tmp_path / "vizwiz/val.json", entries)
    put(tmp_path / "vizwiz/val", None)
    benchmark = find_benchmark("vizwiz_val")
    (question,) = benchmark.questions(tmp_path)
    hint = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    assert question.text == f"What?{hint}{SHORT}" and question.images == (tmp_path / "vizwiz/val/a.jpg",)
    scores = scored(benchmark, tmp_path, ["Unanswerable"])
    assert scores.metrics == {"accuracy": 100.0, "unanswerable_accuracy": 100.0}


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "gqa",
            "gqa/data/testdev_balanced_questions.json",
            [],
            "a JSON object of questions is expected",
        ),
        ("gqa", "gqa/data/testdev_balanced_questions.json", {"7": {"question": "?"}}, "entry 7: no 'answer'"),
        ("vizwiz_val", "vizwiz/val.json", {}, "a JSON list of questions is expected, this is a dict"),
        ("seed", "seed_bench/SEED-Bench.json", [1], "with a list 'questions' is expected"),
        ("seed", "seed_bench/SEED-Bench.json", {"questions": []}, "no question about image"),
        ("scienceqa", "scienceqa/pid_splits.json", {"train": []}, "entry top level: no 'test'"),
        ("scienceqa", "scienceqa/pid_splits.json", {"test": ["9"]}, "1 problems of test are not in problems.json"),
        ("textvqa_no_ocr", "textvqa/TextVQA_0.5.1_val.json", {"data": [{"image_id": "a"}]}, "entry 0: no 'question'"),
        ("pope", "pope/coco/coco_pope_random.json", "{}\n", "entry 1: no 'question_id'"),
        ("pope", "pope/coco/coco_pope_random.json", "[1]\n", "line 1: list instead of a JSON object"),
        ("pope", "pope/coco/coco_pope_random.json", '{"a": 1', "line 1: no JSON"),
    ],
)
def test_files_that_are_something_else_are_named(
    name: str, file: str, content: Any, message: str, tmp_path: Path
) -> None:
    scienceqa(tmp_path)
    benchmark = find_benchmark(name)
    for needed in benchmark.needs:
        if needed.found(tmp_path / benchmark.folder) is None:
            empty: Any = None if needed.what.startswith("images") else ""
            put(tmp_path / benchmark.folder / needed.path, empty)
    put(tmp_path / file, content)
    with pytest.raises(DataError, match=message) as error:
        benchmark.questions(tmp_path)
    assert Path(file).name in str(error.value)
