"""What holds for every command, row by row of the command table: its layout, the borders of its fields, its refusals.

A new row fails here until it has an example, and then until every bit, border and buffer of it behaves.
"""

import pytest

from tests.scsi.examples import EXAMPLES, LENGTHS, ROWS, SERVED, at, blocks_out, cdb_of, ready_for, sent, with_field
from tests.scsi.initiator import INVALID_FIELD_IN_CDB, LBA_OUT_OF_RANGE, SHORT_DATA_OUT, Initiator
from tests.scsi.test_commands import USAGE_DATA
from vstore.fuzz.sense_data import parse_sense
from vstore.scsi.commands import COMMANDS
from vstore.scsi.field import EVALUATED
from vstore.scsi.task import Response, Status

BLOCKS = 2048

# Bits that are accepted and mean nothing, beside the GROUP NUMBER of block commands: the LUN of SCSI-2, permissions
# that no self-test needs, and where the standards say that a field is ignored.
IGNORED = {
    "TEST UNIT READY": "00 e0 00 00 00 00",
    "REQUEST SENSE": "00 e0 00 00 00 00",
    "INQUIRY": "00 e0 00 00 00 00",
    "SEND DIAGNOSTIC": "00 13 00 00 00 00",
    "SANITIZE (EXIT FAILURE MODE)": "00 a0 00 00 00 00 00 00 00 00",
    "RECEIVE COPY OPERATING PARAMETERS": "00 00 ff",
    "READ DEFECT DATA (12)": "00 00 ff ff ff ff",  # ADDRESS DESCRIPTOR INDEX: whichever it is, none follows
    "WRITE ATOMIC (16)": "00 00 00 00 00 00 00 00 00 00 00 00 00 00 3f 00",  # GROUP NUMBER, as wide as SBC-4 has it
    **{
        f"PERSISTENT RESERVE OUT ({action})": "00 00 ff"
        for action in ("REGISTER", "CLEAR", "REGISTER AND IGNORE EXISTING KEY", "REGISTER AND MOVE")
    },
}
GROUP_NUMBER = {10: 6, 12: 10, 16: 14}  # its byte, by the length of the CDB; in bits 4 to 0
_GROUPED = (0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35, 0x41, 0x42, 0x88, 0x89, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93)
GROUPED = (*_GROUPED, 0xA8, 0xAA, 0xAE, 0xAF)

every_command = pytest.mark.parametrize("name", ROWS)


def accepted_bits(name: str) -> int:
    """As the two tables by hand say."""
    row = ROWS[name]
    data = bytearray(bytes.fromhex(USAGE_DATA[name]))
    data[0] = 0xFF
    if row.service_action is not None:
        data[1] |= 0x1F
    if row.opcode in GROUPED:
        data[GROUP_NUMBER[row.length]] |= 0x1F
    ignored = bytes.fromhex(IGNORED.get(name, "")).ljust(row.length, b"\0")
    return int.from_bytes(data) | int.from_bytes(ignored)


def code_of(response: Response) -> tuple[int, int, int]:
    assert response.status is Status.CHECK_CONDITION, response
    return parse_sense(response.sense).code


# ---- layout ---------------------------------------------------------------------------------------------


def test_every_command_has_an_example_and_every_example_a_command() -> None:
    assert set(EXAMPLES) == set(ROWS)


@every_command
def test_the_example_is_served(name: str) -> None:
    response = sent(ready_for(name), name)
    assert response.status in SERVED, response
    assert ROWS[name].decode(cdb_of(name)).encode() == cdb_of(name)


@every_command
def test_each_reserved_bit_is_refused_where_it_is_and_leaves_the_command_without_effect(name: str) -> None:
    row, initiator = ROWS[name], ready_for(name)
    before = bytes(initiator.data)
    for bit in range(row.length * 8 - 8):
        if accepted_bits(name) >> bit & 1:
            continue
        cdb = (int.from_bytes(cdb_of(name)) | 1 << bit).to_bytes(row.length)
        sense = parse_sense(sent(initiator, name, cdb).sense)
        byte, position = row.length - 1 - bit // 8, bit % 8
        assert (sense.code, sense.in_cdb) == (INVALID_FIELD_IN_CDB, True), (byte, position)
        field = next((f for f in row.fields.values() if f.mask >> bit & 1), None)  # a field is pointed at by its msb
        assert (sense.byte, sense.bit) == ((field.byte, field.msb) if field else (byte, position))
    assert bytes(initiator.data) == before
    assert sent(initiator, name).status in SERVED


