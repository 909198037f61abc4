"""What the documents promise. Oracle: the code blocks run, the links lead somewhere, the commands are those that exist.

`mkdocs build --strict` (in .ci/run) checks the built site besides: cross-references, and that the API is complete.
"""

import dataclasses
import doctest
import importlib
import importlib.util
import pathlib
import re
import shlex

import jax
import pytest

import jflat
from benchmarks.__main__ import BENCHMARKS
from experiments import registry

ROOT = pathlib.Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
README = ROOT / "README.md"
TEXTS = {page: page.read_text() for page in [README, *DOCS]}
BLOCKS = {page: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for page, text in TEXTS.items()}
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]+)?\)")

every_page = pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))


def tool(name):
    """A file of docs/tools as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


claims_of = tool("claims")
CLAIMS = claims_of.read(TEXTS[README])


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """What mkdocs makes of headings."""
    titles = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    kept = [re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower() for title in titles]
    return {"#" + re.sub(r"[-\s]+", "-", title) for title in kept}


@pytest.mark.smoke
@pytest.mark.parametrize("page", [page for page in TEXTS if BLOCKS[page]], ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    """One after the other, as a reader would type them; what they write goes to a folder of its own.

    Where a page shows what they print, the words are the same (numbers depend on the machine).
    """
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"):
        for block in BLOCKS[page]:
            exec(compile(block, str(page), "exec"), names)
    printed = capsys.readouterr().out
    for shown in re.findall(r"^```text\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL):
        for line in shown.splitlines():
            assert re.split(r"  +", line.strip())[0] in printed


def test_there_are_blocks_to_run():
    for page in (README, ROOT / "docs" / "index.md", *(ROOT / "docs").glob("add_*.md")):
        assert BLOCKS[page]


@every_page
def test_links_lead_to_files_and_headings_that_exist(page):
    for target, anchor in LINK.findall(without_code(TEXTS[page])):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(TEXTS[file]), target + anchor


@every_page
def test_cross_references_are_public_names(page):
    for path in re.findall(r"\]\[(jflat[\w.]*)\]", TEXTS[page]):
        module, name = path.rsplit(".", 1)
        assert name in importlib.import_module(module).__all__, path


def test_everything_is_within_two_clicks_of_the_front_page():
    def linked(page):
        targets = [(page.parent / target).resolve() for target, _ in LINK.findall(TEXTS[page]) if target]
        return {target for target in targets if target in TEXTS}

    front = ROOT / "docs" / "index.md"
    once = linked(front)
    twice = once.union(*map(linked, once))
    assert set(DOCS) <= twice | {front}


def test_every_page_is_in_the_navigation():
    named = re.findall(r"\b([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(str(page.relative_to(ROOT / "docs")) for page in DOCS)


def test_every_package_has_its_page_of_the_api():
    for name in jflat.__all__:
        assert f"::: jflat.{name}\n" in TEXTS[ROOT / "docs" / "api" / f"{name}.md"]
        assert f"]({name}.md)" in TEXTS[ROOT / "docs" / "api" / "index.md"]


def test_what_the_pages_import_is_in_the_api():
    shown = set(re.findall(r"^::: (\S+)$", "\n".join(TEXTS.values()), re.MULTILINE))
    internal = {"jflat.optim.hyperparameters"}  # for those who add an optimiser
    for page, blocks in BLOCKS.items():
        for module in re.findall(r"^ *from (jflat[\w.]*) import", "\n".join(blocks), re.MULTILINE):
            assert module in shown | internal, (page, module)


def quoted(text):
    """The rows of tables of claims on a page, wherever they come from."""
    lines = [claims_of.cells(line) for line in text.splitlines() if line.startswith("| ")]
    rows, is_claims = [], False
    for row in lines:
        is_claims = (is_claims and len(row) == len(CLAIMS.header)) or row == CLAIMS.header
        if is_claims and row != CLAIMS.header and set(row) != {"---"}:
            rows.append(row)
    return rows


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_quote_only_rows_that_readme_has(page):
    for row in quoted(claims_of.fill(TEXTS[page], CLAIMS)):
        assert row in CLAIMS.rows


def test_a_row_that_readme_has_not_is_seen():
    invented = "\n".join(
        f"| {' | '.join(row)} |" for row in (CLAIMS.header, ["---"] * 5, ["a", "`run b`", "1", "2", "holds"])
    )
    assert quoted(invented) == [["a", "`run b`", "1", "2", "holds"]]


def test_every_row_is_on_a_page():
    shown = [row for page in DOCS for row in quoted(claims_of.fill(TEXTS[page], CLAIMS))]
    assert [row[0] for row in CLAIMS.rows if row not in shown] == []


def test_marks_of_claims_name_experiments_and_find_rows():
    """All but a paper whose rows are still to come."""
    sources = {name for path in registry.EXPERIMENTS.values() for name in (path, path.rsplit(".", 1)[0])}
    for page in DOCS:
        for source, text in claims_of.MARK.findall(TEXTS[page]):
            assert source in sources | {"experiments", "benchmarks", "preamble"}, (page, source)
            rows = source == "preamble" or claims_of.select(CLAIMS, source, text)
            assert rows or source == "experiments.feature_learning", (page, source, text)


def commands():
    """(page, words) of each `python -m experiments ...` and `python -m benchmarks ...`, Python blocks left out."""
    for page, text in TEXTS.items():
        for block in BLOCKS[page]:
            text = text.replace(block, "")
        for line in re.findall(r"python -m ((?:experiments|benchmarks)\b[^\n`|]*)", text):
            yield page, shlex.split(line.split("&&")[0], comments=True)


def test_commands_name_what_there_is():
    for page, words in commands():
        if words[0] == "benchmarks":
            end = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
            assert words[1:2] in (["compare"], ["ratios"]) or set(words[1:end]) <= set(BENCHMARKS), (page, words)
        elif words[1:2] == ["run"] and words[2] != "NAME":
            module = registry.load(words[2])
            known = {field.name for field in dataclasses.fields(module.Config)} | {"preset", "output", "help"}
            known |= {"distributed"} if words[2] in registry.DISTRIBUTED else set()
            for place, option in enumerate(words):
                if option.startswith("--"):
                    assert option[2:].replace("-", "_") in known, (page, words)
                if option == "--preset":
                    assert words[place + 1] in module.PRESETS, (page, words)


def test_every_experiment_is_on_the_page_of_a_paper():
    text = "\n".join(claims_of.fill(text, CLAIMS) for page, text in TEXTS.items() if page.parent.name == "papers")
    for name in registry.EXPERIMENTS:
        assert re.search(rf"^python -m experiments run {name}$", text, re.MULTILINE), name


def test_figures_of_the_gallery_are_small_and_name_their_command():
    items = TEXTS[ROOT / "docs" / "gallery.md"].split("\n- [![")[1:]
    for item in items:
        assert "`python -m experiments run " in item or "drawn by the code of [" in item
    shown = {re.search(r"\]\((images/[^)]+)\)", item)[1] for item in items}
    assert shown == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs" / "images").glob("*")}
    for path in (ROOT / "docs" / "images").glob("*"):
        assert path.stat().st_size < 150_000, path


def test_examples_of_the_tools():
    assert doctest.testmod(claims_of).failed == 0
    pytest.importorskip("griffe")
    assert doctest.testmod(tool("docstrings")).failed == 0


def test_ci_runs_the_test_command_of_the_readme():
    ours = [line for line in TEXTS[README].splitlines() if line.endswith("-m pytest")]
    assert len(ours) == 1
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert ours[0] in script
    assert any(line.endswith("mkdocs build --strict") for line in script)


def test_no_page_has_an_unfinished_mark():
    for page, text in TEXTS.items():
        assert not re.search(r"CLAIM[S_]|TEST_MINUTES|T[O]DO|F[I]XME", text), page
