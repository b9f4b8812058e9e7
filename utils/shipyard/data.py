"""CIFAR-10 from wherever it can be had, and batches of it.

`load_cifar10` goes down a ladder and says on which rung it stopped:

1. files on this machine: the official archive, its extracted folder, or an image tree
   (``train/<class>/*.png``), as a folder or inside a zip;
2. the official archive, downloaded and checked;
3. the stand-in: generated pictures with the same shapes, always labelled as such.

A damaged or wrong file is never used and never deleted: `DataError` says how to mend it.

Source of the data: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import tarfile
import threading
import time
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from shipyard import runtime

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

STAND_IN_CLASSES = (
    "disc",
    "ring",
    "square",
    "frame",
    "triangle",
    "cross",
    "horizontal stripes",
    "vertical stripes",
    "checkerboard",
    "dots",
)
STAND_IN_SOURCE = "stand-in data (generated; not CIFAR-10)"

Transform = Callable[[Tensor, torch.Generator], Tensor]
Arrays = dict[str, np.ndarray]  # train_images, train_labels, test_images, test_labels


class DataError(runtime.ShipyardError):
    """The data cannot be used as asked; the message names the file and how to mend it."""


class DownloadError(DataError):
    """The archive could not be fetched: no network, a refused request, a broken connection."""


# --- The sets ---------------------------------------------------------------------------------


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


def _generator(*numbers: int) -> torch.Generator:
    """A CPU generator whose state depends on all the ``numbers`` and on nothing else."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _stratified(labels: Tensor, n: int, seed: int) -> Tensor:
    """``n`` sorted indices into ``labels``; each class gives its share, to within one image."""
    if not 0 < n <= len(labels):
        raise DataError(f"{n} images were asked for; the set holds {len(labels)}.")
    generator = _generator(seed)
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


