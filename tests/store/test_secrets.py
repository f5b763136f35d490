"""Secrets, and the encrypted images that they open: read and written by qemu-img and qemu-io too, and refused in words
that name what is missing."""

import json
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from formats.host_file import HostFile
from formats.qcow2.image import Qcow2
from tests.formats.reference import run
from tests.store.test_jobs import ended
from tests.store.test_transfers import done
from tests.store.world import MIB, World
from vstore.store import Store
from vstore.store.errors import (
    InUse,
    InvalidArgument,
    NotFound,
    SecretNeeded,
    SecretWrong,
    Stale,
    StoreError,
    Unsupported,
)
from vstore.store.secret_files import SecretFiles
from vstore.store.secrets import claim_of

K1, K2 = "open sesame", "eines Tages"
LAYOUTS = [("qcow2", "encrypt.format=luks,encrypt.key-secret"), ("luks", "key-secret")]


@pytest.fixture
def kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with two secrets, which are hashed quickly here."""
    monkeypatch.setattr("formats.luks._ITERATIONS", 4000)
    store.set_secret("k1", value=K1)
    store.set_secret("k2", value=K2)
    return store


def _secrets() -> list[str]:
    return ["--object", f"secret,id=k1,data={K1}", "--object", f"secret,id=k2,data={K2}"]


def _node(world: World, file: str, secret: str | None, backing: dict[str, Any] | None = None) -> dict[str, Any]:
    """How QEMU opens a file of the pool."""
    format = file.rpartition(".")[2]
    node: dict[str, Any] = {"driver": format, "file": {"driver": "file", "filename": str(world.pool() / file)}}
    if format == "luks":
        node["key-secret"] = secret
    elif secret is not None:
        node["encrypt"] = {"format": "luks", "key-secret": secret}
    return node if backing is None else {**node, "backing": backing}


def qemu_io(world: World, file: str, secret: str | None, *commands: str) -> None:
    """Into this image alone: whole clusters, so that no parent is asked."""
    arguments = [argument for command in commands for argument in ("-c", command)]
    node = _node(world, file, secret)
    image = f"json:{json.dumps({**node, 'backing': None} if node['driver'] == 'qcow2' else node)}"
    told = subprocess.run(["qemu-io", *_secrets(), *arguments, image], capture_output=True, text=True, check=True)
    assert "rror" not in told.stdout + told.stderr, told


def decrypted(world: World, *chain: tuple[str, str | None]) -> bytes:
    """The disk of a chain as qemu-img reads it, the top image first, each with its secret's name."""
    node: dict[str, Any] | None = None
    for file, secret in reversed(chain):
        node = _node(world, file, secret, node)
    out = world.root / "decrypted"
    argv = ["qemu-img", "convert", *_secrets(), "-O", "raw", f"json:{json.dumps(node)}", str(out)]
    subprocess.run(argv, check=True, capture_output=True)
    return out.read_bytes()


def _secret_file(world: World, name: str) -> Path:
    return world.state / "secrets" / name


def test_a_value_goes_in_and_is_kept_for_the_daemon_alone_and_never_told(kept: Store, world: World) -> None:
    secret, new = kept.set_secret("k3", value_base64="AP8K")
    assert (new, secret.name, secret.images) == (True, "k3", [])
    assert _secret_file(world, "k3").read_bytes() == b"\0\xff\n"
    assert stat.S_IMODE(_secret_file(world, "k3").stat().st_mode) == 0o600
    assert stat.S_IMODE(_secret_file(world, "k3").parent.stat().st_mode) == 0o700
    assert [each.name for each in kept.list_secrets().items] == ["k1", "k2", "k3"]
    told = repr([kept.list_secrets(), kept.show_secret("k1"), kept.set_secret("k1", value=K1)])
    assert K1 not in told
    catalog = b"".join(file.read_bytes() for file in world.state.glob("catalog.sqlite*"))
    assert K1.encode() not in catalog


def test_secrets_come_in_pages_and_outlive_the_daemon(kept: Store, world: World) -> None:
    page = kept.list_secrets(limit=1)
    assert [each.name for each in page.items] == ["k1"]
    assert [each.name for each in kept.list_secrets(limit=1, cursor=page.cursor).items] == ["k2"]
    (world.state / "secrets" / ".new").write_bytes(b"what a crash left")
    world.close_store(kept, stop_targets=True)
    again = world.open()
    assert again.list_secrets().items[0] == page.items[0]
    assert not (world.state / "secrets" / ".new").exists()


