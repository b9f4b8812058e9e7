"""Sets of labelled images, and what is done with their pixels and indices.

Source of CIFAR-10: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shipyard.errors import DataError

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# Mean and standard deviation of each colour channel over the 50,000 training images, in [0, 1].
MEAN = torch.tensor([0.4914, 0.4822, 0.4465])
STD = torch.tensor([0.2470, 0.2435, 0.2616])

Arrays = dict[str, np.ndarray]  # train_images, train_labels, test_images, test_labels


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images (N, 3, 32, 32) of uint8 and their labels (N,) of int64.

    ``image_set[i]`` is the pair (image, label), so that it also serves as a torch ``Dataset``.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise DataError(
                f"The images are {images.dtype} of shape {tuple(images.shape)}; "
                "expected torch.uint8 of shape (N, 3, height, width)."
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise DataError(
                f"The labels are {labels.dtype} of shape {tuple(labels.shape)}; "
                f"expected torch.int64 of shape ({len(images)},), one label per image."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def select(self, indices: Tensor) -> ImageSet:
        """The images at ``indices`` (M,), as a set of their own (copied)."""
        return ImageSet(self.images[indices], self.labels[indices])

    def subset(self, n: int, seed: int = 0) -> ImageSet:
        """``n`` images drawn at random, with the class proportions of the whole set."""
        return self.select(_stratified(self.labels, n, seed))

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on ``device``: a loader then makes its batches there."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Cifar10:
    """Train and test images, and the truth about where they come from.

    ``source`` is a phrase for result files, ``classes`` the ten names in the order of the
    labels, and ``stand_in`` is True where the pictures were generated.
    """

    train: ImageSet
    test: ImageSet
    source: str
    stand_in: bool = False
    classes: tuple[str, ...] = CLASSES

    @classmethod
    def of(cls, arrays: Arrays, source: str, *more: object) -> Cifar10:
        """The sets made of the four ``arrays``, which they share; ``more`` fields may follow."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        train = ImageSet(tensors["train_images"], tensors["train_labels"])
        test = ImageSet(tensors["test_images"], tensors["test_labels"])
        return cls(train, test, source, *more)

    def caption(self, text: str) -> str:
        """``text`` for a figure, followed by " (stand-in data)" where that is the truth."""
        return f"{text} (stand-in data)" if self.stand_in else text


def normalize(images: Tensor, mean: Tensor = MEAN, std: Tensor = STD) -> Tensor:
    """``(images / 255 - mean) / std`` for uint8 images, ``(images - mean) / std`` for floats.

    Args:
        images: (..., 3, height, width), uint8 in 0…255 or floats in 0…1.
        mean, std: (3,), of the channels of images in 0…1.

    Returns:
        float32, same shape and device.
    """
    mean = mean.to(images.device, torch.float32).view(-1, 1, 1)
    std = std.to(images.device, torch.float32).view(-1, 1, 1)
    if images.dtype == torch.uint8:
        # images * a − b, with the division by 255 inside a: one pass over the memory less.
        return images * (1 / (255 * std)) - mean / std
    return (images.float() - mean) / std


def denormalize(images: Tensor, mean: Tensor = MEAN, std: Tensor = STD) -> Tensor:
    """``images * std + mean``, clipped to 0…1: the inverse of `normalize`, for pictures.

    Args:
        images: (..., 3, height, width), normalised floats.
    """
    mean = mean.to(images.device, torch.float32).view(-1, 1, 1)
    std = std.to(images.device, torch.float32).view(-1, 1, 1)
    return (images.float() * std + mean).clamp(0, 1)


def seeded_generator(*numbers: int) -> torch.Generator:
    """A CPU generator whose state depends on all the ``numbers`` and on nothing else."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _stratified(labels: Tensor, n: int, seed: int) -> Tensor:
    """``n`` sorted indices into ``labels``; each class gives its share, to within one image."""
    if not 0 < n <= len(labels):
        raise DataError(f"{n} images were asked for; the set holds {len(labels)}.")
    generator = seeded_generator(seed)
    # Shuffle within each class and lay the classes out evenly on a line from 0 to 1: the
    # first n images on that line then hold every class in proportion.
    order = torch.randperm(len(labels), generator=generator)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels.cpu()[order] == label.cpu()]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    place += 1e-9 * torch.rand(len(labels), generator=generator)  # who gives the odd image
    return place.argsort()[:n].sort().values.to(labels.device)


def split(image_set: ImageSet, held_out: int | float, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Divide a set at random into (the rest, held out), each with all classes in proportion.

    Args:
        held_out: how many images to hold out (int), or which fraction of the set (0 < float < 1).
    """
    n = round(held_out * len(image_set)) if isinstance(held_out, float) else held_out
    if not 0 < n < len(image_set):
        raise DataError(
            f"held_out is {held_out!r}; expected 1 to {len(image_set) - 1} images, "
            "or a fraction between 0 and 1."
        )
    held = torch.zeros(len(image_set), dtype=torch.bool, device=image_set.labels.device)
    held[_stratified(image_set.labels, n, seed)] = True
    return image_set.select(~held), image_set.select(held)
