"""The forward pass is open_clip's; crops are torchvision's resized crops."""

import pytest
import torch
from torchvision.transforms.functional import resized_crop

from lib import models


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, 98, (5, 24), generator=generator)
    for row, length in enumerate((4, 9, 7, 12, 5)):
        tokens[row, length - 1], tokens[row, length:] = 99, 0
    return images, tokens


@pytest.mark.parametrize("trimmed", [24, 12])
def test_forward_and_gradient_equal_open_clips_trimmed_or_not(batch, trimmed):
    images, tokens = batch
    gradients = []
    for ours in (True, False):
        model = models.build("smoke", 32, 100, 24, seed=3)
        image = models.encode_image(model, images) if ours else model.encode_image(images, normalize=True)
        text = models.encode_text(model, tokens[:, :trimmed]) if ours else model.encode_text(tokens, normalize=True)
        (image @ text.T).square().sum().backward()
        gradients.append((image, text, [p.grad for p in model.parameters() if p.grad is not None]))
    (image_a, text_a, grad_a), (image_b, text_b, grad_b) = gradients
    torch.testing.assert_close(image_a, image_b, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text_a, text_b, atol=1e-5, rtol=1e-4)
    assert len(grad_a) == len(grad_b)
    for a, b in zip(grad_a, grad_b, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_build_depends_on_the_seed_only_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    weights = [models.build("smoke", 32, 50, 24, seed).visual.proj for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match=r"got 'laptp'.*Did you mean 'laptop'"):
        models.config("laptp")


def test_whole_picture_crop_is_the_picture():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    same = models.random_crops(images, 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(same, models.normalise(images), atol=1e-4, rtol=1e-4)


def test_resampling_equals_torchvision_on_a_whole_pixel_crop():
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    top, left, height, width = 3, 5, 24, 20
    down = models.resampling(torch.tensor([height / 32]), torch.tensor([top / 32]), 32)
    across = models.resampling(torch.tensor([width / 32]), torch.tensor([left / 32]), 32)
    ours = (down[:, None] @ models.normalise(images) @ across[:, None].transpose(2, 3))[..., 2:-2, 2:-2]
    reference = resized_crop(models.normalise(images), top, left, height, width, [32, 32], antialias=False)
    torch.testing.assert_close(ours, reference[..., 2:-2, 2:-2], atol=1e-4, rtol=1e-4)


def test_crops_keep_at_least_the_stated_area():
    ramp = (torch.arange(32) * 8).to(torch.uint8).expand(200, 3, 32, 32)
    crops = models.random_crops(ramp, 0.9, torch.Generator().manual_seed(0)) - models.normalise(ramp)[:, :, :, :1]
    spans = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]) / (crops.max() - crops.min())
    assert spans.min() > 0.85 and spans.std() > 0.005