def test_setting_the_same_again_changes_nothing_and_another_replaces_what_no_image_names(
    kept: Store, world: World
) -> None:
    first = kept.show_secret("k1")
    assert kept.set_secret("k1", value=K1) == (first, False)
    assert kept.set_secret("k1", value="another", replace=False) == (first, False)
    assert _secret_file(world, "k1").read_text() == K1
    second, new = kept.set_secret("k1", value="another")
    assert (new, _secret_file(world, "k1").read_text()) == (False, "another")
    with pytest.raises(Stale):
        kept.delete_secret("k1", revision=second.revision + 1)
    assert kept.delete_secret("k1", revision=second.revision)
    assert not kept.delete_secret("k1")
    with pytest.raises(NotFound):
        kept.show_secret("k1")


def test_a_secret_that_an_image_or_a_job_uses_is_neither_replaced_nor_removed(kept: Store, world: World) -> None:
    kept.create_image("default", "a", virtual_size_bytes=MIB, format="qcow2", secret="k1")
    kept.claims.take("J", "convert_image", shared=[claim_of("k2")])
    for name, why in (("k1", "default/a"), ("k2", r"job J \(convert_image\) uses secret k2")):
        assert kept.set_secret(name, value={"k1": K1, "k2": K2}[name])[1] is False
        with pytest.raises(InUse, match=why):
            kept.set_secret(name, value="another")
        with pytest.raises(InUse, match=why):
            kept.delete_secret(name)
    assert kept.show_secret("k1").images == ["default/a"]
    assert _secret_file(world, "k1").read_text() == K1
    kept.delete_image("default", "a")
    assert kept.delete_secret("k1")


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("../k", {"value": "hidden"}, "is not a name"),
        (".new", {"value": "hidden"}, "is not a name"),
        ("k", {}, "give either value or value_base64"),
        ("k", {"value": "hidden", "value_base64": "aGlkZGVu"}, "give either value or value_base64"),
        ("k", {"value": ""}, "it has 0 bytes"),
        ("k", {"value": "hidden" * 20000}, "it has 120000 bytes"),
        ("k", {"value": "hidden\ud800"}, "it cannot be read"),
        ("k", {"value_base64": "hidden?"}, "it cannot be read"),
        ("k", {"value_base64": "hiddené"}, "it cannot be read"),
    ],
)
def test_what_is_no_secret_is_refused_without_being_told(
    store: Store, world: World, name: str, given: Any, told: str
) -> None:
    with pytest.raises(InvalidArgument, match=told) as refused:
        store.set_secret(name, **given)
    assert "hidden" not in str(refused.value)
    assert list((world.state / "secrets").iterdir()) == []


@pytest.mark.parametrize(("format", "_"), LAYOUTS)
def test_an_encrypted_image_is_qemus_too_and_back(kept: Store, world: World, format: str, _: str) -> None:
    image, new = kept.create_image("default", "a", virtual_size_bytes=MIB, format=format, secret="k1")
    assert (new, image.secret, image.file) == (True, "k1", f"a.{format}")
    assert kept.create_image("default", "a", virtual_size_bytes=MIB, format=format, secret="k1")[1] is False
    with pytest.raises(StoreError, match="secret"):
        kept.create_image("default", "a", virtual_size_bytes=MIB, format=format, secret="k2")
    qemu_io(world, f"a.{format}", "k1", "write -P 7 64k 128k")
    done(kept, kept.convert_image("default", "a", into="plain", format="raw"))
    assert (world.pool() / "plain.raw").read_bytes()[65536:196608] == b"\7" * 131072
    assert (world.pool() / "plain.raw").read_bytes() == decrypted(world, (f"a.{format}", "k1"))
    kept.update_image("default", "a", virtual_size_bytes=2 * MIB)
    assert decrypted(world, (f"a.{format}", "k1"))[MIB:] == bytes(MIB)
    assert kept.info_image("default", "a")["encrypted"] is True
    assert done(kept, kept.bench_image("default", "a", requests=10))
    assert kept.map_image("default", "a").items


@pytest.mark.parametrize(("format", "_"), LAYOUTS)
def test_converting_encrypts_every_byte(kept: Store, world: World, format: str, _: str) -> None:
    kept.create_image("default", "plain", virtual_size_bytes=5 * MIB + 512)
    content = b"clear words!" * 50000
    with (world.pool() / "plain.raw").open("r+b") as file:
        file.seek(3 * MIB)
        file.write(content)
    told = done(kept, kept.convert_image("default", "plain", into="sealed", format=format, secret="k2"))
    assert told == {"image": "sealed", "virtual_size_bytes": 5 * MIB + 512}
    assert kept.show_image("default", "sealed").secret == "k2"
    assert b"clear words!" not in (world.pool() / f"sealed.{format}").read_bytes()
    assert decrypted(world, (f"sealed.{format}", "k2")) == (world.pool() / "plain.raw").read_bytes()
    assert done(kept, kept.compare_image("default", "plain", other="sealed"))["identical"]


