"""Steps as processes: their errors have words, stopping ends them, and a killed study leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from playground.study import work
from playground.study.work import StepError, Workers, share_cores

ROOT = Path(__file__).parents[2]


def alive(pid: int) -> bool:
    """Whether a process runs (a dead one that nobody has waited for does not)."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_step_has_a_log_its_threads_and_the_repository(tmp_path):
    workers = Workers(tmp_path / "logs", threads=3)
    code = "import os, playground; print(os.environ['OMP_NUM_THREADS'], os.getcwd())"
    seconds = workers.run([sys.executable, "-c", code], "one")
    workers.run([sys.executable, "-c", "print('again')"], "one")
    log = (tmp_path / "logs" / "one.log").read_text()
    assert f"3 {ROOT}" in log and log.count("$ ") == 2 and log.rstrip().endswith("again"), "both starts are in it"
    assert 0 < seconds < 30


def test_an_error_is_told_in_its_last_words(tmp_path):
    code = "import sys; print('error: no such file'); print(); sys.exit(2)"
    with pytest.raises(StepError, match=r"exit status 2: error: no such file \(log: .*broken.log\)"):
        Workers(tmp_path, 1).run([sys.executable, "-c", code], "broken")
    with pytest.raises(StepError, match="exit status 1: ValueError: what went wrong"):
        Workers(tmp_path, 1).run([sys.executable, "-c", "raise ValueError('what went wrong')"], "raised")


def test_stopping_ends_what_runs_and_lets_nothing_start(tmp_path):
    workers, ended = Workers(tmp_path, 1), []
    script = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    def one() -> None:
        try:
            workers.run([sys.executable, "-c", script], "long")
        except StepError as error:
            ended.append(str(error))

    thread = threading.Thread(target=one)
    thread.start()
    assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    workers.stop()
    thread.join(30)
    assert not thread.is_alive() and len(ended) == 1
    assert wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))
    with pytest.raises(StepError, match="stopped"):
        workers.run([sys.executable, "-c", ""], "late")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent")
def test_a_study_killed_by_kill_9_takes_its_steps_along(tmp_path):
    step = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    study = (
        "import sys, pathlib; from playground.study.work import Workers; "
        f"Workers(pathlib.Path({str(tmp_path)!r}), 1).run([sys.executable, '-c', {step!r}], 'step')"
    )
    parent = subprocess.Popen([sys.executable, "-c", study], cwd=ROOT, start_new_session=True)
    try:
        assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 60)
        child = int((tmp_path / "pid").read_text())
        assert alive(child)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert wait_for(lambda: not alive(child)), "the step outlived the study"
    finally:
        parent.poll() is None and parent.kill()


def test_one_folder_is_worked_on_by_one_cell_at_a_time(tmp_path):
    workers, inside, most = Workers(tmp_path, 1), [], []

    def one(folder: Path) -> None:
        with workers.alone_in(folder):
            inside.append(folder)
            most.append(inside.count(folder))
            time.sleep(0.02)
            inside.remove(folder)

    threads = [threading.Thread(target=one, args=(tmp_path / str(i % 2),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


@pytest.mark.parametrize(
    ("cores", "jobs", "expected"), [(2, 2, (2, 1)), (2, 1, (1, 2)), (2, 5, (2, 1)), (16, 4, (4, 4)), (3, 2, (2, 1))]
)
def test_cores_are_divided_never_shared(monkeypatch, cores, jobs, expected):
    monkeypatch.setattr(work.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert share_cores(jobs) == expected and expected[0] * expected[1] <= cores
