"""How many requests a second a server bears, and what it adds to the model: ours and its peers.

    python benchmarks/serving.py                     # ours
    python benchmarks/serving.py --peers litserve mlserver bentoml kserve

Every server gives the same ONNX file to ONNX Runtime with one thread, and batches what waits, up
to 32 pictures, where it can. Each runs alone, one after the other, in ``--rounds`` turns. A peer
lives in an environment of its own in the cache, made at its first use; one that cannot be
installed or started is reported as such. Measured are, each a median over the rounds:

- **alone**: the p50 of one client that sends one picture after the other on one connection, and
  what that is above the p50 of ONNX Runtime called directly in the same minute;
- **the largest rate** at which an open-loop client (`shipyard.serving.load`: requests leave at
  their own, evenly spaced times) gets all its answers right, with a p99 of 50 ms or less. The
  rate grows until it fails twice, then the gap is halved ``--halvings`` times.

The wire format is JSON of the Open Inference Protocol, the one that all of them read (BentoML
wants the bare array, and gets it). Ours is measured with the protocol's binary tensors, too. The
client needs processor time as well and shares the machine; "late" says how far behind its own
timetable it was, at the 99th percentile of the largest rate. ``--generator autocannon`` takes
autocannon with ``-R`` in its place, where that program is found.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import http.client
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from shipyard import processor, runtime, serving
from shipyard.serving import load

PEERS = {
    "litserve": "litserve==0.2.19",
    "mlserver": "mlserver==1.7.1",
    "bentoml": "bentoml==1.4.39",
    "kserve": "kserve==0.21.0",
}
HERE = Path(__file__).resolve().parent
CLASSES = [f"class {i}" for i in range(10)]
P99 = 0.05  # seconds


class CannotRun(Exception):  # noqa: N818 (it is reported in the table)
    """A peer that cannot be installed or started here."""


@dataclass(frozen=True)
class Target:
    """A server to measure: the command that starts it, and the request that it is sent."""

    name: str
    command: Callable[[int], list[str]]
    path: str
    body: bytes
    headers: dict[str, str]
    logits: Callable[[bytes], np.ndarray]


def main() -> None:
    arguments = parse()
    model = arguments.model or make_model(arguments.cache)
    classifier = serving.load_model(model)
    session, feed = classifier.session, classifier.session.get_inputs()[0].name
    size = (1, 3, classifier.input.height, classifier.input.width)
    picture = np.random.default_rng(0).normal(size=size).astype(np.float32)
    expected = session.run(None, {feed: picture})[0]
    record = {"setting": describe(arguments, model), "servers": {}}
    print_setting(record["setting"])
    for number in range(arguments.rounds):
        for name, target in targets(arguments, model, picture):
            if isinstance(target, CannotRun):
                record["servers"].setdefault(name, {"error": str(target), "rounds": []})
                continue
            found = record["servers"].setdefault(name, {"rounds": []})
            bare = p50_of(lambda: session.run(None, {feed: picture}), arguments.seconds)
            try:
                with running(target, arguments) as port:
                    check(target, port, expected)
                    measured = {"bare_ms": 1e3 * bare, **measure(target, port, arguments)}
            except CannotRun as error:
                found["error"] = str(error)
                continue
            found["rounds"].append(measured)
            print(f"round {number + 1}  {name:14} {measured}", flush=True)
    print(report(record))
    path = arguments.output or runtime.results_dir() / f"serving-{mark(record['setting'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path} written")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--halvings", type=int, default=4, help="of the gap around the rate")
    parser.add_argument("--start", type=float, default=100, help="the first rate that is tried")
    parser.add_argument("--peers", nargs="*", default=[], choices=PEERS)
    parser.add_argument("--model", type=Path, help="an ONNX file; default: a residual network")
    parser.add_argument("--generator", choices=("open-loop", "autocannon"), default="open-loop")
    parser.add_argument("--cache", type=Path, default=runtime.cache_dir() / "serving-benchmark")
    parser.add_argument("--output", type=Path, help="default: a file of this machine in results/")
    return parser.parse_args()


# --- The servers -------------------------------------------------------------------------------


def make_model(cache: Path) -> Path:
    """A residual network for CIFAR-10 with random weights, whose answers take as long as any."""
    import torch

    from shipyard import models, onnx_export

    torch.manual_seed(0)
    cache.mkdir(parents=True, exist_ok=True)
    net = models.ResidualNet()
    onnx_export.export(
        net, cache / "model.onnx", torch.zeros(2, 3, 32, 32),
        classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3, name="model",
    )  # fmt: skip
    return cache / "model.onnx"


def targets(arguments, model: Path, picture: np.ndarray) -> Iterator[tuple[str, object]]:
    """(name, `Target`) of ours and of each peer, or (name, `CannotRun`)."""
    classifier = serving.load_model(model)
    tensor = {"name": "images", "shape": picture.shape, "datatype": "FP32"}
    as_json = json.dumps({"inputs": [{**tensor, "data": picture.ravel().tolist()}]}).encode()
    raw = picture.tobytes()
    about = {**tensor, "parameters": {"binary_data_size": len(raw)}}
    wish = {"binary_data_output": True}
    head = json.dumps({"inputs": [about], "parameters": wish}).encode()
    json_headers = {"Content-Type": "application/json"}

    def ours(port: int) -> list[str]:
        options = ["--port", str(port)]
        return [sys.executable, "-m", "shipyard.cli", "serve", str(model), *options]

    path = f"/v2/models/{classifier.name}/infer"
    read = functools.partial(from_binary, len(classifier.classes))
    yield "ours, JSON", Target("ours, JSON", ours, path, as_json, json_headers, from_v2)
    binary = {"Content-Type": "application/octet-stream",
              "Inference-Header-Content-Length": str(len(head))}  # fmt: skip
    yield "ours, binary", Target("ours, binary", ours, path, head + raw, binary, read)
    for peer in arguments.peers:
        script = HERE / "peers" / f"{peer}_peer.py"
        try:
            python = environment(PEERS[peer], arguments.cache)
        except CannotRun as error:
            yield peer, error
            continue
        where = re.search(r'^PATH = "(.+)"$', script.read_text(), re.MULTILINE)[1]
        command = functools.partial(peer_command, python, script, model)
        if peer == "bentoml":
            body = json.dumps({"images": picture.tolist()}).encode()
            yield peer, Target(peer, command, where, body, json_headers, from_list)
        else:
            yield peer, Target(peer, command, where, as_json, json_headers, from_v2)


def peer_command(python: str, script: Path, model: Path, port: int) -> list[str]:
    return [python, str(script), str(model), str(port)]


def from_v2(body: bytes) -> np.ndarray:
    return np.array(json.loads(body)["outputs"][0]["data"], np.float32)


def from_list(body: bytes) -> np.ndarray:
    return np.array(json.loads(body), np.float32)


def from_binary(classes: int, body: bytes) -> np.ndarray:
    return np.frombuffer(body[-4 * classes :], "<f4")


def environment(requirement: str, cache: Path) -> str:
    """The Python of an environment with ``requirement`` and our ONNX Runtime, made once."""
    mark = hashlib.sha256(f"{requirement} {sys.version}".encode()).hexdigest()[:8]
    folder = cache / f"{requirement.partition('=')[0]}-{mark}"
    python = folder / "bin" / "python"
    done, failed = folder / "complete", folder / "failed"
    if failed.exists():
        raise CannotRun(failed.read_text())
    if not done.exists():
        print(f"installing {requirement} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        runtime_too = f"onnxruntime=={onnxruntime.__version__}"
        pip = [python, "-m", "pip", "install", "--quiet", requirement, runtime_too]
        made = subprocess.run(pip, capture_output=True, text=True)
        if made.returncode:
            last = [line for line in made.stderr.splitlines() if line.startswith("ERROR")][-1:]
            failed.write_text(f"does not install here: {' '.join(last)}")
            raise CannotRun(failed.read_text())
        done.touch()
    return str(python)


@contextlib.contextmanager
def running(target: Target, arguments) -> Iterator[int]:
    """The server of ``target`` in a process group of its own while the block runs: its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True"}
    if not target.name.startswith("ours"):
        environment["PYTHONPATH"] = ""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            target.command(port), stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            wait_until_it_answers(target, port, process, log)
            yield port
        finally:
            stop_group(process)


