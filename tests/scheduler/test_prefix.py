"""A key stands for its tokens and all that came before, and no other key is like it."""

import hashlib
import itertools
from array import array

from hypothesis import assume, given
from hypothesis import strategies as st

from scheduler.prefix import block_key, root
from tests.scheduler.simulation import numbers, request

TOKEN_IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)


def test_a_key_is_a_chain_of_sha256_over_the_parent_and_64_bit_tokens() -> None:
    parent = hashlib.sha256(b"key-1").digest()
    assert root("key-1") == parent
    tokens = b"".join(token.to_bytes(8, "little") for token in (1, 2, 200_000))
    assert array("q", [1]).tobytes() == (1).to_bytes(8, "little"), "this machine is little-endian"
    assert block_key(parent, [1, 2, 200_000]) == hashlib.sha256(parent + tokens).digest()


@given(TOKEN_IDS, TOKEN_IDS)
def test_other_tokens_have_another_key(first: list[int], second: list[int]) -> None:
    assume(first != second)
    assert block_key(root(""), first) != block_key(root(""), second)


@given(TOKEN_IDS, st.text(), st.text())
def test_other_salts_have_other_keys(token_ids: list[int], first: str, second: str) -> None:
    assume(first != second)
    assert block_key(root(first), token_ids) != block_key(root(second), token_ids)


def test_order_and_place_matter() -> None:
    keys = [block_key(root(""), tokens) for tokens in itertools.permutations((1, 2, 3))]
    keys.append(block_key(block_key(root(""), (1, 2)), (3,)))
    assert len(set(keys)) == 7


def test_lists_and_tuples_of_the_same_tokens_have_the_same_key() -> None:
    assert block_key(root(""), [1, 2, 3]) == block_key(root(""), (1, 2, 3))


def test_a_sequence_names_its_blocks_by_the_chain() -> None:
    sequence = request("r", numbers(10), salt="key-1")
    first = block_key(root("key-1"), numbers(4))
    second = block_key(first, numbers(4, first=4))
    assert sequence.block_key(1, 4) == second
    assert list(sequence.block_keys(2, 4)) == [first, second]
    assert list(sequence.block_keys(1, 4)) == [first]


def test_keys_are_computed_only_as_far_as_they_are_asked_for() -> None:
    sequence = request("r", numbers(40))
    keys = sequence.block_keys(10, 4)
    assert len([next(keys), next(keys)]) == 2
    assert len(sequence._block_keys) == 2
    assert len([*keys]) == 8


def test_a_sibling_has_the_keys_of_its_leader_as_far_as_the_prompt_goes() -> None:
    leader = request("r", numbers(8), max_tokens=9)
    leader.token_ids += [30, 31, 32, 33]
    sibling = leader.fork(1)
    sibling.token_ids += [34, 35, 36, 37]
    keys = [leader.block_key(number, 4) for number in range(3)]
    assert list(sibling.block_keys(3, 4))[:2] == keys[:2]
    assert sibling.block_key(2, 4) == block_key(keys[1], [34, 35, 36, 37])
