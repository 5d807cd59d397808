"""PostgreSQL is the truth: orders, their events, and the transactions broadcast for them."""
