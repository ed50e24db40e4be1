"""Hypothesis as a source of faults that are counted instead of asserted one by one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.faults.registry import Outcome, Run


def generated(run: Run, examples: int, one: Callable[[random.Random], Iterable[Outcome]]) -> Iterator[Outcome]:
    """What `one` says of so many examples, each with random numbers that hypothesis draws. The same for the same seed.

    An exception of `one` is an outcome, too: not survived.
    """
    found: list[Outcome] = []

    @seed(run.seed)
    @settings(
        max_examples=run.many(examples),
        phases=(Phase.generate,),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def collect(rng: random.Random) -> None:
        try:
            found.extend(one(rng))
        except Exception as error:  # whatever it is, it was not survived
            found.append(Outcome(False, "an example", f"{type(error).__name__}: {error}"[:500]))

    collect()
    yield from found
