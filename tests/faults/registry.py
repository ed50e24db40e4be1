"""Kinds of faults. A kind injects some, one after the other, and says of each whether it was survived.

One file of tests/faults/kinds may hold several: a function with @fault_kind is found there by itself.

    @fault_kind("a full disk", "the error says so; the old file is as it was")
    def full_disk(run: Run) -> Iterator[Outcome]:
        for room in run.some(range(0, 100_000, 10), of=20):
            ...
            yield Outcome(survived, f"{room} bytes of room", what_happened)
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
FOLDER = "tests.faults.kinds"


@dataclass(frozen=True)
class Outcome:
    """One fault, or `count` of a sort that were looked at together."""

    survived: bool
    fault: str  # what was injected
    happened: str = ""  # instead, where it was not survived
    count: int = 1


@dataclass(frozen=True)
class Run:
    """What a kind gets: an empty folder of its own, random numbers that follow from the seed, and how much to do."""

    folder: Path
    seed: int
    share: float  # 1: the whole suite; tests take a small part of it

    @property
    def rng(self) -> random.Random:
        return random.Random(self.seed)

    def many(self, whole: int) -> int:
        """This share of `whole`, at least 1."""
        return max(1, round(whole * self.share))

    def some(self, cases: Sequence[T]) -> Sequence[T]:
        """This share of the cases, at least one, drawn by the seed; all of them in the whole suite."""
        return cases if self.share >= 1 else self.rng.sample(cases, self.many(len(cases)))


Inject = Callable[[Run], Iterator[Outcome]]


@dataclass(frozen=True)
class FaultKind:
    name: str
    survived_means: str
    inject: Inject
    slow: bool  # it starts runs of training: not in CI, whose tests start a few of their own


KINDS: dict[str, FaultKind] = {}


def fault_kind(name: str, survived_means: str, slow: bool = False) -> Callable[[Inject], Inject]:
    """Registers a function as a kind. Both texts stand in docs/reliability.md."""

    def register(inject: Inject) -> Inject:
        if name in KINDS and KINDS[name].inject is not inject:
            raise ValueError(f"two kinds of faults are called {name!r}")
        KINDS[name] = FaultKind(name, survived_means, inject, slow)
        return inject

    return register


def all_kinds() -> dict[str, FaultKind]:
    """Every kind of the folder, in the order of files and of functions within."""
    package = importlib.import_module(FOLDER)
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
        importlib.import_module(f"{FOLDER}.{module.name}")
    return KINDS
