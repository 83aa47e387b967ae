"""The two sections made of pictures: the map of the embedding and the gallery of nearest neighbours."""

import base64
import io
import json
import math
from html import escape

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, features

from selftaught.reporting.atlas import Atlas, picture
from selftaught.reporting.charts import shorten, text_width

_MAP_TILE = 32  # pixels of a thumbnail on the map
_MAP_BYTES, _GALLERY_BYTES = 850_000, 350_000  # a page of 1500 points stays below 2 MB with base64's third on top
_NAMED_CLASSES = 14  # more names than this hide the map
_LISTED_CLASSES = 40  # more are folded away
_SHADES = 10  # classes with a colour of the palette; with more classes the hues go round


def sprite(thumbs: UInt8[np.ndarray, "n c h w"], side: int, budget: int) -> tuple[str, int, int]:
    """(data URI, columns, rows): all thumbnails on one sheet of square tiles, at a quality that fits `budget` bytes.

    The last quality is used whatever it weighs: 32-pixel thumbnails of noise take about a kilobyte each.
    """
    n = len(thumbs)
    columns = max(1, math.ceil(math.sqrt(n)))
    rows = max(1, math.ceil(n / columns))
    sheet = Image.new("RGB", (columns * side, rows * side), (128, 128, 128))
    for i, thumb in enumerate(thumbs):
        tile = picture(thumb).convert("RGB")
        scale = side / max(tile.size)
        size = max(1, round(tile.width * scale)), max(1, round(tile.height * scale))
        if size != tile.size:
            tile = tile.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
        corner = (i % columns) * side + (side - size[0]) // 2, (i // columns) * side + (side - size[1]) // 2
        sheet.paste(tile, corner)
    kind = "webp" if features.check("webp") else "jpeg"
    data = b""
    for quality in (88, 75, 60, 45, 25):
        buffer = io.BytesIO()
        sheet.save(buffer, kind, quality=quality)
        data = buffer.getvalue()
        if len(data) <= budget:
            break
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", columns, rows


def embed_json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def shade(label: int, classes: int) -> str:
    """The colour of a class as an inline style: a palette for few classes, hues a golden angle apart for many."""
    if label < 0:
        return "color:var(--unknown)"
    if classes <= _SHADES:
        return f"color:var(--k{label})"
    return f"color:oklch(calc(var(--lightness) + {0.09 * (label % 3 - 1):.2f}) .13 {label * 137.508 % 360:.0f})"


def the_map(atlas: Atlas) -> str:
    """The map: a dot per sample coloured by class, class names on their clusters, thumbnails on hover and as mosaic."""
    xy = np.asarray(atlas.xy, dtype=np.float64)
    ratio = min(max(float(np.ptp(xy[:, 1]) / max(np.ptp(xy[:, 0]), 1e-12)), 0.55), 1.0)
    across = 0.5 + 0.47 * xy[:, 0]
    down = 0.5 - 0.47 * xy[:, 1] / ratio
    height = round(1000 * ratio)
    groups = []
    for label in np.unique(atlas.labels):
        dots = "".join(
            f"M{1000 * across[i]:.0f} {height * down[i]:.0f}h0" for i in np.flatnonzero(atlas.labels == label)
        )
        colour = shade(int(label), len(atlas.classes))
        groups.append(f'<path d="{dots}" data-class="{label}" class="dots" style="{colour}"/>')
    data = {
        "x": [round(float(v), 4) for v in across],
        "y": [round(float(v), 4) for v in down],
        "label": [int(v) for v in atlas.labels],
        "names": atlas.names,
        "classes": atlas.classes,
    }
    uri, columns, _ = sprite(atlas.thumbs, _MAP_TILE, _MAP_BYTES)
    summary = f"map of {len(xy)} samples; samples that the encoder finds alike lie close together"
    return (
        f'<div class="map" id="map" style="aspect-ratio:1000/{height}"'
        f' data-columns="{columns}" data-side="{_MAP_TILE}">'
        f'<svg viewBox="0 0 1000 {height}" role="img" aria-label="{summary}">{"".join(groups)}</svg>'
        f'<canvas id="mosaic" hidden></canvas>{_class_names(atlas, across, down, ratio)}'
        f'<div id="ring" hidden></div><div id="tip" hidden><canvas width="96" height="96"></canvas>'
        f'<b id="tip-name"></b><span id="tip-class"></span></div></div>'
        f'{_legend(atlas)}<img id="sheet" alt="" hidden src="{uri}">'
        f'<script type="application/json" id="map-data">{embed_json(data)}</script>'
    )


