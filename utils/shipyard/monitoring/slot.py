"""The place of the live model: exchanged under load, without a request that fails or mixes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shipyard.errors import MonitoringError
from shipyard.monitoring.rollout import Gate


@dataclass(eq=False)
class _Held:
    """A model that was live at some time, and the requests that still use it."""

    model: Any
    version: str
    in_flight: int = 0


class ModelSlot:
    """Holds the model that answers, such as a `serving.Classifier`; any thread may use it.

    A request takes the model once and keeps it to its end:

        with slot.use() as model:
            probabilities = model.predict(model.preprocess(data)[None])

    A swap changes what the *next* request takes, by one assignment under a lock. A request that
    has begun goes on with the model that it has, so that preprocessing, network and class names
    always belong together. No request waits for a swap, and a swap waits for no request.

    Args:
        model: the first model; its ``version`` names it, else pass one.
    """

    def __init__(self, model: Any, version: str | None = None):
        self._lock = threading.Lock()
        self._live = _Held(model, version or str(model.version))
        self._before: _Held | None = None
        self._retired: list[_Held] = []
        self._answered: Counter[str] = Counter()
        self._idle = threading.Condition(self._lock)

    @contextmanager
    def use(self) -> Iterator[Any]:
        """The live model, for one request; it is counted until the block ends."""
        with self._lock:
            held = self._live
            held.in_flight += 1
        try:
            yield held.model
        finally:
            with self._lock:
                held.in_flight -= 1
                self._answered[held.version] += 1
                if not held.in_flight:
                    self._idle.notify_all()

    def swap(
        self, load: Callable[[], Any], version: str | None = None, gate: Gate | None = None
    ) -> str:
        """Load another model, let ``gate`` judge it, and put it in place; its version.

        All the work is done before the exchange, and outside the lock. Where loading or the gate
        raises, nothing has changed.

        Raises:
            RefusedModelError: the gate refused it. ModelError: the file cannot be loaded.
        """
        if gate is None:
            model = load()
        else:
            loaded = []

            def load_once() -> Callable:
                loaded.append(load())
                return loaded[0].predict

            gate.judge(load_once)
            model = loaded[0]
        new = _Held(model, version or str(model.version))
        with self._lock:
            self._exchange(new)
        return new.version

    def roll_back(self) -> str:
        """Put the model before the last swap in place again; it is still in memory.

        Raises:
            MonitoringError: there was no swap.
        """
        with self._lock:
            if self._before is None:
                raise MonitoringError(
                    f"There is nothing to roll back to: {self._live.version} is the first model."
                )
            self._exchange(_Held(self._before.model, self._before.version))
            return self._live.version

    def _exchange(self, new: _Held) -> None:
        self._retired = [held for held in (*self._retired, self._live) if held.in_flight]
        self._before, self._live = self._live, new

    @property
    def version(self) -> str:
        """That of the live model."""
        return self._live.version

    def in_flight(self) -> dict[str, int]:
        """Version → requests that use it now; a retired version leaves when it is at 0."""
        with self._lock:
            counts = Counter({self._live.version: self._live.in_flight})
            for held in self._retired:
                counts[held.version] += held.in_flight
            live = self._live.version
            return {v: n for v, n in counts.items() if n or v == live}

    def answered(self) -> dict[str, int]:
        """Version → requests that it has finished, those that raised among them."""
        with self._lock:
            return dict(self._answered)

    def drain(self, seconds: float = 10.0) -> bool:
        """Wait until no request uses a model that is no longer live; whether that came true."""
        with self._lock:
            return self._idle.wait_for(
                lambda: not any(held.in_flight for held in self._retired), seconds
            )
