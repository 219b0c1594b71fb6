"""What holds in the stream: constants, and the parameters of one world, drawn from its seed.

The README beside this file has the equations; numbers in brackets are theirs.

Shape letters: n impressions, C categories, S stages, D domains, R products.
"""

import numpy as np

CATEGORIES = 24
STAGES = 3
STYLES = 48
SURFACES = ("feed", "stories", "reels", "search", "messaging", "audience_network")
"""The domains."""
SURFACE_SHARE = np.array([0.38, 0.24, 0.16, 0.10, 0.08, 0.04])
ADVERTISERS_PER_CATEGORY = 4
ADVERTISERS = CATEGORIES * ADVERTISERS_PER_CATEGORY
AGES, COUNTRIES, LANGUAGES = 6, 8, 6
DEVICES = ("android", "ios", "desktop")
FORMATS = ("image", "video", "carousel", "collection")
GOALS = ("awareness", "traffic", "leads", "purchases")
PRICES = np.linspace(-2.0, 2.0, 9)
"""Price levels, in standard deviations of the market."""
SIGNALS = ("none", "pixel", "api", "app", "offline")
ORGANIC_ACTIONS = ("view", "search", "cart")
RESPONSES = ("dislike", "like")
IMAGE_DIM = 8
DAY_S = 86_400
