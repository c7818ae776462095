"""MLflow's model of a run: loaded, asked over HTTP and kept in real stores, against the network that resnet.evaluate judges."""

import base64
import importlib.metadata
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml
from mlflow.exceptions import MlflowException
from PIL import Image
from rank_runs import listeners

from resnet import UserError, uris
from resnet.serving import mlflow_model, pyfunc, registry
from resnet.track import store
from resnet.training.trained import read as read_weights

NAMES = ["cat", "dog", "ümlaut, of $x$\nüber"]

# Loads the folder where there is nothing of ours, and asks it for its own example.
ALONE = """
import sys
sys.modules["resnet"] = None  # importing it fails
import mlflow
loaded = mlflow.pyfunc.load_model(sys.argv[1])
print(loaded.predict(loaded.input_example).to_json(orient="records"))
"""


def text(jpeg):
    return base64.b64encode(jpeg).decode()


def same(rows, probabilities, top=3):
    """What was answered are these probabilities [B, classes]."""
    assert len(rows) == len(probabilities)
    assert np.ptp(probabilities, axis=0).max() > 1e-3  # the images differ at all
    for row, those in zip(rows, probabilities, strict=True):
        order = np.argsort(-those, kind="stable")[:top]
        assert [one["class"] for one in row["top"]] == [NAMES[place] for place in order]
        assert [one["probability"] for one in row["top"]] == pytest.approx(list(those[order]), rel=1e-4)
        assert {**row["top"][0], "top": row["top"]} == row


def answered(loaded, images, **params):
    """The rows of an answer."""
    return loaded.predict(images, params=params or None).to_dict("records")


# ------------------------------------------------------------------------------------------------------------ the answers
def test_two_threads_of_one_process_keep_mlflow_quiet_one_after_the_other(monkeypatch):
    """The training writes its model while the sender opens the store."""
    monkeypatch.delenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", raising=False)
    inside, order = threading.Event(), []

    def later():
        inside.wait(10)
        with registry.quiet(MLFLOW_X="2"):
            order.append(os.environ["MLFLOW_X"])

    thread = threading.Thread(target=later)
    thread.start()
    with registry.quiet(MLFLOW_X="1"), registry.quiet(MLFLOW_Y="1"):
        inside.set()
        time.sleep(0.1)
        order.append(os.environ["MLFLOW_X"])
    thread.join(10)
    assert order == ["1", "2"] and not {"MLFLOW_X", "MLFLOW_Y", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"} & set(
        os.environ
    )


def test_jpegs_of_any_size_are_judged_as_in_evaluation(loaded, jpegs, of_jpegs):
    for column in (jpegs, [text(one) for one in jpegs], [f"data:image/jpeg;base64,{text(one)}" for one in jpegs]):
        same(answered(loaded, pd.DataFrame({"image": column})), of_jpegs)
    same(answered(loaded, {"image": [text(one) for one in jpegs]}), of_jpegs)


def test_pixels_of_the_networks_size_are_taken_as_they_are(loaded, wanted):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 48, 48, 3), np.uint8)
    for column in (list(pixels), pixels.tolist(), list(pixels.astype(float))):
        same(answered(loaded, {"image": column}), wanted(pixels))
    same(answered(loaded, {"image": pixels}), wanted(pixels))


def test_pixels_of_another_size_are_resized_and_cropped_as_those_of_a_jpeg(loaded, jpegs, of_jpegs):
    pixels = [tf.io.decode_jpeg(one, channels=3, dct_method="INTEGER_ACCURATE").numpy() for one in jpegs]
    others = [number for number, one in enumerate(pixels) if one.shape[:2] != (48, 48)]
    assert len(others) == len(jpegs) - 1
    mixed = [pixels[number] if number in others else jpegs[number] for number in range(len(jpegs))]
    same(answered(loaded, pd.DataFrame({"image": mixed})), of_jpegs)


def test_more_images_than_one_call_takes_are_all_answered_in_order(loaded, wanted):
    pixels = np.random.default_rng(2).integers(0, 256, (2 * pyfunc.CHUNK + 1, 48, 48, 3), np.uint8)
    same(answered(loaded, {"image": list(pixels)}), wanted(pixels))


