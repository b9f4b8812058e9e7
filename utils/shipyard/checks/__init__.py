"""The check engine: compare a learner's function with a reference, and name the mistake.

A check calls the learner's function on several cases and compares every answer with the
reference's. Where one differs, it asks whether a known mistake would give the same answer.

    def area(height, width):
        return height * width

    @check(area)
    def check_area():
        return [Case(2, 3), Case(5, 7)]

The mistakes stand in a catalogue, ``mistakes/<subject>.md``, as edits of the reference's source
(see `shipyard.checks.catalogue`). One that no edit can express is a `Mistake`: a wrong answer as
code, together with the advice that mends it.

A check returns `Passed` or raises `CheckFailed`. `compare`, which does the work, judges answers,
never how they were made; a check that judges the method too (messages sent, calls made) calls it
by itself and brings its own counters.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import inspect
import reprlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from shipyard.checks import catalogue, changes, telling
from shipyard.checks.differences import describe, difference
from shipyard.checks.telling import CheckFailed, Passed, changed, require_signature, tensors

# What no other answer explains: these are not about values.
UNEXPLAINED = ("changed-input", "wrong-signature", "wrong-dtype", "returned-none")
PAIR_SECONDS = 1.0
CHANGE_SECONDS = 3.0


class Case:
    """One call of the function: ``Case(x, weight, stride=2)`` stands for f(x, weight, stride=2)."""

    def __init__(self, *args: Any, **options: Any):
        self.args, self.options = args, options

    def copies(self) -> tuple[tuple, dict]:
        """The arguments again, so that a function that changes its input does no harm."""
        return copy.deepcopy((self.args, self.options))

    def halved(self) -> Case | None:
        """The same call with half of every float: other numbers, lest sizes alone be remembered."""
        args, options = self.copies()
        floats = [t for t in tensors([args, options]) if "float" in str(t.dtype)]
        for tensor in floats:
            tensor /= 2
        return Case(*args, **options) if floats else None


class Elsewhere:
    """A function that lives in another process: so are learners' functions when they are graded."""

    def evaluate(self, use: Callable | None, function: Callable, args: tuple, options: dict) -> Any:
        """``use(function, *args, **options)``, done there; ``function`` is this or calls it."""
        raise NotImplementedError


def elsewhere(function: Any, depth: int = 3) -> Elsewhere | None:
    """What ``function`` is, or calls, of another process: in its closure, or bound to it."""
    if isinstance(function, Elsewhere) or not depth:
        return function if isinstance(function, Elsewhere) else None
    parts = [getattr(function, "__self__", None), getattr(function, "func", None)]
    parts += getattr(function, "args", ())  # of a functools.partial
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # not filled yet
            parts.append(cell.cell_contents)
    return next(filter(None, (elsewhere(part, depth - 1) for part in parts)), None)


class Mistake:
    """A known mistake: a slug such as "flipped-kernel", what to tell the learner, and its answers.

    ``answers`` are functions called like the candidate, each one form of the mistake. An error is
    an answer too: it explains a candidate that raises the same error.
    """

    def __init__(self, slug: str, advice: str, *answers: Callable):
        self.slug, self.advice, self.answers = slug, advice, answers


def known_mistakes(reference: Callable) -> list[Mistake]:
    """The mistakes that the catalogue of the reference's module names for it, the likeliest first.

    Raises:
        CatalogueError: the catalogue does not fit the reference.
    """
    found = []
    for entry in catalogue.entries(reference):
        answers = (catalogue.edited(reference, form) for form in entry.forms)
        found.append(Mistake(entry.slug, entry.advice, *answers))
    return found


