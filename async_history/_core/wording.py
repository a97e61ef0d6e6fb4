"""Counts in sentences for people: reports, messages, the command's output."""


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its words: `1 record`, `2,000 records`.

    Without `many`, the plural is formed with s. Give both if a verb follows: `"record is"`,
    `"records are"`.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
