"""Records, good and bad, as hypothesis draws them: each is kept as it was, or reported by name."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_pat.data.records import load_records
from llava_pat.data.regions import load_regions
from tests.faults.accounts import check_and_account, read_and_account
from tests.faults.bad_records import bad_file
from tests.faults.bad_regions import good_line
from tests.faults.small_data import SmallData, small_data

randoms = st.randoms(use_true_random=False)
# without what a record's text must not be: empty, or half of a character
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: text.strip() and "<image>" not in text
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    said = draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
    return [
        {"from": role, "value": text}
        for pair in said
        for role, text in zip(("human", "gpt"), pair, strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SmallData:
    return small_data(tmp_path_factory.mktemp("small"))


@given(st.lists(conversations(), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_good_records_are_kept_to_the_letter(tmp_path: Path, talks, as_list: bool, ascii_only: bool) -> None:
    content = [{"id": f"r{number}", "conversations": talk} for number, talk in enumerate(talks)]
    file = tmp_path / "records.json"
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in content]
    file.write_text(f"[{', '.join(lines)}]" if as_list else "\n".join(lines) + "\n", encoding="utf-8", newline="")
    found = load_records(file)
    assert [(record.id, record.index) for record in found] == [(f"r{n}", n) for n in range(len(talks))]
    for record, talk in zip(found, talks, strict=True):
        assert [(turn.role, turn.value) for turn in record.turns] == [(m["from"], m["value"]) for m in talk]


@given(randoms)
def test_bad_records_are_kept_or_reported(tmp_path: Path, data: SmallData, rng: random.Random) -> None:
    records, _ = read_and_account(tmp_path / "records.json", bad_file(rng))
    if records and rng.random() < 0.3:
        check_and_account(records, data, "skip")


@given(randoms, st.sampled_from(["whole.png", "wide.png"]))
def test_good_regions_are_kept(tmp_path: Path, rng: random.Random, image: str) -> None:
    line = good_line(rng, image)
    file = tmp_path / "regions.jsonl"
    file.write_text(json.dumps(line) + "\n")
    (entry,) = load_regions(file).values()
    assert [region.label for region in entry.regions] == [region["label"] for region in line["regions"]]
    assert (entry.height, entry.width) == (line["height"], line["width"])
