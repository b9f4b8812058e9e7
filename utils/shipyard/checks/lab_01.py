"""Checks of lab 01, convolution and pooling. ``torch.nn.functional`` is the reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from shipyard.checks import Case, Mistake, Passed, compare, draws


def check_output_size(candidate: Callable) -> Passed:
    """Check ``output_size(size, kernel_size, stride=1, padding=0, dilation=1)``, one axis."""

    def reference(size, kernel_size, stride=1, padding=0, dilation=1):
        y = F.conv1d(
            torch.ones(1, 1, size), torch.ones(1, 1, kernel_size), None, stride, padding, dilation
        )
        return y.shape[-1]

    def by_formula(span=lambda k, d: d * (k - 1) + 1, sides=2, rounded=math.floor, plus=(0, 1)):
        """The formula with one part replaced."""

        def answer(size, kernel_size, stride=1, padding=0, dilation=1):
            free = size + sides * padding - span(kernel_size, dilation)
            return rounded((free + plus[0]) / stride) + plus[1]

        return answer

    return compare(
        candidate,
        signature="output_size(size, kernel_size, stride=1, padding=0, dilation=1)",
        reference=reference,
        cases=[
            Case(5, 3),
            Case(7, 1),
            Case(6, 6),
            Case(7, 3, stride=2),
            Case(8, 3, stride=2),
            Case(9, 2, stride=4),
            Case(5, 3, padding=1),
            Case(4, 5, padding=2),
            Case(8, 3, dilation=2),
            Case(11, 4, dilation=3),
            Case(32, 3, stride=2, padding=1),
            Case(31, 5, stride=3, padding=2, dilation=2),
            Case(227, 11, stride=4),
        ],
        mistakes=[
            Mistake(
                "ceil-instead-of-floor",
                """You rounded up. Where the last step would carry the kernel over the edge, that
                window does not exist, so the formula rounds down (floor, in Python //). The
                elements left over at the far edge are simply not used.""",
                by_formula(rounded=math.ceil),
            ),
            Mistake(
                "rounded-to-nearest",
                """You rounded to the nearest number. A window that fits only in part does not
                exist, however large that part is, so the formula always rounds down
                (floor, in Python //).""",
                by_formula(rounded=round),
                by_formula(rounded=lambda steps: round(steps + 1) - 1),
            ),
            Mistake(
                "plus-one-missing",
                """You counted steps, not windows. The kernel has a first place before it takes any
                step, so the count is the number of steps + 1, like fence posts and gaps.""",
                by_formula(plus=(0, 0)),
            ),
            Mistake(
                "plus-one-before-division",
                """The + 1 stands outside of the division. It counts the kernel's first place, for
                which no step is needed, so the stride must not divide it: floor(... / stride) + 1.
                """,
                by_formula(plus=(1, 0)),
            ),
            Mistake(
                "padding-on-one-side",
                """You counted the padding once. It is added at both ends of the axis, so the input
                grows by 2 · padding.""",
                by_formula(sides=1),
            ),
            Mistake(
                "padding-ignored",
                """You left out the padding. It is added at both ends of the axis before the kernel
                slides, so the input grows by 2 · padding.""",
                by_formula(sides=0),
            ),
            Mistake(
                "dilation-ignored",
                """You left out the dilation. With dilation d the taps of the kernel stand d
                elements apart, so the kernel reaches over d · (kernel_size − 1) + 1 elements, not
                over kernel_size.""",
                by_formula(span=lambda k, d: k),
            ),
            Mistake(
                "dilated-span-off-by-one",
                """You took a wrong reach for the dilated kernel. Dilation puts holes between the
                taps, and k taps have only k − 1 holes between them, so the kernel reaches over
                dilation · (k − 1) + 1 elements. Draw three taps with dilation 2 on paper:
                x . x . x is 5 long.""",
                by_formula(span=lambda k, d: d * k),
                by_formula(span=lambda k, d: d * (k - 1)),
                by_formula(span=lambda k, d: k + d - 1),
            ),
            Mistake(
                "stride-ignored",
                """You left out the stride. The kernel moves stride elements at each step, so the
                room that it can move in, size + 2 · padding − reach, is divided by stride.""",
                lambda size, kernel_size, stride=1, **rest: reference(size, kernel_size, **rest),
            ),
            Mistake(
                "float-instead-of-int",
                """The answer counts windows, so it must be an int: / makes a float, // divides
                and rounds down. A float cannot be used as a shape.""",
                by_formula(rounded=float),
                lambda *args, **options: float(reference(*args, **options)),
            ),
        ],
    )


