"""What goes wrong around a server: floods, stops, kills, slow and vanishing clients, bad files."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from served_models import colour, write_model
from shipyard import serving
from shipyard.serving import load

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
INFER = "/v2/models/colours/infer"
HEADERS = {"Content-Type": "image/png"}


@pytest.fixture(scope="module", autouse=True)
def no_proxy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,::1")
        patch.delenv("SHIPYARD_API_KEY", raising=False)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "colours.onnx")


class Started:
    """A server in a process of its own: its address, its process, and the lines of its log."""

    def __init__(self, process, url, log):
        self.process, self.url, self._log = process, url, log
        self.address = url.removeprefix("http://").split(":")

    def log(self, event="request"):
        lines = map(json.loads, Path(self._log).read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    def stop(self, signal_number=signal.SIGTERM):
        self.process.send_signal(signal_number)
        return self.process.wait(timeout=40)


@contextlib.contextmanager
def started(path, tmp_path, seconds=0.0, **limits):
    slow = Path(__file__).with_name("slow_server.py")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, slow, path, str(seconds), json.dumps(limits)],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert "http" in line, (tmp_path / "log").read_text()
        server = Started(process, next(w for w in line.split() if "http" in w), tmp_path / "log")
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{server.url}/readyz").status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield server
    finally:
        process.kill()
        process.communicate()


def infer(url, value=0.0, **headers):
    """A request of one row, all ``value``: its first logit is ``value``."""
    tensor = {"name": "images", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [value] * 192}
    return load.post(url + INFER, json.dumps({"inputs": [tensor]}).encode(), headers)


def first_logit(outcome):
    return json.loads(outcome.body)["outputs"][0]["data"][0]


def flood(server, rate, seconds, **options):
    """Open-loop load, every question another one: (number, outcome) of each."""
    due = np.arange(0, seconds, 1 / rate)
    loop = load.open_loop(server.url, lambda i: infer(server.url, i % 97), due, **options)
    return list(enumerate(asyncio.run(loop)))


# --- Overload ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_twice_the_load_it_can_bear_is_shed_and_the_rest_answered_in_time(path, tmp_path, seconds):
    batch, model_seconds = 4, 0.05
    capacity = batch / model_seconds  # rows a second
    limits = {"largest_batch": batch, "longest_queue": 12}
    with started(path, tmp_path, model_seconds, **limits) as server:
        flood(server, 2 * capacity, 1)  # memory is taken once
        memory = psutil.Process(server.process.pid).memory_info
        before = memory().rss
        outcomes = flood(server, 2 * capacity, seconds)
        grown = (memory().rss - before) / 2**20
        assert server.stop() == 0
        assert {line["batch"] for line in server.log() if "batch" in line} >= {batch}
    answered = [(i, o) for i, o in outcomes if o.status == 200]
    refused = [o for _, o in outcomes if o.status == 503]
    assert len(answered) + len(refused) == len(outcomes), {o.status for _, o in outcomes}
    assert all(b"retry-after: 1" in o.headers.lower() for o in refused)
    assert len(refused) > 0.25 * len(outcomes)
    assert len(answered) > 0.3 * len(outcomes), "half of twice the capacity can be answered"
    # At most 12 rows wait, in 3 batches, behind one that runs: 4 times 50 ms, and the machine's.
    assert np.quantile([o.seconds for _, o in answered], 0.95) < 1.0
    assert grown < 20, f"memory grew by {grown:.0f} MiB"
    wrong = [i for i, o in answered if first_logit(o) != pytest.approx(i % 97, rel=1e-5)]
    assert not wrong, "every answer is that to its own question"


def test_an_answer_that_takes_too_long_is_given_up_with_504(path, tmp_path):
    with started(path, tmp_path, 0.6, answer_seconds=0.2) as server:
        began = time.perf_counter()
        reply = httpx.post(f"{server.url}/predict", content=colour("red"), headers=HEADERS)
        assert (reply.status_code, "0.2 seconds" in reply.json()["error"]) == (504, True)
        assert time.perf_counter() - began < 0.6
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert server.stop() == 0


def test_a_client_that_hangs_up_leaves_the_queue(path, tmp_path):
    with started(path, tmp_path, 0.5, largest_batch=1, longest_queue=4) as server:
        waiting = [socket.create_connection(server.address) for _ in range(5)]
        for number, connection in enumerate(waiting):
            connection.sendall(infer(server.url, number, **{"X-Request-ID": f"gone-{number}"}))
        time.sleep(0.2)  # the first is in the model, four fill the queue
        assert httpx.get(f"{server.url}/v2").status_code == 200
        for connection in waiting[1:]:
            connection.close()
        time.sleep(0.1)
        began = time.perf_counter()
        reply = httpx.post(f"{server.url}/predict", content=colour("red"), headers=HEADERS)
        assert reply.status_code == 200
        assert time.perf_counter() - began < 1.6, "four that are gone would take 2 seconds"
        waiting[0].close()
        assert server.stop() == 0
        status = {line["request_id"]: line["status"] for line in server.log()}
    assert [status[f"gone-{n}"] for n in range(1, 5)] == [499] * 4


def test_slow_clients_hold_up_nobody_and_are_given_up(path, tmp_path):
    body = colour("green")
    with started(path, tmp_path, body_seconds=1.5) as server, contextlib.ExitStack() as stack:
        head = load.post(f"{server.url}/predict", body, HEADERS).removesuffix(body)
        slow = [
            stack.enter_context(socket.create_connection(server.address, timeout=20))
            for _ in range(100)
        ]
        for connection in slow:
            connection.sendall(head + body[:1])
        reply = httpx.post(f"{server.url}/predict", content=body, headers=HEADERS)
        assert reply.json()["label"] == "green"
        assert all(b" 408 " in connection.recv(100) for connection in slow)


def test_bodies_that_arrive_at_once_never_fill_the_memory(path, tmp_path):
    part = bytes(2**20)
    limits = {"max_bytes": 2 * len(part), "held_bytes": 4 * len(part)}
    with started(path, tmp_path, **limits) as server, contextlib.ExitStack() as stack:
        head = load.post(f"{server.url}/predict", part + b"!", HEADERS).removesuffix(part + b"!")
        held = [
            stack.enter_context(socket.create_connection(server.address, timeout=20))
            for _ in range(4)
        ]
        for connection in held:
            connection.sendall(head + part)
        time.sleep(0.5)
        reply = httpx.post(f"{server.url}/predict", content=part, headers=HEADERS)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        for connection in held:
            connection.close()
        time.sleep(0.2)
        reply = httpx.post(f"{server.url}/predict", content=colour("red"), headers=HEADERS)
        assert reply.status_code == 200


def test_a_body_of_100_mb_is_refused_and_not_read(path, tmp_path):
    with started(path, tmp_path) as server:
        memory = psutil.Process(server.process.pid).memory_info
        before = memory().rss
        for _ in range(3):
            client = http.client.HTTPConnection(*server.address, timeout=20)
            with contextlib.suppress(ConnectionError):  # the answer comes while we still send
                client.request("POST", "/predict", bytes(100 * 2**20), HEADERS)
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                assert client.getresponse().status == 413
            client.close()
        assert memory().rss - before < 30 * 2**20
        assert {line["status"] for line in server.log() if line["path"] == "/predict"} == {413}


# --- Stopping ----------------------------------------------------------------------------------


def test_sigterm_under_load_every_accepted_request_is_answered_and_the_exit_is_0(path, tmp_path):
    with started(path, tmp_path, 0.03, largest_batch=8, longest_queue=64) as server:

        async def scenario():
            due = np.arange(0, 4, 1 / 100)
            asking = asyncio.create_task(
                load.open_loop(server.url, lambda i: infer(server.url, i % 97), due)
            )
            await asyncio.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            seen = []
            async with httpx.AsyncClient(base_url=server.url) as client:
                with contextlib.suppress(httpx.HTTPError):
                    while True:
                        paths = ("/readyz", "/healthz")
                        seen.append([(await client.get(p)).status_code for p in paths])
                        await asyncio.sleep(0.1)
            return await asking, seen

        outcomes, seen = asyncio.run(scenario())
        assert server.process.wait(timeout=40) == 0
        assert "Stopped." in server.process.stdout.read()
        logged = [line["status"] for line in server.log() if line["path"] == INFER]
    assert [503, 200] in seen, "while it stops it is alive, and not ready"
    answered = [o for o in outcomes if o.status == 200]
    not_sent = [o for o in outcomes if o.error == load.NOT_SENT]
    assert len(answered) + len(not_sent) == len(outcomes), [o for o in outcomes if not o.status]
    assert len(answered) > 150
    assert len(not_sent) > 50
    assert logged == [200] * len(answered)


def test_sigkill_and_a_new_server_on_the_same_port_answers_at_once(path):
    with serving.serve_in_background(path) as first:
        port = int(first.url.rsplit(":", 1)[1])
        with httpx.Client(base_url=first.url) as client:
            assert client.post("/predict", content=colour("red"), headers=HEADERS).is_success
            psutil.Process(first.pid).kill()
            with pytest.raises(httpx.HTTPError):
                client.get("/healthz")
        with serving.serve_in_background(path, port) as second:
            reply = httpx.post(f"{second.url}/predict", content=colour("red"), headers=HEADERS)
            assert reply.json()["label"] == "red"


# --- Who asks, and what is written down --------------------------------------------------------


def test_every_request_has_an_id_and_a_line_in_the_log(path, tmp_path):
    with started(path, tmp_path) as server, httpx.Client(base_url=server.url) as client:
        body = {"content": colour("red"), "headers": {**HEADERS, "X-Request-ID": "order-66"}}
        reply = client.post("/predict", **body)
        assert reply.headers["x-request-id"] == "order-66"
        bad = client.get("/nowhere", headers={"X-Request-ID": 'no"id\twith spaces'})
        assert len(bad.headers["x-request-id"]) == 16
        assert server.stop() == 0
        (line,) = [line for line in server.log() if line["request_id"] == "order-66"]
        assert (line["method"], line["path"], line["status"]) == ("POST", "/predict", 200)
        assert line["batch"] == 1
        assert 0 <= line["queue_ms"] + line["model_ms"] <= line["ms"]
        assert bad.headers["x-request-id"] in {line["request_id"] for line in server.log()}
        (stopped,) = server.log("stopped")
        assert stopped["batches"] == {"1": 1}
    said = reply.json()
    timing = f'queue;dur={said["queue_ms"]}, model;dur={said["model_ms"]}, batch;desc="1"'
    assert reply.headers["server-timing"] == timing


def test_a_defect_stands_in_the_log_with_its_request_and_its_traceback(tmp_path):
    path = write_model(tmp_path / "m.onnx", weight=2e38)  # overflows at white
    with started(path, tmp_path) as server:
        ids = {"X-Request-ID": "seven", **HEADERS}
        reply = httpx.post(f"{server.url}/predict", content=colour("white"), headers=ids)
        assert (reply.status_code, reply.headers["x-request-id"]) == (500, "seven")
        assert server.stop() == 0
        (line,) = [line for line in server.log() if line["request_id"] == "seven"]
    assert (line["level"], line["status"]) == ("error", 500)
    assert "FloatingPointError" in line["traceback"]


def test_with_an_api_key_only_health_and_the_page_are_open(path, monkeypatch):
    monkeypatch.setenv("SHIPYARD_API_KEY", "sésame")
    with (
        serving.serve_in_background(path) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        for open_to_all in ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert client.get(open_to_all).status_code == 200
        for closed in ("/model", "/v2", "/v2/models/colours", "/openapi.json", "/nowhere"):
            for key in ({}, {"X-API-Key": ""}, {"X-API-Key": "sésam"}, {"Authorization": "Bearer"}):
                reply = client.get(closed, headers={k: v.encode() for k, v in key.items()})
                assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        reply = client.post("/predict", content=colour("red"), headers=HEADERS)
        assert reply.status_code == 401
        for key in ({"X-API-Key": "sésame"}, {"Authorization": "bearer sésame"}):
            headers = {k: v.encode() for k, v in key.items()}
            assert client.get("/model", headers=headers).status_code == 200


def test_an_empty_api_key_is_an_error_and_no_open_door(path, monkeypatch):
    monkeypatch.setenv("SHIPYARD_API_KEY", " ")
    with (
        pytest.raises(serving.ServingError, match="API key is empty"),
        serving.serve_in_background(path),
    ):
        pytest.fail("the server started")


# --- Bad files ---------------------------------------------------------------------------------


def test_a_damaged_model_file_is_refused_or_still_does_what_it_promises(path, tmp_path):
    content, damaged = path.read_bytes(), tmp_path / "damaged.onnx"
    refused = 0
    for at in range(0, len(content), 3):
        for change in (content[:at], content[:at] + b"\xff\xff\xff" + content[at + 3 :]):
            damaged.write_bytes(change)
            with contextlib.suppress(serving.ModelError):  # and nothing else
                serving.load_model(damaged)
                continue
            refused += 1
    assert refused > len(content) / 3, "every cut file, and some others"


def batch_dependent(path, batch):
    """The colours minus the largest number of the whole batch, or a graph for one picture only."""
    model = onnx.load(write_model(path))
    if batch == "fixed":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    else:
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("ReduceMax", ["before"], ["most"], keepdims=0))
        model.graph.node.append(helper.make_node("Sub", ["before", "most"], ["logits"]))
        model.graph.value_info.append(
            helper.make_tensor_value_info("before", TensorProto.FLOAT, ["batch", 3])
        )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", ["fixed", "dependent"])
def test_a_model_whose_answers_depend_on_the_batch_is_never_batched(tmp_path, batch):
    path = batch_dependent(tmp_path / "m.onnx", batch)
    classifier = serving.load_model(path)
    assert not classifier.can_batch
    with started(path, tmp_path, 0.05) as server:
        model = httpx.get(f"{server.url}/v2/models/colours").json()
        assert model["inputs"][0]["shape"] == [1, 3, 8, 8]
        outcomes = flood(server, 50, 0.5)
        assert {o.status for _, o in outcomes} == {200}
        for number, outcome in outcomes:
            image = np.full((1, 3, 8, 8), number % 97, np.float32)
            expected = classifier.logits(image)[0, 0]
            assert first_logit(outcome) == pytest.approx(expected, abs=1e-4)
        assert server.stop() == 0
        assert server.log("the model's answers depend on the batch, so each row runs alone")
        assert {line["batch"] for line in server.log() if "batch" in line} == {1}
