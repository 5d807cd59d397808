-- How often whoever executed the order ended before it moved on: one that its workers do not survive is to be
-- told from those that died with it by chance.
ALTER TABLE orders
    ADD COLUMN interruptions smallint NOT NULL DEFAULT 0;
