"""The beginning of a target process: what makes Python start faster, up to the moment at which it serves.

It imports nothing that would undo it, so it can be called before anything else is imported.
"""

import gc
import sys


def prepare() -> None:
    """Call it before asyncio is imported."""
    gc.disable()  # until `begun`: what is imported stays, and to look for garbage in it takes as long as a tenth of it
    if "asyncio" not in sys.modules and "ssl" not in sys.modules:
        # asyncio does without ssl where there is none, and no target speaks TLS. OpenSSL would be a third of asyncio.
        sys.modules["ssl"] = None  # type: ignore[assignment]  # “there is no such module” (importlib, sys.modules)
        import asyncio  # noqa: F401

        del sys.modules["ssl"]


def begun() -> None:
    """Call it when everything is imported: the collector looks at what comes from now on, and never again at that."""
    gc.freeze()
    gc.enable()
