"""Checks of serving: references, and the cases to try them on. Times are whole numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from shipyard.checks import Case, Passed, compare, require_signature
from shipyard.checks.differences import describe
from shipyard.checks.telling import refusal

LENGTH = "Inference-Header-Content-Length"
# What the Open Inference Protocol calls NumPy's types.
V2_TYPES = {
    "float32": "FP32", "float64": "FP64", "int32": "INT32", "int64": "INT64", "uint8": "UINT8",
    "bool": "BOOL",
}  # fmt: skip
NUMPY_TYPES = {v2: numpys for numpys, v2 in V2_TYPES.items()}


def preprocess(pixels, size, mean, std):
    _, height, width, _ = pixels.shape
    short = min(height, width)
    h, w = height * size // short, width * size // short
    rows = ((np.arange(h) + 0.5) * height / h).astype(int)
    columns = ((np.arange(w) + 0.5) * width / w).astype(int)
    resized = pixels[:, rows][:, :, columns]
    top, left = (h - size) // 2, (w - size) // 2
    cropped = resized[:, top : top + size, left : left + size]
    x = (cropped / 255 - mean) / std
    return x.transpose(0, 3, 1, 2).astype(np.float32)


def micro_batcher(arrivals, max_batch, max_wait, a, b):
    left, batches, free = list(arrivals), [], 0
    for _ in arrivals:
        if not left:
            break
        full = left[max_batch - 1] if len(left) >= max_batch else math.inf
        start = max(free, min(left[0] + max_wait, full))
        batch = [t for t in left[:max_batch] if t <= start]
        batches.append((start, len(batch)))
        free = start + a + b * len(batch)
        left = left[len(batch) :]
    return batches


def bounded_queue(arrivals, services, capacity):
    waits, starts, free = [], [], 0
    for t, s in zip(arrivals, services, strict=True):
        waiting = sum(start > t for start in starts)
        if free > t and waiting >= capacity:
            waits.append(None)
        else:
            start = max(t, free)
            starts.append(start)
            waits.append(start - t)
            free = start + s
    return waits


def v2_request(name, array, binary=False):
    tensor = {"name": name, "shape": list(array.shape), "datatype": V2_TYPES[str(array.dtype)]}
    if not binary:
        tensor["data"] = array.flatten().tolist()
        return {"Content-Type": "application/json"}, json.dumps({"inputs": [tensor]}).encode()
    data = array.tobytes()
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}
    return headers, head + data


def v2_answer(headers, body):
    at = int(headers.get(LENGTH, len(body)))
    answer = {}
    for tensor in json.loads(body[:at])["outputs"]:
        dtype = np.dtype(NUMPY_TYPES[tensor["datatype"]])
        if "data" in tensor:
            values = np.array(tensor["data"], dtype)
        else:
            size = tensor["parameters"]["binary_data_size"]
            values = np.frombuffer(body[at : at + size], dtype)
            at += size
        answer[tensor["name"]] = values.reshape(tensor["shape"])
    return answer


def continuous_batch(requests, slots, pages, page_size):
    left = [output for _, _, output in requests]
    holds = [math.ceil((prompt + output) / page_size) for _, prompt, output in requests]
    waiting, running, schedule = list(range(len(requests))), [], []
    last = max(arrival for arrival, _, _ in requests)
    for step in range(last + sum(left)):
        if not (waiting or running):
            return schedule
        for n in list(waiting):
            used = sum(holds[m] for m in running)
            if requests[n][0] > step or len(running) >= slots or used + holds[n] > pages:
                break
            waiting.remove(n)
            running.append(n)
        schedule.append(list(running))
        for n in running:
            left[n] -= 1
        running = [n for n in running if left[n] > 0]
    return schedule


def check_preprocess(candidate: Callable) -> Passed:
    """Check ``preprocess(pixels, size, mean, std)``: uint8 NHWC → float32 NCHW."""
    rng = np.random.default_rng(41)
    mean, std = np.array([0.49, 0.48, 0.45]), np.array([0.25, 0.2, 0.3])

    def case(batch, height, width, size, mean=mean, std=std):
        pixels = rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        return Case(pixels, size, mean, std)

    cases = [
        case(2, 3, 5, 3),
        case(3, 7, 4, 4),
        case(2, 7, 12, 5),
        case(1, 9, 5, 2, mean=np.zeros(3)),
        case(2, 3, 4, 8, std=np.ones(3)),
        case(1, 31, 20, 13),
        case(1, 4, 15, 4),
        case(2, 6, 6, 6),
        case(1, 1, 1, 1),
    ]
    return compare(candidate, reference=preprocess, cases=cases, tolerance=1e-5)


def check_micro_batcher(candidate: Callable) -> Passed:
    """Check ``micro_batcher(arrivals, max_batch, max_wait, a, b)`` -> [(start, size), …]."""
    cases = [
        Case([0, 1, 2, 3, 20], 3, 5, 10, 2),
        Case([0, 2, 3, 9, 30, 31, 34, 36, 50], 4, 6, 5, 1),
        Case([3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 4, 2, 8, 1),
        Case([1, 5, 6, 40, 41, 47, 48], 8, 7, 3, 2),
        Case([0, 0, 0, 0, 4, 4, 9, 14, 19, 19], 2, 5, 1, 1),
        Case([0, 3, 4, 5, 9, 30], 3, 0, 4, 1),
        Case([2, 3, 9, 10], 1, 5, 4, 1),
        Case([7], 4, 3, 1, 1),
        Case([], 4, 3, 1, 1),
    ]
    return compare(candidate, reference=micro_batcher, cases=cases)


def check_bounded_queue(candidate: Callable) -> Passed:
    """Check ``bounded_queue(arrivals, services, capacity)`` -> [wait, or None where shed]."""
    rng = np.random.default_rng(43)

    def drawn(count, apart, longest, capacity):
        arrivals = rng.integers(0, apart, count).cumsum().tolist()
        return Case(arrivals, rng.integers(1, longest, count).tolist(), capacity)

    cases = [
        Case([0, 1, 2, 3, 20], [5, 4, 3, 2, 6], 2),
        Case([0, 1, 2, 5, 6, 9], [5, 4, 3, 3, 2, 1], 1),
        Case([2, 3, 7, 8, 12], [5, 4, 1, 4, 2], 0),
        drawn(30, 5, 7, 3),
        drawn(30, 4, 9, 4),
        drawn(20, 9, 5, 2),
        Case([3], [4], 1),
        Case([], [], 1),
    ]
    return compare(candidate, reference=bounded_queue, cases=cases)


def check_v2_request(candidate: Callable) -> Passed:
    """Check ``v2_request(name, array, binary=False)`` -> (headers, body)."""
    if callable(candidate):
        require_signature(candidate, "v2_request(name, array, binary)")
    rng = np.random.default_rng(44)
    images = rng.normal(size=(2, 3, 2, 5)).astype(np.float32)
    cases = [
        Case("images", images),
        Case("images", images, binary=True),
        Case("groesse ü", rng.integers(0, 2**40, (3, 5)), binary=True),
        Case("turned", images[0].T, binary=True),
        Case("mask", rng.random((4, 3)) > 0.5, binary=False),
        Case("pixels", rng.integers(0, 256, (3, 2, 3), dtype=np.uint8), binary=True),
        Case("x", rng.normal(size=(1, 1))),
    ]
    outputs = "the headers", "the JSON", "the bytes behind the JSON"
    return compare(candidate, reference=v2_request, cases=cases, use=_sent, outputs=outputs)


def check_v2_answer(candidate: Callable) -> Passed:
    """Check ``v2_answer(headers, body)`` -> {name: array}, from either form."""
    if callable(candidate):
        require_signature(candidate, "v2_answer(headers, body)")
    rng = np.random.default_rng(45)
    logits = rng.normal(size=(3, 4)).astype(np.float32)
    labels = rng.integers(0, 2**40, (5, 1))
    cases = [
        _answer(["logits"], logits=logits),
        _answer([], logits=logits),
        _answer(["labels", "logits"], labels=labels, logits=logits),
        _answer(["logits"], labels=labels, logits=logits, sure=rng.random((2, 3)) > 0.5),
        _answer(["sure"], pixels=rng.integers(0, 9, (2, 2), dtype=np.uint8), sure=labels > 9),
        _answer([], x=rng.normal(size=(1, 1, 2))),
    ]
    return compare(candidate, reference=v2_answer, cases=cases, use=_received)


def check_continuous_batch(candidate: Callable) -> Passed:
    """Check ``continuous_batch(requests, slots, pages, page_size)`` -> who gets a token when."""
    rng = np.random.default_rng(46)

    def drawn(count, slots, pages, page_size):
        arrivals = rng.integers(0, 4, count).cumsum().tolist()
        lengths = rng.integers(1, 9, (count, 2)).tolist()
        return Case([(t, *both) for t, both in zip(arrivals, lengths, strict=True)], slots, pages,
                    page_size)  # fmt: skip

    cases = [
        Case([(0, 3, 4), (0, 2, 2), (1, 4, 3)], 2, 20, 4),
        Case([(0, 4, 3), (0, 5, 5), (1, 1, 1), (2, 2, 6), (9, 3, 2), (15, 2, 1)], 3, 4, 4),
        drawn(8, 3, 6, 4),
        drawn(9, 4, 5, 5),
        drawn(9, 2, 30, 3),
        drawn(7, 8, 7, 3),
        Case([(2, 5, 3), (2, 1, 2)], 1, 2, 4),
        Case([(1, 1, 1)], 1, 1, 2),
    ]
    return compare(candidate, reference=continuous_batch, cases=cases)


def _sent(function: Callable, name: str, array: np.ndarray, **options: bool) -> tuple | None:
    """What a server reads: headers, the JSON, and the bytes behind it.

    Data may be nested or flat, and JSON has many forms: its length must only be that of the JSON.
    """
    answer = function(name, array, **options)
    if answer is None:
        return None
    match answer:
        case [dict() as headers, bytes() | bytearray() | str() as body]:
            body = body.encode() if isinstance(body, str) else bytes(body)
        case _:
            advice = "Return a dict of headers and the bytes of the body: return headers, body."
            facts = f"It returned {describe(answer)}."
            if isinstance(answer, tuple | list) and len(answer) == 2:
                facts = "The headers are {}, the body is {}.".format(*map(describe, answer))
            raise refusal("not-a-pair", advice, facts)
    length = headers.get(LENGTH, str(len(body)))
    try:
        at = int(length)
    except (TypeError, ValueError):  # what stands there instead is shown with the headers
        at = len(body)
    try:
        read = json.loads(body[:at])
        for tensor in read["inputs"]:
            if "data" in tensor:
                tensor["data"] = np.asarray(tensor["data"]).flatten().tolist()
    except (ValueError, KeyError, TypeError):
        return headers, body[:at].decode(errors="replace"), list(body[at:])
    if isinstance(length, str) and LENGTH in headers:
        headers = headers | {LENGTH: "where the JSON ends"}
    return headers, read, list(body[at:])


def _answer(in_bytes: list[str], **arrays: np.ndarray) -> Case:
    """An answer with ``arrays``: those named ``in_bytes`` behind the JSON, the others in it."""
    outputs, tail = [], b""
    for name, array in arrays.items():
        tensor: dict[str, Any] = {"name": name, "datatype": V2_TYPES[str(array.dtype)]}
        tensor["shape"] = list(array.shape)
        if name in in_bytes:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            tensor["data"] = array.flatten().tolist()
        outputs.append(tensor)
    head = json.dumps({"model_name": "net", "outputs": outputs}).encode()
    return Case({LENGTH: str(len(head))} if tail else {}, head + tail)


def _received(function: Callable, headers: dict, body: bytes) -> Any:
    """Arrays made from bytes may be read-only; the comparison wants its own."""
    answer = function(headers, body)
    if not isinstance(answer, dict):
        return answer
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in answer.items()}
