"""Explorers of convolution: figures as plain functions, and explorers that follow controls."""

from __future__ import annotations

import html
import io
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from shipyard.explorers import convolution as explorers

IMAGE = torch.rand(20, 16, generator=torch.Generator().manual_seed(0))


def words(readout):
    """The text of an HTML widget."""
    return html.unescape(re.sub(r"<[^>]*>", "\n", readout.value))


def is_png(data):
    return Image.open(io.BytesIO(data)).format == "PNG"


# --- plain functions --------------------------------------------------------------------------


@pytest.mark.parametrize("name", explorers.KERNELS)
def test_each_named_kernel_is_applied_as_torch_does(name):
    kernel = explorers.KERNELS[name]
    expected = F.conv2d(IMAGE[None, None], kernel[None, None], stride=2, padding=1, dilation=2)
    torch.testing.assert_close(explorers.apply_kernel(IMAGE, kernel, 2, 1, 2), expected[0, 0])


def test_smoothing_kernels_sum_to_one_and_edge_kernels_to_zero():
    sums = {name: round(float(kernel.sum()), 5) for name, kernel in explorers.KERNELS.items()}
    assert {name for name, total in sums.items() if total == 0} == {"edges", "Sobel x", "Sobel y"}
    assert all(total in (0, 1) for total in sums.values())


@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("name", ["blur", "edges"])
def test_kernel_figure_shows_picture_kernel_and_result_with_its_size(name, stride):
    kernel = explorers.KERNELS[name]
    figure = explorers.kernel_figure(IMAGE, kernel, stride, 0, 1)
    before, middle, after = figure.axes
    size = explorers.apply_kernel(IMAGE, kernel, stride, 0, 1).shape
    assert f"{size[0]} × {size[1]}" in after.get_title()
    assert before.images[0].get_array().shape == IMAGE.shape
    assert len(middle.texts) == 9


@pytest.mark.parametrize(
    ("image", "kernel"),
    [(torch.zeros(3, 8, 8), torch.zeros(3, 3)), (torch.zeros(8, 8), torch.zeros(1, 3, 3))],
)
def test_a_picture_or_kernel_with_a_wrong_shape_is_named(image, kernel):
    with pytest.raises(ValueError, match=r"expected \(height, width\)"):
        explorers.apply_kernel(image, kernel)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 16), st.integers(1, 7), st.integers(1, 5), st.integers(0, 4), st.integers(1, 4)
)
def test_size_formula_and_unread_cells_agree_with_torch(size, kernel, stride, padding, dilation):
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    if dilation * (kernel - 1) + 1 > size + 2 * padding:
        with pytest.raises(ValueError, match="does not fit"):
            explorers.size_formula(size, kernel, **options)
        return
    x = torch.ones(1, 1, size, requires_grad=True)
    y = F.conv1d(x, torch.ones(1, 1, kernel), **options)
    y.sum().backward()
    assert explorers.size_formula(size, kernel, **options).endswith(f"= {y.shape[-1]}")
    never_read = (x.grad[0, 0] == 0).nonzero().flatten().tolist()
    assert explorers.unread_cells(size, kernel, **options) == never_read


@pytest.mark.parametrize("options", [(7, 3), (8, 3, 3), (7, 3, 1, 1), (9, 3, 2, 1, 3), (1, 1)])
def test_output_size_figure_draws_one_line_for_each_output(options):
    figure = explorers.output_size_figure(*options)
    labels = [text.get_text() for text in figure.axes[0].texts]
    steps = int(explorers.size_formula(*options).split()[-1])
    assert [label for label in labels if label.startswith("y(")] == [
        f"y({step})" for step in range(steps)
    ]


def test_output_size_text_says_which_cells_are_left_over():
    text = explorers.output_size_text(8, 3, stride=3)
    assert "drops a remainder" in text
    assert "no window reads: 6, 7" in text
    assert "Every input cell is read" in explorers.output_size_text(9, 3, stride=3)


