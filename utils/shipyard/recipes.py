"""Whole trainings on CIFAR-10, from raw images to an accuracy, with a clock that runs.

`articles` is the recipe that the source articles of this series print. `fast` is ours. Both
return an `Outcome`: how accurate the network was after how many seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from shipyard import data, metrics, models, training
from shipyard.runtime import ShipyardError


class RecipeError(ShipyardError):
    """A setting of a recipe does not fit; the message says which and what to do."""


@dataclass(frozen=True)
class Outcome:
    """What a recipe reached.

    Attributes:
        model: the trained network.
        seconds: (points,) training seconds at each measurement, from 0. Everything that the
            recipe does counts, but for the measurements themselves.
        accuracy: (points,) share of the held-out images that were classified right.
        number_format: how the numbers were stored in training.
        history: every step, as `training.fit` wrote it down.
    """

    model: nn.Module
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]
    number_format: NumberFormat
    history: training.History

    def seconds_to(self, target: float) -> float | None:
        """Seconds of the first measurement with accuracy ≥ ``target``; None if there is none.

        Nothing is interpolated: the network of that moment has really been seen to do it.
        """
        reached = (s for s, a in zip(self.seconds, self.accuracy, strict=True) if a >= target)
        return next(reached, None)


# --- How numbers are stored ---------------------------------------------------------------------


@dataclass(frozen=True)
class NumberFormat:
    """The type that convolutions compute in, and the order of the values in memory."""

    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    def __str__(self) -> str:
        order = "channels_last" if self.memory_format is torch.channels_last else "channels_first"
        return f"{str(self.dtype).removeprefix('torch.')}, {order}"

    @property
    def autocast(self) -> torch.dtype | None:
        """The argument of `training.fit`: None for float32."""
        return None if self.dtype is torch.float32 else self.dtype


NUMBER_FORMATS = tuple(
    NumberFormat(dtype, order)
    for dtype in (torch.float32, torch.bfloat16)
    for order in (torch.contiguous_format, torch.channels_last)
)


def time_formats(
    model: nn.Module,
    images: Tensor,
    formats: Sequence[NumberFormat] = NUMBER_FORMATS,
    repeats: int = 3,
) -> dict[NumberFormat, float]:
    """Seconds of one forward and backward pass of ``model`` on ``images``, for each format.

    The first pass of each format is not counted: it sets kernels up. Of ``repeats`` more, the
    fastest counts, because whatever else runs on the machine can only make a pass slower. The
    model, its gradients and its mode are as before afterwards.

    Args:
        model: on the device of ``images``.
        images: (batch, channels, height, width), a batch as in the training.
    """
    states = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad for p in model.parameters()]
    was_training = model.training
    seconds = {}
    try:
        model.train()
        for number_format in formats:
            model.to(memory_format=number_format.memory_format)
            x = images.to(memory_format=number_format.memory_format)
            passes = [_seconds_of_a_pass(model, x, number_format) for _ in range(repeats + 1)]
            seconds[number_format] = min(passes[1:])
    finally:
        model.to(memory_format=torch.contiguous_format)
        model.load_state_dict(states)
        model.train(was_training)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
    return seconds


def _seconds_of_a_pass(model: nn.Module, images: Tensor, number_format: NumberFormat) -> float:
    device = images.device
    synchronize(device)
    begin = time.perf_counter()
    with torch.autocast(device.type, number_format.autocast, number_format.autocast is not None):
        loss = model(images).float().square().mean()
    loss.backward()
    synchronize(device)
    return time.perf_counter() - begin


def fastest_format(
    model: nn.Module, images: Tensor, formats: Sequence[NumberFormat] = NUMBER_FORMATS
) -> NumberFormat:
    """The format with the shortest pass on this machine: measured by `time_formats`, not guessed.

    bfloat16 is fast where the processor has instructions for it (AMX, AVX-512 BF16, a GPU) and
    slow where it has not.
    """
    seconds = time_formats(model, images, formats)
    return min(seconds, key=seconds.get)


# What a step takes beside its forward and backward pass: the batch and the optimizer. Seen on
# CPUs: 5 to 12% of a pass.
REST_OF_A_STEP = 0.12


def seconds_per_step(
    model: nn.Module, images: Tensor, sides: Sequence[int], number_format: NumberFormat
) -> float:
    """The mean time of a training step over ``sides``, from a few timed passes on uint8 images."""
    passes = [
        time_formats(model, resize(data.normalize(images), side), [number_format])[number_format]
        for side in sides
    ]
    return statistics.mean(passes) * (1 + REST_OF_A_STEP)


def synchronize(device: torch.device | str) -> None:
    """Wait until ``device`` has done its work; a GPU otherwise runs on after the call returns."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# --- Batches ------------------------------------------------------------------------------------


