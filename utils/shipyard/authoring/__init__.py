"""Tools of authors, teachers and maintainers: labs from solutions, grading, headless runs.

Nothing here is needed to read a lesson. The heavy libraries (nbgrader, papermill, nbconvert)
are imported by the function that needs them.
"""

from shipyard.authoring.files import AuthoringError, normalise, normalise_file, read, to_text, write
from shipyard.authoring.labs import generate_lab, learner_changed, write_lab

__all__ = [
    "AuthoringError",
    "generate_lab",
    "learner_changed",
    "normalise",
    "normalise_file",
    "read",
    "to_text",
    "write",
    "write_lab",
]
