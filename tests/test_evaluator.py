import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests import toy_model
from tl_tf import evaluator, losses, optim, runtime
from tl_tf.inputs import split

V, K = 2, toy_model.K
ROWS = {"a": 3, "b": 0, "c": 1, "d": 5, "e": 2}  # of the annotations
BROKEN = {"id": "f", "row": 4, "labels": [2], "reason": "truncated", "detail": ""}


def split_of(batches, *, skipped=(), explain=str) -> split.Split:
    return split.Split(
        batches=batches,
        dataset="toy",
        split="test",
        classes=[str(k) for k in range(K)],
        num_examples=5,
        coverage={"share": 1.0},
        explain=explain,
        num_batches=3,
        num_views=V,
        examples=list(ROWS),
        rows=list(ROWS.values()),
        skipped=skipped,
    )


def rows(seed: int = 5) -> dict[str, np.ndarray]:
    """The five videos in order, and one row of padding."""
    rng = np.random.default_rng(seed)
    shape = [6, V, toy_model.T, toy_model.H, toy_model.W, 3]
    labels = np.zeros([6, K], np.float32)
    labels[[0, 1, 2, 3, 3], [0, 1, 2, 3, 0]] = 1  # video e has none
    return {
        "pixels": rng.integers(0, 256, shape, dtype=np.uint8),
        "labels": labels,
        "mask": np.array([1, 1, 1, 1, 1, 0], np.float32),
        "index": np.array([0, 1, 2, 3, 4, -1], np.int32),
        "starts": np.tile(np.array([0, 4], np.int32), [6, 1]),
    }


def make(data, *, merge="max", strategy=None, metric="map", skipped=(), **kwargs):
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = toy_model.ToyModel()
        optimizer = optim.build_optimizer(0.1, ema_decay=kwargs.pop("ema_decay", None))
        optimizer.build(model.trainable_variables)
    found = []
    loop = evaluator.Evaluator(
        model,
        optimizer,
        loss=losses.build_loss("sigmoid" if metric == "map" else "softmax"),
        strategy=strategy,
        data=split_of(
            tf.data.Dataset.from_tensor_slices(data).batch(2),
            skipped=skipped,
            explain=kwargs.pop("explain", str),
        ),
        metric=metric,
        merge=merge,
        on_result=found.append,
        **kwargs,
    )
    return loop, found


def expected_scores(data, model) -> np.ndarray:
    frames = data["pixels"][:5].astype(np.float64) / 127.5 - 1
    logits = frames.mean(axis=(2, 3, 4)) @ model.kernel.numpy()  # [5, V, K]
    return 1 / (1 + np.exp(-logits))


def softmax(sigmoids: np.ndarray) -> np.ndarray:
    odds = sigmoids / (1 - sigmoids)
    return odds / odds.sum(axis=-1, keepdims=True)


def average_precision(scores, labels) -> float:
    """Of one class, rows in the order in which ties are kept."""
    hits = labels[np.argsort(-scores, kind="stable")]
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return (precisions * hits).sum() / hits.sum()


@pytest.mark.parametrize("merge", ["max", "mean"])
def test_views_are_merged_and_padding_is_dropped(merge):
    data = rows()
    loop, found = make(data, merge=merge)
    output = loop.evaluate(tf.constant(-1))
    (evaluation,) = found
    assert evaluation.views.ids.tolist() == ["b", "c", "e", "a", "d"]  # by row
    order = [1, 2, 4, 0, 3]
    scores = expected_scores(data, loop.model)[order]
    np.testing.assert_allclose(evaluation.views.view_scores, scores, rtol=1e-5)
    labels = data["labels"][order]
    merged = scores.max(axis=1) if merge == "max" else scores.mean(axis=1)
    merged[2] = -1  # e has no label: last
    by_hand = [average_precision(merged[:, k], labels[:, k]) for k in range(K)]
    np.testing.assert_allclose(evaluation.ranking.per_class, by_hand, rtol=1e-12)
    assert output["eval/map"] == pytest.approx(np.mean(by_hand))


