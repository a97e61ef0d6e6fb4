"""The tree, its proofs and the texts of checkpoints, compared with other implementations."""

import json
from dataclasses import replace
from hashlib import sha256
from string import ascii_letters, digits
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_history import InvalidInput, NotProven
from async_history._core.ledger.checkpoint import Checkpoint, LedgerKey, LedgerVerifier
from async_history._core.ledger.leaves import RECORD, values_bundle
from async_history._core.ledger.tiles import Tile, grown, last_tiles, roots_from, tiles_of
from async_history._core.ledger.tree import (
    Range,
    growth_ranges,
    has_grown,
    inclusion_ranges,
    is_included,
    leaf_hash,
    node_hash,
)
from tests.ledger.ledgers import naive_root

pytestmark = pytest.mark.once

VALUES = st.one_of(st.none(), st.text(), st.sampled_from([0, 1, True, 1.5, '"\\\n\x1f\x7f"']))
TEXTS = ["id", "m", "was", "is", "ADD", "2026", "2027", 1, "a", "user", '{"a":1}', "{}"]
LEAVES = tuple(
    map(
        bytes.fromhex,
        (
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ),
    )
)
# From Certificate Transparency's reference implementation (certificate-transparency/go/merkletree).
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def stored(leaves: list[bytes], parts: list[int]) -> dict[Tile, bytes]:
    """Return the tiles of a tree to which leaves were appended in parts."""
    tiles: dict[Tile, bytes] = {}
    size = 0
    for part in parts:
        new = b"".join(map(leaf_hash, leaves[size : size + part]))
        tiles |= grown(size, {tile: tiles[tile] for tile in last_tiles(size)}, new)
        size += part
    return tiles


def roots(ranges: list[Range], tiles: dict[Tile, bytes]) -> list[bytes]:
    return roots_from(ranges, {tile: tiles[tile] for tile in tiles_of(ranges)})


class TestTree:
    def test_its_roots_equal_those_of_certificate_transparency(self) -> None:
        for size, root in enumerate(ROOTS):
            leaves = list(LEAVES[:size])
            (computed,) = roots([(0, size)], stored(leaves, [1] * size))
            assert computed.hex() == root == naive_root(leaves).hex()

    def test_a_tree_grown_in_any_parts_equals_the_naive_one(self) -> None:
        parts = [256, 1, 700, 255, 40, 1, 257, 3, 511, 600]
        leaves = [b"%d" % number for number in range(sum(parts))]
        tiles = stored(leaves, parts)
        for size in (1, 2, 255, 256, 257, 511, 512, 513, 1_800):
            assert roots([(0, size)], tiles) == [naive_root(leaves[:size])]

    def test_a_third_level_of_tiles_begins_where_the_second_is_full(self) -> None:
        leaves = [b""] * 65_537
        (root,) = roots([(0, 65_537)], stored(leaves, [65_000, 537]))
        level = leaf_hash(b"")
        for _ in range(16):
            level = node_hash(level, level)
        assert root == node_hash(level, leaf_hash(b""))

    def test_each_proof_holds_and_no_changed_one_does(self) -> None:
        leaves = [b"%d" % number for number in range(600)]
        tiles = stored(leaves, [600])
        sizes = [*range(1, 18), 255, 256, 257, 512, 599, 600]
        whole = {size: roots([(0, size)], tiles)[0] for size in sizes}
        other = leaf_hash(b"other")
        for size in sizes:
            for index in {0, 1, size // 2, size - 1} & set(range(size)):
                path = roots(inclusion_ranges(index, size), tiles)
                leaf = leaf_hash(leaves[index])
                assert is_included(leaf, index, size, path, whole[size])
                assert not is_included(other, index, size, path, whole[size])
                assert not is_included(leaf, index + 1, size, path, whole[size])
                assert not is_included(leaf, index, size, [*path, other], whole[size])
                assert not path or not is_included(leaf, index, size, path[:-1], whole[size])
                assert not is_included(leaf, index, size, path, other)
            for old in sizes:
                if old > size:
                    continue
                path = roots(growth_ranges(old, size), tiles)
                assert has_grown(old, size, path, whole[old], whole[size])
                assert not has_grown(old, size, path, other, whole[size])
                assert not has_grown(old, size, path, whole[old], other)
                assert not has_grown(old, size, [*path, other], whole[old], whole[size])
                assert not path or not has_grown(old, size, path[:-1], whole[old], whole[size])


# From golang.org/x/mod/sumdb/note, note_test.go.
VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SIGNER = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
SIGNATURE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngot"
    "pRZb6KE6RyyBwJnAM="
)


