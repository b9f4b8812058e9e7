"""Convolution and pooling from their formulas agree with torch in float64, both ways."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shipyard import convolution

# Derandomised: the same cases on every machine. deadline=None: a busy machine is not a failure.
thoroughly = settings(max_examples=60, deadline=None, derandomize=True)
quickly = settings(max_examples=30, deadline=None, derandomize=True)


def assert_same(got, expected):
    """Equal to 1e-10 of the largest expected value, with equal shapes and types."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if expected.numel():
        gap = (got - expected).abs().max()
        assert gap <= 1e-10 * max(1.0, expected.abs().max().item())


@dataclass
class Geometry:
    kernel_size: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    size: tuple
    groups: int
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def sizes(self):
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


def pairs(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def geometries(draw, *, dilation=3, half_padding=False):
    """Any sizes that fit: odd, not square, with unused rows; x in any memory layout."""
    kernel, dilation = draw(pairs(1, 4)), draw(pairs(1, dilation))
    limits = [k // 2 if half_padding else 3 for k in kernel]
    padding = tuple(draw(st.integers(0, limit)) for limit in limits)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = tuple(
        max(1, span - 2 * p) + draw(st.integers(0, 6))
        for span, p in zip(spans, padding, strict=True)
    )
    groups, batch = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    channels, filters = (groups * draw(st.integers(1, 2)) for _ in range(2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def random(*shape):
        order = torch.tensor(draw(st.permutations(range(len(shape)))))
        stored = torch.randn([shape[i] for i in order], dtype=torch.float64, generator=generator)
        return stored.permute(order.argsort().tolist())  # the shape asked for, another layout

    x, weight = random(batch, channels, *size), random(filters, channels // groups, *kernel)
    stride = draw(pairs(1, 3))
    return Geometry(kernel, stride, padding, dilation, size, groups, x, weight, random(filters))


def value_and_gradients(function, inputs, seed=0):
    """The output, a random gradient for it, and autograd's gradients for the inputs."""
    inputs = [value.detach().requires_grad_() for value in inputs]
    y = function(*inputs)
    generator = torch.Generator().manual_seed(seed)
    grad_output = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    return y.detach(), grad_output, torch.autograd.grad(y, inputs, grad_output)


@thoroughly
@given(geometries(), st.booleans())
def test_conv2d_and_its_autograd_agree_with_torch(g, with_bias):
    inputs = (g.x, g.weight, g.bias) if with_bias else (g.x, g.weight)
    ours, _, our_grads = value_and_gradients(
        lambda *given: convolution.conv2d(*given, **g.sizes, groups=g.groups), inputs
    )
    theirs, _, their_grads = value_and_gradients(
        lambda *given: F.conv2d(*given, **g.sizes, groups=g.groups), inputs
    )
    assert_same(ours, theirs)
    for our_grad, their_grad in zip(our_grads, their_grads, strict=True):
        assert_same(our_grad, their_grad)


@thoroughly
@given(geometries())
def test_conv2d_backward_agrees_with_autograd(g):
    _, grad_output, expected = value_and_gradients(
        lambda *given: F.conv2d(*given, **g.sizes, groups=g.groups), (g.x, g.weight, g.bias)
    )
    found = convolution.conv2d_backward(grad_output, g.x, g.weight, **g.sizes, groups=g.groups)
    for our_grad, their_grad in zip(found, expected, strict=True):
        assert_same(our_grad, their_grad)


def test_conv2d_backward_agrees_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((2, 2, 5, 4), (3, 2, 3, 2))
    )
    sizes = {"stride": (2, 1), "padding": (1, 0)}
    grad_output = torch.ones_like(convolution.conv2d(x, weight, **sizes))
    grads = convolution.conv2d_backward(grad_output, x, weight, **sizes)
    step = 1e-6
    for value, grad in zip((x, weight), grads[:2], strict=True):
        for index in ((0, 0, 0, 0), (1, 1, 2, 1), (-1, -1, -1, -1)):
            before = value[index].item()
            value[index] = before + step
            above = convolution.conv2d(x, weight, **sizes).sum()
            value[index] = before - step
            below = convolution.conv2d(x, weight, **sizes).sum()
            value[index] = before
            torch.testing.assert_close(
                (above - below) / (2 * step), grad[index], rtol=1e-6, atol=1e-6
            )


@thoroughly
@given(geometries())
def test_col2im_agrees_with_fold(g):
    columns = F.unfold(g.x, g.kernel_size, **g.sizes)
    image = F.fold(columns, g.size, g.kernel_size, **g.sizes)
    assert_same(convolution.col2im(columns, g.size, g.kernel_size, **g.sizes), image)


POOLS = {
    "max": (convolution.max_pool2d, F.max_pool2d),
    "avg": (convolution.avg_pool2d, F.avg_pool2d),
}


@pytest.mark.parametrize("kind", POOLS)
@thoroughly
@given(
    g=geometries(dilation=1, half_padding=True), default_stride=st.booleans(), ties=st.booleans()
)
def test_pooling_and_its_gradients_agree_with_torch(kind, g, default_stride, ties):
    ours, theirs = POOLS[kind]
    x = g.x.round() - 3 if ties else g.x - 3  # negative: a zero in the padding would win
    sizes = (g.kernel_size, None if default_stride else g.stride, g.padding)
    y, _, (our_grad,) = value_and_gradients(lambda x: ours(x, *sizes), [x])
    expected, _, (grad,) = value_and_gradients(lambda x: theirs(x, *sizes), [x])
    assert_same(y, expected)
    assert_same(our_grad, grad)


@thoroughly
@given(geometries())
def test_output_size_is_the_size_that_torch_returns(g):
    expected = tuple(F.conv2d(g.x, g.weight, **g.sizes, groups=g.groups).shape[2:])
    assert convolution.output_size(g.size, g.kernel_size, **g.sizes) == expected


def test_output_size_of_an_int_is_an_int():
    assert convolution.output_size(32, 3, stride=2, padding=1) == 16
    assert convolution.output_size((32, 31), 3, padding=1) == (32, 31)


@quickly
@given(geometries())
def test_parameters_are_those_that_torch_counts(g):
    filters, channels = g.weight.shape[0], g.x.shape[1]
    for bias in (True, False):
        layer = nn.Conv2d(channels, filters, g.kernel_size, groups=g.groups, bias=bias)
        count = convolution.conv2d_parameters(channels, filters, g.kernel_size, g.groups, bias)
        assert count == sum(p.numel() for p in layer.parameters())


def test_float32_stays_float32():
    x, weight, bias = torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), torch.ones(3)
    y = convolution.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1))
    assert {g.dtype for g in convolution.conv2d_backward(y, x, weight, padding=1)} == {
        torch.float32
    }
    for ours, theirs in POOLS.values():
        pooled = ours(x, 2)
        torch.testing.assert_close(pooled, theirs(x, 2))


def test_an_empty_batch_gives_an_empty_answer_of_the_same_shape_as_torch():
    x, weight = torch.ones(0, 2, 5, 5), torch.ones(3, 2, 3, 3)
    y = convolution.conv2d(x, weight)
    assert y.shape == F.conv2d(x, weight).shape
    grad_x, grad_weight, grad_bias = convolution.conv2d_backward(y, x, weight)
    assert grad_x.shape == x.shape
    assert not grad_weight.any()
    assert not grad_bias.any()
    for ours, theirs in POOLS.values():
        assert ours(x, 2).shape == theirs(x, 2).shape


def test_windows_are_a_view_and_cost_no_memory():
    x = torch.arange(35.0).reshape(1, 1, 5, 7)
    view = convolution.windows(x, (2, 3), stride=2, dilation=2)
    assert view.data_ptr() == x.data_ptr()
    assert view[0, 0, 1, 0, 0, 2] == x[0, 0, 2, 4]


def test_inputs_are_left_as_they_were():
    x, weight = torch.randn(2, 2, 5, 5), torch.randn(2, 2, 3, 3)
    before = x.clone(), weight.clone()
    y = convolution.conv2d(x, weight, padding=1)
    convolution.conv2d_backward(y, x, weight, padding=1)
    convolution.max_pool2d(x, 2)
    assert torch.equal(x, before[0])
    assert torch.equal(weight, before[1])


X, WEIGHT = torch.ones(1, 4, 5, 5), torch.ones(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: convolution.conv2d(X[0], WEIGHT), r"\(4, 5, 5\); expected \(batch, channels"),
        (lambda: convolution.conv2d(X, WEIGHT[:, :3]), r"\(6, 3, 3, 3\).*\(1, 4, 5, 5\)"),
        (lambda: convolution.conv2d(X, WEIGHT, groups=2), r"has 2\."),
        (lambda: convolution.conv2d(X, WEIGHT, groups=3), r"groups is 3.*in_channels \(4\)"),
        (lambda: convolution.conv2d(X, WEIGHT, X[0, 0, 0]), r"bias has shape \(5,\).*\(6,\)"),
        (lambda: convolution.conv2d(X, WEIGHT.double()), "float64 and x is torch.float32"),
        (lambda: convolution.conv2d(X, WEIGHT, dilation=3), "spans 7, but the input of 5"),
        (lambda: convolution.conv2d(X, WEIGHT, stride=0), "stride is 0.*at least 1"),
        (lambda: convolution.conv2d(X, WEIGHT, padding=-1), "padding is -1.*at least 0"),
        (lambda: convolution.conv2d(X, WEIGHT, stride=(1, 2, 3)), r"stride is \(1, 2, 3\)"),
        (lambda: convolution.conv2d_backward(X, X, WEIGHT), r"expected \(1, 6, 3, 3\)"),
        (lambda: convolution.max_pool2d(X, 2, padding=2), "half of kernel_size"),
        (lambda: convolution.avg_pool2d(X, 7), "spans 7, but the input of 5"),
        (lambda: convolution.col2im(X[0], (5, 5), 3), r"\(4, 5, 5\); expected \(batch"),
        (lambda: convolution.output_size(5, (3, 2)), r"give size as a pair \(5, 5\)"),
        (lambda: convolution.output_size(2, 3), "does not fit"),
        (lambda: convolution.conv2d_parameters(4, 6, 3, groups=4), "groups is 4"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_shapes(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_module_never_calls_what_it_teaches():
    tree = ast.parse(inspect.getsource(convolution))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    }
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {name for name in imported if {"nn", "functional"} & set(name.split("."))}
    assert not attributes & {"nn", "ops", "conv2d", "conv1d", "max_pool2d", "avg_pool2d", "fold"}
