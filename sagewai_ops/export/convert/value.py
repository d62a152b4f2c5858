"""Convert one stored value of SQLite to a field of PostgreSQL's binary format.

There is one function for each type of the target. It takes the value as the exporter's connections
return it (`bytearray` is text, `bytes` is a blob, numbers are numbers; NULL is handled by the
caller) and returns the field without its length, or raises `RefusedError`: nothing is cut, rounded
or guessed. These functions define which values PostgreSQL accepts, for `export-to-postgres` and
`db check` alike. `batch` does the same for whole columns and falls back to them; `repair` has the
documented repairs.

Source: the functions *_recv and *_in of PostgreSQL's src/backend/utils/adt.
"""

import json
import re
import struct
import uuid
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import TypeAlias

Stored: TypeAlias = bytearray | bytes | int | float

TEXT_OID = 25  # pg_type.dat
LARGEST_JSONB_TEXT = 0x0FFFFFFF  # bytes of one string inside jsonb; jsonb.h, JENTRY_OFFLENMASK
LARGEST_FIELD = 0x3FFFFFFF - 64  # bytes; MaxAllocSize of memutils.h, less a header
# Digits of a numeric, as which jsonb stores numbers, before and after the point; numeric.c.
NUMERIC_DIGITS = 131_072
NUMERIC_SCALE = 16_383
# Ids that are not UUIDs are hashed under this name, so that references remain references.
ID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://sagewai-ops.invalid/ids-that-are-no-uuids")

_EPOCH_DAY = date(2000, 1, 1).toordinal()
_DAY = 86_400_000_000  # microseconds
_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?"
    r"(?:\s*(Z|[+-]\d\d(?::?\d\d(?::?\d\d)?)?))?)?",
    re.ASCII | re.IGNORECASE,
)
# As uuid_in reads one: in braces or not, a hyphen after any four digits or none; uuid.c.
_UUID = re.compile(r"(\{)?[0-9a-f]{4}(?:-?[0-9a-f]{4}){7}(?(1)\})", re.ASCII | re.IGNORECASE)
_SHORT_ID = re.compile(r"[0-9a-f]{12}")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
# As boolin reads them: any beginning of a word that is not ambiguous; bool.c.
_BOOLEANS = {
    word[:length]: word in ("true", "yes", "on", "1")
    for word, shortest in {
        "true": 1, "false": 1, "yes": 1, "no": 1, "on": 2, "off": 2, "1": 1, "0": 1
    }.items()
    for length in range(shortest, len(word) + 1)
}  # fmt: skip
_SPACES = " \t\n\v\f\r"


