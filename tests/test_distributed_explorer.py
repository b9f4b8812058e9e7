"""The scaling explorer computes what the cost model says, and shows it for every control."""

import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shipyard import plots
from shipyard.explorers import distributed as explorers


def ring(size, workers, alpha, beta):
    return 2 * (workers - 1) * (alpha + size / workers / beta)


CLUSTER = explorers.Cluster(
    parameters=25e6, bytes_each=4.0, compute=0.2, latency=2e-5, bandwidth=1e10
)


def is_drawn(figure) -> bool:
    """Whether the picture holds more than one colour."""
    picture = Image.open(io.BytesIO(plots.png_bytes(figure)))
    return len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_speedups_follow_the_formulas():
    found = explorers.speedups(CLUSTER, ring, [1, 4])
    T = 2 * 3 * (2e-5 + 1e8 / 4 / 1e10)  # seconds: α and β in six messages of a quarter
    assert found["strong"] == pytest.approx([1, 0.2 / (0.05 + T)])
    assert found["weak"] == pytest.approx([1, 4 * 0.2 / (0.2 + T)])


def test_a_network_that_costs_nothing_scales_ideally():
    found = explorers.speedups(CLUSTER, lambda *_: 0.0)
    assert found["strong"] == pytest.approx(explorers.WORKERS)
    assert found["weak"] == pytest.approx(explorers.WORKERS)


def test_one_worker_sends_nothing_whatever_the_cost_function_says():
    assert explorers.communication(CLUSTER, lambda *_: math.inf, 1) == 0


@settings(max_examples=8, deadline=None)
@given(
    st.floats(4, 11), st.sampled_from([2.0, 4.0]), st.floats(-3, 1), st.floats(-6, -2),
    st.floats(7, 12),
)  # fmt: skip
def test_the_figure_and_the_words_exist_at_every_place_of_the_controls(
    parameters, bytes_each, compute, latency, bandwidth
):
    powers = [10**power for power in (parameters, compute, latency, bandwidth)]
    cluster = explorers.Cluster(powers[0], bytes_each, *powers[1:])
    assert is_drawn(explorers.scaling_figure(cluster, ring))
    assert "Model" in explorers.scaling_text(cluster, ring)


def test_the_words_have_the_numbers_of_the_last_points():
    found = explorers.speedups(CLUSTER, ring)
    text = explorers.scaling_text(CLUSTER, ring)
    assert "100 MB of gradients" in text
    assert f"weak scaling: {found['weak'][-1]:,.1f} times" in text
    assert f"efficiency {found['strong'][-1] / 1024:.0%}; at least 50% up to 8 workers" in text


def test_the_figure_says_that_it_is_a_model():
    figure = explorers.scaling_figure(CLUSTER, ring)
    assert "model, not measured" in figure.get_suptitle()
    names = [line.get_label() for line in figure.axes[0].get_lines()]
    assert names == ["ideal", "weak (model)", "strong (model)"]


@pytest.mark.parametrize(
    ("value", "text"), [(5, "5 "), (2.5e6, "2.5 M"), (1e8, "100 M"), (4e11, "400 G"), (4e12, "4 T")]
)
def test_amounts_are_short(value, text):
    assert explorers.amount(value) == text


@pytest.mark.parametrize(("value", "text"), [(2, "2 s"), (0.0125, "12.5 ms"), (4e-5, "40 µs")])
def test_seconds_are_short(value, text):
    assert explorers.seconds(value) == text


@pytest.mark.parametrize("name", ["parameters", "bytes_each", "compute", "bandwidth", "latency"])
def test_a_cluster_that_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1"):
        explorers.Cluster(**{**vars(CLUSTER), name: -1})


def test_the_explorer_follows_every_control():
    explorer = explorers.scaling_explorer(ring, CLUSTER)
    assert explorer.readout.value.count("100 MB") == 1
    for name, value in {
        "parameters": 1000.0, "precision": 2.0, "compute": 1000.0, "latency": 1000.0,
        "bandwidth": 1.0,
    }.items():  # fmt: skip
        picture, words = explorer.picture.value, explorer.readout.value
        explorer.controls[name].value = value
        assert explorer.picture.value != picture, name
        assert explorer.readout.value != words, name
    assert explorer.error.value == ""


def test_a_start_outside_the_sliders_begins_at_their_ends():
    tiny = explorers.Cluster(parameters=1, bytes_each=2.0, compute=1e-6, latency=0, bandwidth=1e15)
    controls = explorers.scaling_explorer(ring, tiny).controls
    assert controls["parameters"].value == pytest.approx(0.01)
    assert controls["bandwidth"].value == pytest.approx(1000)
