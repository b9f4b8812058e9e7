"""All-reduce by hand: every rank ends with the sum of all ranks' tensors.

Only send and receive between two ranks are used, and each is counted.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from shipyard.errors import ShipyardError


class Wire:
    """Send and receive between two ranks, with a count of what this rank sends.

    Attributes:
        messages: how many messages this rank has sent; an empty tensor is not sent at all.
        bytes: how many bytes of tensors were in them.
    """

    def __init__(self) -> None:
        self.messages = self.bytes = 0

    def send(self, tensor: Tensor, to: int) -> None:
        """Send ``tensor`` to rank ``to``; return once it may be changed again."""
        work = self.start_to_send(tensor, to)
        if work is not None:
            work.wait()

    def receive(self, tensor: Tensor, source: int) -> None:
        """Overwrite ``tensor`` with what rank ``source`` sends."""
        if tensor.numel():
            dist.recv(tensor, source)

    def exchange(self, outgoing: Tensor, to: int, incoming: Tensor, source: int) -> None:
        """Send and receive at once. All ranks of a ring may do so; sending first would block."""
        work = self.start_to_send(outgoing, to)
        self.receive(incoming, source)
        if work is not None:
            work.wait()

    def start_to_send(self, tensor: Tensor, to: int) -> dist.Work | None:
        """Begin to send; ``tensor`` must stay as it is until the work returned is done."""
        if not tensor.numel():
            return None
        self.messages += 1
        self.bytes += tensor.nbytes
        return dist.isend(tensor, to)


def ring_all_reduce(tensor: Tensor, wire: Wire | None = None) -> Tensor:
    """Sum ``tensor`` over all N ranks in place, by passing chunks around a ring.

    The tensor is cut into N chunks. In each of the N−1 steps of the *reduce-scatter*, a rank
    sends one chunk to its right and adds the chunk that comes from its left; rank r then owns
    the whole sum of chunk r+1. In N−1 steps of the *all-gather* the finished chunks go round.
    Each rank sends 2(N−1) messages and 2(N−1)/N of its tensor's bytes, however large N is.

    Args:
        tensor: contiguous, of the same shape and type on every rank.
        wire: counts what is sent.

    Raises:
        ShipyardError: the tensor is not contiguous.
    """
    wire = wire or Wire()
    r, N = dist.get_rank(), dist.get_world_size()
    chunks = cut(tensor, N)
    right, left = (r + 1) % N, (r - 1) % N
    for step in range(N - 1):  # reduce-scatter
        mine, theirs = chunks[(r - step) % N], chunks[(r - step - 1) % N]
        arrived = torch.empty_like(theirs)
        wire.exchange(mine, right, arrived, left)
        theirs += arrived
    for step in range(N - 1):  # all-gather
        mine, theirs = chunks[(r - step + 1) % N], chunks[(r - step) % N]
        wire.exchange(mine, right, theirs, left)
    return tensor


def naive_all_reduce(tensor: Tensor, wire: Wire | None = None) -> Tensor:
    """Sum ``tensor`` over all N ranks in place: all send to rank 0, which sends the sum back.

    Rank 0 sends and receives N−1 whole tensors: its line is the bottleneck.

    Args:
        tensor: contiguous, of the same shape and type on every rank.
        wire: counts what is sent.

    Raises:
        ShipyardError: the tensor is not contiguous.
    """
    wire = wire or Wire()
    (flat,) = cut(tensor, 1)
    ranks = range(1, dist.get_world_size())
    if dist.get_rank() == 0:
        arrived = torch.empty_like(flat)
        for rank in ranks:
            wire.receive(arrived, rank)
            flat += arrived
        for rank in ranks:
            wire.send(flat, rank)
    else:
        wire.send(flat, 0)
        wire.receive(flat, 0)
    return tensor


def cut(tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Views of ``parts`` consecutive chunks; the first ones are longer by one where need be."""
    if not tensor.is_contiguous():
        raise ShipyardError(
            f"The tensor of shape {tuple(tensor.shape)} is not contiguous, so it cannot be sent "
            "and changed in place. Give tensor.contiguous()."
        )
    return tensor.detach().view(-1).tensor_split(parts)


def ring_messages(ranks: int) -> int:
    """Messages that each rank sends in a ring all-reduce: 2(N−1)."""
    return 2 * (ranks - 1)


def ring_bytes(nbytes: float, ranks: int) -> float:
    """Bytes that each rank sends in a ring all-reduce: 2(N−1)/N · ``nbytes``."""
    return 2 * (ranks - 1) / ranks * nbytes
