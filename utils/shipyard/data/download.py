"""A download that resumes, notices a stall, and is used only when its hash is right."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from shipyard.data.cache import lock
from shipyard.errors import DataError, DownloadError


@dataclass(frozen=True)
class Archive:
    """What an archive must be: its address, its MD5, and its size in bytes."""

    url: str
    md5: str
    size: int

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


# As published at https://www.cs.toronto.edu/~kriz/cifar.html.
OFFICIAL = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    size=170_498_071,
)


@dataclass(frozen=True)
class Limits:
    """When a download counts as stalled, and how often it is taken up again.

    Args:
        connect_timeout: seconds to wait for a connection; a first failure is final.
        read_timeout: seconds without a byte that count as a stall.
        minimum_rate: bytes per second over ``rate_window`` seconds below which it is a stall.
        attempts: tries in a row that bring nothing before giving up.
        backoff: seconds before the second try, doubled for each one that follows.
    """

    connect_timeout: float = 4.0
    read_timeout: float = 15.0
    minimum_rate: float = 4096.0
    rate_window: float = 20.0
    attempts: int = 5
    backoff: float = 1.0


def fetch(
    url: str, path: Path, md5: str, limits: Limits = Limits(), *, verbose: bool = True
) -> Path:
    """Download ``url`` to ``path``, which appears only when it is whole and its MD5 is right.

    Until then the bytes are in ``path.part``; a later call goes on from there. That, and giving
    up a connection that only drips, is what torchvision's and pooch's downloads cannot do.

    Raises:
        DownloadError: no connection, an HTTP error, too many stalls, or no room to write.
        DataError: the file came, but it is not the one expected; it is kept as
            ``path.rejected``.
    """
    part = path.with_name(f"{path.name}.part")
    host = urlsplit(url).hostname
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{path.parent} cannot be made: {error}") from error
    with lock(path.with_name(f"{path.name}.lock"), verbose) as problem:
        if problem is not None:
            raise DownloadError(f"{path.parent} cannot be written: {problem}") from problem
        if path.exists():  # another process has just finished
            return path
        if verbose:
            print(f"Downloading {path.name} from {host} (SHIPYARD_DOWNLOAD=0 turns this off).")
        if not urllib.request.getproxies() and not _resolves(host, limits.connect_timeout):
            raise DownloadError(f"no network: the address of {host} was not found")
        resumed = _size(part) > 0
        _fetch_whole(url, part, limits, verbose)
        if resumed and md5_of(part) != md5:  # the bytes from an earlier call may be the bad ones
            part.unlink()
            _fetch_whole(url, part, limits, verbose)
        found = md5_of(part)
        if found == md5:
            return part.replace(path)
        rejected = part.replace(path.with_name(f"{path.name}.rejected"))
        raise DataError(
            f"What came from {url} is not the file expected: {_size(rejected):,} bytes "
            f"with MD5 {found} instead of {md5}. It was not used; it is kept as "
            f"{rejected} for a look (some networks send a log-in page instead). "
            "Run again to try once more, or set SHIPYARD_DOWNLOAD=0."
        )


def md5_of(path: Path) -> str:
    """The MD5 of the file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class _BrokenOffError(Exception):
    """A download broke off in a way that another try may mend."""


def _fetch_whole(url: str, part: Path, limits: Limits, verbose: bool) -> None:
    """Ask for what ``part`` lacks until it is whole, or `DownloadError` says why it cannot be."""
    import httpx  # here, because most calls of this module never touch the network

    timeout = httpx.Timeout(limits.read_timeout, connect=limits.connect_timeout)
    failures = 0
    with httpx.Client(timeout=timeout, follow_redirects=True) as client:
        while True:
            before = _size(part)
            try:
                return _fetch_once(client, url, part, limits, verbose)
            except (httpx.TransportError, _BrokenOffError) as error:
                connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                reason = str(error) or type(error).__name__
                if not connected and before == 0 and failures == 0:
                    host = urlsplit(url).hostname
                    raise DownloadError(f"no connection to {host}: {reason}") from error
                # Whoever gets on, however often the line breaks, is not failing.
                failures = 1 if _size(part) - before >= 2**16 else failures + 1
                if failures >= limits.attempts:
                    raise DownloadError(
                        f"{url} broke off {failures} times in a row: {reason}. The "
                        f"{_size(part):,} bytes so far are kept for the next try"
                    ) from error
                time.sleep(limits.backoff * 2 ** (failures - 1))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise DownloadError(f"{url} cannot be fetched: {error}") from error
            except OSError as error:
                raise DownloadError(f"{part} cannot be written: {error}") from error


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


def _fetch_once(client, url: str, part: Path, limits: Limits, verbose: bool) -> None:
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
                if seconds >= limits.rate_window:
                    if window_bytes < limits.minimum_rate * seconds:
                        raise _BrokenOffError(
                            f"only {window_bytes / seconds:,.0f} bytes per second"
                        )
                    window_start, window_bytes = time.monotonic(), 0
    if total is not None and _size(part) < total:
        raise _BrokenOffError(f"the connection closed after {_size(part):,} of {total:,} bytes")
