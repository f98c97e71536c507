import numpy as np
import pytest
import tensorflow as tf

from tests import contract, toy_model
from tl_tf import checkpoint, flax_names, losses, npz, optim, trainer, transfer
from tl_tf.layers import embedding
from tl_tf.models import vit, vivit

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
    with pytest.raises(ValueError, match=r"none of .* can be read \(ckpt-1: ckpt-1.i"):
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


def vit_model(**options):
    sizes = {
        "image_px": (12, 20),
        "patch_px": (3, 4),
        "hidden_size": 6,
        "num_heads": 2,
        "mlp_size": 7,
        "depth": 2,
        "num_tokens": 3,
    }
    return vit.build_vit(options.pop("num_classes", 5), **sizes | options)


def randomized(seed=1, **options):
    model = vit_model(**options)
    contract.randomize(model, seed)
    return model


def outcomes(rows):
    return {row.name: row.outcome for row in rows}


FUSER = {"insert_before_block": 0, "restore": "fuser"}
VARIANTS = {
    "token": {"head": "token", "representation_size": 9},
    "v1.0": {"insert_before_block": 1, "tokenizer": "v1.0"},
    "fuser": FUSER,
    "december": FUSER | {"fuser_beta": "conv", "tokenizer": "v1.0"},
    "text": FUSER | {"fuser_beta": "linear", "fuser_mixing": "joint"},
    "unpool": {"insert_before_block": 0, "restore": "unpool"},
    "reproject": {"insert_before_block": 0, "restore": "reproject"},
    "pool": {"pool_before_blocks": [1], "pool_grids": [[2, 5]]},
}


