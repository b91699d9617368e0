"""Bugs planted in lora_np/plot."""

from planted.mutant import Mutant

PLOT = ("tests/test_plot.py",)

MUTANTS = [
    Mutant(
        "plot: close values start at zero",
        "plot/_ranks.py",
        "if 0 < spread < LEAST_SPREAD * finite.max():",
        "if False:",
        PLOT,
    ),
    Mutant(
        "plot: a cut axis has no note",
        "plot/_ranks.py",
        'ax.text(0.01, 0.01, "axis does not start at 0"',
        'ax.text(0.01, 0.01, ""',
        PLOT,
    ),
    Mutant(
        "plot: percentages of more than 100 are cut off",
        "plot/_ranks.py",
        "is_percent = is_percent and finite.max() <= 100",
        "pass",
        PLOT,
    ),
    Mutant(
        "plot: the limits prevent a logarithmic axis",
        "plot/_ranks.py",
        "ax.set_ylim(low, high, auto=True)",
        "ax.set_ylim(low, high)",
        PLOT,
    ),
    Mutant(
        "plot: lines for many spectra",
        "plot/_spectra.py",
        "if len(curves) <= MOST_LINES else",
        "if len(curves) <= 2 * MOST_LINES else",
        PLOT,
    ),
    Mutant(
        "plot: the first layer of a heat map is at the bottom",
        "plot/_spectra.py",
        "extent=(0.5, widest + 0.5, count, 0)",
        "extent=(0.5, widest + 0.5, 0, count)",
        PLOT,
    ),
    Mutant(
        "plot: a heat map with a linear scale",
        "plot/_spectra.py",
        "LogNorm() if np.isfinite(grid).any() else None",
        "None",
        PLOT,
    ),
    Mutant(
        "plot: long names of tasks stay on one line",
        "plot/_data_flow.py",
        'return "\\n".join(map(as_text, lines))',
        'return "".join(map(as_text, lines))',
        PLOT,
    ),
    Mutant(
        "plot: a running mean counts steps that are not there",
        "plot/_history.py",
        "np.divide(sums, counts,",
        "np.divide(sums, window,",
        PLOT,
    ),
    Mutant(
        "plot: a loss that is not finite spoils its neighbours",
        "plot/_history.py",
        "np.convolve(np.where(finite, values, 0.0), ones",
        "np.convolve(values, ones",
        PLOT,
    ),
    Mutant(
        "plot: the best epoch is the last one",
        "plot/_history.py",
        "ax.plot(ends[best - 1], validation[best - 1]",
        "ax.plot(ends[-1], validation[-1]",
        PLOT,
    ),
    Mutant(
        "plot: means of epochs are drawn at their beginnings",
        "plot/_history.py",
        "(np.arange(len(means)) + 0.5) * epoch",
        "np.arange(len(means)) * epoch",
        PLOT,
    ),
]
