"""Read from PostgreSQL's catalog what a snapshot contains of a schema, and what it cannot contain.

Tables with columns, keys, constraints, indexes and sequences, those of our revisions and the user's
own alike, as the server itself writes their definitions. What these need of an extension is named
with it. Everything else (views, functions, triggers, policies, grants, ...) is listed, so that a
backup reports it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.records import dataclass
from sagewai_ops.schema import postgres_catalog_queries as queries
from sagewai_ops.schema.postgres_head import head
from sagewai_ops.schema.postgres_replaced import REPLACED_SCHEMAS
from sagewai_ops.text import listed, printable

if TYPE_CHECKING:
    import asyncpg

IsWanted = Callable[[str, str], bool]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # psql's commands end with the line
_GENERATED = {"s": "STORED", "v": "VIRTUAL"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column, with the definition that `CREATE TABLE` needs after its name.

    Attributes:
        is_computed: Only the server fills it: no row of a snapshot has it.
    """

    name: str
    definition: str
    is_computed: bool


@dataclass(frozen=True, slots=True)
class ServerTable:
    """A table of a snapshot.

    Attributes:
        columns: In the table's order.
        constraints: Statements that add its keys, unique constraints and checks, after its rows.
        references: Statements that add its foreign keys, after all other statements.
        size_bytes: On the server, as an estimate of its rows' text.
        has_partitions: Its rows are those of its partitions; a restored one has none.
    """

    schema: str
    name: str
    columns: tuple[Column, ...]
    constraints: tuple[str, ...]
    references: tuple[str, ...]
    size_bytes: int
    is_unlogged: bool
    has_partitions: bool


@dataclass(frozen=True, slots=True)
class ServerSequence:
    """A sequence, and its value, which no transaction holds back.

    Attributes:
        options: As `CREATE SEQUENCE` has them.
        table: The table that owns it, or "".
        is_identity: `CREATE TABLE` creates it.
    """

    schema: str
    name: str
    options: str
    table: str
    column: str
    is_identity: bool
    last_value: int
    is_called: bool


@dataclass(frozen=True, slots=True)
class Unstored:
    """An object of the database that the snapshot does not contain, or not as it is.

    Attributes:
        is_data: It has rows that are therefore not in the snapshot.
    """

    kind: str
    name: str
    reason: str
    is_data: bool = False


@dataclass(frozen=True, slots=True)
class ServerCatalog:
    """The content of a schema.

    Attributes:
        revisions: The rows of `alembic_version`.
        enums: Statements that create types.
        functions: Statements that create the functions of our revisions.
        extensions: Of the database: name -> version.
        required: Extensions that the tables need, with the schemas that they are in.
        lsn: Position in the write-ahead log, of a standby the last one replayed; "" if unknown.
    """

    version: str
    major: int
    encoding: str
    collation: str
    ctype: str
    database: str
    schema: str
    is_standby: bool
    lsn: str
    revisions: tuple[str, ...]
    extensions: Mapping[str, str]
    required: Mapping[str, str]
    enums: tuple[str, ...]
    functions: tuple[str, ...]
    tables: tuple[ServerTable, ...]
    sequences: tuple[ServerSequence, ...]
    excluded: tuple[str, ...]
    unstored: tuple[Unstored, ...]


async def read_catalog(
    connection: asyncpg.Connection[asyncpg.Record], is_wanted: IsWanted
) -> ServerCatalog:
    """Read the current schema of a database.

    Args:
        connection: In the transaction of a snapshot, with locked tables.
        is_wanted: Selects objects by schema and name.

    Raises:
        PermissionDeniedError: A sequence is not readable.
    """
    return await _Reader(connection, is_wanted).read()


