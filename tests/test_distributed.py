"""Training on many workers: the methods by value and by what they send, and the launcher by what
it leaves behind: nothing.

Launches cost seconds, so one start of three ranks runs all experiments whose results the tests
then read.
"""

from __future__ import annotations

import math
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DistributedSampler

from shipyard.distributed import (
    LaunchError,
    WorkerFailed,
    WorkerTimeout,
    asynchronous,
    cost,
    launch,
    launching,
    workers,
)
from shipyard.distributed.collectives import ring_bytes, ring_messages
from shipyard.distributed.data_parallel import buckets, shard_indices
from shipyard.distributed.model_parallel import (
    SCHEDULES,
    activations_kept,
    gpipe,
    one_f_one_b,
    simulate,
)
from shipyard.distributed.sharding import bytes_per_rank
from shipyard.errors import ShipyardError

SLOW_MACHINE = 240  # seconds: a time-out that only a hang reaches


# --- Sampler, ring, buckets -------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40), ranks=st.integers(1, 7), epoch=st.integers(0, 3),
    shuffle=st.booleans(), drop_last=st.booleans(), seed=st.integers(0, 5),
)  # fmt: skip
def test_shards_are_those_of_torchs_distributed_sampler(
    count, ranks, epoch, shuffle, drop_last, seed
):
    for rank in range(ranks):
        sampler = DistributedSampler(
            range(count), ranks, rank, shuffle=shuffle, seed=seed, drop_last=drop_last
        )
        sampler.set_epoch(epoch)
        mine = shard_indices(
            count, rank, ranks, epoch=epoch, shuffle=shuffle, seed=seed, drop_last=drop_last
        )
        assert mine == list(sampler)


@pytest.mark.parametrize("rank", [-1, 3])
def test_shards_of_a_rank_that_does_not_exist_are_refused(rank):
    with pytest.raises(ShipyardError, match="from 0 to 2"):
        shard_indices(10, rank, 3)


def test_buckets_hold_parameters_in_reverse_order_up_to_their_size():
    sizes = [10, 3, 50, 4, 4]
    parameters = [nn.Parameter(torch.zeros(n)) for n in sizes]
    frozen = nn.Parameter(torch.zeros(9), requires_grad=False)
    double = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    found = [[p.numel() for p in group] for group in buckets([*parameters, frozen, double], 48)]
    assert found == [[1], [4, 4], [50], [3], [10]]


# --- Pipeline schedules -----------------------------------------------------------------------


def bubble_share(stages, micro_batches):
    """The share of time in which a stage waits, for equal stages."""
    return (stages - 1) / (micro_batches + stages - 1)


def idle_share(events):
    """The share of all stages' time, from the first start to the last end, with no work in it."""
    stages = len({e["stage"] for e in events})
    busy = sum(e["end"] - e["start"] for e in events)
    span = max(e["end"] for e in events) - min(e["start"] for e in events)
    return 1 - busy / (stages * span)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 1), (2, 1), (2, 4), (3, 5), (4, 8)])
def test_a_schedule_does_all_work_once_and_waits_as_long_as_the_formula_says(
    name, stages, micro_batches
):
    schedule = SCHEDULES[name](stages, micro_batches)
    all_work = sorted((kind, m) for kind in "FB" for m in range(micro_batches))
    for work in schedule:
        assert sorted(work) == all_work
        for m in range(micro_batches):
            assert work.index(("F", m)) < work.index(("B", m))
    assert idle_share(simulate(schedule)) == pytest.approx(bubble_share(stages, micro_batches))


def test_one_f_one_b_keeps_fewer_activations_than_gpipe():
    stages, micro_batches = 4, 8
    for stage in range(stages):
        of_gpipe = activations_kept(simulate(gpipe(stages, micro_batches)), stage)
        of_1f1b = activations_kept(simulate(one_f_one_b(stages, micro_batches)), stage)
        assert (of_gpipe, of_1f1b) == (micro_batches, stages - stage)


