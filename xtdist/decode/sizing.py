"""How large the KV pool is, and what one sequence may use of it."""

from __future__ import annotations

from collections.abc import Iterable

from xtdist.config import ConfigError
from xtdist.decode.kv_cache import KVPool, Window
from xtdist.decode.params import EngineConfig
from xtdist.nn.attention.cache import CacheSpec

DEVICE_PAGE_TOKENS = 256
SMALLEST_PAGE_TOKENS = 16
SMALLEST_CHUNK_TOKENS = 256


def make_pool(
    config: EngineConfig,
    *,
    longest: int,
    window: int | None,
    models: int,
    on_cpu: bool,
    reuses: bool = False,
) -> KVPool:
    """Pages for all models.

    A page is a whole sequence on CPU and in compiled steps, where it is read as a view. With a
    window it is small, so that what no query reads any more is soon given up.

    Raises:
        ConfigError: less than one page.
    """
    page = longest if on_cpu or config.compile_sequences else DEVICE_PAGE_TOKENS
    if window is not None:
        page = min(page, max(SMALLEST_PAGE_TOKENS, window // 4))
    page = min(config.page_tokens or page, longest)
    kept = None
    if window is not None:
        chunk = max(window, SMALLEST_CHUNK_TOKENS)
        if config.pool_tokens:
            share = config.pool_tokens // page // config.max_sequences
            chunk = max(page, min(chunk, (share - 1) * page + 1 - window))
        kept = Window(back=window, chunk=min(chunk, config.max_step_tokens))
    sized = KVPool(0, page, window=kept)
    pages = config.max_sequences * sized.most_pages(longest)
    if config.pool_tokens:
        pages = min(pages, config.pool_tokens // page)  # more could never be used
    if pages == 0:
        raise ConfigError(
            f"pool_tokens: got {config.pool_tokens}, less than one page of {page} tokens; "
            "give at least that, or 0: as many as max_sequences need"
        )
    try:
        return KVPool(pages, page, models=models, window=kept, reuses=reuses)
    except (MemoryError, OverflowError):
        raise ConfigError(
            f"max_sequences, pool_tokens: they ask for {pages} KV pages of {page} tokens, more "
            "than the memory holds; lower them"
        ) from None


def shared_window(specs: Iterable[CacheSpec], *, longest: int) -> int | None:
    """How far back any query of the models reaches, itself excluded; None: as far as there is."""
    windows = [spec.window for spec in specs]
    limited = [w for w in windows if w is not None]
    if not windows or len(limited) < len(windows) or max(limited) >= longest - 1:
        return None
    return max(limited)
