"""LLaVA records with something wrong in them, and the texts of files that hold them. All by one random.Random, so that
hypothesis can drive it (st.randoms) as well as a plain seed.
"""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

IMAGES = ("whole.png", "wide.png", "cut.png", "text.png", "absent.png", "other.jpg")
ELSEWHERE = (
    "/etc/passwd",
    "../secret.png",
    "a/../../secret.png",
    "out.png",
    "loop.png",
    "pipe.png",
    "",
    " ",
    ".",
    "..",
)
LONG = "9" * (sys.get_int_max_str_digits() + 1)


def junk(rng: random.Random, depth: int = 2) -> Any:
    """Any JSON value, with a taste for the odd."""
    leaves: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice([0, -1, 1, 2**31, 10**400, -(10**30)]),
        lambda: rng.choice([0.5, -0.0, 1e308, float("nan"), float("inf")]),
        lambda: rng.choice(
            ["", " ", "a", "gpt", "human", "<image>", "\0", "\ud800", "\u2028", "</script>", "x" * 3000]
        ),
    ]
    if depth:
        leaves += [
            lambda: [junk(rng, depth - 1) for _ in range(rng.randrange(3))],
            lambda: {str(key): junk(rng, depth - 1) for key in range(rng.randrange(3))},
        ]
    return rng.choice(leaves)()


def good_record(rng: random.Random, number: int) -> dict[str, Any]:
    rounds = rng.randint(1, 2)
    said = []
    for turn in range(rounds):
        said += [{"from": "human", "value": f"What is {turn}?"}, {"from": "gpt", "value": f"a ring {turn}"}]
    record: dict[str, Any] = {"id": f"r{number}", "conversations": said}
    if rng.random() < 0.7:
        record["image"] = rng.choice(IMAGES[:2])
        said[0]["value"] = f"<image>\n{said[0]['value']}"
    return record


def _drop_key(record: dict, rng: random.Random) -> Any:
    del record[rng.choice(list(record))]
    return record


def _replace_value(record: dict, rng: random.Random) -> Any:
    record[rng.choice(["id", "image", "conversations"])] = junk(rng)
    return record


def _replace_record(record: dict, rng: random.Random) -> Any:
    return junk(rng)


def _other_image(record: dict, rng: random.Random) -> Any:
    name: Any = rng.choice([*ELSEWHERE, *IMAGES[2:], "a" * 5000, "n\0l.png", "\ud800.png"])
    record["image"] = [name, rng.choice(IMAGES)] if rng.random() < 0.2 else name
    return record


def _drop_message(record: dict, rng: random.Random) -> Any:
    del record["conversations"][rng.randrange(len(record["conversations"]))]
    return record


def _repeat_message(record: dict, rng: random.Random) -> Any:
    record["conversations"].insert(0, copy.deepcopy(rng.choice(record["conversations"])))
    return record


def _spoil_message(record: dict, rng: random.Random) -> Any:
    place = rng.randrange(len(record["conversations"]))
    if rng.random() < 0.3:
        record["conversations"][place] = junk(rng)
    else:
        record["conversations"][place][rng.choice(["from", "value"])] = junk(rng)
    return record


def _image_in_answer(record: dict, rng: random.Random) -> Any:
    record["conversations"][-1]["value"] += "<image>"
    return record


def _one_image_more(record: dict, rng: random.Random) -> Any:
    record["conversations"][0]["value"] += "<image>"
    return record


def _too_long(record: dict, rng: random.Random) -> Any:
    record["conversations"][0]["value"] = "word " * 3000 + record["conversations"][0]["value"]
    return record


_IN_VALUES = (
    _drop_key, _replace_value, _replace_record, _other_image, _drop_message, _repeat_message, _spoil_message,
    _image_in_answer, _one_image_more, _too_long,
)  # fmt: skip


def _key_twice(text: str, rng: random.Random) -> str:
    return text.replace('"id":', '"id": 7, "id":', 1) if '"id":' in text else text


def _long_number(text: str, rng: random.Random) -> str:
    return text.replace("{", f'{{"score": {LONG}, ', 1) if text.startswith('{"') else LONG


def _half_character(text: str, rng: random.Random) -> str:
    return text.replace("ring", r"\ud83d ring", 1) if "ring" in text else r'"\udc00"'


_IN_TEXT = (_key_twice, _long_number, _half_character)
# what ends a list, and costs a line of its own elsewhere
_NO_JSON = ("{", "[" * 100_000, '{"id": 1,}', "nothing", '{"id": "a" "b"}', "\0", '"cut')


@dataclass(frozen=True)
class BadFile:
    """The text of a file, and what stands in it."""

    text: str
    records: int  # good or bad; of a list, as far as it can be read
    faults: int  # injected
    is_list: bool
    is_cut: bool  # a list that ends in what is no JSON


def bad_file(rng: random.Random, most: int = 12) -> BadFile:
    """Records, most of them with one or two faults, as a list or as lines."""
    texts, faults = [], 0
    for number in range(rng.randint(1, most)):
        record: Any = good_record(rng, number)
        if rng.random() < 0.15:
            texts.append(json.dumps(record))
            continue
        faults += 1
        if rng.random() < 0.15:
            texts.append(rng.choice(_IN_TEXT)(json.dumps(record), rng))
            continue
        record = rng.choice(_IN_VALUES)(record, rng)
        if isinstance(record, dict) and record.get("conversations") and rng.random() < 0.1:
            record |= {f"more {place}": junk(rng) for place in range(3)}
        texts.append(json.dumps(record))
    is_list = rng.random() < 0.5
    broken = rng.random() < 0.2
    if broken and is_list:
        return BadFile(f"[{', '.join([*texts, rng.choice(_NO_JSON)])}", len(texts), faults + 1, True, True)
    if broken:
        texts.insert(rng.randrange(len(texts) + 1), rng.choice(_NO_JSON))
        faults += 1
    # a list of lines is told from lines of records by its first character: no line may look like a list
    if not is_list and texts[0].lstrip()[:1] == "[":
        texts.insert(0, json.dumps(good_record(rng, 99)))
    joined = f"[{', '.join(texts)}]" if is_list else "\n".join(texts) + "\n"
    return BadFile(joined, len(texts), faults, is_list, False)
