"""Folder or Hub id → folder: finds a checkpoint, and fetches it where it is on the Hub."""

import contextlib
import functools
import json
import os
import queue
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from flaxsent.base import FlaxsentError
from flaxsent.checkpoint import adapters
from flaxsent.checkpoint.tokenizer import NAMES, TOKENIZER_FILES, needs_vocabulary
from flaxsent.checkpoint.weights import PICKLE_INDEX, SAFETENSORS_INDEX, WEIGHT_FILES, first_line, shard_files
from flaxsent.files import EMBEDDED, quietly


def find(source: str | os.PathLike | None, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint: `source` itself, the Hub's copy of it in the local cache, or the embedded one.

    Of an adapter, it is that of its base.

    From the Hub come `config.json`, one set of weights and the tokenizer's files, all of one commit; `HF_HUB_OFFLINE`,
    `HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN` work as everywhere.

    Raises:
        FileNotFoundError: neither a checkpoint folder nor on the Hub.
        ConnectionError: the Hub does not answer and the cache lacks a file.
    """
    if source is None:
        return EMBEDDED
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            if adapters.is_adapter(folder):
                base, of_base = adapters.base_of(folder)
                return find(base, revision=revision or of_base)
            raise FileNotFoundError(
                f"{folder} has no config.json; expected a Hugging Face checkpoint folder, or one that flaxsent export "
                "wrote."
            )
        return folder
    if isinstance(source, str) and HUB_ID.fullmatch(source) and not folder.exists():
        return _download(source, revision)
    kind = "a file" if folder.exists() else "no folder"
    raise FileNotFoundError(f"{source} is {kind}; expected a checkpoint folder, or a Hub id (name or owner/name).")


def find_whole(source: str | os.PathLike | None, *, revision: str | None = None) -> Path:
    """As `find`, for those who read the folder themselves: of an adapter they would take the base alone.

    Raises:
        FlaxsentError: `source` is the folder of an adapter.
        And as `find`.
    """
    if source is not None and adapters.is_adapter(source):
        raise FlaxsentError(
            f"{source} is an adapter; expected a whole checkpoint, as flaxsent.save(flaxsent.load(ADAPTER), FOLDER) "
            "writes."
        )
    return find(source, revision=revision)


def find_adapter(source: str | os.PathLike) -> Path:
    """The folder of an adapter: `source` itself, or the Hub's copy of it in the local cache.

    Raises: as `find`.
    """
    if isinstance(source, str) and HUB_ID.fullmatch(source) and not Path(source).exists():
        return _download(source, None, adapters.CONFIG)
    return Path(source)


def pools_mean(source: str | os.PathLike | None) -> bool:
    """Whether a checkpoint is sentence-transformers', with the mean of the last states for a text's vector.

    Raises: as `find`.
    """
    folder = find(source)
    if folder != EMBEDDED and not Path(str(source)).is_dir():
        _know_pooling(str(source), commit=folder.name)
    try:
        told = json.loads((folder / _POOLING).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    names = [name for name, is_so in told.items() if is_so is True] if isinstance(told, dict) else []
    return [name for name in names if name.startswith("pooling_mode_")] == ["pooling_mode_mean_tokens"]


_POOLING = "1_Pooling/config.json"


def _know_pooling(hub_id: str, *, commit: str) -> None:
    """Fetches the file where the cache knows neither it nor that it is not there."""
    from huggingface_hub import errors, try_to_load_from_cache

    if try_to_load_from_cache(hub_id, _POOLING, revision=commit) is not None:
        return
    with _asking(hub_id, None, _POOLING, at=f"{_POOLING} of {hub_id}") as is_silent:
        if is_silent:
            raise errors.LocalEntryNotFoundError(f"no {_POOLING}")
        _download_if_there(hub_id, _POOLING, commit=commit, is_silent=False)


HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""A path such as ./model is none: who mistypes a folder hears it at once."""


def _download(hub_id: str, revision: str | None, config: str = "config.json") -> Path:
    at = f"{hub_id}{'' if revision is None else f' at revision {revision}'}"
    with _asking(hub_id, revision, config, at=at) as is_silent:
        return _fetch(hub_id, revision, config, is_silent=is_silent)


@contextlib.contextmanager
def _asking(hub_id: str, revision: str | None, config: str, *, at: str) -> Iterator[bool]:
    """Whether the Hub is silent; huggingface_hub's errors become those of `find`, which tell of `at`."""
    from huggingface_hub import constants, errors, hf_hub_url

    silence = "HF_HUB_OFFLINE is set: unset it to fetch."
    try:
        if not constants.HF_HUB_OFFLINE:
            silence = _silence(hf_hub_url(hub_id, config, revision=revision))
        with quietly("huggingface_hub"):
            yield silence is not None
    except errors.LocalEntryNotFoundError as err:
        why = silence or f"the Hub gives no answer: {first_line(err.__cause__ or err)}"
        raise ConnectionError(f"{at} is not in the local cache, and {why}") from err
    except errors.RepositoryNotFoundError as err:
        raise FileNotFoundError(
            f"the Hub shows no {hub_id}: check the name, or set HF_TOKEN if it is private or gated."
        ) from err
    except errors.RevisionNotFoundError as err:
        raise FileNotFoundError(f"the Hub has no {at}; expected a branch, a tag or a commit of it.") from err
    except errors.EntryNotFoundError as err:
        kind = "a Hugging Face checkpoint; an adapter is passed with its base: load(base, adapter=...)"
        expected = kind if config == "config.json" else "an adapter of PEFT"
        raise FileNotFoundError(f"{at} has no {config} on the Hub; expected {expected}.") from err
    except (errors.HfHubHTTPError, errors.HFValidationError) as err:
        raise FileNotFoundError(f"{at} could not be fetched from the Hub: {first_line(err)}") from err
    except (OSError, RuntimeError, errors.HTTPError) as err:  # pyright: ignore[reportPrivateImportUsage]
        # A connection that breaks: requests raises OSErrors without a number, httpx its HTTPError, hf_xet RuntimeError.
        if isinstance(err, OSError) and err.errno is not None:
            raise
        raise ConnectionError(f"the Hub broke off while {at} was fetched: {first_line(err)}; try again.") from err


_PATIENCE = 5
"""Seconds to wait for the first answer; HF_HUB_ETAG_TIMEOUT sets others."""


def _silence(url: str) -> str | None:
    """Why the Hub gives no answer, or None if it does.

    huggingface_hub asks six times, for minutes where packets are dropped, before it looks into its cache. This asks
    once, in a thread, as neither the search for the address nor a try of each of several addresses has a time limit.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportPrivateImportUsage]

    is_set = constants.HF_HUB_ETAG_TIMEOUT != constants.DEFAULT_ETAG_TIMEOUT
    patience = constants.HF_HUB_ETAG_TIMEOUT if is_set else _PATIENCE
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            status = get_session().head(url, headers=build_hf_headers(), timeout=2 * patience).status_code
            answers.put(f"HTTP status {status}" if status == 429 or status >= 500 else None)
        except Exception as err:  # of requests, httpx, urllib3, sockets; the innermost says it in the fewest words
            while inner := err.__cause__ or err.__context__:
                err = inner
            answers.put(first_line(err))

    threading.Thread(target=ask, daemon=True).start()
    try:
        why = answers.get(timeout=patience)
    except queue.Empty:
        why = f"nothing within {patience} seconds"
    return why if why is None else f"{constants.ENDPOINT} gives no answer ({why}); check the network, or try again."


def _fetch(hub_id: str, revision: str | None, config: str, *, is_silent: bool) -> Path:
    """Fetches what is not in the cache; from a silent Hub the cache alone."""
    import huggingface_hub
    from huggingface_hub import errors

    config_file = Path(huggingface_hub.hf_hub_download(hub_id, config, revision=revision, local_files_only=is_silent))
    # The rest comes from the commit that this one came from, whatever is pushed meanwhile.
    get = functools.partial(_download_if_there, hub_id, commit=config_file.parent.name, is_silent=is_silent)
    if config == adapters.CONFIG:
        if not get(adapters.WEIGHTS) and is_silent:
            raise errors.LocalEntryNotFoundError("no weights")
        return config_file.parent
    weights = next(filter(get, WEIGHT_FILES), None)
    if weights is None and is_silent:
        raise errors.LocalEntryNotFoundError("no weights")
    if weights in (SAFETENSORS_INDEX, PICKLE_INDEX):
        for shard in shard_files(config_file.parent / weights):
            get(shard)
    there = [name for name in NAMES if get(name)]
    if needs_vocabulary(config_file.parent, there):
        for name in TOKENIZER_FILES[len(NAMES) :]:
            get(name)
    return config_file.parent


def _download_if_there(hub_id: str, name: str, *, commit: str, is_silent: bool) -> bool:
    import huggingface_hub
    from huggingface_hub import errors

    cached = huggingface_hub.try_to_load_from_cache(hub_id, name, revision=commit)
    if cached is not None and not isinstance(cached, str):
        return False  # it was not there when last asked for, and a commit does not change
    try:
        huggingface_hub.hf_hub_download(hub_id, name, revision=commit, local_files_only=is_silent)
    except errors.LocalEntryNotFoundError:
        if is_silent:  # the cache does not tell a file that was never there from one that was not fetched
            return False
        raise
    except errors.EntryNotFoundError:
        return False
    return True
