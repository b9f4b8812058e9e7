"""Table, feet, badges and links, made from the notebooks: here, and in a course of three lessons.

What a maintainer does is tried as he does it: a notebook is renamed, and one command is run.
"""

from __future__ import annotations

import json
import re

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from shipyard import authoring, cli
from shipyard.authoring import contents
from shipyard.errors import AuthoringError

ADDRESS = '[project]\nname = "tiny"\n[project.urls]\nRepository = "{}"\n'
REAL = "https://github.com/example/tiny.git"


def test_the_contents_of_this_course_are_up_to_date(root):
    stale = [path.relative_to(root).as_posix() for path in authoring.stale_contents(root)]
    assert not stale, f"run `shipyard contents`, then `shipyard labs`: {stale}"


def test_no_link_of_this_course_is_dead(root):
    assert not authoring.dead_links(root)


@pytest.fixture
def three(course, monkeypatch):
    """Lessons alpha, beta and gamma; beta and gamma share a lab; texts that name each other."""
    monkeypatch.chdir(course.root)

    def lesson(name: str, title: str, text: str, lab: str | None) -> None:
        about = {"title": title, "part": "one", "about": f"all about {title}", "lab": lab}
        cells = [new_markdown_cell(f"# {title}\n{text}"), new_code_cell("x = 1")]
        notebook = new_notebook(cells=cells, metadata={"shipyard": about})
        course.write(course.root / "notebooks" / f"{name}.ipynb", notebook)

    lesson(
        "01_alpha", "Alpha", "Later: [gamma](03_gamma.ipynb#end). `f[x](not_a_link.ipynb)`", None
    )
    lesson("02_beta", "Beta", "The [lab](../labs/02_shared.ipynb), the [docs](../docs/map.md)", "s")
    lesson("03_gamma", "Gamma", "See [Beta](02_beta.ipynb), [a site](https://example.org)", "s")
    solution = authoring.read(course.solution("02_shared"))
    solution.metadata["shipyard"] = {"title": "Shared", "subject": "s"}
    course.write(course.root / "solutions" / "02_shared.ipynb", solution)
    (course.root / "pyproject.toml").write_text(ADDRESS.format("https://example.org/tiny"))
    (course.root / "docs").mkdir()
    (course.root / "docs" / "map.md").write_text("# Map\n[first](../notebooks/01_alpha.ipynb)\n")
    (course.root / "README.md").write_text(
        f"# Tiny\n[map](docs/map.md#map)\n{contents.BEGIN}\nold\n{contents.END}\nThe end.\n"
    )
    return course.root


def title_of(path) -> str:
    return authoring.read(path).cells[0].source


def foot_of(path) -> str:
    return authoring.read(path).cells[-1].source


def test_one_command_writes_the_table_and_the_feet_once_and_for_all(three):
    assert run("contents") == 0
    readme = (three / "README.md").read_text()
    assert readme.startswith("# Tiny\n")
    assert readme.endswith(f"{contents.END}\nThe end.\n")
    assert re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \|", readme, re.MULTILINE) == [
        ("01", "[Alpha](notebooks/01_alpha.ipynb)", ""),
        ("02", "[Beta](notebooks/02_beta.ipynb)", "[lab](labs/02_shared.ipynb)"),
        ("03", "[Gamma](notebooks/03_gamma.ipynb)", "[lab](labs/02_shared.ipynb)"),
    ]
    lab = "lab: [Shared](../labs/02_shared.ipynb)"
    assert foot_of(three / "notebooks/01_alpha.ipynb") == "[Beta](02_beta.ipynb) →"
    assert foot_of(three / "notebooks/02_beta.ipynb") == (
        f"← [Alpha](01_alpha.ipynb) · [Gamma](03_gamma.ipynb) → · {lab}"
    )
    assert foot_of(three / "notebooks/03_gamma.ipynb") == f"← [Beta](02_beta.ipynb) · {lab}"
    assert foot_of(three / "solutions/02_shared.ipynb") == (
        "← lesson: [Beta](../notebooks/02_beta.ipynb), [Gamma](../notebooks/03_gamma.ipynb)"
    )
    assert authoring.stale_contents(three) == {}
    assert authoring.dead_links(three) == []


