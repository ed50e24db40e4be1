"""Benchmarks that a server or a judge scores, MMBench's workbooks and MMMU's parquet files, on tiny folders."""

from __future__ import annotations

import base64
import csv
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from llava_pat.evaluation.benchmark import Benchmark, Scores, find_benchmark
from llava_pat.evaluation.judge import Judge, JudgeError
from llava_pat.evaluation.scorers.mmbench import circular, option_letter
from llava_pat.evaluation.tasks.mmmu import SUBJECTS
from llava_pat.types import DataError


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir(exist_ok=True)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def scored(benchmark: Benchmark, root: Path, texts: list[str], out: Path | None = None) -> Scores:
    questions = benchmark.questions(root)
    return benchmark.score(root, dict(zip((q.key for q in questions), texts, strict=True)), out)


@pytest.mark.parametrize("source", ["llava", "official"])
def test_vqav2_submission_has_every_question_of_test(source: str, tmp_path: Path) -> None:
    folder = tmp_path / "vqav2"
    put(folder / "test2015", None)
    ids = {"test-dev": [262144000, 262144001], "test": [262144000, 262144001, 5]}
    for split, name in (("test-dev", "test-dev2015"), ("test", "test2015")):
        if source == "llava":
            lines = [{"question_id": i, "image": f"{i}.jpg", "text": f"Q{i}?"} for i in ids[split]]
            put(folder / f"llava_vqav2_mscoco_{name}.jsonl", lines)
        else:
            asked = [{"question_id": i, "image_id": 9, "question": f"Q{i}?"} for i in ids[split]]
            put(folder / f"v2_OpenEnded_mscoco_{name}_questions.json", {"questions": asked})
    benchmark = find_benchmark("vqav2")
    assert benchmark.missing(tmp_path) == []
    scores = scored(benchmark, tmp_path, ["The Two", "Yes!"])
    assert scores.metrics == {} and scores.submission == folder / "answers_upload/vqav2.json"
    assert json.loads(scores.submission.read_text()) == [
        {"question_id": 262144000, "answer": "2"},
        {"question_id": 262144001, "answer": "yes"},
        {"question_id": 5, "answer": ""},
    ]
    assert "eval.ai" in scores.notes[0]


def test_vizwiz_submission_is_whole_or_refused(tmp_path: Path) -> None:
    put(tmp_path / "vizwiz/test", None)
    put(
        tmp_path / "vizwiz/test.json",
        [{"image": "a.jpg", "question": "What?"}, {"image": "b.jpg", "question": "Is it?"}],
    )
    benchmark = find_benchmark("vizwiz")
    scores = scored(benchmark, tmp_path, ["A Cat.", "unanswerable"], tmp_path / "out")
    lines = [{"image": "a.jpg", "answer": "cat"}, {"image": "b.jpg", "answer": "unanswerable"}]
    assert json.loads(scores.submission.read_text()) == lines and scores.submission.parent == tmp_path / "out"
    with pytest.raises(DataError, match="1 of 2 questions have no answer, and the server takes whole submissions"):
        benchmark.score(tmp_path, {benchmark.questions(tmp_path)[0].key: "cat"})


MMBENCH = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "split",
)


