"""A hook of mkdocs: a build fails where a public name of jflat has no place on a page of the API."""

import ast
import pathlib
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = pathlib.Path(__file__).parents[2]


def exported(path: pathlib.Path) -> list[str]:
    """`__all__` of a source file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def on_post_build(config: Any, **_: Any) -> None:
    """Called by mkdocs when all pages are written."""
    missing = []
    for package in exported(ROOT / "jflat" / "__init__.py"):
        folder, file = ROOT / "jflat" / package / "__init__.py", ROOT / "jflat" / f"{package}.py"
        text = (pathlib.Path(config.site_dir) / "api" / f"{package}.html").read_text()
        names = exported(folder if folder.exists() else file)
        missing += [f"jflat.{package}.{name}" for name in names if f'id="jflat.{package}.{name}"' not in text]
    if missing:
        raise PluginError(f"not in the API reference: {', '.join(missing)}")
