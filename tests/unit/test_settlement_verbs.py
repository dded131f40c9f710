"""`receipts proof`, `statement`, `payout`, `reputation` where no agent runs: files in, files out, refusals."""

import json
import shutil
from pathlib import Path

import pytest

from coppermesh.agent.cli import main
from coppermesh.agent.home import Home
from coppermesh.agent.rehearsal import rehearsal_key
from coppermesh.agent.settlement_commands import base58, read_account_key
from coppermesh.p2p.errors import IdentityError
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id

SAVED = Path(__file__).parent / "data" / "ledger_v1.sqlite"
LIAR, CUSTOMER = rehearsal_key(1).peer, rehearsal_key(3).peer


@pytest.fixture
def home(tmp_home: Path, capsys: pytest.CaptureFixture[str]) -> Home:
    """Bought from peer 1, against whom a proof is kept; sold to peer 3, who left one receipt unanswered."""
    found = Home(tmp_home)
    found.config_path.write_text('mesh = "rehearsal"\n')
    shutil.copy(SAVED, found.ledger_path(mesh_id("rehearsal")))
    assert main(["ledger", "migrate"]) == 0
    capsys.readouterr()
    return found


def test_a_proof_is_listed_written_and_checked_elsewhere(home, tmp_path, capsys):
    assert main(["receipts", "proof"]) == 0
    said = capsys.readouterr().out
    assert "equivocation" in said
    assert "by itself" in said
    assert main(["receipts", "proof", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["peer"], row["proven"]) == (format_peer(LIAR), True)
    path = tmp_path / "proof.bin"
    assert main(["receipts", "proof", "1", "-o", str(path)]) == 0
    assert main(["receipts", "proof", "1", "-o", str(path)]) == 1, "there already"
    assert main(["receipts", "proof", "2", "-o", str(path), "--force"]) == 1
    assert "no proof number 2" in capsys.readouterr().err
    assert main(["receipts", "verify", str(path)]) == 0
    assert f"a proof against {format_peer(LIAR)}: it signed two receipts" in capsys.readouterr().out
    assert main(["receipts", "verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "equivocation"
    data = path.read_bytes()
    for position in range(0, len(data), 37):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        assert main(["receipts", "verify", str(path)]) == 1
    capsys.readouterr()


def test_reputations_have_reasons_and_a_proof_ends_them(home, capsys):
    assert main(["reputation", "--json"]) == 0
    rows = {row["peer"]: row for row in json.loads(capsys.readouterr().out)}
    liar, customer = rows[format_peer(LIAR)], rows[format_peer(CUSTOMER)]
    assert (liar["score"], liar["exposure"]) == (0, 0)
    assert "its own signatures prove it: equivocation" in liar["reasons"]
    assert "1 of our receipts unanswered" in customer["reasons"][0]
    stranger = format_peer(PeerId(bytes([9]) * 32))
    assert main(["reputation", stranger]) == 0
    said = capsys.readouterr().out
    assert "500 of 1000" in said
    assert "stranger" in said


def test_what_is_not_there_is_said(home, capsys):
    assert main(["statement"]) == 0
    assert "no statement yet" in capsys.readouterr().err
    assert main(["statement", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    for arguments, says in (
        (["statement", "show", "ab"], "no statement here begin"),
        (["statement", "settle", "ab"], "no statement here begin"),
        (["payout"], "no payout account"),
        (["statement", "prove", "0"], ""),
    ):
        assert main(arguments) == 1
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["statement", "propose", format_peer(LIAR)],
        ["payout", "bind", "iban", "DE00"],
        ["payout", "show", format_peer(LIAR)],
        ["ledger", "compare", format_peer(LIAR)],
    ],
)
def test_what_needs_an_agent_says_so(home, capsys, arguments):
    assert main(arguments) == 3
    assert "coppermesh agent" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["statement", "propose", "me"],
        ["payout", "bind", "IBAN", "x"],
        ["payout", "bind", "iban", "x", "--days", "0"],
        ["reputation", "x"],
        ["receipts", "proof", "0"],
        ["ledger", "compare"],
    ],
)
def test_wrong_words_are_wrong_usage(home, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_an_accounts_key_is_read_from_either_kind_of_file(tmp_path):
    key = rehearsal_key(77)
    solana = tmp_path / "wallet.json"
    solana.write_text(json.dumps(list(key.libp2p_seed() + key.peer)))
    solana.chmod(0o600)
    found, address = read_account_key(solana, "solana")
    assert found.peer == key.peer
    assert address == base58(key.peer)
    solana.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        read_account_key(solana, "solana")
    solana.chmod(0o600)
    for text in ("[1, 2]", "[" + "300," * 63 + "0]", json.dumps(list(key.libp2p_seed() + bytes(32))), "[[[["):
        solana.write_text(text)
        with pytest.raises(IdentityError):
            read_account_key(solana, "solana")
    with pytest.raises(IdentityError):
        read_account_key(tmp_path / "none", "solana")


def test_base58_is_solanas():
    assert base58(PeerId(bytes(32))) == "1" * 32  # the system program
    token = bytes.fromhex("06ddf6e1d765a193d9cbe146ceeb79ac1cb485ed5f5b37913a8cf5857eff00a9")
    assert base58(PeerId(token)) == "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"
