"""report.tex: booktabs tables that compile on their own and can be read into a paper by ``\\input{report.tex}``."""

from __future__ import annotations

import re

from ickd_pl.benchmark.report.format import Markup, Table
from ickd_pl.benchmark.report.notes import basis, facts, notes, published_are
from ickd_pl.benchmark.report.summary import Summary
from ickd_pl.benchmark.report.tables import (
    accuracy_table,
    best_table,
    pair_name,
    paired_table,
    published_table,
)

# LaTeX lets go of \@nodocument at \begin{document}: alone, this file brings its own document, else it adds nothing.
_HEAD = r"""% Alone: pdflatex report.tex. In a paper: \usepackage{booktabs,graphicx} and \input{report.tex}.
\makeatletter
\ifx\@nodocument\relax
  \def\endofreport{}
\else
  \documentclass{article}
  \usepackage[utf8]{inputenc}
  \usepackage[T1]{fontenc}
  \usepackage[margin=2cm]{geometry}
  \usepackage{booktabs,graphicx}
  \begin{document}
  \def\endofreport{\end{document}}
\fi
\makeatother
"""

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "†": r"$\dagger$",
}


def tex(text: str) -> str:
    """Escape what LaTeX would read as its own; a letter outside Latin-1 becomes a question mark, as fonts lack it."""
    text = " ".join(text.split())
    out = "".join(_SPECIAL.get(c, c if c.isascii() or c in _LATIN else "?") for c in text)
    return re.sub(r"(?<![\w-])-(?=\d)", r"$-$", out)


_LATIN = frozenset(chr(c) for c in range(0xC0, 0x100)) - {chr(0xD7), chr(0xF7)}  # times and division sign


def latex(summary: Summary) -> str:
    """Last epoch, best epoch, published figures, and the paired differences of each pair."""
    about = "; ".join(f"{k}: {v}" for k, v in facts(summary))
    remarks = "".join(f"% {' '.join(text.split())}\n" for text in notes(summary))
    arrows = r"$\uparrow$, $\downarrow$: above, below KD, claimed at 95\,\%; bold: the lead over the second is claimed."
    name = tex(summary.results.name)
    tables = [
        _table(accuracy_table(summary), f"{name}: top-1 accuracy (\\%) after the last epoch, mean $\\pm$ standard "
               f"deviation over seeds ({tex(basis(summary))}). {arrows}", "last"),
        _table(best_table(summary), f"{name}: best epoch, for information only: selected on the split it is measured "
               "on.", "best"),
    ]  # fmt: skip
    if (table := published_table(summary)) is not None:
        caption = f"published accuracies. {tex(published_are(summary))} $\\dagger$: epoch not stated."
        tables.append(_table(table, f"{name}: {caption}", "published"))
    for number, pair in enumerate(summary.results.pairs, 1):
        if (table := paired_table(summary, pair)) is not None:
            caption = f"{tex(pair_name(pair))}: paired differences with intervals of 95\\,\\%."
            tables.append(_table(table, caption, f"paired-{number}"))
    return f"% {' '.join(about.split())}\n{remarks}{_HEAD}\n" + "\n".join(tables) + "\n\\endofreport\n"


def _table(table: Table, caption: str, label: str) -> str:
    columns = "".join("l" if text else "r" for text in table.text)
    header, *rows = (" & ".join(line) + r" \\" for line in table.written(_MARKUP))
    body = "\n".join([r"\toprule", header, r"\midrule", *rows, r"\bottomrule"])
    # Scaled down to the width of the page where it is wider; booktabs' rules want no vertical ones.
    return (
        f"\\begin{{table}}[htbp]\n\\centering\n\\caption{{{caption}}}\n\\label{{tab:report-{label}}}\n"
        "\\sbox0{%\n"
        f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}}}\n"
        "\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi\n\\end{table}\n"
    )


_MARKUP = Markup(tex, r"\textbf{%s}", r" $\uparrow$", r" $\downarrow$")
