"""A simulated Solana node with Raydium CPMM and Meteora DAMM v2 pools: the mock at the network's edge.

It speaks the JSON-RPC and WebSocket subset that the engine uses, keeps real account bytes, executes real
signed transactions, ages blockhashes by block height and misbehaves on request. Nothing in the engine
knows that it is not a real node.

    transaction.py   bytes -> Transaction; signatures
    bank.py          one transaction on accounts, all or nothing
    programs/        one on-chain program a file
    genesis.py       the accounts of the first slot
    market.py        prices that move with every slot
    launches.py      tokens that are launched: a mint, then a pool, then more in it
    liquidity.py     how much a pool holds, changed at its price
    supply.py        tokens from nowhere
    faults.py        what goes wrong, by settings and at run time
    chain.py         slots, blockhashes, what is waiting and what has landed
    ledger.py        the durable record of all of it
    history.py       what pools would have given, slot by slot
    questions.py     what is asked, read and checked
    rpc.py ws.py     how it is asked
"""
