"""Secrets taken out of text that is printed or stored: what a failed run says may hold one."""

from __future__ import annotations

import os
import re
from typing import Final

_NAMES: Final = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY", re.I)
_IN_URLS: Final = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)")
_FEWEST: Final = 8  # characters: a shorter value stands in ordinary text as well
MARK: Final = "***"


def redacted(text: str) -> str:
    """Return text without the values of environment variables that are called like secrets.

    A user and password in a URL go too.
    """
    for name, value in os.environ.items():
        if len(value) >= _FEWEST and _NAMES.search(name):
            text = text.replace(value, MARK)
    return _IN_URLS.sub(MARK, text)
