"""Passwords in text."""

import os
import re
import sys
from collections.abc import Iterator

_IN_URL = re.compile(r"(://[^\s/:@]*:)\S*@")
_WITH_SPACES = re.compile(r"(://[^/:@]*:).*@", re.DOTALL)
_IN_OPTIONS = re.compile(r"((?:password|oauth_client_secret|scram_client_key|scram_server_key)=)[^\s&]+", re.IGNORECASE)


def hide_passwords(text: str) -> str:
    """Replace the passwords of URLs and of connection options by ``***``."""
    for given in _given_urls():
        # The message may have the text as a literal, or with other white space.
        for form in (given, repr(given)[1:-1], " ".join(given.split())):
            text = text.replace(form, _WITH_SPACES.sub(r"\1***@", form))
    return _IN_OPTIONS.sub(r"\1***", _IN_URL.sub(r"\1***@", text))


def _given_urls() -> Iterator[str]:
    """Yield the URLs with a user among the arguments and the settings of this process."""
    settings = (value for name, value in os.environ.items() if name.startswith("HPO_"))
    for text in (*sys.argv[1:], *settings):
        if "://" in text and "@" in text:
            # The URL of --storage=URL.
            yield re.sub(r"^--[\w-]+=", "", text)
