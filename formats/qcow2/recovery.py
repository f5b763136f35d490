"""What happens before an image is written to: its header is read, and what its last writer left undone is put right."""

from formats.errors import CorruptImage
from formats.host_file import HostFile
from formats.qcow2.header import Header
from formats.qcow2.structures import Incompatible


def recovered(file: HostFile) -> Header:
    """The header of an image that may be written to, or is open read-only. One whose last writer never closed it
    (dirty) has its refcounts put right first."""
    header = Header.read(file)
    if file.read_only:
        return header
    if header.incompatible & Incompatible.CORRUPT:
        raise CorruptImage(f"{file.name} is marked corrupt; repair it, or open it read-only")
    if header.incompatible & Incompatible.DIRTY:
        from formats.qcow2.check import check  # which most images never need

        left = check(file, repair="all").corruptions
        if left:
            raise CorruptImage(f"{file.name} was not closed, and {left} corruptions of it cannot be repaired")
        header = Header.read(file)
    return header
