from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX

IMAGE = [IMAGE_TOKEN_INDEX] * 4


def batch_of_three(device="cpu"):
    """Two images in row 0, none in row 1, one in row 2; rows 1 and 2 padded."""
    rows = [[1, *IMAGE, 5, *IMAGE, 6, 7, 8], [1, 9, 10, 11], [1, 12, *IMAGE, 13]]
    labels = [[IGNORE_INDEX] * 10 + [6, 7, 8], [IGNORE_INDEX, 9, IGNORE_INDEX, 11], [IGNORE_INDEX] * 6 + [13]]
    labels[0] = labels[0][: len(rows[0])]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [IGNORE_INDEX] * (width - len(row)) for row in labels])
    return ids, mask, labels


def forward(model, ids, mask, labels, pixels):
    patch_embeds = model.project(model.encode_images(pixels))
    return model.caption_loss_sum(model.forward_hidden(ids, mask, patch_embeds), labels)


def test_sizes(tiny_vlm):
    model = tiny_vlm()
    assert (model.image_size, model.patch_size, model.num_patches) == (28, 14, 4)
    assert (model.vision_width, model.hidden_size, model.vocab_size) == (16, 24, 50)
    assert tiny_vlm(select_feature="cls_patch").num_patches == 5


@pytest.mark.parametrize("select_layer", [-4, -2, -1, 0, 2, 3])
@pytest.mark.parametrize("select_feature", ["patch", "cls_patch"])
def test_features_are_the_towers_hidden_states(tiny_vlm, select_layer, select_feature):
    model = tiny_vlm(select_layer=select_layer, select_feature=select_feature)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = model.tower.model(pixels, output_hidden_states=True).hidden_states[select_layer]
    expected = expected[:, 1:] if select_feature == "patch" else expected
    features = model.encode_images(pixels)
    assert not features.requires_grad
    assert torch.equal(features, expected)
    model.tower.drop_layers_above(select_layer)  # what from_pretrained does with the layers that nothing reads
    assert torch.equal(model.encode_images(pixels), expected)


def test_select_layer_out_of_range(tiny_vlm):
    for layer in (4, -5):
        with pytest.raises(ValueError, match=rf"{layer} is out of range.*3 layers, so -4 to 3"):
            tiny_vlm(select_layer=layer)
    with pytest.raises(ValueError, match="'cls' is unknown"):
        tiny_vlm(select_feature="cls")


def test_pixels_of_another_size(tiny_vlm):
    with pytest.raises(ValueError, match=r"\[I, 3, 28, 28\], got \[1, 3, 42, 42\]"):
        tiny_vlm().encode_images(torch.zeros(1, 3, 42, 42))


def test_patches_fill_image_positions_in_order(tiny_vlm):
    model = tiny_vlm()
    ids, _, _ = batch_of_three()
    patches = torch.arange(3 * 4 * 24, dtype=torch.float32).reshape(3, 4, 24)
    embeds = model.embed_sequence(ids, patches)
    words = model.llm.model.embed_tokens.weight
    assert torch.equal(embeds[0, 1:5], patches[0]) and torch.equal(embeds[0, 6:10], patches[1])
    assert torch.equal(embeds[2, 2:6], patches[2])
    assert torch.equal(embeds[0, 5], words[5]) and torch.equal(embeds[1, :4], words[[1, 9, 10, 11]])


@pytest.mark.parametrize("images", [0, 2, 4])
def test_count_mismatch_names_both_numbers(tiny_vlm, images):
    ids, mask, _ = batch_of_three()
    with pytest.raises(ValueError, match=f"12 image positions.*bring {images * 4} = {images} images x 4"):
        tiny_vlm().forward_hidden(ids, mask, torch.zeros(images, 4, 24))


