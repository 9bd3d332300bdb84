"""Uploading a merged model to a hub, as the user who is logged in there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perpo_pipeline.errors import ArtifactError, ConfigError, first_line
from perpo_pipeline.run import Console

REASON_LINES = 3  # the first says 'bad request', the next ones why
LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token that may write"


def check_can_push(name: str) -> None:
    """Raise ConfigError where the name, offline mode or the lack of a token forbids it."""
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
        raise ConfigError("--push-to-hub, but HF_HUB_OFFLINE forbids it", fix="unset that variable")
    if get_token() is None:
        raise ConfigError("--push-to-hub needs a token of the hub, and there is none", fix=LOG_IN)


def push(folder: Path, name: str, *, private: bool, console: Console) -> str:
    """Upload `folder` as the model `name`, made where it is not there; returns its address.

    Raises ArtifactError for whatever the hub or the network refuses, and for a repository that
    anybody can read where a private one is asked for. The folder is not touched.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if console.quiet:
        disable_progress_bars()
    api = HfApi()
    with _refusals_explained(folder, name):
        repository = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.repo_info(repository.repo_id).private:
            raise ArtifactError(
                f"{repository.repo_id} is there already and not private: nothing was uploaded",
                where=str(repository),
                fix="make it private on its page, or choose another name",
            )
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message="Merged by perpo"
        )
    console.say(f"merge: pushed to {repository}")
    return str(repository)


@contextmanager
def _refusals_explained(folder: Path, name: str) -> Iterator[None]:
    """The library raises errors of its own, of its HTTP client and of its transfer engine."""
    from huggingface_hub import get_token

    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = f"{type(error).__name__}: {' '.join(lines[:REASON_LINES])}"
        raise ArtifactError(
            f"{name} could not be pushed: {told.replace(get_token() or told, '***')}",
            where=str(folder),
            fix="the merged model stays there: see that the hub can be reached and that the token "
            "may write there, then run the same command again",
        ) from error
