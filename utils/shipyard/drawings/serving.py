"""A request on its way through a server, batches in time, and the pages of a key-value cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shipyard import plots
from shipyard.drawings.paper import EDGE, FILLS, INK, Drawing

SHADES = [("#CFE3F3", plots.BLUE), ("#FBE3B8", "#B97400"), ("#CDEBE0", "#007A59"),
          ("#F3D9E8", "#A8447F"), ("#F9D9C6", "#A84A00"), ("#DCDCDC", "#555555"),
          ("#D6EEFA", "#2A7FA8"), ("#EFE9AE", "#857A00")]  # fmt: skip

# Examples: four requests at most in a batch, which costs 6 ms and 1 ms for each; three slots.
ARRIVALS = (0, 1, 2, 12, 14, 20, 21, 22, 23, 24, 25, 26, 27, 40)
BATCHES = ((5, 3, 14), (17, 2, 25), (25, 4, 35), (35, 4, 45), (45, 1, 52))
SCHEDULES = {
    "one request at a time": ((0,), (0,), (0,), (0,), (1,), (2,), (2,)),
    "continuous batching": ((0, 1, 2), (0, 2), (0,), (0,)),
}


def request_path() -> Drawing:
    """From the bytes of a picture to an answer: many requests, one queue, one model."""
    d = Drawing(
        980, 300,
        "The way of a request: a client sends the bytes of a picture over HTTP; the server reads "
        "them, decodes and normalises the picture, and puts it into a queue with a limit. The "
        "batcher takes several at once, the model answers them together, and each answer goes "
        "back to its own client. When the queue is full, the answer is 503 at once.",
    )  # fmt: skip
    d.group(158, 20, 960, 262)
    d.note(180, 38, "server", "left")
    middle, back = 140, 236
    for y in (84, middle, 196):
        client = d.box(70, y, "client", "plain", 76, 34)
        bend = () if y == middle else ((176, y), (176, middle))
        d.wire(client.right, *bend, (199, middle), arrow=y == middle)
    read = d.pill(240, middle, "read", 82)
    decode = d.pill(354, middle, "decode", 86)
    d.wire(read.right, decode.left)
    d.note(240, middle - 28, "HTTP to bytes")
    d.note(354, middle + 28, "bytes to numbers")
    places = [d.box(462 + 27 * n, middle, "", "data" if n > 1 else "plain", 24, 36, 3)
              for n in range(5)]  # fmt: skip
    d.wire(decode.right, places[0].left)
    d.label(530, middle - 34, "queue", plots.BLUE, 11)
    d.note(516, middle + 32, "a limit: 5 places")
    batcher = d.box(664, middle, "batcher", "focus", 88, 40)
    d.wire(places[-1].right, batcher.left)
    d.note(664, middle + 32, "at most 3, and none")
    d.note(664, middle + 48, "waits longer than 5 ms")
    batch = d.tensor(778, middle, 3, 4, "data", "", "one batch")
    model = d.box(890, middle, "model", "weights", 80, 48)
    d.wire(batcher.right, batch.left)
    d.wire(batch.right, model.left)
    d.wire(model.bottom, (890, back), (70, back), (70, 214), colour=plots.BLUE)
    d.label(520, back - 13, "answers, each to its own client", plots.BLUE, 9)
    d.wire(places[0].top, (462, 52), (70, 52), (70, 66), colour=plots.VERMILION)
    d.label(330, 40, "full: 503, try again later", plots.VERMILION, 9)
    d.legend(284, ("function", "function"), ("weights", "weights, learned"), ("data", "a request"))
    return d


def batches_in_time(
    arrivals: Sequence[float] = ARRIVALS,
    batches: Sequence[tuple[float, int, float]] = BATCHES,
    max_wait: float = 5,
) -> Drawing:
    """Which requests go together: ``batches`` are (start, size, end), in order of the arrivals."""
    sizes = ", ".join(str(size) for _, size, _ in batches)
    d = Drawing(
        940, 250,
        f"{len(arrivals)} arrivals on a line of time, and below it the {len(batches)} batches that "
        f"they form, of size {sizes}: the first request of a batch waits at most {max_wait:g} for "
        "company, and a batch that is full, or late, starts as soon as the worker is free.",
    )  # fmt: skip
    end = max(end for _, _, end in batches)
    scale = 760 / end

    def x(t: float) -> float:
        return 130 + scale * t

    d.label(112, 62, "arrivals", plots.BLUE, 10, "right")
    d.label(112, 162, "worker", "#B97400", 10, "right")
    d.wire((x(0), 62), (x(end) + 24, 62), colour="#B5B5B5", width=1.5)
    d.wire((x(0), 206), (x(end) + 24, 206), colour=INK, width=1.5)
    for t in range(0, int(end) + 1, 5):
        d.wire((x(t), 203), (x(t), 209), width=1.5, arrow=False)
        d.note(x(t), 219, f"{t:g}")
    d.note(x(end) + 24, 238, "time in ms", "right")
    first = 0
    for number, (start, size, done) in enumerate(batches):
        fill, edge = SHADES[number % len(SHADES)]
        left, right = x(start) + 1, x(done) - 1
        d.block(left, 144, right - left, 36, fill, edge, 2)
        d.label((left + right) / 2, 163, str(size), edge, 11)
        members = arrivals[first : first + size]
        for t in members:
            d.wire((x(t), 68), (x(t), 100), (x(start) + 2, 144), colour=edge, width=1.3)
            d.dot(x(t), 62, edge)
        opened = members[0]
        until = min(start, opened + max_wait)
        if until > opened:
            d.wire((x(opened), 42), (x(until), 42), colour=edge, width=3, arrow=False)
        first += size
    d.note(x(0), 26, f"thick: the first request waits for company, {max_wait:g} ms at most", "left")
    return d


def batch_schedules(
    schedules: Mapping[str, Sequence[Sequence[int]]] = SCHEDULES, slots: int = 3
) -> Drawing:
    """Who has which slot at which step; one panel for each way of batching.

    Args:
        schedules: for each way, the requests that get a token at each step.
        slots: rows of a panel; the panel of one request at a time has one.
    """
    longest = max(len(steps) for steps in schedules.values())
    rows = [1 if all(len(step) < 2 for step in steps) else slots for steps in schedules.values()]
    cell, height, gap = 780 / longest, 22, 46
    total = sum(rows) * height + len(rows) * gap + 40
    ends = ", ".join(f"{name} {len(steps)} steps" for name, steps in schedules.items())
    d = Drawing(
        960, int(total),
        f"The same requests, batched in {len(schedules)} ways, with time to the right: {ends}. "
        "Empty cells are slots in which nothing is computed for anybody.",
    )  # fmt: skip
    y = 34.0
    for (name, steps), count in zip(schedules.items(), rows, strict=True):
        d.label(20, y - 14, name, size=11, align="left")
        d.note(20 + 780, y - 13, f"{len(steps)} steps", "right")
        _one_schedule(d, steps, count, y, cell, height)
        y += count * height + gap
    d.wire((20, y - 22), (20 + 780, y - 22), width=1.5)
    d.note(20 + 780 + 8, y - 22, "steps", "left")
    d.note(810, 46, "a colour: one request", "left")
    return d


def _one_schedule(
    d: Drawing, steps: Sequence[Sequence[int]], rows: int, top: float, cell: float, height: float
) -> None:
    """Draw one panel: each request keeps the row in which it began."""
    row_of: dict[int, int] = {}
    for step, members in enumerate(steps):
        taken = {row_of[n] for n in members if n in row_of}
        for n in members:
            new = n not in row_of
            if new:
                row_of[n] = min(set(range(rows)) - taken)
                taken.add(row_of[n])
            left, up = 20 + step * cell, top + row_of[n] * height
            fill, edge = SHADES[n % len(SHADES)]
            d.block(left, up, cell, height, fill, edge, 1)
            if new:
                d.label(left + cell / 2, up + height / 2 + 1, str(n + 1), edge, 9)
    right, bottom = 20 + len(steps) * cell, top + rows * height
    for row in range(rows + 1):
        d.wire((20, top + row * height), (right, top + row * height), colour="#C8C8C8", width=1,
               arrow=False)  # fmt: skip
    d.wire((right, top), (right, bottom), colour=EDGE, width=1.5, arrow=False)


def paged_cache() -> Drawing:
    """Two sequences, their tables of page numbers, and the store in which the pages lie."""
    d = Drawing(
        940, 300,
        "Two texts, each with a table of page numbers, and one store of eight pages with four "
        "places each. The first text has pages 1, 5 and 2, the second 3 and 6: they need not be "
        "neighbours, and only the last page of each text has empty places.",
    )  # fmt: skip
    texts = [("text A", "data", 11, [1, 5, 2], 76), ("text B", "focus", 6, [3, 6], 192)]
    store_x, store_y, place = 560, 56, 26
    owner = {page: role for _, role, _, pages, _ in texts for page in pages}
    filled = {page: min(4, length - 4 * k) for _, _, length, pages, _ in texts
              for k, page in enumerate(pages)}  # fmt: skip
    corner = {}
    for page in range(8):
        column, row = page // 4, page % 4
        left, top = store_x + 190 * column, store_y + 54 * row
        corner[page] = (left, top)
        for n in range(4):
            used = n < filled.get(page, 0)
            fill, edge = FILLS[owner[page]] if used else ("white", "#B5B5B5")
            d.block(left + n * place, top, place, 30, fill, edge)
        d.note(left - 12, top + 16, str(page))
    d.note(store_x + 150, 28, "store: 8 pages of 4 places, for keys and for values")
    for name, role, length, pages, y in texts:
        edge = FILLS[role][1]
        d.label(30, y - 26, name, edge, 11, "left")
        d.note(96, y - 26, f"{length} positions", "left")
        for t in range(length):
            x = 30 + 22 * t
            d.block(x, y, 22, 22, FILLS[role][0], edge, 1)
            d.note(x + 11, y + 11, str(t))
            if t % 4 == 0:
                d.wire((x, y - 5), (x, y + 27), colour=edge, width=2.5, arrow=False)
        d.note(330, y - 26, "table", "left")
        for k, page in enumerate(pages):
            box = d.box(340 + 44 * k, y + 11, str(page), role, 40, 26)
            left, top = corner[page]
            if k == 0:
                d.wire(box.bottom, (box.x, top + 15), (left - 22, top + 15), colour=edge, width=1.5)
    d.note(30, 282, "position t lies in page table[t // 4], at place t % 4", "left")
    return d
