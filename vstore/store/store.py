"""Store: the one door to management. Its public methods are the verbs; REST and command line call nothing else."""

import contextlib
from functools import partial
from pathlib import Path

from vstore.store.bitmaps import BitmapVerbs
from vstore.store.catalog import Catalog
from vstore.store.claims import Claims
from vstore.store.directories import PASSABLE, claimed
from vstore.store.images import ImageVerbs
from vstore.store.jobs import Jobs, JobVerbs
from vstore.store.locks import NamedLocks
from vstore.store.looks import LookVerbs
from vstore.store.luns import LunVerbs
from vstore.store.plans import load_plan
from vstore.store.reconcile import adopt_length, known_targets, opened_pools, reconcile_pool
from vstore.store.registration import RegistrationVerbs
from vstore.store.running import Spawn
from vstore.store.secret_files import SecretFiles
from vstore.store.secrets import SecretVerbs
from vstore.store.snapshots import SnapshotVerbs
from vstore.store.supervisor import Supervisor
from vstore.store.targets import TargetVerbs
from vstore.store.transfers import TransferVerbs
from vstore.store.work import Workers
from vstore.target.spawn import spawn


class Store(
    ImageVerbs,
    RegistrationVerbs,
    LookVerbs,
    SnapshotVerbs,
    BitmapVerbs,
    TransferVerbs,
    SecretVerbs,
    JobVerbs,
    TargetVerbs,
    LunVerbs,
):
    """Sync and thread-safe. Every verb raises StoreError and nothing else, and is one transaction of the catalog."""

    def __init__(self, state_directory: Path, runtime_directory: Path, *, spawn: Spawn = spawn) -> None:
        """Opens the catalog, mends what a crash left, and brings up (or adopts) the targets' processes beside.

        Raises CatalogUnavailable (another daemon has these directories, a newer version wrote the catalog), StoreError.
        """
        with contextlib.ExitStack() as undo:
            undo.enter_context(claimed(state_directory, 0o700))
            undo.enter_context(claimed(runtime_directory, PASSABLE))
            self.workers = Workers(state_directory / "workers")
            undo.callback(self.workers.close)
            self.catalog = Catalog(state_directory / "catalog.sqlite")
            undo.callback(self.catalog.close)
            self.secrets = SecretFiles(state_directory / "secrets")
            self.pools = opened_pools(self.catalog, state_directory, self.secrets)
            for pool in self.pools.values():
                undo.callback(pool.close)
                reconcile_pool(self.catalog, pool)
            self.locks = NamedLocks()
            self.claims = Claims()
            self.jobs = Jobs(self.catalog, self.claims, self.workers)
            undo.callback(self.jobs.close)
            self.supervisor = Supervisor(
                runtime_directory / "targets",
                self.locks,
                plan=partial(load_plan, self.catalog, self.pools),
                length_told=partial(adopt_length, self.catalog),
                spawn=spawn,
            )
            names = known_targets(self.catalog)
            self.supervisor.tidy(names)
            for name in names:
                self.supervisor.start(name)
            self._held = undo.pop_all()

    def close(self, *, stop_targets: bool) -> None:
        """Ends the jobs, and the targets' processes, flushed, or leaves them to the next daemon; then lets go of
        everything."""
        with self._held:
            self.jobs.close()
            if stop_targets:
                self.supervisor.stop_all()
            else:
                self.supervisor.release_all()


VERBS = tuple(name for base in Store.__bases__ for name in vars(base) if not name.startswith("_"))
