"""Wrong answers on serving, and other correct ones."""

import collections
import heapq
import json
import struct

import numpy as np

from shipyard.checks.serving import LENGTH, NUMPY_TYPES, V2_TYPES
from wrong_answers import Task

PREPROCESS, BATCHER, QUEUE, REQUEST, ANSWER, CONTINUOUS = (Task() for _ in range(6))
TASKS = {
    "preprocess": PREPROCESS,
    "micro_batcher": BATCHER,
    "bounded_queue": QUEUE,
    "v2_request": REQUEST,
    "v2_answer": ANSWER,
    "continuous_batch": CONTINUOUS,
}


# Preprocessing.


def cut(pixels, size, offset=0.5):
    """Resized and cropped bytes (batch, size, size, 3), pixel by pixel."""
    height, width = pixels.shape[1:3]
    short = min(height, width)
    h, w = height * size // short, width * size // short
    result = np.empty((len(pixels), size, size, 3), np.uint8)
    for y in range(size):
        for x in range(size):
            row = int((y + (h - size) // 2 + offset) * height / h)
            column = int((x + (w - size) // 2 + offset) * width / w)
            result[:, y, x] = pixels[:, row, column]
    return result


@PREPROCESS.fails_with("reshaped")
def changes_the_shape_only(pixels, size, mean, std):
    x = (cut(pixels, size) / 255.0 - mean) / std
    return x.reshape(-1, 3, size, size).astype("float32")


@PREPROCESS.fails_with("pixel-centres-ignored")
def looks_at_the_corner_of_a_pixel(pixels, size, mean, std):
    x = (cut(pixels, size, offset=0) / 255.0 - mean) / std
    return np.moveaxis(x, -1, 1).astype("float32")


@PREPROCESS.fails_with("wrong-dtype")
def stays_in_double_precision(pixels, size, mean, std):
    return np.moveaxis((cut(pixels, size) / 255 - mean) / std, -1, 1)


@PREPROCESS.passes
def goes_pixel_by_pixel(pixels, size, mean, std):
    x = (np.float32(cut(pixels, size)) / np.float32(255) - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(np.moveaxis(x, 3, 1))


@PREPROCESS.passes
def goes_channel_by_channel(pixels, size, mean, std):
    scaled = cut(pixels, size) / 255
    channels = [(scaled[..., c] - mean[c]) / std[c] for c in range(3)]
    return np.stack(channels, axis=1).astype(np.float32)


# The micro-batcher.


def batch_by_events(arrivals, max_batch, max_wait, a, b, from_free=False):
    """Requests enter a queue one after the other; the clock moves from event to event."""
    coming, queue = collections.deque(arrivals), collections.deque()
    free, batches = 0, []
    while coming or queue:
        if not queue:
            queue.append(coming.popleft())
        since = max(free, queue[0]) if from_free else queue[0]
        deadline = max(free, since + max_wait)
        while coming and len(queue) < max_batch and coming[0] <= deadline:
            queue.append(coming.popleft())
        start = max(free, queue[max_batch - 1]) if len(queue) >= max_batch else deadline
        size = min(len(queue), max_batch)
        for _ in range(size):
            queue.popleft()
        batches.append((start, size))
        free = start + a + b * size
    return batches


@BATCHER.fails_with("deadline-counted-from-the-free-worker")
def starts_the_clock_when_the_worker_is_free(arrivals, max_batch, max_wait, a, b):
    return batch_by_events(arrivals, max_batch, max_wait, a, b, from_free=True)


@BATCHER.fails_with("each-request-pays-the-fixed-cost")
def multiplies_the_whole_cost(arrivals, max_batch, max_wait, a, b):
    batches, free, first = [], 0, 0
    while first < len(arrivals):
        start = arrivals[first] + max_wait
        if first + max_batch <= len(arrivals):
            start = min(start, arrivals[first + max_batch - 1])
        start = max(start, free)
        size = sum(t <= start for t in arrivals[first : first + max_batch])
        batches.append((start, size))
        free, first = start + size * (a + b), first + size
    return batches


@BATCHER.passes
def moves_from_event_to_event(arrivals, max_batch, max_wait, a, b):
    return batch_by_events(arrivals, max_batch, max_wait, a, b)


@BATCHER.passes
def steps_through_time(arrivals, max_batch, max_wait, a, b):
    """Times are whole numbers in the cases, so that a clock that ticks will do."""
    batches, queue, free, now, next_one = [], [], 0, 0, 0
    while next_one < len(arrivals) or queue:
        while next_one < len(arrivals) and arrivals[next_one] <= now:
            queue.append(arrivals[next_one])
            next_one += 1
        due = queue and (len(queue) >= max_batch or now >= queue[0] + max_wait)
        if due and now >= free:
            batches.append((now, min(len(queue), max_batch)))
            free = now + a + b * batches[-1][1]
            del queue[:max_batch]
        now += 1
    return batches


# The bounded queue.


@QUEUE.fails_with("one-too-many")
def compares_without_the_equal_sign(arrivals, services, capacity):
    waits, ahead, free = [], collections.deque(), 0
    for t, s in zip(arrivals, services, strict=True):
        while ahead and ahead[0] <= t:
            ahead.popleft()
        if t < free and len(ahead) > capacity:
            waits.append(None)
            continue
        begin = max(free, t)
        ahead.append(begin)
        waits.append(begin - t)
        free = begin + s
    return waits


@QUEUE.fails_with("shed-requests-take-time")
def serves_those_that_it_sent_away(arrivals, services, capacity):
    waits, begins, free = [], [], 0
    for t, s in zip(arrivals, services, strict=True):
        if free > t and len([b for b in begins if b > t]) >= capacity:
            waits.append(None)
            free += s
            continue
        begins.append(max(free, t))
        waits.append(begins[-1] - t)
        free = begins[-1] + s
    return waits


@QUEUE.passes
def keeps_a_heap_of_starts(arrivals, services, capacity):
    waits, ahead, free = [], [], 0
    for t, s in zip(arrivals, services, strict=True):
        while ahead and ahead[0] <= t:
            heapq.heappop(ahead)
        if t >= free:
            waits.append(0)
            free = t + s
        elif len(ahead) < capacity:
            heapq.heappush(ahead, free)
            waits.append(free - t)
            free += s
        else:
            waits.append(None)
    return waits


@QUEUE.passes
def steps_through_every_moment(arrivals, services, capacity):
    waits, queue, busy_until = [None] * len(arrivals), [], 0
    for now in range(max(arrivals, default=0) + sum(services) + 1):
        if queue and busy_until <= now:
            n = queue.pop(0)
            waits[n], busy_until = now - arrivals[n], now + services[n]
        for n in [n for n, t in enumerate(arrivals) if t == now]:
            if busy_until <= now:
                waits[n], busy_until = 0, now + services[n]
            elif len(queue) < capacity:
                queue.append(n)
    return waits


# Requests and answers of version 2 of the protocol.


@REQUEST.fails_with("size-counts-numbers")
def counts_numbers(name, array, binary=False):
    if not binary:
        return sends_nested_lists(name, array)
    parameters = {"binary_data_size": int(np.prod(array.shape))}
    tensor = {"name": name, "datatype": V2_TYPES[array.dtype.name], "parameters": parameters}
    head = json.dumps({"inputs": [{**tensor, "shape": array.shape}]}).encode()
    headers = {LENGTH: f"{len(head)}", "Content-Type": "application/octet-stream"}
    return headers, head + array.tobytes()


@REQUEST.fails_with("order-of-memory")
def sends_memory_as_it_lies(name, array, binary=False):
    headers, body = packs_each_number(name, array, binary)
    tail = array.ravel(order="K").tobytes()
    return headers, (body[: -len(tail)] + tail if binary else body)


@REQUEST.passes
def sends_nested_lists(name, array, binary=False):
    if binary:
        return packs_each_number(name, array, True)
    tensor = {"datatype": V2_TYPES[array.dtype.name], "data": array.tolist()}
    body = json.dumps({"inputs": [{"name": name, "shape": array.shape, **tensor}]})
    return {"Content-Type": "application/json"}, body


@REQUEST.passes
def packs_each_number(name, array, binary=False):
    tensor = {"name": name, "shape": array.shape, "datatype": V2_TYPES[array.dtype.name]}
    headers, tail = {"Content-Type": "application/json"}, b""
    if binary:
        headers["Content-Type"] = "application/octet-stream"
        code = {"FP32": "f", "FP64": "d", "INT32": "i", "INT64": "q", "UINT8": "B", "BOOL": "?"}
        tail = struct.pack(f"<{array.size}{code[tensor['datatype']]}", *array.flat)
        tensor["parameters"] = {"binary_data_size": len(tail)}
    else:
        tensor["data"] = [x.item() for x in array.flat]
    head = json.dumps({"inputs": [tensor]}, ensure_ascii=False).encode()
    return headers | ({LENGTH: str(len(head))} if binary else {}), head + tail


@ANSWER.fails_with("bytes-from-the-start-again")
def forgets_to_go_on(headers, body):
    at = int(headers[LENGTH]) if LENGTH in headers else len(body)
    found = {}
    for out in json.loads(body[:at])["outputs"]:
        kind = NUMPY_TYPES[out["datatype"]]
        size = out.get("parameters", {}).get("binary_data_size")
        raw = np.array(out["data"], kind) if size is None else np.frombuffer(body[at:][:size], kind)
        found[out["name"]] = raw.reshape(out["shape"])
    return found


@ANSWER.fails_with("default-types")
def lets_numpy_choose(headers, body):
    found = reads_from_a_stream(headers, body)
    length = int(headers.get(LENGTH, len(body)))
    for out in json.loads(body[:length])["outputs"]:
        if "data" in out:
            found[out["name"]] = np.reshape(out["data"], out["shape"])
    return found


@ANSWER.passes
def reads_from_a_stream(headers, body):
    length = int(headers.get(LENGTH) or len(body))
    head, rest = json.loads(body[:length]), body[length:]
    found = {}
    for out in head["outputs"]:
        kind = np.dtype(NUMPY_TYPES[out["datatype"]]).newbyteorder("<")
        if "parameters" in out:
            size = out["parameters"]["binary_data_size"]
            raw, rest = np.frombuffer(rest[:size], kind), rest[size:]
        else:
            raw = np.asarray(out["data"], kind)
        found[out["name"]] = raw.reshape(out["shape"]).copy()
    return found


@ANSWER.passes
def counts_from_the_shape(headers, body):
    at = int(headers.get(LENGTH, len(body)))
    found = {}
    for out in json.loads(body[:at].decode())["outputs"]:
        array = np.zeros(out["shape"], NUMPY_TYPES[out["datatype"]])
        if "data" in out:
            array.flat[:] = out["data"]
        else:
            array.flat[:] = np.frombuffer(body, array.dtype, count=array.size, offset=at)
            at += array.nbytes
        found[out["name"]] = array
    return found


# Continuous batching.


@CONTINUOUS.fails_with("static")
def fills_the_batch_when_it_is_empty(requests, slots, pages, page_size):
    return with_a_list_of_ends(requests, slots, pages, page_size, static=True)


@CONTINUOUS.fails_with("overtaking")
def lets_small_ones_overtake(requests, slots, pages, page_size):
    schedule, out, running, free = [], set(), {}, pages
    while len(out) < len(requests):
        for n, (arrival, prompt, output) in enumerate(requests):
            need = -(-(prompt + output) // page_size)
            waits = n not in out and n not in running and arrival <= len(schedule)
            if waits and len(running) < slots and need <= free:
                running[n], free = output, free - need
        schedule.append(sorted(running))
        for n in list(running):
            running[n] -= 1
            if not running[n]:
                del running[n]
                out.add(n)
                free += -(-sum(requests[n][1:]) // page_size)
    return schedule


@CONTINUOUS.passes
def with_a_list_of_ends(requests, slots, pages, page_size, static=False):
    """Each request's first and last step, then the steps from them."""
    spans, step = [], 0  # (first, last, pages)
    for arrival, prompt, output in requests:
        need = (prompt + output + page_size - 1) // page_size
        step = max(step, arrival)
        while True:
            now = [span for span in spans if span[0] <= step <= span[1]]
            room = len(now) < slots and sum(span[2] for span in now) + need <= pages
            if room and not (static and any(span[0] < step for span in now)):
                break
            step += 1
        spans.append((step, step + output - 1, need))
    end = max(last for _, last, _ in spans) + 1
    return [[n for n, (first, last, _) in enumerate(spans) if first <= t <= last]
            for t in range(end)]  # fmt: skip


@CONTINUOUS.passes
def with_counters(requests, slots, pages, page_size):
    queue = collections.deque(enumerate(requests))
    running, free, schedule = {}, pages, []
    while queue or running:
        while queue and len(running) < slots:
            n, (arrival, prompt, output) = queue[0]
            need = -(-(prompt + output) // page_size)
            if arrival > len(schedule) or need > free:
                break
            queue.popleft()
            running[n], free = [output, need], free - need
        schedule.append([*running])
        for n in [*running]:
            running[n][0] -= 1
            if running[n][0] == 0:
                free += running.pop(n)[1]
    return schedule
