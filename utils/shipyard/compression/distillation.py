"""Train a small network, the student, on the answers of a large one, the teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shipyard.errors import CompressionError


def soft_targets(logits: Tensor, temperature: float) -> Tensor:
    """softmax(z / T): the higher the temperature T, the more even the shares.

    Args:
        logits: z, (…, classes).
    """
    if temperature <= 0:
        raise CompressionError(f"temperature is {temperature}; it must be above 0.")
    return (logits / temperature).softmax(dim=-1)


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, alpha: float = 0.9
) -> Tensor:
    """α T² KL(softmax(z_teacher / T) ‖ softmax(z_student / T)) + (1 − α) CE(z_student, y).

    CE is the cross-entropy; both are means over the batch. The factor T² undoes that the gradient
    of the first part becomes T² times smaller, so that α means the same at every temperature.

    Args:
        student, teacher: logits z, (batch, classes).
        labels: true classes y, (batch,).
        temperature: T, the same for both.
        alpha: the weight of the soft targets, 0 <= α <= 1.

    Source: G. Hinton, O. Vinyals and J. Dean, "Distilling the knowledge in a neural network", 2015.
    """
    if student.shape != teacher.shape:
        raise CompressionError(
            f"The student's logits have shape {tuple(student.shape)}, the teacher's "
            f"{tuple(teacher.shape)}; both must answer for the same classes and images."
        )
    p = soft_targets(teacher, temperature)  # (batch, classes)
    log_q = F.log_softmax(student / temperature, dim=-1)  # (batch, classes)
    soft = F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student, labels)
    return alpha * temperature**2 * soft + (1 - alpha) * hard


class Taught(nn.Module):
    """A student beside its teacher, for `training.fit`: in train mode both answer.

    Shapes: images (batch, …) → (batch, 2, classes), student first, in train mode; the student's
    logits (batch, classes) in eval mode. The teacher stays in eval mode, and learns nothing.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def train(self, mode: bool = True) -> Taught:
        """The student's mode; the teacher's batch norms keep their statistics."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map images to the logits of both, or of the student alone."""
        if not self.training:
            return self.student(images)
        with torch.no_grad():
            told = self.teacher(images)
        return torch.stack([self.student(images), told], dim=1)


def taught_loss(temperature: float = 4.0, alpha: float = 0.9) -> Callable[[Tensor, Tensor], Tensor]:
    """The `distillation_loss` of what `Taught` returns: a function of (logits, labels)."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        student, teacher = logits.float().unbind(dim=1)
        return distillation_loss(student, teacher, labels, temperature, alpha)

    return loss
