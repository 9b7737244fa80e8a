"""The forward pass is open_clip's, crops are torchvision's, and views depend only on the image and its position."""

import numpy as np
import pytest
import torch
from conftest import seeded
from torchvision.transforms.functional import resized_crop

from lib import model as models
from lib.recipes import model_config

PIXELS, WORDS, CONTEXT = 32, 100, 24


def built(seed=3, **more):
    return models.build(model_config("smoke"), pixels=PIXELS, vocabulary=WORDS, context=CONTEXT, seed=seed, **more)


PICTURES = torch.randint(0, 256, (7, 3, PIXELS, PIXELS), generator=seeded(1), dtype=torch.uint8)
TOKENS = torch.randint(1, WORDS - 1, (5, CONTEXT), generator=seeded())
for row, length in enumerate((4, 9, 7, 12, 5)):  # of a caption, whose last token is the end token; then padding
    TOKENS[row, length - 1], TOKENS[row, length:] = WORDS - 1, 0


@pytest.mark.parametrize(("half", "off"), [(False, 1e-5), (True, 0.1)])
def test_embeddings_and_gradients_equal_open_clips(half, off):
    found = []
    for ours in (True, False):
        model, x = built(), models.normalise(PICTURES[:5])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):  # on the CPU with an attention of our own
            image = models.encode_image(model, x) if ours else model.encode_image(x, normalize=True)
            text = models.encode_text(model, TOKENS[:, :12]) if ours else model.encode_text(TOKENS, normalize=True)
        (image.float() @ text.float().T).square().mean().backward()
        found.append([image.float(), text.float(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 30
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() < off * b.norm()


def test_layers_are_the_means_of_what_open_clips_blocks_give():
    model, seen = built().eval(), []
    for block in model.visual.transformer.resblocks:
        block.mlp.gelu.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        ours = list(models.image_layers(model, models.normalise(PICTURES)))
        seen.clear()  # of our own pass
        model.encode_image(models.normalise(PICTURES))
    for hidden, after_gelu in zip(ours, seen, strict=True):
        torch.testing.assert_close(hidden, after_gelu.clamp(min=0).mean(dim=1), atol=1e-5, rtol=1e-4)


def test_equal_arguments_give_equal_weights_and_leave_the_global_generator_alone():
    before, weights = torch.random.get_rng_state(), built().state_dict()
    assert all(torch.equal(weights[name], t) for name, t in built().state_dict().items())
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(weights["visual.proj"], built(seed=4).visual.proj)
    assert built(classes=7).classes.shape == (7, 64) and not hasattr(built(), "classes")


def test_precision_is_as_asked_and_else_what_the_hardware_multiplies(monkeypatch):
    monkeypatch.setenv("CLIPMEM_PRECISION", "fp16")
    with pytest.raises(ValueError, match="expected fp32 or bf16, got 'fp16'"):
        models.precision()
    monkeypatch.delenv("CLIPMEM_PRECISION")
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    for supported, expected in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda supported=supported: supported)
        assert models.precision() == expected


def test_a_crop_is_torchvisions():
    x, top, left, height, width = models.normalise(PICTURES), 3, 5, 24, 20
    sides = torch.tensor([[height, top], [width, left]]) / 32
    down, across = (models.resampling(share[None], start[None], 32) for share, start in sides)
    expected = resized_crop(x, top, left, height, width, [32, 32], antialias=False)
    inner = (..., slice(2, -2), slice(2, -2))  # at the rim torchvision does not see beyond the crop
    torch.testing.assert_close((down @ x @ across.mT)[inner], expected[inner], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(models.random_crops(PICTURES, 1.0, seeded()), x, atol=1e-4, rtol=1e-4)


def test_crops_are_drawn_for_each_picture_and_keep_the_area():
    ramp = (torch.arange(32) * 8).to(torch.uint8).expand(300, 3, 32, 32)
    across, down = (models.random_crops(x, 0.5, seeded())[:, 0] for x in (ramp, ramp.mT))
    whole = models.normalise(ramp[:1])[0, 0, 0]
    width, height = ((x.amax(dim=(1, 2)) - x.amin(dim=(1, 2))) / (whole[-1] - whole[0]) for x in (across, down))
    area = width * height
    assert 0.45 < area.min() < 0.6 and area.max() > 0.9 and len(width.unique()) > 250
    assert not torch.allclose(width, height, atol=0.1)


def test_the_other_view_is_mirrored_and_grey_at_its_share_and_jitter_is_as_strong_as_asked():
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(800, 3, 32, 32)
    view, plain = models.other_view(ramp, seeded()), models.augment(ramp, 0.7, 0.0, seeded(1))
    grey, ends = (view[:, 0] == view[:, 1]).flatten(1).all(dim=1), view.mean(dim=(1, 2))
    assert float(grey.double().mean()) == pytest.approx(models.VIEW_GREY, abs=0.05)
    assert float((ends[:, 0] > ends[:, -1]).double().mean()) == pytest.approx(0.5, abs=0.06)
    jittered = models.augment(ramp, 0.7, 0.3, seeded(1))
    factors = jittered.std(dim=(2, 3)) / plain.std(dim=(2, 3))  # each picture and channel has its own
    added = jittered.mean(dim=(2, 3)) - factors * plain.mean(dim=(2, 3))  # to all channels the same
    assert 0.7 < factors.min() < 0.71 and 1.29 < factors.max() < 1.3 and len(factors.unique()) > 2000
    assert 0.29 < added.abs().max() < 0.3001 and torch.allclose(added[:, :1], added, atol=1e-3)


def test_views_are_the_same_for_every_model_and_differ_between_blocks():
    images, drawn = PICTURES[:1].expand(models.BLOCK + 3, -1, -1, -1).numpy(), []

    def augment(x, generator):
        drawn.append((len(x), generator.initial_seed(), models.light_crop(x, generator)))
        return drawn[-1][-1]

    found = [models.embed_images(built(seed), images, np.arange(len(images)), 2, augment) for seed in (0, 1)]
    sizes, seeds, views = zip(*drawn, strict=True)
    assert sizes == (models.BLOCK, models.BLOCK, 3, 3) * 2 and len(set(seeds)) == 4
    assert all(torch.equal(a, b) for a, b in zip(views[:4], views[4:], strict=True))
    assert found[0].shape == (2, len(images), 64) and not torch.allclose(found[0], found[1])


def test_embeddings_of_rows_are_those_of_the_images_as_they_are():
    model, rows = built().eval(), np.array([4, 0, 2])
    images = models.embed_images(model, PICTURES.numpy(), rows)
    torch.testing.assert_close(images[0], models.encode_image(model, models.normalise(PICTURES[rows])).detach())
    texts = models.embed_texts(model, TOKENS.numpy().astype(np.int32))
    torch.testing.assert_close(texts, model.encode_text(TOKENS, normalize=True).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(texts[2:3], models.embed_texts(model, TOKENS[2:3].numpy()), atol=1e-5, rtol=1e-4)
