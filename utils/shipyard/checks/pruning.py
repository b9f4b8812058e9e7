"""Checks of pruning, distillation and low rank: references, and the cases to try them on."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from shipyard.checks import Case, Passed, compare, draws, require_signature
from shipyard.checks.differences import describe
from shipyard.checks.telling import refusal

PRUNES = dict.fromkeys(
    ("L1Unstructured.__init__", "global_unstructured", "l1_unstructured"),
    "That is what you are building. Rank the sizes yourself: sort, argsort, topk or kthvalue.",
)


def magnitude_mask(weight, sparsity):
    count = round(sparsity * weight.numel())
    order = weight.abs().flatten().argsort()
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[order[:count]] = False
    return mask.reshape(weight.shape)


def global_prune(weights, sparsity):
    sizes = torch.cat([w.abs().flatten() for w in weights])
    count = round(sparsity * len(sizes))
    mask = torch.ones(len(sizes), dtype=torch.bool)
    mask[sizes.argsort()[:count]] = False
    parts = mask.split([w.numel() for w in weights])
    return [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]


def masked_finetune(weight, mask, x, y, steps, rate, momentum=0.9):
    w = weight * mask
    v = torch.zeros_like(w)
    for _ in range(steps):
        error = x @ w.T - y
        gradient = 2 * error.T @ x / error.numel()
        v = momentum * v + gradient
        w = (w - rate * v) * mask
    return w


def channel_prune(w1, norm, w2, count):
    scores = w1.abs().sum((1, 2, 3))
    kept = scores.topk(count).indices.sort().values
    return w1[kept], tuple(part[kept] for part in norm), w2[:, kept]


def distillation_loss(student, teacher, labels, temperature, alpha):
    log_p = F.log_softmax(teacher / temperature, dim=1)
    log_q = F.log_softmax(student / temperature, dim=1)
    soft = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    hard = F.cross_entropy(student, labels)
    return alpha * temperature**2 * soft + (1 - alpha) * hard


def low_rank(weight, rank):
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * Vh[:rank]


def check_magnitude_mask(candidate: Callable) -> Passed:
    """Check ``magnitude_mask(weight, sparsity)``: bool, False at the smallest sizes."""
    draw = draws(41)
    cases = [
        Case(draw(3, 5), 0.4),
        Case(draw(2, 3) - 2, 0.5),  # nearly all are below zero
        Case(draw(5, 2, 3, 3), 0.9),
        Case(draw(7), 0.4),  # 2.8 weights: 3 go
        Case(3 * draw(4, 3), 0.31),  # 3.7 weights
        Case(draw(3, 4), 0.02),  # a quarter of a weight: none goes
        Case(draw(11, 3), 0.7),
        Case(draw(3, 2), 0.0),
        Case(draw(3, 5), 0.4),  # the shape of the first case: a mask depends on the numbers
        Case(draw(1, 3), 0.67),
    ]
    return compare(candidate, reference=magnitude_mask, cases=cases, forbidden=PRUNES)


def check_global_prune(candidate: Callable) -> Passed:
    """Check ``global_prune(weights, sparsity)``: a list of masks from one ranking."""
    draw = draws(43)
    cases = [
        Case([draw(3, 2), 2 * draw(2, 5)], 0.5),
        Case([draw(2, 3, 3, 3), draw(4, 2), 3 * draw(5)], 0.7),
        Case([draw(4, 3), 5 + draw(3, 4), draw(2, 2) - 4], 0.4),
        Case([4 * draw(5, 1), draw(3, 7)], 0.33),
        Case([draw(3, 3), 9 + draw(2, 2)], 0.6),  # the first keeps one weight, the second all
        Case([draw(2, 3), draw(4)], 0.0),
        Case([2 * draw(3, 2), draw(2, 5)], 0.5),  # the shapes of the first case
        Case([draw(3, 5)], 0.4),
    ]
    return compare(candidate, reference=global_prune, cases=cases, forbidden=PRUNES)


def check_masked_finetune(candidate: Callable) -> Passed:
    """Check ``masked_finetune(weight, mask, x, y, steps, rate, momentum=0.9)``: the new weight."""
    draw = draws(45)

    def case(batch, outputs, inputs, *settings):
        mask = draw(outputs, inputs) > 0
        mask[0] = torch.arange(inputs) % 2 == 0  # nothing is all True or all False
        return Case(draw(outputs, inputs), mask, draw(batch, inputs), draw(batch, outputs),
                    *settings)  # fmt: skip

    cases = [
        case(5, 2, 3, 1, 0.1),
        case(7, 3, 4, 2, 0.1),
        case(6, 2, 5, 5, 0.05),
        case(4, 3, 3, 3, 0.2, 0.5),
        case(9, 4, 2, 3, 0.1, 0.0),
        case(3, 1, 4, 4, 0.1),
        case(5, 2, 3, 0, 0.1),
    ]
    return compare(candidate, reference=masked_finetune, cases=cases, tolerance=1e-9)


def check_channel_prune(candidate: Callable) -> Passed:
    """Check ``channel_prune(w1, norm, w2, count)`` -> (w1, norm, w2), cut to ``count`` channels."""
    draw = draws(47)

    def case(inputs, channels, outputs, sides, count):
        norm = (*(draw(channels) for _ in range(3)), draw(channels).square() + 0.1)
        spread = 1 + draw(channels)[:, None, None, None].abs()
        w1 = spread * draw(channels, inputs, sides[0], sides[0])
        return Case(w1, norm, draw(outputs, channels, sides[1], sides[1]), count)

    cases = [
        case(2, 5, 3, (3, 3), 3),
        case(3, 4, 4, (3, 1), 2),
        case(6, 6, 6, (3, 3), 4),
        case(5, 7, 2, (1, 3), 5),
        case(3, 9, 4, (5, 3), 2),
        case(4, 8, 8, (3, 3), 1),
        case(2, 40, 2, (3, 3), 17),  # so many are close that another score picks others
        case(2, 3, 2, (3, 3), 3),
    ]
    return compare(
        candidate,
        reference=channel_prune,
        cases=cases,
        outputs=("w1", "norm", "w2"),
        tolerance=1e-12,
    )


def check_distillation_loss(candidate: Callable) -> Passed:
    """Check ``distillation_loss(student, teacher, labels, temperature, alpha)``, and its slope."""
    signature = "distillation_loss(student, teacher, labels, temperature, alpha)"
    if callable(candidate):
        require_signature(candidate, signature)
    draw = draws(49)

    def case(batch, classes, *settings):
        labels = torch.arange(batch) * 7 % classes
        return Case(2 * draw(batch, classes), 3 * draw(batch, classes), labels, *settings)

    cases = [
        case(3, 4, 2.0, 0.5),
        case(5, 3, 4.0, 0.9),
        case(4, 7, 3.0, 0.3),
        case(2, 5, 5.0, 1.0),
        case(3, 10, 4.0, 0.0),
        case(6, 2, 1.0, 0.7),
        Case(90 * draw(3, 4), 90 * draw(3, 4), torch.tensor([2, 0, 1]), 2.0, 0.6),
        case(1, 3, 2.0, 0.5),
    ]
    return compare(
        candidate,
        reference=distillation_loss,
        cases=cases,
        use=_with_slope,
        outputs=("the loss", "its gradient for the student's logits"),
        tolerance=1e-9,
    )


def _with_slope(
    function: Callable, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float,
    alpha: float,
) -> tuple | None:  # fmt: skip
    """The loss and its gradient for ``student``; zeros where the loss does not depend on it."""
    given = labels.clone()
    loss = function(student.requires_grad_(), teacher, labels, temperature, alpha)
    if loss is None:
        return None
    depends = isinstance(loss, Tensor) and loss.requires_grad and loss.ndim == 0
    if not depends or not labels.equal(given):  # autograd would stumble over other labels
        return (loss.detach() if isinstance(loss, Tensor) else loss), torch.zeros_like(student)
    (slope,) = torch.autograd.grad(loss, student, materialize_grads=True)
    return loss.detach(), slope


def check_low_rank(candidate: Callable) -> Passed:
    """Check ``low_rank(weight, rank)`` -> (B, A), judged by their shapes and by B @ A."""
    if callable(candidate):
        require_signature(candidate, "low_rank(weight, rank)")
    draw = draws(51)
    cases = [
        Case(draw(3, 5), 2),
        Case(draw(7, 4), 3),
        Case(draw(5, 5), 2),
        Case(3 * draw(6, 9), 1),
        Case(draw(8, 3) / 4, 2),
        Case(draw(4, 6), 4),
        Case(draw(4, 4), 4),
        Case(draw(1, 5), 1),
    ]
    outputs = ("the shape of B", "the shape of A", "the product B @ A")
    return compare(
        candidate, reference=low_rank, cases=cases, use=_product, outputs=outputs, tolerance=1e-8
    )


def _product(function: Callable, weight: Tensor, rank: int) -> tuple | None:
    """Another pair (B M, M⁻¹ A) is as good: what counts is the shapes and the product."""
    answer = function(weight, rank)
    match answer:
        case None:
            return None
        case [Tensor() as B, Tensor() as A]:
            shapes = tuple(B.shape), tuple(A.shape)
        case _:
            advice = "Return B and A, two tensors: return B, A. Their product replaces the weight."
            found = f"It returned {describe(answer)}."
            if isinstance(answer, tuple | list) and len(answer) == 2:
                found = f"B is {describe(answer[0])}, A is {describe(answer[1])}."
            raise refusal("not-a-pair", advice, found)
    fits = B.ndim == A.ndim == 2 and B.shape[1] == A.shape[0] and B.dtype == A.dtype
    return *shapes, (B @ A if fits else f"none: {B.dtype} {shapes[0]} @ {A.dtype} {shapes[1]}")
