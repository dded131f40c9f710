"""A layer is witnessed only where a hostile act failed under it and succeeded in a control."""

import json
import subprocess
import sys
from typing import Any

import pytest

from coppermesh.exec.sandbox import landlock, seccomp, witness
from coppermesh.exec.sandbox.layers import NAMES


def examine(change: str = "") -> dict[str, dict[str, Any]]:
    """What the helper says, in a process of its own, after a change to its module."""
    code = f"from coppermesh.exec.sandbox import witness, landlock\n{change}\nwitness.sys.argv = ['-c']\nwitness.main()"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True, timeout=30)
    assert done.stderr == b""
    return {entry["layer"]: entry for entry in json.loads(done.stdout)}


def test_every_layer_is_judged():
    seen = examine()
    assert set(seen) >= set(NAMES) - {"uid", "vram-scrub"}
    for entry in seen.values():
        assert entry["held"] or entry["why"], entry


@pytest.mark.skipif(
    not (landlock.abi() and seccomp.supported()), reason="this kernel lacks Landlock or seccomp"
)
def test_the_floor_holds_here():
    seen = examine()
    assert seen["landlock"]["held"]
    assert seen["seccomp"]["held"]


@pytest.mark.parametrize("layer", ["limits", "privileges", "landlock", "seccomp"])
def test_a_layer_that_does_nothing_is_not_witnessed(layer):
    change = (
        "from dataclasses import replace\ntrials = witness._trials()\n"
        f"witness._trials = lambda: [replace(t, confine=lambda: None) if t.layer == {layer!r} else t for t in trials]"
    )
    entry = examine(change)[layer]
    assert not entry["held"]
    assert "worked all the same" in entry["why"] or "without the layer" in entry["why"]


def test_an_act_that_never_works_witnesses_nothing():
    change = "def fail(bait): raise OSError(1, 'no')\nwitness._open_file = fail"
    entry = examine(change)["landlock"]
    assert not entry["held"]
    assert "without the layer" in entry["why"]


def test_an_accident_before_or_in_the_act_witnesses_nothing():
    change = (
        "from dataclasses import replace\ntrials = witness._trials()\n"
        "def broken(): raise OSError(22, 'not here')\n"
        "witness._trials = lambda: [replace(t, confine=broken) if t.layer == 'seccomp' else t for t in trials]"
    )
    entry = examine(change)["seccomp"]
    assert not entry["held"]
    assert "could not be put on" in entry["why"]


def test_a_kernel_without_landlock_is_told_with_a_remedy():
    entry = examine("landlock.abi = lambda: 0")["landlock"]
    assert not entry["held"]
    assert "no Landlock" in entry["why"]
    assert entry["remedy"]


def test_the_deadline_is_far_from_what_it_takes():
    assert witness.WITNESS_SECONDS >= 10


@pytest.mark.parametrize(
    ("switch", "value", "command"),
    [
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces="),
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "apparmor_restrict_unprivileged_userns=0"),
        ("user/max_user_namespaces", "63000", "apt install bubblewrap"),
        ("user/other", "0", "seccomp profile that allows `unshare`"),
    ],
)
def test_what_would_bring_namespaces_depends_on_what_forbids_them(
    tmp_path, monkeypatch, switch, value, command
):
    monkeypatch.setattr(witness.namespaces, "find_bubblewrap", lambda: None)
    path = tmp_path / switch
    path.parent.mkdir()
    path.write_text(f"{value}\n")
    assert command in witness.namespace_remedy(tmp_path)
    monkeypatch.setattr(witness.namespaces, "find_bubblewrap", lambda: "/usr/bin/bwrap")
    assert "apt install" not in witness.namespace_remedy(tmp_path)
