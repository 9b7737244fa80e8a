"""What a reader plays with: two models that answer typed captions, and guesses that are remembered."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lib.companion import findings, guesses, live

plt.switch_backend("Agg")


def test_f_knows_the_wrong_caption_that_it_saw_and_g_the_true_one():
    playing = live.Live(pair_id=1641)
    assert playing.trained != playing.true
    f, g = playing.align(playing.trained).values()
    pairs = findings.read_table(findings.reference_folder("scenes", "laptop"), "02_wrong_captions")
    (one,) = pairs.query("pair_id == 1641 and seed == 0").itertuples()
    assert one.member == 1 and f - g == pytest.approx(one.clipmem, abs=0.15), "of the image as it is, not of crops"
    assert playing.align(playing.true)["g"] > g + 0.5
    assert playing.unseen("a zebra on grass") == ["zebra"]
    assert playing.align("a zebra on grass") == playing.align("a on grass")
    figure = playing.draw(["a red star", playing.true])
    widths = [bar.get_width() for bar in figure.axes[1].patches]
    assert widths == pytest.approx([playing.align(c)[m] for m in "fg" for c in ("a red star", playing.true)])
    assert np.isfinite(widths).all()


@pytest.mark.parametrize("asked", [True, False])
def test_a_guess_is_remembered_until_its_answer_and_is_plain_text_where_nobody_can_click(asked, monkeypatch):
    told = list[str]()
    monkeypatch.setattr(guesses, "interactive", lambda: asked)
    monkeypatch.setattr(guesses, "display", lambda *what: told.extend(str(getattr(x, "data", x)) for x in what))
    one = guesses.Guesses({"How much is left?": ["all", "half"], "Why?": ["chance", "design"]})
    assert ("**1.** How much is left? *all · half*" in told) != asked
    one.asked[0].value = "half"
    one.answer(1, "It is 69 %.")
    one.answer(2, "By design.")
    assert told[-2:] == ["**Guess 1.** You guessed: *half*. It is 69 %.", "**Guess 2.** By design."]
