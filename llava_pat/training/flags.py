"""From `--flag value` lists and YAML files to one list of (name, values), with old names brought up to date.

Three sources meet here: LLaVA's published argument lists (written for transformers 4.37), YAML configs, and flags typed
by hand. All become pairs under today's names, YAML first, so that the parser sees one list and the last word wins.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_pat.data.yaml_file import BadYaml, read_yaml_file

COMMAND_LINE = "command line"


class ConfigError(ValueError):
    """A flag, a YAML key or a combination of them that cannot be run. The message names it and the way out."""


@dataclass(frozen=True)
class Setting:
    """One flag or YAML key with its values as text, and where it was written."""

    name: str
    values: tuple[str, ...]
    source: str  # COMMAND_LINE or the YAML file's path


# Published LLaVA flags and flags of transformers <= 4.x that are still found in scripts -> today's name.
RENAMED: dict[str, str] = {
    "evaluation_strategy": "eval_strategy",  # transformers 4.41
    "warmup_ratio": "warmup_steps",  # transformers 5: a number in [0, 1) is the share of all steps
    "gradient_checkpointing": "activation_checkpointing",  # transformers 5.2x
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}

# The other way round: what an installed transformers at the lower end of the range still calls by its old name.
BEFORE: dict[str, str] = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}

# Flags that no longer change a run: name -> what holds instead.
DROPPED: dict[str, str] = {
    "lazy_preprocess": "records are always read and tokenised on demand",
    "is_multimodal": "records say themselves whether they have images",
    "mpt_attn_impl": "see --attn_implementation",
    "overwrite_output_dir": "a run resumes from its own checkpoints; remove the folder for a fresh start",
    "save_safetensors": "the projector is written as .bin and as .safetensors",
    "logging_dir": "tensorboard's folder is set by the variable TENSORBOARD_LOGGING_DIR",
    "ray_scope": "removed from transformers",
    "use_legacy_prediction_loop": "removed from transformers",
}

# Flags that neither stage has: name -> (harmless values, what to do).
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "fp16_opt_level": ((), "Apex is gone from transformers; use --fp16 True or --bf16 True"),
    "adafactor": (("false",), "use --optim adafactor"),
    "packing": (
        ("false",),
        "--padding_free True lays a micro-batch's sequences end to end; TRL's packing, which makes rows of one length "
        "out of other samples, would change what a step trains on",
    ),
    "group_by_length": (("false",), "use --train_sampling_strategy group_by_length"),
}


def read_argv(argv: Iterable[str]) -> list[Setting]:
    """Split a command line into settings; `--a-b=1`, `--a_b 1` and `--a_b` (a bare switch) are all accepted."""
    pairs: list[tuple[str, list[str]]] = []
    for token in argv:
        if token.startswith("--") and len(token) > 2:
            name, equals, value = token[2:].partition("=")
            pairs.append((name.replace("-", "_"), [value] if equals else []))
        elif not pairs:
            raise ConfigError(f"{token!r} stands before the first flag: write --flag value, or --config FILE")
        else:
            pairs[-1][1].append(token)
    return [Setting(name, tuple(values), COMMAND_LINE) for name, values in pairs]


def read_yaml(path: Path) -> list[Setting]:
    """A flat YAML mapping of flag names to values. Mappings (such as alignment_args) become JSON text."""
    try:
        content = read_yaml_file(path)
    except FileNotFoundError:
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "no .yaml files"
        raise ConfigError(f"--config {path}: no such file; {path.parent} has {beside}") from None
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read: {error.strerror}") from None
    except BadYaml as error:
        raise ConfigError(f"--config {path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected `name: value` lines, found {type(content).__name__}")
    settings = []
    for name, value in content.items():
        if value is None:
            raise ConfigError(f"{path}: {name} has no value; give one, or leave the line out")
        if isinstance(value, dict):
            values: tuple[str, ...] = (json.dumps(value),)
        elif isinstance(value, list):
            values = tuple(str(item) for item in value)
        else:
            values = (str(value),)
        settings.append(Setting(str(name), values, str(path)))
    return settings


def read_mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """A flag whose value is a mapping, from YAML or as JSON on the command line; {} for None."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{name} {value!r} is not JSON: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a mapping of keywords, not {value!r}")
    return value


@dataclass
class Translation:
    """Settings under today's names, and one line for each that had to be changed."""

    settings: list[Setting]
    notes: list[str] = field(default_factory=list)


def translate(
    settings: Iterable[Setting],
    known: Collection[str],
    stage: str,
    dropped: Mapping[str, str],
    refused: Mapping[str, tuple[tuple[str, ...], str]],
) -> Translation:
    """Bring old names up to date.

    `known` are the names that the parser has; `dropped` and `refused` are the stage's own, beside DROPPED and REFUSED.
    A flag that the installed transformers knows by its old name only stays as it is. An unknown name raises ConfigError
    with close matches.
    """
    dropped, refused = {**DROPPED, **dropped}, {**REFUSED, **refused}
    result = Translation([])
    for setting in settings:
        name = setting.name
        today = RENAMED.get(name) or BEFORE.get(name)
        if today in known and (name in RENAMED or name not in known):
            result.notes.append(f"--{name} is called --{today} in this transformers: taken as that")
            _check_ratio(setting)
            result.settings.append(Setting(today, setting.values, setting.source))
        elif name in known:
            result.settings.append(setting)
        elif name in dropped:
            result.notes.append(f"--{name} has no effect here: {dropped[name]}")
        elif name in refused:
            harmless, way_out = refused[name]
            if " ".join(setting.values).lower() not in harmless:
                raise ConfigError(
                    f"{setting.source}: --{name} {' '.join(setting.values)} is not for {stage}: {way_out}"
                )
        else:
            raise ConfigError(f"{setting.source}: {_unknown(name, known)}")
    return result


def origins(settings: Iterable[Setting]) -> dict[str, int]:
    """How strongly each name was asked for: 1 by the YAML, 2 on the command line. Absent names are defaults."""
    strength: dict[str, int] = {}
    for setting in settings:
        name = setting.name.removeprefix("no_")
        strength[name] = max(strength.get(name, 0), 2 if setting.source == COMMAND_LINE else 1)
    return strength


def _check_ratio(setting: Setting) -> None:
    # As warmup_steps, 1.0 or more would silently become a number of steps.
    if setting.name != "warmup_ratio":
        return
    text = " ".join(setting.values)
    try:
        ratio = float(text)
    except ValueError:
        raise ConfigError(f"--warmup_ratio {text}: not a number") from None
    if not 0 <= ratio < 1:
        raise ConfigError(f"--warmup_ratio {text}: expected a share in [0, 1)")


def _unknown(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted({*known, *RENAMED}), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join('--' + match for match in close)}?" if close else "see --help for all flags"
    return f"unknown flag or key {name!r}: {hint}"