def test_a_schedule_that_waits_forever_is_named():
    with pytest.raises(ShipyardError, match="never ends"):
        simulate([[("B", 0), ("F", 0)], [("F", 0), ("B", 0)]])


# --- Costs and memory -------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 5, 64])
def test_the_fit_finds_the_constants_behind_exact_times(ranks):
    true = cost.Cost(alpha=3e-5, beta=2e9)
    sizes = [64, 1e3, 1e5, 1e7]
    found = cost.fit(sizes, ranks, [true.ring(size, ranks) for size in sizes])
    assert found.alpha == pytest.approx(true.alpha)
    assert found.beta == pytest.approx(true.beta)


def test_the_fit_stays_physical_when_noise_says_otherwise():
    found = cost.fit([1e3, 1e6], 4, [2e-3, 1e-3])
    assert found.alpha > 0
    assert found.beta > 0


@pytest.mark.parametrize(
    ("sizes", "ranks", "seconds"),
    [([8], 2, [1.0]), ([8, 8], 2, [1.0, 1.0]), ([8, 16], 1, [1.0, 2.0]), ([8, 16], 2, [1.0, 0.0])],
)
def test_the_fit_refuses_what_cannot_tell(sizes, ranks, seconds):
    with pytest.raises(ShipyardError, match="at least two sizes"):
        cost.fit(sizes, ranks, seconds)


def test_efficiency_falls_with_workers_and_overlap_helps():
    network = cost.Cost(alpha=1e-5, beta=1e9)
    many = [1, 2, 8, 64, 1024]
    weak = [cost.weak_efficiency(n, 0.1, 1e7, network) for n in many]
    strong = [cost.strong_efficiency(n, 0.1, 1e7, network) for n in many]
    hidden = [cost.weak_efficiency(n, 0.1, 1e7, network, overlap=0.5) for n in many]
    assert weak[0] == strong[0] == 1
    assert weak == sorted(weak, reverse=True)
    assert strong == sorted(strong, reverse=True)
    assert all(s < w <= h <= 1 for s, w, h in zip(strong[1:], weak[1:], hidden[1:], strict=True))
    # By hand, for two workers: 2(α + bytes/(2β)) = 2·(1e-5 + 5e-3) s beside 0.1 s of computing.
    assert weak[1] == pytest.approx(0.1 / (0.1 + 2 * (1e-5 + 5e-3)))


def test_bytes_of_each_zero_stage():
    P, N = 1000, 4
    expected = [16 * P, 4 * (2 * P + 2 * P / N), 4 * (P + 3 * P / N), 16 * P / N]
    assert [bytes_per_rank(P, N, stage) for stage in range(4)] == expected
    with pytest.raises(ShipyardError, match="0 to 3"):
        bytes_per_rank(P, N, 4)


# --- Stale gradients --------------------------------------------------------------------------


