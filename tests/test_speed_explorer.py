"""The roofline explorer counts as torch counts, and shows the bound for every control."""

import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from shipyard import plots
from shipyard.explorers import speed as explorers

MACHINE = explorers.Machine({"float32": 100e9, "bfloat16": 400e9}, 20e9)
SIZES = {"batch": 2, "side": 5, "channels": 3, "filters": 4, "kernel": 3}


def is_drawn(figure) -> bool:
    """Whether the picture holds more than one colour."""
    picture = Image.open(io.BytesIO(plots.png_bytes(figure)))
    return len(picture.convert("RGB").getcolors(1 << 24)) > 10


@settings(deadline=None)  # the first call imports the counter
@given(*[st.integers(1, 5)] * 4, st.sampled_from([1, 3, 5]))
def test_the_flop_are_those_that_torch_counts(batch, side, channels, filters, kernel):
    x, w = torch.zeros(batch, channels, side, side), torch.zeros(filters, channels, kernel, kernel)
    with FlopCounterMode(display=False) as counter:
        y = F.conv2d(x, w, padding=kernel // 2)
    flop, moved = explorers.conv_cost(batch, side, channels, filters, kernel)
    assert flop == counter.get_total_flops()
    assert moved == x.nbytes + w.nbytes + y.nbytes


def test_bfloat16_moves_half_the_bytes_for_the_same_flop():
    flop, moved = explorers.conv_cost(**SIZES)
    assert explorers.conv_cost(**SIZES, dtype="bfloat16") == (flop, moved / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch": 0}, "at least 1"), ({"kernel": -1}, "at least 1"), ({"dtype": "int8"}, "choose")],
)
def test_a_layer_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        explorers.conv_cost(**{**SIZES, **change})


@pytest.mark.parametrize(
    ("peaks", "bandwidth", "message"),
    [({"float32": 1.0}, 1.0, "expected"), ({"float32": 1.0, "bfloat16": 0.0}, 1.0, "above 0"),
     ({"float32": 1.0, "bfloat16": 1.0}, 0.0, "above 0")],
)  # fmt: skip
def test_a_machine_that_was_not_measured_is_refused(peaks, bandwidth, message):
    with pytest.raises(ValueError, match=message):
        explorers.Machine(peaks, bandwidth)


@pytest.mark.parametrize(
    ("intensity", "dtype", "expected"),
    [(1, "float32", 20e9), (5, "float32", 100e9), (9, "float32", 100e9), (9, "bfloat16", 180e9),
     (50, "bfloat16", 400e9)],
)  # fmt: skip
def test_the_roof_is_the_lower_of_the_two(intensity, dtype, expected):
    assert explorers.attainable(MACHINE, intensity, dtype) == expected


def test_the_words_name_the_bound():
    one = {"batch": 1, "side": 8, "channels": 1, "filters": 1, "kernel": 1}
    # 128 FLOP, 4 · (64 · 2 + 1) = 516 bytes
    assert "bound by memory" in explorers.conv_text(MACHINE, **one)
    many = {"batch": 64, "side": 16, "channels": 64, "filters": 64, "kernel": 3}
    assert "bound by arithmetic: at most 100.0 GFLOP/s" in explorers.conv_text(MACHINE, **many)
    # 2 · 64 · 16² · 64 · 64 · 9 FLOP at 100 GFLOP/s
    assert "at least 12.080 ms" in explorers.conv_text(MACHINE, **many)


def test_the_figure_is_drawn_with_many_points_and_with_none():
    points = [explorers.Point(f"layer {n}", n, 1e9 * n, "bfloat16") for n in range(1, 13)]
    assert is_drawn(explorers.roofline_figure(MACHINE))
    figure = explorers.roofline_figure(MACHINE, points)
    assert is_drawn(figure)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert sum(label.startswith("layer") for label in labels) == len(points)


def test_the_explorer_follows_every_control():
    explorer = explorers.roofline_explorer(MACHINE)
    changes = {"batch": 1, "side": 64, "channels": 1, "filters": 1, "kernel": 1,
               "dtype": "bfloat16"}  # fmt: skip
    assert set(explorer.controls) == set(changes)
    for name, value in changes.items():
        before, picture = explorer.readout.value, explorer.picture.value
        explorer.controls[name].value = value
        assert explorer.readout.value != before, name
        assert explorer.picture.value != picture, name
    assert explorer.error.value == ""
