"""Networks that lessons start from: trained once, then read from the cache."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from shipyard import data, pretrained, text
from shipyard.errors import CheckpointError

TINY = {"fast": pretrained.Recipe(epochs=1, batch_size=10, learning_rate=0.01, width=8)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """Recipes of a second, and a cache of this test's own."""
    monkeypatch.setenv("SHIPYARD_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "RESIDUAL_NET", TINY)
    monkeypatch.setattr(pretrained, "RESIDUAL_NET_IMAGES", {"fast": 100})
    monkeypatch.setattr(pretrained, "CHAR_TRANSFORMER", TINY)
    monkeypatch.setattr(pretrained, "CHAR_TRANSFORMER_STEPS", {"fast": 3})


@pytest.fixture(scope="module")
def cifar():
    return data.load_cifar10("stand-in", verbose=False)


def must_not_train(*args, **options):
    raise AssertionError("it was trained again")


def test_a_network_is_trained_once_and_then_read(cifar, monkeypatch, tmp_path):
    first = pretrained.residual_net(cifar, "fast", progress=False)
    monkeypatch.setattr(pretrained.training, "fit", must_not_train)
    again = pretrained.residual_net(cifar, "fast", progress=False)
    images = data.normalize(cifar.test.images[:8])
    assert torch.equal(first.model(images), again.model(images))
    assert not again.model.training
    assert again.validation == first.validation
    assert set(first.validation) == {"val_loss", "val_accuracy"}
    assert list(tmp_path.glob("pretrained/*.pt")) == [first.path]
    with pytest.raises(AssertionError, match="trained again"):
        pretrained.residual_net(cifar, "fast", seed=1, progress=False)


def test_other_images_make_another_network(cifar):
    others = data.Cifar10(cifar.test, cifar.test, cifar.source)
    paths = {pretrained.residual_net(c, "fast", progress=False).path for c in (cifar, others)}
    assert len(paths) == 2


def test_the_validation_images_are_not_trained_on(cifar):
    train, validation = pretrained.images_of(cifar, "fast")
    rows = {image.numpy().tobytes() for image in train.images}
    assert len(train) == 90
    assert not rows & {image.numpy().tobytes() for image in validation.images}


def test_a_damaged_file_is_named_and_left(cifar):
    path = pretrained.residual_net(cifar, "fast", progress=False).path
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=path.name):
        pretrained.residual_net(cifar, "fast", progress=False)
    assert path.stat().st_size == 1000


def test_a_transformer_learns_the_corpus_and_its_loss_is_in_nats_per_character():
    start = pretrained.char_transformer("fast", progress=False)
    corpus = text.load_corpus()
    inputs, targets = text.windows(
        pretrained.vocabulary_of(corpus).encode(corpus.validation), pretrained.CONTEXT
    )
    with torch.no_grad():
        logits = start.model(inputs[:400])
    loss = F.cross_entropy(logits.flatten(0, 1), targets[:400].flatten()).item()
    assert loss == pytest.approx(start.validation["val_loss"], abs=0.1)
