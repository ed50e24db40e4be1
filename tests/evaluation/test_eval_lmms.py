"""lmms-eval: the command for each layout, and a local task that runs through it and agrees with our own answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_pat.convert.command import main as convert
from llava_pat.evaluation import lmms
from llava_pat.evaluation.model import Answerer
from llava_pat.types import DataError
from tests.evaluation.conftest import CHECKPOINT, asked

PYTHON = os.environ.get("LLAVA_PAT_LMMS_PYTHON", sys.executable)
"""A python that can import lmms_eval; scripts/setup.sh --with lmms makes one."""


def can_import(*names: str) -> bool:
    code = f"import importlib.util as u, sys; sys.exit(not all(u.find_spec(n) for n in {names}))"
    return subprocess.run([PYTHON, "-c", code], capture_output=True).returncode == 0


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    names = {"lmms_eval"}
    monkeypatch.setattr(lmms.importlib.util, "find_spec", lambda name: name if name in names else None)
    return names


def test_command_for_llavas_layout(installed, lively, tmp_path) -> None:
    with pytest.raises(DataError, match="`llava` is not installed .*bash scripts/convert.sh"):
        lmms.command(str(lively), "mme,pope", tmp_path, None)
    installed.add("llava")
    words = lmms.command(str(lively), "mme,pope", tmp_path, None)
    assert words[1:5] == ["-m", "lmms_eval", "--model", "llava"]
    settings = dict(pair.split("=") for pair in words[words.index("--model_args") + 1].split(","))
    assert settings["pretrained"] == str(lively)
    assert (settings["model_name"], settings["conv_template"]) == ("llava-v1.5-lively", "vicuna_v1")
    assert words[words.index("--batch_size") + 1] == "1"


def test_what_lmms_eval_cannot_read_is_said(installed, tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llama", "mm_vision_tower": "x"}))
    (tmp_path / "mm_projector.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"no whole model \(stage1\)"):
        lmms.command(str(tmp_path), "mme", tmp_path, None)
    assert lmms.main([str(tmp_path)]) == 2
    assert "name the tasks" in capsys.readouterr().err
    installed.clear()
    assert lmms.main([str(CHECKPOINT), "mme"]) == 2
    assert "LLAVA_PAT_WITH=lmms" in capsys.readouterr().err


def test_playgrounds_lines(tmp_path) -> None:
    from playground.generate import generate

    generate(tmp_path, train=1, val=3, seed=5, workers=1)
    lines = lmms.playground_lines(tmp_path / "eval", None)
    labels = json.loads((tmp_path / "eval" / "vqa_annotations.json").read_text())["annotations"]
    assert [line["answer"] for line in lines] == [label["multiple_choice_answer"] for label in labels]
    assert all(Path(line["image"]).is_file() for line in lines)
    assert lines[0]["text"].endswith("\nAnswer the question using a single word or phrase.")
    assert len(lmms.playground_lines(tmp_path / "eval", 4)) == 4


@pytest.mark.skipif(
    not can_import("lmms_eval", "decord", "torchvision"),
    reason=f"{PYTHON} has no lmms-eval: bash scripts/setup.sh --with lmms, or LLAVA_PAT_LMMS_PYTHON=/path/to/python",
)
def test_a_local_task_agrees_with_our_own_answers(lively, tmp_path) -> None:
    """Every third label is our own answer, the others are nonsense: lmms-eval must find exactly that share right."""
    folder = tmp_path / "llava-v1.5-lively-hf"
    convert([str(lively), str(folder)])
    questions = [question for question in asked(30) if len(question.images) == 1]
    ours = Answerer.from_folder(folder, template="v1", device="cpu").answer(questions, 12, 4)
    lines = [
        {"question_id": q.id, "image": str(q.images[0]), "text": q.text, "answer": text if i % 3 == 0 else "nonsense"}
        for i, (q, text) in enumerate(zip(questions, ours, strict=True))
    ]
    lmms.write_task(tmp_path / "tasks", lines, max_new_tokens=12)
    code = "import sys; from llava_pat.evaluation.lmms import command; from pathlib import Path; import subprocess; "
    code += f"words = command({str(folder)!r}, {lmms.TASK!r}, Path({str(tmp_path / 'out')!r}), "
    code += f"Path({str(tmp_path / 'tasks')!r})); sys.exit(subprocess.run(words).returncode)"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    run = subprocess.run([PYTHON, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    (found,) = (tmp_path / "out").rglob("*_results.json")
    figures = json.loads(found.read_text())["results"][lmms.TASK]
    (samples,) = (tmp_path / "out").rglob("*_samples_*.jsonl")
    rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    said = [row["filtered_resps"] for row in rows]
    theirs = [text if isinstance(text, str) else text[0] for text in said]
    assert len(set(ours)) > 5
    assert [text.strip() for text in theirs] == ours
    assert figures["exact_match,none"] == pytest.approx(len(range(0, len(lines), 3)) / len(lines))
