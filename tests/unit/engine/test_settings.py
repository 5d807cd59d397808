"""Every setting can be set, a bad one is named, and what users read about them is true."""

from __future__ import annotations

from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

import psycopg.conninfo
import pytest
import redis

from engine.settings import Settings, SettingsError, env_example, load_settings, settings_as_environ

PROJECT = Path(__file__).parents[3]

ALL = [pytest.param(setting, id=setting.name.upper()) for setting in fields(Settings)]
NUMBERS = [
    pytest.param(setting, id=setting.name.upper())
    for setting in fields(Settings)
    if isinstance(setting.default, int | float)
]

# Where "the default and one more" is not a value that can be used.
OTHERWISE: dict[str, Any] = {
    "allowed_origins": "https://desk.example.com,http://127.0.0.1:8080",
    "middle_tokens": "USDT, SOL",
    "commitment": "finalized",
    "log_level": "DEBUG",
    "solana_rpc_url": "https://node.example.com/?api-key=secret",
    "solana_ws_url": "wss://node.example.com/?api-key=secret",
}


def another_value(setting: Field[Any]) -> Any:
    """Return a usable value that is not the default."""
    if setting.name in OTHERWISE:
        return OTHERWISE[setting.name]
    default: Any = setting.default
    return f"another-{setting.name}" if isinstance(default, str) else default + 1


@pytest.mark.parametrize("setting", ALL)
def test_a_setting_is_read_from_the_environment(setting: Field[Any]) -> None:
    value = another_value(setting)
    given = f" {value} "
    if setting.name.endswith("password"):
        value = given
    loaded = load_settings({setting.name.upper(): given}, env_file=None)
    assert loaded == replace(Settings(), **{setting.name: value})


@pytest.mark.parametrize("setting", ALL)
def test_a_setting_is_read_from_the_env_file(setting: Field[Any], tmp_path: Path) -> None:
    value = another_value(setting)
    env_file = tmp_path / ".env"
    env_file.write_text(f"# a comment\n\nexport {setting.name.upper()} = {value}\n")
    assert load_settings({}, env_file) == replace(Settings(), **{setting.name: value})


@pytest.mark.parametrize("setting", ALL)
def test_an_empty_setting_is_the_default(setting: Field[Any]) -> None:
    assert load_settings({setting.name.upper(): "  "}, env_file=None) == Settings()


@pytest.mark.parametrize("setting", NUMBERS)
@pytest.mark.parametrize("text", ["many", "1,5", "0x10", "--1"])
def test_what_is_not_a_number_is_refused_by_name(setting: Field[Any], text: str) -> None:
    wanted = "a whole number" if isinstance(setting.default, int) else "a number"
    with pytest.raises(SettingsError) as refused:
        load_settings({setting.name.upper(): text}, env_file=None)
    assert str(refused.value) == f'{setting.name.upper()} was "{text}"; must be {wanted}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, text) for name in ("PORT", "GRPC_PORT", "SIMNET_PORT") for text in ("-1", "65536")),
        *((name, "65536") for name in ("SERVER_METRICS_PORT", "WORKERS_METRICS_PORT")),
        *((name, text) for name in ("DB_PORT", "REDIS_PORT") for text in ("-1", "65536")),
        ("COMMITMENT", "processed"),
        ("COMMITMENT", "Confirmed"),
        ("SLIPPAGE_BPS", "-1"),
        ("SLIPPAGE_BPS", "10001"),
        ("MAX_ATTEMPTS", "0"),
        ("SIMNET_SLOT_MS", "9"),
        ("LOG_LEVEL", "verbose"),
        *(
            (name, text)
            for name in ("RETRY_BASE_SECONDS", "RETRY_CAP_SECONDS")
            for text in ("nan", "inf", "-1")
        ),
        *(
            (name, text)
            for name in ("RESEND_SECONDS", "LEASE_SECONDS", "SWEEP_SECONDS")
            for text in ("nan", "inf", "-1", "0")
        ),
        *(
            (name, text)
            for name in ("SERVER_PROCESSES", "GATEWAY_PROCESSES", "WORKER_PROCESSES")
            for text in ("0", "-1", "65", "1000")
        ),
        ("MAX_OPEN_ORDERS", "0"),
        ("MAX_IN_FLIGHT", "0"),
        ("MAX_ROUTE_LEGS", "0"),
        *((name, "-1") for name in ("LEG_LAMPORTS", "SIMNET_HISTORY_SLOTS")),
        *(("MIDDLE_TOKENS", text) for text in ("SOL,DOGE", "SOL,", "sol")),
        ("PRIORITY_FEE_MICRO_LAMPORTS", "-1"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f'^{name} was "?{text}"?(\\.0)?; must be '):
        load_settings({name: text}, env_file=None)


