"""The loop of generation: mlx-lm's `generate_step` in its plain form, with its caches and samplers.

Tokens come one step ahead of their use, as there: the next one is being computed while this one is told. The tokens are the same
as mlx-lm's for the same weights, prompt, temperature and seed; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

STEP = 512
"""Tokens of a prompt that are read at once."""


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    seed: int = 0


def generate(network: Any, prompt: Sequence[int], most: int, sampling: Sampling) -> Iterator[int]:
    """At most so many tokens. The prompt has one at least, and all of them are in the network's vocabulary."""
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.sample_utils import make_sampler

    mx.random.seed(sampling.seed)
    sample = make_sampler(temp=sampling.temperature, top_p=sampling.top_p if sampling.top_p < 1.0 else 0.0)
    cache = make_prompt_cache(network)
    tokens = mx.array(list(prompt))
    while len(tokens) > 1:
        size = min(STEP, len(tokens) - 1)
        network(tokens[:size][None], cache=cache)
        mx.eval([c.state for c in cache])
        tokens = tokens[size:]
    coming = _next(network, tokens, cache, sample)
    for number in range(most):
        token = coming
        if number + 1 < most:
            coming = _next(network, token, cache, sample)
        yield int(token.item())
        if number % 256 == 255:
            mx.clear_cache()


def _next(network: Any, token: Any, cache: Any, sample: Callable[[Any], Any]) -> Any:
    logits = network(token[None], cache=cache)[:, -1, :]
    found = sample(logits - mx.logsumexp(logits, keepdims=True))
    mx.async_eval(found)
    return found