def run(*arguments: str) -> int:
    """The exit status of ``shipyard ARGUMENTS``."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return end.value.code or 0


def test_a_renamed_lesson_takes_its_new_place_and_every_link_follows(three, capsys):
    assert run("contents") == 0
    (three / "notebooks/03_gamma.ipynb").rename(three / "notebooks/00_gamma.ipynb")
    (three / "solutions/02_shared.ipynb").rename(three / "solutions/05_shared.ipynb")
    assert run("contents", "--check") == 1
    assert run("contents") == 0, capsys.readouterr()
    readme = (three / "README.md").read_text()
    assert re.findall(r"^\| (\d+) \| \[(\w+)\]", readme, re.MULTILINE) == [
        ("00", "Gamma"), ("01", "Alpha"), ("02", "Beta"),
    ]  # fmt: skip
    assert foot_of(three / "notebooks/00_gamma.ipynb") == (
        "[Alpha](01_alpha.ipynb) → · lab: [Shared](../labs/05_shared.ipynb)"
    )
    assert "(00_gamma.ipynb#end)" in title_of(three / "notebooks/01_alpha.ipynb")
    assert "(../labs/05_shared.ipynb)" in title_of(three / "notebooks/02_beta.ipynb")
    assert run("contents", "--check") == 0


def test_a_dead_link_is_named_with_its_file(three, capsys):
    (three / "notebooks/03_gamma.ipynb").unlink()
    (three / "README.md").write_text((three / "README.md").read_text().replace("#map", "#legend"))
    assert run("contents") == 1
    errors = capsys.readouterr().err
    assert "notebooks/01_alpha.ipynb: 03_gamma.ipynb#end does not exist" in errors
    assert "README.md: docs/map.md#legend is no heading there" in errors
    assert errors.count("\n") == 2


@pytest.mark.parametrize(
    ("address", "badges"),
    [
        (REAL, 3),
        ("https://github.com/YOUR_ORGANISATION/tiny", 0),
        ("https://example.org/tiny", 0),  # Colab opens notebooks from GitHub only
    ],
)
def test_badges_lead_to_the_real_repository_or_are_left_out(three, address, badges):
    (three / "pyproject.toml").write_text(ADDRESS.format(address))
    run("contents")
    readme = (three / "README.md").read_text()
    links = re.findall(r"\]\((https://colab\.research\.google\.com/github/\S+)\)", readme)
    assert len(links) == badges
    assert "YOUR_ORGANISATION" not in readme
    if badges:
        assert links[1].endswith("/github/example/tiny/blob/main/notebooks/02_beta.ipynb")


def test_reading_time_follows_the_rule_and_run_time_a_run(three):
    long = three / "notebooks/02_beta.ipynb"
    notebook = authoring.read(long)
    notebook.cells[0].source = "word " * 1200 + "$a + b$ ```python\nnot prose\n```"
    notebook.cells[1].source = "x = 1\n\n" * 20
    authoring.write(authoring.normalise(notebook), long)
    (three / "run/results").mkdir(parents=True)
    record = {"lesson": "beta", "profile": "fast", "device": "cpu", "seconds": 41.6}
    result = three / "run/results/beta.json"
    result.write_text(json.dumps(record))
    assert run("contents", "--times", "run") == 0
    about = authoring.read(long).metadata["shipyard"]
    assert (about["reading_minutes"], about["run_seconds"]) == (10, 42)  # 6 + 2 → 10
    assert "| 10 min | 42 s |" in (three / "README.md").read_text()
    result.write_text(json.dumps(record | {"profile": "full"}))
    with pytest.raises(AuthoringError, match="profile fast"):
        authoring.stale_contents(three, three / "run")


def test_a_lesson_that_says_too_little_or_names_no_lab_is_refused(three):
    path = three / "notebooks/01_alpha.ipynb"
    notebook = authoring.read(path)
    notebook.metadata["shipyard"]["lab"] = "unknown"
    authoring.write(notebook, path)
    with pytest.raises(AuthoringError, match=r"names the lab 'unknown'.*Known: s"):
        authoring.stale_contents(three)
    del notebook.metadata["shipyard"]["part"]
    authoring.write(notebook, path)
    with pytest.raises(AuthoringError, match="does not give part"):
        authoring.stale_contents(three)
