"""The text that comes with Python, its vocabulary, and the windows cut from it."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shipyard import text
from shipyard.errors import ShipyardError


@pytest.fixture(scope="module")
def corpus() -> text.Corpus:
    return text.load_corpus()


def paragraphs(prose: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in prose.split("\n\n")]


def test_the_corpus_is_large_enough_to_learn_from(corpus):
    assert 400_000 < len(corpus.train) < 1_500_000
    assert 0.05 < len(corpus.validation) / len(corpus.train) < 0.3


def test_the_corpus_names_the_python_that_it_came_from(corpus):
    assert "{}.{}.{}".format(*sys.version_info[:3]) in corpus.source


def test_the_corpus_is_plain_ascii_with_no_other_space_than_blank_and_newline(corpus):
    for part in (corpus.train, corpus.validation):
        assert part.isascii()
        assert part.replace("\n", "").isprintable()


def test_the_corpus_reads_as_english(corpus):
    words = Counter(re.findall(r"[a-z]+", corpus.train.lower()))
    most_common = {word for word, _ in words.most_common(8)}
    assert {"the", "of", "to", "is"} <= most_common


def test_no_paragraph_of_the_validation_text_is_in_the_training_text(corpus):
    assert not set(paragraphs(corpus.validation)) & set(paragraphs(corpus.train))


@pytest.mark.slow
def test_another_process_reads_the_same_text_and_imports_no_documented_module(corpus):
    code = (
        "import hashlib, sys; from shipyard import text; before = set(sys.modules); "
        "c = text.load_corpus(); digest = hashlib.sha256((c.train + c.validation).encode()); "
        "print(digest.hexdigest(), *sorted(set(sys.modules) - before))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    digest, *imported = run.stdout.split()
    assert digest == hashlib.sha256((corpus.train + corpus.validation).encode()).hexdigest()
    assert not {name.split(".")[0] for name in imported} & set(text.MODULES.split())


def test_a_python_without_documentation_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(text, "_topics", lambda: iter(()))
    monkeypatch.setattr(text, "MODULES", "")
    with pytest.raises(ShipyardError, match=r"without its documentation.*full installation"):
        text.load_corpus.__wrapped__()


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=0, max_size=50))
def test_decoding_gives_the_encoded_text_back(sentence):
    vocabulary = text.Vocabulary.of(sentence)
    tokens = vocabulary.encode(sentence)
    assert tokens.shape == (len(sentence),)
    assert tokens.dtype == torch.int64
    assert vocabulary.decode(tokens) == sentence


def test_a_vocabulary_is_sorted_and_has_each_character_once():
    assert text.Vocabulary.of("banana bay").characters == " abny"


def test_an_unknown_character_is_named():
    with pytest.raises(ValueError, match="'z' is not in the vocabulary of 3 characters"):
        text.Vocabulary.of("abc").encode("abz")


@given(
    batch_size=st.integers(1, 5),
    length=st.integers(1, 9),
    extra=st.integers(1, 30),
    seed=st.integers(0, 100),
)
def test_each_target_of_a_batch_is_the_character_after_its_input(batch_size, length, extra, seed):
    tokens = torch.arange(length + extra)
    generator = torch.Generator().manual_seed(seed)
    drawn = list(text.batches(tokens, batch_size, length, steps=3, generator=generator))
    assert len(drawn) == 3
    for inputs, targets in drawn:
        assert inputs.shape == targets.shape == (batch_size, length)
        assert torch.equal(targets, inputs + 1)
        assert torch.equal(inputs - inputs[:, :1], torch.arange(length).expand(batch_size, -1))


def test_the_last_token_can_be_a_target():
    tokens = torch.arange(3)
    generator = torch.Generator().manual_seed(0)
    ((inputs, targets),) = text.batches(tokens, 50, 1, steps=1, generator=generator)
    assert set(inputs.flatten().tolist()) == {0, 1}
    assert set(targets.flatten().tolist()) == {1, 2}


def test_the_same_seed_draws_the_same_batches():
    tokens = torch.arange(100)
    first, again = (
        list(text.batches(tokens, 4, 8, 5, torch.Generator().manual_seed(3))) for _ in range(2)
    )
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


@given(length=st.integers(1, 9), count=st.integers(2, 60))
def test_windows_hold_each_target_once_and_in_order(length, count):
    tokens = torch.arange(count)
    if count < length + 1:
        with pytest.raises(ValueError, match=f"need {length + 1} tokens"):
            text.windows(tokens, length)
        return
    inputs, targets = text.windows(tokens, length)
    used = (count - 1) // length * length
    assert torch.equal(inputs.flatten(), torch.arange(used))
    assert torch.equal(targets.flatten(), torch.arange(1, used + 1))


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="need 6 tokens, at least 2; there are 5"):
        next(text.batches(torch.arange(5), 1, 5, 1, torch.Generator()))
