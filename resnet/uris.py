"""Paths as URIs and back; the address of an MLflow store, apart from its user, password and query.

What is secret stays in the environment of this process, under STORE, which its ranks and jobs inherit. Everything else (the
run, its folder, tags, messages, the words that Hydra sees) has the address without it.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from resnet import UserError, home

STORE = "RESNET_TRACK_URI"  # the environment variable with the store as the user named it
TRACKING = "MLFLOW_TRACKING_URI"
TRACKING_SECRETS = (STORE, TRACKING, "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
HIDDEN = "BASH_FUNC_RESNET_SECRETS"  # horovodrun leaves out what begins so, and its ranks inherit it all the same
SQLITE = "sqlite:///"
QUERY = re.compile(r"\?[^/?]*=[^/?]*$")  # of a SQLite URI; another ? is of its path
USERINFO = re.compile(r"(?<=//)([^/\s]*:\S*|[^/\s]*)@")  # in a text; a password may have a / in it
SECRET_NAMES = re.compile(".*(PASSWORD|PASSWD|TOKEN|SECRET_ACCESS_KEY)")
ADDRESS_NAMES = re.compile(f"{STORE}|MLFLOW_.*URI|.*_URL|(?i:.*_proxy)")
SHORTEST = 5  # characters of a secret that is looked for by itself; a shorter one may stand in any text


# ------------------------------------------------------------------------------------------------------------- SQLite
def sqlite(path: str | Path) -> str:
    """The URI of a database file. Encoded is only what SQLAlchemy (2.1) does not read back: old runs keep their URIs."""
    return SQLITE + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """The database file of a URI; None for another store."""
    return Path(unquote(QUERY.sub("", uri.removeprefix(SQLITE)))) if uri.startswith(SQLITE) else None


def absolute(uri: str, base: Path) -> str:
    """A SQLite URI with its path taken from `base`; another URI as it is.

    A path that was typed as it is, such as sqlite:////jobs/a%2Fb/mlflow.db, counts as that if its folder exists.
    """
    path = sqlite_path(uri)
    if path is None:
        return uri
    paths = [home.expand(one) for one in (uri.removeprefix(SQLITE), str(path))]
    typed, decoded = (Path(os.path.normpath(base / one)) for one in paths)
    if typed.parent.is_dir() and not decoded.parent.is_dir():
        return sqlite(typed)
    query = QUERY.search(uri)
    return sqlite(decoded) + (query[0] if query else "")


# ------------------------------------------------------------------------------------------------------------ secrets
def split(uri: str) -> tuple[str, str, str]:
    """(what may be shown, user:password, query) of an address. The user and password end at the last @."""
    scheme, mark, rest = uri.rpartition("://") if uri.count("://") == 1 else ("", "", uri)
    if not uri or scheme.startswith(("sqlite", "file")):
        return uri, "", ""
    userinfo, _, host = rest.rpartition("@")
    shown, _, query = host.partition("?")
    return f"{scheme}{mark}{shown}", userinfo, query


def check(uri: str) -> None:
    """Raise UserError, without showing anything secret, for an address whose parts cannot be told apart, or would be ignored."""
    shown, userinfo, query = split(uri)
    if re.search("[/?#]", userinfo):
        raise UserError(
            f"track.uri={shown}: in the user or password before it write / as %2F, ? as %3F, # as %23; in what follows the host "
            "write @ as %40"
        )
    if query and shown.startswith(("http://", "https://")):
        raise UserError(
            f"track.uri={shown}: MLflow takes no ?query behind it; give a token by MLFLOW_TRACKING_TOKEN instead"
        )


def strip(uri: str) -> str:
    """The address as it may be shown and stored."""
    return split(uri)[0]


def take(uri: str) -> str:
    """strip(uri), where an address comes in; what is secret of it goes to the environment. Raises UserError as check()."""
    check(uri)
    shown, userinfo, query = split(uri)
    if userinfo or query:
        os.environ[STORE] = uri
    return shown


def name(uri: str) -> str:
    """strip(uri) of an address that the user typed. Raises UserError as check()."""
    check(uri)
    os.environ[STORE] = uri
    return strip(uri)


def take_words(words: Sequence[str], knob: str = "track.uri") -> list[str]:
    """The words of a command line as its user typed them, for all that follows: `knob` without what is secret.

    The store counts as named by the user.
    """
    return [take_word(word, knob) for word in words]


def take_word(word: str, knob: str) -> str:
    key, _, text = word.partition("=")
    if key.lstrip("+") != knob or "${" in text:
        return word
    if text.count("://") > 1:
        raise UserError(f"{knob}: several stores, or an address within an address; give one store")
    mark = text[0] if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0] else ""  # Hydra's quotes
    uri = text[1:-1].replace(f"\\{mark}", mark) if mark else re.sub(r"\\([\\()\[\]{}:=,@ ])", r"\1", text)
    shown = name(uri)
    return word if shown == uri else f"{key}={mark}{shown}{mark}"


def from_environment() -> str | None:
    """The store in MLflow's own variable, which may be a folder; None if there is none."""
    uri = os.environ.get(TRACKING)
    if not uri:
        return None
    return absolute(uri, Path.cwd()) if "://" in uri else Path(uri).absolute().as_uri()


def named(uri: str) -> bool:
    """Whether the user named this store, on the command line or in the environment: not a file that he was given."""
    return uri in (strip(os.environ.get(STORE, "")), strip(from_environment() or ""))


def whole(uri: str) -> str:
    """The address `uri` with what take() cut off."""
    current = os.environ.get(STORE, "")
    return next((one for one in (current, from_environment() or "") if strip(one) == uri), uri)


def login(uri: str) -> tuple[str, str] | None:
    """(user, password) that came with the address `uri`, decoded; None if none did."""
    user, _, password = split(whole(uri))[1].partition(":")
    return (unquote(user), unquote(password)) if user or password else None


def hide(environment: dict[str, str]) -> dict[str, str]:
    """An environment for a launcher that writes its variables into the command lines of ranks, which `ps` shows."""
    secret = {name: value for name, value in environment.items() if name in TRACKING_SECRETS}
    return {name: value for name, value in environment.items() if name not in secret} | {HIDDEN: json.dumps(secret)}


def reveal() -> None:
    """In a rank: undo hide()."""
    os.environ.update(json.loads(os.environ.pop(HIDDEN, "{}")))


def redact(text: str) -> str:
    """`text` without users and passwords in addresses, and without the secrets of this process's environment."""
    text = USERINFO.sub("", text)
    secrets = {value for name, value in os.environ.items() if SECRET_NAMES.fullmatch(name)}
    for name, value in os.environ.items():
        if ADDRESS_NAMES.fullmatch(name) and not value.startswith(SQLITE):
            userinfo, _, host = value.partition("://")[2].rpartition("@")
            secrets |= {userinfo, userinfo.partition(":")[2], *re.split("[&=]", host.partition("?")[2])}
    spellings = {
        spelling
        for secret in secrets
        for plain in (secret, unquote(secret))
        for spelling in (plain, quote(plain), quote(plain, safe=""), base64.b64encode(plain.encode()).decode())
        if len(spelling) >= SHORTEST
    }
    for spelling in sorted(spellings, key=len, reverse=True):
        text = text.replace(spelling, "***")
    return text
