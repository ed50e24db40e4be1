from __future__ import annotations

import pytest

from llava_pat.annotation.converters.coco_panoptic import say_stuff
from llava_pat.annotation.labels import clean_label, drop_qualifier


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A_Dining  Table.", "dining table"),
        ("the an apple", "apple"),
        ("A", ""),
        ("  The ", ""),
        ("theatre", "theatre"),
        ("another man", "another man"),
        ("a-frame", "a-frame"),
        ('"Stop" sign', 'stop" sign'),
        ("Cafe\u0301 au lait", "caf\u00e9 au lait"),
        ("ЗЕЛЁНАЯ Кружка", "зелёная кружка"),
        ("红色的 圆", "红色的 圆"),
        ("...", ""),
        ("t-shirt", "t-shirt"),
    ],
)
def test_clean_label(text: str, label: str) -> None:
    assert clean_label(text) == label
    assert clean_label(label) == label


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("bow_(weapon)", "bow"),
        ("bow_(decorative_ribbons)", "bow"),
        ("Jaguar (Animal)", "Jaguar"),
        ("bell_pepper", "bell_pepper"),
        ("Organ (Musical Instrument)", "Organ"),
    ],
)
def test_drop_qualifier(name: str, label: str) -> None:
    assert drop_qualifier(name) == label


STUFF = """banner blanket bridge cardboard counter curtain door-stuff floor-wood flower fruit gravel house light
mirror-stuff net pillow platform playingfield railroad river road roof sand sea shelf snow stairs tent towel wall-brick
wall-stone wall-tile wall-wood water-other window-blind window-other tree-merged fence-merged ceiling-merged
sky-other-merged cabinet-merged table-merged floor-other-merged pavement-merged mountain-merged grass-merged dirt-merged
paper-merged food-other-merged building-other-merged rock-merged wall-other-merged rug-merged""".split()
SAID = """banner|blanket|bridge|cardboard|counter|curtain|door|wood floor|flower|fruit|gravel|house|light|mirror|net|
pillow|platform|playing field|railroad|river|road|roof|sand|sea|shelf|snow|stairs|tent|towel|brick wall|stone wall|
tile wall|wood wall|water|window blind|window|tree|fence|ceiling|sky|cabinet|table|floor|pavement|mountain|grass|dirt|
paper|food|building|rock|wall|rug""".replace("\n", "").split("|")


def test_every_stuff_category_of_coco_panoptic_is_words() -> None:
    assert len(STUFF) == 53
    assert [say_stuff(name) for name in STUFF] == SAID
