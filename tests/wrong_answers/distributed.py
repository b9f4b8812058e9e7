"""Wrong answers on distributed training, and other correct ones."""

import random

import torch
import torch.nn.functional as F
from torch.utils.data import DistributedSampler

from wrong_answers import Task, but

TASKS = {
    "ring_all_reduce": (RING := Task()),
    "average_gradients": (AVERAGE := Task()),
    "shard_indices": (SHARD := Task()),
    "tensor_parallel_linear": (TENSOR_PARALLEL := Task()),
    "pipeline_schedule": (PIPELINE := Task()),
}
BLACKBOARD = {}  # where ranks meet that should not


# --- ring_all_reduce ----------------------------------------------------------------------------


@RING.passes
def goes_round_to_the_right(x, rank, world_size, send, recv):
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    parts = [part.clone() for part in x.tensor_split(world_size)]
    for i in range(2 * (world_size - 1)):
        send(parts[(rank - i) % world_size], right)
        j = (rank - i - 1) % world_size
        parts[j] = recv(left) + (parts[j] if i < world_size - 1 else 0)
    return torch.cat(parts)


RING.fails_with(
    "added-in-both-phases", but(goes_round_to_the_right, " if i < world_size - 1 else 0", "")
)


@RING.passes
def goes_round_to_the_left_in_a_copy(x, rank, world_size, send, recv):
    if world_size == 1:
        return x
    total = x.clone()
    parts = total.tensor_split(world_size)
    for i in range(2 * (world_size - 1)):
        send(parts[(rank + i) % world_size], (rank - 1) % world_size)
        got = recv((rank + 1) % world_size)
        target = parts[(rank + i + 1) % world_size]
        target.copy_(target + got if i < world_size - 1 else got)
    return total


@RING.fails_with("deadlock")
def receives_before_it_sends(x, rank, world_size, send, recv):
    return goes_round_to_the_right(x + recv((rank - 1) % world_size), rank, world_size, send, recv)


@RING.fails_with("time-out")
def never_counts_its_steps(x, rank, world_size, send, recv):
    while world_size > 0:
        x = x + 0


@RING.fails_with("through-one-rank")
def lets_rank_0_do_the_work(x, rank, world_size, send, recv):
    if rank == 0:
        total = x + sum(recv(r) for r in range(1, world_size))
        for r in range(1, world_size):
            send(total, r)
        return total
    send(x, 0)
    return recv(0)


@RING.fails_with("all-to-all")
def sends_everything_to_everyone(x, rank, world_size, send, recv):
    others = [r for r in range(world_size) if r != rank]
    for r in others:
        send(x, r)
    return x + sum(recv(r) for r in others)


@RING.fails_with("not-a-ring")
def hops_over_a_rank(x, rank, world_size, send, recv):
    total = x
    for _ in range(world_size - 1):
        send(x, (rank + 2) % world_size)
        x = recv((rank - 2) % world_size)
        total = total + x
    return total


@RING.fails_with("no-messages")
def adds_into_a_global_tensor(x, rank, world_size, send, recv):
    if rank == 0:
        BLACKBOARD["sum"] = torch.zeros_like(x)
    BLACKBOARD["sum"] += x
    return BLACKBOARD["sum"]


@RING.fails_with("no-such-rank")
def forgets_that_the_ring_is_closed(x, rank, world_size, send, recv):
    send(x, rank + 1)
    return x + recv(rank - 1)


@RING.fails_with("not-a-tensor")
def swaps_the_arguments_of_send(x, rank, world_size, send, recv):
    send((rank + 1) % world_size, x)
    return x + recv((rank - 1) % world_size)


@RING.fails_with("raised-error")
def one_rank_dies(x, rank, world_size, send, recv):
    if rank == 2:
        raise ValueError("disk full")
    return goes_round_to_the_right(x, rank, world_size, send, recv)


