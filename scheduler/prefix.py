"""Names for what a block holds: a key stands for its tokens and for all that came before them.

A chain of SHA-256, so that no one can make two prefixes meet; its root is salted, so that callers
who must not learn of each other's prompts share nothing.
"""

import hashlib
from array import array
from collections.abc import Sequence as TokenIds

BlockKey = bytes


def root(salt: str) -> BlockKey:
    """The key before the first block."""
    return hashlib.sha256(salt.encode()).digest()


def block_key(parent: BlockKey, token_ids: TokenIds[int]) -> BlockKey:
    """The key of a block that holds these tokens and follows `parent`."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()
