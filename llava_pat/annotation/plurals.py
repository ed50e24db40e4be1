"""English plurals -> singulars by rule, without a dictionary to download.

Rules and exceptions are for words that captions use; what no rule knows stays. llava_pat/data/word_list.py folds
plurals by what its corpus has; a single caption is no corpus.
"""

from __future__ import annotations

_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "oxen": "ox", "dice": "die", "cacti": "cactus", "buses": "bus",
    "knives": "knife", "wives": "wife", "lives": "life", "leaves": "leaf", "loaves": "loaf", "shelves": "shelf",
    "wolves": "wolf", "calves": "calf", "halves": "half", "elves": "elf", "hooves": "hoof", "scarves": "scarf",
    "thieves": "thief", "gases": "gas", "quizzes": "quiz", "axes": "axe", "lenses": "lens", "atlases": "atlas",
    "canvases": "canvas", "octopuses": "octopus", "crocuses": "crocus", "cactuses": "cactus", "walruses": "walrus",
    "viruses": "virus", "campuses": "campus", "choruses": "chorus", "irises": "iris", "photos": "photo",
}  # fmt: skip
_STAY = frozenset(
    """
    scissors pants jeans shorts trousers tights leggings pajamas pyjamas glasses sunglasses eyeglasses goggles
    binoculars tweezers pliers headphones earphones clothes stairs overalls suspenders series species news lens gas
    christmas canvas atlas pancreas asparagus chess tennis always perhaps
    """.split()
)
_KEEP_E = frozenset("shoes toes canoes oboes hoes floes aches headaches avalanches axles caches niches".split())
"""Plurals whose singular ends in the e of -oes or -ches."""
_IE = frozenset(
    """
    movies cookies ties pies zombies brownies hoodies selfies smoothies birdies calories genies pixies rookies
    magpies neckties beanies veggies doggies collies lassies onesies walkie-talkies
    """.split()
)
"""Plurals of words in -ie, which are not -y."""


def singular(word: str) -> str:
    """ "boxes" -> "box", "cities" -> "city", "glass" -> "glass". Lower case in, lower case out."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for compound in ("men", "women", "children"):  # policemen, schoolchildren; not "specimen", "abdomen"
        if word.endswith(compound) and len(word) > len(compound) + 2 and word not in ("specimen", "abdomen", "regimen"):
            return word.removesuffix(compound) + _IRREGULAR[compound]
    if len(word) < 4 or not word.endswith("s") or word in _STAY or word.endswith(("ss", "us", "is", "ous", "'s")):
        return word
    if word in _KEEP_E or word in _IE:
        return word[:-1]
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "zzes", "oes")):
        return word[:-2]
    return word[:-1]
