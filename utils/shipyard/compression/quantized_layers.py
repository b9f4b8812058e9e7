"""A network whose convolutions and linear layers compute with numbers of few bits.

The numbers are rounded to their grids and then multiplied as float32: the values are those of an
integer processor up to the rounding of sums, and autograd still works ("fake quantization").

    small = prepare(model)                  # a copy, batch norm folded
    calibrate(small, batches)               # static: activations get fixed grids
    metrics.evaluate(small, loader)         # and then, if accuracy is lost: train it further
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shipyard.compression.quantization import Calibrator, Grid, grid_of, sqnr
from shipyard.errors import CompressionError
from shipyard.metrics import evaluation_mode

SUPPORTED = (nn.Conv2d, nn.Linear)
# Layers with weights that may stay as they are: their cost and size are small.
KEPT = (nn.BatchNorm2d, nn.LayerNorm, nn.Embedding)


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor]:
    """(W', b') with W' ∗ x + b' = norm(W ∗ x + b), for a norm in evaluation mode.

    W' = W · γ / √(σ² + ε) for each output channel, and b' = β + (b − μ) · γ / √(σ² + ε).

    Args:
        weight: (out, in, height, width).
        bias: (out,) or None.
    """
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)  # (out)
    before = 0 if bias is None else bias
    return weight * factor.view(-1, 1, 1, 1), norm.bias + (before - norm.running_mean) * factor


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """A copy of ``model``, in evaluation mode, without the batch norms that follow a convolution.

    Such a pair must stand side by side in an ``nn.Sequential``.

    Raises:
        CompressionError: a batch norm follows something else; the message names it.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, sequence in list(model.named_modules()):
            if isinstance(sequence, nn.Sequential):
                _fold_inside(sequence, name)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            raise CompressionError(
                f"{name} is a batch norm that does not follow a Conv2d inside an nn.Sequential, so "
                "there are no weights to fold it into. Put the two side by side in one."
            )
    return model


def _fold_inside(sequence: nn.Sequential, name: str) -> None:
    for place, (conv, norm) in enumerate(pairwise(sequence)):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            if norm.running_mean is None or norm.weight is None:
                raise CompressionError(
                    f"{name}.{place + 1} is a batch norm without running statistics or without "
                    "weights; only one with both is a fixed linear function that can be folded."
                )
            weight, bias = fold_batch_norm(conv.weight, conv.bias, norm)
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            sequence[place + 1] = nn.Identity()


