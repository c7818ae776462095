"""From a command line to a checked `Run`, and from a run's folder back to it. Hydra and OmegaConf live here.

register()            schemas, resolvers, the search path, the launcher of sweeps: before Hydra starts
freeze(config)        DictConfig -> Run, or UserError in one line
save(run, out), load(out)   <out>/config.yaml, resolved and complete
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet import UserError, shards, stamp, store
from resnet.config import VARIANTS, Run
from resnet.preparation import manifest
from resnet.settings.data import Records
from resnet.settings.extras import Progressive
from resnet.settings.track import Mlflow

HERE = Path(__file__).resolve().parent
HELP_HEADER = """Train a ResNet: python -m resnet.train [group=option ...] [knob=value ...]"""
HELP_TEMPLATE = """${hydra.help.header}
${help_text:}

This run (override any knob with knob=value):

$CONFIG
${hydra.help.footer}
"""
HELP_FOOTER = """-m knob=a,b            a sweep: a job in a fresh process for every combination
sweep.resume=<folder>  go on with a sweep; jobs that finished are skipped
--cfg job --resolve    print the run and stop
--hydra-help           what else Hydra can do
"""
# Knobs that do not move the weights' path: they may change when a run goes on in its folder.
FREE = (
    "steps",
    "eval",
    "eval_steps",
    "eval_every_epochs",
    "stop_at_top1",
    "log_every_steps",
    "save_every_steps",
    "keep_checkpoints",
    "steps_per_loop",
    "mlperf",
    "out",
    "resume",
    "recipe",
    "data.dir",
    "data.on_corrupt",
    "data.max_corrupt",
    "data.cache",
)
FREE_GROUPS = ("cluster", "track", "on_nan")
NONSENSE = (ValueError, AttributeError, KeyError, TypeError, RuntimeError)  # what the readers of YAML raise for it
NEL = "\x85"  # PyYAML writes it as a line break, and reads a space
LARGEST, DEEPEST = 100_000, 20  # characters of a config.yaml, and brackets; a run's has some 2,000, and 2
PLUGINS = {
    "hydra/sweeper/optuna": "which sweep=lr_search needs, is not installed; pip install hydra-optuna-sweeper==1.3.0"
}
OPEN = "finetune.lr_multipliers"  # a mapping whose keys are the user's; to those of a recipe Hydra adds with ++ only


def tree(name: str) -> Path:
    """The folder of YAML files `name`: inside an installed package, beside it in a checkout."""
    return HERE / name if (HERE / name).is_dir() else HERE.parent / name


# ------------------------------------------------------------------------------------------------------------- to Hydra
class Experiments(SearchPathPlugin):
    """experiments/ (recipe, sweep) beside conf/; a plugin, because `hydra.searchpath` is unknown to --help."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("resnet-experiments", f"file://{tree('experiments')}")


def linear_lr(one_server: float, several: float | None = None, *, _root_: DictConfig) -> float:
    """Peak lr of the linear scaling rule, from a rate per 256 images (arXiv:1706.02677 sec. 2.1).

    The published SGD recipe has another rate on several servers; there is one server until `cluster` says otherwise.
    """
    servers = len(_root_.cluster.get("hosts") or [None])
    rate = one_server if several is None or servers == 1 else several
    return float(rate) * int(_root_.batch) / 256


def lars_row(column: str, *, _root_: DictConfig) -> Any:
    """A column of the row of optim.rows that the global batch falls in; None for an optimizer without rows."""
    if "rows" not in _root_.optim:
        return None
    for row in _root_.optim.rows:
        if row.up_to is None or _root_.batch <= row.up_to:
            return row[column]
    raise UserError(f"batch={_root_.batch}: no row of optim.rows holds it; end them with one of up_to: null")


def must_be_given(knob: str) -> None:
    """What a recipe leaves to its user. ??? would not do: merging keeps the default of a knob that has one."""
    raise UserError(f"{knob}: must be given, as in {knob}=...")


