"""Thoughts by a whole pass for each of them: what scans and caches must equal."""

import jax.numpy as jnp
import numpy as np

from reasoning_jax.model import transformer
from tests.small import apply


def recomputed(params, config, sequences, thoughts, adapters=None, given=None, width=16):
    """([hidden states [len, D]], [[what was fed]]) of sequences of ids with thoughts in them.

    No left padding, no cache; what is right of a row is not seen by it. `given[b][k]` is fed in
    place of row b's thought k.
    """
    tokens = jnp.asarray([[*row, *[0] * (width - len(row))] for row in sequences])
    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    x = np.array(transformer.embed(params, config, tokens))
    counts = [row.count(thoughts.latent_id) for row in sequences]
    fed = [[] for _ in sequences]
    for k in range(max(counts) + 1):
        out = apply(params, config, embeddings=jnp.asarray(x), positions=positions, lora=adapters)
        states = out.hidden if thoughts.source == "final_norm" else out.residual
        for b, row in enumerate(sequences):
            if k < counts[b]:
                at = row.index(thoughts.latent_id) + k
                state = np.asarray(states[b, at - 1])
                if thoughts.scale == "embedding":
                    wanted = np.sqrt(np.mean(np.square(params["embedding"]["tokens"])))
                    state = state * wanted / np.sqrt(np.mean(np.square(state)))
                x[b, at] = state if given is None else given[b][k]
                fed[b].append(x[b, at].copy())
    return [np.asarray(out.hidden[b, : len(row)]) for b, row in enumerate(sequences)], fed
