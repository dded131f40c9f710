"""Addresses of payout accounts: published samples hold, and no single wrong character passes a checksum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.payout_addresses import address_problem

GOOD = [
    # EIP-55's own samples.
    ("evm", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"),
    ("evm", "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"),
    ("evm", "0x52908400098527886E0F7030069857D2E4169EE7"),
    ("evm", "0xde709f2102306220921060314715629080e2fb77"),
    # BIP-173 and BIP-350.
    ("bitcoin", "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4"),
    ("bitcoin", "tb1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3q0sl5k7"),
    ("bitcoin", "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0"),
    # The first block's, and a script's.
    ("bitcoin", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
    ("bitcoin", "3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy"),
    ("solana", "11111111111111111111111111111111"),
    ("solana", "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"),
    ("ed25519", "ab" * 32),
    ("iban", "GB82 WEST 1234 5698 7654 32"),
    ("iban", "DE89370400440532013000"),
    ("other-paypal", "anything at all"),
]
CHECKED = [pair for pair in GOOD if pair[0] in ("bitcoin", "iban") or pair[1].startswith("0x5aA")]


@pytest.mark.parametrize(("scheme", "address"), GOOD)
def test_published_addresses_hold(scheme: str, address: str):
    assert address_problem(scheme, address) == ""


@pytest.mark.parametrize(
    ("scheme", "address", "says"),
    [
        ("evm", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD", "EIP-55"),
        ("evm", "5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "want 0x"),
        ("bitcoin", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5", "checksum"),
        ("bitcoin", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kV8f3t4", "mixed"),
        ("bitcoin", "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqh2y7hd", "checksum"),
        ("bitcoin", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb", "checksum"),
        ("solana", "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5D0", "base58"),
        ("solana", "So1", "32 bytes"),
        ("iban", "DE88370400440532013000", "check digits"),
        ("iban", "DE00", "want two letters"),
        ("ed25519", "ab", "64"),
        ("paypal", "me@example.org", "other-paypal"),
        ("other-", "x", "no kind of account"),
        ("solana", "", "32 bytes"),
        ("bitcoin", "bc1", "bech32"),
    ],
)
def test_what_is_none_is_named(scheme: str, address: str, says: str):
    assert says in address_problem(scheme, address)


@given(st.sampled_from(CHECKED), st.data())
def test_one_wrong_character_never_passes(pair: tuple[str, str], data: st.DataObject):
    scheme, address = pair
    place = data.draw(st.integers(0, len(address) - 1))
    other = data.draw(
        st.sampled_from([c for c in "023456789acdefghjklmnpqrstuvwxyzABCDEFGH" if c != address[place]])
    )
    wrong = address[:place] + other + address[place + 1 :]
    if wrong.lower() == address.lower() or wrong.replace(" ", "") == address.replace(" ", ""):
        return
    assert address_problem(scheme, wrong)


@given(st.sampled_from(["evm", "bitcoin", "solana", "ed25519", "iban", "x"]), st.text(max_size=80))
def test_any_text_gets_an_answer(scheme: str, address: str):
    assert isinstance(address_problem(scheme, address), str)