def check_im2col(candidate: Callable) -> Passed:
    """Check ``im2col(x, kernel_size, stride=1, padding=0)``: windows as columns, as F.unfold."""

    def windows(x, kernel_size, stride=1, padding=0):
        """(batch, channels, kernel height, kernel width, output height, output width)."""
        (k_h, k_w), (s_h, s_w), (p_h, p_w) = _pair(kernel_size), _pair(stride), _pair(padding)
        height = (x.shape[2] + 2 * p_h - k_h) // s_h + 1
        width = (x.shape[3] + 2 * p_w - k_w) // s_w + 1
        columns = F.unfold(x, kernel_size, stride=stride, padding=padding)
        return columns.reshape(*x.shape[:2], k_h, k_w, height, width)

    def arranged(*axes):
        """Rows and columns from the axes of `windows` in another order."""
        return lambda *args, **options: (
            windows(*args, **options).permute(0, *axes).flatten(4).flatten(1, 3)
        )

    def reshaped_only(*args, **options):
        rows_first = windows(*args, **options).permute(0, 1, 4, 5, 2, 3)
        return rows_first.reshape(F.unfold(*args, **options).shape)

    draw = draws(2)
    return compare(
        candidate,
        signature="im2col(x, kernel_size, stride=1, padding=0)",
        reference=F.unfold,
        cases=[
            Case(_grid(1, 1, 3, 3), kernel_size=2),
            Case(_grid(1, 2, 2, 3), kernel_size=2),
            Case(draw(2, 3, 5, 4), kernel_size=(3, 2)),
            Case(draw(1, 2, 7, 6), kernel_size=3, stride=2),
            Case(draw(1, 1, 3, 5), kernel_size=3, padding=1),
            Case(draw(3, 2, 7, 8), kernel_size=2, stride=(2, 3)),
            Case(draw(1, 2, 4, 3), kernel_size=3, padding=(0, 2)),
            Case(draw(2, 3, 9, 11), kernel_size=(2, 4), stride=(3, 2), padding=(1, 2)),
            Case(draw(1, 4, 5, 5), kernel_size=1),
            Case(draw(5, 7, 3, 2).permute(3, 2, 1, 0), kernel_size=2),
        ],
        mistakes=[
            Mistake(
                "windows-as-rows",
                """Your windows lie in the rows; they belong in the columns. The shape is
                (batch, channels · k_h · k_w, number of windows), so that the weights, one filter
                a row, multiply it from the left. Swap the last two axes.""",
                lambda *args, **options: F.unfold(*args, **options).transpose(1, 2),
            ),
            Mistake(
                "channel-not-outermost",
                """The rows are in another order: the channel changes fastest in yours. It must
                change slowest: all k_h · k_w elements of channel 0, then all of channel 1. That is
                how weight.reshape(out_channels, −1) lays out a filter, and the two must fit.""",
                arranged(2, 3, 1, 4, 5),
            ),
            Mistake(
                "kernel-axes-swapped",
                """Inside each channel your windows are laid out column by column. Go row by row,
                so that the kernel's column j changes fastest: i · k_w + j.""",
                arranged(1, 3, 2, 4, 5),
            ),
            Mistake(
                "windows-column-by-column",
                """Your windows come in another order: down the image first. Go row by row, from
                left to right: the window at (h, w) is column h · output_width + w.""",
                arranged(1, 2, 3, 5, 4),
            ),
            Mistake(
                "reshape-without-permute",
                """The shape is right and the numbers are in the wrong places. reshape keeps the
                order of the numbers in memory and only cuts it anew; it never moves an axis. Bring
                the axes into the order (batch, channel, i, j, h, w) with permute, then reshape.""",
                reshaped_only,
            ),
            Mistake(
                "flipped-kernel",
                """Each of your columns runs backwards. Element (i, j) of a window is
                x[h · stride + i, w · stride + j], with plus signs.""",
                lambda *args, **options: (
                    windows(*args, **options).flip(2, 3).flatten(4).flatten(1, 3)
                ),
            ),
            Mistake(
                "batch-in-columns",
                """You put the windows of all images side by side. Each image keeps its own matrix:
                the first axis of the result is the batch.""",
                lambda *args, **options: F.unfold(*args, **options).transpose(0, 1).flatten(1),
                lambda *args, **options: F.unfold(*args, **options).permute(1, 2, 0).flatten(1),
            ),
            *_geometry_mistakes(F.unfold),
        ],
    )


