-- Every statement the engine runs on orders. postgres.py runs them; nothing else holds SQL but the
-- migrations. Many orders travel in one statement, as an array of rows.

-- name: submit_orders
-- Store new orders with their first event. A request_id that is taken inserts nothing and returns
-- nothing: its order is read by orders_by_request_id, in a second statement, because this one's
-- snapshot may be older than the winner's commit.
WITH submitted AS (
    INSERT INTO orders (
        order_id, request_id, request_fingerprint, type, side, amount, input_mint, output_mint, slippage_bps,
        expire_time, terms, input_decimals, output_decimals, trigger_kind, trigger_size, trigger_level,
        resting, due_time
    )
    SELECT *, trigger_kind IS NOT NULL,
        CASE WHEN trigger_kind IS NULL THEN now() ELSE coalesce(expire_time, 'infinity') END
    FROM unnest(%(orders)t::new_order[])
    ON CONFLICT (request_id) DO NOTHING
    RETURNING order_id, create_time
), told AS (
    INSERT INTO order_events (order_id, sequence, status, attempt)
    SELECT order_id, 1, 'pending', 1 FROM submitted
)
SELECT order_id, create_time FROM submitted;

-- name: orders_by_request_id
-- Which order each request_id names, and what was asked with it.
SELECT request_id, order_id, request_fingerprint
FROM orders
WHERE request_id = ANY (%(request_id)t::text[]);

-- name: get_orders
-- Orders as they stand: spec, position, and what their latest event knows; and so many of the latest routing
-- decisions, oldest first.
SELECT o.order_id, o.type, o.terms::text, o.side, o.amount, o.input_mint, o.input_decimals, o.output_mint,
    o.output_decimals, o.slippage_bps, o.expire_time, o.status, o.sequence, o.attempt, o.forgiven_attempts,
    o.create_time, o.update_time,
    e.venue, e.input_amount, e.output_amount, e.tx_hash, e.failure_reason, e.failure_message,
    CASE WHEN o.status = 'building' THEN coalesce(e.decision::text, e.jsonb_decision::text) END,
    a.tx_hash, a.raw_transaction, a.last_valid_block_height,
    CASE WHEN %(decisions)b::bigint > 0 THEN ARRAY(
        SELECT latest.decision
        FROM (
            SELECT sequence, coalesce(decision::text, jsonb_decision::text) AS decision
            FROM order_events
            WHERE order_id = o.order_id AND (decision IS NOT NULL OR jsonb_decision IS NOT NULL)
            ORDER BY sequence DESC
            LIMIT %(decisions)b::bigint
        ) AS latest
        ORDER BY latest.sequence
    ) END
FROM unnest(%(order_id)t::uuid[]) AS wanted (order_id)
JOIN orders o ON o.order_id = wanted.order_id
JOIN order_events e ON e.order_id = o.order_id AND e.sequence = o.sequence
LEFT JOIN attempts a ON a.order_id = o.order_id AND a.outcome IS NULL;

-- name: list_orders
-- A page of orders, newest first: order ids are made from the time, so they sort by it.
SELECT order_id
FROM orders
WHERE order_id < %(before)b::uuid
ORDER BY order_id DESC
LIMIT %(limit)b::bigint;

-- name: list_closed_orders
-- The same, of some closed statuses and types. Written so that only orders_closed has its order: by the primary
-- key, a page of a rare status would be looked for among all orders there ever were.
SELECT page.order_id
FROM unnest(%(status)t::order_status[]) AS wanted (status)
CROSS JOIN unnest(%(type)t::text[]) AS asked (type)
CROSS JOIN LATERAL (
    SELECT order_id
    FROM orders
    WHERE type = asked.type
      AND closed_status >= wanted.status
      AND (closed_status, order_id) < (wanted.status, %(before)b::uuid)
    ORDER BY closed_status DESC, order_id DESC
    LIMIT %(limit)b::bigint
) AS page
ORDER BY page.order_id DESC
LIMIT %(limit)b::bigint;

