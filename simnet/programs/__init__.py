"""The on-chain programs that simnet runs: every venue's, and those that swap transactions use beside them."""

from __future__ import annotations

from engine.venues import VENUES
from simnet.bank import Program
from simnet.programs.associated_token import AssociatedToken
from simnet.programs.compute_budget import ComputeBudget
from simnet.programs.memo import Memo
from simnet.programs.swap import SwapProgram
from simnet.programs.system import System
from simnet.programs.token import Token

_ADDRESS_ERRORS = {
    # 6008 InvalidVault.
    "raydium_cpmm": {6: 6008, 7: 6008},
    # Vaults fail has_one, mints a token constraint, token programs theirs, the event authority its seeds.
    "meteora_damm_v2": {4: 2001, 5: 2001, 6: 2014, 7: 2014, 9: 2021, 10: 2021, 12: 2006},
}


def all_programs() -> list[Program]:
    venues = [SwapProgram(venue, _ADDRESS_ERRORS.get(venue.kind, {})) for venue in VENUES]
    return [System(), ComputeBudget(), Token(), AssociatedToken(), Memo(), *venues]
