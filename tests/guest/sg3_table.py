"""Every program of sg3_utils that speaks to a disk: what it is called with, and how that ends. The table of
docs/sg3_utils.md is printed from it (python -m tests.guest.sg3_table), and test_sg3_table.py runs it in a guest.

Left out is what is not for disks (tapes, enclosures, media changers, zoned and ATA disks, CD writers, arrays of other
vendors), though some of it stands here as a refusal: what is not there is refused, not half answered.
"""

from dataclasses import dataclass

# sg3_utils(8): exit statuses.
DONE, ILLEGAL, INVALID_OPCODE, MISCOMPARE = 0, 5, 9, 14
OUTCOMES = {
    DONE: "done",
    ILLEGAL: "refused: INVALID FIELD IN CDB",
    INVALID_OPCODE: "refused: INVALID COMMAND OPERATION CODE",
    MISCOMPARE: "MISCOMPARE, where the data differ",
}


@dataclass(frozen=True)
class Row:
    """`command`: without the disk, which comes last, or stands, as a generic device, where SG is. `told`: what it must
    print. `kept`: of the disk whose image keeps its clusters."""

    command: str
    status: int = DONE
    told: str = ""
    why: str = ""
    kept: bool = False

    def on(self, disk: str, generic: str) -> str:
        """The line for the shell."""
        return self.command.replace("SG", generic) if "SG" in self.command else f"{self.command} {disk}"


PREPARATION = "head -c 4096 /dev/zero > /tmp/zero; head -c 65536 /dev/urandom > /tmp/noise; echo name > /tmp/name"