def stop_group(process: subprocess.Popen) -> None:
    """End the server and the workers that it started: they are all in its process group."""
    for number, seconds in ((15, 10), (9, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def wait_until_it_answers(target: Target, port: int, process, log) -> None:
    deadline = time.monotonic() + 90
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ask_once(target, port)[0] == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise CannotRun(f"does not start here: {' '.join(said)[:200]}")
        time.sleep(0.2)


def ask_once(target: Target, port: int) -> tuple[int, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    client.request("POST", target.path, target.body, target.headers)
    reply = client.getresponse()
    return reply.status, reply.read()


def check(target: Target, port: int, expected: np.ndarray) -> None:
    """The server's answer is the model's, or it is not measured."""
    logits = target.logits(ask_once(target, port)[1]).reshape(expected.shape)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


# --- The measurements --------------------------------------------------------------------------


def p50_of(call: Callable[[], object], seconds: float) -> float:
    """The median duration of ``call``, after some to warm up."""
    for _ in range(20):
        call()
    durations, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        call()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def measure(target: Target, port: int, arguments) -> dict:
    request = load.post(f"http://127.0.0.1:{port}{target.path}", target.body, target.headers)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        alone = p50_of(lambda: ask_raw(connection, request), arguments.seconds)
    at_rate = functools.partial(bears, target, port, request, arguments)
    rate, late = largest_rate(at_rate, arguments.start, arguments.halvings)
    return {"alone_ms": 1e3 * alone, "rate": rate, "late_ms": 1e3 * late}


def ask_raw(connection: socket.socket, request: bytes) -> bytes:
    """One answer over a raw socket: the client's own work is as small as can be."""
    connection.sendall(request)
    received = b""
    while True:
        received += connection.recv(65536)
        head, separator, rest = received.partition(b"\r\n\r\n")
        if separator:
            length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
            if len(rest) >= length:
                return rest


def largest_rate(bears, rate: float, halvings: int) -> tuple[float, float]:
    """The largest rate that is borne, and how late the client was at it."""
    good, bad, late = 0.0, None, 0.0
    while bad is None or halvings > 0:
        if bad is not None:
            rate = (good + bad) / 2
            halvings -= 1
        ok, behind = bears(rate)
        if not ok:  # anything else on the machine can spoil one measurement
            ok, behind = bears(rate)
        if ok:
            good, late = rate, behind
            rate *= 1.5
        else:
            bad = rate
            if good == 0.0 and rate > 5:
                bad, rate = None, rate / 4
    return good, late


def bears(target: Target, port: int, request: bytes, arguments, rate: float) -> tuple[bool, float]:
    """Whether all answers at ``rate`` are 200 and their p99 is small; how late the client was."""
    if arguments.generator == "autocannon":
        return autocannon(target, port, rate, arguments.seconds), 0.0
    due = np.arange(0, arguments.seconds, 1 / rate)
    sent = []

    def next_request(number: int) -> bytes:
        sent.append(time.perf_counter())
        return request

    url = f"http://127.0.0.1:{port}"
    outcomes = asyncio.run(load.open_loop(url, next_request, due, timeout=2.0))
    late = float(np.quantile(np.array(sent) - sent[0] - due, 0.99))
    slowest = np.quantile([outcome.seconds for outcome in outcomes], 0.99)
    return all(outcome.status == 200 for outcome in outcomes) and slowest <= P99, late


def autocannon(target: Target, port: int, rate: float, seconds: float) -> bool:
    program = shutil.which("autocannon")
    if program is None:
        raise SystemExit("autocannon is not on the PATH: npm install --global autocannon")
    headers = [part for pair in target.headers.items() for part in ("-H", "=".join(pair))]
    with tempfile.NamedTemporaryFile() as body:
        body.write(target.body)
        body.flush()
        done = subprocess.run(
            [program, "--json", "-m", "POST", "-R", str(round(rate)), "-c", "100", "-d",
             str(max(1, round(seconds))), "-i", body.name, *headers,
             f"http://127.0.0.1:{port}{target.path}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    said = json.loads(done.stdout)
    kept_up = said["requests"]["average"] > 0.97 * rate
    return kept_up and not said["non2xx"] + said["errors"] and said["latency"]["p99"] <= 1e3 * P99


# --- The report --------------------------------------------------------------------------------


def describe(arguments, model: Path) -> dict:
    packages = ("numpy", "onnxruntime", "fastapi", "starlette", "uvicorn", "httptools", "h11")
    return {
        "processor": processor.describe(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "versions": runtime.versions(packages),
        "peers": {peer: PEERS[peer] for peer in arguments.peers},
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "generator": arguments.generator,
    }


def print_setting(setting: dict) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    print(f"{setting['processor']}, {setting['cores']} cores; {versions}", flush=True)


def mark(setting: dict) -> str:
    name = re.sub(r"\W+", "_", setting["processor"]).strip("_").lower()
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name}-{digest}"


def report(record: dict) -> str:
    """A table of medians over the rounds, with the range of the rates."""
    columns = f"{'p50 alone':>12}{'over ORT':>12}{'rate at p99 ≤ 50 ms':>26}{'late':>10}"
    lines = ["", f"{'server':16}{columns}"]
    for name, server in record["servers"].items():
        rounds = server["rounds"]
        if not rounds:
            lines.append(f"{name:16}{server.get('error', 'not measured')}")
            continue
        alone = statistics.median(r["alone_ms"] for r in rounds)
        over = statistics.median(r["alone_ms"] - r["bare_ms"] for r in rounds)
        rates = [r["rate"] for r in rounds]
        late = statistics.median(r["late_ms"] for r in rounds)
        rate = f"{statistics.median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})/s"
        lines.append(f"{name:16}{alone:>9.2f} ms{over:>9.2f} ms{rate:>26}{late:>7.1f} ms")
    best = [
        statistics.median(r["rate"] for r in server["rounds"])
        for name, server in record["servers"].items()
        if server["rounds"] and not name.startswith("ours")
    ]
    ours = record["servers"]["ours, JSON"]["rounds"]
    if any(best) and ours:
        times = statistics.median(r["rate"] for r in ours) / max(best)
        lines.append(f"ours, in JSON, bears {times:.2f} times the rate of the best peer")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