-- name: list_open_orders
-- The same, of open orders that do not rest. Walks those only: materialized before the page is cut out, or it
-- would walk the primary key, past all the closed ones.
WITH open_orders AS MATERIALIZED (
    SELECT order_id
    FROM orders
    WHERE closed_status IS NULL AND NOT resting
      AND status = ANY (%(status)t::order_status[]) AND type = ANY (%(type)t::text[])
)
SELECT order_id
FROM open_orders
WHERE order_id < %(before)b::uuid
ORDER BY order_id DESC
LIMIT %(limit)b::bigint;

-- name: list_resting_orders
-- The same, of orders that wait for their trigger, by the index of those alone, and for the same reason so written.
SELECT page.order_id
FROM unnest(%(type)t::text[]) AS asked (type)
CROSS JOIN LATERAL (
    SELECT order_id
    FROM orders
    WHERE resting
      AND type >= asked.type
      AND (type, order_id) < (asked.type, %(before)b::uuid)
    ORDER BY type DESC, order_id DESC
    LIMIT %(limit)b::bigint
) AS page
ORDER BY page.order_id DESC
LIMIT %(limit)b::bigint;

-- name: order_positions
-- Where orders stand: for watchers whose cursor found nothing newer.
SELECT order_id, sequence, closed_status IS NOT NULL
FROM orders
WHERE order_id = ANY (%(order_id)t::uuid[]);

-- name: events_after
-- The events of many orders, each after its watcher's cursor, in sequence per order, the first so many of each.
-- Those that a route was chosen with have it; every pool's quote is for those who ask for the order.
SELECT e.order_id, e.sequence, e.status, e.attempt, e.create_time, e.venue, e.input_amount, e.output_amount,
    e.tx_hash, e.failure_reason, e.failure_message, o.input_mint, o.input_decimals, o.output_mint,
    o.output_decimals, o.side,
    CASE WHEN e.status = 'building'
        THEN coalesce((e.decision -> 'route')::text, (e.jsonb_decision -> 'route')::text) END
FROM unnest(%(watched)t::watched_order[]) AS watched
JOIN orders o ON o.order_id = watched.order_id AND o.sequence > watched.after_sequence
CROSS JOIN LATERAL (
    SELECT *
    FROM order_events
    WHERE order_id = watched.order_id AND sequence > watched.after_sequence
    ORDER BY sequence
    LIMIT %(limit)b::bigint
) AS e;

-- name: moved_orders
-- Which of the watched orders have events after their watcher's cursor.
SELECT o.order_id
FROM unnest(%(order_id)b::uuid[], %(after_sequence)b::bigint[]) AS watched (order_id, after_sequence)
JOIN orders o ON o.order_id = watched.order_id AND o.sequence > watched.after_sequence;

-- name: lacking_orders
-- Of which of the watched orders the record does not have what a watcher has seen: it was put back, or a standby took
-- over that lacked the last commits.
SELECT watched.order_id
FROM unnest(%(order_id)b::uuid[], %(after_sequence)b::bigint[]) AS watched (order_id, after_sequence)
LEFT JOIN orders o ON o.order_id = watched.order_id
WHERE o.order_id IS NULL OR o.sequence < watched.after_sequence;

