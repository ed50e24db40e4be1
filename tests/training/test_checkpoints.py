"""A checkpoint is there whole or not at all: what counts as whole, what a failed save leaves, what is thrown away."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import torch

from llava_pat.training import saving
from llava_pat.training.checkpoint_files import FILES, damage, seal
from llava_pat.training.checkpoints import (
    ASIDE,
    checkpoint_to_go_on_from,
    last_checkpoint,
    publish,
    rotate,
)
from llava_pat.training.failures import RunFailed, writing
from llava_pat.training.flags import ConfigError
from llava_pat.training.launch import run as run_to_exit
from llava_pat.training.stages import pretrain


def write(folder: Path, step: int, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "global_step2").mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint / "global_step2" / "rank_1.pt").write_bytes(b"weights" * 100)
    if sealed:
        seal(checkpoint)
    return checkpoint


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["trainer_state.json", "global_step2/rank_1.pt", FILES])
@pytest.mark.parametrize("harm", [Path.unlink, shorten, flip, lambda file: file.write_bytes(b"")])
def test_every_harm_is_seen(tmp_path: Path, name: str, harm, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 9, 10):
        write(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    newest = tmp_path / "checkpoint-10"
    assert damage(newest) is None and last_checkpoint(tmp_path) == str(newest)
    harm(newest / name)
    problem = damage(newest)
    assert problem and (name in problem or name == FILES)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert [record.message for record in caplog.records] == [f"{newest} is left out: {problem}"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"format": "llava-pat checkpoint 1", "files": []}', "null", "[]", "",
        '{"format": "llava-pat checkpoint 1", "files": {}}', '{"format": "llava-pat checkpoint 1", "files": {"a": 1}}',
    ],
)  # fmt: skip
def test_a_list_that_is_none(tmp_path: Path, text: str) -> None:
    """Also one that lists nothing: every folder would be whole."""
    for step in (2, 4):
        write(tmp_path, step)
    (tmp_path / "checkpoint-4" / FILES).write_text(text)
    assert f"its {FILES} cannot be read" in damage(tmp_path / "checkpoint-4")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_without_reading_every_byte(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 2)
    flip(checkpoint / "global_step2" / "rank_1.pt")
    assert damage(checkpoint, closely=False) is None and "altered" in damage(checkpoint)
    shorten(checkpoint / "global_step2" / "rank_1.pt")
    assert "has 697 bytes, 700 were written" in damage(checkpoint, closely=False)


def test_the_list_is_checked_by_hand(tmp_path: Path) -> None:
    """sha256 of "{}", from another tool (printf '{}' | sha256sum)."""
    listed = json.loads((write(tmp_path, 2) / FILES).read_text())["files"]
    assert listed["trainer_state.json"] == {
        "bytes": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    assert set(listed) == {"trainer_state.json", "global_step2/rank_1.pt"}


def test_none_is_whole(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "absent") is None and checkpoint_to_go_on_from(tmp_path / "absent") is None
    write(tmp_path, 2, sealed=False)
    assert last_checkpoint(tmp_path) is None
    with pytest.raises(ConfigError, match="none of its checkpoints is whole .checkpoint-2"):
        checkpoint_to_go_on_from(tmp_path)


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    whole = write(tmp_path, 2)
    write(tmp_path / ASIDE, 4, sealed=False)
    (tmp_path / ".rehearsal-x").mkdir()
    (tmp_path / ".metrics_init.json.17").write_text("{")
    (tmp_path / "metrics_init.json").write_text("{}")
    assert checkpoint_to_go_on_from(tmp_path) == str(whole)
    assert names(tmp_path) == {"checkpoint-2", "metrics_init.json"}


def test_a_whole_checkpoint_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    (write(tmp_path, 4) / FILES).unlink()
    write(tmp_path / ASIDE, 4, sealed=False)
    publish(tmp_path / "checkpoint-4")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4") and names(tmp_path) == {"checkpoint-4"}


@pytest.mark.parametrize(
    "limit, harmed, left",
    [
        (1, (), {8}), (2, (), {6, 8}), (3, (), {4, 6, 8}), (None, (), {2, 4, 6, 8}), (0, (), {2, 4, 6, 8}),
        (2, (6,), {4, 8}), (3, (6, 4), {2, 6, 8}), (2, (9,), {6, 8}), (4, (9,), {2, 4, 6, 8}),
    ],
)  # fmt: skip
def test_which_are_kept(tmp_path: Path, limit: int | None, harmed: tuple[int, ...], left: set[int]) -> None:
    """The newest first; of the others those that are not whole go first, also with a higher number."""
    for step in {2, 4, 6, 8, *harmed}:
        write(tmp_path, step, sealed=step not in harmed)
    rotate(tmp_path / "checkpoint-8", limit)
    assert names(tmp_path) == {f"checkpoint-{step}" for step in left}


def test_the_best_one_is_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write(tmp_path, step)
    rotate(tmp_path / "checkpoint-6", 1, keep=(str(tmp_path / "checkpoint-2"),))
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-6"}


def test_errors_of_the_disk_and_others(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"^it could not be written: .*No space.* GB free in .*\. Way out$"):
        with writing("it", tmp_path, "Way out"), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    for words in ("file write failed", "basic_ios::clear: iostream error"):  # torch's, when the file is closed
        with pytest.raises(RunFailed, match=words), writing("it", tmp_path, "Way out"):
            raise RuntimeError(words)
    with pytest.raises(RunFailed, match="inline_container"), writing("it", tmp_path / "gone", "Way out"):
        torch.save({"a": torch.zeros(10_000)}, "/dev/full")
    with pytest.raises(RuntimeError, match="something else") as error, writing("it", tmp_path, "Way out"):
        raise RuntimeError("something else")
    assert not isinstance(error.value, RunFailed)


def test_a_disk_that_takes_no_more(world, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    """From the second save on files end after 3 kB, as by a quota; the run says so and leaves the first as it is.

    Then with room again, and a limit of one checkpoint: it goes on, and each time the old one goes last.
    """
    out = tmp_path / "llava-run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    publish_, seen = saving.publish, []

    def then_full(checkpoint: Path) -> None:
        publish_(checkpoint)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))

    monkeypatch.setattr(saving, "publish", then_full)
    try:
        with pytest.raises(SystemExit) as exit_:
            run_to_exit(lambda: pretrain(world.argv(out, save_total_limit=1)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert exit_.value.code == 1
    message = capsys.readouterr().err.split("error: ", 1)[1]
    for part in (f"{out}/checkpoint-4 could not be written", "GB free", f"{out}/checkpoint-2 is as it was",
                 "--save_total_limit"):  # fmt: skip
        assert part in message, message
    assert "Traceback" not in message
    kept = {path.name for path in out.iterdir() if path.is_dir()}
    assert kept == {"checkpoint-2"} and damage(out / "checkpoint-2") is None

    def watched(checkpoint: Path) -> None:
        publish_(checkpoint)
        seen.append(sorted(path.name for path in out.glob("checkpoint-*")))

    monkeypatch.setattr(saving, "publish", watched)
    assert pretrain(world.argv(out, save_total_limit=1))["resumed_from_step"] == 2
    assert seen == [["checkpoint-2", "checkpoint-4"], ["checkpoint-4", "checkpoint-6"]]
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"] and not (out / ASIDE).exists()


def test_files_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: every file and the list, their folders, the rename, the folder above."""
    done: list[str] = []
    sync, rename = os.fsync, os.rename

    def spy(handle: int) -> None:
        done.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path))
        sync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "rename", lambda old, new: (done.append("rename"), rename(old, new)))
    beside = write(tmp_path / ASIDE, 4, sealed=False).relative_to(tmp_path)
    publish(tmp_path / "checkpoint-4")
    at = done.index("rename")
    inside = ["trainer_state.json", "global_step2/rank_1.pt", FILES, "global_step2", ""]
    assert sorted(done[:at]) == sorted(os.path.normpath(beside / name) for name in inside)
    assert done[at - 1] == str(beside) and done[at + 1 :] == ["."]
