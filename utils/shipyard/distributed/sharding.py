"""Optimizer states, gradients and parameters shared out among the ranks (ZeRO, FSDP)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Adam

from shipyard.errors import ShipyardError


def bytes_per_rank(parameters: int, ranks: int, stage: int, itemsize: int = 4) -> float:
    """Bytes that one rank keeps for a model trained with Adam.

    A parameter has 4 numbers: itself (1), its gradient (1) and Adam's two averages (2).
    Stage 0 (data parallel) keeps all on every rank; stage 1 shares out Adam's averages, stage 2
    the gradients too, and stage 3 (FSDP) also the parameters:

        stage 0: 4P    stage 1: 2P + 2P/N    stage 2: P + 3P/N    stage 3: 4P/N

    Activations, and what is gathered for the layer in hand, come on top.

    Raises:
        ShipyardError: there is no such stage.
    """
    if stage not in range(4):
        raise ShipyardError(f"stage is {stage!r}; ZeRO has the stages 0 to 3.")
    shared = (0, 2, 3, 4)[stage]  # of the 4 numbers
    return parameters * itemsize * (4 - shared + shared / ranks)


class ShardedAdam:
    """Adam whose two averages are shared out among the ranks (ZeRO, stage 1).

    All parameters are seen as one flat vector, cut into N equal parts. Each rank averages the
    gradients of all, updates only its own part, with its own part of the averages, and the
    updated parts are gathered by all. The result is that of Adam on every rank.

    Args:
        parameters: of one type, the same on every rank.
        settings: those of ``torch.optim.Adam``.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **settings):
        self.parameters = list(parameters)
        self.ranks = dist.get_world_size()
        self.count = sum(p.numel() for p in self.parameters)
        self.each = -(-self.count // self.ranks)  # rounded up: the last part is filled with 0
        self.mine = nn.Parameter(self.own_part(self.flat(self.parameters)))
        self.adam = Adam([self.mine], **settings)

    def step(self) -> None:
        """Average the gradients, update this rank's part, gather all parts."""
        gradient = self.flat([p.grad for p in self.parameters])
        dist.all_reduce(gradient)
        self.mine.grad = self.own_part(gradient) / self.ranks
        self.adam.step()
        whole = self.mine.new_empty(self.ranks * self.each)
        dist.all_gather_single(whole, self.mine.detach())
        sizes = [p.numel() for p in self.parameters]
        parts = whole[: self.count].split(sizes)
        with torch.no_grad():
            for parameter, values in zip(self.parameters, parts, strict=True):
                parameter.copy_(values.view_as(parameter))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def flat(self, tensors: list[Tensor]) -> Tensor:
        """The tensors side by side, filled up with zeros to N equal parts."""
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        return torch.nn.functional.pad(flat, (0, self.ranks * self.each - self.count))

    def own_part(self, flat: Tensor) -> Tensor:
        return flat.view(self.ranks, self.each)[dist.get_rank()].clone()

    def state_bytes(self) -> int:
        """Bytes of Adam's averages on this rank."""
        return state_bytes(self.adam)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of the parameters that this rank keeps."""
    return sum(local(parameter).nbytes for parameter in module.parameters())


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the averages that this rank's optimizer keeps (its step counters left out)."""
    tensors = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, Tensor) and name != "step"
    ]
    return sum(local(tensor).nbytes for tensor in tensors)
