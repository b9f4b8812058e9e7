"""The training loop, with checkpoints from which an interrupted run goes on bit for bit.

The loop knows a model, a loader and an optimizer, and nothing about what they are.
"""

from __future__ import annotations

import functools
import math
import os
import pickle
import shutil
import signal
import threading
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from shipyard.runtime import ShipyardError

FORMAT = "shipyard checkpoint 1"
NO_BATCHES = (
    "The loader has no batches: there is nothing to train on. Check that its image set is not "
    "empty, that drop_last does not drop the only batch, and that it is no generator that was "
    "used up before."
)


class TrainingError(ShipyardError):
    """The training cannot start or go on; the message says why and what to do."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged, in use, or belongs to another training."""


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

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> History:
        """The history that `to_dict` wrote."""
        return cls(
            [float(x) for x in state["losses"]],
            [float(x) for x in state["learning_rates"]],
            [dict(row) for row in state["rows"]],
        )


@dataclass
class Position:
    """Where a training stands: finished epochs, and the part of the epoch in hand."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the epoch in hand
    step: int = 0  # finished steps in all
    loss_sum: float = 0.0  # over the images of the epoch in hand
    images: int = 0
    seconds: float = 0.0

    def next_epoch(self) -> Position:
        return Position(epoch=self.epoch + 1, step=self.step)


def previous_of(path: str | Path) -> Path:
    """Where `save_checkpoint` keeps the checkpoint that ``path`` replaced."""
    path = Path(path)
    return path.with_name(path.name + ".previous")


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> Path:
    """Write ``state`` to ``path`` in one step; the file that was there becomes ``.previous``.

    The bytes go to a temporary file beside ``path``, are forced to the disk (fsync), and only
    then take its name. A crash at any moment leaves the old checkpoint or the new one.

    Args:
        path: the file to write; missing folders are made.
        state: tensors, numbers, text, None, and lists, tuples and dicts of them: what
            ``torch.load(weights_only=True)`` reads back.

    Raises:
        CheckpointError: ``state`` holds something else, which could not be read back.
    """
    path = Path(path)
    _require_plain(state, "state")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        _keep_previous(path)
    os.replace(unfinished, path)
    return path


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU, without running any code from the file.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is no checkpoint of ours.
            The file is left as it is.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"its part {damaged} has a wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: {error}. It is left as it is. " + _way_out(path)
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of this training code (expected {FORMAT!r}). "
            "Give another file name."
        )
    return state


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
    device = torch.device(device)
    _check_arguments(model, loader, optimizer, scheduler, epochs, max_steps, checkpoint_every)
    model.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast is torch.float16)
    settings = _settings(model, loader, optimizer, scheduler, loss_fn, clip_norm, autocast)
    last_step = min(epochs * len(loader), math.inf if max_steps is None else max_steps)
    position, history = Position(), History()
    epoch_random = random_state(device)  # torch's random state at the beginning of the epoch
    resumed_random = None

    def state() -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict() if scheduler else None,
            "scaler": scaler.state_dict(),
            "position": asdict(position),
            "history": {
                "losses": torch.tensor(history.losses, dtype=torch.float64),
                "learning_rates": torch.tensor(history.learning_rates, dtype=torch.float64),
                "rows": history.rows,
            },
            "epoch_random": epoch_random,
            "random": random_state(device),
            "settings": settings,
        }

    def save() -> None:
        if checkpoint is not None:
            _require_finite(model, position)
            save_checkpoint(checkpoint, state())

    def unfinished() -> bool:
        """Steps are left, or the row of an epoch whose last step was saved."""
        return position.epoch < epochs and (
            position.step < last_step or position.batch == len(loader)
        )

    def stop_if(requested: bool) -> None:
        if requested:
            save()
            raise KeyboardInterrupt(
                f"Stopped by the user after step {position.step} of {last_step}. "
                f"Saved to {checkpoint}; call fit again with the same arguments to go on."
            )

    with _only_user_of(checkpoint), _finish_step_on_interrupt(checkpoint) as interrupt:
        if checkpoint is not None and Path(checkpoint).exists():
            saved = load_checkpoint(checkpoint)
            _require_same(saved["settings"], settings, checkpoint)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            if scheduler:
                scheduler.load_state_dict(saved["scheduler"])
            if scaler.is_enabled():
                scaler.load_state_dict(saved["scaler"])
            position = Position(**saved["position"])
            history = History.from_dict(saved["history"])
            epoch_random, resumed_random = saved["epoch_random"], saved["random"]
            if not unfinished():
                if progress:
                    tqdm.write(f"{checkpoint} holds all {position.step} steps: nothing to do.")
                return history

        bar = tqdm(
            total=last_step, initial=position.step, unit="step", leave=False, disable=not progress
        )
        if progress and position.step:
            bar.write(f"going on from step {position.step} of {last_step} ({checkpoint})")
        with bar:
            while unfinished():
                bar.set_description(f"epoch {position.epoch + 1}/{epochs}", refresh=False)
                _set_epoch(loader, position.epoch)
                if resumed_random is not None:
                    set_random_state(epoch_random, device)
                else:
                    epoch_random = random_state(device)
                batches = _batches_from(loader, position.batch)
                if resumed_random is not None:
                    set_random_state(resumed_random, device)
                    resumed_random = None

                model.train()
                clock = time.perf_counter()
                for inputs, labels in batches:
                    history.learning_rates.append(optimizer.param_groups[0]["lr"])
                    loss = _step(
                        model, inputs.to(device), labels.to(device), optimizer, loss_fn, scheduler,
                        scaler, clip_norm, autocast, position,
                    )  # fmt: skip
                    history.losses.append(loss)
                    position.batch += 1
                    position.step += 1
                    position.loss_sum += loss * len(labels)
                    position.images += len(labels)
                    now = time.perf_counter()
                    position.seconds += now - clock
                    clock = now
                    rate = position.images / position.seconds
                    bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} images/s", refresh=False)
                    bar.update()
                    if checkpoint_every and position.step % checkpoint_every == 0:
                        save()
                        clock = time.perf_counter()  # the time to save is no training time
                    stop_if(interrupt.is_set())
                    if position.step == last_step:
                        break
                if position.batch == 0:
                    raise TrainingError(NO_BATCHES)
                if position.batch < len(loader) and position.step == last_step:
                    break  # max_steps ends inside the epoch: no row for a part of one

                row = {
                    "epoch": position.epoch + 1,
                    "step": position.step,
                    "train_loss": position.loss_sum / position.images,
                    "learning_rate": history.learning_rates[-1],
                    "seconds": position.seconds,
                    "images_per_second": position.images / position.seconds,
                    **(_measure(evaluate, model) if evaluate else {}),
                }
                history.rows.append(row)
                position = position.next_epoch()
                epoch_random = random_state(device)
                if progress:
                    bar.write(_line(row, epochs))
                stop_if(interrupt.is_set())
                if position.step < last_step:
                    save()
            save()
    model.train()
    return history


def random_state(device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """torch's random state: of the CPU, and of ``device`` where that has its own."""
    device = torch.device(device)
    state = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
    """Put back what `random_state` returned."""
    device = torch.device(device)
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(state[device.type])


