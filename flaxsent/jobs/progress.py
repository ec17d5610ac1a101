"""The bar of a job on standard error, and the figures in it."""

import sys
from collections import Counter

from tqdm import tqdm

from flaxsent.engine import Stats
from flaxsent.jobs.plan import Job


class Progress:
    """A bar on standard error, where that is a terminal: speed, share of real tokens, time left; and the sums of it."""

    def __init__(self, job: Job, *, is_silent: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        bar = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._bar = tqdm(
            total=job.size,
            disable=True if is_silent else None,
            file=sys.stderr,
            bar_format="{elapsed}{postfix}" if job.size is None else bar,
            dynamic_ncols=True,
            miniters=1,
            smoothing=0,
        )

    def add(self, stats: Stats) -> None:
        """A window of texts has been scored."""
        self.counts.update(stats._asdict())
        num_texts, num_tokens, num_places = (self.counts[f"num_{name}"] for name in ("texts", "tokens", "places"))
        seconds = max(self._bar.format_dict["elapsed"], 1e-3)
        self._bar.set_postfix_str(
            f"{num_texts / seconds:,.0f} texts/s, {num_tokens / seconds:,.0f} tokens/s, "
            f"{num_tokens / max(num_places, 1):.0%} real tokens",
            refresh=False,
        )

    def take(self, num_bytes: int, num_done: int) -> None:
        """So much of the input is this process's share, and so much of that was done before."""
        if self._bar.total is not None:
            self._bar.total = num_bytes
        self.skip(num_done)

    def move(self, num_bytes: int) -> None:
        """So much of the input is done."""
        self._bar.update(num_bytes)

    def skip(self, num_bytes: int) -> None:
        """So much of the input was done before, and says nothing of the time that is left."""
        if not self._bar.disable:
            self._bar.initial += num_bytes
            self._bar.n += num_bytes
            self._bar.refresh()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
