-- What travels to the statements of queries.sql: one array of rows a statement, for an array of each column costs
-- PostgreSQL 9 us a column to open. A type is never changed: a program of another version uses its own.

CREATE TYPE new_order AS (
    order_id uuid, request_id text, request_fingerprint bytea, type text, side order_side, amount numeric,
    input_mint text, output_mint text, slippage_bps integer, expire_time timestamptz, terms jsonb,
    input_decimals smallint, output_decimals smallint, trigger_kind trigger_kind, trigger_size smallint,
    trigger_level double precision
);

CREATE TYPE order_move AS (
    order_id uuid, expected_sequence bigint, sequence bigint, status order_status, attempt integer, rests boolean,
    delay_seconds double precision
);

-- Without its decision, which is long and would be quoted once more.
CREATE TYPE new_event AS (
    order_id uuid, sequence bigint, previous_status order_status, status order_status, attempt integer, venue text,
    input_amount numeric, output_amount numeric, tx_hash text, failure_reason failure_reason, failure_message text
);

CREATE TYPE new_attempt AS (
    order_id uuid, attempt integer, tx_hash text, raw_transaction bytea, last_valid_block_height bigint
);

CREATE TYPE closed_attempt AS (order_id uuid, attempt integer, outcome attempt_outcome);

CREATE TYPE watched_order AS (order_id uuid, after_sequence bigint);

CREATE TYPE fired_order AS (order_id uuid, expected_sequence bigint, lease_owner bigint);
