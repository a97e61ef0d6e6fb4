"""The ledger, which proves that records were not changed. `history.ledger` is a store's ledger.

Signatures need `cryptography`: pip install 'async-history[crypto]'.
"""

from async_history._core.ledger.checkpoint import (
    Checkpoint,
    LedgerKey,
    LedgerVerifier,
    Signature,
)
from async_history._core.ledger.ledger import Ledger
from async_history._core.ledger.proof import GrowthProof, RecordProof, verify_proof
from async_history._core.ledger.report import FaultKind, LedgerFault, LedgerReport
from async_history._core.public import show_as

__all__ = [
    "Checkpoint",
    "FaultKind",
    "GrowthProof",
    "Ledger",
    "LedgerFault",
    "LedgerKey",
    "LedgerReport",
    "LedgerVerifier",
    "RecordProof",
    "Signature",
    "verify_proof",
]

show_as(__name__, __all__, globals())
