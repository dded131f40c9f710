"""What an agent may announce of its sandbox, what it remembers of it, and what `doctor sandbox` says."""

import json
import sys
from dataclasses import replace

import pytest

from coppermesh.agent import isolation
from coppermesh.agent.cli import main
from coppermesh.agent.doctor import describe, tell
from coppermesh.agent.isolation import announced, scrub_was_seen, witness_once, witness_scrub
from coppermesh.agent.option_types import isolation as isolation_layers
from coppermesh.exec.device import DeviceInfo
from coppermesh.exec.sandbox.layers import NAMES
from coppermesh.exec.sandbox.witness import Witnessed

HELD = [
    Witnessed("netns", True, "connect"),
    Witnessed("landlock", True, "open"),
    Witnessed("seccomp", True, "fork"),
]
MISSING = [Witnessed("landlock", False, "open", "this kernel has none", "start another"), HELD[2]]


@pytest.fixture
def tries(monkeypatch):
    """Counts how often the layers are tried; what they show may be set."""
    count = []

    def witness():
        count.append(1)
        return list(HELD)

    monkeypatch.setattr(isolation, "witness", witness)
    return count


def test_only_what_was_seen_and_is_put_on_everywhere_is_announced():
    assert announced(HELD, [NAMES]) == ("netns", "landlock", "seccomp")
    assert announced(HELD, [NAMES, ("seccomp", "landlock")]) == ("landlock", "seccomp")
    assert announced(HELD, [NAMES, ()]) == ()
    assert announced(MISSING, [NAMES]) == ("seccomp",)
    assert announced([], [NAMES]) == ()
    assert announced(HELD, []) == ()


def test_layers_are_tried_once_as_long_as_nothing_changes(tmp_path, tries, monkeypatch):
    assert witness_once(tmp_path) == HELD
    assert witness_once(tmp_path) == HELD
    assert len(tries) == 1
    monkeypatch.setattr(isolation, "find_bubblewrap", lambda: "/elsewhere/bwrap")
    assert witness_once(tmp_path) == HELD
    assert len(tries) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}', b"\xff", b'{"key": "x", "layers": []}'])
def test_a_damaged_memory_is_tried_again(tmp_path, tries, damage):
    witness_once(tmp_path)
    path = tmp_path / isolation.KEPT
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(damage)
    assert witness_once(tmp_path) == HELD
    assert len(tries) == 2


def test_a_helper_that_fails_shows_nothing_and_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "witness", list)
    assert witness_once(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_tells_what_is_missing_why_and_how_to_add_it():
    text = "\n".join(tell(MISSING))
    assert "this kernel has none" in text
    assert "start another" in text
    assert "Without landlock" in text
    assert "taken here" in tell(HELD)[-1]
    assert "helper" in tell([])[0]
    old = [Witnessed("landlock", True, "open", lacks="TCP (since Linux 6.7)"), HELD[2]]
    assert "but this kernel's does not deny: TCP (since Linux 6.7)" in "\n".join(tell(old))
    assert describe(old)["layers"][0]["lacks"] == "TCP (since Linux 6.7)"
    assert describe(HELD)["strangers_kernels"] is True
    assert describe(MISSING)["strangers_kernels"] is False


def test_the_command_prints_every_layer(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COPPERMESH_HOME", str(tmp_path))
    code = main(["doctor", "sandbox", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == (0 if said["strangers_kernels"] else 1)
    layers = [entry["layer"] for entry in said["layers"]]
    assert layers == [name for name in NAMES if name in layers]
    assert set(layers) >= {"landlock", "seccomp", "limits", "privileges", "netns"}
    assert main(["doctor", "sandbox"]) == code
    assert "landlock" in capsys.readouterr().out


# --- whether a GPU clears its memory between tenants

CARD = DeviceInfo(
    "gpu0", "cuda", "Stand-in", 1 << 30, 2 << 30, "9.0", "GPU-1", "999.1", "nvml", ("array-programs",), None
)
LEAKY = """
import json, signal, sys
if sys.argv[1] == "fill":
    print(json.dumps({"free": 1000, "filled": 800, "control": 5}), flush=True)
    signal.pause()
print(json.dumps({"free": 1000, "scanned": SCANNED, "found": FOUND}), flush=True)
"""


def stands_in(monkeypatch, text):
    monkeypatch.setattr(isolation, "SCRUB_COMMAND", [sys.executable, "-c", text])


def halves(found, scanned=800):
    return LEAKY.replace("FOUND", str(found)).replace("SCANNED", str(scanned))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (halves(0), ""),
        (halves(3), "3 words of a killed process were found"),
        (halves(0, 300), "too little was seen"),
        ("import sys; sys.exit(1)", "the process that tries it ended"),
        ("print('nonsense')", "could not be tried"),
        ("print('{\"free\": 1}')", "could not be tried"),
    ],
)
def test_a_scrub_is_announced_where_it_was_seen_and_only_there(tmp_path, monkeypatch, text, why):
    stands_in(monkeypatch, text)
    assert not scrub_was_seen(tmp_path, [CARD]), "nothing was tried yet"
    (entry,) = witness_scrub(tmp_path, [CARD])
    assert (entry.layer, entry.held) == ("vram-scrub", not why)
    assert why in entry.why
    assert scrub_was_seen(tmp_path, [CARD]) is not bool(why)


def test_what_was_seen_of_one_card_says_nothing_of_another(tmp_path, monkeypatch):
    stands_in(monkeypatch, halves(0))
    witness_scrub(tmp_path, [CARD])
    assert scrub_was_seen(tmp_path, [CARD])
    assert not scrub_was_seen(tmp_path, [replace(CARD, uuid="GPU-2")])
    assert not scrub_was_seen(tmp_path, [replace(CARD, driver="999.2")])
    assert not scrub_was_seen(tmp_path, [CARD, replace(CARD, device="gpu1", uuid="GPU-2")])
    assert not scrub_was_seen(tmp_path, []), "without a GPU nothing is claimed"
    assert witness_scrub(tmp_path, [replace(CARD, features=("simulated",), simulated=True)]) == []


def test_the_scrub_is_announced_with_the_layers_and_asked_for_by_name():
    assert announced(HELD, [NAMES], scrubbed=True) == ("netns", "landlock", "seccomp", "vram-scrub")
    assert announced([Witnessed("vram-scrub", True, "")], [NAMES]) == ()
    assert announced(HELD, [], scrubbed=True) == ()
    assert isolation_layers("landlock,vram-scrub") == ("landlock", "vram-scrub")