@pytest.mark.parametrize(
    "name, style",
    [
        *((name, "scenic") for name in VARIANTS),
        ("token", "vision_transformer"),
        ("token", "released"),
        ("december", "released"),
    ],
)
def test_npz_gives_back_every_bit(name, style, tmp_path):
    saved, fresh = randomized(**VARIANTS[name]), vit_model(**VARIANTS[name])
    checkpoint.save_npz(tmp_path / "x.npz", saved, style=style)
    rows = checkpoint.load_npz(tmp_path / "x.npz", fresh)
    assert set(outcomes(rows).values()) == {"loaded"}
    for got, wanted in zip(fresh.variables, saved.variables, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("prefix", ["opt/target/", "target/", "params/"])
def test_released_files_may_hold_more_than_parameters(prefix, tmp_path):
    saved, fresh = randomized(), vit_model()
    names = flax_names.variables(saved, "released")
    arrays = {f"{prefix}{name}": value.numpy() for name, value in names.items()}
    npz.write(tmp_path / "x.npz", arrays | {"opt/state/step": np.zeros(())})
    checkpoint.load_npz(tmp_path / "x.npz", fresh)
    for got, wanted in zip(fresh.variables, saved.variables, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_plain_vit_gets_a_token_learner(tmp_path):
    checkpoint.save_npz(tmp_path / "x.npz", randomized())
    model = vit_model(insert_before_block=1)
    with pytest.raises(ValueError, match=r"x\.npz: 6 names .*TokenLearnerModuleV11_0"):
        checkpoint.load_npz(tmp_path / "x.npz", model)
    rows = checkpoint.warm_start(
        model, path=tmp_path / "x.npz", allow_new=("*TokenLearner*",)
    )
    assert sorted(set(outcomes(rows).values())) == ["loaded", "new"]


def save_run(model, model_dir):
    """A run's checkpoint has an optimizer and more beside the model."""
    optimizer = optim.build_optimizer(0.1, ema_decay=0.9)
    optimizer.build(model.trainable_variables)
    everything = tf.train.Checkpoint(
        model=model, optimizer=optimizer, classes=tf.Variable("[]")
    )
    manager = tf.train.CheckpointManager(everything, str(model_dir), max_to_keep=2)
    return manager.save(checkpoint_number=3)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_warm_starts_the_same_model(name, tmp_path):
    saved, fresh = randomized(**VARIANTS[name]), vit_model(**VARIANTS[name])
    path = save_run(saved, tmp_path)
    rows = checkpoint.warm_start(fresh, path=path if name == "token" else tmp_path)
    assert set(outcomes(rows).values()) == {"loaded"}
    assert outcomes(rows).keys() == flax_names.variables(fresh).keys()
    for got, wanted in zip(fresh.variables, saved.variables, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", ["npz", "run"])
def test_another_size_head_and_class_token(kind, tmp_path):
    saved = randomized(image_px=12, patch_px=4, head="token", representation_size=9)
    path = tmp_path
    if kind == "npz":
        path = tmp_path / "x.npz"
        checkpoint.save_npz(path, saved, style="released")
    else:
        save_run(saved, tmp_path)
    model = vit_model(image_px=(12, 20), patch_px=4, num_classes=4)
    rows = outcomes(checkpoint.warm_start(model, path=path))
    head = "head" if kind == "npz" else "output_projection"
    assert {name: got for name, got in rows.items() if got != "loaded"} == {
        transfer.POSITION: "resized",
        f"{transfer.POSITION}[0]": "left out",
        "cls": "left out",
        "pre_logits/kernel": "left out",
        "pre_logits/bias": "left out",
        f"{head}/kernel": "replaced",
        f"{head}/bias": "replaced",
    }
    wanted = embedding.resize_position_embedding(
        saved.position.position_embedding.numpy(),
        from_grid=(3, 3),
        to_grid=(3, 5),
        num_prefix=1,
    )
    got = model.position.position_embedding
    np.testing.assert_array_equal(got, wanted[:, 1:])
    kernel = model.blocks[1].attention.out.kernel
    np.testing.assert_array_equal(kernel, saved.blocks[1].attention.out.kernel)
    np.testing.assert_array_equal(model.classifier.kernel, np.zeros([6, 4]))


T = 3  # slices of 2 frames


def vivit_model(**options):
    sizes = {
        "num_frames": 2 * T,
        "image_px": (12, 20),
        "patch_px": (3, 4),
        "hidden_size": 6,
        "num_heads": 2,
        "mlp_size": 7,
        "depth": 2,
        "num_tokens": 3,
        "temporal_depth": 1,
    }
    return vivit.build_vivit(options.pop("num_classes", 4), **sizes | options)


def save_as(kind, model, folder):
    """Writes a model as an .npz file in a style, or as a run.  -> its path"""
    if kind == "run":
        save_run(model, folder)
        return folder
    checkpoint.save_npz(folder / "x.npz", model, style=kind)
    return folder / "x.npz"


KINDS = ["run", *flax_names.STYLES]
FORMS = {
    "central": {"inflate": "central_frame"},
    "average": {"inflate": "average_frame"},
    "sampled": {"num_sampled_frames": T},
    "factorised": {"encoder_form": "factorised"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_frames_all_alike_embed_as_the_image_they_show(form, kind, tmp_path):
    image_model = randomized(head="token", insert_before_block=1, tokenizer="v1.1")
    path = save_as(kind, image_model, tmp_path)
    options = dict(FORMS[form])
    inflate = {"inflate": options.pop("inflate")} if "inflate" in options else {}
    model = vivit_model(head="token", insert_before_block=1, **options)
    rows = outcomes(checkpoint.warm_start(model, path=path, **inflate))

    image = contract.random_normal(2, 12, 20, 3)
    frames = np.repeat(image[:, None], 2 * T, axis=1)
    _, wanted = image_model(image)
    _, got = model(frames)
    for name in ("embedding", "position"):
        for slice_ in slices_of(got[name], form, name):
            np.testing.assert_allclose(slice_, wanted[name], rtol=1e-5, atol=1e-6)
    wanted_rows = {"loaded", "replaced"}
    wanted_rows |= {"factorised": {"new"}}.get(form, {"tiled"})
    wanted_rows |= set() if form == "sampled" else {"inflated"}
    assert set(rows.values()) == wanted_rows
    kernel = model.reducers["1"].hidden.kernel
    np.testing.assert_array_equal(kernel, image_model.reducers["1"].hidden.kernel)


def slices_of(x, form, name):
    """The tokens of each slice, with the class token's before the patches'."""
    if name == "embedding":
        return [x[:, t] for t in range(T)]
    if form == "factorised":
        x = tf.reshape(x, [-1, T, *x.shape[1:]])
        return [x[:, t] for t in range(T)]
    return [
        tf.concat([x[:, :1], x[:, 1 + t * 20 : 21 + t * 20]], axis=1) for t in range(T)
    ]


@pytest.mark.parametrize("kind", ["run", "scenic"])
def test_a_video_model_of_longer_and_larger_clips(kind, tmp_path):
    saved = vivit_model(head="token", image_px=(12, 12))
    contract.randomize(saved, 1)
    path = save_as(kind, saved, tmp_path)
    model = vivit_model(head="token", num_frames=10)  # 3 slices of 4x3 to 5 of 4x5
    rows = checkpoint.warm_start(model, path=path, from_grid=(4, 3))
    changed = {n: o for n, o in outcomes(rows).items() if o != "loaded"}
    assert changed == {transfer.POSITION: "resized"}
    old = saved.position.position_embedding.numpy()[0]
    new = model.position.position_embedding.numpy()[0]
    np.testing.assert_array_equal(new[0], old[0])
    old, new = old[1:].reshape(3, 4, 3, 6), new[1:].reshape(5, 4, 5, 6)
    np.testing.assert_allclose(new[::2, :, ::2], old, rtol=1e-6)
    np.testing.assert_allclose(
        new[1, :, ::2], (old[0] + old[1]) / 2, rtol=1e-5, atol=1e-7
    )


def test_fusers_of_an_image_model_fit_a_slice(tmp_path):
    checkpoint.save_npz(tmp_path / "x.npz", randomized(**FUSER))
    model = vivit_model(num_classes=5, **FUSER)
    rows = outcomes(checkpoint.warm_start(model, path=tmp_path / "x.npz"))
    assert set(rows.values()) == {"inflated", "tiled", "loaded"}
    joint = vivit_model(num_classes=5, fuser_mixing="joint", **FUSER)
    with pytest.raises(ValueError, match=r"TokenFuser_0/Dense_0/kernel \(3x3 in the"):
        checkpoint.warm_start(joint, path=tmp_path / "x.npz")


def test_inflation_is_a_choice_of_two(tmp_path):
    checkpoint.save_npz(tmp_path / "x.npz", randomized())
    with pytest.raises(ValueError, match="warm_start.inflate must be one of"):
        checkpoint.warm_start(vivit_model(), path=tmp_path / "x.npz", inflate="mean")


def test_a_longer_run_does_not_fit_unless_allowed(tmp_path):
    save_run(randomized(depth=3), tmp_path)
    model = vit_model()
    with pytest.raises(ValueError, match=r"ckpt-3: 16 names .*blocks/2/"):
        checkpoint.warm_start(model, path=tmp_path)
    rows = checkpoint.warm_start(model, path=tmp_path, allow_unused=("blocks/2/*",))
    assert list(outcomes(rows).values()).count("unused") == 16


def test_a_model_without_flax_names_warm_starts_by_its_keys(tmp_path):
    trained, manager = make(tmp_path)
    trained.train(tf.constant(1))
    manager.save(checkpoint_number=1)
    fresh, _ = make(tmp_path / "other")
    rows = checkpoint.warm_start(fresh.model, path=tmp_path)
    assert set(outcomes(rows).values()) == {"loaded"}
    np.testing.assert_array_equal(fresh.model.kernel, trained.model.kernel)
    with pytest.raises(ValueError, match="ToyModel has none. Known: ViT"):
        checkpoint.save_npz(tmp_path / "x.npz", fresh.model)


def test_warm_start_without_a_path_does_nothing():
    assert checkpoint.warm_start(vit_model()) == []


def test_warm_start_wants_a_checkpoint(tmp_path):
    for path in (tmp_path, tmp_path / "missing", str(tmp_path / "ckpt-7")):
        with pytest.raises(ValueError, match="there is no checkpoint. Set warm_start"):
            checkpoint.warm_start(vit_model(), path=path)
    with pytest.raises(ValueError, match="x.npz: wanted an .npz file of arrays"):
        checkpoint.warm_start(vit_model(), path=tmp_path / "x.npz")


def test_a_diverged_model_is_not_saved(tmp_path):
    model = vit_model()
    model.norm.gamma.assign(np.full([6], np.nan))
    with pytest.raises(ValueError, match="Transformer/encoder_norm/scale holds values"):
        checkpoint.save_npz(tmp_path / "x.npz", model)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_found_by_its_name(tmp_path):
    loop, manager = make(tmp_path)
    for step in (1, 2):
        loop.train(tf.constant(1))
        manager.save(checkpoint_number=step)
    assert checkpoint.find(tmp_path).name == "ckpt-2"
    assert checkpoint.find(tmp_path, "ckpt-1") == tmp_path / "ckpt-1"
    with pytest.raises(
        ValueError, match="ckpt-7: wanted newest, best or one of .*ckpt"
    ):
        checkpoint.find(tmp_path, "ckpt-7")
    with pytest.raises(ValueError, match="there is no best checkpoint. Train with"):
        checkpoint.find(tmp_path, "best")
    (tmp_path / "ckpt-1.index").unlink()
    with pytest.raises(ValueError, match="damaged: ckpt-1.index is missing"):
        checkpoint.find(tmp_path, "ckpt-1")
