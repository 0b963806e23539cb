"""Every setting, and where it is read from (contract section 8)."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pydantic import SecretStr

import settings
from settings import Settings, load_settings
from tests.support.app import in_process
from tests.support.postgres import PASSWORD
from tests.support.service import REPOSITORY

DEFAULTS = {
    "database_url": "sqlite:///tasks.db",
    "cors_origins": "",
    "default_user_id": "demo",
    "db_pool_size": 10,
    "auth_secret": None,
    "auth_jwks_url": None,
    "auth_issuer": None,
    "auth_audience": "",
    "auth_accounts": False,
    "auth_token_days": "7",
    "log_level": "info",
}
SECRET = "never-in-a-log-either-0123456789abcdef"
NEON = (
    "postgresql://u:%s@ep-x-pooler.region.aws.neon.tech/db?sslmode=require&channel_binding=require"
)


class Refused(Exception):
    """What `refuse_to_start` raises here instead of ending the process."""


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in an empty directory, without a setting in the environment."""

    def refuse(reason: str) -> NoReturn:
        raise Refused(reason)

    monkeypatch.setattr(settings, "refuse_to_start", refuse)
    monkeypatch.chdir(tmp_path)
    for name in DEFAULTS:
        monkeypatch.delenv(name.upper(), raising=False)


def plain(read: Settings) -> dict[str, Any]:
    """Return the settings by name, secrets, URLs and lists as text."""
    lists = {name: ",".join(value) for name, value in read if isinstance(value, list)}
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value and str(value)
        for name, value in read
    } | {"db_pool_size": read.db_pool_size, **lists}


def loaded(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that these variables make."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return plain(load_settings())


# ---- values


def test_without_settings_the_defaults_hold() -> None:
    assert plain(load_settings()) == DEFAULTS


def test_the_committed_env_file_holds_the_defaults_and_no_secret() -> None:
    assert plain(Settings(_env_file=REPOSITORY / ".env")) == DEFAULTS
    assert "AUTH_" not in (REPOSITORY / ".env").read_text()
    ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
    assert ".env.local" in ignored
    assert ".env" not in ignored


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("DATABASE_URL", "sqlite:////var/lib/tasks.db", None),
        ("DATABASE_URL", "postgres://u:p@h/d", None),
        ("DATABASE_URL", NEON % "p%40ss", None),
        ("DATABASE_URL", "postgresql://u:p@h1,h2:5433/d?target_session_attrs=read-write", None),
        ("DATABASE_URL", "postgresql://u:p%2F%3F%23%5B%20@[::1]:5433/d", None),
        ("DATABASE_URL", "postgresql:///d?host=/run/postgresql", None),
        (
            "CORS_ORIGINS",
            "https://a.example, http://b.example:8080",
            "https://a.example,http://b.example:8080",
        ),
        ("CORS_ORIGINS", "capacitor://localhost,ionic://localhost,tauri://localhost,app://.", None),
        ("CORS_ORIGINS", "chrome-extension://aaaabbbbccccddddeeeeffffgggghhhh,file://", None),
        (
            "CORS_ORIGINS",
            "http://[::1]:3000,http://192.168.0.7,https://xn--bcher-kva.example",
            None,
        ),
        ("CORS_ORIGINS", "http://a.example:443,https://a.example:80,https://a_b.example.", None),
        ("CORS_ORIGINS", "*", None),
        ("DEFAULT_USER_ID", "auth0|5f7c", None),
        ("DB_POOL_SIZE", "25", 25),
        ("AUTH_SECRET", SECRET, None),
        ("AUTH_JWKS_URL", "https://issuer.example/.well-known/jwks.json", None),
        ("LOG_LEVEL", "WARNING", "warning"),
        ("AUTH_SECRET", f" {SECRET}\r\n", SECRET),
        ("DATABASE_URL", "\tsqlite:///x.db\n", "sqlite:///x.db"),
        ("CORS_ORIGINS", "https://a.example\n", "https://a.example"),
        ("DEFAULT_USER_ID", " zoe ", "zoe"),
        ("DB_POOL_SIZE", "25\n", 25),
        ("AUTH_JWKS_URL", " https://issuer.example/jwks\n", "https://issuer.example/jwks"),
        ("LOG_LEVEL", "\nDebug ", "debug"),
        ("LOG_LEVEL", "debug", None),
    ],
)
def test_a_variable_sets_what_it_names(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, meant: str | int | None
) -> None:
    expected = value if meant is None and value else meant
    assert loaded(monkeypatch, {name: value}) == DEFAULTS | {name.lower(): expected}


