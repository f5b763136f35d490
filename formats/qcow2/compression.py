"""Compressed clusters: raw deflate (RFC 1951) and zstd (RFC 8878), never more than a cluster out of either.

zstd comes from the standard library where Python has it (3.14), else from backports.zstd, and is imported when first
needed.
"""

import threading
import zlib
from typing import Any

from formats.errors import CorruptImage, UnsupportedFeature
from formats.qcow2.structures import CompressionType

_WINDOW_BITS = 12  # what QEMU writes; any window up to 15 is read
_ZSTD_WINDOW_LOG = 23  # RFC 8878 3.1.1.1.2 asks decoders for 8 MiB; more would let an image take our memory

_threads = threading.local()


def decompress(kind: int, data: bytes, length: int, what: str) -> bytes:
    """Exactly `length` bytes. CorruptImage, naming `what`, where the data does not give them."""
    plain = _DECOMPRESSORS[CompressionType(kind)](data, length, what)
    if len(plain) != length:
        raise CorruptImage(f"{what} decompresses to {len(plain)} bytes; it must be {length}")
    return plain


def compress(kind: int, data: bytes | memoryview, level: int | None = None) -> bytes:
    """`data` compressed for a whole cluster; the caller keeps it only where it is shorter."""
    return _COMPRESSORS[CompressionType(kind)](data, level)


def _inflate(data: bytes, length: int, what: str) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length)
    except zlib.error as error:
        raise CorruptImage(f"{what} is no deflate stream: {error}") from error


def _deflate(data: bytes | memoryview, level: int | None) -> bytes:
    stream = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION if level is None else level, zlib.DEFLATED, -_WINDOW_BITS)
    return stream.compress(data) + stream.flush()


def _unzstd(data: bytes, length: int, what: str) -> bytes:
    zstd = _zstd()
    limit = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    try:
        return bytes(zstd.ZstdDecompressor(options=limit).decompress(data, length))
    except zstd.ZstdError as error:
        raise CorruptImage(f"{what} is no zstd frame: {error}") from error


def _to_zstd(data: bytes | memoryview, level: int | None) -> bytes:
    """With one compressor for each thread and level, because to make one takes longer than a cluster does."""
    kept: dict[int | None, Any] = _threads.__dict__.setdefault("compressors", {})
    if level not in kept:
        kept[level] = _zstd().ZstdCompressor(level=level)
    compressor = kept[level]
    return bytes(compressor.compress(data, compressor.FLUSH_FRAME))


def _zstd() -> Any:
    try:
        try:
            from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
        except ImportError:
            from backports import zstd  # type: ignore[no-redef,unused-ignore]
    except ImportError as error:
        raise UnsupportedFeature("this image is compressed with zstd; install the package backports.zstd") from error
    return zstd


_DECOMPRESSORS = {CompressionType.ZLIB: _inflate, CompressionType.ZSTD: _unzstd}
_COMPRESSORS = {CompressionType.ZLIB: _deflate, CompressionType.ZSTD: _to_zstd}
