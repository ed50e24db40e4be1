"""Questions about images, from the files that LLaVA's evaluation scripts read.

    read_questions   JSONL {question_id, image, text, ...}                     model_vqa_loader.py, model_vqa.py
    read_science     JSON list {id, conversations, image?}                     model_vqa_science.py
    read_mmbench     TSV index, question, hint, A-D, image (base64), ...       model_vqa_mmbench.py

Source: llava/eval of haotian-liu/LLaVA at c121f04. Ids need not be unique there: TextVQA's is the image's, MME asks two
questions under one. So a question is known by its `key`: id, round and prompt, all of which its answer line holds.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_pat.data.json_text import BadJson, parse_json, quoted
from llava_pat.data.records import stays_inside
from llava_pat.types import IMAGE_TOKEN, DataError, Turn

logger = logging.getLogger(__name__)

Key = tuple[str | int, int | None, str]
"""(question_id, round_id or None, the prompt as the answer line holds it)."""

LETTER_ONLY = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接回答选项字母。",
}
"""What --single-pred-prompt adds, by --lang."""

_OPTIONS = ("A", "B", "C", "D")
_NOTHING = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
"""Cells that pandas, with which LLaVA reads MMBench, takes for missing."""
_SHOWN = 5


@dataclass(frozen=True)
class Question:
    """What is asked once. Without <image> in its texts the images come in front, one a line; else they stand there."""

    id: str | int
    images: tuple[Path | bytes, ...]  # files, or the bytes of one
    text: str  # what the model reads, <image> apart
    extra: Mapping[str, Any] = field(default_factory=dict)  # the file's other fields: labels, category; for scorers
    prompt: str | None = None  # what the answer line calls "prompt", where that is not `text`
    line: Mapping[str, Any] = field(default_factory=dict)  # further fields of the answer line: round_id, options
    where: str = ""  # "FILE:LINE", for errors
    history: tuple[Turn, ...] = ()  # what was said before, beginning with a question; its images are `images` too

    @property
    def written_prompt(self) -> str:
        return self.text if self.prompt is None else self.prompt

    @property
    def key(self) -> Key:
        return (self.id, self.line.get("round_id"), self.written_prompt)


def read_questions(file: str | Path, image_folder: str | Path, *, unique_ids: bool = False) -> list[Question]:
    """LLaVA's question JSONL; a line without "image" is asked without one, other fields land in `extra`.

    {"question_id": 1, "image": "a.jpg", "text": "What is it?\\nAnswer ...", "category": "adversarial"}
    -> Question(1, (image_folder/a.jpg,), "What is it?\\nAnswer ...", {"category": "adversarial"})
    Raises DataError with file and line for a line that is no such object, and see `check_unique`.
    """
    file = Path(file)
    questions = []
    for number, raw in enumerate(_text(file).split("\n"), start=1):  # splitlines would cut at U+2028 in a text
        if not raw.strip():
            continue
        where = f"{file}:{number}"
        line = _object(raw, where)
        for name in ("question_id", "text"):
            if name not in line:
                raise DataError(f"{where}: no {name!r}; a question has question_id, image and text, this has {[*line]}")
        extra = {name: value for name, value in line.items() if name not in ("question_id", "image", "text")}
        images = _image_paths(line.get("image"), Path(image_folder), where)
        questions.append(Question(line["question_id"], images, line["text"], extra, where=where))
    if not questions:
        raise DataError(f"{file}: holds no question; is it cut off? Fetch it again")
    return check_unique(questions, unique_ids=unique_ids)


def read_science(file: str | Path, image_folder: str | Path, *, single_pred_prompt: bool = False) -> list[Question]:
    """LLaVA's ScienceQA JSON. "<image>" in the answer line's prompt says that there was one: its scorer looks for it.

    {"id": "4", "image": "4/image.png", "conversations": [{"from": "human", "value": "Which ...\\n<image>"}, ...]}
    """
    file = Path(file)
    records = _parsed(_text(file), str(file))
    if not isinstance(records, list):
        raise DataError(f"{file}: a JSON list of questions is expected, this is a {type(records).__name__}")
    questions = []
    for number, record in enumerate(records):
        where = f"{file}: record {number}"
        if "id" not in record or not record.get("conversations"):
            raise DataError(f"{where}: no 'id' or no 'conversations'; this has {[*record]}")
        text = record["conversations"][0]["value"].replace(IMAGE_TOKEN, "").strip()
        if single_pred_prompt:
            text = f"{text}\n{LETTER_ONLY['en']}"
        images = _image_paths(record.get("image"), Path(image_folder), where)
        prompt = f"{IMAGE_TOKEN}\n{text}" if images else text
        extra = {name: value for name, value in record.items() if name not in ("id", "image")}
        questions.append(Question(record["id"], images, text, extra, prompt, where=where))
    return check_unique(questions, unique_ids=True)


def read_mmbench(
    file: str | Path, *, all_rounds: bool = False, single_pred_prompt: bool = False, lang: str = "en"
) -> list[Question]:
    """LLaVA's MMBench TSV: hint, question and lettered options; all_rounds asks once per option, options rotated.

    The prompt in the answer line lacks the sentence that single_pred_prompt adds, as in LLaVA. `extra` is the row
    without its image.
    """
    if lang not in LETTER_ONLY:
        raise DataError(f"--lang {lang!r} is unknown; there are: {', '.join(LETTER_ONLY)}")
    file = Path(file)
    csv.field_size_limit(sys.maxsize)  # images are cells
    questions = []
    with file.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t")
        columns = rows.fieldnames or ()
        missing = [name for name in ("index", "question", "image", *_OPTIONS[:2]) if name not in columns]
        if missing:
            raise DataError(f"{file}: no column {', '.join(missing)}; it has: {', '.join(columns)}")
        for row in rows:
            questions += _rounds(row, f"{file}:{rows.line_num}", all_rounds, LETTER_ONLY[lang] * single_pred_prompt)
    return check_unique(questions, unique_ids=not all_rounds)


def _rounds(row: Mapping[str, str], where: str, all_rounds: bool, instruction: str) -> list[Question]:
    options: list[str] = []
    for letter in _OPTIONS:
        if _is_nothing(row.get(letter)):
            break
        options.append(row[letter])
    if not options:
        raise DataError(f"{where}: the question (index {row['index']}) has no option A")
    try:
        image = base64.b64decode(row["image"], validate=True)
    except binascii.Error as error:
        raise DataError(f"{where}: the image of index {row['index']} is not base64 ({error})") from error
    letters, index = list(_OPTIONS[: len(options)]), int(row["index"])
    head = row["question"] if _is_nothing(row.get("hint")) else f"{row['hint']}\n{row['question']}"
    extra = {name: value for name, value in row.items() if name != "image"}
    questions = []
    for round_id in range(len(options) if all_rounds else 1):
        turned, names = options[round_id:] + options[:round_id], letters[round_id:] + letters[:round_id]
        prompt = "\n".join([head, *(f"{letter}. {option}" for letter, option in zip(letters, turned, strict=True))])
        text = f"{prompt}\n{instruction}" if instruction else prompt
        line = {"round_id": round_id, "options": turned, "option_char": names}
        questions.append(Question(index, (image,), text, extra, prompt, line, where))
    return questions


def check_unique(questions: Sequence[Question], *, unique_ids: bool) -> list[Question]:
    """The questions; DataError with both places where one is there twice, or, under unique_ids, only its id."""
    seen: dict[Any, Question] = {}
    for question in questions:
        key = question.id if unique_ids else question.key
        if key in seen:
            what = "id" if unique_ids else "id and text"
            raise DataError(
                f"{question.where}: question {question.id!r} has the {what} of {seen[key].where}; answers could not be "
                "told apart. Remove one or give it another id."
            )
        seen[key] = question
    repeated = len(questions) - len({question.id for question in questions})
    if repeated:
        logger.info("%d of %d questions share an id with another: told apart by text", repeated, len(questions))
    return list(questions)


def check_images(questions: Sequence[Question]) -> None:
    """FileNotFoundError that counts the image files which do not exist and names the first of them."""
    paths = dict.fromkeys(image for question in questions for image in question.images if isinstance(image, Path))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        shown = "".join(f"\n  {path}" for path in missing[:_SHOWN])
        more = f"\n  and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} image files do not exist (is it the right image folder?):{shown}{more}"
        )


def image_in(folder: Path, name: object, where: str) -> Path:
    """The image that a benchmark's file names. DataError, with `where`, for a name that leads out of the folder.

    Folders below it may be links, as those of benchmarks often are; an image may be a link to another one in it.
    """
    if not isinstance(name, str) or not stays_inside(name):
        raise DataError(
            f"{where}: image {quoted(name)}: names must be relative to the image folder {folder} and stay inside it"
        )
    path = folder / name
    try:
        leads_out = path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # longer than names can be; a link to itself, before Python 3.13
        raise DataError(f"{where}: image {quoted(name)}: cannot be looked up in {folder}") from error
    if leads_out:
        raise DataError(f"{where}: image {path} is a link that leads out of the folder, to {path.resolve()}")
    return path


def chunk(questions: Sequence[Question], num_chunks: int, chunk_idx: int) -> list[Question]:
    """LLaVA's get_chunk: the chunk_idx-th stretch of ceil(n / num_chunks) questions. The last ones may be empty."""
    if not 0 <= chunk_idx < num_chunks:
        raise DataError(f"--chunk-idx {chunk_idx} is not below --num-chunks {num_chunks} (it counts from 0)")
    size = math.ceil(len(questions) / num_chunks)
    return list(questions[chunk_idx * size : (chunk_idx + 1) * size])


