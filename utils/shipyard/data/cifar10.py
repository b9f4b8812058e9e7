"""CIFAR-10 from the first of three places that has it.

1. Files on this machine: the official archive, its extracted folder, or an image tree
   (``train/<class>/*.png``), as a folder or inside a zip;
2. the official archive, downloaded and checked;
3. the stand-in: generated pictures with the same shapes, always labelled as such.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from shipyard import runtime
from shipyard.data import cache, sources, stand_in
from shipyard.data.download import OFFICIAL, Archive, fetch
from shipyard.data.sets import Cifar10
from shipyard.errors import DataError, DownloadError


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
        return _report(stand_in.load_stand_in(verbose), verbose)

    allowed, asked = _download_choice(download)
    folders = _search_folders() if str(root) == "auto" else [_checked_path(root, asked)]
    for folder in folders:
        try:
            source = sources.find(folder, archive)
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
            return _report(_load(sources.archive_source(target, archive), verbose), verbose)
        except DownloadError as error:
            if asked:
                raise
            why = f"no CIFAR-10 was found, and the download failed ({error})"
    if str(root) != "auto":
        raise DataError(
            f"{folders[0]} holds no CIFAR-10. Expected in it: {sources.expected(archive)}. "
            'Put one of these there, or use "auto", or "stand-in" for generated pictures.'
        )
    advice = f"{why}; for the real images put {archive.name} or {sources.IMAGES_ZIP} into data/"
    return _report(stand_in.load_stand_in(verbose), verbose, advice)


def _report(data: Cifar10, verbose: bool, note: str = "") -> Cifar10:
    if verbose:
        counts = f"{len(data.train):,} train and {len(data.test):,} test images"
        print(f"Data: {data.source}, {counts}." + (f" Why: {note}." if note else ""))
    return data


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
    why = ""
    try:
        path = Path(root).expanduser()
        usable = path.is_dir() or path.is_file() or (may_be_made and not path.exists())
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, a NUL inside
        usable, why = False, f" ({error})"
    if not str(root).strip() or not usable:
        raise DataError(
            f'There is no data at {str(root)!r}{why}. Expected: "auto", "stand-in", or the path '
            "of an archive, a zip or a folder that exists."
        )
    return path


def _search_folders() -> list[Path]:
    repository = runtime.repository_root()
    folders = [repository / "data"]
    if setting := os.environ.get("SHIPYARD_DATA"):
        # A relative path may be meant from the repository: a notebook runs in notebooks/.
        try:
            chosen = _checked_path(repository / setting)
        except DataError:
            chosen = None
        try:
            chosen = chosen or _checked_path(setting)
        except DataError as error:
            raise DataError(f"SHIPYARD_DATA is wrong. {error}") from None
        folders.insert(0, chosen)
    return folders


def _load(source: sources.Source, verbose: bool) -> Cifar10:
    key = hashlib.sha256(f"{cache.VERSION}|{source.name}|{source.stamp}".encode()).hexdigest()
    arrays = cache.cached(f"cifar10-{key[:16]}", lambda: source.decode(verbose), verbose)
    whole = (len(arrays["train_labels"]), len(arrays["test_labels"])) == (50_000, 10_000)
    return Cifar10.of(arrays, f"{'' if whole else 'a part of '}CIFAR-10 ({source.name})")
