"""Proofs of many records at once lead to the same root as RFC 6962's, and to no other."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger.errors import ConfigError
from gradledger.merkle import Tree, merkle_path, merkle_root, root_of_shared


def records(count: int) -> list[bytes]:
    return [f"record {number}".encode() for number in range(count)]


@pytest.mark.parametrize("count", [*range(1, 20), 255, 256, 257])
def test_the_root_is_that_of_the_rfc(count: int) -> None:
    assert Tree(records(count)).root == merkle_root(records(count))


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_a_shared_path_leads_to_the_root_and_nothing_else_does(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 70))
    indices = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    whole = records(count)
    tree, chosen = Tree(whole), [whole[index] for index in indices]
    nodes = tree.shared_path(indices)
    assert root_of_shared(chosen, indices, count, nodes) == tree.root
    assert len(nodes) <= sum(len(merkle_path(whole, index)) for index in indices)

    other = [b"another", *chosen[1:]]
    assert root_of_shared(other, indices, count, nodes) != tree.root
    assert root_of_shared(chosen, indices, count, [*nodes, bytes(32)]) is None
    if nodes:
        assert root_of_shared(chosen, indices, count, nodes[:-1]) is None
        place = data.draw(st.integers(0, len(nodes) - 1))
        wrong = [*nodes[:place], hashlib.sha256(nodes[place]).digest(), *nodes[place + 1 :]]
        assert root_of_shared(chosen, indices, count, wrong) != tree.root
    elsewhere = data.draw(st.integers(0, count - 1))
    if elsewhere not in indices:
        moved = sorted([elsewhere, *indices[1:]])
        assert root_of_shared(chosen, moved, count, nodes) != tree.root


def test_one_record_needs_the_path_of_the_rfc() -> None:
    whole = records(11)
    for index in range(11):
        assert Tree(whole).shared_path([index]) == merkle_path(whole, index)


def test_all_records_need_no_hashes() -> None:
    assert Tree(records(7)).shared_path(list(range(7))) == []


@pytest.mark.parametrize("indices", [[], [-1], [5], [2, 1], [1, 1]])
def test_wrong_indices(indices: list[int]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Tree(records(5)).shared_path(indices)


def test_an_empty_tree_is_none() -> None:
    with pytest.raises(ConfigError, match="at least one record"):
        Tree([])