-- name: claim_orders
-- Take up orders that are due and that nobody alive holds, or that this owner holds already. Those
-- that are pending become routing in the same statement, unless they expired while they waited. An order
-- that rests is not due before it expires. Types that this program does not know are left to a newer one.
-- Whom it is taken over from ended while executing it: one that ends in peace puts down what it holds. An order
-- that has been interrupted so often is returned and held by nobody, so that it is not blamed for yet another end.
WITH candidate AS (
    SELECT order_id, status = 'pending' AND (expire_time IS NULL OR expire_time > now()) AS starts,
        CASE WHEN lease_owner <> %(lease_owner)b::bigint
            THEN least(interruptions + 1, 1000) ELSE interruptions END AS interruptions
    FROM orders
    WHERE order_id = ANY (%(order_id)t::uuid[])
      AND closed_status IS NULL
      AND type = ANY (%(type)t::text[])
      AND due_time <= now()
      AND (lease_owner IS NULL OR lease_owner = %(lease_owner)b::bigint OR NOT EXISTS (
          SELECT FROM lease_owners owner
          WHERE owner.lease_owner = orders.lease_owner AND owner.expire_time > now()))
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE orders o
    SET lease_owner = CASE WHEN candidate.interruptions < %(interruptions)b::bigint
            THEN %(lease_owner)b::bigint END,
        interruptions = candidate.interruptions,
        resting = false,
        status = CASE WHEN starts THEN 'routing' ELSE o.status END,
        sequence = CASE WHEN starts THEN o.sequence + 1 ELSE o.sequence END,
        update_time = now()
    FROM candidate
    WHERE o.order_id = candidate.order_id
    RETURNING o.*, candidate.starts
), told AS (
    INSERT INTO order_events (order_id, sequence, previous_status, status, attempt)
    SELECT order_id, sequence, 'pending', 'routing', attempt FROM claimed WHERE starts
)
SELECT o.order_id, o.type, o.terms::text, o.side, o.amount, o.input_mint, o.input_decimals, o.output_mint,
    o.output_decimals, o.slippage_bps, o.expire_time, o.status, o.sequence, o.attempt, o.forgiven_attempts,
    o.create_time, o.update_time,
    e.venue, e.input_amount, e.output_amount, e.tx_hash, e.failure_reason, e.failure_message,
    CASE WHEN o.status = 'building' THEN coalesce(e.decision::text, e.jsonb_decision::text) END,
    a.tx_hash, a.raw_transaction, a.last_valid_block_height, o.starts, o.interruptions
FROM claimed o
LEFT JOIN order_events e ON e.order_id = o.order_id AND e.sequence = o.sequence AND NOT o.starts
LEFT JOIN attempts a ON a.order_id = o.order_id AND a.outcome IS NULL AND NOT o.starts;

-- name: advance_orders
-- Move many orders, each by one or more transitions, each only if it still stands at the sequence the
-- move was decided from. Returns those that moved, and when; the others were superseded and nothing of
-- theirs is stored. Nor is a transaction of an order that has expired meanwhile, which is sent only from the record.
WITH moved AS (
    UPDATE orders o
    SET status = m.status,
        sequence = m.sequence,
        attempt = m.attempt,
        -- An order becomes pending only where it waits for its trigger again.
        resting = m.status = 'pending',
        forgiven_attempts = CASE WHEN m.status = 'pending' THEN m.attempt - 1 ELSE o.forgiven_attempts END,
        due_time = CASE WHEN m.status = 'pending' THEN coalesce(o.expire_time, 'infinity')
                        WHEN m.rests THEN now() + m.delay_seconds * interval '1 second' ELSE o.due_time END,
        lease_owner = CASE WHEN m.rests THEN NULL ELSE o.lease_owner END,
        interruptions = 0,
        update_time = now()
    FROM unnest(%(moves)t::order_move[]) AS m
    WHERE o.order_id = m.order_id AND o.sequence = m.expected_sequence
      AND (m.status <> 'submitted' OR o.expire_time IS NULL OR o.expire_time > now())
    RETURNING o.order_id
), opened AS (
    INSERT INTO attempts (order_id, attempt, tx_hash, raw_transaction, last_valid_block_height)
    SELECT a.order_id, a.attempt, a.tx_hash, a.raw, a.last_valid_block_height
    -- The signed bytes beside their row, for they are long.
    FROM unnest(%(opened)t::new_attempt[], %(raw_transaction)b::bytea[])
        AS a (order_id, attempt, tx_hash, raw_transaction, last_valid_block_height, raw)
    WHERE a.order_id = ANY (ARRAY(SELECT order_id FROM moved))
), closed AS (
    UPDATE attempts a
    SET outcome = c.outcome
    FROM unnest(%(closed)t::closed_attempt[]) AS c
    WHERE a.order_id = c.order_id AND a.attempt = c.attempt
      AND c.order_id = ANY (ARRAY(SELECT order_id FROM moved))
), told AS (
    INSERT INTO order_events (
        order_id, sequence, previous_status, status, attempt, venue, input_amount, output_amount, tx_hash,
        failure_reason, failure_message, decision
    )
    SELECT *
    FROM unnest(%(events)t::new_event[], %(decision)b::json[]) AS e
    WHERE e.order_id = ANY (ARRAY(SELECT order_id FROM moved))
)
SELECT order_id, now() FROM moved;

