"""TokenLearner and TokenFuser (Section 2): from a grid to learned tokens and back.

Every TokenLearner works on single frames and returns `(learned tokens, token maps)`,
the maps in the layout of its input. Callers fold time into the batch.
"""

import tensorflow as tf
import tf_keras

from tl_tf.layers import attention

POOLINGS = ("sum", "mean")
MIXINGS = ("joint", "per_frame", "per_token")
BETAS = ("linear", "mlp", "conv")


def check_num_tokens(name: str, num_tokens: int) -> None:
    """Raises a ValueError for no token; name is the layer's."""
    if num_tokens < 1:
        raise ValueError(f"{name}: num_tokens must be >= 1, got {num_tokens}.")


def check_choice(name: str, argument: str, value: str, choices: tuple) -> None:
    """Raises a ValueError for a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: {argument} must be one of {choices}, got {value!r}.")


def _sigmoid_pool(
    scores: tf.Tensor, x: tf.Tensor, *, pooling: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pools x [B, H, W, C] by the sigmoid of scores [B, H, W, S]; maps are float32."""
    maps = tf.nn.sigmoid(attention.at_least_float32(scores))  # [B, H, W, S]
    tokens = tf.einsum("bhws,bhwc->bsc", tf.cast(maps, x.dtype), x)  # [B, S, C]
    if pooling == "mean":
        tokens /= x.shape[1] * x.shape[2]
    return tokens, maps


class TokenLearner(tf_keras.layers.Layer):
    """Version 1.0: pools the grid by the sigmoid of four convolutions.

    The maps come from the normalised input; what is pooled is the un-normalised one.

    Shapes: x [B, H, W, C] -> [B, S, C], [B, H, W, S]
    Source: Section 2.1, equation 1; the convolutions as in the authors' code.
    Differs: the text's rho is an average; the authors' code sums, and so do we.
    Args:
      num_tokens: S, at least 1.
      pooling: "sum" or "mean" over the H * W cells.
    Raises:
      ValueError: num_tokens or pooling is out of range.
    """

    def __init__(self, num_tokens: int, pooling: str = "sum", **kwargs):
        super().__init__(**kwargs)
        check_num_tokens(self.name, num_tokens)
        check_choice(self.name, "pooling", pooling, POOLINGS)
        self.num_tokens = num_tokens
        self.pooling = pooling
        self.norm = attention.layer_norm("norm")
        self.convs = [
            tf_keras.layers.Conv2D(
                num_tokens,
                kernel_size=3,
                padding="same",
                use_bias=False,
                activation=attention.gelu if i < 3 else None,
                kernel_initializer="lecun_normal",  # Flax's default
                name=f"conv_{i}",
            )
            for i in range(4)
        ]

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the learned tokens and the token maps."""
        tf.debugging.assert_shapes([(x, ("B", "H", "W", "C"))], message=self.name)
        scores = self.norm(x)
        for conv in self.convs:
            scores = conv(scores)  # [B, H, W, S]
        return _sigmoid_pool(scores, x, pooling=self.pooling)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_tokens": self.num_tokens,
            "pooling": self.pooling,
        }


class TokenLearnerV11(tf_keras.layers.Layer):
    """Version 1.1: each learned token is a convex combination of the patch tokens.

    Shapes: x [B, N, C] -> [B, S, C], [B, N, S]
    Source: Section 2.1, the MLP form; softmax over positions as in the authors' code.
    Args:
      num_tokens: S, at least 1.
      hidden_size: width of the MLP.
    Raises:
      ValueError: num_tokens is out of range.
    """

    def __init__(self, num_tokens: int, hidden_size: int = 64, **kwargs):
        super().__init__(**kwargs)
        check_num_tokens(self.name, num_tokens)
        self.num_tokens = num_tokens
        self.hidden_size = hidden_size
        self.norm = attention.layer_norm("norm")
        self.hidden = tf_keras.layers.Dense(
            hidden_size, activation=attention.gelu, name="hidden"
        )
        self.scores = tf_keras.layers.Dense(num_tokens, name="scores")

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the learned tokens and the token maps."""
        tf.debugging.assert_shapes([(x, ("B", "N", "C"))], message=self.name)
        scores = self.scores(self.hidden(self.norm(x)))  # [B, N, S]
        # Sums to 1 over N for every learned token.
        maps = tf.nn.softmax(attention.at_least_float32(scores), axis=1)  # [B, N, S]
        tokens = tf.einsum("bns,bnc->bsc", tf.cast(maps, x.dtype), x)  # [B, S, C]
        return tokens, maps

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_tokens": self.num_tokens,
            "hidden_size": self.hidden_size,
        }


