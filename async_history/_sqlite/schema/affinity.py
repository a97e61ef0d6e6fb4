"""Detection of columns whose declared type makes SQLite store another value than was given.

A text that looks like a number becomes one in a column declared INTEGER, REAL, STRING or JSON, and
0 becomes '0' in one declared TEXT (https://sqlite.org/datatype3.html, section 3.1).
"""

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

_IS_TEXT: Final = "(type LIKE '%CHAR%' OR type LIKE '%CLOB%' OR type LIKE '%TEXT%')"
_IS_INTEGER: Final = "type LIKE '%INT%'"
_IS_NONE: Final = "(type LIKE '%BLOB%' OR type = '')"

_ALTERING: Final = f"""
SELECT lower(name) FROM pragma_table_info(:table, 'main') WHERE
    lower(name) IN (SELECT value FROM json_each(:texts))
        AND ({_IS_INTEGER} OR NOT ({_IS_TEXT} OR {_IS_NONE}))
    OR lower(name) IN (SELECT value FROM json_each(:numbers)) AND {_IS_TEXT} AND NOT {_IS_INTEGER}
"""


def altering_columns(
    connection: sqlite3.Connection, table: str, texts: Sequence[str], numbers: Sequence[str] = ()
) -> frozenset[str]:
    """Return the columns of a table that do not keep the texts, or whole numbers, they are given.

    Args:
        texts, numbers: the columns that are to hold such, in lower case.
    """
    asked = {"table": table, "texts": json.dumps(texts), "numbers": json.dumps(numbers)}
    return frozenset(name for (name,) in connection.execute(_ALTERING, asked))
