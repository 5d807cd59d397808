-- What hints bring along of orders is signed with this: who can write to Redis, and not read here, invents no status.

CREATE TABLE news_key (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    key      bytea NOT NULL
);
-- Three random UUIDs have 366 random bits.
INSERT INTO news_key (key)
SELECT sha256((gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text)::bytea);