def check_conv2d(candidate: Callable) -> Passed:
    """Check ``conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)``."""

    def with_weight(change):
        return lambda x, weight, *args, **options: F.conv2d(x, change(weight), *args, **options)

    def with_bias(change):
        def answer(x, weight, bias=None, **options):
            return F.conv2d(x, weight, None if bias is None else change(bias, weight), **options)

        return answer

    def with_channels(chosen):
        """Only some of each group's input channels are used."""

        def answer(x, weight, bias=None, *, groups=1, **options):
            x = x.unflatten(1, (groups, -1))[:, :, chosen].flatten(1, 2)
            return F.conv2d(x, weight[:, chosen], bias, groups=groups, **options)

        return answer

    def channels_apart(x, weight, bias=None, **options):
        one_by_one = [
            F.conv2d(x[:, [c]], weight[:, [c]], bias, **options) for c in range(x.shape[1])
        ]
        return torch.stack(one_by_one, dim=2)

    def groups_ignored(x, weight, *args, groups=1, **options):
        return F.conv2d(x[:, : weight.shape[1]], weight, *args, **options)

    def groups_interleaved(x, weight, *args, groups=1, **options):
        x = x.unflatten(1, (-1, groups)).transpose(1, 2).flatten(1, 2)
        return F.conv2d(x, weight, *args, groups=groups, **options)

    def filters_interleaved(x, weight, bias=None, *, groups=1, **options):
        weight = weight.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)
        y = F.conv2d(x, weight, None, groups=groups, **options)
        y = y.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    def stride_dilation_swapped(*args, stride=1, dilation=1, **options):
        return F.conv2d(*args, stride=dilation, dilation=stride, **options)

    def bordered(mode):
        def answer(x, *args, padding=0, **options):
            p_h, p_w = _pair(padding)
            return F.conv2d(F.pad(x, (p_w, p_w, p_h, p_h), mode=mode), *args, **options)

        return answer

    def output_padded(*args, padding=0, **options):
        p_h, p_w = _pair(padding)
        return F.pad(F.conv2d(*args, **options), (p_w, p_w, p_h, p_h))

    draw = draws(3)
    return compare(
        candidate,
        signature="conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)",
        reference=F.conv2d,
        cases=[
            Case(_grid(1, 1, 3, 3), _grid(1, 1, 2, 2) + 1),
            Case(draw(1, 1, 5, 5), draw(1, 1, 3, 3)),
            Case(draw(1, 3, 4, 4), draw(1, 3, 3, 3)),
            Case(draw(2, 3, 5, 4), draw(2, 3, 3, 2), draw(2)),
            Case(draw(1, 1, 7, 6), draw(1, 1, 3, 3), stride=2),
            Case((3 * draw(1, 1, 3, 3)).round(), (3 * draw(1, 1, 3, 3)).round(), padding=1),
            Case(draw(1, 2, 7, 8), draw(3, 2, 3, 2), dilation=2),
            Case(draw(1, 4, 3, 3), draw(4, 2, 2, 2), draw(4), groups=2),
            Case(draw(2, 3, 7, 5), draw(6, 1, 3, 3), groups=3),
            Case(draw(1, 2, 8, 9), draw(3, 2, 3, 3), stride=(3, 2)),
            Case(draw(1, 2, 4, 5), draw(3, 2, 3, 3), padding=(2, 0)),
            Case(draw(1, 2, 9, 9), draw(3, 2, 3, 3), dilation=(1, 3)),
            Case(draw(3, 4, 5, 3), draw(5, 4, 1, 1), draw(5)),
            Case(draw(5, 6, 4, 2).permute(3, 2, 1, 0), draw(3, 4, 2, 3)),
            Case(
                *(draw(2, 4, 11, 13), draw(6, 2, 3, 2), draw(6)),
                stride=(2, 3),
                padding=(2, 1),
                dilation=(3, 2),
                groups=2,
            ),
        ],
        mistakes=[
            Mistake(
                "flipped-kernel",
                """Your kernel is turned by 180 degrees. That is the convolution of signal
                processing, x[h − i, w − j]. The layer that deep learning calls convolution does
                not turn it: it is a cross-correlation, x[h + i, w + j], with plus signs.""",
                with_weight(lambda weight: weight.flip(2, 3)),
            ),
            Mistake(
                "kernel-transposed",
                """The kernel's rows and columns are exchanged. In weight[o, c, i, j] the index i
                goes down, with the height, and j goes right, with the width.""",
                with_weight(lambda weight: weight.transpose(2, 3)),
            ),
            Mistake(
                "bias-dropped",
                """The bias is missing. Where it is given, add bias[o] to each element of output
                channel o: bias.reshape(−1, 1, 1) has the shape that broadcasts so.""",
                with_bias(lambda bias, weight: None),
            ),
            Mistake(
                "bias-along-width",
                """The bias is added along the width. Broadcasting lines up the last axes, so a
                tensor of shape (out_channels) meets the width, and fails or, worse, fits by chance.
                bias.reshape(−1, 1, 1) meets the channels.""",
                lambda x, weight, bias=None, **options: (
                    F.conv2d(x, weight, **options) + (0 if bias is None else bias)
                ),
            ),
            Mistake(
                "bias-per-input-channel",
                """You added the bias once for each input channel, probably inside the loop over
                the channels. The bias belongs to the output channel: add it once, after the sum
                over the input channels is complete.""",
                with_bias(lambda bias, weight: bias * weight.shape[1]),
            ),
            Mistake(
                "bias-per-kernel-element",
                """You added the bias once for each element of the kernel, probably inside the
                innermost loop. Add it once, after the sum is complete.""",
                with_bias(lambda bias, weight: bias * weight[0, 0].numel()),
                with_bias(lambda bias, weight: bias * weight[0].numel()),
            ),
            Mistake(
                "channels-not-summed",
                """The input channels are not added up. One output element is a sum over c, i and
                j: all input channels of its group add to the same number (+=, not =).""",
                with_channels([-1]),
                with_channels([0]),
                channels_apart,
            ),
            Mistake(
                "channels-averaged",
                """You took the mean over the input channels. The formula has a sum; training
                finds weights of the right size by itself.""",
                with_weight(lambda weight: weight / weight.shape[1]),
            ),
            Mistake(
                "groups-ignored",
                """All of your filters read the first input channels. With groups, output channel
                o belongs to group o // (out_channels / groups), and reads that group's input
                channels: the first group the first ones, the second group the next ones.""",
                groups_ignored,
            ),
            Mistake(
                "groups-interleaved",
                """Your groups take every groups-th channel. A group is a block of neighbours:
                with 4 channels and 2 groups, channels 0 and 1 form the first group, 2 and 3 the
                second. So it is o // (out_channels / groups), not o % groups.""",
                groups_interleaved,
                filters_interleaved,
            ),
            Mistake(
                "stride-dilation-swapped",
                """Stride and dilation are exchanged. The stride multiplies the place of the
                window, h and w; the dilation multiplies the place inside the window, i and j:
                x[h · stride + i · dilation, ...].""",
                stride_dilation_swapped,
            ),
            Mistake(
                "dilation-ignored",
                """You left out the dilation. Element (i, j) of the kernel meets the input element
                i · dilation rows below and j · dilation columns right of the window's corner.""",
                _without(F.conv2d, "dilation"),
            ),
            Mistake(
                "border-not-zero",
                """Your border repeats, mirrors or wraps the image. The padding of this task is
                zeros: pixels about which nothing is known add nothing to the sum.""",
                *map(bordered, ("replicate", "reflect", "circular")),
            ),
            Mistake(
                "output-padded",
                """You put the border of zeros around the output. Padding comes first: it is put
                around x, so that the kernel also meets the pixels at the edge of the image.""",
                output_padded,
            ),
            Mistake(
                "last-window-missing",
                """The last row and the last column of the output are missing. The kernel has a
                first place before it takes any step: the count is steps + 1, as in output_size.
                """,
                lambda *args, **options: F.conv2d(*args, **options)[:, :, :-1, :-1],
            ),
            *_geometry_mistakes(F.conv2d),
        ],
    )


