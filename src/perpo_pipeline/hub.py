"""Upload a folder to a hub, as the user who is logged in there."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from perpo_pipeline.errors import ArtifactError, ConfigError, first_line

REASON_LINES = 3  # the first line says "bad request", the next ones say why
KEPT = {"model": "folder", "dataset": "export"}
AGAIN = {
    "model": "run the same command again",
    "dataset": "run: hf upload --repo-type dataset {name} {folder}",
}
LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token with write access"


def check_can_push(name: str) -> None:
    """Raise ConfigError if the name is invalid, offline mode is on or no token is found."""
    from huggingface_hub import get_token, is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"--push-to-hub: {first_line(error)}", fix="give NAME, or ORGANISATION/NAME"
        ) from error
    if is_offline_mode():
        raise ConfigError(
            "--push-to-hub needs the network, but HF_HUB_OFFLINE is set",
            fix="unset the environment variable HF_HUB_OFFLINE",
        )
    if get_token() is None:
        raise ConfigError("--push-to-hub needs a token for the hub, and none is set", fix=LOG_IN)


def push(
    folder: Path,
    name: str,
    *,
    kind: Literal["model", "dataset"],
    private: bool,
    quiet: bool,
    message: str,
) -> str:
    """Upload `folder` as the model or dataset `name`, made if needed; returns its address.

    `message` is the commit's. Raises ArtifactError if the hub or the network refuses the upload,
    and if a private repository is wanted but the existing one is public. The folder is not changed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if quiet:
        disable_progress_bars()
    api = HfApi()
    with _refusals_explained(folder, name, kind):
        repository = api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
        found = repository.repo_id
        if private and not api.repo_info(found, repo_type=kind).private:
            raise ArtifactError(
                f"{found} already exists and is not private: nothing was uploaded",
                where=str(repository),
                fix="make the repository private on its page, or choose another name",
            )
        api.upload_folder(repo_id=found, repo_type=kind, folder_path=folder, commit_message=message)
    return str(repository)


@contextmanager
def _refusals_explained(folder: Path, name: str, kind: str) -> Iterator[None]:
    """Any error as an ArtifactError without the token.

    The library raises its own errors, those of its HTTP client and those of its transfer engine.
    """
    from huggingface_hub import get_token

    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {' '.join(lines[:REASON_LINES])}"
        raise ArtifactError(
            f"{name} could not be pushed: {reason.replace(get_token() or reason, '***')}",
            where=str(folder),
            fix=f"the {KEPT[kind]} is kept: check that the hub can be reached and that the token "
            "has write access, then "
            + AGAIN[kind].format(name=name, folder=shlex.quote(str(folder))),
        ) from error