@pytest.mark.parametrize(
    "origin",
    [
        "desk.example.com",
        "https://",
        "ftp://desk",
        "https://desk/",
        "https://[",
        "*",
        "https://Desk.example.com",
        "https://desk:443",
        "http://desk:80",
        "https://me@desk",
    ],
)
def test_what_is_no_origin_is_refused_by_itself(origin: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({"ALLOWED_ORIGINS": f"https://one.example.com, {origin}"}, env_file=None)
    must_be = "must be origins as browsers name them: https://desk.example.com"
    said = f'ALLOWED_ORIGINS names "{origin}"; {must_be}'
    assert str(refused.value) == said


def test_origins_are_a_list_with_commas() -> None:
    settings = load_settings({"ALLOWED_ORIGINS": " https://a.example, http://b:8080,"}, env_file=None)
    assert settings.origins == {"https://a.example", "http://b:8080"}
    assert Settings().origins == frozenset()


@pytest.mark.parametrize("name", ["SERVER_PROCESSES", "GATEWAY_PROCESSES", "WORKER_PROCESSES"])
def test_as_many_processes_as_the_command_line_takes_can_be_set(name: str) -> None:
    assert getattr(load_settings({name: "64"}, env_file=None), name.lower()) == 64


@pytest.mark.parametrize(
    "text",
    ["foo", "node.example.com/?api-key=secret", "localhost:8899", "http://", "https:///secret", "http://:8899",
     "ws://node.example.com", "http://[::1", "http://node.example.com:secret", "http://node.example.com:65536"],
)  # fmt: skip
def test_a_node_that_is_no_http_address_is_refused_by_name_and_its_key_is_not_told(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^SOLANA_RPC_URL must be an http or https address") as refused:
        load_settings({"SOLANA_RPC_URL": text}, env_file=None)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["foo", "localhost:8900", "ws://", "wss:///secret", "https://node.example.com/?api-key=secret"]
)
def test_a_websocket_that_is_no_ws_address_is_refused_by_name_and_its_key_is_not_told(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^SOLANA_WS_URL must be a ws or wss address") as refused:
        load_settings({"SOLANA_WS_URL": text}, env_file=None)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SLIPAGE_BPS", "SLIPPAGE_BPS"),
        ("SLIPPAGE", "SLIPPAGE_BPS"),
        ("slippage_bps", "SLIPPAGE_BPS"),
        ("DB_USER", "DB_USERNAME"),
        ("SERVER_PROCESES", "SERVER_PROCESSES"),
    ],
)
def test_a_name_in_the_env_file_that_is_nearly_a_setting_gets_one_line(
    name: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(f"PORT=4000\n{name}=3\n")
    for _ in range(2):
        assert load_settings({}, env_file) == Settings(port=4000)
    said = f"{env_file}: {name} is no setting and has no effect; perhaps {meant} was meant\n"
    assert capsys.readouterr() == ("", said)


def test_names_in_the_env_file_that_are_for_others_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("PATH=/bin\nCOMPOSE_PROJECT_NAME=orders\nTZ=UTC\nPORT=4000\nSLIPAGE_BPS=3\n")
    # The last is hidden by the environment, as everything in the file is for a child process.
    load_settings({"SLIPPAGE_BPS": "3"}, env_file)
    assert capsys.readouterr() == ("", "")


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("PORT=4000\nGRPC_PORT=4001\n")
    loaded = load_settings({"PORT": "5000"}, env_file)
    assert (loaded.port, loaded.grpc_port) == (5000, 4001)


def test_an_empty_variable_in_the_environment_hides_the_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("DB_HOST=db.example.com\n")
    assert load_settings({"DB_HOST": ""}, env_file).db_host == ""


def test_without_an_env_file_there_are_defaults(tmp_path: Path) -> None:
    assert load_settings({}, tmp_path / ".env") == Settings()


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ("DB_PASSWORD=plain", "plain"),
        ("DB_PASSWORD='single'", "single"),
        ('DB_PASSWORD="double"', "double"),
        ("DB_PASSWORD=it's", "it's"),
        ("DB_PASSWORD=ends'", "ends'"),
        ("DB_PASSWORD=\"'both'\"", "'both'"),
        ("DB_PASSWORD=a=b#c", "a=b#c"),
        ("DB_PASSWORD='", "'"),
        ("DB_PASSWORD='it's'", "it's"),
        ("DB_PASSWORD=' spaced '", " spaced "),
        ("DB_PASSWORD= plain ", "plain"),
        ("DB_PASSWORD=secret # rotated", "secret"),
        ("DB_PASSWORD=secret\t#rotated", "secret"),
        ("DB_PASSWORD= # none", ""),
        ("DB_PASSWORD=#secret", "#secret"),
        ("DB_PASSWORD='a # b'", "a # b"),
        ("DB_PASSWORD='a' # 'b'", "a"),
        ("DB_PASSWORD='a # b", "'a"),
        ("export\tDB_PASSWORD=plain", "plain"),
        ("\ufeffDB_PASSWORD=plain", "plain"),
    ],
)
def test_a_value_is_read_as_dotenv_has_it(line: str, password: str, tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(line)
    settings = load_settings({}, env_file)
    assert settings.db_password == password
    assert load_settings(settings_as_environ(settings), env_file) == settings


def test_a_line_of_the_env_file_that_sets_nothing_is_refused_with_its_number(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("PORT=4000\nGRPC_PORT 4001\n")
    with pytest.raises(SettingsError, match=r'\.env, line 2: "GRPC_PORT 4001" is not NAME=value'):
        load_settings({}, env_file)


def test_an_env_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    binary = tmp_path / "binary.env"
    binary.write_bytes(b"PORT=\xff\n")
    for env_file in (tmp_path, binary):
        with pytest.raises(SettingsError, match=f"{env_file.name} cannot be read"):
            load_settings({}, env_file)


def test_the_example_file_is_what_the_settings_say() -> None:
    assert (PROJECT / ".env.example").read_text() == env_example()


def test_the_example_with_every_line_in_force_is_the_defaults(tmp_path: Path) -> None:
    lines = env_example().splitlines()
    in_force = [line.removeprefix("#") for line in lines if line.startswith("#") and line[1:2] != " "]
    assert [line.partition("=")[0] for line in in_force] == [name.name.upper() for name in fields(Settings)]
    env_file = tmp_path / ".env"
    env_file.write_text("\n".join(in_force))
    assert load_settings({}, env_file) == Settings()


def test_a_child_process_gets_the_same_settings() -> None:
    settings = replace(Settings(), **{setting.name: another_value(setting) for setting in fields(Settings)})
    assert load_settings(settings_as_environ(settings), env_file=None) == settings
    assert load_settings(settings_as_environ(Settings()), env_file=None) == Settings()


def test_a_childs_environment_hides_its_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{name.name.upper()}={another_value(name)}\n" for name in fields(Settings)))
    assert load_settings(settings_as_environ(Settings()), env_file) == Settings()


@pytest.mark.parametrize("password", ["", "plain", "it's a \\ secret", " spaced "])
@pytest.mark.parametrize("host", ["db.example.com", "/run/postgresql", ""])
def test_the_database_string_says_what_was_set(host: str, password: str) -> None:
    settings = Settings(
        db_host=host, db_port=5433, db_username="o'neill", db_password=password, db_name="o e"
    )
    said = psycopg.conninfo.conninfo_to_dict(settings.database)
    wanted = {
        "host": host or "127.0.0.1",
        "port": "5433",
        "user": "o'neill",
        "dbname": "o e",
        "target_session_attrs": "read-write",
        **({"password": password} if password else {}),
    }
    assert {key: str(value) for key, value in said.items()} == wanted


@pytest.mark.parametrize("password", ["", "plain", "p@ss:w/rd?#%41&x=y"])
@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("cache.example.com", {"host": "cache.example.com", "port": 6380}),
        ("::1", {"host": "::1", "port": 6380}),
        ("", {"host": "127.0.0.1", "port": 6380}),
        ("/run/valkey.sock", {"path": "/run/valkey.sock"}),
    ],
)
def test_the_redis_address_says_what_was_set(host: str, password: str, where: dict[str, object]) -> None:
    settings = Settings(redis_host=host, redis_port=6380, redis_password=password)
    said = redis.ConnectionPool.from_url(settings.redis_url).connection_kwargs
    assert {key: said[key] for key in where} == where
    assert (said.get("password") or "") == password


