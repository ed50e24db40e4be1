"""LLaVA's training files: a JSON list, or JSONL, of `{id, image, conversations}` -> `Record`.

`image` is a file name, a list of names, or absent (text only). Conversations alternate human, gpt, human, gpt ...
and hold as many `<image>` as the record has images. Everything else is refused here, by file, position and id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_pat.types import IMAGE_TOKEN, DataError, Record, Turn

ROLES = ("human", "gpt")


def load_records(path: str | Path) -> list[Record]:
    """Read every record of a LLaVA JSON (a list) or JSONL file; the content decides which of the two it is.

    Raises DataError naming file, record and id for anything that could not be trained on.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file; give the path of a LLaVA JSON or JSONL file")
    records = [parse_record(raw, str(file), index) for index, raw in _read(file)]
    if not records:
        raise DataError(f"{file}: holds no records")
    return records


def parse_record(raw: Any, file: str, index: int) -> Record:
    """One JSON object -> Record, or a DataError that says what is wrong with it and where it stands."""
    if not isinstance(raw, dict):
        raise DataError(f"{file}: record {index} is a {type(raw).__name__}, not an object with id and conversations")
    where = f"{file}: record {index} (id {raw.get('id')!r})"
    missing = [key for key in ("id", "conversations") if key not in raw]
    if missing:
        raise DataError(f"{where}: lacks {' and '.join(map(repr, missing))}; it has {sorted(raw)}")
    if isinstance(raw["id"], bool) or not isinstance(raw["id"], (str, int)):
        raise DataError(f"{where}: 'id' is a {type(raw['id']).__name__}, not a string or a number")
    images = _images(raw, where)
    turns = _turns(raw["conversations"], where)
    placed = sum(turn.value.count(IMAGE_TOKEN) for turn in turns)
    if placed != len(images):
        raise DataError(
            f"{where}: its text holds {placed} {IMAGE_TOKEN} but it names {len(images)} image(s) {list(images)}; "
            f"write one {IMAGE_TOKEN} per image, or leave 'image' out of a text-only record"
        )
    return Record(id=str(raw["id"]), images=images, turns=turns, file=file, index=index)


def resolve_image(image_folder: str | Path, name: str) -> Path:
    """The path of an image that a file names, with the guarantee that it lies inside `image_folder`.

    A data file is somebody else's text: absolute names, `..` and links that lead out are refused with DataError.
    Links inside the folder that stay inside are fine, and so is an `image_folder` that is itself a link.
    """
    folder = Path(image_folder)
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"image {name!r}: names must be relative to the image folder {folder} and stay inside it")
    path = folder / name
    root = folder.resolve()
    if not path.resolve().is_relative_to(root):
        raise DataError(f"image {name!r}: leads out of the image folder {root} to {path.resolve()}; copy it inside")
    return path


def _read(file: Path) -> Iterator[tuple[int, Any]]:
    """(position, object) pairs. A JSONL file is read line by line, so that a broken line can be named."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
    if text.lstrip()[:1] == "[":
        try:
            yield from enumerate(json.loads(text))
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}: bad JSON at column {error.colno}: {error.msg}") from error
        return
    # split on "\n" alone: str.splitlines would also cut at U+2028, which JSON allows inside strings
    for number, line in enumerate(text.split("\n")):
        if line.strip():
            try:
                raw = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{file}:{number + 1}: bad JSON at column {error.colno}: {error.msg}; "
                    "a file is one JSON list, or one JSON object per line"
                ) from error
            yield number, raw


def _images(raw: dict[str, Any], where: str) -> tuple[str, ...]:
    image = raw.get("image")
    names = [] if image is None else [image] if isinstance(image, str) else image
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(f"{where}: 'image' is {image!r}, not a file name or a list of file names")
    return tuple(names)


def _turns(conversations: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(conversations, list) or not conversations:
        raise DataError(f"{where}: 'conversations' is not a list of messages, or it is empty")
    turns = []
    for position, message in enumerate(conversations):
        if not isinstance(message, dict) or "from" not in message or "value" not in message:
            raise DataError(f"{where}: message {position} lacks 'from' or 'value'")
        role, value = message["from"], message["value"]
        if role not in ROLES:
            raise DataError(f"{where}: message {position} is from {role!r}; known roles are {', '.join(ROLES)}")
        expected = ROLES[position % 2]
        if role != expected:
            raise DataError(
                f"{where}: message {position} is from {role!r} where {expected!r} must speak (human first, in turn)"
            )
        if not isinstance(value, str):
            raise DataError(f"{where}: message {position} holds a {type(value).__name__}, not text")
        if role == "gpt" and not value.strip():
            raise DataError(f"{where}: message {position} is an empty answer; drop the record")
        if role == "gpt" and IMAGE_TOKEN in value:
            raise DataError(
                f"{where}: message {position} is an answer that holds {IMAGE_TOKEN}; images belong to questions"
            )
        turns.append(Turn(role, value))
    if len(turns) % 2:
        raise DataError(f"{where}: the last of {len(turns)} messages is an unanswered question; drop or answer it")
    return tuple(turns)
