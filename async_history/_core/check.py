"""What the check of a whole history reports."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What `check_history` found. `problems` are sentences; where there are none all is well."""

    store: str
    records: int
    problems: tuple[str, ...] = ()
    is_repaired: bool = False

    def outcome(self) -> str:
        """Return the outcome as one paragraph for people."""
        repaired = " Its index was built anew." if self.is_repaired else ""
        if not self.problems:
            return f"{self.store}: {self.records:,} records, nothing is wrong.{repaired}"
        return f"{self.store}: {self.records:,} records.{repaired} {' '.join(self.problems)}"
