"""The explorer of hidden layers fits what it says, draws it, and follows every control."""

import io

import pytest
import torch
from PIL import Image

from shipyard import networks, plots
from shipyard.explorers import networks as explorers


def is_drawn(figure) -> bool:
    picture = Image.open(io.BytesIO(plots.png_bytes(figure)))
    return len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_more_hidden_units_fit_the_spirals_better_and_none_is_a_guess():
    shares = [explorers.accuracy(units) for units in (0, 4, 16)]
    assert shares == sorted(shares)
    assert shares[0] < 0.65
    assert shares[2] > 0.95


def test_without_an_activation_hidden_units_buy_nothing():
    assert explorers.accuracy(16, "none") == pytest.approx(explorers.accuracy(0), abs=0.02)


def test_the_accuracy_is_that_of_the_fitted_network():
    x, labels = explorers.points()
    z = networks.mlp(x, explorers.fitted(4, "tanh", 1), torch.tanh)
    right = sum((value > 0) == bool(label) for value, label in zip(z[:, 0], labels, strict=True))
    assert explorers.accuracy(4, "tanh", 1) == pytest.approx(float(right) / len(labels))
    assert f"{float(right) / 200:.1%} of 200 points" in explorers.border_text(4, "tanh", 1)
    assert explorers.border_text(4, "tanh", 1).startswith("17 numbers")


@pytest.mark.parametrize("values", [(0, "ReLU", 0), (3, "tanh", 2), (5, "none", 9)])
def test_the_border_is_drawn(values):
    figure = explorers.border_figure(*values)
    assert is_drawn(figure)
    assert len(figure.axes[1].lines) == values[0], "one line for each unit"


def test_borders_stand_side_by_side_with_their_shares():
    figure = explorers.borders_figure([0, 2])
    assert is_drawn(figure)
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == [
        "no hidden layer",
        "2 hidden units",
    ]


def test_the_explorer_follows_every_control():
    explorer = explorers.border_explorer()
    for name, value in {"units": 2, "activation": "tanh", "seed": 1}.items():
        picture = explorer.picture.value
        explorer.controls[name].value = value
        assert explorer.picture.value != picture, name
    assert explorer.readout.value.count("<div") == 2


def test_an_unknown_activation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'step'.*ReLU, tanh, none"):
        explorers.fitted(2, "step")
