"""The ledger: a Merkle tree over everything that is recorded, and its proofs."""
