"""Wrong answers on quantization, and other correct ones."""

import torch

from wrong_answers import Task

QPARAMS, ROUND_TRIP, CHANNEL, FAKE, FOLD, LINEAR, CALIBRATE, GPTQ = (Task() for _ in range(8))
TASKS = {
    "affine_qparams": QPARAMS,
    "quantize_dequantize": ROUND_TRIP,
    "per_channel": CHANNEL,
    "fake_quantize": FAKE,
    "fold_batch_norm": FOLD,
    "int8_linear": LINEAR,
    "calibrate": CALIBRATE,
    "gptq_column": GPTQ,
}


# Scale and zero point.


@QPARAMS.fails_with("zero-left-out")
def trusts_the_range(low, high, bits=8):
    scale = (high - low) / float(2**bits - 1)
    scale[scale == 0] = 1.0
    return scale, (-low / scale).round().long()


@QPARAMS.fails_with("zero-point-not-rounded")
def cuts_the_zero_point(low, high, bits=8):
    low, high = torch.clamp(low, max=0.0), torch.clamp(high, min=0.0)
    scale = (high - low) / (2**bits - 1)
    scale = scale.masked_fill(scale == 0, 1.0)
    return scale, (-low / scale).long()


@QPARAMS.passes
def goes_through_a_list(low, high, bits=8):
    scales, points = [], []
    for l, h in zip(low.flatten().tolist(), high.flatten().tolist(), strict=True):  # noqa: E741
        s = (max(h, 0.0) - min(l, 0.0)) / (2**bits - 1) or 1.0
        scales.append(s)
        points.append(round(-min(l, 0.0) / s))
    return low.new_tensor(scales).view(low.shape), torch.tensor(points).view(low.shape)


@QPARAMS.passes
def counts_from_the_upper_end(low, high, bits=8):
    zero, most = torch.zeros_like(low), 2**bits - 1
    high, low = torch.maximum(high, zero), torch.minimum(low, zero)
    scale = (high - low) / most
    scale = scale + (scale == 0).to(scale.dtype)
    point = torch.where(high == low, zero, most - (high / scale).round())
    return scale, point.to(torch.int64)


# There and back.


@ROUND_TRIP.fails_with("clamp-missing")
def never_clamps(x, scale, zero_point, lowest, highest):
    return x.div(scale).round() * scale


@ROUND_TRIP.fails_with("cut-instead-of-rounded")
def casts(x, scale, zero_point, lowest, highest):
    k = (x / scale).int() + zero_point
    return (torch.clip(k, lowest, highest) - zero_point) * scale


@ROUND_TRIP.passes
def clamps_the_shifted_limits(x, scale, zero_point, lowest, highest):
    steps = torch.round(x / scale)
    steps = torch.minimum(torch.maximum(steps, lowest - zero_point.to(x)), highest - zero_point)
    return steps * scale


@ROUND_TRIP.passes
def stores_whole_numbers(x, scale, zero_point, lowest, highest):
    k = (torch.round(x / scale).long() + zero_point).clamp(min=lowest).clamp(max=highest)
    return (k - zero_point).to(x.dtype) * scale


# Per channel.


@CHANNEL.fails_with("abs-missing")
def forgets_negative_weights(weight, bits=8, axis=0):
    q = 2 ** (bits - 1) - 1
    rows = weight.transpose(0, axis).flatten(1)
    shape = [-1 if d == axis else 1 for d in range(weight.dim())]
    scale = (rows.max(1).values / q).view(shape)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round().to(torch.int8), scale


@CHANNEL.fails_with("always-axis-0")
def knows_one_axis(weight, bits=8, axis=0):
    q = 2 ** (bits - 1) - 1
    scale = weight.abs().flatten(1).amax(1) / q
    scale = scale.masked_fill(scale == 0, 1.0).view(-1, *[1] * (weight.dim() - 1))
    return (weight / scale).round().char(), scale


