"""A simulated Solana node with pools of every kind in engine/venues: the mock at the network's edge.

It speaks the JSON-RPC and WebSocket that the engine uses, and somewhat more, keeps real account bytes,
executes real signed transactions, ages blockhashes by block height and misbehaves on request. Nothing in
the engine knows that it is not a real node.

    transaction.py   bytes -> Transaction; signatures
    accounts.py      an account, and what its bytes say
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
    shapes.py        answers, as a node writes them; base58.py: addresses in them
    rpc.py ws.py     how it is asked; launch_rpc.py: for launches; http.py: over what
    node.py          all of it, from settings
"""
