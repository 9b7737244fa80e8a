"""One image of any kind and size, decoded to a square of uint8."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps


def decode_image(cell: Any, pixels: int) -> np.ndarray:
    """uint8 [3, pixels, pixels] of an image cell ({"bytes", "path"}, bytes, or a path). Raises what Pillow raises.

    The shorter side is resized to `pixels` (bicubic, antialiased), the centre kept; what is transparent becomes white.
    """
    content = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
    if not content:
        raise ValueError("there is no image")
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion cuts off instead of scaling
            image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        square = ImageOps.fit(image.convert("RGB"), (pixels, pixels), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
