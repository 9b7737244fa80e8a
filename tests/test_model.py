"""The forward pass is open_clip's, crops are torchvision's, and views depend on the image and its place alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import resized_crop

from lib import model as models
from lib import recipes

PIXELS, WORDS, CONTEXT = 32, 100, 24


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(seed=3, **changes):
    sizes = {"pixels": PIXELS, "vocabulary": WORDS, "context": CONTEXT}
    return models.build(**{"config": recipes.model_config("smoke"), **sizes, "seed": seed, **changes})


@pytest.fixture
def tokens():
    """Five captions of 4 to 12 tokens, the last one an end token, then padding."""
    tokens = torch.randint(1, WORDS - 1, (5, CONTEXT), generator=seeded())
    for row, length in enumerate((4, 9, 7, 12, 5)):
        tokens[row, length - 1], tokens[row, length:] = WORDS - 1, 0
    return tokens


@pytest.fixture
def pictures():
    """Seven uint8 pictures."""
    return torch.randint(0, 256, (7, 3, PIXELS, PIXELS), generator=seeded(1), dtype=torch.uint8)


@pytest.mark.parametrize("length", [CONTEXT, 12])
def test_embeddings_and_gradients_equal_open_clips(pictures, tokens, length):
    found = []
    for ours in (True, False):
        model, x = built(), models.normalise(pictures[:5])
        if ours:
            image, text = models.encode_image(model, x), models.encode_text(model, tokens[:, :length])
        else:
            image, text = model.encode_image(x, normalize=True), model.encode_text(tokens, normalize=True)
        (image @ text.T).square().mean().backward()
        found.append([image, text, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 30
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.detach().abs().max()), rtol=1e-3)


def test_layers_are_the_means_of_what_open_clips_blocks_give(pictures):
    model, seen = built().eval(), []
    for block in model.visual.transformer.resblocks:
        block.mlp.gelu.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        ours = list(models.image_layers(model, models.normalise(pictures)))
        seen.clear()  # of our own pass
        model.encode_image(models.normalise(pictures))
    assert len(ours) == len(seen) == 2
    for hidden, after_gelu in zip(ours, seen, strict=True):
        torch.testing.assert_close(hidden, after_gelu.clamp(min=0).mean(dim=1), atol=1e-5, rtol=1e-4)


def test_equal_arguments_give_equal_weights_and_the_global_generator_is_left_alone():
    before, weights = torch.random.get_rng_state(), built().state_dict()
    assert all(torch.equal(weights[name], t) for name, t in built().state_dict().items())
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(weights["visual.proj"], built(seed=4).visual.proj)
    assert built(classes=7).classes.shape == (7, 64) and not hasattr(built(), "classes")


def test_precision_is_as_asked_and_else_what_the_hardware_multiplies(monkeypatch):
    for asked in ("fp32", "bf16"):
        monkeypatch.setenv("CLIPMEM_PRECISION", asked)
        assert models.precision() == asked
    monkeypatch.setenv("CLIPMEM_PRECISION", "fp16")
    with pytest.raises(ValueError, match="CLIPMEM_PRECISION: expected fp32 or bf16, got 'fp16'"):
        models.precision()
    monkeypatch.delenv("CLIPMEM_PRECISION")
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    for avx512, amx, expected in ((False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert models.precision() == expected


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_torchs_and_so_are_its_gradients(masked):
    def found(attend):
        inputs = [torch.randn(6, 2, 9, 16, generator=seeded(i)).bfloat16().requires_grad_() for i in range(3)]
        seen = torch.ones(9, 9, dtype=torch.bool).tril() if masked else None
        output = attend(*inputs, seen)
        output.float().square().sum().backward()
        return [output, *(x.grad for x in inputs)]

    for ours, torchs in zip(found(models._attend), found(F.scaled_dot_product_attention), strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, torchs, atol=0.03 * float(torchs.detach().abs().max()), rtol=0.05)


def test_an_unknown_model_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"one of gpu, laptop, paper, .*got 'laptp'\. Did you mean 'laptop'\?"):
        recipes.model_config("laptp")
    assert recipes.model_config("smoke")["embed_dim"] == 64


def test_a_crop_is_torchvisions(pictures):
    x, top, left, height, width = models.normalise(pictures), 3, 5, 24, 20
    sides = torch.tensor([[height, top], [width, left]]) / 32
    down, across = (models.resampling(share[None], start[None], 32) for share, start in sides)
    expected = resized_crop(x, top, left, height, width, [32, 32], antialias=False)
    inner = (..., slice(2, -2), slice(2, -2))  # at the rim torchvision does not see beyond the crop
    torch.testing.assert_close((down @ x @ across.mT)[inner], expected[inner], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(models.random_crops(pictures, 1.0, seeded()), x, atol=1e-4, rtol=1e-4)


def test_crops_are_drawn_for_each_picture_and_keep_the_area():
    ramp = (torch.arange(32) * 8).to(torch.uint8).expand(300, 3, 32, 32)
    across, down = (models.random_crops(x, 0.5, seeded())[:, 0] for x in (ramp, ramp.mT))
    whole = models.normalise(ramp[:1])[0, 0, 0]
    width, height = ((x.amax(dim=(1, 2)) - x.amin(dim=(1, 2))) / (whole[-1] - whole[0]) for x in (across, down))
    area = width * height
    assert 0.45 < area.min() < 0.6 and area.max() > 0.9 and len(width.unique()) > 250
    assert not torch.allclose(width, height, atol=0.1)


def test_views_are_the_same_for_every_model_and_differ_between_blocks(pictures):
    images = pictures[:1].expand(models.BLOCK + 3, -1, -1, -1).numpy()
    rows, drawn, seeds = np.arange(len(images)), [], []

    def change(x, generator):
        seeds.append(generator.initial_seed())
        drawn.append(models.light_crop(x, generator))
        return drawn[-1]

    found = [models.embed_images(built(seed), images, rows, 2, change) for seed in (0, 1)]
    assert [len(x) for x in drawn] == [models.BLOCK, models.BLOCK, 3, 3] * 2
    assert all(torch.equal(a, b) for a, b in zip(drawn[:4], drawn[4:], strict=True))
    assert len(set(seeds)) == 4, "every block has views of its own"
    assert found[0].shape == (2, len(rows), 64) and not torch.allclose(found[0], found[1])


def test_embeddings_of_rows_are_those_of_the_images_as_they_are(pictures, tokens):
    model, rows = built().eval(), np.array([4, 0, 2])
    images = models.embed_images(model, pictures.numpy(), rows)
    torch.testing.assert_close(images[0], models.encode_image(model, models.normalise(pictures[rows])).detach())
    texts = models.embed_texts(model, tokens.numpy().astype(np.int32))
    torch.testing.assert_close(texts, model.encode_text(tokens, normalize=True).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(texts[2:3], models.embed_texts(model, tokens[2:3].numpy()), atol=1e-5, rtol=1e-4)