def check_conv2d_backward(candidate: Callable) -> Passed:
    """Check ``conv2d_backward(grad_output, x, weight, stride=1, padding=0)``."""

    def reference(grad_output, x, weight, stride=1, padding=0):
        x, weight = x.requires_grad_(), weight.requires_grad_()
        bias = x.new_zeros(weight.shape[0], requires_grad=True)
        y = F.conv2d(x, weight, bias, stride, padding)
        return torch.autograd.grad(y, (x, weight, bias), grad_output)

    def with_grad_x(wrong):
        def answer(grad_output, x, weight, stride=1, padding=0):
            right = reference(grad_output, x, weight, stride, padding)
            found = wrong(grad_output, x.detach(), weight.detach(), _pair(stride), _pair(padding))
            return found, *right[1:]

        return answer

    def with_grad_weight(wrong):
        def answer(grad_output, x, weight, stride=1, padding=0):
            right = reference(grad_output, x, weight, stride, padding)
            found = wrong(grad_output, x.detach(), right[1], _pair(stride), _pair(padding))
            return right[0], found, right[2]

        return answer

    def with_grad_bias(wrong):
        return lambda grad_output, *args, **options: (
            *reference(grad_output, *args, **options)[:2],
            wrong(grad_output),
        )

    def one_image(chosen):
        return lambda grad, x, right, stride, padding: conv2d_weight(
            x[chosen], right.shape, grad[chosen], stride, padding
        )

    def averaged(*args, **options):
        return tuple(grad / len(args[0]) for grad in reference(*args, **options))

    def flipped(grad, x, weight, stride, padding):
        return conv2d_input(x.shape, weight.flip(2, 3), grad, stride, padding)

    def padded(grad, x, weight, stride, padding):
        (p_h, p_w), shape = padding, x.shape
        shape = (*shape[:2], shape[2] + 2 * p_h, shape[3] + 2 * p_w)
        return conv2d_input(shape, weight, grad, stride)

    def padded_then_cropped(grad, x, weight, stride, padding):
        return padded(grad, x, weight, stride, padding)[:, :, : x.shape[2], : x.shape[3]]

    def cropped_across(grad, x, weight, stride, padding):
        p_w, p_h = padding
        found = padded(grad, x, weight, stride, padding)
        return found[:, :, p_h : found.shape[2] - p_h, p_w : found.shape[3] - p_w]

    def without_holes(grad, x, weight, stride, padding):
        return F.conv_transpose2d(grad, weight, None, 1, padding)

    def without_holes_in_a_corner(grad, x, weight, stride, padding):
        found = without_holes(grad, x, weight, stride, padding)[:, :, : x.shape[2], : x.shape[3]]
        return F.pad(found, (0, x.shape[3] - found.shape[3], 0, x.shape[2] - found.shape[2]))

    def without_unused_rows(grad, x, weight, stride, padding):
        return F.conv_transpose2d(grad, weight, None, stride, padding)

    def overwritten(grad, x, weight, stride, padding):
        (s_h, s_w), (p_h, p_w), (k_h, k_w) = stride, padding, weight.shape[2:]
        found = F.pad(torch.zeros_like(x), (p_w, p_w, p_h, p_h))
        for h, w in itertools.product(range(grad.shape[2]), range(grad.shape[3])):
            window = torch.einsum("no,ocij->ncij", grad[:, :, h, w], weight)
            found[:, :, h * s_h : h * s_h + k_h, w * s_w : w * s_w + k_w] = window
        return found[:, :, p_h : p_h + x.shape[2], p_w : p_w + x.shape[3]]

    def correlated(dilated, cropped):
        """x correlated with grad_output; stride s needs dilation s, and then a crop."""

        def wrong(grad, x, right, stride, padding):
            dilation = stride if dilated else 1
            found = F.conv2d(x.transpose(0, 1), grad.transpose(0, 1), None, 1, padding, dilation)
            found = found.transpose(0, 1)
            return found[:, :, : right.shape[2], : right.shape[3]] if cropped else found

        return wrong

    def case(x_shape, weight_shape, **options):
        x, weight = draw(*x_shape), draw(*weight_shape)
        return Case(draw(*F.conv2d(x, weight, **options).shape), x, weight, **options)

    draw = draws(4)
    return compare(
        candidate,
        signature="conv2d_backward(grad_output, x, weight, stride=1, padding=0)",
        reference=reference,
        outputs=("grad_x", "grad_weight", "grad_bias"),
        cases=[
            Case(_grid(1, 1, 2, 2) + 1, _grid(1, 1, 3, 3), _grid(1, 1, 2, 2) + 1),
            case((1, 2, 4, 5), (3, 2, 3, 2)),
            case((2, 2, 4, 4), (3, 2, 2, 2)),
            case((1, 1, 3, 4), (1, 1, 3, 3), padding=1),
            case((1, 1, 5, 5), (1, 1, 3, 3), stride=2),
            case((1, 2, 6, 8), (2, 2, 3, 3), stride=2),
            case((2, 1, 7, 8), (2, 1, 3, 3), stride=(2, 3), padding=(0, 2)),
            case((3, 4, 9, 7), (5, 4, 2, 3), stride=(3, 2), padding=(1, 0)),
            case((3, 2, 4, 4), (2, 2, 1, 1)),
        ],
        mistakes=[
            Mistake(
                "bias-grad-averaged",
                """grad_bias is an average. bias[o] is added to every element of output channel o,
                in every image, so by the chain rule its gradient is the sum over all of them. An
                average over the batch, where wanted, is already in grad_output: the loss puts it
                there.""",
                with_grad_bias(lambda grad: grad.mean((0, 2, 3))),
                with_grad_bias(lambda grad: grad.mean(0).sum((1, 2))),
                with_grad_bias(lambda grad: grad.mean((2, 3)).sum(0)),
            ),
            Mistake(
                "bias-grad-per-image",
                """grad_bias still has the batch axis. All images share the one bias, so their
                gradients add up: sum over batch, height and width.""",
                with_grad_bias(lambda grad: grad.sum((2, 3))),
            ),
            Mistake(
                "weight-grad-averaged",
                """grad_weight is divided by the batch size. All images share the one weight, so by
                the chain rule their gradients add up. An average over the batch, where wanted, is
                already in grad_output: the loss puts it there.""",
                with_grad_weight(lambda grad, x, right, *rest: right / len(x)),
            ),
            Mistake(
                "all-grads-averaged",
                """Your gradients are divided by the batch size. This function only applies the
                chain rule. An average over the batch, where wanted, is already in grad_output: the
                loss puts it there, and dividing again would shrink every gradient.""",
                averaged,
                lambda *args, **options: (
                    reference(*args, **options)[0],
                    *averaged(*args, **options)[1:],
                ),
            ),
            Mistake(
                "weight-grad-of-one-image",
                """grad_weight comes from one image only. All images of the batch share the weight,
                so each of them adds to its gradient (+=, not =).""",
                with_grad_weight(one_image(slice(-1, None))),
                with_grad_weight(one_image(slice(0, 1))),
            ),
            Mistake(
                "weight-grad-flipped",
                """grad_weight is turned by 180 degrees. grad_weight[o, c, i, j] pairs
                grad_output[n, o, h, w] with x[n, c, h + i, w + j], with plus signs, as in the
                forward pass. Only grad_x needs a turned kernel.""",
                with_grad_weight(lambda grad, x, right, *rest: right.flip(2, 3)),
            ),
            Mistake(
                "weight-grad-ignores-stride",
                """grad_weight ignores the stride. Output (h, w) came from the window that starts at
                (h · stride, w · stride), so grad_output[h, w] meets x[h · stride + i,
                w · stride + j].""",
                with_grad_weight(correlated(dilated=False, cropped=False)),
                with_grad_weight(correlated(dilated=False, cropped=True)),
            ),
            Mistake(
                "weight-grad-too-large",
                """grad_weight is larger than weight. Where the stride leaves rows or columns of x
                unused at the far edge, sliding grad_output over x finds extra places there. No
                output came from them: keep the first k_h rows and k_w columns.""",
                with_grad_weight(correlated(dilated=True, cropped=False)),
            ),
            Mistake(
                "grad-x-kernel-not-flipped",
                """grad_x uses the kernel as it stands, but here it must be turned by 180 degrees.
                Forward, output h reads x[h + i] with weight[i]. Seen from x[a], it is read by
                output a − i with weight[i]: as i grows, the output's index falls.""",
                with_grad_x(flipped),
            ),
            Mistake(
                "padding-not-removed",
                """grad_x is the gradient of the padded input. The border of zeros is no part of x
                and has no gradient to hand on: cut padding rows and columns off all four sides.""",
                with_grad_x(padded),
                with_grad_x(padded_then_cropped),
            ),
            Mistake(
                "height-width-swapped",
                """You cut padding off the wrong axes. The first number of the pair is for the
                rows (axis 2), the second for the columns (axis 3).""",
                with_grad_x(cropped_across),
            ),
            Mistake(
                "stride-holes-not-filled",
                """grad_x treats neighbouring outputs as if their windows were one element apart.
                With a stride, they are stride elements apart: put stride − 1 zeros between
                neighbouring elements of grad_output first, or add each window's gradient at
                h · stride, w · stride.""",
                with_grad_x(without_holes),
                with_grad_x(without_holes_in_a_corner),
            ),
            Mistake(
                "unused-rows-missing",
                """grad_x is smaller than x. The stride leaves some rows or columns of x unused at
                the far edge. They did not change the output, so their gradient is zero, but they
                are part of x: start from zeros of x's own shape.""",
                with_grad_x(without_unused_rows),
            ),
            Mistake(
                "overlaps-overwritten",
                """Where windows overlap, grad_x keeps only the last one. An element of x that was
                read by several windows gets a gradient from each of them: add (+=), do not assign.
                """,
                with_grad_x(overwritten),
            ),
            Mistake(
                "results-in-another-order",
                """The three gradients come in another order. Return them as (grad_x, grad_weight,
                grad_bias), the order of conv2d's arguments.""",
                *(
                    lambda *args, order=order, **options: tuple(
                        reference(*args, **options)[i] for i in order
                    )
                    for order in itertools.permutations(range(3))
                ),
            ),
        ],
    )


