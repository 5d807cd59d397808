"""The `order-engine` command: runs the engine, and speaks to one that runs."""
