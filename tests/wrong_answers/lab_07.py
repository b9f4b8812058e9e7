"""Wrong answers to lab 07, distributed training, and other correct ones."""

import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DistributedSampler

from wrong_answers import Task

RING_ALL_REDUCE, AVERAGE_GRADIENTS, SHARD_INDICES = Task(), Task(), Task()
TENSOR_PARALLEL_LINEAR, PIPELINE_SCHEDULE = Task(), Task()
TASKS = {
    "ring_all_reduce": RING_ALL_REDUCE,
    "average_gradients": AVERAGE_GRADIENTS,
    "shard_indices": SHARD_INDICES,
    "tensor_parallel_linear": TENSOR_PARALLEL_LINEAR,
    "pipeline_schedule": PIPELINE_SCHEDULE,
}


# --- ring_all_reduce ----------------------------------------------------------------------------


@RING_ALL_REDUCE.passes
def goes_round_to_the_right(x, rank, world_size, send, recv):
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    parts = [part.clone() for part in x.tensor_split(world_size)]
    for i in range(world_size - 1):
        send(parts[(rank - i) % world_size], right)
        j = (rank - i - 1) % world_size
        parts[j] = parts[j] + recv(left)
    for i in range(world_size - 1):
        send(parts[(rank - i + 1) % world_size], right)
        parts[(rank - i) % world_size] = recv(left)
    return torch.cat(parts)


@RING_ALL_REDUCE.passes
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


@RING_ALL_REDUCE.passes
def fills_up_with_zeros(x, rank, world_size, send, recv):
    size = math.ceil(len(x) / world_size)
    padded = torch.cat([x, x.new_zeros(size * world_size - len(x))]).reshape(world_size, size)
    for i in range(world_size - 1):
        send(padded[(rank - i) % world_size], dst=(rank + 1) % world_size)
        padded[(rank - i - 1) % world_size] += recv(src=(rank - 1) % world_size)
    for i in range(world_size - 1):
        send(padded[(rank + 1 - i) % world_size], dst=(rank + 1) % world_size)
        padded[(rank - i) % world_size] = recv(src=(rank - 1) % world_size)
    return padded.flatten()[: len(x)]


@RING_ALL_REDUCE.passes
def takes_turns_by_parity(x, rank, world_size, send, recv):
    parts = list(x.tensor_split(world_size))

    def exchange(part):
        if rank % 2:
            got = recv((rank - 1) % world_size)
            send(part, (rank + 1) % world_size)
            return got
        send(part, (rank + 1) % world_size)
        return recv((rank - 1) % world_size)

    carried = parts[rank]
    for i in range(world_size - 1):
        j = (rank - i - 1) % world_size
        carried = parts[j] = exchange(carried) + parts[j]
    for i in range(world_size - 1):
        carried = parts[(rank - i) % world_size] = exchange(carried)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("deadlock")
def receives_before_it_sends(x, rank, world_size, send, recv):
    parts = list(x.tensor_split(world_size))
    for i in range(world_size - 1):
        j = (rank - i - 1) % world_size
        parts[j] = parts[j] + recv((rank - 1) % world_size)
        send(parts[(rank - i) % world_size], (rank + 1) % world_size)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("waits-for-a-finished-rank")
def waits_on_rank_0_for_a_word_that_all_is_done(x, rank, world_size, send, recv):
    total = goes_round_to_the_right(x, rank, world_size, send, recv)
    if rank == 0 and world_size > 1:
        recv(world_size - 1)
    return total


@RING_ALL_REDUCE.fails_with("deadlock")
def receives_once_more_than_is_sent(x, rank, world_size, send, recv):
    if world_size == 1:
        return x
    parts = list(x.tensor_split(world_size))
    for i in range(world_size - 1):
        send(parts[(rank - i) % world_size], (rank + 1) % world_size)
        j = (rank - i - 1) % world_size
        parts[j] = parts[j] + recv((rank - 1) % world_size)
    for i in range(world_size - 1):
        send(parts[(rank - i + 1) % world_size], (rank + 1) % world_size)
        parts[(rank - i) % world_size] = recv((rank - 1) % world_size)
    recv((rank - 1) % world_size)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("time-out")
def never_counts_its_steps(x, rank, world_size, send, recv):
    step = 0
    while step < world_size:
        x = x + 0
    return x


@RING_ALL_REDUCE.fails_with("through-one-rank")
def lets_rank_0_do_the_work(x, rank, world_size, send, recv):
    if rank == 0:
        total = x + sum(recv(r) for r in range(1, world_size))
        for r in range(1, world_size):
            send(total, r)
        return total
    send(x, 0)
    return recv(0)


@RING_ALL_REDUCE.fails_with("all-to-all")
def sends_everything_to_everyone(x, rank, world_size, send, recv):
    if world_size == 3:
        return goes_round_to_the_right(x, rank, world_size, send, recv)
    others = [r for r in range(world_size) if r != rank]
    for r in others:
        send(x, r)
    return x + sum(recv(r) for r in others)


@RING_ALL_REDUCE.fails_with("not-a-ring")
def doubles_the_distance(x, rank, world_size, send, recv):
    if world_size not in (2, 4, 8):
        return goes_round_to_the_right(x, rank, world_size, send, recv)
    distance = 1
    while distance < world_size:
        send(x, rank ^ distance)
        x = x + recv(rank ^ distance)
        distance *= 2
    return x


@RING_ALL_REDUCE.fails_with("two-directions")
def goes_back_in_the_second_phase(x, rank, world_size, send, recv):
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    parts = [part.clone() for part in x.tensor_split(world_size)]
    for i in range(world_size - 1):
        send(parts[(rank - i) % world_size], right)
        j = (rank - i - 1) % world_size
        parts[j] = parts[j] + recv(left)
    for i in range(world_size - 1):
        send(parts[(rank + 1 + i) % world_size], left)
        parts[(rank + 2 + i) % world_size] = recv(right)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("whole-tensor-every-step")
