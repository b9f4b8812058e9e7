"""What an all-reduce costs: the α–β model, fitted to measurements and drawn out to many workers.

α is the time that each message takes however small it is (seconds), β the bandwidth (bytes per
second).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shipyard.errors import ShipyardError


@dataclass(frozen=True)
class Cost:
    """The two constants of a network: seconds per message, and bytes per second."""

    alpha: float
    beta: float

    def ring(self, nbytes: float, ranks: int) -> float:
        """Seconds of a ring all-reduce: 2(N−1)·(α + bytes/(N·β))."""
        return 2 * (ranks - 1) * (self.alpha + nbytes / (ranks * self.beta))

    def naive(self, nbytes: float, ranks: int) -> float:
        """Seconds to send all to rank 0, one after the other, and back: 2(N−1)·(α + bytes/β)."""
        return 2 * (ranks - 1) * (self.alpha + nbytes / self.beta)


def fit(nbytes: Sequence[float], ranks: Sequence[int] | int, seconds: Sequence[float]) -> Cost:
    """The α and β for which `Cost.ring` comes closest to measured times.

    Least squares on the *relative* error, so that small messages (which tell α) count as much
    as large ones (which tell β). Both are kept above zero.

    Args:
        nbytes: the size of each measured all-reduce.
        ranks: the number of ranks of each, or one number for all; at least 2.
        seconds: the measured time of each.

    Raises:
        ShipyardError: fewer than two sizes, a single rank, or a time that is not positive.
    """
    y = torch.as_tensor(seconds, dtype=torch.float64)
    b = torch.as_tensor(nbytes, dtype=torch.float64)
    N = torch.as_tensor(ranks, dtype=torch.float64).expand_as(b)
    if len(b) != len(y) or len(set(b.tolist())) < 2 or (N < 2).any() or (y <= 0).any():
        raise ShipyardError(
            "fit needs positive times of at least two sizes, each with two ranks or more: with "
            "one size alone, α and β cannot be told apart."
        )
    A = torch.stack([2 * (N - 1), 2 * (N - 1) * b / N], dim=1)  # seconds = A · (α, 1/β)
    A, y = A / y[:, None], torch.ones_like(y)
    both = torch.linalg.lstsq(A, y[:, None]).solution[:, 0]
    if (both <= 0).any():  # noise gave one of them the wrong sign: the best fit is at the edge
        alone = (A * y[:, None]).sum(0) / (A * A).sum(0)
        error = ((A * alone - y[:, None]) ** 2).sum(0)
        keep = int(error.argmin())
        both = torch.full((2,), 1e-15, dtype=torch.float64)
        both[keep] = alone[keep]
    return Cost(alpha=float(both[0]), beta=float(1 / both[1]))


def step_seconds(compute: float, communicate: float, overlap: float = 0.0) -> float:
    """Seconds of one step whose exchange hides behind the computation as far as it can.

    ``overlap`` is the share of the computation (0 to 1) during which gradients can already
    travel; what does not fit into it is added to the step.
    """
    return compute + max(0.0, communicate - overlap * compute)


def weak_efficiency(
    ranks: int, compute: float, nbytes: float, cost: Cost, overlap: float = 0.0
) -> float:
    """Images per second and worker, against one worker: t(1)/t(N), the batch of each kept.

    Args:
        ranks: the number of workers N.
        compute: seconds of one worker's forward and backward pass.
        nbytes: bytes of all gradients.
        cost: of the network.
        overlap: see `step_seconds`.
    """
    return compute / step_seconds(compute, cost.ring(nbytes, ranks), overlap)


def strong_efficiency(
    ranks: int, compute: float, nbytes: float, cost: Cost, overlap: float = 0.0
) -> float:
    """Speed-up over one worker divided by N, with the batch of one worker shared among N."""
    share = compute / ranks
    return share / step_seconds(share, cost.ring(nbytes, ranks), overlap)
