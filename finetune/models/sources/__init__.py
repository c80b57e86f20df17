"""Sources of networks, one module per library; no other code imports these libraries' models.

Each module has two functions: ``architecture(name, kwargs)`` builds a :class:`~finetune.models.backbone.Backbone` with
random weights and downloads at most a configuration; ``load_imagenet(backbone, member)`` loads the library's own
weights into it (``member`` names one of several; None is the default).
"""
