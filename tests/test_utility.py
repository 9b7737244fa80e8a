"""Retrieval against a naive ranking, and at chance where it should be."""

import torch
import torch.nn.functional as F

from lib.utility import retrieval


def test_retrieval_equals_sorting():
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(40, 6, generator=generator), dim=1)
    text = F.normalize(image + 0.5 * torch.randn(40, 6, generator=generator), dim=1)
    ours = retrieval(image, text)
    for way, a, b in (("image_to_text", image, text), ("text_to_image", text, image)):
        for k in (1, 10):
            hits = [i in (b @ a[i]).argsort(descending=True)[:k].tolist() for i in range(40)]
            assert ours[f"{way}_r{k}"] == sum(hits) / 40


def test_a_model_that_embeds_everything_alike_finds_nothing():
    same = torch.ones(50, 4) / 2
    assert retrieval(same, same)["image_to_text_r10"] == 0
