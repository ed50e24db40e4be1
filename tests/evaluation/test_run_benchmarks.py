"""The command: which benchmarks, what is missing, limits, going on, other checkpoints, ranks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava_pat.evaluation import suite
from llava_pat.evaluation.answers import read_answers
from llava_pat.evaluation.benchmark import find_benchmark, registry
from llava_pat.evaluation.scorers.captions import PLAIN, has_java
from llava_pat.evaluation.suite import is_playground, main, only, output_folder, select, spread, template_of
from llava_pat.types import DataError

ROOT = Path(__file__).parents[2]
FOUR = ["playground_caption", "playground_pope", "playground_rec", "playground_vqa"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from playground.generate import generate

    folder = tmp_path_factory.mktemp("world")
    generate(folder, train=1, val=4, seed=3, workers=1)
    return folder / "eval"


@pytest.fixture
def no_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_pat.evaluation.scorers.captions._meteor", lambda expected, found: 0.25)


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())["benchmarks"]


def test_all_playground_benchmarks_from_one_command(lively, data, tmp_path, capsys, no_meteor) -> None:
    pytest.importorskip("pycocoevalcap")
    arguments = [str(lively), "playground", "--data_root", str(data), "--out", str(tmp_path), "--conv-mode", "v1"]
    assert main(arguments) == 0
    found = results(tmp_path)
    assert list(found) == FOUR
    assert {name: entry["status"] for name, entry in found.items()} == dict.fromkeys(FOUR, "scored")
    headlines = [next(iter(found[name]["metrics"])) for name in FOUR]
    assert headlines == ["CIDEr" if has_java() else f"CIDEr{PLAIN}", "f1", "accuracy@0.5", "accuracy"]
    for name in FOUR:
        asked = find_benchmark(name).questions(data)
        lines = read_answers(found[name]["answers"])
        assert list(lines) == [question.key for question in asked]  # in order, none lost
        assert found[name]["questions"] == found[name]["answered"] == len(asked) and not found[name]["partial"]
        assert found[name]["provenance"]["template"] == "v1" and found[name]["provenance"]["checkpoint"]["sha256"]
        texts = {key: line["text"] for key, line in lines.items()}
        again = find_benchmark(name).score(data, texts, tmp_path / "submissions")
        assert again.metrics == found[name]["metrics"]
    assert "| playground_rec" in capsys.readouterr().out

    before = (tmp_path / "answers" / "playground_vqa.jsonl").read_bytes()
    assert main([*arguments[:1], "playground_vqa", *arguments[2:]]) == 0  # nothing to answer; the others are kept
    after = results(tmp_path)
    assert (tmp_path / "answers" / "playground_vqa.jsonl").read_bytes() == before
    assert after["playground_vqa"]["answered_in_this_run"] == found["playground_vqa"]["answered"]
    assert list(after) == FOUR


def test_limit_is_spread_marked_and_scored_as_a_whole(lively, data, tmp_path) -> None:
    arguments = [str(lively), "playground_vqa", "playground_rec", "--data_root", str(data), "--out", str(tmp_path)]
    assert main([*arguments, "--conv-mode", "v1", "--limit", "6"]) == 0
    entry = results(tmp_path)["playground_vqa"]
    asked = find_benchmark("playground_vqa").questions(data)
    chosen = [asked[i * len(asked) // 6] for i in range(6)]
    lines = read_answers(tmp_path / "answers" / "playground_vqa-limit6.jsonl")
    assert list(lines) == [question.key for question in chosen]
    assert (entry["partial"], entry["limit"], entry["answered"], entry["questions"]) == (True, 6, 6, len(asked))
    assert f"(6 of {len(asked)} questions)" in (tmp_path / "results.md").read_text()
    assert not any("no answer" in note for note in entry["notes"])  # what was left out is not wrong


def test_right_answers_score_100_also_of_a_part(data) -> None:
    """Words for digits among them: "eight" is the label, and must not have become "8" on the way."""
    whole = find_benchmark("playground_vqa")
    labels = json.loads((data / "vqa_annotations.json").read_text())["annotations"]
    right = {label["question_id"]: label["multiple_choice_answer"] for label in labels}
    asked = whole.questions(data)
    assert set(right.values()) & {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
    for benchmark, chosen in ((whole, asked), (only(whole, spread(asked, 5)), spread(asked, 5))):
        answers = {question.key: right[question.id] for question in chosen}
        assert benchmark.score(data, answers).metrics["accuracy"] == 100


def test_missing_files_are_listed_before_anything_is_loaded(lively, data, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(suite, "Answerer", None)  # loading would raise
    arguments = [str(lively), "playground_rec", "gqa", "refcoco_val", "--data_root", str(data), "--out", str(tmp_path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "2 of 3 benchmarks cannot be run" in error
    assert str(data / "refcoco" / "refs(unc).p") in error and "https://github.com/lichengunc/refer" in error
    assert "--skip_missing" in error
    assert not (tmp_path / "results.json").exists()
    assert main([*arguments[:1], "gqa", *arguments[4:], "--skip_missing"]) == 2  # nothing is left to run


def test_skipped_benchmarks_stay_in_the_report(lively, data, tmp_path) -> None:
    arguments = [str(lively), "playground_rec", "gqa", "--data_root", str(data), "--out", str(tmp_path)]
    assert main([*arguments, "--conv-mode", "v1", "--limit", "2", "--skip_missing"]) == 0
    found = results(tmp_path)
    assert found["gqa"]["status"] == "missing files" and "is missing" in found["gqa"]["needs"][0]
    assert "missing files" in (tmp_path / "results.md").read_text()


def test_a_missing_image_counts_as_a_missing_file(lively, data, tmp_path, capsys) -> None:
    copy = tmp_path / "world"
    shutil.copytree(data.parent, copy)
    (copy / "images" / "val" / "000002.png").unlink()
    arguments = [str(lively), "playground_rec", "--data_root", str(copy / "eval"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "1 of 4 image files do not exist" in error and "000002.png" in error


def test_one_broken_scorer_does_not_take_the_others_along(lively, data, tmp_path, monkeypatch) -> None:
    def broken(self, root, answers, out=None):
        raise DataError("the labels are broken")

    monkeypatch.setattr(registry()["playground_pope"], "score", broken)
    arguments = [str(lively), "playground_pope", "playground_rec", "--data_root", str(data), "--out", str(tmp_path)]
    assert main([*arguments, "--conv-mode", "v1", "--limit", "2"]) == 1
    found = results(tmp_path)
    assert found["playground_pope"]["status"] == "failed"
    assert found["playground_pope"]["error"] == "the labels are broken"
    assert found["playground_rec"]["status"] == "scored"


def test_answers_of_another_template_are_refused_until_restart(lively, data, tmp_path, capsys) -> None:
    arguments = [str(lively), "playground_rec", "--data_root", str(data), "--out", str(tmp_path), "--limit", "2"]
    assert main([*arguments, "--conv-mode", "v1"]) == 0
    assert main([*arguments, "--conv-mode", "llava_v1"]) == 2
    assert "--restart" in capsys.readouterr().err
    assert main([*arguments, "--conv-mode", "llava_v1", "--restart"]) == 0
    assert results(tmp_path)["playground_rec"]["provenance"]["template"] == "llava_v1"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["nonsense"], "no benchmark 'nonsense'; there are: coco_caption,"),
        (["playground_rec", "--limit", "0"], "--limit 0: at least 1"),
        (["playground_rec", "--conv-mode", "v7"], "v7"),
        (["playground_rec", "--judge_url", "http://127.0.0.1:1"], "belong together"),
    ],
)
def test_wrong_command_lines_are_one_message(lively, data, tmp_path, capsys, more, said) -> None:
    assert main([str(lively), *more, "--data_root", str(data), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error


def test_selection() -> None:
    known = list(registry())
    assert select([], playground=True) == FOUR
    assert select([], playground=False) == [name for name in known if name not in FOUR]
    assert select(["all"], playground=True) == known
    assert select(["refcoco"], playground=False) == ["refcoco_testA", "refcoco_testB", "refcoco_val"]
    assert select(["mme", "pope", "mme"], playground=False) == ["mme", "pope"]
    assert select(["mmbench"], playground=False) == ["mmbench"]  # a name stands for itself first


def test_whose_checkpoint_and_where_to(tmp_path: Path) -> None:
    for where, config in (
        ("llava", {"model_type": "llava_llama", "mm_vision_tower": "playground/models/clip"}),
        ("hf", {"model_type": "llava", "llava_pat": {"settings": {"mm_vision_tower": "playground/models/clip"}}}),
        ("real", {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}),
    ):
        (tmp_path / where).mkdir()
        (tmp_path / where / "config.json").write_text(json.dumps(config))
    assert [is_playground(str(tmp_path / name)) for name in ("llava", "hf", "real")] == [True, True, False]
    assert output_folder(str(tmp_path)) == tmp_path / "eval"
    assert output_folder("liuhaotian/llava-v1.5-7b") == Path("results/llava-v1.5-7b")


def test_template_without_a_word_about_it(tmp_path: Path) -> None:
    """LLaVA's evaluation scripts name vicuna_v1; its rule for names, "a curious human", is not what they use."""
    assert template_of(str(tmp_path / "llava-v1.5-7b"), None) == "v1"
    assert template_of(str(tmp_path / "llava-v1.5-7b"), "llava_v1") == "llava_v1"
    assert template_of(str(tmp_path / "llava-v1.6-mistral-7b"), None) == "mistral_instruct"
    (tmp_path / "config.yaml").write_text("version: llama_2")
    assert template_of(str(tmp_path), None) == "llama_2"


def test_listing_names_what_is_missing(data, capsys) -> None:
    assert main(["-", "--list", "--data_root", str(data)]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert any(line.startswith("playground_rec ") and line.endswith("ready") for line in lines)
    assert any(line.startswith("gqa ") and line.endswith("missing") for line in lines)


def test_eval_sh_and_two_ranks_give_the_same_answers(lively, data, tmp_path) -> None:
    """The user's command, in a process of its own, and by torchrun on two."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment.pop("LLAVA_PAT_WITH", None)
    texts = []
    for ranks in ("1", "2"):
        out = tmp_path / ranks
        command = ["bash", "scripts/eval.sh", str(lively), "playground_vqa", "--data_root", str(data)]
        command += ["--out", str(out), "--conv-mode", "v1", "--batch_size", "4"]
        environment |= {"NUM_GPUS": ranks, "MASTER_PORT": str(29600 + os.getpid() % 300)}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        assert "| playground_vqa" in run.stdout
        lines = read_answers(results(out)["playground_vqa"]["answers"])
        texts.append([line["text"] for line in lines.values()])
    assert texts[0] == texts[1] and len(set(texts[0])) > 3
