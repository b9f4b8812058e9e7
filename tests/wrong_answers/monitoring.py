"""Wrong answers on monitoring, and other correct ones."""

import itertools
import math
from collections import Counter

import numpy as np

from wrong_answers import Task

PSI, KS, MMD, CANARY, CONSUMER = (Task() for _ in range(5))
SWAP = Task(spared="changes_its_input")  # its inputs are a model, and a lock that it must change
TASKS = {
    "psi": PSI,
    "ks_drift": KS,
    "mmd": MMD,
    "canary_decision": CANARY,
    "hot_swap": SWAP,
    "idempotent_consumer": CONSUMER,
}


# The population stability index.


@PSI.fails_with("live-numbers-outside-dropped")
def takes_numpys_histogram(reference, live, bins=10, floor=1e-4):
    edges = np.quantile(reference, np.linspace(0, 1, bins + 1))
    p, q = (np.histogram(x, edges)[0] / len(x) for x in (reference, live))
    p, q = np.maximum(p, floor), np.maximum(q, floor)
    return sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))


@PSI.fails_with("bins-of-equal-width")
def cuts_the_range(reference, live, bins=10, floor=1e-4):
    edges = np.histogram_bin_edges(reference, bins)
    edges[0], edges[-1] = -np.inf, np.inf
    p, q = (np.clip(np.histogram(x, edges)[0] / len(x), floor, 1) for x in (reference, live))
    return float(np.sum((q - p) * (np.log(q) - np.log(p))))


@PSI.passes
def opens_the_outer_bins(reference, live, bins=10, floor=1e-4):
    edges = np.quantile(reference, np.linspace(0, 1, bins + 1))
    edges[0], edges[-1] = -np.inf, np.inf
    total = 0.0
    for low, high in itertools.pairwise(edges):
        p = max(((low <= reference) & (reference < high)).mean(), floor)
        q = max(((low <= live) & (live < high)).mean(), floor)
        total += (q - p) * math.log(q / p)
    return total


@PSI.passes
def adds_both_divergences(reference, live, bins=10, floor=1e-4):
    edges = np.quantile(reference, [k / bins for k in range(1, bins)])
    found = []
    for values in (reference, live):
        places = np.digitize(values, edges)
        found.append(np.array([max(np.mean(places == k), floor) for k in range(bins)]))
    p, q = found
    return np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p))


# Kolmogorov and Smirnov.


@KS.fails_with("one-sided")
def looks_upwards_only(reference, live):
    x = sorted([*reference, *live])
    gap = max(np.mean(reference <= t) - np.mean(live <= t) for t in x)
    lam = gap * math.sqrt(len(reference) * len(live) / len(x))
    p = 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * lam) ** 2) for k in range(1, 101))
    return gap, min(1.0, p) if lam >= 0.2 else 1.0


@KS.fails_with("wrong-sample-size")
def takes_all_numbers(reference, live):
    x = np.sort(np.concatenate([reference, live]))
    gap = max(abs(np.mean(reference <= t) - np.mean(live <= t)) for t in x)
    lam = gap * math.sqrt(len(x))
    p = 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * lam) ** 2) for k in range(1, 101))
    return gap, min(1.0, p) if lam >= 0.2 else 1.0


@KS.passes
def counts_at_every_number(reference, live):
    gap = max(abs(np.mean(reference <= t) - np.mean(live <= t)) for t in [*reference, *live])
    lam = gap / math.sqrt(1 / len(reference) + 1 / len(live))
    p = 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * lam) ** 2) for k in range(1, 200))
    return gap, min(1.0, p) if lam >= 0.2 else 1.0


@KS.passes
def compares_by_broadcasting(reference, live):
    x = np.union1d(reference, live)
    D = np.abs((reference <= x[:, None]).mean(1) - (live <= x[:, None]).mean(1)).max()
    lam = D * (len(reference) * len(live) / (len(reference) + len(live))) ** 0.5
    if lam < 0.2:
        return D, 1.0
    odd, even = np.arange(1, 100, 2), np.arange(2, 101, 2)
    return D, 2 * (np.exp(-2 * (odd * lam) ** 2).sum() - np.exp(-2 * (even * lam) ** 2).sum())


# Maximum mean discrepancy.


def likeness(reference, live):
    both = np.concatenate([reference, live])
    distance = np.linalg.norm(both[:, None] - both[None], axis=-1)
    return distance, both


