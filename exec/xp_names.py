"""What a namespace says about a name that it does not have."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import ModuleType

STANDARD = "2024.12"
"""The version of the Python Array API standard that the namespaces follow."""


def missing(
    namespace: str, name: str, names: Iterable[str], advice: Mapping[str, str] | None = None
) -> AttributeError:
    """The error for `name`; `names` is what the namespace has, `advice` what to do instead of names of CuPy's."""
    if name.startswith("_"):
        return AttributeError(f"{namespace} has no {name!r}")
    if advice and name in advice:
        return AttributeError(f"{namespace} has no {name!r}: {advice[name]}")
    near = get_close_matches(name, names, 3, cutoff=0.75)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    where = f"it follows the Python Array API standard {STANDARD}: see exec/README.md"
    return AttributeError(f"{namespace} has no {name!r}{hint}; {where}")


def public(namespace: Mapping[str, object]) -> list[str]:
    """The names in a module's `globals()` that are meant for users: functions, types, constants, modules of ours."""
    return [
        name
        for name, item in namespace.items()
        if not name.startswith(("_", "xp_"))
        and name not in ("Any", "TYPE_CHECKING")
        and not (isinstance(item, ModuleType) and not item.__name__.startswith("coppermesh."))
    ]
