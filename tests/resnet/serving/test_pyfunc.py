"""The served model: images decoded as by preparation, hostile ones refused; MLflow's server, in this process, asked badly."""

import asyncio
import base64
import io
import json
import struct
import sys
import time
import zlib

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from PIL import Image

from resnet.data import images, pipeline

SECRET = "confidential"


@pytest.fixture(scope="module")
def served(place):
    """(the model's own class, the application that `mlflow models serve` runs), with small bounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(scoring_server.SERVING_MODEL_CONFIG, json.dumps({"max_images": 3, "max_bytes": 200_000}))
        model = scoring_server.load_model_with_mlflow_config(str(place))
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # which init() sets for good
        return model.unwrap_python_model(), scoring_server.init(model)


@pytest.fixture(scope="module")
def asked(served):
    """`asked(body)`: (status, text) of the answer. With `gone`, the client does not wait for it."""

    def ask(body, kind="application/json", gone=False):
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        answer = []

        async def receive():
            if not messages and not gone:
                await asyncio.sleep(60)
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message):
            answer.append(message)

        scope = {"type": "http", "method": "POST", "path": "/invocations", "query_string": b"", "http_version": "1.1"}
        asyncio.run(served[1]({**scope, "headers": [(b"content-type", kind.encode())]}, receive, send))
        return answer[0]["status"], b"".join(part.get("body", b"") for part in answer).decode()

    return ask


def text(data):
    return base64.b64encode(data).decode()


def as_json(content):
    return json.dumps(content).encode()


def bomb(width, height):
    """A PNG of a hundred bytes that says so."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    data = file.getvalue()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


# ------------------------------------------------------------------------------------------------------------- the decoding
def pictures(photo, encoded, rotated):
    """(name, file) of every orientation and kind."""
    picture = photo(5, 160, 120)
    deep = Image.fromarray((np.arange(120 * 160).reshape(120, 160) * 3).astype(np.uint16))
    yield from ((f"turn {turn}", encoded(picture, exif=rotated(turn), quality=95)) for turn in range(1, 9))
    yield "turned PNG", encoded(picture, "PNG", exif=rotated(6))
    yield "16 bits", encoded(deep, "PNG")
    yield "palette", encoded(picture.quantize(32, dither=Image.Dither.NONE), "PNG", transparency=3)
    yield "transparent", encoded(Image.merge("RGBA", (*picture.split(), picture.getchannel(0))), "PNG")
    yield "CMYK", encoded(picture.convert("CMYK"), quality=95)
    for form in ("WEBP", "BMP", "GIF"):
        yield form, encoded(picture, form)


def test_the_network_sees_when_served_what_it_saw_in_training(served, trained, photo, encoded, rotated):
    model, jpegs = served[0], 0
    for name, data in pictures(photo, encoded, rotated):
        prepared = images.convert(data).encoded
        wanted = pipeline.centre_crop(tf.constant(prepared), trained.data).numpy().astype(int)
        distance = np.abs(model.pixels(data) - wanted)
        # What a JPEG of quality 95 costs: where the file is none, its chroma of half the size too.
        assert distance.mean() < (1 if data[:2] == b"\xff\xd8" else 3) and distance.max() < 60, name
        if data == prepared:
            assert distance.max() == 0
        if data[:2] == b"\xff\xd8":
            jpegs += 1
            ours = model.loaded.signatures["jpeg"](encoded=tf.constant([data]))["probabilities"].numpy()
            theirs = model.classify(images=tf.constant(model.pixels(data)[None]))["probabilities"].numpy()
            np.testing.assert_allclose(ours, theirs, atol=2e-3, err_msg=name)
    assert jpegs == 9


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (
            "ribbon.jpg",
            "image 1: no image that can be decoded (1 x 20000 pixels; one side is more than 100 times the other)",
        ),
        (
            bomb(1, 5000),
            "image 1: no image that can be decoded (1 x 5000 pixels; one side is more than 100 times the other)",
        ),
        (bomb(9_000, 10_000), "(9000 x 10000 pixels; at most 89,478,485 are decoded)"),
        (bomb(20_000, 20_000), "(at least 178,956,970 pixels; at most 89,478,485 are decoded)"),
        (np.zeros((1, 20_000, 3), np.uint8), "(20000 x 1 pixels; one side is more than 100 times the other)"),
    ],
    ids=["JPEG", "PNG", "pixels", "more pixels", "array"],
)
def test_an_image_that_would_fill_the_memory_is_refused_by_its_header(served, loaded, encoded, image, reason):
    if isinstance(image, str):
        image = encoded(Image.new("RGB", (1, 20_000)))
        with pytest.raises(tf.errors.InvalidArgumentError, match="one side more than 100 times the other"):
            served[0].loaded.signatures["jpeg"](encoded=tf.constant([image]))
    elif not isinstance(image, bytes):
        with pytest.raises(tf.errors.InvalidArgumentError, match="one side more than 100 times the other"):
            served[0].loaded.cropped(tf.constant(image))
    start = time.process_time()
    with pytest.raises(MlflowException) as error:
        loaded.predict(pd.DataFrame({"image": [bomb(8, 8), image]}))
    assert reason in error.value.message and time.process_time() - start < 1
    assert error.value.get_http_status_code() == 400


# --------------------------------------------------------------------------------------------------------------- the server
def photograph():
    return text(bomb(8, 8))