def test_issuer_and_audience_go_with_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "AUTH_SECRET": SECRET,
        "AUTH_ISSUER": "https://issuer.example/",
        "AUTH_AUDIENCE": "api",
    }
    read = loaded(monkeypatch, given)
    assert {name: read[name.lower()] for name in given} == given


def test_the_environment_goes_before_env_local_before_env(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        "DEFAULT_USER_ID=env\nLOG_LEVEL=error\nDB_POOL_SIZE=1\nFOREIGN=ignored\n"
    )
    (tmp_path / ".env.local").write_text('DEFAULT_USER_ID=local\nDB_POOL_SIZE="2"\n')
    assert loaded(monkeypatch, {"DEFAULT_USER_ID": "environment"}) == DEFAULTS | {
        "default_user_id": "environment",
        "db_pool_size": 2,
        "log_level": "error",
    }


# ---- values that stop the start


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("DATABASE_URL", f"{url}{PASSWORD}")
            for url in (
                *("mysql://u:", "postgresql+asyncpg://u:p@h/", "http://", "no-url:", "//"),
                *("postgresql://u:p%zz@h/", "postgresql://h/d?unknown=", "postgres://[::1/"),
                *("postgresql://h:", "postgresql://u:1/x@", "sqlite:///d?mode=", "sqlite://u:"),
                *("'postgresql://u:p@h/", "psql postgresql://", "sqlite:///postgresql://u:"),
            )
        ],
        # With a password that is not percent-encoded, pieces of it would be the host, port or name.
        *[
            (
                "DATABASE_URL",
                f"postgresql://u:{before}{PASSWORD}{after}@h.example:5432/d?sslmode=allow",
            )
            for before, after in (
                *(("x@", ""), ("x/", ""), ("1/", ""), ("1@", ":2"), ("x@", "?y"), ("", "@h:1")),
                *(("x%", ""), ("[@", "]"), ("x@[", "]"), ("x@", "#y"), ("@", "/"), ("1/x,y:", "")),
                *(("x@y z", ""), ("x?y@", ""), ("x?y/", ""), ("x@y/", "?z"), ("x@:", "")),
            )
        ],
        *[("DATABASE_URL", url) for url in ("sqlite://", "sqlite:///:memory:", "sqlite:///")],
        *[("DATABASE_URL", f"sqlite:///file:{rest}") for rest in (":memory:", "x.db", "/x.db")],
        *[
            ("CORS_ORIGINS", origins)
            for origins in (
                *("app.example.com", "https://app.example.com/", "https://a.example https://b"),
                *("https://a.example,b.example", "ftp://a.example", "https://*.example/x", "null"),
                *("https://*.example", "https://a.example:443", "http://a.example:80", "*,*"),
                *("https://A.example", "HTTPS://a.example", "https://a.example,*", "https://"),
                *("https://bücher.example", "https://a.example?", "https://a.example#x", "file:"),
                *("https://u@a.example", "https://a.example:0443", "http://127.1", "http://[0::1]"),
                *("capacitor://localhost/", "tauri://localhost/x", "tauri://LocalHost", "app://"),
                *(
                    "chrome-extension://*",
                    "wss://a.example",
                    "http:a.example",
                    "https:///a.example",
                ),
                *("https://a.example:99999", "https://a.exa mple", "https://a%2eexample"),
            )
        ],
        *[
            ("DEFAULT_USER_ID", user_id)
            for user_id in ("tasks", "users", "v1", "a/b", "a\x01b", "u" * 129)
        ],
        *[("DB_POOL_SIZE", size) for size in ("0", "-1", "ten", "1.5", "100000")],
        ("AUTH_SECRET", f"-----BEGIN PUBLIC KEY-----\n{PASSWORD}\n-----END PUBLIC KEY-----"),
        *[("AUTH_JWKS_URL", url) for url in (PASSWORD, f"ftp://{PASSWORD}/", "https://")],
        *[("LOG_LEVEL", level) for level in ("verbose", "7", "off")],
        # Empty is a deployment gone wrong: auth, above all, must not be off then.
        *[(name.upper(), "") for name in DEFAULTS if name != "cors_origins"],
        *[(name.upper(), " \n") for name in DEFAULTS if name != "cors_origins"],
        ("AUTH_AUDIENCE", " , "),
    ],
)
def test_a_bad_value_is_refused_with_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(Refused) as refused:
        loaded(monkeypatch, {name: value})
    line = str(refused.value)
    assert re.fullmatch(rf"{name}: [a-z][^A-Z\n][^\n]{{8,148}}", line)
    assert PASSWORD not in line


