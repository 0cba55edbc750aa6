"""A report as one HTML page that needs no network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

PARTS = {"/*STYLE*/": "page.css", "/*LAYOUT*/": "dagre.min.js", "/*SCRIPT*/": "page.js"}
"""What is put into ``page.html``, and where."""


def page(data: Mapping[str, Any]) -> str:
    """The page of a report. data: its JSON form, with `groups` of refusals and `coverage`."""
    folder = files(__package__)
    text = (folder / "page.html").read_text(encoding="utf-8")
    text = text.replace("{{title}}", html.escape(f"{data['model'] or 'model'}: what reparamkit merged"))
    for mark, name in PARTS.items():
        text = text.replace(mark, (folder / name).read_text(encoding="utf-8"))
    return text.replace("/*DATA*/", _script_safe(json.dumps(data, allow_nan=False, separators=(",", ":"))))


def _script_safe(text: str) -> str:
    """JSON that cannot end the script element it stands in, whatever a layer is called."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