def check_max_pool2d(candidate: Callable) -> Passed:
    """Check ``max_pool2d(x, kernel_size, stride=None, padding=0)``."""

    def padded_with(value):
        def answer(x, *, padding=0, **options):
            p_h, p_w = _pair(padding)
            return F.max_pool2d(F.pad(x, (p_w, p_w, p_h, p_h), value=value), **options)

        return answer

    def largest_magnitude(x, **options):
        high, low = F.max_pool2d(x, **options), -F.max_pool2d(-x, **options)
        return torch.where(high.abs() > low.abs(), high, low)

    return _check_pooling(
        candidate,
        "max_pool2d",
        F.max_pool2d,
        border=-math.inf,
        mistakes=[
            Mistake(
                "padded-with-zero",
                """Your padding took part in the maximum: where all real elements of a window are
                negative, a zero in the border wins. Padding must never win, so fill it with −∞
                (−math.inf).""",
                padded_with(0.0),
            ),
            Mistake(
                "padded-with-small-number",
                """Your padding holds a number that can still win against very negative elements.
                Only −∞ (−math.inf) never wins.""",
                *map(padded_with, (-1.0, -10.0, -100.0)),
            ),
            Mistake(
                "average-instead-of-max",
                """You took the mean of each window. Max pooling keeps its largest element.""",
                F.avg_pool2d,
            ),
            Mistake(
                "min-instead-of-max",
                """You took the smallest element of each window; the task is the largest.""",
                lambda x, **options: -F.max_pool2d(-x, **options),
            ),
            Mistake(
                "largest-magnitude",
                """You took the element that is largest without its sign. The maximum looks at the
                sign: −1 is larger than −5.""",
                largest_magnitude,
                lambda x, **options: F.max_pool2d(x.abs(), **options),
            ),
            Mistake(
                "max-over-channels",
                """You took the maximum over the channels too. Pooling treats each channel by
                itself: the number of channels stays as it is.""",
                lambda *args, **options: F.max_pool2d(*args, **options).amax(1),
                lambda *args, **options: F.max_pool2d(*args, **options).amax(1, keepdim=True),
            ),
        ],
    )