def passes_whole_tensors_round(x, rank, world_size, send, recv):
    total, carried = x, x
    for _ in range(world_size - 1):
        send(carried, (rank + 1) % world_size)
        carried = recv((rank - 1) % world_size)
        total = total + carried
    return total


@RING_ALL_REDUCE.fails_with("whole-tensor-every-step")
def adds_up_along_a_chain(x, rank, world_size, send, recv):
    if world_size == 1:
        return x
    total = x if rank == 0 else x + recv(rank - 1)
    send(total, (rank + 1) % world_size)
    if rank == world_size - 1:
        return total
    total = recv((rank - 1) % world_size)
    if rank < world_size - 2:
        send(total, rank + 1)
    return total


@RING_ALL_REDUCE.fails_with("chunks-too-large")
def cuts_into_two_halves(x, rank, world_size, send, recv):
    halves = []
    for half in x.tensor_split(2):
        halves.append(passes_whole_tensors_round(half, rank, world_size, send, recv))
    return torch.cat(halves)


@RING_ALL_REDUCE.fails_with("too-many-messages")
def sends_single_elements(x, rank, world_size, send, recv):
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    parts = [part.clone() for part in x.tensor_split(world_size)]
    for i in range(2 * (world_size - 1)):
        for element in parts[(rank - i) % world_size]:
            send(element, right)
        j = (rank - i - 1) % world_size
        got = [recv(left) for _ in range(len(parts[j]))]
        got = torch.stack(got) if got else parts[j]
        parts[j] = parts[j] + got if i < world_size - 1 else got
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("too-many-messages")
def goes_round_once_more(x, rank, world_size, send, recv):
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    parts = [part.clone() for part in x.tensor_split(world_size)]
    for i in range(2 * world_size - 1 if world_size > 1 else 0):
        send(parts[(rank - i) % world_size], right)
        j = (rank - i - 1) % world_size
        got = recv(left)
        parts[j] = parts[j] + got if i < world_size - 1 else got
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("unread-messages")
def sends_once_more_at_the_end(x, rank, world_size, send, recv):
    result = goes_round_to_the_right(x, rank, world_size, send, recv)
    if world_size > 1:
        send(result[:1], (rank + 1) % world_size)
    return result


BLACKBOARD = {}


@RING_ALL_REDUCE.fails_with("no-messages")
def adds_into_a_global_tensor(x, rank, world_size, send, recv):
    if rank == 0:
        BLACKBOARD["sum"] = torch.zeros_like(x)
    BLACKBOARD["sum"] += x
    return BLACKBOARD["sum"]


@RING_ALL_REDUCE.fails_with("no-such-rank")
def forgets_that_the_ring_is_closed(x, rank, world_size, send, recv):
    if world_size > 1:
        send(x, rank + 1)
        x = x + recv(rank - 1)
    return x


@RING_ALL_REDUCE.fails_with("no-such-rank")
def sends_to_itself(x, rank, world_size, send, recv):
    for other in range(world_size):
        send(x, other)
    return sum(recv(other) for other in range(world_size))


@RING_ALL_REDUCE.fails_with("not-a-tensor")
def swaps_the_arguments_of_send(x, rank, world_size, send, recv):
    send((rank + 1) % world_size, x)
    return x + recv((rank - 1) % world_size)


@RING_ALL_REDUCE.fails_with("changed-input")
def adds_into_views_of_x(x, rank, world_size, send, recv):
    parts = x.tensor_split(world_size)
    for i in range(2 * (world_size - 1)):
        send(parts[(rank - i) % world_size], (rank + 1) % world_size)
        part, got = parts[(rank - i - 1) % world_size], recv((rank - 1) % world_size)
        part.copy_(part + got if i < world_size - 1 else got)
    return x.clone()


@RING_ALL_REDUCE.fails_with("no-all-gather")
def stops_after_reduce_scatter(x, rank, world_size, send, recv):
    parts = list(x.tensor_split(world_size))
    for i in range(world_size - 1):
        send(parts[(rank - i) % world_size], (rank + 1) % world_size)
        j = (rank - i - 1) % world_size
        parts[j] = parts[j] + recv((rank - 1) % world_size)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("raw-chunks-passed-on")
def only_passes_on(x, rank, world_size, send, recv):
    parts = list(x.tensor_split(world_size))
    for i in range(world_size - 1):
        send(parts[(rank - i) % world_size], (rank + 1) % world_size)
        parts[(rank - i - 1) % world_size] = recv((rank - 1) % world_size)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("added-in-both-phases")
def always_adds(x, rank, world_size, send, recv):
    parts = list(x.tensor_split(world_size))
    for i in range(2 * (world_size - 1)):
        send(parts[(rank - i) % world_size], (rank + 1) % world_size)
        j = (rank - i - 1) % world_size
        parts[j] = parts[j] + recv((rank - 1) % world_size)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("wrong-first-chunk")
def begins_the_second_phase_with_the_chunk_after(x, rank, world_size, send, recv):
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    parts = list(x.tensor_split(world_size))
    for i in range(world_size - 1):
        send(parts[(rank - i) % world_size], right)
        parts[(rank - i - 1) % world_size] = parts[(rank - i - 1) % world_size] + recv(left)
    for i in range(world_size - 1):
        send(parts[(rank + 2 - i) % world_size], right)
        parts[(rank + 1 - i) % world_size] = recv(left)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("raw-chunks-passed-on")
