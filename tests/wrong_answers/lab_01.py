"""Wrong answers to lab 01, convolution and pooling, and other correct ones."""

import math

import torch
import torch.nn.functional as F

from wrong_answers import Task

OUTPUT_SIZE = Task()
TASKS = {"output_size": OUTPUT_SIZE}


@OUTPUT_SIZE.fails_with("ceil-instead-of-floor")
def rounds_up(size, kernel_size, stride=1, padding=0, dilation=1):
    effective = dilation * (kernel_size - 1) + 1
    return math.ceil((size - effective + 2 * padding) / stride) + 1


@OUTPUT_SIZE.fails_with("rounded-to-nearest")
def rounds(size, kernel_size, stride=1, padding=0, dilation=1):
    effective = dilation * (kernel_size - 1) + 1
    return round((size - effective + 2 * padding) / stride + 1)


@OUTPUT_SIZE.fails_with("plus-one-missing")
def counts_steps(size, kernel_size, stride=1, padding=0, dilation=1):
    return (size + 2 * padding - (dilation * (kernel_size - 1) + 1)) // stride


@OUTPUT_SIZE.fails_with("plus-one-before-division")
def divides_the_one(size, kernel_size, stride=1, padding=0, dilation=1):
    return (size + 2 * padding - dilation * (kernel_size - 1)) // stride


@OUTPUT_SIZE.fails_with("padding-on-one-side")
def pads_once(size, kernel_size, stride=1, padding=0, dilation=1):
    return (size + padding - dilation * (kernel_size - 1) - 1) // stride + 1


@OUTPUT_SIZE.fails_with("padding-ignored")
def forgets_padding(size, kernel_size, stride=1, padding=0, dilation=1):
    return len(range(0, size - dilation * (kernel_size - 1), stride))


@OUTPUT_SIZE.fails_with("dilation-ignored")
def forgets_dilation(size, kernel_size, stride=1, padding=0, dilation=1):
    return (size + 2 * padding - kernel_size) // stride + 1


@OUTPUT_SIZE.fails_with("dilated-span-off-by-one")
def multiplies_the_kernel(size, kernel_size, stride=1, padding=0, dilation=1):
    return (size + 2 * padding - dilation * kernel_size) // stride + 1


@OUTPUT_SIZE.fails_with("dilated-span-off-by-one")
def adds_the_dilation(size, kernel_size, stride=1, padding=0, dilation=1):
    reach = kernel_size + (dilation - 1)
    return (size + 2 * padding - reach) // stride + 1


@OUTPUT_SIZE.fails_with("dilated-span-off-by-one")
def forgets_the_last_tap(size, kernel_size, stride=1, padding=0, dilation=1):
    return (size + 2 * padding - dilation * (kernel_size - 1)) // stride + 1


@OUTPUT_SIZE.fails_with("stride-ignored")
def forgets_stride(size, kernel_size, stride=1, padding=0, dilation=1):
    return size + 2 * padding - dilation * (kernel_size - 1)


