"""What LLaVA wrote, and that converted: once for all tests of the command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llava_pat.convert.command import main

ASSETS = Path(__file__).parents[1] / "assets" / "llava_written"


@pytest.fixture(scope="session")
def assets() -> Path:
    return ASSETS


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder with LLaVA's clip/, llm/, llava-v1.5-tiny/ and out-llava-pt/, as they name each other; and hf/."""
    root = tmp_path_factory.mktemp("world")
    for name in ("clip", "llm", "llava-v1.5-tiny", "out-llava-pt"):
        shutil.copytree(ASSETS / name, root / name)
    assert main([str(root / "llava-v1.5-tiny"), str(root / "hf")]) == 0
    return root
