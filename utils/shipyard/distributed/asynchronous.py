"""Updates with stale gradients: what happens when no rank waits for another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

GO_ON, STOP = 1, 0


def train_with_delay(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    learning_rate: float,
    delay: int,
) -> list[float]:
    """Gradient descent with gradients that are ``delay`` updates old: w ← w − η ∇L(w_{t−τ}).

    Asynchronous training in its simplest form, in one process and with the same result on each
    call: with τ + 1 workers that take turns, every gradient was computed from weights that
    have been updated τ times since.

    Returns:
        The loss of each batch, with the weights as they are when its gradient is computed.
    """
    waiting: deque[list[Tensor]] = deque()
    parameters = list(model.parameters())
    losses = []
    for inputs, labels in batches:
        loss = loss_fn(model(inputs), labels)
        waiting.append(list(torch.autograd.grad(loss, parameters)))
        losses.append(loss.item())
        if len(waiting) > delay:
            with torch.no_grad():
                for parameter, gradient in zip(parameters, waiting.popleft(), strict=True):
                    parameter -= learning_rate * gradient
    return losses


def serve_parameters(
    weights: Tensor, *, updates: int, learning_rate: float, workers: int
) -> list[dict[str, int]]:
    """The parameter server, on rank 0: apply each gradient as it comes, answer with new weights.

    Args:
        weights: all parameters in one flat tensor, changed in place.
        updates: how many gradients to apply before the workers are told to stop.
        learning_rate: of the plain gradient step.
        workers: ranks 1 to ``workers`` send gradients.

    Returns:
        For each update, the ``worker`` it came from and its ``staleness``: how many updates
        of others were made between the weights it was computed from and its own.
    """
    gradient = torch.empty_like(weights)
    sent_at = dict.fromkeys(range(1, workers + 1), 0)  # worker → the update count it works from
    order = torch.tensor([GO_ON])
    for worker in sent_at:
        dist.send(weights, worker)
    history = []
    working = set(sent_at)
    while working:
        worker = dist.recv(gradient)  # from whoever is first
        if len(history) < updates:
            history.append({"worker": worker, "staleness": len(history) - sent_at[worker]})
            weights -= learning_rate * gradient
        order.fill_(GO_ON if len(history) < updates else STOP)
        dist.send(order, worker)
        if order.item() == STOP:
            working.remove(worker)
        else:
            dist.send(weights, worker)
            sent_at[worker] = len(history)
    return history


def work_for_server(weights: Tensor, gradient_of: Callable[[Tensor], Tensor]) -> int:
    """A worker: fetch weights, send back their gradient, until the server says stop.

    Returns:
        How many gradients it has sent.
    """
    order, sent = torch.tensor([GO_ON]), 0
    while order.item() == GO_ON:
        dist.recv(weights, 0)
        dist.send(gradient_of(weights), 0)
        dist.recv(order, 0)
        sent += 1
    return sent
