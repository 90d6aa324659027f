"""Fetches a model from the Hugging Face hub: settings first, weights only if the architecture is supported.

safetensors and JSON only, and no code from a model repository is ever run. It knows ids and files, no tensors.
"""

import re
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from mobiquant_core.architectures import architecture_of
from mobiquant_core.errors import CheckpointError, UnsupportedModelError
from mobiquant_core.model_folder import read_json

FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "manifest.json",
         "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"]  # fmt: skip
ANSWER_SECONDS = 10.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and ".." not in name


def fetch(name: str) -> Path:
    """The local folder of a hub model; one clear line for not found, gated, offline or a bad answer."""
    try:
        if not _is_reachable(name):
            return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        config_file = Path(hf_hub_download(name, "config.json"))
        model_type = read_json(config_file).get("model_type")
        architecture_of(str(model_type))
        return Path(snapshot_download(name, allow_patterns=FILES))
    except GatedRepoError as error:
        raise UnsupportedModelError(
            f"{name} is gated on the hub. Accept its terms there and log in with `hf auth login`, then try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise UnsupportedModelError(
            f"{name} was not found: no such folder here and no such model on the hub. Check the spelling."
        ) from error
    except RemoteEntryNotFoundError as error:
        raise UnsupportedModelError(f"{name} on the hub is no transformers model: it has no config.json.") from error
    except HFValidationError as error:
        raise UnsupportedModelError(f"{name!r} is no folder and no valid hub id.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise UnsupportedModelError(
            f"{name} was not found here, and {reason}. Go online once to fetch it, or use demo or a local folder."
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no")
        raise CheckpointError(f"The hub answered with status {status} for {name}. Try again later.") from error
    except OSError as error:
        raise CheckpointError(f"{name} could not be fetched: {error.strerror or type(error).__name__}.") from error


def _is_reachable(name: str) -> bool:
    """One question without retries, so that being offline is noticed at once; the hub's refusals are raised."""
    try:
        HfApi().model_info(name, timeout=ANSWER_SECONDS)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception as error:
        # The hub's client changed its network library, and with it the errors of a lost connection.
        if isinstance(error, OSError | OfflineModeIsEnabled) or type(error).__module__.startswith("httpx"):
            return False
        raise
    return True
