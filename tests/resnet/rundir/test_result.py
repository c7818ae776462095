"""Where a run stands, and what it came to."""

import json
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import pytest

from resnet.rundir import result
from resnet.training import state
from resnet.training.state import Progress


@dataclass
class Scores:
    """As scores.Scores, which needs TensorFlow."""

    top1: float
    top5: float = 0.9
    loss: float = 1.0
    seen: int = 360


def concluded(standing, done=10, stop_at_top1=None):
    run = SimpleNamespace(stop_at_top1=stop_at_top1, out="/runs/x")
    return state.summary(run, standing, done, 2.5, 3.0, "a mark")


def test_a_new_run_stands_at_nothing():
    new = Progress()
    assert (new.best_top1, new.scores, new.scored_at, new.seconds, new.images) == (None, None, None, 0.0, 0)
    assert new.top1(0) is None and not new.reached(0.5, 0)


def test_the_best_is_the_highest_top1_and_the_scores_are_the_newest():
    standing = Progress().judged(Scores(0.5), 10).judged(Scores(0.8), 20).judged(Scores(0.7), 30)
    assert standing.best_top1 == 0.8
    assert standing.scored_at == 30 and standing.scores == asdict(Scores(0.7))


def test_the_top1_of_weights_is_that_of_their_own_evaluation():
    standing = Progress().judged(Scores(0.5), 10)
    assert standing.top1(10) == 0.5
    assert standing.top1(11) is None


@pytest.mark.parametrize(
    ("stop", "done", "reached"), [(0.5, 10, True), (0.51, 10, False), (0.5, 11, False), (None, 10, False)]
)
def test_a_run_has_reached_its_goal_when_these_weights_have_it(stop, done, reached):
    assert Progress().judged(Scores(0.5), 10).reached(stop, done) is reached


def test_a_top1_of_zero_is_a_result():
    standing = Progress().judged(Scores(0.0), 10)
    assert standing.top1(10) == 0.0 and standing.best_top1 == 0.0
    assert standing.judged(Scores(0.0), 20).best_top1 == 0.0
    assert concluded(standing)["eval/top1"] == 0.0


def test_time_and_images_of_all_parts_are_summed():
    standing = Progress().timed(2.0, 200, [90.0, 110.0]).timed(3.0, 450, [150.0])
    assert (standing.seconds, standing.images, standing.speeds) == (5.0, 650, (90.0, 110.0, 150.0))
    made = concluded(standing)
    assert made["final/images_per_s"] == 650 / 5
    assert made["final/images_per_s_median"] == 110.0
    assert made["final/training_minutes"] == 5 / 60


def test_only_the_newest_thousand_speeds_are_kept():
    standing = Progress().timed(1.0, 1, [1.0] * 600).timed(1.0, 1, [2.0] * 600)
    assert len(standing.speeds) == 1000 and standing.speeds.count(2.0) == 600


def test_a_standing_survives_the_json_of_a_checkpoint():
    standing = Progress().judged(Scores(0.5), 10).timed(2.0, 200, [100.0])
    again = Progress(**json.loads(json.dumps(asdict(standing))))
    assert concluded(again) == concluded(standing)
    assert concluded(again.timed(1.0, 10, [50.0])) == concluded(standing.timed(1.0, 10, [50.0]))
    assert again.judged(Scores(0.4), 20).best_top1 == 0.5


def test_a_result_has_the_scores_of_the_last_weights_only():
    standing = Progress().judged(Scores(0.5), 10)
    assert concluded(standing, done=10)["eval/top1"] == concluded(standing, done=10)["final/top1"] == 0.5
    later = concluded(standing, done=12)
    assert later["eval/top1"] is later["eval/top5"] is later["eval/loss"] is later["final/top1"] is None
    assert later["best/top1"] == 0.5


def test_a_run_without_a_second_step_has_no_speed():
    made = concluded(Progress(), done=1)
    assert made["final/images_per_s"] is None and made["final/images_per_s_median"] is None


def test_the_status_tells_why_it_ended():
    standing = Progress().judged(Scores(0.5), 10)
    assert concluded(standing, stop_at_top1=0.4)["status"] == "stopped at top-1"
    assert concluded(standing, stop_at_top1=0.6)["status"] == "finished"
    assert concluded(standing)["status"] == "finished"


def test_a_result_is_read_as_it_was_written(tmp_path):
    made = concluded(Progress().judged(Scores(0.5), 10).timed(2.0, 200, [100.0]))
    path = result.write(tmp_path, made)
    assert path == tmp_path / "result.json"
    assert result.read(tmp_path) == made == json.loads(path.read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]  # nothing is left of writing it


def test_a_folder_without_a_whole_result_has_none(tmp_path):
    assert result.read(tmp_path) is None
    assert result.read(tmp_path / "nowhere") is None
    (tmp_path / "result.json").write_text('{"status": "fin')
    assert result.read(tmp_path) is None


def test_a_write_that_fails_leaves_the_result_before_it(tmp_path):
    result.write(tmp_path, {"steps": 1})
    with pytest.raises(TypeError):
        result.write(tmp_path, {"steps": object()})
    assert result.read(tmp_path) == {"steps": 1}


def test_going_back_lowers_the_rate_each_time_and_counts():
    standing = Progress().judged(Scores(0.5), 10).rolled_back(0.5).rolled_back(0.5)
    assert (standing.rollbacks, standing.lr_scale, standing.best_top1) == (2, 0.25, 0.5)


def test_what_an_older_version_kept_is_read():
    assert Progress(best_top1=0.5, seconds=2.0).lr_scale == 1.0
