"""What the catalog says a target process should be: its settings and its LUNs, ready to be sent to it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, select

from vstore.store import schema
from vstore.store.access import SocketAccess
from vstore.store.catalog import Catalog
from vstore.store.errors import InvalidArgument, NotFound
from vstore.store.identifiers import LunAddress
from vstore.store.pool import Pool
from vstore.target.verbs import Configure, ImageSource, MapLun
from vstore.vhost_user.listener import Listener

_image = schema.images.c
LUN_ROWS = (
    select(
        schema.luns,
        schema.targets.c.name.label("target"),
        schema.pools.c.name.label("pool"),
        *(_image.name.label("image"), _image.format, _image.file, _image.virtual_size_bytes),
    )
    .join_from(schema.luns, schema.targets)
    .join(schema.images, _image.id == schema.luns.c.image_id)
    .join(schema.pools, schema.pools.c.id == _image.pool_id)
)


@dataclass(frozen=True)
class LunPlan:
    """One LUN as it should be mapped; `request` is what the process is told, `file` comes as a descriptor."""

    address: LunAddress
    image_id: str
    pool: Pool
    file: str | None
    request: MapLun

    @classmethod
    def of(cls, pool: Pool, image: str, row: Any) -> "LunPlan":
        """`row` has the columns of LUN_ROWS."""
        source = ImageSource(
            format=row.format,
            length=None if row.file else row.virtual_size_bytes,
            direct=row.direct,
            name=f"{pool.name}/{image}",
        )
        request = MapLun(
            target=row.scsi_target,
            lun=row.lun,
            image=source,
            read_only=row.read_only,
            logical_block_length=row.logical_block_length_bytes,
            serial=row.serial,
        )
        return cls(LunAddress(row.scsi_target, row.lun), row.image_id, pool, row.file, request)

    def serves_the_same(self, settings: MapLun) -> bool:
        """Whether a mapping that is there is this one; its length may have changed since."""
        return _without_length(settings) == _without_length(self.request)

    @contextmanager
    def descriptor(self) -> Iterator[int | None]:
        """The image's file, open and locked; None for formats without a file. Raises StoreError."""
        if self.file is None:
            yield None
            return
        settings = self.request
        with self.pool.open(self.file, read_only=settings.read_only, direct=settings.image.direct) as file:
            yield file.descriptor


@dataclass(frozen=True)
class TargetPlan:
    configure: Configure
    access: SocketAccess
    luns: dict[LunAddress, LunPlan]

    @contextmanager
    def listening(self) -> Iterator[int]:
        """A new socket for the VMM, as a descriptor to hand over. Raises InvalidArgument, OSError.

        Its file stays, because the process that has it goes on listening there; it goes with the target's directory,
        and that of a process that died gives way to the next one.
        """
        permissions = self.access.permissions()
        try:
            listener = Listener(self.configure.socket, permissions)
        except ValueError as error:  # the target is older than the runtime directory's present name
            raise InvalidArgument("socket", str(error), "choose a shorter runtime directory") from error
        with listener.socket as listening:
            yield listening.fileno()


def load_plan(catalog: Catalog, pools: Mapping[str, Pool], name: str, socket: str) -> TargetPlan:
    """Raises NotFound."""
    with catalog.read() as connection:
        row = connection.execute(select(schema.targets).where(schema.targets.c.name == name)).one_or_none()
        if row is None:
            raise NotFound(f"there is no target {name}")
        rows = connection.execute(LUN_ROWS.where(schema.luns.c.target_id == row.id)).all()
    plans = [LunPlan.of(pools[lun.pool], lun.image, lun) for lun in rows]
    access = SocketAccess(row.socket_mode, row.socket_owner, row.socket_group)
    return TargetPlan(_configure(row, socket), access, {plan.address: plan for plan in plans})


def _configure(row: Row[Any], socket: str) -> Configure:
    return Configure(
        name=row.name,
        socket=socket,
        request_queues=row.request_queues,
        threads=row.threads,
        poll_us=row.poll_us,
        config_space=row.config_space,
    )


def _without_length(settings: MapLun) -> MapLun:
    return replace(settings, image=replace(settings.image, length=None))