# --- Batches ----------------------------------------------------------------------------------


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
        generator = _generator(self.seed, self.epoch)
        return torch.randperm(len(self.image_set), generator=generator)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of this epoch from number ``start`` on (after a crash, for instance)."""
        epoch = self.epoch
        order = self.order().to(self.image_set.labels.device)
        for index in range(start, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            images, labels = self.image_set[chosen]
            if self.transform is not None:
                images = self.transform(images, _generator(self.seed, epoch, index))
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


# --- The ladder -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Archive:
    """What a CIFAR-10 archive must be: its address, hash and size, and the hash of each part."""

    url: str
    md5: str
    size: int
    train: dict[str, str]  # file name -> MD5
    test: dict[str, str]
    folder: str = "cifar-10-batches-py"

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


# Address and hashes as published at https://www.cs.toronto.edu/~kriz/cifar.html (archive) and
# in torchvision/datasets/cifar.py (parts).
OFFICIAL = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    size=170_498_071,
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
)
IMAGES_ZIP = "cifar10-images.zip"
CACHE_VERSION = 1  # raise it when decoding changes


def load_cifar10(
    root: str | os.PathLike = "auto",
    download: bool | None = None,
    verbose: bool = True,
    *,
    archive: Archive = OFFICIAL,
) -> Cifar10:
    """CIFAR-10 from the first source that is there; ``.source`` says which one it was.

    Args:
        root: "auto" looks in ``$SHIPYARD_DATA``, then in ``data/`` of the repository. A path
            (archive, zip or folder) uses exactly that. "stand-in" generates pictures.
        download: may the official archive be fetched when no local source is found? True:
            yes, and a failure is an error. False: no. None: as ``$SHIPYARD_DOWNLOAD`` says
            ("1" or "0"), else try once, except where ``CI=true``, and fall back to the
            stand-in.
        verbose: print one line about the source, and show progress bars.
        archive: what the official archive must be (for a mirror, and for tests).

    Raises:
        DataError: a file that was found is damaged or wrong, ``root`` does not exist, or a
            download that was asked for failed. Nothing is deleted.
    """
    if str(root) == "stand-in":
        return _report(_load_stand_in(verbose), verbose)

    allowed, asked = _download_choice(download)
    folders = _search_folders() if str(root) == "auto" else [_checked_path(root, asked)]
    for folder in folders:
        try:
            source = _find(folder, archive)
            data = _load(source, verbose) if source else None
        except OSError as error:
            raise DataError(f"{folder} cannot be read: {error}. Nothing was changed.") from error
        if data is not None:
            return _report(data, verbose)

    target = folders[-1] / archive.name
    why = "no CIFAR-10 was found" + ("" if allowed else ", and downloads are off")
    if allowed and (asked or str(root) == "auto"):
        try:
            fetch(archive.url, target, archive.md5, verbose=verbose)
            return _report(_load(_archive_source(target, archive), verbose), verbose)
        except DownloadError as error:
            if asked:
                raise
            why = f"no CIFAR-10 was found, and the download failed ({error})"
    if str(root) != "auto":
        raise DataError(
            f"{folders[0]} holds no CIFAR-10. Expected in it: {_expected(archive)}. "
            'Put one of these there, or use "auto", or "stand-in" for generated pictures.'
        )
    advice = f"{why}; for the real images put {archive.name} or {IMAGES_ZIP} into data/"
    return _report(_load_stand_in(verbose), verbose, advice)


def _report(data: Cifar10, verbose: bool, note: str = "") -> Cifar10:
    if verbose:
        counts = f"{len(data.train):,} train and {len(data.test):,} test images"
        print(f"Data: {data.source}, {counts}." + (f" Why: {note}." if note else ""))
    return data


def _expected(archive: Archive) -> str:
    return (
        f"{archive.name}, its extracted folder {archive.folder}/, an image tree "
        "(train/<class>/*.png or *.jpg, and test/…), or a zip of such a tree"
    )


def _download_choice(download: bool | None) -> tuple[bool, bool]:
    """(may we use the network, was that asked for in so many words)"""
    if download is None:
        setting = os.environ.get("SHIPYARD_DOWNLOAD", "")
        if setting not in ("", "0", "1"):
            raise DataError(f"SHIPYARD_DOWNLOAD is {setting!r}; expected 1 (yes) or 0 (no).")
        if not setting:
            return os.environ.get("CI", "").lower() not in ("true", "1"), False
        download = setting == "1"
    return download, download


def _checked_path(root: str | os.PathLike, may_be_made: bool = False) -> Path:
    path = Path(root).expanduser()
    if not str(root).strip() or not (path.exists() or may_be_made):
        raise DataError(
            f'There is no data at {str(root)!r}. Expected: "auto", "stand-in", or the path '
            "of an archive, a zip or a folder that exists."
        )
    return path


def _search_folders() -> list[Path]:
    repository = runtime.repository_root()
    folders = [repository / "data"]
    if setting := os.environ.get("SHIPYARD_DATA"):
        # A relative path may be meant from the repository: a notebook runs in notebooks/.
        from_repository = repository / Path(setting).expanduser()
        try:
            chosen = from_repository if from_repository.exists() else _checked_path(setting)
        except DataError as error:
            raise DataError(f"SHIPYARD_DATA is wrong. {error}") from None
        folders.insert(0, chosen)
    return folders


# --- Sources on this machine ------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Something that can be decoded. ``stamp`` changes when its files do."""

    path: Path
    name: str
    stamp: str
    decode: Callable[[bool], Arrays] = field(repr=False)


def _find(path: Path, archive: Archive) -> _Source | None:
    """The best source at ``path``, or None if nothing there looks like one."""
    if path.is_file():
        if path.name.endswith((".tar.gz", ".tgz")):
            return _archive_source(path, archive)
        if path.suffix.lower() == ".zip":
            return _zip_source(path)
        raise DataError(f"{path} is no source of CIFAR-10. Expected: {_expected(archive)}.")
    if (path / archive.name).is_file():
        return _archive_source(path / archive.name, archive)
    for folder in (path / archive.folder, path):
        if folder.name == archive.folder and folder.is_dir():
            return _batches_source(folder, archive)
        if all((folder / part).is_file() for part in archive.train):
            return _batches_source(folder, archive)
    if any((path / part / label).is_dir() for part in ("train", "test") for label in CLASSES):
        return _tree_source(path)
    if (path / IMAGES_ZIP).is_file():
        return _zip_source(path / IMAGES_ZIP)
    for file in sorted(path.glob("*.zip")):
        names = _open_zip(file).namelist()
        if {found["part"] for found in map(_IMAGE.fullmatch, names) if found} == {"train", "test"}:
            return _zip_source(file)
    return None


