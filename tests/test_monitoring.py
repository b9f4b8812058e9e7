"""monitoring: drift tests against SciPy, shifts, the gate, the canary's errors, and the swap."""

import itertools
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shipyard import serving
from shipyard.errors import ModelError, MonitoringError, RefusedModelError
from shipyard.monitoring import Canary, Gate, ModelSlot, Shadow, drift, rollout, shifts
from shipyard.monitoring.metrics import ServiceMetrics, histogram_quantile

RNG = np.random.default_rng(0)


# --- Drift -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "move"), [(50, 80, 0.0), (200, 120, 0.3), (40, 40, 1.0)])
def test_kolmogorov_smirnov_is_scipys(n, m, move):
    stats = pytest.importorskip("scipy.stats", reason="SciPy comes with the extra monitor (river)")
    x, y = RNG.normal(size=n), RNG.normal(move, size=m)
    ours, theirs = drift.kolmogorov_smirnov(x, y), stats.ks_2samp(x, y, method="exact")
    assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-12)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.06)
    limit = stats.kstwobign.sf(ours.statistic * math.sqrt(n * m / (n + m)))
    assert ours.p_value == pytest.approx(limit, abs=1e-12)


def test_our_ks_raises_the_alarm_where_rivers_kswin_does():
    river = pytest.importorskip("river.drift", reason="river comes with the extra monitor")
    stream = np.concatenate([RNG.normal(size=600), RNG.normal(2, size=300)])
    theirs = river.KSWIN(alpha=1e-4, window_size=100, stat_size=30, seed=1)
    found = []
    for place, value in enumerate(stream):
        theirs.update(value)
        if theirs.drift_detected:
            found.append(place)
    ours = next(
        end
        for end in range(130, len(stream))
        if drift.kolmogorov_smirnov(stream[:100], stream[end - 30 : end]).p_value < 1e-4
    )
    assert 600 <= ours <= 640
    assert 600 <= next(place for place in found if place >= 600) <= 640


def test_the_stability_index_of_known_shares():
    reference = np.arange(100.0)  # ten in each bin
    live = np.concatenate([np.arange(50.0), np.arange(50.0)])  # the lower five bins, twice
    p, q, none = 0.1, 0.2, 1e-4
    expected = 5 * (q - p) * math.log(q / p) + 5 * (none - p) * math.log(none / p)
    assert drift.population_stability_index(reference, live) == pytest.approx(expected)
    assert drift.population_stability_index(reference, reference) == pytest.approx(0, abs=1e-12)


def test_chance_alone_moves_the_index_as_much_as_its_docstring_says():
    found = [
        drift.population_stability_index(RNG.normal(size=2000), RNG.normal(size=500))
        for _ in range(200)
    ]
    assert np.mean(found) == pytest.approx(9 * (1 / 2000 + 1 / 500), rel=0.15)


def test_mmd_is_the_mean_over_pairs_and_its_p_value_is_uniform_under_no_drift():
    x, y = RNG.normal(size=(7, 3)), RNG.normal(0.5, size=(5, 3))
    both = np.concatenate([x, y])
    width = drift.median_heuristic(both)
    assert width == pytest.approx(
        np.median([np.linalg.norm(a - b) for a, b in itertools.combinations(both, 2)])
    )

    def mean(pairs):
        return np.mean([math.exp(-((a - b) ** 2).sum() / (2 * width**2)) for a, b in pairs])

    expected = mean(itertools.combinations(x, 2)) + mean(itertools.combinations(y, 2))
    expected -= 2 * mean(itertools.product(x, y))
    assert drift.maximum_mean_discrepancy(x, y).statistic == pytest.approx(expected, abs=1e-12)
    same = [
        drift.maximum_mean_discrepancy(*RNG.normal(size=(2, 20, 3)), permutations=99).p_value
        for _ in range(300)
    ]
    assert np.mean(np.array(same) <= 0.1) == pytest.approx(0.1, abs=0.05)
    moved = drift.maximum_mean_discrepancy(RNG.normal(size=(40, 3)), RNG.normal(1, size=(40, 3)))
    assert moved.p_value == pytest.approx(1 / 201)


@pytest.mark.parametrize("bad", [[1.0], [1.0, np.nan], [[1.0, 2.0]]])
def test_a_sample_that_cannot_be_compared_is_refused(bad):
    with pytest.raises(MonitoringError, match="live"):
        drift.kolmogorov_smirnov(np.arange(9.0), np.array(bad))


# --- Shifts ----------------------------------------------------------------------------------

IMAGES = RNG.integers(40, 200, (60, 3, 32, 32)).astype(np.uint8)
LABELS = np.arange(60) % 10


@pytest.mark.parametrize("name", shifts.PIXEL_SHIFTS)
def test_a_stronger_shift_is_further_away_and_leaves_its_input_alone(name):
    before = IMAGES.copy()
    gaps = []
    for strength in range(6):
        images, labels = shifts.shift(name, IMAGES, LABELS, strength)
        assert images.dtype == np.uint8
        assert images.shape == IMAGES.shape
        np.testing.assert_array_equal(labels, LABELS)
        gaps.append(np.abs(images.astype(float) - IMAGES).mean())
    assert gaps[0] == 0
    assert gaps == sorted(gaps)
    assert gaps[1] > 0
    np.testing.assert_array_equal(IMAGES, before)


