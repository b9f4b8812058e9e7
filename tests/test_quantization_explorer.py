"""The quantization explorer: its numbers, its figure, and what it refuses."""

import pytest
import torch

from shipyard.compression import quantization
from shipyard.explorers import quantization as explorers


@pytest.fixture(scope="module")
def weights():
    return torch.randn(2000, generator=torch.Generator().manual_seed(0)) ** 3


@pytest.mark.parametrize(("bits", "scheme"), [(2, "symmetric"), (4, "affine"), (8, "symmetric")])
def test_the_figure_shows_every_number_that_can_be_stored(weights, bits, scheme):
    figure = explorers.quantization_figure(weights, bits, scheme, 0.5)
    left, right = figure.axes
    lowest, highest = quantization.levels(bits, scheme)
    assert len(left.lines) == highest - lowest + 1
    assert left.get_xlabel()
    assert right.get_ylabel()


def test_the_words_say_what_the_grid_does(weights):
    grid = quantization.grid_for(weights.min() / 2, weights.max() / 2, 4, "symmetric")
    said = explorers.quantization_text(weights, 4, "symmetric", 0.5, lambda *setting: 0.75)
    assert f"{quantization.sqnr(weights, grid.round(weights)):.1f} dB" in said
    assert "accuracy with all layers like this: 75.0%" in said
    assert "0.00% are clipped" in explorers.quantization_text(weights, 4, "symmetric", 1.0)


@pytest.mark.parametrize(
    ("setting", "words"),
    [((1, "affine", 1.0), "2 to 8 bits"), ((4, "even", 1.0), "'even'"),
     ((4, "affine", 0.0), "above 0"), ((4, "affine", 1.5), "at most 1")],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_words(weights, setting, words):
    with pytest.raises(ValueError, match=words):
        explorers.quantization_figure(weights, *setting)


def test_the_explorer_follows_every_control(weights):
    asked = []
    explorer = explorers.quantization_explorer(weights, lambda *s: asked.append(s) or 0.5)
    for name, value in {"bits": 2, "scheme": "affine", "share": 0.3}.items():
        picture, readout = explorer.picture.value, explorer.readout.value
        explorer.controls[name].value = value
        assert explorer.picture.value != picture, name
        assert explorer.readout.value != readout, name
    assert asked[-1] == (2, "affine", 0.3)
    assert explorer.error.value == ""
