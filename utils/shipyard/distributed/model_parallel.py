"""One model on several ranks: layers cut into columns and rows, or stages in a pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from shipyard.distributed.collectives import Wire
from shipyard.errors import ShipyardError

Schedule = list[list[tuple[str, int]]]
Event = dict[str, Any]

# --- Tensor parallel: one layer on all ranks --------------------------------------------------


class CopyToRanks(torch.autograd.Function):
    """Forward: x as it is, for each rank's part of a layer. Backward: the sum of their gradients.

    Each rank's part gives only a part of ∂loss/∂x, so they must be added.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


class SumOverRanks(torch.autograd.Function):
    """Forward: the sum of the ranks' partial results. Backward: the gradient as it is."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


class ColumnParallelLinear(nn.Module):
    """This rank's columns of y = x Wᵀ + b: some of the outputs, from all of the inputs.

    Args:
        full: the whole layer, the same on every rank; its rows of W (outputs) are shared out.
    """

    def __init__(self, full: nn.Linear):
        super().__init__()
        weight, bias = part(full.weight, 0), part(full.bias, 0)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) → (batch, this rank's outputs)."""
        return F.linear(CopyToRanks.apply(x), self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """y = Σ_r x_r W_rᵀ + b, where rank r holds some of the inputs; all ranks get the whole y.

    Args:
        full: the whole layer, the same on every rank; its columns of W (inputs) are shared out.
            Every rank keeps the whole bias, which is added once, after the sum.
    """

    def __init__(self, full: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(part(full.weight, 1))
        self.bias = nn.Parameter(full.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, this rank's inputs) → (batch, outputs)."""
        return SumOverRanks.apply(F.linear(x, self.weight)) + self.bias


def part(tensor: Tensor, dim: int) -> Tensor:
    """A copy of this rank's share of ``tensor`` along ``dim``; shares differ by one at most."""
    return tensor.detach().tensor_split(dist.get_world_size(), dim)[dist.get_rank()].clone()


# --- Pipeline parallel: each stage on its own rank --------------------------------------------


def gpipe(stages: int, micro_batches: int) -> Schedule:
    """For each stage, its work in order: all forward passes, then all backward passes.

    ("F", m) is the forward pass of micro-batch m, ("B", m) its backward pass. Every stage keeps
    the activations of all M micro-batches until its backward passes begin.
    """
    forward = [("F", m) for m in range(micro_batches)]
    backward = [("B", m) for m in range(micro_batches)]
    return [forward + backward for _ in range(stages)]


def one_f_one_b(stages: int, micro_batches: int) -> Schedule:
    """For each stage, its work in order: one forward, one backward, in turn.

    Stage s first runs S−1−s forward passes to fill the pipe, then pairs, then the remaining
    backward passes. It takes as long as `gpipe`, but a stage keeps at most S−s activations.
    """
    schedule = []
    for stage in range(stages):
        ahead = min(stages - 1 - stage, micro_batches)
        work = [("F", m) for m in range(ahead)]
        for m in range(micro_batches - ahead):
            work += [("F", m + ahead), ("B", m)]
        work += [("B", m) for m in range(micro_batches - ahead, micro_batches)]
        schedule.append(work)
    return schedule


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {"gpipe": gpipe, "1f1b": one_f_one_b}


def simulate(schedule: Schedule, forward: float = 1.0, backward: float = 2.0) -> list[Event]:
    """When each piece of work runs if all forward passes take equal time, and all backward ones.

    A piece starts when its stage is free and its input is there: the forward result of the
    stage before, or the gradient from the stage after.

    Returns:
        Events ``{"stage", "kind", "micro_batch", "start", "end"}``, for a Gantt chart.

    Raises:
        ShipyardError: the stages would wait for each other forever.
    """
    last = len(schedule) - 1
    end: dict[tuple[str, int, int], float] = {}  # (kind, stage, micro-batch) → time
    free = [0.0] * len(schedule)
    todo = [list(work) for work in schedule]
    events = []
    while any(todo):
        before = len(events)
        for stage, work in enumerate(todo):
            while work:
                kind, m = work[0]
                if kind == "F":
                    needs = [] if stage == 0 else [("F", stage - 1, m)]
                else:
                    needs = [("F", stage, m)] + ([] if stage == last else [("B", stage + 1, m)])
                if any(need not in end for need in needs):
                    break
                start = max([free[stage], *(end[need] for need in needs)])
                free[stage] = end[kind, stage, m] = start + (forward if kind == "F" else backward)
                events.append(event(stage, kind, m, start, free[stage]))
                work.pop(0)
        if len(events) == before:
            waiting = {stage: work[0] for stage, work in enumerate(todo) if work}
            raise ShipyardError(f"The schedule never ends: each stage waits before {waiting}.")
    return events


def event(stage: int, kind: str, micro_batch: int, start: float, end: float) -> Event:
    return {"stage": stage, "kind": kind, "micro_batch": micro_batch, "start": start, "end": end}


def activations_kept(events: Sequence[Event], stage: int) -> int:
    """The largest number of micro-batches whose activations ``stage`` holds at once."""
    kept = most = 0
    for e in sorted((e for e in events if e["stage"] == stage), key=lambda e: e["start"]):
        kept += 1 if e["kind"] == "F" else -1
        most = max(most, kept)
    return most


def run_pipeline(
    stage: nn.Module,
    schedule: Schedule,
    inputs: Sequence[Tensor],
    labels: Sequence[Tensor],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    shape: Sequence[int],
    wire: Wire | None = None,
) -> tuple[float, list[Event]]:
    """Forward and backward of all micro-batches, this rank being one stage; gradients add up.

    Activations travel to the next rank, their gradients back, by send and receive. The loss is
    the mean over M equal micro-batches, so the gradients are those of the whole batch.

    Args:
        stage: this rank's part of the model.
        schedule: one list of work for each rank.
        inputs: M micro-batches; later stages take only their lengths.
        labels: M micro-batches, used by the last stage.
        loss_fn: maps (outputs, labels) to their mean loss.
        shape: of this stage's input without the batch, () for the first stage.
        wire: counts what is sent.

    Returns:
        The mean loss (0 except on the last stage), and this stage's events, in seconds since
        rank 0 began (the ranks share a clock: they are on one machine).
    """
    wire = wire or Wire()
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    kept: dict[int, tuple[Tensor, Tensor]] = {}  # micro-batch → (input, output)
    sends: list[tuple[dist.Work, Tensor]] = []  # what travels must live until it has arrived
    total, events = 0.0, []
    dtype = next(stage.parameters()).dtype
    dist.barrier()
    clock = torch.tensor([time.perf_counter()], dtype=torch.float64)
    dist.broadcast(clock, 0)
    begin = clock.item()
    for kind, m in schedule[rank]:
        if kind == "F":
            if rank == 0:
                x = inputs[m]
            else:
                x = torch.empty(len(inputs[m]), *shape, dtype=dtype)
                wire.receive(x, rank - 1)
                x.requires_grad_()
            start = time.perf_counter()
            y = stage(x)
            if rank == last:
                y = loss_fn(y, labels[m]) / len(inputs)
                total += y.item()
            end = time.perf_counter()
            kept[m] = x, y
            if rank < last:
                outgoing = y.detach().contiguous()
                sends.append((wire.start_to_send(outgoing, rank + 1), outgoing))
        else:
            x, y = kept.pop(m)
            gradient = None
            if rank < last:
                gradient = torch.empty_like(y)
                wire.receive(gradient, rank + 1)
            start = time.perf_counter()
            y.backward(gradient)
            end = time.perf_counter()
            if rank > 0:
                outgoing = x.grad.contiguous()
                sends.append((wire.start_to_send(outgoing, rank - 1), outgoing))
        events.append(event(rank, kind, m, start - begin, end - begin))
    for work, _ in sends:
        work.wait()
    return total, events