def tracking_server() -> str:
    """The server that MLflow's own variable names."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return store.without_secrets(uri)
    raise UserError("track.uri: must be given, as in track.uri=http://host:5000; or set MLFLOW_TRACKING_URI")


def counted_classes(*, _parent_: DictConfig) -> int:
    """How many classes the shards in data.dir are of: a line each in its classes.txt."""
    if OmegaConf.is_missing(_parent_, "dir"):
        raise UserError("data.dir: must be given, as in data.dir=<folder of shards>")
    folder = absolute(_parent_.dir, Path.cwd())
    path = f"{folder}/{manifest.CLASSES}"
    try:
        return len(manifest.read_classes(shards.text(path)))
    except shards.trouble(path) as error:
        raise UserError(
            f"data.dir={folder}: no {manifest.CLASSES} here to tell the classes; prepare images with: python -m "
            f"resnet.prepare source=folder dir=<your images> out={shlex.quote(folder)}; or give data.classes=<how many>"
        ) from error


def register() -> None:
    """Tell Hydra what exists here. Doing it twice is harmless."""
    from resnet import launch

    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=Run)
    for group, variants in VARIANTS.items():
        for name, variant in variants.items():
            store.store(group=f"schema/{group}" if name else "schema", name=name or group, node=variant)
    store.store(group="hydra/launcher", name="processes", node={"_target_": f"{launch.Processes.__module__}.Processes"})
    store.store(
        group="hydra/help",
        name="resnet",
        node={"app_name": "resnet.train", "header": HELP_HEADER, "footer": HELP_FOOTER, "template": HELP_TEMPLATE},
    )
    # Hydra takes launchers from the namespace package hydra_plugins only; a module of ours stands in for a folder there.
    try:
        space = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:
        space = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        space.__path__ = []
    space.resnet = launch  # type: ignore[attr-defined]
    Plugins.instance().register(Experiments)
    Plugins.instance().register(launch.Processes)
    for resolver in (linear_lr, lars_row, must_be_given, tracking_server, counted_classes, help_text, scratch):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


@functools.cache
def scratch() -> str:
    """A folder for what Hydra writes before jobs are checked; gone with this process."""
    folder = tempfile.mkdtemp(prefix="resnet-sweep-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def options() -> Iterator[tuple[str, str, str]]:
    """(group, option, its first comment line) of every option below conf/ and experiments/."""
    for top in (tree("conf"), tree("experiments")):
        for path in sorted(top.glob("*/*.yaml")):
            comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
            said = [line for line in comments if not line.startswith("@package")]
            yield path.parent.name, path.stem, said[0] if said else ""


def help_text() -> str:
    """Every group and option, one line each, in the order of the defaults list."""
    lines, group = [], ""
    for name, option, said in options():
        if name != group:
            lines += ["", name]
            group = name
        lines.append(f"  {name + chr(61) + option:<29} {said}".rstrip())
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- to our types
def knobs(kind: Any) -> list[str]:
    """Names of a dataclass's fields."""
    return [knob.name for knob in dataclasses.fields(kind)]


def nearest(word: str, words: list[str]) -> str:
    """`did you mean ...?` and what exists, as one clause."""
    leaf = {name: name.rsplit(".", 1)[-1] for name in words}
    close = difflib.get_close_matches(word, words, 1, 0.75)
    close = close or [n for n in words if difflib.get_close_matches(word.rsplit(".", 1)[-1], [leaf[n]], 1, 0.75)][:1]
    beside = [n for n in words if n.rpartition(".")[0] == word.rpartition(".")[0]]
    beside = beside or [n for n in words if "." not in n] or words
    return f"did you mean {close[0]}? There are: {', '.join(beside)}" if close else f"there are: {', '.join(beside)}"


def unknown(key: str, kind: str = "") -> UserError:
    """The error for a knob that does not exist, or not in the variant that was chosen (a dataclass of the name `kind`)."""
    if key.startswith(f"{OPEN}."):
        return UserError(f"{key}: not there yet; add it by '++{OPEN}={{{key.removeprefix(f'{OPEN}.')}: ...}}'")
    group, _, leaf = key.partition(".")
    variants = VARIANTS.get(group, {})
    owners = [name for name, variant in variants.items() if name and leaf in knobs(variant)]
    if owners:
        return UserError(
            f"{key}: only {' and '.join(f'{group}={name}' for name in owners)} "
            f"{'has' if len(owners) == 1 else 'have'} this knob; choose that, or leave the knob out"
        )
    chosen = [variant for variant in variants.values() if variant.__name__ == kind] or list(variants.values())
    inside = sorted({f"{group}.{knob}" for variant in chosen for knob in knobs(variant)})
    return UserError(f"{key}: no such knob; {nearest(key, inside or known_names())}")