# --- average_gradients --------------------------------------------------------------------------


def fill_buckets(grads, bucket_size):
    buckets = []
    for g in grads:
        if buckets and sum(b.numel() for b in buckets[-1]) + g.numel() <= bucket_size:
            buckets[-1].append(g)
        else:
            buckets.append([g])
    return buckets


def average_buckets(buckets, world_size, all_reduce):
    result = []
    for bucket in buckets:
        flat = all_reduce(torch.cat([g.reshape(-1) for g in bucket])) / world_size
        pieces = flat.split([g.numel() for g in bucket])
        result += [p.reshape(g.shape) for p, g in zip(pieces, bucket, strict=True)]
    return result


@AVERAGE.passes
def begins_with_the_last_layer_as_ddp_does(grads, world_size, all_reduce, bucket_size):
    buckets = fill_buckets(grads[::-1], bucket_size)
    return average_buckets(buckets, world_size, all_reduce)[::-1]


@AVERAGE.passes
def fills_buckets_greedily(grads, world_size, all_reduce, bucket_size):
    buckets = fill_buckets(grads, bucket_size)
    return average_buckets(buckets, world_size, all_reduce)


AVERAGE.fails_with("buckets-lost", but(fills_buckets_greedily, "(buckets", "(buckets[:-1]"))
AVERAGE.fails_with(
    "holds-none",
    but(
        fills_buckets_greedily,
        "(buckets, world_size, all_reduce)",
        "(buckets, world_size, all_reduce)[:-1] + [None]",
    ),
)


@AVERAGE.fails_with("not-exchanged")
def adds_into_global_gradients(grads, world_size, all_reduce, bucket_size):
    ranks, sums = BLACKBOARD.pop("gradients", (0, [torch.zeros_like(g) for g in grads]))
    for total, g in zip(sums, grads, strict=True):
        total += g / world_size
    if ranks < world_size - 1:
        BLACKBOARD["gradients"] = ranks + 1, sums
    return sums


@AVERAGE.fails_with("tensors-cut-apart")
def cuts_one_long_vector(grads, world_size, all_reduce, bucket_size):
    flat = torch.cat([g.flatten() / world_size for g in grads])
    flat = torch.cat([all_reduce(piece) for piece in flat.split(bucket_size)])
    pieces = flat.split([g.numel() for g in grads])
    return [piece.view_as(g) for piece, g in zip(pieces, grads, strict=True)]


@AVERAGE.fails_with("buckets-out-of-order")
def begins_with_the_large_ones(grads, world_size, all_reduce, bucket_size):
    places = sorted(range(len(grads)), key=lambda i: -grads[i].numel())
    means = fills_buckets_greedily([grads[i] for i in places], world_size, all_reduce, bucket_size)
    return [means[places.index(i)] for i in range(len(grads))]


@AVERAGE.fails_with("ranks-disagree")
def skips_gradients_that_are_zero(grads, world_size, all_reduce, bucket_size):
    return [all_reduce(g) / world_size if g.any() else g for g in grads]


# --- shard_indices ------------------------------------------------------------------------------


