"""Schedules of a pipeline: what each stage does in which order, and what is wrong with that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

SECONDS = {"F": 1, "B": 2}  # a backward pass has about twice the operations of a forward pass

Operations = Sequence[tuple[str, int]]  # such as ("F", 0): the forward pass of micro-batch 0


def fault(lists: Sequence[Any], count: int) -> tuple[str, str] | None:
    """(slug, facts) of the first fault in the lists of all stages, with ``count`` micro-batches."""
    for stage, given in enumerate(lists):
        found = _fault_of_list(given, count)
        if found:
            slug, fact = found
            where = f"  Stage {stage} with {count} micro-batches: {_show(given)}"
            return slug, f"{where}\n  {fact}".rstrip()
    return _fault_of_all([[(kind, m) for kind, m in given] for given in lists], count)


def _fault_of_list(given: Any, count: int) -> tuple[str, str] | None:
    """(slug, fact), if the list of one stage is wrong by itself."""
    is_pair = lambda op: isinstance(op, tuple | list) and len(op) == 2  # noqa: E731
    if not isinstance(given, list | tuple) or not all(
        is_pair(op) and op[0] in ("F", "B") and isinstance(op[1], int) for op in given
    ):
        return "wrong-form", ""
    operations = [(kind, m) for kind, m in given]
    wanted = [(kind, m) for kind in "FB" for m in range(count)]
    strange = [op for op in operations if op not in wanted]
    if strange and sorted(operations) == sorted((kind, m + 1) for kind, m in wanted):
        return "counts-from-one", ""
    if strange:
        return "no-such-micro-batch", f"{_name(strange[0])} does not exist."
    if twice := [op for op, times in Counter(operations).items() if times > 1]:
        return "operation-twice", f"{_name(twice[0])} is there twice."
    if missing := [op for op in wanted if op not in operations]:
        return "missing-operation", f"Never done: {', '.join(map(_name, missing))}"
    for m in range(count):
        if operations.index(("B", m)) < operations.index(("F", m)):
            return "backward-before-forward", f"B{m} stands before F{m}."
    return None


def _fault_of_all(lists: list[Operations], count: int) -> tuple[str, str] | None:
    """(slug, facts), if the stages together wait for ever, take too long or store too much."""
    stages = len(lists)
    start, stuck = simulate(lists)
    title = f"  {stages} stages, {count} micro-batches (F takes 1 unit of time, B takes 2):\n"
    if stuck:
        return "deadlock", title + "\n".join(stuck)
    takes = max(t + SECONDS[kind] for (_, kind, _), t in start.items())
    shortest = (count + stages - 1) * sum(SECONDS.values())
    peaks = [peak(operations) for operations in lists]
    allowed = [min(count, stages - stage) for stage in range(stages)]
    facts = (
        f"{title}{_draw(lists, start, takes)}\n\n"
        f"  time: {takes} units; possible: {shortest}\n"
        f"  activations stored at most, by stage: {peaks}; needed: {allowed}"
    )
    if takes > shortest:
        return "one-at-a-time" if max(peaks) == 1 else "bubble-too-large", facts
    if any(most > enough for most, enough in zip(peaks, allowed, strict=True)):
        forward_first = all(kind == "F" for operations in lists for kind, _ in operations[:count])
        return "gpipe" if forward_first else "too-many-activations", facts
    return None


def simulate(lists: list[Operations]) -> tuple[dict, list[str]]:
    """Start time of each (stage, kind, micro-batch); and who waits for whom, if some never start.

    Each stage does its list in order, and each operation as soon as what it needs is there.
    """
    start: dict[tuple[int, str, int], int] = {}
    free, at = [0] * len(lists), [0] * len(lists)

    def needs(stage: int, kind: str, m: int) -> tuple[int, str, int] | None:
        other = stage - 1 if kind == "F" else stage + 1
        return (other, kind, m) if 0 <= other < len(lists) else None

    moved = True
    while moved:
        moved = False
        for stage, operations in enumerate(lists):
            while at[stage] < len(operations):
                kind, m = operations[at[stage]]
                before = needs(stage, kind, m)
                if before and before not in start:
                    break
                ready = start[before] + SECONDS[kind] if before else 0
                start[stage, kind, m] = max(free[stage], ready)
                free[stage] = start[stage, kind, m] + SECONDS[kind]
                at[stage] += 1
                moved = True
    stuck = []
    for stage, operations in enumerate(lists):
        if at[stage] < len(operations):
            kind, m = operations[at[stage]]
            other, *_ = needs(stage, kind, m)
            done = _show(operations[: at[stage]])
            stuck.append(
                f"    stage {stage}: after {done} it waits to do {kind}{m}, "
                f"until stage {other} has done {kind}{m}"
            )
    return start, stuck


def peak(operations: Operations) -> int:
    """The largest number of micro-batches whose activations are stored at one time."""
    stored, most = 0, 0
    for kind, _ in operations:
        stored += 1 if kind == "F" else -1
        most = max(most, stored)
    return most


def _draw(lists: list, start: dict, takes: int) -> str:
    """A row for each stage, a column for each unit of time, dots where a stage waits."""
    rows = []
    for stage, operations in enumerate(lists):
        row = ["·"] * takes
        for kind, m in operations:
            for t in range(SECONDS[kind]):
                row[start[stage, kind, m] + t] = f"{kind}{m}"
        rows.append(f"    stage {stage}  " + " ".join(cell.ljust(2) for cell in row).rstrip())
    return "\n".join(rows)


def _name(operation: tuple[str, int]) -> str:
    return "".join(map(str, operation))


def _show(given: Any) -> str:
    if not isinstance(given, list | tuple):
        return repr(given)
    if not given:
        return "nothing"
    return " ".join(_name(op) if isinstance(op, tuple | list) else repr(op) for op in given)
