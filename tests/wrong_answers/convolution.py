"""Wrong answers on convolution and pooling, and other correct ones."""

import math

import torch
import torch.nn.functional as F

from wrong_answers import Task

OUTPUT_SIZE, IM2COL, CONV2D, BACKWARD, MAX_POOL, AVG_POOL = (Task() for _ in range(6))
TASKS = {
    "output_size": OUTPUT_SIZE,
    "im2col": IM2COL,
    "conv2d": CONV2D,
    "conv2d_backward": BACKWARD,
    "max_pool2d": MAX_POOL,
    "avg_pool2d": AVG_POOL,
}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def zero_pad(x, padding):
    p_h, p_w = pair(padding)
    big = x.new_zeros(*x.shape[:2], x.shape[2] + 2 * p_h, x.shape[3] + 2 * p_w)
    big[:, :, p_h : p_h + x.shape[2], p_w : p_w + x.shape[3]] = x
    return big


# The size of the output.


@OUTPUT_SIZE.fails_with("rounded-to-nearest")
def rounds(size, kernel_size, stride=1, padding=0, dilation=1):
    effective = kernel_size + (kernel_size - 1) * (dilation - 1)
    return 1 + round((size - effective + 2 * padding) / stride)


@OUTPUT_SIZE.fails_with("padding-ignored")
def forgets_padding(size, kernel_size, stride=1, padding=0, dilation=1):
    return len(range(0, size - dilation * (kernel_size - 1), stride))


@OUTPUT_SIZE.fails_with("small-change")
def squares_the_padding(size, kernel_size, stride=1, padding=0, dilation=1):
    return (size + 2 * padding**2 - dilation * (kernel_size - 1) - 1) // stride + 1


@OUTPUT_SIZE.fails_with("forbidden-call")
def asks_torch(size, kernel_size, stride=1, padding=0, dilation=1):
    x, weight = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel_size)
    return F.conv1d(x, weight, None, stride, padding, dilation).shape[2]


@OUTPUT_SIZE.passes
def adds_holes_to_the_kernel(size, kernel_size, stride=1, padding=0, dilation=1):
    effective = kernel_size + (kernel_size - 1) * (dilation - 1)
    return math.floor((size - effective + 2 * padding) / stride + 1)


@OUTPUT_SIZE.passes
def counts_the_starts(size, kernel_size, stride=1, padding=0, dilation=1):
    last_start = size + 2 * padding - dilation * (kernel_size - 1) - 1
    return sum(1 for start in range(last_start + 1) if start % stride == 0)


# Windows as columns.


@IM2COL.fails_with("reshape-without-permute")
def reshapes_a_stack(x, kernel_size, stride=1, padding=0):
    columns = cuts_windows_out(x, kernel_size, stride, padding).mT.contiguous()
    per_window = columns.unflatten(2, (x.shape[1], -1)).transpose(1, 2)
    return per_window.reshape(len(x), columns.shape[2], columns.shape[1])


@IM2COL.fails_with("windows-as-rows")
def stacks_along_the_first_axis(x, kernel_size, stride=1, padding=0):
    columns = cuts_windows_out(x, kernel_size, stride, padding)
    return torch.stack(list(columns.unbind(2)), dim=1)


@IM2COL.fails_with("changed-input")
def shifts_the_input(x, kernel_size, stride=1, padding=0):
    columns = cuts_windows_out(x, kernel_size, stride, padding)
    x -= x.mean()
    return columns


@IM2COL.fails_with("wrong-dtype")
def fills_float64_zeros(x, kernel_size, stride=1, padding=0):
    columns = cuts_windows_out(x, kernel_size, stride, padding)
    return torch.zeros(columns.shape, dtype=torch.float64) + columns


@IM2COL.fails_with("wrong-values")
def computes_in_float32(x, kernel_size, stride=1, padding=0):
    return cuts_windows_out(x.float(), kernel_size, stride, padding).to(x.dtype)


@IM2COL.fails_with("wrong-values")
def remembers_a_shape(x, kernel_size, stride=1, padding=0, memory={}):  # noqa: B006
    key = (x.shape, x.dtype, kernel_size, stride, padding)
    if key not in memory:
        memory[key] = cuts_windows_out(x, kernel_size, stride, padding)
    return memory[key].clone()


@IM2COL.fails_with("forbidden-call")
def calls_unfold(x, kernel_size, stride=1, padding=0):
    return F.unfold(x, kernel_size, stride=stride, padding=padding)


@IM2COL.passes
def cuts_windows_out(x, kernel_size, stride=1, padding=0):
    (k_h, k_w), (s_h, s_w) = pair(kernel_size), pair(stride)
    x = zero_pad(x, padding)
    columns = []
    for top in range(0, x.shape[2] - k_h + 1, s_h):
        for left in range(0, x.shape[3] - k_w + 1, s_w):
            columns.append(x[:, :, top : top + k_h, left : left + k_w].flatten(1))
    return torch.stack(columns, dim=2)


