"""CIFAR-10 from every source, its cache, downloads that go wrong, the stand-in, and batches."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from data_servers import Behaviour, closed_port, serve
from shipyard import data
from shipyard.data import BatchLoader, DataError, DownloadError, ImageSet, load_cifar10
from shipyard.data.sets import Arrays
from shipyard.errors import ShipyardError

REAL_DATA = os.environ.get("SHIPYARD_DATA")  # before the fixture below takes it away
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own working folder, data folder and cache, and knows no proxy."""
    for name in ("SHIPYARD_DATA", "SHIPYARD_DOWNLOAD", "CI", *PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHIPYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


# --- Tiny copies of the data, in each of its forms --------------------------------------------


def python2_batch(rows: np.ndarray, labels: list[int]) -> bytes:
    """A batch as CIFAR-10 has it: a pickle of protocol 2, written by Python 2 (text = bytes)."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    uint8 = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    uint8 += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t"
    array += text(b"b") + b"tR(" + number(1) + b"(" + b"".join(map(number, rows.shape)) + b"t"
    array += uint8 + b"\x89" + text(rows.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


@dataclasses.dataclass
class Tiny:
    """60 random images: five train batches of 10, a test batch of 10, and the class names."""

    batches: dict[str, bytes]
    archive: data.download.Archive
    packed: bytes
    images: np.ndarray  # (60, 3, 32, 32), the last 10 are the test set
    labels: np.ndarray

    def write_archive(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.archive.name
        path.write_bytes(self.packed)
        return path

    def write_folder(self, folder: Path) -> Path:
        path = folder / data.sources.BATCHES_FOLDER
        path.mkdir(parents=True, exist_ok=True)
        for name, content in self.batches.items():
            (path / name).write_bytes(content)
        return path

    def at(self, url: str) -> data.download.Archive:
        return dataclasses.replace(self.archive, url=url)

    def matches(self, loaded: data.Cifar10) -> bool:
        return (
            np.array_equal(loaded.train.images.numpy(), self.images[:50])
            and np.array_equal(loaded.test.images.numpy(), self.images[50:])
            and loaded.train.labels.tolist() == self.labels[:50].tolist()
            and loaded.test.labels.tolist() == self.labels[50:].tolist()
        )


def pack(batches: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def describe(packed: bytes) -> data.download.Archive:
    url = f"http://127.0.0.1:{closed_port()}/cifar-10-python.tar.gz"
    return data.download.Archive(url, hashlib.md5(packed).hexdigest(), len(packed))


@pytest.fixture(scope="module")
def tiny_files() -> Tiny:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 3, 32, 32), np.uint8)
    labels = np.concatenate([rng.permutation(10) for _ in range(6)])
    batches = {"batches.meta": pickle.dumps({"label_names": list(data.CLASSES)}, protocol=2)}
    for i, (name, _) in enumerate(CIFAR10.train_list + CIFAR10.test_list):
        cut = slice(10 * i, 10 * i + 10)
        batches[name] = python2_batch(images[cut].reshape(10, 3072), labels[cut].tolist())
    packed = pack(batches)
    return Tiny(batches, describe(packed), packed, images, labels)


@pytest.fixture
def tiny(tiny_files: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The tiny copy, whose files torchvision takes for those of CIFAR-10."""
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in tiny_files.batches.items()}
    for parts in ("train_list", "test_list"):
        tiny_list = [(name, md5[name]) for name, _ in getattr(CIFAR10, parts)]
        monkeypatch.setattr(CIFAR10, parts, tiny_list)
    monkeypatch.setitem(CIFAR10.meta, "md5", md5["batches.meta"])
    return tiny_files


def write_tree(folder: Path, per_class: int = 2, kind: str = "png") -> dict[str, np.ndarray]:
    """An image tree; returns each file's pixels (32, 32, 3) by its path."""
    rng = np.random.default_rng(1)
    written = {}
    for part in ("train", "test"):
        for label in data.CLASSES:
            (folder / part / label).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                name = f"{part}/{label}/{i:04}.{kind}"
                Image.fromarray(pixels).save(folder / name)
                written[name] = pixels
    return written


def write_zip(path: Path, per_class: int = 2, top: str = "") -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        written = write_tree(Path(folder), per_class)
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for name in reversed(written):  # an order that must not matter
                archive.write(Path(folder) / name, top + name)
    return written


def same_as_tree(loaded: data.Cifar10, written: dict[str, np.ndarray]) -> bool:
    for part, image_set in (("train", loaded.train), ("test", loaded.test)):
        names = sorted(name for name in written if name.startswith(part))
        pixels = np.stack([written[name] for name in names]).transpose(0, 3, 1, 2)
        labels = [data.CLASSES.index(name.split("/")[1]) for name in names]
        if not np.array_equal(image_set.images.numpy(), pixels):
            return False
        if image_set.labels.tolist() != labels:
            return False
    return True


def refuse_to_decode(*_: object) -> None:
    raise AssertionError("decoded again")


# --- Sources on this machine ------------------------------------------------------------------


def test_the_official_archive_in_the_data_folder_is_found_and_read(tiny, tmp_path, capsys):
    tiny.write_archive(tmp_path / "data")
    loaded = load_cifar10(archive=tiny.archive)
    assert tiny.matches(loaded)
    assert not loaded.stand_in
    assert loaded.classes == data.CLASSES
    assert "official archive" in loaded.source
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert loaded.source in printed


def test_shipyard_data_comes_before_the_data_folder(tiny, tmp_path, monkeypatch):
    write_zip(tmp_path / "data" / "cifar10-images.zip")
    tiny.write_archive(tmp_path / "elsewhere")
    monkeypatch.setenv("SHIPYARD_DATA", str(tmp_path / "elsewhere"))
    assert tiny.matches(load_cifar10(archive=tiny.archive, verbose=False))


