-- Orders, their events, and the transactions broadcast for them.
--
-- The database itself refuses what must never happen: an illegal transition, a gap in an order's
-- events, a change to a closed order, a second open or landed transaction. The program is written
-- so that it never asks for any of it; this is the wall behind it.

CREATE TYPE order_side AS ENUM (
    'buy',   -- exact output
    'sell'   -- exact input
);

CREATE TYPE order_status AS ENUM (
    'pending',    -- accepted; a worker's claim moves it on
    'routing',    -- comparing venues; the lease's owner moves it on
    'building',   -- route chosen, building and signing; the lease's owner moves it on
    'submitted',  -- signed transaction recorded, may be on the network; proof from the chain moves it on
    'confirmed',  -- closed: on chain
    'failed',     -- closed: not on chain, and cannot be
    'cancelled',  -- closed by the client before broadcast
    'expired'     -- closed by expire_time before broadcast
);

CREATE TYPE failure_reason AS ENUM (
    'no_route',
    'slippage_exceeded',
    'insufficient_funds',
    'venue_rejected',
    'transaction_reverted',
    'transaction_expired',
    'internal'
);

CREATE TYPE attempt_outcome AS ENUM (
    'landed',    -- on chain without error
    'reverted',  -- on chain with an error, finalized
    'expired'    -- never on chain, and its blockhash is too old now
);

-- Worker processes. Each holds a session advisory lock on its own number for as long as it lives, and
-- keeps expire_time ahead of the clock. Whose row is gone or expired holds no lease.
CREATE TABLE lease_owners (
    lease_owner bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    expire_time timestamptz NOT NULL
);