class BottleneckTokenLearner(tf_keras.layers.Layer):
    """The form inside a bottleneck block: pools by the sigmoid of one convolution.

    Shapes: x [B, H, W, C] -> [B, S, C], [B, H, W, S]
    Source: Section 6.1 ("a single conv2d layer"), equation 1 with its average pooling.
      The average also keeps the scale of the tokens when training has 7x7 cells and
      testing 8x8.
    Differs: use_projection pools a 1x1 convolution of x instead of x. The text has
      none; the printed costs of Table XII fit only with it.
    Args:
      num_tokens: S, at least 1.
      pooling: "mean" or "sum" over the H * W cells.
      use_projection: puts a bias-free 1x1 C -> C convolution before the pooling.
    Raises:
      ValueError: num_tokens or pooling is out of range.
    """

    def __init__(
        self,
        num_tokens: int,
        pooling: str = "mean",
        *,
        use_projection: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_num_tokens(self.name, num_tokens)
        check_choice(self.name, "pooling", pooling, POOLINGS)
        self.num_tokens = num_tokens
        self.pooling = pooling
        self.use_projection = use_projection
        self.scores = tf_keras.layers.Conv2D(
            num_tokens, kernel_size=3, padding="same", name="scores"
        )

    def build(self, input_shape) -> None:
        """Creates the projection, which is as wide as the input."""
        if self.use_projection:
            self.projection = tf_keras.layers.Conv2D(
                input_shape[-1], kernel_size=1, use_bias=False, name="projection"
            )
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the learned tokens and the token maps."""
        tf.debugging.assert_shapes([(x, ("B", "H", "W", "C"))], message=self.name)
        scores = self.scores(x)  # [B, H, W, S]
        if self.use_projection:
            x = self.projection(x)
        return _sigmoid_pool(scores, x, pooling=self.pooling)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_tokens": self.num_tokens,
            "pooling": self.pooling,
            "use_projection": self.use_projection,
        }


def _masked(y: tf.Tensor, keep: tf.Tensor | None) -> tf.Tensor:
    """Tokens y [B, T, S, C], those that `keep` [B, S] drops set to zero."""
    return y if keep is None else y * tf.cast(keep, y.dtype)[:, None, :, None]


class TokenFuser(tf_keras.layers.Layer):
    """Mixes the processed tokens y and writes them back onto the grid x.

    Shapes: y [B, T, S, C], x [B, T, N, C] -> [B, T, N, C]
    Source: Section 2.2, equation 2. The defaults are the text's: M over all S * T
      tokens, beta a linear layer, x added.
    Differs: the authors' image code is mixing="per_frame", use_norm=True,
      zero_init=True, beta="mlp" ("conv" in their release of December 2021, which is
      what Table V's costs fit) and use_residual=False, because its encoder adds x.
      mixing="per_token" is nobody's text: S matrices of T x T fit Table XII's costs.
    Args:
      mixing: "joint" (one [S*T, S*T] matrix), "per_frame" ([S, S] and a bias) or
        "per_token" (a [T, T] matrix for each of the S tokens).
      beta: "linear" (of x), "mlp" (of LayerNorm(x)) or "conv" (bias-free linear of
        LayerNorm(x)), each followed by a sigmoid.
      use_norm: puts a LayerNorm before and after the mixing.
      zero_init: starts M at zero, so that the fused tokens start as a constant.
      use_residual: adds x.
      hidden_size: width of beta's MLP.
    Raises:
      ValueError: mixing or beta is unknown; T or S is not static.
    """

    def __init__(
        self,
        mixing: str = "joint",
        beta: str = "linear",
        *,
        use_norm: bool = False,
        zero_init: bool = False,
        use_residual: bool = True,
        hidden_size: int = 64,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice(self.name, "mixing", mixing, MIXINGS)
        check_choice(self.name, "beta", beta, BETAS)
        self.mixing = mixing
        self.beta_form = beta
        self.use_norm = use_norm
        self.zero_init = zero_init
        self.use_residual = use_residual
        self.hidden_size = hidden_size

    def build(self, input_shape) -> None:
        """Creates M for the T and S of y."""
        _, t, s, _ = input_shape
        if t is None or s is None:
            raise ValueError(f"{self.name}: y needs static T and S, got {input_shape}.")
        self.num_tokens = s
        shape = {"joint": (s * t, s * t), "per_frame": (s, s), "per_token": (s, t, t)}
        # Keras takes the leading axis of [S, T, T] for a receptive field and would make
        # the values sqrt(S) too small.
        scale = s if self.mixing == "per_token" else 1
        glorot = tf_keras.initializers.VarianceScaling(
            scale=scale, mode="fan_avg", distribution="uniform"
        )
        self.mix = self.add_weight(
            name="mix",
            shape=shape[self.mixing],
            initializer="zeros" if self.zero_init else glorot,
        )
        if self.mixing == "per_frame":
            self.mix_bias = self.add_weight(
                name="mix_bias", shape=(s,), initializer="zeros"
            )
        if self.use_norm:
            self.norm_before_mix = attention.layer_norm("norm_before_mix")
            self.norm_after_mix = attention.layer_norm("norm_after_mix")
        if self.beta_form != "linear":
            self.beta_norm = attention.layer_norm("beta_norm")
        if self.beta_form == "mlp":
            self.beta_hidden = tf_keras.layers.Dense(
                self.hidden_size, activation=attention.gelu, name="beta_hidden"
            )
        self.beta = tf_keras.layers.Dense(
            s, use_bias=self.beta_form != "conv", name="beta"
        )
        super().build(input_shape)

    def call(
        self, y: tf.Tensor, x: tf.Tensor, keep: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the grid with the tokens written onto it.

        Args:
          y: may hold only the first tokens of those that the layer was built for.
          x: the grid.
          keep: [B, S], 0 for a token that is to be as good as not there.
        """
        tf.debugging.assert_shapes(
            [(y, ("B", "T", "S", "C")), (x, ("B", "T", "N", "C"))], message=self.name
        )
        x = tf.cast(x, y.dtype)  # a Keras policy casts the first argument only
        if self.use_norm:
            y = self.norm_before_mix(y)
        y = self._mix(_masked(y, keep))  # [B, T, S, C]
        if self.use_norm:
            y = self.norm_after_mix(y)
        y = _masked(y, keep)
        beta = self._beta(x, num_tokens=y.shape[2])  # [B, T, N, S]
        fused = tf.einsum("btns,btsc->btnc", beta, y)  # [B, T, N, C]
        return x + fused if self.use_residual else fused

    def _mix(self, y: tf.Tensor) -> tf.Tensor:
        _, t, s, c = y.shape
        m = tf.cast(self.mix, y.dtype)
        if self.mixing == "per_frame":
            bias = tf.cast(self.mix_bias, y.dtype)[:s, None]  # [S, 1]
            return tf.einsum("btsc,sr->btrc", y, m[:s, :s]) + bias
        if self.mixing == "per_token":
            return tf.einsum("btsc,stu->busc", y, m[:s])
        if s < self.num_tokens:
            m = tf.reshape(m, [t, self.num_tokens] * 2)[:, :s, :, :s]
            m = tf.reshape(m, [t * s, t * s])
        y = tf.reshape(y, [-1, t * s, c])  # [B, T*S, C]
        y = tf.einsum("bmc,mn->bnc", y, m)  # (Y^T M)^T
        return tf.reshape(y, [-1, t, s, c])  # [B, T, S, C]

    def _beta(self, x: tf.Tensor, *, num_tokens: int) -> tf.Tensor:
        scores = x
        if self.beta_form != "linear":
            scores = self.beta_norm(scores)
        if self.beta_form == "mlp":
            scores = self.beta_hidden(scores)
        scores = attention.at_least_float32(self.beta(scores))[..., :num_tokens]
        return tf.cast(tf.nn.sigmoid(scores), x.dtype)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "mixing": self.mixing,
            "beta": self.beta_form,
            "use_norm": self.use_norm,
            "zero_init": self.zero_init,
            "use_residual": self.use_residual,
            "hidden_size": self.hidden_size,
        }