@every_command
def test_every_other_bit_passes_the_decoder(name: str) -> None:
    row = ROWS[name]
    for bit in range(row.length * 8 - 8):
        if accepted_bits(name) >> bit & 1 and not row.fixed >> bit & 1:
            row.decode((int.from_bytes(cdb_of(name)) ^ 1 << bit).to_bytes(row.length))


@every_command
def test_a_cdb_cut_off_anywhere_is_refused(name: str) -> None:
    initiator = ready_for(name)
    for length in range(1, ROWS[name].length):
        task = initiator.task(b"", EXAMPLES[name].data_out)
        task.cdb = cdb_of(name)[:length]
        with pytest.raises(StopIteration) as end:
            initiator.target.execute(task).send(None)
        assert code_of(end.value.value) == INVALID_FIELD_IN_CDB


# ---- lengths --------------------------------------------------------------------------------------------


def having(*fields: str) -> pytest.MarkDecorator:
    """The commands that evaluate a field of one of these names."""
    named = [
        name
        for name, row in ROWS.items()
        if any(field in row.fields and row.fields[field].use is EVALUATED for field in fields)
    ]
    assert named
    return pytest.mark.parametrize("name", named)


@having("allocation_length")
def test_data_in_is_cut_at_every_allocation_length_and_says_its_whole_length(name: str) -> None:
    whole = sent(ready_for(name), name).data_in
    assert whole
    limit = ROWS[name].fields["allocation_length"].limit
    for length in [n for n in (*range(min(len(whole), 64) + 2), len(whole) - 1, len(whole), limit) if n <= limit]:
        response = sent(ready_for(name), name, with_field(name, "allocation_length", length))
        assert response.status is Status.GOOD
        assert stable(name, response.data_in) == stable(name, whole[:length]), length
        assert not response.overrun


def stable(name: str, data: bytes) -> bytes:
    """Without what differs from one time to the next."""
    return data[:4] if name == "REPORT TIMESTAMP" else data


@having("allocation_length")
def test_data_in_that_finds_less_room_than_the_allocation_length_is_an_overrun(name: str) -> None:
    initiator = ready_for(name)
    response = initiator.send(cdb_of(name), room=1)
    assert (len(response.data_in), response.overrun) == (1, True)


WITH_DATA_OUT = [name for name, example in EXAMPLES.items() if example.data_out]


@pytest.mark.parametrize("name", WITH_DATA_OUT)
def test_a_command_whose_data_out_is_one_byte_short_does_nothing(name: str) -> None:
    initiator = ready_for(name)
    before, kept = bytes(initiator.data), initiator.unit.persistent
    response = sent(initiator, name, data_out=EXAMPLES[name].data_out[:-1])
    assert code_of(response) == SHORT_DATA_OUT
    assert response.overrun
    assert (bytes(initiator.data), initiator.unit.persistent) == (before, kept)


@having("parameter_list_length")
def test_a_parameter_list_cut_off_anywhere_is_refused_or_of_less_and_never_half_obeyed(name: str) -> None:
    """Zero means no list. All lists but that of UNMAP, whose last descriptor may be cut off, and of WRITE BUFFER and
    SET IDENTIFYING INFORMATION, which are plain bytes, are refused unless they end where a part of them does."""
    data = EXAMPLES[name].data_out
    for length in range(len(data)):
        initiator = ready_for(name)
        response = sent(initiator, name, with_field(name, "parameter_list_length", length), data[:length])
        assert response.status is Status.GOOD or code_of(response) in ANY_LENGTH_FAULT
        if response.status is Status.GOOD:
            assert length in PARTS.get(name, (0,)) or name in PLAIN, length


ANY_LENGTH_FAULT = ((5, 0x1A, 0x00), (5, 0x24, 0x00), (5, 0x26, 0x00))
PLAIN = ("WRITE BUFFER", "SET IDENTIFYING INFORMATION")
PARTS = {
    "UNMAP": (0, *range(8, 24)),
    "MODE SELECT (6)": (0, 4),
    "MODE SELECT (10)": (0, 8),
    "SANITIZE (OVERWRITE)": (),
}


# ---- LBA and length -------------------------------------------------------------------------------------

