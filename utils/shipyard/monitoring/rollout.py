"""May the new model replace the old one? A gate, a shadow, and a canary.

Everything here is about two callables ``predict(images) → probabilities (n, classes)``; a method
``serving.Classifier.predict`` is one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from shipyard.errors import MonitoringError, RefusedModelError

Predict = Callable[[np.ndarray], np.ndarray]


# --- The gate: before the new model sees a request -------------------------------------------


@dataclass(frozen=True)
class Golden:
    """What the gate found on the golden set: accuracy from 0 to 1, milliseconds for a picture."""

    accuracy: float
    milliseconds: float


@dataclass(frozen=True, eq=False)
class Gate:
    """Pictures whose labels are sure, and what a model must do on them to go live.

    Args:
        images: (n, …), what ``predict`` takes; labels: (n,), class numbers.
        classes: how many probabilities belong to a picture.
        least_accuracy: less is refused as "worse". `allowing` computes it from today's model.
        most_milliseconds: more for one picture, as the median of single calls, is "too-slow".
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int
    least_accuracy: float = 0.0
    most_milliseconds: float = math.inf

    @classmethod
    def allowing(
        cls, images: np.ndarray, labels: np.ndarray, today: Predict, *, drop: float = 0.01,
        slowdown: float = 3.0,
    ) -> Gate:  # fmt: skip
        """A gate for models at most ``drop`` less accurate than today's, and ``slowdown`` slower.

        The time has much room, since a busy machine answers at half its speed.
        """
        classes = np.asarray(today(images[:1])).shape[-1]
        found = cls(images, labels, classes).judge(lambda: today)
        return cls(images, labels, classes, found.accuracy - drop, slowdown * found.milliseconds)

    def judge(self, load: Callable[[], Predict]) -> Golden:
        """Load a model and try it; what it reached.

        Raises:
            RefusedModelError: with the reason "unreadable", "wrong-shape", "not-finite",
                "too-slow" or "worse". Nothing was changed.
        """
        try:
            predict = load()
            answers = np.asarray(predict(self.images))
        except Exception as error:  # of whatever kind: a model that raises must not go live
            text = f"The new model does not work: {error}"
            raise RefusedModelError("unreadable", text) from error
        wanted = (len(self.images), self.classes)
        if answers.shape != wanted:
            raise RefusedModelError(
                "wrong-shape", f"The new model answers with shape {answers.shape}, not {wanted}."
            )
        if not np.isfinite(answers).all():
            bad = int((~np.isfinite(answers)).any(1).sum())
            raise RefusedModelError(
                "not-finite", f"The new model answers nan or ∞ to {bad} of {len(answers)} pictures."
            )
        found = Golden(float((answers.argmax(1) == self.labels).mean()), self._time(predict))
        if found.milliseconds > self.most_milliseconds:
            raise RefusedModelError(
                "too-slow",
                f"The new model takes {found.milliseconds:.3g} ms for a picture; at most "
                f"{self.most_milliseconds:.3g} are allowed.",
            )
        if found.accuracy < self.least_accuracy:
            raise RefusedModelError(
                "worse",
                f"The new model is right on {found.accuracy:.1%} of the golden set; at least "
                f"{self.least_accuracy:.1%} are asked.",
            )
        return found

    def _time(self, predict: Predict, calls: int = 15) -> float:
        seconds = []
        for place in range(calls):
            one = self.images[place % len(self.images)][None]
            began = time.perf_counter()
            predict(one)
            seconds.append(time.perf_counter() - began)
        return 1e3 * float(np.median(seconds))


# --- The shadow: the new model answers too, and nobody hears it ------------------------------


