"""What the documents promise. Oracle: the code blocks run, the links lead somewhere, the commands are those CI runs."""

import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCKS = [
    pytest.param(page, block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_python_blocks_run(page, block):
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(block, str(page), "exec"), {"__name__": "__main__"})


def test_there_are_blocks_to_run():
    assert any(param.values[0].name == "README.md" for param in BLOCKS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_ci_runs_the_test_command_of_the_readme():
    ours = [line for line in (ROOT / "README.md").read_text().splitlines() if line.endswith("-m pytest")]
    assert len(ours) == 1
    assert ours[0] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_no_page_has_an_unfinished_mark():
    for page in PAGES:
        assert not re.search(r"CLAIM[S_]|TEST_MINUTES|T[O]DO|F[I]XME", page.read_text()), page
