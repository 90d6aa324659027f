"""The first tab: the token strip, the layer x token map, the inspector of a pinned cell."""

import gradio as gr

from app.tabs.page import Page, Tab, view


def build(page: Page) -> None:
    view("strip", height=150, card=True)
    with gr.Row(equal_height=True, elem_classes="mbq-split"):
        with gr.Column(scale=7, min_width=320):
            view("map", height=420, card=True)
        with gr.Column(scale=3, min_width=300):
            view("inspector", height=420, card=True)


TAB = Tab("allocate", "Allocate", build)
