"""The page of --mode=demo, over HTTP and in a real browser (slow)."""

import base64
import http.client
import io
import json
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import av
import gin
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import tiny
from tl_tf import demo, experiment, losses, media, serving

CHROMIUM = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--window-size=1120,1190"),
]
# A file that a person drops on the page cannot be made by a script: an input gets it.
DROP = """
const input = document.createElement("input");
input.type = "file";
input.addEventListener("change", () => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(input.files[0]);
  const options = {bubbles: true, cancelable: true, dataTransfer};
  document.querySelector("#drop").dispatchEvent(new DragEvent("drop", options));
  input.remove();
});
document.body.append(input);
return input;
"""
FPS, SECONDS = 12, 4
LIMIT_SECONDS = 120.0


def write_video(path: Path) -> None:
    """A bright square that moves to the right over grey."""
    frames = np.full([FPS * SECONDS, 48, 64, 3], 90, np.uint8)
    for t, frame in enumerate(frames):
        frame[16:32, t : t + 16] = (250, 200, 40)
    media.write_mp4(path, frames, fps=FPS)


@pytest.fixture(scope="module")
def served(tiny_data, tmp_path_factory):
    """The page of a model of two steps; a video, and what --mode=predict finds in it.

    As command, model_dir, host ("127.0.0.1:8008"), uploads, video and predicted.
    """
    folder = tmp_path_factory.mktemp("demo")
    video, model_dir = folder / "a <b>clip.mp4", folder / "run"
    write_video(video)
    folders = {"model_dir": model_dir, "data_dir": tiny_data}
    tiny.load(tiny.QUICKSTART)
    experiment.run("train", **folders, tpu=None)
    gin.clear_config()
    tiny.load(tiny.QUICKSTART)
    experiment.run("predict", **folders, tpu=None, inputs=(str(video),))
    gin.clear_config()
    predicted = json.loads((model_dir / "predictions/predictions.jsonl").read_text())

    uploads, log = folder / "uploads", folder / "log"
    uploads.mkdir()
    bindings = ("demo.port = 0", "demo.max_megabytes = 1")
    command = tiny.command(tiny.QUICKSTART, *bindings, mode="demo", **folders)
    process = tiny.start(command, log, TMPDIR=str(uploads))
    try:
        host = wait_for(lambda: re.search(r"http://(\S+)", log.read_text()), process)
        yield SimpleNamespace(
            host=host[1], uploads=uploads, video=video, predicted=predicted
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, log.read_text()
        assert log.read_text().endswith("demo   ended\n")
    finally:
        process.kill()


def wait_for(found, process=None):
    """What `found` returns, once it is true."""
    end = time.monotonic() + LIMIT_SECONDS
    while not (result := found()):
        assert time.monotonic() < end
        assert process is None or process.poll() is None
        time.sleep(0.1)
    return result


def request(served, method, path, body=None, **headers):
    """-> the response's status, headers and body."""
    connection = http.client.HTTPConnection(served.host, timeout=LIMIT_SECONDS)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def answer(served, content: bytes) -> list[dict]:
    status, _, body = request(served, "PUT", "/answer", content)
    assert status == 200, body
    return [json.loads(line) for line in body.splitlines()]


def test_a_video_gets_the_labels_of_predict(served):
    *told, found = answer(served, served.video.read_bytes())
    assert all(set(event) == {"doing"} for event in told)
    assert [one["name"] for one in found["labels"]] == served.predicted["labels"]
    scores = [one["score"] for one in found["labels"]]
    np.testing.assert_allclose(scores, served.predicted["scores"], rtol=1e-5)
    # Of 3 frames, each second one: 5 frames of 1/12 s.
    facts = "4.0 s at 12 fps, scored as in evaluation, by 2 clips of 0.417 s."
    assert found["facts"] == facts


def test_the_timeline_holds_the_segments_of_predict(served):
    found = answer(served, served.video.read_bytes())[-1]["timeline"]
    segments = served.predicted["segments"]
    assert len(found["edges"]) == len(segments) + 1
    assert (found["edges"][0], found["edges"][-1]) == (0.0, SECONDS)
    rows = {row["name"]: row["scores"] for row in found["rows"]}
    for i, segment in enumerate(segments):
        for name, score in zip(segment["labels"], segment["scores"], strict=True):
            assert rows[name][i] == pytest.approx(score, rel=1e-5)


def test_the_token_maps_are_a_video_of_the_same_length(served):
    maps = answer(served, served.video.read_bytes())[-1]["maps"]
    assert maps["type"] == "video/mp4"
    with av.open(io.BytesIO(base64.b64decode(maps["base64"]))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert float(stream.duration * stream.time_base) == pytest.approx(SECONDS, 0.1)
        frame = next(container.decode(stream)).to_ndarray(format="rgb24")
    assert frame.std() > 20  # something is drawn


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\0" * 5000])
def test_a_broken_file_is_one_sentence(served, content):
    *_, found = answer(served, content)
    assert re.fullmatch(r"This file cannot be used: [a-z ]+ \(.+\)\.", found["error"])


def test_an_image_is_refused_by_a_model_of_videos(served):
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    *_, found = answer(served, file.getvalue())
    assert "(an image, and the model wants videos)" in found["error"]


def test_uploads_are_deleted(served):
    answer(served, b"no video at all")
    wait_for(lambda: not list(served.uploads.glob("tl_tf-demo-*")))


def test_a_large_file_is_refused_unread(served):
    status, _, body = request(served, "PUT", "/answer", bytes(1_000_001))
    assert (status, body) == (413, b"A file may have 1,000,000 bytes.")


def test_a_large_file_of_unknown_length_is_refused(served):
    pieces = iter([bytes(600_000)] * 2)  # sent in chunks
    assert request(served, "PUT", "/answer", pieces)[0] == 413
    wait_for(lambda: not list(served.uploads.glob("tl_tf-demo-*")))


def test_the_page_loads_nothing_from_elsewhere(served):
    names = [path.name for path in demo.PAGE.iterdir()]
    for name in ["", *names]:
        status, headers, body = request(served, "GET", f"/{name}")
        assert status == 200
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert set(re.findall(rb"https?://[^\s\"']+", body)) <= {
            b"http://www.w3.org/2000/svg"  # a name, not an address
        }
    assert request(served, "GET", "/")[2] == (demo.PAGE / "index.html").read_bytes()


@pytest.mark.parametrize("path", ["/demo.py", "/../demo.py", "//etc/passwd", "/page/"])
def test_nothing_else_is_served(served, path):
    assert request(served, "GET", path)[0] == 404


def test_only_the_page_is_written_to(served):
    assert request(served, "POST", "/answer", b"x")[0] == 405  # a form elsewhere can
    assert request(served, "PUT", "/", b"x")[0] == 405


def test_a_name_from_elsewhere_that_points_here_is_refused(served):
    assert request(served, "GET", "/about", Host="evil.example")[0] == 400
    port = served.host.split(":")[1]
    assert request(served, "GET", "/about", Host=f"localhost:{port}")[0] == 200


def test_a_reader_that_leaves_does_not_stop_the_next(served):
    connection = http.client.HTTPConnection(served.host)
    connection.request("PUT", "/answer", served.video.read_bytes())
    connection.close()
    assert "labels" in answer(served, served.video.read_bytes())[-1]


def test_the_page_tells_what_the_model_knows(served):
    about = json.loads(request(served, "GET", "/about")[2])
    assert about["noun"] == "videos"
    assert about["classes"][0] == "moving left"
    assert about["max_bytes"] == 1_000_000
    assert "step 2, trained on synthetic videos" in about["text"]


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        want = (
            rf"cannot listen on 127.0.0.1:{port}: \[Errno \d+\] [\w ]+\. Set demo.port"
        )
        with pytest.raises(ValueError, match=want):
            demo.listen("127.0.0.1", port)
    with pytest.raises(ValueError, match="Set demo.port to another one"):
        demo.listen("127.0.0.1", 99999)


def test_an_image_and_its_token_maps(tiny_data, tmp_path):
    tiny.load("gin/cifar10_vit_tl.gin")
    trained = serving.Trained("tiny_images", "images", ["bird", "cat"], {}, {})
    classifier = serving.Classifier(
        gin.get_bindings("train")["build_model"](2),
        sampler=serving.build_sampler(trained),
        loss=losses.build_loss(),
        merge="mean",
        trained=trained,
    )
    image = tiny_data / "tiny_images/test/bird/0.jpg"
    path = shutil.copy(image, tmp_path / "file")  # the token maps come beside it
    pixels = classifier.views_of(tf.constant(path.read_bytes()))
    want = classifier.classify(pixels[tf.newaxis])[0].numpy()

    answers = demo.Answers(classifier, 0, max_drawn_seconds=1)
    found = answers(path, lambda event: None)
    scores = {one["name"]: one["score"] for one in found["labels"]}
    np.testing.assert_allclose([scores["bird"], scores["cat"]], want, rtol=1e-5)
    assert (found["timeline"], found["maps"]["type"]) == (None, "image/png")
    with Image.open(io.BytesIO(base64.b64decode(found["maps"]["base64"]))) as picture:
        assert np.asarray(picture).std() > 20


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Debian's Chromium, without a window."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in (*CHROMIUM, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


def drop(browser, path: Path):
    """Drops a file on the page.  -> its card, once it is answered"""
    browser.execute_script(DROP).send_keys(str(path))
    card = wait_for(lambda: browser.find_elements("css selector", "article"))[0]
    state = card.find_element("css selector", ".state")
    wait_for(lambda: not state.is_displayed())
    return card


def texts(card, selector: str) -> list[str]:
    return [one.text for one in card.find_elements("css selector", selector)]


@pytest.mark.slow
def test_the_page_in_a_browser(served, browser, tmp_path):
    browser.get(f"http://{served.host}/")
    wait_for(lambda: "step 2" in browser.find_element("id", "about").text)
    assert "Drop videos here" in browser.find_element("id", "drop").text

    card = drop(browser, served.video)
    assert texts(card, "h2") == [served.video.name]  # as text, not as HTML
    assert texts(card, "li span:first-child") == served.predicted["labels"]
    want = [f"{100 * score:.1f} %" for score in served.predicted["scores"]]
    assert texts(card, "li .score") == want

    video = card.find_element("css selector", ".maps video")

    def at():
        return browser.execute_script("return arguments[0].currentTime", video)

    first = wait_for(at)
    wait_for(lambda: at() > first)  # it plays
    assert int(video.get_property("videoWidth")) > 200
    assert video.get_property("error") is None

    timeline = card.find_element("css selector", ".timeline svg")
    assert timeline.size["height"] > 60
    assert len(timeline.find_elements("css selector", "path.area")) == 5
    # A click on it goes there: the axis begins at 0.15 of the width, ends at 0.988.
    browser.execute_script("arguments[0].pause()", video)
    chains = pytest.importorskip("selenium.webdriver").ActionChains
    offset = round((0.15 + 0.838 * 0.75 - 0.5) * timeline.size["width"])
    chains(browser).move_to_element_with_offset(timeline, offset, 0).click().perform()
    assert at() == pytest.approx(0.75 * SECONDS, abs=0.05)

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    card = drop(browser, broken)
    (sentence,) = texts(card, ".error")
    assert sentence.startswith("This file cannot be used: unreadable (")
    assert not card.find_element("css selector", ".answer").is_displayed()

    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_000_001))
    assert texts(drop(browser, large), ".error") == [
        "Larger than the 1 MB that are taken (demo.max_megabytes)."
    ]
    assert len(browser.find_elements("css selector", "article")) == 3
    assert not [line for line in browser.get_log("browser") if line["level"] != "INFO"]
