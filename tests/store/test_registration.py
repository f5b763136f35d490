"""Files that were copied into the pool become images, if they are what they are said to be."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.store.test_secrets import K1, K2, TOP
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

QCOW2 = {"format": "qcow2"}


def qemu_img(world: World, *argv: str) -> None:
    secrets = ["--object", f"secret,id=k1,data={K1}", "--object", f"secret,id=k2,data={K2}"]
    subprocess.run(["qemu-img", argv[0], *secrets, *argv[1:]], check=True, capture_output=True, cwd=world.pool())


@pytest.fixture
def chain(store: Store, world: World) -> Store:
    """base.qcow2 (k1) <- top.qcow2 (k2) of qemu-img's, and TOP as a raw file; 1 MiB, not registered."""
    store.set_secret("k1", value=K1)
    store.set_secret("k2", value=K2)
    (world.pool() / "plain.raw").write_bytes(TOP)
    luks = "encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret"
    qemu_img(world, "convert", "-O", "qcow2", "-o", f"{luks}=k1", "plain.raw", "base.qcow2")
    below = ["-u", "-b", "base.qcow2", "-F", "qcow2"]
    qemu_img(world, "create", "-f", "qcow2", *below, "-o", f"{luks}=k2", "top.qcow2", "1M")
    return store


def test_an_encrypted_chain_of_qemu_is_registered_parents_first(chain: Store, world: World) -> None:
    base, new = chain.register_image("default", "base", file="base.qcow2", secret="k1", **QCOW2)
    assert (new, base.file, base.secret, base.virtual_size_bytes) == (True, "base.qcow2", "k1", MIB)
    assert base.options["cluster_size_bytes"] == 65536
    top, _ = chain.register_image("default", "web", file="top.qcow2", parent="base", secret="k2", **QCOW2)
    assert (top.parent, top.secret, top.chain_depth) == ("base", "k2", 1)
    done(chain, chain.convert_image("default", "web", into="flat", format="raw"))
    assert (world.pool() / "flat.raw").read_bytes() == TOP
    again = {"file": "top.qcow2", "parent": "base", "secret": "k2", **QCOW2}
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
