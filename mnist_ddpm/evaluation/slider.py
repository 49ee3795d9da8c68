"""A generation's moments behind a scroll bar, as plain HTML.

It needs no script and no style sheet, so it works in a saved notebook that is not trusted.
"""

import base64
import io

import numpy as np
from PIL import Image

from mnist_ddpm.ddpm import Film, check, tile


def film_slider(film: Film, columns: int = 8, scale: int = 2) -> str:
    """HTML of the film's first `columns` images, x_t above the predicted x_0, one moment in view.

    The scroll bar goes through the moments. Each is a picture of 16 grey levels or 64 colours,
    to stay small. Raises ValueError for a film without images.
    """
    check(bool(film), "the film is empty: generate keeps the first few images, film_images=36, say")
    cells = [moment_cell(moment, columns, scale) for moment in film]
    width = max(width for width, _ in cells)
    row = "".join(cell for _, cell in cells)
    window = f"width: {width}px; max-width: 100%; overflow-x: scroll"
    table = f'<table style="margin: 0"><tr>{row}</tr></table>'
    return f'<div style="{window}; scroll-snap-type: x mandatory">{table}</div>'


def moment_cell(moment: tuple, columns: int, scale: int) -> tuple[int, str]:
    """The width in pixels, and the table's cell, of one moment (t, x_t, x0_hat)."""
    t, *states = moment
    picture = np.concatenate([tile(x[:columns], columns) for x in states])
    height, width, _ = picture.shape
    height *= scale
    width *= scale
    image = Image.fromarray(picture)
    is_grey = states[0].shape[1] == 1
    image = image.convert("L").quantize(16) if is_grey else image.quantize(64)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    alt = f"{min(columns, len(states[0]))} images at t = {t}, and below what they will become"
    size = f'width="{width}" height="{height}"'
    style = "image-rendering: pixelated; max-width: none"
    caption = "above: x<sub>t</sub>; below: the x<sub>0</sub> that the network expects"
    cell = f't = {t} &nbsp; {caption}<br/><img alt="{alt}" {size} style="{style}" src="{source}"/>'
    snap = "padding: 0; text-align: left; white-space: nowrap; scroll-snap-align: start"
    return width, f'<td style="{snap}">{cell}</td>'
