"""Traces: the same numbers as the function, for other values too; and nothing heavy is imported for them."""

import shutil
import subprocess
import sys

import pytest
import torch

from atomzoo.inference.tracing import trace


def given(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)


def printed(code):
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def with_gradient(function):
    """Value and gradient of a sum, as a density asks for them."""

    def both(x, *rest):
        with torch.enable_grad():
            points = x.detach().requires_grad_()
            value = function(points, *rest)
            (gradient,) = torch.autograd.grad(value.sum(), points)
        return value.detach(), gradient

    return both


OFFSET = torch.linspace(-1, 1, 3, dtype=torch.float64)


def saved_outputs(x, y):
    return (torch.tanh(x) * torch.exp(y) + torch.sigmoid(x) + torch.sqrt(x**2 + 1)).sum(-1)


def constants(x, y):
    table = torch.cumsum(OFFSET.exp(), 0) + torch.arange(3)
    return torch.logsumexp(x * table + y, -1) + torch.logsumexp(x * table + y, -1)


def in_place(x, y):
    out = torch.zeros_like(x)
    out += x * y
    out[..., 0] = x[..., 1].exp()
    return out.sum(-1)


def views(x, y):
    a, b, _ = x.unbind(-1)
    return (x[..., :2].flip(-1) @ y[:2, :2]).sum(-1) + torch.stack([a, b], -1).prod(-1) * x.mT[0]


def batched(x, y):
    return torch.func.vmap(lambda row: (row * y).cumsum(-1).max())(x)


@pytest.mark.parametrize("function", [saved_outputs, constants, in_place, views, batched])
def test_a_trace_gives_the_functions_value_and_gradient_at_other_points(function):
    both = with_gradient(function)
    shape = (3, 3) if function is views else (3,)
    traced = trace(both, given((5, 3), shape))
    for seed in (1, 2):
        values = given((5, 3), shape, seed=seed)
        for found, expected in zip(traced(*values), both(*values), strict=True):
            torch.testing.assert_close(found, expected)


def test_a_function_that_asks_for_a_value_is_refused():
    with pytest.raises(RuntimeError, match="data-dependent control flow"):
        trace(lambda x: (x, x if x.sum() > 0 else -x), given((3,)))


def test_a_fit_imports_no_compiler():
    """Dynamo and Inductor take longer to import than a fit takes."""
    code = (
        "import sys, atomzoo; wall = atomzoo.simulate('wall_second_order', seed=1)\n"
        "run = atomzoo.fit('wall_second_order', wall, runner='laplace', predictive=0)\n"
        "assert run.attrs['density_path'] == 'traced', run.attrs\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])"
    )
    assert printed(code) == "[]"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="Torch's compiler needs a C++ compiler")
def test_a_fused_trace_gives_the_same():
    code = (
        "import atomzoo, torch; from atomzoo.inference.fit import make_density\n"
        "wall = atomzoo.simulate('wall_second_order', seed=1)\n"
        "plain, fused = (make_density('wall_second_order', wall, fuse=f) for f in (False, True))\n"
        "z = plain.initial(70, 0)\n"
        "pairs = zip(plain.gradient(z), fused.gradient(z))\n"
        "same = all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in pairs)\n"
        "print(plain.path, fused.path, same)"
    )
    assert printed(code) == "traced fused True"
