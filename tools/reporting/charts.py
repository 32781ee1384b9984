"""The charts of tools.report as Plotly figures. The colours of the page are set in the page."""

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from core.metrics import ERROR_SHARES, error_shares

# Okabe and Ito's colours, which colour-blind people can distinguish; all are readable on white and on the dark page.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#a6761d', '#56b4e9', '#e69f00', '#7f7f7f')
SHARE_COLOURS = ('#009e73', '#0072b2', '#e69f00', '#cc3377', '#8e6bbf')
METRICS = {'miou': ('mIoU', 'solid'), 'fp': ('FP', 'dash'), 'fn': ('FN', 'dot')}
# Curves of a training run, in this order, then the others; the weight of a loss and the learning rate come last.
CURVES = ('mIoU', 'mAP', 'F1', 'loss')
LAST_CURVES = ('alpha', 'lr')
SCORES = ('mIoU', 'mAP', 'F1')  # curves in %
# For axes of classes: otherwise Plotly reads "1" as a number and "2024-05-01" as a date.
CLASSES = {'type': 'category', 'tickmode': 'linear', 'automargin': True}
LAYOUT = {'margin': {'l': 8, 'r': 12, 't': 16, 'b': 8}, 'showlegend': False}  # legends are HTML


def colour_of(index: int) -> str:
    """Return the colour of a run, by its place in the report."""
    return COLOURS[index % len(COLOURS)]


def literal(name: str) -> str:
    """Return a name escaped for a label, which Plotly reads as HTML; quotes stay, because Plotly would show &quot;."""
    return html.escape(name, quote=False)


def extra(title: str) -> str:
    """Return the second part of a hover text, in which Plotly would read HTML and %{...}."""
    return f'<extra>{literal(title).replace("%", "&#37;")}</extra>'


def chart_classes(columns: dict[int, dict[str, float]], titles: Sequence[str]) -> go.Figure:
    """Return bars of the IoU (%) by class name, a group per class and a colour per run; columns by place of the run."""
    names = list(next(iter(columns.values())))[::-1]  # the first class on top
    figure = go.Figure()
    for i, column in reversed(columns.items()):
        values, hover = [column[name] for name in names], '%{y}: %{x:.2f} %' + extra(titles[i])
        figure.add_bar(
            x=values, y=list(map(literal, names)), orientation='h', marker_color=colour_of(i), hovertemplate=hover
        )
    figure.update_layout(LAYOUT, barmode='group', height=80 + len(names) * (10 + 9 * len(columns)))
    figure.update_xaxes(title_text='IoU, %', range=[0, 100], automargin=True)
    figure.update_yaxes(CLASSES, title_text='class')
    return figure


def chart_errors(confusion: np.ndarray, names: Sequence[str]) -> go.Figure:
    """Return a bar per class that divides its union into the IoU and the kinds of errors; (C, C) pixel counts."""
    names, kept = _named(names)
    shares = 100 * error_shares(confusion)[kept][::-1]
    figure = go.Figure()
    for j, (what, colour) in enumerate(zip(ERROR_SHARES, SHARE_COLOURS, strict=True)):
        hover = '%{y}: ' + what + ' %{x:.1f} %<extra></extra>'
        y = list(map(literal, names))[::-1]
        figure.add_bar(x=shares[:, j], y=y, orientation='h', marker_color=colour, hovertemplate=hover)
    figure.update_layout(LAYOUT, barmode='stack', height=80 + 22 * len(names))
    figure.update_xaxes(title_text='% of the union', range=[0, 100], automargin=True)
    figure.update_yaxes(CLASSES, title_text='class')
    return figure


