"""Sequences end to end are the padded batch: losses, gradients, hidden states; nothing passes a boundary."""

from __future__ import annotations

import pytest
import torch
from transformers import FalconConfig, GPT2Config, JambaConfig, Lfm2Config, MambaConfig, NemotronConfig, Qwen2Config
from transformers import modeling_flash_attention_utils as flash

from llava_pat.models.padding_free import EndToEnd, check_boundaries
from llava_pat.models.sequence_attention import attend_by_sequence
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX, DataError
from tests.models.families import FAMILIES, GROUPED, SIZES, model_of

MIXED_WINDOW = Qwen2Config(
    **GROUPED, use_sliding_window=True, sliding_window=3, layer_types=["full_attention", "sliding_attention"]
)
LEARNED_POSITIONS = GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=50, n_positions=64, initializer_range=0.4)
ALL = FAMILIES | {"qwen2 with a window": MIXED_WINDOW, "gpt2": LEARNED_POSITIONS}
PATCHES = [IMAGE_TOKEN_INDEX] * 4
ROWS = ([1, *PATCHES, 5, 6, 7, 8], [1, 9, 10, 11], [1, 4], [1, *PATCHES, 20, *PATCHES, 21, 22])
"""One image, text alone, two positions, two images: the windows of 3 and 4 end inside some of them."""


def batch_of(*rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, labels (all words but the first two positions), mask; padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(~mask | (ids == IMAGE_TOKEN_INDEX), IGNORE_INDEX)
    labels[:, :2] = IGNORE_INDEX
    return ids, labels, mask


def images_of(*rows: list[int]) -> torch.Tensor:
    images = sum(row.count(IMAGE_TOKEN_INDEX) for row in rows) // len(PATCHES)
    return torch.randn(images, 3, 28, 28, generator=torch.Generator().manual_seed(2))


def step(model, rows) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Loss, hidden states [B, T, D] and the gradient of everything that trains."""
    ids, labels, mask = batch_of(*rows)
    model.zero_grad()
    hidden = model.forward_hidden(ids, mask, model.project(model.encode_images(images_of(*rows))))
    total, count = model.caption_loss_sum(hidden, labels)
    (total / count).backward()
    return total.detach() / count, hidden.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def assert_same_step(ours, theirs, mask: torch.Tensor) -> None:
    # fp32: matrix products of another shape, sums in another order
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1][mask], theirs[1][mask], rtol=1e-5, atol=5e-6)
    assert not ours[1][~mask].any()
    assert ours[2].keys() == theirs[2].keys()
    largest = max(gradient.abs().max() for gradient in theirs[2].values())
    for name, gradient in theirs[2].items():
        assert (ours[2][name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("name", ALL)
def test_loss_and_every_gradient_are_the_padded_batchs(name: str) -> None:
    padded, ours = model_of(ALL[name]), model_of(ALL[name])
    for model in (padded, ours):
        model.set_trainable(llm=True)
    ours.remove_padding()
    expected = "eager" if name == "gemma2" else "sdpa_by_sequence"
    assert ours.llm.config._attn_implementation == expected
    theirs = step(padded, ROWS)
    assert all(gradient.any() for gradient in theirs[2].values())
    assert_same_step(step(ours, ROWS), theirs, batch_of(*ROWS)[2])
    check_boundaries(ours)


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[1:2], ROWS[:1] * 3, (ROWS[1], ROWS[2]), (ROWS[3], ROWS[2])])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_batches_of_other_shapes(attention: str, rows: tuple[list[int], ...]) -> None:
    """One sequence, with an image and without; equal lengths; text alone; stage 1's frozen language model."""
    padded, ours = model_of(MIXED_WINDOW, attention), model_of(MIXED_WINDOW, attention)
    for model in (padded, ours):
        model.freeze_for_stage1()
    ours.remove_padding()
    theirs = step(padded, rows)
    assert theirs[2].keys() == {"projector.weight", "projector.bias"}
    if IMAGE_TOKEN_INDEX in sum(rows, []):
        assert_same_step(step(ours, rows), theirs, batch_of(*rows)[2])
    else:
        assert not any(gradient.any() for gradient in step(ours, rows)[2].values())
        torch.testing.assert_close(step(ours, rows)[0], theirs[0], rtol=1e-6, atol=1e-6)


def by_hand(query, key, value, lengths, window: int | None, scaling: float) -> torch.Tensor:
    """[1, H, S, d] -> [1, S, H, d]: softmax over what is in the same sequence, not later and not too far back."""
    heads = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(sequence))
    back = place[:, None] - place
    seen = (sequence[:, None] == sequence) & (back >= 0)
    if window is not None:
        seen &= back < window
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("lengths", [(5,), (1, 4), (3, 1, 1, 7), (2, 2, 2)])
def test_attention_of_each_sequence_against_the_formula(lengths: tuple[int, ...], window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(lengths), 6, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    )
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    out, weights = attend_by_sequence(module, query, key, value, None, lengths, window, scaling=0.3)
    wanted = by_hand(query, key, value, lengths, window, 0.3)
    assert weights is None and out.shape == wanted.shape
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        *(torch.autograd.grad(o, (query, key, value), cotangent) for o in (out, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_nothing_passes_a_boundary(attention: str) -> None:
    """Other words, or another image, in one sequence: the others keep their bits."""
    model = model_of(MIXED_WINDOW, attention)
    model.remove_padding()
    ids, _, mask = batch_of(*ROWS)
    patches = model.project(model.encode_images(images_of(*ROWS))).detach()
    with torch.no_grad():
        before = model.forward_hidden(ids, mask, patches)
        for changed in range(len(ROWS)):
            other = ids.clone()
            other[changed, :2] = 30
            other[changed] = torch.where(ids[changed] == IMAGE_TOKEN_INDEX, ids[changed], other[changed])
            after = model.forward_hidden(other, mask, patches)
            moved = [not torch.equal(one, two) for one, two in zip(after, before, strict=True)]
            assert moved == [row == changed for row in range(len(ROWS))]
        after = model.forward_hidden(ids, mask, torch.cat((patches[:1], patches[1:] + 1)))
        moved = [not torch.equal(one, two) for one, two in zip(after, before, strict=True)]
        assert moved == [False, False, False, True], "images 2 and 3 belong to the last sequence"


def test_every_layers_states_keep_their_places() -> None:
    padded, ours = model_of(FAMILIES["llama"]), model_of(FAMILIES["llama"])
    ours.remove_padding()
    ids, _, mask = batch_of(*ROWS)
    with torch.no_grad():
        patches = padded.project(padded.encode_images(images_of(*ROWS)))
        for one, other in zip(
            ours.forward_layers(ids, mask, patches), padded.forward_layers(ids, mask, patches), strict=True
        ):
            torch.testing.assert_close(one[mask], other[mask], rtol=1e-5, atol=5e-6)


def test_layout() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])  # whole numbers do as well
    ids = torch.arange(16).view(4, 4)
    row = EndToEnd.of(mask, "eager")
    assert row.lengths == (2, 4, 1)
    assert row.arrange(ids).tolist() == [[0, 1, 4, 5, 6, 7, 12]]
    told = row.arguments()
    assert told.keys() == {"attention_mask", "position_ids"} and told["attention_mask"] is None
    assert told["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 0]]
    states = torch.arange(1.0, 8.0).view(1, 7, 1)
    assert row.restore(states).squeeze(-1).tolist() == [[1, 2, 0, 0], [3, 4, 5, 6], [0] * 4, [7, 0, 0, 0]]


def test_flash_attention_gets_one_varlen_call_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own way to the kernel, with the formula in the kernel's place."""
    calls = []

    def varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, **keywords):
        assert cu_seqlens_q.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_k)
        calls.append((cu_seqlens_q.tolist(), keywords["max_seqlen_q"], keywords["max_seqlen_k"]))
        states = (states.transpose(0, 1).unsqueeze(0) for states in (query, key, value))
        out = by_hand(*states, cu_seqlens_q.diff().tolist(), keywords["sliding_window"], keywords["softmax_scale"])
        return out.squeeze(0)

    kernels = ((None, varlen, None, None, None), (lambda **keywords: keywords, None))
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda name: kernels)
    padded, ours = model_of(MIXED_WINDOW), model_of(MIXED_WINDOW)
    for model in (padded, ours):
        model.set_trainable(llm=True)
    ours.llm.config._attn_implementation_internal = "flash_attention_2"  # the setter asks for a GPU
    ours.remove_padding()
    assert_same_step(step(ours, ROWS), step(padded, ROWS), batch_of(*ROWS)[2])
    assert calls == [([0, 9, 13, 15, 27], 12, 12)] * 2
    check_boundaries(ours)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_repeats_the_same_numbers(reentrant: bool) -> None:
    model = model_of(MIXED_WINDOW)
    model.set_trainable(llm=True)
    model.remove_padding()
    model.train()
    kept = step(model, ROWS)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    recomputed = step(model, ROWS)
    assert all(torch.equal(gradient, kept[2][name]) for name, gradient in recomputed[2].items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MambaConfig(hidden_size=24, num_hidden_layers=2, vocab_size=50, state_size=4), "mamba takes no position_ids"),
        (Lfm2Config(**GROUPED, full_attn_idxs=[1]), "lfm2 has layers of the kind conv"),
        (
            FalconConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=50),
            "falcon does not take",
        ),
    ],
    ids=["mamba", "lfm2", "falcon"],
)
def test_models_that_are_known_not_to_keep_sequences_apart(config, message: str) -> None:
    model = model_of(config)
    with pytest.raises(DataError, match=f"{message}.*--padding_free False"):
        model.remove_padding()
    assert not model.padding_free


