"""A generation's steps under a slider, as plain HTML: it works in Jupyter and Colab and stays in the saved notebook."""

import base64
import io

import numpy as np
from PIL import Image

from mnist_ddpm.ddpm import Film, check_film, tile

TEMPLATE = """<div style="width: {width}px; font-family: sans-serif; font-size: 13px">
<div style="width: {width}px; height: {height}px; overflow: hidden">
<img alt="{alt}" style="width: {width}px; max-width: none; margin: {top}px 0 0 0; image-rendering: pixelated; \
display: block" src="data:image/png;base64,{png}"></div>
<input type="range" min="0" max="{last}" value="{last}" aria-label="step" style="width: 100%" \
data-times="{times}" oninput="const box = this.parentElement; \
box.querySelector('img').style.marginTop = (-{height} * this.value) + 'px'; \
box.querySelector('output').textContent = 't = ' + this.dataset.times.split(',')[this.value]">
<output>t = 0</output> &nbsp; above: x<sub>t</sub>; below: the x<sub>0</sub> that the network expects
</div>"""


def film_slider(film: Film, columns: int = 8, scale: int = 2) -> str:
    """HTML of the film's first `columns` images, x_t above the predicted x_0, with a slider over its moments.

    One picture holds all moments, in 16 grey levels or 64 colours, to stay small.
    """
    check_film(film)
    moments = [np.concatenate([tile(x[:columns], columns) for x in (xt, x0_hat)]) for _, xt, x0_hat in film]
    height, width, _ = moments[0].shape
    picture = Image.fromarray(np.concatenate(moments))
    grey = film[0][1].shape[1] == 1
    picture = picture.convert("L").quantize(16) if grey else picture.quantize(64)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    last = len(film) - 1
    return TEMPLATE.format(
        width=width * scale, height=height * scale, top=-height * scale * last, last=last,
        alt=f"{min(columns, len(film[0][1]))} images at {len(film)} moments of their generation",
        png=base64.b64encode(buffer.getvalue()).decode(), times=",".join(str(t) for t, _, _ in film),
    )  # fmt: skip
