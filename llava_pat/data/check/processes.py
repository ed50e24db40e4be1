"""The same work on many stretches, by several processes, with the results in order."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

_PER_PROCESS = 4  # stretches; fewer are done sooner than another process starts
_PROCESSES = 8

T = TypeVar("T")


def in_processes(work: Callable[[int], T], starts: Sequence[int], processes: int | None = None) -> Iterator[T]:
    """work(start) for every start, in order. processes: at most so many; default: one a core, up to 8."""
    wanted = min(_PROCESSES, os.cpu_count() or 1, len(starts) // _PER_PROCESS) if processes is None else processes
    if min(wanted, len(starts)) < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(work, starts)
        return
    # forked children see `work` and its data where they are; pickling a million records would take longer
    with ProcessPoolExecutor(wanted, multiprocessing.get_context("fork"), initializer=_adopt, initargs=(work,)) as pool:
        try:
            yield from pool.map(_do, starts)
        finally:
            pool.shutdown(cancel_futures=True)


_work: Callable[[int], Any]  # in a child process: what it does


def _adopt(work: Callable[[int], Any]) -> None:
    global _work
    _work = work


def _do(start: int) -> Any:
    return _work(start)