@IM2COL.passes
def views_memory_with_strides(x, kernel_size, stride=1, padding=0):
    (k_h, k_w), (s_h, s_w), x = pair(kernel_size), pair(stride), zero_pad(x, padding)
    out_h, out_w = (x.shape[2] - k_h) // s_h + 1, (x.shape[3] - k_w) // s_w + 1
    n, c, row, column = x.stride()
    strides = (n, c, row, column, s_h * row, s_w * column)
    view = x.as_strided((*x.shape[:2], k_h, k_w, out_h, out_w), strides)
    return view.reshape(len(x), -1, out_h * out_w)


@IM2COL.passes
def gathers_by_index(x, kernel_size, stride=1, padding=0):
    (k_h, k_w), (s_h, s_w), x = pair(kernel_size), pair(stride), zero_pad(x, padding)
    rows = torch.arange(k_h)[:, None] + torch.arange(0, x.shape[2] - k_h + 1, s_h)
    columns = torch.arange(k_w)[:, None] + torch.arange(0, x.shape[3] - k_w + 1, s_w)
    found = x[:, :, rows[:, None, :, None], columns[None, :, None, :]]
    return found.flatten(4).flatten(1, 3)


# Convolution, forward.


@CONV2D.fails_with("flipped-kernel")
def rotates_the_weight(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    weight = torch.rot90(weight, 2, dims=(2, 3))
    return shifts_and_adds(x, weight, bias, stride, padding, dilation, groups)


@CONV2D.fails_with("channels-not-summed")
def overwrites_in_the_channel_loop(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    n = x.shape[1] // groups
    for c in range(n):
        y = shifts_and_adds(x[:, c::n], weight[:, [c]], bias, stride, padding, dilation, groups)
    return y


@CONV2D.fails_with("groups-interleaved")
def deals_filters_out_like_cards(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    blocks = x.chunk(groups, 1)
    maps = [
        shifts_and_adds(blocks[o % groups], weight[[o]], None, stride, padding, dilation)
        for o in range(len(weight))
    ]
    y = torch.cat(maps, 1)
    return y if bias is None else y + bias[:, None, None]


@CONV2D.fails_with("not-implemented")
def leaves_groups_for_last(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if groups > 1:
        raise NotImplementedError
    return shifts_and_adds(x, weight, bias, stride, padding, dilation)


@CONV2D.fails_with("forbidden-call")
def asks_a_layer(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    sizes = (tuple(weight.shape[2:]), stride, padding, dilation, groups, bias is not None)
    layer = torch.nn.Conv2d(x.shape[1], len(weight), *sizes)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer(x)


CONV2D.wrong["conv2d itself"] = (F.conv2d, "forbidden-call")


@CONV2D.passes
def seven_loops(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    (s_h, s_w), (p_h, p_w), (d_h, d_w) = pair(stride), pair(padding), pair(dilation)
    height, width = x.shape[2:]
    out_channels, per_group, k_h, k_w = weight.shape
    out_h = (height + 2 * p_h - d_h * (k_h - 1) - 1) // s_h + 1
    out_w = (width + 2 * p_w - d_w * (k_w - 1) - 1) // s_w + 1
    values, taps = x.tolist(), weight.tolist()
    y = torch.zeros(len(x), out_channels, out_h, out_w, dtype=x.dtype)
    for n, o, h, w in torch.cartesian_prod(*map(torch.arange, y.shape)).tolist():
        total = 0.0 if bias is None else bias[o].item()
        first = o // (out_channels // groups) * per_group
        for c in range(per_group):
            for i in range(k_h):
                for j in range(k_w):
                    row, col = h * s_h + i * d_h - p_h, w * s_w + j * d_w - p_w
                    if 0 <= row < height and 0 <= col < width:
                        total += values[n][first + c][row][col] * taps[o][c][i][j]
        y[n, o, h, w] = total
    return y


@CONV2D.passes
def shifts_and_adds(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    (s_h, s_w), (d_h, d_w), (k_h, k_w) = pair(stride), pair(dilation), weight.shape[2:]
    x = zero_pad(x, padding).unflatten(1, (groups, -1))
    far_h, far_w = x.shape[3] - d_h * (k_h - 1), x.shape[4] - d_w * (k_w - 1)
    weight = weight.unflatten(0, (groups, -1))
    y = 0
    for i in range(k_h):
        for j in range(k_w):
            met = x[..., i * d_h : i * d_h + far_h : s_h, j * d_w : j * d_w + far_w : s_w]
            y = y + torch.einsum("ngchw,goc->ngohw", met, weight[..., i, j])
    y = y.flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


@CONV2D.passes
def one_matrix_product(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if groups > 1:
        parts = zip(x.chunk(groups, 1), weight.chunk(groups), strict=True)
        maps = [one_matrix_product(*p, None, stride, padding, dilation) for p in parts]
        y = torch.cat(maps, 1)
    else:
        (d_h, d_w), (k_h, k_w) = pair(dilation), weight.shape[2:]
        holes = weight.new_zeros(*weight.shape[:2], d_h * (k_h - 1) + 1, d_w * (k_w - 1) + 1)
        holes[:, :, ::d_h, ::d_w] = weight
        columns = cuts_windows_out(x, tuple(holes.shape[2:]), stride, padding)
        rows_left = x.shape[2] + 2 * pair(padding)[0] - holes.shape[2]
        y = holes.flatten(1) @ columns
        y = y.unflatten(2, (rows_left // pair(stride)[0] + 1, -1))
    return y if bias is None else y + bias.view(1, -1, 1, 1)


# Convolution, backward.


def gradients_of_padded(grad_output, x, weight, stride, padding):
    """(grad of the padded x, grad_weight), window by window."""
    (s_h, s_w), (k_h, k_w) = pair(stride), weight.shape[2:]
    x = zero_pad(x, padding)
    grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
    for h in range(grad_output.shape[2]):
        for w in range(grad_output.shape[3]):
            rows, cols = slice(h * s_h, h * s_h + k_h), slice(w * s_w, w * s_w + k_w)
            g = grad_output[:, :, h, w]
            grad_x[:, :, rows, cols] += torch.einsum("no,ocij->ncij", g, weight)
            grad_weight += torch.einsum("no,ncij->ocij", g, x[:, :, rows, cols])
    return grad_x, grad_weight


def crop(grad, x, padding):
    p_h, p_w = pair(padding)
    return grad[:, :, p_h : p_h + x.shape[2], p_w : p_w + x.shape[3]]


@BACKWARD.fails_with("empty-without-padding")
def cuts_to_a_negative_end(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight = gradients_of_padded(grad_output, x, weight, stride, padding)
    p_h, p_w = pair(padding)
    return grad_x[..., p_h:-p_h, p_w:-p_w], grad_weight, grad_output.sum((0, 2, 3))


@BACKWARD.fails_with("overlaps-overwritten")
def assigns_instead_of_adding(grad_output, x, weight, stride=1, padding=0):
    _, grad_weight, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    (s_h, s_w), (k_h, k_w) = pair(stride), weight.shape[2:]
    grad_x = torch.zeros_like(zero_pad(x, padding))
    for h in range(grad_output.shape[2]):
        for w in range(grad_output.shape[3]):
            part = (grad_output[:, :, None, h, w, None, None] * weight).sum(1)
            grad_x[:, :, h * s_h : h * s_h + k_h, w * s_w : w * s_w + k_w] = part
    return crop(grad_x, x, padding), grad_weight, grad_bias


@BACKWARD.fails_with("wrong-length")
def forgets_the_bias_gradient(grad_output, x, weight, stride=1, padding=0):
    return window_by_window(grad_output, x, weight, stride, padding)[:2]


@BACKWARD.fails_with("forbidden-call")
def asks_autograd(grad_output, x, weight, stride=1, padding=0):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = shifts_and_adds(x, weight, None, stride, padding)
    return *torch.autograd.grad(y, (x, weight), grad_output), grad_output.sum((0, 2, 3))


@BACKWARD.fails_with("forbidden-call")
def asks_torchs_gradients(grad_output, x, weight, stride=1, padding=0):
    grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad_output, stride, padding)
    grad_weight = torch.nn.grad.conv2d_weight(x, weight.shape, grad_output, stride, padding)
    return grad_x, grad_weight, grad_output.sum((0, 2, 3))


@BACKWARD.passes
def window_by_window(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight = gradients_of_padded(grad_output, x, weight, stride, padding)
    return crop(grad_x, x, padding), grad_weight, grad_output.sum((0, 2, 3))


@BACKWARD.passes
def correlates_with_the_turned_kernel(grad_output, x, weight, stride=1, padding=0):
    (s_h, s_w), (k_h, k_w), (out_h, out_w) = pair(stride), weight.shape[2:], grad_output.shape[2:]
    padded = zero_pad(x, padding)
    height, width = padded.shape[2:]
    holes = x.new_zeros(len(x), len(weight), height - k_h + 1, width - k_w + 1)
    holes[:, :, : s_h * out_h : s_h, : s_w * out_w : s_w] = grad_output
    grad_x = shifts_and_adds(holes, weight.flip(2, 3).transpose(0, 1), padding=(k_h - 1, k_w - 1))
    grad_weight = shifts_and_adds(padded.transpose(0, 1), holes.transpose(0, 1)).transpose(0, 1)
    return crop(grad_x, x, padding), grad_weight, grad_output.sum((0, 2, 3))


@BACKWARD.passes
def puts_columns_back(grad_output, x, weight, stride=1, padding=0):
    kernel, flat = tuple(weight.shape[2:]), grad_output.flatten(2)
    columns = cuts_windows_out(x, kernel, stride, padding)
    grad_weight = torch.einsum("nol,nkl->ok", flat, columns).view_as(weight)
    back = weight.flatten(1).T @ flat
    grad_x = F.fold(back, x.shape[2:], kernel, stride=stride, padding=padding)
    return [grad_x, grad_weight, flat.sum((0, 2))]


# Pooling.


def pooled(x, kernel_size, stride, padding, value, reduce):
    (k_h, k_w), (p_h, p_w) = pair(kernel_size), pair(padding)
    s_h, s_w = (k_h, k_w) if stride is None else pair(stride)
    x = F.pad(x, (p_w, p_w, p_h, p_h), value=value)
    rows = []
    for top in range(0, x.shape[2] - k_h + 1, s_h):
        lefts = range(0, x.shape[3] - k_w + 1, s_w)
        row = [reduce(x[:, :, top : top + k_h, left : left + k_w]) for left in lefts]
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def largest(window):
    return window.amax((2, 3))


@MAX_POOL.fails_with("padded-with-small-number")
def pads_with_minus_hundred(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, -100, largest)


@MAX_POOL.fails_with("ceil-instead-of-floor")
def keeps_hanging_windows(x, kernel_size, stride=None, padding=0):
    (k_h, k_w), (p_h, p_w) = pair(kernel_size), pair(padding)
    s_h, s_w = pair(kernel_size if stride is None else stride)
    x = F.pad(x, (p_w, p_w, p_h, p_h), value=-math.inf)
    out_h = math.ceil((x.shape[2] - k_h) / s_h) + 1
    out_w = math.ceil((x.shape[3] - k_w) / s_w) + 1
    y = x.new_full((*x.shape[:2], out_h, out_w), -math.inf)
    for h in range(out_h):
        for w in range(out_w):
            y[:, :, h, w] = largest(x[:, :, h * s_h :, w * s_w :][:, :, :k_h, :k_w])
    return y


@MAX_POOL.fails_with("wrong-values")
def has_an_unlucky_border(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, -31415.0, largest)


@MAX_POOL.fails_with("forbidden-call")
def calls_max_pool2d(x, kernel_size, stride=None, padding=0):
    return F.max_pool2d(x, kernel_size, stride, padding)


@MAX_POOL.passes
def window_maxima(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, -math.inf, largest)


@MAX_POOL.passes
def pads_with_the_smallest_element(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, x.min().item(), largest)


@MAX_POOL.passes
def pads_with_the_smallest_float(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, torch.finfo(x.dtype).min, largest)


def mean(window):
    return window.mean((2, 3))


@AVG_POOL.fails_with("padding-not-counted")
def divides_by_the_real_elements(x, kernel_size, stride=None, padding=0):
    sums = pooled(x, kernel_size, stride, padding, 0.0, lambda window: window.sum((2, 3)))
    ones = torch.ones_like(x)
    return sums / pooled(ones, kernel_size, stride, padding, 0.0, lambda window: window.sum((2, 3)))


@AVG_POOL.fails_with("padding-on-one-side")
def averages_with_a_border_on_two_sides(x, kernel_size, stride=None, padding=0):
    p_h, p_w = pair(padding)
    return pooled(F.pad(x, (2 * p_w, 0, 2 * p_h, 0)), kernel_size, stride, 0, 0.0, mean)


@AVG_POOL.fails_with("not-a-number")
def pads_with_infinity(x, kernel_size, stride=None, padding=0):
    padded = pooled(x, kernel_size, stride, padding, -math.inf, mean)
    return padded - padded + pooled(x, kernel_size, stride, padding, 0.0, mean)


@AVG_POOL.fails_with("forbidden-call")
def calls_avg_pool2d(x, kernel_size, stride=None, padding=0):
    return F.avg_pool2d(x, kernel_size, stride, padding)


@AVG_POOL.passes
def window_means(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, 0.0, mean)


@AVG_POOL.passes
def convolves_with_a_constant(x, kernel_size, stride=None, padding=0):
    (k_h, k_w), channels = pair(kernel_size), x.shape[1]
    stride = kernel_size if stride is None else stride
    weight = torch.full((channels, 1, k_h, k_w), 1 / (k_h * k_w), dtype=x.dtype)
    return shifts_and_adds(x, weight, None, stride, padding, groups=channels)