@pytest.fixture
def chain(kept: Store, world: World) -> Store:
    """base (k1, all 1) <- middle (in the clear, its second 64 KiB 2) <- top (k2, its third 3); 1 MiB."""
    kept.create_image("default", "base", virtual_size_bytes=MIB, format="qcow2", secret="k1")
    qemu_io(world, "base.qcow2", "k1", "write -P 1 0 1M")
    kept.clone_image("default", "base", clone="middle", options={"cluster_size_bytes": 65536})
    kept.clone_image("default", "middle", clone="top", options={"cluster_size_bytes": 65536}, secret="k2")
    qemu_io(world, "middle.qcow2", None, "write -P 2 64k 64k")
    qemu_io(world, "top.qcow2", "k2", "write -P 3 128k 64k")
    return kept


TOP = b"\1" * 65536 + b"\2" * 65536 + b"\3" * 65536 + b"\1" * (MIB - 3 * 65536)
LAYERS = (("top.qcow2", "k2"), ("middle.qcow2", None), ("base.qcow2", "k1"))


def test_every_layer_of_a_chain_has_a_secret_of_its_own(chain: Store, world: World) -> None:
    assert decrypted(world, *LAYERS) == TOP
    done(chain, chain.convert_image("default", "top", into="flat", format="raw"))
    assert (world.pool() / "flat.raw").read_bytes() == TOP
    done(chain, chain.commit_image("default", "top"))
    assert decrypted(world, *LAYERS[1:]) == TOP
    done(chain, chain.rebase_image("default", "top", parent="base"))
    assert decrypted(world, LAYERS[0], LAYERS[2]) == TOP
    done(chain, chain.rebase_image("default", "top", parent=None))
    assert decrypted(world, LAYERS[0]) == TOP
    for file, secret in (LAYERS[0], LAYERS[2]):
        image = f"json:{json.dumps({**_node(world, file, secret), 'backing': None})}"
        subprocess.run(["qemu-img", "check", *_secrets(), "-q", image], check=True, capture_output=True)


def test_snapshots_and_checks_of_encrypted_images_need_no_secret(chain: Store, world: World) -> None:
    _secret_file(world, "k2").unlink()
    chain.create_snapshot("default", "top", "s")
    assert [each.name for each in chain.list_snapshots("default", "top").items] == ["s"]
    done(chain, chain.apply_snapshot("default", "top", "s"))
    assert done(chain, chain.check_image("default", "top", repair="all"))["check-errors"] == 0
    chain.delete_snapshot("default", "top", "s")
    assert chain.info_image("default", "top")["encrypted"] is True
    chain.add_bitmap("default", "top", "b")
    chain.set_secret("k2", value=K2)
    assert decrypted(world, *LAYERS) == TOP


def test_a_snapshot_of_an_encrypted_image_is_converted(chain: Store, world: World) -> None:
    chain.create_snapshot("default", "top", "s")
    qemu_io(world, "top.qcow2", "k2", "write -P 9 0 1M")
    done(chain, chain.convert_image("default", "top", into="then", secret="k1", snapshot="s"))
    assert decrypted(world, ("then.qcow2", "k1")) == TOP


def test_a_secret_that_is_gone_is_named_with_its_image_whoever_needs_it(chain: Store, world: World) -> None:
    _secret_file(world, "k1").unlink()
    told = "image base is encrypted, and its secret k1 is not there; set it again: vstore secret set k1"
    with pytest.raises(SecretNeeded, match=told):
        chain.map_image("default", "top")
    chain.create_target("t")
    with pytest.raises(SecretNeeded, match=told):
        chain.map_lun("t", "0", image="top")
    job = chain.convert_image("default", "top", into="flat", format="raw")
    assert ended(chain, job.id) == "failed"
    assert chain.show_job(job.id).error == {"code": "secret_needed", "detail": told}
    with pytest.raises(NotFound, match=r"there is no secret k1; keep it first \(vstore secret set k1\)"):
        chain.clone_image("default", "middle", clone="new", secret="k1")
    with pytest.raises(NotFound, match="there is no secret k1"):
        chain.convert_image("default", "middle", into="new", secret="k1")
    chain.set_secret("k1", value=K1)
    assert chain.map_image("default", "top").items
    assert chain.map_lun("t", "0", image="top")[1]


