"""Checkpoint folders that are not as they were written."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from llava_pat.training.checkpoint_files import FILES, damage, seal
from llava_pat.training.checkpoints import ASIDE, checkpoint_to_go_on_from, last_checkpoint
from llava_pat.training.flags import ConfigError
from tests.faults.registry import Outcome, Run, fault_kind

# names of the files that a stage 1 leaves; sizes that a hash takes no time for
_SIZES = {
    "mm_projector.bin": 5000, "optimizer.pt": 9000, "scheduler.pt": 1300, "rng_state.pth": 14000,
    "trainer_state.json": 2000, "global_step4/rank_0.pt": 3000, "global_step4/rank_1.pt": 3000,
}  # fmt: skip


def _checkpoint(folder: Path, step: int, rng: random.Random, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    for name, size in _SIZES.items():
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(rng.randbytes(size))
    if sealed:
        seal(checkpoint)
    return checkpoint


def _cut(rng: random.Random, file: Path) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def _flip(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _zeros(rng: random.Random, file: Path) -> None:
    """Of the right length: what a file system may leave of a file that was never brought to the disk."""
    start = rng.randrange(file.stat().st_size)
    file.write_bytes(file.read_bytes()[:start].ljust(file.stat().st_size, b"\0"))


def _longer(rng: random.Random, file: Path) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.randint(1, 99)))


def _missing(rng: random.Random, file: Path) -> None:
    file.unlink()


def _folder(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def _nowhere(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


_HARMS: tuple[Callable[[random.Random, Path], None], ...] = (_cut, _flip, _zeros, _longer, _missing, _folder, _nowhere)

# lists that are none
_LISTS = (
    "", "null", "[]", "{}", "[" * 100_000, '{"format": "llava-pat checkpoint 1"}', '{"files": {}}',
    '{"format": "llava-pat checkpoint 1", "files": []}', '{"format": "llava-pat checkpoint 1", "files": {"a": 1}}',
    '{"format": "llava-pat checkpoint 1", "files": {}}', '{"format": "another", "files": {}}', "9" * 5000,
    '{"format": "llava-pat checkpoint 1", "files": {"../../etc/passwd": {"bytes": "x", "sha256": 3}}}',
)  # fmt: skip


@fault_kind("checkpoint folders with a file cut, altered, missing", "refused; the one before is taken")
def damaged(run: Run) -> Iterator[Outcome]:
    logging.disable(logging.WARNING)
    rng = run.rng
    before, newest = (_checkpoint(run.folder, step, rng) for step in (2, 4))
    whole = run.folder / "whole"
    shutil.copytree(newest, whole)
    listed = json.loads((newest / FILES).read_text())
    for _ in range(run.many(600)):
        name, harm = rng.choice([*_SIZES, FILES, FILES]), rng.choice(_HARMS)
        harm(rng, newest / name)
        yield _taken(run.folder, before, newest, whole, listed, f"{name}: {harm.__name__.strip('_')}")
        shutil.rmtree(newest)
        shutil.copytree(whole, newest)
    for text in run.some(_LISTS):
        (newest / FILES).write_text(text)
        yield _taken(run.folder, before, newest, whole, listed, f"{FILES}: {text[:40]}")


def _taken(folder: Path, before: Path, newest: Path, whole: Path, listed: object, fault: str) -> Outcome:
    """Survived when the one before is taken, or nothing is lost: all files are as they were, and what the list says."""
    try:
        found, problem = last_checkpoint(folder), damage(newest)
    except BaseException as error:
        return Outcome(False, fault, f"{type(error).__name__}: {error}"[:300])
    if found == str(newest):
        try:
            same = json.loads((newest / FILES).read_text()) == listed
        except ValueError:
            same = False
        intact = all((newest / name).read_bytes() == (whole / name).read_bytes() for name in _SIZES)
        return Outcome(same and intact, fault, "it was taken for a whole one")
    return Outcome(found == str(before) and bool(problem), fault, f"{found} was taken: {problem}")


@fault_kind("saves that ended anywhere", "never taken for a checkpoint; what is left of them goes at the next start")
def half_written(run: Run) -> Iterator[Outcome]:
    """Each state that the files of a save can be in when the machine stops: some whole, one cut, others not there."""
    logging.disable(logging.WARNING)
    rng = run.rng
    for number in range(run.many(200)):
        folder = run.folder / str(number)
        kept = [_checkpoint(folder, step, rng) for step in rng.choice([(), (2,), (2, 4)])]
        aside = folder / ASIDE if rng.random() < 0.5 else folder  # by us, and by what does not write aside
        half = _checkpoint(aside, 6, rng, sealed=False)
        order = rng.sample(sorted(_SIZES), len(_SIZES))
        written = rng.randrange(len(order))
        for name in order[written + 1 :]:
            (half / name).unlink()
        _cut(rng, half / order[written])
        if written == len(order) - 1 and rng.random() < 0.5:  # the list, cut short as well
            shutil.copy(_sealed_list(run.folder, rng), half / FILES)
            _cut(rng, half / FILES)
        yield _left(folder, kept, half, f"{written} of {len(order)} files and a part of one")
        shutil.rmtree(folder)


def _sealed_list(folder: Path, rng: random.Random) -> Path:
    example = folder / "example" / "checkpoint-6"
    return (example if example.exists() else _checkpoint(example.parent, 6, rng)) / FILES


def _left(folder: Path, kept: list[Path], half: Path, fault: str) -> Outcome:
    try:
        found = checkpoint_to_go_on_from(folder)
    except ConfigError as error:  # there is a checkpoint-6, and none is whole: not begun anew in silence
        return Outcome(not kept and half.exists() and str(folder) in str(error), fault, str(error)[:300])
    except BaseException as error:
        return Outcome(False, fault, f"{type(error).__name__}: {error}"[:300])
    expected = str(kept[-1]) if kept else None
    return Outcome(found == expected and not (folder / ASIDE).exists(), fault, f"{found} was taken")
