"""Pictures that the tower learns to read, and the caption of each: coloured shapes that can be counted, digits, words.

    $(deploy/tower/environment drawing) deploy/tower/render.py FOLDER [COUNT]      held-out pictures, to look at

A scene is drawn from a random.Random, so that a seed names a picture. Size, place, colours, background, fonts, turn,
noise and blur vary. Held-out pictures take fonts of which training has seen no letter.
"""
import dataclasses
import functools
import glob
import importlib.util
import math
import os
import random
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

COLOURS = {'red': (220, 30, 35), 'green': (30, 150, 55), 'blue': (40, 75, 225), 'yellow': (245, 220, 35),
           'orange': (245, 130, 20), 'purple': (135, 40, 165), 'black': (18, 18, 18), 'white': (244, 244, 244)}
SHAPES = ('circle', 'square', 'triangle', 'star', 'heart', 'diamond')
NUMBERS = ('one', 'two', 'three', 'four', 'five', 'six')
PLACES = {'top': 'at the top', 'bottom': 'at the bottom', 'left': 'on the left', 'right': 'on the right',
          'middle': 'in the middle'}
DIGITS = tuple('0123456789')
WORDS = 'cat dog sun car tree fish book house bird key map bus milk door king love'.split()  # drawn in capitals
FONTS = {'train': ('font_roboto', 'font_lato', 'font_caladea', 'font_rhd', 'font_source_serif_pro', 'font_fredoka_one'),
         'held out': ('font_source_sans_pro', 'font_hanken_grotesk', 'font_manrope')}
ATTRIBUTES = {'colour': tuple(COLOURS), 'place': tuple(PLACES), 'count': NUMBERS, 'shape': SHAPES, 'digit': DIGITS,
              'word': tuple(WORDS)}
SIDE = 96  # of what the tower sees
TOKENS = 16  # that it makes of a picture


@dataclasses.dataclass
class Scene:
    kind: str  # shapes, digit, word
    colour: str
    place: str
    text: str = ''  # of digits and words
    shape: str = ''
    count: int = 1

    def caption(self):
        """As the model's tokens: each text here is one of them, with the space before it."""
        colour, where = 'Ġ' + self.colour, ['Ġ' + word for word in PLACES[self.place].split()]
        things = {'shapes': ['Ġ' + NUMBERS[self.count - 1], colour, 'Ġ' + self.shape + 's' * (self.count > 1)],
                  'digit': ['Ġthe', colour, 'Ġnumber', 'Ġ', self.text],
                  'word': ['Ġthe', colour, 'Ġword', 'Ġ"', self.text, '"']}[self.kind]
        tokens = ['The', 'Ġpicture', 'Ġshows', *things, *where, '.']
        return ['Ċ'] * (TOKENS - 1 - len(tokens)) + tokens + ['Ċ']

    def attributes(self):
        if self.kind == 'shapes':
            thing = {'count': NUMBERS[self.count - 1], 'shape': self.shape}
        else:
            thing = {self.kind: self.text}
        return {**thing, 'colour': self.colour, 'place': self.place}

    def sentence(self):
        return ''.join(self.caption()).replace('Ġ', ' ').strip('Ċ')


def draw_scene(rng):
    kind = rng.choices(('shapes', 'digit', 'word'), (45, 20, 35))[0]
    colour, place = rng.choice(list(COLOURS)), rng.choice(list(PLACES))
    if kind == 'shapes':
        return Scene(kind, colour, place, shape=rng.choice(SHAPES), count=rng.randint(1, 6))
    return Scene(kind, colour, place, rng.choice(DIGITS if kind == 'digit' else WORDS))


@functools.lru_cache
def fonts(which):
    """Paths of all upright fonts but the thinnest, a list for each family."""
    families = []
    for package in FONTS[which]:
        folder = os.path.dirname(importlib.util.find_spec(package).origin)
        paths = glob.glob(f'{folder}/**/*.[ot]tf', recursive=True)
        families.append(sorted(p for p in paths if not any(w in p for w in ('Thin', 'Light', 'Variable', 'It'))))
    return families


@functools.lru_cache(2048)
def font(path, size):
    return ImageFont.truetype(path, size)


def jittered(rng, colour, by):
    return tuple(min(255, max(0, c + rng.randint(-by, by))) for c in colour)


def background(rng, ink):
    """Grey or pale, and far from the ink."""
    while True:
        grey, tint = rng.randint(0, 255), rng.choice((0, 0, 35))
        colour = jittered(rng, (grey,) * 3, tint)
        if math.dist(colour, ink) > 130:
            return colour


def outline(shape, r, turn):
    """Corners around 0, 0."""
    if shape == 'heart':
        ts = [2 * math.pi * i / 40 for i in range(40)]
        points = [(r * math.sin(t)**3, -r / 16 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) -
                                                  math.cos(4 * t))) for t in ts]
    elif shape == 'diamond':
        points = [(0, -1.1 * r), (0.72 * r, 0), (0, 1.1 * r), (-0.72 * r, 0)]
    else:
        corners, inner = {'circle': (48, 1), 'square': (4, 1), 'triangle': (3, 1), 'star': (10, 0.42)}[shape]
        start = math.pi / 4 if shape == 'square' else 0
        points = []
        for i in range(corners):
            a, length = start + 2 * math.pi * i / corners, r * (inner if i % 2 else 1)
            points.append((length * math.sin(a), -length * math.cos(a)))
    c, s = math.cos(turn), math.sin(turn)
    return [(c * x - s * y, s * x + c * y) for x, y in points]