@pytest.mark.parametrize(
    ("rpc", "ws", "expected"),
    [
        ("", "", "ws://127.0.0.1:8900"),
        ("http://node.example.com:8899", "", "ws://node.example.com:8900"),
        ("https://node.example.com", "", "wss://node.example.com"),
        ("https://node.example.com/v2/key", "", "wss://node.example.com/v2/key"),
        ("https://node.example.com/?api-key=secret", "", "wss://node.example.com/?api-key=secret"),
        ("http://[::1]:8899", "", "ws://[::1]:8900"),
        ("https://user:pw@node.example.com", "", "wss://user:pw@node.example.com"),
        ("http://node.example.com:8899", "wss://other.example.com", "wss://other.example.com"),
    ],
)
def test_the_nodes_websocket_is_one_port_on_unless_it_is_set(rpc: str, ws: str, expected: str) -> None:
    assert Settings(solana_rpc_url=rpc, solana_ws_url=ws).node_ws_url == expected


@pytest.mark.parametrize(
    ("host", "count", "target"),
    [
        ("orders.example.com", 1, "orders.example.com:50051"),
        ("10.0.0.7", 2, "ipv4:10.0.0.7:50051,10.0.0.7:50052"),
        ("::1", 1, "[::1]:50051"),
        ("::1", 2, "ipv6:[::1]:50051,[::1]:50052"),
        ("[::1]", 2, "ipv6:[::1]:50051,[::1]:50052"),
    ],
)
def test_several_servers_are_found_on_neighbouring_ports(host: str, count: int, target: str) -> None:
    assert Settings(grpc_host=host, server_processes=count).grpc_target == target


def test_several_servers_at_a_name_are_refused() -> None:
    with pytest.raises(SettingsError, match=r'GRPC_HOST was "orders.example.com"; must be an IP address'):
        _ = Settings(grpc_host="orders.example.com", server_processes=2).grpc_target