def test_a_mix_of_classes_changes_shares_and_no_picture():
    images, labels = shifts.shift("class mix", IMAGES, LABELS, 5)
    assert (labels == 3).mean() == pytest.approx(0.8, abs=0.15)
    known = {(image.tobytes(), label) for image, label in zip(IMAGES, LABELS, strict=True)}
    assert {(i.tobytes(), label) for i, label in zip(images, labels, strict=True)} <= known


def test_what_is_no_shift_is_refused():
    with pytest.raises(MonitoringError, match="no shift 'fog'"):
        shifts.shift("fog", IMAGES, LABELS, 1)
    with pytest.raises(MonitoringError, match="float64"):
        shifts.shift("blur", IMAGES / 255, LABELS, 1)


# --- Metrics ---------------------------------------------------------------------------------


def test_metrics_count_what_was_answered_in_the_text_that_prometheus_reads():
    metrics = ServiceMetrics()
    metrics.goes_live("1")
    metrics.goes_live("2")
    metrics.observe(np.array([[0.9, 0.1], [0.45, 0.55]]), ("cat", "dog"), "2", 0.004)
    assert metrics.value("answers_total", label="dog", version="2") == 1
    assert metrics.value("request_seconds_bucket", version="2", le="0.005") == 1
    assert metrics.value("confidence_bucket", version="2", le="0.6") == 1
    text = metrics.text()
    assert 'model_live{version="2"} 1.0' in text
    assert 'model_live{version="1"}' not in text


def test_the_quantile_of_a_histogram_lies_in_the_right_bucket():
    values = RNG.exponential(0.05, 5000)
    bounds = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, np.inf])
    counts = np.array([(values <= bound).sum() for bound in bounds])
    for q in (0.5, 0.9, 0.99):
        guess, true = histogram_quantile(q, bounds, counts), np.quantile(values, q)
        assert np.searchsorted(bounds, guess) == np.searchsorted(bounds, true)
    assert math.isnan(histogram_quantile(0.5, bounds, np.zeros(7)))


# --- Gate, shadow, canary --------------------------------------------------------------------

GOLDEN = RNG.normal(size=(50, 4))
TRUTH = GOLDEN.argmax(1)


def good(images):
    return serving.softmax(np.asarray(images))


BAD = {
    "wrong-shape": lambda images: good(images)[:, :3],
    "not-finite": lambda images: np.where(images > 2, np.nan, good(images)),
    "too-slow": lambda images: (time.sleep(0.02), good(images))[1],
    "worse": lambda images: good(-np.asarray(images)),
    "unreadable": lambda images: 1 / 0,
}


def test_the_gate_lets_a_good_model_pass_and_says_how_good():
    gate = Gate.allowing(GOLDEN, TRUTH, good, slowdown=100)
    assert gate.judge(lambda: good).accuracy == 1


@pytest.mark.parametrize("reason", BAD)
def test_the_gate_names_why_it_refuses(reason):
    gate = Gate(GOLDEN, TRUTH, 4, least_accuracy=0.99, most_milliseconds=15)
    with pytest.raises(RefusedModelError) as caught:
        gate.judge(lambda: BAD[reason])
    assert caught.value.reason == reason


def test_a_shadow_is_compared_and_never_heard():
    shadow = Shadow(good, BAD["worse"])
    np.testing.assert_array_equal(shadow(GOLDEN), good(GOLDEN))
    assert (shadow.seen, shadow.agreed, shadow.errors) == (50, 0, 0)
    broken = Shadow(good, BAD["unreadable"])
    np.testing.assert_array_equal(broken(GOLDEN), good(GOLDEN))
    assert broken.errors == 1


