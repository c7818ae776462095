"""Images of every kind, trees of them, and a pair of nested tars in the shape of ImageNet's."""

import dataclasses
import hashlib
import io
import os
import random
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet import files, rundir


def photo(seed, width=64, height=48):
    """A picture with something in it: eight soft spots across, in colours that a JPEG keeps well."""
    spots = max(2, 8 * height // width)
    coarse = np.random.default_rng(seed).integers(60, 200, (spots, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, form="JPEG", **options):
    """The bytes of a picture in a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def rotated(turn=6):
    """EXIF that says how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


@pytest.fixture(name="photo", scope="session")
def photo_fixture():
    return photo


@pytest.fixture(name="encoded", scope="session")
def encoded_fixture():
    return encoded


@pytest.fixture(name="rotated", scope="session")
def rotated_fixture():
    return rotated


def plant(classes, root, sizes=({},)):
    """A folder with so many JPEG images in a folder for each class, of these sizes in turn."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for image in range(count):
            size = sizes[image % len(sizes)]
            (root / name / f"{image:03d}.jpg").write_bytes(encoded(photo(number * 1000 + image, **size)))
    return root


@pytest.fixture
def tree(tmp_path):
    """`tree({"cat": 3, "dog": 2})`: a folder with so many JPEG images in a folder for each class."""
    return lambda classes, root=None, **options: plant(classes, root or tmp_path / "tree", [options])


@pytest.fixture(scope="session")
def prepared():
    """`prepared({"cat": 3, "dog": 2}, folder)`: such images of several sizes as shards, half of them held out."""
    from resnet.prepare import __main__ as prepare

    def make(classes, folder):
        sizes = [{"width": w, "height": h} for w, h in ((64, 48), (40, 90), (57, 57), (33, 35), (120, 70))]
        root = plant(classes, folder.with_name(f"{folder.name}-images"), sizes)
        words = ["source=folder", f"dir={root}", f"out={folder}", "val_fraction=0.5", "processes=1"]
        prepare.do(prepare.parse(words))
        return folder

    return make


# ------------------------------------------------------------------------------------------------------------- the network
@pytest.fixture(scope="session")
def small_build():
    """In place of `resnet.build`: a network of one convolution."""
    import small_network

    return small_network.build


@pytest.fixture
def small_network(small_build, monkeypatch):
    """Trainings of this test have that one."""
    from resnet.model import resnet

    monkeypatch.setattr(resnet, "build", small_build)


@pytest.fixture(scope="session")
def np_conv():
    """`np_conv(images, kernel, stride, groups)`: direct convolution, padded by (size - 1) // 2 zeros on every side."""

    def convolved(x, kernel, stride, groups=1):
        size, _, _, out = kernel.shape
        side = (size - 1) // 2
        x = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
        height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
        parts = []
        for part, weights in zip(np.split(x, groups, 3), np.split(kernel, groups, 3), strict=True):
            total = np.zeros((len(x), height, width, out // groups))
            for i in range(size):
                for j in range(size):
                    seen = part[:, i : i + stride * height : stride, j : j + stride * width : stride]
                    total += seen[:, :height, :width] @ weights[i, j]
            parts.append(total)
        return np.concatenate(parts, 3)

    return convolved


# ----------------------------------------------------------------------------------------------------- runs trained once
@dataclass(frozen=True)
class TrainedOnce:
    """What tests of trained runs share: read it, and copy what is to be changed."""

    folder: Path
    preprocessing: tuple[str, ...] = (
        "data.image_size=48",
        "data.eval_resize=56",
        "data.mean=[100,110,120]",
        "data.std=[50,60,70]",
    )
    names: tuple[str, ...] = ("cat", "dog", "ümlaut, of $x$\nüber")

    @property
    def shards(self):
        return self.folder / "shards"

    def copy(self, kind, folder, **data):
        """A copy of a run in folder/run, where `data` are changed: `plain`, or `averaged` in bfloat16 with averaged weights."""
        out = shutil.copytree(self.folder / kind, folder / "run")
        run = rundir.load(out)
        run = dataclasses.replace(run, out=str(out), data=dataclasses.replace(run.data, **data))
        rundir.save(run, out)
        return run


@pytest.fixture(scope="session")
def trained_once(run_at, prepared, tmp_path_factory):
    """Shards of three classes, images of several sizes, and two runs on them; made by the first worker that needs them."""
    from resnet.training import loop

    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "trained once"
    folder.mkdir(exist_ok=True)
    made = TrainedOnce(folder)
    common = ("model=tiny", "track=off", "data=folder", f"data.dir='{made.shards}'", *made.preprocessing, "batch=6")
    average = ("dtype=bf16", "steps=6", "optim.lr=0.3", "ema.decay=0.6", "ema.every_steps=2")
    with files.locked(folder / "lock"):
        if not made.shards.exists():
            prepared(dict(zip(made.names, (12, 10, 14), strict=True)), made.shards)
        for kind, words in {"plain": ("epochs=2", "optim.lr=0.05"), "averaged": average}.items():
            out = folder / kind
            if not (out / "result.json").exists():
                loop.train(run_at(folder, *common, *words, "schedule=constant", f"out='{out}'"), out)
    return made


# ----------------------------------------------------------------------------------------------------------- ImageNet's tars
@dataclass
class Imagenet:
    """What was made: {file name: synset} of what must come out, and what must not."""

    dir: Path
    synsets: list[str]
    train: dict[str, str] = field(default_factory=dict)
    val: dict[str, str] = field(default_factory=dict)
    as_is: dict[str, bytes] = field(default_factory=dict)  # RGB JPEGs, which must come out byte for byte
    kinds: dict[str, int] = field(default_factory=dict)  # of what was converted
    rejected: set[str] = field(default_factory=set)  # names as in rejected.tsv


def add(tar, name, data=b"", **header):
    """One more member."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(data), 1_300_000_000
    for key, value in header.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def tarred(members, form=tarfile.USTAR_FORMAT):
    """The bytes of a tar of (name, data, header)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data, header in members:
            add(tar, name, data, **header)
    return file.getvalue()


def make_imagenet(folder, synsets=30, train=6, val=2, shuffle=0):
    """ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of so many synsets and images of each, with intruders.

    `shuffle` only moves the members about.
    """
    made = Imagenet(folder, [f"n{1440764 + 977 * number:08d}" for number in range(synsets)])
    move = random.Random(shuffle).shuffle
    odd = {
        0: ("JPEG CMYK", lambda image: encoded(image.convert("CMYK"))),
        1: ("PNG", lambda image: encoded(image, "PNG")),
        2: ("JPEG grey", lambda image: encoded(image.convert("L"))),
        3: ("JPEG rotated", lambda image: encoded(image, exif=rotated())),
    }
    classes = []
    for number, synset in enumerate(made.synsets):
        members = []
        for image in range(train):
            name, picture = f"{synset}_{image}.JPEG", photo(number * 100 + image)
            kind, form = odd.get(number, ("", None)) if image == 1 else ("", None)
            data = form(picture) if form else encoded(picture, progressive=image == 2)
            if number == 4 and image == 3:
                data = data[:-40]
                made.rejected.add(f"train/{synset}/{name}")
            else:
                made.train[name] = synset
                if form:
                    made.kinds[kind] = made.kinds.get(kind, 0) + 1
                else:
                    made.as_is[name] = data
            members.append((name, data, {}))
        if number == 5:
            members.append(("../../climbed.JPEG", encoded(photo(1)), {}))
            made.rejected.add(f"train/{synset}/../../climbed.JPEG")
        if number == 6:
            members.append((f"{synset}_link.JPEG", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}))
            made.rejected.add(f"train/{synset}/{synset}_link.JPEG")
        move(members)
        classes.append((f"{synset}.tar", tarred(members), {}))
    move(classes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tarred(classes))
    labels = made.synsets * val
    random.Random(7).shuffle(labels)
    members = []
    for number, synset in enumerate(labels, 1):
        name, data = f"ILSVRC2012_val_{number:08d}.JPEG", encoded(photo(100_000 + number))
        if number == 9:
            data = b"not an image at all"
            made.rejected.add(f"val/{name}")
        else:
            made.val[name], made.as_is[name] = synset, data
        members.append((name, data, {}))
    move(members)
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tarred(members))
    (folder / "synset_labels.txt").write_text("".join(f"{synset}\n" for synset in labels))
    (folder / "imagenet_metadata.txt").write_text("".join(f"{name}\tthing {name[1:]}\n" for name in made.synsets))
    return made


@pytest.fixture(scope="session")
def make_tars():
    return make_imagenet


@pytest.fixture(name="tarred", scope="session")
def tarred_fixture():
    return tarred


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The pair of tars; tests only read it."""
    return make_imagenet(tmp_path_factory.mktemp("imagenet") / "data")


@pytest.fixture
def raw(composed, tmp_path, monkeypatch):
    """`raw("model=tiny", ...)`: what Hydra composes, before freeze(); Hydra knows of it until the test ends."""
    from hydra.core.hydra_config import HydraConfig

    monkeypatch.chdir(tmp_path)

    def make(*overrides, config="config"):
        node = composed(*overrides, config=config)
        node.hydra.runtime.cwd = str(tmp_path)
        HydraConfig.instance().set_config(node)
        return node

    yield make
    HydraConfig.instance().cfg = None


@pytest.fixture
def frozen(raw):
    """`frozen("model=tiny", ...)`: the checked run."""
    from resnet.config import compose

    return lambda *overrides: compose.freeze(raw(*overrides))


@pytest.fixture
def recipe(tmp_path, raw):
    """`recipe(text, *overrides)`: the run of a recipe file of the user's own."""
    from resnet.config import compose

    def make(text, *overrides):
        folder = (
            tmp_path / f"own-{hashlib.sha256(text.encode()).hexdigest()}" / "recipe"
        )  # the folder tells compositions apart
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mine.yaml").write_text(text)
        searched = f"hydra.searchpath=[file://{folder.parent}]"
        return compose.freeze(raw(searched, "recipe=mine", *overrides))

    return make
