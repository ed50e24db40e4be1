"""The model card says what was measured and which bars were met; the probes separate what can be separated."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from playground import card, probe


def _models(folder: Path) -> Path:
    for name, config in (
        ("clip", {"vision_config": {"patch_size": 8, "hidden_size": 192, "num_hidden_layers": 5}}),
        ("llama", {"hidden_size": 256, "num_hidden_layers": 5, "vocab_size": 700}),
    ):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"0" * 2_000_000)
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def test_the_card_says_which_bars_are_met(tmp_path: Path) -> None:
    figures = {
        "clip": {"kind_crop": 0.84, "colour_crop": 0.99, "position_error_crop": 0.3},
        "llama": {"rec": 0.95, "relation": 0.5, "caption": 0.01},
    }
    text = card.render(_models(tmp_path), figures)
    assert "| kind crop | 0.840 | >= 0.85 | **no** |" in text
    assert "| colour crop | 0.990 | >= 0.95 | yes |" in text
    assert "| position error crop | 0.300 | <= 0.5 | yes |" in text
    assert "| rec | 0.950 | >= 0.9 | yes |" in text and "| relation | 0.500 | >= 0.9 | **no** |" in text
    assert "| caption | 0.010 |  |  |" in text and "2.0 MB" in text
    assert "Bars missed: `relation` 0.500." in text and "Every bar" not in text
    figures["llama"] = {"rec": 0.95, "relation": 0.9, "caption": 0.01}
    text = card.render(tmp_path, figures)
    assert "Every bar is met." in text and "missed" not in text


def test_the_linear_probe_reads_what_is_linear_and_not_what_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 8, generator=generator)
    linear = (features[:, 0] > 0).long()
    exclusive_or = ((features[:, 1] > 0) ^ (features[:, 2] > 0)).long()
    for labels, low, high in ((linear, 0.97, 1.0), (exclusive_or, 0.3, 0.68)):
        read = probe.linear_probe(features[:400], labels[:400], 2)
        accuracy = float((read(features[400:]).argmax(-1) == labels[400:]).float().mean())
        assert low <= accuracy <= high
