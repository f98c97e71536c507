import numpy as np
import pytest
import tensorflow as tf

from tests import toy_model
from tl_tf import checkpoint, losses, optim, trainer

CLASSES = ["a", "b", "c", "d"]


def shuffled() -> tf.data.Dataset:
    """A stream whose place is worth keeping: shuffled, with draws of its own."""
    data = toy_model.batches(6, count=7)
    return data.shuffle(5, seed=2, reshuffle_each_iteration=True).prefetch(2)


def make(model_dir, *, classes=CLASSES, ema_decay=0.9):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = toy_model.ToyModel(rate=0.3)
        schedule = optim.build_schedule(0.5, 9)
        optimizer = optim.build_optimizer(schedule, ema_decay=ema_decay)
        optimizer.build(model.trainable_variables)
    iterator = iter(shuffled())
    loop = trainer.Trainer(
        model,
        optimizer,
        loss=losses.build_loss("sigmoid"),
        strategy=strategy,
        iterator=iterator,
        seed=4,
    )
    manager = checkpoint.manager(
        model_dir,
        model=model,
        optimizer=optimizer,
        iterator=iterator,
        classes=classes,
        every_steps=1,
        keep=2,
    )
    return loop, manager


def state(loop) -> list[np.ndarray]:
    values = [loop.model.kernel, *loop.optimizer.variables]
    return [value.numpy() for value in values]


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    unbroken, _ = make(tmp_path / "unbroken")
    unbroken.train(tf.constant(9))

    first, manager = make(tmp_path / "broken")
    first.train(tf.constant(4))
    manager.save(checkpoint_number=4)
    first.train(tf.constant(2))  # lost with the process

    second, manager = make(tmp_path / "broken")
    assert manager.restore_or_initialize().endswith("ckpt-4")
    second.train(tf.constant(5))
    for resumed, expected in zip(state(second), state(unbroken), strict=True):
        np.testing.assert_array_equal(resumed, expected)


def test_evaluation_reads_weights_and_averages(tmp_path):
    trained, manager = make(tmp_path)
    trained.train(tf.constant(3))
    manager.save(checkpoint_number=3)
    fresh, _ = make(tmp_path / "other")
    path = checkpoint.restore_for_evaluation(
        tmp_path, model=fresh.model, optimizer=fresh.optimizer, classes=CLASSES
    )
    assert path.name == "ckpt-3"
    for restored, expected in zip(state(fresh), state(trained), strict=True):
        np.testing.assert_array_equal(restored, expected)


def test_only_the_newest_are_kept(tmp_path):
    loop, manager = make(tmp_path)
    for step in (1, 2, 3):
        loop.train(tf.constant(1))
        manager.save(checkpoint_number=step)
    assert sorted(p.stem for p in tmp_path.glob("*.index")) == ["ckpt-2", "ckpt-3"]


def restore(model_dir, loop, classes=CLASSES):
    return checkpoint.restore_for_evaluation(
        model_dir, model=loop.model, optimizer=loop.optimizer, classes=classes
    )


def test_an_empty_folder_is_refused(tmp_path):
    loop, _ = make(tmp_path)
    with pytest.raises(ValueError, match="there is no checkpoint to evaluate"):
        restore(tmp_path, loop)


def test_other_classes_are_refused_even_in_another_order(tmp_path):
    loop, manager = make(tmp_path)
    manager.save(checkpoint_number=1)
    with pytest.raises(ValueError, match=r"was trained on 4 classes \(a, b, c, …\)"):
        restore(tmp_path, loop, classes=["b", "a", "c", "d"])
    _, other = make(tmp_path, classes=["b", "a", "c", "d"])
    with pytest.raises(ValueError, match="stand in another order"):
        other.restore_or_initialize()


def test_an_incomplete_checkpoint_is_refused(tmp_path):
    loop, _ = make(tmp_path)
    names = tf.Variable('["a", "b", "c", "d"]')
    partial = tf.train.Checkpoint(optimizer=loop.optimizer, classes=names)
    tf.train.CheckpointManager(partial, str(tmp_path), 1).save(checkpoint_number=1)
    with pytest.raises(ValueError, match="does not fit this model .*: kernel"):
        restore(tmp_path, loop)


def test_a_damaged_checkpoint_is_named(tmp_path):
    loop, manager = make(tmp_path)
    manager.save(checkpoint_number=1)
    (tmp_path / "ckpt-1.index").write_bytes(b"no index")
    with pytest.raises(ValueError, match="ckpt-1: the checkpoint cannot be read"):
        restore(tmp_path, loop)


@pytest.mark.parametrize("name", ["every_steps", "keep"])
def test_numbers_out_of_range_are_refused(tmp_path, name):
    loop, _ = make(tmp_path)
    numbers = {"every_steps": 1, "keep": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        checkpoint.manager(
            tmp_path,
            model=loop.model,
            optimizer=loop.optimizer,
            iterator=loop.iterator,
            classes=CLASSES,
            **numbers,
        )
