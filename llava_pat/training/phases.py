"""What this process is doing now, in words: for the message of one that waits in vain for the other ranks.

    with phase("saving checkpoint-8"):
        ...

A rank that hangs in a collective says nothing by itself. Gloo raises an error after --ddp_timeout, NCCL ends the
process; `watching` says before that which rank waits, and in which phase, so that the log tells where they parted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist
from transformers import TrainerCallback

_SHARE = 0.9  # of the time-out that passes before a rank says that it waits

_name, _since = "start", time.monotonic()


def enter(name: str) -> None:
    """From now on this process does `name`."""
    global _name, _since
    _name, _since = name, time.monotonic()


def current() -> str:
    return _name


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """`name` inside, what was before afterwards; an error leaves the phase in which it came, for its message."""
    before = _name
    enter(name)
    yield
    enter(before)


def who() -> str:
    """Such as "rank 1 of 8"; of one process "the run"."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return f"rank {os.environ['RANK']} of {world}" if world > 1 else "the run"


_OF_GLOO = ("gloo", "caused pair closure")
"""In its messages: most name a source file of gloo's, "Application timeout caused pair closure" does not."""


def lost_the_others(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other ranks are gone, or do not answer."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _OF_GLOO)


@contextlib.contextmanager
def watching(timeout: float) -> Iterator[None]:
    """Says on stderr, once a phase, that it has lasted for nearly `timeout` seconds, after which collectives end."""
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(timeout, done), name="phases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(timeout: float, done: threading.Event) -> None:
    said = 0.0
    while not done.wait(min(timeout / 20, 10.0)):
        name, since = _name, _since
        lasts = time.monotonic() - since
        if lasts > _SHARE * timeout and since != said:
            said = since
            print(
                f"{who()} has been in this phase for {lasts:.0f} s: {name}. Ranks that wait for others give up after "
                f"{timeout:.0f} s (--ddp_timeout)",
                file=sys.stderr,
                flush=True,
            )


class Phases(TrainerCallback):
    """The steps of training, by number."""

    def on_step_begin(self, args, state, control, **keywords) -> None:
        enter(f"step {state.global_step + 1} of {state.max_steps}")