@MMD.fails_with("pairs-with-itself")
def takes_plain_means(reference, live, orders):
    distance, both = likeness(reference, live)
    upper = distance[np.triu_indices(len(both), 1)]
    K = np.exp(-(distance**2) / (2 * np.median(upper) ** 2))
    n = len(reference)

    def statistic(order):
        k = K[order][:, order]
        return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()

    found = statistic(np.arange(len(both)))
    larger = [statistic(order) >= found for order in orders]
    return found, (sum(larger) + 1) / (len(larger) + 1)


@MMD.fails_with("real-one-not-counted")
def forgets_the_real_dealing(reference, live, orders):
    found, p = by_pairs(reference, live, orders)
    return found, (p * (len(orders) + 1) - 1) / len(orders)


@MMD.passes
def by_pairs(reference, live, orders):
    both = [*reference, *live]
    n = len(reference)
    pairs = list(itertools.combinations(range(len(both)), 2))
    width = np.median([np.linalg.norm(both[i] - both[j]) for i, j in pairs])

    def k(i, j):
        return math.exp(-((both[i] - both[j]) ** 2).sum() / 2 / width**2)

    def statistic(order):
        x, y = order[:n], order[n:]
        within = [np.mean([k(i, j) for i, j in itertools.combinations(z, 2)]) for z in (x, y)]
        return sum(within) - 2 * np.mean([k(i, j) for i in x for j in y])

    found = statistic(list(range(len(both))))
    return found, (1 + sum(statistic(order) >= found for order in orders)) / (1 + len(orders))


@MMD.passes
def by_signs(reference, live, orders):
    distance, _ = likeness(reference, live)
    n, m = len(reference), len(live)
    width = np.sqrt(np.median(distance[np.tril_indices(n + m, -1)] ** 2))
    K = np.exp(-((distance / width) ** 2) / 2)
    np.fill_diagonal(K, 0)
    found = []
    for order in [np.arange(n + m), *orders]:
        live_rows = np.isin(np.arange(n + m), order[n:])
        x, y = (~live_rows).astype(float), live_rows.astype(float)
        found.append(
            x @ K @ x / (n * (n - 1)) + y @ K @ y / (m * (m - 1)) - 2 * x @ K @ y / (n * m)
        )
    return found[0], np.mean(np.array(found) >= found[0] - 1e-15)


# The canary.


def beta_evidence(wins, losses):
    log = math.lgamma(wins + 1) + math.lgamma(losses + 1) - math.lgamma(wins + losses + 2)
    return log + (wins + losses) * math.log(2)


@CANARY.fails_with("looks-at-the-end-only")
def judges_the_total(outcomes, alpha=0.05):
    wins = sum(new and not old for old, new in outcomes)
    losses = sum(old and not new for old, new in outcomes)
    if beta_evidence(wins, losses) < math.log(1 / alpha):
        return "go on", len(outcomes)
    return "promote" if wins > losses else "roll back", len(outcomes)


@CANARY.fails_with("both-right-counted")
def compares_two_scores(outcomes, alpha=0.05):
    old_score = new_score = 0
    for k, (old, new) in enumerate(outcomes):
        old_score, new_score = old_score + old, new_score + new
        if beta_evidence(new_score, old_score) >= math.log(1 / alpha):
            return "promote" if new_score > old_score else "roll back", k + 1
    return "go on", len(outcomes)


@CANARY.passes
def in_logarithms(outcomes, alpha=0.05):
    wins = losses = 0
    for k, (old, new) in enumerate(outcomes):
        if old != new:
            wins, losses = wins + bool(new), losses + bool(old)
        if beta_evidence(wins, losses) >= -math.log(alpha):
            return "promote" if wins > losses else "roll back", k + 1
    return "go on", len(outcomes)


@CANARY.passes
def multiplies_step_by_step(outcomes, alpha=0.05):
    evidence, count = 1.0, Counter()
    for seen, (old, new) in enumerate(outcomes, 1):
        if bool(old) == bool(new):
            continue
        count[bool(new)] += 1
        evidence *= 2 * count[bool(new)] / (count.total() + 1)
        if evidence * alpha >= 1:
            return ("promote", seen) if count[True] > count[False] else ("roll back", seen)
    return "go on", len(outcomes)


# The slot.


