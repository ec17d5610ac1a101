"""What each text does to the params when it is learned, and to what is said of another.

Three measures, each a product of the error e, the gradient of a text's loss at its logits:

    EL2N |e|        GraNd |Jᵀ e|, by the tangent kernel K = J Jᵀ        TracIn of the last layer (x · x′)(e · e′)

J is the Jacobian of the logits by the params, and x the input of the last layer. Neither needs a label, so that K and x
are functions for the engine; labels come in with the errors.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from flaxsent import models
from flaxsent.base import Params, ProblemType, Tokens
from flaxsent.losses import losses

Logits = Callable[[Params, Tokens, int], Float[Array, "R S C"]]


def gradients(logits: Logits, *, problem_type: ProblemType) -> Callable[..., Params]:
    """`of_each(params, tokens, num_segments, labels)`: the gradient of each text's loss, `[R, S, ...]` of the params.

    It takes the memory of the params for each text; `tangent_kernel` takes that of a few. Labels are those of
    `losses.losses`, `[R, S]` or for multi-label `[R, S, C]`.

    Raises:
        FlaxsentError: the params are in int8, when it is called.

    >>> def logits(params, tokens, num_segments):
    ...     return tokens.input_ids[..., None] @ params["kernel"]
    >>> tokens = Tokens(*[jnp.array([[1.0, 2.0]])] * 4)  # a text a token, and a label of 3 for each
    >>> of_each = gradients(logits, problem_type="regression")
    >>> of_each({"kernel": jnp.ones((1, 1))}, tokens, 2, jnp.full((1, 2), 3.0))["kernel"].tolist()
    [[[[-4.0]], [[-4.0]]]]
    """

    def of_each(params: Params, tokens: Tokens, num_segments: int, labels: Shaped[Array, "R *S_or_S_C"]) -> Params:
        def row(tokens_T: Tokens, labels_S: Shaped[Array, "*S_or_S_C"]) -> Params:
            return jax.jacrev(lambda params: losses(of_row(params, tokens_T), labels_S, problem_type=problem_type))(
                params
            )

        models.check_floats(params)
        of_row = _by_row(logits, num_segments)
        return jax.vmap(row)(tokens, labels)

    return of_each


def tangent_kernel(logits: Logits) -> Callable[[Params, Tokens, int], Float[Array, "R S C C"]]:
    """K = J Jᵀ of each text, J the Jacobian of its logits by the params (Jacot et al. 2018): for `grand`.

    One text after another: a Jacobian is C times as large as the params. Padded rows are faster: in a packed one, each
    text takes a backward pass of the whole row.

    Raises: as `gradients`.
    """

    def of_each(params: Params, tokens: Tokens, num_segments: int) -> Float[Array, "R S C C"]:
        def row(tokens_T: Tokens) -> Float[Array, "S C C"]:
            logits_SC, pull = jax.vjp(lambda params: _by_row(logits, num_segments)(params, tokens_T), params)

            def of_text(is_of_S: Float[Array, " S"]) -> Float[Array, "C C"]:
                each = jax.vmap(lambda is_of_C: pull(is_of_S[:, None] * is_of_C[None]))
                (jacobian,) = each(jnp.eye(logits_SC.shape[1], dtype=logits_SC.dtype))
                flat = [leaf.reshape(leaf.shape[0], -1).astype(jnp.float32) for leaf in jax.tree.leaves(jacobian)]
                products = [jnp.matmul(leaf, leaf.T, precision="highest") for leaf in flat]
                return jnp.sum(jnp.stack(products), axis=0)

            return jax.lax.map(of_text, jnp.eye(num_segments, dtype=logits_SC.dtype))

        models.check_floats(params)
        return jax.lax.map(row, tokens)

    return of_each


def last_inputs(logits: Logits) -> Callable[[Params, Tokens, int], Float[Array, "R S D"]]:
    """What the last layer reads of each text, in float32, with a 1 for its bias: for `influence`.

    It is the gradient of a logit by the layer, so that no family has to say where its head has it.
    """

    def of_each(params: Params, tokens: Tokens, num_segments: int) -> Float[Array, "R S D"]:
        def row(tokens_T: Tokens) -> Float[Array, "S D"]:
            def first_logit(last: Params) -> Float[Array, " S"]:
                return _by_row(logits, num_segments)(models.with_last_layer(params, last), tokens_T)[:, 0]

            last = jax.jacrev(first_logit)(dict(models.last_layer(params)))
            columns = [last["kernel"][:, :, 0], *([last["bias"][:, :1]] if "bias" in last else [])]
            return jnp.concatenate(columns, axis=-1).astype(jnp.float32)

        return jax.vmap(row)(tokens)

    return of_each


def _by_row(logits: Logits, num_segments: int) -> Callable[[Params, Tokens], Float[Array, "S C"]]:
    return lambda params, tokens_T: logits(params, jax.tree.map(lambda leaf: leaf[None], tokens_T), num_segments)[0]


def errors(
    logits: Float[Array, "*texts C"], labels: Shaped[Array, "*texts_or_C"], *, problem_type: ProblemType
) -> Float[Array, "*texts C"]:
    """e, the gradient of each text's loss at its logits: p − y for one label of several.

    >>> errors(jnp.zeros((1, 2)), jnp.array([1]), problem_type="single_label_classification").tolist()
    [[0.5, -0.5]]
    """
    return jax.grad(lambda logits: jnp.sum(losses(logits, labels, problem_type=problem_type)))(logits)


def el2n(errors: Float[Array, "*texts C"]) -> Float[Array, "*texts"]:
    """The length of the error: of one label of several, the EL2N score of Paul et al. 2021.

    They take its mean over several runs, early in training; texts that score low can be left out.

    >>> el2n(jnp.array([[0.6, -0.8]])).tolist()
    [1.0]
    """
    return jnp.linalg.norm(errors, axis=-1)


def grand(kernel: Float[Array, "*texts C C"], errors: Float[Array, "*texts C"]) -> Float[Array, "*texts"]:
    """The length of the gradient of each text's loss, by `tangent_kernel`: the GraNd score of Paul et al. 2021."""
    square = jnp.einsum("...c,...cd,...d->...", errors, kernel, errors, precision="highest")
    return jnp.sqrt(jnp.maximum(square, 0))


def influence(
    train: tuple[Float[Array, "B D"], Float[Array, "B C"]], dev: tuple[Float[Array, "Q D"], Float[Array, "Q C"]]
) -> Float[Array, "B Q"]:
    """How much a step on each train text lowers the loss of each dev text, for a learning rate of 1, to first order.

    Both are `last_inputs` and `errors`. The gradient of the last layer is x eᵀ, so that the product of two of them is
    (x · x′)(e · e′): TracIn (Pruthi et al. 2020) of that layer, at one checkpoint; over several it is the sum.

    >>> x, e = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, -0.5]])
    >>> influence((x, e), (x, e)).tolist(), float(jnp.sum(jnp.outer(x, e) ** 2))
    ([[2.5]], 2.5)
    """
    inputs, errors = (jnp.matmul(one, other.T, precision="highest") for one, other in zip(train, dev, strict=True))
    return inputs * errors
