"""LLaVA's training files: a JSON list, or JSONL, of `{id, image, conversations}` -> `Record`.

`image` is a file name, a list of names, or absent (text only). Conversations alternate human, gpt, human, gpt ...
and hold as many `<image>` as the record has images. Everything else is refused here, by file, position and id, or left
out and counted where the caller asks for that.

Published data has such records: llava_v1_5_mix665k has at least one empty answer (TinyLLaVA_Factory#20). What LLaVA
does with them, run at c121f04: an answer in front of the first question is dropped; so it is here, and counted. A
question without an answer, or an empty answer, at the end makes it mask the whole conversation, with a printed warning.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_pat.data.images import with_other_extension
from llava_pat.data.json_text import quoted
from llava_pat.data.record_file import NO_JSON, read_objects
from llava_pat.types import IMAGE_TOKEN, DataError, Record, Turn

ROLES = ("human", "gpt")
LEAVES_FOLDER = "path_leaves_folder"
MOST_CHARACTERS = 1_000_000
"""Of a record's text. It is tokenised before it is cut at model_max_length, and no text of use is as long."""
_LONGEST_ID = 1000  # characters

OnBad = Literal["error", "skip"]


@dataclass(frozen=True)
class Skipped:
    """A record that is not trained on. The reason names its file, position and id."""

    index: int  # position in the file, as Record.index
    reason: str
    kind: str = "data"  # DataError's
    line: int = 0  # of the file, as Record.line


class Records(list[Record]):
    """The records of a file that can be trained on, with an account of the others."""

    def __init__(self, records: Iterable[Record], skipped: Iterable[Skipped] = (), leading_answers: int = 0) -> None:
        super().__init__(records)
        self.skipped = tuple(skipped)
        self.leading_answers = leading_answers
        """How many records began with an answer that was dropped."""


def load_records(path: str | Path, on_bad: OnBad = "error", broken: list[Skipped] | None = None) -> Records:
    """Read every record of a LLaVA JSON (a list) or JSONL file; the content decides which of the two it is.

    A record that could not be trained on is a DataError naming file, record and id, or with on_bad "skip" an entry of
    `skipped`. A file that is missing, no JSON, or without any usable record is a DataError in both cases; a check that
    wants everything at once gives `broken`, which then takes what is no JSON, and gets the rest, be it nothing.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file; give the path of a LLaVA JSON or JSONL file")
    records, skipped, leading_answers = [], [], 0
    for index, line, raw in _read(file, broken):
        try:
            if isinstance(raw, DataError):
                raise raw
            record = parse_record(raw, str(file), index, line)
        except DataError as error:
            if on_bad == "error":
                raise
            skipped.append(Skipped(index, str(error), error.kind, line))
            continue
        records.append(record)
        leading_answers += len(record.turns) < len(raw["conversations"])
    if not records and broken is None:
        raise DataError(f"{file}: holds no {'usable ' if skipped else ''}records" + _first(skipped))
    return Records(records, skipped, leading_answers)


def _first(skipped: list[Skipped]) -> str:
    return f"; the first of {len(skipped)} that were skipped: {skipped[0].reason}" if skipped else ""


def parse_record(raw: Any, file: str, index: int, line: int = 0) -> Record:
    """One JSON object -> Record, or a DataError that says what is wrong with it and where it stands.

    An answer in front of the first question is dropped, as LLaVA does (`load_records` counts them).
    """
    if not isinstance(raw, dict):
        raise DataError(
            f"{file}: record {index} is a {type(raw).__name__}, not an object with id and conversations", "no_object"
        )
    where = f"{file}: record {index} (id {quoted(raw.get('id'))})"
    missing = [key for key in ("id", "conversations") if key not in raw]
    if missing:
        raise DataError(
            f"{where}: lacks {' and '.join(map(repr, missing))}; it has {quoted(sorted(raw))}", "missing_key"
        )
    if isinstance(raw["id"], bool) or not isinstance(raw["id"], (str, int)):
        raise DataError(f"{where}: 'id' is a {type(raw['id']).__name__}, not a string or a number", "bad_id")
    if len(str(raw["id"])) > _LONGEST_ID:
        raise DataError(f"{where}: 'id' has {len(str(raw['id']))} characters, more than {_LONGEST_ID}", "bad_id")
    images = _images(raw, where)
    turns = _turns(raw["conversations"], where)
    characters = sum(len(turn.value) for turn in turns)
    if characters > MOST_CHARACTERS:
        raise DataError(
            f"{where}: its messages have {characters} characters, more than {MOST_CHARACTERS}; cut it up",
            "too_much_text",
        )
    placed = sum(turn.value.count(IMAGE_TOKEN) for turn in turns)
    if placed != len(images):
        raise DataError(
            f"{where}: its text holds {placed} {IMAGE_TOKEN} but it names {len(images)} image(s) "
            f"{quoted(list(images))}; "
            f"write one {IMAGE_TOKEN} per image, or leave 'image' out of a text-only record",
            "image_count",
        )
    return Record(id=str(raw["id"]), images=images, turns=turns, file=file, index=index, line=line)


def resolve_image(image_folder: str | Path, name: str) -> Path:
    """The path of an image that a file names, with the guarantee that it lies inside `image_folder`.

    A data file is somebody else's text: absolute names, `..` and links that lead out are refused with DataError.
    Links inside the folder that stay inside are fine, and so is an `image_folder` that is itself a link.

    Where there is no such file but one of another extension (a.png for a.jpg), that one is it: published lists and
    published images differ so. Whoever needs the file comes here, so that all find the same one.
    """
    folder = Path(image_folder)
    if not stays_inside(name):
        raise DataError(
            f"image {quoted(name)}: names must be relative to the image folder {folder} and stay inside it",
            LEAVES_FOLDER,
        )
    path = with_other_extension(folder / name)
    root = folder.resolve()
    try:
        target = path.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise DataError(
            f"image {quoted(name)}: is a link that leads to itself; copy the image there", LEAVES_FOLDER
        ) from error
    if not target.is_relative_to(root):
        raise DataError(
            f"image {quoted(name)}: leads out of the image folder {root} to {target}; copy it inside", LEAVES_FOLDER
        )
    return path


def stays_inside(name: str) -> bool:
    """Whether an image's name can be one of a file below a folder, whatever links lie there."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return bool(name) and "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts


