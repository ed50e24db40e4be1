"""Runs into answer files: resumed, killed, sharded over ranks, and kept apart from other runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava_pat.evaluation.answers import read_answers
from llava_pat.evaluation.model import Answerer
from llava_pat.evaluation.provenance import provenance_file
from llava_pat.evaluation.questions import Question
from llava_pat.evaluation.run import answer_questions
from llava_pat.models.from_folder import load_model
from llava_pat.models.generate import Decoding
from llava_pat.types import DataError
from tests.evaluation.conftest import asked

ROOT = Path(__file__).parents[2]
COUNT = 60


def content(file: Path) -> list[tuple]:
    """Without answer_id, which is drawn."""
    return [
        (line["question_id"], line["prompt"], line["text"], line["model_id"]) for line in map(json.loads, file.open())
    ]


@pytest.fixture(scope="module")
def whole(lively_answerer, tmp_path_factory) -> list[tuple]:
    file = tmp_path_factory.mktemp("whole") / "a.jsonl"
    answer_questions(lively_answerer, asked(COUNT), file, max_new_tokens=8, batch_size=8, progress=False)
    found = content(file)
    assert [line[0] for line in found] == list(range(COUNT)) and len({line[2] for line in found}) > 30
    return found


class Stop(Exception):
    """As a kill, but in this process."""


def stopped(answerer, file, monkeypatch, after):
    """A run that ends in the middle of its `after`-th batch."""
    inner, calls = answerer._answer_batch, []

    def batch(*arguments):
        calls.append(1)
        if len(calls) > after:
            raise Stop
        return inner(*arguments)

    monkeypatch.setattr(answerer, "_answer_batch", batch)
    with pytest.raises(Stop):
        answer_questions(answerer, asked(COUNT), file, max_new_tokens=8, batch_size=8, progress=False)
    monkeypatch.undo()


def test_stopped_and_resumed_equals_uninterrupted(lively_answerer, whole, tmp_path, monkeypatch, caplog):
    file = tmp_path / "a.jsonl"
    stopped(lively_answerer, file, monkeypatch, after=3)
    assert len(read_answers(file)) == 24
    before = {line["answer_id"] for line in read_answers(file).values()}
    with file.open("a") as stream:
        stream.write('{"question_id": 24, "prom')  # what a kill may leave
    with caplog.at_level("INFO"):
        answer_questions(lively_answerer, asked(COUNT), file, max_new_tokens=8, batch_size=8, progress=False)
    assert content(file) == whole
    assert before < {line["answer_id"] for line in read_answers(file).values()}, "answers are not made twice"
    assert "25 bytes, was cut short" in caplog.text and "36 questions answered" in caplog.text
    again = file.read_bytes()
    answer_questions(lively_answerer, asked(COUNT), file, max_new_tokens=8, batch_size=8, progress=False)
    assert file.read_bytes() == again
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "a.jsonl.provenance.json"]


def test_what_ranks_left_is_gathered(lively_answerer, whole, tmp_path, monkeypatch):
    """A run of two ranks that was killed, one of them within a line, and once after gathering: now one process."""
    file = tmp_path / "a.jsonl"
    stopped(lively_answerer, file, monkeypatch, after=2)
    done = file.read_text().splitlines(keepends=True)
    file.write_text("".join(done[:6]))
    (tmp_path / "a.jsonl.rank0").write_text("".join(done[4:10]))  # two of them are in the file already
    (tmp_path / "a.jsonl.rank1").write_text("".join(done[10:16]) + '{"question')
    answer_questions(lively_answerer, asked(COUNT), file, max_new_tokens=8, batch_size=8, progress=False)
    assert content(file) == whole
    ids = {line["answer_id"] for line in read_answers(file).values()}
    assert {json.loads(line)["answer_id"] for line in done} < ids
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "a.jsonl.provenance.json"]


def test_provenance(lively_answerer, whole, tmp_path):
    file = tmp_path / "a.jsonl"
    answer_questions(lively_answerer, asked(4), file, max_new_tokens=8, batch_size=8, progress=False)
    found = json.loads(provenance_file(file).read_text())
    assert (found["model_id"], found["template"], found["dtype"]) == ("llava-v1.5-lively", "v1", "float32")
    assert found["questions"]["count"] == 4 and (found["max_new_tokens"], found["batch_size"]) == (8, 8)
    assert {"torch", "transformers"} <= set(found["versions"]) and len(found["checkpoint"]["sha256"]) == 64


def test_another_runs_file_is_refused(lively_answerer, answerer, lively, tmp_path):
    file = tmp_path / "a.jsonl"

    def go(who=lively_answerer, count=6, **changed):
        settings = {"max_new_tokens": 8, "batch_size": 8, "progress": False} | changed
        answer_questions(who, asked(count), file, **settings)

    go()
    before = file.read_bytes()
    loaded = load_model(lively, dtype=lively_answerer.dtype)
    warm = Answerer(loaded, "v1", folder=lively, decoding=Decoding(temperature=0.5))
    other = Answerer(loaded, "llava_v1", folder=lively)
    for change, words in (
        (
            {"who": answerer},
            "checkpoint.sha256: .* then, .* now; model_id: 'llava-v1.5-lively' then, 'llava-v1.5-tiny'",
        ),
        ({"who": other}, "template: 'v1' then, 'llava_v1' now"),
        ({"who": warm}, "decoding.temperature: 0.0 then, 0.5 now"),
        ({"max_new_tokens": 9}, "max_new_tokens: 8 then, 9 now"),
        ({"count": 7}, "questions.count: 6 then, 7 now"),
    ):
        with pytest.raises(DataError, match=f"a.jsonl holds 6 answers that were made otherwise .*{words}.*--restart"):
            go(**change)
        assert file.read_bytes() == before
    go(batch_size=3)  # does not matter
    provenance_file(file).unlink()
    with pytest.raises(DataError, match="a.jsonl.provenance.json is not beside it.*--restart"):
        go()
    assert file.read_bytes() == before
    go(count=7, restart=True)
    assert len(read_answers(file)) == 7


def test_missing_images_and_repeated_questions_stop_it_first(lively_answerer, tmp_path):
    file = tmp_path / "a.jsonl"
    questions = [*asked(3), Question(9, (tmp_path / "gone.png",), "what")]
    with pytest.raises(FileNotFoundError, match="1 of .* image files do not exist"):
        answer_questions(lively_answerer, questions, file, max_new_tokens=8, batch_size=8)
    with pytest.raises(DataError, match="made up:2: question 1 has the id and text of made up:2"):
        answer_questions(lively_answerer, [*asked(3), asked(2)[1]], file, max_new_tokens=8, batch_size=8)
    assert not file.exists()


def test_no_question_is_no_error(lively_answerer, tmp_path):
    answer_questions(lively_answerer, [], tmp_path / "a.jsonl", max_new_tokens=8, batch_size=8)
    assert (tmp_path / "a.jsonl").read_text() == ""


# ---- the command, in processes of its own


def question_file(folder: Path) -> Path:
    lines = []
    for question in asked(COUNT):
        line = {"question_id": question.id, "text": question.text}
        if question.images:
            line["image"] = [path.name for path in question.images]
        lines.append(json.dumps(line) + "\n")
    (folder / "q.jsonl").write_text("".join(lines))
    return folder / "q.jsonl"


def command(lively, folder, *more) -> list[str]:
    return [
        "eval/model_vqa_loader.py", "--model-path", str(lively), "--question-file", str(question_file(folder)),
        "--answers-file", str(folder / "a.jsonl"), "--conv-mode", "v1", "--max_new_tokens", "8", "--device", "cpu",
        "--batch-size", "2", "--image-folder", str(IMAGES), *more,
    ]  # fmt: skip


IMAGES = Path(__file__).parents[1] / "assets" / "llava_written" / "images"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_kill_9_and_resume(lively, whole, tmp_path):
    file = tmp_path / "a.jsonl"
    run = [sys.executable, *command(lively, tmp_path)]
    process = subprocess.Popen(run, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (file.exists() and file.read_bytes().count(b"\n") >= 4):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = file.read_bytes().count(b"\n")
    if kept == COUNT:
        pytest.skip("it was faster than the kill")
    done = subprocess.run(run, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert content(file) == whole
    assert f"{COUNT - kept} questions answered" in done.stderr and f"{kept} were answered before" in done.stderr


def test_two_ranks_equal_one(lively, whole, tmp_path):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*run, *command(lively, tmp_path)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "a.jsonl") == whole
    assert json.loads(provenance_file(tmp_path / "a.jsonl").read_text())["world_size"] == 2
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "a.jsonl.provenance.json", "q.jsonl"]
