"""LLaVA's four scripts: its flags, its files, one line for what is wrong."""

from __future__ import annotations

import base64
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from llava_pat.evaluation.command import SCRIPTS, main
from tests.evaluation.conftest import WRITTEN

ROOT = Path(__file__).parents[2]
FLAGS = {
    "model_vqa_loader": "--model-path --model-base --image-folder --question-file --answers-file --conv-mode "
    "--num-chunks --chunk-idx --temperature --top_p --num_beams --max_new_tokens",
    "model_vqa": "--model-path --model-base --image-folder --question-file --answers-file --conv-mode --num-chunks "
    "--chunk-idx --temperature --top_p --num_beams",
    "model_vqa_science": "--model-path --model-base --image-folder --question-file --answers-file --conv-mode "
    "--num-chunks --chunk-idx --temperature --answer-prompter --single-pred-prompt",
    "model_vqa_mmbench": "--model-path --model-base --image-folder --question-file --answers-file --conv-mode "
    "--num-chunks --chunk-idx --temperature --top_p --num_beams --all-rounds --single-pred-prompt --lang",
}
"""argparse of llava/eval/*.py at haotian-liu/LLaVA c121f04."""


def answers(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.open()]


def go(script, lively, folder, *more) -> int:
    fixed = ["--model-path", str(lively), "--answers-file", str(folder / "a.jsonl"), "--device", "cpu"]
    return main(script, None, [*fixed, *more])


@pytest.fixture
def questions(tmp_path) -> Path:
    lines = [{"question_id": i, "image": f"{i}.png", "text": f"what is {i}", "category": "x"} for i in range(7)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "q.jsonl"


@pytest.mark.parametrize("script", FLAGS)
def test_llavas_flags(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "eval" / f"{script}.py"), run_name="__main__")
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"eval/{script}.py --model-path" in text
    assert set(FLAGS[script].split()) <= set(re.findall(r"--[a-zA-Z_-]+", text))


def test_loader_in_chunks_concatenates_to_the_whole(lively, questions, tmp_path):
    """LLaVA's way to several GPUs: its scripts `cat` the chunks."""
    fixed = ["--question-file", str(questions), "--image-folder", str(WRITTEN / "images"), "--max_new_tokens", "4"]
    assert go("loader", lively, tmp_path, *fixed) == 0
    whole = answers(tmp_path / "a.jsonl")
    assert [line["question_id"] for line in whole] == list(range(7))
    assert {line["prompt"] for line in whole} == {f"what is {i}" for i in range(7)}
    parts = []
    for k in range(3):
        chunk = ["--answers-file", str(tmp_path / f"3_{k}.jsonl"), "--num-chunks", "3", "--chunk-idx", str(k)]
        assert go("loader", lively, tmp_path, *fixed, *chunk) == 0
        parts += answers(tmp_path / f"3_{k}.jsonl")
    assert [(line["question_id"], line["text"]) for line in parts] == [(q["question_id"], q["text"]) for q in whole]


def test_science(lively, tmp_path):
    records = [
        {"id": "4", "image": "4.png", "conversations": [{"from": "human", "value": "<image>\nWhich?"}]},
        {"id": "5", "conversations": [{"from": "human", "value": "Why?"}]},
    ]
    (tmp_path / "s.json").write_text(json.dumps(records))
    more = [
        "--image-folder",
        str(WRITTEN / "images"),
        "--single-pred-prompt",
        "--answer-prompter",
        "--max_new_tokens",
        "4",
    ]
    assert go("science", lively, tmp_path, "--question-file", str(tmp_path / "s.json"), *more) == 0
    first, second = answers(tmp_path / "a.jsonl")
    letter = "\nAnswer with the option's letter from the given choices directly."
    assert (first["question_id"], first["prompt"]) == ("4", f"<image>\nWhich?{letter}")
    assert (second["question_id"], second["prompt"]) == ("5", f"Why?{letter}")


def test_mmbench_all_rounds(lively, tmp_path):
    image = base64.b64encode((WRITTEN / "images" / "1.png").read_bytes()).decode()
    rows = f"index\tquestion\thint\tA\tB\tC\tD\timage\n7\tWhich?\tA hint.\tcat\tdog\tcow\t\t{image}\n"
    (tmp_path / "m.tsv").write_text(rows)
    more = ["--all-rounds", "--single-pred-prompt", "--lang", "cn", "--max_new_tokens", "4"]
    assert go("mmbench", lively, tmp_path, "--question-file", str(tmp_path / "m.tsv"), *more) == 0
    lines = answers(tmp_path / "a.jsonl")
    assert [line["round_id"] for line in lines] == [0, 1, 2] and {line["question_id"] for line in lines} == {7}
    assert lines[1]["options"] == ["dog", "cow", "cat"] and lines[1]["option_char"] == ["B", "C", "A"]
    assert lines[1]["prompt"] == "A hint.\nWhich?\nA. dog\nB. cow\nC. cat"


def test_how_long_answers_may_be_is_llavas():
    assert SCRIPTS == {"loader": 128, "vqa": 1024, "science": 1024, "mmbench": 1024}


def test_one_line_and_status_2(lively, questions, tmp_path, capsys):
    images = ["--image-folder", str(WRITTEN / "images")]
    for more, words in (
        (["--question-file", "gone.jsonl"], "question file gone.jsonl does not exist"),
        (["--question-file", str(questions)], "7 of 7 image files do not exist (is it the right image folder?):"),
        (["--question-file", str(questions), *images, "--conv-mode", "v9"], "unknown conversation template 'v9'"),
        (["--question-file", str(questions), *images, "--conv-mode", "mpt"], "do not fit"),
        (["--question-file", str(questions), *images, "--num-chunks", "2", "--chunk-idx", "2"], "is not below"),
        (["--question-file", str(questions), *images, "--temperature", "-1"], "out of range"),
        (["--question-file", str(questions), *images, "--model-path", "/gone"], "/gone"),
    ):
        capsys.readouterr()
        assert go("loader", lively, tmp_path, *more) == 2
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error
    assert not (tmp_path / "a.jsonl").exists()


def test_the_template_and_why_are_said(lively, questions, tmp_path, caplog):
    more = ["--question-file", str(questions), "--image-folder", str(WRITTEN / "images"), "--max_new_tokens", "2"]
    with caplog.at_level("INFO"):
        assert go("vqa", lively, tmp_path, *more) == 0
    assert "template llava_v1 (LLaVA's rule for the name 'llava-v1.5-lively'" in caplog.text
    assert "7 questions answered" in caplog.text
