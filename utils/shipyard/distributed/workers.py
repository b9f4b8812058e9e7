"""The experiments of the lesson on distributed training: what each rank runs.

Each function is called on every rank with the process group made, and returns a dict. Networks
and data are made inside, from a seed; ``data`` names a file of images in their place, written
with ``torch.save({"inputs": …, "labels": …}, file)``.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from shipyard.distributed import asynchronous as stale
from shipyard.distributed import model_parallel, sharding
from shipyard.distributed.collectives import (
    Wire,
    naive_all_reduce,
    ring_all_reduce,
    ring_bytes,
    ring_messages,
)
from shipyard.distributed.data_parallel import (
    accumulate,
    average_gradients,
    broadcast_weights,
    shard_indices,
)
from shipyard.errors import ShipyardError
from shipyard.number_formats import NumberFormat
from shipyard.training import load_checkpoint, save_checkpoint

ALL_REDUCE: dict[str, Callable[..., Any]] = {
    "gloo": dist.all_reduce,
    "ring": ring_all_reduce,
    "naive": naive_all_reduce,
}

# --- Data and networks, the same on every rank ------------------------------------------------


def problem(
    count: int = 96, features: int = 20, classes: int = 5, seed: int = 0, data: str | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Inputs (count, features) and the labels that a random linear rule gives them.

    With ``data``, the first ``count`` images and labels of that file.
    """
    if data is not None:
        saved = torch.load(data, weights_only=True)
        return saved["inputs"][:count].to(dtype), saved["labels"][:count]
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, features, generator=generator, dtype=torch.float64)
    rule = torch.randn(features, classes, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), (inputs @ rule).argmax(1)


