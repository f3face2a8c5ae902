r"""How is shown what comes from outside: as one plain line, without passwords, quoted for a shell.

Names, files, a provider's words and rows of a store may hold anything: line breaks, escape
sequences that steer a terminal, characters that turn the writing round. `one_line` is the door
for all of it, `shell_word` the one for what stands in a command that people copy.

>>> one_line("a\x1b[31mb\r\nc\u202ed\te")
'a [31mb c d e'
>>> shell_word("it's"), shell_word("two\nlines\x1b")
('\'it\'"\'"\'s\'', "$'two\\nlines\\x1b'")
"""

from __future__ import annotations

import logging
import re
import shlex

MAX_LINE_CHARS = 4_000
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_NO_SECRETS = "schema|notify|patience|sslmode|service|host|port|dbname|target_session_attrs"
_IN_QUERY = re.compile(rf"([?&;](?!(?:{_NO_SECRETS})=)[^=&;#\s]+=)[^&;#\s]*")
_PASSWORD = re.compile(
    r"""(?ix) \b((?:\w*pass\w*|pwd?|\w*token|\w*secret|\w*key) \s*=\s*) (?:'[^']*'|"[^"]*"|\S+)"""
)
HIDDEN = "***"


def one_line(text: object, most: int = MAX_LINE_CHARS) -> str:
    """Text without line breaks or characters that steer a terminal, and not longer than `most`.

    What turns the writing round, or is not seen at all, goes as well.
    """
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    line = " ".join(plain.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def plain_line(text: str) -> str:
    """A line of our own that others' words stand in: as `one_line`, with its blanks as they are."""
    return "".join(c if c.isprintable() else " " for c in text).rstrip()


def logger_of(name: str) -> logging.Logger:
    """A logger whose messages are one plain line each: they quote what providers say."""
    logger = logging.getLogger(name)
    if _flatten not in logger.filters:
        logger.addFilter(_flatten)
    return logger


def _flatten(record: logging.LogRecord) -> bool:
    try:
        record.msg, record.args = one_line(record.getMessage()), ()
    except Exception:  # logging itself says what is wrong with a message
        return True
    return True


def shell_word(text: str) -> str:
    """Text as one word of a command: what is pasted means just this text, and does nothing else."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    is_byte = (
        "\udc80" <= char <= "\udcff"
    )  # one of an argument that is no UTF-8; else half a character
    encoded = char.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in encoded)


def command(*words: str) -> str:
    """A command to be copied."""
    return " ".join(map(shell_word, words))


def about(name: str, options: str = "", rest: str = "") -> str:
    """What follows a command's own words: a name, more arguments, options.

    >>> about("team", " --store x.db", " '$5'"), about("-f", " --store x.db", " '$5'")
    ("team '$5' --store x.db", "--store x.db -- -f '$5'")
    """
    if name.startswith("-"):  # or it would be taken for an option
        return f"{options} -- {shell_word(name)}{rest}".lstrip()
    return f"{shell_word(name)}{rest}{options}"


def without_password(url: object) -> str:
    """A URL or another way to name a place, without the passwords that may be in it.

    >>> without_password("postgresql://ann:pw@db.example.com/q?sslpassword=pw")
    'postgresql://***@db.example.com/q?sslpassword=***'
    >>> without_password("host=db user=ann password='p w'"), without_password("sqlite:///a@b.db")
    ('host=db user=ann password=***', 'sqlite:///a@b.db')
    """
    text = str(url)
    scheme, found, rest = text.partition("://")
    if found and not rest.startswith("/"):
        return f"{scheme}://{_without_user(rest)}"
    if not found and ":" in text.rpartition("@")[0]:
        return _without_user(text)  # what was meant to be a URL
    return _PASSWORD.sub(rf"\1{HIDDEN}", text)


def _without_user(rest: str) -> str:
    user, at, place = rest.rpartition("@")
    masked = _IN_QUERY.sub(rf"\1{HIDDEN}", place)
    return f"{HIDDEN if user else ''}{at}{masked}"
