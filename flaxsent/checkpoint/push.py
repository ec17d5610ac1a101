"""A checkpoint folder → the Hub, in one commit, through huggingface_hub."""

import os
from pathlib import Path

from flaxsent.base import FlaxsentError
from flaxsent.checkpoint import adapters
from flaxsent.checkpoint.hub import HUB_ID
from flaxsent.checkpoint.manifest import MANIFEST
from flaxsent.checkpoint.weights import first_line
from flaxsent.files import TEMPORARY, quietly


def push(folder: str | os.PathLike, hub_id: str, *, private: bool = False, message: str = "Upload by flaxsent") -> str:
    """Uploads the files of a folder that `save`, `train` or `export` wrote; gives the address of the commit.

    The repository is made if it is not there, private if `private`. `HF_TOKEN`, or `hf auth login`, says who you are.
    Hidden files, folders and what is unfinished stay here; what the repository has besides stays there.

    Raises:
        FileNotFoundError: there is no such folder, or it is neither a checkpoint nor an adapter, nor exported.
        PermissionError: you are not known to the Hub, or may not write there.
        ConnectionError: the Hub does not answer.
        FlaxsentError: that is no Hub id, or the Hub refuses the files.
    """
    source = Path(folder)
    if not any((source / name).is_file() for name in ("config.json", adapters.CONFIG, MANIFEST)):
        raise FileNotFoundError(
            f"{folder} has no config.json, {adapters.CONFIG} or {MANIFEST}; expected a folder that train, export or "
            "flaxsent.save wrote."
        )
    if not HUB_ID.fullmatch(hub_id) or "/" not in hub_id:
        raise FlaxsentError(f"{hub_id!r} is no Hub id to push to; expected owner/name.")
    names = sorted(
        path.name
        for path in source.iterdir()
        if path.is_file() and not path.name.startswith(".") and not TEMPORARY.search(path.name)
    )
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set: unset it to push.")
    try:
        with quietly("huggingface_hub"):
            api = HfApi()
            api.create_repo(hub_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=hub_id, folder_path=source, allow_patterns=[_escaped(name) for name in names],
                commit_message=message,
            )  # fmt: skip
    except errors.LocalTokenNotFoundError as err:
        raise PermissionError(
            f"the Hub does not know you: set HF_TOKEN, or run hf auth login, to push {hub_id}."
        ) from err
    except (errors.HfHubHTTPError, errors.HFValidationError) as err:
        status = getattr(getattr(err, "response", None), "status_code", None)
        if status in (401, 403):
            raise PermissionError(
                f"the Hub does not let you write {hub_id} (HTTP status {status}): set HF_TOKEN to a token that may "
                "write there."
            ) from err
        raise FlaxsentError(f"the Hub refuses {hub_id}: {first_line(err)}") from err
    except (OSError, RuntimeError, errors.HTTPError) as err:  # pyright: ignore[reportPrivateImportUsage]
        if isinstance(err, OSError) and err.errno is not None:
            raise
        raise ConnectionError(f"the Hub gives no answer, or broke off: {first_line(err)}; try again.") from err
    return str(done.commit_url)


def _escaped(name: str) -> str:
    """A pattern that no other name matches."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
