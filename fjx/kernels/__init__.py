"""Operations that are worth a kernel, each with a reference in plain jnp."""
