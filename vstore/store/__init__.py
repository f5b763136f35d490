"""Management of vstore: catalog, pools and supervisor behind the verbs of one `Store`."""

from vstore.store.store import Store

__all__ = ["Store"]