JSON = "application/json"
HELP = 'the request must be {"inputs": [IMAGE, ...]}'
TOP = "params.top: must be a whole number of at least 1"
BAD = {
    "no JSON": (SECRET.encode() * 9000, JSON, "the body is not JSON: Expecting value, at character 0"),
    "no UTF-8": (b'{"a": "' + b"\xfe" * 99_000, JSON, "the body is not UTF-8: invalid start byte, at byte 7"),
    "deep": (b'{"inputs": ' + b"[" * 90_000, JSON, HELP),
    "deep and whole": (b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}", JSON, HELP),
    "64 bits and more": (
        b'{"inputs": [[[[18446744073709551616, 1, 2]]]]}',
        JSON,
        "image 0: pixels must be whole numbers",
    ),
    "5,000 digits": (b'{"inputs": [[[[' + b"9" * 5000 + b", 1, 2]]]]}", JSON, HELP),
    "400 digits": (b'{"inputs": [[[[' + b"9" * 400 + b", 1, 2]]]]}", JSON, "image 0: neither base64 text nor pixels"),
    "top as text": (as_json({"inputs": [SECRET], "params": {"top": SECRET}}), JSON, TOP),
    "top of 0": (as_json({"inputs": [SECRET], "params": {"top": 0}}), JSON, TOP),
    "top as list": (as_json({"inputs": [SECRET], "params": {"top": [SECRET] * 9}}), JSON, TOP),
    "top of null": (as_json({"inputs": [SECRET], "params": {"top": None}}), JSON, TOP),
    "params as list": (as_json({"inputs": [SECRET], "params": [SECRET]}), JSON, HELP),
    "two inputs": (as_json({"inputs": [SECRET], "instances": [SECRET]}), JSON, HELP),
    "no inputs": (as_json({SECRET * 999: 1}), JSON, HELP),
    "a list": (as_json([SECRET]), JSON, HELP),
    "another column": (as_json({"dataframe_records": [{SECRET: SECRET}]}), JSON, HELP),
    "a column too many": (as_json({"dataframe_split": {"columns": [SECRET, "b"], "data": [[SECRET]]}}), JSON, HELP),
    "no base64": (as_json({"inputs": [SECRET + "!"]}), JSON, "image 0: text must be the base64 of an image file"),
    "no pixels": (as_json({"inputs": {"image": [[[SECRET]]]}}), JSON, "image 0: neither base64 text nor pixels"),
    "no image": (as_json({"inputs": [text(SECRET.encode())]}), JSON, "image 0: no image that can be decoded"),
    "CSV": (f"{SECRET},b\n1,2,3,4\n".encode(), "text/csv", "Content-Type: must be application/json"),
    "another type": (b"PAR1", "application/vnd.apache.parquet", "Content-Type: must be application/json"),
    "another charset": (b"{}", f"{JSON}; charset={SECRET}", "Content-Type: must be application/json"),
    "no type": (b"{}", "", "Content-Type: must be application/json"),
    "too long": (b" " * 200_001, JSON, "a body of 200,001 bytes; a request may have 200,000 (max_bytes)"),
    "too many": (as_json({"inputs": [photograph()] * 4}), JSON, "4 images; a request may have 3 (max_images)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_answered_by_one_line_that_quotes_nothing_of_it(asked, name):
    body, kind, line = BAD[name]
    status, answer = asked(body, kind)
    message = json.loads(answer)["message"]
    assert status == 400 and line in message
    assert len(answer) < 500 and "\n" not in message and SECRET not in answer and text(SECRET.encode()) not in answer


def test_a_request_that_would_become_a_hundred_times_its_size_is_not_parsed(asked, served, monkeypatch):
    monkeypatch.setattr(sys.modules[type(served[0]).__module__], "MAX_LISTS", 1000)
    assert "more than 1,000 lists; send images as base64" in asked(b'{"inputs": [' + b"{}," * 1000 + b"{}]}")[1]


def test_good_requests_are_answered_as_ever(asked):
    for body in ({"inputs": [photograph()] * 3}, {"dataframe_split": {"columns": ["image"], "data": [[photograph()]]}}):
        status, answer = asked(as_json({**body, "params": {"top": 1}}), "application/json; charset=utf-8")
        assert status == 200 and len(json.loads(answer)["predictions"][0]["top"]) == 1


def test_an_error_of_the_model_itself_is_a_500_and_its_trace_is_in_the_log(served, asked, monkeypatch, caplog):
    def failing(_image):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(served[0], "pixels", failing)
    status, answer = asked(as_json({"inputs": [photograph()]}))
    assert status == 500 and "its server's log says why" in answer and SECRET not in answer
    assert SECRET in caplog.text


def test_work_stops_when_nobody_waits_any_more(served, asked, monkeypatch):
    decoded = []

    def slow(_image):
        decoded.append(1)
        time.sleep(0.3)
        return np.zeros((48, 48, 3), np.uint8)

    monkeypatch.setattr(served[0], "pixels", slow)
    _, answer = asked(as_json({"inputs": [photograph()] * 3}), gone=True)
    assert len(decoded) < 3 and "nobody waits" in answer
    assert asked(as_json({"inputs": [photograph()] * 3}))[0] == 200


def test_in_python_a_call_may_have_any_number_of_images(loaded):
    assert len(loaded.predict(pd.DataFrame({"image": [bomb(8, 8)] * 5}))) == 5
