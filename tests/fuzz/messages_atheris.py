"""The Atheris side of tests.fuzz.messages, started by it: python -m tests.fuzz.messages --atheris."""

import asyncio
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vstore.vhost_user"]):
    from tests.fuzz import messages

BRED = Path(__file__).parents[2] / "build" / "fuzz" / "messages"


def main(seconds: int, seed: int, *, real: bool) -> None:
    """Does not return: libFuzzer ends the process."""
    loop = asyncio.new_event_loop()
    arena = loop.run_until_complete(messages.arena(real=real))

    def one(case: bytes) -> None:
        try:
            loop.run_until_complete(arena.run(case))
        except BaseException:
            print(f"kept as {messages.keep(case)}", file=sys.stderr)
            raise

    for directory in (BRED, messages.CORPUS):
        directory.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={messages.CASE_BYTES}", "-len_control=0"]
    shown = ["-verbosity=0", "-print_final_stats=1", "-timeout=20", f"-artifact_prefix={BRED}-"]
    atheris.Setup([sys.argv[0], *limits, *shown, str(BRED), str(messages.CORPUS)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), real=sys.argv[3] == "real")
