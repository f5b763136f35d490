"""A real Linux guest, driven from Python: boot it, run shell scripts in it, talk QMP to it, end it.

        Python                    QEMU                         guest
    Guest.run(script) --line--> virtserialport "agent" --> init.sh: sh script
           Result     <--line--                        <-- status, output, errors
    Guest.qmp(...)    <-------> monitor (QMP)
    console.log       <-------- ttyS0                  <-- kernel messages

Every wait is bounded; QEMU dies with the process that started it; its log and the guest's console are kept in
`directory` and shown when a test fails.
"""

import base64
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.guest.channel import ChannelError, LineChannel
from tests.guest.initramfs import initramfs
from tests.guest.kernel import debian_kernel
from tests.guest.machine import Controller, FirmwareBoot, KernelBoot, Machine, accelerators
from tests.guest.process import Process, show_on_failure
from tests.guest.qmp import Qmp

BOOT_SECONDS = 120.0
TRIAL_SECONDS = 30.0  # for an accelerator that another can stand in for
RUN_SECONDS = 60.0
GRACE_SECONDS = 10.0  # for the answer to come back after the guest has cut a script off

# Kernel messages that mean trouble with a disk, whatever their level; all of level error and worse count too.
TROUBLE = re.compile(
    r"FAILED Result|Sense Key|Add\. Sense|Sense not available|Assuming drive cache|rejecting I/O|I/O error"
    r"|(sd|sg|scsi|host)\b.*\b(abort|reset|timing out|timed out|unsupported|invalid)"
    r"|EXT4-fs (error|warning)|corrupt|blocked for more than|BUG:|WARNING:|Oops|Call Trace|init: .*not loaded",
)
DECODED = re.compile(r"\w+ *:(?P<level>\w+) *: (?P<text>.*)")  # as `dmesg --decode` prints a message
HARMLESS = re.compile(r"Power-on or device reset occurred")  # 29h: every new I_T nexus is told so


class GuestError(Exception):
    """The guest did not do what it was told; the text holds the script, its status and everything it printed."""


@dataclass(frozen=True)
class Result:
    """What a script did: its exit status (143: cut off by its time limit), standard output and standard error."""

    status: int
    output: str
    errors: str


def kernel_boot() -> KernelBoot:
    """QEMU loads Debian's cloud kernel and our initramfs."""
    kernel = debian_kernel()
    return KernelBoot(kernel.image, initramfs(kernel))


