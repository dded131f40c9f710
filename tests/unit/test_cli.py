"""The command line where no agent is needed: usage, exit codes, and what goes to which stream."""

import json
import os
import sys

import pytest

from coppermesh.agent import screens
from coppermesh.agent.cli import main
from coppermesh.agent.home import Home
from coppermesh.agent.ledger import TaskIssued
from coppermesh.agent.ledger_store import open_ledger
from coppermesh.agent.option_types import WrongOption
from coppermesh.agent.peer_names import choose_peer
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.rehearsal import START_US, make_deal, settle
from coppermesh.agent.story import StoryLine
from coppermesh.agent.verbs import EXIT_FAILED, write_bytes
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id
from coppermesh.p2p.signing import PeerKey

REHEARSAL = mesh_id("rehearsal")


def exit_code(*arguments: str) -> int:
    """What a shell would see."""
    try:
        return main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["demo", "--tiles", "0"], "--tiles"),
        (["demo", "--tiles", "-3"], "--tiles"),
        (["demo", "--tiles", "100000"], "--tiles"),
        (["demo", "--output", "missing/x.png"], "--output"),
        (["receipts", "--limit", "0"], "--limit"),
        (["receipts", "--limit", "-1"], "--limit"),
        (["receipts", "list", "--limit", "x"], "--limit"),
        (["submit", "--deadline", "0", "x.py"], "--deadline"),
        (["submit", "--deadline", "-3", "x.py"], "--deadline"),
        (["submit", "--deadline", "nan", "x.py"], "--deadline"),
        (["submit", "--isolation", "moat", "x.py"], "--isolation"),
        (["submit", "--isolation", "", "x.py"], "--isolation"),
        (["submit", "--isolation", "landlock,,seccomp", "x.py"], "--isolation"),
        (["agent", "--listen", "localhost"], "--listen"),
        (["agent", "--bootstrap", "/ip4/127.0.0.1/tcp/1"], "--bootstrap"),
        (["agent", "--allow", "me"], "--allow"),
        (["agent", "--rate", "-1"], "--rate"),
        (["agent", "--rate", "1.5"], "--rate"),
        (["agent", "--slots", "0"], "--slots"),
        (["agent", "--mesh", ""], "--mesh"),
        (["agent", "--idle-exit", "0"], "--idle-exit"),
        (["agent", "--home", ""], "--home"),
        (["receipts", "show", "--home", "", "00"], "--home"),
        (["explain", ""], "job"),
        (["cancel", "xyz"], "job"),
        (["receipts", "show", ""], "receipt"),
    ],
)
def test_a_wrong_value_is_wrong_usage_and_names_its_option(tmp_path, monkeypatch, capsys, arguments, option):
    monkeypatch.chdir(tmp_path)
    assert exit_code(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.splitlines()[-1]
    assert option in last
    assert "Traceback" not in said.err
    assert not list(tmp_path.iterdir())


def test_layers_are_handed_to_the_script_as_the_default(tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text(
        "from coppermesh.agent.job_options import chosen_options as chosen, options_from_environment as asked\n"
        "print(chosen(asked()).isolation, chosen({**asked(), 'isolation': ('uid',)}).isolation)\n"
        "print(chosen(asked()).model, chosen(asked()).min_speed, chosen(asked()).redundancy)\n"
    )
    for name in ("COPPERMESH_OPTIONS", "COPPERMESH_HOME"):
        monkeypatch.setenv(name, "")  # so that what `submit` sets is unset afterwards
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    layers = "seccomp, landlock,netns,seccomp"
    market = ("--model", "h100", "--min-speed", "9000", "--redundancy", "2")
    assert (
        exit_code("submit", "--home", str(tmp_path), "--quiet", "--isolation", layers, *market, str(script))
        == 0
    )
    assert capsys.readouterr().out == "('seccomp', 'landlock', 'netns') ('uid',)\nh100 9000 2\n"


def test_a_misspelled_layer_is_told_the_near_one(capsys):
    assert exit_code("submit", "--isolation", "landlok", "x.py") == 2
    assert "did you mean landlock?" in capsys.readouterr().err


def test_the_demo_does_not_start_where_it_may_not_keep(tmp_path, capsys):
    taken = tmp_path / "file"
    taken.write_text("")
    assert exit_code("demo", "--keep", str(taken / "below"), "--output", str(tmp_path / "x.png")) == 2
    assert capsys.readouterr().err.startswith("coppermesh: --keep ")


def test_an_empty_home_is_refused_and_the_current_directory_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COPPERMESH_HOME", "")
    assert exit_code("id") == 5
    assert "COPPERMESH_HOME is set and empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_an_agent_it_is_said_how_to_start_one(tmp_path, capsys):
    assert exit_code("status", "--home", str(tmp_path)) == 3
    assert f"coppermesh agent --home {tmp_path}" in capsys.readouterr().err


def test_id_as_json_names_peer_and_mesh(tmp_path, capsys):
    assert exit_code("id", "--home", str(tmp_path), "--json", "--mesh", "lab") == 0
    facts = json.loads(capsys.readouterr().out)
    peer = PeerKey.load(Home(tmp_path).key_path(mesh_id("lab"))).peer
    assert facts == {"peer": format_peer(peer), "mesh": "lab"}


def story(kind: str, text: str, task: int | None = None, job: int = 1) -> StoryLine:
    return StoryLine(job.to_bytes(16, "big"), START_US + job, "", kind, None, task, text)


async def make_books(home: Home, *lines: StoryLine) -> str:
    """A home with a ledger of one paid receipt, whose id is returned."""
    home.prepare()
    home.config_path.write_text('mesh = "rehearsal"\n')
    deal = make_deal(1)
    async with open_ledger(home.ledger_path(REHEARSAL), REHEARSAL, deal.requester.peer) as store:
        task = deal.task(0)
        receipt = deal.receipt(task, LaneHead())
        await store.commit(deal.offered(), deal.answered())
        await store.commit(TaskIssued(task.signed))
        await store.commit(settle(receipt, deal.answer(receipt, LaneHead())))
        for line in lines:
            store.note(line)
    return receipt.id.hex()


async def test_empty_lists_are_talk_and_their_json_is_data(tmp_path, capsys):
    home = Home(tmp_path / "home")
    home.prepare()
    home.config_path.write_text('mesh = "rehearsal"\n')
    deal = make_deal(1)
    async with open_ledger(home.ledger_path(REHEARSAL), REHEARSAL, deal.requester.peer):
        pass
    for arguments, sentence in ((["receipts"], "no receipts yet"), (["jobs"], "no jobs yet")):
        assert exit_code(*arguments, "--home", str(home.path)) == 0
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", f"coppermesh: {sentence}\n")
        assert exit_code(*arguments, "--home", str(home.path), "--json") == 0
        assert capsys.readouterr().out == "[]\n"


def test_nobody_and_nothing_known_is_talk():
    assert screens.peers({"peers": [], "bootstrap": []}) == []
    assert screens.devices({"devices": []}) == []
    assert screens.NOTHING.keys() >= {"peers", "devices", "receipts", "jobs"}


async def test_receipts_are_listed_shown_and_saved(tmp_path, capsysbinary):
    home = Home(tmp_path / "home")
    receipt = await make_books(home)
    place = ["--home", str(home.path)]
    assert exit_code("receipts", "list", *place) == 0
    listed = capsysbinary.readouterr().out
    assert exit_code("receipts", *place) == 0
    assert capsysbinary.readouterr().out == listed
    assert exit_code("receipts", "show", receipt[:10], *place) == 0
    shown = capsysbinary.readouterr().out.decode()
    assert "3 (0.000003 usd)" in shown
    assert "2500 (2.500 ms)" in shown
    assert "3600000 (3.600000 usd per device-hour)" in shown

    file = tmp_path / "receipt"
    assert exit_code("receipts", "save", receipt, str(file), *place) == 0
    saved = file.read_bytes()
    capsysbinary.readouterr()
    assert exit_code("receipts", "save", receipt, "-", *place) == 0
    assert capsysbinary.readouterr().out == saved
    file.write_bytes(b"mine")
    assert exit_code("receipts", "save", receipt, str(file), *place) == 1
    assert b"--force" in capsysbinary.readouterr().err
    assert file.read_bytes() == b"mine"
    assert exit_code("receipts", "save", receipt, str(file), "--force", *place) == 0
    assert exit_code("receipts", "save", receipt, str(tmp_path / "no" / "file"), *place) == 1
    assert b"No such file or directory" in capsysbinary.readouterr().err
    assert exit_code("receipts", "verify", str(file)) == 0
    assert b"3 (0.000003 usd)" in capsysbinary.readouterr().out
    assert exit_code("receipts", "show", "ff" * 32, *place) == 1


@pytest.mark.parametrize("place", [0, 1, 3, -1])
async def test_a_changed_receipt_file_is_told_in_plain_words(tmp_path, capsys, place):
    receipt = await make_books(Home(tmp_path / "home"))
    file = tmp_path / "receipt"
    assert exit_code("receipts", "save", receipt, str(file), "--home", str(tmp_path / "home")) == 0
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert exit_code("receipts", "verify", str(file)) == 1
    said = capsys.readouterr().out
    assert said.startswith("NOT VALID: ")
    assert "not a receipt of this version, or was changed" in said or "signature" in said
    for validator_word in ("regex", "$[", "Unpack", "codec"):
        assert validator_word not in said


async def test_jobs_tells_what_became_of_each(tmp_path, capsys):
    home = Home(tmp_path / "home")
    await make_books(
        home,
        story("submitted", "1 task"),
        story("done", "1 of 1 tasks"),
        story("submitted", "3 tasks", job=2),
        story("gave-up", "no-provider: nobody", job=2),
        story("submitted", "2 tasks", job=3),
    )
    assert exit_code("jobs", "--home", str(home.path), "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["job"][-1] for row in rows] == ["3", "2", "1"]
    assert [(row["tasks"], row["done"], row["state"], row["code"], row["cost"]) for row in rows] == [
        (2, 0, "unknown", "", 0),
        (3, 0, "failed", "no-provider", 0),
        (1, 1, "done", "", 3),
    ]
    assert exit_code("jobs", "--home", str(home.path), "--limit", "2") == 0
    table = capsys.readouterr().out
    assert "failed (no-provider)" in table
    assert len(table.splitlines()) == 3


DEVICE = {
    "peer": "12D3KooWabcdefgh",
    "own": False,
    "device": "cpu",
    "kind": "cpu",
    "name": "a processor",
    "memory_bytes": 1 << 30,
    "rate": 1,
    "unit": "usd",
    "features": ["array-programs"],
    "paused": False,
    "busy_slots": 1,
}


def test_what_is_not_connected_is_away():
    (_, near) = screens.devices({"devices": [{**DEVICE, "connected": True}]})
    (_, far) = screens.devices({"devices": [{**DEVICE, "connected": False}]})
    assert near.endswith("1 busy")
    assert far.endswith("away")
    peer = {"peer": "12D3KooWabcdefgh", "since_s": None, "devices": [], "paused": False, "address": None}
    peer |= {"found": "mdns", "path": None, "latency_ms": None, "trust": "", "reached_at": None}
    (_, row) = screens.peers({"peers": [{**peer, "connected": False}], "bootstrap": []})
    assert "away" in row


def test_a_row_of_devices_fits_a_terminal_whatever_a_device_takes():
    features = ["array-programs", "cuda-source", *(f"feature-{number}" for number in range(30))]
    device = {
        **DEVICE,
        "own": True,
        "name": "NVIDIA GeForce RTX 4090 of some maker",
        "memory_bytes": 24 << 30,
    }
    (_, row) = screens.devices(
        {"devices": [{**device, "features": features, "rate": 30_000, "connected": True}]}
    )
    assert len(row) <= 100
    assert "arrays, kernels +30" in row
    assert "0.03 usd/h" in row


def test_an_unreachable_bootstrap_is_shown_with_its_error():
    lost = {"address": "/ip4/192.0.2.1/tcp/1/p2p/x", "connected": False, "error": "refused\x1b[2J"}
    found = {"address": "/ip4/192.0.2.2/tcp/1/p2p/y", "connected": True, "error": None}
    (row,) = screens.peers({"peers": [], "bootstrap": [lost, found]})
    assert row == "bootstrap /ip4/192.0.2.1/tcp/1/p2p/x: refused\\x1b[2J"


def test_one_is_not_counted_in_the_plural():
    assert [screens.counted(number, "job") for number in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]


def test_what_an_agent_said_last_is_raised_as_its_own_error(tmp_path, monkeypatch, capsys):
    """A typo in the settings, through `submit`: the agent's sentence and its exit code, and no pointer to a log."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text('bootstrapp = ["x"]\n')
    script = tmp_path / "script.py"
    script.write_text("import coppermesh as cm\ncm.connect()\n")
    monkeypatch.setenv("COPPERMESH_HOME", str(home))
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", list(sys.path))
    assert exit_code("submit", "--home", str(home), str(script)) == 5
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "bootstrapp" in sentence
    assert "log" not in sentence.replace("bootstrapp", "")


def test_a_home_without_room_for_a_log_is_one_line(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    (home / "agent.log").mkdir(parents=True)
    home.chmod(0o700)
    script = tmp_path / "script.py"
    script.write_text("import coppermesh as cm\ncm.connect()\n")
    monkeypatch.setenv("COPPERMESH_HOME", str(home))
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", list(sys.path))
    assert exit_code("submit", "--home", str(home), str(script)) == 5
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "agent.log cannot be written" in sentence


def test_a_key_that_others_can_read_is_told_through_submit_as_by_the_agent(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    assert exit_code("id", "--home", str(home)) == 0
    (key,) = home.rglob("key")
    key.chmod(0o644)
    script = tmp_path / "script.py"
    script.write_text("import coppermesh as cm\ncm.connect()\n")
    monkeypatch.setenv("COPPERMESH_HOME", str(home))
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", list(sys.path))
    capsys.readouterr()
    assert exit_code("submit", "--home", str(home), str(script)) == 5
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"chmod 0600 {key}" in sentence


def test_the_home_of_a_seed_takes_no_jobs_and_says_so_at_once(tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text("import coppermesh as cm\ncm.connect()\n")
    home = Home(tmp_path / "seed")
    monkeypatch.setenv("COPPERMESH_HOME", str(home.path))
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", list(sys.path))
    with home.lock(seed=True):
        assert exit_code("submit", "--home", str(home.path), str(script)) == 4
        assert exit_code("status", "--home", str(home.path)) == 3
    for sentence in capsys.readouterr().err.splitlines():
        assert "that of a seed, which runs already (process " in sentence
        assert "choose another home with --home" in sentence


def test_who_asks_an_agent_that_is_only_starting_is_told_to_wait(tmp_path, capsys):
    home = Home(tmp_path / "home")
    with home.lock():
        assert exit_code("status", "--home", str(home.path)) == 3
    assert f"(process {os.getpid()}) does not answer: it is starting or ending" in capsys.readouterr().err


def test_the_end_of_a_peer_id_is_enough_where_one_known_peer_has_it():
    one, other = (format_peer(PeerId(bytes([number]) * 32)) for number in (1, 2))
    assert choose_peer(one[-8:], {one, other}) == one
    with pytest.raises(Refused, match="no peer known here ends in 'xxxxxxxx': want a peer id like 12D3KooW"):
        choose_peer("xxxxxxxx", {one, other})
    with pytest.raises(Refused, match="several peers end in"):
        choose_peer(one[-1], {one, "12D3KooWx" + one[-1]})


@pytest.mark.parametrize(
    "verb", [["reputation"], ["statement", "propose"], ["ledger", "compare"], ["payout", "show"]]
)
def test_a_peer_may_be_named_by_its_end_and_nonsense_is_told_the_form(tmp_path, capsys, verb):
    assert exit_code(*verb, "abcdefgh", "--home", str(tmp_path)) == EXIT_FAILED
    assert "no peer known here ends in 'abcdefgh'" in capsys.readouterr().err
    assert exit_code(*verb, "abc", "--home", str(tmp_path)) == 2
    assert (
        "want a peer id like 12D3KooW..., or the last characters that tables show" in capsys.readouterr().err
    )


def test_money_is_asked_for_with_its_unit(capsys):
    assert exit_code("submit", "--max-rate", "0.01", "x.py") == 2
    assert "want a whole number of 10^-6 usd per device-hour (0.01 usd is 10000)" in capsys.readouterr().err


def test_bytes_are_not_written_to_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(WrongOption, match="-o FILE"):
        write_bytes(None, b"proof", force=False)


@pytest.mark.parametrize(
    ("arguments", "whose"),
    [
        (("mesh", "leave", "lab"), "mesh leave"),
        (("jobs", "--home", "mesh", "x"), "jobs"),
        (("pause", "-z"), "pause"),
    ],
)
def test_what_nobody_asked_for_is_told_with_the_usage_of_its_own_command(arguments, whose, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: coppermesh {whose} ")
    assert f"coppermesh {whose}: error: unrecognized arguments: {arguments[-1]}" in told
