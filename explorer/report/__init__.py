"""The same results for programs and for people: JSON documents (`"schema"`) and plain text for a terminal.

scan, fuse, verdict, profile, tuning    one file for each kind of result
blocks   blocks that are alike, told together
chart    curves in characters
layout   lines and tables
"""

from explorer.report.fuse import counts_text, fuse_document, fuse_text
from explorer.report.profile import comparison_document, comparison_text, profile_text
from explorer.report.scan import explain_text, scan_document, scan_text
from explorer.report.tuning import tuning_text
from explorer.report.verdict import verdict_text

__all__ = [
    "comparison_document",
    "comparison_text",
    "counts_text",
    "explain_text",
    "fuse_document",
    "fuse_text",
    "profile_text",
    "scan_document",
    "scan_text",
    "tuning_text",
    "verdict_text",
]
