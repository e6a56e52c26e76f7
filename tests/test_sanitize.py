"""What may stand in a log or on a terminal."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from attndrift.sanitize import markdown_text, printable, redact, sanitize, sheet_text, without_secrets

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
        ("hf_ABCDEFGHIJKLMNOPQRST", "***"),
        ("run-1.hf_ABCDEFGHIJKLMNOPQRST", "run-1.***"),
        ("https://me:p@ss/w'o\"rd@host/x failed", "https://***@host/x failed"),
        ("postgres://me:a@b@c@db.example:5432/x", "postgres://***@db.example:5432/x"),
        ("https://me@corp.org:p@ss@host/x", "https://***@host/x"),
        ("https://me:12345@host/x", "https://***@host/x"),
        ("redis://:only/password@host", "redis://***@host"),
        ("https://me:9zz/1@host:8080/x", "https://***@host:8080/x"),
        ("http://localhost:8080/org/model@abc123 and me@home.org", "http://localhost:8080/org/model@abc123 and me@home.org"),
        ("https://hub.example/a?b=c", "https://hub.example/a?b=c"),
        ("password = 'correct-horse'", "password = '***'"),
        ('{"api_key": "abcdef123"}', '{"api_key": "***"}'),
        ("AccountName=a;AccountKey=abc+/def123==;x", "AccountName=a;AccountKey=***;x"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY----- and on", "*** and on"),
        ("https://hooks.slack.com/services/T0/B0/abc", "https://hooks.slack.com/services/***"),
        ("the tokenizer: clip-tokenizer, secrets: none", "the tokenizer: clip-tokenizer, secrets: none"),
        ("mail me@home.org about a://b and c@d", "mail me@home.org about a://b and c@d"),
    ],
)  # fmt: skip
def test_what_looks_like_a_credential_is_hidden(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


PAIRS = [
    "token=abc123", "token = 'abc123'", "TOKEN=abcdef", "HF_TOKEN=abc123def", "hub_token: abc123def", '"token": "abc123"', "token:abc123",
    r'{\"api_key\": \"abc123\"}', "api_key: abc123", "'apiKey': 'abc123'", "x-api-key: abc123", "X-Auth-Token: abc123",
    "Authorization: Bearer abc123", '"Authorization": "Bearer abc123"', "authorization: token abc123", "Authorization: Basic dXNlcjpw",
    "authorization=abc123", "aws_secret_access_key = abc123def", "AWS_SESSION_TOKEN=abc123==", "password = \"abc123 def ghi\"",
    "PASSWORD='abc 123'", "client_secret=abc123", "Server=x;Uid=me;Pwd=abc123;", "run --token abc123", "--hf-token abc123", "--password abcdef",
    "machine api.wandb.ai login user password abc123", "AKIA" + "ABCD1234" * 2 + ":" + "abc123defg" * 4, "wandb_v1_abc123" + "a" * 24,
    "f(token='abc123')", "[token=abc123]", "a token=abc123, b", "token=abc123&x=1", "secret:\n  abc123",
]  # fmt: skip


@pytest.mark.parametrize("text", PAIRS)
def test_the_value_of_a_secret_pair_is_hidden(text: str) -> None:
    shown = without_secrets(text)
    assert "***" in shown
    for part in ("abc", "123", "def", "ghi", "dXN"):
        assert part not in shown.lower().replace("token", ""), shown
    assert "abc123" not in json.dumps(redact({"log": [text]}))


@pytest.mark.parametrize(
    "text",
    [
        "tokens=77", "token_count: 5", "token=5", "token: 77", "n_tokens: 1234567", "max_token=2048", "token=None", "token=true",
        "eos_token: <|endoftext|>", "pad_token='!'", "class token: layer4_head7", "cls_token=vision_model", "tokenizer=clip-vit-b32",
        "tokens: 49406, 320, 1125", "a basic transformer model", "the bearer instruments", "the class token: attention to itself",
        "the token: not accepted", "--tokens 77", "token 12345678", "authorization failed", "secret: none", "password: none",
        "prompt of 80 tokens, 77 at most", "token_embedding.weight=0.25", "visual.class_token: 768", "--token --json",
        "text token: image12", "KeyError: 'token'", "token=[UNK]", "password=", "logit_scale: 4.6052",
    ],
)  # fmt: skip
def test_numbers_and_names_of_tokens_stay(text: str) -> None:
    assert without_secrets(text) == text


def test_whatever_stands_under_the_name_of_a_secret_is_hidden() -> None:
    given = {
        "api_keys": ["one", "two"],
        "credentials": {"user": "me", "n": 3},
        "Authorization": "Bearer x",
        "secret": b"x",
        "password": "",
    }
    assert redact(given) == {
        "api_keys": ["***", "***"], "credentials": {"user": "***", "n": 3}, "Authorization": "***", "secret": "***", "password": "",
    }  # fmt: skip


TOKENS = [
    "hf_ABCDEFGHIJKLMNOPQRST", "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz0123456789", "ghp_" + "a1B2" * 9, "glpat-" + "x" * 20,
    "xoxb-123456789012-abcdefABCDEF", "sk-proj-abc123def456ghi789jkl012", "sk_live_" + "a" * 24, "pypi-AgEIcHlwaS5vcmc" + "a" * 70,
    "npm_" + "a" * 36, "AIza" + "b" * 35, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-_def", "ASIA" + "ABCD1234" * 2, "hvs." + "a" * 24,
    "SG." + "a" * 22 + "." + "b" * 43, "123456789:" + "a" * 35, "dckr_pat_" + "a" * 27, "wandb_v1_" + "a" * 24,
]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_known_by_its_form_wherever_it_stands(token: str) -> None:
    for text in (token, f"key={token}.", f"'{token}'", f"https://{token}@host/x", f"/home/{token}/x"):
        assert token not in without_secrets(text), text
    found = redact({token: [{"deep": {f"of {token}": f"is {token}"}}, (token,)]})
    assert token not in json.dumps(found)


@pytest.mark.parametrize(
    "word",
    [
        "hf_hub",
        "sk-learn-contrib-with-long-names",
        "ghost_of_a_name",
        "eyJ.x",
        "glpatch-1",
        "npm_run",
        "a" * 64,
        "AKIA",
    ],
)
def test_words_that_look_a_little_like_tokens_stay(word: str) -> None:
    assert without_secrets(f"the {word} stays") == f"the {word} stays"


@pytest.mark.parametrize(
    "name", ["hf_token", "PASSWORD", "aws_secret_access_key", "client-secret", "webhook", "apiKey"]
)
def test_a_text_under_the_name_of_a_secret_is_hidden(name: str) -> None:
    assert redact({"a": [{name: "short"}]}) == {"a": [{name: "***"}]}
    plain = {name: 3, "tokenizer": "clip", "tokens": "0f1e2d", "prompt tokens": "a hash"}
    assert redact(plain) == plain


def test_a_secret_variable_is_hidden_as_it_is_written_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    value = "pa\"ss'w\\örd\t+/@1"
    monkeypatch.setenv("DB_PASSWORD", value)
    for text in (
        json.dumps({"x": value}),
        repr(value),
        base64.b64encode(value.encode()).decode(),
        quote(value, safe=""),
    ):
        assert without_secrets(f"a {text} z").count("***") == 1, text


def test_short_values_and_other_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "false")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "undecided yet")
    assert without_secrets("false, undecided yet") == "false, undecided yet"


SIGNS = ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\ufe66", "\ufe63", "\ufe62", "\ufe6b"]
BEFORE = ["", " ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u202e", "\0", " \n\t "]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("sign", SIGNS)
def test_a_cell_that_a_spreadsheet_would_run_is_text(before: str, sign: str) -> None:
    assert sheet_text(f"{before}{sign}cmd|' /C calc'!A0") == f"'{before}{sign}cmd|' /C calc'!A0"


@pytest.mark.parametrize(
    "text", ["", " ", "a=b", "-1.5", " 1e-5", "run 1", "'=1", "\u2212x", "full-width \uff1d", "#1"]
)
def test_other_cells_stay_as_they_are(text: str) -> None:
    assert sheet_text(text) == text


LINKS = [
    "[a](javascript:b)",
    "![a](http://x/p.png)",
    "[a]: http://x",
    "[[a]](b)",
    "<http://x>",
    "[a][b]",
    "\\[a](b)",
    "`x`[a](b)",
]


@pytest.mark.parametrize("text", LINKS)
def test_markdown_of_foreign_text_has_no_link(text: str) -> None:
    found = MarkdownIt("commonmark").enable("table").render(f"| h |\n| --- |\n| {markdown_text(text)} |\n")
    assert "<a " not in found
    assert "<img" not in found
    assert "<td>" in found


@given(st.text(st.characters()))
@settings(max_examples=50, deadline=None)
def test_nothing_reaches_a_terminal_that_could_command_it(text: str) -> None:
    assert printable(text).isprintable()
    assert "\n".join(printable(line) for line in text.split("\n")) == printable(text, lines=True)
    sanitize(text).encode("utf-8")
    assert markdown_text(text).isprintable()


def test_escapes_of_a_terminal_and_broken_bytes_are_spelled_out() -> None:
    assert printable("\x1b[2Jgone\nover\udcff") == "\\x1b[2Jgone\\nover\\xff"
    assert sanitize("two\nlines\x07") == "two\nlines\\x07"
