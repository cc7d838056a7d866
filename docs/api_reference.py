"""Writes the API reference, docs/api.md, from the client's docstrings; run it by ``make docs``.

griffe reads code and docstrings without importing them; what it finds becomes plain Markdown that
reads well as a file and on a code host. Generators that exist print every internal name as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import griffe

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "api.md"
SECTIONS: Final = {
    "Encoding photos": (
        "encoder.Encoder",
        "encoder.AsyncEncoder",
        "encoder.ServerInfo",
        "encoder.Tensor",
        "encoder.PhotoLike",
        "encoder.PhotoEncoder",
    ),
    "Matching people": (
        "engine.MatchingEngine",
        "index.Match",
        "engine.Explained",
        "planner.Plan",
        "engine.Added",
        "engine.Rejected",
        "engine.IndexInfo",
        "engine.Recall",
    ),
    "Going over to another model": (
        "reindex.reindex",
        "reindex.Reindexed",
        "reindex.NewModel",
        "reindex.Source",
        "reindex.photos_in",
        "reindex.forget_old",
    ),
    "Profiles and conditions": (
        "records.Profile",
        "records.StoredPhoto",
        "attributes.Value",
        "attributes.Condition",
        "attributes.Where",
        "photos.Photo",
    ),
    "Models and their pixels": (
        "manifest.Manifest",
        "preprocess.Preprocessing",
        "preprocess.preprocess",
    ),
}
_NOT_CALLED: Final = ("MatchingEngine", "PhotoEncoder")
_HEAD: Final = """\
# API reference

Generated from the docstrings by `make docs`; what is not listed here may change at any time. How to
use it is in [client.md](client.md).
"""
_WIDTH: Final = 100
_DOCSTRINGS: Final[griffe.GoogleOptions] = {
    "returns_multiple_items": False,
    "returns_named_value": False,
}
_HEADINGS: Final = {
    "parameters": "Arguments",
    "attributes": "Attributes",
    "returns": "Returns",
    "yields": "Yields",
    "raises": "Raises",
}


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(render(), encoding="utf-8")


def render() -> str:
    """The whole page."""
    package = griffe.load(
        "vibematch",
        search_paths=[str(ROOT / "client")],
        docstring_parser="google",
        docstring_options=_DOCSTRINGS,
        resolve_aliases=True,
    )
    public = _exported(package)
    parts = [_HEAD, _contents()]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [_object(package[name], name, public) for name in names]
    parts += ["## Errors\n", _errors(package["errors"])]
    return "\n".join(parts).rstrip() + "\n"


def _exported(package: Any) -> set[str]:
    """What ``from vibematch import ...`` gives: the keys of its table of homes."""
    return {str(key).strip("'\"") for key in package["_HOME"].value.keys}


def _contents() -> str:
    lines = []
    for title, names in SECTIONS.items():
        links = (f"[{_last(name)}](#{_last(name).lower()})" for name in names)
        lines.append(f"- {title}: {', '.join(links)}")
    return "\n".join([*lines, "- [Errors](#errors)", ""])


def _object(item: Any, path: str, public: set[str]) -> str:
    name = _last(path)
    home = "vibematch" if name in public else f"vibematch.{path.rpartition('.')[0]}"
    parts = [f"### {name}\n", f"`from {home} import {name}`\n"]
    item = item.final_target if item.is_alias else item
    if item.is_attribute:
        parts.append(_code(f"{name} = {item.value}"))
    elif item.is_function:
        parts.append(_code(_signature(item, name)))
    elif "NamedTuple" in map(str, item.bases):
        parts.append(_code(f"{name}({', '.join(_fields(item))})"))
    elif name not in _NOT_CALLED:
        parts.append(_code(_signature(_constructor(item), name)))
    parts.append(_text(item))
    if item.is_class:
        parts += [_member(member, name) for member in _members(item)]
    return "\n".join(parts)


def _constructor(item: Any) -> Any:
    return item.all_members["__init__"]


def _fields(item: Any) -> Iterator[str]:
    for name, member in item.members.items():
        if member.is_attribute and not name.startswith("_"):
            yield f"{name}: {member.annotation}"


def _members(item: Any) -> Iterator[Any]:
    """What a class lets others call or read, with what it inherits; fields are in its docstring."""
    for name, member in item.all_members.items():
        if not name.startswith("_") and (member.is_function or "property" in member.labels):
            yield member


def _member(member: Any, owner: str) -> str:
    name = f"{owner}.{member.name}"
    target = member.final_target if member.is_alias else member
    code = f"{name}: {target.annotation}" if target.is_attribute else _signature(target, name)
    return "\n".join([f"#### {name}\n", _code(code), _text(target)])


def _signature(function: Any, name: str) -> str:
    """One line if it fits, otherwise a line per argument."""
    is_async = "async " if "async" in function.labels else ""
    result = "" if function.name == "__init__" else f" -> {function.returns}"
    arguments = list(_arguments(function.parameters))
    line = f"{is_async}{name}({', '.join(arguments)}){result}"
    if len(line) <= _WIDTH:
        return line
    listed = "".join(f"    {argument},\n" for argument in arguments)
    return f"{is_async}{name}(\n{listed}){result}"


def _arguments(parameters: Iterable[Any]) -> Iterator[str]:
    starred = False
    for parameter in parameters:
        if parameter.name in {"self", "cls"}:
            continue
        if parameter.kind.value == "keyword-only" and not starred:
            starred = True
            yield "*"
        text = parameter.name
        if parameter.annotation is not None:
            text += f": {parameter.annotation}"
        if parameter.default is not None:
            text += f" = {parameter.default}"
        yield text


def _text(item: Any) -> str:
    if item.docstring is None and item.is_attribute:  # a type's definition says enough
        return ""
    if item.docstring is None:
        raise SystemExit(f"{item.path} has no docstring")
    parts = []
    for section in item.docstring.parsed:
        kind = section.kind.value
        if kind == "text":
            parts.append(f"{_markdown(section.value)}\n")
        elif kind in _HEADINGS:
            parts.append(f"{_HEADINGS[kind]}:\n")
            parts.append("\n".join(_entry(entry, kind) for entry in section.value) + "\n")
        else:
            raise SystemExit(f"{item.path}: a docstring section {kind!r} is not known here")
    return "\n".join(parts)


def _entry(entry: Any, kind: str) -> str:
    text = " ".join(_markdown(entry.description).split())
    if kind in {"returns", "yields"}:
        return f"- {text}"
    name = entry.annotation if kind == "raises" else entry.name
    return f"- `{name}`: {text}"


def _errors(module: Any) -> str:
    """The tree of the module's docstring, then each class."""
    parts = ["`from vibematch.errors import ...`\n", _markdown(module.docstring.value) + "\n"]
    for name, item in module.members.items():
        if not item.is_alias and item.is_class:
            parts.append(f"### {name}\n\n{_text(item)}")
    return "\n".join(parts)


def _markdown(text: str) -> str:
    """The little reStructuredText that docstrings here use, as Markdown."""
    text = re.sub(r":\w+:`[~.]?([^`]+)`", r"`\1`", text)
    text = text.replace("``", "`")
    return re.sub(r"\n::\n\n((?:    .*\n|\n)+)", _block, text + "\n").strip()


def _block(match: re.Match[str]) -> str:
    lines = (line.removeprefix("    ") for line in match[1].strip("\n").splitlines())
    return "\n```\n" + "\n".join(lines) + "\n```\n\n"


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _last(path: str) -> str:
    return path.rpartition(".")[2]


if __name__ == "__main__":
    main()