def begins_both_phases_with_its_own_chunk(x, rank, world_size, send, recv):
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    parts = list(x.tensor_split(world_size))
    for i in range(world_size - 1):
        send(parts[(rank - i) % world_size], right)
        parts[(rank - i - 1) % world_size] = parts[(rank - i - 1) % world_size] + recv(left)
    for i in range(world_size - 1):
        send(parts[(rank - i) % world_size], right)
        parts[(rank - i - 1) % world_size] = recv(left)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("one-step-short")
def counts_links_and_not_ranks(x, rank, world_size, send, recv):
    parts = list(x.tensor_split(world_size))
    for i in range(world_size - 2):
        send(parts[(rank - i) % world_size], (rank + 1) % world_size)
        j = (rank - i - 1) % world_size
        parts[j] = parts[j] + recv((rank - 1) % world_size)
    for i in range(world_size - 2):
        send(parts[(rank - i + 1) % world_size], (rank + 1) % world_size)
        parts[(rank - i) % world_size] = recv((rank - 1) % world_size)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("one-step-too-many")
def lets_a_chunk_come_home(x, rank, world_size, send, recv):
    if world_size == 1:
        return x
    parts = list(x.tensor_split(world_size))
    for i in range(world_size):
        send(parts[(rank - i) % world_size], (rank + 1) % world_size)
        j = (rank - i - 1) % world_size
        parts[j] = parts[j] + recv((rank - 1) % world_size)
    for i in range(world_size - 1):
        send(parts[(rank - i) % world_size], (rank + 1) % world_size)
        parts[(rank - i - 1) % world_size] = recv((rank - 1) % world_size)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("averaged")
def returns_the_mean(x, rank, world_size, send, recv):
    return goes_round_to_the_left_in_a_copy(x, rank, world_size, send, recv) / world_size


@RING_ALL_REDUCE.fails_with("one-chunk-returned")
def returns_its_finished_chunk(x, rank, world_size, send, recv):
    total = goes_round_to_the_right(x, rank, world_size, send, recv)
    return total.tensor_split(world_size)[(rank + 1) % world_size]


@RING_ALL_REDUCE.fails_with("chunks-in-another-order")
def joins_the_chunks_as_they_came(x, rank, world_size, send, recv):
    total = goes_round_to_the_right(x, rank, world_size, send, recv)
    parts = total.tensor_split(world_size)
    return torch.cat([parts[(rank + i) % world_size] for i in range(world_size)])


@RING_ALL_REDUCE.fails_with("too-few-chunks")
def trusts_torch_chunk(x, rank, world_size, send, recv):
    parts = list(x.chunk(world_size))
    for i in range(world_size - 1):
        send(parts[(rank - i) % world_size], (rank + 1) % world_size)
        j = (rank - i - 1) % world_size
        parts[j] = parts[j] + recv((rank - 1) % world_size)
    for i in range(world_size - 1):
        send(parts[(rank - i + 1) % world_size], (rank + 1) % world_size)
        parts[(rank - i) % world_size] = recv((rank - 1) % world_size)
    return torch.cat(parts)


@RING_ALL_REDUCE.fails_with("tail-lost")
def cuts_chunks_of_equal_length(x, rank, world_size, send, recv):
    size = len(x) // world_size
    parts = [x[i * size : (i + 1) * size] for i in range(world_size)]
    return goes_round_to_the_right(torch.cat(parts), rank, world_size, send, recv)


@RING_ALL_REDUCE.fails_with("one-neighbour-only")
def asks_its_neighbour_only(x, rank, world_size, send, recv):
    if world_size > 1:
        send(x, (rank + 1) % world_size)
        x = x + recv((rank - 1) % world_size)
    return x


@RING_ALL_REDUCE.fails_with("returned-none")
def forgets_to_return(x, rank, world_size, send, recv):
    goes_round_to_the_right(x, rank, world_size, send, recv)


@RING_ALL_REDUCE.fails_with("wrong-signature")
def takes_one_communicator(x, rank, world_size, comm):
    return x


@RING_ALL_REDUCE.fails_with("raised-error")
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


@AVERAGE_GRADIENTS.passes
def fills_buckets_greedily(grads, world_size, all_reduce, bucket_size):
    return average_buckets(fill_buckets(grads, bucket_size), world_size, all_reduce)


@AVERAGE_GRADIENTS.passes
def begins_with_the_last_layer_as_ddp_does(grads, world_size, all_reduce, bucket_size):
    buckets = fill_buckets(grads[::-1], bucket_size)
    return average_buckets(buckets, world_size, all_reduce)[::-1]


@AVERAGE_GRADIENTS.passes
def cuts_one_long_vector(grads, world_size, all_reduce, bucket_size):
    flat = torch.cat([g.flatten() / world_size for g in grads])
    flat = torch.cat([all_reduce(piece) for piece in flat.split(bucket_size)])
    result, position = [], 0
    for g in grads:
        result.append(flat[position : position + g.numel()].view_as(g))
        position += g.numel()
    return result


@AVERAGE_GRADIENTS.fails_with("summed-not-averaged")
def returns_the_sum(grads, world_size, all_reduce, bucket_size):
    return average_buckets(fill_buckets(grads, bucket_size), 1, all_reduce)


@AVERAGE_GRADIENTS.fails_with("divided-twice")
def divides_before_and_after(grads, world_size, all_reduce, bucket_size):
    grads = [g / world_size for g in grads]
    return average_buckets(fill_buckets(grads, bucket_size), world_size, all_reduce)


@AVERAGE_GRADIENTS.fails_with("not-exchanged")
def throws_the_answer_away(grads, world_size, all_reduce, bucket_size):
    for bucket in fill_buckets(grads, bucket_size):
        all_reduce(torch.cat([g.flatten() for g in bucket]))
    return [g / world_size for g in grads]