def check_avg_pool2d(candidate: Callable) -> Passed:
    """Check ``avg_pool2d(x, kernel_size, stride=None, padding=0)``; padding is counted."""

    def divided_by(divisor):
        def answer(x, kernel_size, **options):
            by = divisor(*_pair(kernel_size))
            return F.avg_pool2d(x, kernel_size, divisor_override=by, **options)

        return answer

    return _check_pooling(
        candidate,
        "avg_pool2d",
        F.avg_pool2d,
        border=0.0,
        mistakes=[
            Mistake(
                "padding-not-counted",
                """At the border you divided by the number of real elements only. Here the zeros of
                the padding are elements like others: always divide by k_h · k_w. (torch calls this
                count_include_pad=True; it is the default.)""",
                lambda *args, **options: F.avg_pool2d(*args, count_include_pad=False, **options),
            ),
            Mistake(
                "max-instead-of-average",
                """You took the largest element of each window. Average pooling takes the mean.""",
                F.max_pool2d,
            ),
            Mistake(
                "sum-instead-of-average",
                """You added each window up, and did not divide by its number of elements,
                k_h · k_w.""",
                divided_by(lambda k_h, k_w: 1),
            ),
            Mistake(
                "wrong-divisor",
                """The sums are right and the divisor is not. A window has k_h · k_w elements; think
                of a kernel that is not square.""",
                divided_by(lambda k_h, k_w: k_h),
                divided_by(lambda k_h, k_w: k_w),
                divided_by(lambda k_h, k_w: k_h * k_h),
                divided_by(lambda k_h, k_w: k_w * k_w),
                divided_by(lambda k_h, k_w: k_h + k_w),
            ),
            Mistake(
                "average-over-channels",
                """You averaged over the channels too. Pooling treats each channel by itself: the
                number of channels stays as it is.""",
                lambda *args, **options: F.avg_pool2d(*args, **options).mean(1),
                lambda *args, **options: F.avg_pool2d(*args, **options).mean(1, keepdim=True),
            ),
        ],
    )


