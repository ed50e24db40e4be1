"""Records of LLaVA files."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.faults.accounts import check_and_account, read_and_account
from tests.faults.bad_records import bad_file
from tests.faults.examples import generated
from tests.faults.registry import Outcome, Run, fault_kind
from tests.faults.small_data import small_data


@fault_kind("bad records", "each is kept or reported once, by file, position and id; the file is read to its end")
def bad_records(run: Run) -> Iterator[Outcome]:
    def one(rng: random.Random) -> Iterator[Outcome]:
        bad = bad_file(rng)
        read_and_account(run.folder / "records.json", bad)
        yield Outcome(True, "records with faults", count=bad.faults)

    yield from generated(run, 3000, one)


@fault_kind("bad records, checked", "each becomes a sample of finite pixels with something to learn, or is reported")
def bad_records_checked(run: Run) -> Iterator[Outcome]:
    data = small_data(run.folder)

    def one(rng: random.Random) -> Iterator[Outcome]:
        bad = bad_file(rng)
        records, reported = read_and_account(run.folder / "records.json", bad)
        if records:
            check_and_account(records, data, rng.choice(["skip", "blank"]))
        yield Outcome(True, "records with faults", count=bad.faults)

    yield from generated(run, 300, one)
