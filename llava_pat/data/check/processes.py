"""The same work on many stretches, or on the items of a stream, by several processes, with the results in order."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

import torch

_PER_PROCESS = 4  # stretches; fewer are done sooner than another process starts
_PROCESSES = 8

S = TypeVar("S")
T = TypeVar("T")


def in_processes(work: Callable[[int], T], starts: Sequence[int], processes: int | None = None) -> Iterator[T]:
    """work(start) for every start, in order. processes: at most so many; default: one a core, up to 8."""
    wanted = _wanted(len(starts), processes)
    if wanted < 2:
        yield from map(work, starts)
        return
    with _pool(work, wanted) as pool:
        try:
            yield from pool.map(_do, starts)
        finally:
            pool.shutdown(cancel_futures=True)


def stream_in_processes(
    work: Callable[[S], T], stream: Iterable[S], length: int, processes: int | None = None
) -> Iterator[tuple[S, T]]:
    """(item, work(item)) for everything that the stream gives, in order, with a few items in memory at one time.

    length: how many items there are, roughly. Items and results are pickled.
    """
    wanted = _wanted(length, processes)
    if wanted < 2:
        for item in stream:
            yield item, work(item)
        return
    waiting: deque[tuple[S, Future[T]]] = deque()
    with _pool(work, wanted) as pool:
        try:
            for item in stream:
                waiting.append((item, pool.submit(_do, item)))
                if len(waiting) >= 2 * wanted:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _wanted(stretches: int, processes: int | None) -> int:
    """How many processes; below 2: none but this one."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return 1
    most = min(_PROCESSES, os.cpu_count() or 1, stretches // _PER_PROCESS) if processes is None else processes
    return min(most, stretches)


def _pool(work: Callable[[Any], Any], processes: int) -> ProcessPoolExecutor:
    # forked children see `work` and its data where they are; pickling a million records would take longer
    fork = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(processes, fork, initializer=_adopt, initargs=(work,))


_work: Callable[[Any], Any]  # in a child process: what it does


def _adopt(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    torch.set_num_threads(1)  # as many processes as cores: threads of each would only wait for one another


def _do(item: Any) -> Any:
    return _work(item)