def test_a_broken_video_counts_as_ranked_last():
    data = rows()
    loop, found = make(data, skipped=[BROKEN])
    loop.evaluate(tf.constant(-1))
    merged = expected_scores(data, loop.model)[[1, 2, 4, 0]].max(axis=1)
    merged = np.insert(merged, 4, -2, axis=0)  # f, in its row; then d
    merged = np.append(merged, expected_scores(data, loop.model)[[3]].max(axis=1), 0)
    merged[2] = -1  # e has no label; it stands before f, so it wins the tie
    merged[4] = -1
    labels = data["labels"][[1, 2, 4, 0, 5, 3]]
    labels[4] = [0, 0, 1, 0]
    by_hand = [average_precision(merged[:, k], labels[:, k]) for k in range(K)]
    np.testing.assert_allclose(found[0].ranking.per_class, by_hand, rtol=1e-12)
    np.testing.assert_array_equal(found[0].ranking.positives, labels.sum(axis=0))
    assert found[0].views.ids.tolist() == ["b", "c", "e", "a", "d"]
    whole, whole_found = make(data)
    whole.evaluate(tf.constant(-1))
    assert found[0].values["map"] < whole_found[0].values["map"]


def test_two_replicas_see_what_one_sees():
    data = rows()
    one, one_found = make(data)
    two, two_found = make(data, strategy=toy_model.two_replicas())
    one.evaluate(tf.constant(-1))
    two.evaluate(tf.constant(-1))
    assert two_found[0].views.ids.tolist() == one_found[0].views.ids.tolist()
    np.testing.assert_allclose(
        two_found[0].views.view_scores, one_found[0].views.view_scores, rtol=1e-6
    )


def test_the_order_of_the_batches_does_not_matter():
    data = rows()
    shuffled = {name: values[[3, 5, 0, 4, 2, 1]] for name, values in data.items()}
    first, first_found = make(data)
    second, second_found = make(shuffled)
    first.evaluate(tf.constant(-1))
    second.evaluate(tf.constant(-1))
    assert second_found[0].views.ids.tolist() == first_found[0].views.ids.tolist()
    np.testing.assert_array_equal(
        second_found[0].views.labels, first_found[0].views.labels
    )
    assert second_found[0].values == pytest.approx(first_found[0].values)


@pytest.mark.parametrize("views_at_once", [2, 5])
def test_views_at_once_are_scored_as_one_by_one(views_at_once):
    data = rows()
    one, one_found = make(data)
    many, many_found = make(
        data, strategy=toy_model.two_replicas(), views_at_once=views_at_once
    )
    one.evaluate(tf.constant(-1))
    many.evaluate(tf.constant(-1))
    for field in ("view_scores", "view_losses"):
        want = getattr(one_found[0].views, field)
        got = getattr(many_found[0].views, field)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_no_view_at_once_is_refused():
    with pytest.raises(ValueError, match="views_at_once must be at least 1, got 0"):
        make(rows(), views_at_once=0)


def test_the_phase_begins_the_tags():
    loop, _ = make(rows(), phase="eval_quick")
    assert set(loop.evaluate(tf.constant(-1))) == {
        "eval_quick/map",
        "eval_quick/wap",
        "eval_quick/loss",
    }


def test_each_view_knows_its_clip_and_its_crop():
    data = rows()
    data["pixels"] = np.repeat(data["pixels"], 3, axis=1)
    data["starts"] = np.repeat(data["starts"], 3, axis=1)
    loop, found = make(data)
    loop._data = dataclasses.replace(loop._data, num_crops=3)
    loop.evaluate(tf.constant(-1))
    views = found[0].views
    assert views.view_clips.tolist() == [0, 0, 0, 1, 1, 1]
    assert views.view_crops.tolist() == ["first", "centre", "last"] * 2
    assert views.view_starts[0].tolist() == [0, 0, 0, 4, 4, 4]
    assert (views.num_clips, views.num_crops) == (2, 3)


