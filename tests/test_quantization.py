"""Quantization against torch and ONNX Runtime, and bad input that is refused by name."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shipyard import data, models, onnx_export
from shipyard.compression import onnx_int8, quantization, quantized_layers, weight_only
from shipyard.errors import CompressionError

BITS = st.integers(2, 10)
SEEDS = st.integers(0, 10_000)


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def network():
    """A small residual network whose batch norms have seen data."""
    torch.manual_seed(0)
    model = models.ResidualNet(width=4)
    for _ in range(10):
        model(torch.randn(16, 3, 32, 32))
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return numbers(1, 16, 3, 32, 32).float()


@given(SEEDS, BITS, st.sampled_from(quantization.SCHEMES))
def test_rounding_and_its_gradient_are_torchs(seed, bits, scheme):
    x = numbers(seed, 40).float() * 3
    grid = quantization.grid_for(x.min() / 2, x.max() / 2, bits, scheme)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    s, z = grid.scale.item(), int(grid.zero_point)
    ours = grid.straight_through(inputs[0])
    theirs = torch.fake_quantize_per_tensor_affine(inputs[1], s, z, grid.lowest, grid.highest)
    torch.testing.assert_close(ours, theirs)
    gradients = [
        torch.autograd.grad(y.square().sum(), i)[0]
        for y, i in zip((ours, theirs), inputs, strict=True)
    ]
    torch.testing.assert_close(*gradients)


@given(SEEDS, BITS, st.sampled_from(quantization.SCHEMES), st.floats(1e-30, 1e30))
def test_what_lies_in_the_range_moves_by_half_a_step_and_zero_stays(seed, bits, scheme, size):
    x = torch.cat([numbers(seed, 30) * size, torch.zeros(1, dtype=torch.float64)])
    grid = quantization.grid_of(x, bits, scheme)
    rounded = grid.round(x)
    # where 0 is pushed to a mark, one end of an affine range may lie half a step further out
    limit = grid.scale * (0.5 if scheme == "symmetric" else 1.0)
    assert ((rounded - x).abs() <= limit * (1 + 1e-6)).all()
    assert rounded[-1] == 0


@pytest.mark.parametrize("scheme", quantization.SCHEMES)
@pytest.mark.parametrize("value", [0.0, 1e-42, -0.3, 5.0])
def test_a_constant_tensor_is_well_defined(value, scheme):
    x = torch.full((3, 4), value)
    rounded = quantization.round_to_bits(x, 8, scheme, axis=0)
    torch.testing.assert_close(rounded, x, atol=1e-38, rtol=1e-5)
    assert quantization.calibrated_range(x, "mse")[1] >= 0


def test_a_bit_is_worth_six_decibels():
    x = torch.rand(50_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    decibels = [quantization.sqnr(x, quantization.round_to_bits(x, bits)) for bits in (6, 7, 8, 9)]
    assert np.diff(decibels) == pytest.approx([6.02] * 3, abs=0.3)
    assert quantization.sqnr(x, x) == math.inf


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_each_method_keeps_its_promise(bits):
    x = numbers(3, 20_000).float().relu() ** 2
    ranges = {m: quantization.calibrated_range(x, m, bits) for m in quantization.METHODS}
    error = {
        m: (quantization.grid_for(*r, bits).round(x) - x).square().mean() for m, r in ranges.items()
    }
    assert ranges["minmax"] == (0, x.max())
    share = (x > ranges["percentile"][1]).double().mean()
    assert share == pytest.approx(1 - quantization.PERCENT / 100, abs=2e-4)
    assert error["mse"] == min(error.values())
    assert 0 < ranges["entropy"][1] <= x.max()


@given(SEEDS)
def test_the_multiplier_rounds_as_real_numbers_do(seed):
    factor = numbers(seed, 20).abs().clamp(1e-6, 0.99)
    a = (numbers(seed + 1, 20) * 1e6).round().long()
    got = quantization.requantize(a, *quantization.as_multiplier(factor))
    assert ((got - a * factor).abs() <= 0.5 + 1e-3).all()


@given(SEEDS, st.integers(1, 40), st.integers(1, 6))
def test_whole_numbers_give_what_rounded_real_numbers_give(seed, width, out):
    x, w, b = numbers(seed, 5, width), numbers(seed + 1, out, width), numbers(seed + 2, out)
    x_grid, w_grid = quantization.grid_of(x, 8, "affine"), quantization.grid_of(w, 8, axis=0)
    kx, kw = x_grid.quantize(x), w_grid.quantize(w)
    exact = x_grid.dequantize(kx) @ w_grid.dequantize(kw).T + b
    y_grid = quantization.grid_of(exact, 8, "affine")
    got = quantization.int8_linear(kx, x_grid, kw, w_grid, b, y_grid)
    assert ((got - y_grid.quantize(exact)).abs() <= 1).all()


def test_k_means_beats_even_steps_and_needs_no_more_values():
    w = numbers(5, 40, 30) ** 3
    codebook, places = quantization.kmeans(w, 3)
    assert len(codebook) == 8
    assert places.shape == w.shape
    even = quantization.sqnr(w, quantization.round_to_bits(w, 3))
    assert quantization.sqnr(w, codebook[places]) > even + 3


@pytest.mark.parametrize(
    ("dtype", "form"), [(torch.float8_e4m3fn, (4, 3, 7)), (torch.float8_e5m2, (5, 2, 15))]
)
def test_short_floating_point_numbers_are_torchs(dtype, form):
    highest = torch.finfo(dtype).max
    ours = quantization.float_values(*form, highest)
    codes = torch.arange(128, dtype=torch.uint8).view(dtype).double()
    assert torch.equal(ours, codes[codes.isfinite()])


def test_folding_is_torchs_and_leaves_the_function_as_it_was(network, images):
    folded = quantized_layers.fold_batch_norms(network)
    conv, norm = network.features[1][:2]
    torch.testing.assert_close(folded.features[1][0].weight, fuse_conv_bn_eval(conv, norm).weight)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-4)


def test_layers_of_many_bits_compute_nearly_the_same_and_training_moves_them(network, images):
    fine = quantized_layers.calibrate(quantized_layers.prepare(network, 14, 14), [images])
    coarse = quantized_layers.calibrate(quantized_layers.prepare(network, 3, 8), [images])
    errors = [
        quantized_layers.layer_errors(quantized_layers.fold_batch_norms(network), q, images)
        for q in (fine, coarse)
    ]
    assert all(errors[0][name] > errors[1][name] + 20 for name in errors[0])
    assert errors[0]["head"] > 50
    F.cross_entropy(coarse(images), torch.arange(16) % 10).backward()
    layers = quantized_layers.quantized_layers(coarse)
    assert all(layer.layer.weight.grad.abs().sum() > 0 for layer in layers.values())


@pytest.mark.parametrize("group", [8, 24])
def test_gptq_makes_the_output_better_and_awq_no_worse(group):
    w = numbers(2, 10, 24)
    x = numbers(3, 400, 6) @ numbers(1, 6, 24) + 0.3 * numbers(4, 400, 24)  # columns go together
    nearest = quantization.round_to_bits(w, 3, group=group)
    better = weight_only.gptq(w, x.T @ x, 3, group)
    scaled, exponent = weight_only.awq(w, x, 3, group)
    lost = [(x @ (r - w).T).square().mean() for r in (nearest, better, scaled)]
    assert lost[1] < 0.7 * lost[0]
    assert lost[2] <= lost[0]
    assert 0 <= exponent <= 1


def test_where_inputs_go_apart_gptq_is_rounding_to_nearest():
    w = numbers(4, 5, 12)
    got = weight_only.gptq(w, torch.eye(12, dtype=torch.float64), 4, 12)
    torch.testing.assert_close(got, quantization.round_to_bits(w, 4, axis=0))


BROKEN = {
    "an unfitted calibrator": (
        lambda net: quantization.Calibrator(name="conv1").grid(), "conv1 has seen no data"),
    "no batch": (
        lambda net: quantized_layers.calibrate(quantized_layers.prepare(net), []),
        "input of features.0.0 has seen no data"),
    "settled without watching": (
        lambda net: quantized_layers.settle(quantized_layers.prepare(net)),
        "features.0.0 has no calibrator"),
    "a NaN image": (
        lambda net: quantized_layers.calibrate(
            quantized_layers.prepare(net), [torch.full((1, 3, 32, 32), torch.nan)]),
        "input of features.0.0 holds 3072 values that are NaN"),
    "a NaN tensor": (
        lambda net: quantization.round_to_bits(torch.tensor([1.0, math.nan]), name="head.weight"),
        "head.weight holds 1 values"),
    "an infinite tensor": (
        lambda net: quantization.kmeans(torch.tensor([1.0, math.inf]), 2), "NaN or infinite"),
    "an empty tensor": (
        lambda net: quantization.grid_of(torch.zeros(0), name="scores"), "scores is empty"),
    "an unsupported layer": (
        lambda net: quantized_layers.prepare(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(3, 4, 2))),
        "1 is a ConvTranspose2d"),
    "a norm without a convolution": (
        lambda net: quantized_layers.prepare(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))),
        "1 is a batch norm that does not follow"),
    "nothing prepared": (lambda net: quantized_layers.calibrate(net, []), "no quantized layer"),
    "a group that does not fit": (
        lambda net: quantization.round_to_bits(torch.ones(2, 10), 4, group=3, name="w"),
        "w has 10 columns"),
    "too few bits": (lambda net: quantization.levels(1, "affine"), "bits is 1"),
    "an unknown scheme": (lambda net: quantization.levels(8, "round"), "scheme is 'round'"),
    "an unknown method": (
        lambda net: quantization.calibrated_range(torch.ones(2), "guess"), "method is 'guess'"),
    "a hessian of another layer": (
        lambda net: weight_only.gptq(torch.ones(2, 4), torch.eye(3), 4, 4), "weight has 4 columns"),
    "no text": (lambda net: weight_only.linear_inputs(nn.Linear(2, 2), []), "saw no data"),
}  # fmt: skip


@pytest.mark.parametrize(("action", "words"), BROKEN.values(), ids=BROKEN)
def test_bad_input_is_refused_by_name(action, words, network):
    with pytest.raises(CompressionError, match=words):
        action(network)


@pytest.mark.parametrize(
    ("flags", "text"),
    [(("AVX2", "AVX-512", "VNNI"), "u8 activations, s8"), (("AVX2",), "u8 activations, s7"),
     (("AVX2", "AVX-512"), "s7"), (("NEON",), "s8 activations, s8"), ((), "s7")],
)  # fmt: skip
def test_the_format_follows_the_processor(flags, text):
    assert text in str(onnx_int8.format_for(flags))


def test_the_int8_file_is_small_and_answers_as_our_layers_do(network, images, tmp_path):
    import onnx
    import onnxruntime

    paths = tmp_path / "float32.onnx", tmp_path / "int8.onnx"
    options = {"classes": data.CLASSES, "mean": data.MEAN, "std": data.STD}
    onnx_export.export(network, paths[0], images[:2], **options)
    form = onnx_int8.Int8Format(False, False, "the test says so")
    assert onnx_int8.quantize_file(*paths, [images], form) is form
    small = onnx.load(paths[1])
    kept = {p.key: p.value for p in small.metadata_props}
    assert (
        kept["classes"] == {p.key: p.value for p in onnx.load(paths[0]).metadata_props}["classes"]
    )
    assert {t.data_type for t in small.graph.initializer if t.dims[:1] == [4]} >= {
        onnx.TensorProto.INT8
    }
    session = onnxruntime.InferenceSession(paths[1], providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    ours = quantized_layers.calibrate(quantized_layers.prepare(network, 8, 8), [images])
    with torch.no_grad():
        exact = network(images)
        assert quantization.sqnr(exact, got) > 25
        assert quantization.sqnr(ours(images), got) > 20
    wrong = {"nothing to cal": ([], "minmax"), "method": ([images], "guess"),
             "NaN": ([images * math.nan], "minmax")}  # fmt: skip
    for words, (batches, method) in wrong.items():
        with pytest.raises(CompressionError, match=words):
            onnx_int8.quantize_file(*paths, batches, form, method)
    paths[0].write_bytes(b"no graph")
    before = paths[1].read_bytes()
    with pytest.raises(CompressionError, match="could not quantize"):
        onnx_int8.quantize_file(*paths, [images], form)
    assert paths[1].read_bytes() == before
