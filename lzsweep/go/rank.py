"""Players' ranks, as servers and collections in many languages write them."""

from __future__ import annotations

import re

_WEST_RANK = re.compile(
    r"\s*(\d{1,2})\s*-?\s*(d|dan|k|kyu|p|段|級|级|단|급)(?![a-z])", re.IGNORECASE
)
_EAST_RANK = re.compile(r"\s*([初一二三四五六七八九])\s*([段級级])")
_NUMERALS = {numeral: n for n, numeral in enumerate("一二三四五六七八九", start=1)} | {"初": 1}
_KYU = ("k", "kyu", "級", "级", "급")
_PROFESSIONAL = 9  # 1p ranks right above 9d

ENCODINGS = ("utf-8", "gb18030", "shift_jis", "big5", "euc_kr", "euc_jp")
"""What ranks are written in, where the file does not say or says it wrongly."""


def rank_level(text: str) -> int | None:
    """A number that grows with strength: 30k..1k are -29..0, then 1d..9d, then 1p and up."""
    if found := _EAST_RANK.match(text):
        number, unit = _NUMERALS[found[1]], found[2]
    elif found := _WEST_RANK.match(text):
        number, unit = int(found[1]), found[2].lower()
    else:
        return None
    if unit in _KYU:
        return 1 - number
    return number + _PROFESSIONAL if unit == "p" else number


def decode_rank(value: bytes, charset: str = "") -> str:
    """A rank's text in the first encoding that makes a rank of it.

    Nearly any bytes are text in nearly any encoding, of other characters; only that a rank comes
    of them tells which one was meant.

    Args:
        value: As it is in the file.
        charset: What the file says of itself; it is tried first.

    Returns:
        If none makes a rank, what the first one gives that can decode it.
    """
    texts = []
    for name in (charset, *ENCODINGS, "latin-1"):
        try:
            texts.append(value.decode(name).strip())
        except (LookupError, ValueError):
            continue
        if rank_level(texts[-1]) is not None:
            return texts[-1]
    return texts[0]
