"""The cases of `async_history.testing` that texts go through, for encrypted stores."""

from async_history.testing import (
    ContractCases,
    EraseOwnerCases,
    FollowCases,
    OwnerCases,
    QueryCases,
    RandomCallCases,
    RecordCases,
    RollbackCases,
    TextCases,
)


class EncryptedCases(
    ContractCases,
    RecordCases,
    TextCases,
    QueryCases,
    OwnerCases,
    EraseOwnerCases,
    RollbackCases,
    FollowCases,
    RandomCallCases,
): ...
