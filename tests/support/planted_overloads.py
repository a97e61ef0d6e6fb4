"""Overloads that a role that may create in `public` can plant: they match better."""

import ast
import importlib
import itertools
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from async_history import _postgres

PACKAGE: Final = Path(__file__).parents[2] / "async_history"

TYPES: Final = (
    *("text", "varchar", "bpchar", "name", '"char"', "uuid", "jsonb", "bool"),
    *("int2", "int4", "int8", "numeric", "oid", "regclass", "xid8", "pg_snapshot"),
    *("timestamptz", "timestamp", "interval", "text[]", "varchar[]", "int8[]"),
)
"""The types that an argument of ours has, or may be taken for."""
FEWER_TYPES: Final = {
    1: TYPES,
    2: ("text", "varchar", "int4", "int8", "oid", "bool", "xid8", "timestamptz", "text[]"),
    3: ("text", "varchar", "int4", "int8", "bool", "text[]"),
}
"""The same for functions, by their number of arguments."""

_SQL: Final = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|VALUES|CASE|CREATE|GROUP BY|ORDER BY|AND|OR)\b"
    r"|::|\$\d|\bpg_"
)
_OPERATOR: Final = re.compile(r"[-+*/<>=~!@#%^&|?]+")
_SPELLED: Final = {"LIKE": "~~", "ILIKE": "~~*", "BETWEEN": ">=", "IN": "=", "DISTINCT": "="}
_CALL: Final = re.compile(r"(?<![\w.\"])(pg_catalog\.)?([a-z_]\w*) ?\(")
_NAMES_COLUMNS: Final = re.compile(r"\b(AS|ON|INTO|TABLE|USING|INDEX|REFERENCES)\s+[\w\"{}.]*$")
_RELATION: Final = re.compile(r"\b(?:FROM|JOIN)\s+(pg_(?!catalog\.)\w+)")
_CAST: Final = re.compile(r"::(?!pg_catalog\.|boolean\b|bigint\b|integer\b)([\"\w.]+)")
_LOOKED_UP: Final = re.compile(r"\$\d+::((?!(?:pg_catalog\.)?text\[)[\"\w.]+\[\])")


def sql_texts() -> Iterator[tuple[str, str]]:
    """Yield each text that is SQL for PostgreSQL, with its place."""
    for file in sorted(PACKAGE.rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        if "sqlite" in file.name or "postgres" not in source.lower():
            continue
        tree = ast.parse(source)
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in said
                and _SQL.search(node.value)
            ):
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", node.value
    scripts = sorted((PACKAGE / "_postgres" / "schema").glob("*.sql"))
    assert scripts
    for file in scripts:
        text = re.sub(r"--.*", "", file.read_text(encoding="utf-8"))
        yield str(file.relative_to(PACKAGE)), text


