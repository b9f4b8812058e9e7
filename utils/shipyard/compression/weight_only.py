"""Language models with weights of 2 to 8 bits, whose activations stay as they are.

Rounding each weight to the nearest number of its grid is best for the weight, not for the layer's
output: GPTQ lets the columns that are still free make good what a rounded one got wrong, and AWQ
chooses a scale for each column, so that those with large inputs are rounded finely.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from shipyard.compression.quantization import grid_of, require_numbers, round_to_bits
from shipyard.errors import CompressionError
from shipyard.metrics import evaluation_mode


def gptq(weight: Tensor, hessian: Tensor, bits: int, group: int, damping: float = 0.01) -> Tensor:
    """``weight`` rounded to ``bits`` column by column, each error handed to the columns after it.

    With H = X Xᵀ of the inputs X, and U the upper triangle with H⁻¹ = Uᵀ U, column j is rounded to
    q, and w[:, j+1:] −= (w[:, j] − q) / U[j, j] · U[j, j+1:]: the change of the free columns that
    makes |(W − Ŵ) X|² smallest. A group's grid is chosen when its first column is reached.

    Args:
        weight: (out, in).
        hessian: (in, in), Σ x xᵀ over the layer's inputs.
        group: columns that share a grid in each row; it must divide ``in``.
        damping: this share of H's mean diagonal is added to its diagonal, which keeps H⁻¹ finite.

    Raises:
        CompressionError: the shapes do not fit.

    Source: E. Frantar et al., "GPTQ: accurate post-training quantization for generative
    pre-trained transformers", 2023.
    """
    columns = weight.shape[1]
    if hessian.shape != (columns, columns) or columns % group:
        raise CompressionError(
            f"weight has {columns} columns, hessian the shape {tuple(hessian.shape)}, and a group "
            f"{group} columns; expected a hessian of {columns} × {columns}, and a group that "
            "divides the columns."
        )
    require_numbers(hessian, "hessian")
    w = weight.double().clone()  # (out, in)
    H = hessian.double()
    H = H + damping * H.diagonal().mean().clamp(min=1e-8) * torch.eye(columns).to(H)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)  # (in, in)
    rounded = torch.empty_like(w)
    for j in range(columns):
        if j % group == 0:
            grid = grid_of(w[:, j : j + group], bits, "symmetric", axis=0)
        rounded[:, j] = grid.round(w[:, j : j + 1])[:, 0]
        error = (w[:, j] - rounded[:, j]) / U[j, j]  # (out)
        w[:, j + 1 :] -= error[:, None] * U[j, j + 1 :]
    return rounded.to(weight.dtype)


def awq(
    weight: Tensor, inputs: Tensor, bits: int, group: int, steps: int = 20
) -> tuple[Tensor, float]:
    """(rounded weight, exponent): W is rounded as W · s, and divided by s again.

    s = mean |x|^exponent of each column, brought to a geometric mean of 1. The exponent, of
    0, 1/steps … 1, is the one with the smallest squared error of the output on ``inputs``. A model
    that runs divides the input by s in the layer before; the values are the same.

    Args:
        weight: (out, in).
        inputs: (rows, in), a sample of what the layer sees.

    Source: J. Lin et al., "AWQ: activation-aware weight quantization", 2024.
    """
    size = inputs.abs().mean(0).clamp(min=1e-4)  # (in)
    exact = inputs @ weight.T  # (rows, out)
    best = None
    for step in range(steps + 1):
        s = size ** (step / steps)
        s = s / s.log().mean().exp()
        rounded = round_to_bits(weight * s, bits, "symmetric", group=group) / s  # (out, in)
        error = (inputs @ rounded.T - exact).square().mean().item()
        if best is None or error < best[0]:
            best = error, rounded, step / steps
    return best[1], best[2]


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Name → linear layer, in the order of the network."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def linear_inputs(
    model: nn.Module, batches: Iterable[Tensor], rows: int = 4096
) -> dict[str, Tensor]:
    """What each linear layer sees: name → (rows, in), a random sample of all positions.

    Raises:
        CompressionError: ``batches`` is empty.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in linear_layers(model)}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: seen[name].append(inputs[0].detach().flatten(0, -2))
        )
        for name, module in linear_layers(model).items()
    ]
    try:
        with evaluation_mode(model):
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(seen.values()):
        raise CompressionError(
            "A linear layer saw no data: batches is empty, or the layer was never called. Hand in "
            "a few batches of training text."
        )
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, parts in seen.items():
        x = torch.cat(parts)
        few = torch.randperm(len(x), generator=generator)[:rows]
        found[name] = x[few.to(x.device)]
    return found


def replace_weights(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of ``model`` whose linear layers have the weights ``change(name, weight)``.

    Raises:
        CompressionError: a weight holds NaN; the message names it.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, layer in linear_layers(model).items():
            require_numbers(layer.weight, f"{name}.weight")
            layer.weight.copy_(change(name, layer.weight.detach()))
    return model
