"""Packaging and scripts, as far as they can be checked without installing anything."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KEYWORDS = ("install_requires", "extras_require", "package_data")
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))


def setup_keywords() -> dict[str, object]:
    tree = ast.parse((ROOT / "setup.py").read_text())
    call = next(
        n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "setup"
    )
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in KEYWORDS}


def run(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith("LLAVA_PAT_") and k not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True, timeout=60
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy")
    code = f"import sys, llava_pat, llava_pat.types; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_wheel_would_hold_llava_pat_only() -> None:
    text = (ROOT / "setup.py").read_text()
    include = re.search(r"include=(\[.*?\])", text).group(1)
    assert ast.literal_eval(include) == ["llava_pat", "llava_pat.*"]


def test_the_wheel_would_hold_what_is_no_python() -> None:
    """Styles and scripts of the reports' pages."""
    there: dict[str, set[str]] = {}
    for path in (ROOT / "llava_pat").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            there.setdefault(".".join(path.parent.relative_to(ROOT).parts), set()).add(path.name)
    assert {package: set(names) for package, names in setup_keywords()["package_data"].items()} == there


def test_the_tested_versions_lie_in_the_stated_ranges() -> None:
    from packaging.requirements import Requirement

    pins: dict[str, list[str]] = {}
    for line in (ROOT / "scripts" / "requirements.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            for part in requirement.specifier:
                if part.operator == "==":
                    pins.setdefault(requirement.name.lower(), []).append(part.version)
    ranges = [Requirement(text) for text in setup_keywords()["install_requires"]]
    assert {r.name.lower() for r in ranges} <= set(pins), "a dependency without a tested version"
    for wanted in ranges:
        assert all(wanted.specifier.contains(version) for version in pins[wanted.name.lower()]), str(wanted)
    transformers = next(r for r in ranges if r.name == "transformers")
    assert not transformers.specifier.contains("5.16.9") and not transformers.specifier.contains("6.0.0")


def test_extras() -> None:
    extras = setup_keywords()["extras_require"]
    assert {"flash-attn", "qlora", "open-clip", "eval", "dev"} <= set(extras)
    assert {"torch==2.13.0", "torchvision==0.28.0"} <= set(
        extras["open-clip"]
    )  # a pair; another torchvision breaks torch


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_set_up_first(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# "), "a script opens with what it is"
    if script.name not in ("setup.sh", "launch.sh"):
        assert "setup.sh" in text and "set -euo pipefail" in text


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A copy of the scripts beside an environment that looks finished: python is this one, the stamp is right."""
    clone = tmp_path / "clone with space"
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    shutil.copy(ROOT / "setup.py", clone)
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    stamp = run(f"cat '{clone}/scripts/requirements.txt' '{clone}/setup.py' | cksum", tmp_path).stdout
    (environment / ".llava_pat-stamp").write_text(stamp)
    return clone


def test_a_ready_environment_is_used_at_once_and_runs_this_clone(ready: Path, tmp_path: Path) -> None:
    command = (
        f"set -euo pipefail; source '{ready}/scripts/setup.sh'; "
        'echo "$PYTHONPATH"; echo "$PATH" | cut -d: -f1; echo "$TORCH_EXTENSIONS_DIR"; echo "$VIRTUAL_ENV"'
    )
    done = run(
        command, Path("/"), LLAVA_PAT_VENV=str(tmp_path / "venv"), PYTHONPATH="/elsewhere", TORCH_EXTENSIONS_DIR=""
    )
    assert done.returncode == 0, done.stderr
    path, first, extensions, environment = done.stdout.splitlines()
    assert path == f"{ready}:/elsewhere"  # this clone before anything that the environment has installed
    assert first == f"{tmp_path}/venv/bin"
    assert extensions.startswith(str(tmp_path)) and environment == f"{tmp_path}/venv"
    assert "installing" not in done.stderr


def test_sourcing_does_not_take_the_callers_arguments(ready: Path, tmp_path: Path) -> None:
    done = run(
        f"set -- --alignment none; source '{ready}/scripts/setup.sh'; echo \"$@\"",
        tmp_path,
        LLAVA_PAT_VENV=str(tmp_path / "venv"),
    )
    assert done.returncode == 0 and done.stdout.strip() == "--alignment none", done.stderr


def test_an_old_python_is_refused_with_the_way_out(ready: Path, tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\necho Python 3.8.1\nexit 1\n")
    old.chmod(0o755)
    done = run(
        f"bash '{ready}/scripts/setup.sh'", tmp_path, LLAVA_PAT_VENV=str(tmp_path / "new"), LLAVA_PAT_PYTHON=str(old)
    )
    assert done.returncode == 1
    assert "3.10" in done.stderr and str(old) in done.stderr and "LLAVA_PAT_PYTHON" in done.stderr


def test_a_full_disk_is_refused_before_anything_is_installed(ready: Path, tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "df").write_text("#!/bin/sh\nprintf 'F 1024-blocks Used Available Capacity M\\nx 9 9 1048576 9%% /\\n'\n")
    (fake / "df").chmod(0o755)
    done = run(
        f"bash '{ready}/scripts/setup.sh'",
        tmp_path,
        LLAVA_PAT_VENV=str(tmp_path / "new"),
        PATH=f"{fake}:{os.environ['PATH']}",
    )
    assert done.returncode == 1
    assert "1 GB free" in done.stderr and "needs about" in done.stderr
    assert not (tmp_path / "new" / "bin").exists()


def test_an_unknown_argument_of_setup_is_refused(ready: Path, tmp_path: Path) -> None:
    done = run(f"bash '{ready}/scripts/setup.sh' --wiht x", tmp_path, LLAVA_PAT_VENV=str(tmp_path / "venv"))
    assert done.returncode == 1 and "--wiht" in done.stderr


def test_a_config_that_is_not_there_lists_those_that_are(ready: Path, tmp_path: Path) -> None:
    done = run(f"bash '{ready}/scripts/pretrain_pat.sh' llava-v1.5-8b", tmp_path, LLAVA_PAT_VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    assert "llava-v1.5-8b.yaml" in done.stderr and "llava-v1.5-7b.yaml" in done.stderr


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NUM_GPUS": "2"}, "torchrun --nproc_per_node 2 --master_port 29500 train/x.py --flag v w"),
        ({"NUM_GPUS": "0"}, "python train/x.py --flag v w"),
        (
            {"NUM_GPUS": "8", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "h"},
            "torchrun --nnodes 2 --node_rank 1 --nproc_per_node 8 --master_addr h --master_port 29500 "
            "train/x.py --flag v w",
        ),
        ({"HOSTFILE": "hosts"}, "deepspeed --hostfile hosts --master_port 29500 train/x.py --flag v w"),
    ],
)
def test_launcher(environment: dict[str, str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node1 slots=8\n")
    stubs = "; ".join(f'{name}() {{ echo "{name} $*"; }}' for name in ("python", "torchrun", "deepspeed"))
    done = run(f"{stubs}; source '{ROOT}/scripts/launch.sh'; launch train/x.py --flag 'v w'", tmp_path, **environment)
    assert done.stdout.strip() == expected, done.stderr


def test_the_launcher_takes_the_place_of_the_script(tmp_path: Path) -> None:
    """A signal to the script's process is one to the training: Kubernetes and others signal no more than that."""
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\necho $$; exit 143\n")
    stub.chmod(0o755)
    done = run(
        f"export PATH='{stub.parent}':$PATH; source '{ROOT}/scripts/launch.sh'; echo $$; launch train/x.py",
        tmp_path,
        NUM_GPUS="0",
    )
    script, training = done.stdout.split()
    assert script == training and done.returncode == 143
