"""Where a model is worked out. No machine that tests run on has another device than the processor, but Torch's `meta`
device, which has shapes and no numbers, tells as well what is not where it should be.
"""

import pytest
import torch
import toys

from atomzoo.inference import density as module
from atomzoo.inference.fit import fit, make_density
from atomzoo.inference.lifting import lift
from atomzoo.models.model import View, models
from atomzoo.models.priors import ModelError

OWN = [m for m in models() if m.story.__module__.startswith("atomzoo.models.")]
STORIES = [m for m in OWN if not m.processor]


@pytest.mark.parametrize("story", STORIES, ids=lambda model: model.name)
def test_all_that_a_story_makes_is_on_its_device(monkeypatch, story):
    assert story.design is not None
    density = make_density(story, story.design())
    z = density.initial(3, 0)
    # To learn what latents there are takes numbers, so it is moved afterwards.
    density.device, density.view = "meta", View(density.data, "meta")
    density.prior = lift(density.prior).in_double("meta")
    came_home = []
    monkeypatch.setattr(module, "home", lambda tensor: came_home.append(tensor.device) or tensor)
    # Numbers cannot come back from there, so not the gradient either.
    (value,) = density._eager_value(z)
    assert value.shape == (3,)
    values, priors, pointwise = density.described(z)
    assert list(values) == density.names
    assert priors.keys() == {site.name for site in density.sites}
    assert pointwise.shape == (3, *density.unit_shape)
    assert {device.type for device in came_home} == {"meta"}


@pytest.mark.parametrize("story", [m for m in OWN if m.processor], ids=lambda model: model.name)
def test_a_story_of_the_processor_alone_says_so(monkeypatch, story):
    monkeypatch.setattr(module, "usable", lambda device: device)
    with pytest.raises(ModelError, match="is worked out on the processor"):
        make_density(story, story.design(), device="cuda")


def test_a_run_says_where_it_was_worked_out():
    run = fit(toys.toy_normal, toys.some_numbers(), ess=100, lean=True, device="cpu")
    assert run.attrs["device"] == "cpu"


@pytest.mark.parametrize("device", ["nowhere", "meta:x", "cuda:99"])
def test_a_device_that_is_not_there_is_one_clear_error(device):
    with pytest.raises(
        ModelError, match=rf"nothing can be worked out on '{device}' here .*there is cpu"
    ):
        fit(toys.toy_normal, toys.some_numbers(), device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("runner", ["laplace", "ensemble", "smc", "nuts", "svi", "exact"])
def test_a_graphics_card_gives_what_the_processor_gives(runner):
    here, there = (
        fit(toys.toy_normal, toys.some_numbers(), runner=runner, seed=1, device=device)
        for device in ("cpu", "cuda")
    )
    for name in here["posterior"].data_vars:
        a, b = (run["posterior"][name].values for run in (here, there))
        assert a.mean() == pytest.approx(b.mean(), abs=0.2 * a.std())
    assert there.attrs["device"] == "cuda"
