"""Ranks that were started otherwise than the others are named before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from llava_pat.training import agreement
from llava_pat.training.agreement import differences, facts
from llava_pat.training.arguments import parse_pretrain
from tests.training.faults.processes import start


def test_differences() -> None:
    same = {"torch": "2.13.0", "--learning_rate": "0.001"}
    assert differences([same] * 8) == []
    by_rank = [same] * 8
    by_rank[3] = same | {"--learning_rate": "0.002"}
    by_rank[5] = {"torch": "2.12.0", "--learning_rate": "0.002", "--seed": "1"}
    assert differences(by_rank) == [
        "torch is 2.13.0 on ranks 0, 1, 2, 3 and 3 more and 2.12.0 on rank 5",
        "--learning_rate is 0.001 on ranks 0, 1, 2, 4 and 2 more and 0.002 on ranks 3, 5",
        "--seed is not set on ranks 0, 1, 2, 3 and 3 more and 1 on rank 5",
    ]


def test_facts_see_files_and_code(world, tmp_path: Path, monkeypatch) -> None:
    data = tmp_path / "train.json"
    data.write_bytes((world.folder / "train.json").read_bytes())
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    arguments = parse_pretrain(world.argv(tmp_path / "llava-run", data_path=data))
    arguments.training.deepspeed = str(plan)
    before = facts(arguments)
    assert before == facts(arguments) and before["--learning_rate"] == "0.01"
    data.write_bytes(data.read_bytes() + b"\n")
    plan.write_text('{"zero_optimization": {"stage": 2}}')
    monkeypatch.setattr(agreement, "_code", lambda: "0" * 64)
    (difference, *others) = [line.split(" is ")[0] for line in differences([before, facts(arguments)])]
    assert [difference, *others] == ["llava_pat's code", "the content of --data_path", "the content of --deepspeed"]


def test_patch_labels_are_compared_by_their_account(world, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    arguments = parse_pretrain(world.argv(tmp_path / "llava-run"))
    arguments.data.patch_words_path = str(labels)
    found = []
    for account in ('{"tower_sha256": "a"}', '{"tower_sha256": "b"}'):
        (labels / "meta.json").write_text(account)
        found.append(facts(arguments))
    (labels / "meta.json").unlink()
    found.append(facts(arguments))
    (difference,) = differences(found)
    assert difference.startswith("the meta.json of --patch_words_path is 21 bytes, sha256 ")
    assert difference.endswith("on rank 1 and not there on rank 2")


def test_a_rank_with_another_command_is_named(world, tmp_path: Path) -> None:
    out = tmp_path / "llava-run"
    rates = ("0.01", "0.02")
    run = start(1, lambda rank: world.argv(out, learning_rate=rates[rank], seed=rank), tmp_path / "log", ranks=2)
    assert run.wait(100) == [2, 2], run.said() + run.said(1)
    for rank in (0, 1):
        said = run.said(rank)
        assert "error: the ranks were not started alike: " in said and "Traceback" not in said
        assert "--learning_rate is 0.01 on rank 0 and 0.02 on rank 1" in said and "--seed is 0 on rank 0" in said
    assert not out.exists()
