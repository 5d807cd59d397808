-- What a row must be is asked once a statement, by triggers that keep their plans: a CHECK, a WHEN of a row's trigger, is
-- read from text, planned and compiled anew in each statement, all of a table's on each UPDATE. That was a quarter of
-- what a statement with one order in it cost. What the client asked for never changes and is looked at once.
--
-- Every rule that was there is here, by its name; NULL passes where it passed a CHECK. Two are a little stricter: orders
-- begin pending, and one whose transaction landed is confirmed.

-- As every statement locks them, so that none waits for this while this waits for it.
LOCK TABLE orders, order_events IN ACCESS EXCLUSIVE MODE;

ALTER TABLE orders
    DROP CONSTRAINT request_id_is_short,
    DROP CONSTRAINT request_fingerprint_is_sha256,
    DROP CONSTRAINT amount_is_u64,
    DROP CONSTRAINT slippage_is_bps,
    DROP CONSTRAINT tokens_differ,
    DROP CONSTRAINT triggers_are_whole,
    DROP CONSTRAINT resting_orders_wait;
ALTER TABLE order_events
    DROP CONSTRAINT attempts_count_from_one,
    DROP CONSTRAINT input_amount_is_u64,
    DROP CONSTRAINT output_amount_is_u64,
    DROP CONSTRAINT events_start_pending,
    DROP CONSTRAINT transition_is_legal,
    DROP CONSTRAINT failed_events_have_a_reason;

DROP TRIGGER closed_orders_are_immutable ON orders;
DROP TRIGGER orders_move_forward ON orders;
DROP TRIGGER what_waits_has_a_trigger ON orders;
DROP TRIGGER orders_have_their_event_on_insert ON orders;
DROP TRIGGER orders_have_their_event_on_update ON orders;
DROP FUNCTION check_orders_have_their_event();
DROP TRIGGER events_continue_their_order ON order_events;
DROP FUNCTION check_events_continue_their_order();

-- In each of these: OFFSET 0, or a row would be judged twice, to find it and to tell what it broke. And no EXISTS:
-- PostgreSQL may answer it for all orders at once, by reading all there ever were.

