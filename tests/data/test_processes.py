"""Work spread over processes: everything once, in order, with a few items in memory."""

from __future__ import annotations

import os

import pytest

from llava_pat.data.check.processes import in_processes, stream_in_processes


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def fail(number: int) -> int:
    if number == 5:
        raise ValueError("five")
    return number


@pytest.mark.parametrize("processes", [None, 1, 2, 3])
def test_everything_once_and_in_order(processes) -> None:
    expected = [n * n for n in range(50)]
    assert [value for value, _ in in_processes(square, range(50), processes)] == expected
    found = list(stream_in_processes(square, iter(range(50)), 50, processes))
    assert [item for item, _ in found] == list(range(50)) and [value for _, (value, _) in found] == expected
    pids = {pid for _, (_, pid) in found}
    assert pids == {os.getpid()} if processes == 1 else len(pids) <= (processes or 8)
    if processes == 2:
        assert os.getpid() not in pids


@pytest.mark.parametrize("processes", [1, 3])
def test_a_stream_is_read_only_a_little_ahead(processes) -> None:
    taken: list[int] = []

    def numbers():
        for number in range(1000):
            taken.append(number)
            yield number

    stream = stream_in_processes(square, numbers(), 1000, processes)
    for count in range(1, 20):
        next(stream)
        assert len(taken) <= count + 2 * processes
    stream.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_arrives_where_it_belongs(processes) -> None:
    stream = stream_in_processes(fail, range(100), 100, processes)
    assert [next(stream)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(stream)


def test_a_stream_of_nothing() -> None:
    assert list(stream_in_processes(square, (), 0, 4)) == []
