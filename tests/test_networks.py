"""Layers, softmax, cross-entropy and the first weights agree with torch, and so does a graph."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from shipyard import networks
from shipyard.checks.networks import backward_graph

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**16)
numbers = st.floats(-3, 3)


def assert_same(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


OPERATIONS = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "square": torch.square,
    "relu": torch.relu,
}


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=4), st.data())
def test_the_labs_reference_gives_a_random_graph_autograds_values_and_gradients(inputs, data):
    steps = []
    for place in range(len(inputs), len(inputs) + data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from(list(OPERATIONS)))
        operands = 1 if name in ("square", "relu") else 2
        parents = [data.draw(st.integers(0, place - 1)) for _ in range(operands)]
        steps.append((name, *parents))
    nodes = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs]
    for name, *places in steps:
        nodes.append(OPERATIONS[name](*(nodes[place] for place in places)))
    expected = torch.autograd.grad(nodes[-1], nodes, allow_unused=True)
    values, gradients = backward_graph(inputs, steps)
    assert values == pytest.approx([node.item() for node in nodes])
    assert gradients == pytest.approx([0.0 if g is None else g.item() for g in expected])


@given(sizes, sizes, sizes, seeds)
def test_a_layer_and_its_gradients_are_torchs(batch, fan_in, fan_out, seed):
    x, weight, bias = (draw(*shape, seed=seed) for shape in ((batch, fan_in), (fan_out, fan_in)
                       , (fan_out,)))  # fmt: skip
    output = networks.linear(x, weight, bias)
    assert_same(output, F.linear(x, weight, bias))
    grad = draw(batch, fan_out, seed=seed + 1).detach()
    expected = torch.autograd.grad(output, (x, weight, bias), grad)
    for got, wanted in zip(networks.linear_backward(grad, x, weight), expected, strict=True):
        assert_same(got.detach(), wanted)


@given(st.lists(sizes, min_size=2, max_size=5), sizes, seeds)
def test_an_mlp_is_torchs_sequence_of_layers(widths, batch, seed):
    torch.manual_seed(seed)
    modules = [nn.Linear(a, b).double() for a, b in pairwise(widths)]
    between = [part for module in modules for part in (module, nn.ReLU())][:-1]
    x = draw(batch, widths[0], seed=seed)
    layers = [(module.weight, module.bias) for module in modules]
    assert_same(networks.mlp(x, layers), nn.Sequential(*between)(x))


@given(sizes, sizes, st.sampled_from([1.0, 30.0, 1e4]), seeds)
def test_softmax_and_cross_entropy_are_torchs_however_large_the_logits(batch, classes, size, seed):
    z = (size * draw(batch, classes, seed=seed)).detach().requires_grad_()
    labels = torch.arange(batch) % classes
    assert_same(networks.softmax(z), z.softmax(-1))
    assert_same(networks.softmax(z, 0), z.softmax(0))
    assert_same(networks.log_sum_exp(z), z.logsumexp(-1))
    ours, torchs = networks.cross_entropy(z, labels), F.cross_entropy(z, labels)
    assert_same(ours, torchs)
    assert_same(*(torch.autograd.grad(loss, z)[0] for loss in (ours, torchs)))


@pytest.mark.parametrize(
    ("activation", "torchs"),
    [
        ("relu", partial(nn.init.kaiming_normal_, nonlinearity="relu")),
        ("linear", nn.init.xavier_normal_),
        ("tanh", nn.init.xavier_normal_),
    ],
)
def test_the_scale_of_the_first_weights_is_torchs(activation, torchs):
    torch.manual_seed(0)
    weight = torchs(
        torch.empty(600, 400), **({"nonlinearity": "relu"} if activation == "relu" else {})
    )
    assert networks.init_scale(400, 600, activation) == pytest.approx(weight.std().item(), rel=0.01)


def test_an_unknown_activation_has_no_scale():
    with pytest.raises(ValueError, match="'swish'; expected relu"):
        networks.init_scale(3, 4, "swish")


def test_first_layers_have_their_shapes_and_their_scale():
    layers = networks.init_layers((300, 200, 10), torch.Generator().manual_seed(0))
    assert [tuple(weight.shape) for weight, _ in layers] == [(200, 300), (10, 200)]
    assert layers[0][0].std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert not any(bias.any() for _, bias in layers)
    assert all(p.requires_grad and p.is_leaf for layer in layers for p in layer)
    small = networks.init_layers((300, 200), torch.Generator().manual_seed(0), scale=0.01)
    assert small[0][0].std().item() == pytest.approx(0.01, rel=0.02)


def test_spirals_are_two_arms_that_no_line_parts():
    x, labels = networks.spirals(200, torch.Generator().manual_seed(0), noise=0.0)
    assert x.shape == (200, 2)
    assert labels.sum() == 100
    radius = x.norm(dim=1)
    assert 0.3 <= radius.min() and radius.max() <= 2  # noqa: PT018
    again, _ = networks.spirals(200, torch.Generator().manual_seed(0), noise=0.0)
    assert torch.equal(x, again)


def test_a_fit_lowers_the_loss_with_each_hundred_steps():
    x, labels = networks.spirals(60, torch.Generator().manual_seed(0))
    target = 2.0 * labels[:, None] - 1
    fits = [networks.fit_plane(x, labels, (8,), steps=steps) for steps in (0, 100, 200)]
    losses = [(networks.mlp(x, layers) - target).square().mean().item() for layers in fits]
    assert losses == sorted(losses, reverse=True)
