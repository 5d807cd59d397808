"""The on-chain programs that simnet runs: every venue's, and those that swap transactions use beside them."""

from __future__ import annotations

from typing import Final

from engine.venues import VENUES
from simnet.bank import Program
from simnet.programs.associated_token import AssociatedToken
from simnet.programs.compute_budget import ComputeBudget
from simnet.programs.memo import Memo
from simnet.programs.swap import Errors, SwapProgram
from simnet.programs.system import System
from simnet.programs.token import Token

_ERRORS: Final = {
    # 6008 InvalidVault.
    "raydium_cpmm": Errors(addresses={6: 6008, 7: 6008}),
    # Vaults fail has_one, mints a token constraint, token programs theirs, the event authority its seeds.
    "meteora_damm_v2": Errors(addresses={4: 2001, 5: 2001, 6: 2014, 7: 2014, 9: 2021, 10: 2021, 12: 2006}),
    # Reserves and the oracle fail has_one; a bin array that is not named is one account too few.
    "meteora_dlmm": Errors(addresses={2: 2001, 3: 2001, 8: 2001, 13: 3008, 14: 2006}, arrays=3005),
    # 6021 InvalidInputPoolVault; programs fail as such; 6023 NotEnoughTickArrayAccount.
    "raydium_clmm": Errors(addresses={5: 6021, 6: 6021, 8: 3008, 9: 3008}, arrays=6023, pays_first=True),
    # A native program. 1 InvalidProgramAddress, 3 ExpectedAccount, 4 InvalidCoinVault, 5 InvalidPCVault,
    # 21 InvalidSignAccount, 27 InvalidAmmAccountOwner, 38 InvalidSplTokenProgram, 40 InsufficientFunds.
    "raydium_amm_v4": Errors(
        unknown_instruction="InvalidInstructionData",
        data="InvalidInstructionData",
        addresses={0: 38, 2: 1, 3: 4, 4: 5},
        wrong_kind=3,
        too_few_accounts="NotEnoughAccountKeys",
        fewest_accounts=8,
        not_writable="ReadonlyDataModified",
        wrong_owner=27,
        not_signer=21,
        not_initialized=3,
        funds=40,
        slippage_log="Program log: Error: exceeds desired slippage limit",
    ),
}


def all_programs() -> list[Program]:
    venues = [SwapProgram(venue, _ERRORS.get(venue.kind, Errors())) for venue in VENUES]
    return [System(), ComputeBudget(), Token(), AssociatedToken(), Memo(), *venues]