class SlotOfPairs:
    """Each model that is live or in use, with its count, in a list."""

    def __init__(self, first, lock):
        self.lock, self.held = lock, [[first, 0]]

    def acquire(self):
        with self.lock:
            self.held[-1][1] += 1
            return self.held[-1][0]

    def entry(self, version):
        return next(pair for pair in self.held if pair[0].version == version)

    def release(self, model):
        with self.lock:
            self.entry(model.version)[1] -= 1
            self.tidy()

    def tidy(self):
        self.held = [pair for pair in self.held[:-1] if pair[1]] + self.held[-1:]

    def swap(self, load):
        model = load()
        with self.lock:
            before = self.held[-1][0]
            known = [pair for pair in self.held if pair[0].version == model.version]
            self.held = [pair for pair in self.held if pair not in known]
            self.held.append([model, known[0][1] if known else 0])
            self.tidy()
            return before

    def in_flight(self):
        with self.lock:
            return {model.version: count for model, count in self.held}


@SWAP.passes
def slot_of_pairs(first, lock):
    return SlotOfPairs(first, lock)


@SWAP.passes
class SlotOfACounter:
    def __init__(self, first, lock):
        self.model, self.running, self.lock = first, Counter(), lock

    def acquire(self):
        self.lock.acquire()
        try:
            self.running[self.model.version] += 1
            return self.model
        finally:
            self.lock.release()

    def release(self, model):
        with self.lock:
            self.running[model.version] -= 1

    def swap(self, load):
        new = load()
        with self.lock:
            old, self.model = self.model, new
        return old

    def in_flight(self):
        with self.lock:
            busy = {version: count for version, count in self.running.items() if count}
            return {self.model.version: 0} | busy


@SWAP.fails_with("loads-under-the-lock")
class LoadsWhileAllWait(SlotOfACounter):
    def swap(self, load):
        with self.lock:
            old, self.model = self.model, load()
            return old


@SWAP.fails_with("release-counts-the-live-model")
class ReleasesTheLiveOne:
    def __init__(self, first, lock):
        self.lock, self.live, self.requests = lock, first, {first.version: 0}

    def acquire(self):
        with self.lock:
            self.requests[self.live.version] += 1
            return self.live

    def release(self, model):
        with self.lock:
            self.requests[self.live.version] -= 1
            self.clean(model.version)

    def swap(self, load):
        new = load()
        with self.lock:
            old, self.live = self.live, new
            self.requests.setdefault(new.version, 0)
            self.clean(old.version)
        return old

    def clean(self, version):
        if version != self.live.version and not self.requests[version]:
            self.requests.pop(version)

    def in_flight(self):
        with self.lock:
            return self.requests.copy()


# The idempotent consumer.


@CONSUMER.fails_with("counted-again")
def trusts_the_log(messages, store):
    store = {"results": dict(store["results"]), "totals": Counter(store["totals"]), **_next(store)}
    for offset, key, label in messages:
        store["results"].setdefault(key, label)
        store["totals"][label] += 1
        store["next"] = max(store["next"], offset + 1)
    return store | {"totals": dict(store["totals"])}


@CONSUMER.fails_with("judged-by-the-offset")
def skips_low_offsets(messages, store):
    fresh = [message for message in messages if message[0] >= store["next"]]
    totals = Counter(store["totals"])
    totals.update(label for _, _, label in fresh)
    return {
        "results": store["results"] | {key: label for _, key, label in fresh},
        "totals": dict(totals),
        "next": max([store["next"], *(offset + 1 for offset, _, _ in messages)]),
    }


def _next(store):
    return {"next": store["next"]}


@CONSUMER.passes
def counts_afterwards(messages, store):
    results = {key: label for _, key, label in reversed(messages)} | store["results"]
    new = Counter(label for key, label in results.items() if key not in store["results"])
    totals = {k: store["totals"].get(k, 0) + new[k] for k in {*store["totals"], *new}}
    last = max((offset + 1 for offset, _, _ in messages), default=0)
    return {"results": results, "totals": totals, "next": max(last, store["next"])}


@CONSUMER.passes
def copies_and_goes_on(messages, store):
    results, totals, position = {**store["results"]}, Counter(store["totals"]), store["next"]
    for offset, key, label in messages:
        if offset + 1 > position:
            position = offset + 1
        if key in results:
            continue
        results[key] = label
        totals[label] += 1
    return {"results": results, "totals": dict(totals), "next": position}
