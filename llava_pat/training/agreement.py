"""Ranks that were started differently are found before they do anything together, not by a hang or by wrong gradients.

Compared are the settings of the run, the code (ours to the byte, the libraries by version), the data files to the
byte, and of patch labels the account of what they are (meta.json). Feature caches are compared where they are opened
(feature_cache.py), since another run may be filling them. What follows from them is equal then: the records, their
order, the steps.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import llava_pat
from llava_pat.data.hashes import file_sha256
from llava_pat.data.patch_words import META
from llava_pat.training.arguments import PretrainArguments
from llava_pat.training.finetune_arguments import FinetuneArguments
from llava_pat.training.flags import ConfigError
from llava_pat.training.ranks import from_all
from llava_pat.training.run_config import settings

_LIBRARIES = ("torch", "transformers", "accelerate", "peft")
_FILES = ("data_path", "regions_path", "eval_data_path", "eval_regions_path", "vocabulary_path")
_SHOWN = 5


def refuse_disagreement(arguments: PretrainArguments | FinetuneArguments) -> None:
    """Called by every rank. ConfigError, the same on all of them, when one was started otherwise."""
    if arguments.training.world_size == 1:
        return
    problems = differences(from_all(facts(arguments)))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ConfigError(
            f"the ranks were not started alike: {'; '.join(problems[:_SHOWN])}{more}. Start all of them with the same "
            "command, from the same code, on the same files"
        )


def facts(arguments: PretrainArguments | FinetuneArguments) -> dict[str, str]:
    """What must be the same on every rank, in words."""
    found = {f"--{name}": repr(value) for name, value in settings(arguments).items()}
    found["llava_pat's code"] = f"{llava_pat.__version__}, sha256 {_code()[:12]}"
    found["python"] = platform.python_version()
    found |= {library: metadata.version(library) for library in _LIBRARIES}
    files = {name: vars(arguments.data)[name] for name in _FILES} | {"deepspeed": arguments.training.deepspeed}
    for name, path in files.items():
        if path is not None:
            found[f"the content of --{name}"] = _content(path)
    labels = arguments.data.patch_words_path
    if labels is not None:
        found[f"the {META} of --patch_words_path"] = _content(str(Path(labels) / META))
    return found


def differences(by_rank: Sequence[Mapping[str, str]]) -> list[str]:
    """One line for each fact that is not the same on all ranks, with the values and who has which."""
    lines = []
    for name in dict.fromkeys(name for one in by_rank for name in one):
        holders: dict[str, list[int]] = {}
        for rank, one in enumerate(by_rank):
            holders.setdefault(one.get(name, "not set"), []).append(rank)
        if len(holders) > 1:
            said = " and ".join(f"{value} on {_ranks(ranks)}" for value, ranks in holders.items())
            lines.append(f"{name} is {said}")
    return lines


def _ranks(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:4]))}{more}"


def _content(name: str | dict) -> str:
    if isinstance(name, dict) or name.startswith("{"):
        return str(name)  # a DeepSpeed plan itself
    path = Path(name)
    if not path.exists():
        return "not there"
    size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
    return f"{size} bytes, sha256 {file_sha256(path)[:12]}"


def _code() -> str:
    """sha256 over the package's sources: sorted names and contents."""
    root = Path(llava_pat.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()