TABLE = (
    Row("sg_inq --vpd --page=0x83", told="naa"),
    Row("sg_vpd --all", told="Supported VPD pages"),
    Row("sg_opcodes", told="Read(16)"),
    Row("sg_luns", told="0000000000000000"),
    Row("sg_turs --number=20", told="with 0 errors"),
    Row("sg_requests --desc"),
    Row("sg_readcap --16", told="Last LBA"),
    Row("sg_modes --all", told="Caching"),
    Row("sginfo -a", told="Serial"),
    Row("sg_logs --all", told="Write error counter page"),
    Row("sg_logs --temperature"),
    Row("sg_logs --page=0x19", told="number of read commands"),
    Row("sg_logs --page=0x0c", told="Available LBA mapping"),
    Row("sg_logs --reset"),
    Row("sg_modes --control=3 --page=8", told="Caching"),
    Row("sg_timestamp --milliseconds=1700000000000"),
    Row("sg_timestamp", told="17000000"),
    Row("sg_read_buffer --mode=desc"),
    Row("sg_write_buffer --mode=data --in=/tmp/zero --length=4096"),
    Row("sg_test_rwbuf --size=4096"),
    Row("sg_rbuf --size=4096"),
    Row("sg_senddiag --test"),
    Row("sg_senddiag --selftest=1"),
    Row("sg_verify --0 --lba=0 --count=8"),
    Row("sg_persist --in --report-capabilities", told="Persist through power loss"),
    Row("sg_persist --out --register --param-sark=0x123"),
    Row("sg_persist --in --read-keys", told="0x123"),
    Row("sg_persist --out --reserve --param-rk=0x123 --prout-type=5"),
    Row("sg_persist --in --read-reservation", told="Write Exclusive, registrants only"),
    Row("sg_persist --in --read-full-status", told="Reservation holder"),
    Row("sg_persist --out --release --param-rk=0x123 --prout-type=5"),
    Row("sg_persist --out --clear --param-rk=0x123"),
    Row("sg_ident --set < /tmp/name"),
    Row("sg_ident --ascii", told="name"),
    Row("sg_rtpg --decode", told="active/optimized"),
    Row("sg_stpg --active"),
    Row("sg_xcopy if=SG of=SG count=8 bs=512 seek=1000", told="8 blocks, 1 command"),
    Row("sg_copy_results --params", told="Maximum"),
    Row("sg_sync --16 --lba=0 --count=8"),
    Row("sg_write_verify --lba=0 --num=8 --ilen=4096 --in=/tmp/noise"),
    Row("sg_write_verify --16 --bytchk=1 --lba=0 --num=8 --ilen=4096 --in=/tmp/noise"),
    Row("sg_write_x --normal --16 --num=8 --in=/tmp/noise --lba=8"),
    Row("sg_write_x --or --16 --num=8 --in=/tmp/noise --lba=8"),
    Row("sg_write_x --atomic=0 --16 --num=8 --in=/tmp/noise --lba=8"),
    Row("sg_write_x --atomic=8 --16 --num=8 --in=/tmp/noise --lba=8"),
    Row("sg_compare_and_write --lba=100 --num=1 --xferlen=1024 --in=/tmp/zero"),
    Row("sg_compare_and_write --lba=100 --num=1 --xferlen=1024 --in=/tmp/noise", MISCOMPARE),
    Row("sg_write_same --16 --unmap --lba=64 --num=64"),
    Row("sg_unmap --force --lba=64 --num=64"),
    Row("sg_get_lba_status --lba=64", told="deallocated"),
    Row("sg_unmap --force --anchor --lba=64 --num=64", ILLEGAL, why="a raw image gives its space back"),
    Row("sg_write_same --16 --unmap --anchor --lba=64 --num=64", ILLEGAL, why="the same"),
    Row("sg_unmap --force --anchor --lba=128 --num=128", kept=True),
    Row("sg_write_same --16 --unmap --anchor --lba=256 --num=128", kept=True),
    Row("sg_get_lba_status --lba=128", told="anchored", kept=True),
    Row("sg_vpd --page=lbpv", told="(ANC_SUP): 1", kept=True),
    Row("sg_reassign --grown", told="0"),
    Row("sg_reassign --dummy --address=1"),
    Row("sg_format --format --quick --wait"),
    Row("sg_sanitize --quick --block --wait"),
    Row("sg_sanitize --quick --overwrite --zero --wait"),
    Row("sg_sanitize --quick --crypto", ILLEGAL, why="only encrypted images have a cryptographic erase"),
    Row("sg_start --stop"),
    Row("sg_start --start"),
    Row("sg_start --eject", ILLEGAL, why="nothing can be taken out"),
    Row("sg_reset --device"),
    Row("sg_turs --number=2", told="unit attention"),
    Row("sg_get_elem_status", ILLEGAL, why="no physical elements"),
    Row("sg_referrals", ILLEGAL, why="no referrals"),
    Row("sg_senddiag --list", ILLEGAL, why="no diagnostic pages"),
    Row("sg_read_long --16 --lba=0", ILLEGAL, why="there is no ECC beneath"),
    Row("sg_write_long --16 --lba=0 --xfer_len=520 --in=/tmp/noise", INVALID_OPCODE, why="there is no ECC beneath"),
    Row("sg_bg_ctl", ILLEGAL, why="nothing runs in the background"),
    Row("sg_copy_results --status --list_id=0", ILLEGAL, why="no such copy is known"),
    Row("sg_stream_ctl --get", ILLEGAL, why="no streams"),
    Row("sg_prevent --allow"),
    Row("sg_prevent --prevent=1"),
    Row("sg_seek --lba=10", INVALID_OPCODE, why="obsolete"),
    Row("sg_rep_zones", INVALID_OPCODE, why="not zoned"),
    Row("sg_sat_identify", INVALID_OPCODE, why="no ATA"),
    Row("sg_rmsn", INVALID_OPCODE, why="no media"),
    Row("sg_read_block_limits", INVALID_OPCODE, why="no tape"),
)


def reference() -> str:
    """docs/sg3_utils.md."""
    lines = [
        f"| `{row.on('KEPT' if row.kept else 'DISK', 'SG')}` | {OUTCOMES[row.status]} | {row.why} |" for row in TABLE
    ]
    return "\n".join([*_HEAD, *lines, ""])


_HEAD = (
    "# sg3_utils",
    "",
    "What the programs of sg3_utils do with a disk of vstore. `make guest-test` runs every line in a Linux guest,",
    "`make test` without one (`tests/scsi/test_sg3_table.py`: what a program asks of the kernel goes to the model).",
    "This page is printed from the table that they run (`python -m tests.guest.sg3_table > docs/sg3_utils.md`).",
    "More of what they print is checked in `tests/guest/test_sg3_utils.py`. DISK is a raw image, KEPT a qcow2 image",
    "that is exported with `--discard keep`.",
    "",
    "| command | ends | because |",
    "|---|---|---|",
)


if __name__ == "__main__":
    print(reference(), end="")
