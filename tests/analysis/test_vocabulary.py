"""The word list: reading it, and finding its entries in labels."""

from __future__ import annotations

import json

import pytest
import torch

from llava_pat.analysis import vocabulary
from llava_pat.analysis.vocabulary import Vocabulary, load_vocabulary, vocabulary_of
from llava_pat.types import DataError


@pytest.fixture
def write(tmp_path):
    def write_file(content: object) -> str:
        path = tmp_path / "vocabulary.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write_file


def test_facets_are_columns_in_file_order(write):
    content = {"kind": ["circle", "digit 7"], "colour": ["red", "orange"], "fruit": ["orange", "fig"]}
    read = load_vocabulary(write(content))
    assert read.words == ("circle", "digit 7", "red", "orange", "fig")
    assert read.facets == {"kind": (0, 1), "colour": (2, 3), "fruit": (3, 4)}


@pytest.mark.parametrize(
    "content, message",
    [
        ("{\n oops", r"vocabulary.json:2: not JSON"),
        ('{"colour": ["red"], "kind": ["ring"], "colour": ["blue"]}', "facet 'colour' is there 2 times"),
        ('{"colour": ["red \\ud83d"]}', r"not JSON .*surrogates"),
        (["red"], "expected an object"),
        ({}, "expected an object"),
        ({"colour": []}, "facet 'colour' must be a non-empty list"),
        ({"colour": ["red", " "]}, "facet 'colour' must be a non-empty list of non-empty words"),
        ({"colour": ["red", "blue", "Red"]}, "facet 'colour' has red more than once"),
    ],
)
def test_bad_files_are_refused_by_name(write, content, message):
    with pytest.raises(DataError, match=message):
        load_vocabulary(write(content))


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing.json: no such vocabulary file"):
        load_vocabulary(tmp_path / "nothing.json")


def test_labels_contain_whole_words_longest_first():
    words = Vocabulary(("dog", "hot dog", "red", "t-shirt"))
    found = {label: [words.words[i] for i in words.find(label)] for label in
             ("a red hot dog", "Dog, red dog", "hotdog", "hot", "reddish dog", "red t-shirt", "hot, dog")}  # fmt: skip
    assert found == {
        "a red hot dog": ["red", "hot dog"],
        "Dog, red dog": ["dog", "red"],
        "hotdog": [],
        "hot": [],
        "reddish dog": ["dog"],
        "red t-shirt": ["red", "t-shirt"],
        "hot, dog": ["hot dog"],
    }


def test_other_scripts_are_words_too():
    assert Vocabulary(("Straße", "собака", "猫")).find("STRASSE собака 猫") == (0, 1, 2)


def test_targets_are_one_row_per_label():
    words = Vocabulary(("red", "blue", "disc"))
    expected = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]]).bool()
    assert torch.equal(words.targets(["red disc", "chair", "red disc", "blue"]), expected)
    assert words.targets([]).shape == (0, 3)


def test_vocabulary_of_a_data_set_is_its_labels():
    words = vocabulary_of(["red disc", "Dog", "dog", "red disc", "hot dog"])
    assert words.words == ("Dog", "hot dog", "red disc") and not words.facets
    assert words.find("hot dog") == (1,)


def test_an_entry_that_begins_a_longer_one_gives_way_to_it():
    words = Vocabulary(("light", "light blue", "blue"))
    assert words.find("light blue lamp") == (1,)
    assert words.find("blue light") == (2, 0)


def test_words_are_cut_up_once_however_many_labels_are_looked_up(monkeypatch):
    cut, real = [], vocabulary._parts
    monkeypatch.setattr(vocabulary, "_parts", lambda text: cut.append(text) or real(text))
    labels = [f"thing {number}" for number in range(40)]
    assert torch.equal(Vocabulary(tuple(labels)).targets(labels), torch.eye(40).bool())
    assert len(cut) == 2 * 40  # each word and each label, not each word for each label
