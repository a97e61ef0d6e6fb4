"""Limits of a manager's parts. They are not options: only tests pass other values."""

from dataclasses import dataclass, field

from async_history._core.checking.check import CheckLimits
from async_history._core.encryption.stored_texts import TextLimits
from async_history._core.removing.erase_request import EraseLimits
from async_history._core.removing.prune_request import PruneLimits
from async_history._core.undoing.rollback_request import RollbackLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of a manager's parts."""

    prune: PruneLimits = field(default_factory=PruneLimits)
    erase: EraseLimits = field(default_factory=EraseLimits)
    rollback: RollbackLimits = field(default_factory=RollbackLimits)
    check: CheckLimits = field(default_factory=CheckLimits)
    texts: TextLimits = field(default_factory=TextLimits)


DEFAULT_LIMITS = Limits()
