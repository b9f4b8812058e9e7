"""Matrices as products of two thin ones: to make a layer smaller, or to add a little to it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shipyard.compression.pruning import layer_of
from shipyard.errors import CompressionError


def factor(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B (out, r) and A (r, in) with B A ≈ W: no pair of rank r comes nearer, in squared error.

    W = U Σ Vᵀ gives B = U_r √Σ_r and A = √Σ_r V_rᵀ, of the r largest singular values.

    Args:
        weight: W, (out, in).
        rank: r, 1 <= r <= min(out, in).

    Raises:
        CompressionError: ``rank`` lies outside, or a weight is NaN.

    Source: C. Eckart and G. Young, "The approximation of one matrix by another of lower
    rank", 1936.
    """
    if not 1 <= rank <= min(weight.shape):
        raise CompressionError(
            f"rank is {rank}; a matrix of shape {tuple(weight.shape)} allows 1 to "
            f"{min(weight.shape)}."
        )
    if weight.isnan().any():
        raise CompressionError("The weight holds NaN, which has no singular values.")
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    root = S[:rank].sqrt()  # (r,)
    return U[:, :rank] * root, root[:, None] * Vh[:rank]


def matrix_of(layer: nn.Module) -> Tensor:
    """The weight as a matrix: (out, in), for a convolution (out, in · height · width)."""
    return layer.weight.detach().flatten(1)


def thin_pair(layer: nn.Module, rank: int) -> nn.Sequential:
    """``layer`` as two: the first makes ``rank`` channels or numbers, the second the old ones.

    A convolution k×k becomes a k×k convolution to ``rank`` channels and a 1×1 convolution. The
    pair has r (in + out) weights in place of in · out: fewer as long as r < in · out / (in + out).
    """
    B, A = factor(matrix_of(layer), rank)
    outputs, bias = len(B), layer.bias is not None
    options = {"device": B.device, "dtype": B.dtype}
    if isinstance(layer, nn.Conv2d):
        first = nn.Conv2d(
            layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, bias=False, padding_mode=layer.padding_mode, **options,
        )  # fmt: skip
        second = nn.Conv2d(rank, outputs, kernel_size=1, bias=bias, **options)
    else:
        first = nn.Linear(layer.in_features, rank, bias=False, **options)
        second = nn.Linear(rank, outputs, bias=bias, **options)
    with torch.no_grad():
        first.weight.copy_(A.view_as(first.weight))
        second.weight.copy_(B.view_as(second.weight))
        if bias:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).train(layer.training)


def factor_layers(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """A copy of ``model`` in which each named layer is a `thin_pair` of that rank.

    Raises:
        CompressionError: a layer is missing, of another kind, or does not allow that rank.
    """
    smaller = copy.deepcopy(model)
    for name, rank in ranks.items():
        layer = layer_of(smaller, name)
        try:
            smaller.set_submodule(name, thin_pair(layer, rank))
        except CompressionError as error:
            raise CompressionError(f"{name}: {error}") from None
    return smaller


class LoRA(nn.Module):
    """layer(x) + (α / r) · B A x: the layer is frozen, and B (out, r) and A (r, in) learn.

    B begins at zero, so that the network says at first what it said before.

    Args:
        layer: a convolution or linear layer.
        rank: r.
        alpha: α; the addition is scaled by α / r.

    Source: E. Hu et al., "LoRA: Low-rank adaptation of large language models", 2021.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        outputs, inputs = matrix_of(layer).shape
        self.A = nn.Parameter(torch.randn(rank, inputs).to(layer.weight) / inputs**0.5)
        self.B = nn.Parameter(torch.zeros(outputs, rank).to(layer.weight))
        self.scale = (rank if alpha is None else alpha) / rank

    def weight(self) -> Tensor:
        """W + (α / r) · B A, in the shape of the layer's weight."""
        return self.layer.weight + self.scale * (self.B @ self.A).view_as(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, with the weight W + (α / r) · B A."""
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, self.weight(), self.layer.bias)
        return self.layer._conv_forward(x, self.weight(), self.layer.bias)

    def merged(self) -> nn.Module:
        """The plain layer with the addition in its weight: nothing is left to compute."""
        layer = copy.deepcopy(self.layer).requires_grad_(True)
        with torch.no_grad():
            layer.weight.copy_(self.weight())
        return layer


def add_lora(model: nn.Module, names: Iterable[str], rank: int) -> nn.Module:
    """A copy of ``model``, frozen, with a `LoRA` around each named layer.

    Raises:
        CompressionError: a layer is missing, or of another kind.
    """
    adapted = copy.deepcopy(model).requires_grad_(False)
    for name in names:
        adapted.set_submodule(name, LoRA(layer_of(adapted, name), rank))
    return adapted


def merge_lora(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with every `LoRA` merged into its layer."""
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, LoRA):
            merged.set_submodule(name, module.merged())
    return merged.requires_grad_(True)
