"""Fully connected networks from their formulas, forward and backward, in plain tensor operations.

A layer is a pair (weight (out, in), bias (out)), and a network is a list of layers. Functions that
torch also has take the same arguments and give the same values; nothing here calls their twins.

Source: I. Goodfellow, Y. Bengio and A. Courville, *Deep Learning*, 2016, chapter 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Layer = tuple[Tensor, Tensor]  # weight (out, in), bias (out)


# --- layers ---------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b: (…, in) → (…, out)."""
    return x @ weight.T + bias


def linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `linear` for x, W and b: (g W, gᵀ x, Σ g).

    Args:
        grad: g = ∂L/∂(output), (batch, out)
        x: the layer's input, (batch, in)
        weight: W, (out, in)

    Returns:
        (batch, in), (out, in) and (out)
    """
    return grad @ weight, grad.T @ x, grad.sum(0)


def mlp(x: Tensor, layers: Sequence[Layer], activation: Callable = torch.relu) -> Tensor:
    """`linear` for each layer, with ``activation`` between them and none after the last."""
    *hidden, (weight, bias) = layers
    for hidden_weight, hidden_bias in hidden:
        x = activation(linear(x, hidden_weight, hidden_bias))
    return linear(x, weight, bias)


# --- softmax and cross-entropy --------------------------------------------------------------------


def softmax(z: Tensor, dim: int = -1) -> Tensor:
    """e^(z_i) / Σ_j e^(z_j) along ``dim``, without overflow: the largest z is subtracted first."""
    e = (z - z.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def log_sum_exp(z: Tensor, dim: int = -1) -> Tensor:
    """ln Σ_j e^(z_j) = m + ln Σ_j e^(z_j − m) with m = max z; ``dim`` goes."""
    m = z.amax(dim, keepdim=True)
    return m.squeeze(dim) + (z - m).exp().sum(dim).log()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of −ln softmax(z)_label = ln Σ_j e^(z_j) − z_label.

    Args:
        logits: z, (batch, classes)
        labels: whole numbers, (batch)
    """
    at_label = logits.gather(1, labels[:, None])[:, 0]  # (batch)
    return (log_sum_exp(logits) - at_label).mean()


# --- how large the first weights are --------------------------------------------------------------


def init_scale(fan_in: int, fan_out: int, activation: str = "relu") -> float:
    """The standard deviation of the first weights that keeps signals alive.

    He: √(2 / fan_in) for "relu". Xavier: √(2 / (fan_in + fan_out)) for "linear" and "tanh".

    Raises:
        ValueError: the activation is none of these.

    Sources: X. Glorot and Y. Bengio, 2010; K. He et al., 2015.
    """
    if activation not in ("relu", "linear", "tanh"):
        raise ValueError(f"activation is {activation!r}; expected relu, linear or tanh.")
    return math.sqrt(2 / fan_in if activation == "relu" else 2 / (fan_in + fan_out))


def init_layers(
    sizes: Sequence[int], generator: torch.Generator, scale: float | None = None
) -> list[Layer]:
    """Layers for ``sizes`` (in, hidden, …, out), which ask for gradients; the biases are 0.

    Args:
        scale: standard deviation of the normal weights; `init_scale` for "relu" if None.
    """
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        spread = init_scale(fan_in, fan_out) if scale is None else scale
        weight = spread * torch.randn(fan_out, fan_in, generator=generator)
        layers.append((weight.requires_grad_(), torch.zeros(fan_out, requires_grad=True)))
    return layers


# --- a small problem in the plane -----------------------------------------------------------------


def spirals(
    points: int, generator: torch.Generator, turns: float = 1.15, noise: float = 0.08
) -> tuple[Tensor, Tensor]:
    """Two spirals around each other, made up: x (points, 2) and labels (points), 0 or 1 in turn."""
    labels = torch.arange(points) % 2
    way = 0.15 + 0.85 * torch.rand(points, generator=generator)  # from the middle, 0, to the end, 1
    angle = 2 * math.pi * turns * way + math.pi * labels
    x = 2 * way[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return x + noise * torch.randn(points, 2, generator=generator), labels


def fit_plane(
    x: Tensor, labels: Tensor, hidden: Sequence[int], seed: int = 0, steps: int = 1000,
    lr: float = 0.1, activation: Callable = torch.relu,
) -> list[Layer]:  # fmt: skip
    """Layers of an MLP (2, *hidden, 1), fitted to ±1 by gradient descent on the mean square error.

    Args:
        x: (points, 2)
        labels: (points), 0 or 1
    """
    layers = init_layers((2, *hidden, 1), torch.Generator().manual_seed(seed))
    parameters = [parameter for layer in layers for parameter in layer]
    target = 2.0 * labels[:, None] - 1  # (points, 1), −1 or 1
    for _ in range(steps):
        loss = (mlp(x, layers, activation) - target).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= lr * gradient
    return layers
