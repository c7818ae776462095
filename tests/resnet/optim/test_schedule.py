"""Epochs to steps and learning rates, against the published tables and formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest

from resnet import UserError
from resnet.config.cluster import Cluster
from resnet.config.data import Synthetic
from resnet.config.model import Block, Dtype, Model, Policy
from resnet.config.optim import Sgd
from resnet.config.run import Run
from resnet.config.schedule import Constant, Cosine, Piecewise, Polynomial
from resnet.config.track import Off
from resnet.config.training import Ema, Progressive
from resnet.optim import schedule

IMAGENET = 1_281_167
PER_EPOCH = 625  # floor(1,281,167 / 2048): eight cards of 256


def calls_from(plan, step):
    """[(first step, one past the last)] of the graph calls from `step` on."""
    calls = []
    while step < plan.total_steps:
        calls.append(plan.next_call(step))
        step = calls[-1][1]
    return calls


def run(**knobs):
    """A run of two epochs of ten steps, unless `knobs` say otherwise."""
    return Run(
        **{
            "model": Model("tiny", Block.bottleneck, [1, 1, 1, 1]),
            "optim": Sgd(lr=1.0),
            "schedule": Constant(),
            "dtype": Dtype("fp32", Policy.float32),
            "data": Synthetic("synthetic", classes=10),
            "cluster": Cluster("local"),
            "track": Off(),
            "out": "out",
            "batch": 10,
            "epochs": 2.0,
            **knobs,
        }
    )


def lrs(settings, peak, epochs, per_epoch, steps):
    return np.asarray(schedule.curve(settings, peak, epochs, per_epoch)(np.asarray(steps)))


def test_piecewise_is_the_published_sgd_recipe():
    curve = schedule.curve(Piecewise(warmup_epochs=3), 0.8, 90, PER_EPOCH)
    table = {
        0: 0.0,
        1: 0.8 / 1875,
        1874: 0.8 * 1874 / 1875,  # the last of the warm-up
        1875: 0.8,
        18749: 0.8,  # the last before epoch 30
        18750: 0.08,
        37499: 0.08,
        37500: 0.008,
        49999: 0.008,
        50000: 0.0008,
        56249: 0.0008,  # the last of the run
    }
    np.testing.assert_allclose(curve(list(table)), list(table.values()), rtol=1e-12)


def test_polynomial_is_the_published_lars_recipe():
    warm, end = 3 * PER_EPOCH, 38 * PER_EPOCH
    steps = [0, 1, warm - 1, warm, warm + 1, (warm + end) // 2, end - 1, end, end + 1000]

    def formula(step):
        if step < warm:
            return 9.5 * step / warm
        return 1e-4 + (9.5 - 1e-4) * (1 - min(1, (step - warm) / (end - warm))) ** 2

    settings = Polynomial(warmup_epochs=3, end_lr=1e-4)
    np.testing.assert_allclose(lrs(settings, 9.5, 38, PER_EPOCH, steps), [formula(s) for s in steps], rtol=1e-12)
    assert lrs(settings, 9.5, 38, PER_EPOCH, end) == pytest.approx(1e-4)


def test_cosine_is_the_published_resnext_recipe():
    warm, end = 8 * PER_EPOCH, 90 * PER_EPOCH
    steps = [0, 1, warm - 1, warm, (warm + end) // 2, end - 1]
    wanted = [
        0.0,
        2.048 / warm,
        2.048 * (warm - 1) / warm,
        2.048,
        1.024,
        0.5 * 2.048 * (1 + math.cos(math.pi * (end - 1 - warm) / (end - warm))),
    ]
    settings = Cosine(warmup_epochs=8)
    np.testing.assert_allclose(lrs(settings, 2.048, 90, PER_EPOCH, steps), wanted, rtol=1e-9)
    assert lrs(settings, 2.048, 90, PER_EPOCH, [end, end + 9]) == pytest.approx(0, abs=1e-12)
    ends_higher = Cosine(warmup_epochs=8, end_lr=0.5)
    assert lrs(ends_higher, 2.048, 90, PER_EPOCH, (warm + end) // 2) == pytest.approx((2.048 + 0.5) / 2)
    assert lrs(ends_higher, 2.048, 90, PER_EPOCH, end) == pytest.approx(0.5)


def test_constant_stays_at_the_peak():
    np.testing.assert_array_equal(lrs(Constant(), 0.3, 2, 10, [0, 1, 19, 500]), [0.3] * 4)
    np.testing.assert_allclose(lrs(Constant(warmup_epochs=1), 0.3, 2, 10, [0, 5, 9, 10, 19]), [0, 0.15, 0.27, 0.3, 0.3])


@pytest.mark.parametrize("settings", [Polynomial(warmup_epochs=1), Cosine(warmup_epochs=1)])
def test_the_curve_aims_at_the_horizon_and_the_run_ends_before(settings):
    aimed = replace(settings, horizon_epochs=5.0)
    steps = np.arange(40)
    np.testing.assert_array_equal(lrs(aimed, 1.0, 4, 10, steps), lrs(settings, 1.0, 5, 10, steps))
    assert lrs(aimed, 1.0, 4, 10, 39) > lrs(settings, 1.0, 4, 10, 39) > 0


@pytest.mark.parametrize("settings", [Constant(), Piecewise(), Polynomial(), Cosine()])
def test_a_warm_up_may_end_within_an_epoch_and_within_a_step(settings):
    settings = replace(settings, warmup_epochs=0.25)  # two and a half steps
    np.testing.assert_allclose(lrs(settings, 1.0, 90, 10, [0, 1, 2]), [0, 0.4, 0.8])
    assert 0.99 < lrs(settings, 1.0, 90, 10, 3) <= 1.0


@pytest.mark.parametrize("settings", [Constant(), Piecewise(), Polynomial(), Cosine()])
def test_without_warm_up_the_first_step_has_the_peak(settings):
    assert lrs(settings, 0.7, 90, 10, 0) == pytest.approx(0.7)


@pytest.mark.parametrize("settings", [Constant(2), Piecewise(), Polynomial(end_lr=0.1, power=1.5), Cosine()])
def test_a_curve_of_many_steps_is_the_curve_of_each(settings):
    steps = np.arange(0, 100).reshape(4, 25)
    alone = [lrs(settings, 1.0, 90, 1, int(step)) for step in steps.ravel()]
    together = lrs(settings, 1.0, 90, 1, steps)
    assert together.shape == (4, 25)
    np.testing.assert_array_equal(np.float32(together.ravel()), np.float32(alone))  # what the step gets


@pytest.mark.parametrize("per_epoch", [3, 10, 100, 625])
def test_a_fractional_boundary_falls_on_the_step_that_arithmetic_says(per_epoch):
    for hundredths in range(34, 600):  # in floats 0.55 * 100 is above 55
        step = math.ceil(hundredths * per_epoch / 100)
        settings = Piecewise(boundaries_epochs=[hundredths / 100], factor=0.5)
        assert list(lrs(settings, 1.0, 6, per_epoch, [step - 1, step])) == [1.0, 0.5], hundredths


def test_piecewise_takes_any_factor_and_number_of_boundaries():
    np.testing.assert_array_equal(lrs(Piecewise(boundaries_epochs=[]), 2.0, 9, 10, [0, 89]), [2.0, 2.0])
    settings = Piecewise(boundaries_epochs=[1, 2, 3, 4], factor=0.5)
    np.testing.assert_array_equal(
        lrs(settings, 16.0, 5, 2, range(10)), [16.0, 16.0, 8.0, 8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0]
    )


# ----------------------------------------------------------------------------------------------------------------- plan
@pytest.mark.parametrize(
    ("batch", "epochs", "steps", "per_epoch", "total"),
    [
        (256, 90, None, 5004, 450_360),  # of 5004.56 whole batches
        (2048, 38, None, 625, 23_750),
        (32768, 56, None, 39, 2184),
        (256, 0.5, None, 5004, 2502),
        (256, 90, 7, 5004, 7),
        (256, 1, 10_000, 5004, 5004),  # `steps` never lengthens
        (IMAGENET, 3, None, 1, 3),
        (IMAGENET, 0.1, None, 1, 1),  # asked to train: at least a step
    ],
)
def test_an_epoch_is_its_whole_batches(batch, epochs, steps, per_epoch, total):
    plan = schedule.plan(run(batch=batch, epochs=epochs, steps=steps), IMAGENET)
    assert (plan.steps_per_epoch, plan.total_steps) == (per_epoch, total)


def test_the_plan_carries_the_learning_rate_of_the_run():
    settings = run(batch=2048, epochs=38, optim=Sgd(lr=9.5), schedule=Polynomial(warmup_epochs=3, end_lr=1e-4))
    plan = schedule.plan(settings, IMAGENET)
    assert plan.lr(1875) == pytest.approx(9.5)
    assert plan.lr(plan.total_steps) == pytest.approx(1e-4)
    stopped_early = schedule.plan(replace(settings, steps=2000), IMAGENET)
    np.testing.assert_array_equal(stopped_early.lr(np.arange(2000)), plan.lr(np.arange(2000)))


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(UserError, match=r"batch=2048.*1437 training images.*batch=1437"):
        schedule.plan(run(batch=2048), 1437)
    assert schedule.plan(run(batch=1437), 1437).steps_per_epoch == 1


@pytest.mark.parametrize("loop", [1, 2, 3, 7, 10, 1000])
@pytest.mark.parametrize(("save", "evaluate"), [(None, 1.0), (4, 0.7), (6, 1.0), (1000, 2.0), (3, 0.01)])
def test_no_call_runs_past_an_evaluation_or_a_save(loop, save, evaluate):
    plan = schedule.plan(run(epochs=4.5, save_every_steps=save, eval_every_epochs=evaluate, steps_per_loop=loop), 100)
    calls = calls_from(plan, 0)
    assert [step for first, end in calls for step in range(first, end)] == list(range(45))
    for first, end in calls:
        assert 1 <= end - first <= loop
        assert not any(plan.saves(done) or plan.evaluates(done) for done in range(first + 1, end))
        assert end - first == loop or plan.saves(end) or plan.evaluates(end)  # no call shorter than it must be


@pytest.mark.parametrize("loop", [1, 3, 7])
def test_going_on_makes_the_calls_that_were_left(loop):
    plan = schedule.plan(run(epochs=5, save_every_steps=6, steps_per_loop=loop), 100)
    whole = calls_from(plan, 0)
    for number, (first, _end) in enumerate(whole):
        assert calls_from(plan, first) == whole[number:]
    for done in range(51):  # from a step that was in the middle of a call, too
        calls = calls_from(plan, done)
        assert [step for first, end in calls for step in range(first, end)] == list(range(done, 50))
    assert calls_from(plan, 50) == calls_from(plan, 60) == []


def test_evaluations_are_at_their_multiples_and_at_the_end():
    plan = schedule.plan(run(epochs=4.5, eval_every_epochs=2), 100)
    assert [done for done in range(1, 46) if plan.evaluates(done)] == [20, 40, 45]
    plan = schedule.plan(run(epochs=1, eval_every_epochs=0.25), 80)
    assert [done for done in range(1, 9) if plan.evaluates(done)] == [2, 4, 6, 8]
    plan = schedule.plan(run(epochs=1, eval_every_epochs=0.001), 30)
    assert [done for done in range(1, 4) if plan.evaluates(done)] == [1, 2, 3]
    plan = schedule.plan(run(epochs=4.5, eval_every_epochs=2, eval_offset_epochs=0.5), 100)
    assert [done for done in range(1, 46) if plan.evaluates(done)] == [5, 25, 45]
    plan = schedule.plan(run(epochs=4.5, eval=False, eval_offset_epochs=1), 100)
    assert not any(plan.evaluates(done) for done in range(1, 46))


def test_saves_are_after_every_epoch_or_as_asked_and_at_every_evaluation_and_the_end():
    plan = schedule.plan(run(epochs=2.5, eval=False), 100)
    assert [done for done in range(1, 26) if plan.saves(done)] == [10, 20, 25]
    plan = schedule.plan(run(epochs=2.5, eval=False, save_every_steps=8), 100)
    assert [done for done in range(1, 26) if plan.saves(done)] == [8, 16, 24, 25]
    plan = schedule.plan(run(epochs=2.5, save_every_steps=8), 100)
    assert [done for done in range(1, 26) if plan.saves(done)] == [8, 10, 16, 20, 24, 25]


@pytest.mark.parametrize("loop", [1, 3, 7, 12])
def test_a_call_that_reaches_a_multiple_of_log_every_logs(loop):
    plan = schedule.plan(run(epochs=4.3, log_every_steps=5, steps_per_loop=loop, save_every_steps=1000), 100)
    for first, end in calls_from(plan, 0):
        reached = any(done % 5 == 0 or done == 43 for done in range(first + 1, end + 1))
        assert plan.logs(first, end) == reached


def test_epochs_for_people_are_updates_over_steps_per_epoch():
    plan = schedule.plan(run(epochs=4), 100)
    assert [plan.epoch(done) for done in (0, 1, 10, 25)] == [0, 0.1, 1, 2.5]


# ------------------------------------------------------------------------------- crops that grow, weights that are averaged
@pytest.mark.parametrize(
    ("growth", "full", "sizes"),
    [
        (Progressive(), 224, {0: 224, 9: 224}),
        (Progressive(160, 11, 13), 192, {0: 160, 11: 160, 12: 192, 13: 192, 15: 192}),  # half way goes up
        (
            Progressive(128, 0, 16),  # 6 px an epoch: 144 at 2.67, 176 at 8, 208 at 13.3
            224,
            {0: 128, 2: 128, 3: 160, 7: 160, 8: 192, 13: 192, 14: 224, 15: 224, 16: 224},
        ),
        (Progressive(128, 2, 6, multiple=8), 160, {0: 128, 2: 128, 3: 136, 4: 144, 5: 152, 6: 160, 7: 160}),
        (Progressive(128, 0.5, 1.5), 192, {0: 128, 1: 160, 2: 192}),
        (Progressive(192, 1, 5), 192, {0: 192, 3: 192, 9: 192}),
        (Progressive(160, 5, 5), 192, {0: 160, 4: 160, 5: 192, 6: 192}),  # at once
    ],
)
def test_crops_grow_from_the_first_size_to_the_full_one(growth, full, sizes):
    assert {epoch: schedule.crop_size(epoch, full, growth) for epoch in sizes} == sizes


@pytest.mark.parametrize(
    ("kept", "every", "done", "decay"),
    [
        (0.99, 1, 0, 0.1),  # one part of what was, nine of what is
        (0.99, 1, 8, 0.5),
        (0.99, 1, 890, 0.99),  # (1 + 890) / (10 + 890): from here on it is `kept`
        (0.99, 1, 1_000_000, 0.99),
        (0.99, 10, 10, 0.55**10),
        (0.99, 10, 1000, 0.9043820750088044),
        (0.5 ** (1 / 50), 10, 10_000, 0.8705505632961241),  # a half-life of 50 steps: 0.5 ** (10 / 50)
        (1e-9, 1, 5, 1e-9),
    ],
)
def test_the_average_forgets_the_first_weights_soon_and_then_keeps_what_it_was_told(kept, every, done, decay):
    assert schedule.ema_decay(kept, every, done) == pytest.approx(decay, rel=1e-12)


def test_the_average_never_keeps_less_as_a_run_goes_on():
    decays = [schedule.ema_decay(0.998, 10, done) for done in range(0, 9000, 10)]
    assert decays == sorted(decays) and decays[-1] == pytest.approx(0.998**10)


@pytest.mark.parametrize("loop", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("every", [1, 3, 8, 10, 13])
def test_no_call_runs_past_an_update_of_the_average(loop, every):
    ema = Ema(decay=0.9, every_steps=every)
    plan = schedule.plan(run(epochs=4.5, ema=ema, eval_every_epochs=2, steps_per_loop=loop), 100)
    calls = calls_from(plan, 0)
    assert [step for first, end in calls for step in range(first, end)] == list(range(45))
    updates = [end for _, end in calls if plan.averages(end)]
    assert updates == list(range(every, 46, every))
    assert all(end - first == loop or plan.averages(end) or plan.saves(end) for first, end in calls)


def test_without_an_average_nothing_is_updated_and_no_call_is_shorter():
    plan = schedule.plan(run(epochs=3, eval=False, save_every_steps=1000, steps_per_loop=1000), 100)
    assert calls_from(plan, 0) == [(0, 30)]
    assert not any(plan.averages(done) for done in range(31))


@pytest.mark.parametrize(
    "loop",
    [1, 3, 7, 10, 1000],
)
def test_no_call_has_images_of_two_sizes(loop):
    growth = Progressive(160, 1, 3)  # to the 224 px of the images
    settings = run(epochs=4.5, progressive=growth, eval=False, save_every_steps=1000, steps_per_loop=loop)
    plan = schedule.plan(settings, 100)
    assert [plan.size(step) for step in range(45)] == [160] * 20 + [192] * 10 + [224] * 15
    assert [step for step in range(46) if plan.resizes(step)] == [20, 30]
    calls = calls_from(plan, 0)
    assert [step for first, end in calls for step in range(first, end)] == list(range(45))
    assert {20, 30} <= {end for _, end in calls}
    for first, end in calls:
        assert len({plan.size(step) for step in range(first, end)}) == 1
        assert end - first == loop or end in (20, 30, 45)  # sizes that stay cut no call


def test_crops_grow_to_train_size_if_there_is_one():
    data = Synthetic("synthetic", classes=10, image_size=256, train_size=192)
    plan = schedule.plan(run(epochs=3, data=data, progressive=Progressive(128, 0, 2)), 100)
    assert [plan.size(step) for step in (0, 9, 10, 19, 20, 29)] == [128, 128, 160, 160, 192, 192]
    assert schedule.plan(run(data=data), 100).size(0) == 192
    assert schedule.plan(run(), 100).size(0) == 224
