"""The tiny world (world.py) and runs in it, as fixtures."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.training.world import World, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """One thread (two cores, and the order of sums), no launcher, no accelerator, the foreign objective importable."""
    torch.set_num_threads(1)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "OUTPUT_DIR", "DIE_AT", "DIE_BY"):
        monkeypatch.delenv(name, raising=False)
    if "world" in request.fixturenames:
        monkeypatch.syspath_prepend(str(request.getfixturevalue("world").folder / "modules"))


@pytest.fixture
def foreign(world: World):
    """The module of the foreign objective, as the run imports it."""
    return importlib.import_module("my_package.my_module")


@pytest.fixture
def make_trainer(world: World, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """The real trainer on the tiny world, built as the stage builds it; flags as in World.argv."""

    def make(**flags: object) -> SimpleNamespace:
        from llava_pat.training.arguments import parse_pretrain

        out = _next_folder(tmp_path)
        return _trainer(parse_pretrain(world.argv(out, **flags)), out)

    return make


@pytest.fixture
def make_finetuner(world: World, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """As make_trainer, of stage 2; flags as in World.finetune_argv."""

    def make(**flags: object) -> SimpleNamespace:
        from llava_pat.training.finetune_arguments import parse_finetune

        out = _next_folder(tmp_path)
        return _trainer(parse_finetune(world.finetune_argv(out, **flags)), out)

    return make


@pytest.fixture
def refused_finetune(world: World, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a stage-2 command that must end with status 2 before the first step; returns its message."""
    from llava_pat.training.launch import run
    from llava_pat.training.stages import finetune

    def attempt(*words: str, out: Path = tmp_path / "llava-refused", **flags: object) -> str:
        before = set(out.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run(lambda: finetune([*world.finetune_argv(out, **flags), *words]))
        assert exit_.value.code == 2
        printed = capsys.readouterr()
        message = printed.err.split("error: ", 1)[1]
        assert "Traceback" not in message and "step 1/" not in printed.out
        written = {path.name for path in set(out.rglob("*")) - before}
        assert written <= {"config.yaml"}, f"left behind: {written}"
        return message

    return attempt


def _next_folder(tmp_path: Path) -> Path:
    out = tmp_path / f"llava-{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    return out


def _trainer(arguments, out: Path) -> SimpleNamespace:
    from transformers import set_seed

    from llava_pat.training.parts import build_parts
    from llava_pat.training.stages import build_task, build_trainer, build_weights

    set_seed(arguments.training.seed)
    parts = build_parts(arguments)
    task = build_task(arguments, parts)
    weights = build_weights(arguments, task, parts)
    trainer = build_trainer(arguments, parts, task, weights, initial={})
    return SimpleNamespace(trainer=trainer, task=task, parts=parts, weights=weights, arguments=arguments, out=out)