def chart_confusion(confusion: np.ndarray, names: Sequence[str]) -> go.Figure:
    """Return the confusion matrix (C, C) as a heat map: % of the pixels of each true class by predicted class.

    The numbers are rounded to whole %, and 0 is left out. Plotly leaves out all numbers where they do not fit.
    """
    names, kept = _named(names)
    confusion = confusion[np.ix_(kept, kept)]
    rows = (100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1))[::-1]
    # The square root brings out the small shares, which are the errors.
    ticks = (0, 1, 10, 25, 50, 100)
    scale = {'tickvals': np.sqrt(ticks).tolist(), 'ticktext': [f'{tick} %' for tick in ticks], 'thickness': 14}
    heat = {'z': np.sqrt(rows), 'zmin': 0, 'zmax': 10, 'colorscale': 'Viridis', 'colorbar': scale}
    hover = '%{customdata:.1f} % of %{y} is predicted as %{x}<extra></extra>'
    axes = {'x': list(map(literal, names)), 'y': list(map(literal, names))[::-1]}
    numbers = {'text': [[f'{share:.0f}' if share >= 0.5 else '' for share in row] for row in rows]}
    figure = go.Figure(
        go.Heatmap(**heat, **axes, **numbers, texttemplate='%{text}', customdata=rows, hovertemplate=hover)
    )
    figure.update_layout(LAYOUT, height=150 + 22 * len(names))
    figure.update_xaxes(CLASSES, title_text='predicted', tickangle=-90)
    figure.update_yaxes(CLASSES, title_text='mask')
    return figure


def _named(names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the labels that have a name, and their indices: all but the background of a data set without one."""
    kept = [i for i, name in enumerate(names) if name]
    return [names[i] for i in kept], kept


def chart_thresholds(results: dict[int, dict], titles: Sequence[str]) -> go.Figure:
    """Return mIoU, FP and FN over the thresholds of maps, the chosen one marked; results by place of the run."""
    figure = go.Figure()
    for i, result in results.items():
        x = [row['threshold'] for row in result['thresholds']]
        for metric, (name, dash) in METRICS.items():
            y = [row.get(metric) for row in result['thresholds']]
            hover = name + ' %{y:.2f} % at %{x}' + extra(titles[i])
            figure.add_scatter(x=x, y=y, line={'color': colour_of(i), 'dash': dash}, mode='lines', hovertemplate=hover)
        best = {'x': [result['threshold']], 'y': [result['miou']], 'marker': {'color': colour_of(i), 'size': 10}}
        figure.add_scatter(**best, mode='markers', hoverinfo='skip')
    figure.update_layout(LAYOUT, height=420)
    figure.update_xaxes(title_text='background threshold', automargin=True)
    figure.update_yaxes(title_text='%', rangemode='tozero', automargin=True)
    return figure


def list_curves(runs: Sequence[dict[str, list]]) -> list[str]:
    """Return the names of the curves of training runs: scores, then losses, then settings."""
    found = {name for run in runs for name, points in run.items() if points}
    middle = sorted(found - {*CURVES, *LAST_CURVES})
    return [name for name in (*CURVES, *middle, *LAST_CURVES) if name in found]


def chart_curve(name: str, tags: Sequence[str], runs: Sequence[dict[str, list]]) -> go.Figure:
    """Return a curve of training runs over iterations, a colour per run."""
    figure = go.Figure()
    for i, (tag, run) in enumerate(zip(tags, runs, strict=True)):
        points = run.get(name)
        if points:
            x, y = zip(*points, strict=True)
            mode = 'lines+markers' if len(points) < 50 else 'lines'
            line, hover = {'color': colour_of(i)}, 'iteration %{x}: %{y:.4g}' + extra(tag)
            figure.add_scatter(x=x, y=y, name=tag, line=line, mode=mode, hovertemplate=hover)
    figure.update_layout(LAYOUT, title={'text': literal(name), 'font': {'size': 14}}, height=240, margin_t=36)
    figure.update_xaxes(title_text='iteration', automargin=True)
    figure.update_yaxes(title_text=literal(f'{name}, %' if name in SCORES else name), automargin=True)
    return figure
