"""The two recipes for CIFAR-10, and the parts that they are made of."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from shipyard import data, models, recipes, training
from shipyard.number_formats import NumberFormat


@pytest.fixture(scope="module")
def sets():
    """(train, held out) of the stand-in images."""
    generated = data.load_cifar10("stand-in").train.subset(1_500)
    return data.split(generated, held_out=0.2)


def outcome(seconds, accuracy):
    return recipes.Outcome(None, seconds, accuracy, training.History())


# --- Time to accuracy ---------------------------------------------------------------------------


def test_the_first_measurement_at_or_above_the_target_counts():
    found = outcome((1.0, 2.0, 3.0, 4.0), (0.1, 0.5, 0.4, 0.6))
    assert found.seconds_to(0.5) == 2.0
    assert found.seconds_to(0.55) == 4.0
    assert found.seconds_to(0.7) is None


# --- The whitened layer -------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_whitened_outputs_have_the_identity_as_their_covariance(channels, size, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(40, channels, 9, 7, generator=generator, dtype=torch.float64)
    images = images + images.mean(dim=(1, 2, 3), keepdim=True) * 3  # correlated pixels
    filters = models.whitening_filters(images, size, eps=0.0)
    y = F.conv2d(images, filters).transpose(0, 1).flatten(1)  # (filters, places)
    covariance = torch.cov(y, correction=0).view(len(y), len(y))
    torch.testing.assert_close(
        covariance, torch.eye(len(y), dtype=torch.float64), rtol=0, atol=1e-8
    )


def test_a_direction_that_never_occurs_is_not_blown_up():
    images = torch.ones(10, 3, 8, 8)
    assert models.whitening_filters(images).isfinite().all()
    assert models.whitening_filters(images).abs().max() <= 1.001 / 5e-4**0.5


@pytest.mark.parametrize("side", [16, 17, 24, 32])
def test_the_network_takes_images_of_every_side(side):
    net = models.WhitenedNet(classes=7, widths=(8, 12, 16), depth=2)
    net.whiten(torch.randn(30, 3, side, side))
    assert net(torch.randn(2, 3, side, side)).shape == (2, 7)


def test_the_first_layer_holds_each_filter_and_its_negative_and_is_not_learned():
    net = models.WhitenedNet()
    images = torch.randn(30, 3, 16, 16)
    net.whiten(images)
    filters = models.whitening_filters(images)
    torch.testing.assert_close(net.whitening.weight, torch.cat([filters, -filters]))
    assert not net.whitening.weight.requires_grad


# --- Batches ------------------------------------------------------------------------------------


def test_the_articles_loader_gives_what_the_batch_loader_gives(sets):
    train, _ = sets
    one_by_one = recipes.PilImages(train, recipes.TO_HALF)
    images, labels = next(iter(data.BatchLoader(train, 8, **recipes.HALF)))
    torch.testing.assert_close(torch.stack([one_by_one[i][0] for i in range(8)]), images)
    assert [one_by_one[i][1] for i in range(8)] == labels.tolist()
    assert len(one_by_one) == len(train)


@pytest.mark.parametrize(("side", "mode"), [(16, "area"), (8, "area")])
def test_shrinking_by_a_whole_factor_is_the_mean_of_the_block(side, mode):
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    expected = F.interpolate(images, (side, side), mode=mode)
    torch.testing.assert_close(recipes.resize(images, side), expected)


def test_shrinking_keeps_the_mean_of_a_picture():
    images = torch.full((1, 3, 32, 32), 0.7)
    torch.testing.assert_close(recipes.resize(images, 24), torch.full((1, 3, 24, 24), 0.7))
    assert recipes.resize(images, 32) is images


def test_growing_batches_are_the_epochs_of_the_loader_cut_into_parts(sets):
    train, _ = sets  # 1,200 images: 12 batches of 100
    batches = recipes.GrowingBatches(train, 100, steps=30, parts=5, seed=3)
    loader = data.BatchLoader(train, 100, shuffle=True, seed=3, drop_last=True)
    expected = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        expected += [labels for _, labels in loader]
    found = []
    for part in range(5):
        batches.set_epoch(part)
        found += [labels for _, labels in batches]
    assert len(batches) == 6
    torch.testing.assert_close(found, expected[:30])
    batches.set_epoch(1)
    again = [labels for _, labels in batches.batches(4)]  # as after a crash
    torch.testing.assert_close(again, expected[10:12])


def sides_of(batches: recipes.GrowingBatches, parts: int) -> list[int]:
    found = []
    for part in range(parts):
        batches.set_epoch(part)
        found += [images.shape[-1] for images, _ in batches]
    return found


def test_the_images_grow_on_the_way(sets):
    batches = recipes.GrowingBatches(sets[0], 100, steps=8, parts=2, sides=(16, 32))
    assert sides_of(batches, 2) == [16] * 4 + [32] * 4


class StepClock(recipes.Clock):
    """A clock on which each look at it takes a fixed time: a test that needs no waiting."""

    seconds = property(lambda self: self.ticks())

    def __init__(self, budget: float, tick: float) -> None:
        self.budget, self.tick, self.now = budget, tick, 0.0

    def ticks(self) -> float:
        self.now += self.tick
        return self.now


def test_with_a_clock_the_time_that_is_left_sets_the_side_and_ends_the_parts(sets):
    clock = StepClock(budget=10, tick=0.25)  # two looks a step
    batches = recipes.GrowingBatches(sets[0], 100, 10_000, 2, sides=(16, 32), clock=clock)
    assert sides_of(batches, 2) == [16] * 10 + [32] * 10
    assert batches.step == 20


def test_one_cycle_rises_to_the_peak_and_falls_to_zero():
    assert recipes.one_cycle(0.0) == 0.2
    assert recipes.one_cycle(0.25) == 1.0
    assert recipes.one_cycle(0.625) == 0.5
    assert recipes.one_cycle(1.0) == recipes.one_cycle(1.2) == 0.0


def test_settings_that_do_not_fit_are_refused_with_a_way_out(sets):
    with pytest.raises(recipes.RecipeError, match="smaller batch_size"):
        recipes.GrowingBatches(sets[0], 5_000, steps=5, parts=1)
    with pytest.raises(recipes.RecipeError, match="more epochs"):
        recipes.GrowingBatches(sets[0], 100, steps=3, parts=4)


# --- The recipes --------------------------------------------------------------------------------

SMALL = replace(recipes.SPRINT, epochs=2, batch_size=40, widths=(8, 12, 16))


def test_the_fast_recipe_learns_and_counts_its_seconds(sets):
    found = recipes.fast(*sets, SMALL, measurements=4)
    assert len(found.seconds) == len(found.accuracy) == 4
    assert list(found.seconds) == sorted(found.seconds)
    assert found.seconds[0] > found.history.rows[0]["seconds"]  # the preparation counts
    assert found.accuracy[-1] > 0.2  # guessing: 0.1
    assert found.history.learning_rates[0] == pytest.approx(SMALL.learning_rate / 5)
    assert max(found.history.learning_rates) <= SMALL.learning_rate


def test_the_same_seed_and_format_give_the_same_network(sets):
    fixed = replace(SMALL, number_format=NumberFormat(), epochs=1)
    one, two = (recipes.fast(*sets, fixed, seed=5, measurements=1) for _ in range(2))
    torch.testing.assert_close(one.model.state_dict(), two.model.state_dict(), rtol=0, atol=0)
    assert one.accuracy == two.accuracy


BURN = "while True: pass"


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True], ids=["quiet", "busy"])
def test_the_clock_ends_a_run_with_a_budget(sets, busy):
    """Within 3% and one step of the budget, also while other processes burn all cores."""
    others = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(os.cpu_count() * busy)]
    try:
        budget = 4.0
        begin = time.perf_counter()
        found = recipes.fast(*sets, replace(SMALL, epochs=20), measurements=3, budget=budget)
        wall = time.perf_counter() - begin
    finally:
        for other in others:
            other.kill()
            other.wait()
    rows = found.history.rows
    steps = [b["step"] - a["step"] for a, b in pairwise([{"step": 0}, *rows])]
    one_step = max(row["seconds"] / n for row, n in zip(rows, steps, strict=True))
    assert abs(found.seconds[-1] - budget) <= 0.03 * budget + one_step
    assert found.seconds[-1] < wall  # measuring the accuracy is not on the clock


def test_the_network_is_as_wide_as_the_time_allows(sets, monkeypatch):
    """A pretended machine needs 1 ms for each image at full width; work goes with its square."""

    def pretend(model, images, formats, repeats):
        width = model.head.in_features / recipes.LONG.widths[-1]
        return {formats[0]: 0.001 * len(images) * width**2}

    monkeypatch.setattr(recipes, "time_formats", pretend)
    settings = replace(recipes.LONG, number_format=NumberFormat())
    work = 1.12 * 0.001 * settings.epochs * settings.batch_size * (1_200 // settings.batch_size)
    for share, expected in [(1.1, 256), (0.6, 192), (0.3, 128), (0.15, 96), (0.1, 64), (0.01, 64)]:
        found, step = recipes.widths_that_fit(settings, sets[0], share * work)
        assert found.widths[-1] == expected
        assert step == pytest.approx(1.12 * 0.125 * (expected / 256) ** 2)


def test_without_whitening_images_the_first_layer_is_learned(sets):
    found = recipes.fast(*sets, replace(SMALL, whitening_images=0, epochs=1), measurements=1)
    assert found.model.whitening.weight.requires_grad
    assert found.model.whitening.weight.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("per_image", [True, False])
def test_the_articles_recipe_runs_both_ways(sets, per_image):
    found = recipes.articles(*sets, epochs=1, per_image=per_image, workers=1)
    assert len(found.history.losses) == 300
    assert found.history.learning_rates[0] == 0.001
    assert len(found.accuracy) == 1


def test_the_articles_recipe_can_be_cut_short(sets):
    found = recipes.articles(*sets, per_image=False, max_steps=20)
    assert len(found.history.losses) == 20
    assert len(found.seconds) == len(found.accuracy) == 1
    assert found.seconds[0] > 0


def test_two_looks_are_the_mean_of_both(sets):
    net = models.WhitenedNet(widths=(8, 8, 8)).eval()
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(recipes.WithFlip(net)(x), (net(x) + net(x.flip(3))) / 2)
    one = recipes.evaluate_at(net, sets[1], 16, flip=False)
    two = recipes.evaluate_at(net, sets[1], 16)
    assert len(one.labels) == len(two.labels) == len(sets[1])
    assert not torch.equal(one.probabilities, two.probabilities)