CREATE TABLE orders (
    order_id            uuid PRIMARY KEY,
    -- Idempotency (AIP-155), for ever. NULL: the client chose none.
    request_id          text UNIQUE CONSTRAINT request_id_is_short CHECK (length(request_id) BETWEEN 1 AND 64),
    -- SHA-256 of what was asked: tells a retry from a reused request_id.
    request_fingerprint bytea NOT NULL
        CONSTRAINT request_fingerprint_is_sha256 CHECK (octet_length(request_fingerprint) = 32),

    -- What the client asked for; never updated.
    type                text NOT NULL CONSTRAINT type_is_known CHECK (type IN ('market')),
    side                order_side NOT NULL,
    -- Base units of input_mint (sell) or output_mint (buy). BETWEEN, because NaN passes "> 0".
    amount              numeric(20, 0) NOT NULL
        CONSTRAINT amount_is_u64 CHECK (amount BETWEEN 1 AND 18446744073709551615),
    input_mint          text NOT NULL,
    output_mint         text NOT NULL,
    -- NULL: the default at the time the order is routed.
    slippage_bps        integer CONSTRAINT slippage_is_bps CHECK (slippage_bps BETWEEN 0 AND 10000),
    -- NULL: never.
    expire_time         timestamptz,

    -- Where it stands. What is known of it (venue, amounts, tx_hash, failure) is in its latest event.
    status              order_status NOT NULL DEFAULT 'pending',
    -- Sequence of the latest event: version, fencing token and watchers' cursor in one.
    sequence            bigint NOT NULL DEFAULT 1,
    attempt             integer NOT NULL DEFAULT 1,
    -- NULL while open. The indexes are on this and not on status, so that a status change before the
    -- closing one touches no index (HOT update).
    closed_status       order_status GENERATED ALWAYS AS (
        CASE WHEN status IN ('confirmed', 'failed', 'cancelled', 'expired') THEN status END
    ) STORED,
    -- When a worker should next look at it.
    due_time            timestamptz NOT NULL DEFAULT now(),
    -- The worker process that executes it. NULL: none.
    lease_owner         bigint,
    create_time         timestamptz NOT NULL DEFAULT now(),
    update_time         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tokens_differ CHECK (input_mint <> output_mint)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- The sweeper's query; only open orders are in it.
CREATE INDEX orders_due ON orders (due_time) WHERE closed_status IS NULL;
-- ListOrders by status. Open orders are found through orders_due's few, closed ones through this.
CREATE INDEX orders_closed ON orders (closed_status, order_id) WHERE closed_status IS NOT NULL;

CREATE TABLE order_events (
    order_id        uuid NOT NULL,
    sequence        bigint NOT NULL,
    -- NULL on the first event.
    previous_status order_status,
    status          order_status NOT NULL,
    attempt         integer NOT NULL CONSTRAINT attempts_count_from_one CHECK (attempt >= 1),
    venue           text,
    -- Base units; quoted until confirmed, then realised.
    input_amount    numeric(20, 0)
        CONSTRAINT input_amount_is_u64 CHECK (input_amount BETWEEN 0 AND 18446744073709551615),
    output_amount   numeric(20, 0)
        CONSTRAINT output_amount_is_u64 CHECK (output_amount BETWEEN 0 AND 18446744073709551615),
    tx_hash         text,
    failure_reason  failure_reason,
    failure_message text,
    -- Every venue's quote and the reason of the choice; on the event that the routing led to, else NULL.
    decision        jsonb,
    create_time     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (order_id, sequence),
    CONSTRAINT events_start_pending CHECK (
        CASE WHEN sequence = 1 THEN previous_status IS NULL AND status = 'pending'
             ELSE sequence > 1 AND previous_status IS NOT NULL END
    ),
    CONSTRAINT transition_is_legal CHECK (
        CASE previous_status
            WHEN 'pending'   THEN status IN ('routing', 'failed', 'cancelled', 'expired')
            WHEN 'routing'   THEN status IN ('routing', 'building', 'failed', 'cancelled', 'expired')
            WHEN 'building'  THEN status IN ('routing', 'submitted', 'failed', 'cancelled', 'expired')
            WHEN 'submitted' THEN status IN ('routing', 'confirmed', 'failed')
            ELSE previous_status IS NULL
        END
    ),
    CONSTRAINT failed_events_have_a_reason CHECK (status <> 'failed' OR failure_reason IS NOT NULL)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.2);

-- Written before its transaction is broadcast, so that a crash can always be settled.
CREATE TABLE attempts (
    order_id                uuid NOT NULL,
    attempt                 integer NOT NULL,
    tx_hash                 text NOT NULL,
    -- The signed bytes: only these are ever sent.
    raw_transaction         bytea NOT NULL,
    last_valid_block_height bigint NOT NULL,
    -- NULL while it may still land.
    outcome                 attempt_outcome,
    create_time             timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (order_id, attempt)
) WITH (fillfactor = 85);

-- Double execution is a constraint violation, not a code review finding.
CREATE UNIQUE INDEX attempts_one_open_or_landed ON attempts (order_id)
    WHERE outcome IS NULL OR outcome = 'landed';


-- ---- What no constraint on one row can say -----------------------------------------------------
--
-- Checks over many rows run once a statement, on its transition table: their cost is shared by the
-- batch. Refusals that need no look-up are WHEN conditions: free until they refuse.

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER closed_orders_are_immutable BEFORE UPDATE ON orders
    FOR EACH ROW WHEN (OLD.closed_status IS NOT NULL)
    EXECUTE FUNCTION refuse('a closed order never changes');

CREATE TRIGGER orders_move_forward BEFORE UPDATE ON orders
    FOR EACH ROW WHEN (NEW.sequence < OLD.sequence OR (NEW.sequence = OLD.sequence AND NEW.status <> OLD.status))
    EXECUTE FUNCTION refuse('an order''s status moves with its sequence');

CREATE TRIGGER specs_are_immutable
    BEFORE UPDATE OF order_id, request_id, request_fingerprint, type, side, amount, input_mint, output_mint,
        slippage_bps, expire_time, create_time ON orders
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('what the client asked for never changes');

CREATE TRIGGER orders_are_kept BEFORE DELETE OR TRUNCATE ON orders
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('orders are never deleted');

CREATE TRIGGER events_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON order_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('events are append-only');

CREATE TRIGGER attempts_are_kept BEFORE DELETE OR TRUNCATE ON attempts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('attempts are never deleted');

CREATE TRIGGER attempts_are_immutable
    BEFORE UPDATE OF order_id, attempt, tx_hash, raw_transaction, last_valid_block_height, create_time ON attempts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a recorded transaction never changes');

-- Else a transaction that landed could be declared expired, and make room for a second one.
CREATE TRIGGER outcomes_are_final BEFORE UPDATE ON attempts
    FOR EACH ROW WHEN (OLD.outcome IS NOT NULL)
    EXECUTE FUNCTION refuse('how a transaction ended is final');

CREATE FUNCTION check_orders_have_their_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken record;
BEGIN
    -- An order that moved has the event that says so; it is submitted exactly while a transaction is open.
    SELECT moved.order_id, moved.sequence INTO broken
    FROM moved
    WHERE (SELECT status FROM order_events
           WHERE order_id = moved.order_id AND sequence = moved.sequence) IS DISTINCT FROM moved.status
       -- Not EXISTS: PostgreSQL may answer it for all orders at once, by reading every attempt there ever was.
       OR (moved.status = 'submitted') <> coalesce(
           (SELECT true FROM attempts WHERE order_id = moved.order_id AND outcome IS NULL), false)
       OR (moved.status = 'confirmed' AND
           (SELECT true FROM attempts WHERE order_id = moved.order_id AND outcome = 'landed') IS NULL)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'order % at sequence % lacks its event or its transaction', broken.order_id, broken.sequence
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER orders_have_their_event_on_insert AFTER INSERT ON orders
    REFERENCING NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION check_orders_have_their_event();
CREATE TRIGGER orders_have_their_event_on_update AFTER UPDATE ON orders
    REFERENCING NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION check_orders_have_their_event();

CREATE FUNCTION check_events_continue_their_order() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken record;
BEGIN
    -- Gapless, each from the status the one before it left, and none beyond what its order says.
    SELECT added.order_id, added.sequence INTO broken
    FROM added
    WHERE (added.sequence > 1 AND (
              SELECT status FROM order_events
              WHERE order_id = added.order_id AND sequence = added.sequence - 1
          ) IS DISTINCT FROM added.previous_status)
       OR NOT EXISTS (SELECT FROM orders WHERE order_id = added.order_id AND sequence >= added.sequence)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'event % of order % does not follow from the one before', broken.sequence, broken.order_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER events_continue_their_order AFTER INSERT ON order_events
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION check_events_continue_their_order();
