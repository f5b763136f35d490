"""Layer: one image of a chain as a plain value, what qemu-io writes into it while it is made, how qemu is told of it.

Encrypted images all have one key. qemu is told of it for each image of a chain that has it, from the top down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

KEY = b"of the whole chain"
SECRET = ("--object", f"secret,id=key,data={KEY.decode()}")  # for any of qemu's tools


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

    @property
    def encrypted(self) -> bool:
        return self.format == "luks" or "encrypt.format" in self.options

    @property
    def key_prefix(self) -> str:
        """Of qemu's options about the key."""
        return "encrypt." if self.format == "qcow2" else ""


def options_of(chain: Sequence[Layer], folder: Path) -> str:
    """The last of the chain, over the others, for `--image-opts`."""
    top = chain[-1]
    words = [f"driver={top.format}", f"file.filename={folder / top.name}"]
    for depth, layer in enumerate(reversed(chain)):
        if layer.encrypted:
            words.append(f"{'backing.' * depth}{layer.key_prefix}key-secret=key")
    return ",".join(words)
