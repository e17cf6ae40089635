"""What the person reads: one line a change, with the time, on stderr, and never a secret."""

import re
import sys
import time
from typing import ClassVar

SECRET_FORMS = re.compile(r"\b(?:sss|ash|hf)_[\w-]+|(?<=Bearer )\S+|(?<=cli_token=)[^\s;]+")


SHORTEST_SECRET = 8  # characters; shorter ones are no secrets, and stars in place of them would garble the rest


class Teller:
    _secrets: ClassVar[set[str]] = set()  # of all of them: what goes wrong is told by another one than what goes on

    def __init__(self) -> None:
        self._last = ""

    @classmethod
    def keep_secret(cls, text: str | None) -> None:
        if text and len(text) >= SHORTEST_SECRET:
            cls._secrets.add(text)

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.masked(text)}", file=sys.stderr, flush=True)

    def say_once(self, text: str) -> None:
        """Nothing if it was the last thing said this way."""
        if text != self._last:
            self._last = text
            self.say(text)

    def quote(self, text: str) -> None:
        """Lines of somebody else, set off."""
        for line in text.splitlines():
            print(f"         | {self.masked(line)}", file=sys.stderr, flush=True)

    def masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return SECRET_FORMS.sub("***", text)
