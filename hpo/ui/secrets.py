"""Passwords in text."""

import re

_IN_URL = re.compile(r"(://[^\s/:@]*:)[^\s/]*@")
_IN_OPTIONS = re.compile(r"(password=)[^\s&]+", re.IGNORECASE)


def hide_passwords(text: str) -> str:
    """Replace the passwords of URLs and of connection options by ``***``."""
    return _IN_OPTIONS.sub(r"\1***", _IN_URL.sub(r"\1***@", text))
