"""Running lazy arrays in this very process: for tests and measurements, never for a stranger's program.

Everything between recording and result happens as on the mesh: the program is encoded, decoded and checked anew and
held to limits; only the worker process and the network are left out.
"""

from typing import Any

import numpy as np

from coppermesh.exec.budget import RunLimits
from coppermesh.exec.graph import Handle
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.program import decode_program
from coppermesh.exec.report import check_limits
from coppermesh.exec.runtime import Runtime
from coppermesh.exec.schema import check_program
from coppermesh.exec.tracing import trace


def evaluate(
    *arrays: Handle, runtime: Runtime | None = None, limits: RunLimits | None = None
) -> list[np.ndarray[Any, Any]]:
    """The values of `arrays`, by `runtime` (NumPy without kernels unless told otherwise)."""
    recording = trace(*arrays)
    checked = check_program(decode_program(recording.program))
    bounds = RunLimits() if limits is None else limits
    check_limits(recording, bounds)
    chosen = NumpyRuntime() if runtime is None else runtime
    return chosen.run(checked, recording.inputs, bounds).outputs
