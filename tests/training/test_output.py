"""The output folder: refused before anything is loaded, when nothing can be written there or it is not this run's."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from llava_pat.training import stages
from llava_pat.training.arguments import parse_pretrain
from llava_pat.training.flags import ConfigError
from llava_pat.training.launch import run
from llava_pat.training.output import claim, refuse_unwritable
from llava_pat.training.run_config import write_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def refused(world, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    """Starts stage 1 into a folder; it must end with status 2 before a model is built. Returns the message."""

    def too_late(*_: object) -> None:
        raise AssertionError("models are built")

    def attempt(out: Path, **flags: object) -> str:
        monkeypatch.setattr(stages, "build_parts", too_late)
        with pytest.raises(SystemExit) as exit_:
            run(lambda: stages.pretrain(world.argv(out, **flags)))
        assert exit_.value.code == 2
        message = capsys.readouterr().err.split("error: ", 1)[1]
        assert "Traceback" not in message and str(out) in message and "--output_dir" in message
        return message

    return attempt


def test_a_place_that_is_a_file(refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "Not a directory" in refused(tmp_path / "file" / "llava-run")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_full_disk(refused, tmp_path: Path) -> None:
    """Files may have 3 kB here, as by a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        message = refused(tmp_path / "new" / "llava-run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "nothing can be written" in message and str(tmp_path) in message
    assert not (tmp_path / "new").exists()


READ_ONLY = """
set -e
mount --bind {folder} {folder}
mount -o remount,bind,ro {folder}
exec {python} -c 'import sys; from pathlib import Path; from llava_pat.training.output import refuse_unwritable
from llava_pat.training.flags import ConfigError
try:
    refuse_unwritable(Path(sys.argv[1]))
except ConfigError as error:
    print(error)' {folder}/llava-run
"""


def test_a_read_only_disk(tmp_path: Path) -> None:
    """Mounted read-only, in a name space of its own: root writes where rights forbid it."""
    (tmp_path / "disk").mkdir()
    script = READ_ONLY.format(folder=tmp_path / "disk", python=sys.executable)
    words = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100
    )
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"mounts are not permitted here: {done.stderr.strip()}")
    assert f"nothing can be written into {tmp_path / 'disk'} (Read-only file system)" in done.stdout, done.stderr


def test_a_folder_without_rights(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    if os.geteuid() == 0:
        refuse_unwritable(tmp_path / "out")  # root may
        return
    with pytest.raises(ConfigError, match="Permission denied"):
        refuse_unwritable(tmp_path / "out")


def test_no_trace_is_left(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no settings"),
        ("- 1\n", "holds no settings"),
        ("a: [1\n", "Is it a run of ours"),
        ("a: !!python/object/apply:os.mkdir [executed]\n", "Is it a run of ours"),
        ("seed: 1\nseed: 2\n", "'seed' is on line 1 as well"),
    ],
)
def test_another_runs_settings_that_cannot_be_read(
    refused, tmp_path: Path, monkeypatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "llava-run"
    out.mkdir()
    (out / "config.yaml").write_text(text)
    assert message in refused(out)
    assert not (tmp_path / "executed").exists() and (out / "config.yaml").read_text() == text


def test_another_run(refused, world, tmp_path: Path) -> None:
    out = tmp_path / "llava-run"
    arguments = parse_pretrain(world.argv(out))
    write_config(arguments, out / "config.yaml")
    assert claim(arguments, out)
    message = refused(out, learning_rate=0.5, seed=7)
    assert "holds another run (learning_rate: 0.01 there, 0.5 now; seed: 1 there, 7 now)" in message