@pytest.mark.parametrize(
    "variables",
    [
        {"AUTH_SECRET": SECRET, "AUTH_JWKS_URL": "https://issuer.example/jwks"},
        {"AUTH_ISSUER": "https://issuer.example/"},
        {"AUTH_AUDIENCE": "api"},
        {"AUTH_ACCOUNTS": "true"},
        {"AUTH_ACCOUNTS": "true", "AUTH_JWKS_URL": "https://issuer.example/jwks"},
    ],
)
def test_variables_that_contradict_each_other_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    with pytest.raises(Refused) as refused:
        loaded(monkeypatch, variables)
    line = str(refused.value)
    assert all(name in line for name in variables)
    assert "\n" not in line
    assert SECRET not in line


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_an_env_file_in_another_encoding_is_refused_with_one_line(
    tmp_path: Path, encoding: str
) -> None:
    """Without its mark, UTF-16 is UTF-8 full of NULs, and no name in it one of ours."""
    (tmp_path / ".env.local").write_bytes(f"AUTH_SECRET={SECRET}\nA=b".encode(encoding))
    with pytest.raises(Refused, match=r"^[^\n]*\.env\.local[^\n]*$") as refused:
        load_settings()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("AUTH_SECRET", 3),
        ("export AUTH_SECRET", 3),
        (f"AUTH_SECRET: {SECRET}", 3),
        (f"AUTH_SECRET {SECRET}", 3),
        (f"set AUTH_SECRET={SECRET}", 3),
        (f'AUTH_SECRET="{SECRET}', 3),
        (f"AUTH_SECRET='{SECRET}' {SECRET}", 3),
        (f"\n\n={SECRET}", 5),
    ],
)
@pytest.mark.parametrize("file", [".env", ".env.local"])
def test_a_line_of_an_env_file_that_sets_nothing_stops_the_start(
    tmp_path: Path, file: str, line: str, number: int
) -> None:
    (tmp_path / file).write_text(f"# a comment\n\n{line}\nLOG_LEVEL=info\n")
    with pytest.raises(Refused) as refused:
        load_settings()
    assert str(refused.value) == f"{file}: line {number} is not NAME=value"


def test_an_env_file_is_read_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_bytes(
        b"\xef\xbb\xbfDEFAULT_USER_ID = zoe # she\r\n\r\n\t# more\r\nexport LOG_LEVEL='error'\r\n"
    )
    read = plain(load_settings())
    assert (read["default_user_id"], read["log_level"]) == ("zoe", "error")


@pytest.mark.parametrize("name", ["AUTH_SECERT", "auth_secrets", "AUTH_JWKS_URI", "AUTH_AUDIENCES"])
@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_misspelt_variable_does_not_leave_auth_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    if where == "file":
        (tmp_path / ".env.local").write_text(f"{name}={SECRET}\n")
    else:
        monkeypatch.setenv(name, SECRET)
    with pytest.raises(
        Refused, match=rf"^{name.upper()} is no setting: AUTH_\w+ is meant"
    ) as refused:
        load_settings()
    assert SECRET not in str(refused.value)


def test_variables_of_others_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AUTH_URL",
        "AUTH_GITHUB_SECRET",
        "AUTH_SERVICE_HOST",
        "AUTH_PORT",
        "DATABASE_URI",
        *("AUTH0_SECRET", "AUTH0_AUDIENCE"),  # whose names are not for whoever runs this to choose
    ):
        monkeypatch.setenv(name, "x")
    assert plain(load_settings()) == DEFAULTS


# ---- the process


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the service until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "uvicorn", "main:app", "--port", "0", *arguments],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_bad_value_ends_the_process_with_that_line_alone() -> None:
    ended = run(DATABASE_URL=f"mysql://owner:{PASSWORD}@localhost/tasks", AUTH_SECRET=SECRET)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert re.fullmatch(r"DATABASE_URL: [^\n]+\n", ended.stderr)
    assert PASSWORD not in ended.stderr


def test_a_bad_value_ends_all_workers() -> None:
    ended = run("--workers", "2", DB_POOL_SIZE="many")
    assert "DB_POOL_SIZE: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_log_level_warning_leaves_out_the_lines_of_requests(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def logged(log_level: str) -> str:
        client = in_process(log_level=log_level)
        request_id = client.get("/nothing").headers["x-request-id"]
        logging.getLogger("tasks").handlers[0].flush()
        return request_id if request_id in capfd.readouterr().err else ""

    assert logged("info")
    assert not logged("warning")


def test_with_gunicorn_a_bad_value_ends_all_workers_and_not_one_after_the_other() -> None:
    script = "import sys; sys.modules['gunicorn'] = sys; import main"  # 3: its WORKER_BOOT_ERROR
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env={"DATABASE_URL": "mysql://x"}
    )
    assert ended.returncode == 3