def area(place, margin):
    """Where centres may lie, in parts of the side: left, top, right, bottom."""
    far = 1 - margin
    return {'top': (0.2, margin, 0.8, 0.34), 'bottom': (0.2, 0.66, 0.8, far), 'left': (margin, 0.2, 0.34, 0.8),
            'right': (0.66, 0.2, far, 0.8), 'middle': (0.3, 0.3, 0.7, 0.7)}[place]


def centres(rng, place, count):
    """Of shapes that do not touch, and their radius. One alone lies well inside its place."""
    r = rng.uniform(0.1, 0.2 if count < 3 else 0.13)
    while True:
        left, top, right, bottom = area(place, r + 0.02)
        if count == 1:
            left, top, right, bottom = area(place, r + 0.02) if place != 'middle' else (0.42, 0.42, 0.58, 0.58)
        points = []
        for _ in range(60):
            p = (rng.uniform(left, right), rng.uniform(top, bottom)) if left < right and top < bottom else (2, 2)
            if p[0] <= 1 and all(math.dist(p, q) > 2.35 * r for q in points):
                points.append(p)
            if len(points) == count:
                mean = [sum(p[i] for p in points) / count for i in (0, 1)]
                if place != 'middle' or max(abs(m - 0.5) for m in mean) < 0.09:
                    return points, r
                break
        r *= 0.96


def draw_shapes(rng, scene, draw, width, height, ink):
    points, r = centres(rng, scene.place, scene.count)
    for x, y in points:
        size = r * min(width, height) * rng.uniform(0.88, 1)
        turn = rng.uniform(-0.2, 0.2)
        corners = [(x * width + dx, y * height + dy) for dx, dy in outline(scene.shape, size, turn)]
        draw.polygon(corners, fill=jittered(rng, ink, 6))


def draw_text(rng, scene, canvas, ink, which):
    text = scene.text.upper()
    width, height = canvas.size
    sideways = scene.place in ('left', 'right')
    most_wide = (0.55 if sideways else 0.9) * width
    most_high = (0.5 if scene.kind == 'digit' else 0.4) * height
    if scene.kind == 'digit' and not sideways:
        most_high = 0.42 * height
    path = rng.choice(rng.choice(fonts(which)))
    box = font(path, 100).getbbox(text)
    fit = min(most_wide / (box[2] - box[0]), most_high / (box[3] - box[1]))
    size = max(8, int(100 * fit * rng.uniform(0.85, 1)))
    box = font(path, size).getbbox(text)
    stamp = Image.new('L', (box[2] - box[0] + 8, box[3] - box[1] + 8))
    ImageDraw.Draw(stamp).text((4 - box[0], 4 - box[1]), text, fill=255, font=font(path, size))
    stamp = stamp.rotate(rng.uniform(-4, 4), expand=True, resample=Image.Resampling.BILINEAR)
    half_wide, half_high = stamp.width / 2 / width, stamp.height / 2 / height
    along = rng.uniform(0.45, 0.55)
    edge = {'left': half_wide, 'right': 1 - half_wide, 'top': half_high, 'bottom': 1 - half_high}.get(scene.place, 0.5)
    edge += rng.uniform(0, 0.05) * (1 if edge < 0.5 else -1) if edge != 0.5 else rng.uniform(-0.05, 0.05)
    x, y = (edge, along) if sideways else (along, edge)
    canvas.paste(ink, (round(x * width - stamp.width / 2), round(y * height - stamp.height / 2)), stamp)


def render(rng, scene, which='train'):
    """A picture of some size around 130 pixels."""
    width, height = rng.randint(80, 180), rng.randint(80, 180)
    height = min(max(height, int(width / 1.35)), int(width * 1.35))
    ink = jittered(rng, COLOURS[scene.colour], 14)
    paper = background(rng, ink)
    canvas = Image.new('RGB', (width * 2, height * 2), paper)
    draw = ImageDraw.Draw(canvas)
    if scene.kind == 'shapes':
        draw_shapes(rng, scene, draw, width * 2, height * 2, ink)
    else:
        draw_text(rng, scene, canvas, ink, which)
    canvas = canvas.reduce(2)
    if rng.random() < 0.3:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8) * min(width, height) / SIDE))
    pixels = np.asarray(canvas, np.float32)
    noise = np.random.default_rng(rng.getrandbits(32))
    slope = noise.uniform(-12, 12, (2, 1, 1)).astype(np.float32)
    pixels = pixels + slope[0] * np.linspace(-1, 1, width)[None, :, None]
    pixels = pixels + slope[1] * np.linspace(-1, 1, height)[:, None, None]
    if rng.random() < 0.5:
        pixels = pixels + noise.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0, 9))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def as_tower_sees(picture):
    """Idefics3's preprocessing where the longest edge is one tile: the edges to 96, then the other one too."""
    width, height = picture.size
    ratio = width / height
    if ratio >= 1:
        size = (SIDE, (h := int(SIDE / ratio)) + h % 2)
    else:
        size = ((w := int(SIDE * ratio)) + w % 2, SIDE)
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def held_out(seed):
    rng = random.Random(f'held out {seed}')
    scene = draw_scene(rng)
    return scene, render(rng, scene, 'held out')


if __name__ == '__main__':
    for i in range(int(sys.argv[2]) if len(sys.argv) > 2 else 24):
        scene, picture = held_out(i)
        picture.save(f'{sys.argv[1]}/{i:03d}.png')
        print(f'{i:03d}.png', scene.sentence())
