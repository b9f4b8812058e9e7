"""The rules of the house, read from the code: who may import whom, and how a lesson is built.

Each rule is a function that returns the problems it finds, and each is shown bad examples
below: a rule that cannot fail is no rule.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from shipyard.authoring import contents, files, setup_cell

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "utils" / "shipyard"
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
LABS = sorted((ROOT / "labs").glob("*.ipynb"))
PYTHON_FILES = sorted(
    path
    for folder in ("utils", "tests", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if "build" not in path.relative_to(ROOT).parts
)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- Who may import whom --------------------------------------------------------------------

EVERYTHING = {"*"}
# Stands for every module that has no line of its own: a subject's mathematics, on torch alone.
MATHEMATICS = "mathematics"
# Module or subpackage → the modules of shipyard, and the libraries, that it may import.
# Python's own library and `errors` are free to all.
# A new module that needs more than torch needs a line here and in the design.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "__init__": (set(), set()),
    "errors": (set(), set()),
    "processor": (set(), {"torch"}),
    "runtime": ({"processor"}, {"torch", "numpy"}),
    "number_formats": ({"runtime"}, {"torch"}),
    MATHEMATICS: (set(), {"torch"}),
    "data": (
        {"runtime", "data"},
        {"torch", "torchvision", "numpy", "PIL", "filelock", "httpx", "tqdm"},
    ),
    "text": ({"runtime"}, {"torch", "filelock", "httpx", "tqdm"}),
    "models": ({MATHEMATICS}, {"torch"}),
    "generation": ({"models", MATHEMATICS}, {"torch"}),
    "training": ({"runtime", "training"}, {"torch", "filelock", "tqdm"}),
    "metrics": ({"runtime"}, {"torch", "tqdm"}),
    "recipes": (
        {"runtime", "number_formats", "data", "models", "training", "metrics"},
        {"torch", "torchvision", "PIL"},
    ),
    "pretrained": (
        {"runtime", "number_formats", "data", "text", "models", "training", "metrics"},
        {"torch"},
    ),
    "compression": (
        {"runtime", "processor", "metrics", "compression"},
        {"torch", "torch_pruning", "onnx", "onnxruntime"},
    ),
    "distributed": ({"runtime", "number_formats", "training", "distributed"}, {"torch"}),
    "onnx_export": ({"runtime"}, {"torch", "numpy", "onnx", "onnxscript", "onnxruntime"}),
    "serving": (
        {"serving"},
        {"onnxruntime", "numpy", "PIL", "fastapi", "starlette", "uvicorn", "pydantic_core"},
    ),
    "monitoring": (
        {"monitoring", "serving"},
        {"numpy", "PIL", "onnxruntime", "prometheus_client", "mlflow", "river"},
    ),
    "plots": (
        {MATHEMATICS},
        {"matplotlib", "cycler", "IPython", "ipywidgets", "numpy", "PIL", "torch"},
    ),
    "drawings": ({"plots", "drawings"}, {"matplotlib", "numpy"}),
    "explorers": (
        {MATHEMATICS, "compression", "plots", "explorers"},
        {"matplotlib", "IPython", "ipywidgets", "numpy", "PIL", "torch"},
    ),
    "checks": ({"checks"}, {"torch", "numpy", "IPython", "onnx", "onnxruntime"}),
    "remote": ({"checks"}, {"torch", "numpy"}),  # learners' functions in another process
    "authoring": (
        {"authoring", "checks", "remote"},
        {"nbformat", "nbclient", "nbconvert", "papermill", "nbgrader", "IPython", "traitlets"},
    ),
    "sweeps": (
        {"authoring", "plots", "runtime", "sweeps"},
        {"distributed", "filelock", "matplotlib", "rich", "tqdm"},
    ),
    "cli": (EVERYTHING, {"typer", "rich"}),
}


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node.lineno, ast.unparse(name).strip("'")) for name in node.args[:1])


def forbidden_imports(module: str, source: str, modules: set[str]) -> list[str]:
    """Imports in ``source`` that the table does not allow to ``module``."""
    ours, libraries = MAY_IMPORT.get(module, MAY_IMPORT[MATHEMATICS])
    problems = []
    for line, name in imports_of(ast.parse(source)):
        first, second, *_ = [*name.split("."), ""]
        if name.startswith("."):
            problems.append(f"line {line}: relative import {name}")
        elif first == "shipyard":
            kind = second if second in MAY_IMPORT else MATHEMATICS
            wrong = second in modules and kind not in ours | {"errors"} and ours != EVERYTHING
            if wrong:
                problems.append(f"line {line}: {module} may not import shipyard.{second}")
        elif first not in sys.stdlib_module_names and first not in libraries:
            problems.append(f"line {line}: {module} may not import {first}")
    return problems


def package_modules() -> dict[str, list[Path]]:
    """Module or subpackage of shipyard → its files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def test_every_line_of_the_table_belongs_to_a_module():
    assert set(MAY_IMPORT) - {MATHEMATICS} <= set(package_modules())