class RefusedError(ValueError):
    """A value that the target's type cannot store unchanged.

    Args:
        kind: One of the kinds in docs/export.md, such as `nul`.
        detail: What is wrong, without the value.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


def text(value: Stored, limit: int | None = None) -> bytes:
    """Convert a text unchanged, a number to its shortest text.

    Args:
        limit: Characters, of a varchar.
    """
    raw = _text_bytes(value)
    if b"\0" in raw:
        raise RefusedError("nul", "contains a NUL character")
    decoded = _decode(raw)
    if limit is not None and len(decoded) > limit:
        raise RefusedError("too-long", f"{len(decoded)} characters, at most {limit} fit")
    if len(raw) > LARGEST_FIELD:
        raise RefusedError("too-large", f"{len(raw)} bytes in one value")
    return raw


def json_text(value: Stored) -> bytes:
    """Convert a document to json, which stores its text unchanged."""
    raw = _text_bytes(value)
    parse_json(_decode(raw))
    if len(raw) > LARGEST_FIELD:
        raise RefusedError("too-large", f"{len(raw)} bytes in one document")
    return raw


def jsonb(value: Stored) -> bytes:
    """Convert a document to jsonb, which accepts fewer documents than json does."""
    raw = _text_bytes(value)
    decoded = _decode(raw)
    parse_json(decoded, numbers=True)
    check_escapes(decoded)
    if len(raw) > LARGEST_JSONB_TEXT:
        raise RefusedError("too-large", f"{len(raw)} bytes in one document")
    return b"\x01" + raw


def text_array(value: Stored, *, nullable: bool = False) -> bytes | None:
    """Convert a JSON list of strings to text[].

    Returns:
        None for the JSON null in a nullable column; in others it becomes an empty list.
    """
    elements = parse_json(_decode(_text_bytes(value)))
    if elements is None and nullable:
        return None
    if elements is None:
        elements = []
    if not isinstance(elements, list):
        raise RefusedError("not-a-list", "not a JSON list")
    if not elements:
        return struct.pack(">iii", 0, 0, TEXT_OID)
    fields = [struct.pack(">iiiii", 1, 0, TEXT_OID, len(elements), 1)]
    for element in elements:
        if not isinstance(element, str):
            raise RefusedError("list-element", "an element is not a string")
        if "\0" in element:
            raise RefusedError("nul", "an element contains a NUL character")
        try:
            encoded = element.encode()
        except UnicodeEncodeError as error:
            raise RefusedError("json-surrogate", "an unpaired surrogate") from error
        fields += (struct.pack(">i", len(encoded)), encoded)
    return b"".join(fields)


def uuid_bytes(value: Stored) -> bytes:
    """Convert an id to uuid: a UUID to itself, any other id as `uuid_of` maps it."""
    if not isinstance(value, bytearray):
        raise RefusedError("storage-class", f"{_storage_class(value)}, expected an id")
    return uuid_of(_decode(value)).bytes


def uuid_of(identifier: str) -> uuid.UUID:
    """Map an id to a UUID, equal ids to equal UUIDs.

    Every form of a UUID that PostgreSQL reads is that UUID. Twelve hexadecimal digits, the ids of
    Sagewai's harness rows, become the last twelve of a UUID that is otherwise zero; any other text
    is hashed.
    """
    if _UUID.fullmatch(identifier):
        return uuid.UUID(identifier)
    if _SHORT_ID.fullmatch(identifier):
        return uuid.UUID(int=int(identifier, 16))
    return uuid.uuid5(ID_NAMESPACE, identifier)


def timestamp(value: Stored) -> bytes:
    """Convert a timestamp to timestamptz; without an offset it is UTC, as Sagewai writes it."""
    if not isinstance(value, bytearray):
        raise RefusedError("storage-class", f"{_storage_class(value)}, expected a timestamp")
    return struct.pack(">q", microseconds(_decode(value)))


def microseconds(moment: str) -> int:
    """Return a timestamp as microseconds since 2000-01-01 00:00 UTC, PostgreSQL's own count.

    As in PostgreSQL, 24:00:00 is the start of the next day and second 60 that of the next minute.
    """
    match = _TIMESTAMP.fullmatch(moment)
    if not match:
        raise RefusedError("not-a-timestamp", "not a date and time")
    year, month, day, hour, minute, second = (int(match[part] or 0) for part in range(1, 7))
    fraction = (match[7] or "").ljust(9, "0")
    try:
        days = date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError as error:
        raise RefusedError("not-a-timestamp", "not a day of the calendar") from error
    within = ((hour * 60 + minute) * 60 + second) * 1_000_000 + int(fraction[:6])
    if minute > 59 or second > 60 or within + bool(int(fraction[6:])) > _DAY:
        raise RefusedError("not-a-timestamp", "not a time of day")
    if int(fraction[6:]):
        raise RefusedError("timestamp-precision", "finer than a microsecond")
    result = days * _DAY + within - _offset(match[8] or "Z")
    if not -730_119 <= result // _DAY <= 2_921_939:
        raise RefusedError("not-a-timestamp", "not within the years 1 to 9999")
    return result


def boolean(value: Stored) -> bytes:
    """Convert 0, 1 or a word that PostgreSQL reads as a boolean."""
    if isinstance(value, int) and value in (0, 1):
        return b"\x01" if value else b"\x00"
    if isinstance(value, bytearray):
        truth = _BOOLEANS.get(_decode(value).strip(_SPACES).lower())
        if truth is not None:
            return b"\x01" if truth else b"\x00"
    raise RefusedError("not-a-boolean", f"{_storage_class(value)} that is neither true nor false")


def integer(value: Stored, size: int) -> bytes:
    """Convert an integer to one of `size` bytes: 2, 4 or 8."""
    if not isinstance(value, int):
        raise RefusedError("storage-class", f"{_storage_class(value)}, expected an integer")
    try:
        return value.to_bytes(size, "big", signed=True)
    except OverflowError as error:
        raise RefusedError("out-of-range", f"does not fit into {size * 8} bits") from error


def double(value: Stored) -> bytes:
    """Convert a number to float8; infinities are numbers."""
    if isinstance(value, (bytearray, bytes)):
        raise RefusedError("storage-class", f"{_storage_class(value)}, expected a number")
    if isinstance(value, int) and int(float(value)) != value:
        raise RefusedError("out-of-range", "an integer that float8 would round")
    return struct.pack(">d", value)


def describe_conversion(kind: str, value: Stored) -> tuple[str, str] | None:
    """Describe how PostgreSQL's value differs in form from an accepted one.

    Args:
        kind: The name of the target's type; its conversion accepts the value.

    Returns:
        Kind and description; None where the form is the same.
    """
    if not isinstance(value, bytearray):
        return None
    written = value.decode()
    if kind == "boolean":
        return "boolean-word", "a word that becomes a boolean; Sagewai on SQLite reads it as true"
    if kind == "uuid" and not _UUID.fullmatch(written):
        return "derived-uuid", "an id that becomes a UUID derived from it"
    if kind == "uuid" and written != str(uuid_of(written)):
        return "uuid-form", "a UUID that PostgreSQL writes in another form"
    if kind == "timestamptz" and (match := _TIMESTAMP.fullmatch(written)):
        if match[4] == "24" or match[6] == "60":
            return "rolled-timestamp", "24:00:00 or second 60, which becomes the next day or minute"
        if match[8] and _offset(match[8]):
            return "utc-offset", "a timestamp with an offset, which becomes UTC"
    if kind == "text[]" and written.strip() == "null":
        return "null-list", "JSON null, which becomes NULL or an empty list"
    return None


def parse_json(document: str, *, numbers: bool = False) -> object:
    """Parse a JSON document as strictly as PostgreSQL does.

    Args:
        numbers: Check also that every number fits into a numeric, as jsonb needs.

    Returns:
        The document with every number replaced by another: no caller needs them.
    """
    try:
        return json.loads(
            document,
            parse_constant=_refuse_constant,
            parse_float=_check_number if numbers else len,
            parse_int=_check_number if numbers else len,
        )
    except RefusedError:
        raise
    except RecursionError as error:
        raise RefusedError("json-depth", "nested too deeply to be read") from error
    except ValueError as error:
        raise RefusedError("not-json", "not a JSON document") from error


def check_escapes(document: str) -> None:
    """Refuse escapes that json stores as text and jsonb cannot: U+0000, unpaired surrogates."""
    high_end = -1  # where the preceding high surrogate ends
    for match in _ESCAPE.finditer(document):
        code = int(match[1], 16) if match[1] else 0xFFFF
        is_low = 0xDC00 <= code < 0xE000
        if (high_end >= 0 and not (is_low and match.start() == high_end)) or (
            is_low and high_end < 0
        ):
            raise RefusedError("json-surrogate", "an unpaired surrogate")
        if code == 0:
            raise RefusedError("json-nul", "an escaped NUL character")
        high_end = match.end() if 0xD800 <= code < 0xDC00 else -1
    if high_end >= 0:
        raise RefusedError("json-surrogate", "an unpaired surrogate")


def is_numeric(number: str) -> bool:
    """Return whether a number of a JSON document fits into PostgreSQL's numeric."""
    try:
        value = Decimal(number)
    except InvalidOperation:
        return False
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or -exponent > NUMERIC_SCALE:
        return False
    return value.is_zero() or value.adjusted() < NUMERIC_DIGITS


