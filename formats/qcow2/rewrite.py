"""Writing header extensions and the backing file's name anew, so that a crash leaves all of the old or all of the new.

    sector 0    fields | first extensions ...          names what lies behind it; written last, in one piece
    sector 1 .. | more extensions | end | name | room  what the old sector 0 leads to stays as it is

What the new sector 0 leads to is laid where the old one leads to nothing. Where the extensions must move for that, one
of a type that nobody knows spans the room between; it is left out again when the header is next written.
"""

import dataclasses
import os
from collections.abc import Iterator

from formats.errors import UnsupportedFeature
from formats.host_file import HostFile
from formats.image import SECTOR
from formats.qcow2.header import Header, pack_extension, restore
from formats.qcow2.structures import Extension, ExtensionStart, HeaderStart

_START = ExtensionStart.SIZE
Span = tuple[int, int]  # first byte and the one behind the last


def rewrite(file: HostFile, header: Header) -> None:
    """Makes `header` the file's, durably; its `start` then says where the name lies. The table of the features' names
    is left out where a small cluster has no room for it.

    Errors: UnsupportedFeature where the header does not fit into its cluster, or not beside the old one; OSError. The
    old header is still the file's then, and `header` is as it was."""
    header.require_known(file)
    old = file.pread(0, header.cluster_size).ljust(header.cluster_size, b"\0")
    used = list(_used(old, header))
    for laid_out, data in _layouts(header, old, max(end for _, end in used)):
        if all(old[max(at, SECTOR) : end] == data[max(at, SECTOR) : end] for at, end in used):
            _write(file, header, old, data)
            header.start, header.extensions = laid_out.start, laid_out.extensions
            return
    _without_names(header).pack()  # which says so where it does not fit even alone
    raise UnsupportedFeature(
        f"{file.name}: its first cluster of {header.cluster_size} bytes has no room for another header beside the one "
        f"that a crash must not lose; take shorter names"
    )


def _used(data: bytes, header: Header) -> Iterator[Span]:
    """What the header in the file leads to, in cluster 0."""
    start, at = HeaderStart.unpack(data), header.features.header_length
    yield 0, at
    end = start.backing_file_offset or len(data)
    while at + _START <= end:
        extension = ExtensionStart.unpack(data, at)
        length = -(-extension.length // 8) * 8
        yield at, at + _START + (0 if extension.type in (Extension.END, Extension.SKIPPED) else length)
        if extension.type == Extension.END:
            break
        at += _START + length
    yield start.backing_file_offset, start.backing_file_offset + start.backing_file_size


def _layouts(header: Header, old: bytes, behind: int) -> Iterator[tuple[Header, bytes]]:
    """Headers that say the same, with cluster 0 of each, the usual one first. `behind`: where the old one ends."""
    behind = -(-behind // 8) * 8
    for told in (header, _without_names(header)):
        usual = len(told.pack_fixed())
        for at in (usual, SECTOR, behind):
            for name_at in (0, behind):
                laid_out = _lay_out(told, old, at, name_at)
                if laid_out is not None:
                    yield laid_out


def _without_names(header: Header) -> Header:
    kept = [row for row in header.extensions if row[0] != Extension.FEATURE_NAMES]
    return dataclasses.replace(header, extensions=kept)


def _lay_out(header: Header, old: bytes, at: int, name_at: int) -> tuple[Header, bytes] | None:
    """With the extensions at `at` and the name behind them, from `name_at` on; None where that is not possible."""
    fixed, name = len(header.pack_fixed()), os.fsencode(header.backing or "")
    chain = b"".join(pack_extension(kind, data) for kind, data in [*header.extensions, (Extension.END, b"")])
    name_at = max(name_at, at + len(chain))
    skips = at != fixed
    if name_at + len(name) > len(old) or (skips and not fixed + _START <= min(at, SECTOR)):
        return None
    start = dataclasses.replace(header.start, backing_file_offset=name_at if name else 0, backing_file_size=len(name))
    header = dataclasses.replace(header, start=start)
    skip = ExtensionStart(Extension.SKIPPED, at - fixed - _START).pack() if skips else b""
    data = bytearray(SECTOR) + old[SECTOR:]
    for place, piece in ((0, header.pack_fixed() + skip), (at, chain), (name_at, name)):
        data[place : place + len(piece)] = piece
    return header, bytes(data)


def _write(file: HostFile, header: Header, old: bytes, new: bytes) -> None:
    differ = [at for at in range(SECTOR, len(old), SECTOR) if old[at : at + SECTOR] != new[at : at + SECTOR]]
    if differ:
        file.pwrite(differ[0], new[differ[0] : differ[-1] + SECTOR])
        file.fdatasync()
    try:
        file.pwrite(0, new[:SECTOR])
        file.fdatasync()
    except OSError:
        restore(file, header, old[:SECTOR])
        raise
