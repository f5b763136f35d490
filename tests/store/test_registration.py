"""Files that were copied into the pool become images, if they are what they are said to be."""

from pathlib import Path
from typing import Any

import pytest

from formats.registry import create_image
from tests.store.test_secrets import K1, K2, TOP, qemu_io
from tests.store.test_transfers import done
from tests.store.world import MIB, STATE, World
from vstore.store import Store
from vstore.store.errors import (
    AlreadyExists,
    Conflict,
    InvalidArgument,
    NotFound,
    SecretNeeded,
    SecretWrong,
    StoreError,
)

QCOW2: dict[str, Any] = {"format": "qcow2"}


@pytest.fixture
def chain(store: Store, world: World, monkeypatch: pytest.MonkeyPatch) -> Store:
    """base.qcow2 (k1) <- top.qcow2 (k2), empty, and the disk of both as plain.raw; 1 MiB, not registered."""
    monkeypatch.setattr("formats.luks._ITERATIONS", 4000)
    store.set_secret("k1", value=K1)
    store.set_secret("k2", value=K2)
    (world.pool() / "plain.raw").write_bytes(TOP)
    sealed, below = {"encrypt.format": "luks"}, {"backing_file": "base.qcow2", "backing_fmt": "qcow2"}
    create_image("qcow2", world.pool() / "base.qcow2", MIB, options=sealed, secret=K1.encode())
    qemu_io(world, "base.qcow2", "k1", "write -P 1 0 1M", "write -P 2 64k 64k", "write -P 3 128k 64k")
    create_image("qcow2", world.pool() / "top.qcow2", MIB, options=sealed | below, secret=K2.encode())
    return store


def test_an_encrypted_chain_is_registered_parents_first(chain: Store, world: World) -> None:
    base, new = chain.register_image("default", "base", file="base.qcow2", secret="k1", **QCOW2)
    assert (new, base.file, base.secret, base.virtual_size_bytes) == (True, "base.qcow2", "k1", MIB)
    assert base.options["cluster_size_bytes"] == 65536
    top, _ = chain.register_image("default", "web", file="top.qcow2", parent="base", secret="k2", **QCOW2)
    assert (top.parent, top.secret, top.chain_depth) == ("base", "k2", 1)
    done(chain, chain.convert_image("default", "web", into="flat", format="raw"))
    assert (world.pool() / "flat.raw").read_bytes() == TOP
    again: dict[str, Any] = {"file": "top.qcow2", "parent": "base", "secret": "k2", **QCOW2}
    assert chain.register_image("default", "web", **again) == (chain.show_image("default", "web"), False)
    with pytest.raises(AlreadyExists):
        chain.register_image("default", "web", **{**again, "file": "other.qcow2"})
    with pytest.raises(AlreadyExists, match="belongs to image base"):
        chain.register_image("default", "twin", file="base.qcow2", secret="k1", **QCOW2)
    assert chain.delete_image("default", "web")
    assert not (world.pool() / "top.qcow2").exists()


def test_a_raw_file_is_registered(chain: Store) -> None:
    image, _ = chain.register_image("default", "a", file="plain.raw", format="raw", labels={"from": "usb"})
    assert (image.format, image.virtual_size_bytes, image.labels) == ("raw", MIB, {"from": "usb"})


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"file": "base.qcow2", **QCOW2}, SecretNeeded, r"base\.qcow2 is encrypted; name the secret"),
        ({"file": "base.qcow2", "secret": "k2", **QCOW2}, SecretWrong, r"does not open base\.qcow2"),
        ({"file": "base.qcow2", "secret": "k9", **QCOW2}, NotFound, "there is no secret k9"),
        ({"file": "top.qcow2", "secret": "k2", **QCOW2}, Conflict, r"its parent is base\.qcow2, not nobody"),
        ({"file": "top.qcow2", "secret": "k2", "parent": "no", **QCOW2}, NotFound, "no image 'no'"),
        ({"file": "plain.raw", **QCOW2}, Conflict, "plain.raw"),
        ({"file": "gone.raw", "format": "raw"}, Conflict, "No such file"),
        ({"file": "odd.raw", "format": "raw"}, Conflict, "not whole sectors"),
        ({"file": "link.raw", "format": "raw"}, Conflict, "cannot open"),
        ({"file": "plain.raw", "format": "memory"}, InvalidArgument, "have no file"),
        ({"file": "plain.raw", "format": "raw", "secret": "k1"}, InvalidArgument, "raw images are not encrypted"),
        ({"file": f"plain.raw{STATE}", "format": "raw"}, InvalidArgument, "cannot be an image's file"),
        ({"file": "../outside.raw", "format": "raw"}, InvalidArgument, "cannot be an image's file"),
        ({"file": ".creating-x", "format": "raw"}, InvalidArgument, "cannot be an image's file"),
    ],
)
def test_a_file_that_is_not_what_is_said_is_left_alone(
    chain: Store, world: World, asked: Any, error: type[StoreError], told: str
) -> None:
    (world.pool() / "odd.raw").write_bytes(b"x" * 700)
    (world.root / "outside.raw").write_bytes(bytes(512))
    (world.pool() / "link.raw").symlink_to(Path("../../../outside.raw"))
    with pytest.raises(error, match=told):
        chain.register_image("default", "a", **asked)
    assert chain.list_images("default").items == []
    assert set(world.files()) == {"base.qcow2", "top.qcow2", "plain.raw", "odd.raw", "link.raw"}
