"""A page on this machine: drop a file on it, see labels, timeline and token maps.

The page, tl_tf/page, loads nothing from elsewhere.  A file is the body of one request,
whose answer is a line of JSON for each thing done, the last one with what was found.
Names of files stay in the browser; a file is deleted when its answer ends.
"""

import base64
import contextlib
import ipaddress
import json
import logging
import queue
import shutil
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gin
import numpy as np
import tf_keras

from tl_tf import media, predict, report, scorers, serving, timeline
from tl_tf import session as sessions

if TYPE_CHECKING:
    from werkzeug import serving as wsgi

Event = dict[str, Any]  # of the answer: "doing", "error", or "labels" and more
Tell = Callable[[Event], None]

PAGE = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".mp4": "video/mp4",
    ".png": "image/png",
}
HEADERS = {  # the browser too is to refuse whatever is not of this page
    "Content-Security-Policy": "default-src 'self'; img-src blob: data:; media-src"
    " blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
SHOWN_LABELS = 5
SHOWN_ROWS = 6  # of the timeline


@gin.configurable
def demo(
    session: sessions.Session,
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
    host: str = "127.0.0.1",
    port: int = 8008,
    max_megabytes: int = 200,
    max_drawn_seconds: float = 60.0,
) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Args:
      session: mode, folders and devices.
      build_model: the one that was trained.
      host: address to listen on.  Whoever reaches another one than this machine's own
        may send files to be decoded; no password is asked for.
      port: 0 for any that is free.
      max_megabytes: of a file.
      max_drawn_seconds: of a longer video no token maps are drawn.

    Raises:
      ValueError: for a missing checkpoint, or an address that cannot be listened on.
    """
    with listen(host, port) as listener:
        classifier, step = sessions.restore_classifier(session, build_model)
        session.check_config()
        trained = classifier.trained
        server = build_server(
            listener,
            Answers(classifier, step, max_drawn_seconds=max_drawn_seconds),
            about={
                "text": f"{session.model_dir}, step {step}, trained on"
                f" {trained.dataset} {trained.noun}",
                "noun": trained.noun,
                "classes": trained.classes,
                "max_bytes": max_megabytes * 10**6,
            },
        )
        url = f"http://[{host}]" if ":" in host else f"http://{host}"
        report.say(f"demo   {url}:{server.port} takes {trained.noun}; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            server.serve_forever()
        report.say("demo   ended")


class Answers:
    """What the page shows of a file.

    Args:
      classifier: of the recipe.
      step: of its checkpoint.
      max_drawn_seconds: of a longer video no token maps are drawn.
    """

    def __init__(
        self, classifier: serving.Classifier, step: int, *, max_drawn_seconds: float
    ):
        self._classifier = classifier
        self._scorer = scorer = scorers.CheckpointScorer(classifier, step)
        self._max_drawn_seconds = max_drawn_seconds
        self._cut = predict.Cut.of_seconds(scorer) if scorer.noun == "videos" else None

    def __call__(self, path: Path, tell: Tell) -> Event:
        """Predicts as --mode=predict does, and draws the token maps.

        Args:
          path: of the file, alone in its folder.
          tell: called with {"doing": …} now and then.

        Raises:
          media.VideoError: when the file cannot be used.
        """
        tell({"doing": "Looking at it"})
        found = predict.predict_file(
            path,
            self._scorer,
            self._cut,
            on_segment=lambda one: tell({"doing": f"Looked at {one.end:.1f} s"}),
        )
        best = timeline.top(found.scores, self._scorer.classes, SHOWN_LABELS)
        answer = {
            "labels": [{"name": name, "score": score} for name, score in best],
            "facts": self._facts(found),
            "timeline": self._timeline(found),
        }
        if (found.seconds or 0) > self._max_drawn_seconds:
            limit = f"{self._max_drawn_seconds:g} s"
            answer["facts"] += (
                f" Longer than {limit}: no token maps here, --mode=predict --render"
                " draws them."
            )
        else:
            tell({"doing": "Drawing token maps"})
            answer["maps"] = self._maps(path)
        return answer

    def _facts(self, found: predict.Prediction) -> str:
        if found.seconds is None:
            return ""
        sampler = self._classifier.sampler
        seconds = f"{sampler.span / self._scorer.fps:.3g} s"
        scored = (
            f"scored as in evaluation, by {sampler.num_clips} clips of {seconds}"
            if found.is_whole
            else f"{len(found.segments)} segments, merged by {self._scorer.merge}"
        )
        return f"{found.seconds:.1f} s at {self._scorer.fps:g} fps, {scored}."

    def _timeline(self, found: predict.Prediction) -> Event | None:
        if not found.segments:
            return None
        scores = np.array([one.scores for one in found.segments])  # [segments, K]
        shown = np.argsort(-scores.max(axis=0), kind="stable")[:SHOWN_ROWS]
        shown = sorted(shown, key=lambda k: -scores[:, k].mean())
        return {
            "edges": timeline.edges(found.segments).tolist(),  # seconds
            "rows": [
                {"name": self._scorer.classes[k], "scores": scores[:, k].tolist()}
                for k in shown
            ],
        }

    def _maps(self, path: Path) -> Event:
        """The file with its token maps beside it."""
        drawn = predict.render(path, self._scorer, path)
        data = base64.b64encode(drawn.read_bytes()).decode()
        return {"type": TYPES[drawn.suffix], "base64": data}


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for connections.

    Raises:
      ValueError: for an address that cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = str(error).split(" (while")[0].rstrip(".")
        raise ValueError(
            f"demo: cannot listen on {host}:{port}: {reason}. Set demo.port to another"
            " one, or to 0 for any that is free."
        ) from None


def build_server(
    listener: socket.socket,
    answer: Callable[[Path, Tell], Event],
    *,
    about: Event,
) -> "wsgi.BaseWSGIServer":
    """A server of the page: a thread a request, one file after the other.

    Args:
      listener: as `listen` makes it.
      answer: what is found in a file; it may tell what it is doing.
      about: what the page says of the model; "max_bytes" of a file.
    """
    from werkzeug import exceptions, wrappers
    from werkzeug import serving as wsgi

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line a request
    host, port = listener.getsockname()[:2]
    files = {path.name: path for path in PAGE.iterdir()}
    turn = threading.Lock()

    class Request(wrappers.Request):
        max_content_length = about["max_bytes"]
        # A page elsewhere may let its own name point here: that is not answered.
        if ipaddress.ip_address(host).is_loopback:
            trusted_hosts = ["127.0.0.1", "localhost", "[::1]"]

    def receive(request: Request) -> wrappers.Response:
        if (request.content_length or 0) > Request.max_content_length:
            most = f"{Request.max_content_length:,}"
            raise exceptions.RequestEntityTooLarge(f"A file may have {most} bytes.")
        folder = tempfile.TemporaryDirectory(prefix="tl_tf-demo-")
        try:
            path = Path(folder.name, "file")
            with open(path, "wb") as file:
                shutil.copyfileobj(request.stream, file)
        except BaseException:
            folder.cleanup()
            raise
        lines = _lines(answer, path, turn)
        response = wrappers.Response(lines, mimetype="application/x-ndjson")
        response.call_on_close(folder.cleanup)
        return response

    def respond(request: Request) -> wrappers.Response:
        request.host  # raises for one that is not trusted  # noqa: B018
        name = request.path.removeprefix("/") or "index.html"
        if request.method == "PUT" and name == "answer":
            return receive(request)
        if request.method != "GET":
            raise exceptions.MethodNotAllowed
        if name == "about":
            return wrappers.Response(json.dumps(about), mimetype="application/json")
        if name not in files:
            raise exceptions.NotFound
        kind = TYPES[files[name].suffix]
        return wrappers.Response(files[name].read_bytes(), mimetype=kind)

    @Request.application
    def app(request: Request) -> wrappers.Response:
        try:
            response = respond(request)
        except exceptions.HTTPException as error:
            response = wrappers.Response(error.description, error.code)
        response.headers.update(HEADERS)
        return response

    return wsgi.make_server(host, port, app, threaded=True, fd=listener.fileno())


def _lines(
    answer: Callable[[Path, Tell], Event], path: Path, turn: threading.Lock
) -> Iterator[str]:
    """Yields the answer's lines; when nobody reads them any more, it is given up."""
    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    is_gone = threading.Event()

    def tell(event: Event) -> None:
        if is_gone.is_set():
            raise ConnectionAbortedError
        events.put(event)

    def work() -> None:
        try:
            if turn.locked():
                tell({"doing": "Waiting for another file"})
            with turn:
                tell(answer(path, tell))
        except ConnectionAbortedError:
            pass
        except media.VideoError as error:
            reason = error.reason.replace("_", " ")
            sentence = f"This file cannot be used: {reason} ({error.detail})."
            events.put({"error": sentence})
        except Exception:
            traceback.print_exc()
            events.put({"error": "The demo failed at this file: see its terminal."})
        finally:
            events.put(None)

    thread = threading.Thread(target=work, daemon=True)  # Ctrl-C does not wait for it
    thread.start()
    try:
        while event := events.get():
            yield json.dumps(event) + "\n"
    finally:
        is_gone.set()
        thread.join()  # the file is in use until then
