"""Recipe: a random chain of images, from the bottom up, as a plain value; and the building of it with qemu's tools.

    raw or qcow2 <-- qcow2 <-- ... <-- qcow2      each of its own cluster size, length and features, with content that
    bottom                             top        qemu-io wrote: data, zeros, compressed clusters, snapshots in between

What is drawn depends on the seed alone, so a recipe need not be kept. `build` says what each disk should read as.
"""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from formats.registry import create_image
from tests.copy_on_write.model import Model, load
from tests.formats.reference import qemu_io, run

MIB = 1 << 20
DEEPEST = 8
LEAST_LIMIT = MIB  # bytes of a map


@dataclass(frozen=True)
class Fill:
    """One thing that qemu-io does while an image is made; `kind`: write, zero, unmap, compress, snapshot."""

    kind: str
    offset: int = 0
    length: int = 0
    pattern: int = 0

    @property
    def data(self) -> bytes:
        """What the range reads as afterwards."""
        return bytes([self.pattern if self.kind in ("write", "compress") else 0]) * self.length

    @property
    def end(self) -> int:
        return self.offset + self.length

    def __str__(self) -> str:
        """As qemu-io takes it."""
        return _COMMANDS[self.kind].format(self)


_COMMANDS = {
    "write": "write -P {0.pattern} {0.offset} {0.length}",
    "compress": "write -c -P {0.pattern} {0.offset} {0.length}",
    "zero": "write -z {0.offset} {0.length}",
    "unmap": "write -z -u {0.offset} {0.length}",
}


@dataclass(frozen=True)
class Layer:
    """One image of the chain; `options` as `qemu-img create -o` takes them."""

    name: str
    format: str
    length: int
    options: dict[str, str] = field(default_factory=dict)
    ours: bool = False  # made by us, not by qemu-img
    fills: tuple[Fill, ...] = ()

    @property
    def cluster(self) -> int:
        return int(self.options.get("cluster_size", 65536))

    @property
    def version(self) -> int:
        return 2 if self.options.get("compat") == "0.10" else 3

    @property
    def sub_cluster(self) -> int:
        return self.cluster // 32 if "extended_l2" in self.options else self.cluster


@dataclass(frozen=True)
class Recipe:
    """`layers`: the bottom first. `tuning`: constants of block_map and commits, small, so that limits are met."""

    layers: tuple[Layer, ...]
    tuning: dict[str, int]
    map_limit: int  # bytes; 0: as it is
    direct: bool

    @property
    def top(self) -> Layer:
        return self.layers[-1]

    def __str__(self) -> str:
        return "\n".join(
            [*map(_told, self.layers), f"{self.tuning}, map limit: {self.map_limit}, direct: {self.direct}"]
        )


def _told(layer: Layer) -> str:
    maker = "vstore" if layer.ours else "qemu-img"
    return f"{layer.name}: {layer.format} by {maker}, {layer.length} bytes, {layer.options}, {len(layer.fills)} fills"


# ---- drawing ----


def draw(source: random.Random) -> Recipe:
    """A chain whose disks are some MiB long, or, seldom, as long as their tables allow."""
    depth = source.choice([1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 6, DEEPEST])
    bits = _bits(source)
    length = min(source.choice([3, 20, 70, 200, 600]) << bits, source.choice([1, 4, 12]) * MIB)
    length += source.choice([0, 0, 512, 1536])
    if source.random() < 0.05 and bits >= 12 and depth < 4:
        length = min(1 << 38, 1 << bits + bits - 3 + 12)
    layers: list[Layer] = []
    for number in range(depth):
        last = number == depth - 1
        own = length if last else _parent_length(source, length)
        layers.append(
            _layer(
                source,
                "top" if last else f"{number}",
                own,
                bits if last else _bits(source),
                layers[-1] if layers else None,
            )
        )
    tuning = {
        "WINDOW_BYTES": source.choice([0, 1 << 17, MIB, 64 * MIB]),
        "MOST_PENDING": source.choice([4, 64, 8192, 8192]),
        "MOST_BLOCKS": source.choice([3, 100, 1 << 18]),
        "CACHED": source.choice([1, 64]),
    }
    map_limit = source.choice([0, LEAST_LIMIT])
    return Recipe(tuple(layers), tuning, map_limit, source.random() < 0.15)


def _bits(source: random.Random) -> int:
    return source.choice([9, 9, 10, 12, 12, 13, 14, 16, 16, 16, 17, 18, 21])


def _parent_length(source: random.Random, length: int) -> int:
    """Shorter, as long, or longer than the child."""
    wanted = int(length * source.choice([0.3, 0.5, 0.9, 1, 1, 1, 1.1, 1.5])) // 512 * 512
    return max(512, min(wanted, 2 * length))


