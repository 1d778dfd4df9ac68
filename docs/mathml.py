"""Formulas as MathML, which browsers draw themselves: no script, no network, the colours of the theme."""
from docutils import nodes
from math_core import LatexToMathML

convert = LatexToMathML(fancy_error=False).convert_with_local_state   # raises for what it does not know


def inline(writer, node):
    writer.body.append(convert(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def block(writer, node):
    writer.body.append(f'<div class="math">{convert(node.astext(), displaystyle=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
