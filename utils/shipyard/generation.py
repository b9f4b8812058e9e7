"""Text for many requests at once: a paged key-value cache, and a batch that changes at every step.

`PagedCache` keeps keys and values of many sequences in pages of one store, `next_logits` runs a
`models.CharTransformer` on them, `Engine` decides at each step who takes part, and `Streams`
hands the tokens to asyncio, where a web server waits for them.

Sources: G.-I. Yu et al., "Orca: a distributed serving system for Transformer-based generative
models", 2022 (batching by step); W. Kwon et al., "Efficient memory management for large language
model serving with PagedAttention", 2023 (pages).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from shipyard import attention, models
from shipyard.errors import ServingError


class PagedCache:
    """Room for keys and values of ``pages`` · ``page_size`` positions, shared by many sequences.

    A sequence has a table, a list of page numbers. Its position t lies in page
    table[t // page_size], at place t % page_size. Pages of one sequence need not be neighbours.

    Attributes:
        store: (layers, 2, pages, page_size, heads, d), keys at 0 and values at 1.
        free: numbers of the pages that nobody has.
    """

    def __init__(self, model: models.CharTransformer, pages: int, page_size: int = 16) -> None:
        heads, weight = model.blocks[0].heads, model.embedding.weight
        d = weight.shape[1] // heads
        self.pages, self.page_size = pages, page_size
        self.store = weight.new_zeros(len(model.blocks), 2, pages, page_size, heads, d)
        self.free = list(range(pages))

    def needed(self, length: int) -> int:
        """Pages for ``length`` positions: ⌈length / page_size⌉."""
        return -(-length // self.page_size)

    def grow(self, table: list[int], length: int) -> bool:
        """Let ``table`` have the pages for ``length`` positions; False, if too few are free."""
        missing = self.needed(length) - len(table)
        if missing > len(self.free):
            return False
        table += [self.free.pop() for _ in range(missing)]
        return True

    def release(self, table: list[int]) -> None:
        """Take all pages of ``table`` back."""
        self.free += table
        table.clear()


def next_logits(
    model: models.CharTransformer, cache: PagedCache, tokens: Tensor, past: Tensor, tables: Tensor
) -> Tensor:
    """What ``model`` says of the token behind ``tokens``; their keys and values go into ``cache``.

    Equal to ``model(whole sequence)[:, -1]``, row by row: each row has its own past.

    Args:
        tokens: (batch, time), the new ones of each sequence.
        past: (batch), positions of each sequence that are in the cache already.
        tables: (batch, pages), page numbers that have room for past + time positions. A row may
            be filled up with any page; what lies behind the row's last position is hidden.

    Returns:
        (batch, vocabulary)
    """
    size = cache.page_size
    positions = past[:, None] + torch.arange(tokens.shape[1], device=tokens.device)  # (batch, time)
    page, place = tables.gather(1, positions // size), positions % size  # (batch, time) each
    stored = torch.arange(tables.shape[1] * size, device=tokens.device)  # (keys)
    mask = (stored <= positions[..., None])[:, None]  # (batch, 1, time, keys)
    x = model.embedding(tokens)  # (batch, time, width)
    for block, store in zip(model.blocks, cache.store, strict=True):
        query, key, value = (
            attention.split_heads(part, block.heads)  # (batch, heads, time, d)
            for part in block.to_qkv(block.norm_attention(x)).chunk(3, dim=-1)
        )
        query = attention.rotary_encoding(query, positions[:, None])
        key = attention.rotary_encoding(key, positions[:, None])
        store[0, page, place], store[1, page, place] = key.transpose(1, 2), value.transpose(1, 2)
        # (2, batch, pages, page_size, heads, d) → (batch, heads, keys, d) each
        keys, values = store[:, tables].flatten(2, 3).transpose(2, 3)
        mixed = attention.scaled_dot_product_attention(query, keys, values, mask)
        x = x + block.to_out(attention.merge_heads(mixed))
        x = x + block.mlp(block.norm_mlp(x))
    return F.linear(model.norm(x[:, -1]), model.embedding.weight)


@dataclass(eq=False)
class Generation:
    """One request: ``tokens`` are those generated so far, ``limit`` how many there will be.

    ``cached`` positions lie in the pages of ``table``. Set ``cancelled`` to give it up.
    """

    prompt: list[int]
    limit: int
    tokens: list[int] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    cached: int = 0
    cancelled: bool = False

    @property
    def done(self) -> bool:
        return self.cancelled or len(self.tokens) == self.limit


class Engine:
    """Greedy generation for many requests: `step` gives each running one a token more.

    A request that comes into the batch has its whole prompt read, which gives its first token.
    One that has its last token leaves, and its pages are free. When pages run out, the youngest
    leaves too: it goes back to the head of the queue and is read again later, prompt and tokens.

    Args:
        slots: requests that may run at the same time.
        pages, page_size: room of the `PagedCache`.
        continuous: requests join as soon as there is room. False is static batching: they wait
            until all that run have come to their end.
        max_waiting: requests that may wait; one more is refused.
    """

    def __init__(
        self, model: models.CharTransformer, slots: int = 8, pages: int = 128, page_size: int = 16,
        *, continuous: bool = True, max_waiting: int = 64,
    ) -> None:  # fmt: skip
        self.model, self.slots, self.continuous = model.eval(), slots, continuous
        self.max_waiting = max_waiting
        self.cache = PagedCache(model, pages, page_size)
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []  # the oldest first
        self.preempted = 0

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self.running or self.waiting)

    def submit(self, prompt: Sequence[int], limit: int) -> Generation:
        """Queue a request for ``limit`` tokens that follow ``prompt``.

        Raises:
            ServingError: nothing to do, longer than the cache, or too many requests wait.
        """
        room = self.cache.pages * self.cache.page_size
        if not prompt or limit < 1:
            raise ServingError(
                f"A prompt of {len(prompt)} tokens and a limit of {limit}; both must be 1 or more."
            )
        if len(prompt) + limit > room:
            raise ServingError(
                f"The prompt has {len(prompt)} tokens and {limit} are asked for; together at most "
                f"{room} have room. Shorten the prompt or ask for less."
            )
        if len(self.waiting) >= self.max_waiting:
            raise ServingError(f"{self.max_waiting} requests wait already. Try again soon.")
        request = Generation(list(prompt), limit)
        self.waiting.append(request)
        return request

    @torch.no_grad()
    def step(self) -> list[tuple[Generation, int]]:
        """One token more for each running request: the pairs (request, token)."""
        for request in [r for r in self.running if r.cancelled]:
            self._leave(request)
        old = list(self.running)
        new = self._admit()
        made = list(zip(new, [self._run([r])[0] for r in new], strict=True))
        old = self._with_room(old)
        if old:
            made += zip(old, self._run(old), strict=True)
        for request, token in made:
            request.tokens.append(token)
            if request.done:
                self._leave(request)
        return made

    def _admit(self) -> list[Generation]:
        """Let the first of the queue in, as far as there are slots and pages."""
        new: list[Generation] = []
        open_door = self.continuous or not self.running
        while open_door and self.waiting and len(self.running) < self.slots:
            request = self.waiting[0]
            length = len(request.prompt) + len(request.tokens)
            if not request.cancelled and not self.cache.grow(request.table, length):
                break
            self.waiting.popleft()
            if not request.cancelled:
                new.append(request)
                self.running.append(request)
        return new

    def _with_room(self, requests: list[Generation]) -> list[Generation]:
        """Those of ``requests`` that keep or get the page for one position more."""
        for request in requests:
            while request in self.running and not self.cache.grow(
                request.table, request.cached + 1
            ):
                youngest = self.running[-1]
                self._leave(youngest)
                self.waiting.appendleft(youngest)
                self.preempted += 1
        return [request for request in requests if request in self.running]

    def _run(self, requests: list[Generation]) -> list[int]:
        """The next token of each: all tokens of a request that is new, the last one of others."""
        device = self.cache.store.device
        new = [(r.prompt + r.tokens)[r.cached :] for r in requests]
        most = max(len(r.table) for r in requests)
        tables = [r.table + [0] * (most - len(r.table)) for r in requests]
        logits = next_logits(
            self.model,
            self.cache,
            torch.tensor(new, device=device),
            torch.tensor([r.cached for r in requests], device=device),
            torch.tensor(tables, device=device),
        )
        for request, tokens in zip(requests, new, strict=True):
            request.cached += len(tokens)
        return logits.argmax(-1).tolist()

    def _leave(self, request: Generation) -> None:
        self.running.remove(request)
        self.cache.release(request.table)
        request.cached = 0


class Streams:
    """An engine for asyncio: ``async for token in streams.generate(prompt, limit)``.

    Use it as ``async with Streams(engine) as streams``. Steps run in a thread, one after the
    other, so that the event loop stays free. Whoever stops reading gives its request up.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._queues: dict[Generation, asyncio.Queue[int | Exception | None]] = {}
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Streams:
        self._work = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)

    def generate(self, prompt: Sequence[int], limit: int) -> AsyncIterator[int]:
        """Queue a request at once, and return its tokens as they come.

        Raises:
            ServingError: as `Engine.submit`, or the engine has failed.
        """
        if self._work.done():
            raise ServingError("The engine has stopped. Start it again.")
        request = self.engine.submit(prompt, limit)
        self._queues[request] = asyncio.Queue()
        self._wake.set()
        return self._tokens(request)

    async def _tokens(self, request: Generation) -> AsyncIterator[int]:
        try:
            for _ in range(request.limit):
                token = await self._queues[request].get()
                if isinstance(token, Exception):
                    raise ServingError(f"The engine failed: {token!r}") from token
                yield token
        finally:
            request.cancelled = True
            del self._queues[request]

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                for request, token in await asyncio.to_thread(self.engine.step):
                    if request in self._queues:
                        self._queues[request].put_nowait(token)
                if not self.engine.busy:
                    self._wake.clear()
        except Exception as error:
            for queue in self._queues.values():
                queue.put_nowait(error)
            raise
