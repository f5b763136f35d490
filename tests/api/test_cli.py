"""The command against a daemon: what it prints, where, and with which exit code."""

import json
import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from api.cli import COMMANDS, main, vstore
from tests.store.world import ROOT, World

MIB = 1 << 20


class Command:
    """Runs `vstore --url URL …` and keeps what it printed."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = url
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        code = main(["--url", self._url, *arguments])
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *arguments: str) -> dict[str, object]:
        assert self(*arguments, "--json") == 0, self.err
        body = json.loads(self.out)
        assert isinstance(body, dict)
        return body


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(url, capsys)


def test_a_disk_from_nothing_to_an_attach_line(run: Command) -> None:
    assert run("image", "create", "root", "1.5M", "--label", "owner=web") == 0
    assert "virtual size        1.50 MiB (1572864 bytes)" in run.out
    assert run("target", "create", "web", "--queues", "2") == 0
    assert run("lun", "map", "web", "0", "root", "--block-size", "4096") == 0
    assert run("attach", "web", "--vmm", "qemu-7.2", "--memory", "1G") == 0
    assert run.out.startswith("qemu-system-x86_64 ")
    assert "num_queues=2" in run.out
    assert run("lun", "unmap", "web", "0") == 0
    assert run("target", "delete", "web") == 0
    assert run("image", "delete", "root") == 0
    assert run.out == "image root deleted\n"


def test_json_is_the_rest_body(run: Command) -> None:
    body = run.json("image", "create", "a", "1M")
    assert body == run.json("image", "show", "a")
    assert run.json("image", "list") == {"items": [body], "next": None}
    target = run.json("target", "create", "t")
    assert run.json("target", "list")["items"] == [target]
    lun = run.json("lun", "map", "t", "1:2", "a", "--read-only", "--serial", "S1")
    assert (lun["name"], lun["read_only"], lun["serial"]) == ("1:2", True, "S1")
    assert run.json("lun", "list", "t")["items"] == [lun]
    assert run.json("lun", "show", "t", "1:2") == lun
    lines = run.json("attach", "t", "--vmm", "crosvm")["lines"]
    assert isinstance(lines, list)
    assert [line["vmm"] for line in lines] == ["crosvm"]


def test_a_target_is_made_for_the_vmm_of_another_group(run: Command) -> None:
    group = str(os.getegid())
    made = run.json("target", "create", "t", "--socket-group", group)
    assert (made["socket_mode"], made["socket_owner"], made["socket_group"]) == ("0660", None, group)
    assert run("target", "create", "u", "--socket-mode", "0777") == 1
    assert run.err == "vstore: socket_mode: '0777' is no mode for it; choose 0600, 0660, 0666\n"


def test_a_list_in_a_pipe_is_plain_columns(run: Command) -> None:
    run("image", "create", "first", "1M")
    run("image", "create", "b", "512")
    assert run("image", "list") == 0
    assert run.out.splitlines() == [
        "NAME   FORMAT  SIZE      ON DISK  PARENT  STATE  LUNS",
        "b      raw     512 B     0 B      -       ready  -",
        "first  raw     1.00 MiB  0 B      -       ready  -",
    ]


def test_a_list_follows_all_pages(run: Command) -> None:
    for number in range(105):
        run("image", "create", f"i{number:03}", "512")
    assert run("image", "list") == 0
    assert len(run.out.splitlines()) == 106


def test_labels_change_one_by_one(run: Command) -> None:
    run("image", "create", "a", "512", "--label", "x=1", "--label", "y=2")
    assert run.json("image", "update", "a", "--label", "z=3", "--remove-label", "x")["labels"] == {"y": "2", "z": "3"}
    run("target", "create", "t")
    assert run.json("target", "update", "t", "--label", "z=3")["labels"] == {"z": "3"}


@pytest.mark.parametrize(
    ("size", "options", "bytes_after"), [("2M", [], 2 * MIB), ("+1M", [], 2 * MIB), ("-512", ["--shrink"], MIB - 512)]
)
def test_a_resize_is_absolute_or_a_change(run: Command, size: str, options: list[str], bytes_after: int) -> None:
    run("image", "create", "a", "1M")
    assert run.json("image", "resize", "a", size, *options)["virtual_size_bytes"] == bytes_after


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["image", "create", "a"],
        ["image", "create", "a", "1000"],
        ["image", "create", "a", "1e3"],
        ["image", "create", "a", "1M", "--preallocation", "some"],
        ["image", "create", "a", "1M", "--label", "nothing"],
        ["image", "list", "--nonsense"],
        ["serve", "--listen", "0.0.0.0:80"],
        ["serve", "--listen", "localhost"],
        ["serve", "--listen", "8642", "--no-listen"],
    ],
)
def test_a_wrong_call_is_64_and_one_line_that_leads_to_help(run: Command, arguments: list[str]) -> None:
    assert run(*arguments) == 64
    assert run.out == ""
    assert run.err.startswith("vstore: ")
    assert run.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["image"]])
def test_a_group_without_a_command_tells_its_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 64
    told = capsys.readouterr().err
    assert told.startswith("Usage: vstore")
    assert "Commands:" in told


def test_a_size_between_sectors_is_refused_with_what_would_be_right(run: Command) -> None:
    assert run("image", "create", "a", "1000") == 64
    assert "nearest: 512 or 1024 bytes" in run.err
    assert "vstore image create --help" in run.err


def test_a_refusal_of_the_daemon_is_1_and_its_detail(run: Command) -> None:
    assert run("image", "show", "a") == 1
    assert (run.out, run.err) == ("", "vstore: there is no image 'a' in pool default\n")


def test_deleting_what_is_not_there_is_an_error_on_the_command_line(run: Command) -> None:
    assert run("image", "delete", "typo") == 1
    assert run.err == "vstore: there is no image typo in pool default\n"


@pytest.mark.parametrize("url", ["unix:///nonexistent/api.sock", "http://127.0.0.1:9", "ftp://x"])
def test_no_daemon_is_69(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert main(["--url", url, "image", "list"]) == 69
    err = capsys.readouterr().err
    assert err.startswith("vstore: ")
    assert url in err


def test_what_answers_but_is_no_daemon_is_69(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=world.root,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert server.stdout
    port = server.stdout.readline().split()[5].decode()
    assert main(["--url", f"http://127.0.0.1:{port}", "image", "list"]) == 69
    assert "is this a vstore daemon?" in capsys.readouterr().err
    server.terminate()
    server.communicate()


def test_the_url_comes_from_the_environment(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VSTORE_URL", url)
    assert main(["image", "list"]) == 0
    assert capsys.readouterr().out.startswith("NAME")


def test_a_terminal_gets_a_table_without_escapes_when_colour_is_not_wanted(url: str) -> None:
    subprocess.run([sys.executable, "-m", "api.cli", "--url", url, "image", "create", "a", "1M"], check=True, cwd=ROOT)
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "80"}
    subprocess.run(
        [sys.executable, "-m", "api.cli", "--url", url, "image", "list"],
        stdout=theirs,
        env=environ,
        check=True,
        cwd=ROOT,
    )
    os.close(theirs)
    drawn = os.read(ours, 65536).decode()
    os.close(ours)
    assert "1.00 MiB" in drawn
    assert "\x1b" not in drawn


def test_the_help_of_the_group_is_that_of_the_commands() -> None:
    import click

    context = click.Context(vstore)
    for name, (_, help_) in COMMANDS.items():
        command = vstore.get_command(context, name)
        assert command is not None
        own = command.short_help or (command.help or "").split("\n", 1)[0]
        assert own.split()[0] == help_.split()[0], name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_completion(shell: str) -> None:
    environ = {**os.environ, "_VSTORE_COMPLETE": f"{shell}_source"}
    script = subprocess.run(
        [sys.executable, "-c", "import sys; from api.cli import main; sys.exit(main())"],
        env=environ,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert "vstore" in script.stdout, script.stderr


def test_completion_knows_commands_and_their_options() -> None:
    environ = {
        **os.environ,
        "_VSTORE_COMPLETE": "bash_complete",
        "COMP_WORDS": "vstore image create --pre",
        "COMP_CWORD": "3",
    }
    told = subprocess.run(
        [sys.executable, "-c", "from api.cli import main; main()"],
        env=environ,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    ).stdout
    assert "--preallocation" in told


def test_no_client_command_imports_what_only_the_daemon_needs(url: str, tmp_path: Path) -> None:
    """FastAPI alone takes longer to import than a request takes."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from api.cli import main\n"
        f"for arguments in (['image', 'list'], ['target', 'list'], ['image', 'create', 'a', '1M'],\n"
        "                  ['target', 'create', 't'], ['lun', 'map', 't', '0', 'a'], ['lun', 'list', 't'],\n"
        "                  ['attach', 't'], ['serve', '--help'], ['--version']):\n"
        f"    assert main(['--url', {url!r}, *arguments]) == 0, arguments\n"
        "heavy = {'fastapi', 'starlette', 'uvicorn', 'sqlalchemy', 'pydantic', 'rich', 'numpy', 'asyncio', 'cffi'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


