"""A run's folder and its config.yaml, which is resolved and complete.

save(run, out), load(out)   <out>/config.yaml
claim(run, out)             save, unless the folder is another run's
resume(config)              the run of the folder `resume=`
"""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from resnet import UserError, __version__, addresses, files, remote, shell, uris
from resnet.config import compose
from resnet.config.errors import explain
from resnet.config.fingerprint import FREE, flat, may_change_on_resume
from resnet.config.run import VARIANTS, Run
from resnet.rundir import lock, metrics

READ_ERRORS = (ValueError, AttributeError, KeyError, TypeError, RuntimeError)  # of PyYAML and OmegaConf, for nonsense
SCHEMA = 1  # of config.yaml, result.json and commit.json; raised when an older version would misread them
VERSIONS_LINE = re.compile(r"# resnet (?P<resnet>\S+), schema (?P<schema>\d+)\n")
PART = re.compile(r"\..+\.\d+\.part")  # files.part_of(): half of something, by a process that was killed
# What a start writes before the first step: a later one with other settings is another run, in MLflow too.
START = re.compile(rf"{re.escape(files.CLASSES)}|{re.escape(metrics.FILE)}|mlflow(-\w+)?\.json|tags\.json|mlperf\.log")
MAX_CHARACTERS, MAX_DEPTH = 100_000, 20  # of a config.yaml, and of brackets in it; a run's has some 2,000, and 2


def versions() -> dict[str, Any]:
    """What result.json and commit.json say of the version that wrote them."""
    return {"schema": SCHEMA, "resnet": __version__}


def check_versions(path: Path, content: dict[str, Any]) -> None:
    """Raise UserError if the content of `path` was written by a newer version with another schema."""
    schema = content.get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UserError(
            f"{path}: written by resnet {content.get('resnet')} (schema {schema}), and this is resnet {__version__} (schema "
            f"{SCHEMA}); use that version or a newer one"
        )


def save(run: Run, out: Path) -> None:
    """Write <out>/config.yaml."""
    text = f"# resnet {__version__}, schema {SCHEMA}\n" + OmegaConf.to_yaml(compose.to_config(run))
    if "\x85" in text:  # PyYAML writes it as a line break, and reads a space
        raise UserError("U+0085, a control character, stands in a name, and YAML would lose it; give another name")
    with files.writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        files.write_text(out / "config.yaml", text)


def load(out: Path) -> Run:
    """The run in <out>/config.yaml, as compose.freeze() returned it. Knobs of newer versions have their defaults."""
    path = out / "config.yaml"
    try:
        content = files.read_bytes(path)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(
            f"{out}: no run here (config.yaml {reason}); give the folder of a run that was started"
        ) from error
    if head := VERSIONS_LINE.match(content.decode(errors="replace")):
        check_versions(path, {"schema": int(head["schema"]), "resnet": head["resnet"]})
    schema = OmegaConf.structured(Run)
    try:
        with explain():
            check_plain(content.decode())
            saved: Any = OmegaConf.load(io.BytesIO(content))
            for group, variants in VARIANTS.items():
                if group == "augment" and group not in saved:  # of a version without it
                    continue
                name = saved[group].name
                if name not in variants and "" not in variants:
                    raise UserError(f"{group}.name={name}: there are {', '.join(variants)}")
                schema[group] = OmegaConf.structured(variants.get(name) or variants[""])
            merged: Any = OmegaConf.merge(schema, saved)
            if "uri" in merged.track:
                merged.track.uri = compose.escape(
                    uris.strip(merged.track.uri)
                )  # a user and password come from the user alone
            return compose.freeze(merged)
    except READ_ERRORS as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not the configuration of a run ({reason}); give another folder") from error


