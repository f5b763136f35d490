"""Bodies of requests, and what wraps answers; the answers themselves are the records of `vstore.store`.

Shapes are checked here (types, unknown fields), values in the store, which knows what they mean.
"""

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")


def _absent(description: str) -> Any:
    """A field that may be left out but, if it is there, not be null."""
    return Field(None, description=description)


class Body(BaseModel):
    """A request body: unknown fields are refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def given(self) -> dict[str, Any]:
        """The fields that the client sent."""
        return self.model_dump(exclude_unset=True)


class ImageOptions(Body):
    """What the format offers; what is left out is the format's choice."""

    cluster_size_bytes: int = _absent("bytes allocated at once, a power of two from 512 to 2097152")
    extended_l2: bool = _absent("32 sub-clusters in each cluster, so that small writes into an overlay copy nothing")
    refcount_bits: int = _absent("1, 2, 4 ... 64")
    lazy_refcounts: bool = _absent("put off reference counts until the image is closed")
    compression_type: str = _absent("zlib or zstd, of compressed clusters")
    data_file: str = _absent(
        "keep the bytes in a file of this name, NAME.data, that is made and deleted with the image"
    )
    data_file_raw: bool = _absent("the data file is a valid raw image at any time")
    compat: str = _absent("1.1, or 0.10 for very old readers")


class _NewImage(Body):
    preallocation: str = Field(
        "off", description="off (sparse), metadata (qcow2), falloc (space reserved) or full (zeros written)"
    )
    options: ImageOptions = _absent("options of the format")
    secret: str | None = Field(None, description="encrypt it (qcow2, luks): the name of the secret that shall open it")
    labels: dict[str, str] | None = None


class ImageSpec(_NewImage):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"virtual_size_bytes": 10737418240, "format": "raw"},
                {"format": "qcow2", "parent": "debian-12", "options": {"extended_l2": True}},
            ]
        }
    )

    virtual_size_bytes: int = _absent("size of the disk in bytes, a multiple of 512; an overlay's may be left out")
    format: str = Field("raw", description="image format; a memory image keeps its bytes only while it is mapped")
    parent: str | None = Field(None, description="image whose content shows through until it is written to (qcow2)")


class CloneSpec(_NewImage):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "web-2"}]})

    name: str = Field(description="name of the new overlay")
    virtual_size_bytes: int = _absent("size of the disk in bytes; the parent's if it is left out")
    format: str = Field("qcow2", description="image format of the overlay")


class Registration(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"file": "debian-12.qcow2", "format": "qcow2", "labels": {"from": "cloud"}}]}
    )

    file: str = Field(description="plain name of a file in the pool's directory, which belongs to no image")
    format: str = Field(description="its image format, which is not guessed")
    parent: str | None = Field(None, description="the image that it is an overlay on")
    secret: str | None = Field(None, description="the name of the secret that opens it, if it is encrypted")
    labels: dict[str, str] | None = None


class ImageChange(Body):
    """JSON Merge Patch (RFC 7396)."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"virtual_size_bytes": 21474836480, "labels": {"owner": "web", "old": None}}]}
    )

    virtual_size_bytes: int = _absent("new size in bytes; a running guest is told")
    secret: str = _absent("the name of another secret, which has to open the image")
    labels: dict[str, str | None] = _absent("null takes a label away")


class Check(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"repair": "leaks"}]})

    repair: str = Field("none", description="none (only look), leaks, or all (corruptions too)")


class Rebase(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"parent": "debian-13"}, {"parent": None}]})

    parent: str | None = Field(description="image that it shall stand on; null: none, so that it stands alone")
    unsafe: bool = Field(False, description="change the parent and look at nothing: it holds what the old one did")


class Commit(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{}]})


class Conversion(_NewImage):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"into": "web-export", "format": "qcow2", "compress": True},
                {"in_place": True, "format": "qcow2"},
            ]
        }
    )

    into: str | None = Field(None, description="name of the new image")
    in_place: bool = Field(False, description="or give the image itself the format, while nobody uses it")
    format: str = Field("qcow2", description="image format of the new image")
    compress: bool = Field(False, description="compress its clusters (qcow2)")
    snapshot: str | None = Field(None, description="take the content of this snapshot, also while a guest goes on")


class Comparison(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"other": "web-export"}]})

    other: str = Field(description="image to compare with")
    strict: bool = Field(False, description="lengths and allocation have to be equal too")


class Bench(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"requests": 10000, "request_bytes": 65536}]})

    requests: int = Field(75000, description="how many, 1 to 16777216")
    depth: int = Field(64, description="how many at once, 1 to 256")
    request_bytes: int = Field(4096, description="bytes of each, 1 to 16777216")


class BitmapSpec(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"granularity_bytes": 65536}]})

    granularity_bytes: int = _absent("bytes of the disk per bit, a power of two from 512 to 2147483648; else a cluster")
    enabled: bool = Field(True, description="record what is written from now on")


class BitmapMerge(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"sources": ["monday", "tuesday"]}]})

    sources: list[str] = Field(description="bitmaps of the same image", min_length=1, max_length=65535)


class SecretSpec(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"value": "open sesame"}, {"value_base64": "b3BlbiBzZXNhbWU="}]}
    )

    value: str = _absent("the passphrase as text")
    value_base64: str = _absent("or its bytes in base64")


class TargetSpec(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"request_queues": 4, "socket_group": "kvm"}]})

    request_queues: int = Field(4, description="1 to 64; best one per virtual CPU")
    threads: int = Field(1, description="threads that serve the queues")
    poll_us: int | None = Field(None, description="longest busy wait in microseconds; null: the default")
    config_space: bool = Field(False, description="needed by every VMM but QEMU")
    socket_mode: str | None = Field(
        None, description="0600, 0660 or 0666: who may connect; null: 0660 with socket_group, else 0600"
    )
    socket_owner: str | None = Field(None, description="user, by name or number, whose VMM connects")
    socket_group: str | None = Field(None, description="group, by name or number, whose members' VMM connects")
    beside: str | None = Field(
        None, description="target in whose process this one is served, so that both may share disks; null: in its own"
    )
    labels: dict[str, str] | None = None


class TargetChange(Body):
    """JSON Merge Patch (RFC 7396)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"labels": {"host": "rack-3"}}]})

    labels: dict[str, str | None] = _absent("null takes a label away")


class LunSpec(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"image": "web-root", "read_only": False}]})

    image: str = Field(description="name of the image")
    pool: str = Field("default", description="pool of the image")
    read_only: bool = False
    direct: bool = Field(False, description="bypass the host's page cache (O_DIRECT)")
    logical_block_length_bytes: int = Field(512, description="512 or 4096")
    discard: str = Field(
        "unref",
        description="what becomes of the place of a qcow2 cluster that the guest discards: unref (free for others), "
        "punch (kept, but the host gets its space back), keep (kept, and as full as it was)",
    )
    shared: bool = Field(
        False, description="several targets of one process (see `beside`) write to the image as one logical unit"
    )
    serial: str | None = Field(None, description="unit serial number; null: made from the image's id")
    labels: dict[str, str] | None = None


class Listing(BaseModel, Generic[Item]):
    """One page; `next` is the path of the next one, null at the end."""

    items: list[Item]
    next: str | None


class ProblemBody(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[dict[str, str]] = []


class Service(BaseModel):
    name: str
    version: str
    api_versions: list[str]
    capabilities: list[str]
    image_formats: list[str]