def _check_pooling(
    candidate: Callable, name: str, truth: Callable, border: float, mistakes: list[Mistake]
) -> Passed:
    """What the two kinds of pooling have in common: cases, and mistakes with sizes."""

    def stride_one(x, *, stride=None, **options):
        return truth(x, stride=stride or 1, **options)

    def stride_is_kernel(x, *, stride=None, **options):
        return truth(x, **options)

    def with_default_stride(answer):
        return lambda x, *, kernel_size, stride=None, **options: answer(
            x, kernel_size=kernel_size, stride=stride or kernel_size, **options
        )

    def hanging_windows(x, *, kernel_size, stride=None, padding=0):
        sides = []
        for axis in (1, 0):  # F.pad wants the last axis first
            kernel, step = _pair(kernel_size)[axis], _pair(stride or kernel_size)[axis]
            before = _pair(padding)[axis]
            missing = -(x.shape[2 + axis] + 2 * before - kernel) % step
            sides += [before, before + missing]
        return truth(F.pad(x, sides, value=border), kernel_size, stride)

    def channels_mixed(x, *, kernel_size, stride=None, padding=0):
        (k_h, k_w), (p_h, p_w) = _pair(kernel_size), _pair(padding)
        right = truth(x, kernel_size, stride, padding)
        x = F.pad(x, (p_w, p_w, p_h, p_h), value=border)
        rows = F.unfold(x, kernel_size, stride=stride or kernel_size)
        rows = rows.reshape(len(x), k_h * k_w, x.shape[1], -1)
        return (rows.mean(1) if border == 0 else rows.amax(1)).reshape(right.shape)

    draw = draws(5)
    return compare(
        candidate,
        signature=f"{name}(x, kernel_size, stride=None, padding=0)",
        reference=truth,
        cases=[
            Case(_grid(1, 1, 4, 4) * 5 % 16 - 4, kernel_size=2),
            Case(_grid(1, 1, 3, 3) % 5 - 6, kernel_size=2, stride=1),
            Case(_grid(1, 1, 2, 3) - 7, kernel_size=2, padding=1),
            Case(draw(2, 3, 6, 4), kernel_size=(3, 2)),
            Case(draw(1, 2, 5, 7), kernel_size=2),
            Case(draw(1, 2, 7, 6), kernel_size=3, stride=2),
            Case(draw(2, 1, 9, 9), kernel_size=3, stride=(2, 3)),
            Case(draw(1, 3, 4, 5) - 200, kernel_size=(3, 4), stride=1, padding=(1, 2)),
            Case(draw(3, 2, 8, 5), kernel_size=(4, 2), stride=(3, 2), padding=(0, 1)),
            Case(draw(5, 7, 3, 2).permute(3, 2, 1, 0), kernel_size=3),
        ],
        mistakes=[
            *mistakes,
            Mistake(
                "channels-mixed",
                """Your windows hold elements of several channels. If they come from im2col or
                unfold: there the channel is the outermost part of a row, so split the rows into
                (channels, k_h · k_w), in this order.""",
                channels_mixed,
            ),
            Mistake(
                "default-stride-one",
                """Without a stride your window moves one element at a time. In pooling,
                stride=None means stride = kernel_size: the windows lie side by side.""",
                stride_one,
            ),
            Mistake(
                "stride-ignored",
                """The stride is left out: your windows always lie side by side. That is right only
                for stride=None; otherwise the window moves stride elements at each step.""",
                stride_is_kernel,
            ),
            Mistake(
                "ceil-instead-of-floor",
                """Your output is too large: you rounded its size up. A window that hangs over the
                far edge is left out. (torch calls the other choice ceil_mode=True.)""",
                lambda *args, **options: truth(*args, ceil_mode=True, **options),
                hanging_windows,
            ),
            *(
                Mistake(
                    *(mistake.slug, mistake.advice, *mistake.answers),
                    *map(with_default_stride, mistake.answers),
                )
                for mistake in _geometry_mistakes(truth, border)
            ),
        ],
    )


