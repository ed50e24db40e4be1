from __future__ import annotations

import json
import os

import pytest

from llava_pat.data.records import load_records, resolve_image
from llava_pat.types import DataError, Turn

GOOD = {
    "id": "a-1",
    "image": "x/1.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A circle."}],
}
TEXT = {"id": 7, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes\u2028no"}]}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def changed(**changes):
    return {key: value for key, value in (GOOD | changes).items() if value is not ...}


def say(*turns):
    return [{"from": role, "value": value} for role, value in turns]


def test_list_and_lines_give_the_same_records(tmp_path):
    as_list = load_records(write(tmp_path / "a.json", [GOOD, TEXT]))
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in (GOOD, TEXT))
    as_lines = load_records(write(tmp_path / "a.jsonl", "\ufeff" + lines + "\n\n"))
    for one, other in zip(as_list, as_lines, strict=True):
        assert (one.id, one.images, one.turns, one.index) == (other.id, other.images, other.turns, other.index)
    assert as_list[0].images == ("x/1.png",)
    assert as_list[0].turns == (Turn("human", "<image>\nWhat?"), Turn("gpt", "A circle."))
    assert (as_list[1].id, as_list[1].images) == ("7", ())
    assert as_list[1].where == f"{tmp_path / 'a.json'}: record 1 (id '7')"


def test_content_decides_not_the_extension(tmp_path):
    assert len(load_records(write(tmp_path / "a.json", json.dumps(GOOD) + "\n" + json.dumps(TEXT)))) == 2


def test_several_images_and_repeated_ids(tmp_path):
    several = changed(image=["1.png", "2.png"], conversations=say(("human", "<image> or <image>?"), ("gpt", "one")))
    records = load_records(write(tmp_path / "a.json", [several, several]))
    assert [r.images for r in records] == [("1.png", "2.png")] * 2
    assert [r.index for r in records] == [0, 1]


def test_bad_json_names_the_line(tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl:2: bad JSON"):
        load_records(write(tmp_path / "a.jsonl", json.dumps(GOOD) + "\n{oops\n"))
    with pytest.raises(DataError, match=r"b\.json:3: bad JSON"):
        load_records(write(tmp_path / "b.json", '[\n{"id": 1},\n{oops}]'))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (changed(id=...), "lacks 'id'"),
        (changed(conversations=...), "lacks 'conversations'"),
        (changed(conversations=[]), "empty"),
        (changed(conversations=[{"from": "human"}]), "message 0 lacks"),
        (changed(conversations=say(("human", "<image>"), ("bot", "x"))), "message 1 is from 'bot'"),
        (changed(conversations=say(("gpt", "<image>"))), "message 0 is from 'gpt' where 'human'"),
        (changed(conversations=say(("gpt", "x"), ("gpt", "y"))), "message 1 is from 'gpt' where 'human'"),
        (changed(conversations=say(("gpt", "x"), ("human", "<image>"))), "last of 2 messages"),
        (
            changed(conversations=say(("gpt", "<image>"), ("human", "y"), ("gpt", "z"))),
            "holds 0 <image> but it names 1",
        ),
        (changed(conversations=say(("human", "<image>"), ("human", "x"))), "message 1 is from 'human' where 'gpt'"),
        (changed(conversations=say(("human", "<image>"))), "last of 1 messages"),
        (changed(conversations=say(("human", "<image>"), ("gpt", " \n"))), "message 1 is an empty answer"),
        (changed(conversations=say(("human", "what"), ("gpt", "x"))), r"0 <image> but it names 1 image\(s\)"),
        (changed(conversations=say(("human", "<image><image>"), ("gpt", "x"))), "holds 2 <image> but it names 1"),
        (changed(image=...), "holds 1 <image> but it names 0"),
        (changed(conversations=say(("human", "what"), ("gpt", "<image>"))), "an answer that holds <image>"),
        (changed(image=3), "'image' is 3"),
        (changed(image=["1.png", None]), "'image' is"),
        (changed(conversations=[{"from": "human", "value": 3}]), "holds a int, not text"),
        ([], "is a list"),
    ],
)
def test_bad_record_is_named(tmp_path, record, message):
    file = write(tmp_path / "a.json", [GOOD, record])
    with pytest.raises(DataError, match=message) as caught:
        load_records(file)
    assert str(caught.value).startswith(f"{file}: record 1")


def test_an_answer_before_the_first_question_is_dropped_and_counted(tmp_path):
    headed = changed(conversations=say(("gpt", "Hello!"), *((m["from"], m["value"]) for m in GOOD["conversations"])))
    records = load_records(write(tmp_path / "a.json", [GOOD, headed, TEXT]))
    assert records[1].turns == records[0].turns
    assert (records.leading_answers, records.skipped) == (1, ())


def test_bad_records_can_be_skipped_and_are_accounted_for(tmp_path):
    empty = changed(conversations=say(("human", "<image>"), ("gpt", "")))
    unanswered = changed(conversations=say(("human", "<image>"), ("gpt", "x"), ("human", "y")))
    file = write(tmp_path / "a.json", [GOOD, empty, TEXT, [], unanswered])
    records = load_records(file, on_bad="skip")
    assert [record.index for record in records] == [0, 2], "positions stay those of the file"
    assert [entry.index for entry in records.skipped] == [1, 3, 4]
    assert f"{file}: record 1 (id 'a-1'): message 1 is an empty answer" in records.skipped[0].reason
    assert "last of 3 messages is a question without an answer" in records.skipped[2].reason
    with pytest.raises(
        DataError, match=r"no usable records; the first of 2 that were skipped: .*record 0 .*empty answer"
    ):
        load_records(write(tmp_path / "b.json", [empty, unanswered]), on_bad="skip")
    with pytest.raises(DataError, match=r"c\.jsonl:2: bad JSON"):  # a broken file is not a bad record
        load_records(write(tmp_path / "c.jsonl", json.dumps(GOOD) + "\n{oops\n"), on_bad="skip")


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_records(tmp_path / "none.json")
    with pytest.raises(DataError, match="no records"):
        load_records(write(tmp_path / "a.json", "[]"))
    (tmp_path / "latin.json").write_bytes(b'[{"id": "\xe9"}]')
    with pytest.raises(DataError, match="not UTF-8"):
        load_records(tmp_path / "latin.json")


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "x/../../secret.png", ""])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="relative to the image folder"):
        resolve_image(tmp_path, name)


def test_links(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "images" / "real.png").write_bytes(b"x")
    os.symlink(tmp_path / "secret.png", tmp_path / "images" / "out.png")
    os.symlink(tmp_path / "images" / "real.png", tmp_path / "images" / "in.png")
    os.symlink(tmp_path / "images", tmp_path / "linked")
    with pytest.raises(DataError, match="leads out"):
        resolve_image(tmp_path / "images", "out.png")
    assert resolve_image(tmp_path / "images", "in.png") == tmp_path / "images" / "in.png"
    assert resolve_image(tmp_path / "linked", "real.png").read_bytes() == b"x"
