"""Counts in the sentences of reports."""


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun: `1 record`, `2,000 records`; `many` is the plural if it is not
    formed with s.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
