"""Warnings about the other side, in bounded number: neither a hostile front-end nor its guest can fill the log."""

import logging

MOST = 100


class Complaints:
    """Of one source, `name`; counted from its creation or its last renew()."""

    def __init__(self, log: logging.Logger, name: str) -> None:
        self._log = log
        self._name = name
        self._count = 0

    def tell(self, text: str, *arguments: object) -> None:
        """As logging.warning(), with the source's name before it."""
        self._count += 1
        if self._count <= MOST:
            self._log.warning("%s: " + text, self._name, *arguments)
        elif self._count == MOST + 1:
            self._log.warning("%s: more warnings like these are left out", self._name)

    def renew(self) -> None:
        self._count = 0
