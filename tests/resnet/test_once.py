"""One composition where Hydra makes two, with nothing else different."""

import sys

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from resnet import compose, launch, paths

COMMANDS = {
    "run": ["batch=64", "optim=lars", "out=x"],
    "run of a mode": ["hydra.mode=RUN", "out=x"],
    "nothing": [],
    "typo": ["nosuch=1"],
    "no such option": ["model=nosuch"],
    "grammar": ["batch=[1"],
    "list without -m": ["batch=64,128", "out=x"],
    "sweep": ["-m", "batch=64,128", "out=x"],
    "sweep of a mode": ["hydra.mode=MULTIRUN", "batch=64,128", "out=x"],
    "sweep by a file": ["sweep=batch_lr", "out=x"],
    "refused sweep": ["-m", "batch=64,128", "nosuch=1"],
}
ASKED_ONCE = {"run": 1, "nothing": 1, "typo": 1, "no such option": 1, "run of a mode": 1}


@pytest.fixture
def did(monkeypatch, tmp_path):
    """`did(words, once)`: (the configurations a command came to or the error it ended with, how many were composed)."""
    compose.register()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    whole, impl = ConfigLoaderImpl.load_configuration, ConfigLoaderImpl._load_configuration_impl

    def run(words, once):
        came, composed = [], []

        def keep(config):
            came.append(OmegaConf.to_container(HydraConfig.instance().cfg.hydra))
            came.append(OmegaConf.to_container(config))

        def launched(self, jobs, initial_job_idx):
            came.extend([OmegaConf.to_container(self.config), jobs, initial_job_idx])
            return []

        def counted(*args, **named):
            composed.append(args)
            return impl(*args, **named)

        monkeypatch.setattr(launch.Processes, "launch", launched)
        monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", whole if once else whole.__wrapped__)
        monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
        monkeypatch.setattr(sys, "argv", ["train", *words])
        try:
            hydra.main(version_base="1.3", config_path=str(paths.tree("conf")), config_name="config")(keep)()
        except HydraException as error:
            came.append((type(error), str(error)))
        return came, len(composed)

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_comes_to_the_same_as_with_hydra_alone_by_one_composition_less(did, name):
    alone, twice = did(COMMANDS[name], once=False)
    found, number = did(COMMANDS[name], once=True)
    assert found == alone and found
    assert number == twice - 1
    assert number == ASKED_ONCE.get(name, number)


def test_an_option_that_must_be_chosen_is_missed_as_by_hydra_alone(did, tmp_path):
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    (tmp_path / "mine" / "recipe" / "open.yaml").write_text(
        '# @package _global_\ndefaults: [{override /model: "???"}]\n'
    )
    words = ["--config-dir=mine", "recipe=open", "out=x"]
    (alone, _), (found, _) = did(words, once=False), did(words, once=True)
    assert found == alone and "model" in found[0][1]
