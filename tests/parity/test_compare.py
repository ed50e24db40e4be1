"""The scripts themselves, without LLaVA: golden.json holds its answers to the checkpoint that it wrote."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ASSETS = HERE.parent / "assets" / "llava_written"


def script(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compare():
    return script("compare")


@pytest.fixture(scope="module")
def ours(compare):
    return compare.OurModel(str(ASSETS / "llava-v1.5-tiny"), None, None, "vicuna_v1")


@pytest.fixture
def written():
    """(cases, theirs, logits) as check_llava.py writes them, of the questions that spell no special token."""
    golden = json.loads((ASSETS / "golden.json").read_text(encoding="utf-8"))["generation"]
    cases, answers, logits = [], [], {}
    for number, sample in enumerate(golden):
        if "</s>" not in sample["question"]:
            name = f"{number:02}"
            cases.append({"id": name, "image": f"images/{sample['image']}", "question": sample["question"]})
            answers.append({"id": name, "prompt_ids": sample["input_ids"]})
            answers[-1] |= {"answer_ids": sample["greedy_ids"][1:], "answer": sample["greedy_text"]}
            logits[name] = torch.tensor(sample["last_logits"])
    assert len(cases) == 12
    return {"max_new_tokens": 64, "cases": cases}, {"by": "golden.json", "answers": answers}, logits


def test_llavas_answers_are_ours(compare, ours, written):
    assert compare.compare(ours, *written, ASSETS, 1e-5)


@pytest.mark.parametrize("what", ["logits", "nan", "answer", "ids"])
def test_a_difference_is_found(compare, ours, written, what, capsys):
    cases, theirs, logits = written
    entry = theirs["answers"][5]
    if what in ("logits", "nan"):
        logits[entry["id"]][7] += 1e-3 if what == "logits" else float("nan")
    elif what == "answer":
        entry["answer"], entry["answer_ids"][3] = "another", 7
    else:
        entry["prompt_ids"] = [*entry["prompt_ids"], 5]
    cases["cases"], theirs["answers"] = cases["cases"][5:6], [entry]
    assert not compare.compare(ours, cases, theirs, {entry["id"]: logits[entry["id"]]}, ASSETS, 1e-5)
    assert ("at its token 3 our best logit is" in capsys.readouterr().out) is (what == "answer")


def test_answers_of_other_cases_are_refused(compare, ours, written):
    cases, theirs, logits = written
    cases["cases"].pop()
    with pytest.raises(SystemExit, match="not of the same ids"):
        compare.compare(ours, cases, theirs, logits, ASSETS, 1e-5)


def test_cases_from_instruct_data():
    cases = script("make_cases").cases_from(ASSETS / "records.json", ASSETS / "images", 12)
    assert len({case["id"] for case in cases}) == 12
    assert all(Path(case["image"]).is_file() and "<image>" not in case["question"] for case in cases)
    with pytest.raises(ValueError, match="99 asked for"):
        script("make_cases").cases_from(ASSETS / "records.json", ASSETS / "images", 99)
