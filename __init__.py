"""coppermesh: a peer-to-peer compute mesh for GPUs.

>>> import coppermesh as cm
>>> xp = cm.xp
>>> with cm.connect() as mesh:
...     result = mesh.compute(xp.sum(xp.asarray([1.0, 2.0, 3.0])))

What is exported here is promised; everything else is reachable but may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see of the names below
    from coppermesh.agent.client import Mesh, connect
    from coppermesh.agent.job_handle import Job, JobFailed
    from coppermesh.exec import xp
    from coppermesh.exec.kernels import ElementwiseKernel, RawKernel, RawModule, ReductionKernel
    from coppermesh.exec.local_run import run_local
    from coppermesh.exec.recorder import Array
    from coppermesh.exec.report import trace_report
    from coppermesh.exec.tolerance import compare
    from coppermesh.p2p.errors import MeshError

__version__ = "0.1.0"
__all__ = [
    "Array",
    "ElementwiseKernel",
    "Job",
    "JobFailed",
    "Mesh",
    "MeshError",
    "RawKernel",
    "RawModule",
    "ReductionKernel",
    "compare",
    "connect",
    "run_local",
    "trace_report",
    "xp",
]

_HOMES = {
    "Array": "coppermesh.exec.recorder",
    "ElementwiseKernel": "coppermesh.exec.kernels",
    "Job": "coppermesh.agent.job_handle",
    "JobFailed": "coppermesh.agent.job_handle",
    "Mesh": "coppermesh.agent.client",
    "MeshError": "coppermesh.p2p.errors",
    "RawKernel": "coppermesh.exec.kernels",
    "RawModule": "coppermesh.exec.kernels",
    "ReductionKernel": "coppermesh.exec.kernels",
    "compare": "coppermesh.exec.tolerance",
    "connect": "coppermesh.agent.client",
    "run_local": "coppermesh.exec.local_run",
    "trace_report": "coppermesh.exec.report",
}


if not TYPE_CHECKING:  # else they would take every name for one of ours

    def __getattr__(name: str) -> Any:
        """Load the part behind an exported name on first use, so that a worker importing one part pays for no other."""
        if name == "xp":
            return import_module("coppermesh.exec.xp")
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'coppermesh' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What is promised, and nothing else."""
    return [*__all__, "__version__"]