def questions_hash(questions: Sequence[Question]) -> str:
    """sha256 of all that is asked, in order: ids, texts, the names of image files, the bytes of others."""
    digest = hashlib.sha256()
    for question in questions:
        images = [i.name if isinstance(i, Path) else hashlib.sha256(i).hexdigest() for i in question.images]
        asked = [question.id, question.text, question.prompt, images, question.line.get("round_id")]
        asked += [[turn.role, turn.value] for turn in question.history]
        digest.update(json.dumps(asked, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _text(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"question file {file} does not exist")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error


def _object(raw: str, where: str) -> dict[str, Any]:
    line = _parsed(raw, where)
    if not isinstance(line, dict):
        raise DataError(f"{where}: a JSON object is expected, this is a {type(line).__name__}")
    return line


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except BadJson as error:
        raise DataError(f"{where}: not JSON ({error}): {text[:60]!r}") from error


def _image_paths(value: object, folder: Path, where: str) -> tuple[Path, ...]:
    """Of "image": a name, a list of names, or nothing."""
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{where}: 'image' must be a file name or a list of them, this is {quoted(value)}")
    return tuple(image_in(folder, name, where) for name in names)


def _is_nothing(cell: str | None) -> bool:
    return cell is None or cell in _NOTHING or cell.lower() in ("nan", "none")
