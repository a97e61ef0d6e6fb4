"""The tree that verification computes from the leaves, compared with tiles and checkpoints."""

from collections.abc import Iterable, Sequence

from async_history._core.ledger.checkpoint import Checkpoint
from async_history._core.ledger.report import LedgerFault, damaged
from async_history._core.ledger.tables import LedgerTables
from async_history._core.ledger.tiles import Tile, grown, last_tiles, roots_from
from async_history._core.ledger.tree import EMPTY_ROOT, HASH_BYTES
from async_history._core.wording import counted


class ComputedTree:
    """The tree computed from the leaves, compared with the stored one."""

    def __init__(self, checkpoints: Iterable[Checkpoint]) -> None:
        self._awaited = sorted(checkpoints, key=lambda one: one.size)
        self.size = 0
        self.last: dict[Tile, bytes] = {}
        self.faults: list[LedgerFault] = []
        self._good = 0
        self._not_compared: dict[Tile, bytes] = {}

    def add(self, leaves: Sequence[bytes]) -> None:
        """Append the hashes of leaves, and compare the tree with the checkpoints."""
        hashes = b"".join(leaves)
        end = self.size + len(leaves)
        while self.size < end:
            self.reach_checkpoints()
            until = min([end, *(one.size for one in self._awaited if one.size > self.size)])
            part = hashes[: (until - self.size) * HASH_BYTES]
            hashes = hashes[len(part) :]
            changed = grown(self.size, self.last, part)
            self._not_compared |= changed
            self.size = until
            wanted = set(last_tiles(until))
            self.last = {t: h for t, h in {**self.last, **changed}.items() if t in wanted}
        self.reach_checkpoints()

    async def compare(self, tables: LedgerTables) -> None:
        """Compare the tiles of the leaves added since the last call with the stored tiles."""
        stored = await tables.tiles(self._not_compared)
        for tile, computed in self._not_compared.items():
            if not stored.get(tile, b"").startswith(computed):
                level, number = tile
                text = f"the tile {number} of level {level} is not that of the leaves"
                self.faults.append(damaged(self.size, text))
        self._not_compared = {}

    @property
    def root(self) -> bytes:
        """The root of the leaves so far."""
        return roots_from([(0, self.size)], self.last)[0] if self.size else EMPTY_ROOT

    def reach_checkpoints(self) -> None:
        """Compare the checkpoints of this size."""
        while self._awaited and self._awaited[0].size == self.size:
            checkpoint = self._awaited.pop(0)
            if checkpoint.root == self.root:
                self._good = self.size
                continue
            text = (
                f"the leaves from {self._good:,} to {self.size:,} are not all those of the "
                "checkpoint: records and ledger were rewritten"
            )
            self.faults.append(LedgerFault(kind="rewritten", place=self._good, text=text))

    def end(self) -> None:
        """Note the checkpoints that are larger than the ledger."""
        for checkpoint in self._awaited:
            text = (
                f"the checkpoint has {counted(checkpoint.size, 'leaf', 'leaves')}, and the ledger "
                f"{self.size:,}: the newest were cut off"
            )
            self.faults.append(LedgerFault(kind="cut", place=self.size, text=text))