def _legend(atlas: Atlas) -> str:
    switch = '<button type="button" id="switch" aria-pressed="false" class="switch" hidden>Show pictures</button>'
    present = [int(label) for label in np.unique(atlas.labels) if label >= 0]
    chips = "".join(
        f'<button type="button" class="chip" data-class="{label}" aria-pressed="false" '
        f'style="{shade(label, len(atlas.classes))}"><i></i>'
        f"<span>{escape(shorten(atlas.classes[label], 28))}</span></button>"
        for label in present
    )
    chips = f'<div class="chips">{chips}</div>'
    if len(present) > _LISTED_CLASSES:
        chips = f"<details><summary>{len(present)} classes</summary>{chips}</details>"
    return f'<div class="legend">{switch}{chips}</div>'


def _class_names(atlas: Atlas, across: Float[np.ndarray, " n"], down: Float[np.ndarray, " n"], ratio: float) -> str:
    """The name of each class at its densest place, moved apart where two names would touch."""
    present = [int(label) for label in np.unique(atlas.labels) if label >= 0]
    if len(present) > _NAMED_CLASSES:
        return ""
    boxes: list[tuple[float, float, float]] = []  # x, y, width of the names placed so far, in widths of an 800 px map
    parts = []
    for label in present:
        mine = atlas.labels == label
        x, y = across[mine], down[mine] * ratio
        near = np.exp(-((x[:, None] - x) ** 2 + (y[:, None] - y) ** 2) / (2 * 0.05**2)).sum(axis=1)
        cx, cy = float(x[near.argmax()]), float(y[near.argmax()])
        name = shorten(atlas.classes[label], 22)
        width, line = text_width(name, 14.0) / 800, 24 / 800
        while any(abs(cx - bx) < (width + bw) / 2 and abs(cy - by) < line for bx, by, bw in boxes) and cy < ratio:
            cy += line / 2
        boxes.append((cx, cy, width))
        style = f"left:{100 * cx:.1f}%;top:{100 * cy / ratio:.1f}%;{shade(label, len(atlas.classes))}"
        parts.append(f'<span class="name" data-class="{label}" style="{style}"><b>{escape(name)}</b></span>')
    return "".join(parts)


def gallery(atlas: Atlas) -> tuple[str, str]:
    """(HTML, CSS) of the gallery: each query and its nearest neighbours, framed by whether the class is the same."""
    used = list(dict.fromkeys(int(i) for i in (*atlas.queries, *atlas.neighbours.ravel())))
    side = min(64, max(atlas.thumbs.shape[2:]))
    uri, columns, rows = sprite(atlas.thumbs[used], side, _GALLERY_BYTES)
    place = {sample: spot for spot, sample in enumerate(used)}
    css = f'.tile{{background-image:url("{uri}");background-size:{100 * columns}% {100 * rows}%}}'

    def tile(sample: int, kind: str, words: str) -> str:
        column, row = place[sample] % columns, place[sample] // columns
        x, y = (100 * a / max(1, b - 1) for a, b in ((column, columns), (row, rows)))
        title = escape(words, quote=True)
        return (
            f'<span class="tile {kind}" role="img" aria-label="{title}" title="{title}" '
            f'style="background-position:{x:.3f}% {y:.3f}%"></span>'
        )

    lines = []
    for query, neighbours, similarity in zip(atlas.queries, atlas.neighbours, atlas.similarity):
        label = int(atlas.labels[query])
        tiles = []
        for other, cosine in zip(neighbours, similarity):
            theirs = int(atlas.labels[other])
            kind = "unlabelled" if label < 0 or theirs < 0 else "same" if theirs == label else "different"
            known = f" · {atlas.classes[theirs]}" if theirs >= 0 else ""
            tiles.append(tile(int(other), kind, f"{atlas.names[other]}{known} · cosine {cosine:.2f}"))
        name = atlas.classes[label] if label >= 0 else ""
        caption = f"<figcaption>{escape(shorten(name, 24))}</figcaption>" if name else ""
        first = tile(int(query), "query", f"{atlas.names[query]} · query" + (f" · {name}" if name else ""))
        lines.append(f'<figure class="neighbours">{caption}<div>{first}{"".join(tiles)}</div></figure>')
    return f'<div class="gallery">{"".join(lines)}</div>', css