def quadratic(delay: int, learning_rate: float, steps: int = 40) -> list[float]:
    """Losses w²/2 from w = 1, whose gradient is w: the recurrence can be written out."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    batches = [(torch.ones(1, 1).double(), None)] * steps
    return asynchronous.train_with_delay(
        model, batches, lambda w, _: (w**2 / 2).sum(), learning_rate=learning_rate, delay=delay
    )


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_delayed_descent_follows_its_recurrence(delay):
    w = [1.0]
    for t in range(39):
        w.append(w[t] - (0.2 * w[t - delay] if t >= delay else 0.0))
    assert quadratic(delay, 0.2) == pytest.approx([x * x / 2 for x in w], abs=1e-12)


def test_a_step_that_converges_with_fresh_gradients_diverges_with_stale_ones():
    assert quadratic(0, 0.8)[-1] < 1e-10
    assert quadratic(4, 0.8)[-1] > 1e3


# --- Names, paths -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "words"),
    [("no_such_script.py:f", "no script"), ("shipyard.runtime", "names no function")],
)
def test_a_worker_that_cannot_be_named_is_refused_before_a_process_starts(worker, words):
    with pytest.raises(LaunchError, match=words):
        launch(worker)


def test_a_function_of_this_session_only_is_refused():
    with pytest.raises(LaunchError, match="lives in this session only"):
        launch(lambda: {})


def test_arguments_that_cannot_travel_are_refused():
    with pytest.raises(LaunchError, match=r"arguments\['model'\] is a Linear"):
        launch(workers.listing, 2, {"model": nn.Linear(1, 1)})


def test_arguments_beside_several_workers_are_refused():
    with pytest.raises(LaunchError, match="inside the dict of workers"):
        launch({"a": (workers.listing, {})}, 2, {"steps": 1})


@pytest.mark.parametrize("processes", [0, 1.5])
def test_a_wrong_number_of_processes_is_refused(processes):
    with pytest.raises(LaunchError, match="whole number from 1"):
        launch(workers.listing, processes)


def test_tracebacks_name_no_folder_of_this_machine():
    text = (
        f'File "{workers.__file__}", line 1\nFile "{torch.__file__}", line 2\n'
        'File "/home/someone/script.py", line 3'
    )
    short = launching.without_machine_paths(text)
    assert short.split("\n") == [
        'File "shipyard/distributed/workers.py", line 1',
        'File "torch/__init__.py", line 2',
        'File "script.py", line 3',
    ]


# --- One start of three ranks, and what every experiment found ---------------------------------

RANKS = 3
EXPERIMENTS = {
    "listing": (workers.listing, {"steps": 3}),
    "listing, seeded": (workers.listing, {"steps": 3, "seed": 0}),
    "all-reduce": (workers.all_reduce, {}),
    "all-reduce, float32": (workers.all_reduce, {"sizes": [7, 100], "dtype": "float32"}),
    "times": (workers.time_all_reduce, {"sizes": [4, 10000], "repeats": 3, "counts": [2, 3],
                                        "methods": ["gloo"]}),
    "times by hand": (workers.time_all_reduce, {"sizes": [100], "methods": ["ring", "naive"]}),
    "none": (workers.data_parallel, {"method": "none"}),
    "by hand": (workers.data_parallel, {"method": "by hand", "bucket_bytes": 2000}),
    "ring": (workers.data_parallel, {"method": "ring"}),
    "ddp": (workers.data_parallel, {"method": "ddp"}),
    "accumulation": (workers.accumulation, {}),
    "tensor parallel": (workers.tensor_parallel, {}),
    "gpipe": (workers.pipeline, {"schedule": "gpipe", "pause": 0.02}),
    "1f1b": (workers.pipeline, {"schedule": "1f1b", "pause": 0.02}),
    "not sharded": (workers.sharded, {"method": "none"}),
    "zero1": (workers.sharded, {"method": "zero1"}),
    "fsdp": (workers.sharded, {"method": "fsdp"}),
    "asynchronous": (workers.asynchronous, {"updates": 30, "slow": [0.01, 0.04]}),
    **{
        f"precision {method}": (workers.mixed_precision, {"method": method, "steps": 8})
        for method in ("float32", "autocast", "compress", "both")
    },
    "scaling": (workers.scaling, {"counts": [1, 2, 3], "batch": 12, "steps": 3, "hidden": 8,
                                  "features": 10}),
}  # fmt: skip


@pytest.fixture(scope="module")
def run():
    return launch(EXPERIMENTS, RANKS, timeout=SLOW_MACHINE)


@pytest.fixture
def of(run):
    """Name of an experiment → what each rank returned."""
    return lambda name: run.of(name)


@pytest.mark.slow
def test_a_launch_brings_back_results_log_and_command(run):
    assert len(run.results) == RANKS
    assert set(run.results[0]) == set(EXPERIMENTS)
    assert run.restarts == 0
    assert run.failures == []
    assert run.seconds > 0
    assert run.command.startswith("torchrun --standalone --nproc-per-node=3")


@pytest.mark.slow
def test_the_articles_listing_exchanges_nothing(of):
    for name in ("listing", "listing, seeded"):
        assert [r["exchanges"] for r in of(name)] == [0] * RANKS
        assert [r["bytes"] for r in of(name)] == [0] * RANKS
    a, b, _ = of("listing")
    assert not torch.equal(a["weights"], b["weights"])
    assert not torch.equal(a["inputs"], b["inputs"])
    a, b, _ = of("listing, seeded")
    assert torch.equal(a["weights"], b["weights"])
    assert torch.equal(a["inputs"], b["inputs"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all-reduce", "all-reduce, float32"])
def test_all_reduce_by_hand_equals_the_librarys(of, name):
    tolerance = 1e-12 if name == "all-reduce" else 1e-5
    for result in of(name):
        assert all(row["difference"] <= tolerance for row in result["rows"])


@pytest.mark.slow
def test_the_ring_sends_what_the_formula_says(of):
    """On every rank within one chunk's rounding, and over all ranks exactly."""
    by_size = {}
    for rank, result in enumerate(of("all-reduce")):
        for row in result["rows"]:
            if row["method"] == "naive":
                times = (RANKS - 1 if rank == 0 else 1) if row["numbers"] else 0
                assert row["messages"] == times
                assert row["bytes"] == times * row["numbers"] * 8
                continue
            assert row["formula_bytes"] == ring_bytes(row["numbers"] * 8, RANKS)
            assert abs(row["bytes"] - row["formula_bytes"]) < 2 * 8
            assert row["messages"] <= row["formula_messages"] == ring_messages(RANKS)
            if row["numbers"] >= RANKS:  # with fewer, some chunks are empty and not sent
                assert row["messages"] == row["formula_messages"]
            by_size.setdefault(row["numbers"], []).append((row["bytes"], row["formula_bytes"]))
    for sent in by_size.values():
        assert sum(b for b, _ in sent) == pytest.approx(sum(f for _, f in sent))


