"""Optimizers from their formulas: each is a function from old parameters to new ones.

Every optimizer here is one *step* with the same shape::

    params, state = adam(params, grads, state, lr)

``params`` and ``grads`` are lists of tensors of equal shapes. ``state`` is what the optimizer
remembers from step to step; it is ``None`` before the first step, and afterwards whatever the
last step returned. Nothing is changed in place: the new parameters and the new state are new
tensors, so two runs can never disturb each other.

With the same arguments each function gives what its namesake in ``torch.optim`` gives. All of
them but `adamw` take weight decay λ through the gradients, as torch's do: pass g + λ · θ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = list[Tensor]


@torch.no_grad()
def gradient_descent(params: Tensors, grads: Tensors, state: None, lr: float):
    """θ ← θ − lr · g. The same step is SGD when g comes from a random part of the data.

    Raises:
        ValueError: here and in every other step: params and grads do not fit each other.
    """
    _check(params, grads)
    return [θ - lr * g for θ, g in zip(params, grads, strict=True)], None


@torch.no_grad()
def sgd_momentum(params: Tensors, grads: Tensors, state, lr: float, momentum: float = 0.9):
    """v ← μ · v + g, then θ ← θ − lr · v. The state is the list of velocities v.

    Source: B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    _check(params, grads)
    v = zeros(params) if state is None else state
    v = [momentum * v + g for v, g in zip(v, grads, strict=True)]
    return [θ - lr * v for θ, v in zip(params, v, strict=True)], v


@torch.no_grad()
def nesterov(params: Tensors, grads: Tensors, state, lr: float, momentum: float = 0.9):
    """v ← μ · v + g, then θ ← θ − lr · (g + μ · v): a look ahead along the new velocity.

    Source: Y. Nesterov, 1983, in the form of I. Sutskever et al., "On the importance of
    initialization and momentum in deep learning", 2013, with θ read at the looked-ahead point.
    """
    _check(params, grads)
    v = zeros(params) if state is None else state
    v = [momentum * v + g for v, g in zip(v, grads, strict=True)]
    new = [θ - lr * (g + momentum * v) for θ, g, v in zip(params, grads, v, strict=True)]
    return new, v


@torch.no_grad()
def adagrad(params: Tensors, grads: Tensors, state, lr: float, eps: float = 1e-10):
    """G ← G + g², then θ ← θ − lr · g / (√G + ε). The state is the list of sums G.

    Source: J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods", 2011.
    """
    _check(params, grads)
    G = zeros(params) if state is None else state
    G = [G + g**2 for G, g in zip(G, grads, strict=True)]
    return [θ - lr * g / (G.sqrt() + eps) for θ, g, G in zip(params, grads, G, strict=True)], G


@torch.no_grad()
def rmsprop(
    params: Tensors, grads: Tensors, state, lr: float, alpha: float = 0.99, eps: float = 1e-8
):
    """v ← α · v + (1 − α) · g², then θ ← θ − lr · g / (√v + ε). The state is the list of v.

    Source: T. Tieleman and G. Hinton, "Neural networks for machine learning", lecture 6.5, 2012.
    """
    _check(params, grads)
    v = zeros(params) if state is None else state
    v = [alpha * v + (1 - alpha) * g**2 for v, g in zip(v, grads, strict=True)]
    return [θ - lr * g / (v.sqrt() + eps) for θ, g, v in zip(params, grads, v, strict=True)], v


@torch.no_grad()
def adam(
    params: Tensors,
    grads: Tensors,
    state,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
):
    """m ← β₁ m + (1 − β₁) g and v ← β₂ v + (1 − β₂) g², then θ ← θ − lr · m̂ / (√v̂ + ε).

    m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) undo the pull of the zeros that m and v start
    from. t counts the steps from 1. The state is (t, list of m, list of v).

    Source: D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015.
    """
    _check(params, grads)
    (β1, β2), (t, m, v) = betas, (0, zeros(params), zeros(params)) if state is None else state
    t = t + 1
    m = [β1 * m + (1 - β1) * g for m, g in zip(m, grads, strict=True)]
    v = [β2 * v + (1 - β2) * g**2 for v, g in zip(v, grads, strict=True)]
    m_hat = [m / (1 - β1**t) for m in m]
    v_hat = [v / (1 - β2**t) for v in v]
    new = [θ - lr * m / (v.sqrt() + eps) for θ, m, v in zip(params, m_hat, v_hat, strict=True)]
    return new, (t, m, v)


@torch.no_grad()
def adamw(
    params: Tensors,
    grads: Tensors,
    state,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
):
    """θ ← (1 − lr · λ) · θ, then a step of `adam`: the decay λ never meets the moments.

    Source: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019.
    """
    shrunk = [(1 - lr * weight_decay) * θ for θ in params]
    return adam(shrunk, grads, state, lr, betas, eps)


@torch.no_grad()
def clip_grad_norm(grads: Tensors, max_norm: float) -> tuple[Tensors, Tensor]:
    """g ← g · min(1, max_norm / (‖g‖ + 10⁻⁶)), with one norm ‖g‖ over all tensors together.

    Returns the gradients and ‖g‖ as it was *before*, as ``torch.nn.utils.clip_grad_norm_``.
    """
    if max_norm < 0:
        raise ValueError(f"max_norm is {max_norm}; expected a number of at least 0.")
    norms = [torch.linalg.vector_norm(g) for g in grads]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return [g * factor for g in grads], norm


def zeros(params: Tensors) -> Tensors:
    """One tensor of zeros for each parameter: what a memory of past gradients starts from."""
    return [torch.zeros_like(θ) for θ in params]


def _check(params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    if len(params) != len(grads):
        raise ValueError(f"{len(params)} params but {len(grads)} grads; expected one for each.")
    for i, (θ, g) in enumerate(zip(params, grads, strict=True)):
        if g is None:
            raise ValueError(f"grads[{i}] is None; call backward() first, or leave it out.")
        if θ.shape != g.shape:
            raise ValueError(
                f"params[{i}] has shape {tuple(θ.shape)} but grads[{i}] has {tuple(g.shape)}; "
                "a gradient has the shape of its parameter."
            )
