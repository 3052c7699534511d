"""Pictures of what a model is given and of where its backbone looks."""

from .attention import StageMaps, attention_maps, attention_probabilities
from .feed import Feed
from .figure import attention_figure, draw_attention
from .inputs import to_pictures
from .truth import build_visualizer, describe_labels, draw_truth

__all__ = [
    'Feed',
    'StageMaps',
    'attention_figure',
    'attention_maps',
    'attention_probabilities',
    'build_visualizer',
    'describe_labels',
    'draw_attention',
    'draw_truth',
    'to_pictures',
]