@CHANNEL.passes
def moves_the_axis(weight, bits=8, axis=0):
    q = 2 ** (bits - 1) - 1
    front = weight.movedim(axis, 0)
    scale = front.flatten(1).abs().max(dim=1).values / q
    scale = scale.masked_fill(scale == 0, 1.0).view(-1, *[1] * (weight.dim() - 1))
    k = torch.round(front / scale).clamp(-q, q)
    return k.movedim(0, axis).to(torch.int8), scale.movedim(0, axis)


@CHANNEL.passes
def loops_over_channels(weight, bits=8, axis=0):
    q, numbers, scales = 2 ** (bits - 1) - 1, [], []
    for part in weight.split(1, dim=axis):
        s = max(part.max().item(), -part.min().item()) / q or 1.0
        numbers.append((part / s).round().to(torch.int8))
        scales.append(torch.full_like(part[(slice(0, 1),) * part.dim()], s))
    return torch.cat(numbers, axis), torch.cat(scales, axis)


# With a gradient.


@FAKE.fails_with("no-gradient")
def only_rounds(x, scale, zero_point, lowest, highest):
    k = torch.clamp((x / scale).round() + zero_point, lowest, highest)
    return (k - zero_point) * scale


@FAKE.fails_with("gradient-where-clamped")
def passes_everything(x, scale, zero_point, lowest, highest):
    k = torch.clamp((x / scale).round() + zero_point, lowest, highest)
    return x - (x - (k - zero_point) * scale).detach()


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, lowest, highest):
        k = (x / scale).round() + zero_point
        ctx.save_for_backward((k < lowest) | (k > highest))
        return (k.clamp(lowest, highest) - zero_point) * scale

    @staticmethod
    def backward(ctx, gradient):
        return gradient.masked_fill(ctx.saved_tensors[0], 0.0), None, None, None, None


@FAKE.passes
def writes_a_function(x, scale, zero_point, lowest, highest):
    return _Straight.apply(x, scale, zero_point, lowest, highest)


@FAKE.passes
def clamps_in_steps(x, scale, zero_point, lowest, highest):
    steps = (x / scale + zero_point).clamp(lowest, highest)
    steps = steps + (steps.round() - steps).detach()
    return (steps - zero_point) * scale


# Batch norm.


@FOLD.fails_with("eps-outside-the-root")
def adds_eps_late(weight, bias, gamma, beta, mean, var, eps=1e-5):
    factor = gamma / (var.sqrt() + eps)
    moved = -mean if bias is None else bias - mean
    return weight * factor[:, None, None, None], moved * factor + beta


@FOLD.fails_with("old-bias-lost")
def has_no_bias(weight, bias, gamma, beta, mean, var, eps=1e-5):
    factor = gamma * (var + eps) ** -0.5
    return torch.einsum("oihw,o->oihw", weight, factor), beta - factor * mean


@FOLD.passes
def uses_einsum(weight, bias, gamma, beta, mean, var, eps=1e-5):
    factor = gamma * (var + eps).rsqrt()
    moved = beta - mean * factor
    moved = moved if bias is None else moved + bias * factor
    return torch.einsum("oihw,o->oihw", weight, factor), moved


@FOLD.passes
def loops_over_filters(weight, bias, gamma, beta, mean, var, eps=1e-5):
    w, b = torch.empty_like(weight), torch.empty_like(beta)
    for o in range(len(weight)):
        deviation = (var[o] + eps).sqrt()
        w[o] = weight[o] / deviation * gamma[o]
        b[o] = ((0.0 if bias is None else bias[o]) - mean[o]) / deviation * gamma[o] + beta[o]
    return w, b


# Whole numbers.


