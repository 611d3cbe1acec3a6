"""Settings of the documentation site: `make docs`."""

import re
import shutil
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

import vars_ode

HERE = Path(__file__).parent

project = "vars-ode"
author = "the vars-ode developers"
project_copyright = "the vars-ode developers, MIT license"
version = release = vars_ode.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "study/*.md"]
nitpicky = True  # a reference to one of our names has to resolve
nitpick_ignore_regex = [
    ("py:.*", r"(?!vars_ode\.|solvers\.).*"),  # other packages are not looked up
    ("py:.*", r"(vars_ode|solvers)\.(?!(adjoints|analysis|data|dictionaries|models|robustness|training)\.\w+$)\w+\..*"),
]  # names that are not exported, in signatures
default_role = "literal"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks hold their outputs; the tests run them
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"vars-ode {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # by the browser itself: pages show their equations offline too

# The notebooks live in examples/, for readers of the repository; Sphinx wants them below its own folder.
shutil.rmtree(HERE / "examples", ignore_errors=True)
(HERE / "examples").mkdir()
for notebook in sorted((HERE.parent / "examples").glob("*.ipynb")):
    shutil.copy2(notebook, HERE / "examples" / notebook.name)


def escape_formulas(app, what, name, obj, options, lines) -> None:
    """Docstrings write |a|_1 and V* as they are; in reStructuredText these would be references and emphasis."""
    for place, line in enumerate(lines):
        pieces = re.split(r"(`[^`]*`)", line)
        pieces[::2] = [re.sub(r"([|*\\])|(?<=\w)(_)(?=\W|$)", r"\\\1\2", piece) for piece in pieces[::2]]
        lines[place] = "".join(pieces)


def mathml(latex: str, display: str = "inline") -> str:
    r"""MathML, with brackets such as \Bigl( in their size: browsers stretch them in a font for mathematics only."""

    def enlarged(found: re.Match) -> str:
        size, bracket = float(found[1]), found[2]
        big = f'<mo stretchy="false" style="font-size:{size}em">{bracket}</mo>'
        return f'<mpadded voffset="{-0.3 * (size - 1):.2f}em">{big}</mpadded>'

    return re.sub(r'<mo [^>]*minsize="([\d.]+)em"[^>]*>(.*?)</mo>', enlarged, convert(latex, display=display))


def write_inline_math(translator, node) -> None:
    translator.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def write_displayed_math(translator, node) -> None:
    translator.body.append(f'<div class="math">{mathml(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (write_inline_math, None), (write_displayed_math, None))
    app.connect("autodoc-process-docstring", escape_formulas, priority=100)  # before napoleon reads them
