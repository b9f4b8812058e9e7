"""metrics: every number equals the one that a plain loop gives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from shipyard import metrics

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 40)
class_counts = st.integers(2, 12)


def random_scores(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=generator)


@settings(deadline=None)
@given(sizes, class_counts, seeds)
def test_accuracy_is_the_share_of_rows_whose_largest_logit_is_at_the_label(n, classes, seed):
    logits, labels = random_scores(n, classes, seed)
    right = sum(max(range(classes), key=lambda c: logits[i, c]) == labels[i] for i in range(n))
    assert metrics.accuracy(logits, labels) == pytest.approx(right / n)


@settings(deadline=None)
@given(sizes, class_counts, seeds, st.data())
def test_top_k_accuracy_counts_labels_among_the_k_best(n, classes, seed, data):
    k = data.draw(st.integers(1, classes))
    logits, labels = random_scores(n, classes, seed)
    right = 0
    for i in range(n):
        best = sorted(range(classes), key=lambda c: -logits[i, c])[:k]
        right += int(labels[i]) in best
    assert metrics.top_k_accuracy(logits, labels, k) == pytest.approx(right / n)


@settings(deadline=None)
@given(sizes, class_counts, seeds)
def test_the_confusion_matrix_has_true_classes_as_rows(n, classes, seed):
    logits, labels = random_scores(n, classes, seed)
    predictions = logits.argmax(1)
    expected = torch.zeros(classes, classes, dtype=torch.int64)
    for predicted, true in zip(predictions, labels, strict=True):
        expected[true, predicted] += 1
    assert torch.equal(metrics.confusion_matrix(predictions, labels, classes), expected)


def test_a_cat_called_dog_is_counted_in_the_row_of_the_cats():
    matrix = metrics.confusion_matrix(torch.tensor([1]), torch.tensor([0]), classes=2)
    assert matrix.tolist() == [[0, 1], [0, 0]]


@settings(deadline=None)
@given(sizes, class_counts, seeds)
def test_per_class_accuracy_is_the_accuracy_within_each_true_class(n, classes, seed):
    logits, labels = random_scores(n, classes, seed)
    found = metrics.per_class_accuracy(logits.argmax(1), labels, classes)
    for c in range(classes):
        rows = labels == c
        if rows.any():
            assert found[c].item() == pytest.approx(metrics.accuracy(logits[rows], labels[rows]))
        else:
            assert math.isnan(found[c])


@settings(deadline=None)
@given(sizes, class_counts, seeds, st.integers(1, 20))
def test_calibration_is_what_a_loop_over_bins_and_rows_finds(n, classes, seed, bins):
    logits, labels = random_scores(n, classes, seed)
    p = (3 * logits).softmax(1)
    found = metrics.reliability_bins(p, labels, bins)
    error = 0.0
    for b in range(bins):
        low, high = found.edges[b], found.edges[b + 1]
        rows = [i for i in range(n) if low < p[i].max() <= high]
        assert found.counts[b] == len(rows)
        if rows:
            confidence = sum(p[i].max().item() for i in rows) / len(rows)
            right = sum(p[i].argmax().item() == labels[i].item() for i in rows) / len(rows)
            assert found.confidence[b].item() == pytest.approx(confidence)
            assert found.accuracy[b].item() == pytest.approx(right)
            error += len(rows) / n * abs(right - confidence)
        else:
            assert math.isnan(found.confidence[b])
            assert math.isnan(found.accuracy[b])
    assert metrics.expected_calibration_error(p, labels, bins) == pytest.approx(error)


def test_calibration_of_one_that_is_always_sure_is_the_share_of_wrong_answers():
    p = F.one_hot(torch.tensor([0, 1, 2, 2, 1]), 3).double()
    labels = torch.tensor([0, 1, 2, 0, 0])
    assert metrics.expected_calibration_error(p, labels) == pytest.approx(2 / 5)
    assert metrics.reliability_bins(p, labels, 4).counts.tolist() == [0, 0, 0, 5]


def test_calibration_of_one_that_says_80_percent_and_is_right_in_8_of_10_is_perfect():
    p = torch.tensor([[0.8, 0.2]] * 10)
    labels = torch.tensor([0] * 8 + [1] * 2)
    assert metrics.expected_calibration_error(p, labels) == pytest.approx(0, abs=1e-6)


def test_calibration_puts_a_confidence_on_an_edge_into_the_lower_bin():
    p = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)
    assert metrics.reliability_bins(p, torch.tensor([0, 0]), 4).counts.tolist() == [0, 1, 1, 0]


@settings(deadline=None)
@given(sizes, st.integers(1, 17), seeds)
def test_evaluate_gives_the_exact_mean_with_a_short_last_batch(n, batch_size, seed):
    logits, labels = random_scores(n, 5, seed)
    loader = list(zip(logits.split(batch_size), labels.split(batch_size), strict=True))
    found = metrics.evaluate(nn.Identity(), loader)
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item())
    assert found.accuracy == pytest.approx(metrics.accuracy(logits, labels))
    assert torch.equal(found.predictions, logits.argmax(1))
    assert torch.equal(found.labels, labels)
    torch.testing.assert_close(found.probabilities, logits.float().softmax(1))


def test_the_mean_of_batch_means_would_be_another_number():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 9.0]])
    labels = torch.zeros(3, dtype=torch.int64)
    batches = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    naive = sum(F.cross_entropy(x, y).item() for x, y in batches) / len(batches)
    exact = metrics.evaluate(nn.Identity(), batches).loss
    assert exact == pytest.approx(F.cross_entropy(logits, labels).item())
    assert naive > 1.3 * exact


def test_evaluate_uses_eval_mode_and_takes_no_gradient():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return self.linear(x)

    metrics.evaluate(Spy(), [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))])
    assert seen == [(False, False)]


def test_evaluate_restores_the_mode_of_every_module_even_after_an_error():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model.train()
    model[1].eval()  # a frozen batch normalisation
    metrics.evaluate(model, [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))])
    assert [m.training for m in model.modules()] == [True, True, False]
    with pytest.raises(RuntimeError):
        metrics.evaluate(model, [(torch.zeros(4, 7), torch.zeros(4, dtype=torch.int64))])
    assert [m.training for m in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


def test_evaluate_leaves_batch_normalisation_statistics_alone():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    before = model[0].running_mean.clone()
    metrics.evaluate(model, [(torch.randn(8, 3) + 5, torch.zeros(8, dtype=torch.int64))])
    assert torch.equal(model[0].running_mean, before)


def test_an_empty_loader_is_refused_with_a_reason():
    with pytest.raises(metrics.MetricError, match="no images"):
        metrics.evaluate(nn.Identity(), [])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy(torch.zeros(3), torch.zeros(3)), r"expected \(batch, classes\)"),
        (lambda: metrics.accuracy(torch.zeros(0, 3), torch.zeros(0)), "empty"),
        (lambda: metrics.top_k_accuracy(torch.zeros(2, 3), torch.zeros(2), 4), "between 1 and 3"),
        (
            lambda: metrics.expected_calibration_error(torch.zeros(2, 3), torch.zeros(2)),
            "apply softmax",
        ),
        (
            lambda: metrics.expected_calibration_error(
                torch.tensor([[2.0, -1.0]]), torch.tensor([0])
            ),
            "apply softmax",
        ),
        (
            lambda: metrics.reliability_bins(torch.ones(1, 1), torch.zeros(1), bins=0),
            "bins is 0",
        ),
        (lambda: metrics.reliability_bins(torch.ones(2, 1), torch.zeros(3)), "batch, classes"),
        (
            lambda: metrics.confusion_matrix(torch.tensor([0]), torch.tensor([3]), 3),
            "labels lie between 3 and 3",
        ),
        (
            lambda: metrics.confusion_matrix(torch.tensor([-1]), torch.tensor([0]), 3),
            "predictions lie between -1 and -1",
        ),
        (
            lambda: metrics.confusion_matrix(torch.tensor([0.5]), torch.tensor([0]), 3),
            "expected class numbers",
        ),
        (
            lambda: metrics.confusion_matrix(torch.tensor([0, 1]), torch.tensor([0]), 3),
            "two equal shapes",
        ),
    ],
)
def test_input_that_cannot_be_scored_gets_a_clear_message(call, message):
    with pytest.raises(metrics.MetricError, match=message):
        call()
