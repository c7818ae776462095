"""Operations against torchvision's and timm's pixels (tests/golden/oracle_augment.py), and how often each is drawn."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet import UserError
from resnet.config.training import Augment, RandAugment, Resampling, TrivialAugment
from resnet.data.augment import policies
from resnet.data.augment.operations import Step, apply

GOLDEN = Path(__file__).parents[3] / "golden" / "augment.npz"
SIZE = 9
TIMM_FILL = (124, 117, 104)


def picture() -> Image.Image:
    """As in tests/golden/oracle_augment.py."""
    rows, columns, channels = np.ogrid[:SIZE, :SIZE, :3]
    waves = 90 * np.sin(0.55 * columns * (1 + channels) + 0.31 * rows) + 70 * np.cos(0.47 * rows * (3 - channels))
    return Image.fromarray((waves * 0.75 + 118).clip(0, 255).astype(np.uint8))


def step_of(policy: str, operation: str, number: int, sign: int) -> Step:
    """The step that is to give the golden image of this name."""
    if policy == "hue":
        return Step(operation, float(np.linspace(-0.5, 0.5, 11)[number]))
    if policy.startswith("timm"):
        value = policies.timm_value(operation, number / 10, sign, policy == "timm1", SIZE)
        return Step(operation, value, Image.Resampling.BICUBIC)
    sign = (
        -sign if operation.startswith("Translate") else sign
    )  # torchvision's move to the right takes pixels from the left
    values = policies.rand_values(31, SIZE) if policy == "rand" else policies.trivial_values(31)
    return Step(operation, sign * float(values[operation][number]) + (operation in policies.ENHANCING))


@pytest.mark.parametrize("policy", ["rand", "trivial", "timm0", "timm1", "hue"])
def test_every_operation_at_every_strength_is_that_of_torchvision_and_timm(policy):
    """Within one grey level on 99 % of the numbers."""
    golden = np.load(GOLDEN)
    wrong, count = [], 0
    for name, expected in zip(golden["names"], golden["images"], strict=True):
        origin, operation, number, sign = str(name).split("/")
        if origin != policy:
            continue
        count += 1
        fill = TIMM_FILL if policy.startswith("timm") else policies.BLACK
        image = np.asarray(apply(picture(), step_of(policy, operation, int(number), int(sign)), fill)).astype(int)
        near = (np.abs(image - expected) <= 1).mean()
        if near < 0.99:
            wrong.append(f"{name}: {near:.3f}")
    assert not wrong and count >= 11


def frequencies(settings: Augment, images: int = 6000) -> tuple[Counter[str], dict[str, list[float]]]:
    """(how often each operation is drawn, the values of each) of so many images of 100 px."""
    values: dict[str, list[float]] = {}
    for key in range(images):
        random = np.random.Generator(np.random.Philox(key=np.array([1, key], np.uint64)))
        for step in policies.steps(settings, random, 100):
            values.setdefault(step.operation, []).append(step.value)
    return Counter({name: len(one) for name, one in values.items()}), values


def near(counts: Counter[str], names: tuple[str, ...], expected: float) -> bool:
    """Whether each count is within five standard deviations of a Poisson distribution."""
    return set(counts) == set(names) and all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_trivialaugment_draws_operations_strengths_and_signs_uniformly():
    counts, values = frequencies(TrivialAugment())
    assert near(counts, policies.OPERATIONS, 6000 / 14)
    assert {round(value / 135 * 30) for value in values["Rotate"]} == set(range(-30, 31))
    assert 0.4 < np.mean(np.array(values["ShearX"]) > 0) < 0.6
    assert set(values["Posterize"]) == {2, 3, 4, 5, 6, 7, 8}
    assert min(values["Brightness"]) == pytest.approx(0.01) and max(values["Brightness"]) == pytest.approx(1.99)


def test_randaugment_draws_num_ops_operations_of_one_strength():
    counts, values = frequencies(RandAugment(num_ops=3, magnitude=30))
    assert near(counts, policies.OPERATIONS, 3 * 6000 / 14)
    assert set(values["Rotate"]) == {-30, 30} and set(values["TranslateX"]) == {-45, 45}  # 150/331 of 100 px


def test_timm_applies_each_operation_with_its_probability_and_a_normal_magnitude():
    counts, values = frequencies(RandAugment(timm="rand-m7-mstd0.5-inc1"))
    assert near(counts, policies.TIMM_OPERATIONS, 2 * 6000 * 0.5 / 15)
    levels = np.abs(values["Rotate"]) / 3
    assert abs(levels.mean() - 7) < 0.1 and abs(levels.std() - 0.5) < 0.1
    clipped = np.abs(frequencies(RandAugment(timm="rand-m10-mstd2-inc1"), 1000)[1]["Rotate"]) / 3
    assert clipped.max() == pytest.approx(10) and 0.3 < np.mean(clipped > 9.999) < 0.7
    uniform = np.abs(frequencies(RandAugment(timm="rand-m10-mstd101-p1-n1"))[1]["Rotate"]) / 3
    assert abs(uniform.mean() - 5) < 0.5 and uniform.min() < 0.5


def test_colour_jitter_draws_factors_uniformly_in_random_order():
    settings = Augment(color_jitter=[0.4, 0.2, 0.0, 0.1])
    counts, values = frequencies(settings, 2000)
    assert counts == {"Brightness": 2000, "Contrast": 2000, "Hue": 2000}
    for name, low, high in (("Brightness", 0.6, 1.4), ("Contrast", 0.8, 1.2), ("Hue", -0.1, 0.1)):
        assert low <= min(values[name]) < low + 0.02 and high - 0.02 < max(values[name]) <= high
    random = np.random.default_rng(1)
    orders = {tuple(step.operation for step in policies.steps(settings, random, 9)) for _ in range(200)}
    assert len(orders) == 6


def test_an_image_depends_on_seed_and_key_alone():
    pixels = np.asarray(picture())
    transform = policies.transform_of(TrivialAugment(), [124.0, 117.0, 104.0], 3)
    images = [transform(pixels, False, key) for key in range(40)]
    again = policies.transform_of(TrivialAugment(), [124.0, 117.0, 104.0], 3)
    for key in reversed(range(40)):
        np.testing.assert_array_equal(again(pixels, False, key), images[key])
    other = policies.transform_of(TrivialAugment(), [124.0, 117.0, 104.0], 4)
    assert any((other(pixels, False, key) != images[key]).any() for key in range(40))


def test_mirroring_comes_first():
    plain = policies.transform_of(RandAugment(magnitude=0, num_ops=1), [0.0] * 3, 1)
    pixels = np.asarray(picture())
    keys = [key for key in range(40) if (plain(pixels, False, key) == pixels).all()]
    assert keys
    for key in keys:
        np.testing.assert_array_equal(plain(pixels, True, key), pixels[:, ::-1])


def test_timm_fills_with_the_mean_and_interpolates_at_random():
    settings = RandAugment(timm="rand-m10-p1-n1-inc1")
    random = np.random.default_rng(1)
    drawn = [step for _ in range(300) for step in policies.steps(settings, random, 16)]
    assert {step.resample for step in drawn} == {Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}
    settings.interpolation = Resampling.nearest
    assert {step.resample for step in policies.steps(settings, random, 16)} == {Image.Resampling.NEAREST}
    transform = policies.transform_of(settings, [10.2, 20.7, 30.0], 1)
    corners = [transform(np.full([9, 9, 3], 99, np.uint8), False, key)[[0, -1]][:, [0, -1]] for key in range(60)]
    assert any((corner == [10, 21, 30]).all(-1).any() for corner in corners)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: RandAugment(magnitude=31), "augment.magnitude=31: must be a bin, 0 to 30"),
        (lambda: RandAugment(magnitude=-1), "augment.magnitude=-1: must be a bin"),
        (lambda: RandAugment(num_ops=0), "augment.num_ops=0"),
        (lambda: RandAugment(timm="rand-m7-x2"), "augment.timm=rand-m7-x2: give timm's parts m, n, p"),
        (lambda: RandAugment(timm="m7"), "augment.timm=m7"),
        (lambda: RandAugment(timm="rand-m11"), "augment.timm=rand-m11: its magnitude is above 10; add -mmax11"),
        (lambda: RandAugment(timm="rand-p1.5"), "p is a probability"),
        (lambda: RandAugment(timm="rand-m7", magnitude=5), "says it already"),
        (lambda: TrivialAugment(num_magnitude_bins=1), "augment.num_magnitude_bins=1: must be at least 2"),
        (lambda: Augment(color_jitter=[0.4, 0.4]), "augment.color_jitter=[0.4, 0.4]: give four numbers"),
        (lambda: Augment(color_jitter=[0.4, 0.4, 0.4, 0.6]), "hue"),
        (lambda: Augment(repeats=0), "augment.repeats=0"),
        (lambda: Augment(erasing=1.1), "augment.erasing=1.1: must be a probability"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        settings()
