"""One module for each library that networks come from; nothing else imports these libraries' models.

Each has two functions: ``architecture(name, kwargs)`` builds a :class:`~finetune.models.backbone.Backbone` with random
weights and downloads nothing but a configuration, and ``load_imagenet(backbone, member)`` puts the library's own
weights on it (``member`` names one of several; None is the default).
"""