def test_the_extracted_folder_is_read(tiny, tmp_path):
    folder = tiny.write_folder(tmp_path / "data")
    assert tiny.matches(load_cifar10(archive=tiny.archive, verbose=False))
    assert tiny.matches(load_cifar10(folder, archive=tiny.archive, verbose=False))


def test_a_set_that_is_smaller_than_cifar10_is_called_a_part_of_it(tmp_path):
    write_zip(tmp_path / "some.zip")
    assert load_cifar10(tmp_path / "some.zip", verbose=False).source.startswith(
        "a part of CIFAR-10"
    )


@pytest.mark.parametrize("kind", ["png", "jpg", "JPEG"])
def test_an_image_tree_is_read_in_the_order_of_its_names(tmp_path, kind):
    written = write_tree(tmp_path / "data", kind=kind)
    (tmp_path / "data" / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "data" / "train" / "cat" / ".hidden.png").write_bytes(b"")
    for name in written:  # JPEG changes pixels: compare with what is in the files
        written[name] = np.asarray(Image.open(tmp_path / "data" / name).convert("RGB"))
    assert same_as_tree(load_cifar10(verbose=False), written)


@pytest.mark.parametrize("name", ["cifar10-images.zip", "another.zip"])
@pytest.mark.parametrize("top", ["", "cifar10/"])
def test_a_zip_of_an_image_tree_is_read_without_extracting(tmp_path, name, top):
    written = write_zip(tmp_path / "data" / name, top=top)
    loaded = load_cifar10(verbose=False)
    assert same_as_tree(loaded, written)
    assert [file.name for file in (tmp_path / "data").iterdir()] == [name]
    assert str(tmp_path) not in loaded.source


def test_a_zip_of_something_else_is_passed_over(tmp_path):
    with_other_things = tmp_path / "data" / "a.zip"
    with_other_things.parent.mkdir()
    with zipfile.ZipFile(with_other_things, "w") as archive:
        archive.writestr("readme.txt", "hello")
    written = write_zip(tmp_path / "data" / "b.zip")
    assert same_as_tree(load_cifar10(verbose=False), written)


def test_grey_and_transparent_images_become_rgb(tmp_path):
    write_tree(tmp_path / "data")
    grey = np.random.default_rng(2).integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(grey).save(tmp_path / "data/train/airplane/0000.png")
    loaded = load_cifar10(verbose=False)
    assert np.array_equal(loaded.train.images[0].numpy(), np.stack([grey] * 3))


def test_a_root_that_does_not_exist_is_an_error_that_lists_the_choices(tmp_path):
    with pytest.raises(DataError, match=r"no data at 'standin'.*\"stand-in\""):
        load_cifar10("standin")
    with pytest.raises(DataError, match="no data at ''"):
        load_cifar10("")


def test_a_relative_shipyard_data_holds_in_every_folder_of_the_repository(
    tiny, tmp_path, monkeypatch
):
    notebooks = tmp_path / "repository" / "notebooks"
    notebooks.mkdir(parents=True)
    (tmp_path / "repository" / "pyproject.toml").touch()
    tiny.write_archive(tmp_path / "shared")
    monkeypatch.chdir(notebooks)
    for relative in ("../shared", "../../shared"):  # from the repository, from the notebook
        monkeypatch.setenv("SHIPYARD_DATA", relative)
        assert tiny.matches(load_cifar10(archive=tiny.archive, verbose=False))


def test_a_wrong_shipyard_data_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("SHIPYARD_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match="SHIPYARD_DATA is wrong"):
        load_cifar10()


def test_an_empty_folder_given_by_name_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no CIFAR-10"):
        load_cifar10(tmp_path / "empty")


def test_a_file_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "cifar.csv").write_text("1,2,3")
    with pytest.raises(DataError, match="is no source of CIFAR-10"):
        load_cifar10(tmp_path / "cifar.csv")


# --- Damaged and wrong files are never used and never deleted ---------------------------------


