"""Data parallel training by hand: the same weights everywhere, other images, averaged gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shipyard.errors import ShipyardError

LossFn = Callable[[Tensor, Tensor], Tensor]


def shard_indices(
    count: int,
    rank: int,
    ranks: int,
    *,
    epoch: int = 0,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
) -> list[int]:
    """The items of one epoch that belong to ``rank``: as many as every other rank gets.

    All ranks shuffle alike (the generator's seed is ``seed + epoch``), and rank r takes the
    places r, r+N, r+2N, … Where N does not divide ``count``, the first items are taken again
    at the end (or, with ``drop_last``, the last ones are left out), because a rank with one
    batch less would leave the others waiting in their all-reduce.
    Equal to ``torch.utils.data.DistributedSampler`` after ``set_epoch(epoch)``.

    Raises:
        ShipyardError: there is no such rank.
    """
    if not 0 <= rank < ranks:
        raise ShipyardError(f"rank is {rank}; with {ranks} ranks it must be from 0 to {ranks - 1}.")
    if shuffle:
        generator = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(count, generator=generator).tolist()
    else:
        order = list(range(count))
    each = count // ranks if drop_last else math.ceil(count / ranks)
    total = each * ranks
    repeats = math.ceil(total / count) if count else 0
    return (order * repeats)[:total][rank::ranks]


def broadcast_weights(model: nn.Module, source: int = 0) -> None:
    """Overwrite parameters and buffers with those of rank ``source``: all ranks start alike."""
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, source)


def average_gradients(
    model: nn.Module,
    bucket_bytes: int = 25 * 2**20,
    all_reduce: Callable[[Tensor], object] = dist.all_reduce,
    ranks: int | None = None,
) -> list[int]:
    """Replace each gradient by its mean over the ranks: g ← (1/N) Σ_r g_r.

    Gradients are copied side by side into flat buckets, so that a few large messages are sent
    in place of one for each parameter.

    Args:
        model: the same on every rank; a parameter without a gradient counts as zero.
        bucket_bytes: a bucket is closed before it would grow past this size.
        all_reduce: sums a flat tensor over the ranks in place.
        ranks: how many ranks it sums over; by default all.

    Returns:
        The bytes of each bucket.
    """
    ranks = ranks or dist.get_world_size()
    sizes = []
    for parameters in buckets(model.parameters(), bucket_bytes):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        all_reduce(flat)
        flat /= ranks
        parts = flat.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        sizes.append(flat.nbytes)
    return sizes


def buckets(parameters: Iterable[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """Group trainable parameters, last first (backward computes their gradients in this order).

    A group has one type and at most ``most`` bytes, or is a single larger parameter.
    """
    group, size = [], 0
    for parameter in reversed([p for p in parameters if p.requires_grad]):
        if group and (size + parameter.nbytes > most or parameter.dtype != group[0].dtype):
            yield group
            group, size = [], 0
        group.append(parameter)
        size += parameter.nbytes
    if group:
        yield group


def accumulate(model: nn.Module, batches: list[tuple[Tensor, Tensor]], loss_fn: LossFn) -> float:
    """Add up the gradients of k equal batches, as if they were one batch: ∇ (1/k) Σ_i loss_i.

    A `DistributedDataParallel` model exchanges its gradients once, in the backward pass of the
    last batch; the others run under ``no_sync``.

    Returns:
        The mean loss.
    """
    total = 0.0
    for number, (inputs, labels) in enumerate(batches, start=1):
        last = number == len(batches)
        wrapped = isinstance(model, DistributedDataParallel)
        with model.no_sync() if wrapped and not last else nullcontext():
            loss = loss_fn(model(inputs), labels) / len(batches)
            loss.backward()
        total += loss.item()
    return total
