"""What is not traced is evaluated as it is written, and the run says so and why; what cannot be is refused by name."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import toys
from torch.nn.functional import conv1d

from atomzoo.inference.fit import fit, make_density
from atomzoo.models.model import model, observe, sample
from atomzoo.models.priors import ModelError

BLUR = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
ENTRIES = 6
PRIOR = {"x": f"Normal(0, 1).expand([{ENTRIES}]).to_event(1)"}


def seen():
    return toys.numbers(np.random.default_rng(0).normal(size=(15, ENTRIES - 2)))


def registered(story):
    return model(kind="table", priors={"any": PRIOR}, unit=("row",), design=seen)(story)


@registered
def blurred(table, prior):
    """The rows are a latent vector, blurred by a sum of its shifted selves."""
    x = sample("x", prior.x)
    parts = [w * x[..., i : ENTRIES - 2 + i] for i, w in enumerate(BLUR)]
    observe("value", dist.Normal(sum(parts), 1.0))


@registered
def convolved(table, prior):
    """The same by a convolution, whose gradient TorchScript cannot write down."""
    x = sample("x", prior.x)
    observe("value", dist.Normal(conv1d(x[None, None], BLUR[None, None])[0, 0], 1.0))


@registered
def by_the_data(table, prior):
    """The same, with a branch on what was seen."""
    x = sample("x", prior.x)
    if table.value.std() > 1e-6:
        x = x.unfold(0, 3, 1) @ BLUR
    observe("value", dist.Normal(x, 1.0))


@registered
def checking(table, prior):
    """The same, with distributions that look at every value."""
    mean = sample("x", prior.x).unfold(0, 3, 1) @ BLUR
    observe("value", dist.Normal(mean, 1.0, validate_args=True))


REASONS = {
    convolved: "unsupported argument type in the JIT tracer",
    by_the_data: "data-dependent control flow",
    checking: "data-dependent control flow",
}


@pytest.mark.parametrize("runner", ["laplace", "ensemble", "nuts"])
def test_a_run_says_that_its_density_was_traced(runner):
    few = {"laplace": {}, "ensemble": {"ess": 1}, "nuts": {"draws": 2, "warmup": 2, "chains": 1}}
    run = fit(blurred, seen(), runner=runner, predictive=0, **few[runner])
    assert run.attrs["density_path"] == "traced"


@pytest.mark.parametrize(("story", "reason"), REASONS.items(), ids=lambda s: getattr(s, "name", ""))
def test_a_run_says_why_its_density_was_not_traced_and_gives_the_same_answer(story, reason):
    run, traced = (fit(m, seen(), runner="laplace", predictive=0) for m in (story, blurred))
    path = run.attrs["density_path"]
    assert path.startswith("eager: ")
    assert reason in path
    np.testing.assert_allclose(run["posterior"]["x"], traced["posterior"]["x"], rtol=1e-6)
    z = torch.randn(3, ENTRIES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = make_density(blurred, seen()).gradient(z)
    torch.testing.assert_close(make_density(story, seen()).gradient(z), expected)


def test_a_story_that_is_another_each_time_is_not_traced():
    told = []

    @registered
    def fickle(table, prior):
        """Its noise hangs on how often it was told."""
        told.append(1)
        observe("value", dist.Normal(sample("x", prior.x)[..., 2:], 1.0 + len(told)))

    density = make_density(fickle, seen())
    density.gradient(density.initial(1, seed=0))
    assert density.path == "eager: the trace does not agree, the model branches on values"


class Square(torch.autograd.Function):
    """Without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda x: x if x[0] > 0 else -x, "data-dependent control flow"),
        (lambda x: x * float(x[0]), r"\.item\(\)"),
        (lambda x: x[x > 0], "dynamic shape"),
        (lambda x: x + torch.as_tensor(np.sin(x.numpy())), "data pointer"),
        (lambda x: x + torch.randn(ENTRIES), "random operation"),
        (Square.apply, "setup_context"),
    ],
    ids=["branch", "number", "choice", "numpy", "chance", "function"],
)
def test_a_story_for_one_point_at_a_time_is_refused_with_the_reason(turn, words):
    @registered
    def single(table, prior):
        """What it does to its latent cannot be done for many at once."""
        mean = turn(sample("x", prior.x)).sum()
        observe("value", dist.Normal(mean, 1.0))

    with (
        pytest.raises(ModelError, match=f"single .*{words}.*torch.where"),
        pyro.validation_enabled(),
    ):
        make_density(single, seen())
