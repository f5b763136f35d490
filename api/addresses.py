"""TCP addresses of the daemon: loopback ones only, because what goes over them is not encrypted."""

import ipaddress
from dataclasses import dataclass
from typing import Self

DEFAULT_PORT = 8642  # nobody has it in IANA's registry, nor is it in the range of ephemeral ports


@dataclass(frozen=True)
class Address:
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> Self:
        """`HOST:PORT`, `[::1]:PORT` or `PORT`. Raises ValueError, also for what others could reach."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") or cls.host
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{text!r} is no address to listen at; write 127.0.0.1:PORT or [::1]:PORT")
        if not is_loopback(host):
            raise ValueError(
                f"{host} is not a loopback address, and without TLS nothing else is served; "
                "listen at 127.0.0.1 or [::1] and forward to it, for example with ssh -L"
            )
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether this name or address can mean this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
