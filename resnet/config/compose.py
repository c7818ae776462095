"""From a command line to a checked `Run`: Hydra composes, freeze() makes plain dataclasses of it.

register()                       schemas, resolvers, the search path, the sweeper: before Hydra starts
freeze(config)                   DictConfig -> Run, or UserError in one line
one_group(), for_inference()     for the other commands: one group of a run, or a run with other groups
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from resnet import UserError, files, photos, uris
from resnet.config import help, resolvers
from resnet.config.data import Folder, Records
from resnet.config.errors import explain, unknown
from resnet.config.run import VARIANTS, Run
from resnet.config.sweep import Command
from resnet.config.track import Mlflow
from resnet.config.training import Augment, MixBy, Progressive

GROUPS = ("model", "data", "dtype", "cluster")  # what a command other than training may choose
EVALUATION = ("eval_resize", "eval_crop", "eval_resample", "eval_interpolation", "eval_flip")
# Groups whose knobs in a recipe are for the option that it names; those in brackets stay.
OWN_KNOBS = (
    ("optim", ()),
    ("schedule", ("warmup_epochs",)),
    ("augment", ("color_jitter", "repeats", "erasing", "erasing_mode")),
)
PREPROCESSING = ("image_size", *EVALUATION, "mean", "std")  # of the trained network: kept with another data=
INTERPOLATION = re.compile(r"(?<!\\)(\\\\)*\$\{")  # in a string that OmegaConf would not take as it is; see escape()
SWEEPER = "hydra_plugins.resnet.ProcessSweeper"  # sweep.command puts it there


compose_defaults = ConfigLoaderImpl._compose_config_from_defaults_list


def compose_own(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
    """Hydra's step from a list of option files to a configuration, which asks OwnSettings for the files."""
    return compose_defaults(loader, defaults, OwnSettings(repo, defaults))  # type: ignore[arg-type]


class Experiments(SearchPathPlugin):
    """experiments/ (recipe, sweep) beside conf/; a plugin, because `hydra.searchpath` is unknown to --help."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("resnet-experiments", f"file://{files.tree('experiments')}")


class OwnSettings:
    """Hydra's repository of option files, where a recipe's rate belongs to its optimizer, and its curve to its schedule.

    With another optim=, schedule= or augment= its knobs are left out, but for those in OWN_KNOBS, and the option's own count.
    """

    def __init__(self, repository: IConfigRepository, defaults: Sequence[ResultDefault]) -> None:
        self.repository = repository
        paths = [(default.config_path or "").rpartition("/") for default in defaults]
        self.chosen = {group: option for group, _, option in paths}
        self.named: dict[str, str] = {}  # by config.yaml and the recipes so far

    def __getattr__(self, name: str) -> Any:
        return getattr(self.repository, name)

    def load_config(self, config_path: str) -> ConfigResult | None:
        loaded = self.repository.load_config(config_path)
        if loaded is None or not (config_path == "config" or config_path.startswith("recipe/")):
            return loaded
        own = named_options(loaded)
        if "optim" in own and (optim := self.repository.load_config(f"optim/{own['optim']}")):
            own = named_options(optim) | own  # optim=lars chooses a schedule too
        self.named |= own
        if config_path != "config" and isinstance(loaded.config, DictConfig):
            for group, stay in OWN_KNOBS:
                body = loaded.config.get(group)
                if isinstance(body, DictConfig) and self.named.get(group) != self.chosen.get(group):
                    for knob in set(map(str, body)) - set(stay):
                        del body[knob]
        return loaded


def named_options(file: ConfigResult) -> dict[str, str]:
    """group -> option in a file's defaults list."""
    entries = [entry for entry in file.defaults_list or () if isinstance(entry, GroupDefault)]
    return {str(entry.group).lstrip("/"): str(entry.value) for entry in entries}


def register() -> None:
    """Tell Hydra what exists here. Doing it twice is harmless."""
    ConfigLoaderImpl._compose_config_from_defaults_list = compose_own  # type: ignore[assignment, method-assign]
    store = ConfigStore.instance()
    # Hydra copies it whole whenever it looks at a group, 128 times for --help, and never changes the copy.
    store.__deepcopy__ = lambda _memo: store  # type: ignore[attr-defined]
    store.store(group="schema", name="run", node=Command)
    for group, variants in VARIANTS.items():
        for name, variant in variants.items():
            store.store(group=f"schema/{group}" if name else "schema", name=name or group, node=variant)
    store.store(group="hydra/sweeper", name="resnet", node={"_target_": SWEEPER, "params": None})
    node = {"app_name": "resnet.train", "header": "", "footer": "", "template": help.TEMPLATE}
    store.store(group="hydra/help", name="resnet", node=node)
    Plugins.instance().register(Experiments)
    for name, resolver in {**resolvers.ALL, "help_text": help.help_text}.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def freeze(config: DictConfig) -> Run:
    """The composed configuration as plain dataclasses, complete, checked, paths absolute."""
    if "hydra" in config:
        config = copy.deepcopy(config)
        with open_dict(config):
            del config["hydra"]
    for key, kind in stray_keys(config):
        raise unknown(key, kind)
    check_names(config)
    with explain():
        check_before_preparation(config)
        run = OmegaConf.to_object(config)
    assert isinstance(run, Run)
    if isinstance(run, Command):  # how a sweep goes is no setting of its runs
        run = Run(**{knob: getattr(run, knob) for knob in help.knobs(Run)})
    base = Path.cwd()
    run.out = files.absolute(run.out, base)
    run.init = run.init and files.absolute(run.init, base)
    if isinstance(run.data, Records):
        run.data.dir = files.absolute(run.data.dir, base)
        run.data.cache_dir = run.data.cache_dir and files.absolute(run.data.cache_dir, base)
    if isinstance(run.data, Folder):
        run.data.labels = run.data.labels and files.absolute(run.data.labels, base)
        run.data.prepared = run.data.prepared and files.absolute(run.data.prepared, base)
        prepare_photos(run.data)
    if isinstance(run.track, Mlflow):
        run.track.uri = uris.absolute(uris.take(run.track.uri), base)
    return run


