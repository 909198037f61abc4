"""What a compiled program sends: its collectives, with the bytes each device puts in, read from the HLO text.

An instruction in the body of a loop is counted once, so count programs without loops, such as one Hessian product.
"""

import math
import re
from typing import NamedTuple

__all__ = ["Collective", "collectives"]

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")

_INSTRUCTION = re.compile(r"^\s*(?:ROOT\s+)?(%?[\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY\s+)?(%?[\w.-]+) \(.*\{$")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.-]+)")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One instruction."""

    kind: str
    """Among `KINDS`."""
    shapes: str
    """Of the result, as the text has it."""
    bytes: int
    """Of the operands, on one device."""
    is_conditional: bool
    """Whether it stands in a branch of a conditional, or in what that branch calls: in a step without it, not sent."""


def _size(shape: str) -> int:
    """Bytes of a shape, or of a tuple of them, as HLO writes it.

    >>> _size("(f32[2,3]{1,0}, bf16[4]{0}, pred[])")
    33
    """
    found = _SHAPE.findall(shape)
    return sum(
        math.prod(map(int, filter(None, lengths.split(",")))) * (int(bits) // 8 if bits else 1)
        for _, bits, lengths in found
    )


def collectives(program: str) -> list[Collective]:
    """All collectives in the text of a compiled program (`compiled.as_text()`); a started one counts once.

    >>> collectives('''
    ...   %x = f32[4,8]{1,0} parameter(0)
    ...   %sum = f32[4,8]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
    ... ''')
    [Collective(kind='all-reduce', shapes='f32[4,8]{1,0}', bytes=128, is_conditional=False)]
    """
    bodies: dict[str, list[tuple[str, ...]]] = {"": []}
    current = ""
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[1]
            bodies[current] = []
        elif match := _INSTRUCTION.match(line):
            bodies[current].append(match.groups())
    instructions = [(where, *instruction) for where, body in bodies.items() for instruction in body]
    sizes = {name: _size(shape) for _, name, shape, *_ in instructions}
    conditional = _reached_by_branches(bodies)
    found = []
    for where, _, shape, operation, rest in instructions:
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            operands = rest[: _closing(rest)]
            inline = _size(operands)  # some versions write the shapes of operands beside their names
            names = re.findall(r"%?[A-Za-z_][\w.-]*", operands)
            size = inline or sum(sizes.get(name, 0) for name in names)
            found.append(Collective(kind, shape, size, where in conditional))
    return found


def _reached_by_branches(bodies: dict[str, list[tuple[str, ...]]]) -> set[str]:
    """Names of the branches of conditionals, and of the computations that these call."""
    rests = [rest for body in bodies.values() for *_, rest in body]
    branches = (name for rest in rests for pair in _BRANCHES.findall(rest) for name in ",".join(pair).split(","))
    waiting = [name for name in map(str.strip, branches) if name in bodies]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [
                called for *_, rest in bodies[name] for called in re.findall(r"=(%?[\w.-]+)", rest) if called in bodies
            ]
    return reached


def _closing(text: str) -> int:
    """Where the parenthesis opened before `text` is closed."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return len(text)