def _step(
    model, inputs, labels, optimizer, loss_fn, scheduler, scaler, clip_norm, autocast, position
) -> float:
    """One update of the weights from one batch; returns the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(inputs.device.type, dtype=autocast) if autocast else nullcontext():
        loss = loss_fn(model(inputs), labels)
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"The loss is {value} at step {position.step + 1} (epoch {position.epoch + 1}), with "
            f"learning rate {optimizer.param_groups[0]['lr']:.3g}. The step was not taken. "
            "Try a smaller learning rate or clip_norm=1.0, and look for values in the inputs "
            "that are not finite."
        )
    scaler.scale(loss).backward()
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    scaler.step(optimizer)
    scaler.update()
    if scheduler:
        scheduler.step()
    return value


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


def _check_arguments(model, loader, optimizer, scheduler, epochs, max_steps, every) -> None:
    """Refuse what cannot work before the first step rather than after the first epoch."""
    for name, value in (("epochs", epochs), ("max_steps", max_steps), ("checkpoint_every", every)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise TrainingError(f"{name} is {value!r}; it must be a whole number from 1.")
    if not hasattr(loader, "__len__"):
        raise TrainingError(
            f"The loader is a {type(loader).__name__} without len(); give a list of batches or a "
            "loader that can be iterated once for each epoch."
        )
    if len(loader) == 0:
        raise TrainingError(NO_BATCHES)
    own = {id(p) for p in model.parameters()}
    if not all(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise TrainingError(
            "The optimizer holds parameters that are not the model's, so its steps would not "
            "train this model. Make it with the parameters of the model that you give to fit."
        )
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise TrainingError(
            "ReduceLROnPlateau needs a measurement at each step; fit steps the scheduler after "
            "each batch. Use a schedule over steps, such as OneCycleLR."
        )
    planned = getattr(scheduler, "total_steps", None)
    needed = min(epochs * len(loader), math.inf if max_steps is None else max_steps)
    if planned is not None and planned < needed:
        raise TrainingError(
            f"The scheduler was made for {planned} steps, but {epochs} epochs of {len(loader)} "
            f"batches are {needed} steps. Make it with total_steps={needed}."
        )


# Constants of torch's schedulers; what changes from step to step is no part of the settings.
SCHEDULE_CONSTANTS = (
    "total_steps", "T_max", "T_0", "T_mult", "eta_min", "step_size", "gamma", "milestones",
    "total_iters", "start_factor", "end_factor", "power",
)  # fmt: skip


def _settings(model, loader, optimizer, scheduler, loss_fn, clip_norm, autocast) -> dict[str, str]:
    """What must not change between a stop and a resume: name → readable value."""
    settings = {"model": type(model).__name__}
    for name, module in model.named_modules():
        if not any(module.children()):
            settings[f"model.{name}"] = repr(module)
    for name, value in model.state_dict().items():
        settings[f"shape of {name}"] = str(tuple(value.shape))
    settings["optimizer"] = type(optimizer).__name__
    for name, value in optimizer.defaults.items():
        settings[f"optimizer.{name}"] = repr(value)
    settings["optimizer groups"] = str([len(group["params"]) for group in optimizer.param_groups])
    settings["scheduler"] = type(scheduler).__name__ if scheduler else "none"
    for name in SCHEDULE_CONSTANTS:
        if hasattr(scheduler, name):
            settings[f"scheduler.{name}"] = repr(getattr(scheduler, name))
    settings["batches in an epoch"] = str(len(loader))
    for name in ("image_set", "dataset"):
        if hasattr(loader, name):
            settings["images in an epoch"] = str(len(getattr(loader, name)))
    for name in ("batch_size", "shuffle", "seed", "drop_last"):
        if isinstance(getattr(loader, name, None), int):
            settings[f"loader.{name}"] = str(getattr(loader, name))
    settings["loss_fn"] = _name_of(loss_fn)
    settings["clip_norm"] = str(clip_norm)
    settings["autocast"] = str(autocast)
    return settings


def _name_of(function: Any) -> str:
    if isinstance(function, functools.partial):
        return f"{_name_of(function.func)}({function.keywords or ''})"
    return getattr(function, "__qualname__", None) or repr(function)


def _require_same(saved: dict[str, str], now: dict[str, str], path: str | Path) -> None:
    """Refuse to go on with another model, optimizer, scheduler, loader or setting."""
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if names:
        lines = [
            f"  {name}: saved {saved.get(name, 'nothing')}, now {now.get(name, 'nothing')}"
            for name in names[:5]
        ]
        more = [f"  … and {len(names) - 5} more"] if len(names) > 5 else []
        raise CheckpointError(
            f"The checkpoint {path} belongs to another training:\n"
            + "\n".join(lines + more)
            + "\nCall fit with the saved settings to go on, or give another checkpoint file to "
            "begin again. The file is left as it is."
        )


def _require_finite(model: nn.Module, position: Position) -> None:
    """Refuse to replace a good checkpoint by one with broken weights."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise TrainingError(
                f"{name} is not finite after step {position.step}: the last update broke the "
                "weights. No checkpoint was written over the one before. Try a smaller learning "
                "rate or clip_norm=1.0."
            )


