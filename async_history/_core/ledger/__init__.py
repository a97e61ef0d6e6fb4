"""The ledger: a Merkle tree over all that is recorded, and what is proven with it."""
