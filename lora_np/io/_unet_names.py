"""The two names of each module of a Stable Diffusion U-Net: in single files (ldm, sgm), and in diffusers.

The blocks are numbered through in single files and by level in diffusers; the same table serves SD 1.x, 2.x and SDXL.
"""

from __future__ import annotations

from collections.abc import Iterator

SINGLE = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("middle_block.0", "mid_block.resnets.0"),
    ("middle_block.1", "mid_block.attentions.0"),
    ("middle_block.2", "mid_block.resnets.1"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)

RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)


def _blocks() -> Iterator[tuple[str, str]]:
    """The names of corresponding blocks; a level ends with a resampler."""
    for level in range(4):
        yield f"input_blocks.{3 * level + 3}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
        for place in (1, 2):  # the second if attention comes first
            yield f"output_blocks.{3 * level + 2}.{place}.conv", f"up_blocks.{level}.upsamplers.0.conv"
        for number in range(2):
            block = f"input_blocks.{3 * level + number + 1}"
            yield f"{block}.0", f"down_blocks.{level}.resnets.{number}"
            yield f"{block}.1", f"down_blocks.{level}.attentions.{number}"
        for number in range(3):
            block = f"output_blocks.{3 * level + number}"
            yield f"{block}.0", f"up_blocks.{level}.resnets.{number}"
            yield f"{block}.1", f"up_blocks.{level}.attentions.{number}"
    yield from SINGLE


BLOCKS = tuple(_blocks())


def diffusers_name(path: str) -> str | None:
    """The name in diffusers of a module of a single file, or None if there is none."""
    return next(_renamed(path, BLOCKS, RESNET), None)


def single_file_names(path: str) -> list[str]:
    """The names that a module of diffusers may have in a single file."""
    blocks, resnet = (tuple((new, old) for old, new in table) for table in (BLOCKS, RESNET))
    return list(_renamed(path, blocks, resnet))


def _renamed(path: str, blocks: tuple[tuple[str, str], ...], resnet: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for old, new in blocks:
        if path == old:
            yield new
        elif path.startswith(f"{old}."):
            rest = path[len(old) + 1 :]
            if "resnets" in old or "resnets" in new:
                rest = dict(resnet).get(rest, rest)
            yield f"{new}.{rest}"
