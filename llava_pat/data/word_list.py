"""The words that a patch may be labelled with: content words of a corpus's captions, as a JSON file with its origin.

SEA (arXiv 2408.11813, appendix C) parses its whole pre-training corpus for "meaningful and attribute words" and adds
frequent words of a dictionary; neither its parser nor the list's size can be reconstructed from the text. So this is
our own, plain rule, and all of it is a switch or a file:

    a word        letters, with inner apostrophes and hyphens ("t-shirt"); printable; no digits in it or beside it
    folded        to lower case, and a plural to its singular when the corpus has both ("circles" -> "circle")
    left out      words without content of their own (STOP_WORDS: articles, pronouns, auxiliaries, conjunctions and most
                  prepositions), single letters, and words seen fewer than `min_count` times
    kept          everything else: nouns, verbs, adjectives, number words, places (left, above, behind ...)

{"words": {"red": 2629, ...}, "corpus": {"file": ..., "sha256": ..., "captions": 6000}, "settings": {...},
 "left_out": {"without content": 14, ...}}    most frequent first, then by the alphabet
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from llava_pat.data.hashes import file_sha256
from llava_pat.data.json_text import BadJson, JsonReader
from llava_pat.data.records import load_records
from llava_pat.types import DataError, Record

STOP_WORDS = frozenset(
    """
    a an the this that these those such same other another each every either neither some any no none all both few many
    much more most several own
    i me my mine myself we us our ours ourselves you your yours yourself he him his himself she her hers herself it its
    itself they them their theirs themselves one's who whom whose which what whoever something anything nothing someone
    anyone everyone everything
    am is are was were be been being do does did doing done have has had having can could will would shall should may
    might must ought let
    isn't aren't wasn't weren't don't doesn't didn't haven't hasn't hadn't can't cannot couldn't won't wouldn't
    shouldn't it's that's there's he's she's i'm you're we're they're i've you've we've they've
    and or but nor so yet if then else than because while whereas although though unless until since when where why how
    whether as
    of at by for with without about against between among through during to from in into on onto off out over up down
    per via upon within toward towards despite except like
    not only just also too very quite rather almost even still already again once ever never here there now thus hence
    however therefore maybe perhaps etc
    """.split()
)
"""English words that say nothing about what a picture shows. Words for places that are no mere grammar stay."""

_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?:['’\-][^\W\d_]+)*(?!\w)")


@dataclass(frozen=True)
class WordListSettings:
    """How a word list is made."""

    min_count: int = 5  # words seen less often are left out
    max_words: int | None = None  # of the rest, the most frequent
    fold: Literal["plural", "case", "none"] = "plural"  # "case": lower case alone; "none": as written

    def __post_init__(self) -> None:
        if not isinstance(self.min_count, int) or self.min_count < 1:
            raise DataError(f"word list: min_count is {self.min_count!r}, expected at least 1")
        if self.max_words is not None and (not isinstance(self.max_words, int) or self.max_words < 2):
            raise DataError(f"word list: max_words is {self.max_words!r}; fewer than 2 words cannot be told apart")
        if self.fold not in ("plural", "case", "none"):
            raise DataError(f"word list: fold is {self.fold!r}, expected plural, case or none")


@dataclass(frozen=True)
class WordList:
    """Words with their counts, most frequent first, and where they come from."""

    counts: dict[str, int]
    corpus: dict[str, str | int]
    settings: dict[str, str | int | None]
    left_out: dict[str, int]  # reason -> how many distinct words

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.counts)

    @property
    def sha256(self) -> str:
        """Of the words in their order: a label file's ids mean nothing with another list."""
        return hashlib.sha256("\n".join(self.counts).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict_of(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def asdict_of(words: WordList) -> dict:
    """As the file has it."""
    content = asdict(words)
    return {"words": content.pop("counts"), **content}


def load_word_list(path: str | Path) -> WordList:
    """Read a word list. DataError for what is none, and for fewer than two words."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file; give the path of a word list (JSON), or leave it out to make one")
    try:
        reader = JsonReader()
        raw = reader.read_whole(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, BadJson) as error:
        raise DataError(f"{file}: not valid JSON: {error}") from error
    if reader.fault is not None:
        raise DataError(f"{file}: {reader.fault}")
    words = raw.get("words") if isinstance(raw, dict) else None
    if not isinstance(words, dict) or not all(isinstance(count, int) for count in words.values()):
        raise DataError(f"{file}: holds no word list; expected {{'words': {{word: count, ...}}, ...}}")
    origin = [raw.get(name, {}) for name in ("corpus", "settings", "left_out")]
    if not all(isinstance(part, dict) for part in origin):
        raise DataError(f"{file}: corpus, settings and left_out of a word list are mappings, or left out")
    return _checked(WordList(words, *origin), str(file))


def build_word_list(
    data_path: str | Path, settings: WordListSettings | None = None, extra_words: Iterable[str] = ()
) -> WordList:
    """The word list of a LLaVA file's answers (in stage 1's data: its captions).

    extra_words: taken whatever their count is (SEA adds a dictionary's frequent words). Raises DataError when fewer
    than two words are left.
    """
    settings = settings or WordListSettings()
    records = load_records(data_path, on_bad="skip")
    written = Counter(word for caption in captions(records) for word in split_words(caption))
    found, left_out = fold_words(written, settings.fold), Counter()
    for word in list(found):
        reason = _reason_against(word, found[word], settings.min_count)
        if reason is not None:
            left_out[reason] += 1
            del found[word]
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    if settings.max_words is not None and len(ranked) > settings.max_words:
        left_out[f"beyond the most frequent {settings.max_words}"] = len(ranked) - settings.max_words
        ranked = ranked[: settings.max_words]
    counts = dict(ranked)
    for word in extra_words:
        counts.setdefault(word if settings.fold == "none" else word.lower(), 0)
    corpus = {
        "file": Path(data_path).name,
        "sha256": file_sha256(data_path),
        "captions": sum(1 for _ in captions(records)),
    }
    return _checked(WordList(counts, corpus, asdict(settings), dict(left_out)), str(data_path))


def captions(records: Iterable[Record]) -> Iterable[str]:
    """Every answer of every record that has an image."""
    for record in records:
        if record.images:
            yield from (turn.value for turn in record.turns if turn.role == "gpt")


def split_words(text: str) -> list[str]:
    """Runs of letters, inner apostrophes and hyphens included; typographic apostrophes become plain ones."""
    return [word.replace("’", "'") for word in _WORD.findall(text)]


def fold_words(written: Counter[str], fold: str) -> Counter[str]:
    """Counts of the folded words. A plural becomes its singular only where the corpus has that one too.

    Endings that are known: 's, and -ies -> -y, -es, -s. No dictionary: what is not in the corpus is not guessed at, so
    "glass" stays (no "glas"), and irregular plurals stay words of their own.
    """
    if fold == "none":
        return Counter(written)
    lower: Counter[str] = Counter()
    for word, count in written.items():
        lower[word.lower() if fold == "case" else word.lower().removesuffix("'s")] += count
    if fold == "case":
        return lower
    folded: Counter[str] = Counter()
    for word, count in lower.items():
        folded[_singular(word, lower)] += count
    return folded


def words_in(label: str, words: Mapping[str, int]) -> set[int]:
    """Which entries of a word list (word -> its place) a label contains: as written, in lower case, or its singular."""
    found = set()
    for word in split_words(label):
        for form in (word, word.lower(), _singular(word.lower().removesuffix("'s"), words)):
            if form in words:
                found.add(words[form])
    return found


def _singular(word: str, known: Container[str]) -> str:
    for ending, instead in (("ies", "y"), ("s", ""), ("es", "")):
        candidate = word.removesuffix(ending) + instead
        if word.endswith(ending) and not word.endswith("ss") and len(candidate) > 2 and candidate in known:
            return candidate
    return word


def _reason_against(word: str, count: int, min_count: int) -> str | None:
    if word.lower() in STOP_WORDS:
        return "without content"
    if len(word) < 2:
        return "a single letter"
    if not word.isprintable():
        return "not printable"
    return f"seen fewer than {min_count} times" if count < min_count else None


def read_words(path: str | Path) -> list[str]:
    """The words of a text file, between blanks and line ends."""
    try:
        return Path(path).read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error


def _checked(words: WordList, where: str) -> WordList:
    if len(words.counts) < 2:
        raise DataError(
            f"{where}: {len(words.counts)} words are left after {dict(words.left_out)}; two are the least that can be "
            "told apart. Lower min_count, or take more captions"
        )
    return words
