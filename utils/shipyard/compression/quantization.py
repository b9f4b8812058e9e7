"""Numbers in few bits: scale and zero point, the range to cover, integers that multiply.

A real number x is stored as a whole number k, and k stands for x̂ = scale · (k − zero_point):

    k = clamp(round(x / scale) + zero_point, lowest, highest)

`shipyard.compression.quantized_layers` uses this on networks, `weight_only` on the weights of
language models, `onnx_int8` writes files that a server runs.

Source: B. Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shipyard.errors import CompressionError

SCHEMES = ("affine", "symmetric")
METHODS = ("minmax", "percentile", "mse", "entropy")
SAMPLE = 20_000  # values that a calibrator keeps of each batch
PERCENT = 99.9  # of the values that the method "percentile" covers


@dataclass(frozen=True)
class Grid:
    """The numbers that can be stored: scale · (k − zero_point) for k from lowest to highest.

    ``scale`` and ``zero_point`` hold one number, or many that can be broadcast to the tensor.
    """

    scale: Tensor
    zero_point: Tensor
    lowest: int
    highest: int

    def quantize(self, x: Tensor) -> Tensor:
        """clamp(round(x / scale) + zero_point): whole numbers, in int32."""
        k = torch.round(x / self.scale) + self.zero_point
        return k.clamp(self.lowest, self.highest).to(torch.int32)

    def dequantize(self, k: Tensor) -> Tensor:
        """scale · (k − zero_point)."""
        return self.scale * (k - self.zero_point)

    def round(self, x: Tensor) -> Tensor:
        """The number of the grid that stands for x: ``dequantize(quantize(x))``."""
        return self.dequantize(self.quantize(x))

    def straight_through(self, x: Tensor) -> Tensor:
        """`round`, with gradient 1 where a number of the grid was at hand, 0 where x was clamped.

        Source: Y. Bengio, N. Léonard, A. Courville, "Estimating or propagating gradients through
        stochastic neurons for conditional computation", 2013; the edges as in torch.
        """
        k = torch.round(x / self.scale) + self.zero_point
        inside = (k >= self.lowest) & (k <= self.highest)
        passed = torch.where(inside, x, x.detach())
        return passed + (self.round(x) - passed).detach()


def levels(bits: int, scheme: str) -> tuple[int, int]:
    """(lowest, highest): 0 … 2^bits − 1 if affine, ±(2^(bits−1) − 1) if symmetric."""
    if scheme not in SCHEMES:
        raise CompressionError(f"scheme is {scheme!r}; choose one of: {', '.join(SCHEMES)}.")
    if not 2 <= bits <= 16:
        raise CompressionError(f"bits is {bits}; it must be a whole number from 2 to 16.")
    most = 2 ** (bits - 1) - 1
    return (0, 2**bits - 1) if scheme == "affine" else (-most, most)


def grid_for(low: Tensor, high: Tensor, bits: int = 8, scheme: str = "affine") -> Grid:
    """The grid whose range covers [low, high] and 0; 0 itself is always a number of the grid.

    affine: scale = (high − low) / (2^bits − 1), zero_point = round(−low / scale).
    symmetric: scale = max(|low|, |high|) / (2^(bits−1) − 1), zero_point = 0.
    Where low = high = 0 the scale is 1, so that 0 stays 0.
    """
    lowest, highest = levels(bits, scheme)
    low, high = low.clamp(max=0), high.clamp(min=0)
    width = torch.maximum(-low, high) if scheme == "symmetric" else high - low
    scale = width / highest
    # below the smallest normal number 1 / scale would be infinite
    scale = torch.where(scale > torch.finfo(scale.dtype).tiny, scale, 1.0)
    zero_point = torch.zeros_like(scale) if scheme == "symmetric" else torch.round(-low / scale)
    return Grid(scale, zero_point.clamp(lowest, highest), lowest, highest)


def require_numbers(x: Tensor, name: str) -> None:
    """Refuse a tensor that is empty, or holds NaN or infinity.

    Raises:
        CompressionError: with ``name`` and how many values are wrong.
    """
    if x.numel() == 0:
        raise CompressionError(f"{name} is empty: it has no range to quantize.")
    if wrong := int((~torch.isfinite(x)).sum()):
        raise CompressionError(
            f"{name} holds {wrong} values that are NaN or infinite, of {x.numel()}. No grid covers "
            "them: look for the step that made them, such as a division by 0 or a training that "
            "diverged."
        )


def grid_of(
    x: Tensor, bits: int = 8, scheme: str = "symmetric", axis: int | None = None,
    name: str = "the tensor",
) -> Grid:  # fmt: skip
    """The grid from the smallest to the largest value of ``x``.

    Args:
        axis: one grid for each index of this axis ("per channel"); None: one for all.
        name: what error messages call ``x``.

    Raises:
        CompressionError: ``x`` is empty or holds NaN or infinity.
    """
    require_numbers(x, name)
    if axis is None:
        return grid_for(x.min(), x.max(), bits, scheme)
    others = [d for d in range(x.dim()) if d != axis % x.dim()]
    low, high = (x.amin(others, keepdim=True), x.amax(others, keepdim=True)) if others else (x, x)
    return grid_for(low, high, bits, scheme)


def round_to_bits(
    x: Tensor, bits: int = 8, scheme: str = "symmetric", axis: int | None = None,
    group: int | None = None, name: str = "the tensor",
) -> Tensor:  # fmt: skip
    """``x`` on its own grid: one for the tensor, for each index of ``axis``, or for each group.

    Args:
        group: so many neighbours on the last axis share a grid; it must divide that axis.

    Raises:
        CompressionError: as `grid_of`; or ``group`` does not divide the last axis.
    """
    if group is None:
        return grid_of(x, bits, scheme, axis, name).round(x)
    if x.shape[-1] % group:
        raise CompressionError(
            f"{name} has {x.shape[-1]} columns, which groups of {group} do not fill. Choose a "
            "group that divides them."
        )
    rows = x.reshape(-1, group)  # (groups, group)
    return grid_of(rows, bits, scheme, 0, name).round(rows).view(x.shape)


def sqnr(x: Tensor, rounded: Tensor) -> float:
    """10 · log₁₀(Σ x² / Σ (x − x̂)²), in decibels: signal to quantization noise.

    Infinity where nothing was lost.
    """
    x = x.double()
    noise = (x - rounded.double()).square().sum().item()
    signal = x.square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


# --- which range to cover --------------------------------------------------------------------


def calibrated_range(
    values: Tensor, method: str = "minmax", bits: int = 8, scheme: str = "affine"
) -> tuple[Tensor, Tensor]:
    """(low, high): which part of ``values`` the grid shall cover.

    minmax: all. percentile: all but the outermost (100 − PERCENT) %, at each end that is not 0.
    mse: the share of the full range whose rounding has the smallest mean squared error. entropy:
    the share after which the histogram of the rounded values is most like the one before.
    """
    if method not in METHODS:
        raise CompressionError(f"method is {method!r}; choose one of: {', '.join(METHODS)}.")
    require_numbers(values, "what was calibrated on")
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    if method == "minmax" or low == high:
        return low, high
    if method == "percentile":
        ends = torch.tensor([1 - PERCENT / 100, PERCENT / 100], device=values.device)
        below, above = torch.quantile(values.float(), ends)
        return below.clamp(max=0), above.clamp(min=0)
    shares = torch.linspace(0.1, 1.0, 91).tolist()
    cost = _squared_error if method == "mse" else _divergence
    costs = [cost(values, grid_for(s * low, s * high, bits, scheme)) for s in shares]
    best = shares[min(range(len(costs)), key=costs.__getitem__)]
    return best * low, best * high


def _squared_error(values: Tensor, grid: Grid) -> float:
    return (values - grid.round(values)).square().mean().item()


def _divergence(values: Tensor, grid: Grid, bins: int = 2048) -> float:
    """KL(P ‖ Q) of the clipped values' histogram P and of Q, which knows only the levels.

    Each level spreads what fell to it evenly over its bins that are not empty, and Q is made
    without what was clipped. Source: S. Migacz, "8-bit inference with TensorRT", 2017.
    """
    low = (grid.scale * (grid.lowest - grid.zero_point)).item()
    high = (grid.scale * (grid.highest - grid.zero_point)).item()
    inside = values[(values >= low) & (values <= high)].float()
    counts = torch.histc(inside, bins, low, high)  # (bins)
    p = counts.clone()
    p[0] += (values < low).sum()
    p[-1] += (values > high).sum()
    centres = torch.linspace(low, high, 2 * bins + 1, device=values.device)[1::2]  # (bins)
    level = grid.quantize(centres).long() - grid.lowest  # (bins)
    most, full = grid.highest - grid.lowest + 1, (counts > 0).float()
    total = torch.zeros(most, device=values.device).index_add(0, level, counts)
    filled = torch.zeros(most, device=values.device).index_add(0, level, full)
    q = (total / filled.clamp(min=1))[level] * full
    p, q = (p / p.sum()).double(), (q / q.sum()).double()
    return (p * ((p + 1e-12) / (q + 1e-12)).log()).sum().item()


class Calibrator:
    """Watches the values of one tensor over some batches, then gives the grid for them.

    It keeps the extremes of all values, and a random sample of each batch.

    Args:
        method: one of `METHODS`, how the range is chosen.
        name: what error messages call the tensor, such as the name of its layer.
    """

    def __init__(
        self, method: str = "minmax", bits: int = 8, scheme: str = "affine",
        name: str = "the tensor",
    ) -> None:  # fmt: skip
        self.method, self.bits, self.scheme, self.name = method, bits, scheme, name
        self.generator = torch.Generator().manual_seed(0)
        self.kept: list[Tensor] = []

    def observe(self, x: Tensor) -> None:
        """Take in one batch; any shape.

        Raises:
            CompressionError: ``x`` is empty or holds NaN or infinity.
        """
        values = x.detach().flatten()
        require_numbers(values, self.name)
        few = torch.randint(len(values), (min(SAMPLE, len(values)),), generator=self.generator)
        self.kept += [values.min()[None], values.max()[None], values[few.to(values.device)]]

    def grid(self) -> Grid:
        """The grid for what was observed.

        Raises:
            CompressionError: nothing was observed yet.
        """
        if not self.kept:
            raise CompressionError(
                f"The calibrator of {self.name} has seen no data, so it knows no range. Run a few "
                "batches of training images through the network first: calibrate(model, batches)."
            )
        low, high = calibrated_range(torch.cat(self.kept), self.method, self.bits, self.scheme)
        return grid_for(low, high, self.bits, self.scheme)


# --- whole numbers that multiply ---------------------------------------------------------------


def as_multiplier(factor: Tensor, bits: int = 31) -> tuple[Tensor, Tensor]:
    """(multiplier, shift), int64, with factor ≈ multiplier / 2^shift and multiplier < 2^bits.

    So a processor without real numbers can multiply by ``factor``: one product, one shift.

    Args:
        factor: above 0 and below 1, any shape.
    """
    mantissa, exponent = torch.frexp(factor.double())  # factor = mantissa · 2^exponent
    multiplier = torch.round(mantissa * 2**bits).long()
    return multiplier, (bits - exponent).long()


def requantize(accumulator: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """round(accumulator · multiplier / 2^shift): add half of 2^shift, then shift."""
    return (accumulator.long() * multiplier + (1 << (shift - 1))) >> shift


def int8_linear(
    x: Tensor, x_grid: Grid, weight: Tensor, w_grid: Grid, bias: Tensor, y_grid: Grid
) -> Tensor:
    """y = x Wᵀ + b in whole numbers: bytes come in, bytes go out, sums are kept in 32 bits.

    Args:
        x: (batch, in), whole numbers of ``x_grid``.
        weight: (out, in), whole numbers of ``w_grid``, symmetric, with a scale for each row.
        bias: (out,), real numbers.

    Returns:
        (batch, out), int32, whole numbers of ``y_grid``.
    """
    w_scale = w_grid.scale.flatten()  # (out) or (1)
    bias = torch.round(bias / (x_grid.scale * w_scale)).int()  # (out), in the accumulator's unit
    centred = x.int() - x_grid.zero_point.int()  # (batch, in)
    accumulator = (centred[:, None, :] * weight.int()).sum(-1, dtype=torch.int32) + bias
    multiplier, shift = as_multiplier(x_grid.scale * w_scale / y_grid.scale)
    k = requantize(accumulator, multiplier, shift) + y_grid.zero_point.long()
    return k.clamp(y_grid.lowest, y_grid.highest).int()


# --- values that are not evenly spaced -------------------------------------------------------


def kmeans(values: Tensor, bits: int, iterations: int = 25) -> tuple[Tensor, Tensor]:
    """(codebook, places): 2^bits values, and for each value the place of its nearest in them.

    Lloyd's algorithm on numbers, from centres at equal steps over the range.

    Source: S. Han, H. Mao, W. J. Dally, "Deep compression", 2016.

    Args:
        values: any shape.

    Returns:
        (2^bits,), and int64 of the shape of ``values``.
    """
    require_numbers(values, "the values")
    flat = values.detach().flatten()
    codebook = torch.linspace(flat.min().item(), flat.max().item(), 2**bits, device=flat.device)
    for _ in range(iterations):
        places = torch.bucketize(flat, (codebook[1:] + codebook[:-1]) / 2)
        count = torch.bincount(places, minlength=2**bits)
        total = torch.zeros_like(codebook).index_add(0, places, flat.to(codebook.dtype))
        codebook = torch.where(count > 0, total / count.clamp(min=1), codebook)
        codebook = codebook.sort().values
    places = torch.bucketize(flat, (codebook[1:] + codebook[:-1]) / 2)
    return codebook, places.view(values.shape)


def float_values(exponent_bits: int, mantissa_bits: int, bias: int, highest: float) -> Tensor:
    """Every number from 0 to ``highest`` that a small floating-point format holds, ascending.

    (1 + m / 2^M) · 2^(e − bias) for the exponent e ≥ 1 and the mantissa m; for e = 0, which is
    nearest to 0, m / 2^M · 2^(1 − bias).
    """
    m = torch.arange(2**mantissa_bits, dtype=torch.float64) / 2**mantissa_bits
    e = torch.arange(1, 2**exponent_bits, dtype=torch.float64)
    normal = (1 + m) * 2.0 ** (e[:, None] - bias)
    values = torch.cat([m * 2.0 ** (1 - bias), normal.flatten()])
    return values[values <= highest]
