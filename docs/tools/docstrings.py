"""Docstrings as they are written for a terminal become Markdown: examples get colours, formulas keep their signs.

A griffe extension (mkdocs.yml names it). Outside of code and tables it escapes `*`, `<`, `[` and a leading `_`,
which are arithmetic there; lines of doctest become a block of code.
"""

import re
from collections.abc import Set
from typing import Any

import griffe

_CODE = re.compile(r"(`[^`]*`|\*\*[^*\n]+\*\*)")
_SIGN = re.compile(r"[*\[]|(?<!\w)_(?=\w)")


def _plain(text: str, colon: str = ":") -> str:
    """A line of prose: what is between backquotes or double stars stays."""
    parts = _CODE.split(text)
    bullet = re.match(r"\s*[*-] ", parts[0])
    start = bullet.end() if bullet else 0
    head = parts[0][:start]
    parts[0] = parts[0][start:]
    parts[::2] = [_SIGN.sub(r"\\\g<0>", part).replace("<", "&lt;").replace(">", "&gt;") for part in parts[::2]]
    parts[::2] = [part.replace(":", colon) for part in parts[::2]]
    return head + "".join(parts)


def to_markdown(text: str) -> str:
    """The Markdown of a cleaned docstring.

    >>> to_markdown("Twice w * x, <w>.\\n\\n>>> 2 * 2\\n4").splitlines()
    ['Twice w \\\\* x, &lt;w&gt;.', '', '```pycon', '>>> 2 * 2', '4', '```']
    """
    lines, is_example, indent, margin, was_blank, returns = [], False, "", 0, True, None
    for line in text.split("\n"):
        body = line.strip()
        if not is_example and body.startswith(">>> "):
            is_example, indent = True, line[: len(line) - len(line.lstrip())]
            if not was_blank:
                lines.append("")
            lines.append(f"{indent}```pycon")
        elif is_example and not body:
            is_example = False
            lines.append(f"{indent}```")
        if is_example or not body or body.startswith("|"):
            lines.append(line)
        else:
            depth = len(line) - len(line.lstrip())
            margin = depth if was_blank and depth < margin + 4 else margin
            is_formula = depth >= margin + 4  # a block of code in Markdown
            returns = returns if returns is not None and depth > returns else None
            colon = ":" if returns is None else "&#58;"  # what stands before a colon there would be taken for a type
            lines.append(line if is_formula else _plain(line, colon))
            returns = depth if body == "Returns:" else returns
        was_blank = not body
    if is_example:
        lines.append(f"{indent}```")
    return "\n".join(lines)


def link(text: str, known: Set[str], package: str | None) -> str:
    """Public names between backquotes become links: `jflat.optim.sam`, and in the docstring of a package `sam`.

    >>> print(link("see `jflat.optim.sam`, `sam` or `x`", {"jflat.optim.sam"}, "jflat.optim"))
    see [`jflat.optim.sam`][jflat.optim.sam], [`sam`][jflat.optim.sam] or `x`
    """

    def linked(code: re.Match[str]) -> str:
        targets = [code[1], f"{package}.{code[1]}"] if package else [code[1]]
        return next((f"[{code[0]}][{target}]" for target in targets if target in known), code[0])

    return re.sub(r"`([\w.]+)`", linked, text)


def public_names(module: griffe.Module) -> Set[str]:
    """All names that a package or one below it exports, as they are imported."""
    packages = [member for member in module.members.values() if isinstance(member, griffe.Module)]
    own = {f"{module.path}.{name}" for name in module.exports or () if module.filepath.name == "__init__.py"}
    return own.union(*map(public_names, packages))


def rewrite(parent: griffe.Object, known: Set[str]) -> None:
    """Every docstring of a tree of objects, once."""
    if parent.docstring:
        package = parent.path if isinstance(parent, griffe.Module) else None
        parent.docstring.value = link(to_markdown(parent.docstring.value), known, package)
    for member in parent.members.values():
        if not member.is_alias:
            rewrite(member, known)


def show(module: griffe.Module) -> None:
    """Put `jflat.replica.mixture`, the function, in the place of its file, and functions before results."""
    for name, member in list(module.members.items()):
        if isinstance(member, griffe.Module):
            show(member)
            if module.imports.get(name) == f"{member.path}.{name}":
                module.members[name] = griffe.Alias(name, member.members[name], parent=module)
    if module.exports:
        module.exports = sorted(module.exports, key=lambda name: module.members[str(name)].is_class)


class Docstrings(griffe.Extension):
    """Rewrites all docstrings of the package, and prefers functions to files of the same name."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        loader.resolve_aliases(implicit=False, external=False)  # while the files are in their places
        modules = {f"{pkg.path}.{name}" for name in pkg.exports or ()}  # they have a page and no anchor
        rewrite(pkg, public_names(pkg) - modules)
        show(pkg)
