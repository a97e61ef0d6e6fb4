"""What the check of a whole history reports."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What `check_history` found."""

    store: str
    """The file's path, or the server's URL without its password."""
    records: int
    """Records that were read."""
    problems: tuple[str, ...] = ()
    """What is wrong, a sentence each; empty where all is well."""
    is_repaired: bool = False
    """Whether the index was built again first."""

    def outcome(self) -> str:
        """Return the outcome as one paragraph for people."""
        repaired = " Its index was rebuilt." if self.is_repaired else ""
        if not self.problems:
            return f"{self.store}: {self.records:,} records, nothing is wrong.{repaired}"
        return f"{self.store}: {self.records:,} records.{repaired} {' '.join(self.problems)}"
