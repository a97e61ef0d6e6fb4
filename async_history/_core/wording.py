"""How reports count things in their sentences."""


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun: `1 record`, `2,000 records`; `many` where an s won't do."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