@pytest.mark.parametrize("mode", explorers.POOLING)
@pytest.mark.parametrize("position", [0, 3, 8])
def test_pooling_text_names_the_window_that_torch_pools(mode, position):
    grid = explorers.small_grid(IMAGE)
    function = F.max_pool2d if mode == "max" else F.avg_pool2d
    expected = function(grid[None], 3, 3, 1)[0].flatten()[position].item()
    text = explorers.pooling_text(grid, mode, 3, 3, 1, position)
    assert text.startswith(f"position {position} (of 0 to 8): {mode} of (")
    assert float(text.split("\n")[0].split("= ")[1].replace("−", "-")) == pytest.approx(
        expected, abs=0.005
    )


def test_padding_counts_as_minus_infinity_for_max_and_as_zero_for_average():
    grid = explorers.small_grid(IMAGE)
    assert "−∞" in explorers.pooling_text(grid, "max", 3, 3, 1, 0)
    assert "(0, 0, 0, 0" in explorers.pooling_text(grid, "average", 3, 3, 1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "median"}, "choose one of: max, average"),
        ({"position": 16}, "there are 16 windows"),
        ({"kernel_size": 9}, "does not fit"),
        ({"kernel_size": 2, "padding": 2}, "half"),
    ],
)
def test_pooling_figure_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        explorers.pooling_figure(torch.zeros(8, 8), **options)


def test_small_grid_runs_from_0_to_9_even_for_an_evenly_grey_picture():
    grid = explorers.small_grid(IMAGE)
    assert (grid.min(), grid.max(), grid.shape) == (0, 9, (8, 8))
    assert torch.isfinite(explorers.small_grid(torch.full((8, 8), 0.5))).all()


# --- explorers --------------------------------------------------------------------------------

EXPLORERS = {
    "shipyard-kernel-explorer": lambda: explorers.kernel_explorer(IMAGE),
    "shipyard-pooling-explorer": lambda: explorers.pooling_explorer(IMAGE),
    "shipyard-output-size-explorer": explorers.output_size_explorer,
}


@pytest.mark.parametrize("css_class", EXPLORERS)
def test_an_explorer_has_its_class_a_picture_and_a_read_out(css_class):
    explorer = EXPLORERS[css_class]()
    assert {css_class, "shipyard-explorer"} <= set(explorer._dom_classes)
    assert is_png(explorer.picture.value)
    assert words(explorer.readout).strip()
    assert explorer.error.value == ""


@pytest.mark.parametrize(
    ("css_class", "control", "value"),
    [
        ("shipyard-kernel-explorer", "stride", 3),
        ("shipyard-kernel-explorer", "padding", 0),
        ("shipyard-kernel-explorer", "dilation", 2),
        ("shipyard-kernel-explorer", "kernel", "blur"),
        ("shipyard-kernel-explorer", "weight 4", 7.5),
        ("shipyard-pooling-explorer", "mode", "average"),
        ("shipyard-pooling-explorer", "kernel_size", 4),
        ("shipyard-pooling-explorer", "stride", 1),
        ("shipyard-pooling-explorer", "padding", 1),
        ("shipyard-pooling-explorer", "position", 5),
        ("shipyard-output-size-explorer", "size", 10),
        ("shipyard-output-size-explorer", "kernel_size", 2),
        ("shipyard-output-size-explorer", "stride", 3),
        ("shipyard-output-size-explorer", "padding", 3),
        ("shipyard-output-size-explorer", "dilation", 2),
    ],
)
def test_each_control_changes_the_picture_and_the_read_out(css_class, control, value):
    explorer = EXPLORERS[css_class]()
    picture, text = explorer.picture.value, explorer.readout.value
    explorer.controls[control].value = value
    assert explorer.error.value == ""
    assert explorer.picture.value != picture
    assert explorer.readout.value != text