@pytest.mark.parametrize("module", package_modules())
def test_a_module_imports_only_what_its_row_of_the_table_allows(module):
    modules = set(package_modules())
    problems = [
        f"{named(path)} {problem}"
        for path in package_modules()[module]
        for problem in forbidden_imports(module, path.read_text(encoding="utf-8"), modules)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("serving", "import torch"),
        ("serving", "def f():\n    import torch.nn"),
        ("serving", "from shipyard import runtime"),
        ("serving", "from shipyard.onnx_export import export"),
        ("serving", "import importlib\nimportlib.import_module('torch')"),
        ("monitoring", "import torch"),
        ("convolution", "from torchvision import models"),
        ("training", "from shipyard import data"),
        ("training", "from shipyard.models import LeNet"),
        ("checks", "from shipyard.convolution import conv2d"),
        ("checks", "from ..convolution import conv2d"),
        ("authoring", "from shipyard import runtime"),
        ("authoring", "import torch"),
        ("__init__", "import numpy"),
        ("brand_new", "import numpy"),
        ("brand_new", "from shipyard import runtime"),
    ],
)
def test_the_import_rule_finds_forbidden_imports(module, source):
    assert forbidden_imports(module, source, set(package_modules()))


def test_the_import_rule_allows_what_the_table_allows():
    modules = set(package_modules())
    source = "import math, torch\nfrom shipyard import runtime, __version__"
    assert forbidden_imports("data", source, modules) == []
    assert forbidden_imports("brand_new", "import math, torch", modules) == []
    assert forbidden_imports("explorers", "from shipyard import convolution", modules) == []


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )


def test_importing_shipyard_alone_imports_no_library():
    code = """
import sys, time
before, start = set(sys.modules), time.perf_counter()
import shipyard
print(f"{(time.perf_counter() - start) * 1000:.1f} ms")
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    seconds, modules = run_python(code).stdout.splitlines()
    print(f"import shipyard: {seconds}")
    assert set(modules.split()) - set(sys.stdlib_module_names) == {"shipyard"}


@pytest.mark.parametrize("module", ["serving", "monitoring"])
def test_what_runs_beside_the_server_never_imports_torch_not_even_indirectly(module):
    code = f"import sys; from shipyard import {module}; print('torch' in sys.modules)"
    assert run_python(code).stdout.split()[-1] == "False"


def test_the_command_line_imports_its_commands_lazily():
    code = (
        "import sys; from shipyard import cli; "
        "print(*{'torch', 'numpy', 'nbformat', 'papermill'} & set(sys.modules))"
    )
    assert run_python(code).stdout.split() == []


# --- Rules for all Python code, notebooks too -------------------------------------------------


def edits_sys_path(tree: ast.AST) -> list[int]:
    """Lines that change ``sys.path``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("sys.path."):
            found.append(node.lineno)
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(ast.unparse(target).startswith("sys.path") for target in targets):
                found.append(node.lineno)
    return found


def star_imports(tree: ast.AST) -> list[int]:
    """Lines with ``from x import *``."""
    return [line for line, name in imports_of(tree) if name.endswith(".*")]


def global_warning_filters(tree: ast.AST) -> list[int]:
    """Lines that silence warnings outside a ``with warnings.catch_warnings()`` block."""
    found = []

    def visit(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.With):
            guarded = guarded or any("catch_warnings" in ast.unparse(i) for i in node.items)
        if isinstance(node, ast.Call) and not guarded:
            called = ast.unparse(node.func)
            if called.split(".")[-1] in ("filterwarnings", "simplefilter"):
                found.append(node.lineno)
        for child in ast.iter_child_nodes(node):
            visit(child, guarded)

    visit(tree, False)
    return found