def test_the_evidence_is_the_mean_likelihood_ratio_over_the_prior():
    p = (np.arange(200_000) + 0.5) / 200_000
    for wins, losses in [(0, 0), (3, 1), (10, 30)]:
        mean = (p**wins * (1 - p) ** losses / 0.5 ** (wins + losses)).mean()
        assert rollout.log_evidence(wins, losses) == pytest.approx(math.log(mean), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_equal_models_are_told_apart_no_more_often_than_alpha(alpha):
    equal = rollout.simulate_canaries(0.5, 1000, 4000, alpha)["decision"]
    wrong = (equal != 0).mean()
    print(f"alpha {alpha}: {wrong:.4f} of canaries between equal models decide")
    assert wrong <= alpha
    better = rollout.simulate_canaries(0.65, 1000, 1000, alpha)
    assert (better["decision"] == 1).mean() > 0.99


def test_a_canary_decides_as_the_simulation_does_and_then_stays():
    rng = np.random.default_rng(3)
    found = rollout.simulate_canaries(0.7, 500, 1, seed=3)
    canary, wins = Canary(), rng.random((1, 500))[0] < 0.7
    for win in wins:
        canary.record(True, True)  # says nothing
        if canary.record(not win, win) != "go on":
            break
    assert canary.decision == "promote"
    assert canary.wins + canary.losses == found["pairs"][0]
    with pytest.raises(MonitoringError, match="ended with 'promote'"):
        canary.record(True, False)


def test_a_canary_without_a_difference_ends_undecided():
    canary = Canary(most=10)
    assert [canary.record(True, True) for _ in range(10)][-1] == "undecided"


# --- The slot --------------------------------------------------------------------------------


def write_model(path, label, *, classes=4, weight=0.0):
    """An ONNX model that always answers ``label``, and whose version is that label."""
    bias = np.where(np.arange(classes) == label, 9, 0).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
    ]
    tensors = [
        helper.make_tensor("w", TensorProto.FLOAT, [3, classes], np.full(3 * classes, weight)),
        helper.make_tensor("b", TensorProto.FLOAT, [classes], bias),
    ]
    shape_in, shape_out = ["batch", 3, 8, 8], ["batch", classes]
    graph = helper.make_graph(
        nodes, "constant",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape_out)], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    how = {"size": [8, 8], "layout": "NCHW", "color": "RGB", "scale": 1 / 255}
    how |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    names = json.dumps([f"{n} of {label}" for n in range(classes)])  # every model has its own
    about = {"version": str(label), "classes": names, "preprocessing": json.dumps(how)}
    helper.set_model_props(model, about)
    onnx.save(model, path)
    return path


def test_20000_requests_across_swaps_none_fails_and_none_is_mixed(tmp_path):
    paths = [write_model(tmp_path / f"{label}.onnx", label) for label in range(4)]
    slot = ModelSlot(serving.load_model(paths[0]))
    image = np.zeros((1, 3, 8, 8), np.float32)
    requests, workers, answers = 20_000, 4, []

    def work(count):
        for _ in range(count):
            with slot.use() as model:
                first = model.predict(image)
                second = model.classes[int(model.predict(image).argmax())]
                answers.append((model.version, int(first.argmax()), second))

    swaps = 0
    with ThreadPoolExecutor(workers) as pool:
        done = [pool.submit(work, requests // workers) for _ in range(workers)]
        while not all(future.done() for future in done):
            slot.swap(lambda path=paths[(swaps + 1) % 4]: serving.load_model(path))
            swaps += 1
        for future in done:
            future.result()
    assert len(answers) == requests
    assert all((f"{n}", f"{n} of {n}") == (version, name) for version, n, name in answers)
    assert sum(slot.answered().values()) == requests
    assert slot.in_flight() == {slot.version: 0}
    print(f"{requests} requests, {swaps} swaps, by version {slot.answered()}")
    assert swaps >= 3
    assert len(slot.answered()) >= 3


def test_a_request_keeps_the_model_that_it_began_with(tmp_path):
    slot = ModelSlot("old model", version="1")
    with slot.use() as before:
        slot.swap(lambda: "new model", version="2")
        with slot.use() as after:
            assert (before, after) == ("old model", "new model")
            assert slot.in_flight() == {"1": 1, "2": 1}
        assert not slot.drain(0.01)
    assert slot.drain(1)
    assert slot.in_flight() == {"2": 0}
    assert slot.roll_back() == "1"
    assert slot.roll_back() == "2"


def test_draining_ends_when_the_last_old_request_does():
    slot = ModelSlot("a", version="1")
    started, leave = threading.Event(), threading.Event()

    def request():
        with slot.use():
            started.set()
            leave.wait(10)

    worker = threading.Thread(target=request)
    worker.start()
    started.wait(10)
    slot.swap(lambda: "b", version="2")
    threading.Timer(0.05, leave.set).start()
    assert slot.drain(10)
    worker.join()


@pytest.mark.parametrize("damage", ["half written", "not finite", "another shape", "gone"])
def test_a_bad_model_is_refused_and_the_old_one_stays(tmp_path, damage):
    slot = ModelSlot(serving.load_model(write_model(tmp_path / "1.onnx", 1)))
    images = RNG.normal(size=(6, 3, 8, 8)).astype(np.float32)
    gate = Gate(images, np.full(6, 1), classes=4)
    path = tmp_path / "2.onnx"
    if damage == "half written":
        path.write_bytes(write_model(path, 1).read_bytes()[:-40])
    elif damage == "not finite":
        write_model(path, 1, weight=np.inf)
    elif damage == "another shape":
        write_model(path, 1, classes=3)
    for how, error in ((gate, RefusedModelError), (None, ModelError)):
        if how or damage != "another shape":  # alone, a model of three classes is a fine one
            with pytest.raises(error):
                slot.swap(lambda: serving.load_model(path), version="2", gate=how)
    with slot.use() as model:
        assert model.version == slot.version == "1"
    with pytest.raises(MonitoringError, match="1 is the first model"):
        slot.roll_back()
