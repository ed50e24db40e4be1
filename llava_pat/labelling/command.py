"""The command: what to label, with which switches, into which folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_pat.data.geometry import ASPECTS, Geometry
from llava_pat.data.hashes import file_sha256
from llava_pat.data.image_batches import Images, in_batches, read_batches
from llava_pat.data.patch_words import (
    PROGRESS,
    WORD_MEANS,
    FolderMeta,
    WordTokens,
    load_array,
    placement_of,
    rows_done,
)
from llava_pat.data.regions import load_regions
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.data.word_list import WordList, WordListSettings, build_word_list, load_word_list, read_words
from llava_pat.data.yaml_file import BadYaml, read_yaml_file
from llava_pat.labelling.agreement import Truth, caption_words, region_truth
from llava_pat.labelling.report import (
    REPORT,
    compare_settings,
    evenly_spaced,
    mean_patches,
    render_table,
    write_report,
)
from llava_pat.labelling.source import file_sizes, image_captions, labelling_geometry
from llava_pat.labelling.store import check_space, open_folder, save_word_means, whole_statistics, write_labels
from llava_pat.models.fingerprint import text_fingerprint, tower_fingerprint
from llava_pat.models.patch_labels import LabelSwitches, best_words, word_means
from llava_pat.models.patch_text import SOURCES, PatchText, load_patch_text
from llava_pat.types import DataError

_DESCRIPTION = """Labels every patch of a data set with words, by a CLIP's similarities of patches and words (SEA).

A report comes first: what each sign x centring x source gives on a sample of the images, and, where there are regions,
how often it is right. Then the labels are written to a folder for training (--patch_words_path there). A killed run
goes on where it stopped."""
_SWITCHES = [field.name for kind in (LabelSwitches, WordListSettings) for field in dataclasses.fields(kind)]
_FOR_TRAINING = "--for_training"
_REQUIRED = ("data_path", "image_folder", "vision_tower", "patch_words_path")


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 with one line for what the user can mend."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        label(read_arguments(sys.argv[1:] if argv is None else argv))
    except (DataError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava_pat.labelling",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="a training YAML: the flags below that it has are taken from it")
    add("--data_path", help="LLaVA JSON or JSONL whose images are labelled, and whose captions give the words")
    add("--image_folder", help="folder that the records' image paths are relative to")
    add("--vision_tower", help="the tower that is trained on; a whole CLIP (transformers or open_clip:...)")
    add("--patch_words_tower", help="the CLIP that labels, if it is another one (of the same grid)")
    add("--image_aspect_ratio", choices=ASPECTS, default="square", help="as in training (default: %(default)s)")
    add("--patch_words_path", metavar="FOLDER", help="where the labels go")
    add(
        "--patch_words", choices=("file", "online"), default="file",
        help="online: only words, switches and report; training computes the labels itself (default: %(default)s)",
    )  # fmt: skip
    add("--patch_words_args", type=_mapping, default={}, help="switches as JSON; a switch's own flag goes before it")
    add("--regions_path", help="regions file of these images: the report then says how often labels are right")
    add("--model_name_or_path", help="language model: words that its tokenizer has no tokens for are reported")
    add("--word_list", metavar="FILE", help="word list (JSON) to take; default: made from the captions")
    add("--extra_words", metavar="FILE", help="words to add to the captions', one a line")
    add("--n", type=int, help=f"candidates a patch (SEA: {LabelSwitches.n})")
    add("--sign", type=int, help=f"+1, or -1 for negated cosines (SEA: {LabelSwitches.sign})")
    add("--centring", help="none, words, patches or both (SEA: none); llava_pat/models/patch_labels.py has them")
    add("--source", help="last, or surgery: CLIP Surgery's features (default: last)")
    add("--min_score", type=float, help="candidates must be above it (SEA: 0)")
    add("--prompt", help="text for a word; default: {}, the word alone")
    add("--min_count", type=int, help=f"words seen less often are left out (default: {WordListSettings.min_count})")
    add("--max_words", type=int, help="of the rest, the most frequent (default: all)")
    add("--fold", help="plural, case or none: which spellings are one word (default: plural)")
    add("--report_only", action="store_true", help="no labels: the report alone")
    add("--report_images", type=int, default=500, help="images of the report's sample (default: %(default)s)")
    add("--batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    add("--num_workers", type=int, default=2, help="processes that read images (default: %(default)s)")
    add("--device", help="default: the GPU if there is one")
    add(
        _FOR_TRAINING, nargs=argparse.REMAINDER,
        help="flags of a training behind it: those above that are among them count, the others do not matter here",
    )  # fmt: skip
    return parser


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Flags, and what the YAML says for those that were not given. ValueError for what is missing or contradicts."""
    parser = build_parser()
    own, training = list(argv), []
    if _FOR_TRAINING in own:
        place = own.index(_FOR_TRAINING)
        own, training = own[:place], own[place + 1 :]
    config = parser.parse_args(own).config
    if config is not None:
        parser.set_defaults(**_from_yaml(Path(config), parser))
    arguments = parser.parse_args(own)
    parser.parse_known_args(training, arguments)
    missing = [f"--{name}" for name in _REQUIRED if vars(arguments)[name] is None]
    if missing:
        raise ValueError(
            f"missing {', '.join(missing)}: give them as flags, or a training YAML that has them: --config"
        )
    for action in parser._actions:  # argparse looks at flags alone, not at what a YAML says
        value = vars(arguments).get(action.dest)
        if action.choices is not None and value not in action.choices:
            raise ValueError(f"{action.dest} is {value!r}; choose one of {', '.join(action.choices)}")
    unknown = sorted(set(arguments.patch_words_args) - set(_SWITCHES))
    if unknown:
        raise ValueError(f"patch_words_args has {', '.join(unknown)}; its switches are {', '.join(_SWITCHES)}")
    if arguments.report_images < 1 or arguments.batch_size < 1:
        raise ValueError("--report_images and --batch_size must be at least 1")
    return arguments


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no mapping of switches")
    return value