def fixed_devices(tree: ast.AST) -> list[int]:
    """Lines that move something to a GPU by name: ``.cuda()`` or ``.to("cuda")``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            first = node.args[0] if node.args else None
            to_cuda = isinstance(first, ast.Constant) and str(first.value).startswith("cuda")
            if node.func.attr == "cuda" or (node.func.attr == "to" and to_cuda):
                found.append(node.lineno)
    return found


CODE_RULES: dict[Callable[[ast.AST], list[int]], list[str]] = {
    edits_sys_path: [
        "import sys\nsys.path.insert(0, '..')",
        "import sys\nsys.path += ['..']",
        "import sys\nsys.path = []",
        "import sys\nsys.path[:0] = ['..']",
    ],
    star_imports: ["from torch import *", "def f():\n    from math import *"],
    global_warning_filters: [
        "import warnings\nwarnings.filterwarnings('ignore')",
        "from warnings import simplefilter\nsimplefilter('ignore')",
    ],
    fixed_devices: ["model.cuda()", "x = x.to('cuda')", "x.to('cuda:0', non_blocking=True)"],
}
GOOD_CODE = """
import sys, warnings, torch
print(sys.path, torch.cuda.is_available())
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
x = torch.zeros(2).to(run.device)
"""


@pytest.mark.parametrize("rule", CODE_RULES, ids=lambda rule: rule.__name__)
def test_each_code_rule_finds_its_bad_examples_and_no_good_one(rule):
    assert not rule(ast.parse(GOOD_CODE))
    for source in CODE_RULES[rule]:
        assert rule(ast.parse(source)), source


@pytest.mark.parametrize("rule", CODE_RULES, ids=lambda rule: rule.__name__)
def test_no_python_file_breaks_a_code_rule(rule):
    problems = []
    for path in PYTHON_FILES:
        if rule is fixed_devices and path.is_relative_to(ROOT / "tests"):
            continue  # a test marked gpu may name the device
        lines = rule(ast.parse(path.read_text(encoding="utf-8")))
        problems += [f"{named(path)}:{line} {rule.__name__}" for line in lines]
    assert not problems, "\n".join(problems)


# --- Rules for notebooks ----------------------------------------------------------------------

MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(work|root|home|tmp|Users|opt|mnt)/\w")
DATA_URI = re.compile(r"data:[\w/]+;base64,[\w+/=]+")
LARGEST = 2_000_000  # bytes


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def line_count(cell: NotebookNode) -> int:
    return contents.lines_of_code(cell.source)


def tree_of(cell: NotebookNode) -> ast.Module:
    """The cell's code as a tree; magics such as %pip become the calls that they stand for."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def prose_per_line(notebook: NotebookNode) -> float:
    """Words of prose (no code, no formulas) for each line of code."""
    texts = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    words = sum(map(contents.words_of_prose, texts))
    return words / max(1, sum(map(line_count, code_cells(notebook))))


def texts_of(notebook: NotebookNode) -> Iterator[tuple[int, str]]:
    """(cell number, text) of all that a reader can read: sources and outputs, no pictures."""
    for number, cell in enumerate(notebook.cells, start=1):
        yield number, cell.source
        for output in cell.get("outputs", ()):
            yield number, output.get("text", "") + "\n".join(output.get("traceback", ()))
            for mime, data in output.get("data", {}).items():
                if mime.startswith("text/"):
                    yield number, DATA_URI.sub("data:", str(data))


def images_of(cell: NotebookNode) -> list[NotebookNode]:
    """The displays of a cell that show a picture."""
    displays = [o for o in cell.get("outputs", ()) if "data" in o]
    return [o for o in displays if image_mimes(o) or "<img " in str(o.data.get("text/html", ""))]


def image_mimes(output: NotebookNode) -> list[str]:
    return [mime for mime in output.data if mime.startswith("image/")]


def broken_code_rules(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {number}, line {line}: {rule.__name__}"
        for number, cell in enumerate(notebook.cells, start=1)
        if cell.cell_type == "code"
        for rule in CODE_RULES
        for line in rule(tree_of(cell))
    ]


def bare_comparisons(notebook: NotebookNode) -> list[str]:
    """``a == b`` alone checks nothing: nobody fails when it is False."""
    return [
        f"cell {number}, line {statement.lineno}: {ast.unparse(statement)} asserts nothing"
        for number, cell in enumerate(notebook.cells, start=1)
        if cell.cell_type == "code"
        for statement in ast.walk(tree_of(cell))
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Compare)
    ]


