"""What a TPU wants of every recipe, as far as a CPU can tell: XLA compiles the steps.

That refuses strings, JPEG decoding, Python functions, prints and lookup tables.  Shapes
that depend on the data it lets pass: they show as bounded dimensions, `<=`, in the HLO.
"""

import orbit
import pytest
import tensorflow as tf

from tests import tiny
from tl_tf import experiment

DTYPES = (tf.uint8, tf.float32, tf.int32)  # a TPU takes no strings, and no int64 well
BOUNDED = "<="
IN_CI = (
    tiny.QUICKSTART,
    "gin/cifar10_vit_tl.gin",
    "gin/kinetics400_vivit_l16_tl16_12.gin",
)
RECIPES = [
    pytest.param(recipe, marks=[] if recipe in IN_CI else pytest.mark.slow)
    for recipe in dict.fromkeys([*IN_CI, *tiny.distinct_recipes()])
]


class Composed(Exception):
    """A mode has put its loops together; they are not run."""


@pytest.fixture
def loops(monkeypatch, tmp_path, tiny_data):
    """A recipe's trainer and evaluator, as run.py would have run them."""

    def compose(recipe):
        found = {}

        def controller(**arguments):
            found.update(arguments)
            raise Composed

        monkeypatch.setattr(orbit, "Controller", controller)
        tiny.load(recipe)
        arguments = {"model_dir": tmp_path, "data_dir": tiny_data, "tpu": None}
        with pytest.raises(Composed):
            experiment.run("train_and_eval", **arguments)
        return found["trainer"], found["evaluator"]

    return compose


def hlo_of(step, *specs) -> str:
    """Compiles a replica's step and returns its HLO before any optimisation."""
    compiled = tf.function(step, jit_compile=True, autograph=False)
    arguments = [tf.zeros(spec.shape, spec.dtype) for spec in specs]
    compiler_ir = compiled.experimental_get_compiler_ir(*arguments)
    assert compiler_ir(stage="optimized_hlo", platform_name="CPU")
    return compiler_ir(stage="hlo", platform_name="CPU")


def check_spec(element_spec):
    for name, spec in element_spec.items():
        assert spec.shape.is_fully_defined(), name
        assert spec.dtype in DTYPES, name


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_steps_of_a_recipe_compile_with_static_shapes(recipe, loops):
    trainer, evaluator = loops(recipe)
    batch = trainer.iterator.element_spec
    check_spec(batch)
    hlo = hlo_of(trainer.replica_step, batch["pixels"], batch["labels"])
    assert "ENTRY" in hlo
    assert BOUNDED not in hlo
    batch = evaluator._data.batches.element_spec
    check_spec(batch)
    shape = batch["pixels"].shape
    view = tf.TensorSpec([shape[0], *shape[2:]], tf.uint8)
    hlo = hlo_of(evaluator.replica_step, view)
    assert "ENTRY" in hlo
    assert BOUNDED not in hlo


def test_what_a_tpu_cannot_have_is_found():
    spec = tf.TensorSpec([7], tf.float32)
    assert BOUNDED in hlo_of(lambda x: tf.boolean_mask(x, x > 0), spec)
    with pytest.raises(ValueError, match="AsString"):
        hlo_of(lambda x: tf.strings.length(tf.strings.as_string(x)), spec)
