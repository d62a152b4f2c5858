"""Values, one at a time: what SQLite stores becomes a field of PostgreSQL's binary format.

One small function for each type of the target. It takes what is stored, as the exporter's
connections give it (`bytearray` is text, `bytes` is a blob, numbers are numbers; NULL never comes
here), and returns the field without its length, or raises `RefusedError`: nothing is cut, rounded
or guessed. `mends` has the documented repairs. These functions are the meaning of a conversion;
`encoders` does the same for whole columns at a time and falls back to them.

Source: the functions *_recv of PostgreSQL's src/backend/utils/adt.
"""

import json
import re
import struct
import uuid
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import TypeAlias

from sagewai_ops.schema.json_values import NUMERIC_DIGITS, NUMERIC_SCALE

Stored: TypeAlias = bytearray | bytes | int | float

TEXT_OID = 25  # pg_type.dat
LARGEST_JSONB_TEXT = 0x0FFFFFFF  # bytes of one string inside jsonb; jsonb.h, JENTRY_OFFLENMASK
LARGEST_FIELD = 0x3FFFFFFF - 64  # bytes; MaxAllocSize of memutils.h, less a header
# Ids that are not UUIDs are hashed under this name, so that references stay references.
ID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://sagewai-ops.invalid/ids-that-are-no-uuids")

_EPOCH_DAY = date(2000, 1, 1).toordinal()
_DAY = 86_400_000_000  # microseconds
_MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?"
    r"(?:\s*(Z|[+-]\d\d(?::?\d\d(?::?\d\d)?)?))?)?",
    re.ASCII | re.IGNORECASE,
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SHORT_ID = re.compile(r"[0-9a-f]{12}")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_BOOLEANS = {
    "0": False,
    "1": True,
    "f": False,
    "t": True,
    "false": False,
    "true": True,
}


class RefusedError(ValueError):
    """A value that the target's type cannot hold as it is.

    Args:
        kind: One of the words of docs/export.md, such as `nul`.
        detail: What is wrong, without the value.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


def text(value: Stored, limit: int | None = None) -> bytes:
    """Give a text as it is; a number becomes its shortest spelling.

    Args:
        limit: Characters, of a varchar.
    """
    raw = _spelled(value)
    if b"\0" in raw:
        raise RefusedError("nul", "holds a NUL character")
    decoded = _decoded(raw)
    if limit is not None and len(decoded) > limit:
        raise RefusedError("too-long", f"{len(decoded)} characters, {limit} fit")
    if len(raw) > LARGEST_FIELD:
        raise RefusedError("too-large", f"{len(raw)} bytes in one value")
    return raw


def json_text(value: Stored) -> bytes:
    """Give a document as it is written, for a column of type json."""
    raw = _spelled(value)
    parse(_decoded(raw))
    if len(raw) > LARGEST_FIELD:
        raise RefusedError("too-large", f"{len(raw)} bytes in one document")
    return raw


def jsonb(value: Stored) -> bytes:
    """Give a document for a column of type jsonb, which takes less than json does."""
    raw = _spelled(value)
    decoded = _decoded(raw)
    parse(decoded, numbers=True)
    check_escapes(decoded)
    if len(raw) > LARGEST_JSONB_TEXT:
        raise RefusedError("too-large", f"{len(raw)} bytes in one document")
    return b"\x01" + raw


def text_array(value: Stored, *, nullable: bool = False) -> bytes | None:
    """Give a JSON list of strings as text[].

    Returns:
        None for the JSON null, which means no list: SQL NULL where that may be, else no elements.
    """
    listed = parse(_decoded(_spelled(value)))
    if listed is None and nullable:
        return None
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        raise RefusedError("not-a-list", "is no JSON list")
    if not listed:
        return struct.pack(">iii", 0, 0, TEXT_OID)
    fields = [struct.pack(">iiiii", 1, 0, TEXT_OID, len(listed), 1)]
    for element in listed:
        if not isinstance(element, str):
            raise RefusedError("list-element", "an element is no string")
        if "\0" in element:
            raise RefusedError("nul", "an element holds a NUL character")
        try:
            encoded = element.encode()
        except UnicodeEncodeError as error:
            raise RefusedError("json-surrogate", "half a surrogate pair") from error
        fields += (struct.pack(">i", len(encoded)), encoded)
    return b"".join(fields)


def uuid_bytes(value: Stored) -> bytes:
    """Give an id as uuid: a UUID as itself, anything else by `uuid_of`."""
    if not isinstance(value, bytearray):
        raise RefusedError("storage-class", f"{_class_of(value)} where an id should be")
    return uuid_of(_decoded(value)).bytes


def uuid_of(identifier: str) -> uuid.UUID:
    """Map an id to a UUID, the same id always to the same UUID.

    Twelve hexadecimal digits, which Sagewai gives its harness rows, become the last twelve of a
    UUID that is otherwise zero; any other text is hashed.
    """
    if _UUID.fullmatch(identifier):
        return uuid.UUID(identifier)
    if _SHORT_ID.fullmatch(identifier):
        return uuid.UUID(int=int(identifier, 16))
    return uuid.uuid5(ID_NAMESPACE, identifier)


def timestamp(value: Stored) -> bytes:
    """Give a moment as timestamptz; without an offset it is UTC, as Sagewai means it."""
    if not isinstance(value, bytearray):
        raise RefusedError("storage-class", f"{_class_of(value)} where a moment should be")
    return struct.pack(">q", microseconds(_decoded(value)))


def microseconds(moment: str) -> int:
    """Read a moment as microseconds since 2000-01-01 00:00 UTC, PostgreSQL's own count."""
    match = _MOMENT.fullmatch(moment)
    if not match:
        raise RefusedError("not-a-timestamp", "is no date and time")
    year, month, day, hour, minute, second = (int(match[part] or 0) for part in range(1, 7))
    fraction = (match[7] or "").ljust(9, "0")
    try:
        days = date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError as error:
        raise RefusedError("not-a-timestamp", "is no day of the calendar") from error
    if hour > 23 or minute > 59 or second > 59:
        raise RefusedError("not-a-timestamp", "is no time of a day")
    if int(fraction[6:]):
        raise RefusedError("timestamp-precision", "is finer than a microsecond")
    within = ((hour * 60 + minute) * 60 + second) * 1_000_000 + int(fraction[:6])
    result = days * _DAY + within - _offset(match[8] or "Z")
    if not -730_119 <= result // _DAY <= 2_921_939:
        raise RefusedError("not-a-timestamp", "is not within the years 1 to 9999")
    return result


