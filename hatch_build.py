"""Fills in the metadata that depend on the address of the repository; hatchling calls this when it builds the package."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)")
"""A link or an image in Markdown whose target is a file of the repository."""


class AddressHook(MetadataHookInterface):
    """The readme, and the links of the project, if `repository` in pyproject.toml is not empty."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add `readme` and `urls`."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = self.config["repository"].rstrip("/")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository) if repository else text}
        metadata["urls"] = urls(repository) if repository else {}


def urls(repository: str) -> dict[str, str]:
    """The links that an index shows beside the package."""
    return {
        "Source": repository,
        "Issues": f"{repository}/issues",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
    }


def absolute(markdown: str, repository: str) -> str:
    """The text with links to files of the repository instead of relative ones, which lead nowhere on an index."""

    def replaced(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        return f"{image}[{text}]({repository}/{'raw' if image else 'blob'}/main/{target})"

    return RELATIVE.sub(replaced, markdown)