def stray_keys(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, dataclass it was put into) that Hydra let through with `+` though the dataclass has no such field."""
    kind: Any = OmegaConf.get_type(node)
    known = knobs(kind) if dataclasses.is_dataclass(kind) else None
    for key in range(len(node)) if isinstance(node, ListConfig) else map(str, node):
        if known is not None and key not in known:
            yield f"{prefix}{key}", kind.__name__
        else:
            child = node._get_node(key)
            if OmegaConf.is_config(child) and not child._is_none() | child._is_missing() | child._is_interpolation():
                yield from stray_keys(child, f"{prefix}{key}.")


def absolute(path: str, base: Path) -> str:
    """`path` with ~ expanded and taken from `base`; a URL such as gs://bucket/folder stays as it is.

    ~nobody stays a name, as in a shell; Path.expanduser() would raise.
    """
    if "\0" in path:
        raise UserError(f"{path!r}: no path; it has a NUL in it")
    return path if "://" in path else os.path.normpath(base / os.path.expanduser(path))  # noqa: PTH111


def freeze(config: DictConfig) -> Run:
    """The composed configuration as plain dataclasses, complete, checked, paths absolute."""
    for key, kind in stray_keys(config):
        raise unknown(key, kind)
    check_names(config)
    with explained():
        run = OmegaConf.to_object(config)
    assert isinstance(run, Run)
    base = Path.cwd()
    run.out = absolute(run.out, base)
    run.init = run.init and absolute(run.init, base)
    if isinstance(run.data, Records):
        run.data.dir = absolute(run.data.dir, base)
    if isinstance(run.track, Mlflow):
        run.track.uri = store.without_secrets(run.track.uri)
        if run.track.uri.startswith("sqlite:///"):
            run.track.uri = "sqlite:///" + absolute(run.track.uri.removeprefix("sqlite:///"), base)
    return run


def part(group: str, *overrides: str, **knobs: Any) -> Any:
    """One part of a run, as a run with these overrides would have it; `knobs` of it are set without Hydra's grammar."""
    import hydra

    register()
    with explained(), hydra.initialize_config_dir(str(tree("conf")), version_base="1.3"):
        config = hydra.compose("config", list(overrides))
        for knob, value in knobs.items():
            config[group][knob] = value
        return OmegaConf.to_object(config[group])


LENT = ("model", "data", "dtype", "cluster")  # parts that a command beside training may choose
SEEN = ("image_size", "eval_resize", "mean", "std")  # how the network was taught to see: kept over another data=


def lent(words: list[str], saved: Run | None = None) -> Run:
    """A run for a command beside training: `saved` with the parts and knobs that `words` name, or composed of these alone."""
    import hydra

    for word in words:
        name = word.partition("=")[0]
        if name.partition(".")[0] not in LENT and name not in ("batch", "eval_steps"):
            raise UserError(
                f"{word}: not for this command; it takes {', '.join(LENT)}, their knobs, batch and eval_steps"
            )
    named = [word.partition("=")[0] for word in words]
    # Names of models, dtypes and clusters are free; only the variants of data have knobs of their own.
    own = [f"data={saved.data.name}"] if saved and "data" not in named else []
    register()
    with explained(), hydra.initialize_config_dir(str(tree("conf")), version_base="1.3"):
        config = hydra.compose("config", ["track=off", *own, *words])
        config.recipe, config.out = None, str(Path.cwd())
        node = config
        if saved:
            node = node_of(dataclasses.replace(saved, progressive=Progressive()))  # which is training's alone
        for name in named if saved else ():
            value = OmegaConf.select(config, name)
            if name in LENT:
                kept = [knob for knob in SEEN if name == "data" and f"data.{knob}" not in named]
                value = OmegaConf.structured(literal(OmegaConf.to_object(value)))
                for knob in kept:
                    if knob in value and knob in node.data:
                        value[knob] = node.data[knob]
            OmegaConf.update(node, name, value, merge=False)
    run = freeze(node)
    run.cluster.ranks, run.cluster.hosts = 1, []  # only training starts ranks
    return run


