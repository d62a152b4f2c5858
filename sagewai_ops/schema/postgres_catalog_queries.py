"""The queries of `postgres_catalog`: what a snapshot contains of the current schema, and what not.

Every function and operand is qualified or of exactly the type that an operator has: see
`database/postgres/connection.py`.
"""

SERVER = """
SELECT pg_catalog.current_setting('server_version') AS version,
  pg_catalog.current_setting('server_version_num')::int / 10000 AS major,
  pg_catalog.current_setting('server_encoding') AS encoding,
  pg_catalog.current_schema()::text AS schema,
  d.datname::text AS database, d.datcollate::text AS collation, d.datctype::text AS ctype,
  pg_catalog.pg_is_in_recovery() AS standby,
  CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
    ELSE pg_catalog.pg_current_wal_lsn() END::text AS lsn
FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
EXTENSIONS = """
SELECT e.extname::text AS name, e.extversion::text AS version, n.nspname::text AS schema
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname <> 'plpgsql' ORDER BY e.extname COLLATE "C"
"""
TABLES = """
SELECT c.oid::bigint AS oid, c.relname::text AS name, c.relkind = 'p' AS partitioned,
  c.relpersistence = 'u' AS unlogged, pg_catalog.pg_table_size(c.oid) AS size,
  EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid) AS inherits,
  ARRAY(SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC'
      ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END
    FROM pg_catalog.aclexplode(c.relacl) a WHERE a.grantee <> c.relowner ORDER BY 1) AS grantees,
  ARRAY(SELECT t.tgname::text FROM pg_catalog.pg_trigger t
    WHERE t.tgrelid = c.oid AND NOT t.tgisinternal ORDER BY 1) AS triggers,
  ARRAY(SELECT p.polname::text FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid ORDER BY 1)
    AS policies,
  ARRAY(SELECT r.rulename::text FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid ORDER BY 1)
    AS rules
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = pg_catalog.current_schema() AND c.relkind IN ('r', 'p')
  AND NOT c.relispartition
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.objid = c.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.deptype = 'e')
ORDER BY c.relname COLLATE "C"
"""
COLUMNS = """
SELECT a.attrelid::bigint AS owner, a.attnum::int AS number, a.attname::text AS name,
  pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
  a.attnotnull AS not_null, a.attidentity::text AS identity, a.attgenerated::text AS generated,
  pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS expression,
  CASE WHEN a.attcollation <> t.typcollation THEN
    pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(l.collname) END AS collation
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace
WHERE a.attrelid = ANY ($1::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""
CONSTRAINTS = """
SELECT k.oid::bigint AS oid, k.conrelid::bigint AS owner, k.conname::text AS name,
  k.contype::text AS kind, pg_catalog.pg_get_constraintdef(k.oid) AS definition,
  k.confrelid::bigint AS parent
FROM pg_catalog.pg_constraint k
WHERE k.conrelid = ANY ($1::bigint[]::oid[]) AND k.contype IN ('p', 'u', 'x', 'c', 'f')
  AND k.conparentid = 0
ORDER BY k.conrelid, pg_catalog.strpos('puxcf', k.contype::text), k.conname COLLATE "C"
"""
INDEXES = """
SELECT i.indexrelid::bigint AS oid, i.indrelid::bigint AS owner, c.relname::text AS name,
  pg_catalog.pg_get_indexdef(i.indexrelid) AS definition,
  pg_catalog.quote_ident(c.relname) AS quoted, pg_catalog.quote_ident(n.nspname) AS schema,
  i.indisvalid OR c.relkind = 'I' AS valid
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = ANY ($1::bigint[]::oid[])
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid
    AND k.contype IN ('p', 'u', 'x'))
ORDER BY i.indrelid, c.relname COLLATE "C"
"""
SEQUENCES = """
SELECT c.oid::bigint AS oid, c.relname::text AS name,
  pg_catalog.format_type(s.seqtypid, NULL) AS type, s.seqstart AS start, s.seqincrement AS step,
  s.seqmin AS least, s.seqmax AS most, s.seqcache AS cache, s.seqcycle AS cycles,
  d.refobjid::bigint AS owner, a.attname::text AS column, coalesce(d.deptype = 'i', false)
    AS identity,
  pg_catalog.has_sequence_privilege(c.oid, 'SELECT') AS readable
FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_depend d ON d.objid = c.oid
  AND d.classid = 'pg_catalog.pg_class'::regclass::oid
  AND d.refclassid = 'pg_catalog.pg_class'::regclass::oid AND d.deptype IN ('a', 'i')
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE n.nspname = pg_catalog.current_schema() AND c.relpersistence <> 't'
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend e WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::regclass::oid AND e.deptype = 'e')
ORDER BY c.relname COLLATE "C"
"""
ENUMS = """
SELECT t.oid::bigint AS oid, t.typname::text AS name,
  ARRAY(SELECT pg_catalog.quote_literal(e.enumlabel) FROM pg_catalog.pg_enum e
    WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname = pg_catalog.current_schema() AND t.typtype = 'e'
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.objid = t.oid
    AND d.classid = 'pg_catalog.pg_type'::regclass::oid AND d.deptype = 'e')
ORDER BY t.typname COLLATE "C"
"""
FUNCTIONS = """
SELECT p.oid::bigint AS oid, p.proname::text AS name,
  p.proname::text || '(' || pg_catalog.oidvectortypes(p.proargtypes) || ')' AS signature,
  pg_catalog.quote_ident(n.nspname) AS schema, p.prokind::text AS kind,
  CASE WHEN p.prokind IN ('f', 'p') THEN pg_catalog.pg_get_functiondef(p.oid) END AS definition
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = pg_catalog.current_schema()
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.objid = p.oid
    AND d.classid = 'pg_catalog.pg_proc'::regclass::oid AND d.deptype IN ('e', 'i'))
ORDER BY p.proname COLLATE "C", p.oid
"""
# What columns, defaults, constraints and indexes need besides their own table: types, functions,
# operators, collations. Of an array type, its elements; built-in objects are not recorded.
NEEDS = """
WITH objects AS (
  SELECT 'pg_catalog.pg_class'::regclass::oid AS class, c.oid FROM pg_catalog.pg_class c
    WHERE c.oid = ANY ($1::bigint[]::oid[])
  UNION ALL SELECT 'pg_catalog.pg_attrdef'::regclass::oid, d.oid FROM pg_catalog.pg_attrdef d
    WHERE d.adrelid = ANY ($1::bigint[]::oid[])
  UNION ALL SELECT 'pg_catalog.pg_constraint'::regclass::oid, k.oid FROM pg_catalog.pg_constraint k
    WHERE k.conrelid = ANY ($1::bigint[]::oid[])
  UNION ALL SELECT 'pg_catalog.pg_class'::regclass::oid, i.indexrelid FROM pg_catalog.pg_index i
    WHERE i.indrelid = ANY ($1::bigint[]::oid[])
), needs AS (
  SELECT o.class, o.oid, d.objsubid, d.refclassid,
    CASE WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN t.typelem ELSE d.refobjid END AS needed
  FROM objects o JOIN pg_catalog.pg_depend d ON d.classid = o.class AND d.objid = o.oid
  LEFT JOIN pg_catalog.pg_type t
    ON d.refclassid = 'pg_catalog.pg_type'::regclass::oid AND t.oid = d.refobjid
  WHERE d.deptype IN ('n', 'a') AND d.refclassid IN (
    'pg_catalog.pg_type'::regclass::oid, 'pg_catalog.pg_proc'::regclass::oid,
    'pg_catalog.pg_operator'::regclass::oid, 'pg_catalog.pg_opclass'::regclass::oid,
    'pg_catalog.pg_opfamily'::regclass::oid, 'pg_catalog.pg_collation'::regclass::oid,
    'pg_catalog.pg_ts_config'::regclass::oid)
  UNION ALL
  SELECT o.class, o.oid, d.objsubid, d.refclassid, d.refobjid
  FROM objects o JOIN pg_catalog.pg_depend d ON d.classid = o.class AND d.objid = o.oid
  JOIN pg_catalog.pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
  WHERE o.class = 'pg_catalog.pg_attrdef'::regclass::oid
    AND d.refclassid = 'pg_catalog.pg_class'::regclass::oid
)
SELECT CASE n.class WHEN 'pg_catalog.pg_attrdef'::regclass::oid THEN
    (SELECT a.adrelid FROM pg_catalog.pg_attrdef a WHERE a.oid = n.oid) ELSE n.oid END::bigint
    AS object,
  CASE n.class WHEN 'pg_catalog.pg_attrdef'::regclass::oid THEN
    (SELECT a.adnum FROM pg_catalog.pg_attrdef a WHERE a.oid = n.oid) ELSE n.objsubid END::int
    AS number,
  n.refclassid = 'pg_catalog.pg_type'::regclass::oid
    AND n.class = 'pg_catalog.pg_class'::regclass::oid AS is_type,
  n.refclassid = 'pg_catalog.pg_collation'::regclass::oid
    AND n.class = 'pg_catalog.pg_class'::regclass::oid AS is_collation,
  n.needed::bigint AS needed, pg_catalog.pg_describe_object(n.refclassid, n.needed, 0) AS described,
  (SELECT x.extname::text FROM pg_catalog.pg_depend e
    JOIN pg_catalog.pg_extension x ON x.oid = e.refobjid
    WHERE e.classid = n.refclassid AND e.objid = n.needed AND e.deptype = 'e') AS extension
FROM needs n
WHERE n.needed >= 16384 OR n.refclassid = 'pg_catalog.pg_class'::regclass::oid
"""
# Objects of the schema that are not tables, and data outside of it.
OTHERS = """
SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
    ELSE 'foreign table' END AS kind, n.nspname::text AS schema, c.relname::text AS name
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = pg_catalog.current_schema() AND c.relkind IN ('v', 'm', 'f')
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.objid = c.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.deptype = 'e')
UNION ALL
SELECT CASE t.typtype WHEN 'd' THEN 'domain' ELSE 'type' END, n.nspname::text, t.typname::text
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
WHERE n.nspname = pg_catalog.current_schema() AND t.typcategory <> 'A'
  AND (t.typtype IN ('d', 'r', 'b') OR t.typtype = 'c' AND c.relkind = 'c')
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.objid = t.oid
    AND d.classid = 'pg_catalog.pg_type'::regclass::oid AND d.deptype IN ('e', 'i'))
UNION ALL
SELECT 'operator', n.nspname::text, o.oprname::text
FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
WHERE n.nspname = pg_catalog.current_schema()
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.objid = o.oid
    AND d.classid = 'pg_catalog.pg_operator'::regclass::oid AND d.deptype = 'e')
UNION ALL
SELECT 'collation', n.nspname::text, l.collname::text
FROM pg_catalog.pg_collation l JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace
WHERE n.nspname = pg_catalog.current_schema()
UNION ALL
SELECT 'table', n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname <> pg_catalog.current_schema() AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND n.nspname <> 'information_schema' AND pg_catalog.left(n.nspname::text, 3) <> 'pg_'
  AND NOT pg_catalog.starts_with(n.nspname::text, $1)
  AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.objid = c.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.deptype = 'e')
UNION ALL
SELECT 'large object', '', pg_catalog.count(*)::text FROM pg_catalog.pg_largeobject_metadata
HAVING pg_catalog.count(*) > 0
ORDER BY 1, 2, 3
"""