CREATE FUNCTION check_new_orders() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken record;
BEGIN
    SELECT * INTO broken
    FROM (
        SELECT order_id, CASE
            WHEN length(request_id) NOT BETWEEN 1 AND 64
                THEN 'request_id_is_short: it has 1 to 64 characters'
            WHEN octet_length(request_fingerprint) <> 32
                THEN 'request_fingerprint_is_sha256: it has 32 bytes'
            -- So written, because NaN passes "> 0".
            WHEN amount NOT BETWEEN 1 AND 18446744073709551615
                THEN 'amount_is_u64: it is 1 to 18446744073709551615 base units'
            WHEN slippage_bps NOT BETWEEN 0 AND 10000
                THEN 'slippage_is_bps: it is 0 to 10000'
            WHEN input_mint = output_mint
                THEN 'tokens_differ: input and output are the same token'
            WHEN num_nulls(trigger_kind, trigger_size, trigger_level) NOT IN (0, 3)
                THEN 'triggers_are_whole: kind, size and level are all there or none'
            WHEN resting AND (status <> 'pending' OR trigger_kind IS NULL OR lease_owner IS NOT NULL)
                THEN 'resting_orders_wait: pending, for a trigger, and nobody''s'
            WHEN status <> 'pending' OR sequence <> 1
                THEN 'orders_start_pending: at sequence 1'
            WHEN (SELECT status FROM order_events
                  WHERE order_id = added.order_id AND sequence = 1) IS DISTINCT FROM status
                THEN 'orders_have_their_event: it lacks its event'
        END AS rule
        FROM added
        OFFSET 0
    ) AS judged
    WHERE rule IS NOT NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'order % is refused by %', broken.order_id, broken.rule
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = split_part(broken.rule, ':', 1);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION check_moved_orders() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken record;
BEGIN
    SELECT * INTO broken
    FROM (
        SELECT order_id, CASE
            WHEN (SELECT true FROM was WHERE closed_status IS NOT NULL LIMIT 1)
                THEN 'closed_orders_are_immutable: a closed order never changes'
            WHEN resting AND (status <> 'pending' OR trigger_kind IS NULL OR lease_owner IS NOT NULL)
                THEN 'resting_orders_wait: pending, for a trigger, and nobody''s'
            WHEN status = 'pending' AND sequence > 1 AND trigger_kind IS NULL
                THEN 'what_waits_has_a_trigger: an order without a trigger never waits again'
            -- It stands where its latest event says. So it never goes back, either.
            WHEN (SELECT CASE WHEN sequence = moved.sequence THEN status END FROM order_events
                  WHERE order_id = moved.order_id AND sequence >= moved.sequence
                  ORDER BY sequence DESC LIMIT 1) IS DISTINCT FROM status
                THEN 'orders_have_their_event: an order''s status moves with its sequence; this lacks its event'
            -- It is submitted exactly while a transaction is open, and confirmed exactly when one has landed.
            WHEN (SELECT CASE WHEN outcome IS NULL THEN 'submitted' ELSE 'confirmed' END::order_status FROM attempts
                  WHERE order_id = moved.order_id AND (outcome IS NULL OR outcome = 'landed'))
                IS DISTINCT FROM CASE WHEN status IN ('submitted', 'confirmed') THEN status END
                THEN 'orders_have_their_event: it lacks its event or its transaction'
        END AS rule
        FROM moved
        OFFSET 0
    ) AS judged
    WHERE rule IS NOT NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'order % is refused by %', broken.order_id, broken.rule
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = split_part(broken.rule, ':', 1);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION check_new_events() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken record;
BEGIN
    SELECT * INTO broken
    FROM (
        SELECT order_id, sequence, CASE
            WHEN attempt < 1
                THEN 'attempts_count_from_one: there is no attempt before it'
            WHEN input_amount NOT BETWEEN 0 AND 18446744073709551615
                THEN 'input_amount_is_u64: it is 0 to 18446744073709551615 base units'
            WHEN output_amount NOT BETWEEN 0 AND 18446744073709551615
                THEN 'output_amount_is_u64: it is 0 to 18446744073709551615 base units'
            WHEN status = 'failed' AND failure_reason IS NULL
                THEN 'failed_events_have_a_reason: it has none'
            WHEN CASE WHEN sequence = 1 THEN previous_status IS NOT NULL OR status <> 'pending'
                      ELSE sequence < 1 OR previous_status IS NULL END
                THEN 'events_start_pending: the first event is pending, and none but it has no status before'
            WHEN NOT CASE previous_status
                    WHEN 'pending' THEN status IN ('routing', 'failed', 'cancelled', 'expired')
                    WHEN 'routing' THEN status IN ('pending', 'routing', 'building', 'failed', 'cancelled', 'expired')
                    WHEN 'building' THEN status IN ('routing', 'submitted', 'failed', 'cancelled', 'expired')
                    WHEN 'submitted' THEN status IN ('pending', 'routing', 'confirmed', 'failed')
                    ELSE previous_status IS NULL
                END
                THEN 'transition_is_legal: there is no such transition'
            -- Gapless, each from the status the one before it left.
            WHEN sequence > 1 AND (
                    SELECT status FROM order_events
                    WHERE order_id = added.order_id AND sequence = added.sequence - 1
                ) IS DISTINCT FROM previous_status
                THEN 'events_continue_their_order: it does not follow from the one before'
            WHEN coalesce((SELECT sequence FROM orders WHERE order_id = added.order_id), 0) < sequence
                THEN 'events_continue_their_order: it does not follow from what its order says'
        END AS rule
        FROM added
        OFFSET 0
    ) AS judged
    WHERE rule IS NOT NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'event % of order % is refused by %', broken.sequence, broken.order_id, broken.rule
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = split_part(broken.rule, ':', 1);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER new_orders_are_as_they_must AFTER INSERT ON orders
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION check_new_orders();
CREATE TRIGGER moved_orders_are_as_they_must AFTER UPDATE ON orders
    REFERENCING OLD TABLE AS was NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION check_moved_orders();
CREATE TRIGGER new_events_are_as_they_must AFTER INSERT ON order_events
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION check_new_events();
