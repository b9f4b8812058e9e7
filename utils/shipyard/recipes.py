"""Whole trainings on CIFAR-10, from raw images to an accuracy, with a clock that runs.

`articles` is the recipe that the source articles of this series print. `fast` is ours. Both
return an `Outcome`: how accurate the network was after how many seconds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms

from shipyard import data, metrics, models, training
from shipyard.errors import RecipeError
from shipyard.number_formats import NumberFormat, fastest_format, time_formats
from shipyard.runtime import synchronize


@dataclass(frozen=True)
class Outcome:
    """What a recipe reached.

    Attributes:
        model: the trained network.
        seconds: (points,) training seconds at each measurement, from 0. Everything that the
            recipe does counts, but for the measurements themselves.
        accuracy: (points,) share of the held-out images that were classified right.
        history: every step, as `training.fit` wrote it down.
        settings: those of the fast recipe, with the number format and the widths that were
            chosen; None for the articles'.
    """

    model: nn.Module
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]
    history: training.History
    settings: Settings | None = None

    @property
    def number_format(self) -> NumberFormat:
        """How the numbers were stored in training."""
        return self.settings.number_format if self.settings else NumberFormat()

    def seconds_to(self, target: float) -> float | None:
        """Seconds of the first measurement with accuracy ≥ ``target``; None if there is none.

        Nothing is interpolated: the network of that moment has really been seen to do it.
        """
        reached = (s for s, a in zip(self.seconds, self.accuracy, strict=True) if a >= target)
        return next(reached, None)


# --- Batches ------------------------------------------------------------------------------------


class PilImages(torch.utils.data.Dataset):
    """(image, label) one by one, each image a PIL picture that goes through ``transform``.

    What torchvision's ``CIFAR10`` gives, for images that are in memory already.
    """

    def __init__(self, image_set: data.ImageSet, transform: Callable) -> None:
        self.arrays = image_set.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.labels = image_set.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


class Resized:
    """The batches of ``loader`` with the images at ``side`` × ``side`` pixels."""

    def __init__(self, loader, side: int, memory_format: torch.memory_format) -> None:
        self.loader, self.side, self.memory_format = loader, side, memory_format

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            yield resize(images, self.side).contiguous(memory_format=self.memory_format), labels


def resize(images: Tensor, side: int) -> Tensor:
    """Shrink float images (batch, channels, height, width) to side × side, without aliasing."""
    height, width = images.shape[2:]
    if (height, width) == (side, side):
        return images
    if height % side == 0 and width % side == 0:  # the mean of whole blocks of pixels, and quick
        return F.avg_pool2d(images, (height // side, width // side))
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


class Clock:
    """Seconds since the start, without those in which it was stopped.

    Args:
        budget: the seconds that there are.
    """

    def __init__(self, budget: float) -> None:
        self.budget, self.begin = budget, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begin

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside takes no time on this clock."""
        at = time.perf_counter()
        try:
            yield
        finally:
            self.begin += time.perf_counter() - at


