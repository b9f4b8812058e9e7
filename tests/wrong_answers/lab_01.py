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
