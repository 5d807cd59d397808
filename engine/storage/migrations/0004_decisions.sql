-- Routing decisions are kept as the text they are: they are read whole, by those who ask for them. Taken apart to
-- jsonb, sorted and compressed, one of eight quotes cost 110 us, as much as everything else that is recorded with it;
-- so it costs 22. Those from before stay as they are, and where they are.

ALTER TABLE order_events
    RENAME COLUMN decision TO jsonb_decision;
ALTER TABLE order_events
    -- Every pool's quote and the reason of the choice; on the event that the routing led to, else NULL.
    ADD COLUMN decision json;
