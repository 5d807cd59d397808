"""The worker process: takes orders up and carries them to their end.

executor.py tells the story of one order; settlement.py follows what was broadcast to its proof; monitor.py
fires orders that wait for a price or for liquidity; leases.py says which orders are this process's own;
app.py puts them together.
"""