def boolean(value: Stored) -> bytes:
    """Give a truth value: 0 and 1, or the words that column defaults leave as text."""
    if isinstance(value, int) and value in (0, 1):
        return b"\x01" if value else b"\x00"
    if isinstance(value, bytearray):
        truth = _BOOLEANS.get(_decoded(value).lower())
        if truth is not None:
            return b"\x01" if truth else b"\x00"
    raise RefusedError("not-a-boolean", f"{_class_of(value)} that is neither true nor false")


def integer(value: Stored, size: int) -> bytes:
    """Give an integer of `size` bytes: 2, 4 or 8."""
    if not isinstance(value, int):
        raise RefusedError("storage-class", f"{_class_of(value)} where an integer should be")
    try:
        return value.to_bytes(size, "big", signed=True)
    except OverflowError as error:
        raise RefusedError("out-of-range", f"does not fit into {size * 8} bits") from error


def double(value: Stored) -> bytes:
    """Give a number as float8; infinities are numbers."""
    if isinstance(value, (bytearray, bytes)):
        raise RefusedError("storage-class", f"{_class_of(value)} where a number should be")
    if isinstance(value, int) and int(float(value)) != value:
        raise RefusedError("out-of-range", "is an integer that float8 would round")
    return struct.pack(">d", value)


def parse(document: str, *, numbers: bool = False) -> object:
    """Read a JSON document as strictly as PostgreSQL does.

    Args:
        numbers: Check also that every number fits into a numeric, as jsonb needs.

    Returns:
        The document with every number replaced by some other: nobody here needs them.
    """
    try:
        return json.loads(
            document,
            parse_constant=_refuse_constant,
            parse_float=_checked if numbers else len,
            parse_int=_checked if numbers else len,
        )
    except RefusedError:
        raise
    except RecursionError as error:
        raise RefusedError("json-depth", "is nested too deeply to be read") from error
    except ValueError as error:
        raise RefusedError("not-json", "is no JSON document") from error


def check_escapes(document: str) -> None:
    """Refuse what json keeps as it is written and jsonb cannot hold: U+0000, half a pair."""
    half_pair = -1  # where the high half ends
    for match in _ESCAPE.finditer(document):
        code = int(match[1], 16) if match[1] else 0xFFFF
        is_low = 0xDC00 <= code < 0xE000
        if (half_pair >= 0 and not (is_low and match.start() == half_pair)) or (
            is_low and half_pair < 0
        ):
            raise RefusedError("json-surrogate", "half a surrogate pair")
        if code == 0:
            raise RefusedError("json-nul", "an escaped NUL character")
        half_pair = match.end() if 0xD800 <= code < 0xDC00 else -1
    if half_pair >= 0:
        raise RefusedError("json-surrogate", "half a surrogate pair")


def is_numeric(number: str) -> bool:
    """Tell whether a number of a JSON document fits into PostgreSQL's numeric."""
    try:
        value = Decimal(number)
    except InvalidOperation:
        return False
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or -exponent > NUMERIC_SCALE:
        return False
    return value.is_zero() or value.adjusted() < NUMERIC_DIGITS


def _checked(number: str) -> int:
    if not is_numeric(number):
        raise RefusedError("json-number", "a number beyond what jsonb holds")
    return 0


def _refuse_constant(name: str) -> object:
    raise RefusedError("json-nan", f"the word {name}, which is no JSON")


def _spelled(value: Stored) -> bytes:
    """Give the bytes of a text, or of a number's shortest spelling."""
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, bytes):
        raise RefusedError("storage-class", f"{_class_of(value)} where text should be")
    return repr(value).encode()


def _decoded(raw: bytes | bytearray) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RefusedError("invalid-utf8", "is not UTF-8") from error


def _offset(zone: str) -> int:
    """Read `Z`, `+05`, `+0545` or `+05:45:00` as microseconds east of UTC."""
    if zone in "Zz":
        return 0
    digits = zone[1:].replace(":", "").ljust(6, "0")
    hours, minutes, seconds = (int(digits[place : place + 2]) for place in (0, 2, 4))
    if hours > 23 or minutes > 59 or seconds > 59:
        raise RefusedError("not-a-timestamp", "has an offset that is none")
    east = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000
    return -east if zone[0] == "-" else east


def _class_of(value: Stored) -> str:
    names: dict[type, str] = {bytearray: "text", bytes: "a blob", int: "an integer"}
    return names.get(type(value), "a real number")
