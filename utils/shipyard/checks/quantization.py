"""Checks of quantization: references, and the cases to try them on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from shipyard.checks import Case, Passed, compare, draws

OWN = "That is what you are building. Divide by the scale, round, clamp, and go back yourself."
TORCHS_OWN = dict.fromkeys(
    (
        "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine",
        "quantize_per_tensor", "quantize_per_channel",
    ),
    OWN,
)  # fmt: skip
TORCHS_FOLDING = dict.fromkeys(
    ("fuse_conv_bn_weights", "fuse_conv_bn_eval"),
    "That is what you are building: multiply the weights by γ / √(var + eps), and move the bias.",
)


def affine_qparams(low, high, bits=8):
    low = low.clamp(max=0)
    high = high.clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    zero_point = torch.round(-low / scale)
    return scale, zero_point.long()


def quantize_dequantize(x, scale, zero_point, lowest, highest):
    k = torch.round(x / scale) + zero_point
    k = k.clamp(lowest, highest)
    return scale * (k - zero_point)


def per_channel(weight, bits=8, axis=0):
    highest = 2 ** (bits - 1) - 1
    others = [d for d in range(weight.dim()) if d != axis]
    largest = weight.abs().amax(others, keepdim=True)
    scale = largest / highest
    scale = torch.where(scale > 0, scale, 1.0)
    k = torch.round(weight / scale)
    return k.to(torch.int8), scale


def fake_quantize(x, scale, zero_point, lowest, highest):
    k = torch.round(x / scale) + zero_point
    rounded = scale * (k.clamp(lowest, highest) - zero_point)
    inside = (k >= lowest) & (k <= highest)
    passed = torch.where(inside, x, x.detach())
    return passed + (rounded - passed).detach()


def fake_quantize_by_clamp(x, scale, zero_point, lowest, highest):
    bounds = scale * (lowest - zero_point), scale * (highest - zero_point)
    passed = x.clamp(*bounds)
    rounded = scale * torch.round(passed / scale)
    return passed + (rounded - passed).detach()


def fold_batch_norm(weight, bias, gamma, beta, mean, var, eps=1e-5):
    factor = gamma / torch.sqrt(var + eps)
    if bias is None:
        bias = torch.zeros_like(mean)
    folded = weight * factor.reshape(-1, 1, 1, 1)
    return folded, beta + (bias - mean) * factor


def int8_linear(x, x_zero, weight, bias, multiplier, shift, y_zero):
    a = (x.int() - x_zero) @ weight.int().T + bias
    half = 1 << (shift - 1)
    k = ((a.long() * multiplier + half) >> shift) + y_zero
    return k.clamp(0, 255).to(torch.uint8)


def calibrate(batches, bits=8, steps=100):
    values = torch.cat([batch.flatten() for batch in batches])
    largest = values.abs().max()
    highest = 2 ** (bits - 1) - 1
    best, least = largest, math.inf
    for step in range(1, steps + 1):
        bound = largest * step / steps
        scale = bound / highest
        rounded = scale * torch.round(values / scale).clamp(-highest, highest)
        error = (rounded - values).square().mean()
        if error < least:
            best, least = bound, error
    return best


def gptq_column(weight, column, scale, factor, highest):
    w = weight[:, column]
    rounded = scale * torch.round(w / scale).clamp(-highest, highest)
    error = (w - rounded) / factor[column, column]
    result = weight.clone()
    result[:, column] = rounded
    result[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    return result


def check_affine_qparams(candidate: Callable) -> Passed:
    """Check ``affine_qparams(low, high, bits=8)`` -> (scale, zero_point int64)."""
    draw = draws(51)
    low, high = draw(7) - 1, draw(7) + 2  # some ranges do not contain 0
    cases = [
        Case(-draw(5).abs() - 0.1, draw(5).abs() + 0.3, bits=3),
        Case(torch.minimum(low, high), torch.maximum(low, high)),
        Case(1 + draw(4).abs(), 3 + draw(4).abs(), bits=4),
        Case(-4 - draw(4).abs(), -1 - draw(4).abs(), 4),
        Case(*torch.tensor([[-1.5, 0.0, 0.0], [-1.5, 0.0, 2.0]], dtype=torch.float64)),
        Case(-draw(2, 1, 3).abs(), draw(2, 1, 3).abs(), bits=2),
        Case(torch.tensor(-0.7, dtype=torch.float64), torch.tensor(2.1, dtype=torch.float64)),
    ]
    return compare(
        candidate, reference=affine_qparams, cases=cases, outputs=("scale", "zero_point"),
        tolerance=1e-12,
    )  # fmt: skip


def check_quantize_dequantize(candidate: Callable) -> Passed:
    """Check ``quantize_dequantize(x, scale, zero_point, lowest, highest)``."""
    draw = draws(52)

    def scales(*shape):
        return draw(*shape).abs() / 5 + 0.05

    cases = [
        Case(draw(7), scales(), torch.tensor(3), 0, 7),
        Case(3 * draw(3, 5), scales(), torch.tensor(9), 0, 15),
        Case(2 * draw(4, 3), scales(), torch.tensor(0), -7, 7),
        Case(3 * draw(3, 4), scales(3, 1), torch.tensor([[2], [0], [7]]), 0, 7),
        Case(4 * draw(4, 3, 2, 5), scales(3, 1, 1), torch.tensor([[[1]], [[-3]], [[4]]]), -8, 7),
        Case(40 * draw(1, 1), scales(), torch.tensor(128), 0, 255),
    ]
    return compare(
        candidate, reference=quantize_dequantize, cases=cases, tolerance=1e-12,
        forbidden=TORCHS_OWN,
    )  # fmt: skip


def check_per_channel(candidate: Callable) -> Passed:
    """Check ``per_channel(weight, bits=8, axis=0)`` -> (int8 numbers, scale with axes of 1)."""
    draw = draws(53)
    silent = draw(3, 5)
    silent[1] = 0
    sizes = 2.0 ** torch.arange(5, dtype=torch.float64)[:, None]
    cases = [
        Case(sizes * draw(5, 3), bits=4),
        Case(draw(5, 3) * sizes, axis=1),
        Case(draw(4, 3, 2, 5)),
        Case(draw(3, 4, 5, 2), 3, axis=1),
        Case(silent),
        Case(-draw(2, 1).abs(), bits=2),
    ]
    return compare(
        candidate, reference=per_channel, cases=cases, outputs=("numbers", "scale"),
        tolerance=1e-12, forbidden=TORCHS_OWN,
    )  # fmt: skip


def check_fake_quantize(candidate: Callable) -> Passed:
    """Check ``fake_quantize(x, scale, zero_point, lowest, highest)``, and its gradient.

    No x lies less than half a step beyond the last number: there, both slopes are in use.
    """
    draw = draws(54)

    def case(shape, scale, zero_point, lowest, highest):
        x, scale = 3 * draw(*shape), torch.tensor(scale, dtype=torch.float64)
        low, high = scale * (lowest - zero_point), scale * (highest - zero_point)
        x = torch.where((x > high - scale / 9) | (x < low + scale / 9), x + 2 * x.sign() * scale, x)
        return Case(x, scale, torch.tensor(zero_point), lowest, highest)

    cases = [
        case((60,), 0.7, 3, 0, 7),
        case((12, 11), 0.5, 0, -7, 7),
        case((4, 9, 5), 0.4, 7, 0, 15),
        case((3, 3), 1.1, -1, -4, 3),
        case((1, 1), 0.05, 128, 0, 255),
    ]
    return compare(
        candidate, reference=fake_quantize, cases=cases, use=_value_and_gradient,
        outputs=("the values", "the gradient"), tolerance=1e-10,
        forms=(fake_quantize_by_clamp,), forbidden=TORCHS_OWN,
    )  # fmt: skip


def _value_and_gradient(
    function: Callable, x: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int
) -> tuple[Tensor, Tensor] | None:
    """What comes out, and the gradient of Σ weight · output for x, with weights 1, 2, 3 …"""
    y = function(x.requires_grad_(), scale, zero_point, lowest, highest)
    if y is None:
        return None
    if not isinstance(y, Tensor) or not y.requires_grad:
        return y, torch.zeros_like(x)
    weights = torch.arange(1, y.numel() + 1).to(y).view(y.shape)
    (gradient,) = torch.autograd.grad((weights * y).sum(), x, materialize_grads=True)
    return y, gradient


def check_fold_batch_norm(candidate: Callable) -> Passed:
    """Check ``fold_batch_norm(weight, bias, gamma, beta, mean, var, eps=1e-5)``."""
    draw = draws(55)

    def case(out, channels, height, width, bias=True, **options):
        norm = (draw(out), draw(out), draw(out), draw(out).abs() + 0.1)
        weight = draw(out, channels, height, width)
        return Case(weight, draw(out) if bias else None, *norm, **options)

    cases = [
        case(5, 3, 3, 2),
        case(4, 2, 1, 3, bias=False),
        case(3, 3, 3, 3, eps=0.5),
        case(3, 3, 3, 3, bias=False, eps=0.01),
        case(1, 2, 1, 1),
    ]
    return compare(
        candidate, reference=fold_batch_norm, cases=cases, outputs=("weight", "bias"),
        tolerance=1e-10, forbidden=TORCHS_FOLDING,
    )  # fmt: skip


def check_int8_linear(candidate: Callable) -> Passed:
    """Check ``int8_linear(x, x_zero, weight, bias, multiplier, shift, y_zero)``: whole numbers."""
    draw = draws(56)

    def case(batch, width, out, x_zero, y_zero, spread=60.0):
        x = (128 + spread * draw(batch, width)).round().clamp(0, 255).to(torch.uint8)
        weight = (spread * draw(out, width)).round().clamp(-127, 127).to(torch.int8)
        bias = (2000 * draw(out)).round().int()
        # so that outputs fill the bytes, and some of them are clamped
        factor = (0.6 + draw(out).abs() / 4) * 128 / (spread**2 * width**0.5 * 2)
        mantissa, exponent = torch.frexp(factor)
        multiplier = torch.round(mantissa * 2**31).long()
        return Case(x, x_zero, weight, bias, multiplier, (31 - exponent).long(), y_zero)

    cases = [
        case(3, 5, 4, 117, 90),
        case(4, 70, 3, 128, 120),
        case(5, 9, 2, 3, 0),
        case(3, 40, 5, 200, 255),
        case(3, 3, 3, 131, 128, spread=20.0),
        case(3, 5, 4, 117, 90),  # the first case again, with other numbers
        case(1, 1, 1, 128, 101),
    ]
    return compare(candidate, reference=int8_linear, cases=cases)


def check_calibrate(candidate: Callable) -> Passed:
    """Check ``calibrate(batches, bits=8, steps=100)``: the bound with the least squared error."""
    draw = draws(57)
    cases = [
        Case([draw(40, 3) ** 3, draw(31) ** 3], bits=4),
        Case([draw(60), 4 * draw(50), draw(70) / 2], bits=3, steps=40),
        Case([-(draw(90).abs() ** 2), draw(20)], bits=4, steps=50),
        Case([draw(2, 3, 5, 7), 2 * draw(3, 3, 5, 7)], 2),
        Case([draw(20_000)]),
        Case([draw(2000), draw(2000)], bits=2, steps=2),
        Case([draw(1, 1)], bits=4, steps=10),
    ]
    return compare(candidate, reference=calibrate, cases=cases, tolerance=1e-10)


def check_gptq_column(candidate: Callable) -> Passed:
    """Check ``gptq_column(weight, column, scale, factor, highest)``: one step of GPTQ."""
    draw = draws(58)

    def case(rows, columns, column, highest):
        x = draw(3 * columns, columns) @ (draw(columns, columns) / 2 + torch.eye(columns).double())
        factor = torch.linalg.cholesky(torch.linalg.inv(x.T @ x), upper=True)
        return Case(draw(rows, columns), column, draw(rows).abs() / 9 + 0.05, factor, highest)

    cases = [
        case(9, 6, 2, 3),
        case(5, 5, 0, 7),
        case(8, 7, 3, 1),
        case(5, 5, 3, 7),
        case(2, 4, 3, 7),
        case(1, 2, 0, 7),
    ]
    return compare(candidate, reference=gptq_column, cases=cases, tolerance=1e-10)
