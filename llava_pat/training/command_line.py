"""A command line becomes typed arguments, in either stage: YAML and flags meet, old names are mapped, types checked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import transformers
from transformers import HfArgumentParser

from llava_pat.training.consistency import resolve
from llava_pat.training.flags import ConfigError, Setting, origins, read_argv, read_yaml, translate
from llava_pat.training.ranks import join_ranks


def option(default: Any, help: str) -> Any:
    """A field with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Stage:
    """What tells one stage's command line from the other's."""

    name: str
    script: str
    description: str
    kinds: tuple[type, ...]  # dataclasses, transformers' TrainingArguments last
    complete: Callable[..., Any]  # builds the stage's arguments from one instance of each kind
    check: Callable[[Any], None]  # refuses contradictions
    output_dir: str  # without a flag, a YAML and OUTPUT_DIR
    dropped: Mapping[str, str]  # flags of LLaVA's that change nothing here: name -> what holds instead
    refused: Mapping[str, tuple[tuple[str, ...], str]]  # name -> (harmless values, what to do)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> None:  # argparse would print 150 flags of usage and exit
        raise ConfigError(message)


# transformers renamed this within the range that we support.
_CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in {f.name for f in fields(transformers.TrainingArguments)}
    else "gradient_checkpointing"
)


def build_parser(stage: Stage) -> HfArgumentParser:
    """All flags with their defaults and help; `--help` prints them in groups."""
    parser = _Parser(
        stage.kinds,
        prog=Path(stage.script).name,
        usage=f"python {stage.script} [--config FILE.yaml] [--flag value ...]",
        description=stage.description,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML of defaults, one `flag: value` a line; flags override it."
    )
    parser.set_defaults(**{_CHECKPOINTING: True})  # the recipe's gradient_checkpointing True
    return parser


def parse(argv: Sequence[str] | None, stage: Stage) -> Any:
    """Read a command line.

    argv: without the program's name; None means sys.argv[1:]. Prints one line for every flag that had to be mapped, on
    rank 0 only. Raises ConfigError (one message, with the way out) for unknown names, wrong types and contradictions.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(stage)
    if "-h" in argv or "--help" in argv:
        parser.parse_args(["--help"])  # prints and exits
    settings = read_argv(argv)
    configs = [setting for setting in settings if setting.name == "config"]
    settings = [setting for setting in settings if setting.name != "config"]
    if any(len(setting.values) != 1 for setting in configs) or len(configs) > 1:
        raise ConfigError("--config takes one YAML file, and may be given once")
    for setting in configs:
        settings = read_yaml(Path(setting.values[0])) + settings

    translation = translate(settings, _known_names(stage), stage.name, stage.dropped, stage.refused)
    tokens = [token for setting in translation.settings for token in _tokens(setting)]
    namespace, rest = parser.parse_known_args(tokens)
    if rest:
        raise ConfigError(f"cannot make sense of {' '.join(rest)!r}: write --flag value")
    values = {name: value for name, value in vars(namespace).items() if name != "config"}
    # `--eval_data_path ""` takes back what a YAML set.
    values = {name: (None if value == "" else value) for name, value in values.items()}
    notes = translation.notes + resolve(values, origins(translation.settings), stage.output_dir, stage.script)
    join_ranks(values)
    try:
        arguments = stage.complete(*parser.parse_dict(values))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"transformers refuses these training arguments: {error}") from error
    stage.check(arguments)
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            print(f"[arguments] {note}", flush=True)
    return arguments


def _known_names(stage: Stage) -> set[str]:
    known = set()
    for kind in stage.kinds:
        for item in fields(kind):
            known.add(item.name)
            if item.default is True:
                known.add(f"no_{item.name}")  # transformers' switches for what is on by default
    return known


def _tokens(setting: Setting) -> list[str]:
    if setting.name == "report_to":  # several trackers; transformers' parser takes one word
        return [f"--report_to={','.join(setting.values)}"]
    if len(setting.values) == 1:  # with "=", since argparse takes "-1e-3" for a flag
        return [f"--{setting.name}={setting.values[0]}"]
    return [f"--{setting.name}", *setting.values]