def _read(file: Path, broken: list[Skipped] | None) -> Iterator[tuple[int, int, Any]]:
    """(position, line, object or what is wrong with it) of every record; what is no JSON goes to `broken`, or is a
    DataError without that."""
    objects = read_objects(file)
    if broken is None:
        objects = list(objects)  # a broken file is said before the first bad record
        for _, _, raw in objects:
            if isinstance(raw, DataError) and raw.kind == NO_JSON:
                raise raw
    for index, line, raw in objects:
        if isinstance(raw, DataError) and raw.kind == NO_JSON:
            broken.append(Skipped(index, str(raw), raw.kind, line))
        else:
            yield index, line, raw


def _images(raw: dict[str, Any], where: str) -> tuple[str, ...]:
    image = raw.get("image")
    names = [] if image is None else [image] if isinstance(image, str) else image
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(
            f"{where}: 'image' is {quoted(image)}, not a file name or a list of file names", "bad_image_name"
        )
    return tuple(names)


def _turns(conversations: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(conversations, list) or not conversations:
        raise DataError(f"{where}: 'conversations' is not a list of messages, or it is empty", "empty_conversation")
    turns: list[Turn] = []
    for position, message in enumerate(conversations):
        if not isinstance(message, dict) or "from" not in message or "value" not in message:
            raise DataError(f"{where}: message {position} lacks 'from' or 'value'", "bad_message")
        role, value = message["from"], message["value"]
        if role not in ROLES:
            raise DataError(
                f"{where}: message {position} is from {quoted(role)}; known roles are {', '.join(ROLES)}",
                "unknown_role",
            )
        if position == 0 and role == "gpt" and len(conversations) > 1:
            continue
        expected = ROLES[len(turns) % 2]
        if role != expected:
            raise DataError(
                f"{where}: message {position} is from {role!r} where {expected!r} must speak (human first, in turn)",
                "not_in_turn",
            )
        if not isinstance(value, str):
            raise DataError(f"{where}: message {position} holds a {type(value).__name__}, not text", "bad_message")
        if role == "gpt" and not value.strip():
            raise DataError(f"{where}: message {position} is an empty answer; drop the record", "empty_answer")
        if role == "gpt" and IMAGE_TOKEN in value:
            raise DataError(
                f"{where}: message {position} is an answer that holds {IMAGE_TOKEN}; images belong to questions",
                "image_in_answer",
            )
        turns.append(Turn(role, value))
    if len(turns) % 2:
        raise DataError(
            f"{where}: the last of {len(conversations)} messages is a question without an answer; drop it", "unanswered"
        )
    return tuple(turns)
