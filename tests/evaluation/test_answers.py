"""Answer files: LLaVA's lines, and what a kill may leave of them."""

from __future__ import annotations

import json

import pytest

from llava_pat.evaluation.answers import AnswerFile, answer_line, answers_by_id, read_answers
from llava_pat.evaluation.questions import Question
from llava_pat.types import DataError

QUESTIONS = [Question(i, (), f"question {i}") for i in range(6)]


def lines(*numbers: int) -> list[dict]:
    return [answer_line(QUESTIONS[i], f"answer {i} é", "llava-x") for i in numbers]


def written(path, *numbers):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(*numbers)))
    return path


def test_the_line_is_llavas():
    line = answer_line(Question("a", (), "text", {"category": "c"}), "yes", "llava-v1.5-7b")
    assert list(line) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert (line["question_id"], line["prompt"], line["text"]) == ("a", "text", "yes")
    assert (line["model_id"], line["metadata"]) == ("llava-v1.5-7b", {})
    assert len(line["answer_id"]) == 22 and line["answer_id"].isalnum()
    assert line["answer_id"] != answer_line(QUESTIONS[0], "yes", "m")["answer_id"]
    options = {"round_id": 1, "options": ["x", "y"], "option_char": ["B", "A"]}
    line = answer_line(Question(7, (), "text\nletter only", {}, "text", options), "B", "m")
    assert list(line) == [
        "question_id", "round_id", "prompt", "text", "options", "option_char", "answer_id", "model_id", "metadata",
    ]  # fmt: skip
    assert line["prompt"] == "text"


def test_append_and_read_again(tmp_path):
    file = tmp_path / "new" / "a.jsonl"
    with AnswerFile(file) as out:
        out.append(lines(0, 1))
        assert len(file.read_text().splitlines()) == 2, "on disk while open"
        with pytest.raises(DataError, match="question 1 has an answer already"):
            out.append(lines(1))
    with AnswerFile(file) as out:
        assert [key[0] for key in out.answers] == [0, 1]
        out.append(lines(2))
    assert [line["text"] for line in read_answers(file).values()] == ["answer 0 é", "answer 1 é", "answer 2 é"]
    assert answers_by_id(QUESTIONS, read_answers(file)) == {0: "answer 0 é", 1: "answer 1 é", 2: "answer 2 é"}


def test_wherever_the_last_line_is_cut(tmp_path, caplog):
    """Every length that a killed write can leave: nothing is lost but that line, and appending goes on."""
    file = written(tmp_path / "a.jsonl", 0, 1, 2)
    whole = file.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for length in range(start, len(whole) + 1):
        file.write_bytes(whole[:length])
        caplog.clear()
        kept = 3 if length >= len(whole) - 1 else 2
        assert len(read_answers(file)) == kept
        assert file.stat().st_size == length, "reading changes nothing"
        with AnswerFile(file) as out:
            assert len(out.answers) == kept
            out.append(lines(*range(kept, 4)))
        assert [key[0] for key in read_answers(file)] == [0, 1, 2, 3]
        assert ("was cut short" in caplog.text) == (start < length < len(whole) - 1), length


def test_a_broken_line_elsewhere_and_two_answers_to_one_question(tmp_path):
    file = written(tmp_path / "a.jsonl", 0, 1, 2)
    content = file.read_text().splitlines(keepends=True)
    file.write_text(content[0] + content[1][:20] + "\n" + content[2])
    with pytest.raises(DataError, match=r"a.jsonl:2: no answer line"):
        read_answers(file, repair=True)
    file.write_text("".join([*content, content[1]]))
    with pytest.raises(DataError, match=r"lines 2 and 4 both answer question 1 \('question 1'\)"):
        AnswerFile(file)
    with pytest.raises(FileNotFoundError, match="gone.jsonl does not exist"):
        read_answers(tmp_path / "gone.jsonl")


def test_one_writer_at_a_time(tmp_path):
    with AnswerFile(tmp_path / "a.jsonl"), pytest.raises(BlockingIOError, match="another process is writing"):
        AnswerFile(tmp_path / "a.jsonl")
    AnswerFile(tmp_path / "a.jsonl").__exit__()


def test_sort(tmp_path):
    file = written(tmp_path / "a.jsonl", 4, 0, 2)
    keys = [question.key for question in QUESTIONS]
    with AnswerFile(file) as out:
        out.sort(keys)
        assert [key[0] for key in read_answers(file)] == [0, 2, 4]
        out.append(lines(1))
        with pytest.raises(BlockingIOError):
            AnswerFile(file)
        with pytest.raises(DataError, match=r"1 of its 4 answers are to questions that are not asked here.*id 4"):
            out.sort(keys[:4])
    assert [key[0] for key in read_answers(file)] == [0, 2, 4, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_ids_that_repeat(tmp_path):
    questions = [Question("x", (), "one"), Question("x", (), "two")]
    with AnswerFile(tmp_path / "a.jsonl") as out:
        out.append(answer_line(question, question.text, "m") for question in questions)
    found = read_answers(tmp_path / "a.jsonl")
    assert found[questions[1].key]["text"] == "two"
    with pytest.raises(DataError, match="id 'x' is there twice"):
        answers_by_id(questions, found)
