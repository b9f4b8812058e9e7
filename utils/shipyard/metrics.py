"""How good a classifier is: accuracy, confusion matrix, calibration, exact evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shipyard.errors import MetricError


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is at the label, from 0 to 1.

    Args:
        logits: scores or probabilities, (batch, classes).
        labels: true classes, (batch,), whole numbers.

    Raises:
        MetricError: the shapes do not fit, or there is no row.
    """
    return top_k_accuracy(logits, labels, k=1)


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int = 5) -> float:
    """The share of rows whose label is among the ``k`` largest logits, from 0 to 1.

    Args:
        logits: scores or probabilities, (batch, classes).
        labels: true classes, (batch,), whole numbers.
        k: how many guesses a row has, 1 <= k <= classes.

    Raises:
        MetricError: the shapes do not fit, there is no row, or ``k`` is out of range.
    """
    return _hits(logits, labels, k).double().mean().item()


def _hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Which rows have their label among the ``k`` largest logits: bool (batch,)."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise MetricError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; "
            "expected (batch, classes) and (batch,)."
        )
    if not len(labels):
        raise MetricError("There are no rows to score: the batch is empty.")
    if not 1 <= k <= logits.shape[1]:
        raise MetricError(f"k is {k}; it must lie between 1 and {logits.shape[1]}, the classes.")
    guesses = logits.topk(k, dim=1).indices  # (batch, k)
    return (guesses == labels[:, None]).any(dim=1)


def confusion_matrix(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count how often each true class (row) was predicted as each class (column).

    Args:
        predictions: predicted classes, (n,), whole numbers.
        labels: true classes, (n,), whole numbers.
        classes: the number of classes C.

    Returns:
        int64 (C, C). The diagonal holds the right answers, and the sum is n.

    Raises:
        MetricError: the shapes differ, or a class lies outside 0 … C − 1.
    """
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise MetricError(
            f"predictions have shape {tuple(predictions.shape)} and labels "
            f"{tuple(labels.shape)}; expected two equal shapes (n,)."
        )
    for name, values in (("predictions", predictions), ("labels", labels)):
        if values.is_floating_point():
            raise MetricError(f"{name} are {values.dtype}; expected class numbers (integers).")
        if len(values) and not (0 <= values.min() and values.max() < classes):
            raise MetricError(
                f"{name} lie between {values.min().item()} and {values.max().item()}; "
                f"with {classes} classes they must lie between 0 and {classes - 1}."
            )
    cells = labels.long() * classes + predictions.long()  # row-major index of (true, predicted)
    return torch.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def per_class_accuracy(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The accuracy (recall) of each true class; NaN for a class without a single label.

    Args:
        predictions: predicted classes, (n,).
        labels: true classes, (n,).
        classes: the number of classes C.

    Returns:
        float64 (C,).
    """
    counts = confusion_matrix(predictions, labels, classes).double()
    return counts.diagonal() / counts.sum(dim=1)


@dataclass(frozen=True)
class ReliabilityBins:
    """Answers sorted into bins by their confidence, the largest probability of a row.

    Attributes:
        edges: float64 (bins + 1,), from 0 to 1 in equal steps. Bin b holds
            edges[b] < confidence <= edges[b + 1].
        counts: int64 (bins,), how many answers fell into each bin.
        confidence: float64 (bins,), their mean confidence; NaN for an empty bin.
        accuracy: float64 (bins,), the share of them that is right; NaN for an empty bin.
    """

    edges: Tensor
    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability_bins(probabilities: Tensor, labels: Tensor, bins: int = 15) -> ReliabilityBins:
    """How often the answers of each confidence are right: the numbers of a reliability diagram.

    Args:
        probabilities: (n, classes), each row a softmax.
        labels: true classes, (n,), whole numbers.
        bins: how many bins of equal width between 0 and 1.

    Raises:
        MetricError: the shapes do not fit, there is no row, ``bins`` is below 1, or the rows are
            no probabilities (logits, for instance).
    """
    right = _hits(probabilities, labels, k=1).cpu()
    if bins < 1:
        raise MetricError(f"bins is {bins}; it must be a whole number from 1.")
    rows = probabilities.double().cpu()
    if rows.min() < 0 or not torch.allclose(rows.sum(dim=1), rows.new_ones(()), atol=1e-3):
        raise MetricError(
            "A row of probabilities is negative somewhere or does not add up to 1; "
            "apply softmax to the logits first."
        )
    confidence = rows.max(dim=1).values.clamp(max=1.0)  # (n,)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges[1:-1])  # (n,); right edges belong to the bin
    counts = torch.bincount(place, minlength=bins)
    total = torch.bincount(place, weights=confidence, minlength=bins)
    hits = torch.bincount(place, weights=right.double(), minlength=bins)
    return ReliabilityBins(edges, counts, total / counts, hits / counts)


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Σ_b n_b / n · |accuracy_b − confidence_b|: how far confidence is from being right.

    0 for a classifier that is right in 80% of the cases in which it says 80%, and so on. The
    number depends a little on ``bins``: compare only values with the same number of bins.

    Args:
        probabilities: (n, classes), each row a softmax.
        labels: true classes, (n,), whole numbers.
        bins: how many bins of equal width between 0 and 1.

    Raises:
        MetricError: as `reliability_bins`.

    Source: C. Guo et al., "On calibration of modern neural networks", 2017.
    """
    found = reliability_bins(probabilities, labels, bins)
    gaps = (found.accuracy - found.confidence).abs().nan_to_num()  # an empty bin counts nothing
    return (found.counts * gaps).sum().item() / len(labels)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; tensors are on the CPU, in the loader's order.

    Attributes:
        loss: the mean loss over images, not over batches.
        accuracy: the share of right predictions, from 0 to 1.
        predictions: int64 (n,), the class with the largest logit.
        labels: int64 (n,).
        probabilities: float32 (n, classes), the softmax of the logits.
    """

    loss: float
    accuracy: float
    predictions: Tensor
    labels: Tensor
    probabilities: Tensor

    @property
    def summary(self) -> dict[str, float]:
        """The two numbers, as a dict that JSON can hold."""
        return {"loss": self.loss, "accuracy": self.accuracy}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and no gradients inside; each module's own mode is back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Evaluation:
    """Score ``model`` on every batch of ``loader``, in eval mode and without gradients.

    The loss is the exact mean over images: each batch counts by its size, so a short last
    batch does not weigh as much as a full one. The mode of every module is restored, even
    after an error.

    Args:
        model: maps images to logits, (batch, classes). It must be on ``device`` already.
        loader: yields (images, labels).
        device: where the batches are moved to.
        loss_fn: maps (logits, labels) to the *mean* loss of the batch.

    Raises:
        MetricError: the loader yields no images.
    """
    loss_sum, count = 0.0, 0
    all_logits, all_labels = [], []
    with evaluation_mode(model):
        for images, labels in loader:
            logits = model(images.to(device))
            loss_sum += loss_fn(logits, labels.to(device)).item() * len(labels)
            count += len(labels)
            all_logits.append(logits.float().cpu())
            all_labels.append(labels.cpu())
    if not count:
        raise MetricError(
            "There is nothing to evaluate: the loader yields no images. "
            "Check that its image set is not empty and, if it is a generator, not used up."
        )
    logits, labels = torch.cat(all_logits), torch.cat(all_labels)
    return Evaluation(
        loss=loss_sum / count,
        accuracy=accuracy(logits, labels),
        predictions=logits.argmax(dim=1),
        labels=labels,
        probabilities=logits.softmax(dim=1),
    )
