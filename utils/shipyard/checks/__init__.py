"""The check engine: compare a learner's function with a reference, and name the mistake.

A check calls the learner's function on several cases and compares every answer with the
reference's. Where one differs, it asks whether a known mistake would give the same answer: a
`Mistake` is a wrong answer as code, together with the advice that mends it.

    def check_area(candidate):
        return compare(
            candidate,
            signature="area(height, width)",
            reference=lambda height, width: height * width,
            cases=[Case(2, 3), Case(5, 7)],
            mistakes=[Mistake("perimeter", "You added ...", lambda h, w: 2 * (h + w))],
        )

A check returns `Passed` or raises `CheckFailed`. `compare` judges answers, never how they were
made; a check that judges the method too (messages sent, calls made) brings its own counters.
"""

from __future__ import annotations

import ast
import copy
import html
import inspect
import reprlib
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shipyard.checks.differences import describe, difference

_LIBRARIES = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


class CheckFailed(AssertionError):  # noqa: N818  (it says what happened, as in pytest.Failed)
    """The answer is not right yet. ``diagnosis`` is a short slug that names the mistake."""

    def __init__(self, message: str, diagnosis: str = "failed"):
        super().__init__(message)
        self.diagnosis = diagnosis

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message alone, since the frames are those of this engine."""
        first, *rest = str(self).splitlines()
        return [f"\x1b[31m{first}\x1b[0m", *rest]


@dataclass(frozen=True)
class Passed:
    """The result of a check that found nothing wrong."""

    task: str
    cases: int

    def __repr__(self) -> str:
        cases = f"all {self.cases} cases" if self.cases != 1 else "its one case"
        return f"✓ {self.task}: correct in {cases}."

    def _repr_html_(self) -> str:
        return f"<span style='color:#009E73'>✓</span> {html.escape(repr(self)[2:])}"


class Case:
    """One call of the function: ``Case(x, weight, stride=2)`` stands for f(x, weight, stride=2)."""

    def __init__(self, *args: Any, **options: Any):
        self.args, self.options = args, options

    def copies(self) -> tuple[tuple, dict]:
        """The arguments again, so that a function that changes its input does no harm."""
        return copy.deepcopy((self.args, self.options))


class Mistake:
    """A known mistake: what it is called, what to tell the learner, and what it answers.

    Args:
        slug: the diagnosis, such as "flipped-kernel".
        advice: which mistake it is, why it is wrong, and how to think about it.
        answers: functions called like the candidate. Each is one form of the mistake. An error
            is an answer too: it explains a candidate that raises the same error.
    """

    def __init__(self, slug: str, advice: str, *answers: Callable):
        self.slug, self.advice, self.answers = slug, advice, answers


def draws(seed: int) -> Callable[..., Tensor]:
    """A function ``draw(*shape)`` that returns seeded standard normal float64 tensors."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)