def test_every_control_has_a_description_or_a_tooltip():
    for make in EXPLORERS.values():
        for control in make().controls.values():
            assert control.description or control.tooltip


@pytest.mark.parametrize("name", explorers.KERNELS)
def test_choosing_a_kernel_fills_in_its_numbers_and_keeps_its_name(name):
    explorer = explorers.kernel_explorer(IMAGE)
    explorer.controls["kernel"].value = name
    controls = explorer.controls
    weights = torch.tensor([controls[f"weight {i}"].value for i in range(9)])
    torch.testing.assert_close(
        weights.reshape(3, 3) / controls["divisor"].value, explorers.KERNELS[name]
    )
    assert controls["kernel"].value == name
    total = round(float(explorers.KERNELS[name].sum()), 5)
    assert f"weights sum to {total:g}" in words(explorer.readout)


def test_an_edited_kernel_is_called_your_own_until_it_is_a_known_one_again():
    explorer = explorers.kernel_explorer(IMAGE)
    explorer.controls["weight 0"].value = 5
    assert explorer.controls["kernel"].value == "your own"
    explorer.controls["weight 0"].value = -1
    assert explorer.controls["kernel"].value == "Sobel x"


def test_an_impossible_choice_is_said_in_red_and_taken_back_by_a_possible_one():
    explorer = explorers.output_size_explorer()
    explorer.controls["kernel_size"].value = 7
    explorer.controls["dilation"].value = 4
    assert "The window does not fit" in words(explorer.error)
    assert "color: #B3261E" in explorer.error.value
    assert explorer.readout.value == ""
    assert explorer.picture.layout.display == "none"
    explorer.controls["dilation"].value = 1
    assert explorer.error.value == ""
    assert explorer.picture.layout.display == ""


def test_dividing_a_kernel_by_zero_is_explained():
    explorer = explorers.kernel_explorer(IMAGE)
    explorer.controls["divisor"].value = 0
    assert "cannot be divided by 0" in words(explorer.error)


def test_the_position_slider_ends_at_the_last_window():
    explorer = explorers.pooling_explorer(IMAGE)
    explorer.controls["position"].value = 15
    explorer.controls["stride"].value = 4
    assert explorer.controls["position"].max == explorer.controls["position"].value == 3
    assert words(explorer.readout).strip().startswith("position 3 (of 0 to 3)")


def test_an_error_in_the_code_is_shown_and_raised():
    slider = explorers.ipywidgets.IntSlider(description="n")

    def redraw():
        return Figure(), f"{1 / (slider.value - 2)}"

    explorer = explorers.Explorer("shipyard-test", {"n": slider}, redraw)
    with pytest.raises(ZeroDivisionError):
        slider.value = 2
    assert "division by zero" in words(explorer.error)
    slider.value = 3
    assert explorer.error.value == ""


def test_several_changes_inside_hold_draw_once():
    calls = []
    sliders = {name: explorers.ipywidgets.IntSlider(description=name) for name in "ab"}

    def redraw():
        calls.append(1)
        return Figure(), "text"

    explorer = explorers.Explorer("shipyard-test", sliders, redraw)
    with explorer.hold():
        sliders["a"].value = sliders["b"].value = 4
    assert len(calls) == 2  # at the start, and after the block


def test_text_from_an_error_is_no_markup():
    def redraw():
        raise ValueError("<b>bold</b>")

    explorer = explorers.Explorer("shipyard-test", {}, redraw)
    assert "&lt;b&gt;" in explorer.error.value


def test_a_read_out_holds_numbers_that_the_picture_shows():
    explorer = explorers.output_size_explorer()
    rows = np.asarray(Image.open(io.BytesIO(explorer.picture.value))).shape[0]
    explorer.controls["stride"].value = 1
    more_rows = np.asarray(Image.open(io.BytesIO(explorer.picture.value))).shape[0]
    assert "= 9" in words(explorer.readout)
    assert more_rows > rows
