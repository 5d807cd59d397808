-- Which database this record was last kept in. Put back from a backup, or taken over from a standby, it finds itself
-- in another one, and may lack what was written last: workers then ask the chain before they execute anything.

CREATE TABLE place (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    place    text NOT NULL
);