def mmbench(file: Path, labelled: bool = True) -> None:
    """A question with its rotation as a row of its own, and one with two options and no rotation."""
    image = base64.b64encode(b"picture").decode()
    rows = [
        (1, "Which?", "Look.", "cat", "dog", "", "", "B", "animals", image, "x", "y", "dev"),
        (1000001, "Which?", "Look.", "dog", "cat", "", "", "A", "animals", image, "x", "y", "dev"),
        (2, "How many?", "", "1", "2", "3", "", "C", "numbers", image, "x", "y", "dev"),
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    keep = [name for name in MMBENCH if labelled or name != "answer"]
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(keep)
        writer.writerows([[cell for name, cell in zip(MMBENCH, row, strict=True) if name in keep] for row in rows])


def test_mmbench_counts_a_question_only_if_all_its_rotations_are_right(tmp_path: Path) -> None:
    mmbench(tmp_path / "mmbench/mmbench_dev_20230712.tsv")
    benchmark = find_benchmark("mmbench")
    first = benchmark.questions(tmp_path)[0]
    assert first.images == (b"picture",)
    assert first.text.endswith("\nAnswer with the option's letter from the given choices directly.")
    metrics = scored(benchmark, tmp_path, ["B", "A", "C"]).metrics
    assert (metrics["accuracy"], metrics["category_animals"]) == (100.0, 100.0)
    metrics = scored(benchmark, tmp_path, ["B. dog", "B", "(C)"]).metrics
    assert (metrics["accuracy"], metrics["accuracy_without_rotations"], metrics["category_animals"]) == (50, 100, 0)
    scores = scored(benchmark, tmp_path, ["no idea", "A", "C"])
    assert scores.metrics["accuracy"] == 50.0 and any("1 answers gave no option's letter" in n for n in scores.notes)


def test_mmbench_all_rounds_maps_letters_back(tmp_path: Path) -> None:
    mmbench(tmp_path / "mmbench/mmbench_dev_20230712.tsv")
    benchmark = find_benchmark("mmbench")
    benchmark.all_rounds = True
    # question 1: A cat, B dog, then A dog, B cat; its rotation the other way; question 2: the 3 is C, then B, then A
    assert scored(benchmark, tmp_path, ["B", "A", "A", "B", "C", "B", "A"]).metrics["accuracy"] == 100.0
    assert scored(benchmark, tmp_path, ["B", "A", "A", "B", "C", "C", "A"]).metrics["accuracy"] == 50.0


def test_mmbench_cn_is_found_in_both_of_llavas_places_and_asks_in_chinese(tmp_path: Path) -> None:
    mmbench(tmp_path / "mmbench/mmbench_dev_cn_20231003.tsv")
    benchmark = find_benchmark("mmbench_cn")
    assert benchmark.missing(tmp_path) == []
    assert benchmark.questions(tmp_path)[0].text.endswith("\n请直接回答选项字母。")
    assert scored(benchmark, tmp_path, ["答案是B", "A", "C"]).metrics["accuracy"] == 100.0


def test_mmbench_workbook_is_llavas(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    mmbench(tmp_path / "mmbench/mmbench_test_en_20231003.tsv", labelled=False)
    scores = scored(find_benchmark("mmbench_test"), tmp_path, ["B", "A", "C"], tmp_path / "out")
    assert scores.metrics == {} and "server only" in scores.notes[0]
    rows = list(openpyxl.load_workbook(scores.submission).active.iter_rows(values_only=True))
    assert rows == [
        ("index", "question", "A", "B", "C", "D", "prediction", "split"),
        (1, "Which?", "cat", "dog", None, None, "B", "dev"),
        (1000001, "Which?", "dog", "cat", None, None, "A", "dev"),
        (2, "How many?", "1", "2", "3", None, "C", "dev"),
    ]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), (" b ", None), ("B.", "B"), ("(C) the cat", "C"), ("B: dog", "B"), ("A", "A"), ("D", None),
        ("A dog on a mat", None), ("The answer is B", "B"), ("answer: C.", "C"), ("dog", "B"), ("Dog.", "B"),
        ("", None), ("The answer is A or the answer is B", None), ("Because", None),
    ],
)  # fmt: skip
def test_option_letter(text: str, letter: str | None) -> None:
    assert option_letter(text, ["cat", "dog", "the cat"]) == letter


def test_circular_merges_rounds_and_rows() -> None:
    assert circular({1: [True], 1000001: [True, False], 2: [True]}) == {1: False, 2: True}


