"""Pruning, distillation and low rank: against torch, against plain formulas, and on bad input."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from shipyard import models, training
from shipyard.compression import distillation, low_rank, pruning
from shipyard.errors import CompressionError

INNER = pruning.ChannelGroup(("features.2.body.0.0",), ("features.2.body.0.1",),
                             ("features.2.body.1.0",))  # fmt: skip
OUTER = pruning.ChannelGroup(
    ("features.3.0", "features.4.body.1.0"),
    ("features.3.1", "features.4.body.1.1"),
    ("features.4.body.0.0", "head"),
)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = models.ResidualNet(width=6)
    net(torch.randn(32, 3, 32, 32))  # the norms see some statistics
    return net.eval()


@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 99))
def test_masks_are_those_of_torch(size, sparsity, seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(size, 3), nn.Conv2d(1, 2, 3)]
    weights = {str(i): layer.weight.detach().clone() for i, layer in enumerate(layers)}
    ours = pruning.global_masks(weights, sparsity)
    prune.global_unstructured(
        [(layer, "weight") for layer in layers], prune.L1Unstructured, amount=sparsity
    )
    for mask, layer in zip(ours.values(), layers, strict=True):
        assert torch.equal(mask, layer.weight_mask.bool())
    one = nn.Linear(size, 3)
    mask = pruning.magnitude_mask(one.weight.detach(), sparsity)
    prune.l1_unstructured(one, "weight", amount=sparsity)
    assert torch.equal(mask, one.weight_mask.bool())


def test_two_of_every_four_inputs_stay():
    weight = torch.randn(3, 8, 3, 3)
    groups = pruning.n_of_m_mask(weight).movedim(1, -1).reshape(-1, 4)
    assert (groups.sum(dim=1) == 2).all()
    kept = pruning.n_of_m_mask(torch.tensor([[1.0, -5, 2, 4, 0, 0, 1, 9]]))
    assert kept.tolist() == [[False, True, False, True, False, False, True, True]]


def test_masks_outlive_a_training_and_only_then(net):
    masks = pruning.layer_masks(pruning.weights_of(net), {"features.2.body.0.0": 0.9, "head": 0.5})
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8))]
    sparsity = {}
    for kept in (True, False):
        model = copy.deepcopy(net)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=0.1)
        handle = pruning.keep_masks(optimizer, model, masks)
        if not kept:
            handle.remove()
        training.fit(model, batches, optimizer, epochs=3, progress=False)
        zeros = model.get_submodule("features.2.body.0.0").weight == 0
        sparsity[kept] = zeros.double().mean().item()
    assert sparsity[True] == pytest.approx(0.9, abs=1e-3)
    assert sparsity[False] == 0


def test_taylor_scores_tell_the_change_of_the_loss(net):
    net = net.double()
    batches = [(torch.randn(8, 3, 32, 32).double(), torch.arange(8)) for _ in range(2)]
    scores = pruning.taylor_scores(net, batches)
    loss = lambda: sum(F.cross_entropy(net(x), y) for x, y in batches).item() / 2  # noqa: E731
    with torch.no_grad():
        before, weight = loss(), net.head.weight
        weight[3, 5] *= 1 - 1e-6  # a millionth of the way to zero
        assert (loss() - before) / 1e-6 == pytest.approx(-scores["head"][3, 5].item(), rel=1e-3)


@pytest.mark.parametrize("group", [INNER, OUTER])
def test_channels_that_say_nothing_can_be_removed_without_a_change(net, group):
    width = net.get_submodule(group.makers[0]).out_channels
    kept = torch.randperm(width)[: width // 2].sort().values
    gone = torch.ones(width, dtype=torch.bool).index_fill(0, kept, False)
    with torch.no_grad():
        for name in group.norms:
            norm = net.get_submodule(name)
            norm.weight[gone] = norm.bias[gone] = 0.0
    smaller = pruning.remove_channels(net, group, kept)
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(smaller(images), net(images), rtol=1e-4, atol=1e-5)
    assert models.count_parameters(smaller) < models.count_parameters(net)
    again = pruning.rebuild(models.ResidualNet(width=6).eval(), smaller.state_dict())
    assert torch.equal(again(images), smaller(images))


def test_the_loss_of_distillation_is_its_formula_and_the_factor_keeps_the_gradient_in_size():
    student, teacher = torch.randn(2, 7, 5, dtype=torch.float64)
    labels, grads = torch.randint(5, (7,)), {}
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    wanted = 0.7 * 9 * (p * (p / q).log()).sum(1).mean() + 0.3 * F.cross_entropy(student, labels)
    got = distillation.distillation_loss(student, teacher, labels, temperature=3, alpha=0.7)
    torch.testing.assert_close(got, wanted)
    for T in (50.0, 100.0):
        z = student.clone().requires_grad_()
        distillation.distillation_loss(z, teacher, labels, T, alpha=1.0).backward()
        grads[T] = z.grad.norm()
    assert grads[50.0] / grads[100.0] == pytest.approx(1, abs=0.05)


def test_a_teacher_keeps_its_weights_and_statistics_while_the_student_learns(net):
    teacher, student = net, models.ResidualNet(width=2)
    before = copy.deepcopy(teacher.state_dict())
    taught = distillation.Taught(student, teacher)
    start = copy.deepcopy(student.state_dict())
    training.fit(
        taught, [(torch.randn(8, 3, 32, 32), torch.arange(8))],
        torch.optim.SGD(student.parameters(), 0.1), epochs=1, progress=False,
        loss_fn=distillation.taught_loss(),
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(torch.equal(value, start[name]) for name, value in student.state_dict().items())
    assert taught.eval()(torch.randn(3, 3, 32, 32)).shape == (3, 10)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_no_product_of_that_rank_is_nearer(outputs, inputs, seed):
    W = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)).double()
    sigma = torch.linalg.svdvals(W)
    for rank in range(1, min(W.shape) + 1):
        B, A = low_rank.factor(W, rank)
        assert (B.shape, A.shape) == ((outputs, rank), (rank, inputs))
        torch.testing.assert_close((W - B @ A).square().sum(), sigma[rank:].square().sum())


def test_thin_pairs_of_full_rank_and_lora_say_the_same_and_merge(net):
    images = torch.randn(5, 3, 32, 32)
    ranks = {"features.1.0": 12, "features.4.body.0.0": 24, "head": 10}
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(low_rank.factor_layers(net, ranks)(images), net(images), **close)
    adapted = low_rank.add_lora(net, ranks, rank=2)
    assert torch.equal(adapted(images), net(images))
    learning = models.count_parameters(adapted, trainable_only=True)
    assert learning == 2 * (6 * 9 + 12 + 24 * 9 + 24 + 24 + 10)
    with torch.no_grad():
        for name in ranks:
            adapted.get_submodule(name).B.normal_()
    merged = low_rank.merge_lora(adapted)
    torch.testing.assert_close(merged(images), adapted(images), **close)
    assert merged.state_dict().keys() == net.state_dict().keys()


def broken(net, name):
    with torch.no_grad():
        net.get_submodule(name).weight[0, 0] = float("nan")
    return net


WEIGHT = "features.3.0"
BAD = {
    "features.3.0.*all 2592 weights": lambda net: pruning.apply_masks(
        net, {WEIGHT: torch.zeros(24, 12, 3, 3).bool()}
    ),
    "features.3.0.*9 of 2592 numbers are NaN": lambda net: pruning.global_masks(
        pruning.weights_of(broken(net, WEIGHT)), 0.5
    ),
    "between 0 and 1": lambda net: pruning.magnitude_mask(net.head.weight, 90),
    "features.1.0: the mask is": lambda net: pruning.apply_masks(
        net, {"features.1.0": torch.ones(8, 4, 3, 3).bool()}
    ),
    "no layer fc1": lambda net: pruning.apply_masks(net, {"fc1": torch.ones(2).bool()}),
    "features.3.1 is BatchNorm2d": lambda net: low_rank.factor_layers(net, {"features.3.1": 2}),
    "features.3.0: rank is 99": lambda net: low_rank.factor_layers(net, {WEIGHT: 99}),
    "features.2.body.0.0 has 12 channels where features.0.0": lambda net: pruning.remove_channels(
        net, pruning.ChannelGroup(("features.0.0",), (), ("features.2.body.0.0",)), torch.arange(3)
    ),
    "channels 0 to 11; at least one": lambda net: pruning.remove_channels(
        net, INNER, torch.tensor([], dtype=torch.int64)
    ),
    "another network: the file has no features.0.0.weight": lambda net: pruning.rebuild(
        net, models.LeNet().state_dict()
    ),
    r"features.0.0.weight has shape \(8": lambda net: pruning.rebuild(
        net, models.ResidualNet(width=8).state_dict()
    ),
    "answer for the same classes": lambda net: distillation.distillation_loss(
        torch.zeros(3, 10), torch.zeros(3, 100), torch.zeros(3).long()
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", BAD)
def test_bad_input_gets_a_message_that_names_the_layer(net, words):
    with pytest.raises(CompressionError, match=words):
        BAD[words](net)


def test_a_grouped_convolution_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    group = pruning.ChannelGroup(("0",), (), ("1",))
    with pytest.raises(CompressionError, match=r"1 is Conv2d.*groups=8"):
        pruning.remove_channels(model, group, torch.arange(3))
