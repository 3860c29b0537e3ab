"""The interactive view: `Explorer`, a thin shell over `Workspace`.

GraphInfo → graph (what is drawn) → layout, columns (where) → scene → figure (plotly traces): pure, tested as data.
words, panels, profile_figure: values → sentences, HTML, traces. graph_panel, table, controls, jobs, app: the widgets.
"""

from explorer.view.app import Explorer

__all__ = ["Explorer"]
