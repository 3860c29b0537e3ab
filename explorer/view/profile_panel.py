"""The live panel of a profile: its words, and the plots of the point that is chosen and of all points together."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from explorer.profile import Profile
from explorer.view import measured
from explorer.view.controls import Controls, point_widget, sweep_widget


class ProfilePanel:
    """Shows a profile in the controls that are for it; a plot is made once and kept, so nothing is updated."""

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self._profile: Profile | None = None
        self._trouble = self._nothing = ""
        # By identity: to hash a profile is to hash its timelines, and whoever keeps a widget keeps its profile.
        self._plots: dict[tuple[int, int], tuple[Profile, w.Widget | None]] = {}
        controls.point.observe(lambda _: self._chosen(), "value")

    def show(self, profile: Profile | None, trouble: str, nothing: str) -> None:
        """Show `profile` under `trouble` (HTML); where there is none, `nothing` says why."""
        fresh = profile is not self._profile
        self._profile, self._trouble, self._nothing = None, trouble, nothing  # none while the choice changes
        if fresh and profile is not None:
            names = [(measured.point_name(point), index) for index, point in enumerate(profile.points)]
            self._controls.point.options = names
            self._controls.point.value = len(names) - 1
        self._profile = profile
        self._draw()

    def _chosen(self) -> None:
        if self._profile is not None:
            self._draw()

    def _draw(self) -> None:
        c, profile = self._controls, self._profile
        several = profile is not None and len(profile.points) > 1
        c.point.layout.display = None if several else "none"
        index = c.point.value
        point = None if profile is None or index is None else profile.points[index]
        c.measured.value = self._trouble + measured.profile(profile, point, self._nothing)
        shown: tuple[Any, ...] = ()
        if profile is not None and index is not None:
            plots = (self._plot(profile, -1) if several else None, self._plot(profile, index))
            shown = tuple(plot for plot in plots if plot is not None)
        if c.plot.children != shown:
            c.plot.children = shown

    def _plot(self, profile: Profile, index: int) -> w.Widget | None:
        """The plot of one point, or with -1 over all of them."""
        key = (id(profile), index)
        if key not in self._plots:
            made = sweep_widget(profile) if index < 0 else point_widget(profile, profile.points[index])
            self._plots[key] = (profile, made)
        return self._plots[key][1]