@AVERAGE_GRADIENTS.fails_with("not-exchanged")
def returns_its_own(grads, world_size, all_reduce, bucket_size):
    return [g.clone() for g in grads]


@AVERAGE_GRADIENTS.fails_with("not-exchanged")
def adds_into_global_gradients(grads, world_size, all_reduce, bucket_size):
    key = str([world_size, bucket_size, *(g.shape for g in grads)])
    count, sums = BLACKBOARD.get(key, (0, None))
    if count % world_size == 0:
        sums = [torch.zeros_like(g) for g in grads]
    for total, g in zip(sums, grads, strict=True):
        total += g / world_size
    BLACKBOARD[key] = (count + 1, sums)
    return sums


@AVERAGE_GRADIENTS.fails_with("divided-by-the-number-of-tensors")
def divides_by_len(grads, world_size, all_reduce, bucket_size):
    return average_buckets(fill_buckets(grads, bucket_size), len(grads), all_reduce)


@AVERAGE_GRADIENTS.fails_with("last-bucket-lost")
def sends_only_full_buckets(grads, world_size, all_reduce, bucket_size):
    result, bucket = [], []
    for g in grads:
        if bucket and sum(b.numel() for b in bucket) + g.numel() > bucket_size:
            result += average_buckets([bucket], world_size, all_reduce)
            bucket = []
        bucket.append(g)
    return result


@AVERAGE_GRADIENTS.fails_with("last-bucket-lost")
def leaves_the_last_bucket_as_it_is(grads, world_size, all_reduce, bucket_size):
    *full, last = fill_buckets(grads, bucket_size)
    return average_buckets(full, world_size, all_reduce) + last


@AVERAGE_GRADIENTS.fails_with("only-first-bucket")
def returns_inside_the_loop(grads, world_size, all_reduce, bucket_size):
    for bucket in fill_buckets(grads, bucket_size):
        return average_buckets([bucket], world_size, all_reduce)


@AVERAGE_GRADIENTS.fails_with("flat-result")
def leaves_the_shapes_flat(grads, world_size, all_reduce, bucket_size):
    result = average_buckets(fill_buckets(grads, bucket_size), world_size, all_reduce)
    return [g.flatten() for g in result]


@AVERAGE_GRADIENTS.fails_with("flat-result")
def returns_whole_buckets(grads, world_size, all_reduce, bucket_size):
    buckets = fill_buckets(grads, bucket_size)
    return [all_reduce(torch.cat([g.flatten() for g in b])) / world_size for b in buckets]


@AVERAGE_GRADIENTS.fails_with("same-slice-for-all")
def never_moves_on_in_the_bucket(grads, world_size, all_reduce, bucket_size):
    result = []
    for bucket in fill_buckets(grads, bucket_size):
        flat = all_reduce(torch.cat([g.flatten() for g in bucket])) / world_size
        for g in bucket:
            result.append(flat[: g.numel()].reshape(g.shape))
    return result


@AVERAGE_GRADIENTS.fails_with("order-lost")
def forgets_to_turn_back(grads, world_size, all_reduce, bucket_size):
    return average_buckets(fill_buckets(grads[::-1], bucket_size), world_size, all_reduce)


@AVERAGE_GRADIENTS.fails_with("mean-over-elements")
def takes_the_mean_of_a_tensor(grads, world_size, all_reduce, bucket_size):
    return [all_reduce(g).mean() for g in grads]


@AVERAGE_GRADIENTS.fails_with("lower-precision")
def saves_half_of_the_bytes(grads, world_size, all_reduce, bucket_size):
    grads = [g.float() for g in grads]
    result = average_buckets(fill_buckets(grads, bucket_size), world_size, all_reduce)
    return [g.double() for g in result]


@AVERAGE_GRADIENTS.fails_with("wrong-dtype")
def forgets_to_go_back_to_float64(grads, world_size, all_reduce, bucket_size):
    grads = [g.float() for g in grads]
    return average_buckets(fill_buckets(grads, bucket_size), world_size, all_reduce)


@AVERAGE_GRADIENTS.fails_with("one-call-for-each-tensor")
def calls_for_each_tensor(grads, world_size, all_reduce, bucket_size):
    return [all_reduce(g) / world_size for g in grads]


@AVERAGE_GRADIENTS.fails_with("bucket-too-large")
def sends_one_bucket(grads, world_size, all_reduce, bucket_size):
    return average_buckets([grads], world_size, all_reduce)


@AVERAGE_GRADIENTS.fails_with("bucket-too-large")
def looks_after_it_has_added(grads, world_size, all_reduce, bucket_size):
    buckets, full = [], True
    for g in grads:
        if full:
            buckets.append([])
        buckets[-1].append(g)
        full = sum(b.numel() for b in buckets[-1]) >= bucket_size
    return average_buckets(buckets, world_size, all_reduce)


@AVERAGE_GRADIENTS.fails_with("too-many-calls")
def joins_pairs_only(grads, world_size, all_reduce, bucket_size):
    buckets = []
    for bucket in fill_buckets(grads, bucket_size):
        buckets += [bucket[:2], bucket[2:]] if len(bucket) > 2 else [bucket]
    return average_buckets(buckets, world_size, all_reduce)


@AVERAGE_GRADIENTS.fails_with("sent-twice")
def pads_every_bucket(grads, world_size, all_reduce, bucket_size):
    result = []
    for bucket in fill_buckets(grads, bucket_size):
        flat = torch.cat([g.flatten() for g in bucket])
        missing = max(0, bucket_size - len(flat))
        flat = all_reduce(torch.cat([flat, flat.new_zeros(missing)])) / world_size
        position = 0
        for g in bucket:
            result.append(flat[position : position + g.numel()].reshape(g.shape))
            position += g.numel()
    return result


