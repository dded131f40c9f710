"""The user's own line behind a node, for what is found out only when a program runs.

Where a recorded node came from never leaves the client; what comes back from a provider is a sentence that begins
with `node 17`. That form is stable: `with_node` writes it in the worker, `named_node` reads it at the client. A
provider is a stranger, so the number may be anything and is looked up under bounds.
"""

import linecache
import re
from collections.abc import Sequence

from coppermesh.exec.cuda_modules import base_name, module_parts
from coppermesh.exec.graph import SourceLine
from coppermesh.exec.program import Node, Program, decode_program

_NAMED = re.compile(r"node (\d{1,6})\b")
_KERNEL = re.compile(r"\bin kernel ([A-Za-z_]\w*)")
_LONGEST_LINE = 120


def with_node(sentence: str, node: int | None) -> str:
    """`sentence`, beginning with the node's number where there is one."""
    if node is None or _NAMED.match(sentence):
        return sentence
    return f"node {node}: {sentence}"


def named_node(sentence: str) -> int | None:
    """The node that an error's sentence begins with; None where it names none."""
    found = _NAMED.match(sentence)
    return int(found[1]) if found else None


def failed_node(sentence: str, program: bytes) -> int | None:
    """The node of `program` that an error's sentence is about: the one that it names, or whose kernel it names.

    A process that died in a kernel left the kernel's name only; where several nodes launch it, none is told.
    """
    node = named_node(sentence)
    found = _KERNEL.search(sentence)
    if node is not None or found is None:
        return node
    decoded = decode_program(program)
    launches = [number for number, item in enumerate(decoded.nodes) if _launched(decoded, item) == found[1]]
    return launches[0] if len(launches) == 1 else None


def _launched(program: Program, node: Node) -> str | None:
    """What messages call the kernel that `node` launches."""
    number = node.attrs.get("kernel")
    if not isinstance(number, int):
        return None
    kernel, function = program.kernels[number], node.attrs.get("function")
    if kernel.kind == "module" and isinstance(function, int):
        return base_name(module_parts(kernel).kernels[function])
    return kernel.name


def describe_line(sources: Sequence[SourceLine], node: int | None) -> str:
    """`photo.py:12: y = xp.take(x, i)`, the line that recorded `node`; empty where it is not known."""
    if node is None or not 0 <= node < len(sources):
        return ""
    filename, number = sources[node]
    line = linecache.getline(filename, number).strip()
    if len(line) > _LONGEST_LINE:
        line = line[: _LONGEST_LINE - 3] + "..."
    return f"{filename}:{number}: {line}" if line else f"{filename}:{number}"
