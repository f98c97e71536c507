"""--mode=visualize: what each learned token looks at, and who listens to it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gin
import numpy as np
import tensorflow as tf
import tf_keras

from tl_tf import evaluator, files, media, report, serving
from tl_tf import session as sessions
from tl_tf import visualize as drawing
from tl_tf.inputs import augment, clips, crops, views
from tl_tf.layers import attention, bottleneck, encoder, vector_attention
from tl_tf.models import differences, x2p1d

DRAWN_PX = 240  # the least height of what is drawn, though the model sees fewer
SHOWN_SCORE = 0.1  # further labels of at least that stand in a title
WEBP_QUALITY = 80


@gin.configurable
def visualize(
    session: sessions.Session,
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
    token_learner: str | None = None,
) -> None:
    """Draws the token maps of files, the tokens' importance, and their attention.

    Of a video, the view is drawn that scores highest for the video's first label:
    NAME.png is a sheet, NAME.webp the same as a clip that plays in a loop, and
    NAME.attention.png what the learned tokens of frames attend to, where they do.  An
    image has no clip.

    Source: Section 6.4, Figure 10.
    Args:
      session: its inputs are drawn into its output_dir, or `token_pictures` of its
        model_dir.
      build_model: the one that was trained.
      token_learner: which one's tokens, as "block_6" or "stage_4/block_0"; None for the
        first: later ones see mixed inputs.

    Raises:
      ValueError: for inputs that are not there, a model without token maps, an unknown
        TokenLearner, or when no file can be drawn.
    """
    paths = media.find(session.inputs)
    if paths == [media.STDIN]:
        raise ValueError(
            "--input=-: --mode=visualize draws files, not a stream. Save it to a file,"
            " or use --mode=predict."
        )
    classifier, step = sessions.restore_classifier(session, build_model)
    session.check_config()
    folder = session.output_dir or session.model_dir / "token_pictures"
    folder.mkdir(parents=True, exist_ok=True)
    draw_files(paths, Looker(classifier, token_learner, step=step), folder)


def draw_files(paths: Sequence[Path], looker: "Looker", folder: Path) -> None:
    """Draws files into a folder, a line each; what cannot be used is named.

    Raises:
      ValueError: when none can be drawn.
    """
    drawn: set[str] = set()
    for path in paths:
        try:
            look = looker.look(path)
        except media.VideoError as error:
            report.say(f"visualize  {path}: left out: {error.reason} ({error.detail})")
            continue
        name = path.stem
        while name in drawn:  # of another folder, or with another ending
            name += "_"
        if not look.attention and not drawn:
            report.say("visualize  no attention among the learned tokens to draw.")
        drawn.add(name)
        endings = write_pictures(folder / name, look)
        report.say(
            f"visualize  {look.sentence}  -> {folder / name}{', '.join(endings)}"
        )
    if not drawn:
        raise ValueError(f"--mode=visualize: none of {len(paths)} files can be drawn.")
    if len(drawn) < len(paths):
        report.say(f"visualize  {len(paths) - len(drawn)} files could not be drawn.")


@dataclasses.dataclass(frozen=True)
class Look:
    """What is drawn of one view of a file.

    Attributes:
      title: two lines, of the file and of the view.
      sentence: about the file, for the terminal.
      frames: uint8 [T, H, W, 3], T = 1 of an image, finer than the model saw them.
      maps: float32 [T', h, w, S].
      importance: float32 [S], what the first label's logit loses without a token; None
        of a model that is not ours.
      attention: as `attention_between_tokens`, of this view: [M, S, M, S].
      seconds: of each slice of the maps, T' of them; None for an image.
      seconds_per_frame: of a clip.
    """

    title: str
    sentence: str
    frames: np.ndarray
    maps: np.ndarray
    importance: np.ndarray | None
    attention: dict[str, np.ndarray]
    seconds: list[float] | None = None
    seconds_per_frame: float = 0.0


class Looker:
    """Looks at files through one TokenLearner of a model.

    Args:
      classifier: the model, and what evaluation does before and behind it.
      token_learner: its name, or None for the first.
      step: of the training.

    Raises:
      ValueError: for a model without token maps, or an unknown TokenLearner.
    """

    def __init__(
        self, classifier: serving.Classifier, token_learner: str | None, *, step: int
    ):
        self._classifier, self._step = classifier, step
        self._name = self._choose(token_learner)
        look = functools.partial(look_closely, classifier.model, name=self._name)
        self._look_closely = tf.function(look, autograph=False)

    def look(self, path: Path) -> Look:
        """Reads a file, scores it as evaluation does, and looks at one view of it.

        Raises:
          VideoError: when the file cannot be used.
        """
        classifier = self._classifier
        pixels, fine, seconds = self._read(path)
        view_scores = tf.concat([classifier.look(p[None])[0] for p in pixels], axis=0)
        scores = classifier.merged(view_scores[None])[0].numpy()  # [K]
        top = int(scores.argmax())
        view = int(view_scores.numpy()[:, top].argmax())
        found = self._look_closely(pixels[view][None], class_index=tf.constant(top))
        maps, importance, weights = tf.nest.map_structure(
            lambda x: None if x is None else x.numpy()[0], found
        )
        frames, where, timing = fine[view].numpy(), "", {}
        if classifier.is_video:
            sampler, times = classifier.sampler, seconds[view]  # [T]
            first = np.arange(len(maps)) * len(frames) // len(maps)  # frame of a slice
            timing = {
                "seconds": times[first].tolist(),
                "seconds_per_frame": sampler.frame_stride / sampler.fps,
            }
            where = f"frames from {times[0]:.2f} s to {times.max():.2f} s, "
        labels = self._labels(scores)
        return Look(
            title=f"{path.name}    {labels}\n{where}{self._name}, step {self._step}",
            sentence=f"{path}: {labels}{_listens(importance)}",
            frames=frames if classifier.is_video else frames[None],
            maps=maps,
            importance=importance,
            attention=weights,
            **timing,
        )

    def _choose(self, token_learner: str | None) -> str:
        classifier = self._classifier
        sampler = classifier.sampler
        size = (
            [sampler.num_frames, sampler.crop_px, sampler.crop_px]
            if classifier.is_video
            else sampler.size
        )
        _, maps = classifier.look(tf.zeros([1, *size, 3], tf.uint8))
        known = [_name_of(endpoint) for endpoint in maps]
        if not known:
            raise ValueError(
                "--mode=visualize: this model has no token maps to draw: it has no"
                " TokenLearner, or tokens of a fixed grid. Use a recipe with"
                " TokenLearner, as gin/quickstart.gin."
            )
        name = known[0] if token_learner is None else token_learner
        if name not in known:
            raise ValueError(
                f"visualize.token_learner must be one of {', '.join(known)}, got"
                f" {name!r}."
            )
        others = f", of {', '.join(known)}" if len(known) > 1 else ""
        report.say(
            f"visualize  the learned tokens of {name}{others}; step {self._step}"
        )
        return name

    def _read(self, path: Path) -> tuple[tf.Tensor, tf.Tensor, np.ndarray | None]:
        """A file's views, the same in finer pixels, and the seconds of their frames.

        -> uint8 [V, T, H, W, 3] twice, float [V, T]; or [1, H, W, 3] twice, None
        """
        classifier, fine = self._classifier, _finer(self._classifier.sampler)
        kind, trained = media.kind_of(path), classifier.trained
        if f"{kind}s" != trained.noun:
            wanted = trained.noun[:-1]
            detail = f"no {wanted}, and the model was trained on {trained.noun}"
            raise media.VideoError("unreadable", detail)
        if kind == "image":
            data, orientation = media.read_image(path)
            try:
                return (
                    classifier.views_of(tf.constant(data), orientation=orientation),
                    fine.views_of(tf.constant(data), orientation=orientation),
                    None,
                )
            except tf.errors.OpError:
                detail = "its pixels cannot be decoded"
                raise media.VideoError("damaged", detail) from None
        fps, short_side = trained.frames["fps"], int(trained.frames["short_side"])
        video = media.read_video(path, fps=fps, short_side=short_side)
        finer = video
        if fine.short_side_px > short_side:
            finer = media.read_video(path, fps=fps, short_side=fine.short_side_px)
        length = tf.constant(len(video.frames))
        clip = {"num_frames": fine.num_frames, "frame_stride": fine.frame_stride}
        starts = clips.eval_offsets(length, num_clips=fine.num_clips, **clip)
        indices = clips.clip_indices(length, offset=starts[:, tf.newaxis], **clip)
        return (
            classifier.views_of(tf.constant(video.frames)),
            fine.views_of(tf.constant(finer.frames)),
            np.repeat(indices.numpy() / fps, fine.num_crops, axis=0),
        )

    def _labels(self, scores: np.ndarray) -> str:
        """The best label with its score, and the next two if they score at all."""
        order = np.argsort(-scores, kind="stable")[:3]
        shown = [k for i, k in enumerate(order) if i == 0 or scores[k] >= SHOWN_SCORE]
        classes = self._classifier.trained.classes
        return ", ".join(f"{classes[k]} {scores[k]:.2f}" for k in shown)


def look_closely(
    model: tf_keras.Model, pixels: tf.Tensor, *, class_index: tf.Tensor, name: str
) -> tuple[tf.Tensor, tf.Tensor | None, dict[str, tf.Tensor]]:
    """Token maps, how much the tokens matter for a class, and their attention.

    A token's importance is what the class's logit loses when the token is zero in every
    frame: exact, by a pass of the model for each token.  A gradient would cost one pass
    in all, but behind a LayerNorm, which does not see how long a token is, gradient
    times token is next to nothing.

    Source: occlusion, "Visualizing and Understanding Convolutional Networks", arXiv
      1311.2901, Section 4.2, of tokens instead of pixels.
    Args:
      model: a ViT, ViViT or X(2+1)D, or one of differences; of others the maps alone.
      pixels: uint8 [B, ..., 3].
      class_index: int32 [], whose logit is looked at.
      name: of the TokenLearner, what its endpoint has before "/token_maps".

    Returns:
      Maps float32 [B, T', h, w, S]; importance float32 [B, S] or None; the attention,
      see `attention_between_tokens`.
    """
    pixels = augment.normalize(pixels, model.compute_dtype)
    logits, endpoints = model(pixels, training=False)
    (maps,) = (
        tf.cast(tensor, tf.float32)
        for endpoint, tensor in endpoints.items()
        if endpoint.endswith(evaluator.TOKEN_MAPS) and _name_of(endpoint) == name
    )
    layer = _layer_of(model, name)
    if layer is None:
        return maps, None, {}

    def without(token: tf.Tensor) -> tf.Tensor:
        kept = 1 - tf.one_hot(token, layer.num_tokens, dtype=model.compute_dtype)
        with _scaled_tokens(layer, kept):
            return tf.gather(model(pixels, training=False)[0], class_index, axis=1)

    lost = tf.map_fn(
        lambda token: tf.gather(logits, class_index, axis=1) - without(token),
        tf.range(maps.shape[-1]),
        fn_output_signature=tf.float32,
    )  # [S, B]
    return (
        maps,
        tf.transpose(lost),
        attention_between_tokens(model, endpoints, name=name),
    )


@contextlib.contextmanager
def _scaled_tokens(layer: tf_keras.layers.Layer, factors: tf.Tensor) -> Iterator[None]:
    """Within, a TokenLearner's tokens [..., S, C] are multiplied by factors [S]."""
    call = layer.call

    def scaled(x):
        tokens, maps = call(x)
        return tokens * factors[:, tf.newaxis], maps

    layer.call = scaled  # Keras looks it up at each call
    try:
        yield
    finally:
        del layer.call  # the class's own is seen again


def _name_of(endpoint: str) -> str:
    """Of "block_6/token_maps" the "block_6"; of a model with one alone, all of it."""
    return endpoint.removesuffix(f"/{evaluator.TOKEN_MAPS}")


def _layer_of(model: tf_keras.Model, name: str) -> tf_keras.layers.Layer | None:
    """The TokenLearner of that name, in a model of ours."""
    model = _without_differences(model)
    if isinstance(model, encoder.Encoder):
        return model.reducers[name.removeprefix("block_")]
    if isinstance(model, x2p1d.X2Plus1D):
        return _token_module(model, name).token_learner
    return None


def _token_module(model: x2p1d.X2Plus1D, name: str) -> bottleneck.TokenModule:
    stage, _, block = name.partition("/block_")
    return model.stages[stage][int(block)].token_module


def _without_differences(model: tf_keras.Model) -> tf_keras.Model:
    while isinstance(model, differences.OnDifferences):
        model = model.model
    return model


def attention_between_tokens(
    model: tf_keras.Model, endpoints: dict[str, tf.Tensor], *, name: str
) -> dict[str, tf.Tensor]:
    """By which weights learned tokens attend to each other, computed anew.

    A mean over the heads or, of vector attention, over the channels.  In the factorised
    ViViT, whose learned tokens attend within a frame alone, between the frames.  What
    goes to a class token is left out.

    Args:
      model: a ViT, ViViT or X(2+1)D, or one of differences.
      endpoints: of a call.
      name: of the TokenLearner.

    Returns:
      By the block's name float32 [B, M, S, M, S], M windows of frames each with S
      tokens, from token to token; of each its sums are 1.  They are in the order of
      the model; empty behind an MLP-Mixer, which has no weights.
    """
    model = _without_differences(model)
    if isinstance(model, x2p1d.X2Plus1D):
        return _of_module(model, endpoints, name)
    if getattr(model, "temporal", None) is not None:
        return _over_time(model.temporal, endpoints)
    return _of_blocks(model, endpoints, int(name.removeprefix("block_")))


def write_pictures(stem: Path, look: Look) -> list[str]:
    """Writes what `visualize` says; returns the endings of the files."""
    from PIL import Image

    is_image = look.seconds is None
    caption = look.title
    if look.importance is not None:
        caption += "\nnumbers: what the first label's logit loses without the token"
    tokens = {"maps": look.maps, "importance": look.importance}
    sheet = drawing.token_map_sheet(
        look.frames,
        title=caption if is_image else look.title,
        seconds=look.seconds,
        **tokens,
    )
    _save(stem.with_name(stem.name + ".png"), [Image.fromarray(sheet)])
    endings = [".png"]
    if not is_image:
        clip = drawing.draw_clip(look.frames, caption=caption, **tokens)
        pictures = [Image.fromarray(picture) for picture in clip]
        duration = round(1000 * look.seconds_per_frame)  # ms of each
        path = stem.with_name(stem.name + ".webp")
        _save(path, pictures, duration=duration, loop=0, quality=WEBP_QUALITY)
        endings.append(".webp")
    if look.attention:
        windows = len(next(iter(look.attention.values())))  # of frames
        seconds = look.seconds and look.seconds[:: len(look.seconds) // windows]
        picture = drawing.attention_picture(
            look.attention, title=look.title, seconds=seconds
        )
        path = stem.with_name(stem.name + ".attention.png")
        _save(path, [Image.fromarray(picture)])
        endings.append(".attention.png")
    return endings


def _save(path: Path, pictures: list, **options) -> None:
    with files.whole(path) as temporary:
        pictures[0].save(
            temporary,
            format=path.suffix[1:],
            save_all=len(pictures) > 1,
            append_images=pictures[1:],
            **options,
        )


def _finer(sampler: views.Views | crops.Crops) -> views.Views | crops.Crops:
    """The same views, as many whole times larger as makes them good to look at."""
    if isinstance(sampler, views.Views):
        factor = max(1, DRAWN_PX // sampler.crop_px)
        changes = {
            "crop_px": factor * sampler.crop_px,
            "short_side_px": factor * sampler.short_side_px,
        }
    else:
        factor = max(1, DRAWN_PX // min(sampler.size))
        changes = {"image_px": tuple(factor * side for side in sampler.size)}
        if sampler.resize_px is not None:
            changes["resize_px"] = factor * sampler.resize_px
    return dataclasses.replace(sampler, **changes)


def _listens(importance: np.ndarray | None) -> str:
    """The tokens that matter most, of [S], for people."""
    if importance is None:
        return ""
    order = np.argsort(-np.abs(importance), kind="stable")[:3]
    return "; listens to token " + ", ".join(
        f"{s} ({importance[s]:+.2g})" for s in order
    )


def _of_module(model, endpoints, name: str) -> dict[str, tf.Tensor]:
    """Of the TokenModule in a block of X(2+1)D."""
    tokens = endpoints[f"{name}/learned_tokens"]  # [B, M, S, C]
    _, m, s, c = tokens.shape
    layer, x = (
        _token_module(model, name).transformer,
        tf.reshape(tokens, [-1, m * s, c]),
    )
    weights = _transformer_weights(layer, x)
    return {} if weights is None else {name: _by_token(weights, s)}


def _over_time(model, endpoints) -> dict[str, tf.Tensor]:
    """Of the second encoder of a factorised ViViT, a token a frame."""
    kept = int(model.class_token is not None)
    inputs = ["position", *(f"block_{j}" for j in range(len(model.blocks) - 1))]
    return {
        f"over time, block {j}": _by_token(
            _block_weights(block, endpoints[f"temporal/{name}"])[:, kept:, kept:], 1
        )
        for j, (block, name) in enumerate(zip(model.blocks, inputs, strict=True))
    }


def _of_blocks(model, endpoints, first: int) -> dict[str, tf.Tensor]:
    """Of the blocks that run on the learned tokens made before block `first`."""
    tokens, kept = endpoints[f"block_{first}/learned_tokens"], model.num_kept
    num_tokens = tokens.shape[1] // model.windows_attended
    is_last = str(first) in model.restorers  # then it is back to the grid
    found = {}
    for j in range(first, first + 1 if is_last else len(model.blocks)):
        if j == first and kept:
            continue  # the class token that goes in beside them is no endpoint
        x = tokens if j == first else endpoints[f"block_{j - 1}"]
        weights = _block_weights(model.blocks[j], x)[:, kept:, kept:]
        found[f"block {j}"] = _by_token(weights, num_tokens)
    return found


def _by_token(weights: tf.Tensor, num_tokens: int) -> tf.Tensor:
    """[B, M * S, M * S] -> [B, M, S, M, S]"""
    windows = weights.shape[1] // num_tokens
    return tf.reshape(weights, [-1, windows, num_tokens, windows, num_tokens])


def _block_weights(block: attention.EncoderBlock, x: tf.Tensor) -> tf.Tensor:
    """Of a block's input [B, L, C], the mean over its heads: float32 [B, L, L]."""
    x, layer = block.attention_norm(x), block.attention
    q, k = layer.query(x), layer.key(x)  # [B, L, A, D]
    return _softmax_weights(q, k, q.shape[-1] ** -0.5)


def _transformer_weights(layer, x: tf.Tensor) -> tf.Tensor | None:
    """Of one of bottleneck.TRANSFORMERS on tokens [B, N, C]: float32 [B, N, N]."""
    if isinstance(layer, bottleneck.PriorAttention):
        weights = tf.nn.softmax(tf.cast(layer.scores, tf.float32))
        return tf.tile(weights[tf.newaxis], [x.shape[0] or tf.shape(x)[0], 1, 1])
    if isinstance(layer, bottleneck.Mhsa):
        heads = [-1, x.shape[1], layer.num_heads, bottleneck.KEY_SIZE]
        q, k = (tf.reshape(f(x), heads) for f in (layer.query, layer.key))
        return _softmax_weights(q, k, bottleneck.KEY_SIZE**-0.5)
    if not isinstance(layer, vector_attention.VectorTransformer):
        return None
    q, k = (tf.cast(f(x), tf.float32) for f in (layer.query, layer.key))
    weights = tf.map_fn(  # one query at a time: [B, N, N, C] may be gigabytes
        lambda one: tf.reduce_mean(tf.nn.softmax(one[:, tf.newaxis] * k, axis=1), -1),
        tf.transpose(q, [1, 0, 2]),
    )  # [N, B, N]
    return tf.transpose(weights, [1, 0, 2])


def _softmax_weights(q: tf.Tensor, k: tf.Tensor, scale: float) -> tf.Tensor:
    """Of heads [B, L, A, D], their mean: float32 [B, L, L]."""
    scores = tf.einsum("blad,bmad->balm", q, k)
    return tf.reduce_mean(tf.nn.softmax(tf.cast(scores, tf.float32) * scale), axis=1)