def _calls(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the names that a text seems to call, and whether each is qualified."""
    for match in _CALL.finditer(text):
        if not _NAMES_COLUMNS.search(text[: match.start()]):
            yield match[2], match[1] is not None


def unqualified(functions: set[str]) -> list[str]:
    """Return the names that the texts leave to `search_path`.

    Args:
        functions: the names of all functions in pg_catalog.
    """
    found = []
    for where, text in sql_texts():
        found += [
            f"{where}: {name}() is not pg_catalog.{name}()"
            for name, is_qualified in _calls(text)
            if name in functions and not is_qualified
        ]
        found += [f"{where}: {name} is not pg_catalog.{name}" for name in _RELATION.findall(text)]
        if not where.endswith(".sql"):  # a migration's search_path begins with pg_catalog
            found += [
                f"{where}: asyncpg looks up what {name} is, and takes what is planted: send text, "
                "and let string_to_array make a list of it"
                for name in _LOOKED_UP.findall(text)
            ]
            casts = _CAST.findall(text)
            found += [f"{where}: ::{name} is not ::pg_catalog.{name}" for name in casts]
    return found


_PLANT_OPERATORS: Final = """
DO $$
DECLARE
    lefts text[] := ARRAY[{types}];
    lefttype text;
    righttype text;
    symbol text;
BEGIN
    FOREACH lefttype IN ARRAY lefts LOOP
        FOREACH righttype IN ARRAY lefts LOOP
            EXECUTE format(
                'CREATE FUNCTION public.planted_operator(%s, %s) RETURNS bool LANGUAGE plpgsql '
                'AS ''BEGIN RAISE EXCEPTION ''''planted''''; END''', lefttype, righttype);
            FOREACH symbol IN ARRAY ARRAY[{symbols}] LOOP
                CONTINUE WHEN to_regoperator(
                    format('pg_catalog.%s(%s,%s)', symbol, lefttype, righttype)) IS NOT NULL;
                EXECUTE format(
                    'CREATE OPERATOR public.%s (FUNCTION = public.planted_operator, '
                    'LEFTARG = %s, RIGHTARG = %s)', symbol, lefttype, righttype);
            END LOOP;
        END LOOP;
    END LOOP;
END $$
"""
_PLANT_FUNCTION: Final = (
    "CREATE FUNCTION public.{name}({types}) RETURNS {returned} LANGUAGE plpgsql "
    "AS 'BEGIN RAISE EXCEPTION ''planted''; END'"
)
_KNOWN_FUNCTIONS: Final = """
SELECT proname, max(pronargs), bool_or(provariadic <> 0), bool_or(proretset),
       min(prorettype::regtype::text) FILTER (WHERE prorettype::regtype::text !~ '^any|internal')
FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY($1::text[])
GROUP BY proname
"""


async def plant(connection: Any) -> None:
    """Plant overloads in `public` of every function and operator that the texts name."""
    texts = [text for _, text in sql_texts()]
    await connection.execute("SET search_path = pg_catalog; SET check_function_bodies = off")
    symbols = {token for text in texts for token in _OPERATOR.findall(text)}
    symbols |= {symbol for word, symbol in _SPELLED.items() if any(word in text for text in texts)}
    rows = await connection.fetch(
        "SELECT DISTINCT oprname FROM pg_operator"
        " WHERE oprname = ANY($1::text[]) AND oprleft <> 0 AND oprname <> '=>'",
        sorted(symbols),
    )
    await connection.execute(
        _PLANT_OPERATORS.format(types=_list(TYPES), symbols=_list([name for (name,) in rows]))
    )
    names = {name for text in texts for name, _ in _calls(text)}
    for name, most, is_variadic, is_set, returned in await connection.fetch(
        _KNOWN_FUNCTIONS, sorted(names)
    ):
        statements = []
        for count in range(1, min(3, 3 if is_variadic else most) + 1):
            statements += [
                _PLANT_FUNCTION.format(
                    name=name,
                    types=", ".join(types),
                    returned=f"{'SETOF ' if is_set else ''}{returned or 'text'}",
                )
                for types in itertools.product(FEWER_TYPES[count], repeat=count)
            ]
        if statements:
            await connection.execute(";".join(statements))


def _list(texts: Sequence[str]) -> str:
    return ", ".join(f"'{text}'" for text in texts)


_PLANTED: Final = """
SELECT oid, 'function ' || oid::regprocedure FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT oid, 'operator ' || oid::regoperator FROM pg_operator
WHERE oprnamespace = 'public'::regnamespace
"""
_DEPENDING: Final = """
SELECT refobjid, pg_describe_object(classid, objid, objsubid) FROM pg_depend
WHERE refobjid = ANY($1::oid[]) AND NOT (
    classid IN ('pg_proc'::regclass, 'pg_operator'::regclass) AND objid = ANY($1::oid[])
)
"""
_OIDS: Final = re.compile(
    r" :(?:opnos?|opfuncid|funcid|aggfnoid|winfnoid|eqop|sortop) (\d+|\(o[ \d]+\))"
)


async def taken(connection: Any, log: str) -> list[str]:
    """Return which of the planted overloads PostgreSQL chose, and for what.

    Args:
        connection: whose search_path has no `public`, as after `plant`.
        log: the server's, with the parse tree of each statement (`LOGGING`).
    """
    planted: Mapping[int, str] = dict(map(tuple, await connection.fetch(_PLANTED)))
    found = {
        f"{planted[oid]} in {what}"
        for oid, what in await connection.fetch(_DEPENDING, list(planted))
    }
    for tree, statement in _parsed(log):
        oids = {int(oid) for text in _OIDS.findall(tree) for oid in re.findall(r"\d+", text)}
        found |= {f"{planted[oid]} in {statement}" for oid in oids & planted.keys()}
    return sorted(found)


def _parsed(log: str) -> Iterator[tuple[str, str]]:
    """Yield the parse tree and the text of each statement in a server's log."""
    tree = ""
    for entry in _ENTRY.split(log):
        if "DETAIL:" in entry[:_PREFIX]:
            tree = entry
        elif "STATEMENT:" in entry[:_PREFIX] and tree:
            yield tree, " ".join(entry.partition("STATEMENT:")[2].split())
            tree = ""


def untried(log: str) -> dict[str, str]:
    """Return the package's statements without a parse tree in a server's log, by their names."""
    statements = "\n".join({statement for _, statement in _parsed(log)})
    found = {}
    for module in pkgutil.walk_packages(_postgres.__path__, f"{_postgres.__name__}."):
        for name, text in vars(importlib.import_module(module.name)).items():
            if not isinstance(text, str) or not _STATEMENT.match(text):
                continue
            pattern = _PLACEHOLDER.sub(".+?", re.escape(" ".join(text.split())))
            if not re.search(pattern, statements):
                found[f"{module.name.removeprefix(_postgres.__name__)[1:]}.{name}"] = text
    return found


async def prepare(connection: Any, statements: Iterable[str]) -> None:
    """Let the server parse statements, on tables in the schema `async_history`."""
    for text in statements:
        await connection.prepare(_PLACEHOLDERS.sub("async_history", text))


_PLACEHOLDERS: Final = re.compile(r"\{\w*\}")
_STATEMENT: Final = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\s")
_PLACEHOLDER: Final = re.compile(r"\\\{\w*\\\}")
_ENTRY: Final = re.compile(r"^(?=\d{4}-\d\d-\d\d \d\d:)", re.MULTILINE)
_PREFIX: Final = 80
"""The largest number of characters before an entry's text."""

LOGGING: Final = {
    "log_min_messages": "log",
    "log_min_error_statement": "log",
    "debug_pretty_print": "off",
}
"""Settings with which a server logs the parse tree of each statement of a role that has
`debug_print_parse`. The tree has the number of each function, even if it is never executed."""
