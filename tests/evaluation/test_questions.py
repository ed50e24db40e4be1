"""LLaVA's question files become questions, as its scripts read them; what is wrong is named with its place."""

from __future__ import annotations

import ast
import base64
import json
import math
from pathlib import Path

import pytest

from llava_pat.evaluation import questions as questions_module
from llava_pat.evaluation.questions import (
    Question,
    check_images,
    check_unique,
    chunk,
    image_in,
    questions_hash,
    read_mmbench,
    read_questions,
    read_science,
)
from llava_pat.types import DataError


def jsonl(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def test_jsonl(tmp_path):
    file = jsonl(
        tmp_path / "q.jsonl",
        {"question_id": 3, "image": "a/1.jpg", "text": " what?\u2028why? ", "category": "adversarial"},
        {"question_id": "x", "text": "and without?"},
        {"question_id": 4, "image": ["a.jpg", "b.jpg"], "text": "both"},
    )
    first, second, third = read_questions(file, "images")
    assert (first.id, first.text, first.written_prompt) == (3, " what?\u2028why? ", " what?\u2028why? ")
    assert first.images == (Path("images/a/1.jpg"),) and first.extra == {"category": "adversarial"}
    assert second.images == () and third.images == (Path("images/a.jpg"), Path("images/b.jpg"))
    assert second.where == f"{file}:2" and second.key == ("x", None, "and without?")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"question_id": 1, "text": "a"}\n{"question_id"', r"q.jsonl:2: not JSON"),
        ('{"question_id": 1, "text": "a"}\n[1]', r"q.jsonl:2: a JSON object is expected, this is a list"),
        ('{"id": 1, "text": "a"}', r"q.jsonl:1: no 'question_id'.*this has \['id', 'text'\]"),
        ('{"question_id": 1, "text": "a", "image": 5}', r"q.jsonl:1: 'image' must be a file name.*this is 5"),
        (
            '{"question_id": 1, "text": "a"}\n\n{"question_id": 1, "text": "a"}',
            r"q.jsonl:3: .* of .*q.jsonl:1; answers",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, content, words):
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(DataError, match=words):
        read_questions(tmp_path / "q.jsonl", "")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="question file .*gone.jsonl does not exist"):
        read_questions(tmp_path / "gone.jsonl", "")


def test_ids_that_repeat_are_told_apart_by_text_or_refused(tmp_path, caplog):
    """MME: two questions under the image's name."""
    file = jsonl(
        tmp_path / "q.jsonl", {"question_id": "a.png", "text": "one?"}, {"question_id": "a.png", "text": "two?"}
    )
    with caplog.at_level("INFO"):
        questions = read_questions(file, "")
    assert len({question.key for question in questions}) == 2
    assert "1 of 2 questions share an id" in caplog.text
    with pytest.raises(DataError, match=r"q.jsonl:2: question 'a.png' has the id of .*q.jsonl:1"):
        read_questions(file, "", unique_ids=True)


def test_science(tmp_path):
    records = [
        {"id": "4", "image": "4/image.png", "conversations": [{"from": "human", "value": "Which?\nA. x\n<image>"}]},
        {"id": "5", "conversations": [{"from": "human", "value": "Why? "}, {"from": "gpt", "value": "A"}]},
    ]
    (tmp_path / "s.json").write_text(json.dumps(records))
    with_image, without = read_science(tmp_path / "s.json", "test", single_pred_prompt=True)
    letter = "Answer with the option's letter from the given choices directly."
    assert (
        with_image.text == f"Which?\nA. x\n{letter}" and with_image.written_prompt == f"<image>\nWhich?\nA. x\n{letter}"
    )
    assert with_image.images == (Path("test/4/image.png"),)
    assert without.text == without.written_prompt == f"Why?\n{letter}" and without.images == ()
    assert without.extra["conversations"][1]["value"] == "A"
    assert read_science(tmp_path / "s.json", "test")[1].text == "Why?"
    (tmp_path / "s.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="a JSON list of questions is expected, this is a dict"):
        read_science(tmp_path / "s.json", "")


HEADER = "index\tquestion\thint\tA\tB\tC\tD\tanswer\timage\n"


def test_mmbench(tmp_path):
    image = base64.b64encode(b"not a picture").decode()
    rows = f'7\tWhich?\tSome hint.\tcat\t"a ""dog"""\tnan\tbird\tB\t{image}\n'
    rows += f"8\tHow?\tNaN\tone\ttwo\tthree\tfour\tA\t{image}\n"
    (tmp_path / "m.tsv").write_text(HEADER + rows)
    first, second = read_mmbench(tmp_path / "m.tsv")
    assert (
        first.text == first.written_prompt == 'Some hint.\nWhich?\nA. cat\nB. a "dog"'
    )  # options end at the first nan
    assert first.images == (b"not a picture",) and (first.id, first.extra["answer"]) == (7, "B")
    assert second.text == "How?\nA. one\nB. two\nC. three\nD. four"
    assert first.line == {"round_id": 0, "options": ["cat", 'a "dog"'], "option_char": ["A", "B"]}
    rounds = read_mmbench(tmp_path / "m.tsv", all_rounds=True, single_pred_prompt=True, lang="cn")
    assert [question.line["round_id"] for question in rounds] == [0, 1, 0, 1, 2, 3]
    assert rounds[4].text == "How?\nA. three\nB. four\nC. one\nD. two\n请直接回答选项字母。"
    assert rounds[4].written_prompt == "How?\nA. three\nB. four\nC. one\nD. two"  # LLaVA writes it without
    assert rounds[4].line["options"] == ["three", "four", "one", "two"]
    assert rounds[4].line["option_char"] == ["C", "D", "A", "B"]
    assert len({question.key for question in rounds}) == 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("index\tquestion\n1\ta\n", "no column image, A, B"),
        (HEADER + "1\tq\t\tx\ty\t\t\tA\t!!!\n", "m.tsv:2: the image of index 1 is not base64"),
        (HEADER + "1\tq\t\t\ty\t\t\tA\tAAAA\n", r"m.tsv:2: the question \(index 1\) has no option A"),
        (HEADER + "1\tq\t\tx\ty\t\t\tA\tAAAA\n" * 2, "m.tsv:3: question 1 has the id of .*m.tsv:2"),
    ],
)
def test_bad_mmbench(tmp_path, content, words):
    (tmp_path / "m.tsv").write_text(content)
    with pytest.raises(DataError, match=words):
        read_mmbench(tmp_path / "m.tsv")


