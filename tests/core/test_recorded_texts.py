"""Messages of drivers, without the recorded texts in them."""

import pytest

from async_history._core.recorded_texts import hide_texts

TEXT = "geheim' for key 'wort\n\"hier\""


class Refused(Exception):
    """An error of a driver that names its SQLSTATE."""

    def __init__(self, sqlstate: str, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.detail = detail


def hidden(error: BaseException) -> str:
    hide_texts(error)
    shown = f"{error.args} {getattr(error, 'detail', None)}"
    assert not [part for part in ("geheim", "wort", "hier") if part in shown], shown
    return str(error.args[-1])


@pytest.mark.parametrize(
    ("state", "message", "left"),
    [
        ("22P02", f'invalid input syntax for type bigint: "{TEXT}"', 'type bigint: "***"'),
        ("22003", f'value "{TEXT}" is out of range for type integer', '"***" is out of range'),
        ("22P02", f"ungültige Eingabesyntax für Typ bigint: »{TEXT}«", "Typ bigint"),
        ("23505", f'violates unique constraint "own"\nDETAIL:  Key ({TEXT})', 'constraint "own"'),
        ("23514", f'check constraint "own"\nDÉTAIL : ({TEXT})', 'constraint "own"'),
        ("22021", 'invalid byte sequence for encoding "UTF8": 0xff', 'encoding "UTF8": 0xff'),
        ("40P01", "deadlock detected\nDETAIL:  Process 1 waits", "Process 1 waits"),
        ("P0001", 'own "words"\nDETAIL:  of a trigger', 'own "words"\nDETAIL:  of a trigger'),
    ],
)
def test_messages_of_postgresql(state: str, message: str, left: str) -> None:
    assert left in hidden(Refused(state, message))


def test_a_refused_connection_names_its_setting() -> None:
    message = 'invalid value for parameter "work_mem": "abc"'
    refused = Refused("22023", message)
    wrapped, shown = Refused("22023", f"(driver) {message}"), Exception(f"(driver) {message}")
    wrapped.__cause__, shown.orig = refused, wrapped  # type: ignore[attr-defined]
    refused.severity_en = "FATAL"  # type: ignore[attr-defined]
    hide_texts(shown)
    assert all(message in str(one) for one in (shown, wrapped, refused))


def test_a_detail_of_its_own() -> None:
    assert hidden(Refused("23514", 'constraint "own"', f"Failing row contains ({TEXT})")) == (
        'constraint "own"'
    )


@pytest.mark.parametrize(
    ("number", "message", "left"),
    [
        (1062, f"Duplicate entry '{TEXT}' for key 'own'", "Duplicate entry '***' for key 'own'"),
        (
            1062,
            f"'{TEXT}' は索引 'own' で重複しています。",
            "'***' は索引 'own' で重複しています。",
        ),
        (1062, f"Duplicate entry '{TEXT}\n' for key 'own'", "Duplicate entry '***' for key 'own'"),
        (1062, "Duplicate entry 'geheim' for key 1", "Duplicate entry '***'"),
        (1062, f"Duplicate entry '{TEXT} which the server cut", "Duplicate entry '***'"),
        (1366, "Incorrect integer value: 'geheim", "Incorrect integer value: '***'"),
        (1586, f"Kattuv '{TEXT}' (kľúča 'own')", "Kattuv '***' (kľúča 'own')"),
        (
            1366,
            f"Incorrect integer value: '{TEXT}' for column `a`.`b`.`c` at row 1",
            "Incorrect integer value: '***' for column `a`.`b`.`c` at row 1",
        ),
        (
            1366,
            f"Falscher Wert: '{TEXT}' für Feld '`c` in Zeile 1",
            "Falscher Wert: '***'`c` in Zeile 1",
        ),
        (1292, f"截断的不正确DOUBLE值 '{TEXT}'", "截断的不正确DOUBLE值 '***'"),
        (1644, "a trigger's 'own' words", "a trigger's 'own' words"),
        (4025, "CONSTRAINT `own` failed for `a`.`b`", "CONSTRAINT `own` failed for `a`.`b`"),
    ],
)
def test_messages_of_mariadb(number: int, message: str, left: str) -> None:
    original, wrapped = Exception(number, message), Exception(f"(a.driver) {message}")
    original.sqlstate = "23000"  # type: ignore[attr-defined] # asyncmy's
    wrapped.orig = original  # type: ignore[attr-defined]
    assert left in hidden(wrapped)
    assert left == hidden(original)


def test_causes_and_contexts() -> None:
    cause = Refused("23514", 'constraint "own"', TEXT)
    context = Refused("23505", 'constraint "another"', TEXT)
    error = Exception("failed")
    error.__cause__, cause.__context__, context.__context__ = cause, context, error
    hide_texts(error)
    assert (cause.detail, context.detail) == (None, None)


def test_an_error_of_the_program_with_attributes_of_the_same_names() -> None:
    class Own(Exception):
        orig = "master"
        sqlstate = 7
        detail = ("branch",)

    error, own = Refused("23505", "taken", f"Key ({TEXT})"), Own("conflict")
    error.__context__ = own
    assert hidden(error) == "taken"
    assert (own.args, own.orig, own.detail) == (("conflict",), "master", ("branch",))