-- name: postpone_orders
-- Put orders down for a while, unchanged: what they need (the node, fresh prices) is not to be had.
UPDATE orders
SET due_time = now() + %(delay_seconds)b::double precision * interval '1 second',
    lease_owner = NULL
WHERE order_id = ANY (%(order_id)t::uuid[]) AND lease_owner = %(lease_owner)b::bigint;

-- name: due_orders
-- The sweeper's question: orders that are due and that nobody alive holds, and then those that rested until they
-- expired, of those types that this program knows. However many expire at once, the others do not wait for them.
-- A new order is left to its hint for a moment.
SELECT order_id
FROM (
    (
        SELECT order_id, due_time, resting
        FROM orders
        WHERE closed_status IS NULL AND NOT resting
          AND due_time <= now()
          AND (sequence > 1 OR due_time <= now() - %(hint_seconds)b::double precision * interval '1 second')
          -- In a CASE, so that the type is not looked at of the many that somebody holds.
          AND CASE WHEN lease_owner IS NULL OR NOT EXISTS (
              SELECT FROM lease_owners owner
              WHERE owner.lease_owner = orders.lease_owner AND owner.expire_time > now())
              THEN type = ANY (%(type)t::text[]) ELSE false END
        ORDER BY due_time
        LIMIT %(due_limit)b::bigint
    )
    UNION ALL
    (
        SELECT order_id, due_time, resting
        FROM orders
        -- The index is of those that expire at all.
        WHERE resting AND due_time < 'infinity' AND due_time <= now()
          AND type = ANY (%(type)t::text[])
        ORDER BY due_time
        LIMIT %(limit)b::bigint
    )
) AS due
ORDER BY resting, due_time
LIMIT %(limit)b::bigint;

-- name: leased_orders
-- What the record says this worker holds. What it does not know of is claimed again: the answer to
-- that claim, or to a write, was lost on the way.
SELECT order_id
FROM orders
WHERE closed_status IS NULL AND NOT resting AND due_time <= now() AND lease_owner = %(lease_owner)b::bigint;

-- name: hasten_orders
-- Make due what is put off for longer than anything is: the database's clock was ahead then, and was set right since.
WITH late AS (
    SELECT order_id
    FROM orders
    WHERE closed_status IS NULL AND NOT resting
      AND due_time > now() + %(most_seconds)b::double precision * interval '1 second'
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)
UPDATE orders o
SET due_time = now()
FROM late
WHERE o.order_id = late.order_id
RETURNING o.order_id;

-- name: start_lease_owner
-- A new worker process. Its number is also its session advisory lock.
WITH started AS (
    INSERT INTO lease_owners (expire_time)
    VALUES (now() + %(lease_seconds)b::double precision * interval '1 second')
    RETURNING lease_owner
)
SELECT lease_owner, pg_advisory_lock(%(lock_class)b::integer, lease_owner::integer) FROM started;

-- name: renew_lease
-- Keep all of a worker's leases: one row, however many orders it holds. Returns nothing if others
-- have declared the worker dead meanwhile. Also tells the database's time.
UPDATE lease_owners
SET expire_time = now() + %(lease_seconds)b::double precision * interval '1 second'
WHERE lease_owner = %(lease_owner)b::bigint
RETURNING clock_timestamp();

-- name: end_lease_owner
-- The worker leaves: whatever it still holds is put down, and free at once. Not if another one that lives has the
-- number: a database that was put back gives numbers again.
WITH mine AS (
    SELECT pg_try_advisory_xact_lock(%(lock_class)b::integer, %(lease_owner)b::integer) AS is_mine
), ended AS (
    DELETE FROM lease_owners WHERE lease_owner = %(lease_owner)b::bigint AND (SELECT is_mine FROM mine)
)
UPDATE orders
SET lease_owner = NULL
WHERE closed_status IS NULL AND NOT resting AND due_time <= now() AND lease_owner = %(lease_owner)b::bigint
  AND (SELECT is_mine FROM mine);

