"""`shipyard.plots`: figures, their alternative text, and errors that say what to do."""

from __future__ import annotations

import base64
import io
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from shipyard import plots


@pytest.fixture
def shell():
    """A running IPython, as in a notebook."""
    shell = InteractiveShell.instance()
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def figure():
    figure, axis = plt.subplots()
    axis.plot([1, 2, 3])
    yield figure
    plt.close(figure)


def shown(figure, alt):
    with capture_output() as captured:
        plots.show(figure, alt)
    (output,) = captured.outputs
    return output


def picture_in(tag):
    code = tag.split("base64,")[1].split('"')[0]
    return Image.open(io.BytesIO(base64.b64decode(code)))


def axes_with_titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


@pytest.mark.usefixtures("shell")
class TestShow:
    def test_the_output_is_one_tag_with_the_alternative_text_and_the_same_as_plain_text(
        self, figure
    ):
        alt = 'A line from 1 to 3, called "rising" & <steady>'
        output = shown(figure, alt)
        tag = output.data["text/html"]
        assert 'alt="A line from 1 to 3, called &quot;rising&quot; &amp; &lt;steady&gt;"' in tag
        assert tag.count("<") == 1
        assert output.data == {"text/html": tag, "text/plain": alt}
        assert output.metadata == {}

    def test_the_picture_has_two_pixels_for_each_of_the_page(self):
        figure = plt.figure(figsize=(3, 2), dpi=110, layout="none")
        figure.add_axes((0, 0, 1, 1)).set_axis_off()
        tag = shown(figure, "Nothing.").data["text/html"]
        width = int(re.search(r' width="(\d+)"', tag).group(1))
        padding = 2 * plt.rcParams["savefig.pad_inches"]
        assert width == pytest.approx((3 + padding) * 110, abs=1)
        assert picture_in(tag).width == pytest.approx(2 * width, abs=1)

    def test_a_drawing_gets_a_palette_and_a_photograph_keeps_its_colours(self, figure):
        assert picture_in(shown(figure, "A rising line.").data["text/html"]).mode == "P"
        photograph = plt.figure(figsize=(2, 2), dpi=110, layout="none")
        pixels = np.random.default_rng(0).integers(0, 256, (220, 220, 3), dtype=np.uint8)
        photograph.figimage(pixels, resize=True)
        picture = picture_in(shown(photograph, "Noise of all colours.").data["text/html"])
        assert picture.mode == "RGB"

    def test_nbconvert_shows_the_picture_with_its_alternative_text_and_width(self, figure):
        output = shown(figure, "A rising line.")
        cell = new_code_cell("f()", outputs=[new_output("display_data", dict(output.data))])
        page, _ = HTMLExporter().from_notebook_node(new_notebook(cells=[cell]))
        (tag,) = re.findall(r"<img [^>]+>", page)
        attributes = set(re.findall(r'(\w+="[^"]*")', tag))
        assert attributes == set(re.findall(r'(\w+="[^"]*")', output.data["text/html"]))

    def test_a_shown_figure_is_closed(self, figure):
        shown(figure, "A rising line.")
        assert not plt.fignum_exists(figure.number)

    def test_the_same_figure_gives_the_same_bytes(self, figure):
        assert shown(figure, "A line.").data == shown(figure, "A line.").data


def test_without_a_running_ipython_the_alternative_text_is_printed(figure, capsys):
    plots.show(figure, "A rising line.")
    assert capsys.readouterr().out == "A rising line.\n"


@pytest.mark.parametrize("alt", ["", "   "])
def test_an_empty_alternative_text_is_refused(figure, alt):
    with pytest.raises(ValueError, match="write one sentence"):
        plots.show(figure, alt)


def test_the_style_is_global_only_when_asked_for():
    with plt.rc_context():
        plt.rcdefaults()
        with plots.style():
            assert plt.rcParams["axes.grid"]
        assert not plt.rcParams["axes.grid"]
        plots.use_style()
        assert plt.rcParams["axes.grid"]
        assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0] == plots.BLUE


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2"), (-1.5, "−1.5"), (0.126, "0.13"), (-0.001, "0"), (10, "10"),
     (float("-inf"), "−∞"), (torch.tensor(0.5), "0.5")],
)  # fmt: skip
def test_number_is_short_and_has_a_real_minus_sign(value, text):
    assert plots.number(value) == text


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((3, 8, 8)),
        np.zeros((3, 8, 8, 3)),
        torch.zeros(3, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 1, 8, 8, requires_grad=True),
    ],
    ids=["grey", "channels last", "uint8 channels first", "one channel with gradient"],
)
def test_image_grid_takes_every_usual_form_of_a_picture(images):
    figure = plots.image_grid(images, ["a", "b", "c"], columns=2)
    assert axes_with_titles(figure) == ["a", "b", "c"]
    assert sum(len(axis.images) for axis in figure.axes) == 3


