"""CIFAR-10 in files on this machine: found by name, and decoded when no cached copy is there.

The official archive and its extracted folder are read by ``torchvision.datasets.CIFAR10``. It
unpickles a batch only if the MD5 is the published one: a pickle can run any code, so a changed
file is never opened. Image trees and zips of them are read here.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from shipyard.data.download import Archive, md5_of
from shipyard.data.sets import CLASSES, Arrays
from shipyard.errors import DataError

MAX_BYTES = 2**20  # of one image: 32×32 pixels have 3 kB
BATCHES_FOLDER = "cifar-10-batches-py"  # what the official archive holds
IMAGES_ZIP = "cifar10-images.zip"


@dataclass(frozen=True)
class Source:
    """Something that can be decoded. ``stamp`` changes when its files do."""

    path: Path
    name: str
    stamp: str
    decode: Callable[[bool], Arrays] = field(repr=False)


def find(path: Path, archive: Archive) -> Source | None:
    """The best source at ``path``, or None if nothing there looks like one."""
    if path.is_file():
        if path.name.endswith((".tar.gz", ".tgz")):
            return archive_source(path, archive)
        if path.suffix.lower() == ".zip":
            return _zip_source(path)
        raise DataError(f"{path} is no source of CIFAR-10. Expected: {expected(archive)}.")
    if (path / archive.name).is_file():
        return archive_source(path / archive.name, archive)
    for folder in (path / BATCHES_FOLDER, path):
        if folder.is_dir() and (folder.name == BATCHES_FOLDER or (folder / "test_batch").is_file()):
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


def expected(archive: Archive) -> str:
    """What `find` looks for, in words."""
    return (
        f"{archive.name}, its extracted folder {BATCHES_FOLDER}/, an image tree "
        "(train/<class>/*.png or *.jpg, and test/…), or a zip of such a tree"
    )


def _stamp(base: Path, names: Iterable[str]) -> str:
    """Hash of the place, names, sizes and times of modification of the files ``base/name``."""
    digest = hashlib.sha256(os.fsencode(base.resolve()))
    for name in names:
        status = os.stat(f"{base}/{name}")
        line = f"{name}|{status.st_size}|{status.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))  # a name need not be UTF-8
    return digest.hexdigest()


def _listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


# --- The official archive ---------------------------------------------------------------------


def archive_source(path: Path, archive: Archive) -> Source:
    """The archive at ``path``, which must be the one described by ``archive``."""

    def decode(verbose: bool) -> Arrays:
        _must_match(path, archive.md5, archive.size)
        from torchvision.datasets.utils import extract_archive

        with tempfile.TemporaryDirectory(prefix="shipyard-") as folder:
            try:
                extract_archive(str(path), folder)
            except OSError as error:
                raise DataError(
                    f"{path} cannot be unpacked in {tempfile.gettempdir()}: {error}. It takes "
                    "190 MB there for a moment: free some space, or set TMPDIR to a folder "
                    "with room."
                ) from error
            return _read_batches(Path(folder, BATCHES_FOLDER), archive)

    name = f"official archive {path.name}"
    return Source(path, name, archive.md5 + _stamp(path.parent, [path.name]), decode)


def _batches_source(folder: Path, archive: Archive) -> Source:
    name = f"official batches in {BATCHES_FOLDER}"
    stamp = archive.md5 + _stamp(folder, _listing(folder))
    return Source(folder, name, stamp, lambda verbose: _read_batches(folder, archive))


def _read_batches(folder: Path, archive: Archive) -> Arrays:
    """The four arrays from an extracted archive, checked and read by torchvision."""
    from torchvision.datasets import CIFAR10  # here: seconds to import, and the cache spares them

    class Batches(CIFAR10):
        base_folder = folder.name

    arrays = {}
    try:
        for part in ("train", "test"):
            batches = Batches(folder.parent, train=part == "train")
            arrays[f"{part}_images"] = np.ascontiguousarray(batches.data.transpose(0, 3, 1, 2))
            arrays[f"{part}_labels"] = np.array(batches.targets, np.int64)
    except RuntimeError as error:  # which says that something is wrong, but not what
        meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
        md5 = dict([*CIFAR10.train_list, *CIFAR10.test_list, meta])
        if missing := [name for name in md5 if not (folder / name).is_file()]:
            raise DataError(
                f"{folder} is incomplete: {', '.join(missing)} missing. "
                f"Extract {archive.name} again; nothing was changed."
            ) from error
        for name in md5:
            _must_match(folder / name, md5[name])
        raise
    return arrays


def _must_match(path: Path, md5: str, size: int | None = None) -> None:
    """Raise `DataError` unless the file has this MD5; ``size`` in bytes tells if it is cut off."""
    found = md5_of(path)
    if found == md5:
        return
    length = path.stat().st_size
    if size and length < size:
        problem = f"is cut short: it has {length:,} of {size:,} bytes"
    else:
        problem = f"is damaged, or another file: it has {length:,} bytes"
    raise DataError(
        f"{path} {problem}, and its MD5 is {found}; expected {md5}. "
        "It was not used, and it was left as it is. Move it away and put the official "
        "file in its place (https://www.cs.toronto.edu/~kriz/cifar.html), or run again without it."
    )


# --- Image trees and zips of them -------------------------------------------------------------

_IMAGE = re.compile(
    r"(?P<top>(?:[^/]+/)?)(?P<part>train|test)/(?P<label>[^/.][^/]*)/[^/.][^/]*\.(?i:png|jpe?g)"
)


def _tree_source(folder: Path) -> Source:
    names = [
        f"{part}/{label}/{name}"
        for part in ("train", "test")
        for label in _listing(folder / part)
        for name in _listing(folder / part / label)
    ]

    def read(name: str) -> bytes:
        status = (folder / name).stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            raise ValueError("it is no ordinary file")
        _require_small(status.st_size)
        return (folder / name).read_bytes()

    def decode(verbose: bool) -> Arrays:
        return decode_images(folder, names, read, verbose)

    return Source(folder, f"images in {shown(folder)}", _stamp(folder, names), decode)


def shown(path: Path) -> str:
    """The last part of ``path``, as text that can be printed."""
    return os.fsencode(path.resolve().name).decode(errors="replace")


def _require_small(size: int) -> None:
    """The size is looked at before anything is read: a member of a zip may unpack to anything."""
    if size > MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes, for an image of 32×32 pixels")


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as a zip ({error}): it is damaged or cut short "
            f"({path.stat().st_size:,} bytes). It was not used, and it was left as it is. "
            "Copy it again from where it came from, or move it away."
        ) from error


def _zip_source(path: Path) -> Source:
    def decode(verbose: bool) -> Arrays:
        with _open_zip(path) as images:

            def read(name: str) -> bytes:
                _require_small(images.getinfo(name).file_size)
                return images.read(name)

            return decode_images(path, images.namelist(), read, verbose)

    return Source(path, f"images in {shown(path)}", _stamp(path.parent, [path.name]), decode)


def decode_images(
    path: Path, names: list[str], read: Callable[[str], bytes], verbose: bool
) -> Arrays:
    """Decode ``train/<class>/*`` and ``test/<class>/*`` (32×32, PNG or JPEG), sorted by name."""
    found = [match for name in sorted(names) if (match := _IMAGE.fullmatch(name))]
    found = [match for match in found if match["top"] != "__MACOSX/"]
    arrays = {}
    progress = tqdm(
        total=len(found),
        desc=f"Decoding {shown(path)}",
        unit="image",
        disable=not verbose,
        leave=False,
    )
    with progress:
        for part in ("train", "test"):
            files = [match for match in found if match["part"] == part]
            labels = {match["label"] for match in files}
            if labels != set(CLASSES):
                holds = f"holds the folders {sorted(labels)}" if labels else "is missing or empty"
                raise DataError(
                    f"{path}: {part}/ {holds}; expected one folder of PNG or JPEG images "
                    f"for each class: {', '.join(CLASSES)}. Nothing was changed."
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
    except Exception as error:  # a hostile image or zip can raise nearly anything in its decoder
        raise DataError(
            f"{path}: {name} cannot be used ({error}); expected a whole PNG or JPEG image of "
            "32×32 pixels. Nothing was used and nothing was changed. Copy the data again."
        ) from error