def test_models_that_are_found_not_to_keep_sequences_apart() -> None:
    """Jamba's state runs on; Nemotron's layers do not hand on where sequences end."""
    settings = dict(attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False, num_experts=1, mamba_dt_rank=4)
    jamba = model_of(JambaConfig(**GROUPED, **settings)).train()
    jamba.remove_padding()
    random = torch.get_rng_state()
    with pytest.raises(DataError, match="in jamba a sequence depends on the one before it.*--padding_free False"):
        check_boundaries(jamba)
    assert torch.equal(torch.get_rng_state(), random) and jamba.training
    nemotron = model_of(NemotronConfig(**SIZES, num_key_value_heads=1))
    nemotron.remove_padding()
    with pytest.raises(DataError, match="NemotronAttention was not told where sequences end.*--padding_free False"):
        check_boundaries(nemotron)


def test_a_mask_that_is_not_ours_is_refused() -> None:
    query = torch.zeros(1, 1, 4, 2)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(DataError, match="Module builds an attention mask of its own.*--padding_free False"):
        attend_by_sequence(torch.nn.Module(), query, query, query, mask, (4,))


def test_a_boundary_that_leaks_a_little_is_seen() -> None:
    """One layer of two without the boundaries."""
    model = model_of(FAMILIES["llama"])
    model.remove_padding()
    layer = model.llm.model.layers[1].self_attn
    plain = layer.forward

    def leaking(*args, **keywords):
        lengths = keywords.pop("sequence_lengths")
        return plain(*args, **keywords, sequence_lengths=(sum(lengths),))

    layer.forward = leaking
    with pytest.raises(DataError, match="depends on the one before it"):
        check_boundaries(model)
