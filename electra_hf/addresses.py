"""Addresses (URLs) as they may leave this machine: in a recipe, a card, a log, a message."""

import re

_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*://"
# user:password@, where the password may hold a / or ? that nobody encoded. host:8080/a@b is none.
_PASSWORD = re.compile(_SCHEME + r")(?:[^\s/?#]*@|[^\s/@?#]+:(?!\d+/)[^\s@]*@)")
# Up to a quote or blank; the bracket or full stop that ends a sentence is no part of it.
_QUERY = re.compile(_SCHEME + r"[^\s?#\"'<>`]*)[?#][^\s\"'<>`]*?(?=[).,:;\]}]*(?:[\s\"'<>`]|$))")


def public_text(text: str) -> str:
    """The text with every address in it cut to what everybody may read.

    A user name with its password is for the server alone, and so is a query, which signs the address where storage is
    rented (`?sig=...`). Both go, and what follows a `#` goes too.
    """
    return _QUERY.sub(r"\1", _PASSWORD.sub(r"\1", text))