def test_a_wrong_secret_is_told_with_the_image_and_another_is_taken_if_it_opens_it(chain: Store, world: World) -> None:
    _secret_file(world, "k2").write_bytes(b"wrong")
    with pytest.raises(SecretWrong, match=r"the secret does not open top\.qcow2"):
        chain.map_image("default", "top")
    with pytest.raises(SecretWrong, match=r"the secret does not open top\.qcow2"):
        chain.update_image("default", "top", secret="k1")
    with pytest.raises(NotFound):
        chain.update_image("default", "top", secret="k9")
    with pytest.raises(InvalidArgument, match="image middle is not encrypted"):
        chain.update_image("default", "middle", secret="k1")
    with pytest.raises(InvalidArgument, match="one after the other"):
        chain.update_image("default", "top", secret="k1", virtual_size_bytes=2 * MIB)
    assert chain.show_image("default", "top").secret == "k2"
    chain.set_secret("k4", value=K2)
    assert chain.update_image("default", "top", secret="k4", labels={"a": "b"}) == chain.show_image("default", "top")
    assert chain.show_image("default", "top").secret == "k4"
    assert chain.delete_secret("k2")
    assert chain.map_image("default", "top").items


def test_a_guest_that_may_replace_the_key_finds_the_secret_that_opened_the_image_named_afterwards(
    kept: Store, world: World
) -> None:
    kept.create_image("default", "a", virtual_size_bytes=MIB, format="qcow2", secret="k1")
    options = "encrypt.state=active,encrypt.new-secret=k2,encrypt.iter-time=10"
    image = f"driver=qcow2,file.filename={world.pool() / 'a.qcow2'},encrypt.key-secret=k1"
    amended = run("qemu-img", "amend", *_secrets(), "-o", options, "--image-opts", image)
    assert amended.returncode == 0, amended.stderr
    kept.create_target("t")
    kept.map_lun("t", "0", image="a")
    with pytest.raises(InUse, match="mapped writable as LUN t/0 and cannot be given another secret"):
        kept.update_image("default", "a", secret="k2")
    with Qcow2(HostFile.from_path(world.pool() / "a.qcow2", lock=False)) as served:  # what SANITIZE does to it
        served.unlock([K1.encode()])
        served.replace_key()
    kept.unmap_lun("t", "0")
    with pytest.raises(SecretWrong):
        kept.update_image("default", "a", secret="k2")
    assert kept.map_image("default", "a").items


def test_what_is_encrypted_behind_the_catalogs_back_is_told_to_need_a_secret(kept: Store, world: World) -> None:
    kept.create_image("default", "a", virtual_size_bytes=MIB, format="qcow2", secret="k1")
    kept.create_image("default", "b", virtual_size_bytes=MIB, format="qcow2")
    (world.pool() / "b.qcow2").write_bytes((world.pool() / "a.qcow2").read_bytes())
    with pytest.raises(SecretNeeded, match=r"b\.qcow2 is encrypted.*vstore image update --secret"):
        kept.map_image("default", "b")
    assert kept.update_image("default", "b", secret="k1")
    assert kept.map_image("default", "b").items


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"format": "raw", "secret": "k1"}, "secret"),
        ({"format": "memory", "secret": "k1"}, "secret"),
        ({"format": "luks"}, "secret"),
        ({"format": "luks", "secret": "../k1"}, "secret"),
        ({"format": "qcow2", "secret": "k1", "preallocation": "full"}, "preallocation"),
        ({"format": "luks", "secret": "k1", "preallocation": "falloc"}, "preallocation"),
        ({"format": "qcow2", "secret": "k1", "options": {"encrypt.format": "luks"}}, "options/encrypt.format"),
    ],
)
def test_what_cannot_be_encrypted_so_is_refused(kept: Store, world: World, asked: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        kept.create_image("default", "a", virtual_size_bytes=MIB, **asked)
    assert refused.value.field == field
    assert world.files() == []


def test_compression_and_encryption_are_not_asked_for_together(kept: Store) -> None:
    kept.create_image("default", "a", virtual_size_bytes=MIB)
    with pytest.raises(InvalidArgument, match="what is compressed is not encrypted"):
        kept.convert_image("default", "a", into="b", compress=True, secret="k1")


def test_a_luks_image_is_not_checked(kept: Store) -> None:
    kept.create_image("default", "a", virtual_size_bytes=MIB, format="luks", secret="k1")
    with pytest.raises(Unsupported):
        kept.check_image("default", "a")


def test_secrets_kept_side_by_side_do_not_become_each_other(tmp_path: Path) -> None:
    files = SecretFiles(tmp_path / "secrets")

    def keep(name: str) -> bool:
        values = [f"{name} {number}".encode() for number in range(100)]
        return all(files.keep(name, value) is None and files.read(name) == value for value in values)

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(keep, ["red", "green", "blue"]))