-- name: free_dead_owners
-- Remove workers that are gone: who can take an owner's advisory lock has proved it dead, and
-- need not wait for its expire_time. The lock is released when the statement's transaction ends.
DELETE FROM lease_owners
WHERE lease_owner <> %(lease_owner)b::bigint
  AND (expire_time < now() - interval '1 hour'
       OR pg_try_advisory_xact_lock(%(lock_class)b::integer, lease_owner::integer))
RETURNING lease_owner;

-- name: place
-- In which database the record was last kept, when a worker last kept it (as monitors are, several times a second;
-- else when it begins), what time it is, whether any order is open, and the wallets of all its workers so far.
SELECT (SELECT place FROM place),
    coalesce(nullif((SELECT max(expire_time) FROM monitors), '-infinity'),
             (SELECT min(apply_time) FROM schema_migrations)),
    now(),
    EXISTS (SELECT FROM orders WHERE closed_status IS NULL AND NOT resting) OR EXISTS (SELECT FROM orders WHERE resting),
    ARRAY(SELECT wallet FROM wallets ORDER BY wallet);

-- name: place_here
-- Cluster, timeline, database and table: each way of putting a record back changes one of them, but that of the disk.
SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
    left(pg_walfile_name(pg_current_wal_lsn()), 8),
    (SELECT oid FROM pg_database WHERE datname = current_database()), 'orders'::regclass::oid);

-- name: set_place
-- The record is kept here from now on, and the wallet is one of its workers'.
WITH known AS (INSERT INTO wallets (wallet) VALUES (%(wallet)b::text) ON CONFLICT DO NOTHING)
INSERT INTO place (place) VALUES (%(place)b::text) ON CONFLICT (only_one) DO UPDATE SET place = excluded.place
WHERE place.place <> excluded.place;

-- name: known_transactions
-- Of transactions that name these orders: whether the order is open, NULL where there is no such order, and whether
-- the transaction is on record.
SELECT CASE WHEN o.order_id IS NOT NULL THEN o.closed_status IS NULL END,
    -- Not EXISTS: PostgreSQL may answer it for all of them at once, by reading every attempt there ever was.
    (SELECT true FROM attempts a WHERE a.order_id = named.order_id AND a.tx_hash = named.tx_hash LIMIT 1) IS NOT NULL
FROM unnest(%(order_id)t::uuid[], %(tx_hash)t::text[]) WITH ORDINALITY AS named (order_id, tx_hash, number)
LEFT JOIN orders o ON o.order_id = named.order_id
ORDER BY named.number;

-- name: backlog
-- Open orders that do not rest, counted no further than the limit, and for how many seconds the oldest is due.
SELECT count(*), extract(epoch FROM now() - (
    SELECT due_time FROM orders WHERE closed_status IS NULL AND NOT resting ORDER BY due_time LIMIT 1
))::double precision
FROM (SELECT FROM orders WHERE closed_status IS NULL AND NOT resting LIMIT %(limit)b::bigint) AS open_orders;

-- name: resting_orders_count
-- How many orders of each type wait for their trigger.
SELECT type, count(*) FROM orders WHERE resting GROUP BY type;

-- name: take_monitors
-- Follow what triggers wait for, or go on with it: one worker at a time for each kind. Of those that no other worker
-- follows that is alive, returns whether any orders wait for them: while none do, nothing else is asked. A dead one
-- is recognized by its lease, or by its row here growing old. In the order of the index that has the kind: any other
-- would be read to its end for a kind of which none waits.
UPDATE monitors
SET lease_owner = %(lease_owner)b::bigint,
    expire_time = now() + %(lease_seconds)b::double precision * interval '1 second'
WHERE trigger_kind = ANY (%(trigger_kind)t::trigger_kind[])
  AND (lease_owner = %(lease_owner)b::bigint OR expire_time <= now() OR NOT EXISTS (
      SELECT FROM lease_owners owner
      WHERE owner.lease_owner = monitors.lease_owner AND owner.expire_time > now()))
RETURNING trigger_kind,
    (SELECT true FROM orders WHERE resting AND orders.trigger_kind = monitors.trigger_kind
     ORDER BY input_mint COLLATE "C", output_mint COLLATE "C", side, trigger_size, trigger_level, order_id
     LIMIT 1) IS NOT NULL;