def _check_number(number: str) -> int:
    if not is_numeric(number):
        raise RefusedError("json-number", "a number outside the range of jsonb")
    return 0


def _refuse_constant(name: str) -> object:
    raise RefusedError("json-nan", f"contains {name}, which is not JSON")


def _text_bytes(value: Stored) -> bytes:
    """Return the bytes of a text, or of a number's shortest text."""
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, bytes):
        raise RefusedError("storage-class", f"{_storage_class(value)}, expected text")
    return repr(value).encode()


def _decode(raw: bytes | bytearray) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RefusedError("invalid-utf8", "not UTF-8") from error


def _offset(zone: str) -> int:
    """Parse `Z`, `+05`, `+0545` or `+05:45:00` as microseconds east of UTC."""
    if zone in "Zz":
        return 0
    digits = zone[1:].replace(":", "").ljust(6, "0")
    hours, minutes, seconds = (int(digits[start : start + 2]) for start in (0, 2, 4))
    if hours > 23 or minutes > 59 or seconds > 59:
        raise RefusedError("not-a-timestamp", "not an offset from UTC")
    east = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000
    return -east if zone[0] == "-" else east


def _storage_class(value: Stored) -> str:
    names: dict[type, str] = {bytearray: "text", bytes: "a blob", int: "an integer"}
    return names.get(type(value), "a real number")
