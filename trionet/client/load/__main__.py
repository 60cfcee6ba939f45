"""``python -m trionet.client.load URL``: `trionet load` where nothing but trionet is installed. Same options."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import attrs
import trio

from trionet.client.load.coordinator import run_load
from trionet.client.load.options import LoadOptions, parse_duration
from trionet.client.load.report import check_path, write_report
from trionet.client.load.result import Point, Result, to_json
from trionet.client.load.text import point_line, result_text
from trionet.errors import ConfigurationError

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """All options of `LoadOptions`, and those of the output."""
    made = argparse.ArgumentParser(prog="trionet load", description="Put load on a WebSocket server.")
    for field in attrs.fields(LoadOptions):
        name = field.name if field.name == "url" else f"--{field.name.replace('_', '-')}"
        made.add_argument(name, help=field.metadata["help"].replace("%", "%%"), **_kind(field))
    made.add_argument("--json", action="store_true", help="print the result as one JSON document")
    made.add_argument("--json-lines", action="store_true", help="print a JSON object a second")
    made.add_argument(
        "--report", action="append", default=[], help="write a report: FILE.html, FILE.svg or FILE.json"
    )
    return made


def _kind(field: Any) -> dict[str, Any]:
    text = str(field.type)
    if text == "bool":
        return {"action": "store_true"}
    kind: Any = str
    if field.metadata.get("duration"):
        kind = parse_duration
    elif "float" in text:
        kind = float
    elif "int" in text:
        kind = int
    if text.startswith("tuple"):
        return {"action": "append", "type": kind, "default": []}
    return {"type": kind, "default": field.default} if field.name != "url" else {}


def _print(text: str, stream: Any = None) -> None:
    stream = stream or sys.stdout
    stream.write(text + "\n")
    stream.flush()


def main(argv: list[str] | None = None) -> int:
    """Run it; return the exit code (0 ok, 1 failed, 2 usage, 130 interrupted)."""
    arguments = vars(parser().parse_args(argv))
    outputs = {name: arguments.pop(name) for name in ("json", "json_lines", "report")}

    def show(point: Point, result: Result) -> None:
        if outputs["json_lines"]:
            _print(json.dumps(point))
        else:
            _print(point_line(point, result), sys.stderr)

    try:
        for name in outputs["report"]:
            check_path(name)
        given: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        options = LoadOptions(**given)
        command = ["trionet", "load", *(sys.argv[1:] if argv is None else argv)]

        async def run() -> Result:
            return await run_load(options, command=command, show=show)

        result = trio.run(run)
    except (ConfigurationError, OSError) as error:
        _print(f"trionet load: {error}", sys.stderr)
        return 2
    if outputs["json"]:
        _print(to_json(result))
    elif not outputs["json_lines"]:
        _print(result_text(result))
    for name in outputs["report"]:
        write_report(result, name)
    return {"passed": 0, "interrupted": 130}.get(result["outcome"], 1)


if __name__ == "__main__":
    sys.exit(main())