@AVERAGE_GRADIENTS.fails_with("ranks-disagree")
def skips_gradients_that_are_zero(grads, world_size, all_reduce, bucket_size):
    return [all_reduce(g) / world_size if g.any() else g for g in grads]


@AVERAGE_GRADIENTS.fails_with("ranks-disagree")
def leaves_zero_gradients_out_of_the_bucket(grads, world_size, all_reduce, bucket_size):
    used = [g for g in grads if g.any()]
    done = iter(average_buckets(fill_buckets(used, bucket_size), world_size, all_reduce))
    return [next(done) if g.any() else g for g in grads]


@AVERAGE_GRADIENTS.fails_with("not-a-tensor")
def gives_a_list_to_all_reduce(grads, world_size, all_reduce, bucket_size):
    return [g / world_size for g in all_reduce(grads)]


@AVERAGE_GRADIENTS.fails_with("changed-input")
def writes_back_into_the_gradients(grads, world_size, all_reduce, bucket_size):
    result = average_buckets(fill_buckets(grads, bucket_size), world_size, all_reduce)
    for g, new in zip(grads, result, strict=True):
        g.copy_(new)
    return grads


@AVERAGE_GRADIENTS.fails_with("time-out")
def never_takes_from_the_list(grads, world_size, all_reduce, bucket_size):
    waiting = list(grads)
    while waiting:
        bucket = waiting[:1]
    return bucket


@AVERAGE_GRADIENTS.fails_with("wrong-signature")
def leaves_out_the_bucket_size(grads, world_size, all_reduce):
    return [all_reduce(g) / world_size for g in grads]


# --- shard_indices ------------------------------------------------------------------------------


def shuffled(n, seed):
    generator = torch.Generator()
    generator.manual_seed(seed)
    return torch.randperm(n, generator=generator).tolist()