def test_supervised_logits_are_the_full_models_at_those_positions(tiny_vlm):
    model = tiny_vlm()
    _, mask, labels = batch_of_three()
    ids = torch.randint(3, 50, mask.shape)
    with torch.no_grad():
        full = model.llm(input_ids=ids, attention_mask=mask.long()).logits
        logits, targets = model.supervised_logits(model.forward_hidden(ids, mask, torch.zeros(0, 4, 24)), labels)
    assert targets.tolist() == [6, 7, 8, 9, 11, 13]  # row-major
    torch.testing.assert_close(
        logits, torch.stack([full[0, 9], full[0, 10], full[0, 11], full[1, 0], full[1, 2], full[2, 5]])
    )


def test_only_supervised_positions_reach_lm_head(tiny_vlm):
    model = tiny_vlm()
    ids, mask, labels = batch_of_three()
    seen = []
    model.llm.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    forward(model, ids, mask, labels, torch.randn(3, 3, 28, 28))
    assert seen == [torch.Size([6, 24])]


def test_a_first_label_is_never_predicted(tiny_vlm):
    """Position 0 has no predecessor: a label there must not wrap around to the end."""
    model = tiny_vlm()
    logits, targets = model.supervised_logits(torch.randn(2, 3, 24), torch.tensor([[5, -100, -100], [6, -100, 7]]))
    assert targets.tolist() == [7] and logits.shape == (1, 50)


def test_nothing_supervised_is_zero_on_the_graph(tiny_vlm):
    model = tiny_vlm()
    model.freeze_for_stage1()
    ids, mask, labels = batch_of_three()
    total, count = forward(model, ids, mask, torch.full_like(labels, IGNORE_INDEX), torch.randn(3, 3, 28, 28))
    assert total.item() == 0 and count.item() == 0
    total.backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.projector.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_images_the_projector_stays_on_the_graph(tiny_vlm, dtype):
    """A rank whose batch has no image takes part in the gradient reduction, with gradient exactly 0."""
    model = tiny_vlm()
    model.llm.to(dtype)
    model.tower.to(dtype)
    model.freeze_for_stage1()
    calls = []
    model.tower.register_forward_hook(lambda *_: calls.append("tower"))
    model.projector.register_forward_hook(lambda *_: calls.append("projector"))
    ids, mask = torch.tensor([[1, 9, 10]]), torch.ones(1, 3, dtype=torch.bool)
    total, count = forward(model, ids, mask, ids, torch.zeros(0, 3, 28, 28))
    assert calls == ["tower", "projector"] and count.item() == 2 and total.dtype == torch.float32
    (total / count).backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.projector.parameters())
    with torch.no_grad():
        plain = model.llm(input_ids=ids).logits.float()
    torch.testing.assert_close(total.detach(), F.cross_entropy(plain[0, :2], ids[0, 1:], reduction="sum"))


def test_embed_words_keeps_leading_shape(tiny_vlm):
    model = tiny_vlm()
    ids = torch.randint(0, 50, (2, 3, 5))
    assert torch.equal(model.embed_words(ids), model.llm.model.embed_tokens.weight[ids])


def test_projector_stays_fp32_beside_bf16_parts(tiny_vlm):
    model = tiny_vlm()
    model.tower.to(torch.bfloat16)
    model.llm.to(torch.bfloat16)
    ids, mask, labels = batch_of_three()
    features = model.encode_images(torch.randn(3, 3, 28, 28))
    patches = model.project(features)
    assert features.dtype == torch.bfloat16 and patches.dtype == torch.float32
    assert model.forward_hidden(ids, mask, patches).dtype == torch.bfloat16


def test_every_layer_of_a_sequence(tiny_vlm):
    model, (ids, mask, _) = tiny_vlm().eval(), batch_of_three()
    patches = model.project(model.encode_images(torch.randn(3, 3, 28, 28)))
    layers = model.forward_layers(ids, mask, patches)
    assert len(layers) == 3  # the embeddings, and two layers
    assert torch.equal(layers[0], model.embed_sequence(ids, patches))
    torch.testing.assert_close(layers[-1][mask], model.forward_hidden(ids, mask, patches)[mask], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(layers[1], layers[2])
