"""Noun phrases of a caption, by rule: no tagger, no download. English.

A caption is cut at punctuation, at words without content (data.word_list.STOP_WORDS), at places ("left", "behind"), at
the verbs that captions use and at -ing, -ed and -ly words that are none of the listed nouns. What lies between two
cuts is a phrase; its last words are kept, the last being the head.

    "Two dogs sitting on a wooden bench, next to the red car." -> dogs, wooden bench, red car

It knows no grammar: a verb that is not listed becomes part of a phrase. A detector that finds no such thing is the
second filter. spaCy's noun_chunks are better (spacy_phrases.py).
"""

from __future__ import annotations

import re

from llava_pat.annotation.label_rules import COUNTS
from llava_pat.data.word_list import STOP_WORDS, split_words

MAX_WORDS = 3
GENERIC = frozenset(
    """
    image images photo photos photograph photographs picture pictures pic pics shot shots closeup close-up snapshot
    illustration drawing view views scene background foreground front back rear top bottom middle center centre side
    sides left right edge corner distance part parts piece pieces group groups bunch couple pair set lot lots row rows
    number variety kind kinds type types sort way ways thing things stuff item items object objects area areas place
    places day time times one ones shape shapes colour colours color colors size style design use look looks work
    """.split()
)
"""Heads that name nothing that could be pointed at, or everything."""

_CUTS = STOP_WORDS | frozenset(
    """
    above across along amid amidst around atop away back before behind below beneath beside besides beyond beyond
    forward inside left near nearby next opposite outside past right round since together under underneath versus
    close far first second third last
    sit sits sat stand stands stood lie lies lay laying hold holds held wear wears wore worn ride rides rode ridden
    walk walks run runs ran play plays look looks looked show shows shown showed see sees seen saw eat eats ate
    drive drives drove driven fly flies flew flown jump jumps take takes took taken make makes made get gets got go goes
    went gone come comes came put puts set sets use uses lean leans rest rests hang hangs hung contain contains feature
    features include includes depict depicts display displays appear appears seem seems pose poses posed
    carry carries pull pulls push pushes throw throws threw thrown catch catches caught hit hits reach reaches surround
    surrounds fill fills give gives gave given keep keeps kept wait waits try tries tried smile smiles
    talk talks cook cooks grow grows grown built
    """.split()
)
_NOUNS_ING = frozenset(
    """
    building ceiling painting clothing string ring king wing wedding evening morning swing spring railing lighting
    awning earring duckling dining living swimming parking frying washing sewing fishing skating vending drawing
    crossing clearing bedding icing frosting stuffing pudding topping topping dressing siding flooring landing hanging
    stocking sibling thing darling wiring carving railing sling seating boxing bowling rolling shopping writing cutting
    """.split()
)
"""-ing words that are nouns, or stand before one ("dining table")."""
_KEPT_ED = frozenset("red bed shed sled seed weed reed bread breed hundred speed colored coloured striped".split())
_KEPT_LY = frozenset("family butterfly jelly belly lily fly ally bully dolly trolley july holly assembly".split())
_COLOURS = frozenset(
    "red green blue yellow black white gray grey brown pink purple cyan magenta beige teal maroon turquoise".split()
)
"""No label alone: "a black and white photo". Orange may be a fruit."""
_LOOSE = re.compile(r"\s+(['’]s)(?!\w)")
"""Conceptual Captions has blanks in front of 's."""
_PIECES = re.compile(r"[^\w\s'’\-]+|\s-+\s|\s–\s|\d+")


def find_noun_phrases(caption: str, max_words: int = MAX_WORDS) -> list[str]:
    """In their order, as written; plurals and synonyms are the label rules' job."""
    found: list[str] = []
    for piece in _PIECES.split(_LOOSE.sub(r"\1", caption)):
        phrase: list[str] = []
        for word in [*split_words(piece), ""]:
            if word and not _is_cut(word.lower()):
                phrase.append(word.removesuffix("'s"))
                if not word.endswith("'s"):  # "the man's hat" is a man and a hat
                    continue
            found.extend(_finish(phrase, max_words))
            phrase = []
    return list(dict.fromkeys(found))


def _is_cut(word: str) -> bool:
    if word in _CUTS:
        return True
    if word.endswith("ing") and len(word) > 4:
        return word not in _NOUNS_ING
    if word.endswith("ed") and len(word) > 3:
        return word not in _KEPT_ED and "-" not in word  # "red-haired" describes what follows
    return word.endswith("ly") and len(word) > 3 and word not in _KEPT_LY


def _finish(phrase: list[str], max_words: int) -> list[str]:
    while phrase and phrase[0].lower() in COUNTS:
        phrase = phrase[1:]
    if not phrase or phrase[-1].lower() in GENERIC or all(word.lower() in _COLOURS for word in phrase):
        return []
    if all(len(word) < 2 and word.isascii() for word in phrase):
        return []
    return [" ".join(phrase[-max_words:])]
