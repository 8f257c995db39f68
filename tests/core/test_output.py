"""What strangers name their classes and files must not drive anybody's terminal."""

from __future__ import annotations

import json

import pytest

from ducat_serve.output import Output, visible

HOSTILE = "cat\x1b[2J\x1b]0;owned\x07\u202egpj.exe\u2028\x9b31m\udc80"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe, 猫, \N{FAMILY}", "größe, 猫, \N{FAMILY}"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # with a joiner, as it is written
        ("a\u200bb", r"a\u200bb"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb", r"a\nb"),
        ("\u202eabc", r"\u202eabc"),
        ("\x9b2J", r"\x9b2J"),
        ("\udc80", r"\udc80"),
    ],
)
def test_what_a_terminal_would_obey_becomes_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_no_message_reaches_the_terminal_as_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.say(HOSTILE)
    output.warn(HOSTILE)
    output.fail(HOSTILE, HOSTILE)
    output.table(HOSTILE, ("name",), [(HOSTILE,)])
    shown = capsys.readouterr().err
    assert not {"\x1b", "\x07", "\u202e", "\u2028", "\x9b", "\udc80"} & set(shown)


def test_lines_of_a_message_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Output().say("[train]\nepochs = 3")
    assert capsys.readouterr().err == "[train]\nepochs = 3\n"


def test_json_keeps_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).result({"label": HOSTILE})
    written = capsys.readouterr().out
    assert "\x1b" not in written
    assert json.loads(written) == {"label": HOSTILE}
