"""Who a worker becomes: root of a container that knows no other user stays what it is, and says so."""

import shutil
import subprocess
import sys

import pytest

from coppermesh.exec.sandbox import capabilities

WHOLE = "         0          0 4294967295\n"
CONTAINER = "         0     100000      65536\n"
ALONE = "         0       1000          1\n"
HOLED = ALONE + "         1     100000      65532\n"


@pytest.mark.parametrize(
    ("table", "found"), [(WHOLE, True), (CONTAINER, True), (ALONE, False), (HOLED, False), ("", False)]
)
def test_a_user_namespace_has_the_number_or_not(table, found):
    assert capabilities._is_mapped(capabilities.SANDBOX_ID, table) is found


def test_root_of_a_namespace_of_one_user_stays_it_and_does_not_announce_another():
    asks = (
        "from coppermesh.exec.sandbox import apply, capabilities as c;"
        "print(c.can_drop_root(), c.drop_root(), 'uid' in apply.available())"
    )
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", asks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.stdout.split() == ["False", "False", "False"], done.stderr