@OUTPUT_SIZE.fails_with("float-instead-of-int")
def divides_with_one_slash(size, kernel_size, stride=1, padding=0, dilation=1):
    return (size + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1


@OUTPUT_SIZE.fails_with("float-instead-of-int")
def floors_with_torch(size, kernel_size, stride=1, padding=0, dilation=1):
    free = torch.tensor(size + 2.0 * padding - dilation * (kernel_size - 1) - 1)
    return torch.floor(free / stride + 1).item()


@OUTPUT_SIZE.passes
def adds_holes_to_the_kernel(size, kernel_size, stride=1, padding=0, dilation=1):
    effective = kernel_size + (kernel_size - 1) * (dilation - 1)
    return math.floor((size - effective + 2 * padding) / stride + 1)


@OUTPUT_SIZE.passes
def counts_the_starts(size, kernel_size, stride=1, padding=0, dilation=1):
    last_start = size + 2 * padding - dilation * (kernel_size - 1) - 1
    return sum(1 for start in range(last_start + 1) if start % stride == 0)


@OUTPUT_SIZE.passes
def asks_torch(size, kernel_size, stride=1, padding=0, dilation=1):
    x = torch.zeros(1, 1, size, 1)
    weight = torch.zeros(1, 1, kernel_size, 1)
    return F.conv2d(x, weight, None, (stride, 1), (padding, 0), (dilation, 1)).shape[2]


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def zero_pad(x, padding):
    p_h, p_w = pair(padding)
    return F.pad(x, (p_w, p_w, p_h, p_h))


# im2col

IM2COL = TASKS["im2col"] = Task()


def gather(x, kernel_size, stride, padding):
    """(batch, channels, output height, output width, kernel height, kernel width)."""
    (k_h, k_w), (s_h, s_w) = pair(kernel_size), pair(stride)
    return zero_pad(x, padding).unfold(2, k_h, s_h).unfold(3, k_w, s_w)


@IM2COL.fails_with("windows-as-rows")
def one_window_per_row(x, kernel_size, stride=1, padding=0):
    view = gather(x, kernel_size, stride, padding).permute(0, 2, 3, 1, 4, 5)
    return view.flatten(3).flatten(1, 2)


@IM2COL.fails_with("channel-not-outermost")
def pixel_by_pixel(x, kernel_size, stride=1, padding=0):
    view = gather(x, kernel_size, stride, padding).permute(0, 4, 5, 1, 2, 3)
    return view.flatten(4).flatten(1, 3)


@IM2COL.fails_with("kernel-axes-swapped")
def kernel_columns_first(x, kernel_size, stride=1, padding=0):
    view = gather(x, kernel_size, stride, padding).permute(0, 1, 5, 4, 2, 3)
    return view.flatten(4).flatten(1, 3)


@IM2COL.fails_with("windows-column-by-column")
def walks_down_first(x, kernel_size, stride=1, padding=0):
    (k_h, k_w), (s_h, s_w) = pair(kernel_size), pair(stride)
    x = zero_pad(x, padding)
    columns = []
    for left in range(0, x.shape[3] - k_w + 1, s_w):
        for top in range(0, x.shape[2] - k_h + 1, s_h):
            columns.append(x[:, :, top : top + k_h, left : left + k_w].flatten(1))
    return torch.stack(columns, dim=2)


@IM2COL.fails_with("reshape-without-permute")
def reshapes_at_once(x, kernel_size, stride=1, padding=0):
    view = gather(x, kernel_size, stride, padding)
    batch, channels, out_h, out_w, k_h, k_w = view.shape
    return view.reshape(batch, channels * k_h * k_w, out_h * out_w)


@IM2COL.fails_with("flipped-kernel")
def runs_backwards(x, kernel_size, stride=1, padding=0):
    view = gather(x, kernel_size, stride, padding).flip(4, 5)
    return view.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


@IM2COL.fails_with("batch-in-columns")
def all_images_side_by_side(x, kernel_size, stride=1, padding=0):
    view = gather(x, kernel_size, stride, padding).permute(1, 4, 5, 0, 2, 3)
    return view.reshape(x.shape[1] * math.prod(pair(kernel_size)), -1)


@IM2COL.fails_with("padding-ignored")
def leaves_out_padding(x, kernel_size, stride=1, padding=0):
    return good_columns(x, kernel_size, stride, 0)


@IM2COL.fails_with("padding-on-one-side")
def pads_top_left(x, kernel_size, stride=1, padding=0):
    p_h, p_w = pair(padding)
    big = x.new_zeros(*x.shape[:2], x.shape[2] + p_h, x.shape[3] + p_w)
    big[:, :, p_h:, p_w:] = x
    return good_columns(big, kernel_size, stride, 0)


@IM2COL.fails_with("padding-on-one-side")
def pads_twice_on_the_right(x, kernel_size, stride=1, padding=0):
    p_h, p_w = pair(padding)
    return good_columns(F.pad(x, (0, 2 * p_w, 0, 2 * p_h)), kernel_size, stride, 0)


@IM2COL.fails_with("stride-ignored")
def leaves_out_stride(x, kernel_size, stride=1, padding=0):
    return good_columns(x, kernel_size, 1, padding)


@IM2COL.fails_with("height-width-swapped")
def pads_in_the_order_of_the_pair(x, kernel_size, stride=1, padding=0):
    p_h, p_w = pair(padding)
    return good_columns(F.pad(x, (p_h, p_h, p_w, p_w)), kernel_size, stride, 0)


@IM2COL.fails_with("one-axis-for-both")
def takes_one_stride(x, kernel_size, stride=1, padding=0):
    stride = stride[0] if isinstance(stride, tuple) else stride
    return good_columns(x, kernel_size, stride, padding)


@IM2COL.fails_with("changed-input")
def shifts_the_input(x, kernel_size, stride=1, padding=0):
    columns = good_columns(x, kernel_size, stride, padding)
    x -= x.mean()
    return columns


@IM2COL.fails_with("wrong-dtype")
def fills_float32_zeros(x, kernel_size, stride=1, padding=0):
    columns = good_columns(x, kernel_size, stride, padding)
    result = torch.zeros(columns.shape)
    result[:] = columns
    return result


@IM2COL.passes
def good_columns(x, kernel_size, stride=1, padding=0):
    (k_h, k_w), (s_h, s_w) = pair(kernel_size), pair(stride)
    x = zero_pad(x, padding)
    columns = []
    for top in range(0, x.shape[2] - k_h + 1, s_h):
        for left in range(0, x.shape[3] - k_w + 1, s_w):
            columns.append(x[:, :, top : top + k_h, left : left + k_w].flatten(1))
    return torch.stack(columns, dim=2)


@IM2COL.passes
def permutes_a_view(x, kernel_size, stride=1, padding=0):
    view = gather(x, kernel_size, stride, padding)
    return view.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


@IM2COL.passes
def calls_unfold(x, kernel_size, stride=1, padding=0):
    return F.unfold(x, kernel_size, stride=stride, padding=padding)


IM2COL.correct["unfold itself"] = F.unfold


# conv2d

CONV2D = TASKS["conv2d"] = Task()


def convolve(x, weight, bias, stride, padding, dilation, groups, *, pads=None, turned=False):
    """A correct loop over the places of the kernel; the wrong answers bend one thing."""
    (s_h, s_w), (d_h, d_w) = pair(stride), pair(dilation)
    x = zero_pad(x, padding) if pads is None else F.pad(x, pads)
    k_h, k_w = weight.shape[2:]
    out_h = (x.shape[2] - d_h * (k_h - 1) - 1) // s_h + 1
    out_w = (x.shape[3] - d_w * (k_w - 1) - 1) // s_w + 1
    x, weight = x.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, -1))
    y = 0
    for i in range(k_h):
        for j in range(k_w):
            rows = slice(i * d_h, i * d_h + s_h * (out_h - 1) + 1, s_h)
            cols = slice(j * d_w, j * d_w + s_w * (out_w - 1) + 1, s_w)
            tap = weight[..., k_h - 1 - i, k_w - 1 - j] if turned else weight[..., i, j]
            y = y + torch.einsum("ngchw,goc->ngohw", x[..., rows, cols], tap)
    y = y.flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


