"""Trained networks, from run folders and weights files, for inference."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from resnet import UserError, addresses, files, home, remote, rundir
from resnet.config import compose
from resnet.config.data import Records
from resnet.config.run import Run
from resnet.data import classes, source
from resnet.distributed import device
from resnet.model import resnet, weights
from resnet.model.norm import batch_norm_class
from resnet.training import checkpoint

NAMES = "names/.ATTRIBUTES/VARIABLE_VALUE"  # of the classes, in a SavedModel of resnet.export


@dataclass(frozen=True)
class Trained:
    """A network with the run that says how to prepare its images. `names` of the classes are None if they are not known."""

    run: Run
    network: tf.keras.Model
    names: list[str] | None
    notes: list[str]  # where the weights are from, for people


def folder_of(path: Path) -> Path | None:
    """The run folder `path`, or that of the checkpoint `path`; None for other paths."""
    here = path.resolve()
    places = (here, here.parent.parent) if (here / "commit.json").is_file() else (here,)
    return next((place for place in places if (place / "config.yaml").is_file()), None)


def on_one_rank(run: Run) -> Run:
    """`run` on one rank, with the local batch of its ranks, and the same number of images to evaluate."""
    cluster, steps = replace(run.cluster, ranks=1, hosts=[]), run.eval_steps
    return replace(run, cluster=cluster, batch=run.local_batch, eval_steps=steps and steps * run.cluster.ranks)


def load(path: str, words: Sequence[str], policy: str | None = None, reads_images: bool = True) -> Trained:
    """The network of a run folder, a checkpoint, a SavedModel or a weights file; `words` override settings of its run.

    Without a run, data=imagenet unless `words` say otherwise, and the model is detected by the shapes. `policy` overrides the
    policy of dtype=, with layers that run on any machine. Unless `reads_images`, data that `words` do not name are not looked
    at. Raises UserError for what does not fit together, such as data of other classes.
    """
    tensors, place = read(path), local(path)
    outputs = len(tensors[f"{resnet.HEAD}.bias"])
    folder, own = folder_of(Path(place)), class_names_of(place, outputs)
    named = {word.partition("=")[0] for word in words}
    if folder:
        run = compose.for_inference(list(words), on_one_rank(rundir.load(folder)))
    else:
        detected = weights.detect_model(tensors)
        if "model" not in named and not detected:
            raise UserError(f"{path}: not the weights of a network in conf/model; give model=")
        defaults = {"model": detected} | ({} if "data" in named else {"data": "imagenet", "data.classes": outputs})
        more = [f"{name}={value}" for name, value in defaults.items() if name not in named]
        run = compose.for_inference([*more, *words])
    names = source.class_names(run.data) if reads_images or not own or named & {"data", "data.dir"} else None
    count = len(names) if names and run.data.classes == outputs else run.data.classes  # data.dir= may be another one
    if count != outputs:
        raise UserError(
            f"{path}: has {outputs} outputs, and data={run.data.name} has {count} classes; choose the data that "
            "it was trained for, by data= and data.dir="
        )
    images, notes = run.data.shards if isinstance(run.data, Records) else "", list[str]()
    if names and own:
        tensors, notes = in_order_of(names, own, tensors, path, images)
    elif images and reads_images and (names or own):
        known, unknown = (path, images) if own else (images, path)
        notes.append(f"{unknown} names no classes: taken for those of {known}, by number")
    device.init(run.cluster, run.dtype)
    with device.device_scope(run.cluster):
        if policy:
            network = resnet.build(run.model, outputs, policy)
        else:  # the layers that this machine is fast with
            norm = batch_norm_class(replace(run.cluster, sync_batch_norm=False))
            network = resnet.build(
                run.model, outputs, run.dtype.policy.value, norm, device.uses_amx(run.cluster, run.dtype)
            )
    notes += weights.load_into(network, tensors, path)
    return Trained(run, network, names or own, notes)


def in_order_of(
    names: list[str], own: list[str], tensors: weights.Tensors, path: str, place: str
) -> tuple[weights.Tensors, list[str]]:
    """(`tensors` with the outputs in the order of `names`, the classes of the data in `place`, notes); `own` are theirs.

    Raises UserError if the data are of other classes.
    """
    places = classes.order(own, names)
    if places is None:
        raise UserError(
            f"data.dir={place}: not the classes of {path} ({classes.difference(own, names)}); choose the data that it was "
            f"trained for, by data= and data.dir=. If only their names differ, remove {files.classes_beside(place)[1]}: "
            "labels are then taken by number"
        )
    if places == sorted(places):
        return tensors, []
    return permuted(tensors, places), [f"{path}: its outputs are put in the order of the classes of {place}"]


def permuted(tensors: weights.Tensors, places: list[int]) -> weights.Tensors:
    """The tensors with output i of the head from output places[i]."""
    return {name: value[places] if name.startswith(f"{resnet.HEAD}.") else value for name, value in tensors.items()}


def initialize(network: tf.keras.Model, run: Run) -> list[str]:
    """Assign the weights of init= and return notes. The head of a network of other classes stays as initialized."""
    assert run.init
    tensors = read(run.init)
    own, names = class_names_of(local(run.init), run.data.classes), classes.of_data(run.data)
    new_head = ""
    if own and names:
        places = classes.order(own, names)
        if places is None:
            new_head = f"the head is for other classes ({classes.difference(own, names)})"
        else:
            tensors = permuted(tensors, places)
    return weights.load_into(network, tensors, run.init, new_head)


def read(path: str) -> weights.Tensors:
    """The tensors of a weights file, a run folder, a checkpoint or a SavedModel, as weights.read() returns them.

    Of a run its best checkpoint, else its newest; of a checkpoint the averaged weights if it has them. At an address lies a
    weights file, or what resnet.export wrote. Raises UserError for what cannot be read, is damaged, is not floating-point, or
    has no head.
    """
    if addresses.is_remote(path):
        place = local(path)
        try:
            return weights.check(weights.of_file(Path(place)), path)
        except UserError as error:
            raise UserError(str(error).replace(place, path)) from error
    folder = home.expand(path)
    return weights.check(of_folder(folder), path) if folder.is_dir() else weights.read(path)


def local(path: str) -> str:
    """The path of weights on this machine: of those at an address, of their copy in the cache. Raises UserError."""
    return str(remote.weights(path)) if addresses.is_remote(path) else path


def of_export(folder: Path) -> Path:
    """The SavedModel in a folder of resnet.export; another folder as it is."""
    inside = folder / "saved_model"
    return inside if (inside / "saved_model.pb").is_file() else folder


def of_folder(folder: Path) -> weights.Tensors:
    """The tensors of a SavedModel of resnet.export, a checkpoint, or a run's best one, else its newest."""
    if (folder / "saved_model" / "saved_model.pb").is_file():  # of resnet.export
        folder = folder / "saved_model"
    folder = of_export(folder)
    if (folder / "saved_model.pb").is_file():
        return of_variables(folder, "variables/variables", ["weights"])
    if (folder / "commit.json").is_file():
        chosen = checkpoint.Saved(folder, -1, None, {})
    elif checkpoints := checkpoint.list_checkpoints(folder):
        chosen = checkpoint.best(checkpoints) or checkpoints[-1]
    else:
        run = (folder / "config.yaml").is_file()
        what = "a run without a checkpoint yet; start it again" if run else "no weights are in this folder"
        raise UserError(f"{folder}: {what}; or give {weights.SOURCES}")
    if wrong := checkpoint.verify(chosen):
        raise UserError(f"{chosen.path}: this checkpoint is damaged ({wrong}); give another one of the same run")
    return of_variables(chosen.path, "weights", ["average", "network"])


