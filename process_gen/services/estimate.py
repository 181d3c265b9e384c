"""Estimates tokens and cost of requests before they are sent."""

from __future__ import annotations

import dataclasses
import math

from process_gen.services.options import Connection

CHARACTERS_PER_TOKEN = 4


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated tokens and cost of requests if each is sent once: all answers parse, none is cached.

    Attributes:
      tokens_in, tokens_out: of all requests.
      cost: in the currency of the prices; None without prices.
      images: how many are drawn.
    """

    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None
    images: int = 0

    def __str__(self) -> str:
        price = "no prices given" if self.cost is None else f"about {self.cost:,.2f} at the prices given"
        amounts = f"{self.tokens_in:,} tokens in and {self.tokens_out:,} out"
        drawn = f", {self.images:,} images drawn" if self.images else ""
        return f"{self.requests:,} requests, about {amounts}{drawn}; {price}"


def estimate(
    service: Connection,
    requests: int,
    characters: int,
    seen_tokens: int,
    tokens_out: int,
    images: int = 0,
    price_image: float = 0.0,
) -> Estimate:
    """Estimates requests to a service, at its prices.

    Args:
      characters: of all texts in the requests.
      seen_tokens: of all images in them (`image_tokens`).
      tokens_out: of all answers.
      images: how many are drawn.
      price_image: of one of them.
    """
    tokens_in = math.ceil(characters / CHARACTERS_PER_TOKEN) + seen_tokens
    cost = None
    if service.price_in or service.price_out or price_image:
        tokens = tokens_in * service.price_in + tokens_out * service.price_out
        cost = tokens / 1e6 + images * price_image
    return Estimate(requests, tokens_in, tokens_out, cost, images)


def image_tokens(height: int, width: int) -> int:
    """Tokens of an image as OpenAI counts: 85, and 170 for each tile of 512 x 512 pixels.

    Before that the image is shrunk into 2048 x 2048 pixels, and its shorter side to at most 768.
    """
    scale = min(1, 2048 / max(height, width), 768 / min(height, width))
    return 85 + 170 * math.ceil(height * scale / 512) * math.ceil(width * scale / 512)