def check_before_preparation(config: DictConfig) -> None:
    """Raise UserError for whatever else is wrong before photographs, whose classes are counted then, become shards for hours."""
    data = config.data
    counts = OmegaConf.get_type(data) is Folder and data._get_node("classes")._is_interpolation()
    if counts and not OmegaConf.is_missing(data, "dir") and photos.are_in(files.absolute(data.dir, Path.cwd())):
        trial = copy.deepcopy(config)
        trial.data.classes = 2
        OmegaConf.to_object(trial)


def prepare_photos(data: Folder) -> None:
    """Make shards of the photographs in data.dir, if it has no shards, and note their listing. Raises UserError."""
    if data.listing:
        return
    if photos.are_in(data.dir):
        data.listing = photos.prepare(data.photographs)
        return
    for knob in ("labels", "links", "max_rejected", "prepared"):
        default = next(field.default for field in dataclasses.fields(Folder) if field.name == knob)
        data.check(
            knob,
            getattr(data, knob) == default,
            f"is for photographs, and there are none in data.dir={data.dir}; leave it out",
        )


def stray_keys(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, its dataclass) of what Hydra let through with `+` though the dataclass has no such field."""
    kind: Any = OmegaConf.get_type(node)
    names = help.knobs(kind) if dataclasses.is_dataclass(kind) else None
    for key in range(len(node)) if isinstance(node, ListConfig) else map(str, node):
        if names is not None and key not in names:
            yield f"{prefix}{key}", kind.__name__
        else:
            child = node._get_node(key)
            if OmegaConf.is_config(child) and not child._is_none() | child._is_missing() | child._is_interpolation():
                yield from stray_keys(child, f"{prefix}{key}.")


def check_names(config: DictConfig) -> None:
    """Raise UserError where a variant's `name`, by which rundir.load() finds its dataclass, was overridden to another one's."""
    for group, variants in VARIANTS.items():
        name, kind = config[group].get("name"), OmegaConf.get_type(config[group])
        if "" not in variants and variants.get(name) is not kind:
            raise UserError(
                f"{group}.name={name}: a name goes with its settings; use {group}={name} instead"
                if name in variants
                else f"{group}.name={name}: there are {', '.join(variants)}"
            )


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration of these overrides, without a command line."""
    register()
    with hydra.initialize_config_dir(str(files.tree("conf")), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def one_group(group: str, *overrides: str, **knobs: Any) -> Any:
    """One group of a run with these overrides, as a dataclass; `knobs` of it are set without Hydra's grammar."""
    with explain():
        node = compose(overrides)[group]
        for knob, value in knobs.items():
            node[knob] = value
        return OmegaConf.to_object(node)


def for_inference(overrides: Sequence[str], saved: Run | None = None) -> Run:
    """A run for a command other than training: `saved` with the groups and knobs of the overrides, or composed of these alone."""
    names = [word.partition("=")[0] for word in overrides]
    for name, word in zip(names, overrides, strict=True):
        if name.partition(".")[0] not in GROUPS and name not in ("batch", "eval_steps"):
            raise UserError(
                f"{word}: not for this command; it takes {', '.join(GROUPS)}, their knobs, batch and eval_steps"
            )
    # Names of models, dtypes and clusters are free; only the variants of data have knobs of their own.
    own = [f"data={saved.data.name}"] if saved and "data" not in names else []
    with explain():
        config = compose(["track=off", *own, *overrides])
        config.recipe, config.out = None, str(Path.cwd())
        if saved:
            # These are training's alone, and checked against its batch and data.
            unmixed: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "mix_switch": 0.5, "mix_by": MixBy.batch}
            node = to_config(dataclasses.replace(saved, progressive=Progressive(), augment=Augment(), **unmixed))
            if "data.dir" in names and "listing" in node.data:
                node.data.listing = None  # other photographs
            for name in names:
                value = OmegaConf.select(config, name)
                if name in GROUPS:
                    value = OmegaConf.structured(escape(OmegaConf.to_object(value)))
                    for knob in PREPROCESSING if name == "data" else ():
                        if knob in value and knob in node.data and f"data.{knob}" not in names:
                            value[knob] = node.data[knob]
                OmegaConf.update(node, name, value, merge=False)
            if "data.dir" in names and "data.label_offset" not in names and "label_offset" in node.data:
                node.data.label_offset = None  # the saved one is of other shards
            config = node
    run = freeze(config)
    run.cluster.ranks, run.cluster.hosts = 1, []  # only training starts ranks
    return run


def to_config(run: Run) -> DictConfig:
    """A run as a configuration that freeze() takes, and makes the same run of."""
    node: DictConfig = OmegaConf.structured(escape(run))
    return node


def escape(value: Any) -> Any:
    """A dataclass, list, mapping or leaf in which OmegaConf takes every string as it is: `${` is escaped."""
    match value:
        case str():
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        case list():
            return [escape(item) for item in value]
        case dict():
            return {key: escape(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = copy.copy(value)  # not replace(), whose checks are for what the user wrote
        for knob in dataclasses.fields(value):
            setattr(value, knob.name, escape(getattr(value, knob.name)))
    return value
