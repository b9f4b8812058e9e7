"""The loop: one optimizer step for each batch, one row of the history for each epoch."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from shipyard.errors import CheckpointError, TrainingError
from shipyard.training.checkpoints import (
    load_checkpoint,
    only_user_of,
    random_state,
    require_keys,
    save_checkpoint,
    set_random_state,
)
from shipyard.training.history import History
from shipyard.training.settings import (
    NO_BATCHES,
    check_counts,
    check_loader,
    check_optimizer,
    check_scheduler,
    loader_settings,
    model_settings,
    name_of,
    optimizer_settings,
    require_finite,
    require_same,
)


def fit(
    model: nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    device: torch.device | str = "cpu",
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
    max_steps: int | None = None,
    clip_norm: float | None = None,
    autocast: torch.dtype | None = None,
) -> History:
    """Train ``model`` for ``epochs`` passes over ``loader``, one optimizer step for each batch.

    A step is: gradients to zero, forward, loss, backward, clip, ``optimizer.step()``,
    ``scheduler.step()``. The model is moved to ``device`` and left in train mode.

    With ``checkpoint``, a training that stopped for whatever reason goes on when `fit` is called
    again with the same arguments, from the last saved step, inside an epoch too. It then ends at
    the very same weights, bit for bit, on the same kind of device with the same number of
    threads (a GPU also needs ``torch.use_deterministic_algorithms(True)``): the file holds the
    model, the optimizer, the scheduler, the position, the history and torch's random state, and
    the loader repeats the order of its epoch.

    Args:
        model: maps inputs to outputs.
        loader: has ``len()`` and yields (inputs, labels). Its ``set_epoch(n)``, or its
            sampler's, is called before epoch n where it exists.
        optimizer: steps the parameters of ``model``.
        epochs: how many passes in all, those before a resume included.
        device: where the model and each batch are moved to.
        loss_fn: maps (outputs, labels) to the mean loss of the batch.
        scheduler: sets the learning rate; stepped after each optimizer step.
        evaluate: called with the model after each epoch. It returns a dict of numbers, or an
            object with ``loss`` and ``accuracy`` (recorded as ``val_loss``, ``val_accuracy``).
        checkpoint: the file to save to and to go on from.
        checkpoint_every: save after this many steps; always after each epoch.
        progress: show a bar with loss and images per second, and a line for each epoch.
        max_steps: stop after this many steps in all, inside an epoch if need be.
        clip_norm: scale the gradients down where their total norm is larger than this.
        autocast: run forward and loss in this type (torch.bfloat16 or torch.float16) where torch
            holds that for safe; with float16 the loss is scaled.

    Raises:
        TrainingError: an argument does not fit, or the loss or the weights are not finite.
        CheckpointError: the checkpoint is damaged, in use, or from another training.
        KeyboardInterrupt: the user stopped it; with ``checkpoint``, after the step in hand was
            finished and saved.
    """
    return Session(
        model, loader, optimizer, epochs, torch.device(device), loss_fn, scheduler, evaluate,
        checkpoint, checkpoint_every, progress, max_steps, clip_norm, autocast,
    ).run()  # fmt: skip


@dataclass
class Position:
    """Where a training stands: finished epochs, and the part of the epoch in hand."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the epoch in hand
    step: int = 0  # finished steps in all
    loss_sum: float = 0.0  # over the images of the epoch in hand
    images: int = 0
    seconds: float = 0.0

    def count(self, loss: float, images: int, seconds: float) -> None:
        """One more batch is done, in so many seconds, with this mean loss."""
        self.batch += 1
        self.step += 1
        self.loss_sum += loss * images
        self.images += images
        self.seconds += seconds

    def next_epoch(self) -> Position:
        return Position(epoch=self.epoch + 1, step=self.step)


