import gin
import pytest

from tl_tf import config


@pytest.fixture
def recipe(tmp_path):
    def write(text: str, name: str = "r.gin") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_model_garden_makes_no_name_ambiguous(tmp_path):
    with config.registers_nothing():
        import official.modeling.optimization  # noqa: F401
    recipe = tmp_path / "recipe.gin"
    recipe.write_text("import tl_tf.optim\nbuild_optimizer.momentum = 0.8\n")
    config.load([str(recipe)], [])
    assert gin.query_parameter("build_optimizer.momentum") == 0.8


def test_a_good_recipe_passes(recipe):
    config.check([recipe("STEPS = 3\ntrain.total_steps = %STEPS\n")], [])


def test_bindings_may_set_what_a_recipe_refers_to(recipe):
    path = recipe("train.total_steps = %STEPS\n")
    config.check([path], ["STEPS = 3"])
    with pytest.raises(config.ConfigError, match=r"line 1: %STEPS is not set"):
        config.check([path], [])


@pytest.mark.parametrize(
    "text, message",
    [
        ("\ntrain.totalsteps = 1", r"line 2: train has no .*mean 'total_steps'\?"),
        ("trian.total_steps = 1", r"no configurable function 'trian'.*mean 'train'\?"),
        ("x/trian.total_steps = 1", "no configurable function 'trian'"),
        ("train.build_model = @build_x3d", "no configurable function 'build_x3d'"),
        ("STEPS = 3", "STEPS is set, but nothing refers to %STEPS"),
        ("steps = 3", "'steps' is neither function.parameter nor a macro"),
        ("train.total_steps = ", "cannot be read as gin"),
        ("train.total_steps = [1, 2", "cannot be read as gin"),
        ("include 'gin/nothing.gin'", r"line 1: gin/nothing.gin: no such gin file"),
    ],
)
def test_mistakes_are_named(recipe, text, message):
    with pytest.raises(config.ConfigError, match=message):
        config.check([recipe(text)], [])


def test_a_file_that_includes_itself_is_named(recipe, tmp_path):
    path = recipe(f"include '{tmp_path}/r.gin'\n")
    with pytest.raises(config.ConfigError, match="includes itself"):
        config.check([path], [])


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "r.gin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(config.ConfigError, match="cannot be read as text"):
        config.check([str(path)], [])


def test_unused_bindings_are_found_by_scope_and_name():
    @gin.configurable("config_test_function", module="tests")
    def function(a=1, b=2, c=3):
        return a, b, c

    gin.parse_config(
        [
            "config_test_function.a = 4",
            "left/config_test_function.b = 5",
            "right/config_test_function.b = 6",
            "config_test_function.c = 7",
        ]
    )
    with gin.config_scope("left"):
        assert function(c=0) == (4, 5, 0)
    assert sorted(config.unused(lambda name: True)) == [
        "config_test_function.c",
        "right/config_test_function.b",
    ]
    assert config.unused(lambda name: not name.startswith("right/")) == [
        "config_test_function.c"
    ]


@pytest.mark.parametrize(
    "text, wanted",
    [
        (f"include '{'x' * 5000}.gin'", "no such gin file"),
        ("SEED = " + "[" * 5000, "cannot be read as gin"),
        ("SEED = " + "(" * 100 + ")" * 100, "cannot be read as gin|macro|SEED"),
        ("#" * 2_000_000, "more than 1,000,000 characters"),
    ],
    ids=["long name", "open brackets", "deep brackets", "large"],
)
def test_a_hostile_file_is_one_sentence(tmp_path, text, wanted):
    path = tmp_path / "x.gin"
    path.write_text(text)
    with pytest.raises(config.ConfigError, match=wanted):
        config.check([str(path)], [])
