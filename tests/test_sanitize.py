"""What may stand in a log or on a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attndrift.sanitize import printable, redact, sanitize, without_secrets

SECRETS = {
    "HF_TOKEN": "hf_" + "a1B2" * 8,
    "WANDB_API_KEY": "0123456789abcdef" * 2,
    "AWS_ACCESS_KEY_ID": "AKIA" + "ABCD1234" * 2,
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtnFEMI+K7MDENG=bPxRfiCY",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzE+long/session==",
    "DB_PASSWORD": "correct horse battery",
}


@pytest.mark.parametrize("name", SECRETS)
def test_the_value_of_a_secret_variable_is_never_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in SECRETS.items():
        monkeypatch.setenv(variable, value)
    value = SECRETS[name]
    for text in (value, f"401 for {value}!", f"'{value}'", value.replace("/", "%2F").replace("+", "%2B")):
        assert value not in without_secrets(text)
    assert redact({"problem": [f"{value} was refused", 3, None]}) == {"problem": ["*** was refused", 3, None]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET https://me:pa55w0rd@host/x?y=1 failed", "GET https://***@host/x?y=1 failed"),
        ("s3://key:secret@bucket/studies", "s3://***@bucket/studies"),
        ("https://b/x?X-Amz-Credential=AK%2F1&X-Amz-Signature=0a1b&n=2", "https://b/x?X-Amz-Credential=***&X-Amz-Signature=***&n=2"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer ***"),
        ("the token hf_ABCDEFGHIJKLMNOPQRST was refused", "the token *** was refused"),
        ("mail me@home.org about a://b and c@d", "mail me@home.org about a://b and c@d"),
    ],
)  # fmt: skip
def test_what_looks_like_a_credential_is_hidden(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


def test_short_values_and_other_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "false")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "undecided yet")
    assert without_secrets("false, undecided yet") == "false, undecided yet"


@given(st.text(st.characters()))
@settings(max_examples=50, deadline=None)
def test_nothing_reaches_a_terminal_that_could_command_it(text: str) -> None:
    assert printable(text).isprintable()
    assert "\n".join(printable(line) for line in text.split("\n")) == printable(text, lines=True)
    sanitize(text).encode("utf-8")


def test_escapes_of_a_terminal_and_broken_bytes_are_spelled_out() -> None:
    assert printable("\x1b[2Jgone\nover\udcff") == "\\x1b[2Jgone\\nover\\xff"
    assert sanitize("two\nlines\x07") == "two\nlines\\x07"
