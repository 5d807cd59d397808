"""Settings: every one, with its name in the environment, its default and what it means.

Read from the environment, then from `.env` in the working folder, then the default. `.env.example`
is this file's contents as users see them (a test keeps the two alike).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from ipaddress import ip_address
from math import inf
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

from engine.addresses import with_port
from engine.domain.tokens import find_token

MAX_PROCESSES: Final = 64
"""Of each kind."""


class SettingsError(Exception):
    """A setting cannot be used. The message is for the person who set it."""


def _setting(default: Any, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    # ---- Addresses
    host: str = _setting(
        "127.0.0.1", "Address every port below is bound to; 0.0.0.0 or, with IPv6, :: for all interfaces"
    )
    port: int = _setting(3000, "REST, WebSocket and console")
    grpc_port: int = _setting(50051, "gRPC OrderService")
    grpc_host: str = _setting("127.0.0.1", "Where the gateway and the CLI find the gRPC servers")
    link_folder: str = _setting(
        "",
        "Folder of the Unix sockets by which gateways reach servers on their host; unset: by gRPC",
    )
    allowed_origins: str = _setting(
        "",
        "Other sites whose pages may use REST and WebSocket, comma-separated: https://desk.example.com; "
        "and the gateway's own, if pages reach it by a name that is not HOST's, as behind a proxy",
    )
    server_metrics_port: int = _setting(9101, "/metrics and /healthz of the server; 0 chooses a free one")
    workers_metrics_port: int = _setting(
        9201, "/metrics and /healthz of the first worker process; the next ones count up; 0 chooses"
    )

    # ---- Services. With `order-engine up`, an unset DB_HOST, REDIS_HOST or SOLANA_RPC_URL is embedded.
    db_host: str = _setting("", "PostgreSQL host, or the folder of its socket; unset: embedded")
    db_port: int = _setting(5432, "PostgreSQL port")
    db_username: str = _setting("postgres", "PostgreSQL user")
    db_password: str = _setting("", "PostgreSQL password")
    db_name: str = _setting("order_execution_engine", "PostgreSQL database")
    redis_host: str = _setting("", "Redis or Valkey host, or the path of its socket; unset: embedded")
    redis_port: int = _setting(6379, "Redis port")
    redis_password: str = _setting("", "Redis password")
    solana_rpc_url: str = _setting("", "JSON-RPC address of a Solana node; unset: the embedded simnet")
    solana_ws_url: str = _setting("", "Its WebSocket address; unset: the JSON-RPC address, port + 1")

    # ---- Trading
    wallet_path: str = _setting("", "Keypair file (JSON array of 64 numbers); unset: made in the data folder")
    commitment: str = _setting(
        "confirmed",
        "confirmed or finalized: what CONFIRMED rests on",
    )
    slippage_bps: int = _setting(50, "Of orders that name none, in basis points")
    max_attempts: int = _setting(3, "Transactions or routings an order may use up")
    retry_base_seconds: float = _setting(0.5, "Backoff after the first attempt; doubles with each")
    retry_cap_seconds: float = _setting(10.0, "Longest backoff")
    resend_seconds: float = _setting(2.0, "How often an unconfirmed transaction's bytes are sent again")
    priority_fee_micro_lamports: int = _setting(1000, "Compute unit price, in micro-lamports")
    max_route_legs: int = _setting(3, "Swaps an order may be split into, if one transaction holds them")
    leg_lamports: int = _setting(
        100_000,
        "What each further swap of an order must gain, in lamports, beside its fees: it can be refused too",
    )
    middle_tokens: str = _setting("SOL,USDC", "Tokens that orders may go through, comma-separated symbols")

    # ---- Capacity
    max_open_orders: int = _setting(
        200_000, "Orders being executed, or due to be, before submits are refused with a retry hint"
    )
    max_resting_orders: int = _setting(
        2_000_000, "Orders that wait for their trigger before further ones are refused"
    )
    worker_processes: int = _setting(1, "How many processes `python -m workers` keeps running")
    server_processes: int = _setting(
        1, "How many gRPC servers there are at GRPC_HOST, on GRPC_PORT and the next ports; `up` runs them"
    )
    gateway_processes: int = _setting(1, "How many gateways `up` runs, on PORT and the next ports")
    max_in_flight: int = _setting(1000, "Orders one worker process executes at a time")
    lease_seconds: float = _setting(10.0, "How long a silent worker's orders stay its own")
    sweep_seconds: float = _setting(0.25, "How often workers look for due orders that nobody holds")

    # ---- simnet
    simnet_port: int = _setting(8899, "JSON-RPC of simnet; its WebSocket is on the next port")
    simnet_slot_ms: int = _setting(400, "Slot length, 10 or more")
    simnet_seed: int = _setting(1, "Same seed, same market")
    simnet_data_dir: str = _setting("", "Folder of its ledger; unset: a temporary one, gone when it ends")
    simnet_confirmed_slots: int = _setting(1, "Slots until a transaction is confirmed; 0: at once")
    simnet_finalized_slots: int = _setting(31, "Slots until a transaction is finalized")
    simnet_blockhash_blocks: int = _setting(150, "Blocks for which a blockhash is good")
    simnet_landing_slots: int = _setting(0, "Slots a transaction waits beyond the next one")
    simnet_landing_jitter_slots: int = _setting(0, "Up to this many more, different for each transaction")
    simnet_market_pools: int = _setting(1, "Pools whose price the market moves in a slot; 0: none ever")
    simnet_launch_slots: int = _setting(300, "Slots from one launch of a token to the next; 0: none ever")
    simnet_history_slots: int = _setting(
        0, "Slots for which it remembers what pools would have given; 0: none"
    )
    simnet_faults: str = _setting(
        "", "Probabilities of what goes wrong: drop=0.01,delay=0.05,error=0.01,revert=0.01,status_lag=0.1"
    )

    # ---- Logs
    log_level: str = _setting("INFO", "DEBUG, INFO, WARNING or ERROR")

    def __post_init__(self) -> None:
        """Raise SettingsError for values that make no sense together or alone."""
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name.endswith("port") and not 0 <= value <= 65535:
                raise SettingsError(f"{setting.name.upper()} was {value}; must be between 0 and 65535")
            # Not NaN either: every comparison with it is false.
            if isinstance(setting.default, int | float) and not 0 <= value < inf:
                raise SettingsError(f"{setting.name.upper()} was {value}; must be a number, 0 or more")
        if self.commitment not in ("confirmed", "finalized"):
            raise SettingsError(f'COMMITMENT was "{self.commitment}"; must be confirmed or finalized')
        if not all(find_token(name.strip()) for name in self.middle_tokens.split(",")):
            raise SettingsError(
                f'MIDDLE_TOKENS was "{self.middle_tokens}"; must be symbols of traded tokens: SOL,USDC'
            )
        for origin in self.origins:
            if not _is_origin(origin):
                raise SettingsError(
                    f'ALLOWED_ORIGINS names "{origin}"; must be origins as browsers name them: https://desk.example.com'
                )
        if not 0 <= self.slippage_bps <= 10_000:
            raise SettingsError(f"SLIPPAGE_BPS was {self.slippage_bps}; must be between 0 and 10000")
        for name in (
            "max_route_legs", "max_attempts", "max_open_orders", "max_resting_orders", "max_in_flight",
            "simnet_blockhash_blocks",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise SettingsError(f"{name.upper()} was {getattr(self, name)}; must be 1 or more")
        for name in ("server_processes", "gateway_processes", "worker_processes"):
            if not 1 <= getattr(self, name) <= MAX_PROCESSES:
                raise SettingsError(
                    f"{name.upper()} was {getattr(self, name)}; must be between 1 and {MAX_PROCESSES}"
                )
        # Without the values: providers have their customers' keys in them.
        if self.solana_rpc_url and not _is_url(self.solana_rpc_url, "http", "https"):
            raise SettingsError(
                "SOLANA_RPC_URL must be an http or https address with a host: https://node.example.com"
            )
        if self.solana_ws_url and not _is_url(self.solana_ws_url, "ws", "wss"):
            raise SettingsError(
                "SOLANA_WS_URL must be a ws or wss address with a host: wss://node.example.com"
            )
        for name in ("resend_seconds", "lease_seconds", "sweep_seconds"):
            if getattr(self, name) == 0:
                raise SettingsError(f"{name.upper()} was 0; must be more than 0")
        if self.simnet_slot_ms < 10:
            raise SettingsError(f"SIMNET_SLOT_MS was {self.simnet_slot_ms}; must be 10 or more")
        if not 0 <= self.simnet_seed < 2**63:
            raise SettingsError(f"SIMNET_SEED was {self.simnet_seed}; must be from 0 to 2**63 - 1")
        if self.simnet_finalized_slots < self.simnet_confirmed_slots:
            raise SettingsError(
                f"SIMNET_FINALIZED_SLOTS was {self.simnet_finalized_slots};"
                f" must be SIMNET_CONFIRMED_SLOTS ({self.simnet_confirmed_slots}) or more"
            )
        if self.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise SettingsError(f'LOG_LEVEL was "{self.log_level}"; must be DEBUG, INFO, WARNING or ERROR')

    @property
    def origins(self) -> frozenset[str]:
        """Those of `allowed_origins`."""
        return frozenset(filter(None, (part.strip() for part in self.allowed_origins.split(","))))

    @property
    def grpc_target(self) -> str:
        """Address of the gRPC servers, as gRPC spells it; several are listed by IP address.

        Raises SettingsError where there are several at a name.
        """
        if self.server_processes == 1:
            return with_port(self.grpc_host, self.grpc_port)
        try:
            is_v6 = ip_address(self.grpc_host.strip("[]")).version == 6
        except ValueError:
            raise SettingsError(
                f'GRPC_HOST was "{self.grpc_host}"; must be an IP address for SERVER_PROCESSES of more than 1'
            ) from None
        ports = range(self.grpc_port, self.grpc_port + self.server_processes)
        addresses = ",".join(with_port(self.grpc_host, port) for port in ports)
        return f"{'ipv6' if is_v6 else 'ipv4'}:{addresses}"

    @property
    def link_paths(self) -> list[str]:
        """The sockets of the servers' links, in the order of their ports; none if there is no folder."""
        ports = range(self.grpc_port, self.grpc_port + self.server_processes)
        return [f"{self.link_folder}/grpc-{port}.sock" for port in ports] if self.link_folder else []

    @property
    def database(self) -> str:
        """libpq connection string, of a server that takes writes. `db_host` may be a socket's folder."""
        parts = {
            "host": self.db_host or "127.0.0.1",
            "port": str(self.db_port),
            "user": self.db_username,
            "password": self.db_password,
            "dbname": self.db_name,
            # Not a standby, which may lag. Whether it is one PostgreSQL says unasked.
            "target_session_attrs": "read-write",
        }
        return " ".join(f"{key}='{_quoted(value)}'" for key, value in parts.items() if value)

    @property
    def redis_url(self) -> str:
        """redis:// or, where `redis_host` is a path, unix://."""
        secret = f":{quote(self.redis_password, safe='')}@" if self.redis_password else ""
        if self.redis_host.startswith("/"):
            return f"unix://{secret}{self.redis_host}"
        return f"redis://{secret}{with_port(self.redis_host or '127.0.0.1', self.redis_port)}"

    @property
    def node_url(self) -> str:
        return self.solana_rpc_url or f"http://127.0.0.1:{self.simnet_port}"

    @property
    def node_ws_url(self) -> str:
        if self.solana_ws_url:
            return self.solana_ws_url
        node = urlsplit(self.node_url)
        scheme = "wss" if node.scheme == "https" else "ws"
        address = node.netloc
        if node.port:
            address = f"{address.removesuffix(f':{node.port}')}:{node.port + 1}"
        # With the query: that is where providers' keys are.
        return urlunsplit((scheme, address, node.path, node.query, ""))


