"""What the documents promise. Oracle: the code blocks run, the links lead somewhere, the commands are those CI runs."""

import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCKS = {page: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL) for page in PAGES}


@pytest.mark.smoke
@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """One after the other, as a reader would type them; what they write goes to a folder of its own."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"):
        for block in BLOCKS[page]:
            exec(compile(block, str(page), "exec"), names)


def test_there_are_blocks_to_run():
    assert BLOCKS[ROOT / "README.md"]


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