@pytest.mark.slow
def test_measured_times_cover_what_was_asked_and_can_be_fitted(of):
    rows = of("times")[0]["rows"]
    assert [(r["ranks"], r["bytes"]) for r in rows] == [(2, 16), (2, 40000), (3, 16), (3, 40000)]
    assert [r["ranks"] for r in of("times")[2]["rows"]] == [3, 3]
    assert all(0 < r["fastest"] <= r["seconds"] <= r["slowest"] for r in rows)
    found = cost.fit(*([row[k] for row in rows] for k in ("bytes", "ranks", "seconds")))
    assert found.alpha > 0
    assert found.beta > 0
    assert [r["method"] for r in of("times by hand")[0]["rows"]] == ["ring", "naive"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["by hand", "ring", "ddp"])
def test_data_parallel_training_equals_one_process_on_the_whole_batch(of, name):
    results = of(name)
    for result in results:
        assert result["one_process_difference"] < 1e-10
        assert torch.equal(result["weights"], results[0]["weights"])
        assert result["exchanges"] > 0
        assert result["bytes"] > 0
    mean = [
        statistics.fmean(losses) for losses in zip(*(r["losses"] for r in results), strict=True)
    ]
    assert mean == pytest.approx(results[0]["one_process_losses"], abs=1e-10)
    first = [index for result in results for index in result["first_indices"]]
    assert len(set(first)) == len(first) == 24


@pytest.mark.slow
def test_without_an_exchange_the_ranks_drift_apart(of):
    a, b, _ = of("none")
    assert a["exchanges"] == a["bytes"] == 0
    assert not torch.equal(a["weights"], b["weights"])
    assert a["one_process_difference"] > 1e-3


@pytest.mark.slow
def test_buckets_and_ddp_hand_over_the_same_bytes(of):
    by_hand, ddp = of("by hand")[0], of("ddp")[0]
    assert by_hand["bytes"] == ddp["bytes"] == by_hand["weights"].nbytes
    assert by_hand["exchanges"] == 2  # 1,576 and 5,120 bytes: a bucket of 2,000, a larger weight
    assert ddp["exchanges"] == 1