def draws(seed: int) -> Callable[..., Tensor]:
    """A function ``draw(*shape)`` that returns seeded standard normal float64 tensors."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)


def check(
    reference: Callable, seed: int = 0, before: Callable | None = None, **settings: Any
) -> Callable[..., Callable]:
    """Decorator of a function that returns the cases: it becomes the check of ``reference``.

    ``cases(draw)`` gets a `draws` of this seed, if it has a parameter. ``before(candidate,
    reference, cases)`` may raise `CheckFailed`; ``settings`` are those of `compare`. The check is
    called with the candidate.
    """

    def decorate(cases: Callable[..., Iterable[Case]]) -> Callable[[Callable], Passed]:
        def judge(candidate: Callable) -> Passed:
            found = cases(*[draws(seed)][: len(inspect.signature(cases).parameters)])
            if before and callable(candidate):
                before(candidate, reference, found)
            return compare(candidate, reference=reference, cases=found, **settings)

        judge.__name__ = judge.__qualname__ = f"check_{reference.__name__}"
        judge.__doc__ = f"Check ``{_signature(reference)}``. {cases.__doc__ or ''}".rstrip()
        return judge

    return decorate


def _signature(function: Callable) -> str:
    return f"{function.__name__}{inspect.signature(function)}"


def compare(
    candidate: Callable,
    *,
    signature: str | None = None,
    reference: Callable,
    cases: Iterable[Case],
    mistakes: Sequence[Mistake] | None = None,
    outputs: Sequence[str] = (),
    tolerance: float = 1e-7,
    use: Callable | None = None,
    forms: Sequence[Callable] = (),
    small_changes: bool = True,
    forbidden: dict[str, str] | None = None,
) -> Passed:
    """Compare ``candidate`` with ``reference`` on ``cases``; say which of ``mistakes`` it made.

    Args:
        candidate: the learner's function.
        signature: "name(first, second=1)": how the task names the function and its arguments.
            The default is that of the reference.
        reference: the truth, called like the candidate, and written as a good learner would.
        cases: smallest first; the first case that fails is the one that is reported.
        mistakes: the most likely first. The default is what the catalogue of the reference's
            module holds for its name.
        outputs: names of the results, where the function returns a tuple.
        tolerance: largest |got − expected| / (1 + |expected|) that still counts as equal.
        use: ``use(function, *args, **options)`` returns what is compared. Give it where the task
            is not a plain function, such as a class to be built and then stepped. The default calls
            the function. A `CheckFailed` of its own says what is wrong and ends the cases. With an
            attribute ``runs_here`` it stays in this process where the function lives in another
            (`Elsewhere`).
        forms: other right ways to write the answer. Where no named mistake fits, small changes
            of the reference and of these are tried.
        small_changes: False where a changed reference may wait for ever, as ranks do, or where
            nothing is left without a name.
        forbidden: functions of torch or Python that the task does without, and what to tell who
            calls one: "conv2d", "OneCycleLR.__init__", "cross_entropy(label_smoothing)".

    Raises:
        CheckFailed: an answer is wrong, or a right one comes from a forbidden function.
    """
    signature = signature or _signature(reference)
    task = _Task(signature, reference, tuple(outputs), tolerance, use)
    if not callable(candidate):
        raise CheckFailed(
            f"{task.name}: the check needs your function itself, and got {describe(candidate)}.\n"
            f"Write its name without brackets: check_{task.name}({task.name}).",
            "not-a-function",
        )
    cases, attempts = list(cases), []
    if use:  # calls by name what a case names, if it has a default, and by place all else
        parameters = inspect.signature(reference).parameters
        named = {name for case in cases for name in case.options}
        by_name = {
            n: None for n, p in parameters.items() if p.default is not p.empty and n in named
        }
        by_place = [name for name in parameters if name not in by_name]
        require_signature(candidate, signature, by_place, by_name)
    for case in cases:
        attempts.append(task.attempt(candidate, case))
        if isinstance(attempts[-1].error, CheckFailed):
            break
    failing = [attempt for attempt in attempts if attempt.slug]
    if cases and not failing and (again := cases[0].halved()):
        attempts.append(task.attempt(candidate, again))
        failing = attempts[-1:] if attempts[-1].slug else []
    if not failing:
        if name := task.forbidden_call(candidate, cases, forbidden or {}):
            text = f"{task.name} is right, but it calls torch's {name}."
            raise CheckFailed(f"{text}\n\n{telling.paragraph(forbidden[name])}", "forbidden-call")
        return Passed(task.name, len(cases))
    first = failing[0]
    number = attempts.index(first) + 1
    if isinstance(first.error, CheckFailed):
        where = f"It happened in case {number}:\n{task.show_call(first.case)}"
        text = telling.limited(f"{task.name} is not right yet.", str(first.error), where)
        raise CheckFailed(text, first.slug) from first.error.__cause__
    if first.slug == "not-implemented":
        raise CheckFailed(first.text, first.slug) from first.error
    attempts = [attempt for attempt in attempts if not isinstance(attempt.error, CheckFailed)]

    mistakes = known_mistakes(reference) if mistakes is None else mistakes
    references = (reference, *forms) if small_changes else ()
    with warnings.catch_warnings(action="ignore"):  # an edit may call what is deprecated
        slug, verdict = task.verdict(candidate, attempts, mistakes, references)
    count = f"{sum(bool(a.slug) for a in attempts)} of {len(attempts)} cases fail"
    parts = [f"{task.name} is not right yet: {count}.", *verdict]
    parts.append(f"The first that fails is case {number}:\n{task.show_call(first.case)}")
    raise CheckFailed(telling.limited(*parts, first.text), slug or first.slug) from first.error


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

    def same(self, expected: Any, got: Any) -> bool:
        return not difference(expected, got, tolerance=self.tolerance, brief=True)

    def answer(self, function: Callable, args: tuple, options: dict) -> Any:
        there = elsewhere(function)
        if there and not getattr(self.use, "runs_here", False):
            return there.evaluate(self.use, function, args, options)
        return self.use(function, *args, **options) if self.use else function(*args, **options)

    def attempt(self, candidate: Callable, case: Case) -> _Attempt:
        """Call the candidate with copies of the case's arguments, and judge its answer."""
        attempt = _Attempt(case, self.answer(self.reference, *case.copies()))
        args, options = case.copies()
        if not self.use:  # which has its own way to call it
            attempt.text = telling.misfit(candidate, self.signature, args, options, "Your function")
        if attempt.text:
            attempt.slug = "wrong-signature"
            return attempt
        try:
            attempt.got = self.answer(candidate, args, options)
        except CheckFailed as failure:  # of a check's own ``use``
            attempt.error, attempt.slug = failure, failure.diagnosis
            return attempt
        except Exception as error:
            attempt.error = error
            attempt.slug, attempt.text = telling.explain_error(error, self.name)
            return attempt
        if changed((case.args, case.options), (args, options)):
            attempt.slug = "changed-input"
            attempt.text = (
                f"{self.name} changed its input. Whoever calls it still needs those values: write "
                "into a new tensor (x.clone(), x + 1). On an argument, avoid x += 1, x[...] = 1 "
                "and methods whose name ends in _. A slice of x is a view, a part of x itself."
            )
            return attempt
        label = "The result" if self.use else f"{self.name}(...)"
        found = difference(attempt.expected, attempt.got, label, self.outputs, self.tolerance)
        attempt.slug, attempt.text = found or ("", "")
        return attempt

    def verdict(
        self,
        candidate: Callable,
        attempts: list[_Attempt],
        mistakes: Sequence[Mistake],
        references: tuple[Callable, ...],
    ) -> tuple[str, list[str]]:
        """(slug, paragraphs): which mistake it is; ("", []) where nothing is known of it."""
        failing = [attempt for attempt in attempts if attempt.slug]
        mistake, explained = None, 0
        for known, answer in ((m, answer) for m in mistakes for answer in m.answers):
            count = self.explained(answer, attempts)
            if count > explained:
                mistake, explained = known, count
            if explained == len(failing):
                break  # no later one can explain more, and to try it may take long
        share = f"{explained} of the {len(failing)} cases that fail"
        if explained and 2 * explained >= len(failing):
            parts = [f"What went wrong ({mistake.slug}):\n{telling.paragraph(mistake.advice)}"]
            if explained < len(failing):
                parts.append(f"This explains {share}. Mend it, then run the check again.")
            return mistake.slug, parts
        # what follows explains all values, and never an exception
        values = all(a.error is None and a.slug not in UNEXPLAINED for a in attempts)
        if values and (both := self.two_mistakes(attempts)):
            return both
        if self.is_unsteady(candidate, failing[0]):
            return "", [
                "Called again with the same arguments, it gave another answer. It uses random "
                "numbers, memory that was never filled (torch.empty), or a variable from outside."
            ]
        if values and (change := self.small_change(references, attempts)):
            slug = failing[0].slug
            return "small-change" if slug == "wrong-values" else slug, [change]
        if explained:
            title = f"Is it this ({mistake.slug})? It would explain {share}."
            return mistake.slug, [f"{title}\n{telling.paragraph(mistake.advice)}"]
        return "", []

    def forbidden_call(
        self, candidate: Callable, cases: list[Case], forbidden: Iterable[str]
    ) -> str | None:
        """The first of these functions of torch, or builtins, that it calls in the first case.

        A function of the learner's may have the same name. "name(argument)": whether it is called
        with that argument, and not with 0 or None.
        """
        wanted = [(name, *name.rstrip(")").partition("(")[::2]) for name in forbidden]
        functions, seen = {function for _, function, _ in wanted}, []

        def profile(frame: FrameType, event: str, builtin: Any) -> None:
            code, of_torch = frame.f_code, frame.f_code.co_filename.startswith(telling.TORCH)
            if event == "c_call" and builtin.__name__ in functions:
                seen.append((builtin.__name__, {}))
            elif event == "call" and of_torch and code.co_qualname in functions:
                seen.append((code.co_qualname, dict(frame.f_locals)))

        if not (wanted and cases):
            return None
        before = sys.getprofile(), threading.getprofile()
        args, options = cases[0].copies()
        sys.setprofile(profile)
        threading.setprofile(profile)  # a check may use threads of its own
        try:
            self.answer(candidate, args, options)
        finally:
            sys.setprofile(before[0])
            threading.setprofile(before[1])
        for name, function, argument in wanted:
            if any(f == function and (not argument or given.get(argument)) for f, given in seen):
                return name
        return None

    def small_change(self, references: Sequence[Callable], attempts: list[_Attempt]) -> str | None:
        """In words, the small change of a reference that explains every case."""
        args, options = attempts[-1].case.copies()
        kinds = {
            form: changes.kinds_of_names(form, lambda form=form: self.answer(form, args, options))
            for form in references
            if "<" not in form.__qualname__  # of a module: its source can be changed
        }
        fits = functools.partial(self.explains_all, attempts)
        return changes.explain(kinds, fits, CHANGE_SECONDS)

    def explains_all(self, attempts: list[_Attempt], function: Callable) -> bool:
        """Whether ``function`` answers all cases as the candidate did."""
        for attempt in sorted(attempts, key=lambda attempt: not attempt.slug):  # failing ones first
            try:
                answer = self.answer(function, *attempt.case.copies())
            except Exception:
                return False
            if not self.same(answer, attempt.got if attempt.slug else attempt.expected):
                return False
        return True

    def is_unsteady(self, candidate: Callable, attempt: _Attempt) -> bool:
        """Whether the candidate answers the same call in another way the second time."""
        if attempt.got is None:
            return False
        again = self.attempt(candidate, attempt.case)
        return bool(again.error or difference(attempt.got, again.got, brief=True))

    def explained(self, answer: Callable, attempts: list[_Attempt]) -> int:
        """How many failing cases a mistake explains; 0 unless it explains the first of them."""
        if any(attempt.slug == "changed-input" for attempt in attempts):
            return 0  # a mistake explains values, and what is wrong here is not a value
        count = 0
        for attempt in sorted(attempts, key=lambda attempt: not attempt.slug):  # failing ones first
            error, wrong = None, attempt.expected
            try:
                wrong = self.answer(answer, *attempt.case.copies())
            except Exception as raised:
                error = raised
            harmless = self.same(attempt.expected, wrong)
            if not attempt.slug and not harmless:
                return 0  # the mistake would have shown here, and the candidate was right
            if attempt.error:
                # its text too, unless values have already shown that it is this mistake
                count += repr(attempt.error) == repr(error) or (
                    count > 0 and type(attempt.error) is type(error)
                )
            elif attempt.slug and not harmless:
                count += self.same(wrong, attempt.got)
            if attempt.slug and not count:
                return 0
        return count

    def two_mistakes(self, attempts: list[_Attempt]) -> tuple[str, list[str]] | None:
        """(slug, paragraphs) of two named mistakes that together explain every case."""
        known = catalogue.entries(self.reference)
        for entries, function in catalogue.pairs(self.reference, known, PAIR_SECONDS):
            if self.explains_all(attempts, function):
                advice = "\n".join(telling.paragraph(f"{e.slug}: {e.advice}") for e in entries)
                slugs = [entry.slug for entry in entries]
                return "+".join(slugs), [f"Two mistakes ({' and '.join(slugs)}):\n{advice}"]
        return None

    def show_call(self, case: Case) -> str:
        """The call as the learner would write it, then each tensor's shape, one a line.

        Where the check makes several calls of its own (``use``), what it makes them of.
        """
        if self.use:
            _, *names = inspect.signature(self.use).parameters
        else:
            names = [a.arg for a in ast.parse(f"def {self.signature}: ...").body[0].args.args]
        given = dict(zip(names, case.args, strict=False)) | case.options
        large = {name: value for name, value in given.items() if tensors(value)}
        call = [n if n in large else f"{n}={reprlib.repr(v)}" for n, v in given.items()]
        width = max(map(len, large), default=0)
        lines = [
            f"    {name:<{width}}  {telling.describe_shapes(value)}"
            for name, value in large.items()
        ]
        title = f"with {', '.join(call)}" if self.use else f"{self.name}({', '.join(call)})"
        return "\n".join([f"  {title}", *lines])
