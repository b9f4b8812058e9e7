"""Tools of authors, teachers and maintainers: labs from solutions, grading, headless runs.

Nothing here is needed to read a lesson. The heavy libraries (nbgrader, papermill, nbconvert)
are imported by the function that needs them.
"""

from shipyard.authoring.contents import dead_links, stale_contents
from shipyard.authoring.feedback import task_statistics, write_feedback
from shipyard.authoring.files import normalise, normalise_file, read, to_text, write
from shipyard.authoring.grading import (
    Score,
    TaskScore,
    grade,
    grade_all,
    with_short_names,
    write_marks,
)
from shipyard.authoring.labs import generate_lab, learner_changed, write_lab
from shipyard.authoring.running import (
    CellError,
    Parameter,
    find_notebook,
    known_parameters,
    parse_parameter,
    run_notebook,
)
from shipyard.authoring.series import (
    SeriesResult,
    failures,
    run_folder,
    run_series,
    save_outputs,
    write_index,
)
from shipyard.errors import AuthoringError

__all__ = [
    "AuthoringError",
    "CellError",
    "Parameter",
    "Score",
    "SeriesResult",
    "TaskScore",
    "dead_links",
    "failures",
    "find_notebook",
    "generate_lab",
    "grade",
    "grade_all",
    "known_parameters",
    "learner_changed",
    "normalise",
    "normalise_file",
    "parse_parameter",
    "read",
    "run_folder",
    "run_notebook",
    "run_series",
    "save_outputs",
    "stale_contents",
    "task_statistics",
    "to_text",
    "with_short_names",
    "write",
    "write_feedback",
    "write_index",
    "write_lab",
    "write_marks",
]
