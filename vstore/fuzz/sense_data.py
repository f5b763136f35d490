"""Sense data read again, from the byte offsets SPC-4 4.5 prints: shares nothing with the code that wrote it."""

from dataclasses import dataclass, replace

from vstore.fuzz.rules import RuleBroken

_KEYS_OF_COPIES = (0x7, 0xA)  # DATA PROTECT, COPY ABORTED: what ends an EXTENDED COPY at a segment


class MalformedSenseError(RuleBroken):
    """What vstore wrote is not sense data."""


@dataclass(frozen=True)
class ParsedSense:
    descriptor: bool
    deferred: bool
    key: int
    asc: int
    ascq: int
    information: int | None = None
    in_cdb: bool | None = None  # None: no field pointer
    byte: int | None = None
    bit: int | None = None
    progress: int | None = None  # in 65536ths
    segment: int | None = None  # of an EXTENDED COPY; fixed format has always one, if only zero
    forwarded: "Forwarded | None" = None

    @property
    def code(self) -> tuple[int, int, int]:
        return self.key, self.asc, self.ascq


@dataclass(frozen=True)
class Forwarded:
    """What a unit of an EXTENDED COPY answered. `source`: 1: the source, 2: the destination."""

    source: int
    status: int
    sense: ParsedSense | None


def parse_sense(data: bytes) -> ParsedSense:
    """MalformedSenseError when a length, a reserved bit or a descriptor is not as printed."""
    _expect(len(data) >= 8, "sense data has at least 8 bytes")
    response = data[0] & 0x7F
    _expect(response in (0x70, 0x71, 0x72, 0x73), f"response code {response:#x}")
    if response in (0x70, 0x71):
        return _fixed(data, deferred=response == 0x71)
    return _descriptor(data, deferred=response == 0x73)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise MalformedSenseError(what)


def _fixed(data: bytes, *, deferred: bool) -> ParsedSense:
    of_copy = data[2] in _KEYS_OF_COPIES
    _expect(len(data) == 18 or (len(data) > 18 and of_copy), f"fixed sense data of {len(data)} bytes")
    _expect(data[7] == len(data) - 8, "ADDITIONAL SENSE LENGTH")
    _expect(data[1] == 0 and data[2] & 0xF0 == 0, "reserved and stream bits")
    segment = int.from_bytes(data[10:12])
    answered = [number for number, at in enumerate(data[8:10], 1) if at]
    _expect(len(answered) == (len(data) > 18) and set(data[8:10]) <= {0, 18}, "where an answer is forwarded")
    _expect(data[14] == 0, "FRU code")
    _expect(not segment or of_copy, "a segment number that is not of a copy")
    forwarded = _forwarded(answered[0], data[18], data[19:]) if answered else None
    information = int.from_bytes(data[3:7]) if data[0] & 0x80 else None
    _expect(information is not None or data[3:7] == bytes(4), "INFORMATION without VALID")
    if data[2] == 2 and data[15] & 0x80:
        return ParsedSense(False, deferred, 2, data[12], data[13], information, progress=_progress(data[15:18]))
    pointer = _pointer(data[15:18], data[2])
    parsed = ParsedSense(False, deferred, data[2], data[12], data[13], information, *pointer, segment=segment)
    return replace(parsed, forwarded=forwarded)


def _forwarded(source: int, status: int, sense: bytes) -> Forwarded:
    """1: of the source, 2: of the destination."""
    _expect((status, bool(sense)) in ((0x02, True), (0x18, False)), "a forwarded status and its sense data")
    return Forwarded(source, status, parse_sense(sense) if sense else None)


def _descriptor(data: bytes, *, deferred: bool) -> ParsedSense:
    _expect(data[0] & 0x80 == 0 and data[1] & 0xF0 == 0 and data[4:7] == bytes(3), "reserved bits")
    _expect(data[7] == len(data) - 8, "ADDITIONAL SENSE LENGTH")
    information: int | None = None
    pointer: tuple[bool | None, int | None, int | None] = (None, None, None)
    progress = segment = None
    forwarded: Forwarded | None = None
    at = 8
    while at < len(data):
        kind, length = data[at], data[at + 1]
        body = data[at + 2 : at + 2 + length]
        _expect(len(body) == length, "descriptor past the end")
        if kind == 0:
            _expect(length == 10 and body[0] == 0x80 and body[1] == 0, "information descriptor")
            information = int.from_bytes(body[2:10])
        elif kind == 1:
            _expect(data[1] in _KEYS_OF_COPIES and length == 10, "command specific descriptor")
            _expect(body[:4] == bytes(4) and body[6:] == bytes(4), "more than a segment number")
            segment = int.from_bytes(body[4:6])
        elif kind == 2:
            _expect(length == 6 and body[:2] == bytes(2) and body[5] == 0, "sense key specific descriptor")
            if data[1] == 2:
                progress = _progress(body[2:5])
            else:
                pointer = _pointer(body[2:5], data[1])
        elif kind == 0x0C:
            _expect(data[1] in _KEYS_OF_COPIES and length >= 2 and body[0] in (1, 2), "forwarded sense data descriptor")
            forwarded = _forwarded(body[0], body[1], body[2:])
        else:
            raise MalformedSenseError(f"descriptor type {kind}")
        at += 2 + length
    return ParsedSense(True, deferred, data[1], data[2], data[3], information, *pointer, progress, segment, forwarded)


def _progress(data: bytes) -> int:
    _expect(data[0] == 0x80, "only SKSV stands beside a progress indication")
    return int.from_bytes(data[1:3])


def _pointer(data: bytes, key: int) -> tuple[bool | None, int | None, int | None]:
    if not data[0] & 0x80:
        _expect(data == bytes(3), "sense key specific data without SKSV")
        return None, None, None
    _expect(key == 5, "a field pointer belongs to ILLEGAL REQUEST")
    _expect(data[0] & 0x30 == 0 and data[0] & 0x08 != 0, "BPV, reserved bits")
    return bool(data[0] & 0x40), int.from_bytes(data[1:3]), data[0] & 7