@dataclass
class Session:
    """One training: its parts and settings, as `fit` explains them, and where it stands."""

    model: nn.Module
    loader: Any
    optimizer: torch.optim.Optimizer
    epochs: int
    device: torch.device
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    evaluate: Callable[[nn.Module], Any] | None
    checkpoint: str | Path | None
    checkpoint_every: int | None
    progress: bool
    max_steps: int | None
    clip_norm: float | None
    autocast: torch.dtype | None

    def __post_init__(self) -> None:
        check_counts(
            epochs=self.epochs, max_steps=self.max_steps, checkpoint_every=self.checkpoint_every
        )
        check_loader(self.loader)
        check_optimizer(self.optimizer, self.model)
        check_scheduler(self.scheduler, self.last_step)
        self.model.to(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast is torch.float16)
        self.settings = {
            **model_settings(self.model),
            **optimizer_settings(self.optimizer, self.scheduler),
            **loader_settings(self.loader),
            "loss_fn": name_of(self.loss_fn),
            "clip_norm": str(self.clip_norm),
            "autocast": str(self.autocast),
        }
        self.position, self.history = Position(), History()
        self.epoch_random = random_state(self.device)  # at the beginning of the epoch
        self.resumed_random: dict[str, Tensor] | None = None  # where a checkpoint was written

    @property
    def last_step(self) -> int:
        """The number of the step that ends the training."""
        steps = self.epochs * len(self.loader)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def epoch_is_complete(self) -> bool:
        return self.position.batch == len(self.loader)

    @property
    def unfinished(self) -> bool:
        """Steps are left, or the row of an epoch whose last step was saved."""
        steps_left = self.position.step < self.last_step
        return self.position.epoch < self.epochs and (steps_left or self.epoch_is_complete)

    def run(self) -> History:
        """Train to the end, from the checkpoint where there is one."""
        with (
            only_user_of(self.checkpoint),
            _finish_step_on_interrupt(self.checkpoint) as self.interrupt,
        ):
            if self.checkpoint is not None and Path(self.checkpoint).exists():
                self.resume()
            if self.unfinished:
                with self.progress_bar() as self.bar:
                    while self.unfinished:
                        self.run_epoch()
                self.save()
            elif self.progress:
                tqdm.write(
                    f"{self.checkpoint} holds all {self.position.step} steps: nothing to do."
                )
        self.model.train()
        return self.history

    def run_epoch(self) -> None:
        """The batches that are left of this epoch, then its row in the history."""
        self.bar.set_description(f"epoch {self.position.epoch + 1}/{self.epochs}", refresh=False)
        batches = self.remaining_batches()
        self.model.train()
        clock = time.perf_counter()
        for inputs, labels in batches:
            loss = self.step(inputs.to(self.device), labels.to(self.device))
            now = time.perf_counter()
            self.position.count(loss, len(labels), now - clock)
            clock = now
            self.show(loss)
            if self.checkpoint_every and self.position.step % self.checkpoint_every == 0:
                self.save()
                clock = time.perf_counter()  # the time to save is no training time
            self.stop_if_interrupted()
            if self.position.step == self.last_step:
                break
        if self.position.batch == 0:
            raise TrainingError(NO_BATCHES)
        if self.epoch_is_complete or self.position.step < self.last_step:
            self.finish_epoch()  # max_steps ends inside an epoch: no row for a part of one

    def remaining_batches(self) -> Iterator:
        """The batches of this epoch from the first that is not done.

        A resumed epoch draws its order and its augmentation from the random state at its
        beginning; the steps then go on from the state in which the checkpoint was written.
        """
        _set_epoch(self.loader, self.position.epoch)
        if self.resumed_random is None:
            self.epoch_random = random_state(self.device)
            return _batches_from(self.loader, self.position.batch)
        set_random_state(self.epoch_random, self.device)
        batches = _batches_from(self.loader, self.position.batch)
        set_random_state(self.resumed_random, self.device)
        self.resumed_random = None
        return batches

    def step(self, inputs: Tensor, labels: Tensor) -> float:
        """One update of the weights from one batch; returns the loss before it."""
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.zero_grad(set_to_none=True)
        with self.number_format():
            loss = self.loss_fn(self.model(inputs), labels)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss is {value} at step {self.position.step + 1} "
                f"(epoch {self.position.epoch + 1}), with learning rate {learning_rate:.3g}. "
                "The step was not taken. Try a smaller learning rate or clip_norm=1.0, and look "
                "for values in the inputs that are not finite."
            )
        self.scaler.scale(loss).backward()
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler:
            self.scheduler.step()
        self.history.losses.append(value)
        self.history.learning_rates.append(learning_rate)
        return value

    def number_format(self) -> Any:
        """Forward and loss run in ``autocast`` where it is given."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def finish_epoch(self) -> None:
        """Evaluate, write the epoch's row, and save."""
        position = self.position
        row = {
            "epoch": position.epoch + 1,
            "step": position.step,
            "train_loss": position.loss_sum / position.images,
            "learning_rate": self.history.learning_rates[-1],
            "seconds": position.seconds,
            "images_per_second": position.images / position.seconds,
            **(_measure(self.evaluate, self.model) if self.evaluate else {}),
        }
        self.history.rows.append(row)
        self.position = position.next_epoch()
        self.epoch_random = random_state(self.device)
        if self.progress:
            self.bar.write(_line(row, self.epochs))
        self.stop_if_interrupted()
        if self.position.step < self.last_step:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, unless the weights are broken."""
        if self.checkpoint is not None:
            require_finite(self.model, self.position.step)
            save_checkpoint(self.checkpoint, self.state())

    def state(self) -> dict[str, Any]:
        """All that a resume needs, in types that a checkpoint can hold."""
        history = self.history
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self.scaler.state_dict(),
            "position": asdict(self.position),
            "history": {
                "losses": torch.tensor(history.losses, dtype=torch.float64),
                "learning_rates": torch.tensor(history.learning_rates, dtype=torch.float64),
                "rows": history.rows,
            },
            "epoch_random": self.epoch_random,
            "random": random_state(self.device),
            "settings": self.settings,
        }

    def resume(self) -> None:
        """Put back what `state` returned, from the checkpoint.

        Raises:
            CheckpointError: it is damaged, or belongs to another training.
        """
        saved = load_checkpoint(self.checkpoint)
        require_keys(saved, {"format", *self.state()}, "parts", self.checkpoint)
        require_same(saved["settings"], self.settings, self.checkpoint)
        weights = self.model.state_dict()
        require_keys(saved["model"], weights, "tensors of the model", self.checkpoint)
        try:
            self.restore(saved)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"The checkpoint {self.checkpoint} cannot be used: {error!r}. It is left as it is; "
                "move it away to begin again."
            ) from error

    def restore(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(saved["scheduler"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])
        self.position = Position(**saved["position"])
        numbers, rows = saved["history"], saved["history"]["rows"]
        self.history = History(numbers["losses"].tolist(), numbers["learning_rates"].tolist(), rows)
        self.epoch_random, self.resumed_random = saved["epoch_random"], saved["random"]
        for state in (self.epoch_random, self.resumed_random):  # now, and not inside an epoch
            set_random_state(state, self.device)

    def stop_if_interrupted(self) -> None:
        if self.interrupt.is_set():
            self.save()
            raise KeyboardInterrupt(
                f"Stopped by the user after step {self.position.step} of {self.last_step}. "
                f"Saved to {self.checkpoint}; call fit again with the same arguments to go on."
            )

    def progress_bar(self) -> tqdm:
        step = self.position.step
        bar = tqdm(
            total=self.last_step, initial=step, unit="step", leave=False, disable=not self.progress
        )
        if self.progress and step:
            bar.write(f"going on from step {step} of {self.last_step} ({self.checkpoint})")
        return bar

    def show(self, loss: float) -> None:
        rate = self.position.images / self.position.seconds
        self.bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} images/s", refresh=False)
        self.bar.update()


def _measure(evaluate: Callable[[nn.Module], Any], model: nn.Module) -> dict[str, Any]:
    """What ``evaluate`` found, as a dict of numbers."""
    found = evaluate(model)
    if isinstance(found, dict):
        return {name: float(value) for name, value in found.items()}
    if hasattr(found, "loss") and hasattr(found, "accuracy"):
        return {"val_loss": float(found.loss), "val_accuracy": float(found.accuracy)}
    raise TrainingError(
        f"evaluate returned {type(found).__name__}; expected a dict of numbers, or an object "
        "with loss and accuracy."
    )


def _line(row: dict[str, Any], epochs: int) -> str:
    """One row of the history, for a reader."""
    known = ("epoch", "step", "learning_rate", "seconds", "images_per_second")
    numbers = [f"{name} {value:.4f}" for name, value in row.items() if name not in known]
    pace = f"{row['seconds']:.1f} s, {row['images_per_second']:,.0f} images/s"
    return " · ".join([f"epoch {row['epoch']}/{epochs}", *numbers, pace])


def _batches_from(loader: Any, start: int) -> Iterator:
    """The batches of this epoch from number ``start`` on.

    A loader with ``batches(start)`` begins there; from any other the first ones are drawn and
    dropped, so that its own use of random numbers stays the same.
    """
    if hasattr(loader, "batches"):
        return loader.batches(start)
    batches = iter(loader)
    for _ in range(start):
        next(batches, None)
    return batches


def _set_epoch(loader: Any, epoch: int) -> None:
    for part in (loader, getattr(loader, "sampler", None)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


@contextmanager
def _finish_step_on_interrupt(path: str | Path | None) -> Iterator[threading.Event]:
    """With a checkpoint, Ctrl-C sets the event instead of breaking a step in the middle.

    Half an optimizer step cannot be saved. A second Ctrl-C breaks at once.
    """
    event = threading.Event()
    if path is None or threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(signum, frame):
        if event.is_set():
            raise KeyboardInterrupt("Stopped at once; the last saved checkpoint is unchanged.")
        event.set()
        tqdm.write("Stopping after this step. Press once more to stop now, without saving.")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