def network(inputs: Tensor, classes: int, hidden: int = 32, seed: int = 0) -> nn.Sequential:
    """A small network for these inputs, of their type: convolutional for images, else an MLP."""
    torch.manual_seed(seed)
    if inputs.dim() == 4:  # (count, channels, height, width)
        layers = [
            nn.Conv2d(inputs.shape[1], hidden, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(hidden, 2 * hidden, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * hidden, classes),
        ]  # fmt: skip
    else:
        layers = [nn.Linear(inputs.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers).to(inputs.dtype)


def flat(tensors) -> Tensor:
    """All values side by side, in a tensor of their own."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference between two tensors."""
    return (a - b).abs().max().item()


def train_alone(model: nn.Module, optimizer, batches) -> list[float]:
    """Plain training in one process: what every parallel form has to equal."""
    losses = []
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Exchanges:
    """Counts what this rank exchanges with the others, a library's own messages included.

    It reads torch's profiler.

    Attributes:
        count: how many operations (``gloo:all_reduce``, ``gloo:send``, …) ran.
        numbers: how many tensor elements were handed to them.
    """

    def __enter__(self) -> Exchanges:
        from torch.profiler import ProfilerActivity, profile

        self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self.profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.profile.__exit__(*error)
        events = [e for e in self.profile.events() if e.name.startswith("gloo:")]
        self.count = len(events)
        self.numbers = sum(math.prod(shape) for e in events for shape in e.input_shapes)


# --- The articles' listing --------------------------------------------------------------------


def listing(steps: int = 10, seed: int | None = None) -> dict[str, Any]:
    """The articles' distributed listing, with the missing ``target`` added, and nothing else.

    Args:
        seed: None as in the listing: torch seeds each process differently, and each rank trains
            a model of its own. With a seed, all ranks draw the same weights and the same data:
            they do the same work N times over.

    Returns:
        ``inputs`` (the first row of the first batch), ``weights``, ``losses``, and what was
        exchanged: ``exchanges`` (a count) and ``bytes``.
    """
    if seed is not None:
        torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses, inputs = [], []
    with Exchanges() as exchanges:
        for _ in range(steps):
            optimizer.zero_grad()
            inputs.append(torch.randn(100, 100))
            target = torch.randn(100, 10)
            loss = nn.MSELoss()(model(inputs[-1]), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return {
        "inputs": inputs[0][0],
        "weights": flat(model.parameters()),
        "losses": losses,
        "exchanges": exchanges.count,
        "bytes": 4 * exchanges.numbers,
    }


# --- All-reduce by hand -----------------------------------------------------------------------


def all_reduce(
    sizes: Sequence[int] = (0, 1, 2, 5, 1000, 1001), methods: Sequence[str] = ("ring", "naive"),
    dtype: str = "float64", seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """All-reduce by hand of random tensors, against ``dist.all_reduce``, with all sends counted.

    Returns:
        ``rows``: for each method and size a dict with ``method``, ``numbers`` (the size),
        ``bytes`` and ``messages`` that this rank sent, ``formula_bytes`` and
        ``formula_messages`` of the ring, and ``difference`` from the library's sum.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(seed + rank)
    rows = []
    for method in methods:
        for size in sizes:
            values = torch.randn(size, generator=generator, dtype=torch.float64)
            values = values.to(getattr(torch, dtype))
            expected = values.clone()
            dist.all_reduce(expected)
            wire = Wire()
            ALL_REDUCE[method](values, wire)
            rows.append({
                "method": method,
                "numbers": size,
                "bytes": wire.bytes,
                "messages": wire.messages,
                "formula_bytes": ring_bytes(values.nbytes, ranks),
                "formula_messages": ring_messages(ranks),
                "difference": difference(values, expected) if size else 0.0,
            })  # fmt: skip
    return {"rows": rows}


def time_all_reduce(
    sizes: Sequence[int] = (2**8, 2**12, 2**16, 2**20), methods: Sequence[str] = ("gloo",),
    repeats: int = 10, counts: Sequence[int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The time of an all-reduce of float32 numbers, for several sizes and numbers of ranks.

    Args:
        sizes: how many numbers.
        methods: "gloo" (the library), and "ring" or "naive" (by hand, all ranks only).
        repeats: so many measurements of each, after one that does not count.
        counts: numbers of ranks to try, at most those started; by default all of them.

    Returns:
        ``rows``: dicts with ``method``, ``ranks``, ``bytes``, ``seconds`` (the median),
        ``fastest`` and ``slowest``.
    """
    rows = []
    for ranks in counts or [dist.get_world_size()]:
        group = dist.new_group(list(range(ranks)))
        for method in methods if dist.get_rank() < ranks else ():
            if method == "gloo":
                run = partial(dist.all_reduce, group=group)
            elif ranks == dist.get_world_size():
                run = ALL_REDUCE[method]
            else:
                raise ShipyardError(f"The {method} all-reduce uses all ranks, not {ranks} of them.")
            tensors = [torch.zeros(size) for size in sizes]
            seconds = torch.empty(repeats + 1, len(sizes), dtype=torch.float64)
            for again in range(repeats + 1):
                # All sizes in turn, so that a busy moment of the machine is not one size's alone.
                for which, values in enumerate(tensors):
                    dist.barrier(group)
                    start = time.perf_counter()
                    run(values)
                    seconds[again, which] = time.perf_counter() - start
            for values, measured in zip(tensors, seconds[1:].T.tolist(), strict=True):
                rows.append({
                    "method": method,
                    "ranks": ranks,
                    "bytes": values.nbytes,
                    "seconds": statistics.median(measured),
                    "fastest": min(measured),
                    "slowest": max(measured),
                })  # fmt: skip
        dist.barrier()
    return {"rows": rows}


# --- Data parallel ----------------------------------------------------------------------------


def data_parallel(
    method: str = "by hand", epochs: int = 2, batch: int = 24, count: int = 96,
    learning_rate: float = 0.1, bucket_bytes: int = 25 * 2**20, dtype: str = "float64",
    classes: int = 5, hidden: int = 32, seed: int = 0, data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train on shards, each rank on its part of every batch, and compare with one process.

    Args:
        method: how gradients are exchanged: "none", "by hand" (buckets and gloo's all-reduce),
            "ring" (buckets and our ring), or "ddp" (`DistributedDataParallel`).
        epochs, batch, count, learning_rate: of the whole training; ``batch`` is that of all
            ranks together. The number of ranks must divide it, and it must divide ``count``.
        bucket_bytes: for "by hand" and "ring".
        dtype: "float64" shows equality; "float32" is what one trains in.
        data: a file of images to train on (see the module).

    Returns:
        ``losses`` (this rank's, one for each step), ``weights`` (one flat tensor),
        ``one_process_losses`` and ``one_process_difference`` (of the weights, from training on
        the whole batch in one process), ``exchanges`` and ``bytes`` (of one step: what was
        handed to the exchange), ``first_indices`` (of this rank's first batch), ``seconds``.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if batch % ranks or count % batch:
        raise ShipyardError(f"{ranks} ranks must divide batch ({batch}), and that count ({count}).")
    inputs, labels = problem(count, classes=classes, seed=seed, data=data, dtype=numbers(dtype))
    # Each rank starts with other weights on purpose: the broadcast has to make them equal.
    model = network(inputs, classes, hidden, seed=seed if method == "none" else seed + rank)
    whole = network(inputs, classes, hidden, seed=seed)
    if method in ("by hand", "ring"):
        broadcast_weights(model)
    trained = DistributedDataParallel(model) if method == "ddp" else model
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)
    losses, first, exchanges = [], [], None
    start = time.perf_counter()
    for epoch in range(epochs):
        mine = shard_indices(count, rank, ranks, epoch=epoch, seed=seed)
        for chosen in torch.tensor(mine).split(batch // ranks):
            first = first or chosen.tolist()
            with Exchanges() if not losses else nullcontext() as meter:
                optimizer.zero_grad()
                loss = F.cross_entropy(trained(inputs[chosen]), labels[chosen])
                loss.backward()
                if method in ("by hand", "ring"):
                    average_gradients(
                        model, bucket_bytes, ALL_REDUCE["ring" if method == "ring" else "gloo"]
                    )
                optimizer.step()
            exchanges = meter or exchanges
            losses.append(loss.item())
    seconds = time.perf_counter() - start
    order = [
        (inputs[chosen], labels[chosen])
        for epoch in range(epochs)
        for chosen in torch.tensor(shard_indices(count, 0, 1, epoch=epoch, seed=seed)).split(batch)
    ]
    alone = torch.optim.SGD(whole.parameters(), learning_rate, momentum=0.9)
    one_process_losses = train_alone(whole, alone, order)
    weights = flat(model.parameters())
    return {
        "losses": losses,
        "weights": weights,
        "one_process_losses": one_process_losses,
        "one_process_difference": difference(weights, flat(whole.parameters())),
        "exchanges": exchanges.count,
        "bytes": exchanges.numbers * inputs.itemsize,
        "first_indices": first,
        "seconds": seconds,
    }


def accumulation(
    micro_batches: int = 4, batch: int = 24, learning_rate: float = 0.1, steps: int = 3,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Gradients of k micro-batches added up before one exchange, against one large batch.

    Returns:
        ``difference`` of the weights from one process on the whole batch, ``losses``,
        ``exchanges`` (of one step), ``exchanges_without_no_sync`` (the same with an exchange in
        each backward pass), ``largest_batch`` (images that a rank holds at once).
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if batch % (ranks * micro_batches):
        raise ShipyardError(f"{ranks} ranks × {micro_batches} micro-batches must divide {batch}.")
    inputs, labels = problem(batch, seed=seed)
    model, whole = network(inputs, 5, seed=seed), network(inputs, 5, seed=seed)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    mine = zip(
        inputs[rank::ranks].chunk(micro_batches), labels[rank::ranks].chunk(micro_batches),
        strict=True,
    )  # fmt: skip
    mine = list(mine)
    with Exchanges() as each_time:
        for x, y in mine:
            F.cross_entropy(parallel(x), y).backward()
    losses, once = [], None
    for _ in range(steps):
        optimizer.zero_grad()
        with Exchanges() if once is None else nullcontext() as meter:
            losses.append(accumulate(parallel, mine, F.cross_entropy))
        once = once or meter
        optimizer.step()
    alone = torch.optim.SGD(whole.parameters(), learning_rate)
    train_alone(whole, alone, [(inputs, labels)] * steps)
    return {
        "difference": difference(flat(model.parameters()), flat(whole.parameters())),
        "losses": losses,
        "exchanges": once.count,
        "exchanges_without_no_sync": each_time.count,
        "largest_batch": max(len(y) for _, y in mine),
    }


def numbers(name: str) -> torch.dtype:
    """The type named "float32", "float64" or "bfloat16"."""
    return getattr(torch, name)


# --- Tensor and pipeline parallel -------------------------------------------------------------


def tensor_parallel(
    batch: int = 12, features: int = 20, hidden: int = 33, classes: int = 5, steps: int = 3,
    learning_rate: float = 0.1, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Two linear layers cut into columns and rows over the ranks, against the whole network.

    Returns:
        ``output_difference`` and ``gradient_difference`` (the inputs' and this rank's weights')
        of the first step, ``weights_difference`` after all ``steps``; ``forward_exchanges`` and
        ``backward_exchanges``; ``parameters`` of this rank and ``whole_parameters``;
        ``bytes`` exchanged by one step.
    """
    inputs, labels = problem(batch, features, classes, seed)
    whole = network(inputs, classes, hidden, seed)
    mine = nn.Sequential(
        model_parallel.ColumnParallelLinear(whole[0]),
        nn.ReLU(),
        model_parallel.RowParallelLinear(whole[2]),
    )

    def own_parts(of: Callable[[nn.Parameter], Tensor]) -> Tensor:
        """This rank's part of something that belongs to the whole network's parameters."""
        w1, b1, w2, b2 = map(of, whole.parameters())
        part = model_parallel.part
        return flat([part(w1, 0), part(b1, 0), part(w2, 1), b2])

    x, x_whole = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    with Exchanges() as forward:
        output = mine(x)
    with Exchanges() as backward:
        F.cross_entropy(output, labels).backward()
    expected = whole(x_whole)
    F.cross_entropy(expected, labels).backward()
    gradient = difference(flat(p.grad for p in mine.parameters()), own_parts(lambda p: p.grad))
    for model in (mine, whole):
        optimizer = torch.optim.SGD(model.parameters(), learning_rate)
        train_alone(model, optimizer, [(inputs, labels)] * steps)
    return {
        "output_difference": difference(output, expected),
        "gradient_difference": max(gradient, difference(x.grad, x_whole.grad)),
        "weights_difference": difference(flat(mine.parameters()), own_parts(lambda p: p)),
        "forward_exchanges": forward.count,
        "backward_exchanges": backward.count,
        "bytes": 8 * (forward.numbers + backward.numbers),
        "parameters": sum(p.numel() for p in mine.parameters()),
        "whole_parameters": sum(p.numel() for p in whole.parameters()),
    }


class Slow(nn.Module):
    """The module, made to last: ``seconds`` in each forward pass, twice that in each backward."""

    def __init__(self, module: nn.Module, seconds: float):
        super().__init__()
        self.module, self.seconds = module, seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        y = self.module(x)
        y.register_hook(lambda gradient: time.sleep(2 * self.seconds))
        return y


def pipeline(
    schedule: str = "gpipe", micro_batches: int = 4, batch: int = 24, features: int = 20,
    hidden: int = 32, classes: int = 5, pause: float = 0.0, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """A network with one stage on each rank, fed with micro-batches, against the whole network.

    Args:
        schedule: "gpipe" or "1f1b".
        pause: make each forward pass last so many seconds, and each backward pass twice as
            long: the timeline then shows the schedule, however few cores there are.

    Returns:
        ``loss`` (last rank), ``whole_loss``, ``gradient_difference`` (of this stage), ``events``
        of this stage (for a Gantt chart: join those of all ranks), ``activations_kept``,
        ``messages`` and ``bytes`` that this rank sent.
    """
    rank, stages = dist.get_rank(), dist.get_world_size()
    if batch % micro_batches:
        raise ShipyardError(f"{micro_batches} micro-batches must divide the batch of {batch}.")
    inputs, labels = problem(batch, features, classes, seed)
    torch.manual_seed(seed)
    sizes = [features, *[hidden] * (stages - 1), classes]
    layers = [
        nn.Sequential(nn.Linear(a, b), nn.Tanh() if s < stages - 1 else nn.Identity()).double()
        for s, (a, b) in enumerate(pairwise(sizes))
    ]
    whole_loss = F.cross_entropy(nn.Sequential(*layers)(inputs), labels)
    expected = torch.autograd.grad(whole_loss, list(layers[rank].parameters()))
    stage = Slow(layers[rank], pause) if pause else layers[rank]
    work = model_parallel.SCHEDULES[schedule](stages, micro_batches)
    for _ in range(2):  # the first run makes the connections, and does not count
        wire = Wire()
        stage.zero_grad()
        loss, events = model_parallel.run_pipeline(
            stage, work, inputs.chunk(micro_batches), labels.chunk(micro_batches),
            F.cross_entropy, shape=() if rank == 0 else (sizes[rank],), wire=wire,
        )  # fmt: skip
    return {
        "loss": loss,
        "whole_loss": whole_loss.item(),
        "gradient_difference": difference(
            flat(p.grad for p in layers[rank].parameters()), flat(expected)
        ),
        "events": events,
        "activations_kept": model_parallel.activations_kept(events, rank),
        "messages": wire.messages,
        "bytes": wire.bytes,
    }


# --- Sharded states ---------------------------------------------------------------------------


def sharded(
    method: str = "fsdp", batch: int = 24, features: int = 20, hidden: int = 33, classes: int = 5,
    steps: int = 3, learning_rate: float = 0.01, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train with Adam, its states shared out among the ranks, against one process.

    Args:
        method: "none" (all on every rank), "zero1" (`ShardedAdam`, by hand) or "fsdp" (torch's
            `fully_shard`).

    Returns:
        ``difference`` of the weights from one process on the whole batch; counted on this rank:
        ``parameter_bytes``, ``gradient_bytes``, ``state_bytes`` (Adam's averages); ``numbers``
        (parameters of the whole network) and ``whole_bytes`` (parameters, gradients and states
        without sharing).
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if batch % ranks:
        raise ShipyardError(f"{ranks} ranks must divide the batch of {batch}.")
    inputs, labels = problem(batch, features, classes, seed)
    model, whole = (network(inputs, classes, hidden, seed) for _ in range(2))
    if method == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (ranks,))
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
    if method == "zero1":
        optimizer = sharding.ShardedAdam(model.parameters(), lr=learning_rate)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rank::ranks]), labels[rank::ranks]).backward()
        if method == "none":
            average_gradients(model)
        optimizer.step()
    counted = optimizer.adam if method == "zero1" else optimizer
    gradients = [sharding.local(p.grad).nbytes for p in model.parameters()]
    kept = sharding.parameter_bytes(model), sum(gradients), sharding.state_bytes(counted)
    gathered = [p.full_tensor() if method == "fsdp" else p for p in model.parameters()]
    train_alone(
        whole, torch.optim.Adam(whole.parameters(), lr=learning_rate), [(inputs, labels)] * steps
    )
    count = sum(p.numel() for p in whole.parameters())
    return {
        "difference": difference(flat(gathered), flat(whole.parameters())),
        **dict(zip(("parameter_bytes", "gradient_bytes", "state_bytes"), kept, strict=True)),
        "numbers": count,
        "whole_bytes": int(sharding.bytes_per_rank(count, 1, 0, itemsize=8)),
    }


# --- Asynchronous updates ---------------------------------------------------------------------


def asynchronous(
    updates: int = 60, learning_rate: float = 0.1, batch: int = 24, slow: Sequence[float] = (),
    count: int = 240, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """A parameter server on rank 0, and workers that never wait for each other.

    Args:
        updates: gradients that the server applies before it stops.
        slow: seconds that each worker (ranks 1, 2, …) sleeps in every step: (0.01, 0.04) makes
            rank 2 a straggler, whose gradients are about four updates old.

    Returns:
        On rank 0: ``history`` (the worker and the staleness of each update), ``loss_before`` and
        ``loss_after`` on all data, ``seconds``. On a worker: ``sent``, its gradients.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if ranks < 2:
        raise ShipyardError("The parameter server needs a worker: start two processes or more.")
    inputs, labels = problem(count, seed=seed)
    model = network(inputs, 5, seed=seed)
    weights = flat(model.parameters())

    def load(values: Tensor) -> None:
        nn.utils.vector_to_parameters(values, model.parameters())

    def loss_of_all() -> float:
        load(weights.clone())
        return F.cross_entropy(model(inputs), labels).item()

    if rank == 0:
        before, start = loss_of_all(), time.perf_counter()
        history = stale.serve_parameters(
            weights, updates=updates, learning_rate=learning_rate, workers=ranks - 1
        )
        seconds = time.perf_counter() - start
        after = loss_of_all()
        return {"history": history, "loss_before": before, "loss_after": after, "seconds": seconds}

    generator = torch.Generator().manual_seed(seed + rank)
    mine = torch.tensor(shard_indices(count, rank - 1, ranks - 1, seed=seed))

    def gradient_of(values: Tensor) -> Tensor:
        load(values.clone())
        time.sleep(slow[rank - 1] if rank <= len(slow) else 0)
        chosen = mine[torch.randint(len(mine), [batch], generator=generator)]
        loss = F.cross_entropy(model(inputs[chosen]), labels[chosen])
        return flat(torch.autograd.grad(loss, list(model.parameters())))

    return {"sent": stale.work_for_server(weights, gradient_of)}


# --- Mixed precision --------------------------------------------------------------------------


def mixed_precision(
    method: str = "autocast", steps: int = 20, batch: int = 48, learning_rate: float = 0.1,
    seed: int = 0, data: str | None = None, classes: int = 5, hidden: int = 32,
) -> dict[str, Any]:  # fmt: skip
    """DistributedDataParallel in float32, with bf16 in the forward pass, on the wire, or both.

    Args:
        method: "float32", "autocast" (forward and backward in bf16), "compress" (gradients
            travel in bf16), or "both".

    Returns:
        ``losses``, ``bytes`` (of gradients handed to one all-reduce), ``weights``,
        ``activation_dtype`` and ``weight_dtype`` (names).
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    inputs, labels = problem(batch, seed=seed, data=data, classes=classes, dtype=torch.float32)
    model = network(inputs, classes, hidden, seed)
    parallel = DistributedDataParallel(model)
    travelled = []
    wire_dtype = torch.bfloat16 if method in ("compress", "both") else torch.float32

    def exchange(state, bucket):  # torch refuses annotations that are text
        """The mean of a bucket over the ranks, sent as ``wire_dtype``."""
        gradient = bucket.buffer()
        outgoing = gradient.to(wire_dtype) / ranks
        travelled.append(outgoing.nbytes)
        future = dist.all_reduce(outgoing, async_op=True).get_future()
        return future.then(lambda done: gradient.copy_(done.value()[0]))

    parallel.register_comm_hook(None, exchange)
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    losses = []
    number_format = NumberFormat(
        torch.bfloat16 if method in ("autocast", "both") else torch.float32
    )
    for _ in range(steps):
        optimizer.zero_grad()
        with number_format.computing("cpu"):
            outputs = parallel(inputs[rank::ranks])
            loss = F.cross_entropy(outputs, labels[rank::ranks])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {
        "losses": losses,
        "bytes": sum(travelled) // steps,
        "weights": flat(model.parameters()),
        "activation_dtype": str(outputs.dtype).removeprefix("torch."),
        "weight_dtype": str(model[0].weight.dtype).removeprefix("torch."),
    }


# --- Elastic restart --------------------------------------------------------------------------


def elastic(
    checkpoint: str, steps: int = 12, every: int = 4, kill_at: int | None = None,
    kill_rank: int = 1, batch: int = 24, count: int = 96, learning_rate: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Data parallel training with checkpoints, that torchrun can start again.

    Args:
        checkpoint: the file that rank 0 writes after each ``every`` steps, and that all ranks
            go on from where it exists.
        kill_at: before this step (from 0), ``kill_rank`` is killed by SIGKILL, in the first
            attempt only; None lets all live.

    Returns:
        ``losses`` (of rank 0's part, all steps, those before the restart from the checkpoint),
        ``weights``, ``resumed_at`` (the step that this attempt began with), ``attempt``.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    inputs, labels = problem(count, seed=seed)
    model = network(inputs, 5, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)
    begin, losses = 0, []
    if Path(checkpoint).exists():
        saved = load_checkpoint(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin, losses = saved["step"], saved["losses"]
    parallel = DistributedDataParallel(model)
    each = batch // ranks
    in_epoch = count // batch
    for step in range(begin, steps):
        if attempt == 0 and step == kill_at and rank == kill_rank:
            os.kill(os.getpid(), signal.SIGKILL)
        mine = shard_indices(count, rank, ranks, epoch=step // in_epoch, seed=seed)
        chosen = torch.tensor(mine)[step % in_epoch * each :][:each]
        optimizer.zero_grad()
        loss = F.cross_entropy(parallel(inputs[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % every == 0:
            if rank == 0:
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save_checkpoint(checkpoint, {**states, "step": step + 1, "losses": losses})
            dist.barrier()  # nobody runs ahead of a checkpoint that is not yet written
    return {
        "losses": losses,
        "weights": flat(model.parameters()),
        "resumed_at": begin,
        "attempt": attempt,
    }


# --- Scaling ----------------------------------------------------------------------------------


def scaling(
    counts: Sequence[int] = (1, 2, 4), batch: int = 256, steps: int = 10, hidden: int = 512,
    features: int = 3072, classes: int = 10, seed: int = 0, data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The time of a data parallel step on 1, 2, 4… ranks, computing and exchanging apart.

    Weak scaling keeps ``batch`` on each rank, strong scaling shares it out among the ranks. The
    ranks that a measurement does not need wait without using a core.

    Args:
        counts: numbers of ranks, at most those started.
        steps: the median of so many steps is taken, after two that do not count.
        data: a file of images (see the module); else random numbers with ``features`` columns.

    Returns:
        ``rows``: dicts with ``kind`` ("weak" or "strong"), ``ranks``, ``batch`` (of one rank),
        ``seconds``, ``compute``, ``exchange`` (medians of this rank) and ``bytes`` (of all
        gradients). A rank has rows only for the counts that it took part in.
    """
    rank = dist.get_rank()
    inputs, labels = problem(batch, features, classes, seed, data, torch.float32)
    model = network(inputs, classes, hidden, seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    rows = []
    for ranks in counts:
        group = dist.new_group(list(range(ranks)))
        for kind, each in (("weak", batch), ("strong", batch // ranks)):
            if rank >= ranks:
                continue
            computing, exchanging, sent = [], [], []
            for _ in range(steps + 2):
                optimizer.zero_grad()
                dist.barrier(group)
                start = time.perf_counter()
                F.cross_entropy(model(inputs[:each]), labels[:each]).backward()
                middle = time.perf_counter()
                if ranks > 1:
                    sent = average_gradients(
                        model, all_reduce=partial(dist.all_reduce, group=group), ranks=ranks
                    )
                end = time.perf_counter()
                optimizer.step()
                computing.append(middle - start)
                exchanging.append(end - middle)
            both = [c + e for c, e in zip(computing, exchanging, strict=True)]
            rows.append({
                "kind": kind,
                "ranks": ranks,
                "batch": each,
                "seconds": statistics.median(both[2:]),
                "compute": statistics.median(computing[2:]),
                "exchange": statistics.median(exchanging[2:]),
                "bytes": sum(sent) or sum(p.nbytes for p in model.parameters()),
            })  # fmt: skip
        dist.barrier()
    return {"rows": rows}