class Replies(BaseHTTPRequestHandler):
    """A chat server on loopback that says what it is told to, once each."""

    said: list[str] = []
    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:  # noqa: N802, the name is http.server's
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path} | body)
        reply = self.said.pop(0)
        self.send_response(int(reply) if reply.isdigit() and len(reply) == 3 else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": reply}}]}).encode())

    def log_message(self, *arguments: Any) -> None:
        """Silent."""


@pytest.fixture
def judge() -> Iterator[Judge]:
    server = HTTPServer(("127.0.0.1", 0), Replies)
    Replies.said, Replies.asked = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Judge(f"http://127.0.0.1:{server.server_port}/v1/", "judge-1", wait_seconds=0.01)
    server.shutdown()
    server.server_close()


def mmvet(root: Path) -> None:
    labels = {
        "v1_0": {"imagename": "v1_0.png", "question": "x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]},
        "v1_1": {"imagename": "v1_1.png", "question": "y?", "answer": "a<OR>b", "capability": ["ocr"]},
    }
    put(root / "mm-vet/mm-vet.json", labels)
    put(root / "mm-vet/images", None)


def test_mmvet_without_a_judge_writes_the_results_file(tmp_path: Path) -> None:
    mmvet(tmp_path)
    benchmark, out = find_benchmark("mmvet"), tmp_path / "out"
    scores = scored(benchmark, tmp_path, ["x = 3", "a"], out)
    assert json.loads(scores.submission.read_text()) == {"v1_0": "x = 3", "v1_1": "a"}
    assert scores.metrics == {} and "not graded" in scores.notes[0]
    graded = {f"v1_{i}": {"model": ["gpt-4"], "content": ["x"], "score": [float(i), 1.0]} for i in range(2)}
    put(out / "mmvet_grades.json", graded)
    scores = scored(benchmark, tmp_path, ["x = 3", "a"], out)
    assert scores.metrics == {"total": 75.0, "math": 50.0, "ocr": 75.0}
    assert "does not say which answers" in scores.notes[0] and scores.notes[1] == "graded by gpt-4"


def test_mmvet_with_a_judge_that_fails_stammers_and_grades(tmp_path: Path, judge: Judge) -> None:
    mmvet(tmp_path)
    benchmark, out = find_benchmark("mmvet"), tmp_path / "out"
    benchmark.judge = judge
    with pytest.raises(DataError, match="the judge's prompt is in it"):
        scored(benchmark, tmp_path, ["x = 3", "a"], out)
    put(tmp_path / "mm-vet/mm-vet_evaluator.py", 'import openai\n\nprompt = """Grade.\n"""\n')
    Replies.said = ["503", "0.5", "Well,", "1.0"]
    scores = scored(benchmark, tmp_path, ["x = 3", "a"], out)
    assert scores.metrics == {"total": 75.0, "math": 50.0, "ocr": 75.0} and scores.notes == ["graded by judge-1"]
    assert Replies.asked[1]["messages"][0]["content"] == "Grade.\n\nx? | -1 <AND> -5 | x = 3 | "
    assert Replies.asked[1]["path"] == "/v1/chat/completions"
    assert Replies.asked[3]["messages"][0]["content"].endswith("Predict the correctness of the answer (digit): ")
    assert scored(benchmark, tmp_path, ["x = 3", "a"], out).metrics["total"] == 75.0  # from the file: nobody is asked
    with pytest.raises(DataError, match="grades other answers"):
        scored(benchmark, tmp_path, ["x = 4", "a"], out)


def test_judge_out_of_reach_says_where_and_why(judge: Judge) -> None:
    Replies.said = ["401"]
    with pytest.raises(JudgeError, match="the judge judge-1 at .*/v1/chat/completions did not answer: 401"):
        judge.ask([{"role": "user", "content": "?"}], temperature=0.0, max_tokens=3)
    assert len(Replies.asked) == 1  # a refusal is not tried again


def llava_bench(root: Path) -> None:
    folder = root / "llava-bench-in-the-wild"
    kinds = ("conv", "detail")
    questions = [{"question_id": i, "image": "001.jpg", "text": f"Q{i}?", "category": kinds[i]} for i in range(2)]
    put(folder / "questions.jsonl", questions)
    put(folder / "context.jsonl", [{"id": "001", "image": "001.jpg", "caption": "A street."}])
    put(folder / "answers_gpt4.jsonl", [{"question_id": i, "text": f"gold {i}"} for i in range(2)])
    put(folder / "rule.json", {f"llava_bench_{kind}": {"role": "Assistant", "prompt": "Rate."} for kind in kinds})
    put(folder / "images", None)


def test_llava_bench_by_a_file_of_reviews(tmp_path: Path) -> None:
    llava_bench(tmp_path)
    benchmark, out = find_benchmark("llava_bench"), tmp_path / "out"
    scores = scored(benchmark, tmp_path, ["one", "two"], out)
    first = json.loads(scores.submission.read_text().splitlines()[0])
    assert first["content"] == (
        "[Context]\nA street.\n\n[Question]\nQ0?\n\n[Assistant 1]\ngold 0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\none\n\n[End of Assistant 2]\n\n[System]\nRate.\n\n"
    )
    assert scores.metrics == {} and "not judged" in scores.notes[0]
    put(
        out / "llava_bench_reviews.jsonl",
        [{"question_id": 0, "content": "8 6\nGood."}, {"question_id": 1, "content": "?"}],
    )
    scores = scored(benchmark, tmp_path, ["one", "two"], out)
    assert scores.metrics["llava_bench_conv"] == 75.0
    assert [note.split(" ", 1)[1][:7] for note in scores.notes] == ["reviews", "reviews", "by some"]


def test_llava_bench_by_a_judge_is_resumed_and_not_mixed_up(tmp_path: Path, judge: Judge) -> None:
    llava_bench(tmp_path)
    benchmark, out = find_benchmark("llava_bench"), tmp_path / "out"
    benchmark.judge = judge
    Replies.said = ["10 5\nFine.", "401"]
    with pytest.raises(JudgeError, match="did not answer"):
        scored(benchmark, tmp_path, ["one", "two"], out)
    Replies.said = ["4, 4"]  # LLaVA's parser sees two separators here, so not two numbers
    scores = scored(benchmark, tmp_path, ["one", "two"], out)
    assert scores.metrics["llava_bench_conv"] == 50.0 and scores.notes[-1] == "judged by judge-1"
    assert len(Replies.asked) == 3 and Replies.asked[0]["messages"][0]["role"] == "system"
    with pytest.raises(DataError, match="reviews other answers than these"):
        scored(benchmark, tmp_path, ["another", "two"], out)


def test_mmmu(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    labels = {}
    for subject in SUBJECTS:
        choice, opened = f"validation_{subject}_1", f"validation_{subject}_2"
        labels |= {choice: {"question_type": "multiple-choice", "ground_truth": "B"}}
        labels |= {opened: {"question_type": "short-answer", "ground_truth": ["0.5", "half"]}}
        rows = {
            "id": [choice, opened],
            "question": ["Which <image 1>?", "How much <image 1>?"],
            "options": ["['cat', \"dog's\"]", "[]"],
            "question_type": ["multiple-choice", "open"],
            "image_1": [{"bytes": b"one", "path": "1.png"}, {"bytes": b"two", "path": "2.png"}],
        }
        file = tmp_path / f"mmmu/{subject}/validation-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.table(rows), file)
    put(tmp_path / "mmmu/answer_dict_val.json", labels)
    benchmark = find_benchmark("mmmu")
    choice, opened = benchmark.questions(tmp_path)[:2]
    asked = "Which <image 1>?\n(A) cat\n(B) dog's\n\nAnswer with the option's letter from the given choices directly."
    assert (choice.text, choice.images) == (asked, (b"one",))
    assert opened.text == "How much <image 1>?\nAnswer the question using a single word or phrase."
    scores = scored(benchmark, tmp_path, ["B", "It is 0.50"] * 29 + ["A", "3"])
    assert scores.metrics["accuracy"] == pytest.approx(100 * 58 / 60)
    assert scores.metrics[SUBJECTS[-1]] == 0.0 and scores.metrics["Business"] == 100.0