def test_as_many_classes_as_are_asked_for(loaded, jpegs, of_jpegs):
    images = pd.DataFrame({"image": jpegs})
    same(answered(loaded, images, top=1), of_jpegs, top=1)
    same(answered(loaded, images, top=1000), of_jpegs)
    with pytest.raises(MlflowException, match=r"params\.top: must be a whole number of at least 1"):
        loaded.predict(images, params={"top": 0})


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("no base64!", r"image 1: text must be the base64 of an image file"),
        (
            text(b"no image"),
            r"image 1: no image that can be decoded \(not a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIC image",
        ),
        (b"no image", r"image 1: no image that can be decoded"),
        ([[1, 2], [3]], r"image 1: neither base64 text nor pixels"),
        (np.zeros((4, 4)), r"image 1: pixels must be of shape \[height, width, 3\], not \[4, 4\]"),
        (np.zeros((4, 4, 4)), r"must be of shape \[height, width, 3\], not \[4, 4, 4\]"),
        (np.zeros((0, 4, 3)), r"not \[0, 4, 3\]"),
        (np.full((4, 4, 3), 0.5), r"image 1: pixels must be whole numbers in 0..255"),
        (np.full((4, 4, 3), 256), r"whole numbers in 0..255"),
        (np.full((4, 4, 3), -1), r"whole numbers in 0..255"),
        (np.full((4, 4, 3), np.nan), r"whole numbers in 0..255"),
        (None, r"image 1: "),
        ([], r"image 1: "),
    ],
    ids=lambda part: part if isinstance(part, str) and part.startswith(("image", "must", "not", "whole")) else "",
)
def test_what_is_no_image_is_told_by_its_number(loaded, jpegs, image, told):
    with pytest.raises(MlflowException, match=told) as error:
        loaded.predict(pd.DataFrame({"image": [jpegs[0], image]}))
    assert error.value.get_http_status_code() == 400


def test_a_network_without_names_answers_with_numbers(trained, tmp_path):
    Path(tmp_path / "run").mkdir()
    shutil.copytree(Path(trained.out) / "checkpoints", tmp_path / "run" / "checkpoints")
    place = Path(mlflow_model.save(trained, tmp_path / "run", None, read_weights(str(tmp_path / "run"))))
    names = [path.name for path in place.rglob("*") if path.is_file()]
    assert "pyfunc.py" in names and not [name for name in names if name.endswith((".pkl", ".pyc"))]
    loaded = mlflow.pyfunc.load_model(str(place))
    [row] = answered(loaded, loaded.input_example)
    assert sorted(one["class"] for one in row["top"]) == ["0", "1", "2"]


# ------------------------------------------------------------------------------------------------------------- the folder
def test_the_folder_says_what_goes_in_and_comes_out_and_what_it_needs(place, loaded, trained):
    assert str(loaded.metadata.signature.inputs) == "['image': Any (required)]"
    assert [one.name for one in loaded.metadata.signature.outputs] == ["class", "probability", "top"]
    needed = dict(line.split("==") for line in (place / "requirements.txt").read_text().split())
    assert {"mlflow", "numpy", "pandas"} < set(needed)
    assert needed == {name: importlib.metadata.version(name) for name in needed}
    assert needed.get("tensorflow") or needed.get("tensorflow-cpu")
    told = (place / "MLmodel").read_text()
    images = {"image_size": 48, "eval_resize": 56, "eval_resample": "antialias", "eval_interpolation": "bilinear"}
    assert yaml.safe_load(told)["metadata"] == {"model": "tiny", "classes": 3, **images}
    assert str(Path(mlflow_model.__file__).parent) not in told and Path(trained.out).parent.name not in told
    Image.open(io.BytesIO(base64.b64decode(loaded.input_example["image"][0]))).verify()


def test_it_needs_nothing_of_ours(place, loaded, tmp_path):
    shutil.copytree(place, tmp_path / "moved here")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, "moved here"], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "requirement" not in done.stderr  # MLflow warns of what is not as it was
    [row], [wanted] = json.loads(done.stdout), answered(loaded, loaded.input_example)
    assert row["class"] == wanted["class"] and row["probability"] == pytest.approx(wanted["probability"], rel=1e-5)


