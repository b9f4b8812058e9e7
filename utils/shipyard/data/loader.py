"""Batches cut from whole tensors, in a seeded order that can be taken up anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from shipyard.data.sets import MEAN, STD, ImageSet, normalize, seeded_generator
from shipyard.errors import DataError

Transform = Callable[[Tensor, torch.Generator], Tensor]


class BatchLoader:
    """Batches (float images normalised, labels), cut from whole tensors: no workers, no copies.

    The order of epoch n depends on (seed, n) alone, and the randomness of ``transform`` on
    (seed, n, index of the batch): an epoch can be taken up again in its middle.

    Args:
        image_set: batches are made on the device that holds it.
        batch_size: images per batch; the last batch may be shorter.
        shuffle: new random order in each epoch. `set_epoch` says which epoch it is; without
            it every pass is epoch 0.
        transform: ``transform(images, generator)`` on uint8 images (batch, 3, height, width)
            before they are normalised, such as `random_crop_flip`.
        drop_last: leave out a short last batch.
        mean, std: (3,), for `normalize`.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        transform: Transform | None = None,
        drop_last: bool = False,
        mean: Tensor = MEAN,
        std: Tensor = STD,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise DataError(f"batch_size is {batch_size!r}; expected a whole number from 1 up.")
        self.image_set = image_set
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.transform = transform
        self.drop_last = drop_last
        self.mean, self.std = mean, std
        self.epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.image_set), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def set_epoch(self, epoch: int) -> None:
        """Make the next passes those of ``epoch`` (0, 1, 2, …): order and augmentation."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Indices (N,) into the set, in the order of this epoch."""
        if not self.shuffle:
            return torch.arange(len(self.image_set))
        generator = seeded_generator(self.seed, self.epoch)
        return torch.randperm(len(self.image_set), generator=generator)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of this epoch from number ``start`` on (after a crash, for instance)."""
        epoch = self.epoch
        order = self.order().to(self.image_set.labels.device)
        for index in range(start, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            images, labels = self.image_set[chosen]
            if self.transform is not None:
                images = self.transform(images, seeded_generator(self.seed, epoch, index))
            yield normalize(images, self.mean, self.std), labels


def random_crop_flip(padding: int = 4, flip: float = 0.5) -> Transform:
    """The usual augmentation of CIFAR-10: pad with black, cut out at random, mirror at random.

    Args:
        padding: pixels on every side; the cut-out keeps the size of the image.
        flip: probability of mirroring left and right.

    Returns:
        ``transform(images, generator)`` for (batch, channels, height, width), every image with
        its own offset and its own flip, all in one gather.
    """

    def transform(images: Tensor, generator: torch.Generator) -> Tensor:
        n, channels, height, width = images.shape
        top = torch.randint(2 * padding + 1, (n, 1), generator=generator)
        left = torch.randint(2 * padding + 1, (n, 1), generator=generator)
        mirrored = torch.rand((n, 1), generator=generator) < flip
        across = torch.arange(width)
        rows = top + torch.arange(height)  # (n, height)
        columns = left + torch.where(mirrored, width - 1 - across, across)  # (n, width)
        padded = F.pad(images, (padding,) * 4)
        # Where each pixel of the result lies in its padded image, read row by row.
        at = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (n, height, width)
        at = at.to(images.device).view(n, 1, -1).expand(n, channels, -1)
        return padded.flatten(2).gather(2, at).view(images.shape)

    return transform
