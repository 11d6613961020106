"""The A/B kit: what an experiment on arms showed, with intervals, on ``tea-tasting`` and ``statsmodels`` (extra ``ab``)."""
