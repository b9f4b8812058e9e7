"""Checks of monitoring: references in NumPy, and the cases to try them on.

Nothing here is random for the learner: shuffles, outcomes and the order of requests are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shipyard.checks import Case, Passed, compare, draws


def psi(reference, live, bins=10, floor=1e-4):
    edges = np.quantile(reference, np.arange(1, bins) / bins)
    p = np.bincount(np.searchsorted(edges, reference, side="right"), minlength=bins)
    q = np.bincount(np.searchsorted(edges, live, side="right"), minlength=bins)
    p = np.maximum(p / len(reference), floor)
    q = np.maximum(q / len(live), floor)
    return float(((q - p) * np.log(q / p)).sum())


def ks_drift(reference, live):
    n, m = len(reference), len(live)
    x = np.concatenate([reference, live])
    F = np.searchsorted(np.sort(reference), x, side="right") / n
    G = np.searchsorted(np.sort(live), x, side="right") / m
    D = float(np.abs(F - G).max())
    lam = D * math.sqrt(n * m / (n + m))
    if lam < 0.2:
        return D, 1.0
    k = np.arange(1, 101)
    p = 2 * ((-1.0) ** (k - 1) * np.exp(-2 * k**2 * lam**2)).sum()
    return D, float(min(p, 1.0))


def mmd(reference, live, orders):
    n = len(reference)
    both = np.concatenate([reference, live])
    squares = ((both[:, None] - both[None]) ** 2).sum(-1)
    width = np.median(np.sqrt(squares[np.triu_indices(len(both), k=1)]))
    K = np.exp(-squares / (2 * width**2))

    def mmd2(order):
        x, y = order[:n], order[n:]
        m = len(y)
        within_x = (K[np.ix_(x, x)].sum() - n) / (n * (n - 1))
        within_y = (K[np.ix_(y, y)].sum() - m) / (m * (m - 1))
        return within_x + within_y - 2 * K[np.ix_(x, y)].mean()

    real = mmd2(np.arange(len(both)))
    as_large = sum(mmd2(order) >= real for order in orders)
    return float(real), float((1 + as_large) / (1 + len(orders)))


def canary_decision(outcomes, alpha=0.05):
    wins, losses = 0, 0
    for seen, (old_right, new_right) in enumerate(outcomes, start=1):
        wins += new_right and not old_right
        losses += old_right and not new_right
        n = wins + losses
        evidence = 2**n * math.factorial(wins) * math.factorial(losses) / math.factorial(n + 1)
        if evidence >= 1 / alpha:
            return ("promote" if wins > losses else "roll back"), seen
    return "go on", len(outcomes)


def hot_swap(first, lock):
    class Slot:
        def __init__(self, first, lock):
            self.lock, self.live = lock, first
            self.counts = {first.version: 0}

        def acquire(self):
            with self.lock:
                self.counts[self.live.version] += 1
                return self.live

        def release(self, model):
            with self.lock:
                self.counts[model.version] -= 1
                self.forget(model)

        def swap(self, load):
            new = load()
            with self.lock:
                before, self.live = self.live, new
                self.counts.setdefault(new.version, 0)
                self.forget(before)
                return before

        def in_flight(self):
            with self.lock:
                return dict(self.counts)

        def forget(self, model):
            if model.version != self.live.version and self.counts[model.version] == 0:
                del self.counts[model.version]

    return Slot(first, lock)


def idempotent_consumer(messages, store):
    results, totals = dict(store["results"]), dict(store["totals"])
    position = store["next"]
    for offset, key, label in messages:
        if key not in results:
            results[key] = label
            totals[label] = totals.get(label, 0) + 1
        position = max(position, offset + 1)
    return {"results": results, "totals": totals, "next": position}


# --- the cases -----------------------------------------------------------------------------------


def _numbers(seed: int) -> Callable[..., np.ndarray]:
    """``draw(*shape)``: seeded standard normal float64 arrays."""
    draw = draws(seed)
    return lambda *shape: draw(*shape).numpy()


def check_psi(candidate: Callable) -> Passed:
    """Check ``psi(reference, live, bins=10, floor=1e-4)``: a float."""
    draw = _numbers(181)
    late = 1.7e9  # seconds since 1970, of which float32 knows only every 128th
    whole = np.rint(3 * draw(83))  # numbers that repeat, and lie on the edges
    cases = [
        Case(draw(57), 1.5 * draw(23) + 0.4),
        Case(draw(57), 1.5 * draw(23) + 0.4, bins=4),
        Case(whole, np.rint(4 * draw(31)), bins=5),
        Case(draw(120), 2 * draw(41) - 3, bins=7),  # empty bins
        Case(draw(120), 2 * draw(41) - 3, bins=7, floor=0.01),
        Case(whole, np.rint(4 * draw(31)), bins=5, floor=0.2),  # lifts shares of the reference, too
        Case(draw(33), 0.3 * draw(200), 6),
        Case(late + draw(57), late + 0.7 * draw(23)),  # sizes as in the first case
        Case(draw(20), draw(2), bins=2),
    ]
    return compare(candidate, reference=psi, cases=cases, tolerance=1e-9)


def check_ks_drift(candidate: Callable) -> Passed:
    """Check ``ks_drift(reference, live)``: the pair (D, p value) of floats."""
    draw = _numbers(182)
    x, late = draw(25), 1.7e9  # seconds since 1970, of which float32 knows only every 128th
    cases = [
        Case(draw(37), draw(23) + 0.3),
        Case(draw(37) + 0.5, draw(60)),  # the live numbers are the smaller ones
        Case(draw(41), 1.6 * draw(29)),
        Case(np.rint(2 * draw(50)), np.rint(2 * draw(33) + 0.5)),
        Case(draw(90), draw(90) + 1.2),
        Case(np.arange(40.0), np.arange(40.0) + 2.5),  # λ is 0.34
        Case(np.arange(40.0), np.arange(40.0) + 0.5),  # and here 0.11
        Case(x, x[::-1].copy()),
        Case(late + draw(37), late + draw(23) / 2),  # sizes as in the first case
        Case(draw(2), draw(3)),
    ]
    return compare(
        candidate, reference=ks_drift, cases=cases, outputs=("D", "p value"), tolerance=1e-9
    )


def check_mmd(candidate: Callable) -> Passed:
    """Check ``mmd(reference, live, orders)``: the pair (MMD² without bias, p value)."""
    draw = _numbers(183)

    def case(n, m, d, move, shuffles=19, scale=1.0):
        # n + m leaves 2 or 3 when divided by 4: then the number of pairs is odd, and the median
        # of the distances is the root of the median of their squares
        orders = np.argsort(draw(shuffles, n + m), axis=1)
        return Case(scale * draw(n, d), scale * (draw(m, d) + move), orders)

    cases = [
        case(8, 6, 3, 0.4),
        case(13, 9, 2, 0.0),
        case(7, 11, 4, 0.0),
        case(15, 8, 1, 1.5),
        case(9, 14, 5, 0.3, shuffles=40, scale=30.0),
        case(8, 6, 3, 1.5),  # the sizes of the first case, other numbers
        case(4, 6, 2, 0.5, shuffles=4),
    ]
    return compare(
        candidate, reference=mmd, cases=cases, outputs=("MMD²", "p value"), tolerance=1e-9
    )


class _Outcomes(list):
    """Pairs (old is right, new is right), which a failing check shows in a few words."""

    def __repr__(self) -> str:
        wins, losses = (self.count(pair) for pair in ((False, True), (True, False)))
        return f"[{len(self)} outcomes: {wins} wins, {losses} losses]"


def check_canary_decision(candidate: Callable) -> Passed:
    """Check ``canary_decision(outcomes, alpha=0.05)``: the pair (decision, outcomes looked at)."""

    def outcomes(seed, count, old, new):
        draw = np.random.default_rng(seed).random((count, 2))
        return _Outcomes((bool(a < old), bool(b < new)) for a, b in draw)

    both, win, loss = (True, True), (False, True), (True, False)
    cases = [
        Case(_Outcomes([win, both, win, win, (False, False), win, win, win, loss, win, win, win])),
        Case(_Outcomes([both, win] + 12 * [win, both])),
        Case(_Outcomes(5 * [both, loss] + 9 * [loss, (False, False)])),
        Case(_Outcomes(12 * [win] + 12 * [loss])),
        Case(_Outcomes(5 * [win, loss, both] + [win])),
        Case(outcomes(1, 300, 0.5, 0.75)),
        Case(outcomes(2, 250, 0.7, 0.4), alpha=0.01),
        Case(outcomes(3, 400, 0.6, 0.6)),
        Case(_Outcomes(7 * [win]), alpha=0.11),
        Case(_Outcomes(7 * [win]), alpha=0.103),
        Case(_Outcomes(40 * [both])),
        Case(_Outcomes()),
    ]
    return compare(candidate, reference=canary_decision, cases=cases, outputs=("decision", "seen"))


class _Lock:
    """A lock that tells whether it is held, and raises where a real one would wait for ever."""

    def __init__(self) -> None:
        self.held, self.entered = False, 0

    def acquire(self, *args: Any) -> bool:
        if self.held:
            raise RuntimeError("the lock is held already: a real one would wait for ever")
        self.held, self.entered = True, self.entered + 1
        return True

    def release(self) -> None:
        self.held = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: Any) -> None:
        self.release()


class _Model:
    def __init__(self, version: str) -> None:
        self.version = version

    def __repr__(self) -> str:
        return f"model {self.version}"


def _drive(make: Callable, steps: Sequence[str]) -> dict[str, dict | None] | None:
    """What a slot answers to each of ``steps``, how many requests run then, and its locking."""
    lock, running = _Lock(), {}
    seen = {f"{number}: {step}": None for number, step in enumerate(steps, start=1)}
    slot = make(_Model("1"), lock)
    if slot is None:
        return None
    for number, step in enumerate(steps, start=1):
        verb, who = step.split()
        lock.entered, facts = 0, {}
        if verb == "acquire":
            running[who] = slot.acquire()
            facts["model"] = _name(running[who])
        elif verb == "release":
            slot.release(running.pop(who))
        elif verb == "swap":

            def load(who=who, facts=facts):
                facts["lock held while the model is loaded"] = lock.held
                return _Model(who)

            facts["returned"] = _name(slot.swap(load))
        else:
            facts["error"] = _refused(slot)
        facts["lock used"] = lock.entered > 0 or verb == "refuse"
        facts["in_flight()"] = slot.in_flight()
        facts["lock held afterwards"] = lock.held
        seen[f"{number}: {step}"] = facts
        if not all(isinstance(model, _Model) for model in running.values()):
            break  # what is no model cannot be released: the fault lies here
    return seen


def _name(model: Any) -> str | None:
    return None if model is None else repr(model)


def _refused(slot: Any) -> str:
    """What becomes of a model that cannot be loaded."""

    def load() -> None:
        raise ValueError("half a file")

    try:
        slot.swap(load)
    except ValueError as error:
        return str(error)
    return "no error"


def check_hot_swap(candidate: Callable) -> Passed:
    """Check ``Slot(first, lock)`` with acquire, release, swap and in_flight, in given orders."""
    orders = [
        ["acquire a", "swap 2", "acquire b", "release a", "release b"],
        ["swap 2", "acquire a", "acquire b", "release a", "release b"],
        ["acquire a", "acquire b", "swap 2", "release b", "acquire c", "release a", "release c"],
        ["acquire a", "refuse it", "acquire b", "release a", "release b"],
        ["acquire a", "swap 2", "acquire b", "swap 1", "acquire c", "release a", "release b",
         "release c"],
        ["acquire a", "swap 2", "acquire b", "swap 3", "refuse it", "acquire c", "release b",
         "release c", "release a", "swap 4"],
        ["refuse it", "acquire a", "release a"],
    ]  # fmt: skip
    return compare(
        candidate, reference=hot_swap, cases=[Case(order) for order in orders], use=_drive
    )


def check_idempotent_consumer(candidate: Callable) -> Passed:
    """Check ``idempotent_consumer(messages, store)``: a new store."""
    empty = {"results": {}, "totals": {}, "next": 0}
    full = {"results": {"a": "cat", "b": "dog"}, "totals": {"cat": 1, "dog": 1}, "next": 2}
    cases = [
        Case([(0, "a", "cat"), (1, "b", "dog"), (2, "c", "cat")], empty),
        Case([(0, "a", "cat"), (1, "b", "dog"), (2, "c", "cat")], full),  # read again after a crash
        Case([(2, "c", "cat"), (3, "c", "cat"), (4, "d", "dog")], full),  # sent twice
        Case([(5, "b", "cat"), (6, "e", "ship")], full),  # another label under a known key
        Case([(2, "c", "dog"), (4, "e", "cat"), (3, "d", "dog")], full),  # two partitions
        Case([(1, "x", "dog"), (7, "a", "cat")], full),
        Case([], full),
    ]
    return compare(candidate, reference=idempotent_consumer, cases=cases)