@LINEAR.fails_with("zero-point-forgotten")
def multiplies_bytes_as_they_are(x, x_zero, weight, bias, multiplier, shift, y_zero):
    a = torch.einsum("ni,oi->no", x.long(), weight.long()) + bias
    return ((a * multiplier + 2 ** (shift - 1)) // 2**shift + y_zero).clamp(0, 255).byte()


@LINEAR.fails_with("cast-without-clamp")
def wraps_around(x, x_zero, weight, bias, multiplier, shift, y_zero):
    a = torch.einsum("ni,oi->no", x.long() - x_zero, weight.long()) + bias
    return ((a * multiplier + 2 ** (shift - 1)) // 2**shift + y_zero).byte()


@LINEAR.passes
def takes_the_zero_point_out_of_the_sum(x, x_zero, weight, bias, multiplier, shift, y_zero):
    w = weight.long()
    a = x.long() @ w.T - x_zero * w.sum(1) + bias
    k = torch.div(a * multiplier + 2 ** (shift - 1), 2**shift, rounding_mode="floor") + y_zero
    return torch.clip(k, 0, 255).to(torch.uint8)


@LINEAR.passes
def adds_up_in_python(x, x_zero, weight, bias, multiplier, shift, y_zero):
    rows = []
    for row in x.tolist():
        out = []
        lists = (t.tolist() for t in (weight, bias, multiplier, shift))
        for w, b, m, n in zip(*lists, strict=True):
            a = b + sum((p - x_zero) * q for p, q in zip(row, w, strict=True))
            out.append(min(255, max(0, ((a * m + (1 << n - 1)) >> n) + y_zero)))
        rows.append(out)
    return torch.tensor(rows, dtype=torch.uint8)


# Calibration.


@CALIBRATE.fails_with("last-batch-only")
def forgets_earlier_batches(batches, bits=8, steps=100):
    for batch in batches:
        bound = tries_all_at_once([batch], bits, steps)
    return bound


@CALIBRATE.fails_with("largest-value")
def takes_min_and_max(batches, bits=8, steps=100):
    return torch.stack([batch.abs().max() for batch in batches]).max()


@CALIBRATE.passes
def tries_all_at_once(batches, bits=8, steps=100):
    x = torch.cat([b.reshape(-1) for b in batches])
    q = 2 ** (bits - 1) - 1
    bounds = x.abs().max() * torch.arange(1, steps + 1) / steps
    s = (bounds / q)[:, None]
    errors = ((x / s).round().clamp(-q, q) * s - x).pow(2).sum(1)
    return bounds[errors.argmin()]


@CALIBRATE.passes
def adds_up_batch_by_batch(batches, bits=8, steps=100):
    q, top = 2 ** (bits - 1) - 1, max(b.abs().max() for b in batches)
    errors = {}
    for n in range(1, steps + 1):
        bound = top * n / steps
        s = bound / q
        kept = [(b.clamp(-bound, bound) / s).round() * s for b in batches]
        errors[bound] = sum((k - b).pow(2).sum() for k, b in zip(kept, batches, strict=True))
    return min(errors, key=errors.get)


# One step of GPTQ.


@GPTQ.fails_with("diagonal-not-divided")
def hands_on_the_bare_error(weight, column, scale, factor, highest):
    new = weight.clone()
    k = (weight[:, column] / scale).round().clamp(-highest, highest)
    new[:, column] = k * scale
    lost = weight[:, column] - new[:, column]
    new[:, column + 1 :] = new[:, column + 1 :] - torch.outer(lost, factor[column, column + 1 :])
    return new


@GPTQ.fails_with("no-correction")
def rounds_to_nearest(weight, column, scale, factor, highest):
    new = weight.clone()
    new[:, column] = (weight[:, column] / scale).round().clamp(-highest, highest) * scale
    return new


@GPTQ.passes
def moves_the_whole_row(weight, column, scale, factor, highest):
    w = weight[:, column]
    lost = (w - (w / scale).round().clamp(-highest, highest) * scale) / factor[column, column]
    # the triangle holds zeros left of the diagonal, and the diagonal itself makes w the rounded one
    return weight - torch.outer(lost, factor[column])


@GPTQ.passes
def loops_over_the_rest(weight, column, scale, factor, highest):
    columns = list(weight.clone().unbind(1))
    w = columns[column]
    columns[column] = (w / scale).round().clamp(-highest, highest) * scale
    lost = (w - columns[column]) / factor[column, column]
    for j in range(column + 1, len(columns)):
        columns[j] = columns[j] - lost * factor[column, j]
    return torch.stack(columns, 1)
