# For a course of nbgrader: copy this file into the course's folder, and solutions/ to source/.
# docs/teaching.md shows the commands.
from shipyard.authoring.labs import CODE_STUB, TEXT_STUB
from shipyard.authoring.running import QUIET_KERNEL

c = get_config()  # noqa: F821  (nbgrader gives it)

# What a learner sees is what stands in labs/.
c.ClearSolutions.code_stub = {"python": CODE_STUB}
c.ClearSolutions.text_stub = TEXT_STUB
# nbgrader stops a cell after 30 seconds; the first one imports PyTorch, and a disk may be cold.
c.ExecutePreprocessor.timeout = 120
c.ExecutePreprocessor.extra_arguments = QUIET_KERNEL