def of_variables(folder: Path, prefix: str, roots: list[str]) -> weights.Tensors:
    """The variables of TensorFlow's checkpoint <folder>/<prefix> under the first of `roots` that has any.

    They are looked up by the names in the checkpoint, without a graph: the device is initialized once the model is known.
    """
    try:
        with checkpoint.glob_safe(folder) as place:
            reader = checkpoint.open_variables(place / prefix)
            graph = TrackableObjectGraph.FromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
            names = {one.checkpoint_key: one.full_name for node in graph.nodes for one in node.attributes}
            for root in roots:
                if keys := [key for key in names if key.startswith(f"{root}/")]:
                    return {weights.timm_name(names[key]): weights.torch_layout(reader.get_tensor(key)) for key in keys}
    except UserError:
        raise
    except Exception as error:  # TensorFlow raises another one for each kind of damage
        detail = " ".join(str(error).split())
        raise UserError(f"{folder}: damaged, or not of this suite ({detail}); write it again") from error
    return {}


def class_names_of(path: str, outputs: int) -> list[str] | None:
    """The class names in a run's folder, in a SavedModel or beside a weights file, if there are `outputs` of them."""
    place = of_export(home.expand(path))
    if (place / "saved_model.pb").is_file():
        with contextlib.suppress(Exception), checkpoint.glob_safe(place) as folder:  # not of this suite: it has none
            encoded = checkpoint.open_variables(folder / "variables/variables").get_tensor(NAMES)
            names = [name.decode("utf-8", "surrogateescape") for name in encoded.tolist()]
            return names if len(names) == outputs else None
        return None
    return classes.of_folder(folder_of(place) or place.parent, outputs)
