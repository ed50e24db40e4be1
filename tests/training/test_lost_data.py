"""Data that change or vanish under a run, and processes that read them and are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import get_worker_info

from llava_pat.data.dataset import LlavaDataset
from llava_pat.training import failures, stages
from llava_pat.training.data_check import check_data
from llava_pat.training.launch import run as run_to_exit
from llava_pat.training.stages import pretrain
from llava_pat.types import IGNORE_INDEX
from tests.training.faults.comparing import assert_same, outcome
from tests.training.faults.spoiling import CHANGES, another_image, copy_data, data_flags


@pytest.fixture
def own(world, tmp_path: Path) -> Path:
    """Records, regions and images that a test may spoil."""
    return copy_data(world, tmp_path / "data")


def ended(argv: list[str], capsys) -> tuple[int, str]:
    """Exit status and message of a run that does not come to its end."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run_to_exit(lambda: pretrain(argv))
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return exit_.value.code, said.split("error: ")[-1]


@pytest.mark.parametrize("change, which", CHANGES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_other_data_under_the_same_names(world, tmp_path: Path, own, monkeypatch, capsys, change, which: str) -> None:
    out = tmp_path / "llava-run"
    argv = world.argv(out, **data_flags(own, alignment="my_package.my_module"))
    monkeypatch.setenv("DIE_AT", "2")
    monkeypatch.setenv("DIE_BY", "SIGTERM")
    assert ended(argv, capsys)[0] == 143
    monkeypatch.delenv("DIE_AT")
    kept = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    change(own)
    status, message = ended(argv, capsys)
    assert status == 2 and f"the {which} data are not those that this run began with: manifest" in message
    for path, content in kept.items():
        path.write_bytes(content)
    assert pretrain(argv)["resumed_from_step"] == 3


@pytest.fixture
def vanishing(own, monkeypatch):
    """Images that are gone when training begins, and were there for the check."""

    def vanish(*names: str) -> None:
        build = stages.build_trainer

        def then_gone(*values, **keywords):
            for name in names:
                (own / "images" / name).unlink(missing_ok=True)
            return build(*values, **keywords)

        monkeypatch.setattr(stages, "build_trainer", then_gone)

    return vanish


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_vanishes_ends_the_run(world, tmp_path: Path, own, vanishing, capsys, workers: int) -> None:
    vanishing("train-7.png")
    status, message = ended(
        world.argv(tmp_path / "llava-run", **data_flags(own, dataloader_num_workers=workers)), capsys
    )
    assert status == 2 and message.startswith(f"{own / 'train.json'}") and len(message.splitlines()) == 1
    assert "(id 'train-7')" in message and "train-7.png does not exist" in message
    assert "Once that is mended, the same command goes on from" in message or "No checkpoint was written" in message


@pytest.mark.parametrize("missing, workers", [("skip", 1), ("blank", 0)])
def test_images_that_vanish_within_the_cap(world, tmp_path: Path, own, vanishing, missing, workers, capfd) -> None:
    vanishing("train-7.png", "train-2.png")
    out = tmp_path / "llava-run"
    lenient = data_flags(own, missing=missing, max_missing=2, dataloader_num_workers=workers)
    assert pretrain(world.argv(out, **lenient))["lost_images"] == 2
    again = tmp_path / "llava-again"
    assert pretrain(world.argv(again, **lenient))["lost_images"] == 0, "the check leaves them out"


def test_images_that_vanish_beyond_the_cap(world, tmp_path: Path, own, vanishing, capsys) -> None:
    vanishing("train-7.png", "train-2.png")
    status, message = ended(
        world.argv(tmp_path / "llava-run", **data_flags(own, missing="skip", max_missing=1)), capsys
    )
    assert (
        status == 2 and "2 images went missing or broke" in message and "more than the 1 that --max_missing" in message
    )


def test_an_image_counts_once(world, tmp_path: Path, own, vanishing) -> None:
    vanishing("train-7.png")
    flags = data_flags(own, missing="skip", max_missing=1, num_train_epochs=2)
    assert pretrain(world.argv(tmp_path / "llava-run", **flags))["lost_images"] == 1


@pytest.mark.parametrize("missing", ["skip", "blank"])
def test_a_run_that_lost_images_is_killed(world, tmp_path: Path, own, vanishing, monkeypatch, capsys, missing) -> None:
    """It goes on to the bit, with images that it had met and with those that it had not."""
    kept = {path: path.read_bytes() for path in own.rglob("*.png")}
    names = [f"train-{number}.png" for number in (2, 5, 7, 9)]
    vanishing(*names)
    flags = data_flags(own, missing=missing, max_missing=4, num_train_epochs=2, alignment="my_package.my_module")
    whole, killed = tmp_path / "whole" / "llava-run", tmp_path / "killed" / "llava-run"
    assert pretrain(world.argv(whole, **flags))["lost_images"] == 4
    for path, content in kept.items():
        path.write_bytes(content)
    with monkeypatch.context() as dying:
        dying.setenv("DIE_AT", "4")
        dying.setenv("DIE_BY", "SIGTERM")
        assert ended(world.argv(killed, **flags), capsys)[0] == 143
    state = json.loads((killed / "checkpoint-5" / "trainer_state.json").read_text())
    met = state["stateful_callbacks"]["llava_pat_lost_images"]["names"]
    assert 0 < len(met) < 4, "the test needs some of each"
    (own / "images" / "train-7.png").write_bytes(b"broken")
    metrics = pretrain(world.argv(killed, **flags))
    assert metrics["resumed_from_step"] == 5 and metrics["lost_images"] == 4
    assert_same(outcome(killed), outcome(whole))


def test_losses_before_a_kill_count_where_the_images_are_back(
    world, tmp_path: Path, own, vanishing, monkeypatch, capsys
) -> None:
    kept = {path: path.read_bytes() for path in own.rglob("*.png")}
    vanishing(*(f"train-{number}.png" for number in range(4)))
    flags = data_flags(own, missing="skip", max_missing=4, alignment="my_package.my_module")
    argv = world.argv(tmp_path / "llava-run", **flags)
    monkeypatch.setenv("DIE_AT", "4")
    monkeypatch.setenv("DIE_BY", "SIGTERM")
    assert ended(argv, capsys)[0] == 143
    monkeypatch.undo()
    state = json.loads((tmp_path / "llava-run" / "checkpoint-5" / "trainer_state.json").read_text())
    met = len(state["stateful_callbacks"]["llava_pat_lost_images"]["names"])
    for path, content in kept.items():
        path.write_bytes(content)
    assert 0 < met == pretrain(argv)["lost_images"]


def test_an_image_that_became_another_one_is_refused(world, tmp_path: Path, own, monkeypatch, capsys) -> None:
    argv = world.argv(
        tmp_path / "llava-run", **data_flags(own, missing="skip", max_missing=4, alignment="my_package.my_module")
    )
    with monkeypatch.context() as dying:
        dying.setenv("DIE_AT", "2")
        dying.setenv("DIE_BY", "SIGTERM")
        assert ended(argv, capsys)[0] == 143
    (own / "images" / "train-2.png").unlink()
    another_image(own)
    status, message = ended(argv, capsys)
    assert status == 2 and "the training data are not those that this run began with" in message
    (own / "images" / "val-1.png").unlink()
    shutil.copy(world.folder / "images" / "train-3.png", own / "images")
    status, message = ended(argv, capsys)
    assert status == 2 and "the held-out data are not those that this run began with" in message
    assert "missing or broken now: val-1.png" in message
    (tmp_path / "llava-run" / "data_images.json").write_text('{"bytes": 3}')
    status, message = ended(argv, capsys)
    assert status == 2 and "data_images.json: holds no images of a run" in message


def test_a_held_out_image_that_vanishes_ends_the_run(world, tmp_path: Path, own, vanishing, capsys) -> None:
    vanishing("val-1.png")
    status, message = ended(
        world.argv(tmp_path / "llava-run", **data_flags(own, missing="skip", max_missing=4)), capsys
    )
    assert status == 2 and "(id 'val-1')" in message and "val-1.png does not exist" in message


@pytest.mark.parametrize("missing", ["skip", "blank"])
def test_a_sample_without_its_image(make_trainer, own: Path, missing: str) -> None:
    made = make_trainer(**data_flags(own, missing=missing))
    dataset = check_data(made.parts, made.arguments.data, main=True).train
    whole = dataset[3]
    assert whole["lost_images"] == [] and whole["regions"][0] is not None
    (own / "images" / "train-3.png").write_bytes(b"broken")
    sample = dataset[3]
    assert sample["lost_images"] == [0] and sample["regions"] == [None]
    assert torch.equal(sample["pixel_values"][0], dataset.geometry.blank())
    assert sample["input_ids"] == whole["input_ids"]
    assert set(sample["labels"]) == {IGNORE_INDEX} if missing == "skip" else sample["labels"] == whole["labels"]
    batch = made.parts.collator([sample, dataset[4]])
    assert batch["lost_images"].tolist() == [[3, 0]] and "lost_images" not in made.parts.collator([whole])


@pytest.mark.filterwarnings("ignore")
def test_a_torn_connection_to_a_killed_worker_runs_ahead_of_torchs_word(world, tmp_path, monkeypatch, capsys) -> None:
    """The reader of batches may fail before the kernel has told of the killed process: not one traceback then."""
    word = failures.word_of_a_killed_worker
    asked = []

    def torn(self, **_: object) -> None:
        batches = iter(self.get_train_dataloader())
        next(batches)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler is not called
        readers = (child.pid for child in multiprocessing.active_children())
        asked.append(next(pid for pid in readers if self.train_dataset.progress.of(pid) is not None))
        os.kill(asked[0], signal.SIGKILL)
        raise ConnectionResetError(104, "Connection reset by peer")

    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr("transformers.Trainer.train", torn)
    try:
        status, message = ended(world.argv(tmp_path / "llava-run", dataloader_num_workers=2), capsys)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert status == 1 and f"a process that reads images (pid {asked[0]}) ended at sample 'train-" in message
    assert word(0.1) is None  # torch has told it once, and no more


def test_a_worker_that_is_killed(world, tmp_path: Path, monkeypatch, capsys) -> None:
    """As by the kernel, when memory is out."""
    intact = LlavaDataset.__getitem__

    def killed(self: LlavaDataset, index: int):
        sample = intact(self, index)
        if index == 5 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return sample

    monkeypatch.setattr(LlavaDataset, "__getitem__", killed)
    status, message = ended(world.argv(tmp_path / "llava-run", dataloader_num_workers=2), capsys)
    assert status == 1 and "ended at sample 'train-5', or behind it, in step" in message
    # torch sees the signal, or first that the process is gone
    assert "killed by signal: Killed" in message or "exited unexpectedly" in message
    assert "--dataloader_num_workers" in message
