"""What results depend on besides the command line: data, base models, code, versions. No two kinds ever mix."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llava_pat.evaluation.hashes import folder_hash
from llava_pat.types import DataError
from playground.study.cells import CONFIGS, ROOT, Study, shown
from playground.study.files import read_json, write_json

INPUTS = "inputs.json"
_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "tokenizers", "pycocoevalcap")
_MODELS = ("model_name_or_path", "vision_tower")


def inputs(study: Study) -> dict[str, Any]:
    """Hashes of what is trained on and evaluated with: data, regions, evaluation files, base models."""
    data = study.data
    files = sorted([*data.glob("*.json"), *data.glob("*.jsonl"), *data.glob("eval*/*.json*")])
    hashes = {str(file.relative_to(data)): _sha(file) for file in files}
    models = {shown(folder): folder_hash(folder) for folder in base_models(study)}
    return {"data": hashes, "models": models}


def base_models(study: Study) -> list[Path]:
    """Folders that the family's configs name; hub ids have a revision of their own and are left out."""
    import yaml

    settings = yaml.safe_load((CONFIGS / f"{study.family}_finetune.yaml").read_text())
    named = [ROOT / settings[name] for name in _MODELS]
    return [folder for folder in named if folder.is_dir()]


def claim(study: Study) -> dict[str, Any]:
    """Remember the inputs in the study's folder, or compare. DataError where it holds results of others."""
    now, file = inputs(study), study.out / INPUTS
    if file.is_file():
        then = read_json(file)
        differing = [
            f"{kind}: {name}"
            for kind in now
            for name in sorted(now[kind].keys() | then[kind].keys())
            if now[kind].get(name) != then[kind].get(name)
        ]
        if differing:
            raise DataError(
                f"{study.out} holds runs with other inputs ({', '.join(differing[:4])}"
                f"{', ...' if len(differing) > 4 else ''}): choose another --out, or delete it"
            )
    else:
        write_json(file, now)
    return now


def provenance() -> dict[str, Any]:
    """Commit, whether the code differs from it, and versions."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "llava_pat", "playground", "scripts", "train")
    return {
        "git": {"commit": commit, "changed": bool(changed)} if commit else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": platform.machine(),
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""  # a download without .git has no commit to name


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
