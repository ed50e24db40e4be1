"""Whatever a file holds: a value, or one line that says what is wrong with it."""

from __future__ import annotations

import json
import sys

import pytest

from llava_pat.data.json_files import read_json, read_jsonl
from llava_pat.data.json_text import BadJson, JsonReader, parse_json, quoted
from llava_pat.data.records import MOST_CHARACTERS, load_records, resolve_image
from llava_pat.data.regions import load_regions
from llava_pat.types import DataError

DEEP = "[" * 100_000
LONG = "9" * (sys.get_int_max_str_digits() + 1)
TURNS = '[{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A ring."}]'
GOOD = f'{{"id": "good", "conversations": {TURNS}}}'

# (the record, what is said of it): JSON all of it, and nothing that can be trained on without a loss
UNUSABLE = {
    "a key twice": (f'{{"id": "a", "conversations": [], "conversations": {TURNS}}}', "key 'conversations' twice"),
    "a key twice, inside": (f'{{"id": "a", "conversations": {TURNS}}}'.replace('"from"', '"value": "", "from"', 1),
                            "key 'value' twice"),
    "a long number": (f'{{"id": "a", "conversations": {TURNS}, "score": {LONG}}}', f"number of {len(LONG)} digits"),
    "half a character": (f'{{"id": "a", "conversations": {TURNS}}}'.replace("A ring", r"A \ud83d ring"), "half of a"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("form", ["list", "lines"])
def test_json_that_must_not_be_used_costs_one_record(tmp_path, case, form):
    text, words = UNUSABLE[case]
    file = tmp_path / "a.json"
    file.write_text(f"[{GOOD}, {text}, {GOOD}]" if form == "list" else f"{GOOD}\n{text}\n{GOOD}\n")
    records = load_records(file, "skip")
    assert [record.index for record in records] == [0, 2]
    assert [(entry.index, entry.kind) for entry in records.skipped] == [(1, "bad_value")]
    assert records.skipped[0].reason.startswith(f"{file}: record 1 (id 'a'): ") and words in records.skipped[0].reason
    with pytest.raises(DataError, match="record 1"):
        load_records(file)


@pytest.mark.parametrize("form", ["list", "lines"])
def test_nesting_that_python_gives_up_on_is_no_json(tmp_path, form):
    file = tmp_path / "a.json"
    file.write_text(f"[{GOOD},\n{DEEP}" if form == "list" else f"{GOOD}\n{DEEP}\n")
    with pytest.raises(DataError, match=r"a\.json:2: bad JSON at column 1: nested too deeply"):
        load_records(file, "skip")
    broken = []
    assert len(load_records(file, "skip", broken)) == 1
    assert [(entry.index, entry.line, entry.kind) for entry in broken] == [(1, 2, "bad_json")]


def test_a_pair_of_surrogates_is_a_character(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(f"[{GOOD}]".replace("ring", r"\ud83d\ude00"))
    assert load_records(file)[0].turns[1].value == "A \U0001f600."


def test_texts_and_ids_without_end(tmp_path):
    """They are named by a message that stays short."""
    file = tmp_path / "a.json"
    huge = {"id": "x" * 5_000_000, "conversations": json.loads(TURNS)}
    talk = {"id": "t", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "y" * 1_000_001}]}
    most = {"id": "m", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "y" * 999_999}]}
    odd = {"id": "o", "image": ["z" * 3_000_000, 1], "conversations": json.loads(TURNS)}
    file.write_text(json.dumps([huge, talk, most, odd]))
    records = load_records(file, "skip")
    assert [record.id for record in records] == ["m"]
    assert [entry.kind for entry in records.skipped] == ["bad_id", "too_much_text", "bad_image_name"]
    assert "5000000 characters" in records.skipped[0].reason and str(MOST_CHARACTERS) in records.skipped[1].reason
    assert all(len(entry.reason) < 2000 for entry in records.skipped)
    assert len(str(DataError("w" * 10**6))) < 5000


def test_regions_lines(tmp_path):
    file = tmp_path / "r.jsonl"
    good = '{"id": 1, "image": "a.png", "width": 4, "height": 3, "regions": []}'
    for text, words in (
        (DEEP, "bad JSON at column 1: nested too deeply"),
        (good.replace('"id"', '"width": 9, "id"'), "key 'width' twice"),
        (good.replace("1", LONG), f"a number of {len(LONG)} digits"),
        (good.replace("a.png", r"\udc00.png"), "half of a character"),
    ):
        file.write_text(f"{good}\n{text}\n")
        with pytest.raises(DataError, match=words) as caught:
            load_regions(file)
        assert str(caught.value).startswith(f"{file}:2")
        broken = []
        assert len(load_regions(file, broken)) == 1 and len(broken) == 1


@pytest.mark.parametrize("text", [DEEP, f'{{"a": {LONG}}}', "{oops", ""])
def test_other_json_files(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text or "\n")
    with pytest.raises(DataError, match=r"a\.json: no JSON"):
        read_json(file)
    if text:
        with pytest.raises(DataError, match=r"a\.json, line 1: no JSON"):
            read_jsonl(file)
    with pytest.raises(BadJson):
        parse_json(text)


def test_the_reader_tells_where():
    reader = JsonReader()
    assert reader.read_whole(' {"a": 1}\n') == {"a": 1} and reader.fault is None
    with pytest.raises(BadJson) as caught:
        reader.read_whole('{"a": 1}\n x')
    assert (caught.value.line, caught.value.column, caught.value.reason) == (2, 2, "Extra data")


def test_quotes_are_short_and_never_fail():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, [["y" * 10**6] * 10**4] * 100, 10**4000, {"k" * 10**6: 1}):
        assert len(quoted(value)) < 100_000
    assert quoted("a\n'b'") == repr("a\n'b'") and quoted(["1.png", None]) == "['1.png', None]"


@pytest.mark.parametrize("name", ["a\ud800.png", "a\0.png", "a/" * 3000 + "../b.png"])
def test_image_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(DataError, match="relative to the image folder") as caught:
        resolve_image(tmp_path, name)
    assert len(str(caught.value)) < 1000 and caught.value.kind == "path_leaves_folder"
