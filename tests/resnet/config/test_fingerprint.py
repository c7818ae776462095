"""What runs are compared by."""

import dataclasses

from resnet.config import fingerprint


def test_every_knob_has_one_flat_name(frozen):
    flat = fingerprint.flat(frozen("optim=lars"))
    assert flat["optim.trust_coefficient"] == 0.001
    assert flat["data.image_size"] == 32
    assert flat["model.block"] == "bottleneck" and flat["cluster.device"] == "cpu"
    assert not any(dataclasses.is_dataclass(value) for value in flat.values())
    assert "optim.nesterov" not in flat


def test_a_result_counts_until_more_or_else_is_asked_for(frozen):
    run = frozen("steps=5", "track=off")
    mark = fingerprint.fingerprint(run)
    for same in ({"log_every_steps": 7}, {"out": "there"}, {"save_every_steps": 2}, {"recipe": "its name"}):
        assert fingerprint.fingerprint(dataclasses.replace(run, **same)) == mark
    for other in ({"steps": 6}, {"eval": False}, {"eval_steps": 1}, {"stop_at_top1": 0.9}, {"seed": 2}, {"epochs": 3}):
        assert fingerprint.fingerprint(dataclasses.replace(run, **other)) != mark