def _from_yaml(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """What a training YAML says of the parser's flags; null is not given, as in training."""
    flags = {action.dest: action for action in parser._actions}
    found = {name: value for name, value in _read_yaml(path).items() if name in flags and value is not None}
    texts = {int: "a whole number", float: "a number", _mapping: "a mapping of switches"}
    kinds = {int: (int, str), float: (int, float, str), _mapping: (dict, str)}  # argparse converts text, nothing else
    for name, value in found.items():
        bare, kind = flags[name].nargs == 0, flags[name].type
        if not isinstance(value, bool if bare else kinds.get(kind, str)):
            expected = "true or false" if bare else texts.get(kind, "text")
            raise ValueError(f"--config {path}: {name} is {value!r}, expected {expected}")
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml_file(path)
    except BadYaml as error:
        raise ValueError(f"--config {path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path}: expected `name: value` lines, found {type(content).__name__}")
    return content


@dataclass
class _Source:
    """All that labels are made from."""

    clip: PatchText
    geometry: Geometry
    images: Images
    captions: dict[str, list[str]]  # of every image, by its name
    words: WordList
    switches: LabelSwitches
    vectors: Tensor  # [W, d]
    device: torch.device


def label(arguments: argparse.Namespace) -> None:
    """Report, then labels (unless they are there), then what all of them hold."""
    folder = Path(arguments.patch_words_path)
    asked = {**arguments.patch_words_args, **{k: v for k in _SWITCHES if (v := vars(arguments)[k]) is not None}}
    switches = LabelSwitches(**{name: value for name, value in asked.items() if name in LabelSwitches.__annotations__})
    captions = image_captions(arguments.data_path)
    names = list(captions)
    words = _words(arguments, {name: value for name, value in asked.items() if name not in vars(switches)})
    dropped = _words_without_tokens(arguments, words)
    clip_at = arguments.patch_words_tower or arguments.vision_tower
    clip = load_patch_text(clip_at)
    device = torch.device(arguments.device or (torch.accelerator.current_accelerator() or "cpu"))
    geometry = labelling_geometry(clip_at, clip, arguments.vision_tower, arguments.image_aspect_ratio)
    meta = FolderMeta(
        tower=str(clip_at),
        tower_sha256=tower_fingerprint(clip_at),
        text_sha256=text_fingerprint(clip_at),
        word_list_sha256=words.sha256,
        data_path=str(arguments.data_path),
        data_sha256=file_sha256(arguments.data_path),
        geometry=placement_of(geometry, clip.tower.patch_size),
        patches=clip.num_patches,
        words=len(words.words),
        switches={**words.settings, **asdict(switches)},  # a list of the user's may call its own settings anything
    )
    if not arguments.report_only:
        sizes = file_sizes(names, arguments.image_folder)
        if arguments.patch_words == "file":
            check_space(folder, len(names), meta)
        if open_folder(folder, meta, words, names) and _finished(folder, arguments.patch_words, switches, len(names)):
            print(f"{folder} holds these labels already; {folder / REPORT} says what they are")
            return

    clip.to(device)
    vectors = clip.words(words.words, switches.prompt)
    images = Images(names, arguments.image_folder, geometry)
    source = _Source(clip, geometry, images, captions, words, switches, vectors, device)
    report, table, means = _report(arguments, source, dropped)
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder, report, table)
    print(f"{table}\nwritten to {folder / REPORT}", flush=True)
    if arguments.report_only:
        return
    if switches.needs_word_means and not (folder / WORD_MEANS).is_file():
        save_word_means(folder, word_means(means[switches.source].to(device), vectors))
    if arguments.patch_words == "online":
        return
    write_labels(folder, meta, sizes, lambda rows: _labels(arguments, source, folder, rows), sys.stderr.isatty())
    whole = whole_statistics(folder, words.words, sys.stderr.isatty())
    report["all_images"] = {"images": len(names), **whole.result(), "words": whole.histogram()}
    write_report(folder, report, table)
    shares = whole.result()
    print(
        f"{len(names)} images are labelled: {shares['with_label']:.3f} of the patches have a label, "
        f"{shares['labels_per_patch']:.2f} candidates each; the labels are in {folder}"
    )


