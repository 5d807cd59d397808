-- Orders that rest until their trigger fires (limit, sniper), and tokens that the program does not know by itself.
--
-- Market orders never rest: no index of those that do holds one of them, so they cost as much as before.

CREATE TYPE trigger_kind AS ENUM (
    'price',     -- found by the price of the pair; the price monitor fires it
    'liquidity'  -- found by what the pair's pools hold; the liquidity monitor fires it
);

ALTER TABLE orders
    -- Which types there are, engine/domain/order_types says.
    DROP CONSTRAINT type_is_known,
    -- The type's own terms, as decimal text by name. NULL: it has none.
    ADD COLUMN terms jsonb,
    -- As the chain says. NULL: the program knows the token, and so does every version after it.
    ADD COLUMN input_decimals smallint,
    ADD COLUMN output_decimals smallint,
    -- What the order waits for; never updated. NULL: for nothing.
    ADD COLUMN trigger_kind trigger_kind,
    -- Whole part of the amount's binary logarithm: in the order of levels, orders of much the same size stand
    -- together, for what a price is depends on the size.
    ADD COLUMN trigger_size smallint,
    -- May be too low by rounding, never too high: where to look, not whether to execute.
    ADD COLUMN trigger_level double precision,
    -- Waits for its trigger. Its due_time is when it expires, or infinity.
    ADD COLUMN resting boolean NOT NULL DEFAULT false,
    -- Attempts from before it last returned to waiting.
    ADD COLUMN forgiven_attempts integer NOT NULL DEFAULT 0,
    -- Not checked against what is there, which would read all of it while nobody else may: no order has a trigger
    -- or rests so far.
    ADD CONSTRAINT triggers_are_whole CHECK (
        (trigger_kind IS NULL) = (trigger_size IS NULL) AND (trigger_kind IS NULL) = (trigger_level IS NULL)
    ) NOT VALID,
    ADD CONSTRAINT resting_orders_wait CHECK (
        NOT resting OR (status = 'pending' AND trigger_kind IS NOT NULL AND lease_owner IS NULL)
    ) NOT VALID;

-- The sweeper's two questions: what is to be done, and what has waited too long. What never expires is not asked for.
DROP INDEX orders_due;
CREATE INDEX orders_due ON orders (due_time) WHERE closed_status IS NULL AND NOT resting;
CREATE INDEX orders_expiring ON orders (due_time) WHERE resting AND due_time < 'infinity';

-- The monitors' question. A tick walks it, for each pair and size, from the lowest level up to what is to be had.
CREATE INDEX orders_resting ON orders (
    trigger_kind, input_mint COLLATE "C", output_mint COLLATE "C", side, trigger_size, trigger_level, order_id
) WHERE resting;

-- ListOrders by type, and by status: pages of each type are cut out of its part and put together.
CREATE INDEX orders_resting_of_type ON orders (type, order_id) WHERE resting;
DROP INDEX orders_closed;
CREATE INDEX orders_closed ON orders (type, closed_status, order_id) WHERE closed_status IS NOT NULL;

-- Who follows what: one worker process each, for as long as it keeps expire_time ahead of the clock.
CREATE TABLE monitors (
    trigger_kind trigger_kind PRIMARY KEY,
    -- The worker process that runs it. NULL: none yet.
    lease_owner  bigint,
    expire_time  timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO monitors (trigger_kind) VALUES ('price'), ('liquidity');

ALTER TABLE order_events
    DROP CONSTRAINT transition_is_legal,
    -- Not checked against what is there: all of it was legal by the narrower table.
    ADD CONSTRAINT transition_is_legal CHECK (
        CASE previous_status
            WHEN 'pending'   THEN status IN ('routing', 'failed', 'cancelled', 'expired')
            WHEN 'routing'   THEN status IN ('pending', 'routing', 'building', 'failed', 'cancelled', 'expired')
            WHEN 'building'  THEN status IN ('routing', 'submitted', 'failed', 'cancelled', 'expired')
            WHEN 'submitted' THEN status IN ('pending', 'routing', 'confirmed', 'failed')
            ELSE previous_status IS NULL
        END
    ) NOT VALID;

CREATE TRIGGER what_waits_has_a_trigger BEFORE UPDATE ON orders
    FOR EACH ROW WHEN (NEW.status = 'pending' AND OLD.status <> 'pending' AND NEW.trigger_kind IS NULL)
    EXECUTE FUNCTION refuse('an order without a trigger never waits again');

DROP TRIGGER specs_are_immutable ON orders;
CREATE TRIGGER specs_are_immutable
    BEFORE UPDATE OF order_id, request_id, request_fingerprint, type, side, amount, input_mint, output_mint,
        slippage_bps, expire_time, create_time, terms, input_decimals, output_decimals, trigger_kind,
        trigger_size, trigger_level ON orders
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('what the client asked for never changes');