class TestCommitment:
    @given(st.lists(VALUES, min_size=12, max_size=12), st.binary(min_size=16, max_size=16))
    def test_a_bundle_has_the_commitment_of_each_leaf(self, values: list[Any], salt: bytes) -> None:
        """The commitments of many records have their own function."""
        bundle = values_bundle(RECORD, ["one", "two"], [values, TEXTS], salt)
        assert bundle.holds([values, TEXTS], salt)
        for leaf, row in zip(bundle.leaves(), ([*values], TEXTS), strict=True):
            lines = [json.dumps(value, ensure_ascii=False) for value in row]
            text = "\n".join(['"record"', *lines])
            assert leaf.commitment == sha256(leaf.salt(salt) + text.encode()).digest()

    @pytest.mark.parametrize("place", range(12))
    @pytest.mark.parametrize("other", ["1", None, True, 1.0, "another"])
    def test_a_value_of_another_type_changes_the_commitment(
        self, place: int, other: object
    ) -> None:
        bundle = values_bundle(RECORD, ["one"], [TEXTS])
        changed: list[Any] = [*TEXTS]
        changed[place] = other
        assert bundle.holds([TEXTS], None)
        assert not bundle.holds([changed], None)


class TestCheckpoint:
    def test_keys_and_signatures_equal_those_of_go(self) -> None:
        key = LedgerKey.parse(SIGNER)
        assert key.export() == SIGNER
        assert str(key.verifier) == VERIFIER
        assert str(key.sign(NOTE)) == SIGNATURE
        assert LedgerVerifier.parse(VERIFIER).has_signed(NOTE, key.sign(NOTE))
        assert not LedgerVerifier.parse(VERIFIER).has_signed(f"{NOTE}.", key.sign(NOTE))
        assert key.export() not in repr(key)

    def test_a_text_with_any_character_changed_is_refused(self) -> None:
        key = LedgerKey.generate("example.org/log")
        made = Checkpoint.make(key, 1_234, bytes(range(32)))
        text = str(made)
        assert Checkpoint.parse(text) == made
        assert made.made_at is not None
        made.require_signed(key.verifier)
        changes = [(at, "B" if character != "B" else "A") for at, character in enumerate(text)]
        last = text.rindex("=") - 1  # two of its bits belong to no byte
        changes += [(last, letter) for letter in ascii_letters + digits if letter != text[last]]
        for at, character in changes:
            changed = f"{text[:at]}{character}{text[at + 1 :]}"
            with pytest.raises((InvalidInput, NotProven)):
                Checkpoint.parse(changed).require_signed(key.verifier)

    def test_a_witness_can_sign_too(self) -> None:
        key, witness = LedgerKey.generate("example.org/log"), LedgerKey.generate("witness")
        made = Checkpoint.make(key, 0, bytes(32))
        signed = replace(made, signatures=(*made.signatures, witness.sign(made.signed_text)))
        again = Checkpoint.parse(str(signed))
        again.require_signed(key.verifier)
        assert witness.verifier.has_signed(again.signed_text, again.signatures[1])
        with pytest.raises(NotProven, match="witness"):
            again.require_signed(witness.verifier)

    @pytest.mark.parametrize(
        "text", ["", "a?", "a?+b+c", VERIFIER[:-1], VERIFIER.replace("c7", "c8")]
    )
    def test_a_text_that_is_not_a_key_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidInput):
            LedgerVerifier.parse(text)
        with pytest.raises(InvalidInput) as refused:
            LedgerKey.parse(f"PRIVATE+KEY+{text}")
        assert not text or text not in str(refused.value)

    def test_a_text_that_no_note_can_have_is_refused(self) -> None:
        """By the rules of C2SP signed-note."""
        key, witness = LedgerKey.generate("example.org/log"), LedgerKey.generate("witness")
        made = Checkpoint.make(key, 3, bytes(32))
        signed = replace(made, signatures=(*made.signatures, witness.sign(made.signed_text)))
        text = str(signed)
        Checkpoint.parse(text).require_signed(key.verifier)
        for changed in (
            text.replace("\n", "\r\n"),
            text.replace("\n— witness", "\r\n— witness"),
            text.replace("\n— witness", "\x0b— witness"),
            text.replace("\n— witness", "\u2028— witness"),
            text.replace("— witness", "— the\u00a0witness"),
            text.replace("— witness", "— the+witness"),
            text.replace("\ntime ", "\ntime\t"),
            f"{text}\n",
            f"{text} ",
            f"{text}x\n",
            f"\n{text}",
            f"\ufeff{text}",
        ):
            with pytest.raises((InvalidInput, NotProven)):
                Checkpoint.parse(changed).require_signed(key.verifier)

    def test_each_signature_of_the_key_must_be_true(self) -> None:
        key, other = LedgerKey.generate("example.org/log"), LedgerKey.generate("example.org/log")
        made = Checkpoint.make(key, 3, bytes(32))
        (true,) = made.signatures
        false = replace(true, signature=bytes(64))
        foreign = replace(other.sign("another text"), signature=bytes(64))
        replace(made, signatures=(foreign, true, true)).require_signed(key.verifier)
        for signatures in ((true, false), (false, true), (foreign,), ()):
            with pytest.raises(NotProven, match="not signed"):
                replace(made, signatures=signatures).require_signed(key.verifier)

    @pytest.mark.parametrize("name", ["", "a b", "a+b", "a\x01b", None])
    def test_a_name_that_no_note_can_have_is_refused(self, name: str) -> None:
        with pytest.raises(InvalidInput, match="name"):
            LedgerKey.generate(name)
