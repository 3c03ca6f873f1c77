"""Seeds of independent random streams."""

import hashlib


def stream(*key: object) -> int:
    """Seed of an independent random stream, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")