def load_settings(environ: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")) -> Settings:
    """Return the settings of this process. Raises SettingsError, naming the variable and what it may be.

    A name in the file that is no setting, but nearly one, gets a line on stderr: it was meant to be one.
    """
    given = os.environ if environ is None else environ
    found = dict(_read_env_file(env_file)) if env_file is not None else {}
    for name in found:
        # What the environment sets, the file could not have set: so a child process does not say it again.
        if (meant := _nearly(name)) is not None and meant not in given:
            _warn(f"{env_file}: {name} is no setting and has no effect; perhaps {meant} was meant")
    found.update(given)
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        name = setting.name.upper()
        text = found.get(name, "")
        if not text.strip():
            continue
        # A password may begin or end with a blank.
        if not name.endswith("PASSWORD"):
            text = text.strip()
        kind: Any = type(setting.default)
        try:
            values[setting.name] = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise SettingsError(f'{name} was "{text}"; must be {wanted}') from None
    return Settings(**values)


def settings_as_environ(settings: Settings) -> dict[str, str]:
    """Return the environment that makes `load_settings` return these settings in a child process."""
    return {setting.name.upper(): str(getattr(settings, setting.name)) for setting in fields(settings)}


def env_example() -> str:
    """Return the text of `.env.example`: every setting, its meaning and its default."""
    lines = [
        "# Every setting with its default. Copy to .env and change what you need.",
        "# A blank and # begin a comment after a value; in quotes, 'so # to say', they are part of it.",
        "",
    ]
    for setting in fields(Settings):
        lines += [f"# {setting.metadata['about']}.", f"#{setting.name.upper()}={setting.default}", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def settings_table() -> str:
    """Return the README's table of settings."""
    rows = [
        f"| `{setting.name.upper()}` | {setting.default} | {setting.metadata['about']} |"
        for setting in fields(Settings)
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]) + "\n"


_EXPORT: Final = re.compile(r"^export\s+")
_COMMENT: Final = re.compile(r"\s#.*")
_IN_QUOTES: Final = re.compile(r"""\s*(["'])(.*?)\1\s*(?:\s#.*)?""")
"""A value with all that stands around it: as little as is followed by nothing but a comment."""


def _read_env_file(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Editors of Windows begin a file with a mark.
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = _EXPORT.sub("", line).partition("=")
        if not equals:
            raise SettingsError(f'{path}, line {number}: "{line}" is not NAME=value')
        quoted = _IN_QUOTES.fullmatch(value)
        pairs.append((name.strip(), quoted[2] if quoted else _COMMENT.sub("", value).strip()))
    return pairs


def _nearly(name: str) -> str | None:
    """Return the setting whose name was perhaps meant; None for a setting, and for what is none by far."""
    names = [setting.name.upper() for setting in fields(Settings)]
    if name in names:
        return None
    return next(iter(get_close_matches(name.upper(), names, n=1, cutoff=0.75)), None)


@cache
def _warn(sentence: str) -> None:
    """Write a line to stderr; once, however often the settings are read."""
    print(sentence, file=sys.stderr)  # noqa: T201


def _is_url(url: str, *schemes: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for what is no port
    except ValueError:
        return False
    return parts.scheme in schemes and bool(parts.hostname)


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    default_port = {"http": ":80", "https": ":443"}.get(parts.scheme)
    return (
        default_port is not None
        and bool(parts.hostname)
        and f"{parts.scheme}://{parts.netloc}" == text
        # As browsers name them, which is compared letter by letter.
        and parts.netloc == parts.netloc.lower()
        and "@" not in parts.netloc
        and not parts.netloc.endswith(default_port)
    )


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