def test_image_grid_shows_whole_numbers_as_parts_of_255():
    figure = plots.image_grid(np.full((1, 4, 4, 3), 255, dtype=np.uint8))
    assert figure.axes[0].images[0].get_array().max() == 1


@pytest.mark.parametrize(
    ("images", "titles", "message"),
    [
        ([], None, "at least one"),
        (np.zeros((2, 4, 4)), ["one"], "1 titles for 2 images"),
        (np.full((1, 4, 4), -2.0), None, "data.denormalize"),
        (np.zeros((1, 5, 4, 4)), None, r"shape \(5, 4, 4\)"),
    ],
)
def test_image_grid_says_what_is_wrong(images, titles, message):
    with pytest.raises(ValueError, match=message):
        plots.image_grid(images, titles)


def test_number_grids_writes_each_number_sign_and_title():
    figure = plots.number_grids(
        [[[1, -2.5], [float("nan"), float("-inf")]], 3], ["left", "right"], ["→"]
    )
    assert sorted(texts(figure)) == sorted(["1", "−2.5", "−∞", "3", "left", "right", "→"])


def test_number_grids_frames_the_marked_cells():
    plain = plots.number_grids([np.eye(3)])
    marked = plots.number_grids([np.eye(3)], marks={0: [(1, 0, 2, 2, plots.VERMILION)]})
    assert len(marked.axes[0].patches) == len(plain.axes[0].patches) + 1
    frame = marked.axes[0].patches[-1]
    assert (frame.get_width(), frame.get_height(), frame.get_fill()) == (2, 2, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([np.eye(2)], ["a", "b"]), "2 titles for 1 matrices"),
        (([np.eye(2)], None, ["="]), "give one fewer"),
        (([np.zeros((2, 2, 2))],), "more axes"),
    ],
)
def test_number_grids_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.number_grids(*arguments)


def test_feature_maps_puts_zero_in_the_middle_of_the_colours():
    figure = plots.feature_maps([np.array([[-4.0, 0], [1, 2]]), np.zeros((2, 2))])
    for axis in figure.axes[:2]:
        low, high = axis.images[0].get_clim()
        assert low == -high < 0


def test_feature_maps_refuses_nothing_and_a_wrong_number_of_titles():
    with pytest.raises(ValueError, match="at least one"):
        plots.feature_maps([])
    with pytest.raises(ValueError, match="give one for each"):
        plots.feature_maps([np.eye(2)], ["a", "b"])


def test_training_curves_draws_losses_over_steps_and_accuracies_over_epochs():
    rows = [
        {"epoch": n, "step": 5 * n, "train_loss": 2 / n, "learning_rate": 0.1, "accuracy": n / 4}
        for n in (1, 2)
    ]
    history = SimpleNamespace(losses=list(np.linspace(2, 1, 10)), rows=rows)
    left, right = plots.training_curves(history).axes
    measured = {line.get_label(): line for line in left.lines}["train loss"]
    assert list(measured.get_xdata()) == [5, 10]
    assert list(right.lines[0].get_ydata()) == [25, 50]
    assert (left.get_xlabel(), right.get_xlabel()) == ("step", "epoch")


def test_training_curves_needs_one_panel_without_accuracies_and_refuses_no_step():
    assert len(plots.training_curves(SimpleNamespace(losses=[1.0], rows=[])).axes) == 1
    with pytest.raises(ValueError, match="at least one step"):
        plots.training_curves(SimpleNamespace(losses=[], rows=[]))


def test_confusion_matrix_colours_by_the_share_of_each_row():
    figure = plots.confusion_matrix(torch.tensor([[90, 10], [1, 1]]), ["cat", "dog"])
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[0.9, 0.1], [0.5, 0.5]])
    assert texts(figure)[:4] == ["90", "10", "1", "1"]


def test_confusion_matrix_must_fit_the_classes():
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        plots.confusion_matrix(np.zeros((2, 3)), ["a", "b"])
