from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from llava_pat.data.word_list import (
    WordListSettings,
    build_word_list,
    fold_words,
    load_word_list,
    split_words,
    words_in,
)
from llava_pat.types import DataError


def corpus(folder, *captions, image="0.png"):
    records = [
        {
            "id": str(number),
            "image": image,
            "conversations": [
                {"from": "human", "value": "<image>\nsecret question"},
                {"from": "gpt", "value": caption},
            ],
        }
        for number, caption in enumerate(captions)
    ]
    file = folder / "train.json"
    file.write_text(json.dumps(records))
    return file


def test_by_hand(tmp_path):
    file = corpus(
        tmp_path,
        "The red Circles are above a circle.",
        "a red t-shirt, 3 dogs; the dog's red glass! x 42nd",
        "Circle above glass",
    )
    words = build_word_list(file, WordListSettings(min_count=2))
    # circles -> circle, dog's -> dog and dogs -> dog; glass stays; the question is no caption; digits are no letters
    assert words.counts == {"circle": 3, "red": 3, "above": 2, "dog": 2, "glass": 2}
    assert list(words.words) == ["circle", "red", "above", "dog", "glass"]
    assert words.left_out == {"without content": 3, "seen fewer than 2 times": 1, "a single letter": 1}
    assert words.corpus == {
        "file": "train.json", "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "captions": 3,
    }  # fmt: skip
    assert words.settings == {"min_count": 2, "max_words": None, "fold": "plural"}


def test_text_without_an_image_is_no_caption(tmp_path):
    file = corpus(tmp_path, "red circle")
    records = json.loads(file.read_text())
    records.append({"id": "t", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "poem"}]})
    file.write_text(json.dumps(records))
    words = build_word_list(file, WordListSettings(min_count=1))
    assert set(words.words) == {"red", "circle"} and words.corpus["captions"] == 1


def test_folding():
    written = Counter({"Boxes": 1, "box": 1, "cities": 1, "city": 1, "buses": 2, "glass": 1, "glas": 1, "Red": 1})
    assert fold_words(written, "none") == written
    assert fold_words(written, "case")["boxes"] == 1
    folded = fold_words(written, "plural")
    assert folded == {"box": 2, "city": 2, "buses": 2, "glass": 1, "glas": 1, "red": 1}


def test_words_of_letters():
    assert split_words("It’s a t-shirt, naïve 7up x_y 日本") == ["It's", "a", "t-shirt", "naïve", "日本"]


def test_most_frequent_and_extra(tmp_path):
    file = corpus(tmp_path, "red red red blue blue green")
    words = build_word_list(file, WordListSettings(min_count=1, max_words=2), extra_words=["Zebra", "red"])
    assert words.counts == {"red": 3, "blue": 2, "zebra": 0}
    assert words.left_out == {"beyond the most frequent 2": 1}


def test_round_trip_and_hash(tmp_path):
    words = build_word_list(corpus(tmp_path, "red blue red"), WordListSettings(min_count=1))
    words.save(tmp_path / "words.json")
    assert load_word_list(tmp_path / "words.json") == words
    assert words.sha256 == hashlib.sha256(b"red\nblue").hexdigest()


def test_labels_in_a_list():
    places = {"red": 0, "circle": 1, "traffic": 2, "box": 3, "BBC": 4}
    assert words_in("Red circles", places) == {0, 1}
    assert words_in("traffic light", places) == {2}
    assert words_in("boxes of the BBC", places) == {3, 4}
    assert words_in("", places) == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds no word list"),
        ('{"words": {"red": 1, "blue": 1}, "words": {"red": 1}}', "words.json: has the key 'words' twice"),
        ('{"words": {"a": "b"}}', "holds no word list"),
        ('{"words": {"red": 1}}', "1 words are left"),
        ('{"words": {"red": 1, "blue": 1}, "settings": [1]}', "words.json: corpus, settings and left_out"),
        ('{"words": {"red": 1, "blue": 1}, "left_out": 3}', "words.json: corpus, settings and left_out"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_word_list(tmp_path / "words.json")
    with pytest.raises(DataError, match="no such file"):
        load_word_list(tmp_path / "none.json")


def test_nothing_left_and_bad_settings(tmp_path):
    with pytest.raises(DataError, match="0 words are left after .*seen fewer than 5 times.*Lower min_count"):
        build_word_list(corpus(tmp_path, "red blue"))
    with pytest.raises(DataError, match="min_count is 0"):
        WordListSettings(min_count=0)
    with pytest.raises(DataError, match="max_words is 1"):
        WordListSettings(max_words=1)
    with pytest.raises(DataError, match="fold is 'lemma'"):
        WordListSettings(fold="lemma")