@dataclass
class Shadow:
    """Answers with ``old``; asks ``new`` the same, and remembers where they differ.

    An error of ``new`` is counted and goes no further. In a service the second call belongs on a
    queue of its own, so that nobody waits for it; here it follows the first.
    """

    old: Predict
    new: Predict
    agreed: int = 0
    seen: int = 0
    errors: int = 0
    old_seconds: list[float] = field(default_factory=list)
    new_seconds: list[float] = field(default_factory=list)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        answers = self.old(images)
        self.old_seconds.append(time.perf_counter() - began)
        self.seen += len(images)
        try:
            began = time.perf_counter()
            others = np.asarray(self.new(images))
            self.new_seconds.append(time.perf_counter() - began)
            self.agreed += int((others.argmax(1) == np.asarray(answers).argmax(1)).sum())
        except Exception:  # whatever it is, the client must not feel it
            self.errors += 1
        return answers


# --- The canary: is it better, and how sure is that? -----------------------------------------


def log_evidence(wins: int, losses: int, a: float = 1.0) -> float:
    """ln of B(a + wins, a + losses) / B(a, a) · 2^(wins + losses): the evidence against "equal".

    How much likelier the outcomes are if the share of wins is unknown, with a Beta(a, a) prior,
    than if it is 1/2. While it truly is 1/2, the evidence is a martingale that begins at 1, so it
    ever reaches 1/α with a probability of at most α, however often one looks (Ville).

    Sources: H. Robbins, "Statistical methods related to the law of the iterated logarithm",
    Annals of Mathematical Statistics 41(5), 1970; R. Johari et al., "Always valid inference:
    continuous monitoring of A/B tests", Operations Research 70(3), 2022. Pairs in which both are
    right or both are wrong say nothing: A. Wald, "Sequential Analysis", 1947, chapter 6.
    """
    n = wins + losses
    return _log_beta(a + wins, a + losses) - _log_beta(a, a) + n * math.log(2)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def canary_decision(wins: int, losses: int, alpha: float = 0.05) -> str:
    """ "promote", "roll back" or "go on", after any number of paired outcomes.

    Args:
        wins: requests that the new model answered rightly and the old one wrongly.
        losses: the other way round.
        alpha: how often, at most, two equally good models are told apart in the end.
    """
    if log_evidence(wins, losses) < math.log(1 / alpha):
        return "go on"
    return "promote" if wins > losses else "roll back"


@dataclass
class Canary:
    """Paired outcomes one by one, until they decide; ``most`` requests without are "undecided"."""

    alpha: float = 0.05
    most: int = 20_000
    seen: int = 0
    wins: int = 0
    losses: int = 0
    decision: str = "go on"

    def record(self, old_is_right: bool, new_is_right: bool) -> str:
        """Count one request; the decision so far. A decision once made stays.

        Raises:
            MonitoringError: the decision was made before.
        """
        if self.decision != "go on":
            raise MonitoringError(
                f"The canary ended with {self.decision!r} after {self.seen} requests. Evidence "
                "that comes later belongs to a new canary."
            )
        self.seen += 1
        self.wins += new_is_right and not old_is_right
        self.losses += old_is_right and not new_is_right
        self.decision = canary_decision(self.wins, self.losses, self.alpha)
        if self.decision == "go on" and self.seen >= self.most:
            self.decision = "undecided"
        return self.decision


def simulate_canaries(
    share: float, discordant: int, runs: int, alpha: float = 0.05, seed: int = 0
) -> dict[str, np.ndarray]:
    """``runs`` canaries with a true ``share`` of wins among at most ``discordant`` pairs.

    Returns:
        "decision" (runs,): +1 promote, −1 roll back, 0 undecided; and "pairs" (runs,): how many
        discordant pairs it took.
    """
    rng = np.random.default_rng(seed)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, discordant + 2)))])
    wins = (rng.random((runs, discordant)) < share).cumsum(1)  # (runs, discordant)
    n = np.arange(1, discordant + 1)
    # B(1 + w, 1 + l) = w! l! / (n + 1)!, which is `log_evidence` with a = 1
    evidence = log_factorial[wins] + log_factorial[n - wins] - log_factorial[n + 1]
    crossed = evidence + n * math.log(2) >= math.log(1 / alpha)
    first = np.where(crossed.any(1), crossed.argmax(1), discordant - 1)
    ahead = np.sign(2 * wins[np.arange(runs), first] - n[first])
    return {"decision": np.where(crossed.any(1), ahead, 0), "pairs": first + 1}
