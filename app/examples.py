"""Prompts that the bundled model was made for: short stories and encyclopedia articles. Plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    kind: str
    name: str
    text: str


STORIES = (
    Example("story", "Little fox", "Once upon a time, there was a little fox who lived near the river."),
    Example("story", "Red ball", "Tom and Lily went to the park with a big red ball. Tom wanted to"),
    Example("story", "Rainy day", "It was a rainy day. Mia looked out of the window and saw"),
)
ARTICLES = (
    Example("article", "Volcano", "A volcano is an opening in the crust of a planet from which"),
    Example("article", "Paris", "Paris is the capital and largest city of France. The city lies on the"),
    Example("article", "Honey bee", "The honey bee is an insect of the genus Apis, known for"),
)
ALL = STORIES + ARTICLES