def compare(
    candidate: Callable,
    *,
    signature: str,
    reference: Callable,
    cases: Iterable[Case],
    mistakes: Sequence[Mistake] = (),
    outputs: Sequence[str] = (),
    tolerance: float = 1e-7,
    use: Callable | None = None,
) -> Passed:
    """Compare ``candidate`` with ``reference`` on ``cases``; say which of ``mistakes`` it made.

    Args:
        candidate: the learner's function.
        signature: "name(first, second=1)": how the task names the function and its arguments.
        reference: the truth, called like the candidate.
        cases: smallest first; the first case that fails is the one that is reported.
        mistakes: the most likely first.
        outputs: names of the results, where the function returns a tuple.
        tolerance: largest |got − expected| / (1 + |expected|) that still counts as equal.
        use: ``use(function, *args, **options)`` returns what is compared. Give it where the task
            is not a plain function, such as a class to be built and then stepped; inputs may then
            change. The default calls the function.

    Raises:
        CheckFailed: an answer is wrong.
    """
    task = _Task(signature, reference, tuple(outputs), tolerance, use)
    if not callable(candidate):
        raise CheckFailed(
            f"{task.name}: the check needs your function itself, and got {describe(candidate)}.\n"
            f"Write its name without brackets: check_{task.name}({task.name}).",
            "not-a-function",
        )
    attempts = [task.attempt(candidate, case) for case in cases]
    failing = [attempt for attempt in attempts if attempt.slug]
    if not failing:
        return Passed(task.name, len(attempts))
    first = failing[0]
    if first.slug == "not-implemented":
        raise CheckFailed(first.text, first.slug) from first.error

    slug, parts = first.slug, [first.text]
    found = [(mistake, task.explained(mistake, attempts)) for mistake in mistakes]
    mistake, explained = max(found, key=lambda pair: pair[1], default=(None, 0))
    if explained:
        slug = mistake.slug
        parts.append(f"What went wrong ({slug}):\n{_paragraph(mistake.advice)}")
    if 0 < explained < len(failing):
        parts.append(
            f"This explains {explained} of the {len(failing)} cases that fail. Mend it, then run "
            "the check again."
        )
    if not explained and task.is_unsteady(candidate, first):
        parts.append(
            "Called again with the same arguments, it gave another answer. It uses random numbers, "
            "memory that was never filled (torch.empty), or a variable from outside."
        )
    title = f"{task.name} is not right yet: {len(failing)} of {len(attempts)} cases fail."
    title += f" The first is case {attempts.index(first) + 1}:"
    raise CheckFailed(
        "\n\n".join([title, task.show_call(first.case), *parts]), slug
    ) from first.error


@dataclass(eq=False)
class _Attempt:
    """What the candidate did with one case; ``slug`` is empty where it was right."""

    case: Case
    expected: Any
    got: Any = None
    slug: str = ""
    text: str = ""
    error: Exception | None = None


@dataclass(frozen=True)
class _Task:
    signature: str
    reference: Callable
    outputs: tuple[str, ...]
    tolerance: float
    use: Callable | None

    @property
    def name(self) -> str:
        return self.signature.partition("(")[0]

    def answer(self, function: Callable, args: tuple, options: dict) -> Any:
        return self.use(function, *args, **options) if self.use else function(*args, **options)

    def attempt(self, candidate: Callable, case: Case) -> _Attempt:
        """Call the candidate with copies of the case's arguments, and judge its answer."""
        attempt = _Attempt(case, self.answer(self.reference, *case.copies()))
        args, options = case.copies()
        misfit = None if self.use else _misfit(candidate, args, options)
        if misfit:
            attempt.slug = "wrong-signature"
            attempt.text = f"Your function cannot be called like this: {misfit}.\n"
            attempt.text += f"The task asks for {self.signature}."
            return attempt
        try:
            attempt.got = self.answer(candidate, args, options)
        except Exception as error:
            attempt.error = error
            attempt.slug, attempt.text = _explain_error(error, self.name)
            return attempt
        if self.use is None and _changed((case.args, case.options), (args, options)):
            attempt.slug = "changed-input"
            attempt.text = (
                f"{self.name} changed its input. Whoever calls it still needs those values: write "
                "into a new tensor (x.clone(), x + 1). On an argument, avoid x += 1, x[...] = 1 "
                "and methods whose name ends in _."
            )
            return attempt
        label = "The result" if self.use else f"{self.name}(...)"
        found = difference(attempt.expected, attempt.got, label, self.outputs, self.tolerance)
        attempt.slug, attempt.text = found or ("", "")
        return attempt

    def is_unsteady(self, candidate: Callable, attempt: _Attempt) -> bool:
        """Whether the candidate answers the same call in another way the second time."""
        if attempt.got is None:
            return False
        again = self.attempt(candidate, attempt.case)
        return bool(again.error or difference(attempt.got, again.got))

    def explained(self, mistake: Mistake, attempts: list[_Attempt]) -> int:
        """How many failing cases the mistake explains; 0 unless it explains the first of them."""
        return max(self._explained(answer, attempts) for answer in mistake.answers)

    def _explained(self, answer: Callable, attempts: list[_Attempt]) -> int:
        if any(attempt.slug == "changed-input" for attempt in attempts):
            return 0  # a mistake explains values, and what is wrong here is not a value
        count = 0
        for attempt in sorted(attempts, key=lambda attempt: not attempt.slug):  # failing ones first
            error, wrong = None, attempt.expected
            try:
                wrong = self.answer(answer, *attempt.case.copies())
            except Exception as raised:
                error = raised
            harmless = not difference(attempt.expected, wrong, tolerance=self.tolerance)
            if not attempt.slug and not harmless:
                return 0  # the mistake would have shown here, and the candidate was right
            if attempt.error:
                count += repr(attempt.error) == repr(error)  # its type and its text
            elif attempt.slug and not harmless:
                count += not difference(wrong, attempt.got, tolerance=self.tolerance)
            if attempt.slug and not count:
                return 0
        return count

    def show_call(self, case: Case) -> str:
        """The call as the learner would write it, then each tensor's shape, one a line."""
        names = [a.arg for a in ast.parse(f"def {self.signature}: ...").body[0].args.args]
        given = dict(zip(names, case.args, strict=False)) | case.options
        tensors = {name: list(_tensors(name, value)) for name, value in given.items()}
        call = [n if tensors[n] else f"{n}={reprlib.repr(v)}" for n, v in given.items()]
        found = [pair for pairs in tensors.values() for pair in pairs]
        width = max((len(label) for label, _ in found), default=0)
        lines = [f"    {label:<{width}}  {describe(tensor)}" for label, tensor in found]
        return "\n".join([f"  {self.name}({', '.join(call)})", *lines])