def _layer(source: random.Random, name: str, length: int, bits: int, parent: Layer | None) -> Layer:
    raw = parent is None and source.random() < 0.3
    options = {} if raw else _options(source, bits, parent)
    empty = Layer(
        f"{name}.{'raw' if raw else 'qcow2'}", "raw" if raw else "qcow2", length, options, source.random() < 0.4
    )
    return replace(empty, fills=fills(source, empty, length, source.choice([0, 3, 12]), new=True))


def _options(source: random.Random, bits: int, parent: Layer | None) -> dict[str, str]:
    options = {"cluster_size": str(1 << bits)}
    if source.random() < 0.15:
        return options | {"compat": "0.10"}
    if bits >= 14 and source.random() < 0.4:
        options["extended_l2"] = "on"
    if source.random() < 0.4:
        options["refcount_bits"] = source.choice(["1", "2", "4", "8", "32", "64"])
    if source.random() < 0.2:
        options["lazy_refcounts"] = "on"
    if source.random() < 0.3:
        options["compression_type"] = "zstd"
    if source.random() < 0.15:
        options["data_file"] = "on"
        if parent is None and source.random() < 0.5:
            options["data_file_raw"] = "on"
    if parent is None and source.random() < 0.2 and "data_file" not in options:
        options["preallocation"] = source.choice(["metadata", "falloc", "full"])
    return options


def fills(source: random.Random, layer: Layer, length: int, count: int, *, new: bool) -> tuple[Fill, ...]:
    """What qemu-io shall do to a layer that is `length` bytes long now. Only what is `new` is compressed into, and
    first, because qemu compresses over no cluster that is there."""
    options = layer.options
    own = new and layer.format == "qcow2" and "data_file" not in options
    compressed = source.choice([0, 0, 2, 8]) if own and "preallocation" not in options else 0
    countable = own and length <= 64 * MIB and int(options.get("refcount_bits", 16)) >= 16
    kinds = ["write"] * 6 + ["zero", "unmap"] + ["snapshot"] * countable
    drawn: list[Fill] = []
    for _ in range(compressed):
        fill = _fill(source, "compress", length, layer.cluster)
        if not any(fill.offset < other.end and other.offset < fill.end for other in drawn):
            drawn.append(fill)
    return (*drawn, *(_fill(source, source.choice(kinds), length, layer.cluster) for _ in range(count)))


def _fill(source: random.Random, kind: str, length: int, cluster: int) -> Fill:
    unit = cluster if kind == "compress" else 512
    offset = source.randrange(0, length, unit)
    count = source.choice([unit, 4096, 65536, cluster, 3 * cluster]) // unit * unit
    return Fill(kind, offset, min(max(count, unit), length - offset), source.randrange(256))


# ---- building ----


@dataclass
class Built:
    """What lies in the folder now: the disk's model, and those of its snapshots by name."""

    model: Model
    snapshots: dict[str, Model]


def build(recipe: Recipe, folder: Path) -> Built:
    """Makes the files of a recipe; each layer's name is its file's."""
    built = Built(Model(0), {})
    for number, layer in enumerate(recipe.layers):
        model = built.model.copy()
        model.resize(layer.length)
        built = Built(model, {})
        create(layer, recipe.layers[number - 1] if number else None, folder)
        _fill_all(layer, folder, built)
    return built


def create(layer: Layer, parent: Layer | None, folder: Path) -> None:
    """The empty image, over its parent."""
    path, options = folder / layer.name, dict(layer.options)
    if "data_file" in options:
        options["data_file"] = str(folder / f"{layer.name}.data")  # qemu takes others relative to where it was started
    if parent is not None:
        options |= {"backing_file": parent.name, "backing_fmt": parent.format}
    if layer.ours:
        preallocation = options.pop("preallocation", "off")
        create_image(layer.format, path, layer.length, preallocation=preallocation, options=options)
        return
    text = ",".join(f"{name}={value}" for name, value in options.items())
    argv = ["-o", text] if text else []
    made = run("qemu-img", "create", "-q", "-f", layer.format, *argv, path, str(layer.length))
    assert made.returncode == 0, made.stderr


def _fill_all(layer: Layer, folder: Path, built: Built) -> None:
    commands: list[str] = []
    for number, fill in enumerate(layer.fills):
        if fill.kind == "snapshot":
            change(layer, folder, commands)
            taken = run("qemu-img", "snapshot", "-c", f"fill{number}", folder / layer.name)
            assert taken.returncode == 0, taken.stderr
            built.snapshots[f"fill{number}"] = built.model.copy()
            commands = []
            continue
        commands.append(str(fill))
        built.model.write(fill.offset, fill.data)
    change(layer, folder, commands)


def change(layer: Layer, folder: Path, commands: list[str]) -> None:
    """Lets qemu-io do all of them."""
    if commands:
        qemu_io(layer.format, folder / layer.name, *commands)


def read_by_qemu(path: Path, folder: Path, *, snapshot: str | None = None) -> Model:
    """The disk, or one of its snapshots, as qemu reads it."""
    raw = folder / "qemu.raw"
    which = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    done = run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", *which, path, raw)
    assert done.returncode == 0, done.stderr
    return load(raw)
