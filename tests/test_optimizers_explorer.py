"""The optimizer explorer: right gradients, honest paths, and errors that are seen."""

import pytest
import torch

from shipyard import optimizers, plots
from shipyard.explorers import optimizers as explorers

every_surface = pytest.mark.parametrize("surface", explorers.SURFACES)
every_optimizer = pytest.mark.parametrize("optimizer", explorers.OPTIMIZERS)


@every_surface
def test_the_loss_is_zero_and_flat_at_each_minimum_and_nowhere_below(surface):
    shape = explorers.SURFACES[surface]
    for minimum in shape.minima:
        point = torch.tensor(minimum, dtype=torch.float64, requires_grad=True)
        loss = shape.loss(*point)
        (grad,) = torch.autograd.grad(loss, point)
        assert loss.item() == pytest.approx(0, abs=1e-12)
        assert grad.abs().max() < 1e-9
    x_from, x_to, y_from, y_to = shape.window
    x, y = torch.linspace(x_from, x_to, 61)[:, None], torch.linspace(y_from, y_to, 61)
    assert shape.loss(x, y).min() >= 0
    for a, b in (shape.start, *shape.minima):
        assert x_from < a < x_to
        assert y_from < b < y_to


@every_surface
@every_optimizer
def test_the_suggested_rate_goes_downhill(surface, optimizer):
    lr = explorers.OPTIMIZERS[optimizer].rates[surface]
    points = explorers.explorer_walk(surface, optimizer, lr, steps=200)
    values = explorers.losses(explorers.SURFACES[surface], points)
    assert points.shape == (201, 2)
    assert values[-1] < 0.3 * values[0]


def test_a_walk_follows_the_optimizer_step_by_step():
    ravine = explorers.SURFACES["ravine"]
    points = explorers.walk(optimizers.gradient_descent, ravine, 0.05, steps=3)
    by_hand = [torch.tensor(ravine.start, dtype=torch.float64)]
    for _ in range(3):
        x, y = by_hand[-1]
        by_hand.append(torch.stack([x - 0.05 * x, y - 0.05 * 25 * y]))
    torch.testing.assert_close(points, torch.stack(by_hand))


def test_walks_side_by_side_are_the_same_as_walks_alone():
    surface, rates = (
        explorers.SURFACES["Beale"],
        torch.tensor([0.01, 0.1, 0.3], dtype=torch.float64),
    )
    together = explorers.walk(optimizers.adam, surface, rates, steps=20)
    assert together.shape == (21, 2, 3)
    for i, lr in enumerate(rates.tolist()):
        alone = explorers.walk(optimizers.adam, surface, lr, steps=20)
        torch.testing.assert_close(together[:, :, i], alone)
    assert explorers.losses(surface, together).shape == (21, 3)


def test_a_walk_that_runs_away_ends_and_says_so():
    points = explorers.explorer_walk("ravine", "gradient descent", lr=1.0, steps=200)
    assert len(points) < 20
    assert "ran away" in explorers.walk_text("ravine", points)
    explorers.paths_figure("ravine", {"lost": points}, {"lost": plots.BLUE})  # draws what there is


def test_the_text_says_where_the_walk_ended():
    points = torch.tensor([[-4.0, 1.0], [3.0, 4.0]], dtype=torch.float64)
    text = explorers.walk_text("ravine", points)
    assert "after 1 steps: x = 3.000, y = 4.000" in text
    assert "nearest minimum: 5.000" in text


def test_noise_is_seeded_and_changes_the_walk():
    ravine = explorers.SURFACES["ravine"]
    a, b = (
        explorers.walk(optimizers.gradient_descent, ravine, 0.05, 5, noise=1.0) for _ in range(2)
    )
    calm = explorers.walk(optimizers.gradient_descent, ravine, 0.05, 5)
    assert torch.equal(a, b)
    assert not torch.allclose(a, calm)


@pytest.mark.parametrize(
    ("surface", "optimizer", "numbers", "words"),
    [
        ("hill", "Adam", {}, "'hill' is unknown; choose one of: ravine"),
        ("ravine", "Lion", {}, "'Lion' is unknown; choose one of: gradient descent"),
        ("ravine", "Adam", {"lr": 0.0}, "lr is 0.0"),
        ("ravine", "Adam", {"steps": 0}, "steps 0"),
        ("ravine", "Adam", {"first": 1.0}, "β₁ 1.0"),
        ("ravine", "Adam", {"second": -0.1}, "β₂ -0.1"),
    ],
)
def test_what_cannot_be_walked_is_named(surface, optimizer, numbers, words):
    with pytest.raises(ValueError, match=words):
        explorers.explorer_walk(surface, optimizer, **{"lr": 0.1, "steps": 5, **numbers})


def test_the_explorer_draws_anew_at_each_change():
    explorer = explorers.optimizer_explorer()
    seen = {explorer.picture.value}
    changes = {
        "lr": 0.02, "steps": 30, "optimizer": "momentum", "first": 0.5, "surface": "saddle",
    }  # fmt: skip
    for name, value in changes.items():
        text = explorer.readout.value
        explorer.controls[name].value = value
        assert explorer.error.value == ""
        assert explorer.readout.value != text
        seen.add(explorer.picture.value)
    assert len(seen) == len(changes) + 1


def test_the_explorer_suggests_a_rate_and_greys_out_what_has_no_effect():
    explorer = explorers.optimizer_explorer()
    first, second = explorer.controls["first"], explorer.controls["second"]
    assert first.disabled
    assert second.disabled
    explorer.controls["optimizer"].value = "RMSprop"
    assert first.disabled
    assert not second.disabled
    assert explorer.controls["lr"].value == explorers.OPTIMIZERS["RMSprop"].rates["ravine"]
    explorer.controls["optimizer"].value = "Adam"
    assert not first.disabled
    assert not second.disabled


def test_the_explorer_says_when_the_walk_runs_away():
    explorer = explorers.optimizer_explorer()
    explorer.controls["lr"].value = 1.0
    assert "ran away" in explorer.readout.value
    assert explorer.error.value == ""
