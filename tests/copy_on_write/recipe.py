"""Recipe: a random chain of images, from the bottom up, as a plain value; and the building of it with qemu's tools.

    raw, luks or qcow2 <-- qcow2 <-- ... <-- qcow2      each of its own cluster size, length, features and encryption,
    bottom                                   top        with content that qemu-io wrote: data, zeros, compressed
                                                        clusters, snapshots in between

What is drawn depends on the seed alone, so a recipe need not be kept. `build` says what each disk should read as.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from formats.registry import create_image
from tests.copy_on_write.layer import KEY, SECRET, Fill, Layer, options_of
from tests.copy_on_write.model import Model
from tests.formats.reference import run

MIB = 1 << 20
DEEPEST = 8
LEAST_LIMIT = MIB  # bytes of a map
ENCRYPTED = 0.15  # of the images
# Of an encrypted image, in clusters of 128 KiB or more: qemu-img compare (7.2) dies of an assertion in
# bdrv_co_block_status where nothing is allocated for so many bytes.
QEMU_GIVES_UP = 1 << 31


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
                bits if last else _bits(source, own),
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


def _bits(source: random.Random, length: int = 0) -> int:
    """Bits of a cluster; so many that a disk of `length` bytes has 4,096 L1 entries at most, or nearly."""
    least = next(bits for bits in range(9, 22) if 1 << bits + bits - 3 + 12 >= length >> 1)
    return max(least, source.choice([9, 9, 10, 12, 12, 13, 14, 16, 16, 16, 17, 18, 21]))


def _parent_length(source: random.Random, length: int) -> int:
    """Shorter, as long, or longer than the child."""
    wanted = int(length * source.choice([0.3, 0.5, 0.9, 1, 1, 1, 1.1, 1.5])) // 512 * 512
    return max(512, min(wanted, 2 * length))


def _layer(source: random.Random, name: str, length: int, bits: int, parent: Layer | None) -> Layer:
    format = source.choices(["qcow2", "raw", "luks"], [14, 5, 1])[0] if parent is None else "qcow2"
    if format == "luks" and (name == "top" or length > 16 * MIB):
        format = "raw"
    options = {} if format != "qcow2" else _options(source, bits, length, parent)
    empty = Layer(f"{name}.{format}", format, length, options, source.random() < 0.4)
    drawn = fills(source, empty, length, source.choice([0, 3, 12]), new=True)
    if format == "luks":  # what was never written to it is noise
        drawn = (Fill("write", 0, length, source.randrange(256)), *drawn)
    return replace(empty, fills=drawn)


def _options(source: random.Random, bits: int, length: int, parent: Layer | None) -> dict[str, str]:
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
    elif source.random() < ENCRYPTED and not (bits > 16 and length >= QEMU_GIVES_UP):
        options["encrypt.format"] = "luks"
    elif parent is None and source.random() < 0.2:
        options["preallocation"] = source.choice(["metadata", "falloc", "full"])
    return options


def options_over(source: random.Random, length: int, parent: Layer | None) -> dict[str, str]:
    """For one more image of `length` bytes, over this parent or none."""
    options = _options(source, _bits(source, length), length, parent)
    for name in ("preallocation", "data_file", "data_file_raw"):
        options.pop(name, None)
    return options


def fills(source: random.Random, layer: Layer, length: int, count: int, *, new: bool) -> tuple[Fill, ...]:
    """What qemu-io shall do to a layer that is `length` bytes long now. Only what is `new` is compressed into, and
    first, because qemu compresses over no cluster that is there."""
    options = layer.options
    own = new and layer.format == "qcow2" and "data_file" not in options
    packs = own and not layer.encrypted and "preallocation" not in options
    compressed = source.choice([0, 0, 2, 8]) if packs else 0
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
        _fill_all(recipe.layers[: number + 1], folder, built)
    return built


def create(layer: Layer, parent: Layer | None, folder: Path) -> None:
    """The empty image, over its parent."""
    path, options = folder / layer.name, dict(layer.options)
    if "data_file" in options:
        options["data_file"] = str(folder / f"{layer.name}.data")  # qemu takes others relative to where it was started
    if parent is not None:
        options |= {"backing_file": parent.name, "backing_fmt": parent.format}
    if layer.ours:
        preallocation, secret = options.pop("preallocation", "off"), KEY if layer.encrypted else None
        create_image(layer.format, path, layer.length, preallocation=preallocation, options=options, secret=secret)
        return
    if layer.encrypted:
        options |= {f"{layer.key_prefix}key-secret": "key", f"{layer.key_prefix}iter-time": "10"}
    text = ",".join(f"{name}={value}" for name, value in options.items())
    argv = ["-o", text] if text else []
    made = run("qemu-img", "create", "-q", *SECRET, "-f", layer.format, *argv, path, str(layer.length))
    assert made.returncode == 0, made.stderr


def _fill_all(chain: Sequence[Layer], folder: Path, built: Built) -> None:
    """The last of the chain."""
    commands: list[str] = []
    for number, fill in enumerate(chain[-1].fills):
        if fill.kind == "snapshot":
            change(chain, folder, commands)
            taken = run(
                "qemu-img", "snapshot", *SECRET, "-c", f"fill{number}", "--image-opts", options_of(chain, folder)
            )
            assert taken.returncode == 0, taken.stderr
            built.snapshots[f"fill{number}"] = built.model.copy()
            commands = []
            continue
        commands.append(str(fill))
        built.model.write(fill.offset, fill.data)
    change(chain, folder, commands)


def change(chain: Sequence[Layer], folder: Path, commands: list[str]) -> None:
    """Lets qemu-io do all of them to the last of the chain."""
    if commands:
        arguments = [argument for command in commands for argument in ("-c", command)]
        done = run("qemu-io", *SECRET, "--image-opts", *arguments, options_of(chain, folder))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "failed" not in done.stdout, done.stdout
