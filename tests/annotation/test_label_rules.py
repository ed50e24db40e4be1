"""Labels become the same words: plurals, articles, counts, synonyms; noun phrases of captions by rule and by spaCy."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from llava_pat.annotation.label_rules import SYNONYMS, LabelRules, load_synonyms
from llava_pat.annotation.plurals import singular
from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.taggers.caption import CaptionOptions, CaptionTagger
from llava_pat.annotation.taggers.noun_phrases import find_noun_phrases
from llava_pat.types import DataError


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("dogs", "dog"), ("boxes", "box"), ("cities", "city"), ("dishes", "dish"), ("benches", "bench"),
        ("glasses", "glasses"), ("glass", "glass"), ("bus", "bus"), ("buses", "bus"), ("horses", "horse"),
        ("houses", "house"), ("vases", "vase"), ("tomatoes", "tomato"), ("shoes", "shoe"), ("cookies", "cookie"),
        ("gloves", "glove"), ("knives", "knife"), ("women", "woman"), ("policemen", "policeman"),
        ("specimen", "specimen"), ("children", "child"), ("people", "person"), ("sheep", "sheep"), ("jeans", "jeans"),
        ("tennis", "tennis"), ("cactus", "cactus"), ("dresses", "dress"), ("sizes", "size"), ("bees", "bee"),
        ("trees", "tree"), ("gas", "gas"), ("lens", "lens"), ("lenses", "lens"), ("toys", "toy"), ("keys", "key"),
        ("наушники", "наушники"),
    ],
)  # fmt: skip
def test_plurals(plural: str, one: str) -> None:
    assert singular(plural) == one
    assert singular(one) == one, "a singular stays"


@pytest.mark.parametrize(
    ("label", "clean"),
    [
        ("The Two  Dogs.", "dog"), ("a TV", "television"), ("wine_glasses", "wine glasses"), ("three", "three"),
        ("12 red apples", "red apple"), ("all the people", "person"), ("Café tables", "café table"), ("狗", "狗"),
        ("собаки", "собаки"), ("  ", ""), ("the", ""), ("...", ""), ("couches", "sofa"),
        ("mountain bikes", "mountain bike"),
    ],
)  # fmt: skip
def test_rules(label: str, clean: str) -> None:
    rules = LabelRules()
    assert rules.apply(label) == clean
    assert rules.apply(clean) == clean, "clean labels stay"


def test_labels_are_each_kept_once_in_their_order() -> None:
    assert LabelRules().apply_all(["Couch", "dogs", "", "a sofa", "the dog"]) == ["sofa", "dog"]


def test_built_in_synonyms_do_not_chain() -> None:
    names = set(SYNONYMS)
    assert not [other for others in SYNONYMS.values() for other in others if other in names]


def test_a_file_extends_and_overrules(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("couch: [sofa, divan]\nхлеб: [булка]\n", encoding="utf-8")
    rules = LabelRules(load_synonyms(file))
    assert rules.apply("a sofa") == "couch" == rules.apply("divans")
    assert rules.apply("tv") == "television", "what the file does not speak of stays"
    assert rules.apply("Булка") == "хлеб"
    assert LabelRules(load_synonyms(file, extend=False)).apply("tv") == "tv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a, b]", "all of them text"), ("a: b", "all of them text"), ("a: [1]", "all of them text"),
        ("a: [c]\nb: [c]", "another name of"), ("a: [b]\nb: [c]", "which becomes"),
        ("a: [b]\na: [c]", "own.yaml: .*'a' is on line 1 as well"), ("[" * 2000, "own.yaml: .*nested too deeply"),
    ],
)  # fmt: skip
def test_wrong_synonyms(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        LabelRules(load_synonyms(file, extend=False))


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("Two dogs sitting on a wooden bench, next to the red car.", ["dogs", "wooden bench", "red car"]),
        ("the image shows a green circle and a blue square", ["green circle", "blue square"]),
        ("A man riding a wave on top of a surfboard", ["man", "wave", "surfboard"]),
        ("a photo of a group of people standing in a kitchen", ["people", "kitchen"]),
        ("A dining table covered with food", ["dining table", "food"]),
        ("a t-shirt, a T-shirt", ["t-shirt", "T-shirt"]),
        ("un café, 狗, a b", ["un café", "狗"]),
        ("a black and white photo of the man 's hat, the girl’s bag", ["man", "hat", "girl", "bag"]),
        ("a red cross and an orange", ["red cross", "orange"]),
        ("", []), ("of the and", []), ("3 2 1", []), ("A photo.", []),
    ],
)  # fmt: skip
def test_noun_phrases_by_rule(caption: str, phrases: list[str]) -> None:
    assert find_noun_phrases(caption) == phrases


def test_long_phrases_keep_their_last_words() -> None:
    assert find_noun_phrases("a big old rusty red fire truck", max_words=2) == ["fire truck"]


def test_caption_tagger_without_spacy() -> None:
    tagger = CaptionTagger(CaptionOptions(engine="rules"), Placement())
    assert tagger.tag([None, None], ["a red circle", ""]) == [["red circle"], []]
    assert tagger.version == "caption (rules)"


def test_spacy_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def token(text: str, pos: str) -> SimpleNamespace:
        return SimpleNamespace(text=text, pos_=pos)

    class Chunk(list):
        @property
        def root(self) -> SimpleNamespace:
            return self[-1]

    document = SimpleNamespace(
        noun_chunks=[
            Chunk([token("the", "DET"), token("two", "NUM"), token("black", "ADJ"), token("dogs", "NOUN")]),
            Chunk([token("it", "PRON")]),
            Chunk([token("a", "DET"), token("photo", "NOUN")]),
        ]
    )
    fake = ModuleType("spacy")
    fake.__version__ = "3.8"
    fake.load = lambda model, disable: SimpleNamespace(
        pipe=lambda captions: [document for _ in captions], meta={"version": "3.8.0"}
    )
    monkeypatch.setitem(sys.modules, "spacy", fake)
    monkeypatch.setattr("llava_pat.annotation.taggers.caption.has_spacy", lambda model: True)
    monkeypatch.setattr("llava_pat.annotation.taggers.spacy_phrases.require_package", lambda *given: None)
    tagger = CaptionTagger(CaptionOptions(), Placement())
    assert tagger.tag([None], ["the two black dogs"]) == [["black dogs"]]
    assert tagger.version == "caption (spacy 3.8 en_core_web_sm 3.8.0)"


def test_spacy_that_is_not_installed_is_one_line() -> None:
    if "spacy" in sys.modules:
        pytest.skip("spaCy is here")
    with pytest.raises(DataError, match="pip install spacy"):
        CaptionTagger(CaptionOptions(engine="spacy"), Placement())
