"""Batched generation: whatever shares a batch and its pages, each text is the one made alone."""

import asyncio

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shipyard import generation, models
from shipyard.errors import ServingError

VOCABULARY = 11


def make_model():
    torch.manual_seed(0)
    model = models.CharTransformer(VOCABULARY, width=16, heads=2, layers=2)
    with torch.no_grad():  # larger weights than in training, for texts of many letters
        for name, weight in model.named_parameters():
            weight.mul_(1 if "norm" in name else 60 if "embedding" in name else 4)
    return model.double().eval()


MODEL = make_model()


@torch.no_grad()
def alone(prompt, limit, model=MODEL):
    """Greedy generation as in the formula: the whole text is read again for each token."""
    tokens = list(prompt)
    for _ in range(limit):
        device = model.embedding.weight.device
        logits = model(torch.tensor([tokens], device=device))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def drive(engine, requests):
    """Run (arrival step, prompt, limit) to their end; the requests and the number of steps."""
    waiting, made, steps = sorted(requests, key=lambda r: r[0]), [], 0
    while waiting or engine.busy:
        while waiting and waiting[0][0] <= steps:
            _, prompt, limit = waiting.pop(0)
            made.append(engine.submit(prompt, limit))
        before = {r: len(r.tokens) for r in engine.running}
        engine.step()
        assert all(len(r.tokens) == before[r] + 1 for r in engine.running if r in before)
        owned = [page for r in engine.running for page in r.table]
        assert sorted(owned + engine.cache.free) == list(range(engine.cache.pages))
        assert len(engine.running) <= engine.slots
        steps += 1
        assert steps < 1000
    return made, steps


prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)
request_lists = st.lists(
    st.tuples(st.integers(0, 12), prompts, st.integers(1, 11)), min_size=1, max_size=7
)


@settings(max_examples=40, deadline=None)
@given(request_lists, st.integers(1, 4), st.integers(20, 30), st.integers(1, 5), st.booleans())
def test_every_text_is_the_one_generated_alone(requests, slots, room, page_size, continuous):
    pages = -(-room // page_size)  # few: some requests must give their pages back
    engine = generation.Engine(MODEL, slots, pages, page_size, continuous=continuous)
    made, _ = drive(engine, requests)
    assert all(r.tokens == alone(r.prompt, r.limit) for r in made)
    assert sorted(engine.cache.free) == list(range(pages))


def test_the_texts_of_the_tests_differ_so_that_an_exchange_would_show():
    texts = {tuple(alone([n], 8)) for n in range(VOCABULARY)}
    assert len(texts) > VOCABULARY / 2
    assert any(len(set(text)) > 2 for text in texts)


def test_when_pages_run_out_the_youngest_starts_again_and_nothing_is_lost():
    engine = generation.Engine(MODEL, slots=3, pages=6, page_size=2)
    made, _ = drive(engine, [(0, [1, 2, 3], 8), (0, [4, 5], 8), (1, [6], 8)])
    assert engine.preempted > 0
    assert [r.tokens for r in made] == [alone(r.prompt, 8) for r in made]


@pytest.mark.parametrize(
    ("slots", "continuous", "steps"), [(2, True, 9), (2, False, 11), (1, True, 17)]
)
def test_the_number_of_steps_is_that_of_the_drawing(slots, continuous, steps):
    engine = generation.Engine(MODEL, slots, continuous=continuous)
    _, taken = drive(engine, [(0, [1], 8), (0, [2], 3), (0, [3], 3), (0, [4], 3)])
    assert taken == steps


def test_logits_are_the_models_own_with_ragged_pasts_and_scattered_pages():
    cache = generation.PagedCache(MODEL, pages=9, page_size=3)
    cache.store.fill_(1e3)  # what an earlier request left behind
    texts = torch.randint(VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(1))
    tables = torch.tensor([[4, 0, 7], [2, 8, 5]])
    with torch.no_grad():
        for row, length in ((0, 7), (1, 4)):  # each row's past, read by itself
            generation.next_logits(
                MODEL, cache, texts[row : row + 1, :length], torch.tensor([0]), tables[[row]]
            )
        new = torch.stack([texts[0, 7:8], texts[1, 4:5]])
        got = generation.next_logits(MODEL, cache, new, torch.tensor([7, 4]), tables)
        wanted = [MODEL(texts[:1])[0, -1], MODEL(texts[1:, :5])[0, -1]]
    torch.testing.assert_close(got, torch.stack(wanted))


@pytest.mark.parametrize(
    ("prompt", "limit", "words"),
    [([], 3, "both must be 1 or more"), ([1], 0, "both must be"), ([1] * 6, 3, "at most 8")],
)
def test_a_request_that_cannot_be_answered_is_refused(prompt, limit, words):
    engine = generation.Engine(MODEL, pages=4, page_size=2)
    with pytest.raises(ServingError, match=words):
        engine.submit(prompt, limit)


def test_one_request_too_many_is_refused_and_the_others_are_answered():
    engine = generation.Engine(MODEL, slots=1, max_waiting=2)
    made = [engine.submit([n], 3) for n in (1, 2)]
    with pytest.raises(ServingError, match="2 requests wait already"):
        engine.submit([3], 3)
    while engine.busy:
        engine.step()
    assert [r.tokens for r in made] == [alone([1], 3), alone([2], 3)]


async def read(streams, prompt, limit, stop=None):
    tokens = []
    stream = streams.generate(prompt, limit)
    async for token in stream:
        tokens.append(token)
        if len(tokens) == stop:
            await stream.aclose()
    return tokens


def test_streams_that_run_together_bring_the_texts_generated_alone():
    async def main():
        async with generation.Streams(generation.Engine(MODEL, slots=3)) as streams:
            return await asyncio.gather(*(read(streams, [n], 4 + n) for n in range(9)))

    assert asyncio.run(main()) == [alone([n], 4 + n) for n in range(9)]


def test_who_hangs_up_frees_its_slot_and_its_pages():
    async def main():
        engine = generation.Engine(MODEL, slots=1, pages=100)
        async with generation.Streams(engine) as streams:
            queued = streams.generate([3], 500)
            first, second = await asyncio.gather(
                read(streams, [1], 1500, stop=2), read(streams, [2], 5)
            )
            await queued.aclose()  # before its turn
            async with asyncio.timeout(10):
                while engine.busy:
                    await asyncio.sleep(0.01)
        assert len(engine.cache.free) == 100
        return first, second

    assert asyncio.run(main()) == (alone([1], 2), alone([2], 5))


def test_an_engine_that_fails_tells_every_stream_and_takes_no_more(monkeypatch):
    async def main():
        engine = generation.Engine(MODEL)
        async with generation.Streams(engine) as streams:
            monkeypatch.setattr(engine, "_run", lambda requests: 1 / 0)
            results = await asyncio.gather(
                *(read(streams, [n], 3) for n in range(3)), return_exceptions=True
            )
            with pytest.raises(ServingError, match="has stopped"):
                streams.generate([1], 3)
        return results

    for error in asyncio.run(main()):
        assert isinstance(error, ServingError)
        assert "ZeroDivisionError" in str(error)


@pytest.mark.gpu
def test_an_engine_on_an_accelerator_writes_what_the_cpu_writes(accelerator):
    model = make_model().float().to(accelerator)
    engine = generation.Engine(model, slots=2, pages=12, page_size=2)
    made, _ = drive(engine, [(0, [1, 2, 3], 5), (0, [4], 6), (2, [5], 4)])
    assert [r.tokens for r in made] == [alone(r.prompt, r.limit) for r in made]