def test_missing_images_are_counted_and_named(tmp_path):
    (tmp_path / "there.png").touch()
    names = ["there.png", *[f"gone{i}.png" for i in range(8)], "gone0.png"]
    questions = [Question(i, (tmp_path / name,), "a") for i, name in enumerate(names)]
    with pytest.raises(FileNotFoundError) as error:
        check_images([*questions, Question(99, (b"bytes",), "a")])
    text = str(error.value)
    assert "8 of 9 image files do not exist" in text and "gone4.png" in text and "and 3 more" in text
    assert "gone5.png" not in text and "/there.png" not in text
    check_images(questions[:1])


@pytest.mark.parametrize(("count", "chunks"), [(10, 3), (4, 3), (2, 5), (0, 2), (9, 1)])
def test_chunks_are_llavas(count, chunks):
    questions = [Question(i, (), "a") for i in range(count)]
    size = math.ceil(count / chunks)
    llavas = [questions[i : i + size] for i in range(0, count, size)] if size else []
    for k in range(chunks):
        assert chunk(questions, chunks, k) == (llavas[k] if k < len(llavas) else [])  # LLaVA: IndexError
    with pytest.raises(DataError, match=f"--chunk-idx {chunks} is not below --num-chunks {chunks}"):
        chunk(questions, chunks, chunks)


def test_the_hash_sees_what_is_asked(tmp_path):
    base = [Question(1, (Path("a/x.png"),), "what?"), Question(2, (b"pixels",), "who?")]
    changed = [
        [base[1], base[0]],
        [Question("1", base[0].images, "what?"), base[1]],
        [Question(1, base[0].images, "what ?"), base[1]],
        [Question(1, (Path("a/y.png"),), "what?"), base[1]],
        [base[0], Question(2, (b"other",), "who?")],
    ]
    assert len({questions_hash(questions) for questions in [base, *changed]}) == 6
    assert questions_hash(base) == questions_hash([Question(1, (Path("b/x.png"),), "what?", {"label": 1}), base[1]])


def test_unique_counts_rounds():
    questions = [Question(1, (), "a", line={"round_id": i}) for i in range(2)]
    assert check_unique(questions, unique_ids=False) == questions


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../secret.png",
        "a/../../secret.png",
        "a\0.png",
        "\ud800.png",
        "out.png",
        3,
        "a" * 5000,
        "a/" * 5000,
    ],
)
def test_images_outside_of_the_folder_are_not_asked_about(tmp_path, name):
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (images / "out.png").symlink_to(tmp_path / "secret.png")
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question_id": 1, "image": name, "text": "What is it?"}))
    with pytest.raises(DataError, match=r"q\.jsonl:1: "):
        read_questions(file, images)
    with pytest.raises(DataError, match="somewhere: image"):
        image_in(images, name, "somewhere")


def test_folders_of_images_may_be_links(tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "a.png").write_bytes(b"x")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train").symlink_to(tmp_path / "coco")
    (tmp_path / "images" / "b.png").symlink_to("c.png")
    assert image_in(tmp_path / "images", "train/a.png", "").read_bytes() == b"x"
    assert image_in(tmp_path / "images", "b.png", "") == tmp_path / "images" / "b.png"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "{", "3"])
def test_question_files_that_are_no_questions(tmp_path, text):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"q\.jsonl:1: "):
        read_questions(tmp_path / "q.jsonl", tmp_path)
    with pytest.raises(DataError, match=r"q\.jsonl: "):
        read_science(tmp_path / "q.jsonl", tmp_path)


def test_a_file_without_a_question_is_no_question_file(tmp_path):
    """Fetched halfway: an empty benchmark would end well, with no answer."""
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"q\.jsonl: holds no question"):
        read_questions(tmp_path / "q.jsonl", tmp_path)


def test_no_benchmark_joins_a_name_to_its_folder_by_itself():
    """A benchmark's file is somebody else's text: its names go through image_in."""
    folder = Path(questions_module.__file__).parent
    for source in (*sorted((folder / "tasks").glob("*.py")), folder / "vqa_files.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "images":
                for inner in ast.walk(node.value):
                    assert not isinstance(inner, ast.BinOp), f"{source.name}:{node.value.lineno}"