@pytest.mark.slow
def test_accumulated_gradients_equal_a_larger_batch_with_one_exchange(of):
    for result in of("accumulation"):
        assert result["difference"] < 1e-10
        assert result["exchanges"] == 1
        assert result["exchanges_without_no_sync"] >= 4
        assert result["largest_batch"] == 2


@pytest.mark.slow
def test_tensor_parallel_layers_equal_the_whole_network(of):
    for result in of("tensor parallel"):
        for name in ("output", "gradient", "weights"):
            assert result[f"{name}_difference"] < 1e-10
        assert result["forward_exchanges"] == result["backward_exchanges"] == 1
        assert result["parameters"] < result["whole_parameters"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_the_pipeline_equals_the_whole_network_and_waits_as_expected(of, name):
    results = of(name)
    assert results[-1]["loss"] == pytest.approx(results[-1]["whole_loss"], abs=1e-12)
    assert all(r["gradient_difference"] < 1e-10 for r in results)
    kept = [r["activations_kept"] for r in results]
    assert kept == ([4, 4, 4] if name == "gpipe" else [3, 2, 1])
    assert [r["messages"] for r in results] == [4, 8, 4]
    events = [event for result in results for event in result["events"]]
    assert len(events) == RANKS * 4 * 2
    # A crowded machine only adds to the waiting.
    assert idle_share(events) > 0.9 * bubble_share(RANKS, 4)
    end = {(e["kind"], e["stage"], e["micro_batch"]): e["end"] for e in events}
    for e in events:
        if e["kind"] == "F" and e["stage"] > 0:
            assert e["start"] >= end["F", e["stage"] - 1, e["micro_batch"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["not sharded", "zero1", "fsdp"])
def test_sharded_training_equals_one_process(of, name):
    assert all(result["difference"] < 1e-10 for result in of(name))


@pytest.mark.slow
def test_sharding_saves_the_memory_that_the_formula_says(of):
    def total(name):
        keys = ("parameter_bytes", "gradient_bytes", "state_bytes")
        return [sum(result[key] for key in keys) for result in of(name)]

    count = of("fsdp")[0]["numbers"]
    for name, stage in (("not sharded", 0), ("zero1", 1), ("fsdp", 3)):
        expected = bytes_per_rank(count, RANKS, stage, itemsize=8)
        assert statistics.fmean(total(name)) == pytest.approx(expected, rel=0.02)
    assert sum(total("fsdp")) == of("fsdp")[0]["whole_bytes"]  # cut up, nothing twice


@pytest.mark.slow
def test_a_stragglers_gradients_are_stale(of):
    server, *others = of("asynchronous")
    history = server["history"]
    assert len(history) == 30
    assert sum(r["sent"] for r in others) >= 30
    assert {e["worker"] for e in history} == {1, 2}
    staleness = {w: [e["staleness"] for e in history if e["worker"] == w] for w in (1, 2)}
    assert statistics.fmean(staleness[2]) > statistics.fmean(staleness[1])
    assert server["loss_after"] < server["loss_before"]


@pytest.mark.slow
def test_mixed_precision_halves_the_bytes_only_where_they_travel(of):
    exact = of("precision float32")[0]
    for method, half in (("autocast", 1), ("compress", 2), ("both", 2)):
        a, b, _ = of(f"precision {method}")
        assert torch.equal(a["weights"], b["weights"])
        assert a["bytes"] == exact["bytes"] // half
        assert a["weight_dtype"] == "float32"
        assert a["activation_dtype"] == ("float32" if method == "compress" else "bfloat16")
        assert 0 < (a["weights"] - exact["weights"]).abs().max() < 0.01
        assert a["losses"] == pytest.approx(exact["losses"], rel=0.02)


@pytest.mark.slow
def test_scaling_measures_both_kinds_on_each_number_of_ranks(of):
    rows = of("scaling")[0]["rows"]
    assert [(r["kind"], r["ranks"], r["batch"]) for r in rows] == [
        ("weak", 1, 12), ("strong", 1, 12), ("weak", 2, 12), ("strong", 2, 6), ("weak", 3, 12),
        ("strong", 3, 4),
    ]  # fmt: skip
    assert all(row["compute"] > 0 and row["bytes"] == rows[0]["bytes"] for row in rows)
    assert all(math.isfinite(row["exchange"]) for row in rows)
    assert [r["ranks"] for r in of("scaling")[2]["rows"]] == [3, 3]


# --- The launcher: nothing is left behind -----------------------------------------------------

SCRIPT = '''
import os, signal, subprocess, sys, time
from pathlib import Path
import torch, torch.distributed as dist

def together():
    dist.all_reduce(torch.ones(3))
    return {}

def raises():
    if dist.get_rank() == 1:
        raise ValueError("the data of rank 1 is broken")
    return together()

def exits():
    if dist.get_rank() == 1:
        os._exit(3)
    return together()

def killed():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return together()

def sleeps_on_rank_1():
    if dist.get_rank() == 1:
        time.sleep(1000)
    return together()

def with_children(place):
    """Two children for each rank, one of them in a session of its own; then wait for ever."""
    for session in (False, True):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"],
                         start_new_session=session)
    Path(place, str(dist.get_rank())).touch()
    time.sleep(1000)

def leaves_a_child():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"],
                     start_new_session=True)
    return {"rank": dist.get_rank(), "threads": torch.get_num_threads()}

def returns_a_module():
    return {"model": torch.nn.Linear(1, 1)}
'''


@pytest.fixture
def script(tmp_path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def alive(mark: str) -> list[psutil.Process]:
    """The processes, but zombies, that were started with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get("SHIPYARD_TEST") == mark
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def mark(monkeypatch):
    """Marks all that the test starts; at its end nothing with the mark may live."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("SHIPYARD_TEST", mark)
    yield mark
    left = alive(mark)
    for process in left:
        process.kill()
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "code", "words"),
    [
        ("raises", 1, "ValueError: the data of rank 1 is broken"),
        ("exits", 3, "exit code 3"),
        ("killed", -9, "SIGKILL"),
    ],
)
def test_a_dead_worker_ends_the_run_with_its_own_traceback(script, mark, worker, code, words):
    with pytest.raises(WorkerFailed, match="Rank 1 of 2 failed") as caught:
        launch(f"{script}:{worker}", 2, timeout=SLOW_MACHINE)
    assert caught.value.rank == 1
    assert caught.value.exit_code == code
    assert words in caught.value.traceback
    if worker == "raises":
        assert 'File "script.py", line 12, in raises' in caught.value.traceback
    assert alive(mark) == []


@pytest.mark.slow
def test_a_hang_ends_at_the_time_out_and_says_where_each_rank_stood(script, mark):
    limit = 20
    start = time.monotonic()
    with pytest.raises(WorkerTimeout, match=f"not done after {limit} s") as caught:
        launch(f"{script}:sleeps_on_rank_1", 2, timeout=limit)
    assert time.monotonic() - start < limit + 10
    assert "in sleeps_on_rank_1" in caught.value.stacks[1]
    assert "in together" in caught.value.stacks[0]
    assert "in all_reduce" in caught.value.stacks[0]
    assert alive(mark) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_is_stopped_takes_everything_with_it(script, mark, tmp_path, number):
    code = (
        "from shipyard.distributed import launch\n"
        f"launch({script + ':with_children'!r}, 2, {{'place': {str(tmp_path)!r}}})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
    assert len(alive(mark)) == 1 + 1 + 2 + 4  # this launcher, torchrun, workers, children
    parent.send_signal(number)
    _, error = parent.communicate(timeout=60)
    assert parent.returncode != 0
    assert number != signal.SIGINT or "KeyboardInterrupt" in error
    until(lambda: alive(mark) == [])


def until(condition, seconds: float = SLOW_MACHINE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_two_launches_at_once_share_no_port_and_a_good_end_leaves_no_child(script, mark):
    results = {}

    def start(number: int) -> None:
        run = launch(f"{script}:leaves_a_child", 2, threads=number, timeout=SLOW_MACHINE)
        results[number] = run.results

    threads = [threading.Thread(target=start, args=[number]) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (1, 2):
        assert results[number] == [{"rank": r, "threads": number} for r in (0, 1)]
    assert alive(mark) == []


@pytest.mark.slow
def test_a_result_that_cannot_travel_is_refused(script, mark):
    with pytest.raises(WorkerFailed, match=r"result\['model'\] is a Linear"):
        launch(f"{script}:returns_a_module", 1, timeout=SLOW_MACHINE)


@pytest.mark.slow
def test_a_whole_script_runs_as_it_is_and_fails_as_it_does(tmp_path, mark):
    path = tmp_path / "listing.py"
    path.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group(backend='gloo', init_method='env://')\n"
        "print('ranks:', dist.get_world_size())\n"
        "loss = torch.nn.MSELoss()(torch.randn(3), target)\n"
    )
    kept = tmp_path / "kept"
    with pytest.raises(WorkerFailed, match="name 'target' is not defined") as caught:
        launch(str(path), 2, timeout=SLOW_MACHINE, folder=kept)
    assert caught.value.traceback.splitlines()[1] == '  File "listing.py", line 4, in <module>'
    assert "ranks: 2" in (kept / "log.txt").read_text()


@pytest.mark.slow
def test_workers_train_on_images_from_a_file(tmp_path, mark):
    """Images, their labels, and a batch that is not all of them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(20, 3, 8, 8, generator=generator)
    labels = torch.randint(10, [20], generator=generator)
    torch.save({"inputs": images, "labels": labels}, tmp_path / "images.pt")
    data = {"data": str(tmp_path / "images.pt"), "classes": 10, "hidden": 4}
    sizes = {"count": 16, "batch": 8, "epochs": 1}
    run = launch(
        {
            "ddp": (workers.data_parallel, {**data, **sizes, "method": "ddp"}),
            "bf16": (workers.mixed_precision, {**data, "batch": 8, "steps": 2, "method": "both"}),
            "scaling": (workers.scaling, {**data, "counts": [2], "batch": 8, "steps": 1}),
        },
        2,
        timeout=SLOW_MACHINE,
    )
    for result in run.results:
        assert result["ddp"]["one_process_difference"] < 1e-10
        assert len(result["ddp"]["losses"]) == 2
        assert len(result["bf16"]["losses"]) == 2
        assert [row["batch"] for row in result["scaling"]["rows"]] == [8, 4]


@pytest.mark.slow
def test_a_script_gets_its_arguments_and_may_leave_by_sys_exit(tmp_path, mark):
    path = tmp_path / "train.py"
    path.write_text(
        "import argparse, sys\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--batch-size', type=int)\n"
        "print('batch', parser.parse_args().batch_size)\n"
        "sys.exit(0)\n"
    )
    run = launch(str(path), 1, {"batch_size": 7}, timeout=SLOW_MACHINE)
    assert run.results == [{}]
    assert "batch 7" in run.log


# --- Elastic restart --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_restarted_training_ends_at_the_same_weights_bit_for_bit(tmp_path, mark):
    interrupted = launch(
        workers.elastic,
        2,
        {"checkpoint": tmp_path / "a.pt", "kill_at": 6, "steps": 10},
        max_restarts=1,
        timeout=SLOW_MACHINE,
    )
    whole = launch(
        workers.elastic, 2, {"checkpoint": tmp_path / "b.pt", "steps": 10}, timeout=SLOW_MACHINE
    )
    assert interrupted.restarts == 1
    assert interrupted.of("resumed_at") == [4, 4]
    assert interrupted.of("attempt") == [1, 1]
    (failure,) = interrupted.failures
    assert failure.rank == 1
    assert failure.exit_code in (-9, None)  # torchrun names one process only when it restarts
    assert whole.restarts == 0
    assert whole.of("resumed_at") == [0, 0]
    for a, b in zip(interrupted.results, whole.results, strict=True):
        assert torch.equal(a["weights"], b["weights"])
    assert interrupted.results[0]["losses"] == whole.results[0]["losses"]
    assert len(whole.results[0]["losses"]) == 10