def _stamp(base: Path, names: Iterable[str]) -> str:
    """Hash of the place, names, sizes and times of modification of the files ``base/name``."""
    digest = hashlib.sha256(str(base.resolve()).encode())
    for name in names:
        status = os.stat(f"{base}/{name}")
        digest.update(f"{name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _load(source: _Source, verbose: bool) -> Cifar10:
    key = hashlib.sha256(f"{CACHE_VERSION}|{source.name}|{source.stamp}".encode()).hexdigest()
    arrays = _cached(f"cifar10-{key[:16]}", lambda: source.decode(verbose), verbose)
    train, test = _image_sets(arrays)
    name = f"CIFAR-10 ({source.name})"
    if (len(train), len(test)) != (50_000, 10_000):
        name = f"a part of CIFAR-10 ({source.name})"
    return Cifar10(train, test, name)


def _image_sets(arrays: Arrays) -> tuple[ImageSet, ImageSet]:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return (
        ImageSet(tensors["train_images"], tensors["train_labels"]),
        ImageSet(tensors["test_images"], tensors["test_labels"]),
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _must_match(path: Path, found: str, expected: str, size: int | None = None) -> None:
    if found == expected:
        return
    length = path.stat().st_size
    if size and length < size:
        problem = f"is cut short: it has {length:,} of {size:,} bytes"
    else:
        problem = f"is damaged, or another file: it has {length:,} bytes"
    raise DataError(
        f"{path} {problem}, and its MD5 is {found}; expected {expected}. "
        "It was not used, and it was left as it is. Move it away and put the official "
        "file in its place (https://www.cs.toronto.edu/~kriz/cifar.html), or run again without it."
    )


def _archive_source(path: Path, archive: Archive) -> _Source:
    def decode(verbose: bool) -> Arrays:
        _must_match(path, _md5(path), archive.md5, archive.size)
        wanted = {**archive.train, **archive.test}
        contents = {}
        try:
            with tarfile.open(path, "r:gz") as tar:
                for member in tar:
                    name = member.name.rsplit("/", 1)[-1]
                    if name in wanted and member.isfile():
                        contents[name] = tar.extractfile(member).read()
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise DataError(f"{path} cannot be read: {error}. It was left as it is.") from error
        return _decode_batches(path, contents, archive)

    name = f"official archive {path.name}"
    return _Source(path, name, archive.md5 + _stamp(path.parent, [path.name]), decode)


def _batches_source(folder: Path, archive: Archive) -> _Source:
    files = {name: folder / name for name in (*archive.train, *archive.test)}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        raise DataError(
            f"{folder} is incomplete: {', '.join(missing)} missing. "
            f"Extract {archive.name} again; nothing was changed."
        )
    md5 = {**archive.train, **archive.test}

    def decode(verbose: bool) -> Arrays:
        for name, file in files.items():
            _must_match(file, _md5(file), md5[name])
        contents = {name: file.read_bytes() for name, file in files.items()}
        return _decode_batches(folder, contents, archive)

    stamp = "".join(md5.values()) + _stamp(folder, files)
    return _Source(folder, f"official batches in {archive.folder}", stamp, decode)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dicts, lists, bytes, numbers and NumPy arrays, and refuses everything else.

    A pickle may name any function to be called while it is loaded. The batches of CIFAR-10
    need three.
    """

    ALLOWED = frozenset({"multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"})

    def find_class(self, module: str, name: str) -> object:
        # The files name numpy.core.multiarray; NumPy 2 calls it numpy._core.multiarray.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            short, module = "multiarray", "numpy._core.multiarray"
        else:
            short = module
        if f"{short}.{name}" not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return super().find_class(module, name)


def _decode_batches(path: Path, contents: dict[str, bytes], archive: Archive) -> Arrays:
    """Rows of 3,072 bytes (red, green, blue plane) and lists of labels -> the four arrays."""
    arrays = {}
    for part, names in (("train", archive.train), ("test", archive.test)):
        images, labels = [], []
        for name in names:
            try:
                batch = _ArrayUnpickler(io.BytesIO(contents[name]), encoding="bytes").load()
                rows, row_labels = batch[b"data"], np.asarray(batch[b"labels"], np.int64)
                if rows.dtype != np.uint8 or rows.shape != (len(row_labels), 3072):
                    raise ValueError(f"data is {rows.dtype} of shape {rows.shape}")
                if row_labels.min() < 0 or row_labels.max() > 9:
                    raise ValueError("a label is outside 0…9")
            except Exception as error:  # a pickle can fail with any exception
                raise DataError(
                    f"{path}: {name} is not a batch of CIFAR-10 ({error!r}). "
                    f"Expected data (N, 3072) of uint8 and N labels. It was left as it is."
                ) from error
            images.append(rows)
            labels.append(row_labels)
        arrays[f"{part}_images"] = np.concatenate(images).reshape(-1, 3, 32, 32)
        arrays[f"{part}_labels"] = np.concatenate(labels)
    return arrays


_IMAGE = re.compile(
    r"(?P<top>(?:[^/]+/)?)(?P<part>train|test)/(?P<label>[^/.][^/]*)/[^/.][^/]*\.(?i:png|jpe?g)"
)


def _tree_source(folder: Path) -> _Source:
    names = [
        f"{part}/{label}/{name}"
        for part in ("train", "test")
        for label in _listing(folder / part)
        for name in _listing(folder / part / label)
    ]

    def decode(verbose: bool) -> Arrays:
        return _decode_images(folder, names, lambda name: (folder / name).read_bytes(), verbose)

    return _Source(folder, f"images in {folder.resolve().name}", _stamp(folder, names), decode)


def _listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as a zip ({error}): it is damaged or cut short "
            f"({path.stat().st_size:,} bytes). It was not used, and it was left as it is. "
            "Copy it again from where it came from, or move it away."
        ) from error


def _zip_source(path: Path) -> _Source:
    def decode(verbose: bool) -> Arrays:
        with _open_zip(path) as images:
            return _decode_images(path, images.namelist(), images.read, verbose)

    return _Source(path, f"images in {path.name}", _stamp(path.parent, [path.name]), decode)


def _decode_images(
    path: Path, names: list[str], read: Callable[[str], bytes], verbose: bool
) -> Arrays:
    """Decode ``train/<class>/*`` and ``test/<class>/*`` (32×32, PNG or JPEG), sorted by name."""
    found = [match for name in sorted(names) if (match := _IMAGE.fullmatch(name))]
    found = [match for match in found if match["top"] != "__MACOSX/"]
    arrays = {}
    progress = tqdm(
        total=len(found),
        desc=f"Decoding {path.name}",
        unit="image",
        disable=not verbose,
        leave=False,
    )
    with progress:
        for part in ("train", "test"):
            files = [match for match in found if match["part"] == part]
            labels = {match["label"] for match in files}
            if labels != set(CLASSES):
                raise DataError(
                    f"{path}: {part}/ holds the folders {sorted(labels)}; expected one folder of "
                    f"PNG or JPEG images for each class: {', '.join(CLASSES)}. Nothing was changed."
                )
            images = np.empty((len(files), 32, 32, 3), np.uint8)
            for row, match in zip(images, files, strict=True):
                row[:] = _decode_image(path, match[0], read)
                progress.update()
            arrays[f"{part}_images"] = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
            index = [CLASSES.index(match["label"]) for match in files]
            arrays[f"{part}_labels"] = np.array(index, np.int64)
    return arrays


def _decode_image(path: Path, name: str, read: Callable[[str], bytes]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(read(name)), formats=("PNG", "JPEG")) as image:
            if image.size != (32, 32):
                raise ValueError(f"it is {image.width}×{image.height} pixels")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: {name} cannot be used ({error}); expected a whole PNG or JPEG image of "
            "32×32 pixels. Nothing was used and nothing was changed. Copy the data again."
        ) from error


# --- The cache of decoded arrays --------------------------------------------------------------

_NAMES = ("train_images", "train_labels", "test_images", "test_labels")


def _cached(key: str, build: Callable[[], Arrays], verbose: bool) -> Arrays:
    """``build()``, or what it gave the last time: memory-mapped from ``cache_dir()/key``.

    The folder appears in one step, with all its files. A second process waits for the first.
    Where the cache cannot be written, a warning says so and the arrays stay in memory.
    """
    try:
        folder = runtime.cache_dir() / key
    except OSError as error:
        _warn_uncached(error)
        return build()
    arrays = _read_cache(folder)
    if arrays is not None:
        return arrays
    with _lock(folder.with_name(f"{key}.lock"), verbose) as problem:
        if problem is not None:
            _warn_uncached(problem)
            return build()
        arrays = _read_cache(folder)  # another process may have built it while we waited
        if arrays is not None:
            return arrays
        arrays = build()
        try:
            _write_cache(folder, arrays)
        except OSError as error:
            _warn_uncached(error)
            return arrays
    return _read_cache(folder) or arrays


@contextmanager
def _lock(path: Path, verbose: bool = True) -> Iterator[Exception | None]:
    """Hold the lock ``path``; gives the reason instead where locking is not possible."""
    lock = FileLock(path)
    problem = None
    try:
        try:
            lock.acquire(timeout=0.2)
        except TimeoutError:
            if verbose:
                print("Another process is preparing the data: waiting for it.")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        problem = error
    try:
        yield problem
    finally:
        lock.release()


def _warn_uncached(error: Exception) -> None:
    warnings.warn(
        f"The decoded data could not be cached ({error}). The lesson goes on without a cache, "
        "and the next start decodes the data again. To mend it, free some space, or set "
        "SHIPYARD_CACHE to a folder that can be written.",
        RuntimeWarning,
        stacklevel=2,
    )


def _write_cache(folder: Path, arrays: Arrays) -> None:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        unfinished.mkdir()
        for name, array in arrays.items():
            np.save(unfinished / f"{name}.npy", array)
        checks = {name: zlib.crc32(np.ascontiguousarray(array)) for name, array in arrays.items()}
        (unfinished / "crc32.json").write_text(json.dumps(checks), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged copy
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _read_cache(folder: Path) -> Arrays | None:
    """The arrays in ``folder``, or None where it is missing or damaged."""
    if not folder.is_dir():
        return None
    try:
        checks = json.loads((folder / "crc32.json").read_text(encoding="utf-8"))
        arrays = {}
        for name in _NAMES:
            # "c" is copy-on-write: writing into a tensor never reaches the file.
            arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
            if zlib.crc32(arrays[name]) != checks[name]:
                raise ValueError(f"{name}.npy has changed")
    except (OSError, ValueError, KeyError, EOFError) as error:
        warnings.warn(
            f"The cached copy of the data is damaged ({error}); decoding the data again.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return arrays


# --- Download ---------------------------------------------------------------------------------


class _BrokenOffError(Exception):
    """A download broke off in a way that another try may mend."""


def fetch(
    url: str,
    path: Path,
    md5: str,
    *,
    connect_timeout: float = 4.0,
    read_timeout: float = 15.0,
    minimum_rate: float = 4096.0,
    rate_window: float = 20.0,
    attempts: int = 5,
    backoff: float = 1.0,
    verbose: bool = True,
) -> Path:
    """Download ``url`` to ``path``, which appears only when it is whole and its MD5 is right.

    Until then the bytes are in ``path.part``; a later call goes on from there.

    Args:
        connect_timeout: seconds to wait for a connection; a first failure is final.
        read_timeout: seconds without a byte that count as a stall.
        minimum_rate: bytes per second over ``rate_window`` seconds below which it is a stall.
        attempts: tries in a row that bring nothing before giving up.
        backoff: seconds before the second try, doubled for each one that follows.

    Raises:
        DownloadError: no connection, an HTTP error, too many stalls, or no room to write.
        DataError: the file came, but it is not the one expected; it is kept as
            ``path.rejected``.
    """
    import httpx  # here, because most calls of this module never touch the network

    part = path.with_name(f"{path.name}.part")
    host = urlsplit(url).hostname
    timeout = httpx.Timeout(read_timeout, connect=connect_timeout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{path.parent} cannot be made: {error}") from error
    with _lock(path.with_name(f"{path.name}.lock"), verbose) as problem:
        if problem is not None:
            raise DownloadError(f"{path.parent} cannot be written: {problem}") from problem
        if path.exists():  # another process has just finished
            return path
        if verbose:
            print(f"Downloading {path.name} from {host} (SHIPYARD_DOWNLOAD=0 turns this off).")
        if not urllib.request.getproxies() and not _resolves(host, connect_timeout):
            raise DownloadError(f"no network: the address of {host} was not found")
        resumed, failures = _size(part) > 0, 0
        with httpx.Client(timeout=timeout, follow_redirects=True) as client:
            while True:
                before = _size(part)
                try:
                    _fetch_once(client, url, part, minimum_rate, rate_window, verbose)
                except (httpx.TransportError, _BrokenOffError) as error:
                    connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                    reason = str(error) or type(error).__name__
                    if not connected and before == 0 and failures == 0:
                        raise DownloadError(f"no connection to {host}: {reason}") from error
                    # Whoever gets on, however often the line breaks, is not failing.
                    failures = 1 if _size(part) - before >= 2**16 else failures + 1
                    if failures >= attempts:
                        raise DownloadError(
                            f"{url} broke off {failures} times in a row: {reason}. The "
                            f"{_size(part):,} bytes so far are kept for the next try"
                        ) from error
                    time.sleep(backoff * 2 ** (failures - 1))
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    raise DownloadError(f"{url} cannot be fetched: {error}") from error
                except OSError as error:
                    raise DownloadError(f"{part} cannot be written: {error}") from error
                else:
                    found = _md5(part)
                    if found == md5:
                        part.replace(path)
                        return path
                    if resumed:  # the bytes from an earlier call may have been the bad ones
                        resumed = False
                        part.unlink()
                        continue
                    rejected = path.with_name(f"{path.name}.rejected")
                    part.replace(rejected)
                    raise DataError(
                        f"What came from {url} is not the file expected: {_size(rejected):,} bytes "
                        f"with MD5 {found} instead of {md5}. It was not used; it is kept as "
                        f"{rejected} for a look (some networks send a log-in page instead). "
                        "Run again to try once more, or set SHIPYARD_DOWNLOAD=0."
                    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _resolves(host: str, seconds: float) -> bool:
    """Is there an address for ``host``? The system may take minutes to say no: we don't wait."""
    found = []
    ask = threading.Thread(target=lambda: found.append(_address(host)), daemon=True)
    ask.start()
    ask.join(seconds)
    return any(found)


def _address(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _fetch_once(
    client, url: str, part: Path, minimum_rate: float, rate_window: float, verbose: bool
) -> None:
    """One request: append to ``part`` what it lacks, or begin again where that is not possible."""
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}  # the bytes of the file itself
    if start:
        headers["Range"] = f"bytes={start}-"
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        content_range = response.headers.get("Content-Range", "")
        if status == 416 and start:
            if content_range == f"bytes */{start}":
                return  # nothing is lacking
            part.unlink()
            raise _BrokenOffError("the server has a shorter file than the part kept here")
        if status in (408, 429) or status >= 500:
            raise _BrokenOffError(f"the server answered HTTP {status}")
        if status == 206 and start:
            if not content_range.startswith(f"bytes {start}-"):
                part.unlink()
                raise _BrokenOffError(f"the server sent the wrong range ({content_range!r})")
        elif status == 200:
            start = 0  # the server sends the whole file
        else:
            raise DownloadError(f"{url} was refused: HTTP {status} {response.reason_phrase}")

        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(
            total=total,
            initial=start,
            desc=f"Downloading {url.rsplit('/', 1)[-1]}",
            unit="B",
            unit_scale=True,
            disable=not verbose,
        )
        with bar, part.open("ab" if start else "wb") as file:
            window_start, window_bytes = time.monotonic(), 0
            for chunk in response.iter_raw():
                file.write(chunk)
                bar.update(len(chunk))
                window_bytes += len(chunk)
                seconds = time.monotonic() - window_start
                if seconds >= rate_window:
                    if window_bytes < minimum_rate * seconds:
                        raise _BrokenOffError(
                            f"only {window_bytes / seconds:,.0f} bytes per second"
                        )
                    window_start, window_bytes = time.monotonic(), 0
    if total is not None and _size(part) < total:
        raise _BrokenOffError(f"the connection closed after {_size(part):,} of {total:,} bytes")


# --- The stand-in -----------------------------------------------------------------------------


def _load_stand_in(verbose: bool) -> Cifar10:
    train, test = 10_000, 2_000
    key = f"stand-in-v{CACHE_VERSION}-{train}-{test}"
    arrays = _cached(key, lambda: _draw_sets(train, test, seed=0), verbose)
    return Cifar10(*_image_sets(arrays), STAND_IN_SOURCE, True, STAND_IN_CLASSES)


def generate_stand_in(train: int = 10_000, test: int = 2_000, seed: int = 0) -> Cifar10:
    """Ten classes of generated 32×32 colour pictures, told apart by shape and texture alone.

    Colours, position, size, brightness, clutter and noise are drawn in the same way for every
    class, so that no single pixel says much. Same arguments, same pictures.
    """
    arrays = _draw_sets(train, test, seed)
    return Cifar10(*_image_sets(arrays), STAND_IN_SOURCE, True, STAND_IN_CLASSES)


def _draw_sets(train: int, test: int, seed: int) -> Arrays:
    arrays = {}
    for part, n in (("train", train), ("test", test)):
        rng = np.random.default_rng([seed, part == "test"])
        labels = rng.permutation(np.arange(n, dtype=np.int64) % 10)
        # Small groups stay in the processor's cache.
        images = [_draw(labels[i : i + 500], rng) for i in range(0, n, 500)]
        arrays[f"{part}_images"] = np.concatenate(images)
        arrays[f"{part}_labels"] = labels
    return arrays


def _draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures (N, 3, 32, 32) of uint8, one for each label (N,)."""
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (n, *shape)).astype(np.float32)

    def local_axes(turn: float, reach: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (N, 32, 32) in pixels around random centres, turned by random angles."""
        y, x = np.mgrid[-15.5:16, -15.5:16].astype(np.float32)
        x, y = x - uniform(-reach, reach, 1, 1), y - uniform(-reach, reach, 1, 1)
        angle = uniform(-turn, turn, 1, 1)
        return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)

    def paint(picture: np.ndarray, inside: np.ndarray, colour: np.ndarray) -> None:
        """Lay ``colour`` (N, 3) over the pixels where the distance ``inside`` is positive."""
        alpha = np.clip(inside + 0.5, 0, 1)[:, None]
        picture += alpha * (colour[:, :, None, None] - picture)

    def speck() -> np.ndarray:
        u, v = local_axes(np.pi, 16)
        return 1 - np.hypot(u / uniform(1, 5, 1, 1), v / uniform(1, 2, 1, 1))

    blobs = torch.from_numpy(uniform(0.1, 0.9, 3, 3, 3))
    picture = F.interpolate(blobs, (32, 32), mode="bilinear", align_corners=True).numpy()
    for _ in range(4):
        paint(picture, speck(), uniform(0, 1, 3))
    u, v = local_axes(np.deg2rad(12), 5)
    inside = np.empty_like(u)
    size, period, phase = uniform(7, 10, 1, 1), uniform(4, 7, 1, 1), uniform(0, 6.28, 2, 1, 1)
    for label, shape in enumerate(STAND_IN_CLASSES):
        m = labels == label
        inside[m] = _shape(shape, u[m], v[m], size[m], period[m], phase[m])
    # Of three colours the one farthest from the background: the shape can be seen.
    colours = uniform(0, 1, 3, 3)
    contrast = np.abs(colours - picture.mean(axis=(2, 3))[:, None]).sum(axis=2)
    paint(picture, inside, colours[np.arange(n), contrast.argmax(axis=1)])
    for _ in range(2):
        paint(picture, speck(), uniform(0, 1, 3))
    picture += 0.08 * rng.standard_normal(picture.shape, dtype=np.float32)
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def _shape(
    name: str, u: np.ndarray, v: np.ndarray, size: np.ndarray, period: np.ndarray, phase: np.ndarray
) -> np.ndarray:
    """Distance in pixels to the edge of the shape, positive inside, at the points (u, v)."""
    radius = np.hypot(u, v)
    box = np.maximum(np.abs(u), np.abs(v))
    line = 1.2
    if name == "disc":
        return size - radius
    if name == "ring":
        return line - np.abs(radius - size)
    if name == "square":
        return 0.9 * size - box
    if name == "frame":
        return line - np.abs(box - 0.9 * size)
    if name == "triangle":
        return 0.6 * size - np.maximum(v, 0.87 * np.abs(u) - 0.5 * v)
    if name == "cross":
        bar = 0.3 * size
        return np.minimum(size - box, bar - np.minimum(np.abs(u), np.abs(v)))
    # Textures fill a disc; a wave of this period has edges about period / 4 from its crest.
    a = np.sin(2 * np.pi * u / period + phase[:, 0])
    b = np.sin(2 * np.pi * v / period + phase[:, 1])
    wave = {
        "horizontal stripes": b,
        "vertical stripes": a,
        "checkerboard": 2 * a * b,
        "dots": a + b - 0.6,
    }[name]
    return np.minimum(1.2 * size - radius, wave * period / 4)
