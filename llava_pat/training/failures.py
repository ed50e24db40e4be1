"""How a run can end before its time, and what its status then tells a scheduler.

    0     done
    2     ConfigError, DataError: refused; the same command is refused again until somebody mends something
    1     RunFailed, and any traceback: something broke under way; the same command goes on from the last checkpoint
    143   Preempted (128 + SIGTERM): a checkpoint was saved as asked; the same command goes on from it

With a launcher (torchrun, deepspeed) these are the statuses of its processes; its own is 1 where one of them failed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from torch._C import _error_if_any_worker_fails  # as torch.utils.data's own handler of SIGCHLD asks

from llava_pat.types import DataError

# What torch says, as a RuntimeError, when the disk did not take what it wrote.
_OF_TORCH = ("PytorchStreamWriter", "inline_container", "file write failed", "iostream error")


class RunFailed(RuntimeError):
    """The surroundings of a run failed: disk, worker processes, other ranks. The message says what, and the way out."""


class Preempted(RuntimeError):
    """The run was asked to stop, and saved a checkpoint first."""

    status = 143


@contextlib.contextmanager
def writing(what: str, folder: Path, way_out: str) -> Iterator[None]:
    """A write that fails inside (full disk, quota, a folder that is gone) becomes a RunFailed with the space left."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        of_the_disk = isinstance(error, (OSError, SafetensorError)) or any(mark in str(error) for mark in _OF_TORCH)
        if isinstance(error, RunFailed) or not of_the_disk:
            raise
        raise RunFailed(f"{what} could not be written: {error} ({_space(folder)}). {way_out}") from error


def killed_worker(error: Exception) -> int | None:
    """The process id in torch's error about a DataLoader's process that is gone; None for another error."""
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? (\d+)", str(error))
    return int(found[1]) if found else None


def word_of_a_killed_worker(seconds: float = 5.0) -> RuntimeError | None:
    """torch's error about a DataLoader's process that is gone, which a torn connection to it may run ahead of; None
    where all are still there after so long."""
    last = time.monotonic() + seconds
    try:
        while time.monotonic() < last:
            _error_if_any_worker_fails()
            time.sleep(0.02)
    except RuntimeError as error:  # from here, or from torch's handler of SIGCHLD
        return error
    return None


def in_one_line(error: DataError) -> str:
    """The message alone, where torch has put a traceback of a DataLoader's process before it."""
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


def _space(folder: Path) -> str:
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return f"{usage.free / 1e9:.2f} of {usage.total / 1e9:.2f} GB free in {folder}"
