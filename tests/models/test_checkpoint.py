from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llava_pat.models import checkpoint
from llava_pat.models.checkpoint import load_objective, load_projector, save_objective, save_projector
from llava_pat.models.projectors import build_projector

MLP_KEYS = [
    "model.mm_projector.0.bias",
    "model.mm_projector.0.weight",
    "model.mm_projector.2.bias",
    "model.mm_projector.2.weight",
]


def same(first: nn.Module, second: nn.Module) -> bool:
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("mlp2x_gelu", MLP_KEYS), ("linear", ["model.mm_projector.bias", "model.mm_projector.weight"]), ("identity", [])],
)
def test_round_trip_in_both_files(tmp_path, kind, keys):
    projector = build_projector(kind, 6, 6)
    save_projector(projector, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["mm_projector.bin", "mm_projector.safetensors"]
    plain = torch.load(tmp_path / "out" / "mm_projector.bin", weights_only=True)
    assert (
        type(plain) is dict
        and sorted(plain) == sorted(load_file(tmp_path / "out" / "mm_projector.safetensors")) == keys
    )
    for path in ("out", "out/mm_projector.bin", "out/mm_projector.safetensors"):
        other = build_projector(kind, 6, 6)
        report = load_projector(tmp_path / path, other)
        assert same(projector, other) and not report.ignored


def test_dtype_of_the_files(tmp_path):
    projector = build_projector("linear", 3, 4)
    save_projector(projector, tmp_path, torch.bfloat16)
    stored = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    other = build_projector("linear", 3, 4)
    assert load_projector(tmp_path, other).dtype == torch.bfloat16
    assert other.weight.dtype == torch.float32 and torch.equal(other.weight, projector.weight.bfloat16().float())
    assert projector.weight.dtype == torch.float32


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    projector = nn.Linear(4, 4)
    projector.weight = nn.Parameter(torch.randn(1000, 4)[:4])
    save_projector(projector, tmp_path)
    assert (tmp_path / "mm_projector.bin").stat().st_size < 4000


def test_what_llava_wrote(written):
    projector = build_projector("mlp2x_gelu", 64, 128)
    report = load_projector(written / "out-llava-pt", projector)
    stored = torch.load(written / "out-llava-pt" / "mm_projector.bin", weights_only=True)
    assert report.path.name == "mm_projector.bin" and not report.ignored and sorted(stored) == MLP_KEYS
    for name, tensor in projector.state_dict().items():
        assert torch.equal(tensor, stored[f"model.mm_projector.{name}"])


def test_we_write_what_llava_wrote(written, tmp_path):
    projector = build_projector("mlp2x_gelu", 64, 128)
    load_projector(written / "out-llava-pt", projector)
    save_projector(projector, tmp_path)
    theirs = torch.load(written / "out-llava-pt" / "mm_projector.bin", weights_only=True)
    ours = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert list(ours) == list(theirs)  # names, and their order
    assert all(ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in theirs)


def test_any_prefix_and_the_embedding_key(tmp_path):
    projector = build_projector("linear", 3, 4)
    tensors = {f"base_model.model.model.mm_projector.{name}": t for name, t in projector.state_dict().items()}
    torch.save(tensors | {"model.embed_tokens.weight": torch.zeros(2, 4)}, tmp_path / "mm_projector.bin")
    other = build_projector("linear", 3, 4)
    assert load_projector(tmp_path, other).ignored == ("model.embed_tokens.weight",)
    assert same(projector, other)


def test_refusals(tmp_path):
    mlp, linear = build_projector("mlp2x_gelu", 3, 4), build_projector("linear", 3, 4)
    save_projector(mlp, tmp_path / "mlp")
    before = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing \['bias', 'weight'\], too many \['0.bias'"):
        load_projector(tmp_path / "mlp", linear)
    with pytest.raises(
        ValueError, match=r"mm_projector.bin.*0.weight is \[4, 3\] in the file and \[4, 5\] in the model"
    ):
        load_projector(tmp_path / "mlp", build_projector("mlp2x_gelu", 5, 4))
    with pytest.raises(ValueError, match=r"too many \['4.bias', '4.weight'\]"):
        save_projector(build_projector("mlp3x_gelu", 3, 4), tmp_path / "mlp3")
        load_projector(tmp_path / "mlp3" / "mm_projector.safetensors", mlp)
    with pytest.raises(FileNotFoundError, match="holds neither mm_projector.bin nor"):
        load_projector(tmp_path, mlp)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_projector(tmp_path / "nowhere.bin", mlp)
    torch.save({"a.mm_projector.weight": torch.zeros(1), "b.mm_projector.weight": torch.zeros(1)}, tmp_path / "two.bin")
    with pytest.raises(ValueError, match="two keys end in mm_projector.weight"):
        load_projector(tmp_path / "two.bin", linear)
    torch.save({"lm_head.weight": torch.zeros(1)}, tmp_path / "none.bin")
    with pytest.raises(ValueError, match="missing"):
        load_projector(tmp_path / "none.bin", linear)
    assert all(torch.equal(before[name], tensor) for name, tensor in linear.state_dict().items())


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmful-was-here",)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model.mm_projector.weight": Harmful()}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="mm_projector.bin: not a file of plain tensors"):
        load_projector(tmp_path, nn.Linear(2, 2))
    (tmp_path / "raw.bin").write_bytes(pickle.dumps({"a": Harmful()}, protocol=2))
    with pytest.raises(ValueError, match="raw.bin: not a file of plain tensors"):
        load_projector(tmp_path / "raw.bin", nn.Linear(2, 2))
    assert not (tmp_path / "harmful-was-here").exists()