# What zero blocks are: nothing, all to the end, 256 blocks, or refused (WSNZ).
ALL, MANY, REFUSED = "all", "256", "refused"
OF_ZERO = {
    "READ (6)": MANY,
    "WRITE (6)": MANY,
    "PRE-FETCH (10)": ALL,
    "PRE-FETCH (16)": ALL,
    "SYNCHRONIZE CACHE (10)": ALL,
    "SYNCHRONIZE CACHE (16)": ALL,
    "WRITE SAME (10)": REFUSED,
    "WRITE SAME (16)": REFUSED,
}
having_an_lba = having("lba")


def reached(initiator: Initiator, name: str, lba: int, count: int) -> Response:
    return sent(initiator, name, at(name, lba, count), blocks_out(name, count))


def has_length(name: str) -> bool:
    return any(field in ROWS[name].fields for field in LENGTHS)


@having_an_lba
def test_the_first_and_the_last_block_are_reached(name: str) -> None:
    for lba in (0, BLOCKS - 1):
        assert reached(ready_for(name), name, lba, 1).status in SERVED


@having_an_lba
@pytest.mark.parametrize("descriptor", [False, True])
def test_one_block_past_the_end_is_out_of_range_and_told_by_its_address(name: str, *, descriptor: bool) -> None:
    """Fixed sense data have four bytes for it, and an address that does not fit is not told."""
    initiator = ready_for(name)
    control = initiator.unit.modes.control
    control.value |= type(control).d_sense.mask * descriptor
    limit = ROWS[name].fields["lba"].limit
    cases = [(BLOCKS, 1, BLOCKS), (BLOCKS + 1, 1, BLOCKS + 1), (limit, 1, limit)]
    cases += [(BLOCKS - 1, 2, BLOCKS), (1, BLOCKS, BLOCKS)] if has_length(name) else []
    for lba, count, address in [case for case in cases if fits(name, case[1])]:
        sense = parse_sense(reached(initiator, name, lba, count).sense)
        assert sense.code == LBA_OUT_OF_RANGE, (lba, count)
        assert sense.information == (address if descriptor or address < 1 << 32 else None)
    assert bytes(initiator.data) == bytes(BLOCKS * 512)


LONGEST = {"WRITE ATOMIC (16)": 256}  # blocks, where the block limits have less for this command than for all


def fits(name: str, count: int) -> bool:
    return count <= LONGEST.get(name, BLOCKS) and all(
        count <= found.limit for field in LENGTHS if (found := ROWS[name].fields.get(field))
    )


@having(*LENGTHS)
def test_an_lba_and_a_length_whose_sum_overflows_reach_nothing(name: str) -> None:
    row, initiator = ROWS[name], ready_for(name)
    top = next(row.fields[field].limit for field in LENGTHS if field in row.fields)
    sense = code_of(sent(initiator, name, at(name, row.fields["lba"].limit, top), bytes(512)))
    assert sense in (LBA_OUT_OF_RANGE, INVALID_FIELD_IN_CDB)


@having(*LENGTHS)
def test_a_length_of_zero_means_what_the_command_says(name: str) -> None:
    meaning, initiator = OF_ZERO.get(name), ready_for(name)
    if meaning == REFUSED:
        assert code_of(reached(initiator, name, 0, 0)) == INVALID_FIELD_IN_CDB
        return
    data = bytes(256 * 512) if meaning == MANY and EXAMPLES[name].data_out else b""
    assert sent(initiator, name, at(name, BLOCKS - 256, 0), data).status in SERVED
    past = sent(initiator, name, at(name, BLOCKS - 255, 0), data)
    assert past.status in SERVED if meaning != MANY else code_of(past) == LBA_OUT_OF_RANGE
    if meaning != MANY:
        assert reached(initiator, name, BLOCKS, 0).status in SERVED
        assert code_of(reached(initiator, name, BLOCKS + 1, 0)) == LBA_OUT_OF_RANGE


def test_every_command_that_names_blocks_has_its_length_in_this_table() -> None:
    named = {name for name, row in ROWS.items() if "lba" in row.fields and row.fields["lba"].use is EVALUATED}
    assert {name for name in named if not has_length(name)} == {"GET LBA STATUS (16)"}


def test_a_field_that_the_tests_of_borders_do_not_know_is_no_length() -> None:
    known = {*LENGTHS, "allocation_length", "parameter_list_length"}
    for row in COMMANDS:
        assert {field for field in row.fields if field.endswith(("length", "blocks"))} <= known
