"""Whether an address can be one of its scheme: a typing error in a payout account is money that is gone (pure).

Known are `evm` (20 bytes in hexadecimal digits; mixed case has to be EIP-55's, all small letters have no checksum),
`bitcoin` (segwit, BIP-173 and BIP-350; or base58 with its checksum), `solana` (base58 of 32 bytes), `ed25519` (64
hexadecimal digits) and `iban` (ISO 13616, check digits modulo 97). What has another scheme is not checked, and says so
by its name: `other-...`.
"""

from collections.abc import Callable
from hashlib import sha256

from Crypto.Hash import keccak

OTHER = "other-"
"""What schemes begin with whose addresses nobody checks."""
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_STEPS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_BECH32_SUM, _BECH32M_SUM = 1, 0x2BC830A3
_BITCOIN_PREFIXES = {"bc", "tb", "bcrt"}
_BITCOIN_VERSIONS = {0, 5, 111, 196}


def address_problem(scheme: str, address: str) -> str:
    """What is wrong with it, as a sentence; empty where nothing is. An unknown scheme is wrong, too."""
    if scheme.startswith(OTHER) and len(scheme) > len(OTHER):
        return ""
    check = _CHECKS.get(scheme)
    if check is None:
        known = ", ".join(_CHECKS)
        return f"{scheme}: no kind of account that is known here ({known}); write {OTHER}{scheme} to bind it unchecked"
    problem = check(address)
    return f"{address!r} is no {scheme} address: {problem}" if problem else ""


def _evm(address: str) -> str:
    digits = address[2:]
    if not address.startswith("0x") or len(digits) != 40 or not _is_hex(digits):
        return "want 0x and 40 hexadecimal digits"
    if digits in (digits.lower(), digits.upper()):
        return ""
    hashed = keccak.new(digest_bits=256, data=digits.lower().encode()).hexdigest()
    right = "".join(
        digit.upper() if int(nibble, 16) >= 8 else digit
        for digit, nibble in zip(digits.lower(), hashed, strict=False)
    )
    return "" if digits == right else "its capital letters are not EIP-55's: a digit is wrong"


def _solana(address: str) -> str:
    data = _from_base58(address)
    return "" if data is not None and len(data) == 32 else "want 32 bytes in base58"


def _ed25519(address: str) -> str:
    return "" if len(address) == 64 and _is_hex(address) else "want 64 hexadecimal digits"


def _bitcoin(address: str) -> str:
    if address.lower().partition("1")[0] in _BITCOIN_PREFIXES:
        return _segwit(address)
    data = _from_base58(address)
    if data is None or len(data) != 25 or data[0] not in _BITCOIN_VERSIONS:
        return "neither segwit (bc1...) nor 25 bytes in base58"
    right = sha256(sha256(data[:21]).digest()).digest()[:4] == data[21:]
    return "" if right else "its checksum is wrong: a character is"


def _segwit(address: str) -> str:
    """BIP-173: a checksum over prefix and data in groups of five bits; BIP-350: another one from version 1 on."""
    if address not in (address.lower(), address.upper()) or len(address) > 90:
        return "small and capital letters are mixed, or it is too long"
    prefix, _, rest = address.lower().rpartition("1")
    values = [_BECH32.find(character) for character in rest]
    if -1 in values or len(values) < 8:
        return "a character that is none of bech32's"
    expanded = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    found = _bech32_sum(expanded + values)
    version, program = values[0], _eight_bits(values[1:-6])
    if found != (_BECH32_SUM if version == 0 else _BECH32M_SUM):
        return "its checksum is wrong: a character is"
    if program is None or version > 16 or not 2 <= len(program) <= 40:
        return "no program that any version has"
    return "" if version or len(program) in (20, 32) else "version 0 has 20 or 32 bytes"


def _bech32_sum(values: list[int]) -> int:
    total = 1
    for value in values:
        top = total >> 25
        total = (total & 0x1FFFFFF) << 5 ^ value
        for place, step in enumerate(_BECH32_STEPS):
            total ^= step if top >> place & 1 else 0
    return total


def _eight_bits(groups: list[int]) -> bytes | None:
    """Groups of five bits as bytes; None where more than padding is left over."""
    bits = "".join(f"{group:05b}" for group in groups)
    whole = len(bits) // 8 * 8
    if len(bits) - whole > 4 or "1" in bits[whole:]:
        return None
    return bytes(int(bits[at : at + 8], 2) for at in range(0, whole, 8))


def _iban(address: str) -> str:
    compact = address.replace(" ", "")
    shape = 15 <= len(compact) <= 34 and compact.isascii() and compact.isalnum()
    if not shape or not compact[:2].isalpha() or not compact[2:4].isdigit() or compact != compact.upper():
        return "want two letters, two digits, and 11 to 30 capital letters and digits"
    number = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return "" if int(number) % 97 == 1 else "its check digits are wrong: a character is"


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdefABCDEF" for character in text)


def _from_base58(text: str) -> bytes | None:
    number = 0
    for character in text:
        digit = _BASE58.find(character)
        if digit < 0:
            return None
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


_CHECKS: dict[str, Callable[[str], str]] = {
    "evm": _evm,
    "bitcoin": _bitcoin,
    "solana": _solana,
    "ed25519": _ed25519,
    "iban": _iban,
}
