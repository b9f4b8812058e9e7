"""What happened in a training, step by step, and the same for TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shipyard.errors import TrainingError


@dataclass
class History:
    """What happened: one number for each step, one row for each epoch.

    Attributes:
        losses: the batch loss of each step, before the update.
        learning_rates: the learning rate that each step used (that of the first group).
        rows: one dict for each finished epoch: ``epoch`` and ``step`` (counted from 1),
            ``train_loss`` (exact mean over the images of the epoch, while the weights moved),
            ``learning_rate``, ``seconds`` (training alone, without evaluation),
            ``images_per_second``, and what ``evaluate`` measured.
    """

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds spent in the training steps of the finished epochs."""
        return sum(row["seconds"] for row in self.rows)


def write_tensorboard(history: History, folder: str | Path) -> Path:
    """Write ``history`` as a TensorBoard event file: ``tensorboard --logdir FOLDER`` shows it.

    The scalars are ``step/loss`` and ``step/learning_rate`` for each step, and ``epoch/…`` for
    each measurement of an epoch, at the epoch's last step. Steps count from 1. What an earlier
    call wrote into ``folder`` is replaced; other files there are left alone.

    Args:
        history: as `fit` returns it.
        folder: one folder for each training; missing folders are made.

    Returns:
        The event file.

    Raises:
        TrainingError: ``history`` has no step.
    """
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and seldom needed

    if not history.losses:
        raise TrainingError("The history is empty: train for at least one step first.")
    folder, suffix = Path(folder), ".shipyard"
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard joins all event files of a folder into one curve: two trainings would mix.
    for file in folder.glob(f"events.out.tfevents.*{suffix}"):
        file.unlink()
    with SummaryWriter(folder, filename_suffix=suffix) as writer:
        pairs = zip(history.losses, history.learning_rates, strict=True)
        for step, (loss, learning_rate) in enumerate(pairs, start=1):
            writer.add_scalar("step/loss", loss, step)
            writer.add_scalar("step/learning_rate", learning_rate, step)
        for row in history.rows:
            for name in row.keys() - {"epoch", "step", "learning_rate"}:
                writer.add_scalar(f"epoch/{name}", row[name], row["step"])
    (written,) = folder.glob(f"events.out.tfevents.*{suffix}")
    return written
