"""JSON and YAML of somebody else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from llava_pat.analysis.vocabulary import load_vocabulary
from llava_pat.annotation.config import load_config
from llava_pat.annotation.label_rules import load_synonyms
from llava_pat.data.records import MOST_CHARACTERS, load_records
from llava_pat.data.refer_files import read_refs
from llava_pat.data.regions import load_regions
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.data.word_list import load_word_list
from llava_pat.evaluation.model import choose_template
from llava_pat.evaluation.questions import read_questions, read_science
from llava_pat.models.json_file import read_json as read_model_json
from llava_pat.models.llava_config import language_config
from llava_pat.training.flags import read_yaml
from tests.faults.bad_records import LONG
from tests.faults.bad_yaml import BAD_YAML
from tests.faults.refusal import refused
from tests.faults.registry import Outcome, Run, fault_kind

_DEEP = 200_000
_TURNS = '[{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A ring."}]'

# what no reader may take, whatever it expects
_NO_JSON = {
    "lists in lists": "[" * _DEEP,
    "objects in objects": '{"a":' * _DEEP,
    "closed lists in lists": "[" * _DEEP + "]" * _DEEP,
    "a list in an object, deep": '{"a": ' + "[" * _DEEP + "]" * _DEEP + "}",
    "a number without end": '{"a": ' + LONG + "}",
    "nothing": "",
    "a cut text": '{"a": "b',
    "a byte that is no UTF-8": '{"a": "\udcff"}',
    "a zero byte": '{"a": 1}\0',
    "two values": '{"a": 1} {"b": 2}',
    "a text": '"text"',
    "a number": "7",
    "null": "null",
}


def _readers(folder: Path) -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Reader -> (name of its file, how it reads)."""
    return {
        "records": ("records.json", load_records),
        "regions": ("regions.jsonl", load_regions),
        "vocabulary": ("vocabulary.json", load_vocabulary),
        "word list": ("words.json", load_word_list),
        "questions": ("questions.jsonl", lambda file: read_questions(file, folder)),
        "ScienceQA": ("science.json", lambda file: read_science(file, folder)),
        "RefCOCO": ("refs.json", read_refs),
        "model settings": ("config.json", read_model_json),
        "language model": ("config.json", lambda file: language_config(file.parent)),
        "tokenizer": ("tokenizer_config.json", lambda file: load_tokenizer(file.parent)),
    }


@fault_kind("JSON that is none, deep or of the wrong kind", "refused by file, by every reader")
def no_json(run: Run) -> Iterator[Outcome]:
    for number, (reader, (name, read)) in enumerate(_readers(run.folder).items()):
        folder = run.folder / str(number)
        folder.mkdir()
        for case in run.some(sorted(_NO_JSON)):
            (folder / name).write_bytes(_NO_JSON[case].encode("utf-8", "surrogateescape"))
            yield refused(f"{reader}: {case}", partial(read, folder / name), str(folder))


@fault_kind("JSON with keys twice, halves of characters, texts of 200 MB", "refused by file, or reported by record")
def unusable(run: Run) -> Iterator[Outcome]:
    twice = {
        "records": f'[{{"id": "a", "conversations": [], "conversations": {_TURNS}}}]',
        "regions": '{"id": "a", "image": "a.png", "width": 3, "width": 4, "height": 5, "regions": []}',
        "vocabulary": '{"colour": ["red"], "colour": ["blue"]}',
        "word list": '{"words": {"red": 3, "blue": 2}, "words": {"red": 1}}',
    }
    half = {"records": f'[{{"id": "a", "conversations": {_TURNS}}}]'.replace("ring", r"\ud83d ring"),
            "regions": '{"id": "a", "image": "a.png", "width": 30, "height": 50, "regions": [{"label": "\\ud83d", '
            '"bbox": [1, 2, 3, 4]}]}',
            "vocabulary": '{"colour": ["red \\ud83d"]}'}  # fmt: skip
    size = max(int(200_000_000 * min(1, run.share)), 2 * MOST_CHARACTERS)
    long = {"records": f'[{{"id": "a", "conversations": {_TURNS}}}]'.replace("ring", "x " * (size // 2)),
            "regions": '{"id": "a", "image": "a.png", "width": 30, "height": 50, "regions": [{"label": "'
            + "x " * (size // 2) + '", "bbox": [1, 2, 3, 4]}]}'}  # fmt: skip
    readers = _readers(run.folder)
    for case, texts in (("a key twice", twice), ("half a character", half), ("a text of 200 MB", long)):
        for reader, text in texts.items():
            name, read = readers[reader]
            (run.folder / name).write_text(text)
            yield refused(f"{reader}: {case}", partial(read, run.folder / name), name)


@fault_kind("YAML with tags, aliases without end, keys twice", "refused by file; nothing is built or run")
def yaml_tags(run: Run) -> Iterator[Outcome]:
    os.chdir(run.folder)
    mark = run.folder / "executed"
    for number, text in enumerate(run.some(sorted(BAD_YAML, key=len))):
        folder = run.folder / f"run-{number}"
        folder.mkdir()
        file = folder / "config.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        readers = {
            "--config": partial(read_yaml, file),
            "a checkpoint's config.yaml": partial(choose_template, folder, None),
            "annotation settings": partial(load_config, file),
            "synonyms": partial(load_synonyms, file),
        }
        for reader, read in readers.items():
            yield refused(f"{reader}: {text[:60]}", read, str(file), mark.exists)