WEB = "fastapi starlette uvicorn sqlalchemy pydantic rich http.client email importlib.metadata"
SLOW = f"{WEB} numpy cryptography cffi zipfile tempfile random vstore.store vstore.client"
SERVING = "asyncio ssl socket subprocess concurrent.futures logging vstore.dataplane vstore.target"
TLS = "ssl _ssl urllib.parse ipaddress"
UNUSED = {  # a command, by which `FD` is a front-end that has left already; and what it has no use for
    "file convert -f raw -O qcow2 raw new": f"{SLOW} {SERVING} json hashlib fractions formats.qcow2.check",
    "file info -f qcow2 qcow2": f"{SLOW} {SERVING} formats.qcow2.check",
    "export --format qcow2 qcow2 --fd FD": f"{SLOW} {TLS} argparse ctypes pathlib vstore.transfer formats.luks "
    "formats.qcow2.create formats.qcow2.check",
}


@pytest.mark.parametrize("command", UNUSED)
def test_a_command_imports_nothing_that_it_has_no_use_for(tmp_path: Path, command: str) -> None:
    """To load such packages takes longer than to copy a small image, or than the first answer to a guest."""
    for name in ("raw", "qcow2"):
        assert main(["file", "create", "-f", name, str(tmp_path / name), "1M"]) == 0
    script = (
        "import sys; from api.cli import main; assert main(sys.argv[1:]) == 0;"
        f"print('FOUND', sorted(set({UNUSED[command]!r}.split()) & set(sys.modules)))"
    )
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        done = subprocess.run(
            [sys.executable, "-c", script, *command.replace("FD", str(ours.fileno())).split()],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=[ours.fileno()],
            check=False,
        )
    assert "FOUND []" in done.stdout, done.stdout + done.stderr


