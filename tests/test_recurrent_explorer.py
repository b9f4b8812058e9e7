"""The LSTM explorers compute what the cell computes, and show it for every control."""

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shipyard import plots, recurrent
from shipyard.explorers import recurrent as explorers

near = st.floats(-8, 8)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def layer(inputs=3, hidden=5, bias=True):
    module = torch.nn.LSTM(inputs, hidden, batch_first=True, bias=bias).double()
    return module, recurrent.layer_weights(module)[0]


def is_drawn(figure) -> bool:
    """Whether the picture holds more than one colour."""
    picture = Image.open(io.BytesIO(plots.png_bytes(figure)))
    return len(picture.convert("RGB").getcolors(1 << 24)) > 10


@given(near, near, near, near, near)
def test_one_step_follows_the_formulas(i, f, g, o, c):
    step = explorers.lstm_step(i, f, g, o, c)
    new = sigmoid(f) * c + sigmoid(i) * math.tanh(g)
    expected = {
        "i": sigmoid(i),
        "f": sigmoid(f),
        "g": math.tanh(g),
        "o": sigmoid(o),
        "kept": sigmoid(f) * c,
        "written": sigmoid(i) * math.tanh(g),
        "c": new,
        "h": sigmoid(o) * math.tanh(new),
    }
    assert step == pytest.approx(expected)


def test_the_words_put_the_numbers_into_both_formulas():
    assert explorers.lstm_step_text(-6, 6, 1, 0, 2) == (
        "c = f · c + i · g = 1 · 2 + 0 · 0.76 = 2\nh = o · tanh(c) = 0.5 · 0.96 = 0.48"
    )


@pytest.mark.parametrize("values", [(0, 0, 0, 0, 0), (6, 6, 6, 6, 3), (-6, -6, -6, -6, -3)])
def test_the_step_figure_is_drawn_at_the_ends_of_its_sliders(values):
    assert is_drawn(explorers.lstm_step_figure(*values))


def test_the_step_explorer_follows_its_sliders():
    explorer = explorers.lstm_step_explorer()
    before, picture = explorer.readout.value, explorer.picture.value
    explorer.controls["f"].value = -6.0
    assert "0 · 2" in explorer.readout.value
    assert explorer.readout.value != before
    assert explorer.picture.value != picture
    assert set(explorer.controls) == {"i", "f", "g", "o", "c"}


@pytest.mark.parametrize("bias", [True, False])
def test_gate_activity_has_the_hidden_states_of_torchs_layer(bias):
    module, weights = layer(bias=bias)
    x = torch.randn(1, 7, 3, dtype=torch.float64)
    activity = explorers.gate_activity(x, weights)
    expected, (_, c) = module(x)
    torch.testing.assert_close(activity["h"], expected[0].detach())
    torch.testing.assert_close(activity["c"][-1:], c[0].detach())
    torch.testing.assert_close(activity["h"], activity["o"] * activity["c"].tanh())
    assert not any(values.requires_grad for values in activity.values())
    new = activity["f"][1:] * activity["c"][:-1] + activity["i"][1:] * activity["g"][1:]
    torch.testing.assert_close(activity["c"][1:], new)


def test_the_liveliest_units_come_first():
    h = torch.tensor([[0.0, 0.9, 0.1], [0.1, 0.9, -0.9]])
    assert explorers.liveliest_units({"h": h}, 2) == [2, 0]


def reader(hidden=6):
    _, weights = layer(inputs=128, hidden=hidden)

    def read(sentence):
        codes = torch.tensor([ord(letter) for letter in sentence])
        if (codes > 127).any():
            raise ValueError("Only ASCII can be read here.")
        return explorers.gate_activity(
            torch.nn.functional.one_hot(codes, 128).double()[None], weights
        )

    return read


@settings(max_examples=6, deadline=None)
@given(
    st.text(alphabet="ab c\n.$\\_{}^", min_size=1, max_size=80),
    st.sampled_from(list(explorers.QUANTITIES)),
    st.integers(1, 12),
)
def test_a_sentence_is_drawn_for_every_quantity(sentence, quantity, units):
    activity = reader()(sentence)
    assert is_drawn(explorers.sentence_figure(sentence, activity, quantity, units))
    assert f"of {len(sentence)}" in explorers.sentence_text(sentence, activity)


@pytest.mark.parametrize("sentence", ["", "x" * 81])
def test_a_sentence_that_does_not_fit_is_refused(sentence):
    with pytest.raises(ValueError, match="write 1 to 80"):
        explorers.sentence_figure(sentence, reader()("x"))


def test_an_unknown_quantity_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'gate'.*forget gate f"):
        explorers.sentence_figure("x", reader()("x"), "gate")


def test_the_sentence_explorer_follows_every_control():
    explorer = explorers.sentence_explorer(reader(), "a first text")
    for name, value in {"sentence": "another", "quantity": "cell state c", "units": 4}.items():
        picture = explorer.picture.value
        explorer.controls[name].value = value
        assert explorer.picture.value != picture, name
    assert "of 7" in explorer.readout.value


@pytest.mark.parametrize(("sentence", "words"), [("", "at least one"), ("naïve", "Only ASCII")])
def test_a_sentence_that_cannot_be_read_is_explained_in_the_explorer(sentence, words):
    explorer = explorers.sentence_explorer(reader(), "fine")
    explorer.controls["sentence"].value = sentence
    assert words in explorer.error.value
    assert explorer.readout.value == ""
    explorer.controls["sentence"].value = "fine again"
    assert explorer.error.value == ""
