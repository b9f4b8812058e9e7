"""Checks of neural networks from zero: references, and the cases to try them on."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch

from shipyard.checks import Case, Passed, compare, draws

TORCHS_SOFTMAX = dict.fromkeys(
    ("softmax", "log_softmax", "logsumexp", "cross_entropy_loss", "nll_loss_nd"),
    """That is what you are building. Write it with exp, sum and log; your own softmax of an earlier
    task may be called.""",
)
TORCHS_LAYERS = dict.fromkeys(
    ("linear", "Linear.forward"),
    "That is torch's own layer. Write the product and the sum yourself: x @ weight.T + bias.",
)
TORCHS_GRADIENTS = dict.fromkeys(
    ("grad", "Tensor.backward", "backward"),
    "Autograd computed the gradients. Write the three products yourself.",
)
TORCHS_SCALE = dict.fromkeys(
    ("calculate_gain", "kaiming_normal_", "xavier_normal_", "_calculate_fan_in_and_fan_out"),
    "That is torch's own. Write the formula yourself.",
)


def backward_graph(inputs, steps):
    values, slopes = list(inputs), []
    for name, *places in steps:
        a, b = values[places[0]], values[places[-1]]
        if name == "add":
            value, slope = a + b, (1.0, 1.0)
        elif name == "sub":
            value, slope = a - b, (1.0, -1.0)
        elif name == "mul":
            value, slope = a * b, (b, a)
        elif name == "square":
            value, slope = a * a, (2 * a,)
        elif name == "relu":
            value, slope = max(a, 0.0), (float(a > 0),)
        values.append(value)
        slopes.append(slope)
    gradients = [0.0] * len(values)
    gradients[-1] = 1.0
    for step in reversed(range(len(steps))):
        _, *places = steps[step]
        result = len(inputs) + step
        for place, slope in zip(places, slopes[step], strict=True):
            gradients[place] += slope * gradients[result]
    return values, gradients


def softmax(logits):
    shifted = logits - logits.max(dim=-1, keepdim=True).values
    e = shifted.exp()
    return e / e.sum(dim=-1, keepdim=True)


def cross_entropy(logits, labels):
    m = logits.max(dim=1, keepdim=True).values
    log_sum = m[:, 0] + (logits - m).exp().sum(dim=1).log()
    at_label = logits[torch.arange(len(labels)), labels]
    return (log_sum - at_label).mean()


def cross_entropy_by_shifting(logits, labels):
    shifted = logits - logits.max(dim=1, keepdim=True).values
    log_p = shifted - shifted.exp().sum(dim=1, keepdim=True).log()
    return -log_p[torch.arange(len(labels)), labels].mean()


def linear_backward(grad, x, weight):
    grad_x = grad @ weight
    grad_weight = grad.T @ x
    grad_bias = grad.sum(dim=0)
    return grad_x, grad_weight, grad_bias


def mlp(x, weights, biases):
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.relu(x @ weight.T + bias)
    return x @ weights[-1].T + biases[-1]


def mlp_by_number(x, weights, biases):
    last = len(weights) - 1
    for layer in range(len(weights)):
        z = x @ weights[layer].T + biases[layer]
        x = z if layer == last else z.clamp(min=0)
    return x


def init_scale(weight, activation):
    fan_out, fan_in = weight.shape
    if activation == "relu":
        return math.sqrt(2 / fan_in)
    return math.sqrt(2 / (fan_in + fan_out))


def check_backward_graph(candidate: Callable) -> Passed:
    """Check ``backward_graph(inputs, steps)`` -> (values, gradients), lists of floats."""
    line = [("mul", 0, 1), ("add", 4, 2), ("sub", 5, 3), ("square", 6)]  # w, x, b, y
    neuron = [("mul", 0, 1), ("mul", 2, 3), ("add", 5, 6), ("add", 7, 4), ("relu", 8)]
    cases = [
        Case([2.0, 3.0, 1.0, 5.0], line),
        Case([2.0, -3.0], [("mul", 0, 1), ("sub", 1, 2), ("sub", 3, 0)]),
        Case([1.5, -2.0, 0.5, 3.0, 2.25], neuron),
        Case([1.5, -2.0, 0.5, 3.0, -2.25], [*neuron, ("sub", 9, 4), ("mul", 10, 0)]),
        Case([3.0], [("mul", 0, 0), ("mul", 1, 0), ("add", 2, 2)]),
        Case([0.5, 4.0], [("square", 0), ("sub", 1, 2), ("relu", 3), ("mul", 4, 2), ("add", 5, 0)]),
        Case([2.0, 3.0, 7.0], [("add", 0, 1), ("square", 0), ("mul", 3, 1)]),  # two go nowhere
        Case([0.5, -0.75], [("mul", 0, 1), ("relu", 2), ("add", 3, 0)]),  # just below zero
        Case([0.0], [("relu", 0)]),
    ]
    return compare(
        candidate, reference=backward_graph, cases=cases, outputs=("values", "gradients")
    )


def check_softmax(candidate: Callable) -> Passed:
    """Check ``softmax(logits)`` over the last axis, also where e^z would overflow."""
    draw = draws(41)
    cases = [
        Case(draw(3, 5)),
        Case(draw(2, 3, 4)),
        Case(draw(6)),
        Case(draw(3, 4) - 4),
        Case(torch.tensor([[1000.0, 999.0, 998.0], [0.0, 1.0, 3.0]]).double()),
        Case(torch.tensor([[-1000.0, -1001.0], [1.0, 2.0], [2000.0, 1998.5]]).double()),
        Case(torch.tensor([[3000.0, 0.0, -2000.0], [1.0, 0.5, 0.0]]).double()),
        Case(draw(4, 1)),
    ]
    return compare(
        candidate, reference=softmax, cases=cases, tolerance=1e-9, forbidden=TORCHS_SOFTMAX
    )


def check_cross_entropy(candidate: Callable) -> Passed:
    """Check ``cross_entropy(logits, labels)``: the mean over the batch, also for huge logits."""
    draw = draws(42)
    huge = torch.tensor([[1000.0, 0.0, -5.0], [0.0, -3000.0, 1.0]]).double()
    cases = [
        Case(draw(3, 4), torch.tensor([2, 0, 3])),
        Case(2 * draw(5, 3), torch.tensor([0, 0, 1, 2, 1])),
        Case(5 * draw(4, 7) - 3, torch.tensor([6, 5, 0, 2])),
        Case(huge, torch.tensor([1, 2])),
        Case(huge, torch.tensor([0, 1])),
        Case(-2000 - huge.flip(1), torch.tensor([1, 1])),
        Case(draw(1, 6), torch.tensor([4])),
    ]
    return compare(
        candidate,
        reference=cross_entropy,
        cases=cases,
        tolerance=1e-9,
        forms=(cross_entropy_by_shifting,),
        forbidden=TORCHS_SOFTMAX,
    )


def check_linear_backward(candidate: Callable) -> Passed:
    """Check ``linear_backward(grad, x, weight)`` -> gradients for x, weight and bias."""
    draw = draws(43)

    def case(batch, fan_in, fan_out):
        return Case(draw(batch, fan_out), draw(batch, fan_in), draw(fan_out, fan_in))

    return compare(
        candidate,
        reference=linear_backward,
        cases=[case(3, 2, 4), case(5, 4, 3), case(4, 4, 4), case(2, 1, 3), case(1, 3, 1)],
        outputs=("the gradient for x", "the gradient for weight", "the gradient for bias"),
        tolerance=1e-10,
        forbidden=TORCHS_GRADIENTS,
    )


def check_mlp(candidate: Callable) -> Passed:
    """Check ``mlp(x, weights, biases)``: linear layers with ReLU between them."""
    draw = draws(44)

    def case(batch, *sizes):
        pairs = list(pairwise(sizes))
        weights = [draw(fan_out, fan_in) for fan_in, fan_out in pairs]
        return Case(draw(batch, sizes[0]), weights, [draw(fan_out) for _, fan_out in pairs])

    cases = [
        case(3, 2, 5, 4),
        case(4, 3, 7, 6, 5),
        case(5, 4, 4, 4, 4),
        case(2, 3, 5, 4, 6, 3),
        case(3, 4, 2),
        case(1, 1, 3, 1),
    ]
    return compare(
        candidate,
        reference=mlp,
        cases=cases,
        tolerance=1e-10,
        forms=(mlp_by_number,),
        forbidden=TORCHS_LAYERS,
    )


def check_init_scale(candidate: Callable) -> Passed:
    """Check ``init_scale(weight, activation)``: the standard deviation of the first weights."""
    shapes = [(300, 128), (64, 900), (200, 200), (10, 7), (1, 50)]
    cases = [Case(torch.zeros(*shape), "relu") for shape in shapes]
    cases += [Case(torch.zeros(*shape), "tanh") for shape in shapes]
    return compare(
        candidate, reference=init_scale, cases=cases, tolerance=1e-9, forbidden=TORCHS_SCALE
    )