def test_a_video_that_was_not_seen_is_named():
    data = rows()
    data["mask"][3] = 0
    loop, _ = make(data)
    with pytest.raises(
        ValueError, match="each of 5 videos once, got 1 not at all, as d"
    ):
        loop.evaluate(tf.constant(-1))


def test_a_video_that_was_seen_twice_is_an_error():
    data = rows()
    data["mask"][5], data["index"][5] = 1, 1
    loop, _ = make(data)
    with pytest.raises(ValueError, match="0 not at all and 1 too often"):
        loop.evaluate(tf.constant(-1))


def test_averaged_weights_are_evaluated_and_taken_out_again():
    data = rows()
    loop, found = make(data, ema_decay=0.9)
    raw = loop.model.kernel.numpy()
    loop.model.kernel.assign(raw + 5.0)
    loop.evaluate(tf.constant(-1))  # the average is still the first value
    plain, plain_found = make(data)
    plain.evaluate(tf.constant(-1))
    np.testing.assert_allclose(
        found[0].views.view_scores, plain_found[0].views.view_scores, rtol=1e-6
    )
    np.testing.assert_allclose(loop.model.kernel.numpy(), raw + 5.0, rtol=1e-6)


def test_single_label_data_gets_top_1_and_top_5():
    data = rows()
    data["labels"][:] = np.eye(K, dtype=np.float32)[[0, 1, 2, 3, 0, 0]]
    loop, found = make(data, metric="top_k")
    output = loop.evaluate(tf.constant(-1))
    assert set(output) == {  # 4 classes: no top 5
        "eval/top1",
        "eval/mean_class",
        "eval/loss",
    }
    assert found[0].ranking is None
    scores = softmax(expected_scores(data, loop.model)).max(axis=1)
    is_right = scores.argmax(axis=1) == [0, 1, 2, 3, 0]
    assert output["eval/top1"] == pytest.approx(np.mean(is_right))
    by_class = [is_right[[0, 4]].mean(), *is_right[1:4]]
    assert output["eval/mean_class"] == pytest.approx(np.mean(by_class))


def test_an_image_may_have_several_right_labels():
    data = rows()  # the last one has none, and does not count
    loop, found = make(data, metric="real")
    output = loop.evaluate(tf.constant(-1))
    best = softmax(expected_scores(data, loop.model)).max(axis=1).argmax(axis=-1)
    right = [data["labels"][i, best[i]] for i in range(4)]
    assert output["eval/real"] == pytest.approx(np.mean(right))
    assert found[0].ranking is None


def test_the_maps_of_the_first_view_can_be_looked_at():
    data = rows()
    loop, _ = make(data)
    loop.evaluate(tf.constant(-1))
    frames, labels, maps = loop.look()
    np.testing.assert_array_equal(frames, data["pixels"][:2, 0])
    np.testing.assert_array_equal(labels, data["labels"][:2])
    expected = (data["pixels"][:2, 0] / 127.5 - 1).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(maps["block_0/token_maps"], expected, atol=1e-5)


def test_broken_input_is_explained():
    data = tf.data.Dataset.from_tensor_slices(rows()).batch(2)
    spoilt = data.map(
        lambda batch: {
            **batch,
            "mask": tf.debugging.check_numerics(batch["mask"] / 0.0, "spoilt"),
        }
    )
    loop, _ = make(rows(), explain=lambda error: "shard 1, record 2: broken")
    loop._data = dataclasses.replace(loop._data, batches=spoilt)
    with pytest.raises(ValueError, match="^shard 1, record 2: broken$"):
        loop.evaluate(tf.constant(-1))


def test_another_merge_is_refused():
    with pytest.raises(ValueError, match=r"one of \('max', 'mean'\), got 'median'"):
        make(rows(), merge="median")


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_eval_step_compiles(precision):
    runtime.configure_runtime(None, precision=precision)
    loop, _ = make(rows(), strategy=tf.distribute.get_strategy())
    frames = tf.constant(rows()["pixels"][:3, 0])
    logits = tf.function(loop.replica_step, jit_compile=True)(frames)
    assert logits.shape == (3, K)
