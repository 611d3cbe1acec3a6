"""The authors' state dicts under our keys."""

import re
from collections.abc import Callable

from torch import Tensor

# Their keys and ours, in order; the first that matches applies. None: left over there, not used by their code either.
_RENAMES: tuple[tuple[str, str | None], ...] = (
    (r"patch_embed\.proj\.0\.(.+)", r"stem.conv1.\1"),
    (r"patch_embed\.proj\.1\.(.+)", r"stem.norm.\1"),
    (r"patch_embed\.proj\.3\.(.+)", r"stem.conv2.\1"),
    (r"pools\.(\d+)\.conv\.(.+)", r"stages.<\1>.downsample.conv.\2"),
    (r"transformers\.(\d+)\.blocks\.(\d+)\.(.+)", r"stages.\1.blocks.\2.\3"),
)
_BLOCK_RENAMES: tuple[tuple[str, str | None], ...] = (
    (r"(attn\.)?L|kernel_norm", None),
    (r"attn\.learned_k", "attn.learned.factor"),
    (r"attn\.learned_lam", "attn.learned.sparsity_scale"),
    (r"attn\.learned_L", "attn.learned.rate_scale"),
    (r"attn\.kernel", "attn.dictionary.static"),
    (r"norm1\.bn\.(.+)", r"attn.norm.\1"),
    (r"kernel2", "attn.output_kernel"),
    (r"kernel", "attn.kernel"),
    (r"(v|proj)\.(weight|bias)", r"attn.\1.\2"),
)
# Dimensions of size one that their tensors have and ours do not.
_RESHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "attn.dictionary.static": lambda kernel: kernel[0] if kernel.ndim == 4 else kernel,
    "attn.kernel": lambda kernel: kernel[:, :, 0] if kernel.ndim == 6 else kernel,
    "attn.output_kernel": lambda kernel: kernel[:, 0, 0] if kernel.ndim == 6 else kernel,
}


def is_theirs(state: dict[str, Tensor]) -> bool:
    """Whether a state dict has the authors' keys."""
    return any(
        re.match(r"patch_embed\.proj\.\d+\.|transformers\.", key) for key in state
    )  # timm: patch_embed.proj.weight


def translate(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """(the state dict under our keys, their keys that nothing uses). Keys that mean nothing to us stay as they are."""
    translated: dict[str, Tensor] = {}
    leftovers: list[str] = []
    for key, value in state.items():
        name = _rename(key, state)
        if name is None:
            leftovers.append(key)
            continue
        reshape = _RESHAPES.get(name.partition(".blocks.")[2].partition(".")[2])
        translated[name] = reshape(value) if reshape else value
    return translated, leftovers


def _rename(key: str, state: dict[str, Tensor]) -> str | None:
    for pattern, replacement in _RENAMES:
        if match := re.fullmatch(pattern, key):
            name = match.expand(str(replacement))
            break
    else:
        return key
    # The convolution after stage i is the first layer of our stage i + 1.
    name = re.sub(r"<(\d+)>", lambda number: str(int(number[1]) + 1), name)
    block = re.fullmatch(r"(stages\.\d+\.blocks\.\d+)\.(.+)", name)
    if block is None:
        return name
    if block[2] == "attn.rand_matrix":
        return f"{block[1]}.attn.{_owner(key, state)}projection"
    for pattern, replacement in _BLOCK_RENAMES:
        if match := re.fullmatch(pattern, block[2]):
            return None if replacement is None else f"{block[1]}.{match.expand(replacement)}"
    return name


def _owner(key: str, state: dict[str, Tensor]) -> str:
    """Which module of our attention holds the random directions that they have under `key`."""
    if key.replace("rand_matrix", "kernel") in state:
        return "dictionary.dynamic."
    qkv = state.get(key.replace("rand_matrix", "qkv.weight"))
    separate = qkv is not None and qkv.shape[0] == 3 * qkv.shape[1]  # (q, k, v): Performer; VARS projects to (qk, v)
    return "" if separate else "dictionary."
