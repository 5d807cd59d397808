-- With which wallets orders of this record were signed for. Where it is put back from a backup, what was done since is
-- among the transactions of all of them, whichever the workers have by then.

CREATE TABLE wallets (
    wallet text PRIMARY KEY
);
