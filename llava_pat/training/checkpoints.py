"""Checkpoint folders: written aside and moved into place whole, which one a run goes on from, which ones are kept.

    OUT/.saving/checkpoint-8/   being written; what a killed save leaves there goes at the next start
    OUT/checkpoint-8/           whole: checkpoint_files.py lists its files

Nothing else is ever called checkpoint-N, and nothing is deleted before what replaces it is in place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava_pat.training.checkpoint_files import damage, seal, to_disk
from llava_pat.training.flags import ConfigError

logger = logging.getLogger(__name__)

TRAINER_STATE = "trainer_state.json"
ASIDE = ".saving"

# What else a killed start leaves: a rehearsal's folder, small files that were about to be moved into place.
_LEFTOVERS = (".rehearsal-*", ".metrics*.json.*", "config.yaml.tmp")


@contextlib.contextmanager
def gathered(*modules: torch.nn.Module) -> Iterator[None]:
    """Under ZeRO-3 the modules' weights are whole inside; elsewhere nothing happens."""
    with gathered_parameters([parameter for module in modules for parameter in module.parameters()]):
        yield


@contextlib.contextmanager
def gathered_parameters(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """As `gathered`, of single parameters."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


def last_checkpoint(output_dir: str | os.PathLike, closely: bool = True) -> str | None:
    """The newest `checkpoint-N` that is whole; None without any.

    closely: every byte is compared with what was written (about a second a gigabyte), with a warning for each newer
    checkpoint that is not whole; otherwise names and sizes are compared, in silence.
    """
    for path in _checkpoints(Path(output_dir)):
        problem = damage(path, closely)
        if problem is None:
            return str(path)
        if closely:
            logger.warning("%s is left out: %s", path, problem)
    return None


def checkpoint_to_go_on_from(folder: Path) -> str | None:
    """`last_checkpoint` of a run's folder, for one rank to look for. Removes what a killed save left.

    ConfigError when there are checkpoints and none is whole: a run that starts again in silence would throw away what
    it has.
    """
    _sweep(folder)
    found = last_checkpoint(folder)
    left = _checkpoints(folder)
    if found is None and left:
        raise ConfigError(
            f"{folder}: none of its checkpoints is whole ({', '.join(path.name for path in left)}: see above). Put "
            "back what is missing, or remove them to start this run again from its first step"
        )
    return found


def aside(checkpoint: Path) -> Path:
    """Where a checkpoint is written before it is moved to its place."""
    return checkpoint.parent / ASIDE / checkpoint.name


def publish(checkpoint: Path) -> None:
    """List the files that lie aside, bring them to the disk, and move them to `checkpoint` in one step."""
    beside = aside(checkpoint)
    seal(beside)
    if checkpoint.exists():  # one that was not whole, or the run would have gone on from it
        _remove(checkpoint)
    os.rename(beside, checkpoint)
    to_disk(checkpoint.parent)
    _remove_empty(beside.parent)


def discard(checkpoint: Path) -> None:
    """Free the space of a save that failed."""
    shutil.rmtree(aside(checkpoint).parent, ignore_errors=True)


def rotate(newest: Path, limit: int | None, keep: Collection[str] = ()) -> None:
    """Remove checkpoints until `limit` are left: first those that are not whole, then the oldest.

    Never `newest`, which must be in place, nor those in `keep`. None or 0 keeps all.
    """
    if not limit or limit < 0:
        return
    others = [path for path in _checkpoints(newest.parent) if path != newest]
    sound = [path for path in others if damage(path, closely=False) is None]
    by_worth = sound + [path for path in others if path not in sound]
    for path in by_worth[limit - 1 :]:
        if str(path) not in keep:
            _remove(path)


def _checkpoints(folder: Path) -> list[Path]:
    """All `checkpoint-N`, newest first."""
    if not folder.is_dir():
        return []
    steps = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in folder.iterdir()}
    named = {path: int(match[1]) for path, match in steps.items() if match and path.is_dir()}
    return sorted(named, key=lambda path: named[path], reverse=True)


def _remove(checkpoint: Path) -> None:
    """First out of sight: a removal that is killed must not leave half a checkpoint under its name."""
    (checkpoint.parent / ASIDE).mkdir(exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix="removed-", dir=checkpoint.parent / ASIDE))
    os.rename(checkpoint, hidden / checkpoint.name)
    _delete(hidden)
    _remove_empty(hidden.parent)


def _delete(path: Path) -> None:
    """What cannot be deleted now (a network disk keeps open files) must not end a run; the next start tries again."""
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        logger.warning("%s could not be removed: %s", path, error)


def _remove_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _sweep(folder: Path) -> None:
    for pattern in (ASIDE, *_LEFTOVERS):
        for path in folder.glob(pattern):
            _delete(path)