class QuantizedLayer(nn.Module):
    """A Conv2d or Linear whose weights and input are rounded to few bits.

    The weights have a symmetric grid for each output channel, and the input one for the whole
    tensor: none before `calibrate` ("dynamic": each batch makes its own), then a fixed one.

    Attributes:
        layer: the layer with its weights in float32; training moves these.
        weight_bits, input_bits: None: not rounded.
        calibrator: where there is one, the layer watches its input and rounds nothing.
    """

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, weight_bits: int | None, input_bits: int | None,
        name: str, per_channel: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer, self.name, self.per_channel = layer, name, per_channel
        self.weight_bits, self.input_bits = weight_bits, input_bits
        self.input_grid: Grid | None = None
        self.calibrator: Calibrator | None = None

    @property
    def weight(self) -> Tensor:
        """The rounded weights; their gradient reaches the weights behind them."""
        if self.weight_bits is None:
            return self.layer.weight
        axis = 0 if self.per_channel else None
        weight = self.layer.weight
        grid = grid_of(weight.detach(), self.weight_bits, "symmetric", axis, f"{self.name}.weight")
        return grid.straight_through(weight)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes, from rounded numbers."""
        if self.calibrator is not None:
            self.calibrator.observe(x)
            return self.layer(x)
        if self.input_bits is not None:
            name = f"the input of {self.name}"
            grid = self.input_grid or grid_of(x.detach(), self.input_bits, "affine", name=name)
            x = grid.straight_through(x)
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, self.weight, layer.bias)
        return layer._conv_forward(x, self.weight, layer.bias)


def prepare(
    model: nn.Module, weight_bits: int | None = 8, input_bits: int | None = 8,
    per_channel: bool = True, fold: bool = True,
) -> nn.Module:  # fmt: skip
    """A copy of ``model`` in which each Conv2d and Linear is a `QuantizedLayer`.

    Raises:
        CompressionError: a layer with weights is of another kind; the message names it.
    """
    model = fold_batch_norms(model) if fold else copy.deepcopy(model)
    for name, module in model.named_modules():
        own = next(module.parameters(recurse=False), None) is not None
        if own and not isinstance(module, SUPPORTED + KEPT):
            raise CompressionError(
                f"{name or 'the network itself'} is a {type(module).__name__}, whose weights "
                "cannot be quantized here; Conv2d and Linear can. Keep it in float32 outside of "
                "this network, or replace it."
            )
    for name, module in list(model.named_modules()):
        for key, child in list(module.named_children()):
            if isinstance(child, SUPPORTED):
                full = f"{name}.{key}" if name else key
                layer = QuantizedLayer(child, weight_bits, input_bits, full, per_channel)
                setattr(module, key, layer)
    return model


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """Name → layer, in the order of the network.

    Raises:
        CompressionError: there is none.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
    if not found:
        raise CompressionError("The network has no quantized layer. Call prepare(model) first.")
    return found


def watch(model: nn.Module, batches: Iterable[Tensor], method: str = "minmax") -> None:
    """Let each layer's calibrator see ``batches``, in evaluation mode and in float32."""
    layers = quantized_layers(model)
    for name, layer in layers.items():
        bits = layer.input_bits or 8
        layer.calibrator = Calibrator(method, bits, "affine", f"the input of {name}")
    with evaluation_mode(model):
        for batch in batches:
            model(batch)


def calibrate(model: nn.Module, batches: Iterable[Tensor], method: str = "minmax") -> nn.Module:
    """Give the input of each layer of a prepared ``model`` a fixed grid, and return the model.

    Args:
        batches: inputs, prepared like those in use; a few hundred are enough.
        method: one of `quantization.METHODS`.

    Raises:
        CompressionError: there was no batch, or a layer met NaN; the message names the layer.
    """
    watch(model, batches, method)
    settle(model, method)
    return model


def settle(model: nn.Module, method: str = "minmax") -> None:
    """Turn what the calibrators saw into grids; another ``method`` needs no second look.

    Raises:
        CompressionError: a layer has no calibrator, or one that saw nothing.
    """
    for name, layer in quantized_layers(model).items():
        if layer.calibrator is None:
            raise CompressionError(f"{name} has no calibrator. Call calibrate(model, batches).")
        layer.calibrator.method = method
        layer.input_grid = layer.calibrator.grid() if layer.input_bits else None
    for layer in quantized_layers(model).values():
        layer.calibrator = None


def layer_errors(model: nn.Module, quantized: nn.Module, batch: Tensor) -> dict[str, float]:
    """Signal to quantization noise, in dB, of each layer's output, by the layer's name.

    Both networks get the same batch, so the noise of a layer holds that of all layers before it.

    Args:
        model: in float32, with the same names of layers: usually `fold_batch_norms` of the first.
        quantized: what `prepare` made of it.
    """
    exact = _outputs(model, list(quantized_layers(quantized)), batch)
    rounded = _outputs(quantized, list(exact), batch)
    return {name: sqnr(exact[name], rounded[name]) for name in exact}


def _outputs(model: nn.Module, names: list[str], batch: Tensor) -> dict[str, Tensor]:
    """The output of each named layer for ``batch``."""
    found: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: found.__setitem__(name, output.detach())
        )
        for name in names
    ]
    try:
        with evaluation_mode(model):
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found