def _finished(folder: Path, patch_words: str, switches: LabelSwitches, images: int) -> bool:
    report = folder / REPORT
    if not report.is_file() or (switches.needs_word_means and not (folder / WORD_MEANS).is_file()):
        return False  # a report may be older than the folder: --report_only writes one as well
    if patch_words == "online":
        return True
    return (
        (folder / PROGRESS).is_file()
        and rows_done(folder) == images
        and "all_images" in json.loads(report.read_text(encoding="utf-8"))
    )


def _words(arguments: argparse.Namespace, settings: dict[str, Any]) -> WordList:
    extra = read_words(arguments.extra_words) if arguments.extra_words else []
    if arguments.word_list is None:
        return build_word_list(arguments.data_path, WordListSettings(**settings), extra)
    if settings or extra:
        both = [*settings, *(["extra_words"] if extra else [])]
        raise ValueError(
            f"--word_list {arguments.word_list} and {', '.join(both)}: a list that is given is taken as it is; leave "
            "one of the two out"
        )
    return load_word_list(arguments.word_list)


def _words_without_tokens(arguments: argparse.Namespace, words: WordList) -> list[str] | None:
    """Words that the language model cannot be taught, which training will leave out; None when it is not known."""
    if arguments.model_name_or_path is None:
        return None
    return list(WordTokens.of(words.words, load_tokenizer(arguments.model_name_or_path)).dropped)


def _report(
    arguments: argparse.Namespace, source: _Source, dropped: list[str] | None
) -> tuple[dict[str, Any], str, dict[str, Tensor]]:
    """The report, its table, and the mean patch vectors of the sample."""
    names, progress = source.images.names, sys.stderr.isatty()
    places = evenly_spaced(len(names), arguments.report_images)
    size, workers = arguments.batch_size, arguments.num_workers
    annotated = load_regions(arguments.regions_path) if arguments.regions_path else {}
    chosen = [names[place] for place in places]

    def pixels_of_sample() -> Iterator[Tensor]:
        return read_batches(source.images, in_batches(places, size), workers)

    means = mean_patches(source.clip, pixels_of_sample(), source.device, SOURCES)
    in_list = {word: place for place, word in enumerate(source.words.words)}

    def truth(name: str) -> Truth:
        said = caption_words(source.captions[name], in_list)
        if name not in annotated:
            return Truth(said)
        return Truth(said, *region_truth(annotated[name], source.geometry, source.clip.tower.patch_size, in_list))

    def batches() -> Iterator[tuple[Tensor, list[Truth]]]:
        start = 0
        for pixels in pixels_of_sample():
            yield pixels, [truth(name) for name in chosen[start : start + len(pixels)]]
            start += len(pixels)

    rows = compare_settings(
        source.clip, source.vectors, source.words.words, source.switches, means, batches(), progress
    )
    with_regions = sum(name in annotated for name in chosen)
    sample = f"{len(places)} of {len(names)} images ({with_regions} with regions), {len(source.words.words)} words"
    table = render_table(rows, sample)
    if dropped:
        shown = ", ".join(dropped[:5])
        table += f"\n{len(dropped)} words have no tokens in the language model and are left out in training: {shown}"
    report = {
        "sample": {"images": len(places), "of": len(names), "with_regions": with_regions},
        "switches": asdict(source.switches),
        "word_list": {"words": len(source.words.words), "sha256": source.words.sha256, **source.words.settings,
                      "left_out": source.words.left_out, "without_tokens": dropped},
        "tower": str(arguments.patch_words_tower or arguments.vision_tower),
        "settings": rows,
    }  # fmt: skip
    return report, table, means


def _labels(
    arguments: argparse.Namespace, source: _Source, folder: Path, rows: range
) -> Iterator[tuple[Tensor, Tensor]]:
    means = None
    if source.switches.needs_word_means:
        means = torch.from_numpy(load_array(folder / WORD_MEANS, (len(source.vectors),))).to(source.device)
    for pixels in read_batches(source.images, in_batches(rows, arguments.batch_size), arguments.num_workers):
        patches = source.clip.patches(pixels.to(source.device), source.switches.source)
        yield best_words(patches, source.vectors, source.switches, means)