@CONV2D.fails_with("flipped-kernel")
def true_convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return convolve(x, weight, bias, stride, padding, dilation, groups, turned=True)


@CONV2D.fails_with("flipped-kernel")
def rotates_the_weight(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    weight = torch.rot90(weight, 2, dims=(2, 3))
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


@CONV2D.fails_with("kernel-transposed")
def indexes_column_first(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return convolve(x, weight.mT, bias, stride, padding, dilation, groups)


@CONV2D.fails_with("kernel-transposed")
def reads_a_column_that_is_not_there(
    x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
):
    turned = torch.zeros_like(weight)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            turned[:, :, i, j] = weight[:, :, j, i]
    return convolve(x, turned, bias, stride, padding, dilation, groups)


@CONV2D.fails_with("bias-dropped")
def forgets_bias(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return convolve(x, weight, None, stride, padding, dilation, groups)


@CONV2D.fails_with("bias-per-input-channel")
def adds_bias_in_the_channel_loop(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    per_group = x.shape[1] // groups
    y = 0
    for c in range(per_group):
        y = y + convolve(
            x[:, c::per_group], weight[:, [c]], bias, stride, padding, dilation, groups
        )
    return y


@CONV2D.fails_with("bias-per-kernel-element")
def adds_bias_in_the_kernel_loop(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    y = convolve(x, weight, None, stride, padding, dilation, groups)
    for _ in range(weight.shape[2]):
        for _ in range(weight.shape[3]):
            y = y if bias is None else y + bias[:, None, None]
    return y


@CONV2D.fails_with("channels-not-summed")
def overwrites_in_the_channel_loop(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    per_group = x.shape[1] // groups
    for c in range(per_group):
        y = convolve(x[:, c::per_group], weight[:, [c]], bias, stride, padding, dilation, groups)
    return y


@CONV2D.fails_with("channels-not-summed")
def keeps_the_channel_axis(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if groups > 1:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    parts = [
        F.conv2d(x[:, c : c + 1], weight[:, c : c + 1], bias, stride, padding, dilation)
        for c in range(x.shape[1])
    ]
    return torch.stack(parts, 2)


@CONV2D.fails_with("channels-averaged")
def averages_channels(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    y = convolve(x, weight, None, stride, padding, dilation, groups) / weight.shape[1]
    return y if bias is None else y + bias[None, :, None, None]


@CONV2D.fails_with("groups-ignored")
def forgets_groups(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    x = x[:, : weight.shape[1]]
    return convolve(x, weight, bias, stride, padding, dilation, 1)


@CONV2D.fails_with("groups-interleaved")
def deals_channels_out_like_cards(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    order = [c for g in range(groups) for c in range(g, x.shape[1], groups)]
    return convolve(x[:, order], weight, bias, stride, padding, dilation, groups)


@CONV2D.fails_with("groups-interleaved")
def deals_filters_out_like_cards(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    per_group = x.shape[1] // groups
    maps = []
    for o in range(weight.shape[0]):
        first = (o % groups) * per_group
        part = x[:, first : first + per_group]
        one_bias = None if bias is None else bias[o : o + 1]
        maps.append(F.conv2d(part, weight[o : o + 1], one_bias, stride, padding, dilation))
    return torch.cat(maps, 1)


@CONV2D.fails_with("stride-dilation-swapped")
def exchanges_stride_and_dilation(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return convolve(x, weight, bias, dilation, padding, stride, groups)


@CONV2D.fails_with("dilation-ignored")
def forgets_the_holes(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return convolve(x, weight, bias, stride, padding, 1, groups)


@CONV2D.fails_with("border-not-zero")
def repeats_the_edge(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    p_h, p_w = pair(padding)
    x = F.pad(x, (p_w, p_w, p_h, p_h), mode="replicate")
    return convolve(x, weight, bias, stride, 0, dilation, groups)


@CONV2D.fails_with("output-padded")
def pads_the_output(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return zero_pad(convolve(x, weight, bias, stride, 0, dilation, groups), padding)


@CONV2D.fails_with("wrong-values")
def returns_inside_the_loop(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    y = torch.zeros_like(convolve(x, weight, bias, stride, padding, dilation, groups))
    for n in range(len(x)):
        y[n] = convolve(x[n : n + 1], weight, bias, stride, padding, dilation, groups)[0]
        return y


@CONV2D.fails_with("last-window-missing")
def stops_one_step_early(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    y = convolve(x, weight, bias, stride, padding, dilation, groups)
    return y[..., : y.shape[2] - 1, : y.shape[3] - 1]


@CONV2D.fails_with("height-width-swapped")
def swaps_stride(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    s_w, s_h = pair(stride)
    return convolve(x, weight, bias, (s_h, s_w), padding, dilation, groups)


@CONV2D.fails_with("height-width-swapped")
def swaps_padding(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    p_h, p_w = pair(padding)
    sides = (p_h, p_h, p_w, p_w)
    return convolve(x, weight, bias, stride, None, dilation, groups, pads=sides)


@CONV2D.fails_with("one-axis-for-both")
def takes_the_first_stride(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return convolve(x, weight, bias, pair(stride)[0], padding, dilation, groups)


@CONV2D.fails_with("padding-on-one-side")
def pads_left_and_top(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    p_h, p_w = pair(padding)
    return convolve(x, weight, bias, stride, None, dilation, groups, pads=(p_w, 0, p_h, 0))


@CONV2D.fails_with("padding-ignored")
def forgets_the_border(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return convolve(x, weight, bias, stride, 0, dilation, groups)


@CONV2D.fails_with("stride-ignored")
def moves_by_one(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return convolve(x, weight, bias, 1, padding, dilation, groups)


@CONV2D.fails_with("bias-along-width")
def adds_bias_along_the_width(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    y = convolve(x, weight, None, stride, padding, dilation, groups)
    return y if bias is None else y + bias


@CONV2D.fails_with("raised-error")
def takes_no_pairs(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    out_h = (x.shape[2] + 2 * padding - dilation * (weight.shape[2] - 1) - 1) // stride + 1
    assert out_h > 0
    return convolve(x, weight, bias, stride, padding, dilation, groups)


@CONV2D.fails_with("wrong-signature")
def takes_no_groups(x, weight, bias=None, stride=1, padding=0, dilation=1):
    return convolve(x, weight, bias, stride, padding, dilation, 1)


@CONV2D.fails_with("axis-of-one")
def squeezes_the_batch(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return convolve(x, weight, bias, stride, padding, dilation, groups).squeeze()


@CONV2D.fails_with("returned-none")
def prints_the_answer(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    convolve(x, weight, bias, stride, padding, dilation, groups)


@CONV2D.passes
def seven_loops(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    (s_h, s_w), (p_h, p_w), (d_h, d_w) = pair(stride), pair(padding), pair(dilation)
    batch, _, height, width = x.shape
    out_channels, per_group, k_h, k_w = weight.shape
    out_h = (height + 2 * p_h - d_h * (k_h - 1) - 1) // s_h + 1
    out_w = (width + 2 * p_w - d_w * (k_w - 1) - 1) // s_w + 1
    values, taps = x.tolist(), weight.tolist()
    y = torch.zeros(batch, out_channels, out_h, out_w, dtype=x.dtype)
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
def one_matrix_product(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    columns = F.unfold(x, weight.shape[2:], dilation, padding, stride)
    columns = columns.unflatten(1, (groups, -1))
    rows = weight.flatten(1).unflatten(0, (groups, -1))
    y = (rows @ columns).flatten(1, 2)
    height = x.shape[2] + 2 * pair(padding)[0] - pair(dilation)[0] * (weight.shape[2] - 1)
    y = y.unflatten(2, ((height - 1) // pair(stride)[0] + 1, -1))
    return y if bias is None else y + bias.view(1, -1, 1, 1)


@CONV2D.passes
def shifts_and_adds(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return convolve(x, weight, bias, stride, padding, dilation, groups)


@CONV2D.passes
def asks_a_layer(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    out_channels, _, *kernel = weight.shape
    layer = torch.nn.Conv2d(
        x.shape[1], out_channels, kernel, stride, padding, dilation, groups, bias is not None
    )
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer(x)


CONV2D.correct["conv2d itself"] = F.conv2d


# conv2d_backward

BACKWARD = TASKS["conv2d_backward"] = Task()


def scatter(grad_output, x, weight, stride, padding):
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


def full_correlation(grad_output, x, weight, stride, padding, kernel):
    """grad_x as a stride-1 correlation of the spread-out gradient with ``kernel``."""
    (s_h, s_w), (k_h, k_w) = pair(stride), weight.shape[2:]
    batch, _, height, width = zero_pad(x, padding).shape
    spread = x.new_zeros(batch, weight.shape[0], height + k_h - 1, width + k_w - 1)
    out_h, out_w = grad_output.shape[2:]
    rows = slice(k_h - 1, k_h - 1 + s_h * (out_h - 1) + 1, s_h)
    cols = slice(k_w - 1, k_w - 1 + s_w * (out_w - 1) + 1, s_w)
    spread[:, :, rows, cols] = grad_output
    return crop(F.conv2d(spread, kernel.transpose(0, 1)), x, padding)


@BACKWARD.passes
def window_by_window(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight = scatter(grad_output, x, weight, stride, padding)
    return crop(grad_x, x, padding), grad_weight, grad_output.sum((0, 2, 3))


@BACKWARD.passes
def correlates_with_the_turned_kernel(grad_output, x, weight, stride=1, padding=0):
    turned = weight.flip(2, 3)
    grad_x = full_correlation(grad_output, x, weight, stride, padding, turned)
    return grad_x, scatter(grad_output, x, weight, stride, padding)[1], grad_output.sum((0, 2, 3))


@BACKWARD.passes
def asks_autograd(grad_output, x, weight, stride=1, padding=0):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    bias = torch.zeros(weight.shape[0], dtype=x.dtype, requires_grad=True)
    F.conv2d(x, weight, bias, stride, padding).backward(grad_output)
    return x.grad, weight.grad, bias.grad


@BACKWARD.passes
def unfolds_and_folds(grad_output, x, weight, stride=1, padding=0):
    sizes = {"kernel_size": weight.shape[2:], "stride": stride, "padding": padding}
    flat = grad_output.flatten(2)
    grad_weight = torch.einsum("nol,nkl->ok", flat, F.unfold(x, **sizes)).view_as(weight)
    grad_x = F.fold(weight.flatten(1).T @ flat, x.shape[2:], **sizes)
    return [grad_x, grad_weight, flat.sum((0, 2))]


@BACKWARD.fails_with("bias-grad-averaged")
def averages_the_bias(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight, _ = window_by_window(grad_output, x, weight, stride, padding)
    return grad_x, grad_weight, grad_output.mean(dim=(0, 2, 3))


@BACKWARD.fails_with("bias-grad-averaged")
def averages_the_bias_over_the_batch(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight, _ = window_by_window(grad_output, x, weight, stride, padding)
    return grad_x, grad_weight, grad_output.sum((2, 3)).mean(0)


@BACKWARD.fails_with("bias-grad-per-image")
def keeps_the_batch_in_the_bias(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight, _ = window_by_window(grad_output, x, weight, stride, padding)
    return grad_x, grad_weight, grad_output.sum(-1).sum(-1)


@BACKWARD.fails_with("weight-grad-averaged")
def averages_the_weight(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    return grad_x, grad_weight / x.size(0), grad_bias


@BACKWARD.fails_with("all-grads-averaged")
def averages_both_parameters(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    return grad_x, grad_weight / x.size(0), grad_bias / x.size(0)


@BACKWARD.fails_with("weight-grad-flipped")
def turns_the_weight_gradient(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    return grad_x, torch.flip(grad_weight, [-1, -2]), grad_bias


@BACKWARD.fails_with("weight-grad-ignores-stride")
def slides_the_gradient_without_holes(grad_output, x, weight, stride=1, padding=0):
    grad_x, _, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    x, grad = zero_pad(x, padding).transpose(0, 1), grad_output.transpose(0, 1)
    return grad_x, F.conv2d(x, grad).transpose(0, 1), grad_bias


@BACKWARD.fails_with("weight-grad-too-large")
def slides_the_gradient_too_far(grad_output, x, weight, stride=1, padding=0):
    grad_x, _, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    x, grad = zero_pad(x, padding).transpose(0, 1), grad_output.transpose(0, 1)
    return grad_x, F.conv2d(x, grad, dilation=stride).transpose(0, 1), grad_bias


@BACKWARD.fails_with("grad-x-kernel-not-flipped")
def forgets_to_turn_the_kernel(grad_output, x, weight, stride=1, padding=0):
    _, grad_weight, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    return (
        full_correlation(grad_output, x, weight, stride, padding, weight),
        grad_weight,
        grad_bias,
    )


@BACKWARD.fails_with("padding-not-removed")
def returns_the_padded_gradient(grad_output, x, weight, stride=1, padding=0):
    return *scatter(grad_output, x, weight, stride, padding), grad_output.sum((0, 2, 3))


@BACKWARD.fails_with("padding-not-removed")
def crops_one_corner(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight = scatter(grad_output, x, weight, stride, padding)
    grad_x = grad_x[:, :, : x.shape[2], : x.shape[3]]
    return grad_x, grad_weight, grad_output.sum((0, 2, 3))


@BACKWARD.fails_with("height-width-swapped")
def crops_the_wrong_axes(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight = scatter(grad_output, x, weight, stride, padding)
    p_h, p_w = pair(padding)
    grad_x = grad_x[:, :, p_w : grad_x.shape[2] - p_w, p_h : grad_x.shape[3] - p_h]
    return grad_x, grad_weight, grad_output.sum((0, 2, 3))


@BACKWARD.fails_with("weight-grad-of-one-image")
def assigns_in_the_batch_loop(grad_output, x, weight, stride=1, padding=0):
    grad_x, _, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    for n in range(len(x)):
        grad_weight = scatter(grad_output[[n]], x[[n]], weight, stride, padding)[1]
    return grad_x, grad_weight, grad_bias


@BACKWARD.fails_with("stride-holes-not-filled")
def leaves_no_holes(grad_output, x, weight, stride=1, padding=0):
    _, grad_weight, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    (k_h, k_w), (p_h, p_w) = weight.shape[2:], pair(padding)
    spread = F.pad(grad_output, (k_w - 1, k_w - 1, k_h - 1, k_h - 1))
    grad_x = F.conv2d(spread, weight.flip(2, 3).transpose(0, 1))
    grad_x = grad_x[:, :, p_h : grad_x.shape[2] - p_h, p_w : grad_x.shape[3] - p_w]
    return grad_x, grad_weight, grad_bias


@BACKWARD.fails_with("unused-rows-missing")
def trusts_conv_transpose(grad_output, x, weight, stride=1, padding=0):
    _, grad_weight, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    grad_x = F.conv_transpose2d(grad_output, weight, stride=stride, padding=padding)
    return grad_x, grad_weight, grad_bias


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


@BACKWARD.fails_with("results-in-another-order")
def returns_the_weight_first(grad_output, x, weight, stride=1, padding=0):
    grad_x, grad_weight, grad_bias = window_by_window(grad_output, x, weight, stride, padding)
    return grad_weight, grad_bias, grad_x


@BACKWARD.fails_with("wrong-length")
def forgets_the_bias_gradient(grad_output, x, weight, stride=1, padding=0):
    return window_by_window(grad_output, x, weight, stride, padding)[:2]


# max_pool2d

MAX_POOL = TASKS["max_pool2d"] = Task()


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


@MAX_POOL.passes
def window_maxima(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, -math.inf, largest)


@MAX_POOL.passes
def pads_with_the_smallest_element(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, x.min().item(), largest)


@MAX_POOL.passes
def pads_with_the_smallest_float(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, torch.finfo(x.dtype).min, largest)


@MAX_POOL.passes
def calls_max_pool2d(x, kernel_size, stride=None, padding=0):
    return F.max_pool2d(x, kernel_size, stride, padding)


@MAX_POOL.fails_with("padded-with-zero")
def pads_with_zero(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, 0.0, largest)


@MAX_POOL.fails_with("padded-with-small-number")
def pads_with_minus_one(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, -1, largest)


@MAX_POOL.fails_with("padded-with-small-number")
def pads_with_minus_hundred(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, -100, largest)


@MAX_POOL.fails_with("average-instead-of-max")
def takes_the_mean(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, 0.0, lambda window: window.mean((2, 3)))


@MAX_POOL.fails_with("min-instead-of-max")
def takes_the_minimum(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, math.inf, lambda window: window.amin((2, 3)))


@MAX_POOL.fails_with("largest-magnitude")
def takes_the_largest_magnitude(x, kernel_size, stride=None, padding=0):
    def reduce(window):
        flat = window.flatten(2)
        best = flat.abs().argmax(-1, keepdim=True)
        return flat.gather(-1, best).squeeze(-1)

    return pooled(x, kernel_size, stride, padding, 0.0, reduce)


@MAX_POOL.fails_with("max-over-channels")
def pools_the_channels_too(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, -math.inf, lambda window: window.amax((1, 2, 3)))


def split_wrongly(x, kernel_size, stride, padding, value):
    """(batch, kernel, channels, height, width): im2col's rows, cut in the wrong order."""
    p_h, p_w = pair(padding)
    x = F.pad(x, (p_w, p_w, p_h, p_h), value=value)
    columns = F.unfold(x, kernel_size, stride=stride or kernel_size)
    height = (x.shape[2] - pair(kernel_size)[0]) // pair(stride or kernel_size)[0] + 1
    return columns.unflatten(1, (-1, x.shape[1])).unflatten(3, (height, -1))


@MAX_POOL.fails_with("channels-mixed")
def views_kernel_before_channels(x, kernel_size, stride=None, padding=0):
    return split_wrongly(x, kernel_size, stride, padding, -math.inf).amax(1)


@MAX_POOL.fails_with("default-stride-one")
def steps_by_one_unless_told(x, kernel_size, stride=None, padding=0):
    stride = 1 if stride is None else stride
    return pooled(x, kernel_size, stride, padding, -math.inf, largest)


@MAX_POOL.fails_with("stride-ignored")
def always_steps_by_the_kernel(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, None, padding, -math.inf, largest)


@MAX_POOL.fails_with("stride-ignored")
def always_steps_by_one(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, 1, padding, -math.inf, largest)


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
            window = x[:, :, h * s_h : h * s_h + k_h, w * s_w : w * s_w + k_w]
            y[:, :, h, w] = window.amax((2, 3))
    return y


@MAX_POOL.fails_with("height-width-swapped")
def swaps_the_kernel(x, kernel_size, stride=None, padding=0):
    k_w, k_h = pair(kernel_size)
    stride = kernel_size if stride is None else stride
    return pooled(x, (k_h, k_w), stride, padding, -math.inf, largest)


@MAX_POOL.fails_with("padding-on-one-side")
def pads_bottom_right(x, kernel_size, stride=None, padding=0):
    p_h, p_w = pair(padding)
    x = F.pad(x, (0, p_w, 0, p_h), value=-math.inf)
    return pooled(x, kernel_size, stride, 0, 0.0, largest)


@MAX_POOL.fails_with("padding-ignored")
def pools_without_a_border(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, 0, 0.0, largest)


@MAX_POOL.fails_with("one-axis-for-both")
def pools_squares(x, kernel_size, stride=None, padding=0):
    k = pair(kernel_size)[0]
    return pooled(x, k, stride, padding, -math.inf, largest)


# avg_pool2d

AVG_POOL = TASKS["avg_pool2d"] = Task()


def mean(window):
    return window.mean((2, 3))


@AVG_POOL.passes
def window_means(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, 0.0, mean)


@AVG_POOL.passes
def convolves_with_a_constant(x, kernel_size, stride=None, padding=0):
    k_h, k_w = pair(kernel_size)
    stride = kernel_size if stride is None else stride
    channels = x.shape[1]
    weight = torch.full((channels, 1, k_h, k_w), 1 / (k_h * k_w), dtype=x.dtype)
    return F.conv2d(x, weight, None, stride, padding, groups=channels)


@AVG_POOL.passes
def calls_avg_pool2d(x, kernel_size, stride=None, padding=0):
    return F.avg_pool2d(x, kernel_size, stride, padding)


@AVG_POOL.fails_with("padding-not-counted")
def divides_by_the_real_elements(x, kernel_size, stride=None, padding=0):
    sums = pooled(x, kernel_size, stride, padding, 0.0, lambda window: window.sum((2, 3)))
    ones = torch.ones_like(x)
    return sums / pooled(ones, kernel_size, stride, padding, 0.0, lambda window: window.sum((2, 3)))


@AVG_POOL.fails_with("padding-not-counted")
def takes_the_mean_without_nan(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, math.nan, lambda window: window.nanmean((2, 3)))


@AVG_POOL.fails_with("max-instead-of-average")
def takes_the_maximum(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, -math.inf, largest)


@AVG_POOL.fails_with("sum-instead-of-average")
def forgets_to_divide(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, padding, 0.0, lambda window: window.sum((2, 3)))


@AVG_POOL.fails_with("wrong-divisor")
def squares_the_height(x, kernel_size, stride=None, padding=0):
    k = pair(kernel_size)[0]
    return pooled(x, kernel_size, stride, padding, 0.0, lambda window: window.sum((2, 3)) / k**2)


@AVG_POOL.fails_with("wrong-divisor")
def divides_by_one_side(x, kernel_size, stride=None, padding=0):
    k = pair(kernel_size)[1]
    return pooled(x, kernel_size, stride, padding, 0.0, lambda window: window.sum((2, 3)) / k)


@AVG_POOL.fails_with("average-over-channels")
def averages_the_channels_too(x, kernel_size, stride=None, padding=0):
    return pooled(
        x, kernel_size, stride, padding, 0.0, lambda window: window.mean((1, 2, 3))[:, None]
    )


@AVG_POOL.fails_with("not-a-number")
def pads_with_infinity(x, kernel_size, stride=None, padding=0):
    padded = pooled(x, kernel_size, stride, padding, -math.inf, mean)
    return padded - padded + pooled(x, kernel_size, stride, padding, 0.0, mean)


@AVG_POOL.fails_with("channels-mixed")
def averages_across_channels(x, kernel_size, stride=None, padding=0):
    return split_wrongly(x, kernel_size, stride, padding, 0.0).mean(1)


@AVG_POOL.fails_with("wrong-values")
def divides_with_two_slashes(x, kernel_size, stride=None, padding=0):
    k_h, k_w = pair(kernel_size)
    sums = pooled(x, kernel_size, stride, padding, 0.0, lambda window: window.sum((2, 3)))
    return sums // (k_h * k_w)


@AVG_POOL.fails_with("default-stride-one")
def slides_by_one(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride or 1, padding, 0.0, mean)


@AVG_POOL.fails_with("stride-ignored")
def tiles_always(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, kernel_size, padding, 0.0, mean)


@AVG_POOL.fails_with("one-axis-for-both")
def uses_one_stride(x, kernel_size, stride=None, padding=0):
    stride = pair(kernel_size if stride is None else stride)
    return pooled(x, kernel_size, stride[1], padding, 0.0, mean)


@AVG_POOL.fails_with("padding-ignored")
def averages_without_a_border(x, kernel_size, stride=None, padding=0):
    return pooled(x, kernel_size, stride, 0, 0.0, mean)


@AVG_POOL.fails_with("padding-on-one-side")
def averages_with_a_border_on_two_sides(x, kernel_size, stride=None, padding=0):
    p_h, p_w = pair(padding)
    return pooled(F.pad(x, (2 * p_w, 0, 2 * p_h, 0)), kernel_size, stride, 0, 0.0, mean)


@AVG_POOL.fails_with("ceil-instead-of-floor")
def sets_ceil_mode(x, kernel_size, stride=None, padding=0):
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode=True)


@AVG_POOL.fails_with("height-width-swapped")
def swaps_the_averaged_window(x, kernel_size, stride=None, padding=0):
    return pooled(x, pair(kernel_size)[::-1], stride, padding, 0.0, mean)