def cells_over_budget(notebook: NotebookNode) -> list[str]:
    """Median 3 to 8 lines, 9 of 10 at most 22, none over 40."""
    lengths = [line_count(cell) for cell in code_cells(notebook)]
    median = statistics.median(lengths)
    short = sum(length <= 22 for length in lengths) / len(lengths)
    problems = [f"a code cell has {length} lines, over 40" for length in lengths if length > 40]
    if not 3 <= median <= 8:
        problems.append(f"the median code cell has {median:g} lines, not 3 to 8")
    if short < 0.9:
        problems.append(f"only {short:.0%} of the code cells have at most 22 lines; 90% should")
    return problems


def wrong_amount_of_prose(notebook: NotebookNode, least: float = 4, most: float = 9) -> list[str]:
    ratio = prose_per_line(notebook)
    if least <= ratio <= most:
        return []
    return [f"{ratio:.1f} words of prose for each line of code, not {least:g} to {most:g}"]


def silent_cells(notebook: NotebookNode) -> list[str]:
    """At least 60% of a lesson's code cells show something."""
    cells = code_cells(notebook)
    shown = sum(bool(cell.outputs) for cell in cells) / len(cells)
    return [] if shown >= 0.6 else [f"only {shown:.0%} of the code cells show something"]


def no_setup_cell(notebook: NotebookNode) -> list[str]:
    """The first code cell is the setup cell, and there is no other.

    What it says is part of the committed form, so tests/test_notebooks.py compares it.
    """
    setup = [setup_cell.is_setup(cell) for cell in code_cells(notebook)]
    return [] if setup[:1] == [True] and sum(setup) == 1 else ["the first code cell is not setup"]