def _tensors(label: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each tensor in ``value``, with the expression that picks it."""
    if isinstance(value, Tensor | np.ndarray):
        yield label, value
    elif isinstance(value, tuple | list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _tensors(f"{label}[{key!r}]", item)


def _misfit(candidate: Callable, args: tuple, options: dict) -> TypeError | None:
    """Why the candidate does not take these arguments."""
    try:
        signature = inspect.signature(candidate)
    except ValueError:  # a builtin, such as torch's own functions, does not tell
        return None
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        return error
    return None


def _explain_error(error: Exception, task: str) -> tuple[str, str]:
    """(slug, text) for an exception that the candidate raised."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f for f in frames if f.line and not f.filename.startswith(_LIBRARIES)]
    # torch raises NotImplementedError too, for an operation that a type or a device lacks
    if isinstance(error, NotImplementedError) and (not lines or lines[-1].line[:5] == "raise"):
        # a finished function may call one of an earlier task that is still a stub
        unwritten = f"{task} calls {lines[-1].name}, which" if len(lines) > 1 else task
        return "not-implemented", (
            f"{unwritten} is not written yet: it raises NotImplementedError.\n"
            "Replace that line by your code, run the cell, then run this check again."
        )
    text = f"It raised {type(error).__name__}: {error}"
    if lines:
        text += f"\nThe error came from line {lines[-1].lineno} of your code:\n    {lines[-1].line}"
    return "raised-error", text


def _changed(before: Any, after: Any) -> bool:
    """Whether a tensor, number or text in ``after`` is no longer as it was."""
    if isinstance(before, dict):
        before, after = list(before.items()), list(after.items())
    if isinstance(before, tuple | list):
        return len(before) != len(after) or any(map(_changed, before, after))
    comparable = isinstance(before, Tensor | np.ndarray | int | float | str)
    return comparable and difference(before, after) is not None


def _paragraph(text: str) -> str:
    indent = {"initial_indent": "  ", "subsequent_indent": "  "}
    return textwrap.fill(" ".join(text.split()), width=92, **indent)
