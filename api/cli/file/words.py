"""What a verb of `vstore file` prints for a person; with --output json it prints what qemu-img would."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from api.cli.output import Column, emit_json, emit_list, emit_object
from vstore.sizes import format_size


def emit_info(info: Mapping[str, Any], output: str) -> None:
    """One image."""
    if output == "json":
        emit_json(info)
    else:
        emit_object(_fields(info), as_json=False)


def emit_chain(infos: Sequence[Mapping[str, Any]], output: str) -> None:
    """An image and its parents."""
    if output == "json":
        emit_json(list(infos))
        return
    for number, info in enumerate(infos):
        if number:
            click.echo()
        emit_info(info, output)


def _fields(info: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "image": info["filename"],
        "format": info["format"],
        "virtual size_bytes": info["virtual-size"],
        "disk size_bytes": info["actual-size"],
    }
    if "cluster-size" in info:
        found["cluster size_bytes"] = info["cluster-size"]
    if "backing-filename" in info:
        found["backing file"] = f"{info['backing-filename']} ({info.get('backing-filename-format', 'format unsaid')})"
    if info.get("dirty-flag"):
        found["dirty"] = True
    for name, value in info.get("format-specific", {}).get("data", {}).items():
        found[name.replace("-", " ")] = _named(value)
    if "snapshots" in info:
        found["snapshots"] = [f"{each['id']} ({each['name']})" for each in info["snapshots"]]
    return found


def _named(value: Any) -> Any:
    """Of bitmaps only the names."""
    return [each["name"] for each in value] if isinstance(value, list) else value


def emit_map(rows: Sequence[Mapping[str, Any]], output: str) -> None:
    """The whole map as JSON; for a person what lies somewhere."""
    if output == "json":
        emit_json(list(rows))
        return
    columns: tuple[Column, ...] = (
        ("OFFSET", lambda row: f"{row['start']:#x}"),
        ("LENGTH", lambda row: f"{row['length']:#x}"),
        ("DEPTH", lambda row: str(row["depth"])),
        ("MAPPED TO", lambda row: "compressed" if row["compressed"] else f"{row['offset']:#x}"),
        ("FILE", lambda row: str(row.get("filename", "-"))),
    )
    emit_list([row for row in rows if row["data"]], columns, as_json=False)


def emit_snapshots(snapshots: Sequence[Mapping[str, Any]], output: str) -> None:
    if output == "json":
        emit_json(list(snapshots))
        return
    from datetime import datetime

    columns: tuple[Column, ...] = (
        ("ID", lambda row: str(row["id"])),
        ("NAME", lambda row: str(row["name"])),
        ("VM STATE", lambda row: format_size(row["vm-state-size"])),
        ("TAKEN", lambda row: datetime.fromtimestamp(row["date-sec"]).strftime("%Y-%m-%d %H:%M:%S")),
    )
    emit_list(snapshots, columns, as_json=False)


def emit_bitmaps(bitmaps: Sequence[Mapping[str, Any]], output: str) -> None:
    if output == "json":
        emit_json(list(bitmaps))
        return
    columns: tuple[Column, ...] = (
        ("NAME", lambda row: str(row["name"])),
        ("GRANULARITY", lambda row: format_size(row["granularity"])),
        ("FLAGS", lambda row: ", ".join(row["flags"])),
    )
    emit_list(bitmaps, columns, as_json=False)


def check_sentences(told: Mapping[str, Any], findings: Sequence[str]) -> list[str]:
    """What was found, what was repaired, and what is left."""
    fixed = {name: told.get(f"{name}-fixed", 0) for name in ("corruptions", "leaks")}
    left = {name: told.get(name, 0) for name in ("corruptions", "leaks")}
    sentences = list(findings)
    if any(fixed.values()):
        sentences.append(f"repaired: {fixed['corruptions']} corruptions, {fixed['leaks']} leaked clusters")
    if any(left.values()):
        sentences.append(f"left: {left['corruptions']} corruptions, {left['leaks']} leaked clusters")
    else:
        sentences.append("no errors are left" if any(fixed.values()) else "no errors were found")
    if told.get("total-clusters"):
        allocated, total = told.get("allocated-clusters", 0), told["total-clusters"]
        of = {name: told.get(f"{name}-clusters", 0) / max(1, allocated) for name in ("fragmented", "compressed")}
        sentences.append(
            f"{allocated} of {total} clusters allocated ({allocated / total:.1%}), "
            f"{of['fragmented']:.1%} of them fragmented, {of['compressed']:.1%} compressed"
        )
    return sentences