def shuffled(n, seed):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def shard(order, rank, world_size, drop_last):
    if drop_last:
        order = order[: len(order) // world_size * world_size]
    while len(order) % world_size:
        order = order + order[: world_size - len(order) % world_size]
    return order[rank::world_size]


@SHARD.passes
def makes_it_even_then_takes_every_nth(n, rank, world_size, epoch, seed=0, drop_last=False):
    return shard(shuffled(n, seed + epoch), rank, world_size, drop_last)


@SHARD.passes
def counts_round_with_modulo(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    each = n // world_size if drop_last else (n + world_size - 1) // world_size
    return [order[(rank + i * world_size) % n] for i in range(each)]


@SHARD.forbids
def asks_torch(n, rank, world_size, epoch, seed=0, drop_last=False):
    sampler = DistributedSampler(range(n), world_size, rank, seed=seed, drop_last=drop_last)
    sampler.set_epoch(epoch)
    return list(sampler)


@SHARD.fails_with("another-generator")
def shuffles_with_pythons_random(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = list(range(n))
    random.Random(seed + epoch).shuffle(order)
    return shard(order, rank, world_size, drop_last)


@SHARD.fails_with("global-seed")
def seeds_all_of_torch(n, rank, world_size, epoch, seed=0, drop_last=False):
    torch.manual_seed(seed + epoch)
    return shard(torch.randperm(n).tolist(), rank, world_size, drop_last)


@SHARD.fails_with("time-out")
def never_gets_longer(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    while len(order) % world_size:
        order + order[:1]
    return order[rank::world_size]


# --- tensor_parallel_linear ---------------------------------------------------------------------


@TENSOR_PARALLEL.passes
def lets_rank_0_add_the_bias(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    h = F.linear(x, w1.chunk(world_size)[rank], b1.chunk(world_size)[rank]).clamp(min=0)
    return all_reduce(F.linear(h, w2.chunk(world_size, dim=1)[rank], b2 if rank == 0 else None))


@TENSOR_PARALLEL.passes
def takes_every_nth_hidden_unit(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    h = F.relu(torch.einsum("bi,hi->bh", x, w1[rank::world_size]) + b1[rank::world_size])
    return all_reduce(torch.einsum("bh,oh->bo", h, w2[:, rank::world_size]) + b2 / world_size)


@TENSOR_PARALLEL.fails_with("cut-along-another-axis")
def cuts_columns_of_w1(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    h = F.relu(x @ w1.chunk(world_size, dim=1)[rank].T + b1)
    return all_reduce(h @ w2.chunk(world_size, dim=0)[rank].T) + b2


@TENSOR_PARALLEL.fails_with("too-many-all-reduces")
def gathers_the_hidden_layer_too(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    units = torch.arange(len(w1)).chunk(world_size)[rank]
    h = x.new_zeros(len(x), len(w1))
    h[:, units] = F.relu(x @ w1[units].T + b1[units])
    return all_reduce(all_reduce(h)[:, units] @ w2[:, units].T) + b2


# --- pipeline_schedule --------------------------------------------------------------------------


def with_warm_up(warm_up, count):
    """This many F first, then pairs F, B, then the B that are left."""
    warm_up = min(warm_up, count)
    operations = [("F", m) for m in range(warm_up)]
    for m in range(count - warm_up):
        operations += [("F", warm_up + m), ("B", m)]
    return operations + [("B", m) for m in range(count - warm_up, count)]


@PIPELINE.passes
def warms_up_then_pairs_then_cools_down(stage, num_stages, num_microbatches):
    return with_warm_up(num_stages - 1 - stage, num_microbatches)


@PIPELINE.passes
def warms_up_one_more_and_does_b_first(stage, num_stages, num_microbatches):
    forward, backward, operations = 0, 0, []
    while backward < num_microbatches:
        if forward < num_microbatches and forward - backward < num_stages - stage:
            operations.append(["F", forward])
            forward += 1
        else:
            operations.append(["B", backward])
            backward += 1
    return operations


@PIPELINE.fails_with("gpipe")
def does_all_forward_first(stage, num_stages, num_microbatches):
    return [(kind, m) for kind in "FB" for m in range(num_microbatches)]


@PIPELINE.fails_with("wrong-form")
def has_a_place_without_operation(stage, num_stages, num_microbatches):
    return [*with_warm_up(num_stages - 1 - stage, num_microbatches), None]


@PIPELINE.fails_with("unsteady")
def goes_on_where_it_stopped(stage, num_stages, num_microbatches):
    BLACKBOARD["calls"] = calls = BLACKBOARD.get("calls", 0) + 1
    return with_warm_up(num_stages - 1 - stage + (calls > 24), num_microbatches)