class GrowingBatches:
    """Training batches in ``parts`` equal parts; the images may grow on the way.

    To `training.fit`, a part is an epoch: it measures after each. ``progress`` goes from 0 to 1,
    with the steps (step / steps) or, where there is a clock, with the time (seconds / budget).
    With steps, everything depends on (seed, number of the step) alone. With a clock, the order
    and the augmentation do; how many steps there are depends on the machine.

    Args:
        image_set: the training images.
        batch_size: images in every batch; a short rest of an epoch is left out.
        steps: batches in all; at least ``parts``. Rounded down to a multiple of it. With a clock
            only a bound from above.
        parts: how often to stop for a measurement.
        sides: the image sides, each for an equal share of the progress.
        memory_format: of the images.
        transform: as in `data.BatchLoader`.
        clock: ends the training when the step in hand would end nearer to the budget than the
            next one.
    """

    def __init__(
        self,
        image_set: data.ImageSet,
        batch_size: int,
        steps: int,
        parts: int,
        sides: Sequence[int] = (32,),
        memory_format: torch.memory_format = torch.contiguous_format,
        seed: int = 0,
        transform: data.Transform | None = None,
        clock: Clock | None = None,
    ) -> None:
        if len(image_set) < batch_size:
            raise RecipeError(
                f"There are {len(image_set)} training images, and a batch takes {batch_size}. "
                "Give more images or a smaller batch_size."
            )
        if steps < parts:
            raise RecipeError(
                f"The training has {steps} steps, and {parts} measurements were asked for. "
                "Train for more epochs, or measure less often."
            )
        self.loader = data.BatchLoader(
            image_set, batch_size, shuffle=True, seed=seed, transform=transform, drop_last=True
        )
        self.part_steps, self.parts = steps // parts, parts
        self.steps = self.part_steps * parts
        self.sides, self.memory_format, self.clock = tuple(sides), memory_format, clock
        self.part = self.step = 0
        self.last_side = self.sides[0]  # that of the batch before

    def __len__(self) -> int:
        return self.part_steps

    def set_epoch(self, part: int) -> None:
        """Make the next pass that of ``part`` (0, 1, …)."""
        self.part = part

    def progress(self, step: int, ahead: float = 0.0) -> float:
        """How far the training is, from 0 to 1, before step number ``step`` (from 0).

        With a clock: how far it will be in ``ahead`` seconds.
        """
        if self.clock is None:
            return step / self.steps
        return (self.clock.seconds + ahead) / self.clock.budget

    def side(self, progress: float) -> int:
        """The image side at ``progress``."""
        return self.sides[min(int(progress * len(self.sides)), len(self.sides) - 1)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of this part from number ``start`` on (after a crash, for instance)."""
        if self.clock is None:
            self.step = self.part * len(self) + start
        end = (self.part + 1) / self.parts
        for images, labels in self._endless():
            began = time.perf_counter()
            self.last_side = self.side(self.progress(self.step))
            images = resize(images, self.last_side)
            yield images.contiguous(memory_format=self.memory_format), labels
            self.step += 1
            if self.progress(self.step, ahead=(time.perf_counter() - began) / 2) >= end:
                return

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The loader's batches from number ``step`` on, epoch after epoch."""
        while True:
            epoch, index = divmod(self.step, len(self.loader))
            self.loader.set_epoch(epoch)
            yield from self.loader.batches(index)


def one_cycle(progress: float, warm_up: float = 0.25) -> float:
    """The share of the peak learning rate: from 1/5 straight up to 1 at ``warm_up``, then straight
    down to 0 at progress 1."""
    rising = 0.2 + 0.8 * progress / warm_up
    falling = (1 - progress) / (1 - warm_up)
    return max(0.0, min(rising, falling))


# --- The articles' recipe -----------------------------------------------------------------------


def articles(
    train: data.ImageSet,
    held_out: data.ImageSet,
    *,
    seed: int = 0,
    epochs: int = 2,
    max_steps: int | None = None,
    per_image: bool = True,
    workers: int = 2,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Outcome:
    """LeNet, batches of 4, SGD with learning rate 0.001 and momentum 0.9, two epochs.

    Args:
        train, held_out: images to learn from, and to measure on after each epoch.
        max_steps: stop after this many steps (then there is one measurement, at the end).
        per_image: read PIL images one by one, through torchvision's transforms and torch's
            ``DataLoader`` with ``workers`` processes, as the articles do (0: in this process).
            False: the same recipe with `data.BatchLoader`, which is quicker.
    """
    torch.manual_seed(seed)
    begin = time.perf_counter()
    if per_image:
        generator = torch.Generator().manual_seed(seed)
        loader = torch.utils.data.DataLoader(
            PilImages(train, TO_HALF), 4, shuffle=True, num_workers=workers, generator=generator
        )
    else:
        loader = data.BatchLoader(train, 4, shuffle=True, seed=seed, **HALF)
    model = models.LeNet().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    prepared = time.perf_counter() - begin

    def evaluate(model: nn.Module) -> metrics.Evaluation:
        return metrics.evaluate(model, data.BatchLoader(held_out, 500, **HALF), device)

    begin = time.perf_counter()
    history = training.fit(
        model, loader, optimizer, epochs=epochs, device=device, evaluate=evaluate,
        max_steps=max_steps, progress=progress,
    )  # fmt: skip
    if not history.rows:  # cut short inside the first epoch: nothing was measured on the way
        seconds = prepared + time.perf_counter() - begin
        accuracy = evaluate(model).accuracy
        return Outcome(model, (seconds,), (accuracy,), history)
    return _outcome(model, history, prepared)


# The articles' transform, and the same for whole batches (arguments of `data.BatchLoader`).
TO_HALF = transforms.Compose([
    transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
])  # fmt: skip
HALF = {"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.5)}


# --- Our recipe ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """The numbers of the fast recipe; `dataclasses.replace` changes one of them.

    Attributes:
        epochs: passes over the training images; may be a part of one. With a budget: as many as
            the network must be narrow enough for.
        sides: image sides, each for an equal share of the training: small images first, which
            cost a fraction and teach the coarse shapes.
        widths, depth, logit_scale: of the `models.WhitenedNet`. With a budget: the largest widths.
        batch_size, learning_rate: the rate is the peak of the one-cycle schedule.
        warm_up: share of the training in which the rate rises, above 0.
        momentum, weight_decay: of SGD with Nesterov's momentum.
        label_smoothing: share of the target that goes to all classes alike.
        crop: pixels by which an image may be moved; 0 mirrors it only.
        whitening_images: how many images the first layer is computed from; 0 learns it instead.
        number_format: None measures which one is fastest here.
    """

    epochs: float = 0.25
    sides: tuple[int, ...] = (16,)
    widths: tuple[int, ...] = (32, 64, 128)
    depth: int = 1
    logit_scale: float = 0.5
    batch_size: int = 50
    learning_rate: float = 0.4
    warm_up: float = 0.25
    momentum: float = 0.85
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    crop: int = 0
    whitening_images: int = 1000
    number_format: NumberFormat | None = None


# To the articles' accuracy as soon as possible.
SPRINT = Settings()
# As far as possible within the time of the articles' recipe.
LONG = replace(
    SPRINT, epochs=4, sides=(16, 20, 24, 28), widths=(64, 128, 256), depth=2, batch_size=125,
    learning_rate=0.7, logit_scale=0.25, crop=2,
)  # fmt: skip


def fast(
    train: data.ImageSet,
    held_out: data.ImageSet,
    settings: Settings = SPRINT,
    *,
    seed: int = 0,
    measurements: int = 8,
    budget: float | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Outcome:
    """Train a `models.WhitenedNet` on large batches with one cycle of the learning rate.

    The seconds count the whitening and the choice of number format and widths too.

    Args:
        train, held_out: images to learn from, and to measure on ``measurements`` times.
        settings: `SPRINT`, `LONG`, or another choice.
        budget: seconds. The clock then ends the training, instead of ``settings.epochs``, and
            sets learning rate and image side; the network is made narrow enough for this
            machine by `widths_that_fit`. Measurements are left out where steps are few.
    """
    synchronize(device)
    begin = time.perf_counter()
    s, clock = settings, None if budget is None else Clock(budget)
    train = train.to(device)
    torch.manual_seed(seed)
    steps = int(s.epochs * (len(train) // s.batch_size))
    if s.number_format is None:
        batch = resize(data.normalize(train.images[: s.batch_size]), _mean_side(s))
        model = _network(s, device)
        allowance = math.inf if budget is None else budget / 100
        s = replace(s, number_format=fastest_format(model, batch, allowance=allowance))
    if clock is not None:
        s, step = widths_that_fit(s, train, clock.budget - clock.seconds)
        measurements = max(1, min(measurements, int((clock.budget - clock.seconds) / step)))
        steps = 100 * max(measurements, int(clock.budget / step))  # never reached
    torch.manual_seed(seed)
    model = _network(s, device)
    if s.whitening_images:
        some = train.images[torch.randperm(len(train))[: s.whitening_images].to(device)]
        model.whiten(resize(data.normalize(some), s.sides[0]))
    else:
        model.whitening.weight.requires_grad_(True)
    model.to(memory_format=s.number_format.memory_format)
    batches = GrowingBatches(
        train, s.batch_size, steps, measurements, s.sides, s.number_format.memory_format, seed,
        data.random_crop_flip(s.crop), clock,
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=s.learning_rate,
        momentum=s.momentum, weight_decay=s.weight_decay, nesterov=True,
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: one_cycle(batches.progress(step), s.warm_up)
    )
    loss_fn = nn.CrossEntropyLoss(label_smoothing=s.label_smoothing)
    prepared = time.perf_counter() - begin

    def evaluate(model: nn.Module) -> metrics.Evaluation:
        with nullcontext() if clock is None else clock.stopped():
            return evaluate_at(model, held_out, batches.last_side, s.number_format, device)

    history = training.fit(
        model, batches, optimizer, epochs=measurements, device=device, loss_fn=loss_fn,
        scheduler=scheduler, evaluate=evaluate, autocast=s.number_format.autocast,
        progress=progress,
    )  # fmt: skip
    return _outcome(model, history, prepared, s)


def _network(s: Settings, device: torch.device | str) -> models.WhitenedNet:
    net = models.WhitenedNet(widths=s.widths, depth=s.depth, logit_scale=s.logit_scale)
    return net.to(device)


def _mean_side(s: Settings) -> int:
    """The side of a square that is as large as the images are on average."""
    return round(math.sqrt(statistics.mean(side**2 for side in s.sides)))


WIDTH_SHARES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4)
# What a step takes beside its forward and backward pass: the batch and the optimizer. Seen on
# CPUs: 5 to 12% of a pass.
REST_OF_A_STEP = 0.12


def widths_that_fit(s: Settings, train: data.ImageSet, budget: float) -> tuple[Settings, float]:
    """The widest network that makes ``s.epochs`` epochs in ``budget`` seconds on this machine.

    Of 1, 3/4, 1/2, 3/8 and 1/4 of ``s.widths``, the first that is fast enough, or the last. Two
    passes on 16 images of the mean size are timed for each.

    Returns:
        (settings with these widths, estimated seconds of a step).
    """
    images = resize(data.normalize(train.images[:16]), _mean_side(s))
    for share in WIDTH_SHARES:
        widths = tuple(max(8, round(share * width / 8) * 8) for width in s.widths)
        narrow = replace(s, widths=widths)
        model = _network(narrow, images.device)
        (seconds,) = time_formats(model, images, [s.number_format], repeats=1).values()
        step = seconds * s.batch_size / len(images) * (1 + REST_OF_A_STEP)
        if step * s.epochs * (len(train) // s.batch_size) <= budget:
            break
    return narrow, step


def evaluate_at(
    model: nn.Module,
    image_set: data.ImageSet,
    side: int = 32,
    number_format: NumberFormat | None = None,
    device: torch.device | str = "cpu",
    flip: bool = True,
) -> metrics.Evaluation:
    """Score ``model`` on ``image_set`` at side × side pixels, computed in ``number_format``.

    With ``flip``, each image is also shown mirrored, and the two rows of logits are averaged.
    """
    number_format = number_format or NumberFormat()
    loader = Resized(data.BatchLoader(image_set, 500), side, number_format.memory_format)
    device = torch.device(device)
    with number_format.computing(device):
        return metrics.evaluate(WithFlip(model) if flip else model, loader, device)


class WithFlip(nn.Module):
    """logits(x) = (model(x) + model(mirrored x)) / 2: two looks at each image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        return (self.model(x) + self.model(x.flip(3))) / 2


def _outcome(model, history, prepared, settings=None) -> Outcome:
    """One point for each row of the history; the preparation comes before all of them."""
    seconds = accumulate((row["seconds"] for row in history.rows[1:]),
                         initial=prepared + history.rows[0]["seconds"])  # fmt: skip
    accuracy = (row["val_accuracy"] for row in history.rows)
    return Outcome(model, tuple(seconds), tuple(accuracy), history, settings)
