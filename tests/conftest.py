"""Every test sees eight virtual CPU devices; what names none runs on the first."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