-- name: leave_monitor
-- Leave it to the others at once.
UPDATE monitors
SET expire_time = now()
WHERE trigger_kind = %(trigger_kind)t::trigger_kind AND lease_owner = %(lease_owner)b::bigint;

-- name: resting_groups
-- Which pairs, sides and sizes have orders that wait for this trigger, each with its lowest level. From one group
-- the index is entered anew for the next one, so it costs as much for a thousand orders as for a million.
WITH RECURSIVE groups AS (
    (
        SELECT order_id, input_mint, output_mint, side, trigger_size, trigger_level, input_decimals,
            output_decimals
        FROM orders
        WHERE resting AND trigger_kind = %(trigger_kind)t::trigger_kind
        ORDER BY input_mint COLLATE "C", output_mint COLLATE "C", side, trigger_size, trigger_level, order_id
        LIMIT 1
    )
    UNION ALL
    SELECT following.*
    FROM groups
    CROSS JOIN LATERAL (
        SELECT o.order_id, o.input_mint, o.output_mint, o.side, o.trigger_size, o.trigger_level,
            o.input_decimals, o.output_decimals
        FROM orders o
        WHERE o.resting AND o.trigger_kind = %(trigger_kind)t::trigger_kind
          AND (o.input_mint COLLATE "C", o.output_mint COLLATE "C", o.side, o.trigger_size)
              > (groups.input_mint COLLATE "C", groups.output_mint COLLATE "C", groups.side, groups.trigger_size)
        ORDER BY o.input_mint COLLATE "C", o.output_mint COLLATE "C", o.side, o.trigger_size, o.trigger_level,
            o.order_id
        LIMIT 1
    ) AS following
)
SELECT * FROM groups;

-- name: resting_orders
-- Orders of a group up to a level, lowest first, as they stand: what can be known of one that waits. The group's
-- amounts are cut into equal parts, and each part has a level of its own, none above the other one.
SELECT o.order_id, o.type, o.terms::text, o.side, o.amount, o.input_mint, o.input_decimals, o.output_mint,
    o.output_decimals, o.slippage_bps, o.expire_time, o.status, o.sequence, o.attempt, o.forgiven_attempts,
    o.create_time, o.update_time,
    NULL, NULL, NULL, NULL, e.failure_reason, e.failure_message, NULL, NULL, NULL, NULL, o.trigger_level
FROM orders o
-- Why it waits again, if it does.
LEFT JOIN order_events e ON o.sequence > 1 AND e.order_id = o.order_id AND e.sequence = o.sequence
WHERE o.resting AND o.trigger_kind = %(trigger_kind)t::trigger_kind
  AND o.input_mint COLLATE "C" = %(input_mint)b::text AND o.output_mint COLLATE "C" = %(output_mint)b::text
  AND o.side = %(side)t::order_side AND o.trigger_size = %(trigger_size)b::smallint
  AND o.trigger_level <= %(trigger_level)b::double precision
  AND (o.trigger_level, o.order_id) > (%(after_level)b::double precision, %(after_order_id)b::uuid)
  AND o.trigger_level <= (%(part_level)t::double precision[])[least(
      -- As a float, the largest amount of all is one more than the largest.
      cardinality(%(part_level)t::double precision[]),
      width_bucket(o.amount::double precision, %(least_amount)b::double precision,
          2 * %(least_amount)b::double precision, cardinality(%(part_level)t::double precision[])))]
ORDER BY o.trigger_level, o.order_id
LIMIT %(limit)b::bigint;

-- name: fire_orders
-- The triggers of these orders hold: they are due, and held by their owner if one is named. Returns those that
-- still waited; one that has expired is left to the sweeper, one that was cancelled or fired before is not here
-- any more. In a CASE, so that orders are looked up by their ids and not among all that rest.
UPDATE orders o
SET resting = false, due_time = now(), lease_owner = f.lease_owner
FROM unnest(%(fired)t::fired_order[]) AS f
WHERE o.order_id = f.order_id AND o.sequence = f.expected_sequence
  AND CASE WHEN o.resting THEN o.expire_time IS NULL OR o.expire_time > now() ELSE false END
RETURNING o.order_id;
