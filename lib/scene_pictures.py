"""Pictures of scenes, at any size: every pixel is a function of its place (x, y), so no size is special.

A shape is a signed distance: how far a point lies outside (positive) or inside (negative) of it. Edges come out smooth
at 32 pixels because a pixel's coverage is read off the distance (https://iquilezles.org/articles/distfunctions2d/).
"""

from collections.abc import Callable

import numpy as np

from lib.scene_captions import Scene, Thing

Array = np.ndarray
Draw = Callable[[Array, Array], Array]
RGB = {
    "red": (215, 30, 38), "blue": (35, 85, 225), "yellow": (252, 218, 40), "green": (30, 150, 50),
    "white": (246, 246, 246), "black": (26, 26, 28), "orange": (252, 130, 15), "pink": (255, 145, 195),
    "purple": (130, 45, 175), "brown": (122, 70, 30),
}  # fmt: skip
DARK, LIGHT = np.array([22.0, 22.0, 30.0]), np.array([238.0, 238.0, 232.0])
OUTLINE = 0.014  # half its width, as a share of the picture: about one pixel at 32


def paint(scene: Scene, places: Array, pixels: int, rng: np.random.Generator) -> Array:
    """A picture of the scene, uint8 [3, pixels, pixels].

    `places` [K, 4]: x, y, radius (shares of the picture, y downwards) and tilt (radians) of each thing.
    """
    at = (np.arange(pixels) + 0.5) / pixels  # float64: what two machines round differently stays below a pixel's 8 bits
    x, y = np.meshgrid(at, at)
    picture = GROUNDS[scene.ground](x, y, rng)
    outline = LIGHT if scene.ground == "night" else DARK
    for thing, (x0, y0, radius, tilt) in zip(scene.things, places, strict=True):
        look = rng.random(6)
        reach = 1.45 * radius  # only the pixels around the thing are computed
        rows, columns = (slice(max(0, int((c - reach) * pixels)), int((c + reach) * pixels) + 1) for c in (y0, x0))
        here = (rows, columns)
        u, v = (x[here] - x0) / radius, (y[here] - y0) / radius
        u, v = u * np.cos(tilt) + v * np.sin(tilt), v * np.cos(tilt) - u * np.sin(tilt)
        distance = SHAPES[thing.shape](u, v) * radius
        picture[here] = _blend(picture[here], outline, 0.35 * np.exp(-np.maximum(distance, 0) / 0.02))  # soft shadow
        picture[here] = _blend(picture[here], outline, _covered(distance - OUTLINE, pixels))
        surface = _surface(thing, u, v, radius, pixels, look)
        picture[here] = _blend(picture[here], surface, _covered(distance + OUTLINE, pixels))
    glow, angle, slope = rng.uniform(0.86, 1.08), rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.22)
    light = glow + slope * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    return np.clip(picture * light[..., None], 0, 255).astype(np.uint8).transpose(2, 0, 1)


def _covered(distance: Array, pixels: int) -> Array:
    """How much of each pixel lies inside, from the distance of its centre in shares of the picture."""
    return np.clip(0.5 - distance * pixels, 0, 1)


def _blend(below: Array, above: Array, share: Array) -> Array:
    return below + (above - below) * share[..., None]


def _surface(thing: Thing, u: Array, v: Array, radius: float, pixels: int, look: Array) -> Array:
    """Colours on a thing: its colour, a second tone where its pattern (or a door, or a flower's middle) is."""
    first = np.clip(np.array(RGB[thing.colour]) + 22 * (look[:3] - 0.5), 0, 255)
    pale = thing.colour in ("white", "yellow")
    second = first + ((DARK if pale else LIGHT) - first) * 0.72
    period, turn = 0.135 + 0.03 * look[3], np.pi * look[4]
    if thing.texture == "checked":
        turn, period = 0.0, 1.3 * period
    a = 2 * np.pi * radius / period * (u * np.cos(turn) + v * np.sin(turn)) + 6 * look[5]
    b = 2 * np.pi * radius / period * (v * np.cos(turn) - u * np.sin(turn))
    wave = {"striped": lambda: np.sin(a), "checked": lambda: 2 * np.sin(a) * np.sin(b),
            "dotted": lambda: 1.2 * (np.cos(a) + np.cos(b) - 0.75)}.get(thing.texture)  # fmt: skip
    colour = np.broadcast_to(first, (*u.shape, 3))
    if wave:
        colour = _blend(colour, second, _covered(-wave() * period / (2 * np.pi), pixels))
    if thing.shape in MARKS:
        colour = _blend(colour, DARK if wave else second, _covered(MARKS[thing.shape](u, v) * radius, pixels))
    return colour