def test_an_image_is_converted_under_its_name_and_its_bytes_into_a_data_file(run: Command, world: World) -> None:
    assert run("image", "create", "disk", "1M") == 0
    assert run("image", "convert", "disk") != 0
    assert "give either INTO or --in-place" in run.err
    assert run("image", "convert", "disk", "--in-place", "--compress", "-o", "compression_type=zstd") == 0, run.err
    assert run.json("image", "show", "disk")["format"] == "qcow2"
    assert run("image", "convert", "disk", "--in-place", "-o", "data_file=d.data", "-o", "data_file_raw=on") == 0, (
        run.err
    )
    assert world.files() == ["d.data", "disk~1.qcow2"]


def test_a_secret_comes_from_a_file_or_a_pipe_and_is_not_printed(
    run: Command, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("formats.luks._ITERATIONS", 4000)
    (tmp_path / "key").write_bytes(b"two\nlines\n")
    assert run("secret", "set", "a", "--file", str(tmp_path / "key")) == 0, run.err
    assert (world.state / "secrets/a").read_bytes() == b"two\nlines\n"
    with (tmp_path / "key").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert run("secret", "set", "b") == 0, run.err
    assert (world.state / "secrets/b").read_bytes() == b"two"
    assert "two" not in run.out
    assert run("image", "create", "root", "1M", "--format", "luks", "--encrypt", "a") == 0, run.err
    assert run("image", "convert", "root", "copy", "--encrypt", "b") == 0, run.err
    assert run.json("image", "show", "copy")["secret"] == "b"
    assert run("image", "update", "copy", "--secret", "a") != 0
    assert "the secret does not open copy.qcow2" in run.err
    assert run("secret", "rm", "b") != 0
    assert "it opens default/copy" in run.err
    assert run("secret", "list") == 0
    assert "default/root" in run.out
    assert run("image", "delete", "copy") == 0
    assert run("secret", "rm", "b") == 0
    assert run("secret", "show", "b") != 0


def test_a_secret_is_asked_for_twice_at_a_terminal_and_not_shown(
    run: Command, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["typed", "typed"]
    monkeypatch.setattr("click.termui.hidden_prompt_func", lambda _prompt: answers.pop())
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        monkeypatch.setattr("api.cli.secret.sys.stdin.isatty", lambda: True)
        assert run("secret", "set", "a") == 0, run.err
    assert not answers
    assert (world.state / "secrets/a").read_bytes() == b"typed"


def test_the_doctor_examines_the_host_and_the_daemon(run: Command) -> None:
    findings = {each["check"]: each for each in run.json("doctor")["findings"]}  # type: ignore[attr-defined]
    assert findings["io_uring"]["verdict"] == "good"
    assert findings["daemon"]["found"].startswith("0.")
    assert run("doctor") == 0
    assert run.out.startswith("VERDICT")


def test_the_doctor_goes_on_without_a_daemon(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--url", f"unix://{tmp_path}/none", "doctor"]) == 0
    assert "vstore serve" in capsys.readouterr().out
