"""Photos → pooled features of a frozen Qwen3-VL → a trained projection head.

In the order of the work:

- ``sample_photos`` draws a data set to try everything with
- ``schema``, ``dataset``, ``summary``: labelled photos, who is held out, what a folder holds
- ``annotation``: labels and augmented photos from a model
- ``backbone``, ``tiny``, ``features``, ``feature_cache``, ``graph_extractor``: photos → features
- ``head``, ``objective``, ``fit``: features → head
- ``run``, ``train``, ``compare``, ``tracking``: a whole run, or many side by side
- ``evaluation``: figures, report, model card
- ``commands``: the command line; ``files``, ``cache``: how and where things are stored
"""