# --- shapes: signed distances, in units of the radius ---


def _polygon(*corners: tuple[float, float]) -> Draw:
    """The signed distance of a polygon, from its edges."""
    start = np.array(corners)[:, None, None]
    edge = np.roll(start, -1, axis=0) - start

    def distance(u: Array, v: Array) -> Array:
        wu, wv, eu, ev = u - start[..., 0], v - start[..., 1], edge[..., 0], edge[..., 1]
        along = np.clip((wu * eu + wv * ev) / (eu**2 + ev**2), 0, 1)
        nearest = np.sqrt(((wu - eu * along) ** 2 + (wv - ev * along) ** 2).min(axis=0))
        crossed = ((wv >= 0) != (wv - ev >= 0)) & ((eu * wv > ev * wu) == (ev > 0))
        return np.where(crossed.sum(axis=0) % 2 == 1, -nearest, nearest)

    return distance


def _circle(u0: float, v0: float, radius: float) -> Draw:
    return lambda u, v: np.hypot(u - u0, v - v0) - radius


def _box(u0: float, v0: float, width: float, height: float) -> Draw:
    """A rectangle of the given half width and half height."""

    def distance(u: Array, v: Array) -> Array:
        du, dv = np.abs(u - u0) - width, np.abs(v - v0) - height
        return np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0)

    return distance


def _heart(u: Array, v: Array) -> Array:
    p, q = np.abs(u) / 1.6, (0.88 - v) / 1.6
    lobes = np.hypot(p - 0.25, q - 0.75) - 0.3536
    low = np.maximum(p + q, 0) / 2
    tip = np.sqrt(np.minimum(p**2 + (q - 1) ** 2, (p - low) ** 2 + (q - low) ** 2)) * np.sign(p - q)
    return 1.6 * np.where(p + q > 1, lobes, tip)


def _flower(u: Array, v: Array) -> Array:
    """Five round petals: the plane is folded onto one of them."""
    fold = 2 * np.pi / 5
    angle = (np.arctan2(u, -v) + fold / 2) % fold - fold / 2
    rho = np.hypot(u, v)
    return np.minimum(np.hypot(rho * np.sin(angle), rho * np.cos(angle) - 0.6) - 0.4, rho - 0.5)


TURNS = np.arange(10) * np.pi / 5
STAR = [(r * np.sin(t), -r * np.cos(t)) for r, t in zip([1.12, 0.5] * 5, TURNS, strict=True)]
SHAPES: dict[str, Draw] = {
    "circle": _circle(0, 0, 0.92),
    "square": _box(0, 0, 0.82, 0.82),
    "star": _polygon(*STAR),
    "heart": _heart,
    "triangle": _polygon((0, -0.95), (1.0, 0.78), (-1.0, 0.78)),
    "house": _polygon((0, -1), (1.05, -0.1), (0.75, -0.1), (0.75, 0.85), (-0.75, 0.85), (-0.75, -0.1), (-1.05, -0.1)),
    "flower": _flower,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.76) - 0.22,
    "moon": lambda u, v: np.maximum(_circle(0, 0, 1)(u, v), -_circle(0.5, -0.2, 0.82)(u, v)),
    "diamond": _polygon((0, -1.08), (0.72, 0), (0, 1.08), (-0.72, 0)),
    "arrow": _polygon((1.08, 0), (0.12, -0.88), (0.12, -0.36), (-1, -0.36), (-1, 0.36), (0.12, 0.36), (0.12, 0.88)),
    "cross": lambda u, v: np.minimum(_box(0, 0, 0.98, 0.34)(u, v), _box(0, 0, 0.34, 0.98)(u, v)),
}
MARKS: dict[str, Draw] = {"house": _box(0.0, 0.55, 0.2, 0.32), "flower": _circle(0, 0, 0.3)}


# --- grounds: colours [H, W, 3] as functions of the place ---


def _noise(x: Array, y: Array, fx: float, fy: float, rng: np.random.Generator) -> Array:
    """Smooth random patches between about -1 and 1, with about fx and fy of them across."""
    a, b, c = rng.random((3, 5, 1))
    across = np.exp(2j * np.pi * fx * (0.4 + 0.8 * a) * x[0])
    down = np.exp(2j * np.pi * (fy * (1.6 * b - 0.8) * y[:, 0] + c))
    return (down.T @ across).real / 2.5  # the sum of five waves, cos(2 pi (.. x + .. y + c))


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], share: Array, rng: np.random.Generator) -> Array:
    """From one colour (share 0) to another (1); the colours are a little different in each scene."""
    return np.array(low) + rng.uniform(-11, 11, 3) + (np.array(high) - np.array(low)) * np.clip(share, 0, 1)[..., None]