def check_names(config: DictConfig) -> None:
    """A variant's `name` tells load() which dataclass it was: it must not be overridden to another one's."""
    for group, variants in VARIANTS.items():
        name, kind = config[group].get("name"), OmegaConf.get_type(config[group])
        if "" not in variants and variants.get(name) is not kind:
            raise UserError(
                f"{group}.name={name}: a name goes with its settings; use {group}={name} instead"
                if name in variants
                else f"{group}.name={name}: there are {', '.join(variants)}"
            )


def literal(value: Any) -> Any:
    """A dataclass, list, mapping or leaf in which OmegaConf takes every string as it is: `${` is escaped."""
    match value:
        case str():
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        case list():
            return [literal(item) for item in value]
        case dict():
            return {key: literal(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        value = copy.copy(value)  # not replace(), whose checks are for what the user wrote
        for knob in dataclasses.fields(value):
            setattr(value, knob.name, literal(getattr(value, knob.name)))
    return value


def node_of(run: Run) -> DictConfig:
    """A run as a configuration that freeze() takes, and makes the same run of."""
    node: DictConfig = OmegaConf.structured(literal(run))
    return node


def save(run: Run, out: Path) -> None:
    """Write <out>/config.yaml aside and rename it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with manifest.whole(out / "config.yaml", out / ".config.yaml.part") as file:
            text = stamp.line() + OmegaConf.to_yaml(node_of(run))
            if NEL in text:
                raise UserError(
                    "U+0085, a control character, stands in a name, and YAML would lose it; give another name"
                )
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"out={out}: cannot be written to ({error.strerror}); give another folder") from error


def load(out: Path) -> Run:
    """The run that <out>/config.yaml describes, as freeze() made it. Knobs that came later have their defaults."""
    path = out / "config.yaml"
    if not path.is_file():
        raise UserError(f"{out}: no run here (config.yaml is missing); give the folder of a run that was started")
    stamp.check(path, stamp.of_text(path.read_text(encoding="utf-8", errors="replace")))
    schema = OmegaConf.structured(Run)
    try:
        with explained():
            check_plain(path.read_text(encoding="utf-8"))
            saved: Any = OmegaConf.load(path)
            for group, variants in VARIANTS.items():
                name = saved[group].name
                if name not in variants and "" not in variants:
                    raise UserError(f"{group}.name={name}: there are {', '.join(variants)}")
                schema[group] = OmegaConf.structured(variants.get(name) or variants[""])
            merged: Any = OmegaConf.merge(schema, saved)
            return freeze(merged)
    except NONSENSE as error:
        told = str(error).partition("\n")[0]
        raise UserError(f"{path}: not the configuration of a run ({told}); give another folder") from error


def check_plain(text: str) -> None:
    """Raise UserError for what no run's config.yaml has: aliases, which can grow without end, and what is to be looked up."""
    if len(text) > LARGEST:
        raise UserError(f"{len(text):,} characters; at most {LARGEST:,} are read")
    depth = 0
    for token in yaml.scan(text):
        depth += isinstance(token, (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken))
        depth -= isinstance(token, (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken))
        if depth > DEEPEST:  # the scanner's time grows with its square
            raise UserError(f"line {token.start_mark.line + 1}: more than {DEEPEST} brackets within each other")
        if isinstance(token, yaml.AliasToken):
            raise UserError(f"line {token.start_mark.line + 1}: *{token.value} stands for something else")
        if isinstance(token, yaml.ScalarToken) and re.search(r"(?<!\\)(\\\\)*\$\{", token.value):
            raise UserError(f"line {token.start_mark.line + 1}: {token.value} is not resolved")


# ------------------------------------------------------------------------------------------------------- errors, one line
# What OmegaConf and Hydra say -> what follows the knob here: its value, and the way out.
SAID = (
    (r"Value '(.*)' of type '\w+' could not be converted to Integer", "={0}: must be a whole number"),
    (r"Value '(.*)' of type '\w+' could not be converted to Float", "={0}: must be a number"),
    (r"Value '(.*)' is not a valid bool", "={0}: must be true or false"),
    (r"Invalid value '(.*)', expected one of \[(.*)\]", "={0}: must be one of {1}"),
    (r"Invalid value assigned: .* not a ListConfig", ": must be a list, as in [1,2,3]"),
    (r"field '.*' is not Optional|Incompatible value 'None'", "=null: must have a value"),
    (r"(?i).*missing mandatory value", ": must be given, as in {key}=..."),
    (r".* does not support deletion", ": cannot be left out; give it another value"),
    (r"Interpolation key '(.*)' not found", "=${{{0}}}: there is no such knob to take the value from"),
    (r".*Environment variable '(.*)' not found", ": takes its value from the environment, where {0} is not set"),
    (r"Cannot convert '\w+' to string", ": takes no settings; the file may lack its first line, # @package _global_"),
    (r"Merge error: .* value: (.*)", "{0}: settings of a group are needed here; choose an option in the defaults list"),
    (r"Ambiguous value for argument '(.*?)=(.*)'", "{0}={1}: several values; -m tries each, [{1}] is one list"),
    (r"Could not override '(.*)'\.", "{0}: no such group; --help lists what there is"),
    (r"force-add of config groups is not supported: '\+*(.*)'", "{0}: write it without ++"),
    (r"Multiple values for (\S+)\. To override", "{0}: chosen twice; write {0}=..., without +"),
)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Hydra's, OmegaConf's and YAML's exceptions come out as UserError, one line, with the way out."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, OverflowError) as error:
        raise UserError(one_line(error)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}: " if mark else ""
        said = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{place}not YAML ({said})") from None
    except TypeError as error:
        if str(error).startswith("argument of type"):  # Hydra's, of model=[1]
            raise UserError(no_option()) from None
        raise
    except ValueError as error:
        if type(error) is ValueError and str(error).startswith("Config group override"):
            raise UserError(no_option()) from None
        if type(error) is ValueError and str(error).startswith("Only one of --run"):
            raise UserError(f"{' '.join(sys.argv[1:])}: {error}") from None
        if type(error) is ValueError and str(error).startswith("Exceeds the limit"):  # Python's own, of int()
            word = next((word for word in sys.argv[1:] if len(word) > 4300), "")
            raise UserError(f"{word[:40]}...: too long for a number; write a smaller one, or quote it twice") from None
        raise


def one_line(error: BaseException) -> str:
    """What went wrong, without Hydra's advice to use `+`."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    if isinstance(error, OverrideParseException):
        knob, _, value = error.override.partition("=")
        doubled = shlex.quote(f'{knob}="{value}"')
        hint = f", and quote special characters twice: {doubled}" if value else ""
        return f"{error.override}: not an override; write knob=value{hint}"
    text = f"{error}\n{cause}"
    file = re.match(r"In '(.+?)': ", text)
    place = f"{file[1].replace('/', '=')}: " if file and "/" in file[1] else ""  # whose file it is: recipe=mine
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if error.missing_cfg_file in PLUGINS:
            return f"{group}={option}: {PLUGINS[error.missing_cfg_file]}"
        if error.options:
            return f"{place}{group}={option}: no such option; {nearest(option, list(error.options))}"
        return f"{place}{error.missing_cfg_file}: no such configuration; --help lists what there is"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    if file:
        lines[0] = lines[0].removeprefix(file[0])
    first = lines[1] if lines[0].endswith("raised while composing config:") and len(lines) > 1 else lines[0]
    told = "UserError raised while resolving interpolation: "
    if first.startswith(told):
        return f"{place}{first.removeprefix(told)}"
    named = re.search(r"full_key: (\S+)", text)
    key = named[1] if named else ""
    if lost := re.search(r"Key '(\S+)' (?:is )?not in", first):
        kind = re.search(r"object_type=(\w+)", text)
        return f"{place}{unknown(key or lost[1], kind[1] if kind else '')}"
    for said, ours in SAID:
        if found := re.match(said, first):
            return f"{place}{key}{ours.format(*found.groups(), key=key)}"
    return f"{place}{key}: {first}" if key and key not in first else f"{place}{first}"


def no_option() -> str:
    """The line for a group that was given null or a number on the command line, which Hydra reports without its name."""
    names = {group: [name for of, name, _ in options() if of == group] for group, _, _ in options()}
    for word in sys.argv[1:]:
        group, _, option = word.lstrip("+~").partition("=")
        if group in names and option not in names[group]:
            return f"{word}: no such option; leave it out, or choose from: {', '.join(names[group])}"
    return f"{' '.join(sys.argv[1:])}: write knob=value, or group=option; --help lists them"


def known_names() -> list[str]:
    """Groups, and knobs of every variant, for an error that came before a configuration was composed."""
    names = knobs(Run)
    for group, variants in VARIANTS.items():
        names += sorted({f"{group}.{knob}" for kind in variants.values() for knob in knobs(kind)})
    return names


def plain(value: Any) -> Any:
    """A value as people search for it: an Enum by its name."""
    return value.name if isinstance(value, Enum) else value


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, default) of every knob below a dataclass."""
    for knob in dataclasses.fields(node):
        value = getattr(node, knob.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{knob.name}.")
        else:
            make = knob.default_factory
            yield prefix + knob.name, value, knob.default if make is dataclasses.MISSING else make()


def flat(run: Run) -> dict[str, Any]:
    """Every knob of the run by its dotted name: `optim.lr`, `data.image_size`, `batch`."""
    return {name: plain(value) for name, value, _ in walk(run)}


def free(knob: str) -> bool:
    """Whether a knob may change when a run goes on."""
    return knob in FREE or knob.partition(".")[0] in FREE_GROUPS


def fingerprint(run: Run) -> str:
    """Changes when a run must do something else or more than before; not where a newer version has one more knob.

    So it is of the knobs that differ from their defaults, and of the names of the parts, which decide what the defaults are.
    """
    ends = ("steps", "eval", "eval_steps", "stop_at_top1")
    told = [(name, value) for name, value, default in walk(run) if value != default or name.endswith(".name")]
    knobs = {name: str(plain(value)) for name, value in told if name in ends or not free(name)}
    return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------ going on
def task_config(config: DictConfig) -> DictConfig:
    """The composed configuration without Hydra's own part."""
    task = copy.deepcopy(config)
    OmegaConf.set_struct(task, False)
    del task["hydra"]
    OmegaConf.set_struct(task, True)
    return task


def resumed(config: DictConfig) -> Run:
    """The run of the folder `resume=`, with what else the command line says changed in it; UserError if that can't be."""
    out = Path(absolute(config.resume, Path.cwd()))
    saved = load(out)
    typed = [word for word in HydraConfig.get().overrides.task if not word.startswith("resume=")]
    names = [word.lstrip("+~").partition("=")[0] for word in typed]
    for name, word in zip(names, typed, strict=True):
        if not free(name) or name in ("out", "recipe"):
            raise UserError(
                f"{word}: resume={config.resume} goes on with that run's own settings; only "
                f"{', '.join(knob for knob in FREE if knob not in ('out', 'resume', 'recipe'))}, cluster.*, track.* "
                "and on_nan.* may change. For another run leave resume= out"
            )
    node = node_of(saved)
    for name in names:
        chosen = OmegaConf.select(config, name)  # a string comes resolved
        OmegaConf.update(node, name, literal(chosen) if isinstance(chosen, str) else chosen, merge=False)
    run = freeze(node)
    run.out = str(out)
    return run


def check_folder(run: Run, out: Path) -> None:
    """Raise UserError if another run lies in `out`, naming the difference."""
    if not (out / "config.yaml").exists():
        return
    before, now = flat(load(out)), flat(run)
    changed = [name for name in now if not free(name) and before.get(name) != now[name]]
    if changed:
        told = ", ".join(f"{name} was {before.get(name)} and is {now[name]}" for name in changed[:5])
        raise UserError(
            f"out={out}: another run lies here ({told}{', ...' if len(changed) > 5 else ''}); "
            f"give another out=, or go on with it by resume={out}"
        )


def check_init(run: Run) -> None:
    """Raise UserError if the weights to start from are not there, and no checkpoint makes them needless."""
    if run.init and not Path(run.init).exists() and not (Path(run.out) / "checkpoints").exists():
        raise UserError(
            f"init={run.init}: no such file or folder; give .safetensors, .npz, a SavedModel or a run's folder"
        )


def claim(run: Run, out: Path) -> None:
    """Make `out` the folder of `run`, unless another run lies there."""
    check_folder(run, out)
    save(run, out)
