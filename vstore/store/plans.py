"""What the catalog says a target process should be: its settings and its LUNs, ready to be sent to it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select

from vstore.store import schema
from vstore.store.access import SocketAccess
from vstore.store.catalog import Catalog
from vstore.store.chains import chains
from vstore.store.errors import InvalidArgument, NotFound
from vstore.store.identifiers import LunAddress
from vstore.store.image_spec import data_file_of
from vstore.store.pool import Pool
from vstore.target.verbs import Configure, ImageSource, MapLun, ParentSource
from vstore.vhost_user.listener import Listener

_IN_PLACE = ("raw", "null", "luks")  # formats whose writes go where the blocks are
_image = schema.images.c
LUN_ROWS = (
    select(
        schema.luns,
        schema.targets.c.name.label("target"),
        schema.pools.c.name.label("pool"),
        *(_image.name.label("image"), _image.format, _image.file, _image.virtual_size_bytes),
        *(_image.secret, _image.options),
    )
    .join_from(schema.luns, schema.targets)
    .join(schema.images, _image.id == schema.luns.c.image_id)
    .join(schema.pools, schema.pools.c.id == _image.pool_id)
)


class LayerPlan(NamedTuple):
    """An image of a chain: its name, its file, its data file if it has one, its secret's name if it has one."""

    image: str
    file: str
    data_file: str | None
    secret: str | None


@dataclass(frozen=True)
class LunPlan:
    """One LUN as it should be mapped; `request` is what the process is told, `layers` come as descriptors: the image's,
    then its parents', nearest first; none for formats without a file."""

    address: LunAddress
    image_id: str
    pool: Pool
    layers: tuple["LayerPlan", ...]
    request: MapLun

    @classmethod
    def of(cls, pool: Pool, image: str, row: Any, parents: Sequence[Row[Any]] = ()) -> "LunPlan":
        """`row` has the columns of LUN_ROWS."""
        source = ImageSource(
            format=row.format,
            length=None if row.file else row.virtual_size_bytes,
            direct=row.direct,
            name=f"{pool.name}/{image}",
            data_file=data_file_of(row) is not None,
            secret=row.secret is not None,
            parents=tuple(
                ParentSource(
                    format=each.format,
                    name=f"{pool.name}/{each.name}",
                    file=each.file,
                    data_file=data_file_of(each) is not None,
                    secret=each.secret is not None,
                )
                for each in parents
            ),
        )
        request = MapLun(
            target=row.scsi_target,
            lun=row.lun,
            image=source,
            read_only=row.read_only,
            shared=row.shared,
            state=bool(row.file) and not row.read_only,
            logical_block_length=row.logical_block_length_bytes,
            discard=row.discard,
            serial=row.serial,
        )
        chain = ((image, row), *((each.name, each) for each in parents))
        layers = tuple(LayerPlan(name, each.file, data_file_of(each), each.secret) for name, each in chain if each.file)
        return cls(LunAddress(row.scsi_target, row.lun), row.image_id, pool, layers, request)

    @property
    def outlives(self) -> bool:
        """Whether all that was acknowledged is in the files, also when the process is killed before a flush."""
        formats = [self.request.image.format, *(parent.format for parent in self.request.image.parents)]
        return "memory" not in formats and (self.request.read_only or formats[0] in _IN_PLACE)

    def serves_the_same(self, settings: MapLun) -> bool:
        """Whether a mapping that is there is this one; its length may have changed since."""
        return _without_length(settings) == _without_length(self.request)

    @contextmanager
    def descriptors(self) -> Iterator[list[int]]:
        """The files, open and locked, parents as readers lock them, and secrets. Raises StoreError."""
        settings = self.request
        found = []
        with ExitStack() as closing:
            if settings.state:
                found.append(closing.enter_context(self.pool.state_of(self.layers[0].file)))
            for depth, layer in enumerate(self.layers):
                read_only = bool(depth) or settings.read_only
                for name in filter(None, (layer.file, layer.data_file)):
                    file = self.pool.open(name, read_only=read_only, direct=settings.image.direct)
                    found.append(closing.enter_context(file).descriptor)
                if layer.secret is not None:
                    found.append(closing.enter_context(self.pool.secrets.opened(layer.image, layer.secret)))
            yield found


@dataclass(frozen=True)
class TargetPlan:
    configure: Configure
    access: SocketAccess
    luns: dict[LunAddress, LunPlan]
    beside: str | None = None  # the target in whose process it is served

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
        above = chains(connection, {lun.image_id for lun in rows})
        beside = beside_of(connection, row)
    plans = [LunPlan.of(pools[lun.pool], lun.image, lun, above[lun.image_id]) for lun in rows]
    access = SocketAccess(row.socket_mode, row.socket_owner, row.socket_group)
    return TargetPlan(_configure(row, socket), access, {plan.address: plan for plan in plans}, beside)


def beside_of(connection: Connection, row: Row[Any]) -> str | None:
    """The name of the target in whose process this one is served."""
    table = schema.targets.c
    return connection.scalars(select(table.name).where(table.id == row.beside_id)).one_or_none()


def _configure(row: Row[Any], socket: str) -> Configure:
    return Configure(
        name=row.name,
        port=row.port,
        socket=socket,
        request_queues=row.request_queues,
        threads=row.threads,
        poll_us=row.poll_us,
        config_space=row.config_space,
    )


def _without_length(settings: MapLun) -> MapLun:
    """What may differ: a process of an earlier version keeps no state, and goes on until it is started again."""
    return replace(settings, state=False, image=replace(settings.image, length=None))
