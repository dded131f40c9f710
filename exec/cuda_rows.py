"""Whether a kernel's checks hold for rows between two for which they hold: then a launcher need not ask for each row.

A row of threads has a y and a z. Each check is a comparison; where both its sides are sums of numbers that are the same
in the whole launch and of the row's own index (`blockIdx.y * blockDim.y + threadIdx.y`, once), the
rows for which it holds lie together. So do those for which several hold. Anything else: not known.
"""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

_CHECK = re.compile(r"coppermesh_row\.(?:below|at_least|up_to|beyond)\((.*), -?\d+\);")
_ONLY = re.compile(r"coppermesh_row\.only\(!?\(\((.*)\) (?:<|<=|>|>=) \((.*)\)\)\);")
_DECLARED = re.compile(
    r"(?:const )?(?:unsigned int|unsigned|int|size_t|long long|long|unsigned long long|auto)(?: const)? (\w+) = (.*);"
)
_NUMBER = re.compile(r"\d+[uU]?|[-+*()]")
_INDEX = re.compile(
    r"blockIdx \. ([yz]) \* blockDim \. \1 \+ threadIdx \. \1"
    r"|blockDim \. ([yz]) \* blockIdx \. \2 \+ threadIdx \. \2"
    r"|threadIdx \. ([yz]) \+ blockIdx \. \3 \* blockDim \. \3"
    r"|threadIdx \. ([yz]) \+ blockDim \. \4 \* blockIdx \. \4"
    r"|blockIdx \. [yz]"
)


def are_convex(conditions: Sequence[str], declarations: Sequence[str], parameters: AbstractSet[str]) -> bool:
    """Whether the rows for which all `conditions` hold lie together, as far as the text tells.

    `conditions` and `declarations` are those of a `cuda_guards.Plan`; `parameters` are words of one value in a launch.
    """
    indices = set()
    for declaration in declarations:
        match = _DECLARED.fullmatch(" ".join(declaration.split()))
        if match is None or not _INDEX.fullmatch(_spaced(match[2])):
            return False
        indices.add(match[1])
    return all(_is_convex(condition, indices, parameters) for condition in conditions)


def _is_convex(condition: str, indices: AbstractSet[str], parameters: AbstractSet[str]) -> bool:
    if match := _CHECK.fullmatch(condition):
        return _is_number(match[1], parameters)
    if match := _ONLY.fullmatch(condition):
        sides = [side.strip() for side in match.groups()]
        return all(side in indices or _is_number(side, parameters) for side in sides)
    return condition == "coppermesh_row.decided = false;"


def _is_number(text: str, parameters: AbstractSet[str]) -> bool:
    return all(word in parameters or _NUMBER.fullmatch(word) for word in _spaced(text).split())


def _spaced(text: str) -> str:
    """Every token with one blank beside it; what is more than a word or a sign stays as it is, and is not known."""
    return " ".join(re.findall(r"\w+|\S", text))