def _require_plain(value: Any, where: str) -> None:
    """Refuse what ``weights_only=True`` would refuse to read back."""
    if type(value) in (dict, OrderedDict, Counter):
        for key, part in value.items():
            _require_plain(part, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, part in enumerate(value):
            _require_plain(part, f"{where}[{i}]")
    elif value is not None and not (
        isinstance(value, Tensor) or type(value) in (bool, int, float, str, bytes)
    ):
        raise CheckpointError(
            f"{where} is a {type(value).__name__}, which a checkpoint cannot hold safely. "
            "Use tensors, numbers, text, lists and dicts; float(...) and .tolist() help."
        )


def _keep_previous(path: Path) -> None:
    """Give the file at ``path`` a second name, ``.previous``; ``path`` itself stays in place."""
    previous = previous_of(path)
    linked = path.with_name(path.name + ".previous.tmp")
    linked.unlink(missing_ok=True)
    try:
        os.link(path, linked)
    except OSError:  # a file system without hard links
        shutil.copy2(path, linked)
    os.replace(linked, previous)


def _way_out(path: Path) -> str:
    """What a reader can do about a damaged checkpoint."""
    previous = previous_of(path)
    if path != previous and previous.is_file():
        return (
            f"The checkpoint before it is kept at {previous}: copy that to {path.name} to go on "
            "from it, or move both away to begin again."
        )
    return "Move it away to begin again."


@contextmanager
def _only_user_of(path: str | Path | None) -> Iterator[None]:
    """Two trainings on one checkpoint would undo each other's work: the second is refused."""
    if path is None:
        yield
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"Another training is using the checkpoint {path}. Wait for it, or give another file."
        ) from None
    try:
        yield
    finally:
        lock.release()


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
