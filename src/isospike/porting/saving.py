"""``save_pretrained`` and ``push_to_hub`` of a ported model, in place of those of transformers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from isospike.errors import UnsupportedError
from isospike.report.files import Content, write_into

OWN = ("save_pretrained", "push_to_hub")
"""What a ported model of transformers does in its own way."""

# Arguments of transformers that say nothing about a port.
_IGNORED = frozenset(
    "state_dict save_function safe_serialization save_peft_format save_original_format "
    "max_shard_size is_main_process".split()
)


Files = Callable[[nn.Module], Mapping[str, Content]]


def own_saving(model: nn.Module, files: Files) -> None:
    """Have a ported model of transformers saved and pushed as a port.

    Args:
        model: The port; any other model is left as it is.
        files: What is to be saved of it.
    """
    if hasattr(type(model), "save_pretrained"):
        vars(model).update(
            {name: kind(model, files) for name, kind in zip(OWN, _KINDS, strict=True)}
        )


class _Save:
    """``save_pretrained`` of a ported model."""

    def __init__(self, model: nn.Module, files: Files) -> None:
        self.model, self.files = model, files

    def __call__(
        self, save_directory: str | Path, push_to_hub: bool = False, **keywords: Any
    ) -> None:
        """Write the port into a folder, beside what is there, such as a tokenizer.

        Args:
            save_directory: The folder; it is made.
            push_to_hub: Whether to upload it too, with the arguments of ``push_to_hub``.
            keywords: Further ones of transformers.

        Raises:
            InputError: The folder cannot be written to, or the disk is full.
            UnsupportedError: An argument that a port cannot follow.
        """
        main = keywords.get("is_main_process", True)
        given = {k: v for k, v in keywords.items() if k not in _IGNORED and v is not None}
        wrong = None if push_to_hub else next(iter(given), None)
        if wrong is not None:
            raise UnsupportedError(
                f"save_pretrained needs arguments that a port can follow, got {wrong}. Leave it "
                "out."
            )
        if main:
            write_into(Path(save_directory), self.files(self.model))
        if main and push_to_hub:
            name = given.pop("repo_id", Path(save_directory).name)
            _upload(Path(save_directory), name, **given)


class _Push:
    """``push_to_hub`` of a ported model."""

    def __init__(self, model: nn.Module, files: Files) -> None:
        self.model, self.files = model, files

    def __call__(self, repo_id: str, **keywords: Any) -> Any:
        """Upload the port to the hub in one commit.

        Args:
            repo_id: A name on the hub; the repository is made if there is none.
            keywords: ``commit_message``, ``commit_description``, ``private``, ``token``,
                ``revision``, ``create_pr``.

        Returns:
            What the hub says of the commit.
        """
        given = {k: v for k, v in keywords.items() if k not in (*_IGNORED, "tags")}
        with TemporaryDirectory(prefix="isospike-") as folder:
            write_into(Path(folder), self.files(self.model))
            return _upload(Path(folder), repo_id, **given)


_KINDS = (_Save, _Push)


def _upload(
    folder: Path, name: str, *, private: bool | None = None, token: Any = None, **keywords: Any
) -> Any:
    """Upload a folder; a model card that is there already is kept."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    name = api.create_repo(name, private=private, exist_ok=True).repo_id
    at = keywords.get("revision")
    message = keywords.pop("commit_message", None) or "Upload a port to spikes"
    kept = ["README.md"] if api.file_exists(name, "README.md", revision=at) else []
    return api.upload_folder(
        repo_id=name, folder_path=folder, ignore_patterns=kept, commit_message=message, **keywords
    )
