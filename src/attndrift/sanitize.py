"""Text of unknown origin on its way to a terminal, a log or a record: harmless there, and without secrets."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import unicodedata
from typing import Any
from urllib.parse import quote

HIDDEN = "***"

_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSW|PASSPHRASE|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL|WEBHOOK|CONNECTION_STRING", re.I
)
_SECRET_KEY = re.compile(
    r"TOKEN$|SECRET|PASSW|PASSPHRASE|API[_-]?KEY|ACCESS[_-]?KEY|PRIVATE[_-]?KEY|CREDENTIAL|WEBHOOK"
    r"|CONNECTION_STRING|AUTHORIZATION|^COOKIE$",
    re.I,
)
"""Keys of a dictionary. Not `tokens`, under which records keep what a tokenizer made."""
_SHORTEST_SECRET = 8
"""A shorter value (``false``, ``1``) is no secret, and hiding it would hide half of every text."""

_TOKENS = (
    # Forms of tokens, by whoever gives them out; most are those of detect-secrets 1.5 (Apache-2.0).
    r"hf_[A-Za-z0-9]{16,}", r"api_org_[A-Za-z0-9]{16,}",  # Hugging Face
    r"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}",  # AWS
    r"gh[pousr]_[A-Za-z0-9_]{20,}", r"github_pat_[A-Za-z0-9_]{20,}",
    r"gl(?:pat|dt|ft|soat|rt|imt|ptt|agent|oas|cbt)-[A-Za-z0-9_-]{20,}", r"GR1348941[A-Za-z0-9_-]{20,}",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}", r"xapp-[A-Za-z0-9-]{10,}",  # Slack
    r"[rs]k_(?:live|test)_[0-9a-zA-Z]{16,}",  # Stripe
    r"sk-(?=[A-Za-z_-]{0,40}[0-9])[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic
    r"pypi-AgE[A-Za-z0-9_-]{50,}", r"npm_[A-Za-z0-9]{30,}",
    r"AIza[0-9A-Za-z_-]{35}", r"ya29\.[0-9A-Za-z_-]{20,}", r"GOCSPX-[0-9A-Za-z_-]{20,}",  # Google
    r"eyJ[A-Za-z0-9_=-]{8,2000}\.eyJ[A-Za-z0-9_=-]{8,}(?:\.[A-Za-z0-9_.+/=-]*)?",  # JSON web tokens
    r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}", r"sq0csp-[0-9A-Za-z_-]{43}", r"dop_v1_[0-9a-f]{64}", r"dckr_pat_[A-Za-z0-9_-]{20,}",
    r"dapi[0-9a-f]{32}", r"hvs\.[A-Za-z0-9_-]{20,}", r"r8_[A-Za-z0-9]{30,}", r"wandb_v1_[A-Za-z0-9_-]{20,}",
    r"[MNO][A-Za-z\d_-]{23,25}\.[A-Za-z\d_-]{6}\.[A-Za-z\d_-]{27,}",  # Discord
    r"\d{8,10}:[0-9A-Za-z_-]{35}",  # Telegram
)  # fmt: skip
_EQUALS = r"\\?[\"']?\s{0,3}[=:]\s{0,3}"
_QUOTED = r"(\\?[\"'])(?:(?!\3)[^\n\\]){4,500}\3"
_BARE = r"[^\s\"'\\,;&)}\]]"
_NAMED = r"(?:passw(?:or)?d|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key|account[_-]?key|(?<=;)pwd)[\w.-]{0,20}"
_TOKEN_NAME = (
    # Not `tokens`, `token_count`, nor what a tokenizer calls its own: `eos_token`, `class token`.
    r"(?<![a-z])(?<!bos[_ -])(?<!eos[_ -])(?<!pad[_ -])(?<!unk[_ -])(?<!cls[_ -])(?<!sep[_ -])(?<!mask[_ -])(?<!class[_ -])"
    r"(?<!start[_ -])(?<!end[_ -])(?<!image[_ -])(?<!text[_ -])(?<!special[_ -])(?<!next[_ -])(?<!last[_ -])token"
)
_VALUE = rf"(?!(?:true|false|none|null|\d{{1,12}}(?:\.\d*)?)(?![\w.-])|[<\[*])({_BARE}{{4,500}})"
_SHAPES = (
    # user:password@ in an address, up to the last @ of it: passwords may hold @, / and quotation marks. A number
    # between the colon and a slash is a port.
    (re.compile(r"(?<=[a-z0-9]://)[^\s/:?#]{0,200}:(?!\d{1,5}(?:[/?#\s]|$))\S{0,500}@", re.I), f"{HIDDEN}@"),
    (re.compile(r"(?<=[a-z0-9]://)[^\s/@'\"]{1,500}@", re.I), f"{HIDDEN}@"),
    # ?X-Amz-Signature=... in an address
    (
        re.compile(r"([?&;][\w.-]{0,60}(?:token|secret|signature|password|api_?key|access_?key|credential|sig)=)[^\s&'\"]+", re.I),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(\bhooks\.slack\.com/services/|\bdiscord(?:app)?\.com/api/webhooks/)[\w/-]+", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"(\bauthorization\\?[\"']?\s{0,3}[=:]\s{0,3}\\?[\"']?(?:(?:bearer|basic|token|digest|apikey)\s+)?)[^\s\"'\\,;]{4,}", re.I), rf"\1{HIDDEN}"),
    # Words follow `basic` too, and none of them holds a digit.
    (re.compile(r"\b((?:bearer|basic)\s+)(?=[\w.~+/=-]{0,500}[0-9=])[\w.~+/=-]{8,}", re.I), rf"\1{HIDDEN}"),
    # password = "...", token: abc123, \"api_key\": \"...\", --token abc123, and AccountKey=... of Azure
    (re.compile(rf"({_NAMED}{_EQUALS})({_QUOTED})", re.I), rf"\1\3{HIDDEN}\3"),
    (re.compile(rf"({_NAMED}{_EQUALS}\\?[\"']?){_BARE}{{6,}}", re.I), rf"\1{HIDDEN}"),
    (re.compile(rf"({_TOKEN_NAME}{_EQUALS})({_QUOTED})", re.I), rf"\1\3{HIDDEN}\3"),
    (re.compile(rf"({_TOKEN_NAME}\\?[\"']?\s{{0,3}}=\s{{0,3}}){_VALUE}", re.I), rf"\1{HIDDEN}"),
    (re.compile(rf"({_TOKEN_NAME}{_EQUALS}\\?[\"']?)(?={_BARE}{{0,500}}[0-9]){_VALUE}", re.I), rf"\1{HIDDEN}"),
    (re.compile(rf"((?<!-)--[\w-]{{0,40}}(?:token|passw(?:or)?d|secret|api-?key)\s+)(?!-){_BARE}{{4,}}", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"(\blogin\s+\S{1,200}\s+password\s+)\S+", re.I), rf"\1{HIDDEN}"),  # .netrc
    (re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}\\?[\"']?[\s:,/]{1,3}[\"']?[A-Za-z0-9/+=]{40}(?![A-Za-z0-9/+=])"), HIDDEN),
    (
        re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)", re.S),
        HIDDEN,
    ),
    (re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_TOKENS)})"), HIDDEN),
)  # fmt: skip
_NAME = re.compile(r"[\w.-]*")
"""A text in which of all shapes only the last may be: the others hold a space, a colon, a slash or an equals sign."""


def printable(text: object, *, lines: bool = False) -> str:
    """``text`` in characters that any terminal and file takes; the others as escapes.

    File names may hold line breaks, terminal commands, marks that turn the direction of writing, and
    bytes that are no text at all. ``lines`` keeps line breaks, for text of more than one line.
    """
    whole = str(text)
    with contextlib.suppress(UnicodeEncodeError):  # half a pair of surrogates, no file name's; it is escaped below
        whole = os.fsencode(whole).decode("utf-8", "backslashreplace")
    kept = "\n" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in whole)


_UNSEEN = re.compile(r"^[\s\u0000-\u0020\u007f-\u00a0\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")


def sheet_text(text: str) -> str:
    """A text for a cell of a CSV file: one that a spreadsheet would run as a formula is marked as text there (``'``)."""
    # Spreadsheets skip what is invisible at the start, and take full-width signs for the usual ones.
    seen = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    if seen[:1] not in ("=", "+", "-", "@") and text[:1] not in ("\t", "\r", "\n"):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


DIRECTION_MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks that turn the direction of writing: text around one reads as something else than it is."""


def spell_direction_marks(text: str) -> str:
    """``text`` with each of :data:`DIRECTION_MARKS` as an escape that everybody sees."""
    for mark in DIRECTION_MARKS:
        if mark in text:
            text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


_PLAIN = re.compile(r"[A-Za-z0-9 .,:;%()/'\"?@=+\u00b1\u2013-]*")
_CODE = re.compile(r"(?<!`)`([^`<>&|\\]+)`(?!`)")
_SPECIAL = re.compile(r"([\\`*_\[\]{}|~$!])")
_BLOCK_START = re.compile(r"^(\s*)([#+\-=]|\d+(?=[.)]))")


def markdown_text(text: object) -> str:
    """``text`` on one line as Markdown that prints it literally; names between backticks stay code."""
    line = " ".join(str(text).split())
    if _PLAIN.fullmatch(line):  # most cells of a table are numbers
        return line
    line = printable(line)
    parts: list[str] = []
    end = 0
    for match in _CODE.finditer(line):
        parts += [_literal(line[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*parts, _literal(line[end:])])


def _literal(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


def markdown_line(text: object) -> str:
    """As :func:`markdown_text`, at the start of a line, where `#` or `1.` would begin a heading or a list."""
    return _BLOCK_START.sub(_escape_start, markdown_text(text))


def _escape_start(match: re.Match[str]) -> str:
    mark = match.group(2)
    # A backslash before a digit is printed; an entity is not.
    return match.group(1) + (f"&#{ord(mark[0])};{mark[1:]}" if mark.isdigit() else f"\\{mark}")


def without_secrets(text: str) -> str:
    """``text`` without the values of secret environment variables, and without what looks like credentials.

    A variable is secret by its name (``HF_TOKEN``, ``WANDB_API_KEY``, ``AWS_SECRET_ACCESS_KEY``, ...).
    """
    return _without(text, _secrets())


def _without(text: str, secrets: list[str]) -> str:
    for value in secrets:
        text = text.replace(value, HIDDEN)
    # Most texts of a record are the names of columns.
    for shape, shown in _SHAPES[-1:] if _NAME.fullmatch(text) else _SHAPES:
        text = shape.sub(shown, text)
    return text


def _secrets() -> list[str]:
    """Values of secret variables, also as they stand in an address, in JSON and in base64, the longest first."""
    found = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            found |= {value, quote(value, safe=""), quote(value, safe="="), quote(value)}
            found |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
            found.add(base64.b64encode(os.fsencode(value)).decode("ascii"))
    return sorted(found, key=len, reverse=True)


def redact(value: Any) -> Any:
    """``value`` (dicts, lists, texts, numbers) with every text :func:`without_secrets`, keys too.

    A text under a key whose name says secret (``{"hf_token": ...}``) is hidden whole, also in a list or dictionary there.
    """
    return _redacted(value, _secrets())


def _redacted(value: Any, secrets: list[str]) -> Any:
    """As :func:`redact`; ``secrets`` are looked up once for all texts: a study of a thousand runs has a hundred thousand."""
    if isinstance(value, str):
        return _without(value, secrets)
    if isinstance(value, dict):
        return {
            _redacted(key, secrets): _hidden(item, secrets)
            if _SECRET_KEY.search(str(key))
            else _redacted(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_redacted(item, secrets) for item in value]
    return value


def _hidden(value: Any, secrets: list[str]) -> Any:
    """``value`` without its texts."""
    if isinstance(value, dict):
        return {_redacted(key, secrets): _hidden(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(item, secrets) for item in value]
    return HIDDEN if isinstance(value, (str, bytes)) and value else value


def sanitize(text: object) -> str:
    """A message for a terminal: its own lines, printable, without secrets."""
    return printable(without_secrets(str(text)), lines=True)


def sanitize_line(text: object) -> str:
    """As :func:`sanitize`, in one line: for a cell of a table, or one of many names."""
    return printable(without_secrets(str(text)))