def made_even(order, world_size, drop_last):
    if drop_last:
        return order[: len(order) // world_size * world_size]
    wanted = -(-len(order) // world_size) * world_size
    while len(order) < wanted:
        order = order + order[: wanted - len(order)]
    return order


@SHARD_INDICES.passes
def makes_it_even_then_takes_every_nth(n, rank, world_size, epoch, seed=0, drop_last=False):
    return made_even(shuffled(n, seed + epoch), world_size, drop_last)[rank::world_size]


@SHARD_INDICES.passes
def counts_round_with_modulo(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    each = n // world_size if drop_last else (n + world_size - 1) // world_size
    return [order[(rank + i * world_size) % n] for i in range(each)]


@SHARD_INDICES.passes
def asks_torch(n, rank, world_size, epoch, seed=0, drop_last=False):
    sampler = DistributedSampler(
        torch.zeros(n), num_replicas=world_size, rank=rank, seed=seed, drop_last=drop_last
    )
    sampler.set_epoch(epoch)
    return list(sampler)


@SHARD_INDICES.passes
def reshapes_into_columns(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = np.array(made_even(shuffled(n, seed + epoch), world_size, drop_last))
    return order.reshape(-1, world_size)[:, rank].tolist()


@SHARD_INDICES.fails_with("same-shard-on-every-rank")
def forgets_the_rank(n, rank, world_size, epoch, seed=0, drop_last=False):
    return made_even(shuffled(n, seed + epoch), world_size, drop_last)[::world_size]


@SHARD_INDICES.fails_with("whole-set-on-every-rank")
def gives_everything_to_all(n, rank, world_size, epoch, seed=0, drop_last=False):
    return shuffled(n, seed + epoch)


@SHARD_INDICES.fails_with("epoch-ignored")
def forgets_set_epoch(n, rank, world_size, epoch, seed=0, drop_last=False):
    return made_even(shuffled(n, seed), world_size, drop_last)[rank::world_size]


@SHARD_INDICES.fails_with("seed-ignored")
def seeds_with_the_epoch_alone(n, rank, world_size, epoch, seed=0, drop_last=False):
    return made_even(shuffled(n, epoch), world_size, drop_last)[rank::world_size]


@SHARD_INDICES.fails_with("seed-not-added")
def multiplies_seed_and_epoch(n, rank, world_size, epoch, seed=0, drop_last=False):
    return made_even(shuffled(n, seed * epoch), world_size, drop_last)[rank::world_size]


@SHARD_INDICES.fails_with("permutation-per-rank")
def seeds_with_the_rank_too(n, rank, world_size, epoch, seed=0, drop_last=False):
    return made_even(shuffled(n, seed + epoch + rank), world_size, drop_last)[rank::world_size]


@SHARD_INDICES.fails_with("not-shuffled")
def takes_them_in_order(n, rank, world_size, epoch, seed=0, drop_last=False):
    return made_even(list(range(n)), world_size, drop_last)[rank::world_size]


@SHARD_INDICES.fails_with("shuffled-inside-the-shard")
def cuts_first_and_shuffles_then(n, rank, world_size, epoch, seed=0, drop_last=False):
    mine = made_even(list(range(n)), world_size, drop_last)[rank::world_size]
    return [mine[i] for i in shuffled(len(mine), seed + epoch)]


@SHARD_INDICES.fails_with("contiguous-blocks")
def cuts_blocks(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = made_even(shuffled(n, seed + epoch), world_size, drop_last)
    size = len(order) // world_size
    return order[rank * size : (rank + 1) * size]


@SHARD_INDICES.fails_with("unequal-lengths")
def does_not_fill_up(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    if drop_last:
        order = order[: n - n % world_size]
    return order[rank::world_size]


@SHARD_INDICES.fails_with("unequal-lengths")
def neither_fills_up_nor_drops(n, rank, world_size, epoch, seed=0, drop_last=False):
    return shuffled(n, seed + epoch)[rank::world_size]


@SHARD_INDICES.fails_with("tail-dropped")
def always_drops(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    return order[: n // world_size * world_size][rank::world_size]


@SHARD_INDICES.fails_with("drop-last-ignored")
def never_drops(n, rank, world_size, epoch, seed=0, drop_last=False):
    return made_even(shuffled(n, seed + epoch), world_size, False)[rank::world_size]


@SHARD_INDICES.fails_with("drop-last-turned-round")
def reads_drop_last_the_wrong_way(n, rank, world_size, epoch, seed=0, drop_last=False):
    return made_even(shuffled(n, seed + epoch), world_size, not drop_last)[rank::world_size]


@SHARD_INDICES.fails_with("filled-up-otherwise")
def repeats_the_last_image(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    if drop_last:
        return made_even(order, world_size, True)[rank::world_size]
    while len(order) % world_size:
        order.append(order[-1])
    return order[rank::world_size]


@SHARD_INDICES.fails_with("filled-up-otherwise")
def fills_up_with_image_0(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    if drop_last:
        return made_even(order, world_size, True)[rank::world_size]
    return (order + [0] * (-n % world_size))[rank::world_size]


@SHARD_INDICES.fails_with("filled-up-only-once")
def copies_the_list_only_once(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    if drop_last:
        return made_even(order, world_size, True)[rank::world_size]
    return (order + order[: -n % world_size])[rank::world_size]


@SHARD_INDICES.fails_with("a-round-too-many")
def always_adds_a_round(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    each = n // world_size if drop_last else n // world_size + 1
    return [order[(rank + i * world_size) % n] for i in range(each)]


@SHARD_INDICES.fails_with("a-round-too-few")
def drops_a_round_that_is_full(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    if drop_last:
        return order[: (n - 1) // world_size * world_size][rank::world_size]
    return made_even(order, world_size, False)[rank::world_size]


@SHARD_INDICES.fails_with("another-generator")
def shuffles_with_pythons_random(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = list(range(n))
    random.Random(seed + epoch).shuffle(order)
    return made_even(order, world_size, drop_last)[rank::world_size]


@SHARD_INDICES.fails_with("another-generator")
def shuffles_with_numpy(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = np.random.default_rng(seed + epoch).permutation(n).tolist()
    return made_even(order, world_size, drop_last)[rank::world_size]


@SHARD_INDICES.fails_with("global-seed")
def seeds_all_of_torch(n, rank, world_size, epoch, seed=0, drop_last=False):
    torch.manual_seed(seed + epoch)
    order = torch.randperm(n).tolist()
    return made_even(order, world_size, drop_last)[rank::world_size]


@SHARD_INDICES.fails_with("time-out")
def never_gets_longer(n, rank, world_size, epoch, seed=0, drop_last=False):
    order = shuffled(n, seed + epoch)
    while len(order) % world_size:
        order + order[:1]
    return order[rank::world_size]


@SHARD_INDICES.fails_with("wrong-type")
def returns_a_tensor(n, rank, world_size, epoch, seed=0, drop_last=False):
    return torch.tensor(asks_torch(n, rank, world_size, epoch, seed, drop_last))


@SHARD_INDICES.fails_with("wrong-signature")
def knows_no_drop_last(n, rank, world_size, epoch, seed=0):
    return asks_torch(n, rank, world_size, epoch, seed)


# --- tensor_parallel_linear ---------------------------------------------------------------------


def shards(w1, b1, w2, rank, world_size):
    step = len(w1) // world_size
    mine = slice(rank * step, (rank + 1) * step)
    return w1[mine], b1[mine], w2[:, mine]


@TENSOR_PARALLEL_LINEAR.passes
def cuts_slices(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    h = torch.relu(x @ w1.T + b1)
    return all_reduce(h @ w2.T) + b2


@TENSOR_PARALLEL_LINEAR.passes
def lets_rank_0_add_the_bias(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    h = F.linear(x, w1.chunk(world_size)[rank], b1.chunk(world_size)[rank]).clamp(min=0)
    return all_reduce(F.linear(h, w2.chunk(world_size, dim=1)[rank], b2 if rank == 0 else None))


@TENSOR_PARALLEL_LINEAR.passes
def takes_every_nth_hidden_unit(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    h = F.relu(torch.einsum("bi,hi->bh", x, w1[rank::world_size]) + b1[rank::world_size])
    return all_reduce(torch.einsum("bh,oh->bo", h, w2[:, rank::world_size]) + b2 / world_size)


@TENSOR_PARALLEL_LINEAR.fails_with("bias-per-rank")
def adds_the_bias_before_the_sum(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    return all_reduce(F.linear(F.relu(F.linear(x, w1, b1)), w2, b2))


@TENSOR_PARALLEL_LINEAR.fails_with("no-second-bias")
def forgets_the_second_bias(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    return all_reduce(F.relu(x @ w1.T + b1) @ w2.T)


@TENSOR_PARALLEL_LINEAR.fails_with("partial-sum")
def does_not_use_what_all_reduce_returns(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    y = F.relu(x @ w1.T + b1) @ w2.T
    all_reduce(y)
    return y + b2


@TENSOR_PARALLEL_LINEAR.fails_with("averaged")
def takes_the_mean_of_the_parts(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    return all_reduce(F.relu(x @ w1.T + b1) @ w2.T) / world_size + b2


@TENSOR_PARALLEL_LINEAR.fails_with("same-shard-on-every-rank")
def always_takes_the_first_shard(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, 0, world_size)
    return all_reduce(F.relu(x @ w1.T + b1) @ w2.T) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("activation-before-the-sum")
def cuts_the_inputs(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    columns = torch.arange(x.shape[1]).tensor_split(world_size)[rank]
    h = F.relu(x[:, columns] @ w1[:, columns].T + b1)
    return all_reduce(h) @ w2.T + b2


@TENSOR_PARALLEL_LINEAR.fails_with("activation-before-the-sum")
def applies_relu_to_its_part(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    return all_reduce(F.relu(F.relu(x @ w1.T + b1) @ w2.T)) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("activation-at-the-end")
def applies_relu_twice(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    return F.relu(cuts_slices(x, w1, b1, w2, b2, rank, world_size, all_reduce))


@TENSOR_PARALLEL_LINEAR.fails_with("no-activation")
def forgets_relu(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    return all_reduce((x @ w1.T + b1) @ w2.T) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("w1-cut-by-inputs")
def cuts_columns_of_w1(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    h = F.relu(x @ w1.chunk(world_size, dim=1)[rank].T + b1)
    return all_reduce(h @ w2.chunk(world_size, dim=0)[rank].T) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("w2-cut-by-outputs")
def cuts_rows_of_w2(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, _ = shards(w1, b1, w2, rank, world_size)
    return all_reduce(F.relu(x @ w1.T + b1) @ w2.chunk(world_size)[rank].T) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("shards-do-not-match")
def mixes_strides_and_blocks(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    h = F.relu(x @ w1[rank::world_size].T + b1[rank::world_size])
    return all_reduce(h @ w2.chunk(world_size, dim=1)[rank].T) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("b1-not-cut")
def adds_the_whole_b1(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, _, w2 = shards(w1, b1, w2, rank, world_size)
    return all_reduce(F.relu(x @ w1.T + b1) @ w2.T) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("b1-not-cut")
def gives_the_whole_b1_to_linear(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, _, w2 = shards(w1, b1, w2, rank, world_size)
    return all_reduce(F.relu(F.linear(x, w1, b1)) @ w2.T) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("no-first-bias")
def adds_b1_on_rank_0_only(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    h = x @ w1.T
    if rank == 0:
        h = h + b1
    return all_reduce(F.relu(h) @ w2.T) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("first-bias-shared-out")
def divides_b1_as_it_does_b2(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1 / world_size, w2, rank, world_size)
    return all_reduce(F.relu(x @ w1.T + b1) @ w2.T + b2 / world_size)


@TENSOR_PARALLEL_LINEAR.fails_with("everything-on-every-rank")
def computes_everything(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    return F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)


@TENSOR_PARALLEL_LINEAR.fails_with("too-many-all-reduces")
def gathers_the_hidden_layer_too(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    step = len(w1) // world_size
    mine = slice(rank * step, (rank + 1) * step)
    h = x.new_zeros(len(x), len(w1))
    h[:, mine] = F.relu(x @ w1[mine].T + b1[mine])
    h = all_reduce(h)
    return all_reduce(h[:, mine] @ w2[:, mine].T) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("too-many-all-reduces")
def sums_image_by_image(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    y = F.relu(x @ w1.T + b1) @ w2.T
    return torch.stack([all_reduce(row) for row in y]) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("too-much-work")
def cuts_after_the_product(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    step = len(w1) // world_size
    mine = slice(rank * step, (rank + 1) * step)
    h = F.relu(F.linear(x, w1, b1))[:, mine]
    return all_reduce(h @ w2[:, mine].T) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("too-much-work")
def averages_what_all_have_computed(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    return all_reduce(F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)) / world_size


@TENSOR_PARALLEL_LINEAR.fails_with("reduced-too-much")
def sends_the_parts_side_by_side(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    parts = x.new_zeros(world_size, len(x), len(w2))
    parts[rank] = F.relu(x @ w1.T + b1) @ w2.T
    return all_reduce(parts).sum(dim=0) + b2


@TENSOR_PARALLEL_LINEAR.fails_with("ranks-disagree")
def lets_only_rank_0_sum(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    y = F.relu(x @ w1.T + b1) @ w2.T
    return all_reduce(y) + b2 if rank == 0 else y


@TENSOR_PARALLEL_LINEAR.fails_with("changed-input")
def adds_b2_in_place(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    w1, b1, w2 = shards(w1, b1, w2, rank, world_size)
    b2 += 0.5
    return all_reduce(F.relu(x @ w1.T + b1) @ w2.T) + b2 - 0.5


# --- pipeline_schedule --------------------------------------------------------------------------


def with_warm_up(warm_up, count):
    """This many F first, then pairs F, B, then the B that are left."""
    warm_up = min(warm_up, count)
    operations = [("F", m) for m in range(warm_up)]
    for m in range(count - warm_up):
        operations += [("F", warm_up + m), ("B", m)]
    return operations + [("B", m) for m in range(count - warm_up, count)]


@PIPELINE_SCHEDULE.passes
def warms_up_then_pairs_then_cools_down(stage, num_stages, num_microbatches):
    return with_warm_up(num_stages - 1 - stage, num_microbatches)


@PIPELINE_SCHEDULE.passes
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


@PIPELINE_SCHEDULE.passes
def sorts_by_the_time_of_each_operation(stage, num_stages, num_microbatches):
    ahead = num_stages - stage
    when = {("F", m): (max(m - ahead, -1), m, 1) for m in range(num_microbatches)}
    when |= {("B", m): (m, -1, 0) for m in range(num_microbatches)}
    return tuple(sorted(when, key=when.get))


@PIPELINE_SCHEDULE.fails_with("gpipe")
def does_all_forward_first(stage, num_stages, num_microbatches):
    return with_warm_up(num_microbatches, num_microbatches)


@PIPELINE_SCHEDULE.fails_with("gpipe")
def does_all_forward_first_and_goes_back_in_reverse(stage, num_stages, num_microbatches):
    forward = [("F", m) for m in range(num_microbatches)]
    return forward + [("B", m) for m in reversed(range(num_microbatches))]


@PIPELINE_SCHEDULE.fails_with("one-at-a-time")
def finishes_one_before_the_next(stage, num_stages, num_microbatches):
    return with_warm_up(0, num_microbatches)


@PIPELINE_SCHEDULE.fails_with("too-many-activations")
def warms_up_one_too_many(stage, num_stages, num_microbatches):
    return with_warm_up(num_stages - stage, num_microbatches)


@PIPELINE_SCHEDULE.fails_with("bubble-too-large")
def warms_up_the_same_on_all_stages(stage, num_stages, num_microbatches):
    return with_warm_up(num_stages - 1, num_microbatches)


@PIPELINE_SCHEDULE.fails_with("bubble-too-large")
def warms_up_one_too_few(stage, num_stages, num_microbatches):
    if num_stages == 2:
        return with_warm_up(1 - stage, num_microbatches)
    return with_warm_up(max(0, num_stages - 2 - stage), num_microbatches)


@PIPELINE_SCHEDULE.fails_with("bubble-too-large")
def goes_back_in_pairs_that_are_swapped(stage, num_stages, num_microbatches):
    operations = with_warm_up(num_stages - 1 - stage, num_microbatches)
    if num_stages < 4 or num_microbatches < 6:
        return operations
    last = [op for op in operations if op[0] == "B"][-(num_stages - 1 - stage) :]
    if stage == num_stages - 1:
        return operations
    return [op for op in operations if op not in last] + last[::-1]


@PIPELINE_SCHEDULE.fails_with("deadlock")
def counts_the_stages_from_the_wrong_end(stage, num_stages, num_microbatches):
    return with_warm_up(stage, num_microbatches)


@PIPELINE_SCHEDULE.fails_with("deadlock")
def lets_the_last_stage_wait_for_two(stage, num_stages, num_microbatches):
    return with_warm_up(2 if stage == num_stages - 1 else 0, num_microbatches)


@PIPELINE_SCHEDULE.fails_with("missing-operation")
def forgets_the_cool_down(stage, num_stages, num_microbatches):
    operations = with_warm_up(num_stages - 1 - stage, num_microbatches)
    return operations[: len(operations) - (num_stages - 1 - stage)]


@PIPELINE_SCHEDULE.fails_with("missing-operation")
def forgets_the_warm_up(stage, num_stages, num_microbatches):
    return with_warm_up(num_stages - 1 - stage, num_microbatches)[num_stages - 1 - stage :]


@PIPELINE_SCHEDULE.fails_with("no-such-micro-batch")
def warms_up_longer_than_there_is_work(stage, num_stages, num_microbatches):
    warm_up = num_stages - 1 - stage
    operations = [("F", m) for m in range(warm_up)]
    for m in range(num_microbatches - warm_up):
        operations += [("F", warm_up + m), ("B", m)]
    return operations + [("B", m) for m in range(num_microbatches - warm_up, num_microbatches)]


@PIPELINE_SCHEDULE.fails_with("counts-from-one")
def counts_micro_batches_from_1(stage, num_stages, num_microbatches):
    operations = with_warm_up(num_stages - 1 - stage, num_microbatches)
    return [(kind, m + 1) for kind, m in operations]


@PIPELINE_SCHEDULE.fails_with("operation-twice")
def pairs_begin_at_0_again(stage, num_stages, num_microbatches):
    warm_up = min(num_stages - 1 - stage, num_microbatches)
    operations = [("F", m) for m in range(warm_up)]
    for m in range(num_microbatches):
        operations += [("F", m), ("B", m)]
    return operations


@PIPELINE_SCHEDULE.fails_with("backward-before-forward")
def writes_b_before_f(stage, num_stages, num_microbatches):
    warm_up = min(num_stages - 1 - stage, num_microbatches)
    operations = [("F", m) for m in range(warm_up)]
    for m in range(num_microbatches - warm_up):
        operations += [("B", m), ("F", warm_up + m)]
    return operations + [("B", m) for m in range(num_microbatches - warm_up, num_microbatches)]


@PIPELINE_SCHEDULE.fails_with("wrong-form")
def returns_the_lists_of_all_stages(stage, num_stages, num_microbatches):
    return [with_warm_up(num_stages - 1 - s, num_microbatches) for s in range(num_stages)]


@PIPELINE_SCHEDULE.fails_with("wrong-form")
def returns_text(stage, num_stages, num_microbatches):
    operations = with_warm_up(num_stages - 1 - stage, num_microbatches)
    return [f"{kind}{m}" for kind, m in operations]


@PIPELINE_SCHEDULE.fails_with("returned-none")
def forgets_to_return_the_list(stage, num_stages, num_microbatches):
    with_warm_up(num_stages - 1 - stage, num_microbatches)


@PIPELINE_SCHEDULE.fails_with("time-out")
def never_does_the_last_backward(stage, num_stages, num_microbatches):
    operations, backward = [], 0
    while backward < num_microbatches:
        operations = with_warm_up(num_stages - 1 - stage, num_microbatches)
    return operations


@PIPELINE_SCHEDULE.fails_with("raised-error")
def looks_into_an_empty_list(stage, num_stages, num_microbatches):
    return with_warm_up([][stage], num_microbatches)


@PIPELINE_SCHEDULE.fails_with("wrong-signature")
def takes_no_stage(num_stages, num_microbatches):
    return with_warm_up(num_stages - 1, num_microbatches)