class PerImagePipeline(torch.utils.data.Dataset):
    """One image at a time: array → PIL image → array → float tensor → normalised.

    The steps of torchvision's ``CIFAR10`` with ``ToTensor`` and ``Normalize((0.5, 0.5, 0.5),
    (0.5, 0.5, 0.5))``, which the articles use.
    """

    def __init__(self, image_set: data.ImageSet) -> None:
        self.arrays = image_set.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.labels = image_set.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.arrays[index])
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        image = image.to(torch.float32).div(255)  # (channels, height, width), 0…1
        half = torch.tensor([0.5, 0.5, 0.5]).view(3, 1, 1)
        return image.sub_(half).div_(half), self.labels[index]


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


class Journey:
    """``steps`` training batches, in ``parts`` equal parts; the images may grow on the way.

    To `training.fit`, a part is an epoch: it measures after each. The order, the augmentation
    and the size of a batch depend on (seed, number of the step) alone.

    Args:
        image_set: the training images.
        batch_size: images in every batch; a short rest of an epoch is left out.
        steps: batches in all; at least ``parts``. Rounded down to a multiple of it.
        parts: how often to stop for a measurement.
        sides: the image sides, each for an equal share of the steps.
        memory_format: of the images.
        transform: as in `data.BatchLoader`.
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
        self.image_set = image_set
        self.loader = data.BatchLoader(
            image_set, batch_size, shuffle=True, seed=seed, transform=transform, drop_last=True
        )
        self.batch_size, self.seed = batch_size, seed
        self.part_steps = steps // parts
        self.steps = self.part_steps * parts
        self.sides, self.memory_format = tuple(sides), memory_format
        self.part = 0

    def __len__(self) -> int:
        return self.part_steps

    def set_epoch(self, part: int) -> None:
        """Make the next pass that of ``part`` (0, 1, …)."""
        self.part = part

    def side_at(self, step: int) -> int:
        """The image side of step number ``step`` (from 0)."""
        return self.sides[min(step * len(self.sides) // self.steps, len(self.sides) - 1)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of this part from number ``start`` on (after a crash, for instance)."""
        step, last = self.part * len(self) + start, (self.part + 1) * len(self)
        while step < last:
            epoch, index = divmod(step, len(self.loader))
            self.loader.set_epoch(epoch)
            for images, labels in self.loader.batches(index):
                images = resize(images, self.side_at(step))
                yield images.contiguous(memory_format=self.memory_format), labels
                step += 1
                if step == last:
                    return


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
        per_image: read through the per-image pipeline with ``workers`` processes, as the
            articles do. False: the same recipe with `data.BatchLoader`, which is quicker.
    """
    torch.manual_seed(seed)
    begin = time.perf_counter()
    if per_image:
        generator = torch.Generator().manual_seed(seed)
        loader = torch.utils.data.DataLoader(
            PerImagePipeline(train), 4, shuffle=True, num_workers=workers, generator=generator
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
        return Outcome(model, (seconds,), (accuracy,), NumberFormat(), history)
    return _outcome(model, history, prepared, NumberFormat())


HALF = {"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.5)}  # the articles' Normalize


# --- Our recipe ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """The numbers of the fast recipe; `dataclasses.replace` changes one of them.

    Attributes:
        epochs: passes over the training images; may be a part of one.
        sides: image sides, each for an equal share of the steps: small images first, which
            cost a fraction and teach the coarse shapes.
        widths, depth, logit_scale: of the `models.WhitenedNet`.
        batch_size, learning_rate: the rate is the peak of the one-cycle schedule.
        warm_up: share of the steps in which the rate rises.
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

    The seconds count the whitening and the measurement of the number format too.

    Args:
        train, held_out: images to learn from, and to measure on ``measurements`` times.
        settings: `SPRINT`, `LONG`, or another choice.
        budget: seconds. They then decide how many steps there are, instead of
            ``settings.epochs``: a few passes are timed, and the rest is a division.
    """
    torch.manual_seed(seed)
    synchronize(device)
    begin = time.perf_counter()
    s = settings
    train = train.to(device)
    model = models.WhitenedNet(widths=s.widths, depth=s.depth, logit_scale=s.logit_scale)
    model.to(device)
    if s.whitening_images:
        some = train.images[torch.randperm(len(train))[: s.whitening_images].to(device)]
        model.whiten(resize(data.normalize(some), s.sides[0]))
    else:
        model.whitening.weight.requires_grad_(True)
    number_format = s.number_format
    if number_format is None:
        batch = resize(data.normalize(train.images[: s.batch_size]), s.sides[-1])
        number_format = fastest_format(model, batch)

    if budget is None:
        steps = int(s.epochs * (len(train) // s.batch_size))
    else:
        step = seconds_per_step(model, train.images[: s.batch_size], s.sides, number_format)
        steps = max(measurements, int((budget - (time.perf_counter() - begin)) / step))
    model.to(memory_format=number_format.memory_format)
    journey = Journey(
        train, s.batch_size, steps, measurements, s.sides, number_format.memory_format, seed,
        data.random_crop_flip(s.crop),
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=s.learning_rate,
        momentum=s.momentum, weight_decay=s.weight_decay, nesterov=True,
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, s.learning_rate, total_steps=journey.steps + 1, pct_start=s.warm_up,
        anneal_strategy="linear", div_factor=5, final_div_factor=1e3, cycle_momentum=False,
    )  # fmt: skip
    loss_fn = nn.CrossEntropyLoss(label_smoothing=s.label_smoothing)
    prepared = time.perf_counter() - begin

    def evaluate(model: nn.Module) -> metrics.Evaluation:
        side = journey.side_at((journey.part + 1) * len(journey) - 1)
        return evaluate_at(model, held_out, side, number_format, device)

    history = training.fit(
        model, journey, optimizer, epochs=measurements, device=device, loss_fn=loss_fn,
        scheduler=scheduler, evaluate=evaluate, autocast=number_format.autocast, progress=progress,
    )  # fmt: skip
    return _outcome(model, history, prepared, number_format)


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
    with torch.autocast(device.type, number_format.autocast, number_format.autocast is not None):
        return metrics.evaluate(WithFlip(model) if flip else model, loader, device)


class WithFlip(nn.Module):
    """logits(x) = (model(x) + model(mirrored x)) / 2: two looks at each image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        return (self.model(x) + self.model(x.flip(3))) / 2


def _outcome(model, history, prepared, number_format) -> Outcome:
    """One point for each row of the history; the preparation comes before all of them."""
    seconds = accumulate((row["seconds"] for row in history.rows[1:]),
                         initial=prepared + history.rows[0]["seconds"])  # fmt: skip
    accuracy = (row["val_accuracy"] for row in history.rows)
    return Outcome(model, tuple(seconds), tuple(accuracy), number_format, history)


def median_seconds_to(outcomes: Sequence[Outcome], target: float) -> float | None:
    """The median over ``outcomes`` of the seconds to ``target``; a run that never came counts
    as infinitely long. None where the median run did not reach it."""
    seconds = [outcome.seconds_to(target) for outcome in outcomes]
    median = statistics.median_high([float("inf") if s is None else s for s in seconds])
    return None if median == float("inf") else median