@dataclass(slots=True)
class _Reader:
    connection: asyncpg.Connection[asyncpg.Record]
    is_wanted: IsWanted
    schema: str = ""
    unstored: list[Unstored] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    required: set[str] = field(default_factory=set)
    # Object, and number of a column -> what it needs and no snapshot contains.
    lacking: dict[tuple[int, int], str] = field(default_factory=dict)
    lacking_types: dict[tuple[int, int], str] = field(default_factory=dict)
    lacking_collations: set[tuple[int, int]] = field(default_factory=set)

    async def read(self) -> ServerCatalog:
        server = await self.connection.fetchrow(queries.SERVER)
        self.schema = server["schema"]
        extensions = await self.connection.fetch(queries.EXTENSIONS)
        found = await self.connection.fetch(queries.TABLES)
        columns = _by_owner(
            await self.connection.fetch(queries.COLUMNS, [row["oid"] for row in found])
        )
        found = [row for row in found if self._includes(row, columns.get(row["oid"], ()))]
        oids = {row["oid"]: row["name"] for row in found}
        sequences = [
            row
            for row in await self.connection.fetch(queries.SEQUENCES)
            if (row["owner"] is None or row["owner"] in oids)
            and self.is_wanted(self.schema, row["name"])
        ]
        closed = [f"{self.schema}.{row['name']}" for row in sequences if not row["readable"]]
        if closed:
            raise PermissionDeniedError(
                f"{len(closed)} sequences not readable by this role: {listed(closed)}",
                hint="GRANT pg_read_all_data TO ROLE;",
            )
        enums = await self.connection.fetch(queries.ENUMS)
        functions = await self.connection.fetch(queries.FUNCTIONS)
        own = [row for row in functions if row["signature"] in head()["functions"]]
        await self._find_needs(oids, (*sequences, *enums, *own))
        tables = await self._tables(found, columns, oids, sequences)
        for row in functions:
            if row not in own and self.is_wanted(self.schema, row["name"]):
                self._omit("function", f"{self.schema}.{row['signature']}", "not stored")
        for row in await self.connection.fetch(queries.OTHERS, REPLACED_SCHEMAS):
            is_data = row["kind"] in ("table", "large object")
            reason = "in another schema" if row["kind"] == "table" else "not stored"
            if self.is_wanted(row["schema"], row["name"]):
                name = f"{row['schema']}.{row['name']}" if row["schema"] else row["name"]
                self._omit(row["kind"], name, reason, is_data=is_data)
        return ServerCatalog(
            **{name: server[name] for name in ("version", "major", "encoding", "collation")},
            **{name: server[name] for name in ("ctype", "database", "schema")},
            is_standby=server["standby"],
            lsn=server["lsn"] or "",
            revisions=await self._revisions(oids.values()),
            extensions={row["name"]: row["version"] for row in extensions},
            required={
                row["name"]: row["schema"] for row in extensions if row["name"] in self.required
            },
            enums=tuple(
                f"CREATE TYPE {quoted(row['name'])} AS ENUM ({', '.join(row['labels'])});"
                for row in enums
            ),
            functions=tuple(
                _without_schema(row["definition"], "CREATE OR REPLACE FUNCTION ", row["schema"])
                + ";"
                for row in own
            ),
            tables=tables,
            sequences=tuple([await self._sequence(row, oids) for row in sequences]),
            excluded=tuple(self.excluded),
            unstored=tuple(self.unstored),
        )

    def _omit(self, kind: str, name: str, reason: str, *, is_data: bool = False) -> None:
        self.unstored.append(Unstored(kind, printable(name), printable(reason), is_data))

    def _includes(self, row: Any, columns: Iterable[Any]) -> bool:
        place = f"{self.schema}.{row['name']}"
        if not self.is_wanted(self.schema, row["name"]):
            self.excluded.append(place)
            return False
        if any(map(_CONTROL.search, (row["name"], *(column["name"] for column in columns)))):
            self._omit("table", place, "control character in a name", is_data=True)
            return False
        return True

    async def _revisions(self, names: Iterable[str]) -> tuple[str, ...]:
        if "alembic_version" not in names:
            return ()
        rows = await self.connection.fetch("SELECT version_num::text FROM alembic_version")
        return tuple(sorted(row[0] for row in rows))

    async def _find_needs(self, oids: Mapping[int, str], stored: Iterable[Any]) -> None:
        known = {row["oid"] for row in stored}
        for row in await self.connection.fetch(queries.NEEDS, list(oids)):
            if row["extension"]:
                self.required.add(row["extension"])
            elif row["needed"] not in known:
                place = row["object"], row["number"] if row["object"] in oids else 0
                if row["is_type"] and row["object"] in oids:
                    self.lacking_types[place] = row["described"]
                elif row["is_collation"] and row["object"] in oids:
                    self.lacking_collations.add(place)
                else:
                    self.lacking[place] = row["described"]

    async def _tables(
        self,
        found: Iterable[Any],
        columns: Mapping[int, list[Any]],
        oids: Mapping[int, str],
        sequences: Iterable[Any],
    ) -> tuple[ServerTable, ...]:
        listed = list(oids)
        constraints = _by_owner(await self.connection.fetch(queries.CONSTRAINTS, listed))
        indexes = _by_owner(await self.connection.fetch(queries.INDEXES, listed))
        identities = {(row["owner"], row["column"]): row for row in sequences if row["identity"]}
        tables = []
        for row in found:
            oid, name = row["oid"], row["name"]
            place = f"{self.schema}.{name}"
            self._report(row, place)
            built = tuple(
                self._column(column, place, identities) for column in columns.get(oid, ())
            )
            statements = [*self._constraints(constraints.get(oid, ()), name, oids)]
            tables.append(
                ServerTable(
                    schema=self.schema,
                    name=name,
                    columns=built,
                    constraints=(
                        *(text for kind, text in statements if kind != "f"),
                        *self._indexes(indexes.get(oid, ()), place),
                    ),
                    references=tuple(text for kind, text in statements if kind == "f"),
                    size_bytes=row["size"],
                    is_unlogged=row["unlogged"],
                    has_partitions=row["partitioned"],
                )
            )
        return tuple(tables)

    def _report(self, row: Any, place: str) -> None:
        """Report what a table has and a restored one lacks."""
        for kind in ("trigger", "rule"):
            for name in row[f"{kind}s"]:
                self._omit(kind, f"{name} of {place}", "not stored")
        for name in row["policies"]:
            self._omit("policy", f"{name} of {place}", "not stored")
        if row["grantees"]:
            self._omit("grants", place, f"to {', '.join(row['grantees'])}, not stored")
        if row["partitioned"]:
            self._omit("partitions", place, "stored as one table")
        if row["inherits"]:
            self._omit("inheritance", place, "stored as a table of its own")

    def _column(self, row: Any, place: str, identities: Mapping[Any, Any]) -> Column:
        at = row["owner"], row["number"]
        definition, name = row["type"], row["name"]
        if at in self.lacking_types:
            definition = "text"
            self._omit("type", f"{place}.{name}", f"{self.lacking_types[at]}, stored as text")
        elif row["collation"] and at not in self.lacking_collations:
            definition += f" COLLATE {row['collation']}"
        elif row["collation"]:
            self._omit("collation", f"{place}.{name}", "not stored")
        is_computed = bool(row["generated"])
        if (is_computed or row["expression"]) and (at in self.lacking or at in self.lacking_types):
            reason = self.lacking.get(at) or self.lacking_types[at]
            self._omit("default", f"{place}.{name}", f"needs {reason}, not stored")
            return Column(name, definition, is_computed)
        if is_computed:
            kind = _GENERATED[row["generated"]]
            definition += f" GENERATED ALWAYS AS ({row['expression']}) {kind}"
        elif row["identity"]:
            sequence = identities.get((row["owner"], name))
            options = (
                f" (SEQUENCE NAME {quoted(sequence['name'])} {_options(sequence)})"
                if sequence
                else ""
            )
            kind = "ALWAYS" if row["identity"] == "a" else "BY DEFAULT"
            definition += f" GENERATED {kind} AS IDENTITY{options}"
        elif row["expression"]:
            definition += f" DEFAULT {row['expression']}"
        if row["not_null"]:
            definition += " NOT NULL"
        return Column(name, definition, is_computed)

    def _constraints(
        self, rows: Iterable[Any], table: str, oids: Mapping[int, str]
    ) -> Iterator[tuple[str, str]]:
        for row in rows:
            label = f"{row['name']} of {self.schema}.{table}"
            if (row["oid"], 0) in self.lacking:
                self._omit("constraint", label, f"needs {self.lacking[row['oid'], 0]}, not stored")
            elif row["kind"] == "f" and row["parent"] not in oids:
                self._omit("foreign key", label, "to a table that is not stored")
            else:
                text = f"ADD CONSTRAINT {quoted(row['name'])} {row['definition']};"
                yield row["kind"], f"ALTER TABLE ONLY {quoted(table)} {text}"

    def _indexes(self, rows: Iterable[Any], place: str) -> Iterator[str]:
        for row in rows:
            label = f"{row['name']} of {place}"
            if (row["oid"], 0) in self.lacking:
                self._omit("index", label, f"needs {self.lacking[row['oid'], 0]}, not stored")
            elif not row["valid"]:
                self._omit("index", label, "not valid, not stored")
            else:
                unique = "UNIQUE " if row["definition"].startswith("CREATE UNIQUE") else ""
                start = f"CREATE {unique}INDEX {row['quoted']} ON "
                only = "ONLY " if row["definition"].startswith(f"{start}ONLY ") else ""
                text = _without_schema(row["definition"], start + only, row["schema"])
                yield f"{start}{text.removeprefix(start + only)};"

    async def _sequence(self, row: Any, oids: Mapping[int, str]) -> ServerSequence:
        name = f"{quoted(self.schema)}.{quoted(row['name'])}"
        value = await self.connection.fetchrow(f"SELECT last_value, is_called FROM {name}")  # noqa: S608 (quoted)
        return ServerSequence(
            schema=self.schema,
            name=row["name"],
            options=_options(row),
            table=oids.get(row["owner"], ""),
            column=row["column"] or "",
            is_identity=row["identity"],
            last_value=value["last_value"],
            is_called=value["is_called"],
        )


def _options(row: Any) -> str:
    kind = "" if row["identity"] else f"AS {row['type']} "
    cycle = "CYCLE" if row["cycles"] else "NO CYCLE"
    return (
        f"{kind}START WITH {row['start']} INCREMENT BY {row['step']} MINVALUE {row['least']}"
        f" MAXVALUE {row['most']} CACHE {row['cache']} {cycle}"
    )


def _by_owner(rows: Iterable[Any]) -> dict[int, list[Any]]:
    found = defaultdict(list)
    for row in rows:
        found[row["owner"]].append(row)
    return found


def _without_schema(definition: str, start: str, schema: str) -> str:
    """Return a definition without the schema that the server writes after its start."""
    qualified = f"{start}{schema}."
    if not definition.startswith(qualified):
        return definition
    return start + definition.removeprefix(qualified)
