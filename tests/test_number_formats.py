"""Number formats: timed, given up early where they cannot win, and not timed twice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shipyard import models, number_formats
from shipyard.number_formats import NUMBER_FORMATS, NumberFormat, fastest_format, time_formats

FLOAT_LAST, FLOAT_FIRST, BF16_LAST, BF16_FIRST = NUMBER_FORMATS


def net(width: int = 8) -> nn.Module:
    return models.WhitenedNet(widths=(width, width, width))


@pytest.fixture(autouse=True)
def nothing_found_yet(monkeypatch):
    monkeypatch.setattr(number_formats, "_found", {})


@pytest.fixture
def passes(monkeypatch):
    """(format, images) of every pass, each pretending to take `seconds` per image."""
    made = []
    seconds = {FLOAT_LAST: 2.0, FLOAT_FIRST: 3.0, BF16_LAST: 30.0, BF16_FIRST: 40.0}

    def pretend(model, images, number_format):
        made.append((number_format, len(images)))
        return seconds[number_format] * len(images)

    monkeypatch.setattr(number_formats, "seconds_of_a_pass", pretend)
    return made, seconds


def test_a_format_that_cannot_win_is_given_up_on_two_images(passes):
    made, _ = passes
    assert fastest_format(net(), torch.randn(50, 3, 16, 16)) == FLOAT_LAST
    assert max(count for chosen, count in made if chosen.dtype is torch.bfloat16) == 2
    assert max(count for _, count in made) == 16  # and no format ran on all fifty


def test_the_fast_short_numbers_of_a_newer_processor_are_chosen(passes):
    made, seconds = passes
    seconds[BF16_LAST] = 0.5
    assert fastest_format(net(), torch.randn(50, 3, 16, 16)) == BF16_LAST
    assert max(count for _, count in made) == 2  # all others were given up


def test_what_was_found_is_kept_for_the_process(passes):
    made, _ = passes
    fastest_format(net(), torch.randn(50, 3, 16, 16))
    before = len(made)
    fastest_format(net(), torch.randn(20, 3, 16, 16))
    assert len(made) == before
    fastest_format(net(width=16), torch.randn(50, 3, 16, 16))
    assert len(made) > before


def test_no_pass_begins_that_would_go_beyond_the_allowance(monkeypatch):
    made, now = [], 0.0

    def pass_of_30_ms(model, images, number_format):
        nonlocal now
        now += 0.03
        made.append(number_format)
        return 0.03

    monkeypatch.setattr(number_formats, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(number_formats, "seconds_of_a_pass", pass_of_30_ms)
    assert fastest_format(net(), torch.randn(50, 3, 16, 16), allowance=0.05) == FLOAT_LAST
    assert made == [FLOAT_LAST, FLOAT_FIRST]  # one pass each, and none of bfloat16


def test_the_fastest_format_is_one_of_those_that_were_timed():
    model, images = net(), torch.randn(4, 3, 16, 16)
    seconds = time_formats(model, images)
    assert set(seconds) == set(NUMBER_FORMATS)
    assert all(value > 0 for value in seconds.values())
    assert fastest_format(model, images, [BF16_LAST]) == BF16_LAST


@pytest.mark.parametrize("measure", [time_formats, fastest_format])
def test_timing_leaves_the_model_as_it_was(measure):
    model, images = net().eval(), torch.randn(4, 3, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, images)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.is_contiguous(), name
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_format_has_a_name_to_print_and_computes_in_its_type():
    assert str(NumberFormat()) == "float32, channels_first"
    assert str(BF16_LAST) == "bfloat16, channels_last"
    assert NumberFormat().autocast is None
    x = torch.ones(2, 2)
    with BF16_LAST.computing("cpu"):
        assert (x @ x).dtype is torch.bfloat16
    with FLOAT_LAST.computing("cpu"):
        assert (x @ x).dtype is torch.float32