def wrong_skeleton(notebook: NotebookNode) -> list[str]:
    """Title, setup cell and imports, one parameters cell, and the results cell at the end."""
    problems = []
    cells = code_cells(notebook)
    if notebook.cells[0].cell_type != "markdown" or not notebook.cells[0].source.startswith("# "):
        problems.append("the first cell is no title")
    if line_count(cells[0]) > 15:
        problems.append(f"the setup cell has {line_count(cells[0])} lines, over 15")
    tagged = [n for n, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", ())]
    if tagged != [2]:
        problems.append("not one cell, the third after setup and imports, has the tag `parameters`")
    if "run.finish(" not in cells[-1].source:
        problems.append("the last code cell does not call run.finish(...)")
    return problems


def missing_alt_texts(notebook: NotebookNode) -> list[str]:
    """Every picture says in words what is to be seen."""
    problems = []
    for number, text in texts_of(notebook):
        for tag in re.findall(r"<img\b[^>]*>", text):
            if not re.search(r"""\balt\s*=\s*("[^"]+"|'[^']+')""", tag):
                problems.append(f"cell {number}: an <img> without alt text")
        if re.search(r"!\[\s*\]\(", text):
            problems.append(f"cell {number}: a Markdown image without alt text")
    return problems


def figures_of_another_form(notebook: NotebookNode) -> list[str]:
    """A figure is stored once, as `plots.show` does it: a tag with a PNG and its width."""
    problems = []
    for number, cell in enumerate(notebook.cells, start=1):
        for output in images_of(cell):
            tag = str(output.data.get("text/html", ""))
            width = re.fullmatch(r'<img alt="[^"]+" width="\d+" src="data:image/png[^"]+">', tag)
            if image_mimes(output) or not width:
                problems.append(f"cell {number}: show this figure with plots.show(figure, alt)")
    return problems


def explorers_without_figure(notebook: NotebookNode) -> list[str]:
    """A static figure in its own cell stands before each explorer."""
    cells = code_cells(notebook)
    problems = []
    for before, cell in pairwise(cells):
        texts = [o.get("data", {}).get("text/plain") for o in cell.outputs]
        if files.EXPLORER_PLACEHOLDER in texts and not images_of(before):
            problems.append(f"no figure before the explorer: {cell.source.splitlines()[0]}")
    return problems


def unsteady_checked_outputs(notebook: NotebookNode) -> list[str]:
    """nbval compares only what is the same on every machine: no picture, no progress bar."""
    problems = []
    for number, cell in enumerate(notebook.cells, start=1):
        if "NBVAL_CHECK_OUTPUT" not in cell.source:
            continue
        if not cell.source.startswith("# NBVAL_CHECK_OUTPUT\n"):
            problems.append(f"cell {number}: NBVAL_CHECK_OUTPUT is not its first line")
        if images_of(cell) or "tqdm" in cell.source:
            problems.append(f"cell {number}: NBVAL_CHECK_OUTPUT with a picture or a bar")
        if not cell.get("outputs"):
            problems.append(f"cell {number}: NBVAL_CHECK_OUTPUT but no output to compare")
    return problems


def imported_notebooks(notebook: NotebookNode) -> list[str]:
    problems = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        names = {name.split(".")[0] for _, name in imports_of(tree_of(cell))}
        if names & {"notebooks", "labs", "solutions", "import_ipynb", "nbimporter"}:
            problems.append(f"cell {number} imports another notebook")
        if re.search(r"^\s*%(run|load)\b", cell.source, re.MULTILINE):
            problems.append(f"cell {number} runs another file with a magic")
    return problems


def machine_paths(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {number}: {match.group()}… is a path of one machine"
        for number, text in texts_of(notebook)
        for match in MACHINE_PATH.finditer(text)
    ]


def too_large(notebook: NotebookNode) -> list[str]:
    size = len(files.to_text(files.normalise(notebook)).encode())
    return [] if size <= LARGEST else [f"{size:,} bytes, over {LARGEST:,}"]


ALL_NOTEBOOK_RULES = (
    no_setup_cell, broken_code_rules, bare_comparisons, missing_alt_texts, figures_of_another_form,
    imported_notebooks, machine_paths, too_large, unsteady_checked_outputs,
)  # fmt: skip
LESSON_RULES = (
    cells_over_budget, wrong_amount_of_prose, silent_cells, wrong_skeleton,
    explorers_without_figure,
)  # fmt: skip


def test_there_are_lessons_solutions_and_labs_to_judge():
    assert LESSONS, "notebooks/ is empty"
    assert SOLUTIONS, "solutions/ is empty"
    assert [path.name for path in LABS] == [path.name for path in SOLUTIONS]


@pytest.mark.parametrize("path", [*LESSONS, *SOLUTIONS, *LABS], ids=named)
@pytest.mark.parametrize("rule", ALL_NOTEBOOK_RULES, ids=lambda rule: rule.__name__)
def test_every_notebook_keeps_the_rule(rule, path):
    problems = rule(files.read(path))
    assert not problems, f"{named(path)}\n" + "\n".join(problems)


@pytest.mark.parametrize("path", LESSONS, ids=named)
@pytest.mark.parametrize("rule", LESSON_RULES, ids=lambda rule: rule.__name__)
def test_every_lesson_keeps_the_rule(rule, path):
    problems = rule(files.read(path))
    assert not problems, f"{named(path)}\n" + "\n".join(problems)


@pytest.mark.parametrize("path", SOLUTIONS, ids=named)
def test_every_lab_says_enough_and_keeps_its_cells_short(path):
    notebook = files.read(path)
    problems = wrong_amount_of_prose(notebook, least=1.5, most=float("inf"))
    problems += [p for p in cells_over_budget(notebook) if "median" not in p]
    assert not problems, f"{named(path)}\n" + "\n".join(problems)


# --- The notebook rules, on examples ----------------------------------------------------------

PARAMETERS = new_code_cell(
    'PROFILE = "fast"\nDEVICE = "auto"\nSEED = 0', metadata={"tags": ["parameters"]}
)


def shown(source: str, text: str = "1") -> NotebookNode:
    return new_code_cell(source, outputs=[new_output("stream", text=text)])


TAG = '<img alt="A line that rises." width="9" src="data:image/png;base64,aGk=">'


def figure(tag: str = TAG, **data: str) -> NotebookNode:
    data = {"text/html": tag, "text/plain": "A line that rises."} | data
    return new_code_cell("a = 1\nb = 2\nc = 3", outputs=[new_output("display_data", data)])


def explorer() -> NotebookNode:
    data = {"text/plain": files.EXPLORER_PLACEHOLDER}
    return new_code_cell("explorers.explore()", outputs=[new_output("display_data", data)])


def lesson(*cells: NotebookNode, words: int = 75) -> NotebookNode:
    """A small lesson that keeps every rule, with ``cells`` in its middle."""
    opening = [
        new_markdown_cell("# 99 · Title\n" + "word " * words),
        new_code_cell("import os\na = 1\nb = 2", metadata={"tags": ["setup"]}),
        shown("import math\na = 1\nb = 2"),
    ]
    return new_notebook(
        cells=[*opening, PARAMETERS, *cells, shown("x = 1\nprint(x)\nrun.finish({})")]
    )


BAD_NOTEBOOKS = {
    no_setup_cell: [
        new_notebook(cells=[lesson().cells[0], *lesson().cells[2:]]),
        lesson(new_code_cell("import os", metadata={"tags": ["setup"]})),
    ],
    broken_code_rules: [lesson(shown("model.cuda()")), lesson(shown("from torch import *"))],
    bare_comparisons: [
        lesson(shown("1 == 2")),
        lesson(shown("%matplotlib inline\nif True:\n    a.shape == b.shape")),
        lesson(shown("0 <= x < 2")),
    ],
    cells_over_budget: [
        lesson(shown("x = 1\n" * 41)),
        lesson(*[shown("x = 1") for _ in range(20)]),
        lesson(*[shown("x = 1\n" * 12) for _ in range(20)]),
        lesson(*[shown("x = 1\n" * lines) for lines in [4] * 20 + [23] * 3]),
    ],
    wrong_amount_of_prose: [lesson(words=5), lesson(words=600)],
    silent_cells: [lesson(*[new_code_cell("x = 1") for _ in range(9)])],
    wrong_skeleton: [
        new_notebook(cells=[shown("x = 1"), PARAMETERS, shown("run.finish({})")]),
        lesson(new_code_cell("A = 1", metadata=PARAMETERS.metadata)),
        new_notebook(cells=lesson().cells[:-1]),
        new_notebook(cells=[lesson().cells[0], shown("x = 1\n" * 16), *lesson().cells[2:]]),
        new_notebook(cells=[*lesson().cells[:2], *lesson().cells[3:]]),
        new_notebook(cells=[c for c in lesson().cells if c is not PARAMETERS]),
    ],
    missing_alt_texts: [
        lesson(figure(TAG.replace("alt=", "title="))),
        lesson(figure(TAG.replace("A line that rises.", ""))),
        lesson(new_markdown_cell("![](a.png)")),
        lesson(new_markdown_cell('<img src="a.png">')),
        lesson(new_markdown_cell('<img src="a.png" alt="">')),
    ],
    figures_of_another_form: [
        lesson(figure(**{"image/png": "aGk="})),
        lesson(figure(TAG.replace("png", "webp"))),
        lesson(figure(TAG.replace(' width="9"', ""))),
    ],
    explorers_without_figure: [lesson(explorer()), lesson(figure(), shown("x = 1"), explorer())],
    unsteady_checked_outputs: [
        lesson(shown("x = 1\n# NBVAL_CHECK_OUTPUT\nprint(x)")),
        lesson(new_code_cell("# NBVAL_CHECK_OUTPUT\nf()", outputs=figure().outputs)),
        lesson(shown("# NBVAL_CHECK_OUTPUT\nfor x in tqdm(y): pass")),
        lesson(new_code_cell("# NBVAL_CHECK_OUTPUT\nx = 1")),
    ],
    imported_notebooks: [
        lesson(shown("from notebooks import convolution")),
        lesson(shown("import solutions.lab")),
        lesson(shown("%run 01_convolution.ipynb")),
    ],
    machine_paths: [
        lesson(shown("open('/home/me/data')")),
        lesson(shown("f()", text="saved to /tmp/x1/model.onnx")),
        lesson(new_markdown_cell("See /home/reader/course.")),
    ],
    too_large: [lesson(shown("f()", text="x" * (LARGEST + 1)))],
}  # fmt: skip


@pytest.mark.parametrize("rule", [*ALL_NOTEBOOK_RULES, *LESSON_RULES], ids=lambda r: r.__name__)
def test_each_notebook_rule_finds_its_bad_examples_and_no_good_one(rule):
    good = lesson(
        shown("# NBVAL_CHECK_OUTPUT\nx = 2\nprint(x)"),
        figure(),
        explorer(),
        new_markdown_cell("![A ship](ship.png) https://example.org/home/page a/tmp/b"),
    )
    assert rule(good) == []
    for number, notebook in enumerate(BAD_NOTEBOOKS[rule]):
        assert rule(notebook), f"bad example {number} passed"
