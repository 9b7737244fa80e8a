"""What a machine without a GPU can say of the code's path on one: devices that mix, waits inside a step, compiling.

Tensors without content stand for those of the accelerator: reading a value of one, as `float` would by waiting for the
device, raises an error, and so does an operation on one of them and one of the CPU.
"""

import pytest
import torch
from open_clip.loss import ClipLoss
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lib import models, objectives, train
from lib.recipes import Recipe

N, PIXELS, WORDS, CONTEXT = 60, 32, 100, 24


def everything(tiny, where):
    """A model, its optimiser and resident pairs on a device."""
    with torch.device(where):
        model = models.build("smoke", PIXELS, WORDS, CONTEXT, 0)
    images = torch.zeros(N, 3, PIXELS, PIXELS, dtype=torch.uint8, device=where)
    tokens = torch.ones(N, 1, CONTEXT, dtype=torch.long, device=where)
    every = torch.arange(N, device=where)
    pairs = objectives.Resident(images, every, tokens, torch.zeros(N, 0, device=where), every < 0)
    return model, train.make_optimiser(model, tiny, where), pairs


def step(tiny, model, optimiser, pairs, rows=25):
    made = objectives.batch(pairs, torch.randperm(N)[:rows], tiny, torch.Generator())
    return train.step(model, optimiser, objectives.loss(model, tiny, *made))


@pytest.fixture
def whole_captions(monkeypatch):
    """As on CUDA: captions are not grouped by their lengths, which would wait for the device."""
    monkeypatch.setattr(models, "encode_text", models._encode_text)


def test_a_whole_step_mixes_no_devices_and_waits_for_none(tiny, whole_captions):
    model, optimiser, pairs = everything(tiny, torch.device("meta"))
    for _ in range(2):  # the second finds the optimiser's state
        loss = step(tiny, model, optimiser, pairs)
    assert loss.device.type == "meta" and not loss.requires_grad
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called"):
        float(loss)
    with pytest.raises(RuntimeError, match="not on the expected device"):
        loss + torch.ones(3)


def test_a_step_on_cuda_is_mixed_precision_and_leaves_parameters_alone(tiny, monkeypatch):
    """On fake CUDA tensors; only the backward pass needs a real device, and is left out."""
    kinds = []
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    with FakeTensorMode():
        model, optimiser, pairs = everything(tiny, torch.device("cuda"))
        model.visual.transformer.resblocks[0].mlp.register_forward_hook(lambda *a: kinds.append(a[-1].dtype))

        def backward(loss):
            assert loss.dtype == torch.float32 and loss.device.type == "cuda"
            for p in model.parameters():
                p.grad = torch.zeros_like(p)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        for _ in range(2):
            loss = step(tiny, model, optimiser, pairs)
        assert loss.device.type == "cuda"
        assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cuda")}
        with pytest.raises(DataDependentOutputException):
            float(loss)
    assert kinds == [torch.bfloat16] * 2


def loss_of(model, recipe, images, tokens):
    image, text = models.encode_image(model, images), models.encode_text(model, tokens)
    return ClipLoss()(image.float(), text.float(), model.logit_scale.exp())


def test_the_compiled_forward_is_one_graph_with_the_same_loss_and_gradients(whole_captions):
    torch.compiler.reset()
    compiled = torch.compile(objectives.loss, backend="aot_eager", dynamic=False, fullgraph=True)
    images = torch.randn(6, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[5] * n + [WORDS - 1] + [0] * (CONTEXT - n - 1) for n in range(2, 8)])
    for seed in (0, 1):  # the second model finds what was compiled for the first
        model, found = models.build("smoke", PIXELS, WORDS, CONTEXT, seed), []
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            for forward in (compiled, loss_of):
                model.zero_grad(set_to_none=True)
                loss = forward(model, Recipe(), images, tokens)
                loss.backward()
                found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert len(found[0]) == len(found[1]) > 30
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(tiny, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    model, _, pairs = everything(tiny, torch.device("meta"))
    assert train.fastest_loss(tiny, model, pairs) is objectives.loss  # not on CUDA: not even tried
    with FakeTensorMode(), pytest.warns(UserWarning, match="no compiler") as told:
        model, _, pairs = everything(tiny, torch.device("cuda"))
        assert train.fastest_loss(tiny, model, pairs) is objectives.loss
    assert len(told) == 1
