"""Reports: runs on disk, statistics, tables, figures, and one self-contained HTML page.

- `save_run`, `load_run`, `run_name`, `Run`: a run's configuration, metrics, arrays and provenance
- `mean_and_stderr`, `spearman`, `spearman_within`, `bootstrap_interval`: small statistics
- `Measured`, `text_table`, `format_measured`: tables, and values with errors in the right digits
- `figures`: curves, local energies, spectra and scatter plots (`figures.save_figure` writes them)
- `draw_panels`, `Panel`, `Series`: lines of a theory and measured points, panel below panel
- `write_page`, `Section`, `Table`, `Picture`, `Facts`: the page
"""

from jflat.report import figures
from jflat.report.page import Facts, Picture, Section, Table, write_page
from jflat.report.panels import Panel, Series, draw_panels
from jflat.report.statistics import (
    BootstrapInterval,
    bootstrap_interval,
    mean_and_stderr,
    ranks,
    spearman,
    spearman_within,
)
from jflat.report.store import Run, load_run, run_name, save_run
from jflat.report.tables import Measured, format_cell, format_measured, html_table, text_table

__all__ = [
    "BootstrapInterval",
    "Facts",
    "Measured",
    "Panel",
    "Picture",
    "Run",
    "Section",
    "Series",
    "Table",
    "bootstrap_interval",
    "draw_panels",
    "figures",
    "format_cell",
    "format_measured",
    "html_table",
    "load_run",
    "mean_and_stderr",
    "ranks",
    "run_name",
    "save_run",
    "spearman",
    "spearman_within",
    "text_table",
    "write_page",
]
