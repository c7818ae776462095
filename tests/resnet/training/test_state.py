"""The state of a run: where a start takes it from, the progress beside the weights, and the result."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from resnet import UserError
from resnet.distributed.ranks import Ranks
from resnet.model import weights
from resnet.training.checkpoint import CheckpointWriter, Saved
from resnet.training.evaluation import EvalResult
from resnet.training.meter import NotFinite
from resnet.training.state import Progress, TrainState, summary


def scores(top1):
    return EvalResult(top1, 0.9, 1.0, 360)


def summarized(progress, step=10, stop_at_top1=None):
    """The result of a run that is at `step`."""
    state = TrainState.__new__(TrainState)  # no network
    state.run, state.step, state.progress = SimpleNamespace(stop_at_top1=stop_at_top1, out="/runs/x"), step, progress
    return summary(state, 2.5, "a hash")


def test_a_new_run_has_no_progress():
    new = Progress()
    assert (new.best_top1, new.scores, new.scored_at, new.seconds, new.images) == (None, None, None, 0.0, 0)
    assert new.top1(0) is None and not new.reached(0.5, 0)


def test_the_best_is_the_highest_top1_and_the_scores_are_the_newest():
    progress = Progress()
    for step, top1 in ((10, 0.5), (20, 0.8), (30, 0.7)):
        progress = progress.record_evaluation(step, scores(top1))
    assert progress.best_top1 == 0.8
    assert progress.scored_at == 30
    assert progress.scores == {"top1": 0.7, "top5": 0.9, "loss": 1.0, "seen": 360}


def test_the_top1_of_weights_is_that_of_their_own_evaluation():
    progress = Progress().record_evaluation(10, scores(0.5))
    assert progress.top1(10) == 0.5
    assert progress.top1(11) is None


@pytest.mark.parametrize(
    ("stop", "step", "reached"), [(0.5, 10, True), (0.51, 10, False), (0.5, 11, False), (None, 10, False)]
)
def test_a_run_has_reached_its_goal_when_these_weights_have_it(stop, step, reached):
    assert Progress().record_evaluation(10, scores(0.5)).reached(stop, step) is reached


def test_a_top1_of_zero_is_a_result():
    progress = Progress().record_evaluation(10, scores(0.0))
    assert progress.top1(10) == 0.0 and progress.best_top1 == 0.0
    assert progress.record_evaluation(20, scores(0.0)).best_top1 == 0.0
    assert summarized(progress)["eval/top1"] == 0.0


def test_time_and_images_of_all_starts_are_summed():
    progress = Progress().add_time(2.0, 200, [90.0, 110.0]).add_time(3.0, 450, [150.0])
    assert (progress.seconds, progress.images, progress.speeds) == (5.0, 650, (90.0, 110.0, 150.0))
    result = summarized(progress)
    assert result["final/images_per_s"] == 650 / 5
    assert result["final/images_per_s_median"] == 110.0
    assert result["final/training_minutes"] == 5 / 60


def test_only_the_newest_thousand_speeds_are_kept():
    progress = Progress().add_time(1.0, 1, [1.0] * 600).add_time(1.0, 1, [2.0] * 600)
    assert len(progress.speeds) == 1000 and progress.speeds.count(2.0) == 600


def test_progress_survives_the_json_of_a_checkpoint():
    progress = Progress().record_evaluation(10, scores(0.5)).add_time(2.0, 200, [100.0])
    again = Progress(**json.loads(json.dumps(asdict(progress))))
    assert summarized(again) == summarized(progress)
    assert summarized(again.add_time(1.0, 10, [50.0])) == summarized(progress.add_time(1.0, 10, [50.0]))
    assert again.record_evaluation(20, scores(0.4)).best_top1 == 0.5


def test_a_result_has_the_scores_of_the_last_weights_only():
    progress = Progress().record_evaluation(10, scores(0.5))
    assert summarized(progress)["eval/top1"] == summarized(progress)["final/top1"] == 0.5
    later = summarized(progress, step=12)
    assert later["eval/top1"] is later["eval/top5"] is later["eval/loss"] is later["final/top1"] is None
    assert later["best/top1"] == 0.5


def test_a_run_without_a_second_step_has_no_speed():
    result = summarized(Progress(), step=1)
    assert result["final/images_per_s"] is None and result["final/images_per_s_median"] is None


def test_the_status_says_why_it_ended():
    progress = Progress().record_evaluation(10, scores(0.5))
    assert summarized(progress, stop_at_top1=0.4)["status"] == "stopped at top-1"
    assert summarized(progress, stop_at_top1=0.6)["status"] == "finished"
    assert summarized(progress)["status"] == "finished"


def test_a_rollback_lowers_the_rate_each_time_and_counts():
    progress = Progress().record_evaluation(10, scores(0.5)).rolled_back(0.5).rolled_back(0.5)
    assert (progress.rollbacks, progress.lr_scale, progress.best_top1) == (2, 0.25, 0.5)


def test_what_an_older_version_saved_is_read():
    assert Progress(best_top1=0.5, seconds=2.0).lr_scale == 1.0


def test_the_top1_is_that_of_averaged_weights_if_there_are_any():
    progress = Progress().record_evaluation(10, scores(0.5), scores(0.7))
    result = summarized(progress)
    assert progress.top1(10) == progress.best_top1 == result["final/top1"] == 0.7
    assert (result["eval/top1"], result["ema/top1"]) == (0.5, 0.7)


# ---------------------------------------------------------------------------------------------------------------- restore
@pytest.fixture
def new_state(run_of, small_build, monkeypatch):
    """`new_state("init=...")`: the state of a new start of a run with averaged weights, before restore()."""
    monkeypatch.setattr("resnet.model.resnet.build", small_build)
    return lambda *words: TrainState(run_of("model=tiny", "track=off", "ema.decay=0.9", *words), Ranks())


def fill(network, value):
    """Set every weight to that number."""
    for variable in network.weights:
        variable.assign(np.full(variable.shape, value))


def values(network):
    """All weights in one array."""
    return np.concatenate([variable.numpy().ravel() for variable in network.weights])


def test_a_start_takes_the_checkpoint_else_the_weights_of_init_else_new_ones(new_state, tmp_path):
    fresh = new_state()
    new = values(fresh.network)
    assert fresh.restore(tmp_path / "run") == []
    assert (fresh.step, fresh.saved, fresh.progress) == (0, None, Progress())
    assert np.array_equal(values(fresh.network), new) and np.array_equal(values(fresh.ema.mean), new)

    fill(fresh.network, 2.0)
    file = tmp_path / "twos.safetensors"
    save_file(weights.export_from(fresh.network), file)
    initialized = new_state(f"init={file}")
    (note,) = initialized.restore(tmp_path / "run")
    assert str(file) in note and (initialized.step, initialized.saved) == (0, None)
    assert (values(initialized.network) == 2).all() and (values(initialized.ema.mean) == 2).all()

    fill(initialized.network, 3.0)
    initialized.step, initialized.progress = 7, Progress().record_evaluation(7, scores(0.5), scores(0.6))
    with CheckpointWriter(tmp_path / "run", initialized.trackable, 3) as checkpoints:
        initialized.save(checkpoints)
    file.unlink()  # it is not read again
    resumed = new_state(f"init={file}")
    assert resumed.restore(tmp_path / "run") == []
    assert (resumed.step, resumed.top1, resumed.saved.step, resumed.evaluated) == (7, 0.6, 7, True)
    assert resumed.progress.scores == initialized.progress.scores
    assert (values(resumed.network) == 3).all() and (values(resumed.ema.mean) == 2).all()


def test_weights_of_init_that_cannot_be_read_are_refused(new_state, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"broken\.safetensors"):
        new_state(f"init={tmp_path / 'broken.safetensors'}").restore(tmp_path / "run")


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("ranks", [2, 3])
def test_other_ranks_take_the_state_of_rank_0_and_their_own_statistics_and_read_no_file(run_of, tmp_path, ranks):
    """The statistics of a checkpoint for another number of ranks are left: its weights have their average."""
    saved = Saved(tmp_path, 5, None, asdict(Progress(skipped=2)))

    class OtherRank(Ranks):
        def broadcast_object(self, _value):
            return next(objects)

        def broadcast_variables(self, variables):
            for variable in variables:
                variable.assign(np.ones(variable.shape))

    other = TrainState(run_of("model=tiny", "track=off", "init=nowhere.npz"), OtherRank(1, ranks))
    moving = [w for w in other.network.non_trainable_weights if "moving_" in w.name]
    by_rank = np.arange(2 * sum(np.prod(w.shape) for w in moving), dtype=np.float32).reshape(2, -1)
    objects = iter([saved, by_rank])
    assert other.restore(Path("/nowhere")) == []
    assert (other.step, other.progress.skipped, other.saved) == (5, 2, saved)
    assert all((w.numpy() == 1).all() for w in other.network.trainable_weights)
    own = np.concatenate([w.numpy().ravel() for w in moving])
    assert len(own) == by_rank.shape[1] > 4 and np.array_equal(own, by_rank[1] if ranks == 2 else np.ones_like(own))


def test_weights_that_are_not_finite_are_named_by_the_step_that_made_them(new_state):
    state = new_state()
    state.step = 7
    state.assert_finite()
    state.ema.mean.weights[0].assign(np.full(state.ema.mean.weights[0].shape, np.inf))
    with pytest.raises(NotFinite, match=r"^step 7: the loss is finite, and the weights after it are not$"):
        state.assert_finite()


def test_minutes_are_those_of_all_starts(new_state):
    state = new_state()
    state.earlier_minutes, state.started = 5.0, state.started - 120
    state.record_time()
    assert 7 <= state.progress.minutes < 8
