"""The path of an accelerator without one: tensors that say they are on cuda:0 are computed here on the CPU.

They refuse what CUDA refuses: a CPU tensor beside them (except a single number or an index), a generator of the CPU,
and NumPy; and float64, which MPS lacks. Below Python they are meta tensors, which autograd accepts on every machine."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import TINY
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lib import model as models
from lib import photos, runs, scores, train, utility
from lib.companion import own_models

THERE, HERE, OPS = torch.device("cuda:0"), torch.device("cpu"), torch.ops.aten
INDEXED = {OPS.index.Tensor, OPS.index_put_.default, OPS.index_put.default, OPS._index_put_impl_.default}
moved: Counter = Counter()  # copies to the device, and from it, for which the CPU waits


class Elsewhere(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl
    device, is_meta = property(lambda self: THERE), False

    @staticmethod
    def __new__(cls, inner):
        like = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **like, device="meta")
        made.inner = inner
        return made

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Pretend(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """Compute an operation here; what it returns lies there, where its inputs do or where it is told to."""
    flat, shape = tree_flatten((args, kwargs))
    there = [isinstance(x, Elsewhere) for x in flat]
    here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere)]
    asked, generator = kwargs.get("device"), kwargs.get("generator")
    to_there = any(there) if asked is None else torch.device(asked).type in ("cuda", "meta")
    if func in (OPS._to_copy.default, OPS.copy_.default):
        target, source = (args[0], args[1]) if func is OPS.copy_.default else (None, args[0])
        target = to_there if target is None else isinstance(target, Elsewhere)
        if target != isinstance(source, Elsewhere):
            moved["to" if target else "from"] += 1
    elif func is OPS._local_scalar_dense.default and any(there):
        moved["from"] += 1
    elif any(there) and any(x.ndim for x in here) and not (func in INDEXED and isinstance(args[0], Elsewhere)):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}, {[x.shape for x in here]}")
    if to_there and generator is not None:
        raise RuntimeError(f"Expected a 'cuda' device type for generator: {func}")
    plain = [x.inner if isinstance(x, Elsewhere) else x for x in flat]
    own, named = tree_unflatten([x.detach() if isinstance(x, torch.Tensor) else x for x in plain], shape)
    with torch.no_grad():
        found = func(*own, **named | ({} if asked is None else {"device": HERE}))
        if func is OPS._to_copy.default and found.data_ptr() == plain[0].data_ptr():
            found = found.clone()
    if to_there and any(x.dtype == torch.float64 for x in tree_flatten(found)[0] if isinstance(x, torch.Tensor)):
        raise TypeError(f"MPS has no float64: {func}")
    written = [i for i, x in enumerate(func._schema.arguments) if x.alias_info and x.alias_info.is_write]
    if len(func._schema.returns) == 1 and written:
        return args[written[0]]
    return tree_map(lambda x: Elsewhere(x) if to_there and isinstance(x, torch.Tensor) else x, found)


@pytest.fixture
def accelerator(monkeypatch):
    """Return a context in which `lib` finds a device elsewhere."""
    made, save, load = torch.tensor, torch.save, torch.load

    def outside(function):  # no mode lets torch make a tensor of a storage
        def call(*args, **kwargs):
            with _disable_current_modes():
                return function(*args, **kwargs)

        return call

    inner = lambda x: x.inner if isinstance(x, Elsewhere) else x  # noqa: E731

    for place, name in ((safetensors.torch, "load"), (safetensors.torch, "load_file"), (runs, "load_file")):
        monkeypatch.setattr(place, name, outside(getattr(place, name)))
    monkeypatch.setattr(torch, "save", outside(lambda state, file: save(tree_map(inner, state), file)))
    monkeypatch.setattr(torch, "load", outside(lambda file, **_: load(file, weights_only=True)))
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch, "tensor", lambda *a, device=HERE, **k: made(*a, **k).to(device))
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)

    class Context(Pretend):
        def __enter__(self):
            monkeypatch.setattr(models, "device", lambda: THERE)
            self.queue = torch.autograd.set_multithreading_enabled(False)
            self.queue.__enter__()
            return super().__enter__()

        def __exit__(self, *error):
            super().__exit__(*error)
            self.queue.__exit__(*error)
            monkeypatch.setattr(models, "device", lambda: HERE)

    return Context()


def test_what_cuda_refuses_is_refused(accelerator):
    with accelerator:
        x = torch.zeros(3, device=THERE, requires_grad=True)
        x.sum().backward()
        assert x.grad.device == THERE and x.grad.cpu().numpy().tolist() == [1, 1, 1]
        y = torch.ones(3)  # a single number, and an index, may be on the CPU
        assert float(x.detach().sum() + torch.tensor(1)) == 1 and x[torch.tensor([2])].device == THERE
        refused = {"same device": [lambda: x + y, lambda: y[x.long()], lambda: torch.stack([x, y])]}
        refused |= {"type for generator": [lambda: torch.rand(3, generator=torch.Generator(), device=THERE)]}
        refused |= {"to numpy": [lambda: x.detach().numpy()], "no float64": [lambda: x.double()]}
        for why, call in [(why, call) for why, calls in refused.items() for call in calls]:
            with pytest.raises((RuntimeError, TypeError), match=why):
                call()


ONCE = replace(TINY, epochs=1, evaluations=1)
RECIPES = {
    "noise": replace(ONCE, n_captions=3, token_dropout=0.2, text_noise=0.5, image_noise=0.5, color_jitter=0.2),
    "SigLIP": replace(ONCE, objective="SigLIP", frozen="image", width=0.5),
    "supervised": replace(ONCE, objective="supervised"),
    "self-supervised": replace(ONCE, objective="self-supervised"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_an_epoch_on_a_device_is_that_on_the_cpu_and_waits_for_it_twice(data, accelerator, recipe):
    def trained():
        model, rows = train.fresh(recipe, data).train(), data.training_rows(recipe)
        optimiser, pairs = train.make_optimiser(model, recipe), train.to_device(data, rows, models.device())
        train.run_epoch(recipe, 0, pairs, model, optimiser)  # the first one also makes constants
        moved.clear()
        row = train.run_epoch(recipe, 1, pairs, model, optimiser)
        steps = len(rows) // recipe.batch
        return dict(moved), steps, row["loss"], [weights.detach().cpu() for weights in model.parameters()]

    *_, loss, here = trained()
    with accelerator:
        counted, steps, same, there = trained()
    assert counted["from"] == 2, "for the loss and the temperature, at the end of the epoch"
    assert counted["to"] <= 8 * steps, "positions, crops, colours, captions and noise: small, and none is waited for"
    assert loss == pytest.approx(same, abs=1e-4)
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b, atol=3e-4, rtol=1e-3)


def test_a_training_on_a_device_is_evaluated_there_and_resumes(data, tmp_path, accelerator):
    recipe = replace(TINY, frozen="image", epochs=2)
    donor = train.fresh(replace(recipe, seed=9), data).state_dict()

    def trained(folder, stop=False):
        def on_epoch():
            if stop:
                raise KeyboardInterrupt

        def evaluate(model):
            return scores.measure(model, recipe, data, 0), utility.during_training(model, True, data)

        train.train(recipe, data, tmp_path / folder, evaluate, on_epoch, donor)
        return safetensors.torch.load_file(tmp_path / folder / "weights.safetensors")

    with accelerator:
        whole = trained("whole")
        with pytest.raises(KeyboardInterrupt):
            trained("again", stop=True)
        again = trained("again")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_scores_of_a_model_on_a_device_are_those_on_the_cpu(data, tmp_path, accelerator):
    rows, known = data.subsets["pool"], np.concatenate([data.subsets[name] for name in ("shared", "test")])
    pixels = [b"P6 32 32 255 " + one.tobytes() for one in data.images[:40].transpose(0, 2, 3, 1)]
    pictures = [{"image": one, "caption": f"thing {n}"} for n, one in enumerate(pixels)]
    places = [("image",)], [("caption",)]
    source = photos.Source("here", lambda _: iter([(tmp_path, pictures)]), ["image", "caption"], *places)
    read = torch.from_numpy(data.tokens[:40, 0]).long()

    def found(name):
        models_of = {(0, "CLIP"): "f", (1, "CLIP"): "g", (0, "supervised"): "label"}
        f, g, label = (train.fresh(replace(TINY, seed=s, objective=o), data).eval() for s, o in models_of)
        to_input = lambda picture: models.normalise(torch.from_numpy(photos.square(picture, 32)))  # noqa: E731
        tokenize = lambda texts: read[[int(text[6:]) for text in texts]]  # noqa: E731
        own = SimpleNamespace(logit_scale=f.logit_scale)
        own.encode_image = lambda images, normalize: models.encode_image(f, images)
        own.encode_text = lambda tokens, normalize: models.encode_text(f, tokens)
        own = own_models.Checkpoint("f", name, own, to_input, tokenize)
        pairs = own_models.Pairs(source, name, pd.DataFrame({"seen_f": [True, False] * 20}))
        return [
            scores.measure(f, TINY, data, 2),
            scores.measure(label, replace(TINY, objective="supervised"), data, 2),
            scores.measure(f, replace(TINY, objective="self-supervised"), data, 2),
            scores.unit_scores(f, data, known, 2),
            scores.single_model(f, data, rows, known, 2),
            scores.swap_parts(f, g, data, 0),
            utility.utilities(f, data, []),
            own_models.score(pairs, [own]).drop(columns=["caption", "seen_f"]),
        ]

    here = found("cpu")
    with accelerator:
        there = found("there")
    for a, b in zip(here, there, strict=True):
        if "bits" in a:  # of an untrained model, two items may be so alike that rounding decides their order
            assert (a["bits"] - b["bits"]).abs().mean() < 0.1 and (a["bits"] == b["bits"]).mean() > 0.8
        else:
            pd.testing.assert_frame_equal(a, b, check_exact=False, atol=1e-4, rtol=1e-3)


def test_the_device_is_chosen_by_name_and_an_old_card_is_named(monkeypatch):
    monkeypatch.setenv("CLIPMEM_DEVICE", "cuda")
    with pytest.raises(ValueError, match="torch can use cpu here, not 'cuda'"):
        models.device()
    for name in ("DEVICE", "PRECISION"):
        monkeypatch.delenv(f"CLIPMEM_{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P100")
    cards = ((6, 0), "cpu", 0, None), ((7, 5), "cuda", 0, "fp32"), ((9, 0), "cuda", 1, "bf16")
    for capability, name, real, precision in cards:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda own=capability: own)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, own=real: bool(own))
        models.usable.cache_clear()
        with pytest.warns(match="Tesla P100 is too old") if name == "cpu" else nullcontext():
            assert models.device().type == name
        assert precision is None or models.precision() == precision
    models.usable.cache_clear()
