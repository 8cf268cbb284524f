"""What the scripts of the gallery share: command line, data, and a look that every kind of color vision tells apart."""

import argparse
import inspect
import pathlib
import sys

import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).parent  # with the data, in files that say where they are from
BLUE, RED, ORANGE = "#0072B2", "#D55E00", "#E69F00"  # Okabe and Ito (2008)
LOOK = {
    "figure.figsize": (9, 3.8),
    "figure.constrained_layout.use": True,
    "font.size": 13,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=[BLUE, RED]),
}


def run(main, *arguments):
    """Call `main`, which returns a figure, and save that.

    Args:
        main: a function of nothing, or of ``quick``, whether a few steps will do.
        arguments: of the command line; as the script was called, if empty.
    """
    options = argparse.ArgumentParser(description=sys.modules[main.__module__].__doc__)
    options.add_argument("--out", default=pathlib.Path(main.__code__.co_filename).with_suffix(".png"))
    if "quick" in inspect.signature(main).parameters:
        options.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    given = vars(options.parse_args(arguments or None))
    out = given.pop("out")
    with plt.rc_context(LOOK):
        figure = main(**given)
        figure.savefig(out, dpi=100)
    plt.close(figure)
    print(f"picture: {out}")
