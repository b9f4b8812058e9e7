"""models: shapes, sizes, and every tensor on the device that was asked for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shipyard import models

NETWORKS = [models.LeNet, models.SmallConvNet, models.ResidualNet]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("classes", [2, 10])
def test_images_become_one_logit_for_each_class(network, batch, classes):
    model = network(classes=classes).eval()
    assert model(torch.randn(batch, 3, 32, 32)).shape == (batch, classes)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_gets_a_gradient(network):
    model = network()
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("network", NETWORKS)
def test_in_eval_mode_an_image_scores_the_same_alone_and_in_a_batch(network):
    model = network().eval()
    images = torch.randn(5, 3, 32, 32)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)


def test_lenet_has_the_parameters_of_its_formula():
    convolutions = (3 * 5 * 5 + 1) * 6 + (6 * 5 * 5 + 1) * 16
    linears = (400 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10
    assert models.count_parameters(models.LeNet()) == convolutions + linears == 62_006


def test_lenet_computes_what_its_layers_say():
    torch.manual_seed(0)
    model = models.LeNet()
    reference = nn.Sequential(
        model.conv1, nn.ReLU(), nn.MaxPool2d(2), model.conv2, nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), model.fc1, nn.ReLU(), model.fc2, nn.ReLU(), model.fc3,
    )  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), reference(images))


@pytest.mark.parametrize("width", [8, 16])
def test_small_conv_net_grows_with_its_width(width):
    w = width
    convolutions = 9 * (3 * w + w * 2 * w + 2 * w * 4 * w + 4 * w * 4 * w)
    norms = 2 * (w + 2 * w + 4 * w + 4 * w)
    model = models.SmallConvNet(width=width)
    assert models.count_parameters(model) == convolutions + norms + (4 * w + 1) * 10


def test_small_conv_net_takes_other_image_sizes():
    assert models.SmallConvNet(width=8)(torch.randn(2, 3, 40, 24)).shape == (2, 10)


def test_small_conv_net_drops_features_in_train_mode_alone():
    model = models.SmallConvNet(width=8, dropout=0.5)
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("width", [8, 16])
def test_residual_net_has_the_parameters_of_its_formula(width):
    w = width
    convolutions = 9 * (3 * w + w * 2 * w + 2 * (2 * w) ** 2 + 2 * w * 4 * w + 2 * (4 * w) ** 2)
    norms = 2 * (w + 2 * w + 2 * 2 * w + 4 * w + 2 * 4 * w)
    model = models.ResidualNet(width=width)
    assert models.count_parameters(model) == convolutions + norms + (4 * w + 1) * 10


def test_residual_net_takes_other_image_sizes():
    assert models.ResidualNet(width=8)(torch.randn(2, 3, 40, 24)).shape == (2, 10)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_residual_block_adds_what_its_layers_say(mode):
    torch.manual_seed(0)
    block = models.ResidualBlock(6).double().train(mode == "train")
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    h = x
    for conv, norm, _ in block.body:
        h = F.conv2d(h, conv.weight, padding=1)
        if mode == "train":
            mean, variance = h.mean((0, 2, 3)), h.var((0, 2, 3), unbiased=False)
        else:
            mean, variance = norm.running_mean, norm.running_var
        scale = norm.weight / (variance + norm.eps).sqrt()
        h = (h - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        h = h.clamp(min=0)
    expected = x + h
    torch.testing.assert_close(block(x), expected)


def test_the_shortcut_hands_on_the_signal_and_its_gradient_when_the_body_is_silent():
    block = models.ResidualBlock(4)
    torch.nn.init.zeros_(block.body[-1][1].weight)  # the last norm gives 0 for every input
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    output = block(x)
    upstream = torch.randn_like(output)
    output.backward(upstream)
    assert torch.equal(output, x)
    assert torch.equal(x.grad, upstream)


def test_a_shared_parameter_counts_once_and_a_frozen_one_on_request():
    shared = nn.Linear(4, 4, bias=False)
    assert models.count_parameters(nn.Sequential(shared, shared)) == 16
    frozen = nn.Linear(4, 4)
    frozen.bias.requires_grad_(False)
    assert models.count_parameters(frozen) == 20
    assert models.count_parameters(frozen, trainable_only=True) == 16


@pytest.mark.gpu
@pytest.mark.parametrize("network", NETWORKS)
def test_a_gpu_gives_the_cpu_result(network, accelerator):
    model = network().eval()
    images = torch.randn(4, 3, 32, 32)
    expected = model(images)
    found = model.to(accelerator)(images.to(accelerator)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
