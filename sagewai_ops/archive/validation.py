"""Validation of the fields of `snapshot.json` and `manifest.json`, without the entries.

Anyone can write an archive with correct checksums. A field must have the type that docs/format.md
defines, or the archive is refused, so that the code that reads a field can rely on it. Missing and
unknown fields are accepted: formats grow.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sagewai_ops.errors import DamagedError

Shape = Callable[[object], bool]


def is_text(value: object) -> bool:
    """Check whether a value is a string that has bytes: JSON allows other surrogates (PEP 383)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _list_of(shape: Shape, *, least: int = 0) -> Shape:
    def check(value: object) -> bool:
        return isinstance(value, list) and len(value) >= least and all(map(shape, value))

    return check


def _map_of(shape: Shape) -> Shape:
    def check(value: object) -> bool:
        return isinstance(value, dict) and all(
            is_text(name) and shape(item) for name, item in value.items()
        )

    return check


def _record(*, nullable: bool = False, **fields: Shape) -> Shape:
    """Return the shape of an object with all of these fields, and possibly others."""

    def check(value: object) -> bool:
        if value is None:
            return nullable
        return isinstance(value, dict) and all(
            name in value and shape(value[name]) for name, shape in fields.items()
        )

    return check


def is_mac(value: object) -> bool:
    """Check whether a value is an HMAC in hex."""
    return isinstance(value, str) and len(value) == _MAC_DIGITS and set(value) <= _HEX_DIGITS


_MAC_DIGITS = 64
_HEX_DIGITS = frozenset("0123456789abcdef")
_HEADER: Mapping[str, Shape] = {
    "sequence": _is_count,
    "created_at": is_text,
    "home": is_text,
    "home_id": is_text,
    "host": is_text,
    "tool_version": is_text,
    "python_version": is_text,
    "application_version": is_text,
    "key_custody": lambda value: value in ("exclude", "sealed"),
    "key_fingerprint": is_text,
    "schema_level": is_text,
    "engine": lambda value: value in ("sqlite", "postgresql"),
    "without_database": _is_flag,
    "tags": _list_of(is_text),
    "previous": _record(id=is_text, mac=is_mac),
}
_MANIFEST: Mapping[str, Shape] = {
    "id": is_text,
    "database": _record(
        nullable=True,
        page_size=_is_count,
        page_count=_is_count,
        schema_level=is_text,
        schema_state=is_text,
        unknown_tables=_list_of(is_text),
        integrity=_list_of(is_text, least=1),
        foreign_key_violations=_is_count,
        foreign_key_tables=_list_of(is_text),
        tables=_map_of(_is_count),
    ),
    "postgres": _record(
        nullable=True,
        version=is_text,
        database=is_text,
        schema=is_text,
        revision=_list_of(is_text),
        encoding=is_text,
        text_encoding=is_text,
        collation=is_text,
        ctype=is_text,
        standby=_is_flag,
        lsn=is_text,
        extensions=_map_of(is_text),
        tables=_list_of(
            _record(
                schema=is_text,
                name=is_text,
                columns=_list_of(is_text),
                rows=_is_count,
                bytes=_is_count,
                sha256=is_mac,
                stem=is_text,
                members=_is_count,
            )
        ),
        sequences=_list_of(
            _record(schema=is_text, name=is_text, last_value=_is_number, is_called=_is_flag)
        ),
        excluded=_list_of(is_text),
        unstored=_list_of(_record(kind=is_text, name=is_text, reason=is_text, is_data=_is_flag)),
        moments=_map_of(is_text),
        distance_ms=_is_number,
    ),
    "keys": _record(
        total=_is_count,
        opened=_is_count,
        by_key=_list_of(_record(source=is_text, fingerprint=is_text, values=_is_count)),
        unopened=_list_of(_record(place=is_text, where=is_text, reason=is_text)),
    ),
    "left_out": _list_of(_record(path=is_text, reason=is_text, detail=is_text)),
    "unstable": _list_of(is_text),
    "followed": _map_of(is_text),
    "external": _map_of(is_text),
    "quality": _record(
        complete=_is_flag,
        sound=_is_flag,
        plausible=_is_flag,
        omitted=_list_of(_record(rule=is_text, name=is_text, text=is_text)),
        damaged=_list_of(_record(rule=is_text, name=is_text, text=is_text)),
        accepted=_list_of(_record(rule=is_text, name=is_text, text=is_text)),
        changes=_list_of(is_text),
        compared_with=is_text,
        change_accepted=_is_flag,
    ),
    "home": _record(mode=is_text, uid=_is_count, gid=_is_count, mtime_ns=_is_number),
}


def check_header(facts: Mapping[str, Any], name: str) -> None:
    """Check the fields of `snapshot.json`.

    Raises:
        DamagedError: A field has another shape.
    """
    _check(_HEADER, facts, name)


def check_manifest(facts: Mapping[str, Any], name: str) -> None:
    """Check the fields of `manifest.json`, without the entries.

    Raises:
        DamagedError: A field has another shape.
    """
    _check(_MANIFEST, facts, name)


def _check(shapes: Mapping[str, Shape], facts: Mapping[str, Any], name: str) -> None:
    for field, shape in shapes.items():
        if field in facts and not shape(facts[field]):
            raise DamagedError(f"{name}: field {field}: invalid")