def test_broken_files(tmp_path):
    save_projector(nn.Linear(2, 2), tmp_path)
    for name, message in (
        ("mm_projector.bin", "not a file of plain tensors"),
        ("mm_projector.safetensors", "not a whole safetensors"),
    ):
        whole = (tmp_path / name).read_bytes()
        for broken in (whole[: len(whole) // 2], b"", b"version https://git-lfs.github.com/spec/v1\n"):
            (tmp_path / name).write_bytes(broken)
            with pytest.raises(ValueError, match=f"{name}: {message}"):
                load_projector(tmp_path / name, nn.Linear(2, 2))
    torch.save([torch.zeros(1)], tmp_path / "list.bin")
    with pytest.raises(ValueError, match="holds a list"):
        load_projector(tmp_path / "list.bin", nn.Linear(2, 2))
    torch.save({"mm_projector.weight": 3.0}, tmp_path / "number.bin")
    with pytest.raises(ValueError, match="'mm_projector.weight' is a float"):
        load_projector(tmp_path / "number.bin", nn.Linear(2, 2))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    first = nn.Linear(2, 2)
    save_projector(first, tmp_path)

    def half(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_projector(nn.Linear(2, 2), tmp_path)
    monkeypatch.undo()
    other = nn.Linear(2, 2)
    load_projector(tmp_path, other)
    assert same(first, other) and sorted(os.listdir(tmp_path)) == ["mm_projector.bin", "mm_projector.safetensors"]


def test_sharded_weights_are_not_saved_as_nothing(tmp_path):
    projector = nn.Linear(2, 2)
    projector.weight.data = torch.empty(0)  # what ZeRO-3 leaves of a parameter outside its gather context
    with pytest.raises(ValueError, match="weight is empty.*Gather"):
        save_projector(projector, tmp_path)


class Objective(nn.Module):
    def __init__(self, value: float):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(value))
        self.register_buffer("seen", torch.tensor(int(value)))


def test_objective_round_trip(tmp_path):
    assert save_objective(Objective(0.07), tmp_path) == tmp_path / "alignment_objective.safetensors"
    for path in (tmp_path, tmp_path / "alignment_objective.safetensors"):
        other = Objective(5.0)
        load_objective(path, other)
        assert (
            other.temperature.item() == pytest.approx(0.07)
            and other.seen.item() == 0
            and other.seen.dtype == torch.int64
        )
    with pytest.raises(ValueError, match=r"missing \['weight'\], too many \['seen', 'temperature'\]"):
        load_objective(tmp_path, nn.Linear(1, 1, bias=False))


def test_objective_without_state_needs_no_file(tmp_path):
    save_objective(Objective(1.0), tmp_path)
    assert save_objective(nn.Identity(), tmp_path) is None
    assert not list(tmp_path.iterdir())  # nor does another run's file stay behind
    load_objective(tmp_path, nn.Identity())
    with pytest.raises(FileNotFoundError, match="has 2 tensors to load"):
        load_objective(tmp_path, Objective(1.0))


def test_objective_names_never_look_like_the_projectors(tmp_path):
    wrong = nn.ModuleDict({"mm_projector": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="mm_projector.bias.*LLaVA would read"):
        save_objective(wrong, tmp_path)
    with pytest.raises(ValueError, match="LLaVA would read"):
        load_objective(tmp_path, wrong)