def test_writing_again_leaves_one_folder_and_a_failure_leaves_what_was_there(trained, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(Path(trained.out) / "checkpoints", out / "checkpoints")
    marks = [
        yaml.safe_load((mlflow_model.save(trained, out, NAMES, read_weights(str(out))) / "MLmodel").read_text())[
            "model_uuid"
        ]
        for _ in range(2)
    ]
    assert marks[0] != marks[1]

    def failing(*_words, **_options):
        raise OSError("No space left")

    monkeypatch.setattr(mlflow.pyfunc, "save_model", failing)
    with pytest.raises(OSError, match="No space left"):
        mlflow_model.save(trained, out, NAMES, read_weights(str(out)))
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "model"]
    assert yaml.safe_load((out / "model" / "MLmodel").read_text())["model_uuid"] == marks[1]


def test_there_is_nothing_to_serve_of_synthetic_images(run_at, tmp_path):
    run = run_at(tmp_path, "model=tiny", "track=off", "data=synthetic")
    with pytest.raises(UserError, match="data=synthetic: images that are no pictures") as error:
        mlflow_model.package(tmp_path, run, tmp_path / "model")
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- the store
@pytest.fixture(scope="module")
def kept(place, tmp_path_factory):
    """(client of a SQLite store, run in it with metrics and the model, the model's id), as the tracker's thread does it."""
    folder = tmp_path_factory.mktemp("a store? #")
    client = store.connect(uris.sqlite(folder / "mlflow.db"))
    experiment = client.create_experiment("e", artifact_location=(folder / "files").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_param(run_id, "optim.rows", "x" * 6000)
    for step in (1, 2):
        client.log_metric(run_id, "eval/top1", step / 4, step=step)
    state = mlflow.get_tracking_uri(), mlflow.active_run()
    model_id = registry.log_model(client, run_id, place, register="photos")
    assert (mlflow.get_tracking_uri(), mlflow.active_run()) == state
    return client, run_id, model_id, folder


def test_the_run_has_the_model_by_its_name_with_its_last_scores(kept, place):
    client, run_id, model_id, _ = kept
    run = client.get_run(run_id)
    assert [made.model_id for made in run.outputs.model_outputs] == [model_id]
    made = client.get_logged_model(model_id)
    assert (made.name, str(made.status), made.source_run_id) == ("model", "READY", run_id)
    assert [(one.key, one.value, one.step) for one in made.metrics] == [("eval/top1", 0.5, 2)]
    assert made.params == run.data.params
    assert len(client.get_metric_history(run_id, "eval/top1")) == 2  # linked, not doubled
    told = mlflow.models.Model.load(str(place))
    assert (told.run_id, told.model_id) == (None, None)  # the folder knows of no store


def test_it_is_registered_and_loads_by_either_name(kept, jpegs, of_jpegs, monkeypatch):
    client, run_id, model_id, folder = kept
    [version] = client.search_model_versions(f"run_id='{run_id}'")
    shown = json.loads(client.get_logged_model(model_id).tags["mlflow.modelVersions"])
    assert [(one["name"], int(one["version"])) for one in shown] == [("photos", 1)]
    assert (version.run_id, version.source, int(version.version)) == (run_id, f"models:/{model_id}", 1)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", uris.sqlite(folder / "mlflow.db"))
    for name in (f"runs:/{run_id}/model", "models:/photos/1"):
        found = mlflow.pyfunc.load_model(name)
        assert (found.metadata.run_id, found.metadata.model_id) == (run_id, model_id)
        same(answered(found, pd.DataFrame({"image": jpegs})), of_jpegs)


def test_done_again_it_changes_nothing_but_another_folder_is_another_model(kept, place, tmp_path):
    client, run_id, model_id, _ = kept
    for name in ("photos", "photos", None):
        assert registry.log_model(client, run_id, place, register=name) == model_id
    assert len(client.search_model_versions(f"run_id='{run_id}'")) == 1
    other = client.create_run(client.get_run(run_id).info.experiment_id).info.run_id
    again = registry.log_model(client, other, place)
    assert again != model_id and client.get_logged_model(again).source_run_id == other
    changed = shutil.copytree(place, tmp_path / "model")
    told = yaml.safe_load((changed / "MLmodel").read_text())
    (changed / "MLmodel").write_text(yaml.safe_dump({**told, "model_uuid": "another"}))
    newer = registry.log_model(client, other, changed, register="photos")
    assert len({newer, again, model_id}) == 3
    assert sorted(int(one.version) for one in client.search_model_versions("name='photos'")) == [1, 2]


def test_after_a_failure_it_goes_on_where_it_was(kept, place, monkeypatch):
    client, run_id, _, _ = kept
    run = client.create_run(client.get_run(run_id).info.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    seen = []

    def failing(*_words):
        seen.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
        raise MlflowException("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(client, "log_model_artifacts", failing)
        with pytest.raises(MlflowException, match="the server is away"):
            registry.log_model(client, run, place, "photos later")
    assert (seen, os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) == ([str(registry.UPLOAD_TIMEOUT_S)], "5")
    model_id = registry.log_model(client, run, place, "photos later")
    outputs = client.get_run(run).outputs.model_outputs
    assert [made.model_id for made in outputs] == [model_id]
    assert len(client.search_model_versions("name='photos later'")) == 1


# ---------------------------------------------------------------------------------------------------------------- servers
def started(words, port, path, folder):
    """A server of MLflow's, once it answers."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
    for _ in range(480):
        time.sleep(0.25)
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)
            return process
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
    raise AssertionError((folder / "log").read_text())


def ended(process):
    """End it and what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def asked(place, tmp_path_factory):
    """`asked(content)`: (status, answer) of `mlflow models serve` on the folder; bytes are sent as they are."""
    port = free_port()
    words = ("models", "serve", "-m", str(place), "--env-manager", "local")
    process = started(words, port, "/ping", tmp_path_factory.mktemp("server"))
    assert listeners(process.pid) == {"127.0.0.1"}

    def ask(content):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    yield ask
    ended(process)


@pytest.mark.slow
def test_a_server_answers_a_jpeg_and_an_array(asked, jpegs, of_jpegs, wanted):
    texts = [text(one) for one in jpegs]
    pixels = np.random.default_rng(3).integers(0, 256, (3, 48, 48, 3), np.uint8)
    for images, probabilities in ((texts, of_jpegs), (pixels.tolist(), wanted(pixels))):
        for content in (
            {"inputs": images},
            {"inputs": {"image": images}},
            {"instances": images},
            {"dataframe_records": [{"image": one} for one in images]},
            {"dataframe_split": {"columns": ["image"], "data": [[one] for one in images]}},
        ):
            status, answer = asked(content)
            assert status == 200, answer
            same(answer["predictions"], probabilities)
    status, answer = asked({"inputs": texts[:2], "params": {"top": 1}})
    same(answer["predictions"], of_jpegs[:2], top=1)


@pytest.mark.slow
def test_a_server_says_in_a_line_what_is_wrong_with_a_request_and_lives_on(asked, jpegs, encoded):
    ribbon = text(encoded(Image.new("RGB", (1, 20_000))))
    for content, told in (
        ({"inputs": ["/9j/AAAA"]}, "image 0: no image that can be decoded"),
        ({"inputs": [[[[300, 0, 0]]]]}, "image 0: pixels must be whole numbers"),
        ({"inputs": [text(jpegs[0]), ribbon]}, "image 1: no image that can be decoded (1 x 20000 pixels"),
        ({"inputs": [text(jpegs[0])], "params": {"top": "x"}}, "params.top: must be a whole number of at least 1"),
        (b"x" * 50_000_000, "the body is not JSON"),
        (b"x" * 70_000_000, "a body of 70,000,000 bytes; a request may have 64,000,000"),
        (b'{"inputs": ' + b"[" * 100_000, "the request must be"),
    ):
        status, answer = asked(content)
        assert status == 400 and told in answer["message"] and len(json.dumps(answer)) < 500
    assert asked({"inputs": [text(jpegs[0])]})[0] == 200


@pytest.mark.slow
def test_a_tracking_server_takes_the_model_through_its_artifact_proxy(place, jpegs, of_jpegs, tmp_path, monkeypatch):
    port = free_port()
    words = (
        "server",
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/m.db",
        "--artifacts-destination",
        f"{tmp_path}/files",
    )
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    process = started((*words, "--workers", "1"), port, "/health", tmp_path)
    try:
        uri = f"http://127.0.0.1:{port}"
        client = store.connect(uri)
        run_id = client.create_run(client.create_experiment("e")).info.run_id
        for _ in range(2):
            model_id = registry.log_model(client, run_id, place, register="photos")
        assert len(client.search_model_versions("name='photos'")) == 1
        monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", uri)
        for name in (f"runs:/{run_id}/model", "models:/photos/1"):
            found = mlflow.pyfunc.load_model(name)
            assert found.metadata.model_id == model_id
            same(answered(found, pd.DataFrame({"image": jpegs})), of_jpegs)
    finally:
        ended(process)
