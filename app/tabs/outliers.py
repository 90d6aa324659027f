"""The second tab: how large activations get, token by layer, and which layers hold the massive ones."""

from app.tabs.page import Page, Tab, view


def build(page: Page) -> None:
    view("activations", height=420, card=True)


TAB = Tab("outliers", "Activation outliers", build)