class Guest:
    """One virtual machine. Use it as a context manager: leaving the block ends QEMU."""

    def __init__(
        self,
        directory: Path,
        controllers: Sequence[Controller] = (),
        *,
        boot: KernelBoot | FirmwareBoot | None = None,
        cpus: int = 1,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.machine = Machine(boot or kernel_boot(), controllers, cpus=cpus)
        self.console_path = directory / "console.log"
        self._qemu_log = directory / "qemu.log"
        self._console_log = show_on_failure("guest console", self.console_path)
        self._requests = 0
        self.process: Process | None = None
        self._channels: list[LineChannel] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def console(self) -> str:
        """Everything that came over the serial console since the first boot."""
        return self.console_path.read_bytes().decode(errors="replace")

    def boot(self) -> Self:
        """Start QEMU and wait for the agent; an accelerator that does not get that far is not tried again."""
        candidates = [name for name in accelerators() if name not in _FAILED_ACCELERATORS]
        for accelerator in candidates[:-1]:
            try:
                return self._boot_with(accelerator, TRIAL_SECONDS)
            except ChannelError:
                self.kill()
                _FAILED_ACCELERATORS.add(accelerator)
        return self._boot_with(candidates[-1], BOOT_SECONDS)

    def run(self, script: str, timeout: float = RUN_SECONDS) -> Result:
        """Run a shell script in the guest. Raises ChannelError when the guest does not answer in time."""
        self._requests += 1
        number = str(self._requests)
        self._agent.send(f"{number} {timeout:g} {base64.b64encode(script.encode()).decode()}")
        fields = self._agent.receive(timeout + GRACE_SECONDS).split(" ")
        if fields[0] != number or len(fields) != 4:
            raise GuestError(f"the agent answered {fields!r} to request {number}, {script!r}: did the guest reboot?")
        return Result(int(fields[1]), _decoded(fields[2]), _decoded(fields[3]))

    def check(self, script: str, timeout: float = RUN_SECONDS, *, status: int = 0) -> str:
        """Run a script that must end with `status`; its standard output. Raises GuestError with all it printed."""
        result = self.run(script, timeout)
        if result.status != status:
            raise GuestError(
                f"{script!r} ended with {result.status}, not {status}\n"
                f"--- output\n{result.output}\n--- errors\n{result.errors}"
            )
        return result.output

    def wait_until(self, condition: str, timeout: float = RUN_SECONDS) -> str:
        """Try a script ten times a second until it ends with 0; its output. Raises GuestError at the time limit."""
        rounds = int(timeout * 10)
        loop = f"until ( {condition}\n) >/run/wait 2>&1; do n=$((n+1)); [ $n -lt {rounds} ] || break; sleep 0.1; done"
        return self.check(f"n=0\n{loop}\ncat /run/wait; [ $n -lt {rounds} ]", timeout * 2 + GRACE_SECONDS)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command (underscores in argument names become hyphens); its return value. Raises QmpError."""
        return self._qmp.execute(command, **arguments)

    def reset(self) -> None:
        """Press the reset button (system_reset) and wait until the guest is up again; QEMU stays."""
        self.qmp("system_reset")
        self._wait_ready(BOOT_SECONDS)

    def shutdown(self) -> None:
        """Let the guest's kernel power off in order (it flushes its disks), and wait for QEMU to end."""
        self._agent.send(f"0 10 {base64.b64encode(b'sync; poweroff -f').decode()}")
        self._end(30.0)

    def quit(self) -> None:
        """Tell QEMU to end at once, as if the plug were pulled; the guest is not asked."""
        self.qmp("quit")
        self._end(15.0)

    def kill(self) -> None:
        """End QEMU whatever it does; harmless when it has ended."""
        if self.process is not None:
            self.process.kill()
        for channel in self._channels:
            channel.close()
        self._channels = []
        self._console_log.close()

    def disk_trouble(self) -> list[str]:
        """Kernel messages since the last call that speak of trouble with a disk, or are of level error or worse."""
        lines = self.check("dmesg --read-clear --decode --notime").splitlines()
        messages = (DECODED.fullmatch(line) for line in lines)
        return [found["text"] for found in messages if found is not None and _is_trouble(found["level"], found["text"])]

    def _boot_with(self, accelerator: str, seconds: float) -> Self:
        self._agent, control = LineChannel("agent"), LineChannel("QMP")
        self._channels = [self._agent, control]
        descriptors = [channel.theirs.fileno() for channel in self._channels]
        command = self.machine.command(accelerator, self.console_path, *descriptors)
        self.process = Process("QEMU", command, self._qemu_log, descriptors)
        for channel in self._channels:
            channel.theirs.close()  # so that QEMU's end closes our end
        self._qmp = Qmp(control)
        self._wait_ready(seconds)
        return self

    def _wait_ready(self, seconds: float) -> None:
        while self._agent.receive(seconds) != "ready":
            pass

    def _end(self, timeout: float) -> None:
        assert self.process is not None, "the guest was not booted"
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise GuestError(f"QEMU did not end within {timeout:g} s") from error
        finally:
            self.kill()


def _is_trouble(level: str, text: str) -> bool:
    if level in ("emerg", "alert", "crit", "err"):
        return True
    return TROUBLE.search(text) is not None and HARMLESS.search(text) is None


_FAILED_ACCELERATORS: set[str] = set()


def _decoded(field: str) -> str:
    return "" if field == "-" else base64.b64decode(field).decode(errors="replace")
