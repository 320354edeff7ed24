"""Claims about sequence models on spikes, each with the study that tests it.

:func:`~isospike.experiments.study.reproduce` runs one by its name;
:func:`~isospike.experiments.study.find_studies` lists them. Those that train share their training
runs (:mod:`.grid`): what one has trained, another reads.
"""