def stops_at(path: Path, **options: object) -> str:
    """`load_cifar10` stops with an error that names ``path``, which stays as it is."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(DataError) as caught:
        load_cifar10(verbose=False, **options)
    assert path.exists()
    assert before is None or path.read_bytes() == before
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_truncated_archive_stops_auto_even_with_a_good_zip_beside_it(tiny, tmp_path):
    path = tiny.write_archive(tmp_path / "data")
    path.write_bytes(tiny.packed[:-1000])
    write_zip(tmp_path / "data" / "cifar10-images.zip")
    message = stops_at(path, archive=tiny.archive)
    assert "cut short" in message
    assert tiny.archive.md5 in message


def test_an_archive_with_the_wrong_hash_is_not_used(tiny, tmp_path):
    path = tiny.write_archive(tmp_path / "data")
    changed = bytearray(tiny.packed)
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    assert "another file" in stops_at(path, archive=tiny.archive)


def test_the_published_hash_is_asked_for_unless_another_is_given(tiny, tmp_path):
    path = tiny.write_archive(tmp_path / "data")
    assert "c58f30108f718f92721af3b95e74349a" in stops_at(path)


def test_a_cached_copy_does_not_hide_a_hash_that_is_now_wrong(tiny, tmp_path):
    path = tiny.write_archive(tmp_path / "data")
    load_cifar10(archive=tiny.archive, verbose=False)
    stops_at(path)


def test_an_extracted_folder_with_a_changed_or_missing_file_is_not_used(tiny, tmp_path):
    folder = tiny.write_folder(tmp_path / "data")
    (folder / "data_batch_3").write_bytes(tiny.batches["data_batch_3"][:-50])
    stops_at(folder / "data_batch_3", archive=tiny.archive)
    (folder / "data_batch_3").unlink()
    assert "data_batch_3 missing" in stops_at(folder, archive=tiny.archive)


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_truncated_zip_is_not_used(tmp_path, keep):
    path = tmp_path / "data" / "cifar10-images.zip"
    write_zip(path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "damaged or cut short" in stops_at(path)


def test_a_zip_with_a_flipped_byte_is_not_used(tmp_path):
    path = tmp_path / "data" / "cifar10-images.zip"
    write_zip(path)
    content = bytearray(path.read_bytes())
    content[3000] ^= 255
    path.write_bytes(content)
    stops_at(path)


def test_a_truncated_image_in_a_tree_is_named(tmp_path):
    write_tree(tmp_path / "data", kind="jpg")
    path = tmp_path / "data" / "train" / "deer" / "0001.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"train/deer/0001\.jpg cannot be used"):
        load_cifar10(verbose=False)


def test_an_image_of_another_size_is_named(tmp_path):
    write_tree(tmp_path / "data")
    Image.new("RGB", (64, 48)).save(tmp_path / "data" / "test" / "ship" / "0000.png")
    with pytest.raises(DataError, match=r"test/ship/0000\.png.*64×48"):
        load_cifar10(verbose=False)


def as_if(pixels: int) -> bytes:
    """A PNG whose header claims ``pixels`` × ``pixels``."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = 2 * pixels.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(400 * 2**20), "it has 419,430,400 bytes"),
        (as_if(60_000), "exceeds limit"),
        (b"", "cannot identify"),
    ],
)
def test_a_zip_with_a_hostile_member_is_refused_at_once(tmp_path, content, message):
    path = tmp_path / "data" / "cifar10-images.zip"
    write_zip(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as images:
        images.writestr("train/airplane/0000.0.png", content)
    tracemalloc.start()
    assert message in stops_at(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(("at", "value", "message"), [(8, 1, "encrypted"), (10, 99, "method")])
def test_a_zip_that_is_encrypted_or_oddly_compressed_is_refused(tmp_path, at, value, message):
    path = tmp_path / "data" / "cifar10-images.zip"
    write_zip(path)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last one in the directory at the end
    content[entry + at] = value
    path.write_bytes(content)
    assert message in stops_at(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_named_pipe_in_a_tree_is_not_waited_for(tmp_path):
    write_tree(tmp_path / "data")
    os.mkfifo(tmp_path / "data" / "train" / "frog" / "9999.png")
    with pytest.raises(DataError, match=r"frog/9999\.png cannot be used \(it is no ordinary file"):
        load_cifar10(verbose=False)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes names that are no UTF-8")
def test_a_folder_whose_name_is_no_utf8_is_read(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    written = write_tree(folder)
    assert same_as_tree(load_cifar10(folder), written)
    assert "caf\N{REPLACEMENT CHARACTER}" in capsys.readouterr().out


@pytest.mark.parametrize("root", ["~nosuchuser/data", "x" * 5000, "a\0b", os.devnull])
@pytest.mark.parametrize("by", ["argument", "variable"])
def test_a_path_that_cannot_be_is_an_error_that_lists_the_choices(root, by, monkeypatch):
    if by == "variable" and "\0" in root:
        pytest.skip("a variable of the environment holds no NUL")
    monkeypatch.setenv("SHIPYARD_DATA", root if by == "variable" else "")
    with pytest.raises(DataError, match="There is no data at"):
        load_cifar10("auto" if by == "variable" else root, download=False)


@pytest.mark.parametrize("lost", ["test", "train/frog"])
def test_a_tree_that_was_extracted_half_way_is_not_used(tmp_path, lost):
    write_tree(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / lost)
    with pytest.raises(DataError, match="expected one folder of PNG or JPEG images for each class"):
        load_cifar10(verbose=False)


def test_a_pickle_that_names_a_function_is_refused_and_not_run(tiny, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    evil = pickle.dumps({"data": Evil(), "labels": []})
    path = tiny.write_folder(tmp_path / "data") / "data_batch_2"
    path.write_bytes(evil)
    stops_at(path, archive=tiny.archive)
    packed = pack({**tiny.batches, "data_batch_2": evil})  # even where the archive is as described
    (tmp_path / "mirror.tar.gz").write_bytes(packed)
    with pytest.raises(DataError, match="data_batch_2 is damaged, or another file"):
        load_cifar10(tmp_path / "mirror.tar.gz", archive=describe(packed), verbose=False)
    assert not (tmp_path / "was-run").exists()


def test_the_archive_that_is_asked_for_is_the_one_that_torchvision_reads():
    assert data.download.OFFICIAL.url == CIFAR10.url
    assert data.download.OFFICIAL.md5 == CIFAR10.tgz_md5
    assert data.sources.BATCHES_FOLDER == CIFAR10.base_folder


def test_a_disk_that_is_full_while_the_archive_is_unpacked_is_reported(tiny, tmp_path, monkeypatch):
    path = tiny.write_archive(tmp_path / "data")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "copyfileobj", full)  # what it writes an extracted file with
        assert "No space left on device" in stops_at(path, archive=tiny.archive)
    assert tiny.matches(load_cifar10(archive=tiny.archive, verbose=False))
    assert list((tmp_path / "scratch").iterdir()) == []


# --- The cache --------------------------------------------------------------------------------


def test_the_second_call_reads_the_cache_and_decodes_nothing(tmp_path, monkeypatch):
    written = write_zip(tmp_path / "data" / "cifar10-images.zip")
    load_cifar10(verbose=False)
    monkeypatch.setattr(data.sources, "decode_images", refuse_to_decode)
    assert same_as_tree(load_cifar10(verbose=False), written)


def test_a_changed_source_is_decoded_again(tmp_path):
    path = tmp_path / "data" / "cifar10-images.zip"
    write_zip(path, per_class=1)
    load_cifar10(verbose=False)
    written = write_zip(path, per_class=3)
    assert same_as_tree(load_cifar10(verbose=False), written)


def test_writing_into_the_tensors_does_not_reach_the_cache(tmp_path):
    written = write_zip(tmp_path / "data" / "cifar10-images.zip")
    load_cifar10(verbose=False).train.images.zero_()
    with warnings.catch_warnings(action="error"):  # a cache that had to be mended warns
        assert same_as_tree(load_cifar10(verbose=False), written)


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone", "no checksums"])
def test_a_damaged_cache_is_noticed_and_made_again(tmp_path, damage):
    written = write_zip(tmp_path / "data" / "cifar10-images.zip")
    load_cifar10(verbose=False)
    (file,) = (tmp_path / "cache").glob("*/train_images.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "gone":
        file.unlink()
    elif damage == "no checksums":
        file.with_name("crc32.json").write_text("[]")
    else:
        file.write_bytes(content if damage == "changed" else content[:-10])
    with pytest.warns(RuntimeWarning, match="cached copy of the data is damaged"):
        assert same_as_tree(load_cifar10(verbose=False), written)
    assert same_as_tree(load_cifar10(verbose=False), written)


def test_the_remains_of_a_killed_process_do_no_harm(tmp_path, monkeypatch):
    written = write_zip(tmp_path / "data" / "cifar10-images.zip")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", killed)
        with pytest.raises(KeyboardInterrupt):
            load_cifar10(verbose=False)
    assert list((tmp_path / "cache").glob("*.unfinished"))
    assert same_as_tree(load_cifar10(verbose=False), written)
    assert not list((tmp_path / "cache").glob("*.unfinished"))


def _load_and_report(barrier, queue) -> None:
    barrier.wait(20)
    loaded = load_cifar10(verbose=False)
    queue.put((os.getpid(), int(loaded.train.images.numpy().sum()), len(loaded.train)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to count the decodings")
def test_two_processes_at_once_decode_once_and_agree(tmp_path, monkeypatch):
    written = write_zip(tmp_path / "data" / "cifar10-images.zip")
    log = tmp_path / "decodings"
    decode = data.sources.decode_images

    def slow_decode(*arguments: object) -> Arrays:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return decode(*arguments)

    monkeypatch.setattr(data.sources, "decode_images", slow_decode)
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_load_and_report, args=(barrier, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(10)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len({pid for pid, *_ in answers}) == 2
    total = sum(int(p.sum()) for name, p in written.items() if name.startswith("train"))
    assert {rest for _, *rest in map(tuple, answers) for rest in [tuple(rest)]} == {(total, 20)}
    assert len(log.read_text().splitlines()) == 1


def test_a_full_disk_is_reported_and_leaves_no_partial_file(tmp_path, monkeypatch):
    written = write_zip(tmp_path / "data" / "cifar10-images.zip")
    save, room = np.save, [2]

    def save_until_full(path: Path, array: np.ndarray) -> None:
        if room[0] == 0:
            path.write_bytes(array.tobytes()[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        room[0] -= 1
        save(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save_until_full)
        with pytest.warns(RuntimeWarning, match="No space left on device.*goes on without a cache"):
            assert same_as_tree(load_cifar10(verbose=False), written)
    left = [file for file in (tmp_path / "cache").rglob("*") if file.suffix != ".lock"]
    assert left == []
    assert same_as_tree(load_cifar10(verbose=False), written)  # once there is room again


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """``folder`` cannot be written; root, who may write everywhere, becomes nobody meanwhile."""
    importlib.import_module("httpx")  # now: nobody may not be allowed to read the library
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(OSError, match="Permission denied"):  # the simulation holds
            (folder / "probe").mkdir()
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)


@pytest.fixture
def open_path(monkeypatch) -> Iterator[Path]:
    """A folder that every user can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        monkeypatch.chdir(path)
        (path / "cache").mkdir()
        monkeypatch.setenv("SHIPYARD_CACHE", str(path / "cache"))
        yield path


needs_seteuid = pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX permissions")


@needs_seteuid
def test_a_read_only_cache_folder_is_reported_and_the_data_still_comes(open_path):
    written = write_zip(open_path / "data" / "cifar10-images.zip")
    with (
        read_only(open_path / "cache"),
        pytest.warns(RuntimeWarning, match="Permission denied.*goes on without a cache"),
    ):
        assert same_as_tree(load_cifar10(verbose=False), written)
    assert list((open_path / "cache").iterdir()) == []


@needs_seteuid
def test_a_read_only_cache_that_is_filled_is_used(open_path, monkeypatch):
    written = write_zip(open_path / "data" / "cifar10-images.zip")
    load_cifar10(verbose=False)
    monkeypatch.setattr(data.sources, "decode_images", refuse_to_decode)
    with read_only(open_path / "cache"):
        assert same_as_tree(load_cifar10(verbose=False), written)


@needs_seteuid
def test_a_cache_folder_that_cannot_be_made_is_reported(open_path, monkeypatch):
    written = write_zip(open_path / "data" / "cifar10-images.zip")
    monkeypatch.setenv("SHIPYARD_CACHE", str(open_path / "cache" / "deeper" / "down"))
    with read_only(open_path / "cache"), pytest.warns(RuntimeWarning, match="without a cache"):
        assert same_as_tree(load_cifar10(verbose=False), written)


@needs_seteuid
def test_a_read_only_data_folder_makes_a_download_fail_in_plain_words(open_path, tiny):
    (open_path / "data").mkdir()
    with (
        serve(Behaviour(tiny.packed)) as url,
        read_only(open_path / "data"),
        pytest.raises(DownloadError, match=r"cannot be written.*Permission denied"),
    ):
        load_cifar10(download=True, archive=tiny.at(url), verbose=False)
    assert list((open_path / "data").iterdir()) == []


# --- Downloads --------------------------------------------------------------------------------


def quick_fetch(url: str, path: Path, md5: str, **options: object) -> Path:
    fast = {"read_timeout": 0.4, "connect_timeout": 1.0, "backoff": 0.01, "attempts": 3}
    limits = data.download.Limits(**{**fast, **options})
    return data.download.fetch(url, path, md5, limits, verbose=False)


def test_a_download_is_checked_kept_and_used(tiny, tmp_path):
    behaviour = Behaviour(tiny.packed)
    with serve(behaviour) as url:
        loaded = load_cifar10(archive=tiny.at(url), verbose=False)
        assert tiny.matches(loaded)
        assert tiny.matches(load_cifar10(archive=tiny.at(url), verbose=False))
    assert len(behaviour.requests) == 1
    assert (tmp_path / "data" / "cifar-10-python.tar.gz").read_bytes() == tiny.packed
    assert not list((tmp_path / "data").glob("*.part"))


def test_two_downloads_at_once_send_one_request(tmp_path):
    behaviour = Behaviour(BODY, break_after=100_000)  # the first is busy for a while
    with serve(behaviour) as url, ThreadPoolExecutor(2) as pool:
        ask = [pool.submit(quick_fetch, url, tmp_path / "x", MD5, backoff=0.5) for _ in range(2)]
        assert [answer.result(20).read_bytes() == BODY for answer in ask] == [True, True]
    assert len(behaviour.requests) == 2  # the one that broke off, and its continuation


def test_a_download_into_a_named_folder_that_does_not_exist_yet(tiny, tmp_path):
    with serve(Behaviour(tiny.packed)) as url:
        options = {"download": True, "archive": tiny.at(url), "verbose": False}
        assert tiny.matches(load_cifar10(tmp_path / "new", **options))
    assert (tmp_path / "new" / "cifar-10-python.tar.gz").exists()


def test_a_download_shows_a_progress_bar_only_when_verbose(tiny, capsys):
    with serve(Behaviour(tiny.packed)) as url:
        load_cifar10(archive=tiny.at(url), verbose=True)
    captured = capsys.readouterr()
    assert "Downloading cifar-10-python.tar.gz" in captured.err
    assert "from 127.0.0.1" in captured.out


@pytest.mark.parametrize(
    ("download", "environment"),
    [(False, {}), (None, {"SHIPYARD_DOWNLOAD": "0"}), (None, {"CI": "true"})],
)
def test_no_request_is_sent_when_downloads_are_off(
    tiny, monkeypatch, capsys, download, environment
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(data.stand_in, "draw_sets", few_pictures)
    behaviour = Behaviour(tiny.packed)
    with serve(behaviour) as url:
        loaded = load_cifar10(download=download, archive=tiny.at(url))
    assert behaviour.requests == []
    assert loaded.stand_in
    assert "downloads are off" in capsys.readouterr().out


def test_ci_downloads_when_it_is_asked_to(tiny, monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("SHIPYARD_DOWNLOAD", "1")
    with serve(Behaviour(tiny.packed)) as url:
        assert tiny.matches(load_cifar10(archive=tiny.at(url), verbose=False))


def test_a_wrong_shipyard_download_is_an_error(monkeypatch):
    monkeypatch.setenv("SHIPYARD_DOWNLOAD", "maybe")
    with pytest.raises(DataError, match="SHIPYARD_DOWNLOAD is 'maybe'"):
        load_cifar10()


DRAW_SETS = data.stand_in.draw_sets


def few_pictures(_train: int, _test: int, seed: int) -> Arrays:
    return DRAW_SETS(20, 10, seed)


def test_without_a_network_the_stand_in_is_used_at_once_and_says_so(tiny, monkeypatch, capsys):
    monkeypatch.setattr(data.stand_in, "draw_sets", few_pictures)
    started = time.monotonic()
    loaded = load_cifar10(archive=tiny.archive)  # its address is a port with no listener
    assert time.monotonic() - started < 5
    assert loaded.stand_in
    printed = capsys.readouterr().out
    assert "stand-in data (generated; not CIFAR-10)" in printed
    assert "download failed" in printed
    assert "no connection to 127.0.0.1" in printed


def test_without_a_network_a_download_that_was_asked_for_is_an_error(tiny):
    with pytest.raises(DownloadError, match="no connection to"):
        load_cifar10(download=True, archive=tiny.archive, verbose=False)


def test_a_name_service_that_is_silent_costs_only_the_connect_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr(data.download, "_address", lambda _: time.sleep(3))
    started = time.monotonic()
    with pytest.raises(DownloadError, match="no network"):
        quick_fetch("http://example.invalid/x", tmp_path / "x", "0", connect_timeout=0.2)
    assert time.monotonic() - started < 2


def test_an_unknown_name_means_no_network(tmp_path, monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DownloadError, match=r"no network: the address of example\.invalid"):
        quick_fetch("http://example.invalid/x", tmp_path / "x", "0")


BODY = np.random.default_rng(3).bytes(400_000)
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final_and_is_never_saved_as_data(tmp_path, status):
    behaviour = Behaviour(BODY, statuses=[status] * 9)
    with serve(behaviour) as url, pytest.raises(DownloadError, match=f"HTTP {status}"):
        quick_fetch(url, tmp_path / "x", MD5)
    assert len(behaviour.requests) == 1
    assert [file.name for file in tmp_path.glob("x*")] in ([], ["x.lock"])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(tmp_path, status):
    behaviour = Behaviour(BODY, statuses=[status] * 2)
    with serve(behaviour) as url:
        assert quick_fetch(url, tmp_path / "x", MD5).read_bytes() == BODY
    assert len(behaviour.requests) == 3


def test_a_server_that_stays_in_trouble_is_given_up_and_nothing_is_saved(tmp_path):
    behaviour = Behaviour(BODY, statuses=[500] * 9)
    with serve(behaviour) as url, pytest.raises(DownloadError, match=r"3 times in a row.*HTTP 500"):
        quick_fetch(url, tmp_path / "x", MD5)
    assert len(behaviour.requests) == 3
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.part").exists()


def test_an_http_error_in_auto_mode_leads_to_the_stand_in(tiny, monkeypatch, capsys):
    monkeypatch.setattr(data.stand_in, "draw_sets", few_pictures)
    with serve(Behaviour(tiny.packed, statuses=[404])) as url:
        assert load_cifar10(archive=tiny.at(url)).stand_in
    assert "HTTP 404" in capsys.readouterr().out


def test_a_download_that_breaks_off_goes_on_from_there(tmp_path):
    behaviour = Behaviour(BODY, break_after=150_000)
    with serve(behaviour) as url:
        assert quick_fetch(url, tmp_path / "x", MD5).read_bytes() == BODY
    first, second = behaviour.requests
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 150_000


def test_a_line_that_breaks_often_but_brings_something_is_not_given_up(tmp_path):
    behaviour = Behaviour(BODY, break_after=80_000, breaks=4)
    with serve(behaviour) as url:
        assert quick_fetch(url, tmp_path / "x", MD5, attempts=2).read_bytes() == BODY
    assert len(behaviour.requests) == 5


def test_a_download_is_resumed_by_a_later_call(tmp_path):
    (tmp_path / "x.part").write_bytes(BODY[:123_456])
    behaviour = Behaviour(BODY)
    with serve(behaviour) as url:
        assert quick_fetch(url, tmp_path / "x", MD5).read_bytes() == BODY
    assert behaviour.requests == ["bytes=123456-"]


def test_a_part_that_is_already_whole_is_taken_as_it_is(tmp_path):
    (tmp_path / "x.part").write_bytes(BODY)
    with serve(Behaviour(BODY)) as url:
        assert quick_fetch(url, tmp_path / "x", MD5).read_bytes() == BODY


def test_a_server_without_ranges_sends_the_whole_file_again(tmp_path):
    (tmp_path / "x.part").write_bytes(b"old" * 1000)
    behaviour = Behaviour(BODY, ranges=False)
    with serve(behaviour) as url:
        assert quick_fetch(url, tmp_path / "x", MD5).read_bytes() == BODY
    assert len(behaviour.requests) == 1


def test_a_server_that_sends_the_wrong_range_is_asked_for_the_whole_file(tmp_path):
    behaviour = Behaviour(BODY, break_after=100_000, shift=5)
    with serve(behaviour) as url:
        assert quick_fetch(url, tmp_path / "x", MD5).read_bytes() == BODY
    first, second, third = behaviour.requests
    assert first is third is None
    assert second.startswith("bytes=")


@pytest.mark.parametrize("part", [b"rubbish" * 1000, BODY + b"more"])
def test_a_bad_part_from_last_time_is_thrown_away_once(tmp_path, part):
    (tmp_path / "x.part").write_bytes(part)
    behaviour = Behaviour(BODY)
    with serve(behaviour) as url:
        assert quick_fetch(url, tmp_path / "x", MD5).read_bytes() == BODY
    assert behaviour.requests == [f"bytes={len(part)}-", None]


def test_a_download_that_stalls_is_noticed_and_what_came_is_kept(tmp_path):
    behaviour = Behaviour(BODY, stall_after=10_000)
    started = time.monotonic()
    with serve(behaviour) as url, pytest.raises(DownloadError, match="broke off 2 times"):
        quick_fetch(url, tmp_path / "x", MD5, attempts=2, read_timeout=0.3)
    assert time.monotonic() - started < 10
    assert (tmp_path / "x.part").read_bytes() == BODY[:20_000]
    assert not (tmp_path / "x").exists()


def test_a_download_that_only_drips_is_a_stall_too(tmp_path):
    behaviour = Behaviour(BODY[:100], drip=0.02)
    with serve(behaviour) as url, pytest.raises(DownloadError, match="bytes per second"):
        quick_fetch(url, tmp_path / "x", MD5, attempts=1, read_timeout=5, rate_window=0.3)


def test_a_file_with_the_wrong_hash_is_set_aside_and_named(tmp_path):
    with (
        serve(Behaviour(b"<html>Please log in to this network</html>")) as url,
        pytest.raises(DataError, match=rf"{MD5}.*x\.rejected") as caught,
    ):
        quick_fetch(url, tmp_path / "x", MD5)
    assert not isinstance(caught.value, DownloadError)
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "x.rejected").read_bytes().startswith(b"<html>")


def test_a_download_with_the_wrong_hash_stops_auto_too(tiny):
    with serve(Behaviour(b"something else")) as url, pytest.raises(DataError, match="rejected"):
        load_cifar10(archive=tiny.at(url), verbose=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_disk_that_fills_up_during_a_download_is_reported(tmp_path):
    (tmp_path / "x.part").symlink_to("/dev/full")
    with serve(Behaviour(BODY)) as url, pytest.raises(DownloadError, match="No space left"):
        quick_fetch(url, tmp_path / "x", MD5)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("url", ["nonsense://127.0.0.1/x", "http://127.0.0.1:port/x"])
def test_an_address_that_makes_no_sense_is_an_error(tmp_path, url):
    with pytest.raises(DownloadError):
        quick_fetch(url, tmp_path / "x", MD5)


# --- The stand-in -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand_in() -> data.Cifar10:
    return data.load_cifar10("stand-in")


def test_the_stand_in_is_labelled_everywhere(monkeypatch, capsys):
    monkeypatch.setattr(data.stand_in, "draw_sets", few_pictures)
    loaded = load_cifar10("stand-in")
    assert loaded.stand_in
    assert loaded.source == "stand-in data (generated; not CIFAR-10)"
    assert loaded.caption("Ten images") == "Ten images (stand-in data)"
    assert loaded.source in capsys.readouterr().out
    assert not set(loaded.classes) & set(data.CLASSES)
    assert len(loaded.classes) == 10


def test_the_stand_in_has_the_form_of_cifar10(stand_in):
    for image_set, n in ((stand_in.train, 10_000), (stand_in.test, 2_000)):
        assert image_set.images.shape == (n, 3, 32, 32)
        assert image_set.labels.bincount().tolist() == [n // 10] * 10
    mean = stand_in.train.images.float().div(255).mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.full((3,), 0.5), atol=0.05, rtol=0)


@pytest.mark.slow
def test_the_stand_in_is_the_same_every_time_and_in_every_process():
    program = (
        "import hashlib; from shipyard.data import stand_in; "
        "pictures = stand_in.draw_sets(300, 100, seed=5)['train_images']; "
        "print(hashlib.sha256(pictures.tobytes()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    first, second = (data.stand_in.draw_sets(300, 100, seed)["train_images"] for seed in (5, 6))
    assert hashlib.sha256(first.tobytes()).hexdigest() == other.stdout.strip()
    assert not np.array_equal(first, second)


def test_no_picture_of_the_test_set_is_in_the_train_set(stand_in):
    train = {image.numpy().tobytes() for image in stand_in.train.images}
    assert not any(image.numpy().tobytes() in train for image in stand_in.test.images)


def accuracy_of(model: nn.Module, stand_in: data.Cifar10, epochs: int, lr: float) -> float:
    loader = BatchLoader(stand_in.train, 100, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        predicted = torch.cat(
            [model(images).argmax(1) for images, _ in BatchLoader(stand_in.test, 500)]
        )
    return (predicted == stand_in.test.labels).float().mean().item()


@pytest.mark.slow
def test_a_linear_model_does_badly_on_the_stand_in(stand_in):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    assert accuracy_of(model, stand_in, epochs=3, lr=1e-3) < 0.45


@pytest.mark.slow
def test_a_small_cnn_does_well_on_the_stand_in_in_two_epochs(stand_in):
    torch.manual_seed(0)
    layers = []
    for inputs, outputs, size, stride in ((3, 16, 5, 2), (16, 32, 3, 2), (32, 64, 3, 1)):
        layers += [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    assert accuracy_of(model, stand_in, epochs=2, lr=5e-3) > 0.75


# --- The real data, where it is ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA, reason="SHIPYARD_DATA is not set: no real CIFAR-10 to read")
def test_the_real_data_have_the_published_counts_and_statistics():
    loaded = load_cifar10(REAL_DATA, verbose=False)
    assert loaded.source.startswith("CIFAR-10 (")
    assert loaded.train.labels.bincount().tolist() == [5000] * 10
    assert loaded.test.labels.bincount().tolist() == [1000] * 10
    values = loaded.train.images.float().div_(255)
    # JPEG images differ a little from the official ones.
    torch.testing.assert_close(values.mean((0, 2, 3)), data.MEAN, atol=0.003, rtol=0)
    torch.testing.assert_close(values.std((0, 2, 3)), data.STD, atol=0.005, rtol=0)
    started = time.perf_counter()
    load_cifar10(REAL_DATA, verbose=False)
    assert time.perf_counter() - started < 2


# --- Sets, normalisation and batches ----------------------------------------------------------


def numbered(n: int, size: int = 4) -> ImageSet:
    """Images whose every pixel is the index of the image modulo 256, labels modulo 10."""
    index = torch.arange(n)
    images = (index % 256).to(torch.uint8).view(n, 1, 1, 1).expand(n, 3, size, size).contiguous()
    return ImageSet(images, index % 10)


def test_an_image_set_of_the_wrong_type_or_length_is_refused():
    with pytest.raises(DataError, match=r"torch\.float32.*expected torch\.uint8"):
        ImageSet(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DataError, match=r"shape \(3,\).*shape \(2,\)"):
        ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def test_an_image_set_is_a_torch_dataset_too():
    loader = torch.utils.data.DataLoader(numbered(10), batch_size=4)
    images, labels = next(iter(loader))
    assert images.shape == (4, 3, 4, 4)
    assert labels.tolist() == [0, 1, 2, 3]


@given(st.integers(1, 5), st.sampled_from([torch.uint8, torch.float32]))
@settings(deadline=None, max_examples=20)
def test_normalize_is_that_of_torchvision_and_denormalize_undoes_it(n, dtype):
    images = torch.randint(0, 256, (n, 3, 5, 6)).to(torch.uint8)
    unit = v2.functional.to_dtype(images, torch.float64, scale=True)
    given_images = images if dtype == torch.uint8 else unit.float()
    normalised = data.normalize(given_images)
    expected = v2.functional.normalize(unit, data.MEAN.tolist(), data.STD.tolist())
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(data.denormalize(normalised).double(), unit, atol=1e-5, rtol=0)
    torch.testing.assert_close(data.normalize(given_images[0]), normalised[0])


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    epoch=st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_a_pass_brings_every_image_once_with_its_label(n, batch_size, drop_last, shuffle, epoch):
    loader = BatchLoader(numbered(n), batch_size, shuffle=shuffle, drop_last=drop_last)
    loader.set_epoch(epoch)
    batches = list(loader)
    assert len(batches) == len(loader)
    seen = []
    for images, labels in batches:
        index = data.denormalize(images)[:, 0, 0, 0].mul(255).round().long()
        assert torch.equal(index % 10, labels)
        seen += index.tolist()
    expected = n - n % batch_size if drop_last else n
    assert len(set(seen)) == len(seen) == expected
    if not shuffle:
        assert seen == list(range(expected))


def labels_of(loader: BatchLoader) -> list[int]:
    return [label for _, labels in loader for label in labels.tolist()]


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    one, two = (BatchLoader(numbered(200), 16, shuffle=True, seed=3) for _ in range(2))
    two.set_epoch(4)
    labels_of(two)
    torch.rand(7)  # the global generator plays no part
    two.set_epoch(0)
    assert labels_of(one) == labels_of(two) == labels_of(two)
    two.set_epoch(1)
    assert labels_of(one) != labels_of(two)
    assert labels_of(one) != labels_of(BatchLoader(numbered(200), 16, shuffle=True, seed=4))


def test_an_epoch_can_be_taken_up_in_its_middle_augmentation_included(stand_in):
    image_set = stand_in.train.subset(100)
    transform = data.random_crop_flip(padding=4)
    whole = BatchLoader(image_set, 16, shuffle=True, seed=1, transform=transform)
    later = BatchLoader(image_set, 16, shuffle=True, seed=1, transform=transform)
    whole.set_epoch(2)
    later.set_epoch(2)
    for (images, labels), (again, same) in zip(list(whole)[3:], later.batches(3), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)


def test_augmentation_changes_from_epoch_to_epoch_and_from_batch_to_batch(stand_in):
    twice = stand_in.train.select(torch.tensor([0, 1, 2, 3] * 2))
    loader = BatchLoader(twice, 4, transform=data.random_crop_flip(padding=4))
    (first, _), (second, _) = loader
    assert not torch.equal(first, second)
    loader.set_epoch(1)
    assert not torch.equal(first, next(iter(loader))[0])


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_cpu(stand_in, accelerator):
    image_set = stand_in.train.subset(100)
    transform = data.random_crop_flip()
    on_cpu, on_gpu = (
        BatchLoader(image_set.to(device), 32, shuffle=True, transform=transform)
        for device in ("cpu", accelerator)
    )
    for (images, labels), (gpu_images, gpu_labels) in zip(on_cpu, on_gpu, strict=True):
        assert gpu_images.device.type == accelerator.type
        torch.testing.assert_close(gpu_images.cpu(), images)
        assert torch.equal(gpu_labels.cpu(), labels)


def test_batch_size_must_be_a_positive_whole_number():
    for wrong in (0, -1, 2.5):
        with pytest.raises(DataError, match="batch_size"):
            BatchLoader(numbered(4), wrong)


@given(
    n=st.integers(1, 6),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    padding=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_augmentation_gives_the_pixels_of_torchvision(n, height, width, padding, seed):
    images = torch.randint(1, 256, (n, 3, height, width), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    result = data.random_crop_flip(padding)(images, generator)
    generator.manual_seed(seed)  # the same offsets and flips once more, in the order drawn
    top, left = (torch.randint(2 * padding + 1, (n,), generator=generator) for _ in range(2))
    mirrored = torch.rand(n, generator=generator) < 0.5
    for i in range(n):
        padded = v2.functional.pad(images[i], [padding])
        expected = v2.functional.crop(padded, int(top[i]), int(left[i]), height, width)
        if mirrored[i]:
            expected = v2.functional.horizontal_flip(expected)
        assert torch.equal(result[i], expected)


def test_augmentation_uses_every_offset_and_flips_half_of_the_images():
    marked = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    marked[:, :, 2, 1] = 255  # off the middle, so that a flip shows
    result = data.random_crop_flip(padding=1)(marked, torch.Generator().manual_seed(0))
    hits = result.float().sum(0)[0] / 255
    assert (hits[1:4] > 0).all()  # column 1 ± 1, mirrored 3 ± 1
    flipped = data.random_crop_flip(padding=0)(marked, torch.Generator().manual_seed(0))
    assert 0.45 < (flipped[:, 0, 2, 3] == 255).float().mean() < 0.55
    assert torch.equal(data.random_crop_flip(0, flip=0)(marked, torch.Generator()), marked)


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=10),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_a_subset_keeps_the_class_proportions_to_within_one_image(counts, share, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    image_set = ImageSet(torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8), labels)
    n = max(1, int(share * len(labels)))
    subset = image_set.subset(n, seed)
    assert len(subset) == n
    found = subset.labels.bincount(minlength=len(counts)).double()
    assert ((found - n / len(labels) * torch.tensor(counts)).abs() <= 1).all()


@pytest.mark.parametrize("held_out", [50, 0.25])
def test_a_split_shares_out_all_images_and_is_stratified(held_out):
    whole = numbered(200)
    rest, held = data.split(whole, held_out, seed=2)
    assert len(held) == 50
    assert held.labels.bincount().tolist() == [5] * 10
    index = torch.cat([rest.images, held.images])[:, 0, 0, 0]
    assert sorted(index.tolist()) == list(range(200))
    again = data.split(whole, held_out, seed=2)[1]
    assert torch.equal(held.images, again.images)
    assert not torch.equal(held.images, data.split(whole, held_out, seed=3)[1].images)


def test_impossible_subsets_and_splits_are_errors():
    for wrong in (0, 11):
        with pytest.raises(DataError, match="asked for"):
            numbered(10).subset(wrong)
    for wrong in (0, 10, 1.0, 0.0):
        with pytest.raises(DataError, match="held_out"):
            data.split(numbered(10), wrong)


def test_errors_of_the_data_are_errors_of_shipyard():
    assert issubclass(DataError, ShipyardError)
