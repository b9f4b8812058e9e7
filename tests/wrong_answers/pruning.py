"""Wrong answers on pruning, distillation and low rank, and other correct ones."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from wrong_answers import Task

# float32 ranks these sizes in the same order, and a mask holds no other numbers
MAGNITUDE, GLOBAL = (Task(spared="rounds_to_float32") for _ in range(2))
FINETUNE, CHANNELS, DISTILLATION, LOW_RANK = (Task() for _ in range(4))
TASKS = {
    "magnitude_mask": MAGNITUDE,
    "global_prune": GLOBAL,
    "masked_finetune": FINETUNE,
    "channel_prune": CHANNELS,
    "distillation_loss": DISTILLATION,
    "low_rank": LOW_RANK,
}


# One weight, one ranking.


@MAGNITUDE.fails_with("signs-kept")
def takes_the_most_negative(weight, sparsity):
    k = round(sparsity * weight.numel())
    if k == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    return weight > weight.flatten().kthvalue(k).values


@MAGNITUDE.fails_with("one-too-many")
def keeps_what_is_above_the_next(weight, sparsity):
    sizes = weight.abs().flatten().sort().values
    k = round(sparsity * len(sizes))
    return weight.abs() > sizes[k]


@MAGNITUDE.fails_with("forbidden-call")
def calls_torchs_pruning(weight, sparsity):
    layer = nn.Module()
    layer.weight = nn.Parameter(weight.clone())
    prune.l1_unstructured(layer, "weight", amount=sparsity)
    return layer.weight_mask.bool()


@MAGNITUDE.passes
def uses_a_threshold(weight, sparsity):
    k = round(sparsity * weight.numel())
    if k == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    return weight.abs() > torch.kthvalue(weight.abs().flatten(), k).values


@MAGNITUDE.passes
def counts_the_smaller_ones(weight, sparsity):
    sizes = weight.abs().flatten()
    rank = (sizes[None, :] < sizes[:, None]).sum(dim=1)  # how many are smaller
    return (rank >= round(sparsity * len(sizes))).view_as(weight)


# All weights, one ranking.


@GLOBAL.fails_with("layer-by-layer")
def asks_each_tensor(weights, sparsity):
    return [uses_a_threshold(w, sparsity) for w in weights]


@GLOBAL.fails_with("signs-kept")
def sorts_without_abs(weights, sparsity):
    values = sorted(v for w in weights for v in w.flatten().tolist())
    k = round(sparsity * len(values))
    return [w > values[k - 1] if k else torch.ones_like(w).bool() for w in weights]


@GLOBAL.passes
def lays_one_threshold(weights, sparsity):
    flat = torch.cat([w.reshape(-1) for w in weights])
    k = round(sparsity * flat.numel())
    if not k:
        return [torch.ones_like(w, dtype=torch.bool) for w in weights]
    threshold = flat.abs().topk(k, largest=False).values.max()
    return [w.abs() > threshold for w in weights]


@GLOBAL.passes
def walks_through_a_list(weights, sparsity):
    places = [(abs(v), i, j) for i, w in enumerate(weights) for j, v in enumerate(w.flatten())]
    places.sort()
    masks = [torch.ones(w.numel(), dtype=torch.bool) for w in weights]
    for _, i, j in places[: round(sparsity * len(places))]:
        masks[i][j] = False
    return [mask.reshape(w.shape) for mask, w in zip(masks, weights, strict=True)]


# Fine-tuning with a mask.


def trains(weight, mask, x, y, steps, rate, momentum, after_step):
    w = nn.Parameter(weight * mask)
    optimizer = torch.optim.SGD([w], lr=rate, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(x @ w.T, y).backward()
        optimizer.step()
        after_step(w.data)
    return w.detach()


@FINETUNE.fails_with("mask-only-before")
def forgets_the_mask(weight, mask, x, y, steps, rate, momentum=0.9):
    return trains(weight, mask, x, y, steps, rate, momentum, lambda w: None)


@FINETUNE.fails_with("momentum-dampened")
def takes_a_running_mean(weight, mask, x, y, steps, rate, momentum=0.9):
    w, v = weight * mask, 0.0
    for _ in range(steps):
        slope = 2 / y.numel() * (w @ x.T - y.T) @ x
        v = v * momentum + slope * (1 - momentum)
        w = torch.where(mask, w - rate * v, 0.0)
    return w


@FINETUNE.passes
def uses_torchs_optimizer(weight, mask, x, y, steps, rate, momentum=0.9):
    return trains(weight, mask, x, y, steps, rate, momentum, lambda w: w.mul_(mask))


@FINETUNE.passes
def masks_the_gradient(weight, mask, x, y, steps, rate, momentum=0.9):
    w, v = weight.masked_fill(~mask, 0.0), 0.0
    for _ in range(steps):
        w.requires_grad_()
        (g,) = torch.autograd.grad((x @ w.T - y).square().mean(), w)
        v = momentum * v + g * mask
        w = w.detach() - rate * v
    return w


# Channels.


@CHANNELS.fails_with("second-layer-not-cut")
def leaves_the_reader(w1, norm, w2, count):
    kept = sorted(sorted(range(len(w1)), key=lambda c: -w1[c].abs().sum())[:count])
    return w1[kept], tuple(part[kept] for part in norm), w2


@CHANNELS.fails_with("squares")
def ranks_by_the_euclidean_norm(w1, norm, w2, count):
    kept = w1.flatten(1).norm(dim=1).topk(count).indices.sort().values
    return w1[kept], tuple(part[kept] for part in norm), w2[:, kept]


@CHANNELS.passes
def cuts_with_a_mask(w1, norm, w2, count):
    scores = w1.abs().mean(dim=(1, 2, 3))
    kept = scores >= scores.sort(descending=True).values[count - 1]
    return w1[kept], tuple(part[kept] for part in norm), w2[:, kept]


@CHANNELS.passes
def deletes_with_numpy(w1, norm, w2, count):
    gone = np.argsort(np.abs(w1.numpy()).sum(axis=(1, 2, 3)))[: len(w1) - count]

    def without(tensor, axis=0):
        return torch.from_numpy(np.delete(tensor.numpy(), gone, axis))

    return without(w1), tuple(map(without, norm)), without(w2, 1)


# Distillation.


@DISTILLATION.fails_with("t-squared-missing")
def forgets_the_factor(student, teacher, labels, temperature, alpha):
    soft = F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.softmax(teacher / temperature, -1),
        reduction="batchmean",
    )
    return alpha * soft + (1 - alpha) * F.cross_entropy(student, labels)


@DISTILLATION.fails_with("mean-over-the-classes")
def takes_the_default_reduction(student, teacher, labels, temperature, alpha):
    T = temperature
    p, q = (teacher / T).softmax(1), (student / T).softmax(1)
    soft = torch.special.xlogy(p, p).mean() - (p * q.log()).mean()  # as kl_div does by default
    return alpha * T * T * soft + (1 - alpha) * F.cross_entropy(student, labels)


@DISTILLATION.passes
def calls_kl_div_with_logarithms(student, teacher, labels, temperature, alpha):
    T = temperature
    soft = F.kl_div(
        F.log_softmax(student / T, 1), F.log_softmax(teacher / T, 1), reduction="batchmean",
        log_target=True,
    )  # fmt: skip
    return alpha * T**2 * soft + (1 - alpha) * F.cross_entropy(student, labels)


@DISTILLATION.passes
def subtracts_the_entropy(student, teacher, labels, temperature, alpha):
    p = (teacher / temperature).softmax(dim=1)
    entropy = torch.special.entr(p).sum(dim=1).mean()
    soft = F.cross_entropy(student / temperature, p) - entropy
    rows = torch.arange(len(labels))
    hard = -student.log_softmax(dim=1)[rows, labels].mean()
    return hard + alpha * (temperature**2 * soft - hard)


# Low rank.


@LOW_RANK.fails_with("columns-of-vh")
def takes_vh_for_v(weight, rank):
    U, S, V = torch.linalg.svd(weight, full_matrices=False)
    return U[:, :rank], S[:rank, None] * V.T[:rank]


@LOW_RANK.fails_with("sigma-twice")
def scales_both_sides(weight, rank):
    U, S, Vh = torch.linalg.svd(weight)
    return U[:, :rank] * S[:rank], torch.diag(S[:rank]) @ Vh[:rank]


@LOW_RANK.passes
def projects_on_the_eigenvectors(weight, rank):
    _, vectors = torch.linalg.eigh(weight @ weight.T)  # ascending
    B = vectors[:, -rank:]
    return B, B.T @ weight


@LOW_RANK.passes
def uses_the_older_svd(weight, rank):
    U, S, V = torch.svd(weight)
    return U[:, :rank] @ torch.diag(S[:rank]), V[:, :rank].T