def _geometry_mistakes(truth: Callable, border: float = 0.0) -> list[Mistake]:
    """Mistakes with stride, padding and axes, for any ``truth(x, ..., stride, padding, ...)``."""

    def with_pairs(change, names):
        def answer(*args, **options):
            changed = {name: change(_pair(options[name])) for name in names if options.get(name)}
            return truth(*args, **(options | changed))

        return answer

    def one_sided(before, after):
        def answer(x, *args, padding=0, **options):
            p_h, p_w = _pair(padding)
            sides = (before * p_w, after * p_w, before * p_h, after * p_h)
            return truth(F.pad(x, sides, value=border), *args, **options)

        return answer

    names = ("stride", "padding", "dilation", "kernel_size")
    chosen = [some for n in range(1, 5) for some in itertools.combinations(names, n)]
    return [
        Mistake(
            "height-width-swapped",
            """Height and width are exchanged somewhere. Sizes are pairs (height, width), in the
            order of x's last two axes. (F.pad is the exception: its list starts with the last
            axis, left, right, top, bottom.)""",
            *(with_pairs(lambda pair: pair[::-1], some) for some in chosen),
        ),
        Mistake(
            "one-axis-for-both",
            """You used one number of a pair for both axes. The first number of a pair is for the
            height, the second for the width.""",
            *(with_pairs(lambda pair: pair[0], some) for some in chosen),
            *(with_pairs(lambda pair: pair[1], some) for some in chosen),
        ),
        Mistake(
            "padding-on-one-side",
            """The padding is not the same on all four sides. Put padding rows above and below, and
            padding columns left and right, so that the input grows by 2 · padding and stays in the
            middle.""",
            one_sided(1, 0),
            one_sided(0, 1),
            one_sided(2, 0),
            one_sided(0, 2),
        ),
        Mistake(
            "padding-ignored",
            """You left out the padding. Put a border around x on all four sides before the window
            slides over it.""",
            _without(truth, "padding"),
        ),
        Mistake(
            "stride-ignored",
            """You left out the stride. The window moves stride elements at each step, so output
            (h, w) looks at the window that starts at (h · stride, w · stride).""",
            lambda *args, **options: truth(*args, **(options | {"stride": 1})),
        ),
    ]


def _without(truth: Callable, name: str) -> Callable:
    return lambda *args, **options: truth(
        *args, **{key: value for key, value in options.items() if key != name}
    )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _grid(*shape: int) -> Tensor:
    """0, 1, 2, … in ``shape``: numbers that a learner can follow by hand."""
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