def _grass(x: Array, y: Array, rng: np.random.Generator) -> Array:
    blades = 0.4 * _noise(x, y, 13, 4, rng) + 0.15 * _noise(x, y, 3, 3, rng)
    return _mix((62, 120, 48), (150, 200, 88), 0.5 + blades, rng)


def _sky(x: Array, y: Array, rng: np.random.Generator) -> Array:
    clouds = np.clip(_noise(x, y, 2.2, 4, rng) * 1.6 - 0.35, 0, 1)
    return _blend(_mix((105, 170, 240), (190, 222, 250), y, rng), np.array([250.0, 250.0, 252.0]), 0.85 * clouds)


def _sand(x: Array, y: Array, rng: np.random.Generator) -> Array:
    bend, turn, count = *rng.random(2), rng.uniform(3.5, 5.5)
    ripples = np.sin(2 * np.pi * (count * y + 0.5 * np.sin(2 * np.pi * (x + turn)) + 0.8 * bend * x))
    return _mix((208, 172, 112), (240, 212, 158), 0.5 + 0.3 * ripples + 0.3 * _noise(x, y, 12, 12, rng), rng)


def _sea(x: Array, y: Array, rng: np.random.Generator) -> Array:
    count, swell, turn = rng.uniform(4.5, 6.5), rng.uniform(2.5, 4), rng.random()
    waves = np.sin(2 * np.pi * (count * y + 0.16 * np.sin(2 * np.pi * (swell * x + turn)) + turn))
    water = _mix((22, 128, 150), (12, 84, 118), y, rng)
    return _blend(water, np.array([150.0, 225.0, 225.0]), np.clip(waves, 0, 1) ** 4)


def _night(x: Array, y: Array, rng: np.random.Generator) -> Array:
    stars = rng.random((14, 3, 1, 1))
    near = np.exp(-((x - stars[:, 0]) ** 2 + (y - stars[:, 1]) ** 2) / 0.00022) * (0.35 + 0.65 * stars[:, 2])
    return _blend(_mix((14, 16, 48), (44, 40, 92), y, rng), np.array([235.0, 235.0, 210.0]), near.max(axis=0))


def _wall(x: Array, y: Array, rng: np.random.Generator) -> Array:
    rows, turn = rng.uniform(5.5, 7), rng.random(3)
    row = np.floor(rows * y + turn[0])
    along = 0.5 * rows * x + 0.5 * (row % 2) + turn[1]
    tone = np.sin(12.9 * np.floor(along) + 78.2 * row + 6 * turn[2]) * 0.5 + 0.5
    up = (rows * y + turn[0]) % 1
    joint = np.minimum(np.minimum(along % 1, 1 - along % 1) * 2, np.minimum(up, 1 - up))
    bricks = _mix((150, 82, 66), (188, 112, 88), tone, rng)
    return _blend(bricks, np.array([205.0, 196.0, 186.0]), np.clip(1.6 - 10 * joint, 0, 1))


def _snow(x: Array, y: Array, rng: np.random.Generator) -> Array:
    share = 0.65 + 0.45 * _noise(x, y, 2.5, 4, rng) + 0.12 * _noise(x, y, 14, 14, rng)
    return _mix((196, 210, 232), (244, 247, 252), share, rng)


def _wood(x: Array, y: Array, rng: np.random.Generator) -> Array:
    planks, turn = rng.uniform(3.5, 5), rng.random()
    plank = np.floor(planks * x + turn)
    edge = np.abs((planks * x + turn) % 1 - 0.5)
    share = 0.5 + 0.25 * np.sin(7.7 * plank + 6 * turn) + 0.3 * _noise(x + 0.3 * plank, y, 16, 2, rng)
    boards = _mix((146, 100, 58), (200, 152, 100), share, rng)
    return _blend(boards, np.array([84.0, 54.0, 30.0]), np.clip(14 * edge - 6.2, 0, 1))


GROUNDS: dict[str, Callable[[Array, Array, np.random.Generator], Array]] = {
    "grass": _grass, "sky": _sky, "sand": _sand, "sea": _sea, "night": _night, "wall": _wall,
    "snow": _snow, "wood": _wood,
}  # fmt: skip
