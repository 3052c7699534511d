"""From a folder of labels to a trained, evaluated model: the ``gcvit-mm fit`` command."""
