"""NumPyro's NUTS with a device for every chain, which has to be said before JAX starts."""

import numpyro

numpyro.set_host_device_count(4)

from in_jax import Nuts as Parallel  # noqa: E402

__all__ = ["Parallel"]