def check_plain(text: str) -> None:
    """Raise UserError for what no run's config.yaml has: aliases, which can expand without end, and interpolations."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    depth = 0
    for token in yaml.scan(text):
        depth += isinstance(token, (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken))
        depth -= isinstance(token, (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken))
        if depth > MAX_DEPTH:  # the scanner's time grows with its square
            raise UserError(f"line {token.start_mark.line + 1}: more than {MAX_DEPTH} brackets within each other")
        if isinstance(token, yaml.AliasToken):
            raise UserError(f"line {token.start_mark.line + 1}: *{token.value} stands for something else")
        if isinstance(token, yaml.ScalarToken) and compose.INTERPOLATION.search(token.value):
            raise UserError(f"line {token.start_mark.line + 1}: {token.value} is not resolved")


def resume(config: DictConfig) -> Run:
    """The run of the folder `resume=` with the other overrides. Raises UserError for one that must not change."""
    out = Path(files.absolute(config.resume, Path.cwd()))
    saved = load(out)
    overrides = [word for word in HydraConfig.get().overrides.task if not word.startswith("resume=")]
    names = [word.lstrip("+~").partition("=")[0] for word in overrides]
    for name, word in zip(names, overrides, strict=True):
        if not may_change_on_resume(name) or name in ("out", "recipe"):
            raise UserError(
                f"{word}: resume={config.resume} uses that run's own settings; only "
                f"{', '.join(knob for knob in FREE if knob not in ('out', 'resume', 'recipe'))}, cluster.*, track.* "
                "and on_nan.* may change. For another run leave resume= out"
            )
    node = compose.to_config(saved)
    for name in names:
        value = OmegaConf.select(config, name)  # a string comes resolved
        OmegaConf.update(node, name, compose.escape(value) if isinstance(value, str) else value, merge=False)
    run = compose.freeze(node)
    run.out = str(out)
    return run


def check_folder(run: Run, out: Path) -> None:
    """Raise UserError if `out` is another run's folder, naming the difference; a start that failed holds nothing."""
    if holds_run(out) and (changed := differences(run, out)):
        raise UserError(
            f"out={out}: another run is here ({', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}); "
            f"give another out=, or resume it with {shell.word('resume', out)}"
        )


def differences(run: Run, out: Path) -> list[str]:
    """The settings that make `run` another one than that in `out`, as `seed was 1 and is 2`. Raises UserError as load()."""
    before, now = flat(load(out)), flat(run)
    changed = (name for name in now if not may_change_on_resume(name) and before.get(name) != now[name])
    return [f"{name} was {before.get(name)} and is {now[name]}" for name in changed]


def holds_run(out: Path) -> bool:
    """Whether a run in `out` has made a step, or may still make one in another process."""
    if not (out / "config.yaml").exists():
        return False
    if (out / "result.json").exists() or any((out / "checkpoints").glob("step-*")) or lock.is_held(out):
        return True
    path = out / metrics.FILE
    return path.exists() and any(name.startswith("train/") for name in metrics.read(path))


def claim(run: Run, out: Path) -> None:
    """Save `run` in `out`, unless it is another run's folder.

    Remove what a killed process left there, and what belongs to the failed start of another run.
    """
    check_folder(run, out)
    failed = False
    if (out / "config.yaml").exists() and not holds_run(out):
        try:
            failed = bool(differences(run, out))
        except UserError:  # no configuration of any run
            failed = True
    for path in list(out.iterdir()) if out.is_dir() else ():
        if PART.fullmatch(path.name) or (failed and path.is_file() and START.fullmatch(path.name)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    save(run, out)


def check_init(run: Run) -> None:
    """Raise UserError if the weights to start from are missing, and needed: there is no checkpoint."""
    if not run.init or (Path(run.out) / "checkpoints").exists():
        return
    if addresses.is_remote(run.init):
        remote.weights(run.init, "init=")
    elif not Path(run.init).exists():
        raise UserError(
            f"init={run.init}: no such file or folder; give .safetensors, .npz, a SavedModel or a run's folder"
        )
