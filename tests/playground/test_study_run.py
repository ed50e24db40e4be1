"""The command of a study: a few steps of the real thing, resumed, failed, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from playground.study import run, steps
from playground.study.cells import Cell
from playground.study.run import main

ROOT = Path(__file__).parents[2]
QUICK = ["stage1.max_steps=1", "stage1.global_batch_size=4", "stage1.per_device_train_batch_size=4",
         "stage2.max_steps=1", "stage2.global_batch_size=4", "stage2.per_device_train_batch_size=4"]  # fmt: skip


def study(made: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(made), "--out", str(out), "--objectives", "none", "pat", "--seeds", "0", *more]


def test_a_study_of_single_steps(made, tmp_path):
    """bash's command, both stages, two objectives at a time: results hold figures, tallies, command lines; pairs."""
    out = tmp_path / "study"
    words = study(made, out, "--no_alignment", "--scenes", "1", "--set", *QUICK)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "playground.study", "run", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| caption CIDEr |" in done.stdout and "| patch cosine with its label |" in done.stdout
    assert "Only the first scenes were asked about" in done.stdout
    results = {file.name.split("-")[0]: json.loads(file.read_text()) for file in (out / "results/val").glob("*.json")}
    assert set(results) == {"none", "pat"}
    for objective, result in results.items():
        assert (result["objective"], result["seed"], result["scenes"], result["whole"]) == (objective, 0, 1, False)
        assert {"stage1_patch_cosine", "cider", "rec", "qa_count", "instruct_reg"} <= set(result["metrics"])
        assert all(len(column) == 1 for table in result["tallies"].values() for column in table)
        assert "--max_steps 1" in result["commands"]["stage1"] and "train/finetune.py" in result["commands"]["stage2"]
        assert result["inputs"]["data"]["pretrain_train.json"] and result["versions"]["torch"]
    assert results["none"]["initial"] == results["pat"]["initial"], "one start"
    assert results["none"]["metrics"] != results["pat"]["metrics"], "and other ends"
    assert not list(out.glob("stage*/*/checkpoint-*")), "a finished run needs no optimizer"

    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and again.stdout.count("finished before") == 2, "nothing is done twice"


@pytest.fixture
def pretend(monkeypatch):
    """Stages that take a moment: a script that writes what a run leaves. Returns the starts by folder."""
    started: list[str] = []
    script = (
        "import json, pathlib, sys; folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True); "
        "(folder / 'mm_projector.bin').write_text(''); "
        "(folder / 'metrics.json').write_text(json.dumps({'seconds': 1, 'steps': 1, 'peak_memory_bytes': 1, "
        "'caption_loss_init': 2.0, 'caption_loss_final': 1.0, 'patch_cosine_final': 0.5}))"
    )
    broken = "import sys; sys.exit('error: out of luck')"

    def stage(cell: Cell) -> list[str]:
        started.append(cell.stage1.name)
        code = broken if cell.objective == "unlucky" else script
        return [sys.executable, "-c", code, str(cell.stage1)]

    monkeypatch.setattr(Cell, "stage1_command", stage)
    monkeypatch.setattr(run, "check_configs", lambda cells: None)
    monkeypatch.setattr(run, "claim", lambda study: {"data": {}, "models": {}})
    monkeypatch.setattr(steps, "provenance", lambda: {"git": None, "versions": {}, "machine": ""})
    return started


def test_a_failed_cell_is_named_and_the_others_go_on(made, tmp_path, pretend, capsys):
    words = ["--data", str(made), "--out", str(tmp_path / "s"), "--stages", "1", "--no_alignment", "--seeds", "0", "1"]
    assert main([*words, "--objectives", "none", "unlucky"]) == 1
    said = capsys.readouterr().out
    assert said.count("FAILED exit status 1: error: out of luck") == 2
    assert "FAILED unlucky-seed0: exit status 1" in said and "| seeds |  | 0 1 |" in said
    assert {file.stem for file in (tmp_path / "s/results/val").glob("*.json")} == {"none-seed0", "none-seed1"}
    assert main([*words, "--objectives", "none", "pat"]) == 0, "finished ones are read, the new one is done"
    assert "finished before" in capsys.readouterr().out


def test_a_run_that_was_cut_off_is_done_again(made, tmp_path, pretend, capsys):
    words = ["--data", str(made), "--out", str(tmp_path / "s"), "--stages", "1", "--no_alignment", "--seeds", "0"]
    half = tmp_path / "s" / "stage1" / "llava-v1.5-pretrain-none-seed0"
    half.mkdir(parents=True)
    (half / "mm_projector.bin").write_text("")  # metrics.json comes last
    assert main([*words, "--objectives", "none"]) == 0
    assert "stage1 done" in capsys.readouterr().out and (half / "metrics.json").is_file()
    (tmp_path / "s" / "results" / "val" / "none-seed0.json").unlink()
    assert main([*words, "--objectives", "none"]) == 0
    assert "stage1 done" not in capsys.readouterr().out, "stage 1 is there: the result alone is written again"


def test_a_sweep_shares_what_settings_share(made, tmp_path, pretend, capsys):
    words = ["--data", str(made), "--out", str(tmp_path / "s"), "--stages", "1", "--no_alignment", "--seeds", "0"]
    swept = ["--over", "alignment_weight=1,5", "--objectives", "none", "pat"]
    assert main([*words, *swept], sweep=True) == 0
    assert "`pat stage1.alignment_weight=1` | `pat stage1.alignment_weight=5`" in capsys.readouterr().out
    assert len(list((tmp_path / "s/stage1").iterdir())) == 3
    with pytest.raises(SystemExit):
        main([*words, "--objectives", "pat"], sweep=True)


def test_other_inputs_are_refused(made, tmp_path, pretend, monkeypatch, capsys):
    from playground.study.inputs import INPUTS, claim

    monkeypatch.setattr(run, "claim", claim)
    words = ["--data", str(made), "--out", str(tmp_path / "s"), "--stages", "1", "--no_alignment", "--seeds", "0"]
    assert main([*words, "--objectives", "none"]) == 0
    file = tmp_path / "s" / INPUTS
    held = json.loads(file.read_text())
    assert {"playground/models/llama", "playground/models/clip"} == set(held["models"])
    held["data"]["pretrain_train.json"] = "other"
    file.write_text(json.dumps(held))
    capsys.readouterr()
    assert main([*words, "--objectives", "none"]) == 2
    assert "holds runs with other inputs (data: pretrain_train.json): choose another --out" in capsys.readouterr().err


def test_two_studies_in_one_folder_are_refused(made, tmp_path, pretend, capsys):
    out = tmp_path / "s"
    out.mkdir()
    words = ["--data", str(made), "--out", str(out), "--stages", "1", "--no_alignment", "--seeds", "0"]
    with run._only_study(out):
        assert main([*words, "--objectives", "none"]) == 2
    assert "another study is at work" in capsys.readouterr().err
    assert main([*words, "--objectives", "none"]) == 0


@pytest.mark.parametrize("wrong", ["no_flag=1", "sft_share=2"])
def test_wrong_settings_are_told_in_a_line(made, tmp_path, pretend, capsys, wrong):
    words = ["--data", str(made), "--out", str(tmp_path / "s"), "--no_alignment", "--seeds", "0"]
    assert main([*words, "--objectives", "none", "--set", wrong]) in (1, 2)
    said = capsys.readouterr()
    assert wrong in said.err + said.out and "Traceback" not in said.err
