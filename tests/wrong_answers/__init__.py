"""The bank of wrong answers: what proves that a check finds mistakes and accepts other ways.

For each subject there is one module with a dict ``TASKS``. Its keys are the tasks of
``shipyard.checks.<subject>``: the key "conv2d" stands for ``check_conv2d``. Write the answers as a
learner would write them, and not with the code of the check's own `Mistake`s:

    from wrong_answers import Task

    CONV2D = Task()
    TASKS = {"conv2d": CONV2D}

    @CONV2D.fails_with("flipped-kernel")
    def turns_the_kernel_first(x, weight, ...):
        ...

    @CONV2D.passes
    def calls_torch(x, weight, ...):
        ...

``tests/test_checks.py`` finds the module by itself, and then demands:

- that every check of the lab has a task here, with at least 2 wrong and 2 correct answers;
- that every wrong answer fails with its diagnosis, and every correct one passes;
- that the untouched stub fails with "not-implemented";
- that every `Mistake` in the code of a check is made by an answer here.

A mistake of a catalogue (``mistakes/<subject>.md``) is made by its own edits in a test of its own.
Here stands a sample of them, written once more in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


def not_written(*args, **options):
    """What a generated lab holds before the learner has written anything."""
    raise NotImplementedError("Write this function, then run the check below.")


@dataclass
class Task:
    """The answers to one task: ``wrong`` maps a name to (function, diagnosis)."""

    wrong: dict[str, tuple[Callable, str]] = field(default_factory=dict)
    correct: dict[str, Callable] = field(default_factory=dict)
    stub: Callable = not_written

    def fails_with(self, diagnosis: str) -> Callable:
        """Decorator: this function is wrong, and the check must say so with ``diagnosis``."""

        def add(function: Callable) -> Callable:
            assert function.__name__ not in self.wrong, f"{function.__name__} is there twice"
            self.wrong[function.__name__] = (function, diagnosis)
            return function

        return add

    def passes(self, function: Callable) -> Callable:
        """Decorator: this function is another correct form."""
        assert function.__name__ not in self.correct, f"{function.__name__} is there twice"
        self.correct[function.__name__] = function
        return function
