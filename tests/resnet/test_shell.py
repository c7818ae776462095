"""Commands that are printed, read again by a shell's rules, Hydra's own parser and OmegaConf."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import resnet
from resnet import UserError, shell
from resnet.config import compose
from resnet.data import source
from resnet.prepare import __main__ as prepare
from resnet.sweep import argv

NAMES = [
    "plain",
    "1/2",
    "gs://a/b:c+d.e",
    "True",
    "date=2024",
    "two words",
    " edges ",
    "it's",
    'a "quote"',
    "a,b",
    "[x]",
    "{y: 1}",
    "(z)",
    "$HOME",
    "${oc.env:HOME}",
    "\\${x}",
    "#1 %2F ?a&b;c|d",
    "日本 é",
    "back\\slash",
    "end\\",
    '\\"',
    "'",
    "null",
    "1e3",
    "~x",
    "@y",
    "tab\t",
    "new\nline",
    "`id`",
    "!!",
    "*<>",
]


def understood(line):
    """{knob: value} of a printed `python -m resnet.train ...`."""
    python, option, module, *words = shlex.split(line)
    assert (python, option, module) == ("python", "-m", "resnet.train")
    overrides = OverridesParser.create().parse_overrides(words)
    config = OmegaConf.create({override.key_or_group: override.value() for override in overrides})
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_in_a_name_a_printed_command_means_it(name):
    for path in (name, f"/a/{name}/b", f"{name}/{name}"):
        line = shell.command("resnet.train", shell.override("resume", path), shell.override("data.dir", path))
        assert understood(line) == {"resume": path, "data.dir": path}
        assert shlex.split(shell.word("out", path)) == [shell.override("out", path)]
        assert argv.path_of(shell.override(argv.RESUME, path)) == path


def test_a_plain_path_stays_as_it_is():
    assert (
        shell.command("resnet.train", shell.override("resume", "/a/b-1.c")) == "python -m resnet.train resume=/a/b-1.c"
    )
    assert argv.path_of("sweep.resume=runs/date=2024") == "runs/date=2024"


def test_what_preparation_prints_trains_on_what_it_wrote(tree, tmp_path, run_of, capsys):
    folder = tmp_path / "it's ${x}, [1]" / "date=2024 #1 日本"
    words = ["source=folder", f"dir={tree({'a': 3, 'b': 3})}", f"out={folder}", "processes=1"]
    prepare.do(prepare.parse(words))
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ")
    assert understood(line) == {"data": "folder", "data.dir": str(folder), "batch": 2}
    assert source.open_source(run_of(*shlex.split(line)[3:]).data).train_images == 4


def test_what_an_error_prints_prepares_there(tmp_path):
    folder = f"{tmp_path}/it's new"
    with pytest.raises(UserError) as error:
        source.open_source(compose.one_group("data", "data=imagenet", dir=folder))
    words = shlex.split(str(error.value).partition("prepare them with: python -m resnet.prepare ")[2])
    assert prepare.parse(words).out == folder


def test_every_command_that_is_printed_is_put_together_in_one_place():
    for path in Path(resnet.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        own = re.findall(r"python -m resnet\.\w+[^\"'\n]*\{\w|with resume=\{", text)
        assert not own, f"{path}: {own}; use resnet.shell"
